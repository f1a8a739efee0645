"""Sizes of bodies, YAML, and keys given twice: what keeps one request from holding up all others, and its sender from surprises.

Called by `wire` and by the patches. Turns YAML into JSON and refuses what is too deep or holds too many values; knows no HTTP.
"""

from __future__ import annotations

import json
import math
from typing import Any

import orjson
import yaml

from swarmtask.apiserver.schema_checks import Path, path_text
from swarmtask.errors import BadRequest

DEPTH_LIMIT = 128
"""Levels of nesting in a body. Every walk over an object is recursive; real objects stay below 30."""
NODE_LIMIT = 100_000
"""Values in one body, YAML's aliases expanded. A create with so many holds the event loop for about a second; the largest
definitions that people use have half of it."""
YAML_NODE_LIMIT = 20_000
"""Keys and values written in one YAML body. Each costs about 0.1 ms, a hundred times what it costs in JSON; real manifests stay
below 2,000, and clients that send more (kubectl, every client library) send JSON."""
DUPLICATES_LIMIT = 100
"""Keys given twice of which one answer tells; as many as Kubernetes' own decoder collects."""


def yaml_to_json(body: bytes) -> tuple[bytes, list[str]]:
    """The same value as JSON, and the paths of keys that were given more than once.

    Raises:
        BadRequest: not YAML, more than one document, nested too deep, too long, or too much by aliases.
    """
    try:
        text = body.decode("utf-8")
        duplicates = _scan_yaml(text)
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - derived from the safe loader
        check_size(value)
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS), duplicates
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, TypeError, RecursionError) as error:
        raise BadRequest(f"the body is not valid YAML: {error}") from error


class _Loader(yaml.CSafeLoader):
    """The safe loader without dates (Kubernetes' times are strings), without a meaning of a lone `=` (Kubernetes reads a string),
    and without numbers that JSON cannot say."""

    def construct_finite(self, node: yaml.ScalarNode) -> float:
        value = self.construct_yaml_float(node)
        if not math.isfinite(value):
            raise ValueError(f"{node.value[:40]!r} is no finite number")
        return float(value)


_AS_TEXT = frozenset({"tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value"})
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _AS_TEXT]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_finite)


class _Level:
    """An open collection while a YAML text is scanned."""

    def __init__(self, path: Path, *, mapping: bool) -> None:
        self.path = path
        self.mapping = mapping
        self.keys: set[str] = set()
        self.key = ""
        self.at_key = mapping
        self.position = -1

    def enter(self, event: yaml.NodeEvent, duplicates: _Duplicates) -> Path:
        """Take the next node of this collection; its path."""
        if not self.mapping:
            self.position += 1
            return (self.path, self.position)
        if self.at_key:
            self.at_key = False
            self.key = event.value if isinstance(event, yaml.ScalarEvent) else ""
            if self.key in self.keys:
                duplicates.add((self.path, self.key))
            if self.key:
                self.keys.add(self.key)
        else:
            self.at_key = True
        return (self.path, self.key)


def _scan_yaml(text: str) -> list[str]:
    """Paths of duplicate keys. Refuses deep and long texts before the composer, which recurses in C, and the slow constructor
    see them."""
    levels: list[_Level] = []
    duplicates = _Duplicates()
    nodes = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionEndEvent):
            levels.pop()
        if not isinstance(event, yaml.NodeEvent):
            continue
        nodes += 1
        if nodes > YAML_NODE_LIMIT:
            raise BadRequest(f"the YAML body holds more than {YAML_NODE_LIMIT} keys and values: send it as JSON")
        path = levels[-1].enter(event, duplicates) if levels else None
        if isinstance(event, yaml.CollectionStartEvent):
            if len(levels) == DEPTH_LIMIT:
                raise BadRequest(f"the body is nested more than {DEPTH_LIMIT} levels deep")
            levels.append(_Level(path, mapping=isinstance(event, yaml.MappingStartEvent)))
    return duplicates.paths


def check_size(value: Any) -> None:
    """Refuse values nested too deep or, through shared parts, too large. Does not recurse."""
    level: list[Any] = [value]
    seen = 0
    for _ in range(DEPTH_LIMIT + 1):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        seen += len(below)
        if seen > NODE_LIMIT:
            raise BadRequest(f"the body holds more than {NODE_LIMIT} values")
        if not below:
            return
        level = below
    raise BadRequest(f"the body is nested more than {DEPTH_LIMIT} levels deep")


def may_be_too_large(body: bytes) -> bool:
    """Whether `check_size` has to look; cheap, and never wrong when it says no."""
    return body.count(b"{") + body.count(b"[") > DEPTH_LIMIT or body.count(b",") >= NODE_LIMIT // 2


# --- keys given twice ----------------------------------------------------------------------------------------------------


def duplicate_paths(body: bytes, value: Any = None) -> list[str]:
    """Paths of object keys that a JSON text gives more than once, the first `DUPLICATES_LIMIT`; none where it is not JSON.

    Cheap for every write that wants to know: the text is only read with a hook per object where a key may have been lost.

    Args:
        value: what the text says, where the caller has decoded it.
    """
    if body.lstrip()[:1] != b"{" or _keeps_every_key(body, value):
        return []
    found = False

    def notice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal found
        result = dict(pairs)
        if len(result) != len(pairs):
            found = True
        return result

    duplicates = _Duplicates()
    try:
        json.loads(body, object_pairs_hook=notice)
        if found:
            _collect_duplicates(json.loads(body, object_pairs_hook=_Pairs), None, duplicates)
    except (ValueError, RecursionError):
        return []  # not JSON, or too deep: whoever decodes the body says so
    return duplicates.paths


def _keeps_every_key(body: bytes, value: Any) -> bool:
    """Whether a JSON text certainly gives no key of an object twice; cheap, and never wrong when it says yes.

    Each colon of a JSON text is one after a key, or one in a string. The text that is written from the decoded value has all of
    them again, but for the colons of what was lost; in addition it has those that were written as an escape.
    """
    if b"\\u003a" in body or b"\\u003A" in body:
        return False
    try:
        return body.count(b":") == orjson.dumps(orjson.loads(body) if value is None else value).count(b":")
    except (ValueError, TypeError):  # not JSON; too deep to be written
        return False


class _Pairs(list[tuple[str, Any]]):
    """An object with its duplicate keys kept."""


class _Duplicates:
    """Paths as they are found, each once. A path becomes text only here: one that is long would be copied for all below it."""

    def __init__(self) -> None:
        self._found: dict[str, None] = {}

    def add(self, path: Path) -> None:
        if not self.full:
            self._found[path_text(path)] = None

    @property
    def full(self) -> bool:
        return len(self._found) >= DUPLICATES_LIMIT

    @property
    def paths(self) -> list[str]:
        return list(self._found)


def _collect_duplicates(node: Any, path: Path, duplicates: _Duplicates) -> None:
    if duplicates.full:
        return
    if isinstance(node, _Pairs):
        seen: set[str] = set()
        for name, value in node:
            where = (path, name)
            if name in seen:
                duplicates.add(where)
            seen.add(name)
            _collect_duplicates(value, where, duplicates)
    elif isinstance(node, list):
        for position, value in enumerate(node):
            _collect_duplicates(value, (path, position), duplicates)
