"""Objects as text: the table of a kind's printer columns, json, yaml, names.

Called by `get`, `apply`, `run` and `status`. The same columns as `kubectl get` shows, because both come from `resources.kinds`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import orjson
import yaml
from rich.text import Text

from swarmtask.cli import terminal
from swarmtask.cli.options import Output
from swarmtask.clock import parse_time
from swarmtask.kube import Object
from swarmtask.resources.kinds import Column, Kind
from swarmtask.resources.units import human_duration

GAP = "   "


def value_at(obj: Object, json_path: str) -> Any:
    """The value at a simple JSONPath (`.a.b.c`), or None."""
    value: Any = obj
    for part in json_path.strip(".").split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value


def age(since: datetime, now: datetime) -> str:
    """How long ago. What a server with another clock dates into the future happened just now."""
    return human_duration(max(0.0, (now - since).total_seconds()))


def cell(column: Column, obj: Object, now: datetime) -> str:
    """One cell, safe for a terminal; empty where there is nothing to say."""
    value = value_at(obj, column.json_path)
    if value is None or value == "":
        return ""
    if column.type == "date":
        try:
            return age(parse_time(str(value)), now)
        except ValueError:
            return "<invalid>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return terminal.clean_line(",".join(str(item) for item in value))
    return terminal.clean_line(str(value))


class Table:
    """Rows under aligned headings. Rows may be added later (`get -w`): widths only grow."""

    def __init__(self, kind: Kind, *, wide: bool, namespaces: bool, now: datetime) -> None:
        self._columns = [column for column in kind.columns if wide or column.priority == 0]
        self._namespaces = namespaces and kind.namespaced
        self._now = now
        self._widths: list[int] = []
        self._headed = False

    def rows(self, objects: Iterable[Object], now: datetime | None = None, *, note: str = "") -> list[Text]:
        """Text lines for these objects, with the heading before the first ones.

        Args:
            note: put after each row, for example for a deleted object.
        """
        self._now = now or self._now
        body = [self._cells(obj, note) for obj in objects]
        lines = [] if self._headed else [self._heading()]
        self._headed = True
        self._widths = _grow(self._widths, [*lines, *body])
        return [_join(line, self._widths) for line in [*lines, *body]]

    def _heading(self) -> list[str]:
        return [*(["NAMESPACE"] if self._namespaces else []), "NAME", *(column.name.upper() for column in self._columns)]

    def _cells(self, obj: Object, note: str) -> list[str]:
        metadata = obj.get("metadata", {})
        names = [str(metadata.get("namespace", ""))] if self._namespaces else []
        names.append(str(metadata.get("name", "")))
        cells = [cell(column, obj, self._now) for column in self._columns]
        return [terminal.clean_line(name) for name in names] + cells + ([note] if note else [])


def plain_table(rows: Sequence[Sequence[str]]) -> list[Text]:
    """Aligned columns; the first row is the heading."""
    return [_join(row, _grow([], rows)) for row in rows]


def _grow(widths: list[int], rows: Iterable[Sequence[str]]) -> list[int]:
    result = list(widths)
    for row in rows:
        result += [0] * (len(row) - len(result))
        for index, text in enumerate(row):
            result[index] = max(result[index], len(text))
    return result


def _join(row: Sequence[str], widths: Sequence[int]) -> Text:
    line = Text()
    for index, text in enumerate(row):
        last = index == len(row) - 1
        line.append(text, style=terminal.PHASE_STYLES.get(text, ""))
        if not last:
            line.append(" " * (widths[index] - len(text)) + GAP)
    line.rstrip()
    return line


def reference(kind: Kind, obj: Object) -> str:
    """`swarmtask.swarmtask.io/lint`, as kubectl names an object."""
    group = f".{kind.group}" if kind.group else ""
    return terminal.clean_line(f"{kind.singular}{group}/{obj.get('metadata', {}).get('name', '')}")


def to_json(value: Any) -> str:
    """Indented JSON that no terminal can stumble over."""
    return terminal.escape_unsafe(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def to_yaml(value: Any) -> str:
    """YAML without anchors, and as harmless to a terminal as `to_json`."""
    return terminal.escape_unsafe(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Never writes anchors: kubectl and people read plain documents."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Only a double-quoted scalar can hold the escapes that `escape_unsafe` puts in afterwards.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if terminal.is_unsafe(text) else None)


_Dumper.add_representer(str, _represent_text)


def tidy(obj: Object) -> Object:
    """Without managedFields, which no person reads."""
    metadata = {key: value for key, value in obj.get("metadata", {}).items() if key != "managedFields"}
    return {**obj, "metadata": metadata}


def print_objects(
    kind: Kind, objects: Sequence[Object], output: Output, *, now: datetime, single: bool = False, namespaces: bool = False
) -> None:
    """Write objects to stdout.

    Args:
        single: one object was asked for by name: json and yaml show it alone, not inside a List.
    """
    match output:
        case Output.TABLE | Output.WIDE:
            table = Table(kind, wide=output is Output.WIDE, namespaces=namespaces, now=now)
            print_lines(table.rows(objects))
        case Output.NAME:
            for obj in objects:
                terminal.emit(reference(kind, obj))
        case Output.JSON | Output.YAML:
            document = tidy(objects[0]) if single else {"apiVersion": "v1", "kind": "List", "items": [tidy(obj) for obj in objects]}
            terminal.emit(to_json(document) if output is Output.JSON else to_yaml(document))


def print_lines(lines: Iterable[Text]) -> None:
    """Write styled lines to stdout."""
    console = terminal.stdout()
    for line in lines:
        console.print(line)
    console.file.flush()
