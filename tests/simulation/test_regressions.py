"""Seeds that were not clean once, and what each of them had found. A later change of any draw may make one of them another story;
what it found has a test of its own where the fault was."""

from __future__ import annotations

import pytest

from tests.simulation.story import simulate

FOUND = [
    # The simulator: an error of a request on the wire was left in a future of an operator that had just been killed.
    ("vanishing", 6027),
    # The checker: a placement that a dead operator had sent arrived after its successor had heard of a lower maxTasks.
    ("limits", 21248),
    # The checker: the wall time that a deletion was decided by was shown before the clock was set back, and never written.
    ("limits", 1019),
    # The operator: the deletion of a task whose time was over arrived when a person had retried it.
    ("limits", 42665),
    # The operator: runs that a person had retried while their array was being cancelled were never cancelled again.
    ("arrays", 75647),
    # The checker: maxRunningPerNode was taken away while the checker waited for a lowered maxRunning of the same queue.
    ("arrays", 76109),
]


@pytest.mark.parametrize(("workload", "seed"), FOUND)
def test_a_seed_that_was_not_clean_once_is_clean(workload: str, seed: int) -> None:
    assert simulate(seed, workload).failures == ()
