"""A Kubernetes API server as a source of objects: pods of this node, namespaces, policies, and the cluster's own facts.

The front door of the package, the only home of the library `kubernetes`. It runs on the control side; the data path
never imports it and never waits for it. Decisions and observed facts are in kubernetes.md.
"""

from __future__ import annotations

from egressd.cluster.facts import Facts
from egressd.cluster.source import Batch, Cluster

__all__ = ["Batch", "Cluster", "Facts"]
