"""A structural schema as one native validator that only says yes or "look closer".

Called by `schema.py`, once per schema. Nearly every write brings a valid object without unknown fields, and that is all that is
found out here: nothing of it would be pruned, and with the defaults filled in it is valid. Whatever is not accepted is looked at
again by the closures of `schema` and `schema_checks`, which decide and find the words: this may refuse too much, and must never
accept too much. Nodes that have no native counterpart ask those closures at once.

The engine is pydantic-core, which the models and the patterns run on, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from pydantic_core import SchemaError, SchemaValidator, core_schema

from swarmtask.apiserver.formats import FORMATS
from swarmtask.apiserver.patterns import rewritten
from swarmtask.apiserver.schema_checks import INT_RANGES, Path, compile_check, copy_json, identity, plain_int_or_string
from swarmtask.errors import Cause

_Core = core_schema.CoreSchema

NODE_LIMIT: Final = 5_000
"""Larger schemas are left to the closures: a validator takes about 2 kB for each node."""
_COMBINATIONS: Final = ("anyOf", "oneOf", "allOf", "not")
_LARGEST: Final = 2**62


class _TooLarge(Exception):
    """The schema has more nodes than NODE_LIMIT."""


class Closures(Protocol):
    """What `schema.py` compiles a node into."""

    def prune(self, schema: Mapping[str, Any]) -> Callable[[Any, Path, list[str]], None] | None:
        """Removes unknown fields, and tells their paths."""
        ...

    def fill(self, schema: Mapping[str, Any]) -> Callable[[Any], None] | None:
        """Fills in defaults."""
        ...


def compile_acceptance(schema: Mapping[str, Any], closures: Closures) -> Callable[[Any], bool]:
    """A function that accepts only values of which pruning takes nothing, and with which `compile_check(schema)` finds nothing
    wrong once the defaults have been filled in."""
    compiler = _Compiler(closures)
    try:
        core = compiler.node(schema)
        definitions = core_schema.definitions_schema(core, list(compiler.shared.values()))
        return SchemaValidator(definitions).isinstance_python
    except (SchemaError, _TooLarge):
        return _look_closer


def _look_closer(value: Any) -> bool:
    return False


class _Compiler:
    """Of one schema. What is used in many places is kept once.

    Attributes:
        shared: strings by what they must be, each with a reference.
    """

    def __init__(self, closures: Closures) -> None:
        self._closures = closures
        self.shared: dict[tuple[Any, ...], _Core] = {}
        self._nodes = 0

    def node(self, schema: Mapping[str, Any]) -> _Core:
        self._nodes += 1
        if self._nodes > NODE_LIMIT:
            raise _TooLarge
        core = self._native(schema)
        if core is None:
            return self._asked(schema)
        return core_schema.nullable_schema(core) if schema.get("nullable") else core

    def _native(self, schema: Mapping[str, Any]) -> _Core | None:
        """The schema of a value that is not null; None where the closures have to be asked."""
        combined = any(schema.get(name) is not None for name in _COMBINATIONS)
        if schema.get("x-kubernetes-int-or-string"):
            return None if combined and not _only_plain(schema) else self._int_or_string(schema)
        if combined:
            return None
        kind = schema.get("type")
        if kind == "string":
            return self._string(schema, str(schema.get("format") or ""))
        if schema.get("enum") is not None:
            return None
        if kind == "integer":
            return _integer(schema)
        if kind == "number":
            bounded = any(schema.get(name) is not None for name in ("minimum", "maximum", "multipleOf"))
            return None if bounded else core_schema.float_schema(strict=True, allow_inf_nan=False)
        if kind == "boolean":
            return core_schema.bool_schema(strict=True)
        if kind == "array":
            return self._array(schema)
        if kind == "object":
            return self._object(schema)
        return None

    def _string(self, schema: Mapping[str, Any], form: str) -> _Core | None:
        values = schema.get("enum")
        bounds = (schema.get("minLength"), schema.get("maxLength"))
        pattern, fits = schema.get("pattern"), FORMATS.get(form)
        if values is not None:
            plain = bounds == (None, None) and not pattern and fits is None
            listed = plain and bool(values) and all(type(value) is str for value in values)
            return core_schema.literal_schema(list(values)) if listed else None
        if not all(_is_size(bound) for bound in bounds):
            return None
        key = (pattern, form if fits is not None else "", *bounds)
        if key not in self.shared:
            core: _Core = core_schema.str_schema(
                pattern=rewritten(pattern) if pattern else None, regex_engine="rust-regex", min_length=bounds[0],
                max_length=bounds[1], strict=True,
            )  # fmt: skip
            if fits is not None:
                core = core_schema.no_info_after_validator_function(_insisting(fits), core)
            core = {**core, "ref": f"s{len(self.shared)}"}
            self.shared[key] = core
        return core_schema.definition_reference_schema(self.shared[key]["ref"])

    def _int_or_string(self, schema: Mapping[str, Any]) -> _Core | None:
        if schema.get("enum") is not None:
            return None
        text, number = self._string(schema, ""), _integer({**schema, "format": ""})
        if text is None or number is None:
            return None
        return core_schema.union_schema([text, number], mode="left_to_right")

    def _array(self, schema: Mapping[str, Any]) -> _Core | None:
        most, least = schema.get("maxItems"), schema.get("minItems")
        if not (_is_size(most) and _is_size(least)):
            return None
        items = schema.get("items")
        inner = self.node(items) if isinstance(items, Mapping) else None
        core = core_schema.list_schema(inner, min_length=least, max_length=most, strict=True)
        if schema.get("uniqueItems") or schema.get("x-kubernetes-list-type") == "set":
            if isinstance(items, Mapping) and self._closures.fill(items) is not None:
                return None  # items that differ now may be the same with their defaults
            return core_schema.no_info_after_validator_function(_all_different, core)
        keys = schema.get("x-kubernetes-list-map-keys") if schema.get("x-kubernetes-list-type") == "map" else None
        if not keys:
            return core
        properties = (items or {}).get("properties") or {}
        defaults = {key: properties.get(key, {}).get("default") for key in keys}
        if any(type(default) in (dict, list) for default in defaults.values()):
            return None
        return core_schema.no_info_after_validator_function(_keys_different(defaults), core)

    def _object(self, schema: Mapping[str, Any]) -> _Core | None:
        properties, required, extra = (
            schema.get("properties") or {},
            schema.get("required") or (),
            schema.get("additionalProperties"),
        )
        keeps = bool(schema.get("x-kubernetes-preserve-unknown-fields")) or extra is True or isinstance(extra, Mapping)
        if "items" in schema or any(name not in properties for name in required):
            return None
        bounds = schema.get("minProperties"), schema.get("maxProperties")
        if keeps and not properties:
            values = self.node(extra) if isinstance(extra, Mapping) else None
            sizes = all(_is_size(bound) for bound in bounds)
            return core_schema.dict_schema(None, values, min_length=bounds[0], max_length=bounds[1], strict=True) if sizes else None
        if bounds != (None, None):
            return None
        fields = {
            name: core_schema.typed_dict_field(self.node(child), required=self._must_be_given(name in required, child))
            for name, child in properties.items()
        }
        if isinstance(extra, Mapping):
            return core_schema.typed_dict_schema(fields, strict=True, extras_schema=self.node(extra), extra_behavior="allow")
        return core_schema.typed_dict_schema(fields, strict=True, extra_behavior="ignore" if keeps else "forbid")

    def _must_be_given(self, required: bool, schema: Mapping[str, Any]) -> bool:
        """Where a field has a default that is valid, nobody has to give it."""
        if "default" not in schema:
            return required
        value = copy_json(schema["default"])
        fill = self._closures.fill(schema)
        if fill is not None:
            fill(value)
        causes: list[Cause] = []
        compile_check(schema)(value, None, causes)
        return bool(causes)

    def _asked(self, schema: Mapping[str, Any]) -> _Core:
        """A node that the closures decide on."""
        check, prune, fill = compile_check(schema), self._closures.prune(schema), self._closures.fill(schema)
        nullable = bool(schema.get("nullable"))

        def ask(value: Any) -> Any:
            if value is None and not nullable:
                raise ValueError("counts as missing")
            changed = value if prune is None and fill is None else copy_json(value)
            unknown: list[str] = []
            if prune is not None:
                prune(changed, None, unknown)
            if fill is not None:
                fill(changed)
            causes: list[Cause] = []
            check(changed, None, causes)
            if causes or unknown:
                raise ValueError("look closer")
            return value

        return core_schema.no_info_plain_validator_function(ask)


def _is_size(bound: Any) -> bool:
    return bound is None or (type(bound) is int and 0 <= bound < _LARGEST)


def _only_plain(schema: Mapping[str, Any]) -> bool:
    """Its only combination is the customary anyOf, which says nothing."""
    return plain_int_or_string(schema) and not any(schema.get(name) is not None for name in _COMBINATIONS if name != "anyOf")


def _integer(schema: Mapping[str, Any]) -> _Core | None:
    """Integers alone; a float that is whole is for the closures."""
    low, high = schema.get("minimum"), schema.get("maximum")
    if schema.get("multipleOf") is not None or any(
        bound is not None and (type(bound) is not int or abs(bound) > _LARGEST) for bound in (low, high)
    ):
        return None
    least, most = INT_RANGES[schema["format"] if schema.get("format") in INT_RANGES else "int64"]
    if low is not None:
        least = max(least, low + 1 if schema.get("exclusiveMinimum") else low)
    if high is not None:
        most = min(most, high - 1 if schema.get("exclusiveMaximum") else high)
    return core_schema.int_schema(ge=least, le=most, strict=True)


def _insisting(holds: Callable[[str], bool]) -> Callable[[str], str]:
    def insist(value: str) -> str:
        if not holds(value):
            raise ValueError("the format is another")
        return value

    return insist


def _all_different(value: list[Any]) -> list[Any]:
    if len(value) > 1 and len({identity(item) for item in value}) != len(value):
        raise ValueError("an item is there twice")
    return value


def _keys_different(defaults: Mapping[str, Any]) -> Callable[[list[Any]], list[Any]]:
    """`defaults`: of the keys of the list's items, None where there is none."""
    pairs = tuple(defaults.items())

    def insist(value: list[Any]) -> list[Any]:
        if len(value) > 1:
            seen = {tuple([identity(item.get(key, default)) for key, default in pairs]) for item in value if type(item) is dict}
            if len(seen) != len(value):
                raise ValueError("a key is there twice")
        return value

    return insist
