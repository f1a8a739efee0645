"""Strategic merge patch: lists of built-in kinds are merged by key where their field table says so, and directives say the rest.

Called by `patch.py` only. Values of the stored object are shared where they do not change, never changed in place.
Source: Kubernetes community documentation, "Strategic Merge Patch".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from swarmtask.apiserver.schema_checks import identity
from swarmtask.errors import BadRequest

_PATCH: Final = "$patch"
_RETAIN: Final = "$retainKeys"
_DELETE_ITEMS: Final = "$deleteFromPrimitiveList/"
_ORDER: Final = "$setElementOrder/"

_GONE: Final = object()

Schema = Mapping[str, Any]


def strategic_merge(schema: Schema, current: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """The patched object.

    Raises:
        BadRequest: a directive is unknown, or an item of a merged list lacks its merge key.
    """
    directive = patch.get(_PATCH)
    if directive == "replace":
        return {key: _plain(value) for key, value in patch.items() if not key.startswith("$") and value is not None}
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        raise BadRequest(f"unknown patch directive $patch: {directive!r}; merge, replace and delete exist")
    result = _retained(current, patch)
    properties = schema.get("properties") or {}
    extra = schema.get("additionalProperties")
    for key, value in patch.items():
        if key in (_PATCH, _RETAIN) or key.startswith(_ORDER):
            continue
        if key.startswith(_DELETE_ITEMS):
            _delete_items(result, key.removeprefix(_DELETE_ITEMS), value)
        elif value is None:
            result.pop(key, None)
        else:
            child = properties.get(key) or (extra if isinstance(extra, Mapping) else {})
            result[key] = _merged_field(key, child, result.get(key), value)
    for key, order in patch.items():
        if key.startswith(_ORDER):
            name = key.removeprefix(_ORDER)
            _set_order(result, name, order, properties.get(name) or {}, current.get(name))
    return result


def _merged_field(name: str, schema: Schema, current: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return strategic_merge(schema, current if isinstance(current, dict) else {}, value)
    if isinstance(value, list) and schema.get("x-kubernetes-patch-strategy") == "merge":
        return _merged_list(name, schema, current if isinstance(current, list) else [], value)
    return _plain(value)


def _retained(current: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    keep = patch.get(_RETAIN)
    if keep is None:
        return dict(current)
    if not isinstance(keep, list) or not all(isinstance(key, str) for key in keep):
        raise BadRequest("$retainKeys is a list of field names")
    kept = frozenset(keep)
    missing = [key for key, value in patch.items() if not key.startswith("$") and value is not None and key not in kept]
    if missing:
        raise BadRequest(f"$retainKeys does not name {', '.join(missing)}, which the patch sets")
    return {key: value for key, value in current.items() if key in kept}


def _plain(value: Any) -> Any:
    """A value of a patch as it is stored: without directives and nulls inside objects."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None and not key.startswith("$")}
    if isinstance(value, list):
        return [_plain(item) for item in value if not (isinstance(item, dict) and _PATCH in item and len(item) == 1)]
    return value


def _delete_items(result: dict[str, Any], name: str, gone: Any) -> None:
    if not isinstance(gone, list):
        raise BadRequest(f"{_DELETE_ITEMS}{name} is a list of values")
    if isinstance(result.get(name), list):
        leaving = {identity(item) for item in gone}
        result[name] = [item for item in result[name] if identity(item) not in leaving]


def _merged_list(name: str, schema: Schema, current: list[Any], patch: list[Any]) -> list[Any]:
    key = schema.get("x-kubernetes-patch-merge-key")
    if key is None:
        there, result = {identity(item) for item in current}, list(current)
        for item in patch:
            if (name_of := identity(item)) not in there:
                there.add(name_of)
                result.append(item)
        return result
    if any(isinstance(item, dict) and item.get(_PATCH) == "replace" for item in patch):
        return [_plain(item) for item in patch if not (isinstance(item, dict) and item.get(_PATCH) == "replace")]
    return _merged_items(name, key, schema.get("items") or {}, current, patch)


def _merged_items(name: str, key: str, schema: Schema, current: list[Any], patch: list[Any]) -> list[Any]:
    """Items of the same key are merged one by one; what is deleted leaves a hole until the end, so that all places stay."""
    result = list(current)
    places: dict[Any, list[int]] = {}
    """By key; the last of a list is the first place, and there are more only where a list was stored that is none of its kind."""
    for place in range(len(current) - 1, -1, -1):
        if isinstance(current[place], dict):
            places.setdefault(identity(current[place].get(key)), []).append(place)
    for item in patch:
        if not isinstance(item, dict) or key not in item:
            raise BadRequest(f"an item of {name} does not contain its merge key {key}")
        found = places.setdefault(identity(item[key]), [])
        if item.get(_PATCH) == "delete":
            if found:
                result[found.pop()] = _GONE
        elif found:
            result[found[-1]] = strategic_merge(schema, result[found[-1]], item)
        else:
            found.append(len(result))
            result.append(strategic_merge(schema, {}, item))
    return [item for item in result if item is not _GONE]


def _set_order(result: dict[str, Any], name: str, order: Any, schema: Schema, before: Any) -> None:
    """Items that the order names come in that order; the others keep their place among what was there before."""
    if not isinstance(order, list):
        raise BadRequest(f"{_ORDER}{name} is a list")
    listed = result.get(name)
    if not isinstance(listed, list):
        return
    key = schema.get("x-kubernetes-patch-merge-key")

    def name_of(item: Any) -> Any:
        return identity(item.get(key) if key is not None and isinstance(item, dict) else item)

    wanted = _first_places([name_of(item) for item in order])
    old = _first_places([name_of(item) for item in before] if isinstance(before, list) else [])
    named = [(name_of(item), item) for item in listed]
    ordered = deque(sorted((pair for pair in named if pair[0] in wanted), key=lambda pair: wanted[pair[0]]))
    others = deque(pair for pair in named if pair[0] not in wanted)
    merged: list[Any] = []
    while ordered and others:
        first, second = old.get(ordered[0][0]), old.get(others[0][0])
        take_other = first is not None and second is not None and second < first
        merged.append((others if take_other else ordered).popleft()[1])
    result[name] = [*merged, *(item for _, item in ordered), *(item for _, item in others)]


def _first_places(names: list[Any]) -> dict[Any, int]:
    places: dict[Any, int] = {}
    for place, name in enumerate(names):
        places.setdefault(name, place)
    return places
