"""Clean seeds of every workload; the few for every day, the many for `make test`."""

from __future__ import annotations

import random

import pytest

from tests.simulation.batch import runs
from tests.simulation.story import simulate
from tests.simulation.workload import draw, load, names

FEW = range(100)
PER_TEST = 100
MANY = [range(first, first + PER_TEST) for first in range(FEW.stop, 1000, PER_TEST)]


def all_clean(seeds: range) -> None:
    dirty = [result for seed, workload in runs(seeds) if (result := simulate(seed, workload)).failures]
    told = "\n".join(f"{result.failures[0]}\n  replay: {result.replay}" for result in dirty)
    assert not dirty, f"{len(dirty)} of {len(seeds)} runs were not clean:\n{told}"


def test_a_few_seeds_run_clean() -> None:
    all_clean(FEW)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", MANY, ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
def test_many_seeds_run_clean(seeds: range) -> None:
    all_clean(seeds)


@pytest.mark.parametrize("workload", names())
def test_every_workload_can_be_read_and_drawn(workload: str) -> None:
    births = draw(load(workload), random.Random(1))
    assert 10 <= len(births) <= 60
    assert [birth.at_s for birth in births] == sorted(birth.at_s for birth in births)


@pytest.mark.parametrize("workload", names())
def test_without_faults_every_task_ends_as_its_program_does(workload: str) -> None:
    result = simulate(1, workload, scope="calm")
    assert result.failures == ()
    assert result.operators == 1
