"""The FieldsV1 of everything that a value holds: what somebody owns who wrote it all at once.

Called by `apply.record_update` for each create, where there is no earlier version to compare with. Says the same as the difference
to nothing (`fieldset.difference`) turned into FieldsV1, in one walk and without a path for each field. Pure.
Source: Kubernetes documentation, "Server-Side Apply" (field management).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swarmtask.apiserver.fieldset import Node, element


def whole_fields(part: Mapping[str, Any], root: Node) -> dict[str, Any]:
    """The FieldsV1 of the part of an object that managers own; `metadata` itself is owned by nobody, what is in it is.

    `root` is the node of the kind's schema; its map is not atomic. Empty where the part is.
    """
    tree: dict[str, Any] = {}
    for key in sorted(part):
        below = _below(part[key], root.field(key))
        if key == "metadata":
            below.pop(".", None)
            if not below:
                continue
        tree["f:" + key] = below
    return tree


def _below(value: Any, node: Node) -> dict[str, Any]:
    """What FieldsV1 has for a field with this value: nothing below it where it has one owner as a whole."""
    if type(value) is dict:
        if not value or node.map_atomic:
            return {}
        tree: dict[str, Any] = {".": {}}
        properties, extra = node.properties, node.extra
        for key in sorted(value):
            child = value[key]
            kind = type(child)
            if kind is dict or kind is list:
                tree["f:" + key] = _below(child, properties.get(key, extra))
            else:
                tree["f:" + key] = {}
        return tree
    if type(value) is list and value and node.list_type != "atomic":
        items: dict[str, Any] = {".": {}}
        for item in value:
            name, below = element(item, node), _below(item, node.items)
            items[name] = _both(items[name], below) if name in items else below
        return {name: items[name] for name in sorted(items)}
    return {}


def _both(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The union, for items of the same name: such a list is refused later, by the schema."""
    if not one or not other:
        return one or other
    merged = {}
    for key in sorted(one.keys() | other.keys()):
        merged[key] = _both(one[key], other[key]) if key in one and key in other else one.get(key) or other.get(key) or {}
    return merged
