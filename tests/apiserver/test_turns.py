"""Creates that come together take their steps together: what each of them decides is decided at once, on what is true then."""

from __future__ import annotations

import copy
import types
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from swarmtask.apiserver.builtins import types_of_crd
from swarmtask.apiserver.handlers_objects import CREATE_TRIES
from swarmtask.apiserver.records import Change
from swarmtask.apiserver.turns import Turns
from tests.apiserver.in_process import Caller
from tests.resources.bad_tasks import good_task

NAMESPACES = "/api/v1/namespaces"
TASKS = "/apis/swarmtask.io/v1alpha1/namespaces/default/swarmtasks"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
THINGS = "/apis/example.org/v1/namespaces/default/things"
JSON = "application/json"
CREATES = 30


@pytest.fixture
def caller(tmp_path: Path) -> Iterator[Caller]:
    caller = Caller(tmp_path / "x.db")
    try:
        yield caller
    finally:
        caller.close()


def definition(default: str) -> dict[str, Any]:
    spec = {"type": "object", "properties": {"a": {"type": "string", "default": default}}}
    schema = {"type": "object", "properties": {"spec": spec}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "things.example.org"},
        "spec": {
            "group": "example.org", "scope": "Namespaced", "names": {"plural": "things", "singular": "thing", "kind": "Thing"},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}],
        },
    }  # fmt: skip


def thing(name: str) -> dict[str, Any]:
    return {"apiVersion": "example.org/v1", "kind": "Thing", "metadata": {"name": name}, "spec": {}}


def test_creates_that_come_together_are_committed_together(caller: Caller) -> None:
    commits: list[int] = []

    def note(changes: Sequence[Change]) -> None:
        commits.append(len(changes))

    caller.app.store.subscribe(note)
    answers = caller.together([("POST", TASKS, orjson.dumps(good_task(f"t-{n}")), JSON) for n in range(CREATES)])
    assert {answer.code for answer in answers} == {201}
    assert commits == [CREATES]


def test_of_creates_of_one_name_one_is_first(caller: Caller) -> None:
    answers = caller.together([("POST", TASKS, orjson.dumps(good_task("same")), JSON)] * CREATES)
    assert sorted(answer.code for answer in answers) == [201, *[409] * (CREATES - 1)]
    assert len({answer.json()["metadata"].get("uid") for answer in answers if answer.code == 201}) == 1


def test_nothing_comes_into_a_namespace_that_ends_between_two_steps(caller: Caller) -> None:
    assert caller("POST", NAMESPACES, orjson.dumps({"metadata": {"name": "ends"}}))[0] == 201
    path = TASKS.replace("default", "ends")
    creates = [("POST", path, orjson.dumps({**good_task(f"t-{n}"), "metadata": {"name": f"t-{n}"}}), JSON) for n in range(CREATES)]
    *created, deleted = caller.together([*creates, ("DELETE", f"{NAMESPACES}/ends", b"", JSON)])
    assert deleted.code == 200
    assert {answer.code for answer in created} == {403}
    assert {cause["reason"] for answer in created for cause in answer.json()["details"]["causes"]} == {"NamespaceTerminating"}


def test_a_definition_that_changes_between_two_steps_is_the_one_that_counts(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert caller("POST", CRDS, orjson.dumps(definition("old")))[0] == 201
    assert caller("POST", THINGS, orjson.dumps(thing("before")))[1]["spec"] == {"a": "old"}
    original, seen = Turns.next, [0]

    @types.coroutine
    def change_it_then(turns: Turns) -> Generator[None, None, None]:
        yield from original(turns)
        seen[0] += 1
        if seen[0] == 3:
            for rt in types_of_crd(copy.deepcopy(definition("new"))):
                caller.app.registry.add(rt)

    monkeypatch.setattr(Turns, "next", change_it_then)
    code, answer = caller("POST", THINGS, orjson.dumps(thing("late")))
    assert (code, answer["spec"]) == (201, {"a": "new"})
    assert seen[0] == 8, "it began again"


@pytest.mark.parametrize(("changes", "code"), [(CREATE_TRIES - 1, 201), (CREATE_TRIES, 503)])
def test_a_definition_that_changes_all_the_time_is_not_waited_for(
    caller: Caller, monkeypatch: pytest.MonkeyPatch, changes: int, code: int
) -> None:
    assert caller("POST", CRDS, orjson.dumps(definition("0")))[0] == 201
    original, seen = Turns.next, [0]

    @types.coroutine
    def change_it_then(turns: Turns) -> Generator[None, None, None]:
        yield from original(turns)
        seen[0] += 1
        if seen[0] % 4 == 0 and seen[0] <= 4 * changes:
            for rt in types_of_crd(copy.deepcopy(definition(f"{seen[0]}"))):
                caller.app.registry.add(rt)

    monkeypatch.setattr(Turns, "next", change_it_then)
    answer = caller.send("POST", THINGS, orjson.dumps(thing("late")))
    assert answer.code == code
    if code == 503:
        assert answer.headers["retry-after"] == "1"
        assert caller("GET", f"{THINGS}/late")[0] == 404


def test_a_definition_that_goes_between_two_steps_takes_nothing_in(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    assert caller("POST", CRDS, orjson.dumps(definition("x")))[0] == 201
    original = Turns.next

    @types.coroutine
    def remove_it_then(turns: Turns) -> Generator[None, None, None]:
        yield from original(turns)
        caller.app.registry.remove("example.org", "things")

    monkeypatch.setattr(Turns, "next", remove_it_then)
    code, answer = caller("POST", THINGS, orjson.dumps(thing("late")))
    assert (code, answer["reason"]) == (404, "NotFound")


def test_who_is_cut_off_between_two_steps_is_waited_for_no_more() -> None:
    turns = Turns()
    step = turns.next()
    step.send(None)
    assert turns.waiting == 1
    step.close()
    assert turns.waiting == 0
