"""A small kube-apiserver for tests: it does what a real one was seen to do (kubernetes.md), and fails when told to.

server = ApiServer()
server.put("pods", pod)                # create or update, as any client of it would
server.cut(); server.stop(); server.start(); server.forget_history(); server.fail(429, retry_after=1)
"""

from __future__ import annotations

from kubeapi.server import ApiServer, Request, kubeconfig
from kubeapi.store import RESOURCES, Refusal, Store

__all__ = ["RESOURCES", "ApiServer", "Refusal", "Request", "Store", "kubeconfig"]
