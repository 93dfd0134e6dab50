"""TLS towards encrypted upstreams: the strict profile of RFC 8310, nothing weaker to fall back to.

The certificate must lead to a trusted one and name the host of the settings (or the address, where they give none);
TLS 1.2 at least. Who is trusted: the certificates of the system (where OpenSSL looks for them, or SSL_CERT_FILE and
SSL_CERT_DIR), or those of one file and no others.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Final

from egressd.errors import EnvironmentProblem
from egressd.upstream.health import Health

__all__ = ["CERTIFICATE_REFUSED", "trusting", "what_failed"]

CERTIFICATE_REFUSED: Final = "its certificate is refused"


def trusting(health: Health, ca_file: str) -> ssl.SSLContext:
    """How to speak TLS with one upstream. Raises `EnvironmentProblem` where there is nobody to trust."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies chain and name; writes no keys anywhere
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if health.upstream.scheme == "https":
        context.set_alpn_protocols(["http/1.1"])
    if not ca_file:
        if not _system_store():
            what = f"upstream {health}: this system has no certificates to judge it by"
            raise EnvironmentProblem(what, "install ca-certificates, or name a file in dns.ca_file")
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        return context
    try:
        context.load_verify_locations(cafile=ca_file)
    except ssl.SSLError:
        raise EnvironmentProblem(f"{ca_file} holds no certificates in PEM", "correct dns.ca_file") from None
    except OSError as error:
        raise EnvironmentProblem(f"{ca_file} cannot be read: {error.strerror}", "correct dns.ca_file") from None
    return context


def _system_store() -> bool:
    """Whether OpenSSL finds certificates by itself."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile is not None and Path(paths.cafile).stat().st_size:
        return True
    try:
        return paths.capath is not None and any(os.scandir(paths.capath))
    except OSError:
        return False


def what_failed(error: BaseException) -> str:
    """What to say of a connection that could not be made, or did not last."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{CERTIFICATE_REFUSED}: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {(error.reason or str(error)).lower().replace('_', ' ')}"
    if isinstance(error, TimeoutError):
        return "no connection in time"
    if isinstance(error, ConnectionError) and not error.strerror:
        return "closed by the server"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)  # asyncio's own text repeats the address
    return str(error) or type(error).__name__
