"""pyroute2 without its front door, imported before any part of it.

`import pyroute2` brings all that it can do, databases of interfaces and decoders of every traffic class among it: 4 MiB
and a tenth of a second, in the one process of a node that must stay small. An empty package of that name, with the same
folder, leads to the few parts that are used: sockets, numbers and routes.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType

__all__ = ["lean"]


def lean() -> None:
    """Put the empty package in place, unless pyroute2 is there already, or not at all."""
    found = find_spec("pyroute2") if "pyroute2" not in sys.modules else None
    if found is not None:
        package = ModuleType("pyroute2")
        package.__path__ = list(found.submodule_search_locations or ())
        sys.modules["pyroute2"] = package


lean()
