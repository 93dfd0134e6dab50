"""The watches together, against a server that fails in every way: nothing lost, nothing twice, few words."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from kubeapi import ApiServer, kubeconfig
from kubeapi.objects import configmap, endpointslice, namespace, node, pod, service

from egressd.cluster import Batch, Cluster
from egressd.cluster import client as client_module
from egressd.cluster import source as source_module
from egressd.cluster import watch as watch_module
from egressd.cluster.events import About, Events, event_body
from egressd.cluster.health import Health
from egressd.cluster.objects import CONFIGMAPS
from egressd.settings import Settings, Source

LABELS = {"k8s-app": "kube-dns"}
DNS = "10.96.0.10"
PATIENCE_S = 20.0


@pytest.fixture
def api() -> Iterator[ApiServer]:
    """A cluster with one pod, one policy and a DNS Service with one endpoint."""
    server = ApiServer()
    server.put("services", service("kube-system/kube-dns", [DNS], LABELS))
    server.put("endpointslices", endpointslice("kube-system/kube-dns-x", "kube-dns", ["10.244.1.3"]))
    server.put("nodes", node("n1", ["10.244.1.0/24"]))
    server.put("namespaces", namespace("shop"))
    server.put("pods", pod("shop/web-0", "10.244.1.5", labels={"app": "web"}))
    server.put("pods", pod("shop/far-0", "10.244.2.5", node="n2"))
    server.put("configmaps", configmap("shop/web", "allow: []"))
    server.put("configmaps", configmap("shop/other", "no policy", policy=False))
    yield server
    server.close()


class Seen:
    """A cluster being watched: all that it ever told, and what it said to people."""

    def __init__(self, settings: Settings) -> None:
        self.said: list[str] = []
        self.cluster = Cluster(settings, self.said.append)
        self.objects: dict[str, Any] = {}
        self.batches: list[Batch] = []
        self.servers: frozenset[bytes] = frozenset()

    def take(self, batch: Batch) -> None:
        self.batches.append(batch)
        for key, objects in batch.objects.items():
            if objects:
                (self.objects[key],) = objects
            else:
                assert self.objects.pop(key, None) is not None, f"{key} was never told"
        if batch.servers is not None:
            self.servers = batch.servers

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - what is waited for happens in another thread
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def watching(api: ApiServer, folder: Path, **fields: Any) -> AsyncIterator[Seen]:
    """Everything is listed and being watched."""
    config = kubeconfig(folder / "kubeconfig", api.url)
    settings = Settings(node="n1", source=Source(kind="kubernetes", kubeconfig=str(config)), **fields)
    seen = Seen(settings)

    async def follow() -> None:
        async with contextlib.aclosing(seen.cluster.changes()) as changes:
            async for batch in changes:
                seen.take(batch)

    assert await seen.cluster.prepare(settings) is not None
    following = asyncio.create_task(follow())
    try:
        await seen.until(lambda: seen.batches and api.watching == 5)
        yield seen
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await seen.cluster.close()


Scene = Callable[[Seen], Awaitable[None]]


def play(api: ApiServer, folder: Path, scene: Scene, **fields: Any) -> Seen:
    async def life() -> Seen:
        async with watching(api, folder, **fields) as seen:
            await scene(seen)
            return seen

    return asyncio.run(life())


def lists(api: ApiServer, resource: str = "pods") -> int:
    asked = [request for request in api.requests if request.path.endswith(f"/{resource}")]
    return len([request for request in asked if "limit" in request.query and "continue" not in request.query])


def packed(text: str) -> bytes:
    return ip_address(text).packed


def test_the_first_batch_is_all_there_is(api: ApiServer, tmp_path: Path) -> None:
    """Pods of this node, namespaces, labelled ConfigMaps, the endpoints of the DNS Service; nothing else."""

    async def scene(seen: Seen) -> None:
        assert len(seen.batches) == 1
        assert set(seen.objects) == {"pods/shop/web-0", "namespaces//shop", "configmaps/shop/web"}
        assert seen.servers == {packed("10.244.1.3")}

    play(api, tmp_path, scene)


def test_changes_are_told_as_they_come(api: ApiServer, tmp_path: Path) -> None:
    """New, changed, deleted, and moved in or out of what is selected."""

    async def scene(seen: Seen) -> None:
        api.put("pods", pod("shop/web-1", "10.244.1.6"))
        await seen.until(lambda: "pods/shop/web-1" in seen.objects)
        api.delete("pods", "shop", "web-1")
        await seen.until(lambda: "pods/shop/web-1" not in seen.objects)
        api.put("configmaps", configmap("shop/web", "allow: []", policy=False))
        await seen.until(lambda: "configmaps/shop/web" not in seen.objects)
        api.put("configmaps", configmap("shop/other", "allow: []"))
        await seen.until(lambda: "configmaps/shop/other" in seen.objects)
        api.put("endpointslices", endpointslice("kube-system/kube-dns-x", "kube-dns", ["10.244.1.9"]))
        await seen.until(lambda: seen.servers == {packed("10.244.1.9")})
        assert lists(api) == 1

    play(api, tmp_path, scene)


def test_many_objects_come_in_pages(api: ApiServer, tmp_path: Path) -> None:
    """Of 500 each."""
    for number in range(1200):
        api.put("configmaps", configmap(f"shop/p{number:04}", "allow: []"))

    async def scene(seen: Seen) -> None:
        assert len([key for key in seen.objects if key.startswith("configmaps")]) == 1201
        pages = [request.query for request in api.requests if request.path == "/api/v1/configmaps"]
        assert [query["limit"] for query in pages if "watch" not in query] == ["500"] * 3

    play(api, tmp_path, scene)


def test_a_page_that_was_forgotten_means_one_whole_list(api: ApiServer, tmp_path: Path) -> None:
    """The server compacted its history between two pages: what it still has is asked for at once."""
    for number in range(700):
        api.put("configmaps", configmap(f"shop/p{number:04}", "allow: []"))
    config = Source(kind="kubernetes", kubeconfig=str(kubeconfig(tmp_path / "kubeconfig", api.url)))

    class Forgetful(client_module.Api):
        async def get(self, path: str, parameters: Mapping[str, str] | None = None) -> bytes:
            body = await super().get(path, parameters)
            api.put("configmaps", configmap("shop/p9999", f"{len(api.requests)}"))
            api.forget_history()
            return body

    async def life() -> list[Any]:
        made = Forgetful(config)
        items, _ = await watch_module.read_list(made, CONFIGMAPS)
        await made.close()
        return items

    names = [item.metadata.name for item in asyncio.run(life())]
    assert len(names) == len(set(names)) == 702
    assert [request.query.get("limit") for request in api.requests] == ["500", "500", None]


def test_a_connection_that_is_cut_goes_on_at_the_last_version(api: ApiServer, tmp_path: Path) -> None:
    """Nothing is listed again, nothing lost, and a cut that the next try mends is not worth a word."""

    async def scene(seen: Seen) -> None:
        before = len(seen.batches)
        for number in range(3):
            api.cut()
            api.put("pods", pod("shop/web-0", "10.244.1.5", labels={"round": str(number)}))
            await seen.until(lambda: seen.objects["pods/shop/web-0"].labels == {"round": str(number)})  # noqa: B023
            await seen.until(lambda: api.watching == 5)
            await asyncio.sleep(1.2)
        assert lists(api) == 1
        assert len(seen.batches) == before + 3

    seen = play(api, tmp_path, scene)
    assert not [line for line in seen.said if "API server" in line]


def test_a_server_that_is_away_gets_one_line_and_no_storm_of_requests(api: ApiServer, tmp_path: Path) -> None:
    """Five watches fail together: one line when they do, one when they work, and few attempts meanwhile."""

    async def scene(seen: Seen) -> None:
        attempts: list[int] = []
        api.stop()
        await seen.until(lambda: seen.cluster.ailments)
        await asyncio.sleep(3)
        api.delete("pods", "shop", "web-0")
        asked = len(api.requests)
        api.start()
        await seen.until(lambda: "pods/shop/web-0" not in seen.objects)
        await seen.until(lambda: not seen.cluster.ailments)
        attempts.append(len(api.requests) - asked)
        assert attempts[0] <= 15
        assert lists(api) == 1

    seen = play(api, tmp_path, scene)
    lines = [line for line in seen.said if "API server" in line]
    assert len(lines) == 2
    assert "Connection refused" in lines[0]
    assert "answers again" in lines[1]


@pytest.mark.parametrize("http", [True, False], ids=["as a status", "as a line"])
def test_a_version_that_is_gone_means_listing_and_telling_the_difference(
    api: ApiServer, tmp_path: Path, http: bool
) -> None:
    """410 in either form; what vanished is removed, and what did not change is not told again."""

    async def scene(seen: Seen) -> None:
        api.stop()
        api.delete("pods", "shop", "web-0")
        api.put("pods", pod("shop/web-1", "10.244.1.6"))
        if http:
            api.fail(410, times=5)
        else:
            api.forget_history()
        told = len(seen.batches)
        api.start()
        await seen.until(lambda: "pods/shop/web-1" in seen.objects and "pods/shop/web-0" not in seen.objects)
        await seen.until(lambda: api.watching == 5)
        keys = [key for batch in seen.batches[told:] for key in batch.objects]
        assert sorted(keys) == ["pods/shop/web-0", "pods/shop/web-1"]

    play(api, tmp_path, scene)


def test_a_line_that_is_no_event_is_survived(api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts as a loss: the watch goes on at the last good version."""
    broken = [False, True]
    original = client_module._lines

    async def lines(response: Any) -> AsyncIterator[bytes]:
        async for line in original(response):
            if b"web-9" in line and broken.pop():
                yield b"<html>a proxy's word</html>"
            yield line

    monkeypatch.setattr(client_module, "_lines", lines)

    async def scene(seen: Seen) -> None:
        api.put("pods", pod("shop/web-9", "10.244.1.9"))
        await seen.until(lambda: "pods/shop/web-9" in seen.objects)
        assert lists(api) == 1

    play(api, tmp_path, scene)


def test_watches_that_end_in_good_order_go_on_at_once(
    api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the version that the bookmark before the end brought."""
    monkeypatch.setattr(watch_module, "WATCH_S", (3, 3))

    async def scene(seen: Seen) -> None:
        api.put("pods", pod("shop/far-1", "10.244.2.6", node="n2"))
        await asyncio.sleep(4)
        watches = [
            request.query for request in api.requests if request.path == "/api/v1/pods" and "watch" in request.query
        ]
        assert len(watches) >= 2
        assert int(watches[1]["resourceVersion"]) == api.store.revision
        assert lists(api) == 1

    seen = play(api, tmp_path, scene)
    assert not [line for line in seen.said if "API server" in line]


def test_what_is_forbidden_is_said_by_name(api: ApiServer, tmp_path: Path) -> None:
    """Missing rights are about one kind of object; the others go on."""

    async def scene(seen: Seen) -> None:
        api.fail(403, times=1000, path="/api/v1/namespaces")
        api.cut()
        await seen.until(lambda: seen.cluster.ailments)
        api.put("pods", pod("shop/web-1", "10.244.1.6"))
        await seen.until(lambda: "pods/shop/web-1" in seen.objects)
        assert any(text.startswith("namespaces: HTTP 403") for text in seen.cluster.ailments)
        api.recover()
        await seen.until(lambda: not seen.cluster.ailments)

    play(api, tmp_path, scene)


def test_a_server_that_asks_for_patience_gets_it(api: ApiServer, tmp_path: Path) -> None:
    """Retry-After is honoured."""

    async def scene(seen: Seen) -> None:
        api.fail(429, times=1, path="/api/v1/pods", Retry_After="2")
        asked = len(api.requests)
        api.cut()
        await seen.until(lambda: [r for r in api.requests[asked:] if r.path == "/api/v1/pods"])
        await asyncio.sleep(1.5)
        assert len([r for r in api.requests[asked:] if r.path == "/api/v1/pods"]) == 1
        await seen.until(lambda: api.watching == 5)

    play(api, tmp_path, scene)


def test_closed_and_called_again_it_goes_on_where_it_was(api: ApiServer, tmp_path: Path) -> None:
    """A reload lists nothing again, and misses nothing of what happened between."""
    config = kubeconfig(tmp_path / "kubeconfig", api.url)
    settings = Settings(node="n1", source=Source(kind="kubernetes", kubeconfig=str(config)))

    async def life() -> None:
        cluster = Cluster(settings, lambda _: None)
        assert await cluster.prepare(settings) is not None
        async with contextlib.aclosing(cluster.changes()) as changes:
            assert "pods/shop/web-0" in (await anext(changes)).objects
        api.put("pods", pod("shop/web-1", "10.244.1.6"))
        assert await cluster.prepare(settings) is not None
        async with contextlib.aclosing(cluster.changes()) as changes:
            found: set[str] = set()
            async with asyncio.timeout(PATIENCE_S):
                while not found:
                    found |= (await anext(changes)).objects.keys()
        assert found == {"pods/shop/web-1"}
        await cluster.close()

    asyncio.run(life())
    assert lists(api) == 1


def test_the_start_waits_for_server_and_dns_service(
    api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is said once; a poke ends the waiting."""
    monkeypatch.setattr(source_module, "WITHOUT_DNS_S", 0.2)
    config = kubeconfig(tmp_path / "kubeconfig", api.url)
    settings = Settings(node="n1", source=Source(kind="kubernetes", kubeconfig=str(config)))
    api.delete("services", "kube-system", "kube-dns")
    api.stop()

    async def life() -> list[str]:
        seen = Seen(settings)
        preparing = asyncio.create_task(seen.cluster.prepare(settings))
        await seen.until(lambda: len(seen.said) == 1)
        assert seen.cluster.ailments[0] == "the cluster has not been read yet"
        api.start()
        await seen.until(lambda: any("no Service in kube-system" in line for line in seen.said))
        seen.cluster.poke()
        assert await preparing is None
        preparing = asyncio.create_task(seen.cluster.prepare(settings))
        api.put("services", service("kube-system/kube-dns", [DNS], LABELS))
        completed = await preparing
        assert completed is not None
        assert completed.dns.servers == (packed(DNS),)
        assert seen.cluster.ailments == ()
        await seen.cluster.close()
        return seen.said

    said = asyncio.run(life())
    assert len([line for line in said if "Connection refused" in line]) == 1
    assert len([line for line in said if "no Service in kube-system" in line]) == 1


def test_another_address_of_the_dns_service_is_said(api: ApiServer, tmp_path: Path) -> None:
    """The data path has its sockets on the old one."""

    async def scene(seen: Seen) -> None:
        api.put("services", service("kube-system/kube-dns", ["10.96.0.99"], LABELS))
        await seen.until(lambda: any("addresses of the DNS Service changed" in line for line in seen.said))

    play(api, tmp_path, scene)


# ------------------------------------------------------------------------------------------------------ Events


def test_many_nodes_write_one_event(api: ApiServer, tmp_path: Path) -> None:
    """The name is made of the object's uid and version: the first one writes, the others meet it."""

    async def scene(seen: Seen) -> None:
        for name in ("n1", "n2", "n3"):
            seen.cluster._settings = Settings(node=name)
            seen.cluster.refused("shop", "web", "2:1: error: no such field")
        await seen.until(lambda: len([r for r in api.requests if r.method == "POST"]) == 3)
        (event,) = api.store.all("events")
        metadata = api.store.get("configmaps", "shop", "web")["metadata"]
        assert event["involvedObject"]["uid"] == metadata["uid"]
        assert event["involvedObject"]["resourceVersion"] == metadata["resourceVersion"]
        assert event["source"] == {"component": "egressd", "host": "n1"}
        api.put("configmaps", configmap("shop/web", "still: wrong"))
        version = api.store.get("configmaps", "shop", "web")["metadata"]["resourceVersion"]
        await seen.until(lambda: seen.cluster._told["shop", "web"][1] == version)
        seen.cluster.refused("shop", "web", "1:1: error: no such field")
        await seen.until(lambda: len(api.store.all("events")) == 2)

    seen = play(api, tmp_path, scene)
    assert not [line for line in seen.said if "Event" in line]


def test_events_that_cannot_be_written_are_dropped_and_said_once(api: ApiServer, tmp_path: Path) -> None:
    """A right that is missing is no reason to try for ever."""
    api.fail(403, times=1000, path="/events")

    async def scene(seen: Seen) -> None:
        for number in range(3):
            seen.cluster.denied("shop", f"web-{number}", "u", "denied")
        await seen.until(lambda: seen.cluster._events.dropped == 3)

    seen = play(api, tmp_path, scene)
    assert len([line for line in seen.said if "Event" in line]) == 1


def test_an_event_survives_a_short_outage(api: ApiServer, tmp_path: Path) -> None:
    """It is tried again a few times."""
    api.fail(500, times=2, path="/events")

    async def scene(seen: Seen) -> None:
        seen.cluster.denied("shop", "web-0", "u", "denied")
        await seen.until(lambda: api.store.all("events"))

    play(api, tmp_path, scene)


def test_waiting_events_are_bounded() -> None:
    """More than that are dropped and counted."""
    config = Source(kind="kubernetes")

    async def life() -> int:
        events = Events(client_module.Api(config), lambda _: None)
        for _ in range(300):
            events.put({})
        return events.dropped

    assert asyncio.run(life()) == 300 - 256


def test_an_event_is_shaped_as_the_api_wants_it() -> None:
    """Name within 253 characters, message within 1,024, namespace of the object it is about."""
    about = About("ConfigMap", "shop", "n" * 253, "u1", "17")
    body = event_body(about, "PolicyRefused", "x" * 5000, "n1", now=0.0)
    assert len(body["metadata"]["name"]) <= 253
    assert len(body["message"]) == 1024
    assert body["metadata"]["namespace"] == body["involvedObject"]["namespace"] == "shop"
    assert body["firstTimestamp"] == "1970-01-01T00:00:00Z"
    other = event_body(About("ConfigMap", "shop", "n" * 253, "u1", "18"), "PolicyRefused", "x", "n1", now=0.0)
    assert other["metadata"]["name"] != body["metadata"]["name"]


# ------------------------------------------------------------------------------------------------------ health


def test_health_is_a_line_a_change_of_state() -> None:
    """The first failure is kept quiet, the same reason said once for all, recovery when the last one works."""
    said: list[str] = []
    health = Health(said.append)
    for failures in range(1, 6):
        for who in ("pods", "namespaces"):
            health.failed(who, "no connection", failures, own=False)
    assert len(said) == 1
    health.failed("configmaps", "HTTP 403: no", 2, own=True)
    assert said[1].startswith("cluster: configmaps: HTTP 403: no")
    assert health.ailments == ("no connection", "configmaps: HTTP 403: no")
    for who in ("pods", "namespaces", "configmaps"):
        assert len(said) == 2
        health.works(who)
    assert said[2] == "cluster: the API server answers again"
    health.works("pods")
    assert len(said) == 3
