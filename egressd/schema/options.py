"""The settings as people write them: one pydantic model for each section of interface.md, Settings.

Field names are those of `egressd.settings`; defaults live there alone. A section knows only what was written and lays
it `onto` the defaults.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import urlsplit

from pydantic import Field

from egressd import settings
from egressd.model import Address, Block
from egressd.names import Name
from egressd.schema.checks import Part, Reads
from egressd.schema.labels import Namespace, Selector, choice
from egressd.schema.problem import shown
from egressd.schema.units import Duration, Endpoint, Flag, Mark, Size, UpstreamText, count
from egressd.schema.words import read_address, read_block, read_domain

__all__ = ["Options", "Section"]

Section_ = TypeVar("Section_")
_MANY: Final = 1_000_000_000


class Section(Part):
    """A mapping of the settings file."""

    def onto(self, default: Section_) -> Section_:
        """The default with every field replaced that was written."""
        changes: dict[str, Any] = {}
        for name in self.model_fields_set:
            value = getattr(self, name)
            if isinstance(value, Section):
                value = value.onto(getattr(default, name))
            changes[name] = tuple(value) if isinstance(value, list) else _plain(value)
        return dataclasses.replace(default, **changes)  # type: ignore[type-var]  # every section has its dataclass


def _plain(value: Any) -> Any:
    """Text from a variable or a flag as nothing but text: settings cross the link, which knows plain types alone."""
    return str(value) if isinstance(value, str) else value


def _matching(pattern: str, what: str) -> Reads:
    compiled = re.compile(pattern + r"\Z")

    def read(text: str) -> str:
        if not compiled.match(text):
            raise ValueError(f"{shown(text)} is not {what}")
        return text

    return Reads(read, {"type": "string", "pattern": f"^{pattern}$"})


def _path(text: str) -> str:
    if text and (not PurePosixPath(text).is_absolute() or "\0" in text):
        raise ValueError(f"{shown(text)} is not an absolute path")
    return text


def _socket(text: str) -> str:
    if not text or len(text.encode("utf-8", "surrogateescape")) > 107:
        raise ValueError(f"{shown(text)} is not a socket's path: 1 to 107 octets (unix(7), sun_path)")
    return _path(text)


def _base_url(text: str) -> str:
    """A URL that secrets cannot hide in, for it is logged."""
    if not text:
        return text
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if any(letter in text for letter in "@?#"):
        raise ValueError("the URL may hold no user, query or fragment; secrets go into OTEL_EXPORTER_OTLP_HEADERS")
    if not host or port == 0 or parts.scheme not in {"http", "https"} or not text.isprintable() or " " in text:
        raise ValueError(f"{shown(text)} is not a collector's URL; write http://HOST:4318 or https://HOST:4318")
    return text.rstrip("/")


BaseUrl = Annotated[str, Reads(_base_url, {"type": "string"})]
Path = Annotated[str, Reads(_path, {"type": "string"})]
SocketPath = Annotated[str, Reads(_socket, {"type": "string"})]
AddressText = Annotated[Address, Reads(read_address, {"type": "string"})]
BlockText = Annotated[Block, Reads(read_block, {"type": "string"})]
DomainText = Annotated[Name, Reads(read_domain, {"type": "string"})]
Interface = Annotated[
    str, _matching(r"[^\s/*:\x00]{1,15}\*?", "an interface's name, or its beginning and '*': eth0, cali*, veth*")
]
Table = Annotated[
    str, _matching("[A-Za-z][A-Za-z0-9_-]{0,31}", "a table's name: a letter, then letters, digits, '_' and '-'")
]
NodeName = Annotated[str, _matching(r"[^\s\x00-\x1f]{1,253}", "a node's name: 1 to 253 characters without spaces")]
RouteTable = Annotated[int, count(1, 2**32 - 1)]
Group = Annotated[int, count(0, 65535)]
Positive = Annotated[int, count(1, _MANY)]
Natural = Annotated[int, count(0, _MANY)]


class SourcePart(Section):
    kind: Annotated[str, choice("directory", "kubernetes")] = "directory"
    path: str = ""
    kubeconfig: str = ""
    context: str = ""


class ExemptPart(Selector, Section):
    namespace: Namespace = ""

    def onto(self, default: Section_) -> Section_:
        assert isinstance(default, settings.Exempt)  # noqa: S101 - what the model's place in Dns says
        selects = {"labels", "expressions"} & self.model_fields_set
        return dataclasses.replace(
            default,
            namespace=self.namespace if "namespace" in self.model_fields_set else default.namespace,
            labels=self.compiled() if selects else default.labels,
        )


class CachePart(Section):
    size: Natural = 0
    bytes: Size = 0
    serve_stale: Duration = 0


class DnsPart(Section):
    upstreams: list[UpstreamText] = Field(default_factory=list)
    servers: list[AddressText] = Field(default_factory=list)
    ca_file: Path = ""
    foreign: Annotated[str, choice("Deny", "Answer")] = ""
    intercept: Annotated[str, choice("All", "Selected")] = ""
    exempt: ExemptPart = Field(default_factory=ExemptPart)
    deny_rcode: Annotated[str, choice("NXDOMAIN", "REFUSED", "NODATA")] = ""
    when_down: Annotated[str, choice("Bypass", "Block")] = ""
    cache: CachePart = Field(default_factory=CachePart)


class GrantsPart(Section):
    min: Duration = 0
    grace: Duration = 0
    program_timeout: Duration = 0
    per_name: Positive = 1
    total: Positive = 1


class MarksPart(Section):
    intercept: Mark = 0
    answer: Mark = 0


class FirewallPart(Section):
    table: Table = ""
    marks: MarksPart = Field(default_factory=MarksPart)
    route_table: RouteTable = 1
    log_group: Group = 0
    reject: Flag = True
    owner: Flag = True

    def onto(self, default: Section_) -> Section_:
        changes: dict[str, Any] = {name: _plain(getattr(self, name)) for name in self.model_fields_set - {"marks"}}
        changes |= {f"{name}_mark": getattr(self.marks, name) for name in self.marks.model_fields_set}
        return dataclasses.replace(default, **changes)  # type: ignore[type-var]  # a settings.Firewall


class BudgetsPart(Section):
    in_flight: Positive = 1
    in_flight_per_pod: Positive = 1
    queries_per_second_per_pod: Positive = 1
    burst_per_pod: Positive = 1
    denied_names_per_pod_per_minute: Natural = 0
    tcp_per_pod: Positive = 1
    tcp_idle: Duration = 0
    answer_records: Positive = 1


class AuditPart(Section):
    file: Path = ""
    max_size: Size = 0
    keep: Natural = 0
    stdout: Flag = False
    queue: Positive = 1
    flows: Annotated[str, choice("Denied", "All")] = ""


class HistoryPart(Section):
    file: Path = ""
    max_rows: Natural = 0
    max_bytes: Size = 0


class OtlpPart(Section):
    endpoint: BaseUrl = ""
    logs: Flag = True
    metrics: Flag = True
    interval: Duration = 0


class EventsPart(Section):
    denials: Flag = False


class AdminPart(Section):
    socket: SocketPath = ""
    listen: Endpoint = ""


class Options(Section):
    """The whole settings file. Defaults here are never read: `onto` takes only what was written."""

    node: NodeName = ""
    source: SourcePart = Field(default_factory=SourcePart)
    policy_namespace: Namespace = ""
    pod_cidrs: list[BlockText] = Field(default_factory=list)
    pod_interfaces: list[Interface] = Field(default_factory=list)
    cluster_cidrs: list[BlockText] = Field(default_factory=list)
    cluster_domains: list[DomainText] = Field(default_factory=list)
    in_cluster: Annotated[str, choice("Allow", "Enforce")] = ""
    unknown_wait: Duration = 0
    dns: DnsPart = Field(default_factory=DnsPart)
    grants: GrantsPart = Field(default_factory=GrantsPart)
    firewall: FirewallPart = Field(default_factory=FirewallPart)
    budgets: BudgetsPart = Field(default_factory=BudgetsPart)
    audit: AuditPart = Field(default_factory=AuditPart)
    history: HistoryPart = Field(default_factory=HistoryPart)
    otlp: OtlpPart = Field(default_factory=OtlpPart)
    events: EventsPart = Field(default_factory=EventsPart)
    admin: AdminPart = Field(default_factory=AdminPart)
