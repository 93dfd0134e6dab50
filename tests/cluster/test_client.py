"""The connection: who we say we are, what failures become, and that one broken thing never breaks another."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from kubeapi import ApiServer, kubeconfig
from kubeapi.objects import configmap, pod

from egressd.cluster.client import Api, ApiError
from egressd.errors import EnvironmentProblem
from egressd.settings import Source

T = TypeVar("T")
PODS = "/api/v1/pods"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    """A server whose kubeconfig is `kubeconfig` in `tmp_path`."""
    server = ApiServer()
    kubeconfig(tmp_path / "kubeconfig", server.url, token="token-1")
    yield server
    server.close()


def using(folder: Path, work: Callable[[Api], Awaitable[T]]) -> T:
    """Do something with a connection made as the kubeconfig says."""

    async def life() -> T:
        api = Api(Source(kind="kubernetes", kubeconfig=str(folder / "kubeconfig")))
        try:
            return await work(api)
        finally:
            await api.close()

    return asyncio.run(life())


def failure(folder: Path, work: Callable[[Api], Awaitable[object]]) -> ApiError:
    with pytest.raises(ApiError) as error:
        using(folder, work)
    return error.value


def test_a_kubeconfig_leads_to_its_server_with_its_token(api: ApiServer, tmp_path: Path) -> None:
    """Bodies come as they are; selectors with blanks and signs arrive whole."""
    api.tokens = {"token-1"}
    api.put("pods", pod("shop/web-0", "10.244.1.2", labels={"app": "web"}))
    query = {"labelSelector": "app in (web,batch),!gone", "fieldSelector": "spec.nodeName=n1"}
    body = json.loads(using(tmp_path, lambda made: made.get(PODS, query)))
    assert [item["metadata"]["name"] for item in body["items"]] == ["web-0"]
    assert api.requests[0].query == query
    assert api.requests[0].token == "token-1"


def test_a_context_may_be_named(api: ApiServer, tmp_path: Path) -> None:
    """And one that is not there is said before anything is asked."""
    good = Source(kind="kubernetes", kubeconfig=str(tmp_path / "kubeconfig"), context="test")
    asyncio.run(Api(good).check())
    with pytest.raises(EnvironmentProblem, match="elsewhere"):
        asyncio.run(Api(Source(kind="kubernetes", kubeconfig=good.kubeconfig, context="elsewhere")).check())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "not a file"),
        ("", "cannot be used"),
        ("[]", "cannot be used"),
        ("a: {b", "cannot be used"),
        ("{}", "way"),
    ],
)
def test_a_kubeconfig_that_leads_nowhere_stops_the_start(tmp_path: Path, text: str | None, said: str) -> None:
    """With what to do about it, and no traceback."""
    file = tmp_path / "kubeconfig"
    if text is not None:
        file.write_text(text)
    with pytest.raises(EnvironmentProblem, match=said) as problem:
        asyncio.run(Api(Source(kind="kubernetes", kubeconfig=str(file))).check())
    assert "source.kubeconfig" in str(problem.value)


def test_outside_a_pod_there_must_be_a_kubeconfig() -> None:
    """Nothing is guessed."""
    with pytest.raises(EnvironmentProblem, match="run it in a pod"):
        asyncio.run(Api(Source(kind="kubernetes")).check())


@pytest.mark.parametrize(
    ("code", "headers", "retry"),
    [(403, {}, None), (429, {"Retry_After": "3"}, 3.0), (500, {"Retry_After": "soon"}, None)],
)
def test_what_the_server_refuses_is_one_error(
    api: ApiServer, tmp_path: Path, code: int, headers: dict[str, Any], retry: float | None
) -> None:
    """With its status, its own words and when to come back."""
    api.fail(code, **headers)
    error = failure(tmp_path, lambda made: made.get(PODS))
    assert (error.status, error.retry_after) == (code, retry)
    assert f"told to say {code}" in error.message


def test_no_server_is_one_error_too(api: ApiServer, tmp_path: Path) -> None:
    """In words that are the same each time."""
    api.stop()
    error = failure(tmp_path, lambda made: made.get(PODS))
    assert error.status == 0
    assert error.message.endswith("Connection refused")


def test_an_expired_token_is_read_again(api: ApiServer, tmp_path: Path) -> None:
    """The request that met 401 fails; the next one uses the file as it is now. What is being watched goes on."""
    api.tokens = {"token-1"}

    async def work(made: Api) -> list[bytes]:
        async with made.watch(PODS, {"watch": "1", "resourceVersion": str(api.store.revision)}) as lines:
            api.tokens = {"token-2"}
            with pytest.raises(ApiError, match="401"):
                await made.get(PODS)
            kubeconfig(tmp_path / "kubeconfig", api.url, token="token-2")
            await made.get(PODS)
            api.put("pods", pod("shop/web-0", "10.244.1.2"))
            return [await anext(aiter(lines))]

    (line,) = using(tmp_path, work)
    assert json.loads(line)["type"] == "ADDED"


def test_lines_may_be_long_and_come_in_pieces(api: ApiServer, tmp_path: Path) -> None:
    """A ConfigMap of 1 MiB, whose characters JSON writes as six octets each, is one line."""
    large = configmap("shop/large", "\u00e9" * 900_000)

    async def work(made: Api) -> list[bytes]:
        query = {"watch": "1", "resourceVersion": str(api.store.revision), "timeoutSeconds": "3"}
        async with made.watch("/api/v1/configmaps", query) as lines:
            api.put("configmaps", large)
            api.put("configmaps", configmap("shop/small", "x"))
            return [line async for line in lines]

    first, second = using(tmp_path, work)
    assert len(first) > 5_000_000
    assert json.loads(first)["object"]["data"] == large["data"]
    assert json.loads(second)["object"]["metadata"]["name"] == "small"


def test_a_watch_that_is_cut_is_an_error_and_one_that_ends_is_none(api: ApiServer, tmp_path: Path) -> None:
    """The caller can tell a loss from an end."""

    async def work(made: Api, *, cut: bool) -> list[bytes]:
        query = {"watch": "1", "resourceVersion": str(api.store.revision), "timeoutSeconds": "1"}
        async with made.watch(PODS, query) as lines:
            if cut:
                api.cut()
            return [line async for line in lines]

    assert using(tmp_path, lambda made: work(made, cut=False)) == []
    assert "broke" in failure(tmp_path, lambda made: work(made, cut=True)).message


# -------------------------------------------------------------------------------------------------- in a pod


@pytest.fixture
def in_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ApiServer, Path]]:
    """A server with TLS, and the environment and files of a service account in a pod."""
    certificate, key = tmp_path / "ca.crt", tmp_path / "key"
    names = "subjectAltName=IP:127.0.0.1"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=kubernetes"]
    extensions = ["-addext", names, "-addext", "keyUsage=critical,keyCertSign,digitalSignature"]
    subprocess.run([*command, *extensions, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    server = ApiServer(tls=tls)
    host, _, port = server.url.removeprefix("https://").partition(":")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    (tmp_path / "token").write_text("token-1")
    from egressd.cluster.client import _library

    files: Any = _library()[1].incluster_config
    monkeypatch.setattr(files, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(files, "SERVICE_CERT_FILENAME", str(certificate))
    yield server, tmp_path
    server.close()


def in_pod(work: Callable[[Api], Awaitable[T]]) -> T:
    async def life() -> T:
        api = Api(Source(kind="kubernetes"))
        try:
            return await work(api)
        finally:
            await api.close()

    return asyncio.run(life())


def test_in_a_pod_the_service_account_is_used(in_cluster: tuple[ApiServer, Path]) -> None:
    """Address from the environment, CA and token from its files, over TLS."""
    server, _ = in_cluster
    server.tokens = {"token-1"}
    assert json.loads(in_pod(lambda api: api.get(PODS)))["items"] == []


def test_in_a_pod_a_renewed_token_is_read_at_once(in_cluster: tuple[ApiServer, Path]) -> None:
    """Not only when a minute is over: the kubelet has replaced the file, and the old token is refused."""
    server, folder = in_cluster

    async def work(api: Api) -> bytes:
        await api.get(PODS)
        server.tokens = {"token-2"}
        (folder / "token").write_text("token-2")
        with pytest.raises(ApiError, match="401"):
            await api.get(PODS)
        return await api.get(PODS)

    assert json.loads(in_pod(work))["kind"] == "PodList"


def test_in_a_pod_a_stranger_s_certificate_is_refused_until_its_ca_is_ours(in_cluster: tuple[ApiServer, Path]) -> None:
    """And then without a restart: the CA's file is read again."""
    _, folder = in_cluster
    right = (folder / "ca.crt").read_text()
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=other"]
    subprocess.run([*command, "-keyout", os.devnull, "-out", folder / "ca.crt"], check=True, capture_output=True)

    async def work(api: Api) -> bytes:
        with pytest.raises(ApiError, match="certificate"):
            await api.get(PODS)
        (folder / "ca.crt").write_text(right)
        return await api.get(PODS)

    assert json.loads(in_pod(work))["kind"] == "PodList"


# ------------------------------------------------------------------------------------------------ what is imported


@pytest.mark.parametrize("module", ["egressd.agent.daemon", "egressd.cli", "egressd.control"])
def test_the_library_is_imported_for_a_cluster_alone(module: str) -> None:
    """Neither the data path nor offline verbs nor `source: directory` pay for it."""
    program = f"import sys, {module}; print([name for name in sys.modules if name.partition('.')[0] == 'kubernetes'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_of_the_library_only_the_asyncio_half_is_imported() -> None:
    """The blocking client would cost each node 7 MiB."""
    program = (
        "import sys; from egressd.cluster.client import _library; _library();"
        "print([n for n in ('requests', 'websocket', 'kubernetes.client', 'kubernetes.informer') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
