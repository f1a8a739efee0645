"""YAML and JSON files as plain objects: what JSON can say, read as kubectl reads it, and nothing that would be guessed at.

Called by `apply`. Knows no kinds and speaks to no server.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from swarmtask.errors import BadRequest

MAX_DEPTH = 100
MAX_VALUES = 2_000_000
"""Values of one document after its aliases are written out; a few lines of nested aliases can mean billions."""
_TIMESTAMP_TAG = "tag:yaml.org,2002:timestamp"
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]
    """Dates stay text, as in Kubernetes; a key that is given twice is refused instead of the first being dropped."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if len(set(keys)) < len(keys):
            twice = next(value for tag, value in keys if keys.count((tag, value)) > 1)
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} is given twice", node.start_mark)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return mapping


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP_TAG]
    for first, resolvers in _Base.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True, slots=True)
class Document:
    """One object, and where it was read: `tasks.yaml, document 2`."""

    source: str
    value: Any


def read_documents(label: str, text: str) -> list[Document]:
    """The objects of a text, those inside Lists one by one.

    Raises:
        BadRequest: it is no YAML, or says what JSON cannot; names the place.
    """
    try:
        _check_depth(label, text)
        values = list(yaml.load_all(text, Loader=_Loader))
    except (yaml.YAMLError, ValueError) as error:
        where = str(error).replace('"<unicode string>"', label).replace('"<byte string>"', label)
        raise BadRequest(f"{label} is not valid YAML: {where}") from error
    found: list[Document] = []
    for number, value in enumerate(values, start=1):
        source = f"{label}, document {number}" if len(values) > 1 else label
        found += [Document(source, item) for item in _flatten(source, _Plain(source).of(value, ""))]
    return found


def _check_depth(label: str, text: str) -> None:
    """Refuse what is nested so deeply that building it would overflow the C loader's stack."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise BadRequest(f"{label} is nested more than {MAX_DEPTH} levels deep: that is no Kubernetes object")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Plain:
    """Copies one document into dicts, lists, text, numbers, booleans and None, and refuses everything else by its place."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._count = 0

    def of(self, value: Any, place: str, depth: int = 0) -> Any:
        self._count += 1
        if self._count > MAX_VALUES:
            raise BadRequest(f"{self._source}: its aliases stand for more than {MAX_VALUES} values: that is no Kubernetes object")
        if depth > MAX_DEPTH:
            raise BadRequest(f"{self._source}: {place[:80]}... contains itself")
        match value:
            case dict():
                inside = f"{place}." if place else ""
                return {self._key(key, place): self.of(item, f"{inside}{key}", depth + 1) for key, item in value.items()}
            case list():
                return [self.of(item, f"{place}[{index}]", depth + 1) for index, item in enumerate(value)]
            case None | str() | bool():
                return value
            case int() if -(2**63) <= value < 2**63:
                return value
            case float() if math.isfinite(value):
                return value
            case _:
                shown = type(value).__name__ if not isinstance(value, int | float) else str(value)[:40]
                raise BadRequest(f"{self._source}: {place or 'the document'} is {shown}, which JSON cannot hold")

    def _key(self, key: object, place: str) -> str:
        """Numbers and booleans as keys become text, as kubectl makes them (`8080: ...` in a ConfigMap)."""
        if isinstance(key, bool):
            return "true" if key else "false"
        if isinstance(key, str | int):
            return str(key)
        raise BadRequest(f"{self._source}: {place or 'the document'} has the key {key!r}: keys must be text")


def _flatten(source: str, value: Any) -> Iterator[Any]:
    """The objects of a document: none for an empty one, all items of a List."""
    if isinstance(value, dict) and value.get("apiVersion") == "v1" and value.get("kind") == "List":
        items = value.get("items") or []
        if not isinstance(items, list):
            raise BadRequest(f"{source}: items of a List must be a list")
        for item in items:
            yield from _flatten(source, item)
    elif value is not None:
        yield value
