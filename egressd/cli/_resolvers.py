"""Who a sandboxed command's names are looked up by: the machine's resolvers, as they can be reached from a sandbox."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from egressd.errors import EnvironmentProblem, InvalidName
from egressd.model import address_text
from egressd.schema import resolvers_of
from egressd.schema.units import read_upstream

__all__ = ["machine_resolvers", "other_lines", "stated_resolvers"]

RESOLV_CONF: Final = Path("/etc/resolv.conf")
RESOLVED: Final = Path("/run/systemd/resolve/resolv.conf")
"""Where systemd-resolved writes the servers behind its own 127.0.0.53 (systemd-resolved.service(8))."""


def machine_resolvers(files: Sequence[Path] = (RESOLV_CONF, RESOLVED)) -> list[str]:
    """The machine's resolvers that are not on its loopback. Raises `EnvironmentProblem` where there is none."""
    for file in files:
        texts = [address_text(upstream.address) for upstream in resolvers_of(_text(file))]
        found = [text for text in texts if not ipaddress.ip_address(text).is_loopback]
        if found:
            return found
    raise EnvironmentProblem(
        f"{files[0]} names no resolver that a sandbox can reach (this machine's loopback is not its own)",
        "name one with --dns ADDRESS",
    )


def stated_resolvers(texts: Sequence[str]) -> list[str]:
    """Resolvers given with `--dns`, in the forms that `dns.upstreams` takes. Raises `click.BadParameter`."""
    for text in texts:
        try:
            address = ipaddress.ip_address(read_upstream(text).address)
        except (ValueError, InvalidName) as error:
            raise click.BadParameter(str(error), param_hint="--dns") from None
        if address.is_loopback:
            message = f"{text}: this machine's loopback is not the sandbox's; name an address that others reach, too"
            raise click.BadParameter(message, param_hint="--dns")
    return list(texts)


def other_lines(file: Path = RESOLV_CONF) -> str:
    """The lines of resolv.conf that name no server: search domains and options."""
    lines = [line for line in _text(file).splitlines() if line.split()[:1] in (["search"], ["domain"], ["options"])]
    return "".join(f"{line}\n" for line in lines)


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
