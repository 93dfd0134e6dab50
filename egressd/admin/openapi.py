"""The OpenAPI document (3.1), made from the table of endpoints: it can say nothing that the server does not do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from egressd import __version__
from egressd.admin.problem import MEDIA_TYPE, ProblemDocument

if TYPE_CHECKING:
    from egressd.admin.endpoints import Endpoint
    from egressd.admin.parameters import Parameter

__all__ = ["document"]

_REFERENCE: Final = "#/components/schemas/{name}"
_ALWAYS: Final = (400, 405, 421, 500)
"""Problems of every endpoint: a parameter, the method, the Host header, a bug."""


def document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The whole document."""
    types = [endpoint.answer for endpoint in endpoints if not isinstance(endpoint.answer, str)]
    _, schemas = msgspec.json.schema_components([*types, ProblemDocument], ref_template=_REFERENCE)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "egressd admin API",
            "version": __version__,
            "description": "What happens on this node, why, and what would happen. Read-only.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {endpoint.path: {"get": _operation(endpoint)} for endpoint in endpoints},
        "components": {"schemas": schemas},
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    problem = {MEDIA_TYPE: {"schema": {"$ref": _REFERENCE.format(name=ProblemDocument.__name__)}}}
    refusals = {str(code): {"description": "a problem", "content": problem} for code in (*_ALWAYS, *endpoint.problems)}
    return {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "parameters": [_parameter(parameter) for parameter in endpoint.parameters],
        "responses": {"200": {"description": "the answer", "content": _content(endpoint)}, **refusals},
    }


def _content(endpoint: Endpoint) -> dict[str, Any]:
    if isinstance(endpoint.answer, str):
        kind = "object" if endpoint.answer == "application/json" else "string"
        return {endpoint.answer: {"schema": {"type": kind}}}
    return {"application/json": {"schema": {"$ref": _REFERENCE.format(name=endpoint.answer.__name__)}}}


def _parameter(parameter: Parameter) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": parameter.name,
        "in": "query",
        "description": parameter.help,
        "required": parameter.required,
        "schema": parameter.schema,
    }
    if parameter.examples:
        described["examples"] = {key: {"value": value} for key, value in parameter.examples.items()}
    return described
