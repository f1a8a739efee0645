"""`run`, `cancel`, `retry` and `logs`: what they write to the API and what they show."""

from __future__ import annotations

import json
import re
import threading

import pytest

from swarmtask.cli.run import generated_name
from swarmtask.engines.base import Workload
from swarmtask.resources.kinds import SWARM_TASK
from swarmtask.resources.task import ANNOTATION_CANCEL, ANNOTATION_RETRY, attempt_id
from tests.cli.conftest import Swarmtask
from tests.cli.tasks import add_task, attempt
from tests.fakes.engine import FakeEngine, Outcome
from tests.fakes.kube import FakeKube


def annotations(kube: FakeKube, name: str) -> dict[str, str]:
    stored = kube.peek(SWARM_TASK, name, "default")
    assert stored is not None
    return dict(stored["metadata"].get("annotations") or {})


def test_run_writes_exactly_what_was_asked_for(swarmtask: Swarmtask, kube: FakeKube) -> None:
    result = swarmtask(
        "run", "acme/lint:1", "--name", "lint", "--cpu", "2", "--memory", "1Gi", "--gpu", "1", "--queue", "night", "--priority",
        "high", "--env", "A=1", "--env", "B=x=y", "--label", "team=red", "--node", "desk", "--engine", "local",
        "--backoff-limit", "0", "--", "sh", "-c", "echo --wait",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "swarmtask.swarmtask.io/lint created\n"
    stored = kube.peek(SWARM_TASK, "lint", "default")
    assert stored is not None
    assert stored["metadata"]["labels"] == {"team": "red"}
    assert stored["spec"] == {
        "queue": "night",
        "priorityClass": "high",
        "engine": "local",
        "backoffLimit": 0,
        "placement": {"nodeName": "desk"},
        "container": {
            "image": "acme/lint:1",
            "command": ["sh", "-c", "echo --wait"],
            "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "x=y"}],
            "resources": {"requests": {"cpu": "2", "memory": "1Gi", "gpu": 1}},
        },
    }


def test_run_says_nothing_that_was_not_asked_for(swarmtask: Swarmtask, kube: FakeKube) -> None:
    result = swarmtask("run", "acme/lint", "--priority", "-7", "-o", "name")
    assert result.exit_code == 0, result.stderr
    name = result.stdout.strip().rpartition("/")[2]
    stored = kube.peek(SWARM_TASK, name, "default")
    assert stored is not None
    assert stored["spec"] == {"priority": -7, "container": {"image": "acme/lint"}}


@pytest.mark.parametrize(
    ("image", "stem"),
    [
        ("ghcr.io/acme/lint:1.4", "lint"),
        ("localhost:5000/Tool_x", "tool-x"),
        ("a@sha256:" + "0" * 64, "a"),
        ("x/" + "y" * 200, "y" * 40),
        ("...", "task"),
        ("sha256:" + "0" * 64, "task"),
    ],
)
def test_names_are_made_from_the_image_and_differ(image: str, stem: str) -> None:
    first, second = generated_name(image), generated_name(image)
    assert re.fullmatch(re.escape(stem) + r"-[a-z0-9]{5}", first)
    assert first != second


def test_run_of_a_taken_name_is_exit_code_4(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_task(kube, "lint")
    result = swarmtask("run", "acme/lint", "--name", "lint")
    assert result.exit_code == 4
    assert "lint" in result.stderr


def test_run_wait_ends_with_the_task(swarmtask: Swarmtask, kube: FakeKube) -> None:
    assert _run_until(swarmtask, kube, "good", {"phase": "Succeeded"}).exit_code == 0
    failed = _run_until(swarmtask, kube, "bad", {"phase": "Failed", "reason": "Error", "message": "exit code 3"})
    assert failed.exit_code == 1
    assert "bad: Failed: exit code 3" in failed.stderr


def test_run_wait_says_why_the_task_does_not_start(swarmtask: Swarmtask, kube: FakeKube) -> None:
    waits = {"phase": "Pending", "reason": "QueueNotFound", "message": "there is no SwarmQueue night in this namespace: create it"}
    begun = {"phase": "Queued", "reason": None, "message": None}
    result = _run_until(swarmtask, kube, "early", waits, waits | {"attempt": 0}, begun, {"phase": "Succeeded"})
    assert result.exit_code == 0, result.stderr
    said = [line for line in result.stderr.splitlines() if line.startswith("waiting for early")]
    assert said == ["waiting for early: Pending: there is no SwarmQueue night in this namespace: create it"]


def _run_until(swarmtask: Swarmtask, kube: FakeKube, name: str, *statuses: dict[str, object]):
    """`run --wait` in this thread, while the watch that it opens brings the end: the statuses are set by the first watch call."""
    original = kube.watch

    def watch(*arguments: object, **options: object):
        for status in statuses:
            kube.edit(SWARM_TASK, name, "default", {"status": status}, status=True)
        return original(*arguments, **options)  # type: ignore[arg-type]

    kube.watch = watch  # type: ignore[method-assign, assignment]
    try:
        return swarmtask("run", "acme/lint", "--name", name, "--wait")
    finally:
        kube.watch = original  # type: ignore[method-assign]


def test_cancel_sets_the_annotation_with_the_reason(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_task(kube, "lint", "Running")
    result = swarmtask("cancel", "lint", "--reason", "wrong branch")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "swarmtask.swarmtask.io/lint cancel requested\n"
    first = annotations(kube, "lint")[ANNOTATION_CANCEL]
    assert first.startswith("wrong branch at ")


@pytest.mark.slow
def test_cancel_goes_on_after_an_error_and_reports_it(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_task(kube, "done", "Succeeded")
    add_task(kube, "gone", "Cancelled")
    add_task(kube, "lint", "Queued")
    result = swarmtask("cancel", "missing", "done", "gone", "lint")
    assert result.exit_code == 1  # two different kinds of failure
    assert "lint cancel requested" in result.stdout
    assert "gone is cancelled already" in result.stdout
    assert ANNOTATION_CANCEL not in annotations(kube, "done")
    assert swarmtask("cancel", "missing").exit_code == 3
    assert swarmtask("cancel", "done").exit_code == 6


def test_a_selector_skips_what_cannot_be_cancelled(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_task(kube, "done", "Succeeded")
    add_task(kube, "lint", "Queued")
    result = swarmtask("cancel", "--selector", "app=test")
    assert (result.exit_code, result.stdout) == (0, "swarmtask.swarmtask.io/lint cancel requested\n")
    nothing = swarmtask("cancel", "-l", "app=nobody")
    assert (nothing.exit_code, nothing.stdout) == (0, "")
    assert "No task matches" in nothing.stderr


def test_retry_gives_a_new_value_and_takes_the_cancel_away(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_task(kube, "lint", "Cancelled")
    kube.edit(SWARM_TASK, "lint", "default", {"metadata": {"annotations": {ANNOTATION_CANCEL: "by me"}}})
    assert swarmtask("retry", "lint").exit_code == 0
    first = annotations(kube, "lint")
    assert ANNOTATION_CANCEL not in first
    assert swarmtask("retry", "lint").exit_code == 0
    assert annotations(kube, "lint")[ANNOTATION_RETRY] != first[ANNOTATION_RETRY]


@pytest.mark.parametrize("phase", ["Succeeded", "Running", "Queued"])
def test_retry_refuses_what_it_would_not_change(swarmtask: Swarmtask, kube: FakeKube, phase: str) -> None:
    add_task(kube, "lint", phase)
    result = swarmtask("retry", "lint")
    assert result.exit_code == 6
    assert ANNOTATION_RETRY not in annotations(kube, "lint")


def adopt(engine: FakeEngine, number: int, *lines: bytes) -> None:
    """The engine has run this attempt, and keeps its output."""
    uid = "00000000-0000-4000-8000-000000000001"
    if not engine._nodes:
        engine.add_node("n1")
    engine.adopt(
        Workload(attempt_id(uid, number), uid, "default", "lint", number, "n1", "acme/lint:1"),
        Outcome(output=lines, duration_s=0.0, prepare_s=0.0),
    )


def test_logs_without_an_attempt_say_why(swarmtask: Swarmtask, kube: FakeKube, engine: FakeEngine) -> None:
    add_task(kube, "lint", "Queued", message="0/1 nodes fit: 1 cordoned")
    result = swarmtask("logs", "lint")
    assert result.exit_code == 3
    assert "0/1 nodes fit: 1 cordoned" in result.stderr


def test_logs_that_are_gone_say_so(swarmtask: Swarmtask, kube: FakeKube, engine: FakeEngine) -> None:
    add_task(kube, "lint", "Succeeded", attempt=1, attempts=[attempt(1, "Succeeded")])
    result = swarmtask("logs", "lint")
    assert result.exit_code == 3
    assert "the output of attempt 1 of lint is gone" in result.stderr


def test_an_attempt_that_never_was_is_named(swarmtask: Swarmtask, kube: FakeKube, engine: FakeEngine) -> None:
    add_task(kube, "lint", "Running", attempt=1, attempts=[attempt(1)])
    result = swarmtask("logs", "lint", "--attempt", "7")
    assert result.exit_code == 3
    assert "no attempt 7" in result.stderr


def test_output_that_is_not_for_a_terminal_is_passed_on_unchanged(swarmtask: Swarmtask, kube: FakeKube, engine: FakeEngine) -> None:
    raw = b"\x1b[31mred\x1b[0m \xff\x00 bytes\n"
    add_task(kube, "lint", "Succeeded", attempt=1, attempts=[attempt(1, "Succeeded")])
    adopt(engine, 1, raw)
    result = swarmtask("logs", "task/lint")
    assert result.exit_code == 0, result.stderr
    assert result.stdout_bytes == raw


def test_following_goes_from_attempt_to_attempt(swarmtask: Swarmtask, kube: FakeKube, engine: FakeEngine) -> None:
    adopt(engine, 1, b"first\n")
    adopt(engine, 2, b"second\n")
    add_task(kube, "lint", "Queued", message="waiting for room")
    original, steps = kube.watch, threading.local()

    def watch(*arguments: object, **options: object):
        if not getattr(steps, "done", False):
            steps.done = True
            one, two = attempt(1, "Failed"), attempt(2, "Succeeded")
            for status in (
                {"phase": "Starting", "attempt": 1, "attempts": [attempt(1, "Starting")], "message": None},
                {"phase": "Backoff", "attempt": 1, "attempts": [one]},
                {"phase": "Running", "attempt": 2, "attempts": [one, attempt(2)]},
                {"phase": "Succeeded", "attempt": 2, "attempts": [one, two]},
            ):
                kube.edit(SWARM_TASK, "lint", "default", {"status": status}, status=True)
        return original(*arguments, **options)  # type: ignore[arg-type]

    kube.watch = watch  # type: ignore[method-assign, assignment]
    version = kube.peek(SWARM_TASK, "lint", "default")
    assert version is not None
    result = swarmtask("logs", "-f", "lint")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "first\nsecond\n"
    assert "waiting for lint: Queued: waiting for room" in result.stderr
    assert "attempt 2 on desk" in result.stderr


def test_a_dry_run_reaches_the_server_and_stores_nothing(swarmtask: Swarmtask, kube: FakeKube) -> None:
    result = swarmtask("run", "acme/lint", "--name", "lint", "--dry-run", "-o", "json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["metadata"]["name"] == "lint"
    assert kube.peek(SWARM_TASK, "lint", "default") is None
