"""Arrays on the command line: `run --completions`, `logs --index`, `retry`, `explain`, `status`."""

from __future__ import annotations

from typing import Any

import pytest

from swarmtask.engines.base import Workload
from swarmtask.kube import Object
from swarmtask.lifecycle.members import member_object
from swarmtask.resources.kinds import SWARM_TASK
from swarmtask.resources.task import ANNOTATION_RETRY, SwarmTask, attempt_id
from tests.cli.conftest import Swarmtask
from tests.cli.tasks import add_task, attempt
from tests.fakes.engine import FakeEngine, Outcome
from tests.fakes.kube import FakeKube


def add_array(kube: FakeKube, phase: str = "Running", **array: Any) -> Object:
    """The array `many` of ten runs."""
    body = {
        "metadata": {"name": "many", "namespace": "default"},
        "spec": {"container": {"image": "acme/lint:1"}, "completions": 10},
    }
    message = "3 of 10 succeeded, 2 wait or run; failed: 4"
    return kube.add(SWARM_TASK, body, status={"phase": phase, "message": message, "array": array})


def add_run(kube: FakeKube, array: Object, index: int, phase: str, **status: Any) -> Object:
    body = member_object(SwarmTask.model_validate(array), index)
    return kube.add(SWARM_TASK, body, status={"phase": phase, **status})


def test_run_makes_an_array(swarmtask: Swarmtask, kube: FakeKube) -> None:
    result = swarmtask("run", "acme/lint", "--name", "many", "--completions", "200", "--parallelism", "20")
    assert result.exit_code == 0, result.stderr
    stored = kube.peek(SWARM_TASK, "many", "default")
    assert stored is not None
    assert stored["spec"] == {"completions": 200, "parallelism": 20, "container": {"image": "acme/lint"}}


@pytest.mark.parametrize(
    ("options", "words"), [(("--completions", "3", "-f"), "use --wait"), (("--parallelism", "3"), "give --completions too")]
)
def test_options_that_do_not_go_together_are_refused(
    swarmtask: Swarmtask, kube: FakeKube, options: tuple[str, ...], words: str
) -> None:
    result = swarmtask("run", "acme/lint", *options)
    assert result.exit_code == 2 and words in " ".join(result.stderr.replace("│", " ").split())
    assert not kube.all(SWARM_TASK)


def test_logs_of_one_run(swarmtask: Swarmtask, kube: FakeKube, engine: FakeEngine) -> None:
    run = add_run(kube, add_array(kube), 7, "Queued")
    uid = run["metadata"]["uid"]
    status = {"phase": "Succeeded", "attempt": 1, "attempts": [attempt(1, "Succeeded", uid=uid)]}
    kube.edit(SWARM_TASK, "many-7", "default", {"status": status}, status=True)
    workload = Workload(attempt_id(uid, 1), uid, "default", "many-7", 1, "n1", "acme/lint:1")
    if not engine._nodes:
        engine.add_node("n1")
    engine.adopt(workload, Outcome(output=(b"seven\n",), duration_s=0.0, prepare_s=0.0))
    result = swarmtask("logs", "many", "--index", "7")
    assert (result.exit_code, result.stdout) == (0, "seven\n"), result.stderr


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (1, "it succeeded; only the newest operator.keep_array_members"),
        (4, "it did not succeed (Failed: attempt 1 on desk: Error)"),
        (5, "it did not succeed (only the first ten"),
        (8, "it has not been begun yet"),
        (10, "its indices are 0 to 9"),
    ],
)
def test_logs_that_are_not_there_say_what_became_of_the_run(swarmtask: Swarmtask, kube: FakeKube, index: int, words: str) -> None:
    add_array(kube, completedIndexes="0-2", failedIndexes="4-5", failures=["4: Failed: attempt 1 on desk: Error"])
    result = swarmtask("logs", "many", "--index", str(index))
    assert result.exit_code == 3 and words in result.stderr


def test_logs_of_a_foreign_task_with_the_name_of_a_run_are_not_shown(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_array(kube)
    add_task(kube, "many-3", "Succeeded", attempt=1, attempts=[attempt(1, "Succeeded")])
    assert "not been begun" in swarmtask("logs", "many", "--index", "3").stderr


def test_an_array_has_no_output_of_its_own(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_array(kube)
    result = swarmtask("logs", "-f", "many")
    assert result.exit_code == 6 and "give --index N" in result.stderr and "swarmtask.io/array=many" in result.stderr
    add_task(kube, "lint", "Running")
    assert "lint is no array" in swarmtask("logs", "lint", "--index", "0").stderr


def test_a_run_is_not_retried_without_its_array(swarmtask: Swarmtask, kube: FakeKube) -> None:
    array = add_array(kube, "Failed")
    add_run(kube, array, 4, "Failed")
    result = swarmtask("retry", "many-4")
    assert result.exit_code == 6 and "`swarmtask retry many`" in result.stderr
    assert swarmtask("retry", "many").exit_code == 0
    stored = kube.peek(SWARM_TASK, "many", "default")
    assert stored is not None and ANNOTATION_RETRY in stored["metadata"]["annotations"]


def test_explain_names_a_run_that_waits(swarmtask: Swarmtask, kube: FakeKube) -> None:
    array = add_array(kube)
    assert "for example many-N" in swarmtask("explain", "many").stderr
    for index in (10, 9):
        add_run(kube, array, index, "Queued")
    result = swarmtask("explain", "many")
    assert result.exit_code == 6 and "for example many-9" in result.stderr


def test_status_counts_runs_and_tells_how_far_an_array_is(swarmtask: Swarmtask, kube: FakeKube) -> None:
    array = add_array(kube)
    for index in (5, 6):
        add_run(kube, array, index, "Running")
    shown = swarmtask("status").stdout
    assert "2 Running" in shown and "array many: 3 of 10 succeeded, 2 wait or run; failed: 4" in shown


def test_wide_shows_how_many_are_done(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_array(kube, progress="4/10")
    heading, row = swarmtask("get", "st", "-o", "wide").stdout.splitlines()
    assert row[heading.index("DONE") :].startswith("4/10")
