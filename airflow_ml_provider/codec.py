"""JSON to frozen dataclasses and back, and the JSON Schema of a dataclass. Standard library only.

The same few rules serve specs and results that cross a process border, refs in XCom, and the YAML configuration of
DAG templates: a wrong type, an unknown key or a missing key is an error that names the place and the nearest key.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any, Literal, TypeVar, Union

from airflow_ml_provider.exceptions import SpecError, invalid, unknown_name

T = TypeVar("T")

_UNIONS = {Union, getattr(types, "UnionType", Union)}
_SCALARS: dict[type, str] = {str: "string", bool: "boolean", int: "integer", float: "number"}


def encode(value: Any) -> Any:
    """Return `value` as plain JSON types; dataclasses with a `kind` carry it so that `decode` can tell them apart."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        body = {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
        kind = getattr(type(value), "kind", None)
        return {"kind": kind, **body} if kind else body
    if isinstance(value, Mapping):
        return {str(k): encode(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(v) for v in value]
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise invalid("datetime", value.isoformat(), "one with a time zone")
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise invalid("value", value, "JSON types, datetimes, mappings, sequences or dataclasses of them")


def decode(cls: type[T], data: Any, where: str = "") -> T:
    """Return `data` (from JSON or YAML) as an instance of `cls`.

    Raises:
        SpecError: wrong type, unknown or missing key; the message starts with the path of the value.
    """
    return typing.cast("T", _decode(cls, data, where))


def canonical(value: Any) -> str:
    """Return the one JSON text of `value`: sorted keys, no spaces. Equal values give equal text."""
    return json.dumps(encode(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """Return `sha256:…` of the canonical JSON of `value`."""
    return "sha256:" + hashlib.sha256(canonical(value).encode()).hexdigest()


def json_schema(cls: type, title: str | None = None) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) that accepts what `decode(cls, …)` accepts."""
    defs: dict[str, Any] = {}
    body = _schema(cls, defs)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title or cls.__name__,
        **body,
        **({"$defs": defs} if defs else {}),
    }


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _expected(where: str, hint: object, data: object) -> SpecError:
    name = getattr(hint, "__name__", str(hint))
    return invalid(where or "value", data, f"of type {name}")


def _decode(hint: Any, data: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is object:
        return data
    if origin in _UNIONS:
        return _decode_union(args, data, where)
    if origin is Literal:
        if data not in args:
            raise invalid(where or "value", data, f"one of {', '.join(map(repr, args))}")
        return data
    if origin in (tuple, list):
        if isinstance(data, (str, bytes)) or not isinstance(data, (tuple, list)):
            raise _expected(where, "list", data)
        if origin is tuple and args and args[-1] is not Ellipsis:
            if len(args) != len(data):
                raise invalid(where or "value", data, f"a list of {len(args)}")
            return tuple(_decode(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, data)))
        items = [_decode(args[0] if args else Any, v, f"{where}[{i}]") for i, v in enumerate(data)]
        return tuple(items) if origin is tuple else items
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(data, Mapping):
            raise _expected(where, "mapping", data)
        return {str(k): _decode(args[1], v, f"{where}.{k}" if where else str(k)) for k, v in data.items()}
    if dataclasses.is_dataclass(hint):
        return _decode_dataclass(typing.cast("type", hint), data, where)
    return _decode_scalar(hint, data, where)


def _decode_scalar(hint: Any, data: Any, where: str) -> Any:
    if hint is type(None):
        if data is None:
            return None
    elif hint is datetime:
        return _datetime(data, where)
    elif hint is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    elif isinstance(data, hint) and not (isinstance(data, bool) and hint is not bool):
        return data
    raise _expected(where, hint, data)


def _datetime(data: Any, where: str) -> datetime:
    try:
        value = data if isinstance(data, datetime) else datetime.fromisoformat(str(data).replace("Z", "+00:00"))
    except ValueError:
        raise invalid(where or "value", data, "an ISO 8601 time such as 2013-01-05T00:00:00+00:00") from None
    if value.tzinfo is None:
        raise invalid(where or "value", data, "a time with a time zone", "append Z or an offset")
    return value


def _decode_union(args: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and type(None) in args:
        return None
    options = [a for a in args if a is not type(None)]
    if isinstance(data, Mapping) and "kind" in data:
        kinds = {getattr(a, "kind", None): a for a in options}
        if data["kind"] in kinds:
            return _decode(kinds[data["kind"]], data, where)
    classes = [a for a in options if dataclasses.is_dataclass(a)]
    if isinstance(data, Mapping) and len(classes) == 1:
        return _decode(classes[0], data, where)  # its own error says more than "none of these"
    errors = []
    for option in options:
        try:
            return _decode(option, data, where)
        except SpecError as error:
            errors.append(error)
    raise (
        errors[0]
        if len(errors) == 1
        else _expected(where, " or ".join(getattr(a, "__name__", str(a)) for a in options), data)
    )


def _decode_dataclass(cls: type, data: Any, where: str) -> Any:
    if isinstance(data, cls):
        return data
    if not isinstance(data, Mapping):
        raise _expected(where, cls, data)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    kind = getattr(cls, "kind", None)
    if kind and data.get("kind", kind) != kind:
        raise invalid(f"{where}.kind" if where else "kind", data["kind"], repr(kind))
    place = f"key in {where}" if where else "key"
    for key in data:
        if key not in fields and not (kind and key == "kind"):
            raise unknown_name(place, str(key), fields)
    missing = [name for name, f in fields.items() if _required(f) and name not in data]
    if missing:
        raise SpecError(f"{where or cls.__name__} lacks {', '.join(missing)}")
    hints = _hints(cls)
    values = {
        name: _decode(hints[name], data[name], f"{where}.{name}" if where else name) for name in fields if name in data
    }
    try:
        return cls(**values)
    except SpecError as error:
        raise (SpecError(f"{where}: {error}") if where else error) from None


def _schema(hint: Any, defs: dict[str, Any]) -> dict[str, Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is object:
        return {}
    if origin in _UNIONS:
        return {"anyOf": [_schema(a, defs) for a in args]}
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (tuple, list):
        if origin is tuple and args[-1] is not Ellipsis:
            return {
                "type": "array",
                "prefixItems": [_schema(a, defs) for a in args],
                "items": False,
                "minItems": len(args),
            }
        return {"type": "array", "items": _schema(args[0], defs)}
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _schema(args[1], defs)}
    if dataclasses.is_dataclass(hint):
        return _dataclass_schema(typing.cast("type", hint), defs)
    if hint is type(None):
        return {"type": "null"}
    if hint is datetime:
        return {"type": "string", "format": "date-time"}
    return {"type": _SCALARS[hint]}


def _dataclass_schema(cls: type, defs: dict[str, Any]) -> dict[str, Any]:
    if cls.__name__ not in defs:
        defs[cls.__name__] = {}
        hints, docs = _hints(cls), _field_docs(cls)
        properties: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            if not field.init:
                continue
            body = _schema(hints[field.name], defs)
            if field.name in docs:
                body["description"] = docs[field.name]
            if field.default is not dataclasses.MISSING and field.default is not None:
                body["default"] = encode(field.default)
            properties[field.name] = body
        defs[cls.__name__] = {
            "type": "object",
            "properties": properties,
            "required": [f.name for f in dataclasses.fields(cls) if f.init and _required(f)],
            "additionalProperties": False,
        }
    return {"$ref": f"#/$defs/{cls.__name__}"}


def _field_docs(cls: type) -> dict[str, str]:
    """Return the `name: text` lines of the docstring's Attributes section, and of those of the bases."""
    docs: dict[str, str] = {}
    for base in cls.__bases__:
        docs.update(_field_docs(base))
    inside, name = False, ""
    for line in (cls.__doc__ or "").splitlines():
        text = line.strip()
        if text == "Attributes:":
            inside = True
        elif inside and text:
            head, colon, tail = text.partition(":")
            if colon and head.isidentifier():
                name, docs[head] = head, tail.strip()
            elif name:
                docs[name] += " " + text
    return docs
