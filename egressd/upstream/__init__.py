"""Asking the resolvers: the only ones whose answers are believed (dns.md, One query, step 4).

idents     unpredictable IDs and socket choices
flight     one question on its way, and what can become of it
health     how fast an upstream answers, how long to wait for it, whether it is well
choice     whom to ask first
datagrams  connected UDP sockets on random ports
streams    a few TCP or TLS connections, shared
connection one of them
tls        whom to trust
https      POST requests (RFC 8484); the one module that imports aiohttp, where it is needed
replies    what cannot be read: bad, or forged
upstreams  the front: sharing, retries, deadlines
"""

from egressd.upstream.flight import Failure
from egressd.upstream.health import Health
from egressd.upstream.upstreams import Upstreams

__all__ = ["Failure", "Health", "Upstreams"]
