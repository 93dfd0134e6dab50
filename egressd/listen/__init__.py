"""The sockets that answer DNS in the name of the servers that pods ask (dns.md; kernel.md, tproxy).

One transparent socket per trusted resolver, bound to its address and port 53: with br_netfilter the kernel looks the
socket up again by the packet's own destination, so no other port and no other address would do, and answers leave from
the very address that was asked without any ancillary data. Foreign servers, where they are answered, share one
wildcard socket per family that sees intercepted packets only.

    client      what a query's handler gets: who asked whom, and how to answer
    sockets     opening and binding, and what is missing where that fails
    datagrams   reading UDP
    streams     TCP: framing, pipelining, budgets (RFC 7766)
    listener    the front
"""

from egressd.listen.client import Client
from egressd.listen.listener import Listener
from egressd.listen.sockets import Endpoint

__all__ = ["Client", "Endpoint", "Listener"]
