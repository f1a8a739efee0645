"""`cancel` and `retry` on many tasks: which are meant, what is asked, how failures count, how many requests are under way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from swarmtask.cli import bulk
from swarmtask.errors import Forbidden
from swarmtask.resources.kinds import SWARM_QUEUE, SWARM_TASK
from swarmtask.resources.task import ANNOTATION_CANCEL, ANNOTATION_RETRY, Phase
from tests.cli.conftest import Swarmtask
from tests.cli.tasks import add_task
from tests.fakes.kube import FakeKube


def marked(kube: FakeKube, annotation: str) -> set[str]:
    return {
        task["metadata"]["name"] for task in kube.all(SWARM_TASK) if annotation in (task["metadata"].get("annotations") or {})
    }  # fmt: skip


def one_of_each(kube: FakeKube, suffix: str = "", **more: Any) -> None:
    for phase in Phase:
        add_task(kube, f"{phase.value.lower()}{suffix}", phase.value, **more)


def test_all_dead_means_those_that_failed(swarmtask: Swarmtask, kube: FakeKube) -> None:
    one_of_each(kube)
    one_of_each(kube, "-night", queue="night")
    result = swarmtask("retry", "--all-dead", "--queue", "night")
    assert (result.exit_code, result.stdout) == (0, "swarmtask.swarmtask.io/failed-night retry requested\n")
    assert marked(kube, ANNOTATION_RETRY) == {"failed-night"}
    assert swarmtask("retry", "--all-dead", "-l", "app=test").exit_code == 0
    assert marked(kube, ANNOTATION_RETRY) == {"failed", "failed-night"}


def test_a_selector_alone_retries_whatever_did_not_succeed(swarmtask: Swarmtask, kube: FakeKube) -> None:
    one_of_each(kube)
    result = swarmtask("retry", "-l", "app=test")
    assert result.exit_code == 0, result.stderr
    assert marked(kube, ANNOTATION_RETRY) == {"failed", "cancelled", "expired"}
    assert "retry: 3 of 3 tasks" in result.stderr


def test_cancel_all_means_those_that_have_not_ended(swarmtask: Swarmtask, kube: FakeKube) -> None:
    one_of_each(kube)
    one_of_each(kube, "-night", queue="night")
    assert swarmtask("cancel", "--all", "--queue", "night", "--reason", "wrong data").exit_code == 0
    assert marked(kube, ANNOTATION_CANCEL) == {
        f"{phase}-night" for phase in ("pending", "queued", "starting", "running", "unknown", "backoff")
    }
    assert swarmtask("cancel", "-l", "app=test").exit_code == 0
    assert len(marked(kube, ANNOTATION_CANCEL)) == 12


@pytest.mark.parametrize(("command", "arguments"), [("cancel", ["--all"]), ("retry", ["--all-dead"])])
def test_a_dry_run_says_everything_and_changes_nothing(
    swarmtask: Swarmtask, kube: FakeKube, command: str, arguments: list[str]
) -> None:
    one_of_each(kube)
    one_of_each(kube, "-2")
    result = swarmtask(command, *arguments, "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert result.stdout
    assert all(line.endswith(f"{command} requested (dry run)") for line in result.stdout.splitlines())
    assert not marked(kube, ANNOTATION_CANCEL) | marked(kube, ANNOTATION_RETRY)
    by_name = swarmtask("retry", "failed", "running", "--dry-run")
    assert (by_name.exit_code, "failed retry requested (dry run)" in by_name.stdout) == (6, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("retry",), ("retry", "a", "--all-dead"), ("retry", "a", "-l", "x=y"), ("retry", "a", "--queue", "q"),
        ("retry", "--queue", "q"),
        ("cancel",), ("cancel", "a", "--all"), ("cancel", "--queue", "q"), ("cancel", "a", "--queue", "q"),
    ],
)  # fmt: skip
def test_what_is_meant_must_be_said_in_one_way(swarmtask: Swarmtask, kube: FakeKube, arguments: tuple[str, ...]) -> None:
    assert swarmtask(*arguments).exit_code == 2
    assert not kube.calls


def test_failures_in_between_are_told_and_the_rest_is_done(swarmtask: Swarmtask, kube: FakeKube) -> None:
    for number in range(40):
        add_task(kube, f"t{number:02}", "Failed")
    kube.fail("patch", lambda: Forbidden("not yours"), name="t07")
    kube.fail("patch", lambda: Forbidden("not yours"), name="t31")
    result = swarmtask("retry", "--all-dead")
    assert result.exit_code == 6
    assert len(marked(kube, ANNOTATION_RETRY)) == 38
    assert "retry: 38 of 40 tasks, 2 failed" in result.stderr
    assert [line.split()[0][-3:] for line in result.stdout.splitlines()] == [
        f"t{number:02}" for number in range(40) if number not in (7, 31)
    ]  # fmt: skip


def test_hundreds_are_under_way_together_but_not_all_at_once(
    swarmtask: Swarmtask, kube: FakeKube, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(300):
        add_task(kube, f"t{number:03}", "Failed")
    under_way, most, original = 0, 0, kube.patch

    async def patch(*arguments: Any, **options: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            await asyncio.sleep(0)
            return await original(*arguments, **options)
        finally:
            under_way -= 1

    monkeypatch.setattr(kube, "patch", patch)
    assert swarmtask("retry", "--all-dead").exit_code == 0
    assert len(marked(kube, ANNOTATION_RETRY)) == 300
    assert most == bulk.IN_FLIGHT


def test_a_task_that_was_made_anew_under_the_same_name_is_left_alone(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_task(kube, "lint", "Failed")
    original = kube.list

    async def list_(*arguments: Any, **options: Any) -> Any:
        found = await original(*arguments, **options)
        kube.remove(SWARM_TASK, "lint", "default")
        add_task(kube, "lint", "Failed")
        return found

    kube.list = list_  # type: ignore[method-assign]
    assert swarmtask("retry", "--all-dead").exit_code == 4
    assert not marked(kube, ANNOTATION_RETRY)


def test_somebody_at_a_terminal_is_asked_before_several(
    swarmtask: Swarmtask, kube: FakeKube, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def agreed(count: int, verb: str) -> bool:
        asked.append(count)
        return verb == "retry"

    one_of_each(kube)
    one_of_each(kube, "-2")
    monkeypatch.setattr(bulk, "_agreed", agreed)
    refused = swarmtask("cancel", "--all")
    assert (refused.exit_code, refused.stdout) == (0, "")
    assert "Nothing was done." in refused.stderr
    assert swarmtask("retry", "--all-dead").exit_code == 0
    assert swarmtask("cancel", "--all", "--yes").exit_code == 0
    assert swarmtask("retry", "failed").exit_code == 0
    assert asked == [12, 2]
    assert len(marked(kube, ANNOTATION_CANCEL)) == 12


def test_the_runs_of_an_array_are_left_to_the_array(swarmtask: Swarmtask, kube: FakeKube) -> None:
    array = add_task(kube, "array", "Failed")
    owner = {
        "apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmTask", "name": "array", "uid": array["metadata"]["uid"],
        "controller": True,
    }  # fmt: skip
    add_task(kube, "array-7", "Failed")
    kube.edit(SWARM_TASK, "array-7", "default", {"metadata": {"ownerReferences": [owner]}})
    assert swarmtask("retry", "--all-dead").stdout == "swarmtask.swarmtask.io/array retry requested\n"
    refused = swarmtask("retry", "array-7")
    assert refused.exit_code == 6
    assert "`swarmtask retry array` runs again what failed" in refused.stderr


@pytest.mark.parametrize("spelling", ["lint", "st/lint", "tasks/lint", "SwarmTask/lint", "swarmtask.swarmtask.io/lint"])
def test_a_name_may_say_its_kind(swarmtask: Swarmtask, kube: FakeKube, spelling: str) -> None:
    add_task(kube, "lint", "Running")
    assert swarmtask("cancel", spelling).exit_code == 0
    assert marked(kube, ANNOTATION_CANCEL) == {"lint"}


@pytest.mark.parametrize("spelling", ["team/lint", "default/lint", "sq/lint", "/lint", "st/team/lint"])
@pytest.mark.parametrize(
    "command", [("cancel",), ("retry",), ("logs",), ("explain",), ("queue", "front"), ("queue", "position")], ids=" ".join
)
def test_a_name_with_a_namespace_is_not_taken_for_a_task_of_this_one(
    swarmtask: Swarmtask, kube: FakeKube, command: tuple[str, ...], spelling: str
) -> None:
    add_task(kube, "lint", "Queued")
    before = kube.all(SWARM_TASK)
    result = swarmtask(*command, spelling)
    assert (result.exit_code, result.stdout) == (6, "")
    assert "is not the name of a SwarmTask" in result.stderr
    assert "-n" in result.stderr
    assert kube.all(SWARM_TASK) == before


@pytest.mark.parametrize("verb", ["hold", "release", "drain"])
def test_a_task_is_not_taken_for_a_queue(swarmtask: Swarmtask, kube: FakeKube, verb: str) -> None:
    kube.add(SWARM_QUEUE, {"metadata": {"name": "night"}, "spec": {}})
    before = kube.all(SWARM_QUEUE)
    result = swarmtask("queue", verb, "st/night")
    assert result.exit_code == 6
    assert "is not the name of a SwarmQueue" in result.stderr
    assert kube.all(SWARM_QUEUE) == before


@pytest.mark.parametrize(("command", "everything"), [("cancel", "--all"), ("retry", "--all-dead")])
def test_a_queue_alone_says_what_is_missing(swarmtask: Swarmtask, kube: FakeKube, command: str, everything: str) -> None:
    one_of_each(kube)
    before = kube.all(SWARM_TASK)
    result = swarmtask(command, "--queue", "default")
    assert result.exit_code == 2
    assert f"add {everything}" in " ".join(result.stderr.split())
    assert kube.all(SWARM_TASK) == before


@pytest.mark.parametrize(("phase", "waits"), [("Succeeded", False), ("Cancelled", False), ("Expired", False), ("Queued", True)])
def test_logs_advise_to_wait_only_for_what_can_still_run(swarmtask: Swarmtask, kube: FakeKube, phase: str, waits: bool) -> None:
    add_task(kube, "lint", phase, message="took the outcome of other")
    result = swarmtask("logs", "lint")
    assert result.exit_code == 3
    assert ("logs -f lint" in result.stderr) is waits
    assert ("has ended without running" in result.stderr) is not waits
    assert "took the outcome of other" in result.stderr


@pytest.mark.parametrize(("command", "everything"), [("cancel", "--all"), ("retry", "--all-dead")])
def test_a_queue_that_does_not_exist_is_no_empty_queue(swarmtask: Swarmtask, kube: FakeKube, command: str, everything: str) -> None:
    one_of_each(kube)
    result = swarmtask(command, everything, "--queue", "nihgt")
    assert result.exit_code == 3, result.stderr
    assert "there is no queue nihgt in namespace" in result.stderr
    assert not marked(kube, ANNOTATION_CANCEL) | marked(kube, ANNOTATION_RETRY)
    kube.add(SWARM_QUEUE, {"metadata": {"name": "night"}, "spec": {}})
    empty = swarmtask(command, everything, "--queue", "night")
    assert (empty.exit_code, "No task matches." in empty.stderr) == (0, True)
