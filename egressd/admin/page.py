"""What `/` serves: the one place of the web page. For now it says where to look instead."""

from __future__ import annotations

from typing import Final

__all__ = ["HEADERS", "PAGE"]

PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>egressd</title>
<p>This is egressd. Look at
<a href="/api/v1/status">status</a>, <a href="/api/v1/policies">policies</a>, <a href="/api/v1/pods">pods</a>,
<a href="/api/v1/grants">grants</a>, <a href="/api/v1/audit?limit=100">audit records</a>,
<a href="/metrics">metrics</a>, <a href="/readyz">readiness</a>;
<a href="/api/v1/openapi.json">all endpoints</a> are described.
In a terminal: <code>egressd status</code>.</p>
</html>
"""
HEADERS: Final = {"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'"}
