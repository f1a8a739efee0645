"""Tables: cells, columns, ages."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmtask.apiserver.builtins import builtin_types
from swarmtask.apiserver.tables import age, compile_path, table
from swarmtask.apiserver.types import ResourceType
from swarmtask.clock import format_time
from swarmtask.resources.kinds import Column
from swarmtask.resources.units import human_duration

NOW = datetime(2026, 1, 10, tzinfo=UTC)
TYPES = {(rt.api_version, rt.kind): rt for rt in builtin_types()}
MINUTE, HOUR, DAY = 60, 3600, 86400
YEAR = 365 * DAY


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "<invalid>"), (-2, "0s"), (-0.5, "0s"), (0, "0s"), (0.9, "0s"), (59, "59s"), (119, "119s"), (120, "2m"), (121, "2m1s"),
        (5 * MINUTE, "5m"), (9 * MINUTE + 59, "9m59s"), (10 * MINUTE + 30, "10m"), (179 * MINUTE, "179m"), (3 * HOUR, "3h"),
        (3 * HOUR + 12 * MINUTE, "3h12m"), (7 * HOUR + 59 * MINUTE, "7h59m"), (8 * HOUR + MINUTE, "8h"), (47 * HOUR, "47h"),
        (2 * DAY, "2d"), (2 * DAY + 5 * HOUR, "2d5h"), (7 * DAY + 23 * HOUR, "7d23h"), (8 * DAY + HOUR, "8d"), (729 * DAY, "729d"),
        (2 * YEAR, "2y"), (2 * YEAR + 30 * DAY, "2y30d"), (8 * YEAR + DAY, "8y"), (50 * YEAR, "50y"),
    ],
)  # fmt: skip
def test_ages_are_written_as_kubectl_writes_them(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text


@pytest.mark.parametrize("value", [None, "", 3, "yesterday", "2026-01-01", "9999999-01-01T00:00:00Z", {}])
def test_an_age_of_no_time_is_unknown(value: Any) -> None:
    assert age(value, NOW) == "<unknown>"


@given(st.integers(0, 10**10))
def test_every_age_is_short(seconds: int) -> None:
    assert len(human_duration(seconds)) <= 6


def column_value(path: str, kind: str, obj: dict[str, Any]) -> Any:
    rt = ResourceType("a.io", "v1", "T", "ts", "t", namespaced=True, custom=True, columns=(Column("X", path, kind),))
    result = table(rt, [obj], include="None", now=NOW)
    assert [item["name"] for item in result["columnDefinitions"]] == ["Name", "X"]
    (row,) = result["rows"]
    assert len(row["cells"]) == 2
    return row["cells"][1]


OBJ: dict[str, Any] = {
    "metadata": {"name": "n", "creationTimestamp": format_time(NOW - timedelta(hours=3, minutes=12)), "labels": {"a.io/b": "l"}},
    "spec": {"text": "t", "number": 3, "float": 1.5, "yes": True, "list": ["a", "b"], "map": {"k": 1}, "none": None, "digits": "12",
             "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
    "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Hot", "status": "False"}]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "kind", "value"),
    [
        (".spec.text", "string", "t"), (".spec.number", "integer", 3), (".spec.number", "string", "3"), (".spec.float",
         "number", 1.5),
        (".spec.float", "integer", 1), (".spec.digits", "integer", 12), (".spec.text", "integer", None), (".spec.yes",
         "integer", None),
        (".spec.yes", "boolean", True), (".spec.text", "boolean", None), (".spec.yes", "string", "true"), (".spec.yes",
         "number", None),
        (".spec.list", "string", '["a","b"]'), (".spec.map", "string", '{"k":1}'), (".spec.none", "string", None),
        (".spec.missing.deep", "string", None), (".spec.text.deep", "string", None), (".spec.missing", "date", None),
        (".metadata.creationTimestamp", "date", "3h12m"), ("{.spec.text}", "string", "t"), (".spec.list[1]", "string", "b"),
        (".spec.list[9]", "string", None), (".spec.env[*].name", "string", "A,B"),
        ('.status.conditions[?(@.type=="Ready")].status', "string", "True"), (".status.conditions[?(@.type=='Hot')].status",
         "string", "False"),
        ('.status.conditions[?(@.type=="Gone")].status', "string", None), (".metadata.labels.a\\.io/b", "string", "l"),
        (".spec.text[?(@.x==1)]", "string", None),
    ],
)  # fmt: skip
def test_cells(path: str, kind: str, value: Any) -> None:
    assert column_value(path, kind, OBJ) == value


def test_an_object_without_a_creation_time_has_an_unknown_age() -> None:
    assert column_value(".metadata.creationTimestamp", "date", {"metadata": {"name": "n"}}) == "<unknown>"


@pytest.mark.parametrize("path", ["", "spec", ".spec[", ".spec[?(@.a==]", "{}", ".a..", ".[?"])
def test_paths_that_cannot_be_read_are_a_value_error(path: str) -> None:
    with pytest.raises(ValueError, match="JSON path"):
        compile_path(path)


def test_rows_carry_what_was_asked_for() -> None:
    rt = TYPES["v1", "ConfigMap"]
    obj = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "uid": "u"}, "data": {"a": "1"}}
    metadata = {"resourceVersion": "7", "continue": "x"}
    assert table(rt, [obj], include="Object", now=NOW, list_metadata=metadata)["rows"][0]["object"] is obj
    assert table(rt, [obj], include="Metadata", now=NOW)["rows"][0]["object"] == {
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {"name": "c", "uid": "u"}}  # fmt: skip
    result = table(rt, [obj], include="None", now=NOW, list_metadata=metadata, with_columns=False)
    assert result == {
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": [],
        "rows": [{"cells": ["c", 1, "<unknown>"]}],
    }  # fmt: skip
    assert table(rt, [], include="Object", now=NOW)["rows"] == []


@pytest.mark.parametrize(
    ("api_version", "kind", "obj", "cells"),
    [
        ("v1", "Namespace", {"status": {"phase": "Active"}}, ["x", "Active", "<unknown>"]),
        ("v1", "Secret", {"type": "Opaque", "data": {"a": "", "b": ""}}, ["x", "Opaque", 2, "<unknown>"]),
        ("v1", "Secret", {}, ["x", None, 0, "<unknown>"]),
        ("v1", "ConfigMap", {"data": {"a": ""}, "binaryData": {"b": ""}}, ["x", 2, "<unknown>"]),
        ("v1", "ServiceAccount", {"secrets": [{"name": "a"}]}, ["x", 1, "<unknown>"]),
        ("coordination.k8s.io/v1", "Lease", {"spec": {"holderIdentity": "me"}}, ["x", "me", "<unknown>"]),
    ],
)
def test_built_in_kinds(api_version: str, kind: str, obj: dict[str, Any], cells: list[Any]) -> None:
    result = table(TYPES[api_version, kind], [{"metadata": {"name": "x"}, **obj}], include="None", now=NOW)
    assert result["rows"][0]["cells"] == cells
    assert len(result["columnDefinitions"]) == len(cells)


def test_events_start_with_the_time_and_name_comes_last() -> None:
    old = {
        "metadata": {"name": "e"}, "type": "Normal", "reason": "Queued", "message": " waits\n", "count": 3,
        "involvedObject": {"kind": "SwarmTask", "name": "t", "fieldPath": "spec.x"}, "source": {"component": "c", "host": "h"},
        "firstTimestamp": format_time(NOW - timedelta(minutes=9)), "lastTimestamp": format_time(NOW - timedelta(seconds=5)),
    }  # fmt: skip
    expected = ["5s", "Normal", "Queued", "swarmtask/t", "spec.x", "c, h", "waits", "9m", 3, "e"]
    result = table(TYPES["v1", "Event"], [old], include="None", now=NOW)
    assert result["rows"][0]["cells"] == expected
    assert [item["name"] for item in result["columnDefinitions"] if not item["priority"]] == [
        "Last Seen", "Type", "Reason", "Object", "Message"]  # fmt: skip
    new = {
        "metadata": {"name": "e"}, "type": "Normal", "reason": "Queued", "note": "waits", "regarding": {"kind": "SwarmTask",
         "name": "t"},
        "reportingController": "c", "reportingInstance": "h", "eventTime": format_time(NOW - timedelta(minutes=9)),
        "series": {"count": 3, "lastObservedTime": format_time(NOW - timedelta(seconds=5))},
    }  # fmt: skip
    cells = table(TYPES["events.k8s.io/v1", "Event"], [new], include="None", now=NOW)["rows"][0]["cells"]
    assert cells == [*expected[:4], "", *expected[5:]]
    bare = table(TYPES["v1", "Event"], [{"metadata": {"name": "e"}}], include="None", now=NOW)["rows"][0]["cells"]
    assert bare == ["<unknown>", None, None, "/", "", "", "", "<unknown>", 1, "e"]
