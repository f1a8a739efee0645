"""The FieldsV1 of everything that a value holds: what somebody owns who wrote it all at once.

Called by `apply.record_update` for each create, where there is no earlier version to compare with. Says the same as the difference
to nothing (`fieldset.difference`) turned into FieldsV1, in one walk and without a path for each field. Pure.
Source: Kubernetes documentation, "Server-Side Apply" (field management).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from swarmtask.apiserver.fieldset import Node, element

PLANS_LIMIT: Final = 64
"""Sets of keys kept for one place of a schema; then all are forgotten and made again as they are met."""
_OWNED: Final[dict[str, Any]] = {}
"""What FieldsV1 has for a field with nothing below it. Shared, and changed by nobody: whoever wants to change an object decodes it
anew."""


class _Plan(NamedTuple):
    """What is the same for all objects with certain keys.

    Attributes:
        tree: as if no field had anything below it.
        open: (path element, key, node) of the fields that may have.
    """

    tree: dict[str, Any]
    open: tuple[tuple[str, str, Node], ...]


def whole_fields(part: Mapping[str, Any], root: Node, *, valid: bool = False) -> dict[str, Any]:
    """The FieldsV1 of the part of an object that managers own; `metadata` itself is owned by nobody, what is in it is.

    Args:
        root: the node of the kind's schema; its map is not atomic.
        valid: the schema accepts the object, so that fields need not be looked at whose type has nothing below it.

    Returns:
        Not to be changed, as parts of it are shared. Empty where the part is.
    """
    below = _below_valid if valid else _below
    tree: dict[str, Any] = {}
    for key in sorted(part):
        tree["f:" + key] = found = below(part[key], root.field(key))
        if key == "metadata":
            found.pop(".", None)
            if not found:
                del tree["f:metadata"]
    return tree


def _below(value: Any, node: Node) -> dict[str, Any]:
    """What FieldsV1 has for a field with this value: nothing below it where it has one owner as a whole."""
    if type(value) is dict:
        if not value or node.map_atomic:
            return {}
        tree: dict[str, Any] = {".": _OWNED}
        for key in sorted(value):
            tree["f:" + key] = _below(value[key], node.field(key))
        return tree
    if type(value) is list and value and node.list_type != "atomic":
        return _items(value, node, _below)
    return {}


def _below_valid(value: Any, node: Node) -> dict[str, Any]:
    """The same, where the schema accepts the value."""
    if type(value) is dict:
        if not value or node.map_atomic:
            return {}
        plan = node.plans.get(tuple(value)) or _plan(tuple(value), node)
        tree = plan.tree.copy()
        for name, key, child in plan.open:
            if value[key]:
                tree[name] = _below_valid(value[key], child)
        return tree
    if type(value) is list and value and node.list_type != "atomic":
        return _items(value, node, _below_valid)
    return {}


def _plan(keys: tuple[str, ...], node: Node) -> _Plan:
    tree: dict[str, Any] = {".": _OWNED}
    tree.update(dict.fromkeys(["f:" + key for key in sorted(keys)], _OWNED))
    plan = _Plan(tree, tuple(("f:" + key, key, child) for key in keys if not (child := node.field(key)).closed))
    if all(key in node.properties for key in keys):  # keys that everybody makes up are hardly met again
        if len(node.plans) >= PLANS_LIMIT:
            node.plans.clear()
        node.plans[keys] = plan
    return plan


def _items(value: list[Any], node: Node, below: Callable[[Any, Node], dict[str, Any]]) -> dict[str, Any]:
    """Of a keyed list or a set."""
    items: dict[str, Any] = {".": _OWNED}
    for item in value:
        name, found = element(item, node), below(item, node.items)
        items[name] = _both(items[name], found) if name in items else found
    return {name: items[name] for name in sorted(items)}


def _both(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The union, for items of the same name: such a list is refused later, by the schema."""
    if not one or not other:
        return one or other
    union = {}
    for key in sorted(one.keys() | other.keys()):
        union[key] = _both(one[key], other[key]) if key in one and key in other else one.get(key) or other.get(key) or {}
    return union
