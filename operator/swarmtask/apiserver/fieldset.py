"""Sets of fields: which fields an object has, how two objects differ, and the FieldsV1 form of such a set.

Called by `apply.py`. A field is a tuple of path elements as FieldsV1 spells them: `f:name` a field, `k:{"name":"a"}` an item of a
keyed list, `v:"a"` a member of a set. `Node` is the part of a schema that ownership needs: what has one owner as a whole (atomic)
and what is owned piece by piece. Values are never changed here, apart from `remove`, which says so.
Source: Kubernetes documentation, "Server-Side Apply" (merge strategy, field management).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, cast

import orjson

from swarmtask.apiserver.schema_checks import copy_json, cut
from swarmtask.apiserver.shapes import OBJECT_META, schema_of
from swarmtask.errors import BadRequest

FieldPath = tuple[str, ...]
FieldSet = frozenset[FieldPath]


REMEMBERED_LENGTH = 512
"""Longer elements are read anew each time, so that what is remembered stays small."""
_KEY_SHOWN = 256


class Node:
    """One place of a schema, as far as ownership is concerned. Compared by identity."""

    __slots__ = ("closed", "extra", "items", "key_defaults", "keys", "list_type", "map_atomic", "plans", "properties")

    def __init__(self) -> None:
        self.properties: dict[str, Node] = {}
        self.extra: Node = self
        self.items: Node = self
        self.map_atomic = False
        self.list_type: Literal["atomic", "set", "map"] = "atomic"
        self.keys: tuple[str, ...] = ()
        self.key_defaults: dict[str, Any] = {}
        self.closed = False
        """A value of the type that the schema says has one owner as a whole."""
        self.plans: dict[tuple[str, ...], Any] = {}
        """For `whole_fields`."""

    def field(self, name: str) -> Node:
        return self.properties.get(name, self.extra)


DEDUCED = Node()
"""Where the schema says nothing: maps are owned key by key, lists as a whole."""


def _node(schema: Any) -> Node:
    if not isinstance(schema, Mapping):
        return DEDUCED
    node = Node()
    node.properties = {name: _node(child) for name, child in (schema.get("properties") or {}).items()}
    node.extra = _node(schema.get("additionalProperties"))
    node.items = _node(schema.get("items"))
    node.map_atomic = schema.get("x-kubernetes-map-type") == "atomic"
    node.closed = _is_closed(schema)
    kind = schema.get("x-kubernetes-list-type")
    if kind in ("set", "map"):
        node.list_type = cast(Literal["set", "map"], kind)
    if kind == "map":
        node.keys = tuple(sorted(schema.get("x-kubernetes-list-map-keys") or ()))
        inner = (schema.get("items") or {}).get("properties") or {}
        node.key_defaults = {key: inner[key]["default"] for key in node.keys if "default" in inner.get(key, {})}
    return node


def _is_closed(schema: Mapping[str, Any]) -> bool:
    match schema.get("type"):
        case "string" | "integer" | "number" | "boolean":
            return True
        case "array":
            return schema.get("x-kubernetes-list-type") not in ("set", "map")
        case "object":
            return schema.get("x-kubernetes-map-type") == "atomic"
        case _:
            return bool(schema.get("x-kubernetes-int-or-string"))


_nodes: dict[int, tuple[Any, Node]] = {}


def node_of(schema: Mapping[str, Any] | None) -> Node:
    """The root node of a kind's schema, with metadata as every object has it. Kept as long as the schema object lives."""
    entry = _nodes.get(id(schema))
    if entry is None or entry[0] is not schema:
        if len(_nodes) > 1024:
            _nodes.clear()
        root = _node(schema or {})
        root.properties["metadata"] = _node(schema_of(OBJECT_META))
        entry = _nodes[id(schema)] = (schema, root)
    return entry[1]


# --- path elements -------------------------------------------------------------------------------------------------------


def element(item: Any, node: Node, *, strict: bool = False, where: FieldPath = ()) -> str:
    """The path element of an item of a keyed list or a set.

    Raises:
        BadRequest: `strict`, and the item lacks its key.
    """
    if node.list_type == "set":
        if strict and isinstance(item, (dict, list)) and not node.items.map_atomic and isinstance(item, dict):
            raise BadRequest(f"{path_text(where)}: a set holds single values")
        return "v:" + orjson.dumps(item, option=orjson.OPT_SORT_KEYS).decode()
    if not isinstance(item, dict):
        if strict:
            raise BadRequest(f"{path_text(where)}: an item of a keyed list must be an object with {', '.join(node.keys)}")
        return "v:" + orjson.dumps(item, option=orjson.OPT_SORT_KEYS).decode()
    keys = {}
    for key in node.keys:
        if key in item:
            keys[key] = item[key]
        elif key in node.key_defaults:
            keys[key] = node.key_defaults[key]
        elif strict:
            raise BadRequest(f'{path_text(where)}: associative list with keys has an element that omits key field "{key}"')
    return "k:" + orjson.dumps(keys, option=orjson.OPT_SORT_KEYS).decode()


def _canonical(text: str) -> str:
    """A `k:` or `v:` element in the one spelling that is used here."""
    if not text.startswith(("k:", "v:")):
        return text
    return _remembered(text) if len(text) <= REMEMBERED_LENGTH else _respelled(text)


@lru_cache(maxsize=8192)
def _remembered(text: str) -> str:
    return _respelled(text)


def _respelled(text: str) -> str:
    try:
        return text[:2] + orjson.dumps(orjson.loads(text[2:]), option=orjson.OPT_SORT_KEYS).decode()
    except orjson.JSONDecodeError:
        return text


def path_text(path: FieldPath) -> str:
    """`.spec.env[name="A"].value`, as conflicts name a field. Long names and values are cut."""
    parts = []
    for part in path:
        kind, text = part[:2], part[2:]
        if kind == "f:":
            parts.append("." + cut(text, _KEY_SHOWN))
        elif kind == "k:":
            keys = orjson.loads(text)
            named_by = ",".join(f"{key}={cut(orjson.dumps(value).decode(), _KEY_SHOWN)}" for key, value in keys.items())
            parts.append(f"[{named_by}]")
        elif kind == "v:":
            parts.append(f"[={cut(text, _KEY_SHOWN)}]")
        else:
            parts.append(f"[{cut(text, _KEY_SHOWN)}]")
    return "".join(parts)


# --- the fields of an object ---------------------------------------------------------------------------------------------


def fields_of(value: Any, node: Node) -> set[FieldPath]:
    """What a manager that applies `value` owns.

    Raises:
        BadRequest: an item of a keyed list lacks its key, or two items have the same.
    """
    out: set[FieldPath] = set()
    _collect(value, node, (), out)
    return out


def _collect(value: Any, node: Node, path: FieldPath, out: set[FieldPath]) -> None:
    if type(value) is dict:
        if node.map_atomic:
            out.add(path)
            return
        for key, child in value.items():
            below = (*path, "f:" + key)
            _collect(child, node.field(key), below, out)
            if child in ({}, []) or key not in node.properties:
                out.add(below)
    elif type(value) is list and node.list_type != "atomic":
        seen = set()
        for item in value:
            name = element(item, node, strict=True, where=path)
            if name in seen:
                raise BadRequest(f"{path_text(path)}: duplicate entries for key {path_text((name,))}")
            seen.add(name)
            below = (*path, name)
            _collect(item, node.items, below, out)
            out.add(below)
    else:
        out.add(path)


def named(paths: Iterable[FieldPath], root: Node) -> set[FieldPath]:
    """The paths and all parents that are fields which the schema names. Keys of free maps and list items are owned only
    explicitly."""
    out: set[FieldPath] = set()
    for path in paths:
        out.add(path)
        node = root
        for index, part in enumerate(path[:-1]):
            if part.startswith("f:"):
                name = part[2:]
                if name in node.properties:
                    out.add(path[: index + 1])
                node = node.field(name)
            else:
                node = node.items
    return out


# --- differences ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Difference:
    """Fields that are only in the old, only in the new, or different."""

    removed: set[FieldPath] = field(default_factory=set)
    modified: set[FieldPath] = field(default_factory=set)
    added: set[FieldPath] = field(default_factory=set)

    @property
    def written(self) -> set[FieldPath]:
        return self.modified | self.added

    def __bool__(self) -> bool:
        return bool(self.removed or self.modified or self.added)


def difference(old: Any, new: Any, node: Node) -> Difference:
    """How `new` differs from `old`, both at `node`."""
    result = Difference()
    _differ(old, new, node, (), result)
    result.modified.discard(())
    return result


def _differ(old: Any, new: Any, node: Node, path: FieldPath, out: Difference) -> None:
    if old is new:
        return
    if type(old) is dict and type(new) is dict and not node.map_atomic and (old or new):
        for key, value in new.items():
            if key in old:
                if old[key] is not value:
                    _differ(old[key], value, node.field(key), (*path, "f:" + key), out)
            else:
                _all(value, node.field(key), (*path, "f:" + key), out.added)
        for key, value in old.items():
            if key not in new:
                _all(value, node.field(key), (*path, "f:" + key), out.removed)
    elif type(old) is list and type(new) is list and node.list_type != "atomic" and (old or new):
        before = {element(item, node): item for item in old}
        after = {element(item, node): item for item in new}
        for name, item in after.items():
            if name in before:
                _differ(before[name], item, node.items, (*path, name), out)
            else:
                _all(item, node.items, (*path, name), out.added)
        for name, item in before.items():
            if name not in after:
                _all(item, node.items, (*path, name), out.removed)
    elif not same(old, new):
        out.modified.add(path)
        if type(old) is not type(new):
            _all(old, node, path, out.removed)
            _all(new, node, path, out.added)
            out.removed.discard(path)
            out.added.discard(path)


def _all(value: Any, node: Node, path: FieldPath, out: set[FieldPath]) -> None:
    """The path itself and everything below it that can have an owner of its own."""
    out.add(path)
    if type(value) is dict and not node.map_atomic:
        for key, child in value.items():
            _all(child, node.field(key), (*path, "f:" + key), out)
    elif type(value) is list and node.list_type != "atomic":
        for item in value:
            _all(item, node.items, (*path, element(item, node)), out)


def same(left: Any, right: Any) -> bool:
    """Equal as JSON: 1 and 1.0 are equal, 1 and true are not."""
    if type(left) is dict and type(right) is dict:
        return len(left) == len(right) and all(key in right and same(value, right[key]) for key, value in left.items())
    if type(left) is list and type(right) is list:
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right) and (type(left) is bool) == (type(right) is bool)


# --- merging and removing ------------------------------------------------------------------------------------------------


def merged(live: Any, applied: Any, node: Node) -> Any:
    """`applied` laid over `live`: maps by key, keyed lists by item, everything else replaced. Shares nothing with its arguments."""
    if type(live) is dict and type(applied) is dict and not node.map_atomic:
        result = {
            key: merged(value, applied[key], node.field(key)) if key in applied else copy_json(value) for key, value in live.items()
        }
        for key, value in applied.items():
            if key not in result:
                result[key] = copy_json(value)
        return result
    if type(live) is list and type(applied) is list and node.list_type != "atomic":
        return _merged_list(live, applied, node)
    return copy_json(applied)


def _merged_list(live: list[Any], applied: list[Any], node: Node) -> list[Any]:
    """Items in the order of `applied`; items that only `live` has keep their place before the shared item that follows them."""
    live_names = [element(item, node) for item in live]
    names = [element(item, node) for item in applied]
    by_name = dict(zip(live_names, live, strict=True))
    shared = set(names) & set(live_names)
    result: list[Any] = []
    left = right = 0
    while left < len(live) or right < len(applied):
        if left < len(live) and live_names[left] not in shared:
            result.append(copy_json(live[left]))
            left += 1
        elif right < len(applied):
            name = names[right]
            result.append(merged(by_name[name], applied[right], node.items) if name in shared else copy_json(applied[right]))
            right += 1
            if left < len(live) and name in shared:
                left += 1
        else:
            left += 1
    return result


def remove(value: Any, paths: Iterable[FieldPath], node: Node) -> None:
    """Remove fields in place. An item goes as a whole before anything inside it is looked at."""
    tree = _tree(paths)
    if tree:
        _remove(value, tree, node)


def _remove(value: Any, tree: dict[str, Any], node: Node) -> None:
    if type(value) is dict and not node.map_atomic:
        for key in list(value):
            branch = tree.get("f:" + key)
            if branch is None:
                continue
            if "." in branch:
                del value[key]
            else:
                _remove(value[key], branch, node.field(key))
    elif type(value) is list and node.list_type != "atomic":
        kept = []
        for item in value:
            branch = tree.get(element(item, node))
            if branch is None:
                kept.append(item)
            elif "." not in branch:
                _remove(item, branch, node.items)
                kept.append(item)
        value[:] = kept


# --- FieldsV1 ------------------------------------------------------------------------------------------------------------


def _tree(paths: Iterable[FieldPath]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for path in paths:
        node = root
        for part in path:
            node = node.setdefault(part, {})
        node["."] = {}
    return root


def to_fields_v1(paths: Iterable[FieldPath]) -> dict[str, Any]:
    """The set as FieldsV1: nested objects, sorted; a dot marks a parent that is itself a member."""
    return _trim(_tree(paths))


def _trim(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        key: {} if key == "." or (len(tree[key]) == 1 and "." in tree[key]) else _trim(tree[key]) for key in sorted(tree)
    }  # fmt: skip


def from_fields_v1(tree: Mapping[str, Any]) -> set[FieldPath]:
    """The set that FieldsV1 describes.

    Raises:
        ValueError: this is no FieldsV1.
    """
    out = set(_members(tree, ()))
    out.discard(())
    return out


def _members(tree: Any, path: FieldPath) -> Iterator[FieldPath]:
    if not isinstance(tree, Mapping):
        raise ValueError("FieldsV1 consists of objects")
    if len(path) > 100:
        raise ValueError("FieldsV1 is nested too deeply")
    if not tree:
        yield path
    for key, child in tree.items():
        if key == ".":
            yield path
        elif key[:2] in ("f:", "k:", "v:", "i:"):
            yield from _members(child, (*path, _canonical(key)))
        else:
            raise ValueError(f"FieldsV1 has no path element {key!r}")


def tree_of(paths: Iterable[FieldPath]) -> dict[str, Any]:
    """A set for `contains_any`, which is asked of many others."""
    return _tree(paths)


def contains_any(fields: Any, tree: Mapping[str, Any]) -> bool:
    """Whether a FieldsV1, with its elements in canonical spelling, and a set (`tree_of`) have a member in common.

    Walks what both have and takes the smaller of the two at each place: a small one costs little, however large the other is.
    """
    if "." in tree and (not fields or "." in fields):
        return True
    if len(tree) > len(fields):
        return any(key != "." and key in tree and contains_any(child, tree[key]) for key, child in fields.items())
    return any(key != "." and key in fields and contains_any(fields[key], child) for key, child in tree.items())
