"""Four times as much takes about four times as long: no request holds the event loop for the square of its size.

Nothing here looks at a clock: calls and comparisons are counted.
"""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest

from swarmtask.apiserver.apply import record_update, server_side_apply
from swarmtask.apiserver.bodies import DUPLICATES_LIMIT, duplicate_paths, yaml_to_json
from swarmtask.apiserver.builtins import builtin_types
from swarmtask.apiserver.schema import MAX_PRUNED, Structural
from swarmtask.apiserver.schema_checks import MAX_CAUSES
from swarmtask.apiserver.selectors import TERMS_LIMIT, FieldSelector, LabelSelector
from swarmtask.apiserver.strategic import strategic_merge
from swarmtask.apiserver.wire import CAUSE_LIMIT, MESSAGE_LIMIT, status_of
from swarmtask.errors import BadRequest, Cause, Conflict, Invalid
from tests.apiserver.in_process import Caller

CONFIG_MAP = next(rt for rt in builtin_types() if (rt.api_version, rt.kind) == ("v1", "ConfigMap"))
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
NOW = datetime(2026, 1, 2, tzinfo=UTC)
SMALL, LARGE = 400, 1600
"""Bounds of what is told are far below the first, so that both meet them."""


def calls(work: Callable[[], object]) -> int:
    """Of functions, written in Python or in C, while something is done; what a garbage collection would call is not among them."""
    count = 0

    def notice(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before, collects = sys.getprofile(), gc.isenabled()
    gc.disable()
    sys.setprofile(notice)
    try:
        work()
    finally:
        sys.setprofile(before)
        if collects:
            gc.enable()
    return count


def grows_with_its_size(work: Callable[[int], Callable[[], object]]) -> None:
    small, large = calls(work(SMALL)), calls(work(LARGE))
    assert large < 5 * small + 1000, f"{small} calls for {SMALL}, {large} for {LARGE}"


# --- what a body is -------------------------------------------------------------------------------------------------------


def doubled(count: int) -> bytes:
    return b'{"data":{' + b",".join(b'"k%d":"","k%d":""' % (number, number) for number in range(count)) + b"}}"


def test_keys_given_twice() -> None:
    grows_with_its_size(lambda size: lambda: duplicate_paths(doubled(size)))
    assert duplicate_paths(doubled(3)) == ["data.k0", "data.k1", "data.k2"]
    assert len(duplicate_paths(doubled(LARGE))) == DUPLICATES_LIMIT
    yaml = b"data:\n" + b"".join(b"  k%d: a\n  k%d: b\n" % (number, number) for number in range(SMALL))
    assert len(yaml_to_json(yaml)[1]) == DUPLICATES_LIMIT


@pytest.mark.parametrize("form", [b'{"%s":{%s}}', b"%s: {%s}"])
def test_a_long_key_is_not_told_with_all_that_is_below_it(form: bytes) -> None:
    body = form % (b"K" * 1000, b",".join(b'"k%d":1,"k%d":2' % (number, number) for number in range(SMALL)))
    paths = duplicate_paths(body) if body[:1] == b"{" else yaml_to_json(body)[1]
    assert len(paths) == DUPLICATES_LIMIT
    assert max(map(len, paths)) < 300
    structural = Structural(
        {"type": "object", "properties": {"spec": {"type": "object", "additionalProperties": {"type": "object"}}}}
    )
    obj = {"spec": {"K" * 1000: {f"k{number}": 1 for number in range(SMALL)}}}
    unknown = structural.prune(obj)
    assert obj == {"spec": {"K" * 1000: {}}}
    assert len(unknown) == MAX_PRUNED
    assert max(map(len, unknown)) < 300


# --- patches --------------------------------------------------------------------------------------------------------------


class Counted(str):
    """A text that counts how often one is compared with another."""

    compared = 0
    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other) is True

    __hash__ = str.__hash__


def texts(numbers: range) -> list[Counted]:
    return [Counted(f"a.io/{number}") for number in numbers]


def comparisons(work: Callable[[], object]) -> int:
    Counted.compared = 0
    work()
    return Counted.compared


SET = {"properties": {"set": {"type": "array", "x-kubernetes-patch-strategy": "merge"}}}
KEYED = {"properties": {"set": {"type": "array", "x-kubernetes-patch-strategy": "merge", "x-kubernetes-patch-merge-key": "name"}}}


@pytest.mark.parametrize(
    ("schema", "current", "patch"),
    [
        (SET, lambda size: [], lambda size: {"set": texts(range(size))}),
        (SET, lambda size: texts(range(size)), lambda size: {"set": texts(range(size // 2, 2 * size))}),
        (SET, lambda size: texts(range(size)), lambda size: {"$deleteFromPrimitiveList/set": texts(range(0, size, 2))}),
        (SET, lambda size: texts(range(size)), lambda size: {"$setElementOrder/set": texts(range(size - 1, 0, -2))}),
        (KEYED, lambda size: [{"name": one} for one in texts(range(size))], lambda size: {
            "set": [{"name": one, "v": 1} for one in texts(range(size // 2, 2 * size))]
        }),
        (KEYED, lambda size: [{"name": one} for one in texts(range(size))], lambda size: {
            "set": [{"name": one, "$patch": "delete"} for one in texts(range(size))]
        }),
        (KEYED, lambda size: [{"name": one} for one in texts(range(size))], lambda size: {
            "$setElementOrder/set": [{"name": one} for one in texts(range(size - 1, 0, -2))]
        }),
    ],
    ids=["new", "more", "delete", "order", "keyed", "keyed-delete", "keyed-order"],
)  # fmt: skip
def test_lists_that_are_merged(schema: dict[str, Any], current: Any, patch: Any) -> None:
    def of(size: int) -> int:
        stored, wish = {"set": current(size)}, patch(size)
        return comparisons(lambda: strategic_merge(schema, stored, wish))

    assert of(LARGE) <= 5 * of(SMALL) + 100
    assert of(LARGE) <= 20 * LARGE


def test_equal_items_and_items_of_one_key_are_merged_as_before() -> None:
    assert strategic_merge(SET, {"set": ["x", "x"]}, {"set": ["b", "a", "x", "b", 1, True]}) == {
        "set": ["x", "x", "b", "a", 1, True]
    }
    stored = {"set": [{"name": "a", "n": 1}, {"name": "b"}, {"name": "a", "n": 2}, "odd"]}
    gone = {"set": [{"name": "a", "$patch": "delete"}, {"name": "a", "n": 3}, {"name": "c"}, {"name": "c", "n": 4}]}
    assert strategic_merge(KEYED, stored, gone) == {"set": [{"name": "b"}, {"name": "a", "n": 3}, "odd", {"name": "c", "n": 4}]}


# --- who owns what --------------------------------------------------------------------------------------------------------


def owned(operation: str, count: int) -> list[dict[str, Any]]:
    return [
        {
            "manager": f"m{number}", "operation": operation, "apiVersion": "v1", "time": "2020-01-01T00:00:00Z",
            "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {f"f:k{number}": {}}},
        }
        for number in range(count)
    ]  # fmt: skip


def stored_for(count: int, operation: str) -> dict[str, Any]:
    data = {f"k{number}": "a" for number in range(count)}
    return {
        "apiVersion": "v1", "kind": "ConfigMap", "data": data,
        "metadata": {"name": "x", "managedFields": owned(operation, count)},
    }  # fmt: skip


@pytest.mark.parametrize("operation", ["Apply", "Update"])
def test_an_update_of_what_many_managers_own(operation: str) -> None:
    def work(size: int) -> Callable[[], object]:
        old = stored_for(size, operation)
        new = orjson.loads(orjson.dumps(old))
        new["metadata"]["labels"] = {f"l{number}": "v" for number in range(size)}
        new["data"]["k1"] = "b"
        return lambda: record_update(CONFIG_MAP, old, new, manager="me", now=NOW, subresource="")

    grows_with_its_size(work)


def test_an_apply_over_what_many_managers_own() -> None:
    def work(size: int) -> Callable[[], object]:
        live = stored_for(size, "Apply")
        applied = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": dict.fromkeys(live["data"], "b")}
        return lambda: server_side_apply(CONFIG_MAP, live, applied, manager="me", force=True, now=NOW, subresource="")

    grows_with_its_size(work)


def test_conflicts_are_counted_and_the_first_told() -> None:
    live = stored_for(SMALL, "Apply")
    applied = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": dict.fromkeys(live["data"], "b")}
    with pytest.raises(Conflict, match=f"with {SMALL} conflicts") as error:
        server_side_apply(CONFIG_MAP, live, applied, manager="me", force=False, now=NOW, subresource="")
    assert len(error.value.causes) == MAX_CAUSES
    assert error.value.message.endswith(f"\nand {SMALL - MAX_CAUSES} more")


# --- selectors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("term", ["a!={}", "k{}!=x", "!k{}", "a notin (x,{})"])
def test_an_object_is_held_against_a_selector_label_by_label(term: str) -> None:
    labels = {"a": "b", "c": "d"}

    def work(size: int) -> Callable[[], object]:
        selector = LabelSelector(",".join(term.format(number) for number in range(size)))
        assert selector.matches(labels)
        return lambda: selector.matches(labels)

    assert calls(work(TERMS_LIMIT)) <= calls(work(10))


@pytest.mark.parametrize(
    ("text", "labels", "matches"),
    [
        ("a", {}, False), ("a", {"a": ""}, True), ("!a", {"b": "c"}, True), ("!a", {"a": ""}, False), ("a,!a", {"a": "x"}, False),
        ("a!=x", {}, True), ("a!=x,a", {}, False), ("a!=x,a!=y", {"a": "y"}, False), ("a!=x,a!=y", {"a": "z"}, True),
        ("a in (x,y),a in (y,z)", {"a": "y"}, True), ("a in (x,y),a in (y,z)", {"a": "x"}, False), ("a=x,a=y", {"a": "x"}, False),
        ("a=", {"a": ""}, True), ("a=", {}, False), ("a in (x,y),a!=x", {"a": "x"}, False), ("a>3,a<5", {"a": "4"}, True),
        ("a>3,a>4", {"a": "4"}, False), ("a<5,a<3", {"a": "4"}, False), ("a>3", {"a": "x"}, False), ("a>3", {}, False),
        ("a>-1,a<1", {"a": "0"}, True), ("a>0", {"a": "0"}, False), ("a,b,c", {"a": "", "b": ""}, False),
        ("!a,b!=x", {"b": "y", "c": "", "d": ""}, True), ("!a,a!=x", {}, True), ("!a,a=x", {}, False),
    ],
)  # fmt: skip
def test_requirements_of_one_label_hold_together(text: str, labels: dict[str, str], matches: bool) -> None:
    assert LabelSelector(text).matches(labels) is matches
    assert LabelSelector(text).matches({**labels, "other": "x", "more": "y"}) is matches


@pytest.mark.parametrize("option", ["labelSelector", "fieldSelector"])
def test_the_requirements_of_a_selector_are_bounded(option: str) -> None:
    def make(count: int) -> object:
        text = ",".join(f"metadata.name!=n{number}" for number in range(count))
        return LabelSelector(text) if option == "labelSelector" else FieldSelector(text, CONFIG_MAP)

    assert make(TERMS_LIMIT)
    with pytest.raises(BadRequest, match=f"more than {TERMS_LIMIT} requirements"):
        make(TERMS_LIMIT + 1)


# --- answers --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_answer_tells_the_first_causes_and_how_many_more_there_are(tmp_path: Path) -> None:
    caller = Caller(tmp_path / "x.db")
    try:
        body = orjson.dumps({"metadata": {"name": "x", "ownerReferences": [{}] * 20_000}})
        answer = caller.send("POST", CONFIG_MAPS, body)
        assert answer.code == 422
        causes = answer.json()["details"]["causes"]
        assert len(causes) == MAX_CAUSES + 1
        more = re.fullmatch(r"and (\d+) more", causes[-1]["message"])
        assert more is not None
        assert int(more[1]) >= 80_000 - MAX_CAUSES
        assert answer.json()["message"].endswith(f"{more[0]}]")
        assert len(answer.content) < 50_000
    finally:
        caller.close()


def test_long_words_are_cut() -> None:
    status = status_of(Invalid("m" * 10**6, causes=[Cause("f" * 10**6, "FieldValueInvalid", "w" * 10**6)]))
    (cause,) = status["details"]["causes"]
    assert len(status["message"]) == MESSAGE_LIMIT + 3
    assert (len(cause["field"]), len(cause["message"])) == (CAUSE_LIMIT + 3, CAUSE_LIMIT + 3)
