"""The values of settings that carry a unit or a form: durations, sizes, marks, resolvers, sockets.

Every reader takes text (or a plain number where interface.md allows one) and raises `ValueError` with what to write.
"""

from __future__ import annotations

import re
from typing import Annotated, Final

from egressd.model import Address, address_text
from egressd.schema.checks import Reads
from egressd.schema.problem import did_you_mean, shown
from egressd.schema.tree import Odd
from egressd.schema.words import read_address, read_domain
from egressd.settings import Upstream

__all__ = ["Duration", "Endpoint", "Flag", "Given", "Mark", "Size", "UpstreamText", "count", "read_upstream"]

_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_OCTETS: Final = {
    "B": 1,
    "kB": 1000,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
}
_NUMBER_UNIT: Final = re.compile(r"(?P<number>[0-9]{1,12}(?:\.[0-9]{1,9})?) ?(?P<unit>[A-Za-z]*)\Z")
_LONGEST: Final = 366 * 86400.0
_LARGEST: Final = 1 << 50


def _duration(text: str | int | Odd) -> float:
    found = _NUMBER_UNIT.match(str(text))
    if not found:
        raise ValueError(f"{shown(str(text))} is not a duration; write a number and a unit: 500ms, 90s, 5m or 1h")
    unit = found["unit"]
    if unit not in _SECONDS:
        missing = f"write {text}s for seconds" if not unit else "the units are ms, s, m, h and d"
        raise ValueError(f"{shown(str(text))}: a duration needs a unit; {missing}")
    seconds = round(float(found["number"]) * _SECONDS[unit], 6)
    if seconds > _LONGEST:
        raise ValueError(f"{shown(str(text))} is too long; at most 366d")
    return seconds


def _size(text: str | int | Odd) -> int:
    found = _NUMBER_UNIT.match(str(text))
    unit = found["unit"] if found else ""
    if not found or unit not in _OCTETS:
        hint = did_you_mean(unit, _OCTETS) if unit else ""
        raise ValueError(
            f"{shown(str(text))} is not a size; write a number and a unit: 512KiB, 32MiB, 100MB or 1GiB{hint}"
        )
    octets = int(float(found["number"]) * _OCTETS[unit])
    if octets > _LARGEST:
        raise ValueError(f"{shown(str(text))} is too large")
    return octets


def count(least: int, most: int) -> Reads:
    """A whole number between two bounds; text where it comes from a variable or a flag."""

    def read(value: str | int | Odd) -> int:
        text = str(value)
        if not re.match(r"-?[0-9]{1,18}\Z", text) or not isinstance(value, int | Given):
            raise ValueError(f"expected a whole number, found {shown(text)}")
        if not least <= int(text) <= most:
            raise ValueError(f"{text} is out of range; write a number from {least} to {most}")
        return int(text)

    return Reads(read, {"type": "integer", "minimum": least, "maximum": most}, others=(int, Odd))


class Given(str):
    """Text of a variable or a flag, which has no types: numbers and booleans are read from it."""

    __slots__ = ()


def _flag(value: str | bool | Odd) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, Given) and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    raise ValueError(f"expected true or false, found {shown(str(value))}")


def _mark(value: str | int) -> int:
    text = str(value)
    if not re.match(r"(0[xX][0-9a-fA-F]{1,8}|[0-9]{1,10})\Z", text):
        raise ValueError(f'{shown(text)} is not a packet mark; write one bit of 32 in hexadecimal, such as "0x20000"')
    mark = int(text, 16 if text[:2].lower() == "0x" else 10)
    if not 0 < mark < 1 << 32 or mark & (mark - 1):
        raise ValueError(f'{shown(text)} is not one bit of 32; write such a mark in hexadecimal, such as "0x20000"')
    return mark


# ---------------------------------------------------------------------------------------------- sockets

_DEFAULT_PORT: Final = {"udp": 53, "tcp": 53, "tls": 853, "https": 443}
_UPSTREAM: Final = re.compile(
    r"(?:(?P<scheme>[A-Za-z0-9+.-]*)://)?(?:\[(?P<v6>[^\]]*)\]|(?P<host>[^\[\]:/#?\s]+))(?::(?P<port>[0-9]*))?"
    r"(?P<path>/[^#\s]*)?(?:#(?P<name>[A-Za-z0-9._-]+))?\Z"
)
_UPSTREAM_FORMS: Final = "write an address, ADDRESS:PORT, [IPV6]:PORT, or udp://, tcp://, tls:// or https:// before it"


def _port(text: str, whole: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise ValueError(f"{shown(whole)}: {shown(text)} is not a port; ports are 1 to 65535")
    return int(text)


def _host(text: str, scheme: str, whole: str) -> Address:
    """The address of a server. Raises `ValueError` for a name, `InvalidName` for what is neither."""
    try:
        return read_address(text)
    except ValueError:
        forms = f"{scheme}://ADDRESS#{read_domain(text)}" if scheme in {"tls", "https"} else "the address"
        raise ValueError(
            f"{shown(whole)}: a resolver goes by its address, for nothing can look {shown(text)} up yet; write {forms}"
        ) from None


def _name(text: str, whole: str) -> str:
    """The name that a certificate must be for. Raises `ValueError`, `InvalidName`."""
    name = read_domain(text)
    if name.rpartition(".")[2].isdigit():
        raise ValueError(f"{shown(whole)}: {shown('#' + text)} is an address; a name goes there, or nothing")
    return str(name)


def read_upstream(text: str) -> Upstream:
    """One resolver to ask (interface.md, `dns.upstreams`). Raises `ValueError`, `InvalidName`.

    With `tls` and `https` the certificate must be for `host`: the name behind `#`, else the address itself.
    """
    if text.count(":") > 1 and "://" not in text and not text.startswith("["):
        return Upstream(read_address(text))
    found = _UPSTREAM.match(text)
    if not found:
        raise ValueError(f"{shown(text)} is not a resolver; {_UPSTREAM_FORMS}")
    scheme = (found["scheme"] or "udp").lower() if found["scheme"] != "" else ""
    if scheme not in _DEFAULT_PORT:
        raise ValueError(
            f"{shown(text)}: unknown scheme {shown(scheme)}{did_you_mean(scheme, _DEFAULT_PORT)}; {_UPSTREAM_FORMS}"
        )
    if (found["path"] or "/") != "/" and scheme != "https":
        raise ValueError(f"{shown(text)}: only https:// has a path; remove {shown(found['path'])}")
    if found["name"] and scheme not in {"tls", "https"}:
        raise ValueError(f"{shown(text)}: only tls:// and https:// verify a name; remove {shown('#' + found['name'])}")
    address = _host(found["v6"] if found["v6"] is not None else found["host"], scheme, text)
    port = _port(found["port"], text) if found["port"] is not None else _DEFAULT_PORT[scheme]
    host = _name(found["name"], text) if found["name"] else ""
    if scheme in {"tls", "https"} and not host:
        host = address_text(address)
    path = (found["path"] if found["path"] not in {None, "/"} else "/dns-query") if scheme == "https" else ""
    return Upstream(address, port, scheme, host, path or "")


def _endpoint(text: str) -> str:
    """`ADDRESS:PORT` to listen on, or empty for none."""
    if not text:
        return text
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError(f"{shown(text)} has no port; write ADDRESS:PORT, such as 127.0.0.1:9477")
    bracketed = host.startswith("[") and host.endswith("]")
    if len(read_address(host[1:-1] if bracketed else host)) == 16 and not bracketed:
        raise ValueError(f"{shown(text)}: write [{host}]:{port}")
    _port(port, text)
    return text


Duration = Annotated[float, Reads(_duration, {"type": "string"}, others=(int, Odd))]
Size = Annotated[int, Reads(_size, {"type": "string"}, others=(int, Odd))]
Mark = Annotated[int, Reads(_mark, {"type": ["string", "integer"]}, others=(int,))]
Flag = Annotated[bool, Reads(_flag, {"type": "boolean"}, others=(bool, Odd))]
UpstreamText = Annotated[Upstream, Reads(read_upstream, {"type": "string"})]
Endpoint = Annotated[str, Reads(_endpoint, {"type": "string"})]
