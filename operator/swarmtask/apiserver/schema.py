"""Structural schemas at work: prune unknown fields, fill defaults, validate with Kubernetes' messages.

Called on every create, update and patch (admission), so a schema is compiled once into closures: one per node and task, none
where a node has nothing to do. Never fetches a type, never raises for a strange object: it reports causes.
Sources: Kubernetes documentation, "Extend the Kubernetes API with CustomResourceDefinitions"; messages as kubectl prints them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from swarmtask.apiserver.acceptance import compile_acceptance
from swarmtask.apiserver.cel_evaluation import MISSING, compile_rules
from swarmtask.apiserver.cel_expression import Budget
from swarmtask.apiserver.ratcheting import Ratchet
from swarmtask.apiserver.schema_checks import Check, Path, compile_check, copy_json, path_text
from swarmtask.apiserver.shapes import OBJECT_META, schema_of
from swarmtask.apiserver.types import ResourceType
from swarmtask.errors import Cause, Invalid

Prune = Callable[[Any, Path, list[str]], None]
Fill = Callable[[Any], None]

_ROOT: tuple[str, ...] = ("apiVersion", "kind", "metadata")
MAX_PRUNED = 100
"""Fields dropped of one object that are told; as many as Kubernetes' own decoder collects. All of them are dropped."""


class Structural:
    """One compiled schema. Thread-safe: nothing changes after construction but what is compiled late."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        root = _with_object_meta(schema, top=True)
        self._prune = _compile_prune(root)
        self._fill = _compile_fill(root)
        self._check: Check = compile_check(root)
        self.accepts = compile_acceptance(root, _CLOSURES)
        """Accepts only objects that `prune` would leave as they are, and that are valid with their defaults; see `acceptance`."""
        self._rules = compile_rules(schema)
        self._schema = schema
        self._ratchet: Ratchet | None = None

    def prune(self, obj: dict[str, Any]) -> list[str]:
        """Remove, in place, the fields that the schema does not name; the paths (`spec.container.imge`) of the first `MAX_PRUNED`,
        sorted."""
        found: list[str] = []
        if self._prune is not None:
            self._prune(obj, None, found)
        return sorted(found)

    def default(self, obj: dict[str, Any]) -> None:
        """Fill defaults in place. A null where null is not allowed counts as missing."""
        if self._fill is not None:
            self._fill(obj)

    def validate(self, obj: Mapping[str, Any], old: Mapping[str, Any] | None = None) -> list[Cause]:
        """What is wrong, in the order of the schema; empty when the object is valid. Its defaults must have been filled in.

        Args:
            old: what is stored, at an update: values that stay as they are there are let pass (`ratcheting`).
        """
        causes: list[Cause] = []
        if not self.accepts(obj):
            self._check(obj, None, causes)
        if causes and old is not None:
            if self._ratchet is None:
                self._ratchet = Ratchet(_with_object_meta(self._schema, top=True))
            causes = self._ratchet.left(causes, obj, old)
        return causes

    def evaluate(self, obj: Mapping[str, Any], old: Mapping[str, Any] | None) -> list[Cause]:
        """Which of the schema's rules (CEL) the object breaks. It must be valid, but for what `validate` has let pass.

        Args:
            old: what is stored, None at create.
        """
        causes: list[Cause] = []
        if self._rules is not None:
            self._rules(obj, MISSING if old is None else old, None, Budget(), causes)
        return causes


class _Closures:
    """How nodes are compiled here, for `acceptance`."""

    def prune(self, schema: Mapping[str, Any]) -> Prune | None:
        return _compile_prune(schema)

    def fill(self, schema: Mapping[str, Any]) -> Fill | None:
        return _compile_fill(schema)


_CLOSURES = _Closures()
_compiled: dict[int, tuple[Mapping[str, Any], Structural]] = {}


def structural_of(rt: ResourceType) -> Structural | None:
    """The compiled schema of a type; None where any object is allowed."""
    return compiled(rt.schema) if rt.schema is not None else None


def compiled(schema: Mapping[str, Any]) -> Structural:
    """A compiled schema, kept as long as the schema object lives."""
    entry = _compiled.get(id(schema))
    if entry is None or entry[0] is not schema:
        if len(_compiled) > 1024:
            _compiled.clear()
        entry = _compiled[id(schema)] = (schema, Structural(schema))
    return entry[1]


def defaulted(schema: Mapping[str, Any], value: Any) -> Any:
    """A copy of a value of one node, with the defaults below it filled."""
    result = copy_json(value)
    fill = _compile_fill(schema)
    if fill is not None:
        fill(result)
    return result


def pruned_paths(schema: Mapping[str, Any], value: Any) -> list[str]:
    """The paths of a value of one node that the schema does not name, the first `MAX_PRUNED`."""
    found: list[str] = []
    prune = _compile_prune(schema)
    if prune is not None:
        prune(copy_json(value), None, found)
    return sorted(found)


def invalid(rt: ResourceType, name: str, causes: Sequence[Cause]) -> Invalid:
    """The 422 that Kubernetes answers for these causes."""
    kind = f"{rt.kind}.{rt.group}" if rt.group else rt.kind
    texts = [f"{cause.field}: {cause.message}" if cause.field else cause.message for cause in causes]
    unique = list(dict.fromkeys(texts))
    body = unique[0] if len(unique) == 1 else "[" + ", ".join(unique) + "]"
    return Invalid(
        f'{kind} "{name}" is invalid: {body}',
        details={"name": name, "group": rt.group, "kind": rt.kind},
        causes=causes,
    )


def _with_object_meta(schema: Mapping[str, Any], *, top: bool = False) -> dict[str, Any]:
    """The schema with apiVersion, kind and metadata as every whole object has them, at the root and at embedded resources."""
    result = dict(schema)
    if top or result.get("x-kubernetes-embedded-resource"):
        meta = schema_of(OBJECT_META)
        meta["properties"].pop("managedFields")
        meta["properties"]["managedFields"] = {"type": "array", "nullable": True, "items": _OPEN}
        own = (result.get("properties") or {}).get("metadata") or {}
        for name, child in (own.get("properties") or {}).items():
            if name in ("name", "generateName"):
                meta["properties"][name] = {**meta["properties"][name], **child}
        result["type"] = "object"
        result["properties"] = {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            **(result.get("properties") or {}),
            "metadata": meta,
        }
        if not top:
            result["required"] = sorted({*(result.get("required") or ()), "apiVersion", "kind"})
    if result.get("properties"):
        result["properties"] = {
            name: child
            if name == "metadata" and (top or result.get("x-kubernetes-embedded-resource"))
            else _with_object_meta(child)
            for name, child in result["properties"].items()
        }
    for key in ("items", "additionalProperties"):
        if isinstance(result.get(key), Mapping):
            result[key] = _with_object_meta(result[key])
    return result


_OPEN: Mapping[str, Any] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


# --- pruning -------------------------------------------------------------------------------------------------------------


def _compile_prune(schema: Mapping[str, Any]) -> Prune | None:
    items = schema.get("items")
    if isinstance(items, Mapping):
        prune_item = _compile_prune(items)
        return None if prune_item is None else _prune_items(prune_item)
    extra = schema.get("additionalProperties")
    keeps = bool(schema.get("x-kubernetes-preserve-unknown-fields")) or extra is True
    prune_extra = _compile_prune(extra) if isinstance(extra, Mapping) else None
    if isinstance(extra, Mapping):
        keeps = True
    properties = {name: _compile_prune(child) for name, child in (schema.get("properties") or {}).items()}
    if keeps and prune_extra is None and not any(properties.values()):
        return None
    if schema.get("type") != "object" and not properties and prune_extra is None:
        return None
    return _prune_object(properties, keeps, prune_extra)


def _prune_items(prune_item: Prune) -> Prune:
    def prune(value: Any, path: Path, found: list[str]) -> None:
        if type(value) is list:
            for index, item in enumerate(value):
                prune_item(item, (path, index), found)

    return prune


def _prune_object(properties: Mapping[str, Prune | None], keeps: bool, prune_extra: Prune | None) -> Prune:
    names = properties.keys()
    steps = tuple((name, step) for name, step in properties.items() if step is not None)

    def prune(value: Any, path: Path, found: list[str]) -> None:
        if type(value) is not dict:
            return
        if not names >= value.keys():
            if not keeps:
                for key in [key for key in value if key not in names]:
                    if len(found) < MAX_PRUNED:
                        found.append(path_text((path, key)))
                    del value[key]
            elif prune_extra is not None:
                for key, child in value.items():
                    if key not in names:
                        prune_extra(child, (path, key), found)
        for name, step in steps:
            if name in value:
                step(value[name], (path, name), found)

    return prune


# --- defaults ------------------------------------------------------------------------------------------------------------

_MISSING: Any = object()


class _Rule(NamedTuple):
    """What is done with one field.

    Attributes:
        made: makes the default, with the defaults below it; None where there is none.
        inner: fills what the field holds; None where nothing below it can be filled.
    """

    made: Callable[[], Any] | None
    nullable: bool
    inner: Fill | None


def _compile_fill(schema: Mapping[str, Any]) -> Fill | None:
    items = schema.get("items")
    if isinstance(items, Mapping):
        return _fill_items(items)
    rules = {name: _rule(child) for name, child in (schema.get("properties") or {}).items()}
    extra = schema.get("additionalProperties")
    if isinstance(extra, Mapping):
        return _fill_object(rules, _rule(extra))
    return _fill_object(rules, None) if rules else None


def _rule(schema: Mapping[str, Any]) -> _Rule:
    inner = _compile_fill(schema)
    made = None
    if "default" in schema:
        whole = copy_json(schema["default"])
        if inner is not None:
            inner(whole)
        made = _maker(whole)
    return _Rule(made, bool(schema.get("nullable")), inner)


def _maker(value: Any) -> Callable[[], Any]:
    """Makes copies of a JSON value."""
    if type(value) is dict:
        nested = tuple((key, _maker(item)) for key, item in value.items() if type(item) in (dict, list))
        if not nested:
            return value.copy

        def make() -> dict[str, Any]:
            made: dict[str, Any] = value.copy()
            for key, part in nested:
                made[key] = part()
            return made

        return make
    if type(value) is list and not value:
        return list
    return lambda: copy_json(value)


def _fill_object(rules: Mapping[str, _Rule], extra: _Rule | None) -> Fill:
    """`extra`: for fields without a name in the schema; None leaves those alone."""
    scalars = {name: rule.made() for name, rule in rules.items() if rule.made is not None}
    defaults = tuple(
        (name, scalars[name], rule.made if type(scalars[name]) in (dict, list) else None)
        for name, rule in rules.items()
        if rule.made is not None
    )
    below = tuple((name, rule.inner) for name, rule in rules.items() if rule.inner is not None)
    fill_extra = extra.inner if extra is not None else None

    def fill(obj: Any) -> None:
        if type(obj) is not dict:
            return
        if None in obj.values():
            _fill_nulls(obj, rules, extra)
        for name, inner in below:
            if name in obj:
                inner(obj[name])
        if fill_extra is not None:
            for key, child in obj.items():
                if key not in rules:
                    fill_extra(child)
        for name, value, made in defaults:
            if name not in obj:
                obj[name] = value if made is None else made()

    return fill


def _fill_nulls(obj: dict[str, Any], rules: Mapping[str, _Rule], extra: _Rule | None) -> None:
    """A null where null is not allowed counts as missing."""
    for key in [key for key, value in obj.items() if value is None]:
        rule = rules.get(key, extra)
        if rule is None or rule.nullable:
            continue
        if rule.made is None:
            del obj[key]
        else:
            obj[key] = rule.made()


def _fill_items(items: Mapping[str, Any]) -> Fill | None:
    inner = _compile_fill(items)
    value = items.get("default", _MISSING)
    replaces_null = value is not _MISSING and not items.get("nullable")
    if inner is None and not replaces_null:
        return None

    def fill(obj: Any) -> None:
        if type(obj) is not list:
            return
        for index, item in enumerate(obj):
            if item is None and replaces_null:
                obj[index] = copy_json(value)
            if inner is not None:
                inner(obj[index])

    return fill
