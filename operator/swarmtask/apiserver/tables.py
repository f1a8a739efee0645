"""Objects as rows: the `meta.k8s.io/v1` Table that `kubectl get` asks for.

Called by the list, get and watch routes. Columns are compiled once per type. Never raises for a strange object: a cell that cannot
be computed is null. Sources: "Receiving resources as Tables" in the API concepts documentation; ages as kubectl writes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal

import orjson

from swarmtask.apiserver.projections.cells import CELLS
from swarmtask.apiserver.types import ResourceType
from swarmtask.clock import parse_time
from swarmtask.resources.kinds import Column
from swarmtask.resources.units import human_duration

Include = Literal["Metadata", "Object", "None"]
Cell = Callable[[Mapping[str, Any], datetime], Any]

_SIMPLE_PATH = re.compile(r"(\.[A-Za-z_][A-Za-z0-9_-]*)+\Z")
_NAME = {
    "name": "Name",
    "type": "string",
    "format": "name",
    "description": "Unique among the objects of its kind in a namespace.",
    "priority": 0,
}


def table(
    rt: ResourceType,
    objects: Iterable[Mapping[str, Any]],
    *,
    include: Include,
    now: datetime,
    list_metadata: dict[str, Any] | None = None,
    with_columns: bool = True,
) -> dict[str, Any]:
    """A Table of the objects.

    Args:
        include: what each row carries besides its cells.
        list_metadata: resourceVersion, continue and remainingItemCount of the list.
        with_columns: a watch names the columns only in its first event.
    """
    cells, named = _cells(rt.columns), _starts_with_name(rt)
    rows = []
    for obj in objects:
        metadata = obj.get("metadata") or {}
        values = [cell(obj, now) for cell in cells]
        row: dict[str, Any] = {"cells": [metadata.get("name"), *values] if named else values}
        if include == "Object":
            row["object"] = obj
        elif include == "Metadata":
            row["object"] = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}
        rows.append(row)
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": list_metadata or {},
        "columnDefinitions": column_definitions(rt) if with_columns else [],
        "rows": rows,
    }


def column_definitions(rt: ResourceType) -> list[dict[str, Any]]:
    """The columns of a type, as every row fills them."""
    own = [
        {"name": item.name, "type": item.type, "format": "", "description": item.description, "priority": item.priority}
        for item in rt.columns
    ]
    return [_NAME, *own] if _starts_with_name(rt) else own


def _starts_with_name(rt: ResourceType) -> bool:
    """Events are the exception: their name tells nothing, so it is a wide column of their own."""
    return rt.custom or all(column.name != "Name" for column in rt.columns)


def age(text: Any, now: datetime) -> str:
    """How long ago an RFC 3339 time was; `<unknown>` when it is missing or no time."""
    if not isinstance(text, str):
        return "<unknown>"
    try:
        return human_duration((now - parse_time(text)).total_seconds())
    except (ValueError, OverflowError):
        return "<unknown>"


@lru_cache(maxsize=512)
def _cells(columns: tuple[Column, ...]) -> tuple[Cell, ...]:
    return tuple(_cell(column) for column in columns)


def _cell(column: Column) -> Cell:
    if column.json_path.startswith("@"):
        return _BUILTIN[column.json_path]
    find = compile_path(column.json_path)
    convert = _CONVERT.get(column.type, _as_text)

    def cell(obj: Mapping[str, Any], now: datetime) -> Any:
        found = find(obj)
        if not found or found[0] is None:
            return None if column.type != "date" else "<unknown>" if column.json_path == ".metadata.creationTimestamp" else None
        return convert(found, now)

    return cell


@lru_cache(maxsize=2048)
def compile_path(path: str) -> Callable[[Mapping[str, Any]], list[Any]]:
    """A function that gives all values at a JSONPath.

    Raises:
        ValueError: the path cannot be read.
    """
    text = path.strip()
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    if _SIMPLE_PATH.match(text):
        keys = tuple(text[1:].split("."))

        def walk(obj: Mapping[str, Any]) -> list[Any]:
            value: Any = obj
            for key in keys:
                if not isinstance(value, dict) or key not in value:  # not Mapping: an abstract check costs ten times as much
                    return []
                value = value[key]
            return [value]

        return walk
    if not text.startswith((".", "[")):
        raise ValueError(f"a JSON path starts with a dot, this one does not: {path}")
    from jsonpath_ng.exceptions import JSONPathError  # noqa: PLC0415 - 1 MB that our own definitions have no need of
    from jsonpath_ng.ext.parser import parse as parse_json_path  # noqa: PLC0415

    # kubectl writes a dot inside a key as \. and compares with ==, jsonpath-ng wants quotes.
    quoted = re.sub(r"\.((?:[^.\[\]\\\s]|\\.)*\\\.(?:[^.\[\]\\\s]|\\.)*)", lambda m: '."' + m[1].replace("\\.", ".") + '"', text)
    try:
        parsed = parse_json_path("$" + quoted)
    except (JSONPathError, AttributeError, TypeError) as error:
        raise ValueError(f"the JSON path {path} cannot be read: {error}") from None

    def search(obj: Mapping[str, Any]) -> list[Any]:
        try:
            return [match.value for match in parsed.find(obj)]
        except (TypeError, KeyError, IndexError, AttributeError):
            return []  # A filter that compares text with numbers: the cell stays empty.

    return search


def _as_text(found: list[Any], now: datetime) -> Any:
    if len(found) > 1:
        return ",".join(_plain(item) for item in found)
    return _plain(found[0])


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    return orjson.dumps(value).decode()


def _as_integer(found: list[Any], now: datetime) -> Any:
    value = found[0]
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and abs(value) < 2**63:
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,18}", value):
        return int(value)
    return None


def _as_number(found: list[Any], now: datetime) -> Any:
    value = found[0]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    return None


def _as_boolean(found: list[Any], now: datetime) -> Any:
    return found[0] if isinstance(found[0], bool) else None


def _as_age(found: list[Any], now: datetime) -> Any:
    return age(found[0], now)


_CONVERT: dict[str, Callable[[list[Any], datetime], Any]] = {
    "integer": _as_integer,
    "number": _as_number,
    "boolean": _as_boolean,
    "date": _as_age,
}


# --- cells of built-in kinds that no path describes ----------------------------------------------------------------------


def _role_reference(obj: Mapping[str, Any], now: datetime) -> Any:
    reference = obj.get("roleRef") or {}
    return f"{reference.get('kind')}/{reference.get('name')}"


def _count_of(*fields: str) -> Cell:
    def cell(obj: Mapping[str, Any], now: datetime) -> Any:
        return sum(len(obj.get(name) or ()) for name in fields)

    return cell


def _event_time(obj: Mapping[str, Any]) -> Any:
    return obj.get("eventTime") or (obj.get("metadata") or {}).get("creationTimestamp")


def _last_seen(obj: Mapping[str, Any], now: datetime) -> str:
    series = obj.get("series") or {}
    last = series.get("lastObservedTime") or obj.get("lastTimestamp") or obj.get("deprecatedLastTimestamp") or _event_time(obj)
    return age(last, now)


def _first_seen(obj: Mapping[str, Any], now: datetime) -> str:
    return age(obj.get("firstTimestamp") or obj.get("deprecatedFirstTimestamp") or _event_time(obj), now)


def _target(obj: Mapping[str, Any]) -> Mapping[str, Any]:
    return obj.get("involvedObject") or obj.get("regarding") or {}


def _event_object(obj: Mapping[str, Any], now: datetime) -> str:
    target = _target(obj)
    return f"{str(target.get('kind') or '').lower()}/{target.get('name') or ''}"


def _event_subobject(obj: Mapping[str, Any], now: datetime) -> str:
    return str(_target(obj).get("fieldPath") or "")


def _event_source(obj: Mapping[str, Any], now: datetime) -> str:
    source = obj.get("source") or obj.get("deprecatedSource") or {}
    component = source.get("component") or obj.get("reportingComponent") or obj.get("reportingController") or ""
    host = source.get("host") or obj.get("reportingInstance") or ""
    return ", ".join(part for part in (component, host) if part)


def _event_message(obj: Mapping[str, Any], now: datetime) -> str:
    return str(obj.get("message") or obj.get("note") or "").strip()


def _event_count(obj: Mapping[str, Any], now: datetime) -> int:
    series = obj.get("series") or {}
    return int(series.get("count") or obj.get("count") or obj.get("deprecatedCount") or 1)


_BUILTIN: dict[str, Cell] = {
    "@last_seen": _last_seen,
    "@first_seen": _first_seen,
    "@event_object": _event_object,
    "@event_subobject": _event_subobject,
    "@event_source": _event_source,
    "@event_message": _event_message,
    "@event_count": _event_count,
    "@secret_data": _count_of("data"),
    "@configmap_data": _count_of("data", "binaryData"),
    "@secrets": _count_of("secrets"),
    "@role_ref": _role_reference,
    **CELLS,
}
