"""What durations are learned and forgotten, and what is expected of what runs."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from swarmtask.scheduler.durations import SAMPLES, Durations


def taught(*durations_s: float) -> Durations:
    durations = Durations()
    for moment, duration_s in enumerate(durations_s):
        durations.learn("lint", float(moment), duration_s)
    return durations


def test_nothing_is_known_until_one_has_succeeded() -> None:
    durations = taught(30)
    assert durations.typical_s("lint") == 30
    assert durations.typical_s("build") is None
    assert durations.ends_at("build", 0, 0) is None


def test_one_that_hung_does_not_move_the_median() -> None:
    assert taught(30, 31, 29, 30, 86_400).typical_s("lint") == 30


def test_only_the_newest_count() -> None:
    assert taught(*[1000.0] * SAMPLES, *[10.0] * SAMPLES).typical_s("lint") == 10


def test_a_clock_that_was_set_back_teaches_no_negative_duration() -> None:
    assert taught(-5).typical_s("lint") == 0


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 100)), min_size=1, max_size=2 * SAMPLES), st.randoms())
def test_what_is_learned_does_not_depend_on_the_order_of_reading(samples: list[tuple[int, int]], rng: random.Random) -> None:
    one, other = Durations(), Durations()
    shuffled = list(samples)
    rng.shuffle(shuffled)
    for durations, order in ((one, samples), (other, shuffled)):
        for moment, duration_s in order:
            durations.learn("lint", moment, duration_s)
    assert one.typical_s("lint") == other.typical_s("lint")
    assert one.ends_at("lint", 0, 50) == other.ends_at("lint", 0, 50)


def test_what_has_run_long_is_compared_with_those_that_ran_longer() -> None:
    durations = taught(10, 10, 10, 100, 200, 300)
    assert durations.ends_at("lint", 1000, 1000) == 1000 + 55
    assert durations.ends_at("lint", 1000, 1050) == 1000 + 200
    assert durations.ends_at("lint", 1000, 1250) == 1000 + 300


def test_what_outlasts_all_of_them_is_given_more_for_a_while() -> None:
    durations = taught(100)
    assert durations.ends_at("lint", 1000, 1150) == 1000 + 1.1 * 150
    assert durations.ends_at("lint", 1000, 1201) is None


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60), st.floats(0, 1e6))
def test_an_expected_end_lies_never_behind(durations_s: list[float], elapsed: float) -> None:
    ends_at = taught(*durations_s).ends_at("lint", 0, elapsed)
    assert ends_at is None or ends_at >= elapsed


def test_memory_is_bounded_and_keeps_what_is_asked_for() -> None:
    durations = Durations(templates=10)
    durations.learn("kept", 0, 5)
    for number in range(100):
        durations.learn(f"once{number}", number, 1)
        assert durations.typical_s("kept") == 5
    assert len(durations) == 10
