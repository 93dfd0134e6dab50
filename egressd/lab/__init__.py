"""A laboratory of network namespaces: a node with pods, a small internet, a DNS server, and the real daemon.

For the demo, the sandbox and the tests; nothing of it runs in production. It needs root, changes nothing on the
machine, and leaves nothing behind, whatever way the process ends.

    from egressd.lab import Daemon, Node, pool, run_private

    def tour() -> int:
        with Node("p2p") as node, Daemon(node, Path(mkdtemp())) as daemon:
            node.dns.zone.add("api.example.com", "A", "203.0.113.10", ttl=30)
            node.dns.zone.rotate("s3.example.com", pool("198.51.100.0/24", 120), count=8, ttl=5)
            node.internet.serve_http(80)                            # on every address of the internet
            web = node.add_pod("shop/web-0", labels={"app": "web"})
            daemon.put_pods()
            daemon.put_policy("shop/web", "allow:\\n- to: [api.example.com]\\n  ports: [80/TCP]\\n")
            daemon.start()
            print(web.run(["curl", "-sS", "http://api.example.com/"]).stdout)
            assert not node.internet.reached("192.0.2.1")           # nobody went there
            assert "secret.example.com" not in node.dns.names()     # nobody asked the upstream
        return 0

    raise SystemExit(run_private(tour))

Sockets for load tests: `with pod.entered(): ...` opens them in the pod's network, `pod.call(function)` runs anything
there, `pod.popen(argv)` starts a program there in about a millisecond.
"""

from egressd.lab.daemon import Daemon, intercepts
from egressd.lab.dnsserver import DnsServer, message
from egressd.lab.internet import Contact, Internet, pool
from egressd.lab.node import CLUSTER_CIDRS, POD_CIDRS, SERVICES, UPSTREAMS, WIRINGS, Node, Pod
from egressd.lab.patience import eventually
from egressd.lab.rdata import name_wire, svcb
from egressd.lab.space import Space
from egressd.lab.world import enter_private, is_private, run_private
from egressd.lab.zone import Query, Sections, Zone

__all__ = [
    "CLUSTER_CIDRS",
    "POD_CIDRS",
    "SERVICES",
    "UPSTREAMS",
    "WIRINGS",
    "Contact",
    "Daemon",
    "DnsServer",
    "Internet",
    "Node",
    "Pod",
    "Query",
    "Sections",
    "Space",
    "Zone",
    "enter_private",
    "eventually",
    "intercepts",
    "is_private",
    "message",
    "name_wire",
    "pool",
    "run_private",
    "svcb",
]
