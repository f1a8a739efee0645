"""What was stored before a schema became stricter is not held against who changes something else.

Called by `schema.py` when an update is not valid, and never otherwise. A fault is dropped where its value, or one around it, is as
it was stored and the old value can be found: fields of objects, values of maps, items of lists with keys; not items of other lists.
Faults that Kubernetes holds against everybody stay: `required`, list types and keys, forbidden fields, `anyOf` and its like with
all below them. CEL rules have the same in `cel_evaluation`. Source: Kubernetes documentation, "Validation ratcheting".
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, Final

from swarmtask.apiserver.schema_checks import KEY_SHOWN, MAX_CAUSES, PATH_SHOWN, compile_check, cut, identity
from swarmtask.errors import Cause

_NEVER: Final = frozenset({
    "required", "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "uniqueItems", "anyOf", "allOf", "oneOf", "not",
})  # fmt: skip
_BELOW: Final = (".", "[")


class Ratchet:
    """Of one schema of a whole object, with the metadata that every object has."""

    __slots__ = ("_plain", "_schema")

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        self._plain = compile_check(_without_never(schema))

    def left(self, causes: Sequence[Cause], new: Mapping[str, Any], old: Mapping[str, Any]) -> list[Cause]:
        """Those of the causes, all that `new` has, which count though `old` is stored.

        More than `MAX_CAUSES` may not be all: they stay.
        """
        if len(causes) > MAX_CAUSES:
            return list(causes)
        plain: list[Cause] = []
        self._plain(new, None, plain)
        droppable = [cause for cause in causes if cause in plain]
        found = _Found()
        found.walk(self._schema, new, old, "", sorted({_text_of(cause) for cause in droppable}))
        texts = found.unchanged - found.changed
        return [cause for cause in causes if cause not in droppable or _text_of(cause) not in texts]


def _text_of(cause: Cause) -> str:
    """The path as the walk writes it: empty for the root, else with a dot before the first name."""
    return f".{cause.field}" if cause.field else ""


def _without_never(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema without what is never dropped, at every node."""
    result = {key: value for key, value in schema.items() if key not in _NEVER}
    if result.get("additionalProperties") is False:
        del result["additionalProperties"]
    if result.get("properties"):
        result["properties"] = {name: _without_never(child) for name, child in result["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(result.get(key), Mapping):
            result[key] = _without_never(result[key])
    return result


class _Found:
    """Which paths are those of unchanged values, and which of others. One text may be both: keys of maps may hold dots, and long
    paths are cut."""

    def __init__(self) -> None:
        self.unchanged: set[str] = set()
        self.changed: set[str] = set()

    def walk(self, schema: Mapping[str, Any], new: Any, old: Any, text: str, wanted: list[str]) -> None:
        """Divide the `wanted` paths, in order, all of `text` or below it; `old` is the value that corresponds to `new`."""
        if new == old and identity(new) == identity(old):
            self.unchanged.update(wanted)
            return
        if wanted[:1] == [text]:
            self.changed.add(text)
        extra, properties = schema.get("additionalProperties"), schema.get("properties") or {}
        if type(new) is dict:
            before = old if type(old) is dict else {}
            for name, value in new.items():
                child = properties.get(name, extra)
                self._step(child if name in before else None, value, before.get(name), _child(text, name), wanted)
        elif type(new) is list:
            items, keys = schema.get("items"), _keys(schema)
            known = _by_key(old, keys)
            for index, value in enumerate(new):
                key = _key(value, keys) if keys and type(value) is dict else None
                self._step(items if key in known else None, value, known.get(key), _child(text, index), wanted)

    def _step(self, schema: Any, new: Any, old: Any, text: str, wanted: list[str]) -> None:
        """Go on to a child. `schema` None, or no schema: no old value corresponds to it."""
        below = []
        for index in range(bisect_left(wanted, text), len(wanted)):
            path = wanted[index]
            if not path.startswith(text):
                break
            if path == text or path[len(text)] in _BELOW:
                below.append(path)
        if not below:
            return
        if isinstance(schema, Mapping):
            self.walk(schema, new, old, text, below)
        else:
            self.changed.update(below)


def _child(text: str, key: str | int) -> str:
    """The path of a field or item of what is at `text`, cut as `path_text` cuts it: what has one text there has one here."""
    whole = f"{text}[{key}]" if isinstance(key, int) else f"{text}.{cut(key, KEY_SHOWN)}"
    return cut(whole, len(".") + PATH_SHOWN)


def _keys(schema: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(schema.get("x-kubernetes-list-map-keys") or ()) if schema.get("x-kubernetes-list-type") == "map" else ()


def _key(item: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return identity([item.get(key) for key in keys])


def _by_key(items: Any, keys: tuple[str, ...]) -> dict[Any, Any]:
    return {_key(item, keys): item for item in items if type(item) is dict} if keys and type(items) is list else {}
