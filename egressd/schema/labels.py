"""Kubernetes' names, labels and label selectors, checked by Kubernetes' own rules.

Source: k8s.io/apimachinery/pkg/util/validation (IsQualifiedName, IsValidLabelValue, IsDNS1123Label, IsDNS1123Subdomain)
and pkg/apis/meta/v1/validation (ValidateLabelSelector).
"""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import Field, ValidationInfo, field_validator

from egressd.model import LabelRequirement, LabelSelector
from egressd.schema.checks import Part, Reads
from egressd.schema.problem import did_you_mean, shown

__all__ = ["LabelKey", "LabelValue", "Namespace", "ObjectName", "Requirement", "Selector", "choice"]

_PIECE: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?\Z")
_DNS_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?\Z")
_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")
_RULE: Final = "at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends"


def _key(text: str) -> str:
    prefix, slash, name = text.rpartition("/")
    if len(name) > 63 or not _PIECE.match(name):
        raise ValueError(f"{shown(text)} is not a label key: the part after '/' must be {_RULE}")
    if slash and (len(prefix) > 253 or not _SUBDOMAIN.match(prefix)):
        raise ValueError(f"{shown(text)} is not a label key: the part before '/' must be a lower-case DNS name")
    return text


def _value(text: str) -> str:
    if text and (len(text) > 63 or not _PIECE.match(text)):
        raise ValueError(f"{shown(text)} is not a label value: it must be empty, or {_RULE}")
    return text


def _namespace(text: str) -> str:
    if len(text) > 63 or not _DNS_LABEL.match(text):
        raise ValueError(
            f"{shown(text)} is not a namespace: at most 63 lower-case letters, digits and '-', not '-' at its ends"
        )
    return text


def _object(text: str) -> str:
    if len(text) > 253 or not _SUBDOMAIN.match(text):
        raise ValueError(
            f"{shown(text)} is not an object's name: at most 253 lower-case letters, digits, '-' and '.', "
            "with a letter or digit at both ends"
        )
    return text


def choice(*choices: str) -> Reads:
    """A field: one of some words, in exactly this spelling."""
    choices = tuple(str(word) for word in choices)

    def read(text: str) -> str:
        if text not in choices:
            listed = ", ".join(choices)
            raise ValueError(f"{shown(text)} is none of {listed}{did_you_mean(text, choices)}")
        return text

    return Reads(read, {"type": "string", "enum": list(choices)})


LabelKey = Annotated[str, Reads(_key, {"type": "string", "maxLength": 317})]
LabelValue = Annotated[str, Reads(_value, {"type": "string", "maxLength": 63})]
Namespace = Annotated[
    str, Reads(_namespace, {"type": "string", "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"})
]
ObjectName = Annotated[str, Reads(_object, {"type": "string", "maxLength": 253})]


class Requirement(Part):
    """One entry of `matchExpressions`."""

    key: Annotated[LabelKey, Field(description="the label that is looked at")]
    operator: Annotated[
        str, choice("In", "NotIn", "Exists", "DoesNotExist"), Field(description="In, NotIn, Exists or DoesNotExist")
    ]
    values: list[LabelValue] = Field(default_factory=list, validate_default=True, description="for In and NotIn")

    @field_validator("values")
    @classmethod
    def _fit(cls, values: list[str], info: ValidationInfo) -> list[str]:
        operator = info.data.get("operator")
        if operator in {"In", "NotIn"} and not values:
            raise ValueError(f"operator {operator} needs 'values' with at least one value")
        if operator in {"Exists", "DoesNotExist"} and values:
            raise ValueError(f"operator {operator} takes no 'values'; remove them, or write In or NotIn")
        return values


class Selector(Part):
    """A Kubernetes label selector; everything in it must hold. An empty one selects everything."""

    labels: dict[LabelKey, LabelValue] = Field(
        default_factory=dict, alias="matchLabels", description="labels the object must have, with these values"
    )
    expressions: list[Requirement] = Field(
        default_factory=list, alias="matchExpressions", description="further conditions, which must all hold"
    )

    def compiled(self) -> LabelSelector:
        return LabelSelector(
            labels=tuple(sorted(self.labels.items())),
            expressions=tuple(LabelRequirement(e.key, e.operator, tuple(e.values)) for e in self.expressions),
        )
