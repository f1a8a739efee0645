"""Strategic merge patch: lists of built-in kinds are merged by key where their field table says so, and directives say the rest.

Called by `patch.py` only. Values of the stored object are shared where they do not change, never changed in place.
Source: Kubernetes community documentation, "Strategic Merge Patch".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from swarmtask.errors import BadRequest

_PATCH: Final = "$patch"
_RETAIN: Final = "$retainKeys"
_DELETE_ITEMS: Final = "$deleteFromPrimitiveList/"
_ORDER: Final = "$setElementOrder/"

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
    missing = [key for key, value in patch.items() if not key.startswith("$") and value is not None and key not in keep]
    if missing:
        raise BadRequest(f"$retainKeys does not name {', '.join(missing)}, which the patch sets")
    return {key: value for key, value in current.items() if key in keep}


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
        result[name] = [item for item in result[name] if item not in gone]


def _merged_list(name: str, schema: Schema, current: list[Any], patch: list[Any]) -> list[Any]:
    key = schema.get("x-kubernetes-patch-merge-key")
    if key is None:
        return [*current, *(item for index, item in enumerate(patch) if item not in current and item not in patch[:index])]
    if any(isinstance(item, dict) and item.get(_PATCH) == "replace" for item in patch):
        return [_plain(item) for item in patch if not (isinstance(item, dict) and item.get(_PATCH) == "replace")]
    result = list(current)
    items = schema.get("items") or {}
    for item in patch:
        if not isinstance(item, dict) or key not in item:
            raise BadRequest(f"an item of {name} does not contain its merge key {key}")
        place = next((index for index, old in enumerate(result) if isinstance(old, dict) and old.get(key) == item[key]), None)
        if item.get(_PATCH) == "delete":
            if place is not None:
                del result[place]
        elif place is None:
            result.append(strategic_merge(items, {}, item))
        else:
            result[place] = strategic_merge(items, result[place], item)
    return result


def _set_order(result: dict[str, Any], name: str, order: Any, schema: Schema, before: Any) -> None:
    """Items that the order names come in that order; the others keep their place among what was there before."""
    if not isinstance(order, list):
        raise BadRequest(f"{_ORDER}{name} is a list")
    listed = result.get(name)
    if not isinstance(listed, list):
        return
    key = schema.get("x-kubernetes-patch-merge-key")

    def identity(item: Any) -> Any:
        return item.get(key) if key is not None and isinstance(item, dict) else item

    wanted = [identity(item) for item in order]
    old = [identity(item) for item in before] if isinstance(before, list) else []
    ordered = sorted((item for item in listed if identity(item) in wanted), key=lambda item: wanted.index(identity(item)))
    others = [item for item in listed if identity(item) not in wanted]
    merged: list[Any] = []
    while ordered and others:
        first, second = identity(ordered[0]), identity(others[0])
        take_other = first in old and second in old and old.index(second) < old.index(first)
        merged.append(others.pop(0) if take_other else ordered.pop(0))
    result[name] = [*merged, *ordered, *others]
