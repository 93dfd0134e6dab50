"""egressd: a per-node, DNS-aware egress filter for Kubernetes pods."""

__version__ = "0.1.0"
