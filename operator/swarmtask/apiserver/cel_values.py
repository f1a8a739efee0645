"""What an expression sees of an object: the declared shape of a schema, and JSON values as CEL values.

Called by `cel_scan.py` (which fields exist) and `cel_rules.py` (values and samples). Only what a schema declares can be named:
preserved unknown fields, and of `metadata` everything but name and generateName, cannot. Evaluates nothing.
Source: Kubernetes documentation, "Validation rules": types by schema, escaping of field names, access to metadata.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

import orjson

from swarmtask.apiserver.formats import FORMATS
from swarmtask.apiserver.schema_checks import shown

Kind = Literal["object", "map", "list", "string", "integer", "number", "boolean", "timestamp", "duration", "bytes", "dyn"]

_RESERVED: Final = frozenset({
    "true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if", "import", "let", "loop",
    "package", "namespace", "return", "var", "void", "while",
})  # fmt: skip
_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FORMATS: Final[Mapping[str, Kind]] = {
    "date": "timestamp", "date-time": "timestamp", "datetime": "timestamp", "duration": "duration", "byte": "bytes",
}  # fmt: skip
_DURATION_PART: Final = re.compile(r"([0-9.]+) ?([a-zµμ]+)")
_UNIT_SECONDS: Final[Mapping[str, float]] = {
    "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800,
    "second": 1, "seconds": 1, "minute": 60, "minutes": 60, "hour": 3600, "hours": 3600, "day": 86400, "days": 86400,
    "week": 604800, "weeks": 604800,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """One node as expressions see it.

    Attributes:
        fields: of an object: name in expressions -> (name in JSON, shape).
        element: of a list or map.
        keys: of a list: the fields that identify an item (list type map), ("",) for a set, empty where order has a meaning.
        open: of an object: it keeps fields that the schema does not name. No expression can name them either, but two values that
            differ in them are not equal.
        optional: an optional value (`oldSelf` where optionalOldSelf is set), not the value itself.
    """

    kind: Kind
    fields: Mapping[str, tuple[str, Shape]] = field(default_factory=dict)
    element: Shape | None = None
    enum: tuple[Any, ...] = ()
    keys: tuple[str, ...] = ()
    open: bool = False
    optional: bool = False

    def holds_keys(self) -> bool:
        """It is, or has in it, a list whose order has no meaning."""
        below = [child for _, child in self.fields.values()]
        return bool(self.keys) or any(child.holds_keys() for child in ([*below, self.element] if self.element else below))


_WHOLE: Final = ("",)
_UNNAMED: Final = "\0"
"""Begins the names of fields that the schema does not name: no expression can spell them."""
_UNREADABLE: Final = f"{_UNNAMED}unreadable"
TEXT: Final = Shape("string")


class Meter:
    """Measures a value while it is converted: what the cost of an expression depends on.

    Attributes:
        values: all values in it.
        width: items of the largest list or map.
        text: characters of the longest string.
        unreadable: of the last string that is not what its format says: what is wrong with it. Empty: there is none.
    """

    __slots__ = ("text", "unreadable", "values", "width")

    def __init__(self) -> None:
        self.values = 0
        self.width = 1
        self.text = 1
        self.unreadable = ""


def escape(name: str) -> str | None:
    """The name by which an expression reaches a field; None where it cannot be reached."""
    if name in _RESERVED:
        return f"__{name}__"
    text = name.replace("__", "__underscores__").replace(".", "__dot__").replace("-", "__dash__").replace("/", "__slash__")
    return text if _IDENTIFIER.fullmatch(text) else None


def shape_of(schema: Mapping[str, Any], *, root: bool = False) -> Shape | None:
    """What an expression sees of a structural node; None where it sees nothing. `root`: of a whole object."""
    if schema.get("x-kubernetes-int-or-string"):
        return Shape("dyn")
    kind = schema.get("type")
    enum = tuple(schema.get("enum") or ())
    if kind == "string":
        format_ = _FORMATS.get(str(schema.get("format")))
        return Shape(format_) if format_ else Shape("string", enum=enum)
    if kind == "array":
        element = shape_of(schema["items"]) if isinstance(schema.get("items"), Mapping) else None
        return Shape("list", element=element, keys=_keys(schema)) if element is not None else None
    if kind == "object":
        return _object_shape(schema, root)
    if kind in ("integer", "number", "boolean"):
        return Shape(kind, enum=enum)
    return None


def _keys(schema: Mapping[str, Any]) -> tuple[str, ...]:
    if schema.get("x-kubernetes-list-type") == "set":
        return _WHOLE
    return tuple(schema.get("x-kubernetes-list-map-keys") or ()) if schema.get("x-kubernetes-list-type") == "map" else ()


def _object_shape(schema: Mapping[str, Any], root: bool) -> Shape | None:
    extra = schema.get("additionalProperties")
    properties: dict[str, Any] = dict(schema.get("properties") or {})
    if isinstance(extra, Mapping):
        element = shape_of(extra)
        return Shape("map", element=element) if element is not None else None
    if root or schema.get("x-kubernetes-embedded-resource"):
        names = {"name": {"type": "string"}, "generateName": {"type": "string"}}
        properties |= {
            "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object", "properties": names},
        }  # fmt: skip
    fields = {}
    for name, child in properties.items():
        escaped, shape = escape(name), shape_of(child) if isinstance(child, Mapping) else None
        if escaped is not None and shape is not None:
            fields[escaped] = (name, shape)
    return Shape("object", fields, open=bool(schema.get("x-kubernetes-preserve-unknown-fields")) or extra is True)


def to_cel(shape: Shape, value: Any, meter: Meter) -> Any:
    """A JSON value as the library takes it: valid, or let pass because it stays as it was stored (`ratcheting`)."""
    meter.values += 1
    if value is None:
        return None
    kind = shape.kind
    if kind == "object" and type(value) is dict:
        result = {
            escaped: to_cel(child, value[name], meter) for escaped, (name, child) in shape.fields.items() if name in value
        }  # fmt: skip
        if shape.open:
            _add_unnamed(result, shape, value, meter)
        return result
    if kind == "map" and type(value) is dict and shape.element is not None:
        meter.width = max(meter.width, len(value))
        return {key: to_cel(shape.element, item, meter) for key, item in value.items()}
    if kind == "list" and type(value) is list and shape.element is not None:
        meter.width = max(meter.width, len(value))
        return [to_cel(shape.element, item, meter) for item in value]
    if kind == "number" and type(value) is int:
        return float(value)
    if kind == "integer" and type(value) is float:
        return int(value)
    if type(value) is str:
        meter.text = max(meter.text, len(value))
        if kind in ("timestamp", "duration", "bytes"):
            return _read(kind, value, meter)
    return value


def _read(kind: Kind, text: str, meter: Meter) -> Any:
    """A time or bytes. What cannot be read is a map with one field that no expression can spell: equal to itself alone, and no
    operator or function takes it. Only the rules that use it fail, and it can be repaired beside all others."""
    try:
        if kind == "bytes":
            return base64.b64decode(text.replace("\r", "").replace("\n", ""), validate=True)
        return timestamp(text) if kind == "timestamp" else duration(text)
    except ValueError:
        meter.unreadable = f"{shown(text)} cannot be read as {'' if kind == 'bytes' else 'a '}{kind}"
        return {_UNREADABLE: text}


def _add_unnamed(result: dict[str, Any], shape: Shape, value: Mapping[str, Any], meter: Meter) -> None:
    """What the schema does not name, as it is."""
    named = {name for name, _ in shape.fields.values()}
    for name, item in value.items():
        if name not in named:
            meter.values += _count(item)
            result[_UNNAMED + name] = item


def _count(value: Any) -> int:
    below = value.values() if type(value) is dict else value if type(value) is list else ()
    return 1 + sum(map(_count, below))


def aligned(shape: Shape, new: Any, old: Any) -> Any:
    """The old JSON value with its sets and keyed lists in the order of the new one, where they hold the same items.

    Order has no meaning there: `self == oldSelf` must hold for a set whose items were only written in another order.
    """
    if shape.kind == "object" and type(new) is dict and type(old) is dict:
        changed = {
            name: aligned(child, new[name], old[name]) for name, child in shape.fields.values() if name in new and name in old
        }  # fmt: skip
        return {**old, **changed}
    if shape.kind == "map" and shape.element is not None and type(new) is dict and type(old) is dict:
        return {key: aligned(shape.element, new[key], item) if key in new else item for key, item in old.items()}
    if shape.element is None or not shape.keys or type(new) is not list or type(old) is not list:
        return old
    found = {_identity(item, shape.keys): item for item in old}
    wanted = [_identity(item, shape.keys) for item in new]
    if len(found) != len(old) or set(wanted) != found.keys() or len(wanted) != len(old):
        return old
    return [aligned(shape.element, item, found[identity]) for item, identity in zip(new, wanted, strict=True)]


def _identity(item: Any, keys: tuple[str, ...]) -> bytes:
    if keys != _WHOLE and type(item) is dict:
        item = [item.get(key) for key in keys]
    return orjson.dumps(item, option=orjson.OPT_SORT_KEYS)


def timestamp(text: str) -> datetime:
    """RFC 3339, or a date alone; more than microseconds are cut off. Raises ValueError."""
    moment = datetime.fromisoformat(text.upper().replace(":60", ":59") if len(text) > 10 else text)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def duration(text: str) -> timedelta:
    """`1h30m`, `-5s`, `3 days`. Raises ValueError."""
    if not FORMATS["duration"](text):
        raise ValueError(f"{shown(text)} is not a duration")
    sign = -1 if text.startswith("-") else 1
    seconds = sum(float(number) * _UNIT_SECONDS[unit] for number, unit in _DURATION_PART.findall(text))
    try:
        return timedelta(seconds=sign * seconds)
    except OverflowError:
        raise ValueError(f"the duration {text} is too long") from None


_SAMPLES: Final[Mapping[Kind, Any]] = {
    "string": "a", "integer": 1, "number": 1.0, "boolean": True, "timestamp": datetime(2000, 1, 1, tzinfo=UTC),
    "duration": timedelta(seconds=1), "bytes": b"a", "dyn": "1",
}  # fmt: skip


def sample(shape: Shape) -> Any:
    """A value of the shape with every field set and one item in every list and map."""
    if shape.kind == "object":
        return {escaped: sample(child) for escaped, (_, child) in shape.fields.items()}
    if shape.element is not None:
        return {"a": sample(shape.element)} if shape.kind == "map" else [sample(shape.element)]
    fitting = next((value for value in shape.enum if isinstance(value, str | int | float)), None)
    if fitting is not None:
        return float(fitting) if shape.kind == "number" else fitting
    return _SAMPLES[shape.kind]
