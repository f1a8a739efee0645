"""The simulator finds what it is there to find: each planted fault, within a bounded number of seeds."""

from __future__ import annotations

import pytest

from tests.simulation.batch import runs
from tests.simulation.bugs import BUGS, MET_AT, RARE
from tests.simulation.story import simulate

SEEDS = 1000


def test_there_are_enough_of_them() -> None:
    assert len(BUGS) >= 10


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name: str) -> None:
    first = MET_AT.get(name, 0)
    tries = runs(range(first, first + SEEDS), RARE.get(name, ""))
    with BUGS[name]():
        found = next((result for seed, workload in tries if (result := simulate(seed, workload)).failures), None)
    assert found is not None, f"{SEEDS} seeds ran clean with the bug {name}"
    assert not found.failures[0].startswith("BUG"), f"found only because the plant itself does not work: {found.failures[0]}"
