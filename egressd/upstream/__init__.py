"""Asking the resolvers: the only ones whose answers are believed (dns.md, One query, step 4).

idents     unpredictable IDs and socket choices
flight     one question on its way, and what can become of it
health     which upstreams to prefer, and for how long
datagrams  connected UDP sockets on random ports
streams    one question over one TCP connection
upstreams  the front: sharing, retries, deadlines
"""

from egressd.upstream.flight import Failure
from egressd.upstream.health import Health
from egressd.upstream.upstreams import Upstreams

__all__ = ["Failure", "Health", "Upstreams"]
