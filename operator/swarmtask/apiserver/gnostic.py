"""Writes an OpenAPI v2 document in the protobuf form that kubectl 1.20 asks for (gnostic's `openapi.v2.Document`).

Called by `openapi.py`. Only the parts that our documents contain are encoded. Source: the protobuf encoding specification; field
numbers of gnostic's OpenAPIv2 schema.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from struct import pack
from typing import Any

import orjson


def encode_document(document: Mapping[str, Any]) -> bytes:
    """The bytes of a Document."""
    info = document["info"]
    return b"".join((
        _text(1, document["swagger"]),
        _bytes(2, _text(1, info["title"]) + _text(2, info["version"])),
        _bytes(8, b"".join(_named(2, path, _path_item(item)) for path, item in document["paths"].items())),
        _bytes(9, b"".join(_named(1, name, _schema(schema)) for name, schema in document["definitions"].items())),
    ))  # fmt: skip


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _bytes(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _text(number: int, value: Any) -> bytes:
    return _bytes(number, str(value).encode()) if value else b""


def _integer(number: int, value: int | None) -> bytes:
    return _varint(number << 3) + _varint(value) if value is not None else b""


def _flag(number: int, value: Any) -> bytes:
    return _integer(number, 1) if value else b""


def _double(number: int, value: float | None) -> bytes:
    return _varint(number << 3 | 1) + pack("<d", value) if value is not None else b""


def _named(number: int, name: str, value: bytes) -> bytes:
    """A NamedXxx entry: name and value."""
    return _bytes(number, _text(1, name) + _bytes(2, value))


def _any(value: Any) -> bytes:
    """An Any that carries YAML; JSON is YAML."""
    return _text(2, orjson.dumps(value).decode())


def _extensions(number: int, value: Mapping[str, Any]) -> bytes:
    return b"".join(_named(number, key, _any(item)) for key, item in value.items() if key.startswith("x-"))


def _texts(number: int, values: Iterable[str]) -> bytes:
    return b"".join(_bytes(number, item.encode()) for item in values)


_METHODS = {"get": 2, "put": 3, "post": 4, "delete": 5, "patch": 8}


def _path_item(item: Mapping[str, Any]) -> bytes:
    operations = b"".join(_bytes(_METHODS[method], _operation(item[method])) for method in _METHODS if method in item)
    return operations + b"".join(_bytes(9, _parameter(parameter)) for parameter in item.get("parameters", ()))


def _operation(operation: Mapping[str, Any]) -> bytes:
    responses = b"".join(
        _named(1, code, _bytes(1, _text(1, response["description"]) + _bytes(2, _bytes(1, _schema(response["schema"])))))
        for code, response in operation["responses"].items()
    )
    return b"".join((
        _text(3, operation["description"]),
        _text(5, operation["operationId"]),
        _texts(6, operation["produces"]),
        _texts(7, operation["consumes"]),
        b"".join(_bytes(8, _parameter(parameter)) for parameter in operation["parameters"]),
        _bytes(9, responses),
        _extensions(13, operation),
    ))  # fmt: skip


def _parameter(parameter: Mapping[str, Any]) -> bytes:
    """A ParametersItem that holds a Parameter."""
    description, name = parameter.get("description"), parameter["name"]
    where, required = parameter["in"], parameter.get("required")
    if where == "body":
        body = (
            _text(1, description) + _text(2, name) + _text(3, where) + _flag(4, required) + _bytes(5, _schema(parameter["schema"]))
        )
        return _bytes(1, _bytes(1, body))
    head = _flag(1, required) + _text(2, where) + _text(3, description) + _text(4, name)
    if where == "path":
        return _bytes(1, _bytes(2, _bytes(4, head + _text(5, parameter["type"]))))
    return _bytes(1, _bytes(2, _bytes(3, head + _text(6, parameter["type"]))))


def _schema(schema: Mapping[str, Any]) -> bytes:
    parts = [
        _text(1, schema.get("$ref")),
        _text(2, schema.get("format")),
        _text(4, schema.get("description")),
        _double(6, schema.get("multipleOf")),
        _double(7, schema.get("maximum")),
        _flag(8, schema.get("exclusiveMaximum")),
        _double(9, schema.get("minimum")),
        _flag(10, schema.get("exclusiveMinimum")),
        _integer(11, schema.get("maxLength")),
        _integer(12, schema.get("minLength")),
        _text(13, schema.get("pattern")),
        _integer(14, schema.get("maxItems")),
        _integer(15, schema.get("minItems")),
        _integer(17, schema.get("maxProperties")),
        _integer(18, schema.get("minProperties")),
        _texts(19, schema.get("required", ())),
        b"".join(_bytes(20, _any(value)) for value in schema.get("enum", ())),
    ]
    extra = schema.get("additionalProperties")
    if isinstance(extra, Mapping):
        parts.append(_bytes(21, _bytes(1, _schema(extra))))
    if "type" in schema:
        parts.append(_bytes(22, _text(1, schema["type"])))
    if isinstance(schema.get("items"), Mapping):
        parts.append(_bytes(23, _bytes(1, _schema(schema["items"]))))
    if schema.get("properties"):
        parts.append(_bytes(25, b"".join(_named(1, name, _schema(child)) for name, child in schema["properties"].items())))
    parts.append(_extensions(31, schema))
    return b"".join(parts)
