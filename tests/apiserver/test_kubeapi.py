"""The small API server does what a real one was seen to do (kubernetes.md, Facts): each observation has its test."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from kubeapi import ApiServer, Refusal
from kubeapi.objects import configmap, namespace, pod

PODS = "/api/v1/pods"
CLEAN_END = b"0\r\n\r\n"
Object = dict[str, Any]


@pytest.fixture
def api() -> Iterator[ApiServer]:
    """A server with nothing in it."""
    server = ApiServer()
    yield server
    server.close()


def request(api: ApiServer, path: str, *, method: str = "GET", body: Any = None, **query: str) -> tuple[int, Any]:
    """Status and decoded body."""
    target = f"{path}?{urlencode(query)}" if query else path
    connection = http.client.HTTPConnection(urlsplit(api.url).netloc, timeout=20)
    connection.request(method, target, json.dumps(body) if body else None, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


class Watch:
    """A watch read line by line in a thread; `events` grows, `ended` tells of the end."""

    def __init__(self, api: ApiServer, path: str = PODS, **query: str) -> None:
        self.events: list[Object] = []
        self.ended = threading.Event()
        self._connection = http.client.HTTPConnection(urlsplit(api.url).netloc, timeout=20)
        self._connection.request("GET", f"{path}?{urlencode({'watch': '1', **query})}")
        self.answer = self._connection.getresponse()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            for line in self.answer:
                self.events.append(json.loads(line))
        self.ended.set()

    def wait(self, count: int) -> list[Object]:
        """The events so far, once there are so many."""
        deadline = time.monotonic() + 10
        while len(self.events) < count:
            assert time.monotonic() < deadline, self.events
            time.sleep(0.01)
        return self.events

    def end(self) -> list[Object]:
        """All events, once the watch has ended."""
        assert self.ended.wait(20)
        self._thread.join()
        self._connection.close()
        return self.events


def octets(api: ApiServer, **query: str) -> bytes:
    """A watch of pods as it comes over the wire, to its end; the last chunk of a clean end is empty (RFC 9112)."""
    host, port = urlsplit(api.url).netloc.split(":")
    with socket.create_connection((host, int(port)), 20) as opened:
        opened.sendall(f"GET {PODS}?{urlencode({'watch': '1', **query})} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        read = bytearray()
        with contextlib.suppress(ConnectionResetError):
            while data := opened.recv(65536):
                read += data
                if read.endswith(CLEAN_END):
                    break
        return bytes(read)


def kinds(events: list[Object]) -> list[tuple[str, str]]:
    return [(event["type"], event["object"]["metadata"].get("name", "")) for event in events]


def version(api: ApiServer) -> str:
    return str(api.store.revision)


# ------------------------------------------------------------------------------------------------------ lists


def test_items_of_a_list_carry_no_kind_and_objects_of_events_do(api: ApiServer) -> None:
    """`kind` and `apiVersion` are the list's; in a watch they are each object's own."""
    api.put("pods", pod("shop/web-0", "10.244.1.2"))
    status, body = request(api, PODS)
    assert (status, body["kind"], body["apiVersion"]) == (200, "PodList", "v1")
    assert "kind" not in body["items"][0]
    watch = Watch(api, resourceVersion="0", timeoutSeconds="1")
    assert watch.end()[0]["object"]["kind"] == "Pod"
    assert watch.answer.headers["Content-Type"] == "application/json"
    assert watch.answer.headers["Transfer-Encoding"] == "chunked"


def test_lists_come_in_pages(api: ApiServer) -> None:
    """`limit` and `continue` walk through all objects once, and say how many are left."""
    for number in range(7):
        api.put("pods", pod(f"shop/web-{number}", f"10.244.1.{number + 2}"))
    _, first = request(api, PODS, limit="3")
    assert (len(first["items"]), first["metadata"]["remainingItemCount"]) == (3, 4)
    _, second = request(api, PODS, limit="3", **{"continue": first["metadata"]["continue"]})
    _, third = request(api, PODS, limit="3", **{"continue": second["metadata"]["continue"]})
    assert "continue" not in third["metadata"]
    names = [item["metadata"]["name"] for page in (first, second, third) for item in page["items"]]
    assert names == [f"web-{number}" for number in range(7)]


def test_a_token_after_compaction_is_410_with_a_fresh_one(api: ApiServer) -> None:
    """The inconsistent token goes on behind the last object that was seen."""
    for number in range(4):
        api.put("pods", pod(f"shop/web-{number}", f"10.244.1.{number + 2}"))
    _, first = request(api, PODS, limit="2")
    api.put("pods", pod("shop/web-9", "10.244.1.9"))
    api.forget_history()
    status, body = request(api, PODS, limit="2", **{"continue": first["metadata"]["continue"]})
    assert (status, body["reason"], body["code"]) == (410, "Expired", 410)
    _, rest = request(api, PODS, **{"continue": body["metadata"]["continue"]})
    assert [item["metadata"]["name"] for item in rest["items"]] == ["web-2", "web-3", "web-9"]


def test_a_list_of_the_future_is_504(api: ApiServer) -> None:
    """With a hint when to ask again."""
    status, body = request(api, PODS, resourceVersion=str(api.store.revision + 5))
    assert (status, body["details"]["retryAfterSeconds"]) == (504, 1)


def test_large_lists_are_gzipped_when_asked(api: ApiServer) -> None:
    """Small ones, and those of clients that do not say they can read it, are not."""
    for number in range(400):
        api.put("configmaps", configmap(f"shop/p{number}", "x" * 400))
    connection = http.client.HTTPConnection(urlsplit(api.url).netloc, timeout=20)
    for headers, encoding in (({"Accept-Encoding": "gzip"}, "gzip"), ({}, None)):
        connection.request("GET", "/api/v1/configmaps", headers=headers)
        answer = connection.getresponse()
        answer.read()
        assert answer.headers.get("Content-Encoding") == encoding
    connection.close()


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("spec.nodeName=n1", ["a", "b"]),
        ("spec.nodeName=n1,status.phase!=Running", ["b"]),
        ("metadata.name!=a,metadata.namespace=shop", ["b", "c"]),
        ("status.podIP=10.244.1.2", ["a"]),
        ("spec.hostNetwork=true", ["c"]),
    ],
)
def test_field_selectors(api: ApiServer, selector: str, names: list[str]) -> None:
    """Those seen to work on pods."""
    api.put("pods", pod("shop/a", "10.244.1.2"))
    api.put("pods", pod("shop/b"))
    api.put("pods", pod("shop/c", "192.0.2.9", node="n2", hostNetwork=True))
    _, body = request(api, PODS, fieldSelector=selector)
    assert [item["metadata"]["name"] for item in body["items"]] == names


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("app=web", ["a"]),
        ("app==web", ["a"]),
        ("app!=web", ["b", "c"]),
        ("app in (web, batch)", ["a", "b"]),
        ("app notin (web)", ["b", "c"]),
        ("app", ["a", "b"]),
        ("!app", ["c"]),
        ("app in (web,batch),tier=front", ["a"]),
    ],
)
def test_label_selectors(api: ApiServer, selector: str, names: list[str]) -> None:
    """All operators, and several at once."""
    api.put("pods", pod("shop/a", "10.244.1.2", labels={"app": "web", "tier": "front"}))
    api.put("pods", pod("shop/b", "10.244.1.3", labels={"app": "batch"}))
    api.put("pods", pod("shop/c", "10.244.1.4"))
    _, body = request(api, PODS, labelSelector=selector)
    assert [item["metadata"]["name"] for item in body["items"]] == names


@pytest.mark.parametrize("query", [{"fieldSelector": "spec.containers=x"}, {"labelSelector": "app in web"}])
def test_bad_selectors_are_400(api: ApiServer, query: dict[str, str]) -> None:
    """Unknown fields and labels that cannot be read."""
    status, body = request(api, PODS, **query)
    assert (status, body["kind"], body["code"]) == (400, "Status", 400)


# ---------------------------------------------------------------------------------------------------- watches


@pytest.mark.parametrize("query", [{}, {"resourceVersion": "0"}])
def test_a_watch_without_version_begins_with_what_there_is(api: ApiServer, query: dict[str, str]) -> None:
    """Synthetic ADDED events, then what happens."""
    api.put("pods", pod("shop/web-0", "10.244.1.2"))
    watch = Watch(api, timeoutSeconds="2", **query)
    watch.wait(1)
    api.put("pods", pod("shop/web-1", "10.244.1.3"))
    assert kinds(watch.end()) == [("ADDED", "web-0"), ("ADDED", "web-1")]


def test_a_watch_goes_on_behind_its_version(api: ApiServer) -> None:
    """Only what was written after it is told, with rising versions."""
    api.put("pods", pod("shop/web-0", "10.244.1.2"))
    before = version(api)
    api.put("pods", pod("shop/web-1", "10.244.1.3"))
    watch = Watch(api, resourceVersion=before, timeoutSeconds="2")
    api.put("pods", pod("shop/web-0", "10.244.1.4"))
    events = watch.end()
    assert kinds(events) == [("ADDED", "web-1"), ("MODIFIED", "web-0")]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in events]
    assert versions == sorted(versions)


def test_a_version_too_old_is_one_error_line_in_a_200(api: ApiServer) -> None:
    """As after a restart of the server: status 200, one ERROR with code 410, the end."""
    before = version(api)
    api.put("pods", pod("shop/web-0", "10.244.1.2"))
    api.forget_history()
    watch = Watch(api, resourceVersion=before)
    (event,) = watch.end()
    assert watch.answer.status == 200
    assert (event["type"], event["object"]["code"], event["object"]["reason"]) == ("ERROR", 410, "Expired")


def test_a_garbled_version_is_500(api: ApiServer) -> None:
    """It is not even a watch then."""
    status, body = request(api, PODS, watch="1", resourceVersion="garbage")
    assert (status, body["kind"]) == (500, "Status")


def test_a_future_version_hangs_silently(api: ApiServer) -> None:
    """Nothing is told, not even a bookmark, until the timeout."""
    api.bookmark_s = 0.2
    watch = Watch(api, resourceVersion=str(api.store.revision + 100), timeoutSeconds="1", allowWatchBookmarks="true")
    api.put("pods", pod("shop/web-0", "10.244.1.2"))
    assert watch.end() == []


def test_timeout_is_a_clean_end(api: ApiServer) -> None:
    """After timeoutSeconds, with the stream closed in good order."""
    started = time.monotonic()
    assert octets(api, resourceVersion=version(api), timeoutSeconds="1").endswith(CLEAN_END)
    assert time.monotonic() - started >= 1


def test_bookmarks_carry_a_version_and_nothing_else(api: ApiServer) -> None:
    """They come though the selected set is quiet, as soon as the version moved, and about 2 s before the end."""
    watch = Watch(
        api,
        resourceVersion=version(api),
        timeoutSeconds="3",
        allowWatchBookmarks="true",
        fieldSelector="spec.nodeName=n1",
    )
    api.put("pods", pod("shop/far", "10.244.2.2", node="n2"))
    (event,) = watch.end()
    assert event["type"] == "BOOKMARK"
    assert event["object"] == {"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": version(api)}}


def test_no_bookmark_unless_asked_or_while_nothing_moved(api: ApiServer) -> None:
    """A bookmark would say nothing new."""
    api.bookmark_s = 0.2
    silent = Watch(api, resourceVersion=version(api), timeoutSeconds="1", allowWatchBookmarks="true")
    assert silent.end() == []
    unasked = Watch(api, resourceVersion=version(api), timeoutSeconds="1", fieldSelector="spec.nodeName=n1")
    api.put("pods", pod("shop/far", "10.244.2.2", node="n2"))
    assert unasked.end() == []


def test_initial_events_end_with_a_marked_bookmark(api: ApiServer) -> None:
    """And need resourceVersionMatch, or it is 422."""
    api.put("pods", pod("shop/web-0", "10.244.1.2"))
    watch = Watch(api, sendInitialEvents="true", resourceVersionMatch="NotOlderThan", timeoutSeconds="1")
    events = watch.end()
    assert kinds(events) == [("ADDED", "web-0"), ("BOOKMARK", "")]
    assert events[1]["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    assert request(api, PODS, watch="1", sendInitialEvents="true")[0] == 422


def test_objects_enter_and_leave_a_selection(api: ApiServer) -> None:
    """What comes to match is ADDED; what stops is DELETED, with its old content and the new version."""
    api.put("pods", pod("shop/web-0", "10.244.1.2", labels={"app": "batch"}))
    watch = Watch(api, resourceVersion=version(api), timeoutSeconds="2", labelSelector="app=web")
    api.put("pods", pod("shop/web-0", "10.244.1.2", labels={"app": "web"}))
    api.put("pods", pod("shop/web-0", "10.244.1.2", labels={"app": "web", "tier": "front"}))
    api.put("pods", pod("shop/web-0", "10.244.1.2", labels={"app": "batch"}))
    events = watch.end()
    assert [event["type"] for event in events] == ["ADDED", "MODIFIED", "DELETED"]
    assert events[2]["object"]["metadata"]["labels"] == {"app": "web", "tier": "front"}
    assert events[2]["object"]["metadata"]["resourceVersion"] == version(api)


def test_deleting_a_bound_pod_takes_three_events(api: ApiServer) -> None:
    """Marked, marked with no grace left, gone."""
    api.put("pods", pod("shop/web-0", "10.244.1.2"))
    watch = Watch(api, resourceVersion=version(api), timeoutSeconds="2")
    api.delete("pods", "shop", "web-0")
    events = watch.end()
    assert [event["type"] for event in events] == ["MODIFIED", "MODIFIED", "DELETED"]
    graces = [event["object"]["metadata"]["deletionGracePeriodSeconds"] for event in events]
    assert graces == [30, 0, 0]


# ----------------------------------------------------------------------------------------- writes and failures


def test_stale_and_duplicate_writes_are_409(api: ApiServer) -> None:
    """A PUT of an old version is a Conflict, a POST of a name that is taken AlreadyExists."""
    path = "/api/v1/namespaces/shop/configmaps"
    status, made = request(api, path, method="POST", body=configmap("shop/web", "a"))
    assert status == 201
    assert request(api, path, method="POST", body=configmap("shop/web", "a"))[1]["reason"] == "AlreadyExists"
    changed = made | {"data": {"policy.yaml": "b"}}
    assert request(api, f"{path}/web", method="PUT", body=changed)[0] == 200
    status, refused = request(api, f"{path}/web", method="PUT", body=changed | {"data": {}})
    assert (status, refused["reason"]) == (409, "Conflict")
    assert request(api, f"{path}/none")[0] == 404


def test_writing_the_same_again_changes_no_version(api: ApiServer) -> None:
    """The server writes nothing where nothing differs."""
    api.put("namespaces", namespace("shop"))
    before = version(api)
    api.put("namespaces", namespace("shop"))
    assert version(api) == before


def test_an_event_comes_with_the_write(api: ApiServer) -> None:
    """A watch hears of a write at once."""
    watch = Watch(api, resourceVersion=version(api), timeoutSeconds="5")
    api.put("pods", pod("shop/web-0", "10.244.1.2"))
    started = time.monotonic()
    watch.wait(1)
    assert time.monotonic() - started < 1
    api.cut()
    watch.end()


@pytest.mark.parametrize("query", [{}, {"watch": "1"}])
def test_strangers_are_401_and_faults_are_as_told(api: ApiServer, query: dict[str, str]) -> None:
    """Plain Status JSON, for a watch too; Retry-After is a header."""
    api.tokens = {"right"}
    status, body = request(api, PODS, **query)
    assert (status, body["kind"], body["reason"]) == (401, "Status", "Unauthorized")
    api.tokens = set()
    api.fail(403, path="/pods")
    api.fail(429, path="/namespaces", Retry_After="3")
    assert request(api, PODS, **query)[0] == 403
    assert request(api, PODS)[0] == 200
    assert request(api, "/api/v1/namespaces")[0] == 429


def test_a_cut_is_no_clean_end_and_a_stop_refuses(api: ApiServer) -> None:
    """Clients of a watch see a broken stream; of a stopped server no connection, until it is there again."""
    threading.Timer(0.5, api.cut).start()
    read = octets(api, resourceVersion=version(api))
    assert read.startswith(b"HTTP/1.1 200")
    assert not read.endswith(CLEAN_END)
    assert request(api, PODS)[0] == 200
    api.stop()
    with pytest.raises(ConnectionRefusedError):
        request(api, PODS)
    api.start()
    assert request(api, PODS)[0] == 200


def test_the_store_refuses_like_the_server(api: ApiServer) -> None:
    """Tests that write past HTTP meet the same rules."""
    with pytest.raises(Refusal) as refusal:
        api.delete("pods", "shop", "none")
    assert refusal.value.code == 404
