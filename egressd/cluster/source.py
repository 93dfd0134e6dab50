"""The cluster as a source of objects: what this node must know, kept up to date, in batches.

Four watches (pods of this node, namespaces, ConfigMaps with policies, the EndpointSlices of the DNS Service) and one
of the DNS Services themselves fill one table of pending changes; `changes` hands over what has gathered, the first
time when every list is complete. Losing the API server is nobody's business here: a `Watch` goes on by itself, and
what was told stays told.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from egressd.cluster.client import Api, ApiError
from egressd.cluster.events import About, Events, event_body
from egressd.cluster.facts import Facts, complete, discover, label_selector
from egressd.cluster.health import Health
from egressd.cluster.objects import CONFIGMAPS, NAMESPACES, PODS, SERVICES, SLICES, Key, Kind
from egressd.cluster.track import Changes, backoff
from egressd.cluster.watch import Watch
from egressd.schema import ConfigMapObject, Manifest
from egressd.settings import Dns, Settings

__all__ = ["Batch", "Cluster"]

RESOLV_CONF: Final = "/etc/resolv.conf"
WITHOUT_DNS_S: Final = 5.0
"""Seconds between looks for a DNS Service that is not there yet."""


class Batch(NamedTuple):
    """What changed: the objects under each key (none: gone), and, where it changed, every address that serves DNS."""

    objects: dict[str, tuple[Manifest, ...]]
    servers: frozenset[bytes] | None = None


def _stderr(line: str) -> None:
    print(f"egressd: {line}", file=sys.stderr, flush=True)


class Cluster:
    """One API server, seen from one node. `say` takes lines for people. Not to be used from two event loops."""

    def __init__(self, settings: Settings, say: Callable[[str], None] = _stderr) -> None:
        self.facts: Facts | None = None
        self.health = Health(say)
        self._say = say
        self._settings = settings
        self._api = Api(settings.source)
        self._events = Events(self._api, say)
        self._scope: object = None
        self._watches: dict[str, Watch] = {}
        self._pending: dict[str, Changes] = {}
        self._told: dict[Key, Key] = {}
        self._serving: dict[Key, frozenset[bytes]] = {}
        self._resolving: dict[Key, frozenset[bytes]] = {}
        self._announced: frozenset[bytes] = frozenset()
        self._poked = asyncio.Event()

    def check(self) -> None:
        """Raise `EnvironmentProblem` when the settings lead to no API server. Not from inside an event loop."""
        asyncio.run(self._api.check())

    @property
    def ailments(self) -> tuple[str, ...]:
        """Why this node may be behind the cluster, one text each; empty while all is well."""
        waiting = () if self.facts is not None else ("the cluster has not been read yet",)
        return *waiting, *self.health.ailments

    def poke(self) -> None:
        """Make `prepare` give up, or `changes` yield, now."""
        self._poked.set()

    # ---------------------------------------------------------------------------------------------- the start

    async def prepare(self, settings: Settings) -> Settings | None:
        """Settings completed with what the cluster says of itself; waits as long as it takes, and says so.

        None when it was poked meanwhile. What was found once holds until `dns.exempt` or the node changes.
        """
        self._settings = settings
        scope = settings.node, settings.dns.exempt
        if self.facts is None or scope != self._scope:
            facts = await self._discover(settings)
            if facts is None:
                return None
            for note in facts.notes:
                self._say(f"cluster: {note}")
            self.facts, self._scope = facts, scope
            self._watch_all(settings, facts)
        return complete(settings, self.facts)

    async def _discover(self, settings: Settings) -> Facts | None:
        search = await asyncio.to_thread(_search_domains)
        failures = 0
        while not self._poked.is_set():
            try:
                facts = await discover(self._api, settings, search)
            except ApiError as error:
                failures += 1
                self.health.failed("start", error.message, failures, own=error.status >= 400)
                wait = backoff(failures, random.random(), error.retry_after)  # noqa: S311 - spreads load
            else:
                if facts.dns_addresses or settings.dns.upstreams:
                    self.health.works("start")
                    return facts
                text = "; ".join(note for note in facts.notes if "DNS" in note or "services:" in note)
                self.health.failed("start", f"{text}; set dns.upstreams, or dns.exempt", 2, own=False)
                wait = WITHOUT_DNS_S
            await _sleep(self._poked, wait)
        self._poked.clear()
        return None

    def _watch_all(self, settings: Settings, facts: Facts) -> None:
        """The watches, each made once; those of the DNS Service anew where its name may have changed."""
        kinds: list[Kind[Any]] = [
            PODS.selecting(fieldSelector=f"spec.nodeName={settings.node}"),
            NAMESPACES,
            CONFIGMAPS,
            *_dns_kinds(settings.dns, facts),
        ]
        made = {kind.name: Watch(self._api, kind, self._tell, self.health) for kind in kinds}
        same = {name: old for name, old in self._watches.items() if name in made and old.kind == made[name].kind}
        self._watches = made | same

    # --------------------------------------------------------------------------------------------- the stream

    async def changes(self) -> AsyncGenerator[Batch, None]:
        """Batch after batch, for ever: the first when all is known, each later one where something changed.

        Closed and called again it goes on where it was.
        """
        tasks = [asyncio.create_task(watch.run()) for watch in self._watches.values()]
        tasks.append(asyncio.create_task(self._events.run()))
        try:
            while not self._complete:
                await self._news(tasks)
            yield self._batch()
            while True:
                await self._news(tasks)
                yield self._batch()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Close every connection; before the event loop ends."""
        await self._api.close()

    @property
    def _complete(self) -> bool:
        return all(watch.track.listed for watch in self._watches.values())

    async def _news(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Wait for news. A watch never ends by itself: one that did is a bug, and its exception is raised here."""
        poked = asyncio.create_task(self._poked.wait())
        try:
            done, _ = await asyncio.wait({poked, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            poked.cancel()
        for task in done - {poked}:
            task.result()
        self._poked.clear()

    def _tell(self, kind: str, changes: Changes) -> None:
        self._pending.setdefault(kind, {}).update(changes)
        self._poked.set()

    def _batch(self) -> Batch:
        pending, self._pending = self._pending, {}
        for table, kind in ((self._serving, SLICES.name), (self._resolving, SERVICES.name)):
            for key, addresses in pending.pop(kind, {}).items():
                table[key] = addresses or frozenset()
        self._compare_services()
        objects: dict[str, tuple[Manifest, ...]] = {}
        for kind, changes in pending.items():
            for (namespace, name), value in changes.items():
                objects[f"{kind}/{namespace}/{name}"] = (value,) if value is not None else ()
                if kind == CONFIGMAPS.name:
                    self._told.pop((namespace, name), None)
                if isinstance(value, ConfigMapObject):
                    self._told[namespace, name] = self._watches[kind].track.known((namespace, name)) or ("", "")
        return Batch(objects, frozenset().union(*self._serving.values()))

    def _compare_services(self) -> None:
        """The data path has sockets on the addresses that were found at the start; say once when those are no more."""
        now = frozenset().union(*self._resolving.values())
        if self.facts is None or not self._resolving or now == self._announced:
            return
        if now != frozenset(self.facts.dns_addresses):
            self._say("cluster: the addresses of the DNS Service changed; restart egressd to take them")
        self._announced = now

    # ------------------------------------------------------------------------------------------------- Events

    def refused(self, namespace: str, name: str, message: str) -> None:
        """Write the Event of a ConfigMap that was refused as it was told last."""
        uid, version = self._told.get((namespace, name), ("", ""))
        about = About("ConfigMap", namespace, name, uid, version)
        self._events.put(event_body(about, "PolicyRefused", message, self._settings.node, now=time.time()))

    def denied(self, namespace: str, name: str, uid: str, message: str) -> None:
        """Write the Event of a pod that was denied something; how often is the caller's to bound."""
        now = time.time()
        about = About("Pod", namespace, name, uid)
        self._events.put(event_body(about, "EgressDenied", message, self._settings.node, now=now, once=str(int(now))))


def _dns_kinds(dns: Dns, facts: Facts) -> list[Kind[Any]]:
    """The DNS Services and their endpoints; the controller marks every EndpointSlice with its Service's name."""
    if not facts.dns_services:
        return []
    namespace = dns.exempt.namespace
    names = f"kubernetes.io/service-name in ({','.join(facts.dns_services)})"
    return [
        SERVICES.selecting(f"/api/v1/namespaces/{namespace}/services", labelSelector=label_selector(dns.exempt.labels)),
        SLICES.selecting(f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices", labelSelector=names),
    ]


def _search_domains() -> list[str]:
    try:
        text = Path(RESOLV_CONF).read_text("utf-8", "replace")
    except OSError:
        return []
    lines = [line.split() for line in text.splitlines()]
    return [domain for words in lines if words[:1] == ["search"] for domain in words[1:]]


async def _sleep(poked: asyncio.Event, seconds: float) -> None:
    """Sleep, but not longer than until somebody pokes; the poke is left for the caller to see."""
    waiting = asyncio.create_task(poked.wait())
    await asyncio.wait({waiting}, timeout=seconds)
    waiting.cancel()
