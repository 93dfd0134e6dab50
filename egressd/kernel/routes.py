"""Policy routing for intercepted queries: what carries a marked packet to our sockets instead of to the wire.

For each trusted resolver one rule, `fwmark MARK/MARK to RESOLVER lookup TABLE`, and in that table one route per
family, `local default dev lo` (Documentation/networking/tproxy.rst of the kernel). The `to` keeps the rule out of
everybody else's way, also under `src_valid_mark=1`. Only our own table number with our own mark is ever read, added
or deleted, so everything here may be repeated at will: systemd-networkd, for one, deletes rules it did not make when
it restarts.

Two ways to say them. `install_routes` makes them exactly what they should be, once, through the library that knows
routes, in some milliseconds. `Routes` says the same again in a tenth of one, over a socket kept open: queries are lost
for as long as a rule is missing, and the process may have no file descriptor left when that is noticed.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, NamedTuple

from pyroute2 import IPRoute
from pyroute2.netlink import (
    NETLINK_ROUTE,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    NLMSG_ERROR,
)
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTM_NEWROUTE, RTM_NEWRULE
from pyroute2.netns import create_socket

from egressd.errors import EnvironmentProblem, KernelError
from egressd.kernel.netlink import blob
from egressd.model import address_text
from egressd.settings import Settings

__all__ = ["PRIORITY", "Routes", "install_routes", "remove_routes"]

PRIORITY: Final = 64
"""Place of our rules: behind `local` (0) and Cilium's (9, 10), before those of the AWS CNI (512 and on) and `main`."""

_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
_LENGTHS: Final = {socket.AF_INET: 4, socket.AF_INET6: 16}
_NO_FAMILY: Final = frozenset({errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EACCES})
"""What a kernel without IPv6, or with it disabled on `lo` (EACCES, net/ipv6/route.c), says to a rule or route."""
_GONE: Final = frozenset({errno.ENOENT, errno.ESRCH}) | _NO_FAMILY


class _Rule(NamedTuple):
    """One rule of ours; `destination` is empty where it holds for every destination."""

    family: int
    destination: str

    @property
    def priority(self) -> int:
        """One more for the general rule: the kernel takes it for the same as a narrow one of equal priority."""
        return PRIORITY if self.destination else PRIORITY + 1

    def request(self, settings: Settings) -> dict[str, Any]:
        mark = settings.firewall.intercept_mark
        table = settings.firewall.route_table
        common = {"family": self.family, "priority": self.priority, "table": table, "fwmark": mark, "fwmask": mark}
        if not self.destination:
            return common
        return common | {"dst": self.destination, "dst_len": 8 * _LENGTHS[socket.AddressFamily(self.family)]}


def install_routes(settings: Settings, servers: Sequence[bytes]) -> None:
    """Make the kernel's rules and routes exactly those that `servers` (packed addresses) and `dns.foreign` need.

    Takes about 5 ms, also while an event loop runs. Raises `EnvironmentProblem` (no rights, a server of a family that
    the kernel lacks) or `KernelError`.
    """
    lengths = {len(server) for server in servers}
    for family in _FAMILIES:
        wanted = _wanted(family, servers, settings.dns.foreign == "Answer")
        optional = _LENGTHS[family] not in lengths  # foreign servers' IPv6, where the machine may have none
        _run(partial(_settle, settings=settings, family=family, wanted=wanted, optional=optional))


def remove_routes(settings: Settings) -> None:
    """Delete every rule and route of ours; nothing to delete is no error. Raises like `install_routes`."""
    for family in _FAMILIES:
        _run(partial(_settle, settings=settings, family=family, wanted=frozenset(), optional=True))


def _wanted(family: socket.AddressFamily, servers: Sequence[bytes], foreign: bool) -> frozenset[_Rule]:
    if foreign:
        return frozenset({_Rule(family, "")})
    return frozenset(_Rule(family, address_text(server)) for server in servers if len(server) == _LENGTHS[family])


def _run(work: Callable[[Any], None]) -> None:
    """Do `work` with a netlink socket, in a thread: pyroute2 drives an event loop, and none runs inside another."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(_with_socket, work).result()


def _with_socket(work: Callable[[Any], None]) -> None:
    try:
        with IPRoute() as netlink:
            work(netlink)
    except NetlinkError as error:
        raise _explain(error.code, str(error)) from error
    except OSError as error:
        raise _unable(error) from error


def _settle(netlink: Any, settings: Settings, family: int, wanted: AbstractSet[_Rule], optional: bool) -> None:
    try:
        present = _present(netlink, settings, family)
        if wanted:
            netlink.route("replace", **_route(netlink, settings, family))
        for rule in wanted - present:
            _tolerating({errno.EEXIST}, netlink.rule, "add", **rule.request(settings))
        for rule in present - wanted:
            _tolerating(_GONE, netlink.rule, "del", **rule.request(settings))
        if not wanted:
            _tolerating(_GONE, netlink.route, "del", **_route(netlink, settings, family))
    except NetlinkError as error:
        if not (optional and error.code in _NO_FAMILY):
            raise


def _present(netlink: Any, settings: Settings, family: int) -> set[_Rule]:
    """Our rules as the kernel has them."""
    ours = (settings.firewall.route_table, settings.firewall.intercept_mark)
    found = set()
    for message in netlink.get_rules(family=family):
        rule = _Rule(family, message.get_attr("FRA_DST") or "")
        table_and_mark = (message.get_attr("FRA_TABLE"), message.get_attr("FRA_FWMARK"))
        if table_and_mark == ours and message.get_attr("FRA_PRIORITY") == rule.priority:
            found.add(rule)
    return found


def _route(netlink: Any, settings: Settings, family: int) -> dict[str, Any]:
    table, loopback = settings.firewall.route_table, netlink.link_lookup(ifname="lo")[0]
    route = {"family": family, "table": table, "type": "local", "dst": "default", "oif": loopback}
    return route | ({"scope": "host"} if family == socket.AF_INET else {})  # IPv6 routes have no scope


def _tolerating(codes: AbstractSet[int], call: Callable[..., object], verb: str, **request: Any) -> None:
    try:
        call(verb, **request)
    except NetlinkError as error:
        if error.code not in codes:
            raise


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


def _explain(code: int, text: str) -> EnvironmentProblem | KernelError:
    if code in _PROBLEMS:
        return EnvironmentProblem(*_PROBLEMS[code])
    return KernelError(f"the kernel refused a routing rule or route for intercepted queries: {text}", code)


# ------------------------------------------------------------------------------------------------- put back

_FRA_DST, _FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FRA_FWMASK = 1, 6, 10, 15, 16
_RTA_OIF, _RTA_TABLE = 4, 15
_TO_TABLE: Final = 1
"""FR_ACT_TO_TBL"""
_STATIC, _LOCAL, _SCOPE_HOST, _SCOPE_UNIVERSE = 4, 2, 254, 0
"""RTPROT_STATIC, RTN_LOCAL, RT_SCOPE_…"""
_IN_ATTRIBUTE: Final = 252
"""RT_TABLE_COMPAT: the number of the table is in an attribute."""
_HEADER: Final = struct.Struct("=IHHII")
_RULE: Final = struct.Struct("=8BI")
_ROUTE: Final = struct.Struct("=8BI")
_REPLY: Final = 1 << 16


class Routes:
    """Our rules and routes, ready to be said again, and the socket to say them over. For one thread."""

    def __init__(self, settings: Settings, servers: Sequence[bytes]) -> None:
        """Raises `EnvironmentProblem` without a socket."""
        lengths = {len(server) for server in servers}
        self._optional = {family for family in _FAMILIES if _LENGTHS[family] not in lengths}
        self._messages: list[tuple[int, bytes]] = []
        """Family, and a message without its header: type and flags first."""
        try:
            self._socket: socket.socket = create_socket(None, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE)
            self._socket.bind((0, 0))
            loopback = socket.if_nametoindex("lo")
        except OSError as error:
            raise _unable(error) from error
        self._socket.setblocking(False)
        for family in _FAMILIES:
            wanted = _wanted(family, servers, settings.dns.foreign == "Answer")
            if wanted:
                self._messages.append((family, _route_message(settings, family, loopback)))
            self._messages += [(family, _rule_message(settings, rule)) for rule in sorted(wanted)]

    def put_back(self) -> None:
        """Say all of them; what is there stays. Takes some 100 µs. Raises like `install_routes`."""
        packed, sequence = [], 0
        for _, message in self._messages:
            sequence += 1
            packed.append(struct.pack("=I", 16 + len(message) - 4) + message[:4] + struct.pack("=II", sequence, 0))
            packed.append(message[4:])
        try:
            self._socket.send(b"".join(packed))
            refused = self._refusals(sequence)
        except OSError as error:
            raise _unable(error) from error
        for place, code in refused:
            family = self._messages[place - 1][0]
            if code != errno.EEXIST and not (family in self._optional and code in _NO_FAMILY):
                raise _explain(code, errno.errorcode.get(code, str(code)))

    def close(self) -> None:
        self._socket.close()

    def _refusals(self, last: int) -> list[tuple[int, int]]:
        """Sequence number and positive errno of each message refused. Answers are there when `send` returns."""
        refused: list[tuple[int, int]] = []
        sequence = 0
        while sequence != last:
            data, offset = self._socket.recv(_REPLY), 0
            while offset + 20 <= len(data):
                size, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
                code = -struct.unpack_from("=i", data, offset + 16)[0] if kind == NLMSG_ERROR else 0
                if code:
                    refused.append((sequence, code))
                offset += max(16, (size + 3) & ~3)
        return refused


def _number(kind: int, value: int) -> bytes:
    return blob(kind, struct.pack("=I", value))


def _rule_message(settings: Settings, rule: _Rule) -> bytes:
    """RTM_NEWRULE: fib_rule_hdr and attributes (include/uapi/linux/fib_rules.h)."""
    firewall = settings.firewall
    length = _LENGTHS[socket.AddressFamily(rule.family)] if rule.destination else 0
    body = _RULE.pack(rule.family, 8 * length, 0, 0, _IN_ATTRIBUTE, 0, 0, _TO_TABLE, 0)
    if rule.destination:
        body += blob(_FRA_DST, socket.inet_pton(rule.family, rule.destination))
    body += _number(_FRA_PRIORITY, rule.priority) + _number(_FRA_FWMARK, firewall.intercept_mark)
    body += _number(_FRA_FWMASK, firewall.intercept_mark) + _number(_FRA_TABLE, firewall.route_table)
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
    return struct.pack("=HH", RTM_NEWRULE, flags) + body


def _route_message(settings: Settings, family: int, loopback: int) -> bytes:
    """RTM_NEWROUTE: rtmsg and attributes (include/uapi/linux/rtnetlink.h): `local default dev lo`."""
    scope = _SCOPE_HOST if family == socket.AF_INET else _SCOPE_UNIVERSE
    body = _ROUTE.pack(family, 0, 0, 0, _IN_ATTRIBUTE, _STATIC, scope, _LOCAL, 0)
    body += _number(_RTA_OIF, loopback) + _number(_RTA_TABLE, settings.firewall.route_table)
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE
    return struct.pack("=HH", RTM_NEWROUTE, flags) + body
