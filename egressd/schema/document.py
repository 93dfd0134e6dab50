"""The policy document: its fields as pydantic models, from which the published JSON Schema is made too."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field

from egressd.model import DnsMode, Mode, OnRevoke, Peer, PortSpan
from egressd.schema.checks import Part, Reads
from egressd.schema.labels import ObjectName, Selector, choice
from egressd.schema.problem import shown
from egressd.schema.tree import Odd
from egressd.schema.words import read_peer, read_spans

__all__ = ["AllowRule", "DenyRule", "Document", "SubjectPart", "json_schema"]

MAX_RULE_NAME: Final = 63
"""Characters of a rule's name: it stands in every audit record and in kernel comments, which hold 128 octets."""


def _rule_name(text: str) -> str:
    if not 1 <= len(text) <= MAX_RULE_NAME or not text.isprintable() or text.strip() != text:
        raise ValueError(
            f"{shown(text)} is not a rule's name: 1 to {MAX_RULE_NAME} printable characters, no space at its ends"
        )
    return text


RuleName = Annotated[str, Reads(_rule_name, {"type": "string", "minLength": 1, "maxLength": MAX_RULE_NAME})]
PeerText = Annotated[
    Peer,
    Reads(
        read_peer, {"type": "string", "examples": ["api.example.com", "*.example.com", "192.0.2.0/24", "2001:db8::1"]}
    ),
]
PortText = Annotated[
    tuple[PortSpan, ...],
    Reads(
        read_spans,
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": 65535},
                {"type": "string", "pattern": "^([0-9]+(-[0-9]+)?(/[A-Za-z]+)?|\\*/[A-Za-z]+)$"},
            ],
            "examples": ["443/TCP", "8000-8100/UDP", 443, "*/ICMP"],
        },
        others=(int, Odd),
    ),
]


class SubjectPart(Part):
    """Whom the policy selects. Without it: every pod of the policy's namespace."""

    pods: Selector = Field(default_factory=Selector, alias="podSelector", description="labels of the pods")
    namespaces: Selector = Field(
        default_factory=Selector,
        alias="namespaceSelector",
        description="labels of the namespaces; cluster policies only",
    )
    accounts: list[ObjectName] = Field(
        default_factory=list,
        alias="serviceAccounts",
        min_length=1,
        description="the pod's service account must be one of these",
    )


def _no_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


class DenyRule(Part):
    """One rule of `deny`. It wins over every `allow`."""

    name: RuleName = Field(
        default="", description="unique in the policy; else deny[0], deny[1] …", json_schema_extra=_no_default
    )
    to: list[PeerText] = Field(min_length=1, description="list domain names, *.patterns, IP addresses or CIDR blocks")
    ports: list[PortText] = Field(
        default_factory=list, min_length=1, description="without it: every port of every protocol"
    )


class AllowRule(DenyRule):
    """One rule of `allow`."""

    name: RuleName = Field(
        default="", description="unique in the policy; else allow[0], allow[1] …", json_schema_extra=_no_default
    )
    allow_private: bool = Field(
        default=False, alias="allowPrivate", description="answers in private address ranges may be granted"
    )


class Document(Part):
    """An egressd policy: what the selected pods may reach. What no rule allows is denied."""

    subject: SubjectPart = Field(default_factory=SubjectPart, description="whom the policy selects")
    mode: Annotated[str, choice(*Mode)] = Field(default=Mode.ENFORCE, description="Audit reports, and stops nothing")
    dns: Annotated[str, choice(*DnsMode)] = Field(
        default=DnsMode.FILTER, description="Filter: a name that is not allowed does not resolve"
    )
    on_revoke: Annotated[str, choice(*OnRevoke)] = Field(
        default=OnRevoke.CUT, alias="onRevoke", description="live connections that are no longer allowed"
    )
    allow: list[AllowRule] = Field(default_factory=list, description="what the pods may reach")
    deny: list[DenyRule] = Field(default_factory=list, description="what they may not, whoever allows it")


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a policy document, for editors."""
    schema = Document.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "egressd policy"}
