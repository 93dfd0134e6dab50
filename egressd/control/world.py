"""The world as the data path needs it: which policies there are, whose address is whose, who is selected by what.

Values in, values out: no file, no clock, no log. `World.replace` takes what sources say now and returns the smallest
`Update` that says the difference; equal input gives none. A policy document with an error keeps its last good version
(policy.md, Bad input); apart from that memory the world depends only on the objects there are, never on their order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

import msgspec

from egressd.control.objects import Id, Objects, born
from egressd.link import MAX_FRAME, PodEntry, Update, encode
from egressd.model import Policy
from egressd.policy import select, selector_matches
from egressd.schema import ConfigMapObject, Manifest, NamespaceObject, PodObject, Problem, policies_of, policy_name
from egressd.settings import Settings

__all__ = ["MAX_POLICY", "News", "Step", "World", "frames"]

MAX_POLICY: Final = MAX_FRAME // 2
"""Octets of one compiled policy on the link: a frame must hold it, and a ConfigMap of 1 MiB can exceed even that."""
POLICIES_PER_UPDATE: Final = 4
PODS_PER_UPDATE: Final = 25
"""Each a tenth of a millisecond to the data path, if they are of the usual size."""

T = TypeVar("T")


class News(NamedTuple):
    """What happened to one policy: `change` is updated, refused or deleted; `problems` say why it was refused."""

    policy: str
    change: str
    problems: tuple[Problem, ...] = ()


class Step(NamedTuple):
    """What one change came to. `update` is None where the data path need not know; `problems` are new complaints."""

    update: Update | None
    news: tuple[News, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass(slots=True)
class _Changes:
    """What one `replace` has touched so far; `policies` holds the versions from before."""

    policies: dict[str, Policy | None] = field(default_factory=dict)
    pods: set[Id] = field(default_factory=set)
    namespaces: set[str] = field(default_factory=set)
    news: list[News] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


class World:
    """All objects, and what follows from them. `memory` holds policies that were good before this world began.

    `texts` says what of them was read from what, by `digest`: the same text is not read again.
    """

    def __init__(
        self, settings: Settings, memory: Mapping[str, Policy] | None = None, texts: Mapping[str, str] | None = None
    ) -> None:
        self._settings = settings
        self._memory = dict(memory or {})
        self._texts = dict(texts or {})
        self._upstreams = frozenset(upstream.address for upstream in settings.dns.upstreams)
        self.servers: frozenset[bytes] = frozenset()
        """Addresses that serve DNS to us beside the upstreams: the pods behind a Service."""
        self._objects = Objects()
        self.policies: dict[str, Policy] = {}
        self.refused: dict[str, tuple[Problem, ...]] = {}
        self._by_namespace: dict[str, dict[str, Policy]] = {}
        self._documents: dict[Id, frozenset[str]] = {}
        self._pods: dict[Id, PodObject] = {}
        self._labels: dict[str, Mapping[str, str]] = {}
        self._selected: dict[Id, tuple[str, ...]] = {}
        self._entries: dict[bytes, PodEntry] = {}

    def replace(self, sources: Mapping[str, Sequence[Manifest]], servers: frozenset[bytes] | None = None) -> Step:
        """Put the given objects in place of what each key held, all at once; `servers` too, unless it is None."""
        if servers is not None:
            self.servers = servers
        touched: set[Id] = set()
        for key, manifests in sources.items():
            touched |= self._objects.replace(key, manifests)
        changes = _Changes()
        for name in sorted(touched):
            self._take(name, changes)
        changed = {name for name, before in changes.policies.items() if self.policies.get(name) != before}
        self._select(changes, changed)
        pods, gone_pods = self._address()
        update = Update(
            policies=tuple(self.policies[name] for name in sorted(changed & self.policies.keys())),
            gone_policies=tuple(sorted(changed - self.policies.keys())),
            pods=pods,
            gone_pods=gone_pods,
        )
        return Step(update if update != Update() else None, tuple(changes.news), tuple(changes.problems))

    def everything(self) -> Update:
        """All that is known, for a data path that knows nothing yet."""
        return Update(
            policies=tuple(self.policies[name] for name in sorted(self.policies)),
            pods=tuple(self._entries[address] for address in sorted(self._entries)),
        )

    @property
    def entries(self) -> tuple[PodEntry, ...]:
        """Every address, with its pod and the policies that select it."""
        return tuple(self._entries.values())

    def labels(self, namespace: str, name: str) -> Mapping[str, str]:
        """Labels of a pod that counts here; none of any other."""
        found = self._pods.get(Id("Pod", namespace, name))
        return found.labels if found is not None else {}

    @property
    def past(self) -> tuple[Mapping[str, Policy], Mapping[str, str]]:
        """Policies in force and those that were good before this world began, and their texts: another's memory."""
        return self._memory | self.policies, self._texts

    @property
    def texts(self) -> Mapping[str, str]:
        """Digests of the texts that policies were read from, where nothing was to be said of them."""
        return self._texts

    def forget(self) -> None:
        """All objects there are have been said: a remembered policy whose document is not there is gone."""
        if self._memory:
            self._memory.clear()
            self._texts = {name: text for name, text in self._texts.items() if name in self.policies}

    @property
    def sources(self) -> dict[str, Sequence[Manifest]]:
        """What each key holds, to build another world from."""
        return self._objects.sources

    # ------------------------------------------------------------------------------------------ taking objects in

    def _take(self, name: Id, changes: _Changes) -> None:
        counting = self._objects.counting(name)
        key, manifest = counting or ("", None)
        for other in self._objects.others(name, key):
            changes.problems.append(Problem(other, 0, 0, "warning", f"{name} is in {key} too, which counts"))
        match name.kind:
            case "ConfigMap":
                self._take_configmap(name, key, manifest if isinstance(manifest, ConfigMapObject) else None, changes)
            case "Pod":
                self._take_pod(name, manifest if isinstance(manifest, PodObject) else None, changes)
            case _:
                self._take_namespace(name, manifest if isinstance(manifest, NamespaceObject) else None, changes)

    def _take_configmap(self, name: Id, key: str, configmap: ConfigMapObject | None, changes: _Changes) -> None:
        good, problems, refused = self._read(key, configmap) if configmap else ({}, [], set())
        changes.problems += problems
        errors = tuple(problem for problem in problems if problem.severity == "error")
        known = self._documents.pop(name, frozenset())
        kept = {document: self._last_good(document) for document in refused - good.keys()}
        now = good | {document: policy for document, policy in kept.items() if policy is not None}
        for document in sorted(known | now.keys() | refused):
            before, after = self.policies.get(document), now.get(document)
            was_refused = self.refused.pop(document, ())
            if document in refused:
                self.refused[document] = errors
                if was_refused != errors:
                    changes.news.append(News(document, "refused", errors))
            elif after is None:
                self._memory.pop(document, None)
                self._texts.pop(document, None)
                changes.news.append(News(document, "deleted"))
            elif after != before or was_refused:
                changes.news.append(News(document, "updated"))
            if after != before:
                changes.policies.setdefault(document, before)
                self._set_policy(document, after)
        if now or refused:
            self._documents[name] = frozenset(now.keys() | refused)

    def _read(self, key: str, configmap: ConfigMapObject) -> tuple[dict[str, Policy], list[Problem], set[str]]:
        """The documents of a ConfigMap: good policies, complaints, and the names of those refused."""
        good, problems, refused = policies_of(configmap, self._settings.policy_namespace, self._known)
        for name, policy in list(good.items()):
            octets = len(encode(Update(policies=(policy,))))
            if octets > MAX_POLICY:
                text = f"policy {name} is too large: compiled it takes {octets} octets of {MAX_POLICY}; split it"
                problems = [*problems, Problem(key, 0, 0, "error", text)]
                refused = {*refused, name}
                del good[name]
        if not problems and configmap.labelled:
            named = {
                policy_name(configmap.namespace, configmap.name, key): text for key, text in configmap.data.items()
            }
            self._texts |= {name: digest(named[name]) for name in good}
        else:
            for name in good:
                self._texts.pop(name, None)
        return good, problems, refused

    def _known(self, name: str, text: str) -> Policy | None:
        return self._last_good(name) if self._texts.get(name) == digest(text) else None

    def _last_good(self, document: str) -> Policy | None:
        return self.policies.get(document) or self._memory.get(document)

    def _set_policy(self, name: str, policy: Policy | None) -> None:
        before = self.policies.pop(name, None)
        if before is not None:
            self._by_namespace[before.namespace].pop(name)
        if policy is not None:
            self.policies[name] = policy
            self._by_namespace.setdefault(policy.namespace, {})[name] = policy

    def _take_pod(self, name: Id, pod: PodObject | None, changes: _Changes) -> None:
        """Pods count from the moment they have an address until they are finished (kubernetes.md, Decisions)."""
        here = pod is not None and pod.node in {"", self._settings.node}
        if pod is not None and here and pod.addresses and not pod.host_network and not pod.finished:
            self._pods[name] = pod
            changes.pods.add(name)
        elif self._pods.pop(name, None) is not None:
            del self._selected[name]

    def _take_namespace(self, name: Id, namespace: NamespaceObject | None, changes: _Changes) -> None:
        before = self._labels.pop(name.name, None)
        if namespace is not None:
            self._labels[name.name] = namespace.labels
        if self._labels.get(name.name) != before:
            changes.namespaces.add(name.name)

    # -------------------------------------------------------------------------------------- what follows from them

    def _select(self, changes: _Changes, changed: set[str]) -> None:
        """Bring every pod's policies up to date, looking only at pods and policies that can have changed."""
        moved = {name for name in changed if self._selects_otherwise(changes.policies[name], self.policies.get(name))}
        fresh: dict[str, dict[str, Policy]] = {}
        for name in moved & self.policies.keys():
            policy = self.policies[name]
            fresh.setdefault(policy.namespace, {})[name] = policy
        for key, pod in self._pods.items():
            if key in changes.pods or key.namespace in changes.namespaces:
                self._selected[key] = self._matching(pod, self._by_namespace)
            elif moved:
                kept = [selected for selected in self._selected[key] if selected not in moved]
                self._selected[key] = tuple(sorted([*kept, *self._matching(pod, fresh)]))

    @staticmethod
    def _selects_otherwise(before: Policy | None, after: Policy | None) -> bool:
        return before is None or after is None or before.subject != after.subject

    def _matching(self, pod: PodObject, policies: Mapping[str, Mapping[str, Policy]]) -> tuple[str, ...]:
        """Which of `policies`, by namespace, select a pod: only its own namespace's and cluster policies can."""
        own, cluster = pod.identity.namespace, self._settings.policy_namespace
        candidates = [policy for where in {own, cluster} for policy in policies.get(where, {}).values()]
        if not candidates:
            return ()
        labels = self._labels.get(own, {})
        chosen = select(candidates, own, labels, pod.labels, pod.identity.service_account, cluster)
        return tuple(policy.name for policy in chosen)

    def _address(self) -> tuple[tuple[PodEntry, ...], tuple[bytes, ...]]:
        """Give every address to the youngest pod that has it; return the entries that are new, and addresses gone."""
        entries: dict[bytes, PodEntry] = {}
        for name in sorted(self._pods, key=lambda name: born(self._pods[name])):
            pod = self._pods[name]
            exempt = self._exempt(pod)
            for address in pod.addresses:
                serves = exempt or address in self._upstreams or address in self.servers
                entries[address] = PodEntry(address, pod.identity, self._selected[name], serves)
        new = tuple(entries[address] for address in sorted(entries) if self._entries.get(address) != entries[address])
        gone = tuple(sorted(self._entries.keys() - entries.keys()))
        self._entries = entries
        return new, gone

    def _exempt(self, pod: PodObject) -> bool:
        """Whether a pod serves DNS to us and must never be intercepted (dns.md, Never a loop)."""
        exempt = self._settings.dns.exempt
        return pod.identity.namespace == exempt.namespace and selector_matches(exempt.labels, pod.labels)


def digest(text: str) -> str:
    """Tells one text from another."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def frames(update: Update) -> Iterator[bytes]:
    """Cut an update into frames: policies before the pods that name them, what is gone at the end.

    Each is what the data path understands in one short turn of its loop; a large policy is a frame of its own.
    """
    if update == Update():
        return
    if len(update.policies) <= POLICIES_PER_UPDATE and len(update.pods) <= PODS_PER_UPDATE:
        whole = encode(update)
        if len(whole) <= MAX_POLICY:
            yield whole
            return
    gone = Update(gone_policies=update.gone_policies, gone_pods=update.gone_pods)
    slices = [
        *(Update(policies=some) for some in _cut(update.policies, POLICIES_PER_UPDATE)),
        *(Update(pods=some) for some in _cut(update.pods, PODS_PER_UPDATE)),
        *([gone] if gone != Update() else []),
    ]
    for number, part in enumerate(slices, 1):
        yield from _fitting(part, more=number < len(slices))


def _cut(items: tuple[T, ...], most: int) -> Iterator[tuple[T, ...]]:
    return (items[start : start + most] for start in range(0, len(items), most))


def _fitting(update: Update, *, more: bool) -> Iterator[bytes]:
    """The frame, or where it would be too large that of each half; a single policy or pod always fits."""
    whole = encode(msgspec.structs.replace(update, more=more))
    most = max(len(update.policies), len(update.pods))
    if len(whole) <= MAX_POLICY or most < 2:
        yield whole
        return
    half = most // 2
    yield from _fitting(Update(policies=update.policies[:half], pods=update.pods[:half]), more=True)
    yield from _fitting(Update(policies=update.policies[half:], pods=update.pods[half:]), more=more)
