"""Holds a YAML tree against a pydantic model and says, in our words and at the right line, all that does not fit.

Models are strict (`Part`): a field takes what it says or it is an error. Fields whose text means something (a peer, a
port, a duration) are `Reads` over a plain function that raises `ValueError` with what to write instead.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, ErrorDetails, PydanticKnownError, core_schema

from egressd.errors import InvalidName
from egressd.schema.problem import MAX_PROBLEMS, Fault, did_you_mean, shown
from egressd.schema.tree import Node, Odd, Scalar, find, place, reading

__all__ = ["Lenient", "Location", "Part", "Reads", "complaints", "validate"]

Model = TypeVar("Model", bound=BaseModel)


class Part(BaseModel):
    """A mapping of a document that people write: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True)


class Lenient(BaseModel):
    """The part of a Kubernetes object that we read; other fields are none of our business, and null means absent."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, arbitrary_types_allowed=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


@dataclass(frozen=True, slots=True, eq=False)
class Reads:
    """Annotation of a field: text that `read` turns into a value, or refuses with `ValueError` or `InvalidName`.

    `others` are types that `read` takes as well (a port may be a number); `schema` is the field's JSON Schema.
    """

    read: Callable[[Any], Any]
    schema: Mapping[str, Any]
    others: tuple[type, ...] = ()

    def run(self, value: Any) -> Any:
        if type(value) not in self.others and not isinstance(value, str):
            raise PydanticKnownError("string_type")
        try:
            return self.read(value)
        except InvalidName as error:
            raise ValueError(str(error)) from None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.run)

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return dict(self.schema)


Location = tuple[int | str, ...]


def complaints(model: type[Model], value: Any, node: Node) -> tuple[Model | None, list[tuple[Location, Fault]]]:
    """Check `value`, the plain form of `node`: the model instance, or all that is wrong with it, by location."""
    try:
        return model.model_validate(value), []
    except ValidationError as failure:
        errors = failure.errors(include_url=False)
    found: list[tuple[Location, Fault]] = []
    for error in errors[: MAX_PROBLEMS + 1]:
        location = error["loc"]
        line, column = place(node, location, key=error["type"] == "extra_forbidden" or location[-1:] == ("[key]",))
        target, _, whole = find(node, location)
        found.append((location, Fault(line, column, _wording(model, error, target if whole else None))))
    return None, found


def validate(model: type[Model], value: Any, node: Node, faults: list[Fault]) -> Model | None:
    """The model instance, or None, and what is wrong is added to `faults`."""
    made, found = complaints(model, value, node)
    faults += [fault for _, fault in found]
    return made


# --------------------------------------------------------------------------------------------- wording

_READ_AS: Final = {bool: "a boolean", int: "a number"}


def _found(error: ErrorDetails, node: Node | None) -> str:
    """What stands in the document, for `expected …, found …`."""
    value = error["input"]
    if isinstance(node, Scalar) and node.plain and value is not None:
        return f"`{node.text[:60]}`"
    if isinstance(node, Scalar) and node.style in {"|", ">"}:
        return "a block of text"
    kinds = {dict: "a mapping", list: "a list", type(None): "nothing"}
    return kinds.get(type(value)) or shown(value.text if isinstance(value, Odd) else str(value))


def _not_text(error: ErrorDetails, node: Node | None) -> str:
    value = error["input"]
    kind = value.kind if isinstance(value, Odd) else _READ_AS.get(type(value))
    if kind is None:
        return f"expected text, found {_found(error, node)}"
    text = node.text if isinstance(node, Scalar) else str(value)
    return f'`{text[:60]}` is read as {kind}, where text is expected; quote it: "{text[:60]}"'


def _not_list(error: ErrorDetails, node: Node | None) -> str:
    if isinstance(node, Scalar) and reading(node.text) is not None and len(node.text) <= 60 and node.style != "|":
        return f"expected a list; write [{_quoted(node)}]"
    return f"expected a list, found {_found(error, node)}"


def _quoted(node: Scalar) -> str:
    bare = node.plain and not set(node.text) & set("*&!,[]{}#|>@`\"'%:")
    return node.text if bare else f'"{node.text}"'


def _unknown(model: type[BaseModel], error: ErrorDetails) -> str:
    name = str(error["loc"][-1])
    fields = _fields(model, error["loc"][:-1])
    near = did_you_mean(name, fields)
    return f"unknown field {shown(name)}{near or '; known here: ' + ', '.join(fields)}"


def _info(model: type[BaseModel], error: ErrorDetails) -> FieldInfo | None:
    where = _model_at(model, error["loc"][:-1])
    return where.model_fields.get(_field_name(where, str(error["loc"][-1])) or "") if where else None


def _missing(model: type[BaseModel], error: ErrorDetails) -> str:
    info = _info(model, error)
    return f"{str(error['loc'][-1])!r} is missing" + (f": {info.description}" if info and info.description else "")


def _too_short(model: type[BaseModel], error: ErrorDetails) -> str:
    info = _info(model, error)
    instead = "list at least one" if info and info.is_required() else "leave the field out, or list at least one"
    return f"{str(error['loc'][-1])!r} must not be empty; {instead}"


def _value(error: ErrorDetails) -> str:
    return str(error.get("ctx", {}).get("error", error["msg"]))


def _wording(model: type[BaseModel], error: ErrorDetails, node: Node | None) -> str:
    """Our sentence for one of pydantic's complaints."""
    kind = error["type"]
    if kind == "extra_forbidden":
        return _unknown(model, error)
    if kind == "missing":
        return _missing(model, error)
    table: Mapping[str, Callable[[], str]] = {
        "string_type": lambda: _not_text(error, node),
        "list_type": lambda: _not_list(error, node),
        "too_short": lambda: _too_short(model, error),
        "value_error": lambda: _value(error),
        "bool_type": lambda: f"expected true or false, found {_found(error, node)}",
        "int_type": lambda: f"expected a whole number, found {_found(error, node)}",
        "model_type": lambda: f"expected a mapping, found {_found(error, node)}",
        "dict_type": lambda: f"expected a mapping, found {_found(error, node)}",
    }
    words = table.get(kind)
    return words() if words else error["msg"]


# ------------------------------------------------------------------------------------- what a model knows


def _field_name(model: type[BaseModel], written: str) -> str | None:
    for name, info in model.model_fields.items():
        if written == (info.alias or name):
            return name
    return None


def _inner(annotation: Any, step: int | str) -> Any:
    """The type inside an annotation that a path step leads to, through unions, lists and mappings."""
    if get_origin(annotation) in {Union, types.UnionType}:
        for choice in get_args(annotation):
            if (inner := _inner(choice, step)) is not None:
                return inner
        return None
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        name = _field_name(annotation, str(step))
        return annotation.model_fields[name].annotation if name else None
    arguments = get_args(annotation)
    return arguments[-1] if get_origin(annotation) in {list, dict} and arguments else None


def _as_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for choice in get_args(annotation) if get_origin(annotation) in {Union, types.UnionType} else ():
        if isinstance(choice, type) and issubclass(choice, BaseModel):
            return choice
    return None


def _model_at(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel] | None:
    annotation: Any = model
    for step in location:
        annotation = _inner(annotation, step)
    return _as_model(annotation)


def _fields(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    where = _model_at(model, location)
    return [info.alias or name for name, info in where.model_fields.items()] if where else []
