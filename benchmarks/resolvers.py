"""The others: resolvers of Debian, each with the fewest options that make it do what is measured."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.peers import Peer, count_elements
from benchmarks.place import DNSMASQ, NODE, UPSTREAM, Place
from benchmarks.workloads import Workload

__all__ = ["CoreDns", "Dnsdist", "Dnsmasq", "Unbound"]

CACHE = 10_000
"""Answers that a caching peer keeps: more than any workload of repeated names has."""


class Dnsmasq(Peer):
    """dnsmasq as a forwarder on the node's address; unless told to cache, it forwards each query."""

    address = NODE

    def __init__(self, name: str, *, nftset: bool = False, log_queries: bool = False) -> None:
        super().__init__(name, opens=nftset)
        self.nftset, self.log_queries = nftset, log_queries

    def command(self, place: Place, *, cached: bool) -> Sequence[str]:
        """A fresh empty set, and the options. Logs go to a file, which is the cheapest that it offers."""
        command = [*DNSMASQ, "--except-interface=lo", "--dns-forward-max=4096"]
        command += [f"--listen-address={NODE}", f"--server={UPSTREAM}", f"--cache-size={CACHE if cached else 0}"]
        command += ["--local=/denied.bench.example/"]
        if self.nftset:
            self._make_set(place)
            command += ["--nftset=/allowed.bench.example/4#inet#bench#opened"]
        if self.log_queries:
            log = place.folder / f"{self.name}.queries"
            log.unlink(missing_ok=True)
            command += ["--log-queries", f"--log-facility={log}"]
        return command

    def takes(self, workload: Workload) -> bool:
        """Not TCP at length: it ends a connection after a hundred queries, and what was asked by then is lost."""
        return not workload.tcp

    def opened(self, place: Place) -> int:
        """Elements of the set."""
        return count_elements(place, "opened") if self.nftset else 0

    def stop(self, place: Place) -> None:
        """End it and remove its set."""
        super().stop(place)
        if self.nftset:
            place.run("node", "nft", "delete table inet bench", check=False)

    @staticmethod
    def _make_set(place: Place) -> None:
        place.run("node", "nft", "add table inet bench")
        place.run("node", "nft", "add set inet bench opened { type ipv4_addr; }")


class Unbound(Peer):
    """unbound on one thread, forwarding; it always caches, so that without a cache nothing may live in it."""

    address = NODE

    def command(self, place: Place, *, cached: bool) -> Sequence[str]:
        """Its configuration, without validation, since no other peer validates."""
        config = place.folder / "unbound.conf"
        lifetime = "" if cached else "\n  cache-max-ttl: 0\n  cache-max-negative-ttl: 0"
        config.write_text(f"""server:
  interface: {NODE}
  access-control: 0.0.0.0/0 allow
  module-config: "iterator"
  num-threads: 1
  outgoing-range: 8192
  num-queries-per-thread: 4096
  do-daemonize: no
  use-syslog: no
  username: ""
  chroot: ""
  pidfile: ""
  local-zone: "denied.bench.example." always_nxdomain{lifetime}
forward-zone:
  name: "."
  forward-addr: {UPSTREAM}
remote-control:
  control-enable: no
""")
        return ["unbound", "-d", "-c", str(config)]

    def opened(self, place: Place) -> int:  # noqa: ARG002 - it opens nothing
        """Nothing."""
        return 0


class Dnsdist(Peer):
    """dnsdist, a load balancer: it understands least of an answer, and is the cheapest of all."""

    address = NODE

    def command(self, place: Place, *, cached: bool) -> Sequence[str]:
        """Its configuration; a cache only where one is asked for."""
        config = place.folder / "dnsdist.conf"
        cache = f'getPool(""):setCache(newPacketCache({CACHE}))\n' if cached else ""
        config.write_text(
            f'setLocal("{NODE}:53")\nsetACL("0.0.0.0/0")\nserver = newServer("{UPSTREAM}:53")\nserver:setUp()\n'
            f'addAction("denied.bench.example.", RCodeAction(DNSRCode.NXDOMAIN))\n{cache}'
        )
        return ["dnsdist", "--supervised", "--disable-syslog", "-C", str(config)]

    def opened(self, place: Place) -> int:  # noqa: ARG002 - it opens nothing
        """Nothing."""
        return 0


class CoreDns(Peer):
    """CoreDNS, which Debian does not have: `binary` says where one is; with `log_queries`, a line for each query."""

    address = NODE

    def __init__(self, name: str, binary: str, *, log_queries: bool = False) -> None:
        super().__init__(name)
        self.binary, self.log_queries = binary, log_queries

    def command(self, place: Place, *, cached: bool) -> Sequence[str]:
        """Its Corefile: the denied zone from a template, everything else forwarded."""
        config = place.folder / "Corefile"
        extras = "".join(
            f"    {line}\n"
            for line, wanted in ((f"cache {{\n success {CACHE}\n }}", cached), ("log", self.log_queries))
            if wanted
        )
        config.write_text(
            f"denied.bench.example {{\n    bind {NODE}\n    template ANY ANY {{\n        rcode NXDOMAIN\n    }}\n}}\n"
            f". {{\n    bind {NODE}\n    forward . {UPSTREAM}\n{extras}}}\n"
        )
        return [self.binary, "-conf", str(config)]

    def opened(self, place: Place) -> int:  # noqa: ARG002 - it opens nothing
        """Nothing."""
        return 0
