"""Rules for the schemas inside CRDs: structural, understood completely, and consistent in themselves.

Called by `crd_rules.py`. Answers causes; a schema that passes compiles in `schema.py` without an error.
Source: Kubernetes documentation, "Specifying a structural schema".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from swarmtask.apiserver.cel_rules import rule_causes
from swarmtask.apiserver.patterns import compile_pattern
from swarmtask.apiserver.schema import defaulted, pruned_paths
from swarmtask.apiserver.schema_checks import compile_check, shown
from swarmtask.errors import Cause

MAX_DEPTH: Final = 64
MAX_CAUSES: Final = 50
MAX_RULES: Final = 1_000
"""CEL rules of one schema: each costs up to a millisecond to look at."""
MAX_RULE_CHARS: Final = 200_000
"""Characters of all of them: reading a long one takes some 20 ms."""

_TYPES: Final = ("array", "boolean", "integer", "number", "object", "string")
_COMBINED: Final = ("allOf", "anyOf", "oneOf")
_VALUE_KEYS: Final = frozenset({
    "format", "maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum", "maxLength", "minLength", "pattern", "maxItems",
    "minItems", "uniqueItems", "multipleOf", "maxProperties", "minProperties", "required", "enum", "items", "properties", "not",
    *_COMBINED,
})  # fmt: skip
_SHAPE_KEYS: Final = frozenset({
    "type", "description", "title", "default", "nullable", "example", "externalDocs", "additionalProperties",
    "x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource", "x-kubernetes-int-or-string",
    "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-map-type",
    "x-kubernetes-validations",
})  # fmt: skip
_FORBIDDEN: Final[Mapping[str, str]] = {
    "$ref": "references are not allowed in a structural schema",
    "definitions": "not allowed in a structural schema",
    "dependencies": "not allowed in a structural schema",
    "patternProperties": "not allowed in a structural schema",
    "additionalItems": "not allowed in a structural schema",
    "id": "not allowed in a structural schema",
    "$schema": "not allowed in a structural schema",
    "discriminator": "not allowed in a structural schema",
    "readOnly": "not allowed in a structural schema",
    "writeOnly": "not allowed in a structural schema",
    "xml": "not allowed in a structural schema",
    "deprecated": "not allowed in a structural schema",
}
_COUNTS: Final = ("maxLength", "minLength", "maxItems", "minItems", "maxProperties", "minProperties")


def schema_causes(schema: Any, path: str) -> list[Cause]:
    """What is wrong with the schema of one version."""
    if not isinstance(schema, Mapping):
        return [_invalid(path, schema, "must be an object")]
    causes: list[Cause] = []
    for cause in _root(schema, path):
        causes.append(cause)
        if len(causes) >= MAX_CAUSES:
            break
    if not causes:
        causes += _defaults(schema, path)
        count, length = _rule_size(schema)
        if count > MAX_RULES or length > MAX_RULE_CHARS:
            why = f"a schema has at most {MAX_RULES} rules in x-kubernetes-validations, with {MAX_RULE_CHARS} characters in all"
            causes.append(_invalid(path, "...", why))
        else:
            causes += _rules(schema, path, root=True, correlatable=True)
    return causes[:MAX_CAUSES]


def _rule_size(schema: Mapping[str, Any]) -> tuple[int, int]:
    """How many CEL rules a schema has, and how long they are in characters."""
    rules = _listed(schema.get("x-kubernetes-validations"))
    count, length = len(rules), sum(len(str(value)) for rule in rules for value in _mapping(rule).values())
    for child in (*_mapping(schema.get("properties")).values(), schema.get("items"), schema.get("additionalProperties")):
        if isinstance(child, Mapping):
            more, longer = _rule_size(child)
            count, length = count + more, length + longer
    return count, length


def _invalid(path: str, value: Any, why: str) -> Cause:
    return Cause(path, "FieldValueInvalid", f"Invalid value: {shown(value)}: {why}")


def _forbidden(path: str, why: str) -> Cause:
    return Cause(path, "FieldValueForbidden", f"Forbidden: {why}")


def _root(schema: Mapping[str, Any], path: str) -> Iterator[Cause]:
    if schema.get("type") != "object":
        yield _invalid(f"{path}.type", schema.get("type"), "must be object at the root")
    if schema.get("nullable"):
        yield _forbidden(f"{path}.nullable", "nullable cannot be true at the root")
    metadata = (schema.get("properties") or {}).get("metadata") if isinstance(schema.get("properties"), Mapping) else None
    if isinstance(metadata, Mapping):
        extra = set(metadata) - {"type", "description", "properties", "title"}
        named = set(metadata.get("properties") or ()) - {"name", "generateName"}
        if extra or named:
            why = "must not specify anything other than name and generateName, but metadata is implicitly specified"
            yield _forbidden(f"{path}.properties[metadata]", why)
    yield from _structural(schema, path, 0)
    if schema.get("x-kubernetes-map-type") == "atomic":
        yield _forbidden(f"{path}.x-kubernetes-map-type", "the root is owned field by field")


def _structural(schema: Any, path: str, depth: int) -> Iterator[Cause]:
    """A node outside of value validations."""
    if not isinstance(schema, Mapping):
        yield _invalid(path, schema, "must be a schema")
        return
    if depth > MAX_DEPTH:
        yield _invalid(path, "...", f"schemas may be nested {MAX_DEPTH} levels deep")
        return
    yield from _keywords(schema, path, _VALUE_KEYS | _SHAPE_KEYS)
    yield from _type(schema, path)
    yield from _values(schema, path)
    yield from _lists(schema, path)
    yield from _objects(schema, path)
    for key in _COMBINED:
        for index, variant in enumerate(_listed(schema.get(key))):
            yield from _validation_only(variant, f"{path}.{key}[{index}]", schema, depth + 1)
    if "not" in schema:
        yield from _validation_only(schema["not"], f"{path}.not", schema, depth + 1)
    for name, child in _mapping(schema.get("properties")).items():
        yield from _structural(child, f"{path}.properties[{name}]", depth + 1)
    if "items" in schema:
        yield from _structural(schema["items"], f"{path}.items", depth + 1)
    if isinstance(schema.get("additionalProperties"), Mapping):
        yield from _structural(schema["additionalProperties"], f"{path}.additionalProperties", depth + 1)


def _defaults(schema: Mapping[str, Any], path: str) -> Iterator[Cause]:
    """The defaults of a schema that is structural."""
    if "default" in schema:
        yield from _default(schema, path)
    for name, child in _mapping(schema.get("properties")).items():
        yield from _defaults(child, f"{path}.properties[{name}]")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), Mapping):
            yield from _defaults(schema[key], f"{path}.{key}")


def _rules(schema: Mapping[str, Any], path: str, *, root: bool, correlatable: bool) -> Iterator[Cause]:
    """The CEL rules of a schema that is structural."""
    if "x-kubernetes-validations" in schema:
        yield from rule_causes(schema, path, root=root, correlatable=correlatable)
    for name, child in _mapping(schema.get("properties")).items():
        yield from _rules(child, f"{path}.properties[{name}]", root=False, correlatable=correlatable)
    if isinstance(schema.get("additionalProperties"), Mapping):
        yield from _rules(schema["additionalProperties"], f"{path}.additionalProperties", root=False, correlatable=correlatable)
    if isinstance(schema.get("items"), Mapping):
        keyed = correlatable and schema.get("x-kubernetes-list-type") == "map"
        yield from _rules(schema["items"], f"{path}.items", root=False, correlatable=keyed)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _keywords(schema: Mapping[str, Any], path: str, known: frozenset[str]) -> Iterator[Cause]:
    for key in schema:
        if key in _FORBIDDEN:
            yield _forbidden(f"{path}.{key}", _FORBIDDEN[key])
        elif key not in known:
            yield _forbidden(f"{path}.{key}", "this keyword is not known here, and would be ignored")


def _type(schema: Mapping[str, Any], path: str) -> Iterator[Cause]:
    kind, either = schema.get("type"), schema.get("x-kubernetes-int-or-string")
    if kind is not None and kind not in _TYPES:
        listed = ", ".join(f'"{item}"' for item in _TYPES)
        yield Cause(f"{path}.type", "FieldValueNotSupported", f"Unsupported value: {shown(kind)}: supported values: {listed}")
    if not kind and not either and not schema.get("x-kubernetes-preserve-unknown-fields"):
        yield Cause(f"{path}.type", "FieldValueRequired", "Required value: must not be empty for specified fields")
    if either and kind:
        yield _invalid(f"{path}.type", kind, "must be empty if x-kubernetes-int-or-string is true")
    if schema.get("x-kubernetes-embedded-resource") and kind != "object":
        yield _invalid(f"{path}.type", kind, "must be object if x-kubernetes-embedded-resource is true")
    for key in ("x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource", "x-kubernetes-int-or-string", "nullable"):
        if key in schema and not isinstance(schema[key], bool):
            yield _invalid(f"{path}.{key}", schema[key], "must be true or false")
    if schema.get("x-kubernetes-preserve-unknown-fields") is False:
        yield _invalid(f"{path}.x-kubernetes-preserve-unknown-fields", False, "must be true or not set")
    if schema.get("x-kubernetes-preserve-unknown-fields") and kind not in (None, "object"):
        yield _invalid(f"{path}.x-kubernetes-preserve-unknown-fields", True, "goes with type object only")


def _values(schema: Mapping[str, Any], path: str) -> Iterator[Cause]:
    """The keywords that restrict values are well-formed."""
    for key in _COUNTS:
        if key in schema and (type(schema[key]) is not int or schema[key] < 0):
            yield _invalid(f"{path}.{key}", schema[key], "must be a whole number that is not negative")
    for key in ("maximum", "minimum", "multipleOf"):
        if key in schema and type(schema[key]) not in (int, float):
            yield _invalid(f"{path}.{key}", schema[key], "must be a number")
    if type(schema.get("multipleOf")) in (int, float) and schema["multipleOf"] <= 0:
        yield _invalid(f"{path}.multipleOf", schema["multipleOf"], "must be greater than zero")
    for key in ("exclusiveMaximum", "exclusiveMinimum", "uniqueItems"):
        if key in schema and not isinstance(schema[key], bool):
            yield _invalid(f"{path}.{key}", schema[key], "must be true or false")
    if schema.get("uniqueItems") is True:
        yield _forbidden(f"{path}.uniqueItems", "uniqueItems cannot be set to true since the runtime complexity becomes quadratic")
    if "pattern" in schema:
        yield from _pattern(schema["pattern"], f"{path}.pattern")
    if "format" in schema and not isinstance(schema["format"], str):
        yield _invalid(f"{path}.format", schema["format"], "must be a text")
    if "enum" in schema and (not isinstance(schema["enum"], list) or not schema["enum"]):
        yield _invalid(f"{path}.enum", schema["enum"], "must be a list with at least one value")
    if "required" in schema and not (
        isinstance(schema["required"], list) and all(isinstance(name, str) for name in schema["required"])
    ):
        yield _invalid(f"{path}.required", schema["required"], "must be a list of field names")
    for key in _COMBINED:
        if key in schema and (not isinstance(schema[key], list) or not schema[key]):
            yield _invalid(f"{path}.{key}", schema[key], "must be a list with at least one schema")
    if "properties" in schema and not isinstance(schema["properties"], Mapping):
        yield _invalid(f"{path}.properties", schema["properties"], "must be an object")


def _pattern(pattern: Any, path: str) -> Iterator[Cause]:
    if not isinstance(pattern, str):
        yield _invalid(path, pattern, "must be a text")
        return
    try:
        compile_pattern(pattern)
    except ValueError as error:
        yield _invalid(path, pattern, f"must be a valid regular expression, but isn't: {error}")


def _objects(schema: Mapping[str, Any], path: str) -> Iterator[Cause]:
    extra = schema.get("additionalProperties")
    if "additionalProperties" in schema:
        if extra is False:
            yield _forbidden(f"{path}.additionalProperties", "must not be false: unknown fields are pruned anyway")
        elif extra is not True and not isinstance(extra, Mapping):
            yield _invalid(f"{path}.additionalProperties", extra, "must be a schema or true")
        if schema.get("properties"):
            yield _forbidden(f"{path}.additionalProperties", "additionalProperties and properties are mutual exclusive")
    if ("properties" in schema or "additionalProperties" in schema) and schema.get("type") not in ("object", None):
        yield _invalid(f"{path}.type", schema.get("type"), "must be object where fields are specified")
    if schema.get("x-kubernetes-map-type") not in (None, "granular", "atomic"):
        text = f'Unsupported value: {shown(schema["x-kubernetes-map-type"])}: supported values: "atomic", "granular"'
        yield Cause(f"{path}.x-kubernetes-map-type", "FieldValueNotSupported", text)
    if schema.get("x-kubernetes-map-type") is not None and schema.get("type") != "object":
        yield _invalid(f"{path}.type", schema.get("type"), "must be object if x-kubernetes-map-type is specified")


def _lists(schema: Mapping[str, Any], path: str) -> Iterator[Cause]:
    kind, keys = schema.get("x-kubernetes-list-type"), schema.get("x-kubernetes-list-map-keys")
    items = _mapping(schema.get("items"))
    if schema.get("type") == "array" and not isinstance(schema.get("items"), Mapping):
        yield Cause(f"{path}.items", "FieldValueRequired", "Required value: must be specified")
    if kind is None:
        if keys is not None:
            yield _forbidden(f"{path}.x-kubernetes-list-map-keys", "goes with x-kubernetes-list-type map only")
        return
    if kind not in ("atomic", "set", "map"):
        text = f'Unsupported value: {shown(kind)}: supported values: "atomic", "map", "set"'
        yield Cause(f"{path}.x-kubernetes-list-type", "FieldValueNotSupported", text)
    if schema.get("type") != "array":
        yield _invalid(f"{path}.type", schema.get("type"), "must be array if x-kubernetes-list-type is specified")
    if kind == "set" and items.get("type") == "object" and items.get("x-kubernetes-map-type") != "atomic":
        yield _invalid(f"{path}.items.x-kubernetes-map-type", items.get("x-kubernetes-map-type"), "must be atomic as item of a set")
    if kind == "set" and items.get("type") == "array" and items.get("x-kubernetes-list-type") not in (None, "atomic"):
        yield _invalid(
            f"{path}.items.x-kubernetes-list-type", items.get("x-kubernetes-list-type"), "must be atomic as item of a set"
        )
    if kind != "map":
        if keys is not None:
            yield _forbidden(f"{path}.x-kubernetes-list-map-keys", "goes with x-kubernetes-list-type map only")
        return
    if not isinstance(keys, list) or not keys:
        yield Cause(f"{path}.x-kubernetes-list-map-keys", "FieldValueRequired",
                    "Required value: must not be empty if x-kubernetes-list-type is map")  # fmt: skip
        return
    if items.get("type") != "object":
        yield _invalid(f"{path}.items.type", items.get("type"), "must be object if the list type is map")
    for index, key in enumerate(keys):
        where = f"{path}.x-kubernetes-list-map-keys[{index}]"
        child = _mapping(items.get("properties")).get(key) if isinstance(key, str) else None
        if not isinstance(child, Mapping):
            yield _invalid(where, key, "entries must all be names of item properties")
        elif child.get("type") in ("array", "object"):
            yield _invalid(where, key, "must name a property of a scalar type")
        elif key not in _listed(items.get("required")) and "default" not in child:
            yield Cause(f"{path}.items.properties[{key}].default", "FieldValueRequired",
                        "Required value: a key of x-kubernetes-list-map-keys must have a default or be required")  # fmt: skip
    if len({key for key in keys if isinstance(key, str)}) != len(keys):
        yield _invalid(f"{path}.x-kubernetes-list-map-keys", keys, "must not contain duplicate entries")


def _validation_only(schema: Any, path: str, shape: Mapping[str, Any], depth: int) -> Iterator[Cause]:
    """A schema inside allOf, anyOf, oneOf or not: it restricts values of fields that are specified outside of it."""
    if not isinstance(schema, Mapping):
        yield _invalid(path, schema, "must be a schema")
        return
    if depth > MAX_DEPTH:
        yield _invalid(path, "...", f"schemas may be nested {MAX_DEPTH} levels deep")
        return
    for key in schema:
        either = key == "type" and shape.get("x-kubernetes-int-or-string") and schema["type"] in ("integer", "string")
        if key in _FORBIDDEN:
            yield _forbidden(f"{path}.{key}", _FORBIDDEN[key])
        elif key not in _VALUE_KEYS and not either:
            yield _forbidden(f"{path}.{key}", "must be empty to be structural: it belongs outside of allOf, anyOf, oneOf and not")
    yield from _values(schema, path)
    for name, child in _mapping(schema.get("properties")).items():
        outer = _mapping(shape.get("properties")).get(name)
        if outer is None and isinstance(shape.get("additionalProperties"), Mapping):
            outer = shape["additionalProperties"]
        if outer is None:
            yield Cause(f"{path}.properties[{name}]", "FieldValueRequired",
                        "Required value: must be specified outside of allOf, anyOf, oneOf and not as well")  # fmt: skip
        else:
            yield from _validation_only(child, f"{path}.properties[{name}]", _mapping(outer), depth + 1)
    if "items" in schema:
        yield from _validation_only(schema["items"], f"{path}.items", _mapping(shape.get("items")), depth + 1)
    for key in _COMBINED:
        for index, variant in enumerate(_listed(schema.get(key))):
            yield from _validation_only(variant, f"{path}.{key}[{index}]", shape, depth + 1)
    if "not" in schema:
        yield from _validation_only(schema["not"], f"{path}.not", shape, depth + 1)


def _default(schema: Mapping[str, Any], path: str) -> Iterator[Cause]:
    """A default must itself be valid, once its own defaults are filled."""
    value = defaulted(schema, schema["default"])
    unknown = pruned_paths(schema, value)
    if unknown:
        yield _invalid(f"{path}.default", schema["default"], f"unknown fields: {', '.join(unknown)}")
    found: list[Cause] = []
    compile_check(schema)(value, None, found)
    for cause in found[:5]:
        yield _invalid(f"{path}.default{'.' + cause.field if cause.field else ''}", schema["default"], cause.message)
