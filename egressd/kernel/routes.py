"""Policy routing for intercepted queries: what carries a marked packet to our sockets instead of to the wire.

For each trusted resolver one rule, `fwmark MARK/MARK to RESOLVER lookup TABLE`, and in that table one route per
family, `local default dev lo` (Documentation/networking/tproxy.rst of the kernel). The `to` keeps the rule out of
everybody else's way, also under `src_valid_mark=1`. Only our own table number with our own mark is ever read, added
or deleted, so everything here may be repeated at will: systemd-networkd, for one, deletes rules it did not make when
it restarts.

Two ways to say them. `install_routes` makes them exactly what they should be, once. `Routes` says the same again over a
socket kept open: queries are lost for as long as a rule is missing, and the process may have no file descriptor left
when that is noticed. Messages follow include/uapi/linux/rtnetlink.h and fib_rules.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from typing import Final, NamedTuple

from pyroute2.netlink import (
    NETLINK_ROUTE,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
)
from pyroute2.netlink.rtnl import RTM_DELROUTE, RTM_DELRULE, RTM_GETRULE, RTM_NEWROUTE, RTM_NEWRULE
from pyroute2.netns import create_socket

from egressd.errors import EnvironmentProblem, KernelError
from egressd.kernel.netlink import attributes, blob
from egressd.settings import Settings

__all__ = ["PRIORITY", "Routes", "install_routes", "remove_routes"]

PRIORITY: Final = 64
"""Place of our rules: behind `local` (0) and Cilium's (9, 10), before those of the AWS CNI (512 and on) and `main`."""

_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
_LENGTHS: Final = {socket.AF_INET: 4, socket.AF_INET6: 16}
_NO_FAMILY: Final = frozenset({errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EACCES})
"""What a kernel without IPv6, or with it disabled on `lo` (EACCES, net/ipv6/route.c), says to a rule or route."""
_GONE: Final = frozenset({errno.ENOENT, errno.ESRCH}) | _NO_FAMILY
_THERE: Final = frozenset({errno.EEXIST})
_DUMP_TRIES: Final = 10
"""Rules that somebody changed while they were read are read anew this many times."""


class _Rule(NamedTuple):
    """One rule of ours; `destination`, packed, is empty where it holds for every destination."""

    family: int
    destination: bytes

    @property
    def priority(self) -> int:
        """One more for the general rule: the kernel takes it for the same as a narrow one of equal priority."""
        return PRIORITY if self.destination else PRIORITY + 1


def install_routes(settings: Settings, servers: Sequence[bytes]) -> None:
    """Make the kernel's rules and routes exactly those that `servers` (packed addresses) and `dns.foreign` need.

    Raises `EnvironmentProblem` (no rights, a server of a family that the kernel lacks) or `KernelError`.
    """
    lengths = {len(server) for server in servers}
    with closing(_Wire()) as wire:
        for family in _FAMILIES:
            wanted = _wanted(family, servers, settings.dns.foreign == "Answer")
            optional = _LENGTHS[family] not in lengths  # foreign servers' IPv6, where the machine may have none
            _settle(wire, settings, family, wanted, optional)


def remove_routes(settings: Settings) -> None:
    """Delete every rule and route of ours; nothing to delete is no error. Raises like `install_routes`."""
    with closing(_Wire()) as wire:
        for family in _FAMILIES:
            _settle(wire, settings, family, frozenset(), True)


def _wanted(family: socket.AddressFamily, servers: Sequence[bytes], foreign: bool) -> frozenset[_Rule]:
    if foreign:
        return frozenset({_Rule(family, b"")})
    return frozenset(_Rule(family, server) for server in servers if len(server) == _LENGTHS[family])


def _settle(wire: _Wire, settings: Settings, family: int, wanted: AbstractSet[_Rule], optional: bool) -> None:
    present = _present(wire, settings, family)
    route = _route_body(settings, family, _loopback())
    steps: list[tuple[bytes, AbstractSet[int]]] = []
    """Messages, and what each may be refused for."""
    if wanted:
        steps.append((_message(RTM_NEWROUTE, route), frozenset()))
    steps += [(_message(RTM_NEWRULE, _rule_body(settings, rule)), _THERE) for rule in wanted - present]
    steps += [(_message(RTM_DELRULE, _rule_body(settings, rule)), _GONE) for rule in present - wanted]
    if not wanted:
        steps.append((_message(RTM_DELROUTE, route), _GONE))
    for place, code in wire.say([message for message, _ in steps]):
        if code not in steps[place][1] and not (optional and code in _NO_FAMILY):
            raise _explain(code)


def _present(wire: _Wire, settings: Settings, family: int) -> set[_Rule]:
    """Our rules as the kernel has them; none where it knows no such family."""
    ours = (settings.firewall.route_table, settings.firewall.intercept_mark)
    found = set()
    for body in wire.rules(family):
        values = dict(attributes(body[_RULE.size :]))
        rule = _Rule(family, values.get(_FRA_DST, b""))
        table, mark, priority = (_value(values, kind) for kind in (_FRA_TABLE, _FRA_FWMARK, _FRA_PRIORITY))
        if (table, mark) == ours and priority == rule.priority:
            found.add(rule)
    return found


def _value(values: dict[int, bytes], kind: int) -> int:
    """A number of 32 bits; the kernel leaves those out that are 0."""
    return int.from_bytes(values.get(kind, b""), sys.byteorder)


def _loopback() -> int:
    try:
        return socket.if_nametoindex("lo")
    except OSError as error:
        raise _unable(error) from error


def _unable(error: OSError) -> EnvironmentProblem:
    remedy = _REMEDIES.get(error.errno or 0, "egressd needs Linux and CAP_NET_ADMIN")
    return EnvironmentProblem(f"cannot speak route netlink: {error.strerror or error}", remedy)


_DESCRIPTORS: Final = "raise the limit of open files (LimitNOFILE, ulimit -n)"
_REMEDIES: Final = {errno.EMFILE: _DESCRIPTORS, errno.ENFILE: "raise fs.file-max", errno.ENOBUFS: "free memory"}
_NO_ROUTING: Final = ("this kernel lacks policy routing for a family in use", "enable IP_MULTIPLE_TABLES and IPv6")
_PROBLEMS: Final = {
    errno.EPERM: ("not permitted to change routing rules", "run egressd as root with CAP_NET_ADMIN"),
    errno.EAFNOSUPPORT: _NO_ROUTING,
    errno.EOPNOTSUPP: _NO_ROUTING,
    errno.EACCES: ("IPv6 is disabled on the loopback interface", "set net.ipv6.conf.lo.disable_ipv6=0"),
}


def _explain(code: int) -> EnvironmentProblem | KernelError:
    if code in _PROBLEMS:
        return EnvironmentProblem(*_PROBLEMS[code])
    text = f"the kernel refused a routing rule or route for intercepted queries: {os.strerror(code)}"
    return KernelError(text, code)


class Routes:
    """Our rules and routes, ready to be said again, and the socket to say them over. For one thread."""

    def __init__(self, settings: Settings, servers: Sequence[bytes]) -> None:
        """Raises `EnvironmentProblem` without a socket."""
        lengths = {len(server) for server in servers}
        self._optional = {family for family in _FAMILIES if _LENGTHS[family] not in lengths}
        self._messages: list[tuple[int, bytes]] = []
        """Family, and a message."""
        self._wire = _Wire()
        loopback = _loopback()
        for family in _FAMILIES:
            wanted = _wanted(family, servers, settings.dns.foreign == "Answer")
            if wanted:
                self._messages.append((family, _message(RTM_NEWROUTE, _route_body(settings, family, loopback))))
            rules = [_message(RTM_NEWRULE, _rule_body(settings, rule)) for rule in sorted(wanted)]
            self._messages += [(family, rule) for rule in rules]

    def put_back(self) -> None:
        """Say all of them; what is there stays. Takes some 100 µs. Raises like `install_routes`."""
        for place, code in self._wire.say([message for _, message in self._messages]):
            family = self._messages[place][0]
            if code != errno.EEXIST and not (family in self._optional and code in _NO_FAMILY):
                raise _explain(code)

    def close(self) -> None:
        self._wire.close()


# ------------------------------------------------------------------------------------------------- rtnetlink

_FRA_DST, _FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FRA_FWMASK = 1, 6, 10, 15, 16
_RTA_OIF, _RTA_TABLE = 4, 15
_TO_TABLE: Final = 1
"""FR_ACT_TO_TBL"""
_STATIC, _LOCAL, _SCOPE_HOST, _SCOPE_UNIVERSE = 4, 2, 254, 0
"""RTPROT_STATIC, RTN_LOCAL, RT_SCOPE_…"""
_IN_ATTRIBUTE: Final = 252
"""RT_TABLE_COMPAT: the number of the table is in an attribute."""
_FLAGS: Final = {
    RTM_GETRULE: NLM_F_DUMP,
    RTM_NEWRULE: NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
    RTM_DELRULE: NLM_F_ACK,
    RTM_NEWROUTE: NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE,
    RTM_DELROUTE: NLM_F_ACK,
}
_HEADER: Final = struct.Struct("=IHHII")
_RULE: Final = struct.Struct("=8BI")
_ROUTE: Final = struct.Struct("=8BI")
_REPLY: Final = 1 << 16


class _Wire:
    """A socket to rtnetlink. Answers are there when `send` returns, those of a dump when the part before is read."""

    def __init__(self) -> None:
        """Raises `EnvironmentProblem` without a socket."""
        try:
            self._socket: socket.socket = create_socket(None, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE)
            self._socket.bind((0, 0))
        except OSError as error:
            raise _unable(error) from error
        self._socket.setblocking(False)

    def close(self) -> None:
        self._socket.close()

    def say(self, messages: Sequence[bytes]) -> list[tuple[int, int]]:
        """Say messages, each acknowledged; place and positive errno of each that was refused. Raises like `Routes`."""
        packed = [message[:8] + struct.pack("=I", place) + message[12:] for place, message in enumerate(messages)]
        refused, place = [], -1
        try:
            self._socket.send(b"".join(packed))
            while place != len(messages) - 1:
                for kind, _, place, payload in self._received():
                    code = _code(payload) if kind == NLMSG_ERROR else 0
                    if code:
                        refused.append((place, code))
        except OSError as error:
            raise _unable(error) from error
        return refused

    def rules(self, family: int) -> list[bytes]:
        """Every rule of a family: header and attributes; none where the kernel lacks it. Raises like the rest."""
        message = _message(RTM_GETRULE, _RULE.pack(family, *[0] * 8))
        try:
            for _ in range(_DUMP_TRIES):
                self._socket.send(message)
                found, whole = self._dumped()
                if whole:
                    return found
        except OSError as error:
            raise _unable(error) from error
        raise KernelError("routing rules changed faster than they could be read", errno.EINTR)

    def _dumped(self) -> tuple[list[bytes], bool]:
        """The rest of a dump, and whether nothing changed meanwhile."""
        found, whole = [], True
        while True:
            for kind, flags, _, payload in self._received():
                whole = whole and not flags & NLM_F_DUMP_INTR
                if kind not in (NLMSG_DONE, NLMSG_ERROR):
                    found.append(payload)
                    continue
                code = _code(payload)
                if code and code not in _NO_FAMILY:
                    raise _explain(code)
                return found, whole

    def _received(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Type, flags, sequence number and payload of each message in one read."""
        data, offset = self._socket.recv(_REPLY), 0
        while offset + _HEADER.size <= len(data):
            size, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
            yield kind, flags, sequence, data[offset + _HEADER.size : offset + size]
            offset += max(_HEADER.size, (size + 3) & ~3)


def _code(payload: bytes) -> int:
    """The positive errno of an NLMSG_ERROR or NLMSG_DONE."""
    return -int.from_bytes(payload[:4], sys.byteorder, signed=True)


def _message(kind: int, body: bytes) -> bytes:
    """A request with its header."""
    return _HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST | _FLAGS[kind], 0, 0) + body


def _number(kind: int, value: int) -> bytes:
    return blob(kind, struct.pack("=I", value))


def _rule_body(settings: Settings, rule: _Rule) -> bytes:
    """fib_rule_hdr and attributes (include/uapi/linux/fib_rules.h)."""
    firewall = settings.firewall
    body = _RULE.pack(rule.family, 8 * len(rule.destination), 0, 0, _IN_ATTRIBUTE, 0, 0, _TO_TABLE, 0)
    if rule.destination:
        body += blob(_FRA_DST, rule.destination)
    body += _number(_FRA_PRIORITY, rule.priority) + _number(_FRA_FWMARK, firewall.intercept_mark)
    return body + _number(_FRA_FWMASK, firewall.intercept_mark) + _number(_FRA_TABLE, firewall.route_table)


def _route_body(settings: Settings, family: int, loopback: int) -> bytes:
    """rtmsg and attributes (include/uapi/linux/rtnetlink.h): `local default dev lo`."""
    scope = _SCOPE_HOST if family == socket.AF_INET else _SCOPE_UNIVERSE
    body = _ROUTE.pack(family, 0, 0, 0, _IN_ATTRIBUTE, _STATIC, scope, _LOCAL, 0)
    return body + _number(_RTA_OIF, loopback) + _number(_RTA_TABLE, settings.firewall.route_table)
