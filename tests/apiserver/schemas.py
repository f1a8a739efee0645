"""Structural schemas and values that mostly fit them, made at random; and what a schema means, written down plainly.

`prune` and `fill` here are the rules of the Kubernetes documentation word by word, for comparison with the compiled ones.
"""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

from swarmtask.apiserver.schema_checks import path_text

Schema = dict[str, Any]
NAMES = ("a", "b", "name")
PLAIN = [{"type": "integer"}, {"type": "string"}]

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, width=32)
    | st.text('ab:"\\é', max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*NAMES, "other"]), inner, max_size=3),
    max_leaves=8,
)
_LEAVES: tuple[Schema, ...] = (
    {"type": "string"}, {"type": "string", "default": "d"}, {"type": "string", "default": ""}, {"type": "string", "minLength": 1},
    {"type": "string", "maxLength": 2}, {"type": "string", "pattern": "^a*$"}, {"type": "string", "enum": ["a", "b"]},
    {"type": "string", "enum": ["a", "b"], "default": "b", "nullable": True}, {"type": "string", "format": "date"},
    {"type": "string", "format": "unknown"}, {"type": "string", "enum": [], "nullable": True},
    {"type": "integer"}, {"type": "integer", "default": 1}, {"type": "integer", "minimum": 0, "maximum": 3}, {"type": "boolean"},
    {"type": "integer", "minimum": 0, "exclusiveMinimum": True, "default": 0}, {"type": "integer", "format": "int32"},
    {"type": "integer", "maximum": 1.5}, {"type": "integer", "multipleOf": 2}, {"type": "integer", "enum": [1, 2]},
    {"type": "number"}, {"type": "number", "nullable": True}, {"type": "number", "minimum": 0.5},
    {"type": "boolean", "default": True},
    {"x-kubernetes-preserve-unknown-fields": True}, {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    {"x-kubernetes-int-or-string": True}, {"x-kubernetes-int-or-string": True, "anyOf": PLAIN, "pattern": "^a*$"},
    {"x-kubernetes-int-or-string": True, "anyOf": PLAIN, "minimum": 0, "maxLength": 2}, {"type": "object"}, {"type": "array"},
    {"type": "string", "anyOf": [{"minLength": 2}, {"pattern": "^b"}]}, {"type": "integer", "not": {"minimum": 2}},
    {"type": "object", "additionalProperties": True}, {"type": "object", "additionalProperties": False},
)  # fmt: skip


@st.composite
def _objects(draw: st.DrawFn, inner: st.SearchStrategy[Schema]) -> Schema:
    properties = draw(st.dictionaries(st.sampled_from(NAMES), inner, max_size=3))
    schema: Schema = {"type": "object", "properties": properties}
    if properties and draw(st.booleans()):
        schema["required"] = draw(st.lists(st.sampled_from(sorted(properties)), unique=True, max_size=2))
    schema |= draw(st.sampled_from([
        {}, {}, {}, {"nullable": True}, {"default": {}}, {"default": {}}, {"x-kubernetes-preserve-unknown-fields": True},
        {"maxProperties": 2}, {"minProperties": 1, "default": {"a": "b"}}, {"default": {"a": "a"}, "nullable": True},
        {"additionalProperties": False}, {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, {"required": ["nowhere"]},
        {"x-kubernetes-map-type": "atomic"},
    ]))  # fmt: skip
    return schema


@st.composite
def _maps(draw: st.DrawFn, inner: st.SearchStrategy[Schema]) -> Schema:
    more = draw(st.sampled_from([{}, {}, {"maxProperties": 1}, {"minProperties": 1}, {"properties": {"a": {"type": "integer"}}}]))
    return {"type": "object", "additionalProperties": draw(inner), **more}


@st.composite
def _lists(draw: st.DrawFn, inner: st.SearchStrategy[Schema]) -> Schema:
    kind = draw(st.sampled_from(["", "", "atomic", "set", "map"]))
    schema: Schema = {"type": "array", "items": draw(inner)}
    if kind == "map":
        key = draw(st.sampled_from([{"type": "string"}, {"type": "string", "default": "d"}, {"type": "integer"}]))
        schema = {"type": "array", "x-kubernetes-list-map-keys": ["name"], "items": {
            "type": "object", "properties": {"name": key, "a": draw(inner)}}}  # fmt: skip
    if kind:
        schema["x-kubernetes-list-type"] = kind
    schema |= draw(st.sampled_from([{}, {}, {"maxItems": 2}, {"minItems": 1}, {"default": []}, {"uniqueItems": True}]))
    return schema


def schemas() -> st.SearchStrategy[Schema]:
    """Of one field, with most of what a structural schema may say; some say what makes no sense."""
    return st.recursive(
        st.sampled_from(_LEAVES).map(copy.deepcopy), lambda inner: _objects(inner) | _maps(inner) | _lists(inner), max_leaves=6
    )


@st.composite
def values(draw: st.DrawFn, schema: Schema) -> Any:
    """A value that mostly has the shape of the schema."""
    if draw(st.integers(0, 19)) == 0:
        return draw(json_values)
    if "enum" in schema and schema["enum"] and draw(st.booleans()):
        return draw(st.sampled_from(schema["enum"]))
    match schema.get("type"):
        case "string":
            return draw(st.text("ab", max_size=3) | st.just("2026-01-31"))
        case "integer":
            return draw(st.integers(-1, 4))
        case "number":
            return draw(st.integers(-1, 3) | st.floats(-1, 2))
        case "boolean":
            return draw(st.booleans())
        case "array":
            return draw(st.lists(values(schema.get("items") or {}), max_size=3))
        case "object":
            result = {}
            properties, extra = schema.get("properties") or {}, schema.get("additionalProperties")
            for name, child in properties.items():
                if draw(st.integers(0, 3)):
                    result[name] = draw(values(child))
            if isinstance(extra, dict):
                for name in draw(st.lists(st.sampled_from(["x", "y", *NAMES]), unique=True, max_size=2)):
                    result.setdefault(name, draw(values(extra)))
            if draw(st.integers(0, 19)) == 0:
                result["unknown"] = draw(json_values)
            return result
        case _:
            return draw(json_values)


# --- what a schema means -------------------------------------------------------------------------------------------------


def prune(schema: Schema, value: Any, path: Any = None) -> list[str]:
    """Remove in place what the schema does not name; the paths."""
    if isinstance(schema.get("items"), dict):
        if type(value) is not list:
            return []
        return [found for index, item in enumerate(value) for found in prune(schema["items"], item, (path, index))]
    properties, extra = schema.get("properties") or {}, schema.get("additionalProperties")
    if type(value) is not dict or not (schema.get("type") == "object" or properties or isinstance(extra, dict)):
        return []
    keeps = bool(schema.get("x-kubernetes-preserve-unknown-fields")) or extra is True or isinstance(extra, dict)
    gone = []
    for key in list(value):
        if key in properties:
            gone += prune(properties[key], value[key], (path, key))
        elif isinstance(extra, dict):
            gone += prune(extra, value[key], (path, key))
        elif not keeps:
            gone.append(path_text((path, key)))
            del value[key]
    return gone


def fill(schema: Schema, value: Any) -> None:
    """Fill defaults in place; a null that is not allowed is a default, or nothing."""
    items, properties = schema.get("items"), schema.get("properties") or {}
    if isinstance(items, dict):
        if type(value) is list:
            for index, item in enumerate(value):
                if item is None and "default" in items and not items.get("nullable"):
                    value[index] = copy.deepcopy(items["default"])
                fill(items, value[index])
        return
    if type(value) is not dict:
        return
    for name, child in properties.items():
        if name not in value and "default" in child:
            value[name] = copy.deepcopy(child["default"])
    for key in list(value):
        child = properties.get(key, schema.get("additionalProperties"))
        if not isinstance(child, dict):
            continue
        if value[key] is None and not child.get("nullable"):
            if "default" not in child:
                del value[key]
                continue
            value[key] = copy.deepcopy(child["default"])
        fill(child, value[key])
