"""Compiles a structural schema into one checking closure per node.

Called by `schema.py` only. A check appends causes and returns nothing; a path is a linked pair that becomes text only when
something is wrong, so that a valid object costs little. Patterns run on a linear-time engine: a hostile pattern cannot stall the
server.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from swarmtask.apiserver.formats import FORMATS
from swarmtask.apiserver.patterns import compile_pattern
from swarmtask.errors import Cause

Path = tuple[Any, str | int] | None
Check = Callable[[Any, Path, list[Cause]], None]

MAX_CAUSES: Final = 100
"""An object with more faults than this is not searched any further: the answer must stay readable."""
_SHOWN: Final = 200
KEY_SHOWN: Final = 256
PATH_SHOWN: Final = 2048

_TYPE_NAMES: Final[Mapping[type, str]] = {
    str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array", type(None): "null",
}  # fmt: skip


def path_text(path: Path) -> str:
    """`spec.container.env[0].name`. Long keys and paths are cut: a key of a megabyte would be told with each field below it."""
    parts: list[str] = []
    while path is not None:
        path, key = path
        parts.append(f"[{key}]" if isinstance(key, int) else f".{cut(key, KEY_SHOWN)}")
    return cut("".join(reversed(parts)).removeprefix("."), PATH_SHOWN)


def cut(text: str, limit: int) -> str:
    """So many characters of it; whether there were more is seen."""
    return text if len(text) <= limit else text[:limit] + "..."


def shown(value: Any) -> str:
    """A value as a message quotes it; long ones are cut."""
    if isinstance(value, float) and not math.isfinite(value):
        text = str(value)
    else:
        try:
            text = orjson.dumps(value).decode()
        except TypeError:
            text = str(value)  # An integer beyond 64 bits.
    return cut(text, _SHOWN)


def type_invalid(path: Path, expected: str, value: Any) -> Cause:
    where, given = path_text(path), _TYPE_NAMES.get(type(value), "object")
    name = where or "<root>"
    text = f'Invalid value: "{given}": {name} in body must be of type {expected}: "{given}"'
    return Cause(where, "FieldValueTypeInvalid", text)


def value_invalid(path: Path, value: Any, why: str) -> Cause:
    where = path_text(path)
    return Cause(where, "FieldValueInvalid", f"Invalid value: {shown(value)}: {where} in body {why}")


def copy_json(value: Any) -> Any:
    """A deep copy of a JSON value."""
    if type(value) is dict:
        return {key: copy_json(item) for key, item in value.items()}
    if type(value) is list:
        return [copy_json(item) for item in value]
    return value


def compile_check(schema: Mapping[str, Any]) -> Check:
    """The check of one node and all below it."""
    nullable = bool(schema.get("nullable"))
    checks = [check for check in (_enum(schema), *_combinations(schema)) if check is not None]
    body = _typed(schema)

    def check(value: Any, path: Path, out: list[Cause]) -> None:
        if value is None and nullable:
            return
        body(value, path, out)
        for rule in checks:
            rule(value, path, out)

    if not checks:
        if not nullable:
            return body

        def check_nullable(value: Any, path: Path, out: list[Cause]) -> None:
            if value is not None:
                body(value, path, out)

        return check_nullable
    return check


def _typed(schema: Mapping[str, Any]) -> Check:
    if schema.get("x-kubernetes-int-or-string"):
        return _int_or_string(schema)
    kind = schema.get("type")
    if kind == "string":
        return _string(schema)
    if kind in ("integer", "number"):
        return _number(schema, integer=kind == "integer")
    if kind == "boolean":
        return _boolean
    if kind == "array":
        return _array(schema)
    if kind == "object":
        return _object(schema)
    return _untyped(schema)


def _boolean(value: Any, path: Path, out: list[Cause]) -> None:
    if value is not True and value is not False:
        out.append(type_invalid(path, "boolean", value))


def _int_or_string(schema: Mapping[str, Any]) -> Check:
    rest = {key: value for key, value in schema.items() if key != "x-kubernetes-int-or-string"}
    text, number = _string({**rest, "format": ""}), _number({**rest, "format": ""}, integer=True)

    def check(value: Any, path: Path, out: list[Cause]) -> None:
        if type(value) is str:
            text(value, path, out)
        elif type(value) is int:
            number(value, path, out)
        else:
            out.append(type_invalid(path, "integer,string", value))

    return check


def _untyped(schema: Mapping[str, Any]) -> Check:
    """A node without a type: inside anyOf and its like, or with preserved unknown fields."""
    by_type: dict[type, Check] = {
        str: _string(schema), dict: _object(schema), list: _array(schema),
        int: _number(schema, integer=False), float: _number(schema, integer=False),
    }  # fmt: skip

    def check(value: Any, path: Path, out: list[Cause]) -> None:
        rule = by_type.get(type(value))
        if rule is not None:
            rule(value, path, out)

    return check


def _string(schema: Mapping[str, Any]) -> Check:
    longest, shortest = schema.get("maxLength"), schema.get("minLength")
    pattern = schema.get("pattern")
    matches = compile_pattern(pattern) if pattern else None
    name = str(schema.get("format") or "")
    fits = FORMATS.get(name)

    def check(value: Any, path: Path, out: list[Cause]) -> None:
        if type(value) is not str:
            out.append(type_invalid(path, "string", value))
            return
        if longest is not None and len(value) > longest:
            out.append(Cause(path_text(path), "FieldValueTooLong", f"Too long: may not be more than {longest} bytes"))
            return
        if shortest is not None and len(value) < shortest:
            out.append(value_invalid(path, value, f"should be at least {shortest} chars long"))
        if matches is not None and not matches(value):
            out.append(value_invalid(path, value, f"should match '{pattern}'"))
        if name == "byte" and fits is not None and not fits(value):
            # Not quoted: what stands in such a field of a Secret is secret, also if it was not encoded.
            out.append(Cause(path_text(path), "FieldValueInvalid", "Invalid value: the value is not valid base64"))
        elif fits is not None and not fits(value):
            out.append(value_invalid(path, value, f"must be of type {name}: {shown(value)}"))

    return check


INT_RANGES: Final[Mapping[str, tuple[int, int]]] = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}


def _number(schema: Mapping[str, Any], *, integer: bool) -> Check:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = bool(schema.get("exclusiveMinimum")), bool(schema.get("exclusiveMaximum"))
    step = schema.get("multipleOf")
    name = schema.get("format") if schema.get("format") in INT_RANGES else "int64"
    least, most = INT_RANGES[str(name)]

    def check(value: Any, path: Path, out: list[Cause]) -> None:
        if type(value) is int:
            if integer and not least <= value <= most:
                out.append(value_invalid(path, value, f"must be of type {name}: {shown(str(value))}"))
                return
        elif type(value) is not float or not math.isfinite(value) or (integer and not _is_whole(value)):
            out.append(type_invalid(path, "integer" if integer else "number", value))
            return
        if low is not None and (value <= low if above else value < low):
            out.append(value_invalid(path, value, f"should be greater than {'' if above else 'or equal to '}{shown(low)}"))
        if high is not None and (value >= high if below else value > high):
            out.append(value_invalid(path, value, f"should be less than {'' if below else 'or equal to '}{shown(high)}"))
        if step is not None and not _is_multiple(value, step):
            out.append(value_invalid(path, value, f"should be a multiple of {shown(step)}"))

    return check


def _is_whole(value: float) -> bool:
    return value.is_integer() and abs(value) < 2**63


def _is_multiple(value: float, step: float) -> bool:
    if type(value) is int and type(step) is int:
        return value % step == 0
    quotient = value / step
    return math.isfinite(quotient) and abs(quotient - round(quotient)) < 1e-9 * max(1.0, abs(quotient))


def _array(schema: Mapping[str, Any]) -> Check:
    items = schema.get("items")
    check_item = compile_check(items) if isinstance(items, Mapping) else None
    most, least = schema.get("maxItems"), schema.get("minItems")
    unique = bool(schema.get("uniqueItems")) or schema.get("x-kubernetes-list-type") == "set"
    keys = tuple(schema.get("x-kubernetes-list-map-keys") or ()) if schema.get("x-kubernetes-list-type") == "map" else ()
    key_defaults = {
        key: ((items or {}).get("properties") or {}).get(key, {}).get("default") for key in keys
    }  # fmt: skip

    def check(value: Any, path: Path, out: list[Cause]) -> None:
        if type(value) is not list:
            out.append(type_invalid(path, "array", value))
            return
        if most is not None and len(value) > most:
            text = f"Too many: {len(value)}: must have at most {most} items"
            out.append(Cause(path_text(path), "FieldValueTooMany", text))
            return
        if least is not None and len(value) < least:
            out.append(value_invalid(path, len(value), f"should have at least {least} items"))
        if check_item is not None:
            for index, item in enumerate(value):
                check_item(item, (path, index), out)
                if len(out) > MAX_CAUSES:
                    return
        if unique and len(value) > 1:
            _duplicates(value, [identity(item) for item in value], path, out)
        elif keys and len(value) > 1:
            shown_keys = [
                {key: item.get(key, key_defaults[key]) for key in keys} if type(item) is dict else item for item in value
            ]  # fmt: skip
            _duplicates(shown_keys, [identity(item) for item in shown_keys], path, out)

    return check


def identity(value: Any) -> Any:
    """Of a member of a set: hashable, equal for equal JSON values (1 and 1.0 are equal, 1 and true are not)."""
    if type(value) is str:
        return value
    if type(value) is dict:
        return ("object", frozenset((key, identity(item)) for key, item in value.items()))
    if type(value) is list:
        return ("array", tuple(identity(item) for item in value))
    return (type(value) is bool, value is None, value)


def _duplicates(quoted: list[Any], identities: list[Any], path: Path, out: list[Cause]) -> None:
    seen = set()
    for index, (value, identity) in enumerate(zip(quoted, identities, strict=True)):
        if identity in seen:
            out.append(Cause(path_text((path, index)), "FieldValueDuplicate", f"Duplicate value: {shown(value)}"))
            if len(out) > MAX_CAUSES:
                return
        seen.add(identity)


def _object(schema: Mapping[str, Any]) -> Check:
    properties = {name: compile_check(child) for name, child in (schema.get("properties") or {}).items()}
    required = tuple(schema.get("required") or ())
    extra = schema.get("additionalProperties")
    check_extra = compile_check(extra) if isinstance(extra, Mapping) else None
    refuses_extra = extra is False
    most, least = schema.get("maxProperties"), schema.get("minProperties")
    bounded = most is not None or least is not None

    def check(value: Any, path: Path, out: list[Cause]) -> None:
        if type(value) is not dict:
            out.append(type_invalid(path, "object", value))
            return
        if bounded:
            if most is not None and len(value) > most:
                text = f"Too many: {len(value)}: must have at most {most} items"
                out.append(Cause(path_text(path), "FieldValueTooMany", text))
                return
            if least is not None and len(value) < least:
                out.append(value_invalid(path, len(value), f"should have at least {least} properties"))
        for name in required:
            if name not in value:
                out.append(Cause(path_text((path, name)), "FieldValueRequired", "Required value"))
        for key, item in value.items():
            rule = properties.get(key)
            if rule is None:
                if refuses_extra:
                    out.append(Cause(path_text((path, key)), "FieldValueForbidden", "Forbidden: this field is not allowed"))
                    if len(out) > MAX_CAUSES:
                        return
                    continue
                rule = check_extra
            if rule is not None:
                rule(item, (path, key), out)
                if len(out) > MAX_CAUSES:
                    return

    return check


def _enum(schema: Mapping[str, Any]) -> Check | None:
    values = schema.get("enum")
    if values is None:
        return None
    allowed = {identity(value) for value in values}
    listed = ", ".join(shown(value) for value in values)

    def check(value: Any, path: Path, out: list[Cause]) -> None:
        if identity(value) not in allowed:
            text = f"Unsupported value: {shown(value)}: supported values: {listed}"
            out.append(Cause(path_text(path), "FieldValueNotSupported", text))

    return check


def _combinations(schema: Mapping[str, Any]) -> list[Check | None]:
    if schema.get("x-kubernetes-int-or-string") and plain_int_or_string(schema):
        schema = {key: value for key, value in schema.items() if key != "anyOf"}
    return [
        _counted(schema, "anyOf", lambda hits, total: hits > 0, "must validate at least one schema (anyOf)"),
        _counted(schema, "oneOf", lambda hits, total: hits == 1, "must validate one and only one schema (oneOf)"),
        _counted(schema, "allOf", lambda hits, total: hits == total, "must validate all the schemas (allOf)"),
        _not(schema),
    ]


def plain_int_or_string(schema: Mapping[str, Any]) -> bool:
    """It has the customary anyOf of integer and string, which says nothing that the marker does not say."""
    return bool(schema.get("anyOf") == [{"type": "integer"}, {"type": "string"}])


def _counted(schema: Mapping[str, Any], name: str, holds: Callable[[int, int], bool], why: str) -> Check | None:
    variants = schema.get(name)
    if not variants:
        return None
    checks = [compile_check(variant) for variant in variants]

    def check(value: Any, path: Path, out: list[Cause]) -> None:
        hits = 0
        best: list[Cause] | None = None
        for rule in checks:
            found: list[Cause] = []
            rule(value, path, found)
            if not found:
                hits += 1
            elif best is None or len(found) < len(best):
                best = found
        if holds(hits, len(checks)):
            return
        detail = f". Found {hits} valid alternatives" if hits and name == "oneOf" else ""
        where = path_text(path)
        out.append(Cause(where, "FieldValueInvalid", f'Invalid value: {shown(value)}: "{where}" {why}{detail}'))
        if not hits and best:
            out.extend(best)

    return check


def _not(schema: Mapping[str, Any]) -> Check | None:
    variant = schema.get("not")
    if variant is None:
        return None
    rule = compile_check(variant)

    def check(value: Any, path: Path, out: list[Cause]) -> None:
        found: list[Cause] = []
        rule(value, path, found)
        if not found:
            where = path_text(path)
            text = f'Invalid value: {shown(value)}: "{where}" must not validate the schema (not)'
            out.append(Cause(where, "FieldValueInvalid", text))

    return check
