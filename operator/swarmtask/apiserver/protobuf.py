"""Reads requests in Kubernetes' protobuf envelope into the same dicts that JSON gives.

Called by the routes for bodies of type `application/vnd.kubernetes.protobuf`: kubectl >= 1.32 and typed Go clients send built-in
kinds this way. Answers are JSON, which those clients accept. Only the wire format is known here; field numbers come from
`builtin_kinds`.
Source: the protobuf encoding specification; "Kubernetes Protobuf encoding" in the API concepts documentation.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson

from swarmtask.apiserver.bodies import check_size
from swarmtask.apiserver.builtin_kinds import MESSAGES
from swarmtask.apiserver.shapes import DELETE_OPTIONS, Field, Message
from swarmtask.errors import BadRequest, UnsupportedMediaType

MAGIC: Final = b"k8s\x00"
CONTENT_TYPE: Final = "application/vnd.kubernetes.protobuf"
MAX_DEPTH: Final = 32
MAX_BYTES: Final = 3 * 1024 * 1024

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def decode(body: bytes) -> dict[str, Any]:
    """The object inside an envelope, with apiVersion and kind.

    Raises:
        UnsupportedMediaType: the kind has no protobuf form here (custom resources never have one).
        BadRequest: the bytes are no such envelope, are cut off, or hold values that no field can have.
    """
    if len(body) > MAX_BYTES:
        raise BadRequest(f"the body is longer than {MAX_BYTES} bytes")
    if not body.startswith(MAGIC):
        raise BadRequest("the body is not a Kubernetes protobuf envelope: it does not start with k8s\\x00")
    api_version = kind = raw = content_type = encoding = b""
    for number, wire, value in _fields(body[len(MAGIC) :]):
        if wire != _BYTES or not isinstance(value, bytes):
            continue
        if number == 1:
            for inner, inner_wire, text in _fields(value):
                if inner_wire == _BYTES and isinstance(text, bytes):
                    api_version, kind = (text, kind) if inner == 1 else (api_version, text) if inner == 2 else (api_version, kind)
        elif number == 2:
            raw = value
        elif number == 3:
            encoding = value
        elif number == 4:
            content_type = value
    if encoding:
        raise UnsupportedMediaType(f"the content encoding {_text(encoding)!r} of the protobuf envelope is not supported")
    version, name = _text(api_version), _text(kind)
    if content_type == b"application/json":
        return _embedded_json(raw, version, name)
    message = DELETE_OPTIONS if name == "DeleteOptions" else MESSAGES.get((version, name))
    if message is None:
        raise UnsupportedMediaType(
            f"{version or 'an unnamed version'}, Kind={name or 'unnamed'} cannot be read from protobuf: send application/json"
        )
    return {"apiVersion": version, "kind": name, **_message(raw, message, 0)}


def _embedded_json(raw: bytes, version: str, kind: str) -> dict[str, Any]:
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the JSON inside the protobuf envelope cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise BadRequest("the JSON inside the protobuf envelope is not an object")
    check_size(value)
    return {"apiVersion": version, "kind": kind, **value}


def _fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """(field number, wire type, value) of each field; fixed-size values stay bytes."""
    position, end = 0, len(data)
    while position < end:
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise BadRequest("malformed protobuf: field number 0")
        if wire == _VARINT:
            value, position = _varint(data, position)
            yield number, wire, value
            continue
        if wire == _BYTES:
            length, position = _varint(data, position)
        elif wire == _FIXED64:
            length = 8
        elif wire == _FIXED32:
            length = 4
        else:
            raise BadRequest(f"malformed protobuf: wire type {wire} of field {number}")
        if length > end - position:
            raise BadRequest(f"malformed protobuf: field {number} is cut off ({length} bytes announced, {end - position} there)")
        yield number, wire, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise BadRequest("malformed protobuf: a number is cut off")
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            if result >= 1 << 64:
                break
            return result, position
    raise BadRequest("malformed protobuf: a number is longer than 64 bits")


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BadRequest("malformed protobuf: a text is not UTF-8") from None


def _message(data: bytes, message: Message, depth: int) -> dict[str, Any]:
    if depth > MAX_DEPTH:
        raise BadRequest(f"malformed protobuf: nested deeper than {MAX_DEPTH}")
    table = {item.number: item for item in message.fields}
    result: dict[str, Any] = {}
    for number, wire, value in _fields(data):
        item = table.get(number)
        if item is None:
            continue  # A field of a newer version: Kubernetes' own reader skips it as well.
        if item.many == "map":
            key, entry = _entry(_bytes(item, wire, value), item, depth)
            result.setdefault(item.name, {})[key] = entry
        elif item.many == "list":
            result.setdefault(item.name, []).append(_value(item, wire, value, depth))
        else:
            result[item.name] = _value(item, wire, value, depth)
    return {
        item.name: result[item.name]
        for item in message.fields
        if item.name in result and (item.pointer or item.many != "one" or not _is_zero(result[item.name]))
    }


def _is_zero(value: Any) -> bool:
    """Kubernetes writes zero values of plain fields too; in JSON they are left out."""
    return not value


def _bytes(item: Field, wire: int, value: int | bytes) -> bytes:
    if wire != _BYTES or not isinstance(value, bytes):
        raise BadRequest(f"malformed protobuf: field {item.name} has wire type {wire}")
    return value


def _entry(data: bytes, item: Field, depth: int) -> tuple[str, Any]:
    key, value = "", None
    for number, wire, part in _fields(data):
        if number == 1:
            key = _text(_bytes(item, wire, part))
        elif number == 2:
            value = _value(item, wire, part, depth)
    if value is None:
        value = [] if isinstance(item.type, Message) and item.type.list_wrapper else {} if isinstance(item.type, Message) else ""
    return key, value


def _value(item: Field, wire: int, value: int | bytes, depth: int) -> Any:
    kind = item.type
    if isinstance(kind, Message):
        inner = _message(_bytes(item, wire, value), kind, depth + 1)
        return inner.get(kind.fields[0].name, []) if kind.list_wrapper else inner
    if kind in ("int32", "int64", "bool"):
        if wire != _VARINT or not isinstance(value, int):
            raise BadRequest(f"malformed protobuf: field {item.name} has wire type {wire}")
        if kind == "bool":
            return value != 0
        number = value - (1 << 64) if value >= 1 << 63 else value
        if kind == "int32" and not -(1 << 31) <= number < 1 << 31:
            raise BadRequest(f"malformed protobuf: field {item.name} does not fit into 32 bits")
        return number
    data = _bytes(item, wire, value)
    if kind == "bytes":
        return base64.b64encode(data).decode()
    if kind in ("Time", "MicroTime"):
        return _time(item, data, micro=kind == "MicroTime")
    if kind == "FieldsV1":
        return _fields_v1(data)
    return _text(data)


def _time(item: Field, data: bytes, *, micro: bool) -> str | None:
    seconds = nanos = 0
    for number, wire, value in _fields(data):
        if wire == _VARINT and isinstance(value, int):
            signed = value - (1 << 64) if value >= 1 << 63 else value
            seconds, nanos = (signed, nanos) if number == 1 else (seconds, signed) if number == 2 else (seconds, nanos)
    if not data:
        return None
    try:
        moment = _EPOCH + timedelta(seconds=seconds, microseconds=nanos // 1000)
    except OverflowError:
        raise BadRequest(f"malformed protobuf: field {item.name} holds an impossible time") from None
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")


def _fields_v1(data: bytes) -> Any:
    for number, wire, value in _fields(data):
        if number == 1 and wire == _BYTES and isinstance(value, bytes):
            try:
                fields = orjson.loads(value)
            except orjson.JSONDecodeError as error:
                raise BadRequest(f"fieldsV1 cannot be read: {error}") from None
            check_size(fields)
            return fields
    return {}
