"""What opens a collector's door: the standard OTEL_EXPORTER_OTLP_… variables for secrets, certificates, attributes.

Names and syntax: OpenTelemetry specification, "OpenTelemetry Protocol Exporter" and "Resource SDK". Values are
secrets: no error quotes one.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

from egressd.errors import EnvironmentProblem

__all__ = ["Access"]

PREFIX: Final = "OTEL_EXPORTER_OTLP_"
RESOURCE: Final = "OTEL_RESOURCE_ATTRIBUTES"
_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+\Z")
"""A header's name (RFC 9110 section 5.6.2)."""


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach one collector, beside its URL."""

    headers: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    """By signal: `logs`, `metrics`."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Of the resource, beside our own."""
    authority: str = ""
    """File with the certificates of those we believe; empty: the system's."""
    certificate: str = ""
    """File with our own certificate, and its key."""
    key: str = ""

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Access:
        """Access as the variables say. Raises `EnvironmentProblem` for one that cannot be used."""
        common = _pairs(environ, f"{PREFIX}HEADERS")
        headers = {
            signal: common | _pairs(environ, f"{PREFIX}{signal.upper()}_HEADERS") for signal in ("logs", "metrics")
        }
        return cls(
            headers,
            _pairs(environ, RESOURCE, headers=False),
            environ.get(f"{PREFIX}CERTIFICATE", ""),
            environ.get(f"{PREFIX}CLIENT_CERTIFICATE", ""),
            environ.get(f"{PREFIX}CLIENT_KEY", ""),
        )

    def context(self) -> ssl.SSLContext:
        """How TLS is spoken. Reads files; raises `EnvironmentProblem` where they cannot be used."""
        try:
            context = ssl.create_default_context(cafile=self.authority or None)
            if self.certificate:
                context.load_cert_chain(self.certificate, self.key or None)
        except (OSError, ValueError) as error:  # SSLError is an OSError
            names = f"{PREFIX}CERTIFICATE, {PREFIX}CLIENT_CERTIFICATE and {PREFIX}CLIENT_KEY"
            raise EnvironmentProblem(
                f"the certificates for otlp.endpoint cannot be used ({error})", f"see {names}: paths of PEM files"
            ) from None
        return context


def _pairs(environ: Mapping[str, str], variable: str, *, headers: bool = True) -> dict[str, str]:
    """`KEY=VALUE,…`, percent-encoded where need be (W3C Baggage). Raises `EnvironmentProblem`, quoting no value."""
    found: dict[str, str] = {}
    for number, part in enumerate(environ.get(variable, "").split(","), 1):
        if not part.strip():
            continue
        key, equals, value = (unquote(text.strip()) for text in part.partition("="))
        good = bool(equals and key and value.isprintable())
        if not good or (headers and not (_TOKEN.match(key) and value.isascii())):
            raise EnvironmentProblem(
                f"{variable}: entry {number} cannot be used", "write KEY=VALUE,… with a percent sign before odd octets"
            )
        found[key.lower() if headers else key] = value
    return found
