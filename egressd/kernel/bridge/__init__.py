"""Pods on a shared bridge: each address belongs to one port of it (kernel.md, invariant 3).

Behind one interface of the node, `fib saddr . iif` cannot tell a pod from its neighbour. A table of family bridge
does, by the port that a frame came from: template.py is the part to audit, table.py writes it, wires.py finds out
where a pod hangs, and the binder puts them together on the event loop.
"""

from egressd.kernel.bridge.binder import Binder
from egressd.kernel.bridge.table import Bindings, Bound, BridgeTable

__all__ = ["Binder", "Bindings", "Bound", "BridgeTable"]
