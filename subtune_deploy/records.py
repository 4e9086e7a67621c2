"""Strict conversion between plain JSON or TOML values and frozen dataclasses.

One reader serves recipes and manifests: every key is known, every value has the declared type, and what
does not fit is named by its place (`tasks[1].layers[0]`).
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from .errors import InputError, did_you_mean

Record = TypeVar("Record")


def to_record(kind: type[Record], value: object, place: str = "") -> Record:
    """Build the dataclass `kind` from a dictionary; raises InputError.

    Fields: str, int, float, bool, Any, Literal, X | None, unions that JSON can tell apart, tuple[X, ...],
    tuple[X, Y], Mapping[str, X], dataclasses.
    """
    if not isinstance(value, dict):
        raise _wrong(place, value, "a table")
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, kind))}
    for key in value:
        if key not in fields:
            raise InputError(f"unknown key {_join(place, key)!r}", did_you_mean(str(key), fields))
    for name, field in fields.items():
        if name not in value and _required(field):
            raise InputError(
                f"key {_join(place, name)!r} is missing", f"a complete record has {', '.join(fields)}"
            )
    hints = typing.get_type_hints(kind)
    return kind(**{key: _convert(hints[key], item, _join(place, key)) for key, item in value.items()})


def to_plain(value: object) -> Any:
    """The inverse: dataclasses and mappings become dictionaries, tuples become lists."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    return value


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(kind: Any, value: object, place: str) -> Any:
    origin = typing.get_origin(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _union(typing.get_args(kind), value, place)
    if origin is tuple:
        return _tuple(typing.get_args(kind), value, place)
    if origin is typing.Literal:
        return _literal(kind, value, place)
    if origin is not None:  # Mapping[str, X] and dict[str, X]
        if not isinstance(value, dict):
            raise _wrong(place, value, "a table")
        item = typing.get_args(kind)[1]
        return {str(key): _convert(item, each, _join(place, str(key))) for key, each in value.items()}
    if dataclasses.is_dataclass(kind):
        return to_record(typing.cast("type[Any]", kind), value, place)
    return _scalar(kind, value, place)


def _union(kinds: tuple[Any, ...], value: object, place: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    others = [kind for kind in kinds if kind is not type(None)]
    exact = [kind for kind in others if _fits(kind, value)]
    if len(others) == 1 or exact:
        return _convert((exact or others)[0], value, place)
    raise _wrong(place, value, " or ".join(map(_named, others)))


def _fits(kind: Any, value: object) -> bool:
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return value in typing.get_args(kind)
    return isinstance(value, list) if origin is tuple else type(value) is kind


def _named(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(kind)))
    return "a list" if typing.get_origin(kind) is tuple else str(kind.__name__)


def _literal(kind: Any, value: object, place: str) -> object:
    if value not in typing.get_args(kind):
        raise _wrong(place, value, _named(kind))
    return value


def _tuple(kinds: tuple[Any, ...], value: object, place: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _wrong(place, value, "a list")
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise _wrong(place, value, f"a list of {len(kinds)}")
    return tuple(
        _convert(kind, each, f"{place}[{i}]") for i, (kind, each) in enumerate(zip(kinds, value, strict=True))
    )


def _scalar(kind: type, value: object, place: str) -> object:
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:  # a bool is no int here
        raise _wrong(
            place, value, {"str": "text", "int": "a whole number", "bool": "true or false"}.get(kind.__name__)
        )
    return value


def _wrong(place: str, value: object, expected: str | None) -> InputError:
    given = repr(value) if len(repr(value)) <= 60 else f"a {type(value).__name__}"
    return InputError(f"{place or 'the document'} is {given}", f"give {expected or 'a number'}")


def _join(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


_JSON = {str: "string", int: "integer", float: "number", bool: "boolean"}


def json_schema(kind: Any) -> dict[str, Any]:
    """JSON Schema of what `to_record` takes for a dataclass, or for one of the types that fields may have."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return {}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [json_schema(each) for each in arguments]}
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return {"type": "array", "items": json_schema(arguments[0])}
        return {"type": "array", "prefixItems": [json_schema(each) for each in arguments], "items": False}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin is not None:
        return {"type": "object", "additionalProperties": json_schema(arguments[1])}
    if dataclasses.is_dataclass(kind):
        return _object(kind)
    return {"type": "null" if kind is type(None) else _JSON[kind]}


def _object(kind: Any) -> dict[str, Any]:
    hints, fields = typing.get_type_hints(kind), dataclasses.fields(kind)
    return {
        "type": "object",
        "properties": {field.name: json_schema(hints[field.name]) for field in fields},
        "required": [field.name for field in fields if _required(field)],
        "additionalProperties": False,
    }
