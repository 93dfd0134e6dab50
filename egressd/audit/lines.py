"""One audit record in, one JSON line out: values in, bytes out; no clock, no file.

Field names, their order and when they are absent are those of interface.md (Audit records). A `dns` line is made on
the data path once per query, so what repeats is rendered once and kept: the pod's part, addresses, the decision's
part, the second of the time. Every such table is bounded; a full one is emptied, since all of it can be made again.
"""

from __future__ import annotations

from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii as quoted
from typing import Final, TypeVar

from egressd.model import (
    DnsRecord,
    FlowRecord,
    PodIdentity,
    PolicyRecord,
    Reason,
    Verdict,
    address_text,
)
from egressd.wire import rcode_text, type_text

__all__ = ["MAX_KEPT", "PROTOCOL_TEXT", "Form", "Renderer"]

MAX_KEPT: Final = 4096
"""Entries of each table of rendered parts: many times the pods of a node (250), at most about 1 MiB in all."""

PROTOCOL_TEXT: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}
"""IANA protocol numbers as `destination.protocol` spells them; any other is its number in decimal."""

_SEARCH: Final = ',"search":true'
_OCTETS: Final = tuple([str(octet) for octet in range(256)])

Form = tuple[str, str, str, int]
"""What stands between the time and the port, between the port and the latency, and behind it; its kind (`_kind`)."""

K = TypeVar("K")
V = TypeVar("V")


class Renderer:
    """Renders the records of one node. Text is escaped to ASCII, so any string at all gives a valid line."""

    def __init__(self, node: str) -> None:
        self._node = quoted(node)
        self._second = -1
        self._second_text = ""
        self._time = -1.0
        self._opened = ""
        self._pods: dict[bytes, tuple[PodIdentity | None, str]] = {}
        self._addresses: dict[bytes, str] = {}
        self._decisions: dict[tuple[str, str, str, str], str] = {}
        self._types: dict[int, str] = {}
        self._rcodes: dict[int, str] = {}

    def dns_line(self, record: DnsRecord) -> bytes:
        """The `dns` record of one query, newline included."""
        asker, asked, decided, came_to, more = self._pieces(record)
        time, port, latency_us = record[0], record[7], record[18]
        return (
            f'{self._opening(time)}"event":"dns","node":{self._node},"pod":{asker},"query":{{{asked}"port":{port}}},'
            f'{decided}{came_to},"latency_us":{latency_us}{more}}}\n'
        ).encode("ascii")

    def dns_again(self, form: Form, time: float, port: int, latency_us: int) -> bytes:
        """The line of a record of this form."""
        head, middle, tail, _ = form
        return f"{self._opening(time)}{head}{port}{middle}{latency_us}{tail}".encode("ascii")

    def dns_form(self, record: DnsRecord) -> Form:
        """All of a `dns` record but its time, its port and its latency."""
        asker, asked, decided, came_to, more = self._pieces(record)
        kind = 0
        if not record.aggregated:
            kind = _kind(asker, record.name, decided, record.rcode, record.addresses, record.search)
        return (
            f'"event":"dns","node":{self._node},"pod":{asker},"query":{{{asked}"port":',
            f'}},{decided}{came_to},"latency_us":',
            f"{more}}}\n",
            kind,
        )

    def _pieces(self, record: DnsRecord) -> tuple[str, str, str, str, str]:
        """Who asked, what, how it was decided, what was answered and opened, and what is seldom said."""
        (_, client, pod, name, qtype, transport, server, _, verdict, reason, policy, rule, rcode, addresses,
         cnames, ttl, cached, granted, _, search, aggregated) = record  # fmt: skip
        asked = f'"name":{quoted(name)},"type":{self._types.get(qtype) or self._type(qtype)},' if name else ""
        asked_at = f'"server":{self._addresses.get(server) or self._address(server)},' if server else ""
        response = opened = ""
        if rcode >= 0:
            answered = self._addresses_text(addresses) if addresses else ""
            response = self._response(rcode, answered, cnames, ttl, cached)
            if granted:
                opened = f',"granted":[{answered if granted == addresses else self._addresses_text(granted)}]'
        elif granted:
            opened = f',"granted":[{self._addresses_text(granted)}]'
        many = f',"aggregated":{aggregated}' if aggregated else ""
        return (
            self._pod(client, pod),
            f'{asked}"transport":"{transport}",{asked_at}',
            self._decision(verdict, reason, policy, rule),
            response + opened,
            (_SEARCH if search else "") + many,
        )

    def flow_line(self, record: FlowRecord) -> bytes:
        """The `flow` record of packets that the kernel reported, newline included."""
        port = f'"port":{record.port},' if record.port >= 0 else ""
        protocol = PROTOCOL_TEXT.get(record.protocol, str(record.protocol))
        names = ",".join(map(quoted, record.names))
        return (
            f'{self._opening(record.time)}"event":"flow","node":{self._node},'
            f'"pod":{self._pod(record.client, record.pod)},'
            f'"destination":{{"ip":{self._address(record.destination)},{port}"protocol":"{protocol}","names":[{names}]}},'
            f"{self._decision(record.verdict, record.reason, record.policy, record.rule)},"
            f'"packets":{record.packets}}}\n'
        ).encode("ascii")

    def policy_line(self, record: PolicyRecord) -> bytes:
        """The `policy` record of a policy that changed or was refused; a refused file that is no policy has no name."""
        policy = f'"policy":{quoted(record.policy)},' if record.policy else ""
        error = f',"error":{quoted(record.error)}' if record.error else ""
        return (
            f'{self._opening(record.time)}"event":"policy",{policy}"change":{quoted(record.change)}{error}}}\n'
        ).encode("ascii")

    def dropped_line(self, count: int, time: float) -> bytes:
        """The record that says how many records were lost; `time` in seconds since the epoch."""
        return f'{self._opening(time)}"event":"audit","node":{self._node},"dropped":{count}}}\n'.encode("ascii")

    # ------------------------------------------------------------------------------------ parts and their tables

    def _opening(self, time: float) -> str:
        """The first field of every line: RFC 3339 in UTC with microseconds. Lines of one batch say the same time."""
        if time == self._time:
            return self._opened
        second, microsecond = divmod(int(time * 1_000_000), 1_000_000)
        if second != self._second:
            self._second_text = f'{{"time":"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}.'
            self._second = second
        self._time, self._opened = time, f'{self._second_text}{microsecond:06d}Z",'
        return self._opened

    def _pod(self, client: bytes, pod: PodIdentity | None) -> str:
        """Who a client is. Kept by address and checked by identity: hashing five strings would take longer."""
        kept = self._pods.get(client)
        if kept is not None and kept[0] is pod:
            return kept[1]
        fields = {"ip": address_text(client)}
        if pod is not None:
            fields = {"namespace": pod.namespace, "name": pod.name, "uid": pod.uid, **fields}
            fields |= {"service_account": pod.service_account, "workload": pod.workload}
        return _keep(self._pods, client, (pod, "{" + _members(fields) + "}"))[1]

    def _decision(self, verdict: Verdict, reason: Reason, policy: str, rule: str) -> str:
        why = (policy, rule, reason, verdict)
        kept = self._decisions.get(why)
        if kept is not None:
            return kept
        fields = {"verdict": verdict, "reason": reason, "policy": policy, "rule": rule}
        return _keep(self._decisions, why, _members(fields))

    def _response(self, rcode: int, addresses: str, cnames: tuple[str, ...], ttl: int, cached: bool) -> str:
        word = self._rcodes.get(rcode) or _keep(self._rcodes, rcode, rcode_text(rcode))
        aliases = ",".join(map(quoted, cnames)) if cnames else ""
        lasts = f'"ttl":{ttl},' if ttl >= 0 else ""
        return (
            f',"response":{{"rcode":"{word}","addresses":[{addresses}],'
            f'"cnames":[{aliases}],{lasts}"cached":{"true" if cached else "false"}}}'
        )

    def _type(self, qtype: int) -> str:
        return self._types.get(qtype) or _keep(self._types, qtype, quoted(type_text(qtype)))

    def _address(self, address: bytes) -> str:
        return self._addresses.get(address) or _keep(self._addresses, address, f'"{address_text(address)}"')

    def _addresses_text(self, addresses: tuple[bytes, ...]) -> str:
        if len(addresses) == 1:
            return self._answered(addresses[0])
        return ",".join([self._answered(address) for address in addresses])

    def _answered(self, address: bytes) -> str:
        """An address of an answer: seldom one of those kept, and an IPv4 one is made as fast as it is found."""
        if len(address) != 4:
            return self._address(address)
        octets = _OCTETS
        return f'"{octets[address[0]]}.{octets[address[1]]}.{octets[address[2]]}.{octets[address[3]]}"'


def _kind(asker: str, name: str, decided: str, rcode: int, addresses: tuple[bytes, ...], search: bool) -> int:
    """A number that queries share which history does not tell apart: who asked, for what, and what came of it.

    64 bits of hashes that nobody outside can foresee (PYTHONHASHSEED): that two kinds among the few thousand of one
    flush share a number is not to be expected. It says nothing beyond this process, and 0 is none.
    """
    return hash((asker, name, decided, rcode, addresses, search))


def _members(fields: dict[str, str]) -> str:
    """The members of a JSON object, without those that do not apply."""
    return ",".join(f'"{key}":{quoted(value)}' for key, value in fields.items() if value)


def _keep(table: dict[K, V], key: K, value: V) -> V:
    if len(table) >= MAX_KEPT:
        table.clear()
    table[key] = value
    return value
