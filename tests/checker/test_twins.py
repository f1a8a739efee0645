"""The checker's rules about dedupeKey and failurePolicy: broken on purpose, and kept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from swarmtask.resources.task import attempt_id
from tests.checker.checker import Checker

START = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
FIRST, SECOND = "11111111-4b5a-6978-8796-a5b4c3d2e1f0", "22222222-4b5a-6978-8796-a5b4c3d2e1f0"


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def attempt(uid: str, number: int, state: str, **fields: Any) -> dict[str, Any]:
    return {"number": number, "id": attempt_id(uid, number), "node": "n1", "engine": "swarm", "state": state, **fields}


def task(uid: str, phase: str, *attempts: dict[str, Any], key: str = "k", policy: list[Any] | None = None, **status: Any) -> Any:
    return {
        "metadata": {"name": f"t{uid[0]}", "namespace": "team", "uid": uid},
        "spec": {"container": {"image": "lint:1"}, "dedupeKey": key, "failurePolicy": policy or []},
        "status": {"phase": phase, "attempt": len(attempts), "attempts": list(attempts), **status},
    }


def starting(uid: str, key: str = "k") -> Any:
    return task(uid, "Starting", attempt(uid, 1, "Starting"), key=key)


def between_attempts(uid: str, key: str = "k") -> Any:
    return task(uid, "Backoff", attempt(uid, 1, "Failed", reason="Error", exitCode=1), key=key, failures=1)


def ended(uid: str) -> Any:
    return task(uid, "Cancelled", attempt(uid, 1, "Stopped", reason="Cancelled"), completionTime="2026-03-01T12:00:01Z")


@pytest.mark.parametrize("first", [starting(FIRST), between_attempts(FIRST)])
def test_two_of_one_key_at_work_are_found(first: Any) -> None:
    checker = Checker()
    checker.task_seen(starting(FIRST), at(0))
    checker.task_seen(first, at(1))
    checker.task_seen(starting(SECOND), at(2))
    assert [violation.invariant for violation in checker.violations()] == ["I2"]


def test_one_after_the_other_is_fine() -> None:
    checker = Checker()
    checker.task_seen(starting(FIRST), at(0))
    checker.task_seen(ended(FIRST), at(1))
    checker.task_seen(starting(SECOND), at(2))
    checker.delete_requested(SECOND, at(3))
    checker.task_seen(between_attempts(SECOND), at(3))
    checker.task_deleted(SECOND, at(3))
    checker.task_seen(starting("3" + FIRST[1:]), at(4))
    checker.assert_ok()


def test_other_keys_and_none_are_fine() -> None:
    checker = Checker()
    for number, key in enumerate(["k", "other", "", ""]):
        checker.task_seen(starting(f"{number}{FIRST[1:]}", key), at(number))
    checker.assert_ok()


def test_who_is_given_another_key_while_it_runs_speaks_for_neither() -> None:
    checker = Checker()
    checker.task_seen(starting(FIRST, "k"), at(0))
    checker.task_seen(starting(FIRST, "other"), at(1))
    checker.task_seen(starting(SECOND, "k"), at(2))
    checker.task_seen(starting("3" + FIRST[1:], "other"), at(3))
    checker.assert_ok()


@pytest.mark.parametrize("outcome", [None, "t1"])
def test_who_takes_an_outcome_says_whose_and_does_not_run(outcome: str | None) -> None:
    checker = Checker()
    runs = [attempt(SECOND, 1, "Running")] if outcome else []
    checker.task_seen(task(SECOND, "Running" if runs else "Pending", *runs, reason="Deduplicated", outcomeOf=outcome), at(0))
    assert [violation.invariant for violation in checker.violations()] == ["I2"]


# --- failurePolicy -------------------------------------------------------------------------------------------------------

IGNORE = [{"onExitCodes": [1], "action": "Ignore"}]
FAIL_LOST = [{"onReasons": ["NodeLost"], "action": "Fail"}]


def violations(before: Any, after: Any) -> list[str]:
    checker = Checker()
    checker.task_seen(before, at(0))
    checker.task_seen(after, at(1))
    return [violation.invariant for violation in checker.violations()]


def test_what_is_ignored_does_not_count() -> None:
    running = task(FIRST, "Running", attempt(FIRST, 1, "Running"), policy=IGNORE)
    error = attempt(FIRST, 1, "Failed", reason="Error", exitCode=1)
    assert violations(running, task(FIRST, "Backoff", error, policy=IGNORE, failures=1)) == ["I8"]
    assert violations(running, task(FIRST, "Failed", error, policy=IGNORE, infrastructureLosses=1)) == ["I8"]
    assert violations(running, task(FIRST, "Backoff", error, policy=IGNORE, infrastructureLosses=1)) == []


def test_a_loss_that_a_person_calls_final_is_final() -> None:
    running, lost = attempt(FIRST, 1, "Running"), attempt(FIRST, 1, "Failed", reason="NodeLost", exitCode=1)
    ended_at = {"completionTime": "2026-03-01T12:00:01Z", "infrastructureLosses": 1}
    before = task(FIRST, "Running", running, policy=FAIL_LOST)
    assert violations(before, task(FIRST, "Failed", lost, policy=FAIL_LOST, **ended_at)) == []
    before = task(FIRST, "Running", running, policy=IGNORE)
    assert violations(before, task(FIRST, "Failed", lost, policy=IGNORE, **ended_at)) == ["I8"], "exit codes say nothing of losses"
