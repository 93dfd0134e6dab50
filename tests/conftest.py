"""What all tests share: a private world for the whole session, and nodes, daemons and clients to test with.

The pytest process moves into its own network and mount namespaces before anything else, so that no interface, rule,
mount or process that a test makes can outlive it or reach the machine.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from egressd.errors import EnvironmentProblem
from egressd.lab import SERVICES, UPSTREAMS, WIRINGS, Daemon, Node, enter_private

MUSL_CLIENT = r"""
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>
#include <arpa/inet.h>

int main(int argc, char **argv) {
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found, *each;
  if (argc != 2) return 2;
  int error = getaddrinfo(argv[1], NULL, &hints, &found);
  if (error) return fprintf(stderr, "%s\n", gai_strerror(error)), 1;
  for (each = found; each; each = each->ai_next) {
    char text[INET6_ADDRSTRLEN];
    const void *address = each->ai_family == AF_INET
      ? (const void *)&((struct sockaddr_in *)each->ai_addr)->sin_addr
      : (const void *)&((struct sockaddr_in6 *)each->ai_addr)->sin6_addr;
    puts(inet_ntop(each->ai_family, address, text, sizeof text));
  }
  return 0;
}
"""

KUBE_PROXY = """
table {family} kube-proxy {{
  chain services {{
    {match} daddr {service} udp dport 53 dnat to {endpoint}
    {match} daddr {service} tcp dport 53 dnat to {endpoint}
  }}
  chain prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
  chain output {{ type nat hook output priority -100; jump services; }}
}}
"""


BYTE_CODE = Path(__file__).resolve().parent.parent / ".venv" / "bytecode"


def pytest_configure() -> None:
    """Enter the private world, or end the run saying why not. Daemons keep byte code, as an installed one has it."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ.setdefault("PYTHONPYCACHEPREFIX", str(BYTE_CODE))
    try:
        enter_private()
    except EnvironmentProblem as problem:
        pytest.exit(f"the tests work on the real kernel: {problem}", returncode=3)


@pytest.fixture
def node_p2p() -> Iterator[Node]:
    """A node whose pods hang on point-to-point veths."""
    with Node("p2p") as made:
        yield made


@pytest.fixture
def node_bridge() -> Iterator[Node]:
    """A node whose pods hang on a Linux bridge, br_netfilter on."""
    with Node("bridge") as made:
        yield made


@pytest.fixture(params=WIRINGS)
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    """A node, once with each wiring."""
    with Node(request.param) as made:
        yield made


@pytest.fixture(params=WIRINGS)
def kube_proxy_node(request: pytest.FixtureRequest) -> Iterator[Node]:
    """A node, once with each wiring, where only destination NAT leads from the DNS Service to the DNS server."""
    with Node(request.param, service_route=False) as made:
        for family, match, service, endpoint in zip(("ip", "ip6"), ("ip", "ip6"), SERVICES, UPSTREAMS, strict=False):
            rules = KUBE_PROXY.format(family=family, match=match, service=service, endpoint=endpoint)
            made.run(["nft", "-f", "-"], stdin=rules, check=True)
        yield made


MakeDaemon = Callable[..., Daemon]


@pytest.fixture
def make_daemon(tmp_path: Path) -> Iterator[MakeDaemon]:
    """A factory of daemons: `make_daemon(node, {"grants": {"min": "2s"}})`; they are stopped at the end."""
    with contextlib.ExitStack() as stack:
        made: list[Daemon] = []

        def make(node: Node, settings: Mapping[str, Any] | None = None) -> Daemon:
            folder = tmp_path / f"daemon-{len(made)}"
            folder.mkdir()
            made.append(stack.enter_context(Daemon(node, folder, settings)))
            return made[-1]

        yield make


@pytest.fixture(scope="session")
def musl_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static program on musl's resolver: prints the addresses of the name it is given (Debian package musl-tools)."""
    folder = tmp_path_factory.mktemp("musl")
    source, program = folder / "lookup.c", folder / "lookup"
    source.write_text(MUSL_CLIENT)
    subprocess.run(["musl-gcc", "-static", "-Os", "-o", program, source], check=True)
    return program
