"""How much `memory: auto` asks for: the rule, what it is never below, and what it remembers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarmtask.scheduler.peaks import DEFAULT_BYTES, FEW, LEAST_BYTES, SAMPLES, Peak, Peaks, size

MIB, GIB = 2**20, 2**30

lives = st.builds(
    Peak,
    st.floats(0, 1e9),
    st.integers(0, 10**9).map(str),
    st.one_of(st.integers(1, 2**40), st.sampled_from([1, 100 * MIB, GIB])),
    st.booleans(),
    st.sampled_from([0, 0, 1, 104 * MIB, GIB, 2**41]),
)


def peaks(*mebibytes: int, killed: bool = False) -> tuple[Peak, ...]:
    return tuple(Peak(float(number), f"u{killed}{number}", count * MIB, killed) for number, count in enumerate(mebibytes))


def test_nothing_seen_gives_the_default() -> None:
    assert size(()).request_bytes == DEFAULT_BYTES
    assert (size(()).samples, size(()).words) == (0, "no attempt of its template was seen yet")


def test_the_percentile_and_a_fifth_more() -> None:
    found = size(peaks(*[1000] * 12))
    assert (found.request_bytes, found.samples) == (1200 * MIB, 12)
    assert found.words == "p95 of 12 attempts + 20 %"


def test_the_highest_success_and_a_twentieth_more_where_that_is_more() -> None:
    found = size(peaks(*[600] * 39, 2000))
    assert (found.request_bytes, found.words) == (2100 * MIB, "highest of 40 attempts + 5 %")


def test_one_that_ran_wild_among_many_does_not_count_and_many_do() -> None:
    assert size((*peaks(*[600] * 39), *peaks(8000, killed=True))).request_bytes == 720 * MIB
    assert size((*peaks(*[600] * 3), *peaks(8000, killed=True))).request_bytes == 9600 * MIB


def test_few_samples_never_ask_for_less_than_the_default() -> None:
    assert size(peaks(100)).request_bytes == DEFAULT_BYTES
    assert size(peaks(100)).words == "the default, as only 1 attempt ended (most memory 100Mi)"
    assert size(peaks(100, 100)).request_bytes == DEFAULT_BYTES
    assert size(peaks(100, 100, 100)).request_bytes == 120 * MIB
    assert size(peaks(1000)).request_bytes == 1200 * MIB


def test_a_tiny_program_still_gets_a_container() -> None:
    found = size(peaks(3, 3, 3))
    assert (found.request_bytes, found.words) == (LEAST_BYTES, "the least there is; 3 attempts used less")


def test_a_program_whose_page_cache_fills_whatever_it_gets_does_not_grow_for_ever() -> None:
    seen: list[Peak] = []
    for number in range(100):
        limit = size(tuple(seen[-SAMPLES:])).request_bytes
        seen.append(Peak(float(number), str(number), limit, limit_bytes=limit))
    assert {peak.limit_bytes for peak in seen} == {DEFAULT_BYTES}
    assert size(tuple(seen[-3:])).words == "p95 of 3 attempts, which used all it had and succeeded"


def test_one_that_uses_most_of_what_it_has_gets_more_until_there_is_room() -> None:
    seen: list[Peak] = []
    for number in range(10):
        limit = size(tuple(seen)).request_bytes
        seen.append(Peak(float(number), str(number), 480 * MIB, limit_bytes=limit))
    assert seen[-1].limit_bytes == 576 * MIB


def test_room_to_spare_is_given_up_rather_than_fit_on_no_node() -> None:
    found = size(peaks(*[7000] * 5), 7500 * MIB)
    assert found.request_bytes == 7500 * MIB
    assert found.words == "all that the largest node offers, instead of p95 of 5 attempts + 20 %"
    assert size(peaks(*[7000] * 5), 7100 * MIB).request_bytes == 8400 * MIB, "less than the margin would be killed again"
    assert size((), 256 * MIB).request_bytes == 256 * MIB


@given(st.lists(lives, min_size=1, max_size=SAMPLES, unique_by=lambda peak: peak.uid), st.integers(0, 2**41))
def test_auto_never_asks_for_less_than_a_seen_peak_and_a_margin(seen: list[Peak], largest: int) -> None:
    found = size(tuple(seen), largest)
    for peak in seen:
        if not peak.killed:
            assert found.request_bytes >= peak.memory_bytes
            # The limit under which it succeeded is enough; what used less than that gets more than it used.
            assert peak.saturated or found.request_bytes * 100 >= peak.memory_bytes * 105
            assert not peak.saturated or found.request_bytes >= peak.limit_bytes
    assert found.request_bytes >= LEAST_BYTES
    assert found.samples == len(seen)


@given(st.lists(lives, min_size=1, max_size=SAMPLES, unique_by=lambda peak: peak.uid), st.integers(0, 2**41))
def test_one_more_kill_never_makes_it_less(seen: list[Peak], largest: int) -> None:
    highest = max(peak.memory_bytes for peak in seen)
    more = (*seen, Peak(2e9, "one more", highest, killed=True))
    before, after = size(tuple(seen), largest), size(more, largest)
    # Few attempts say little: they get what a task gets of which nothing is known, and this may be more than they need.
    assert after.request_bytes >= before.request_bytes or (len(seen) < FEW and before.request_bytes in (DEFAULT_BYTES, largest))


@given(st.lists(lives, max_size=120), st.randoms())
def test_the_order_in_which_they_are_read_does_not_matter(seen: list[Peak], shuffled: object) -> None:
    # A task is read once, or again with what was measured later; here each has one record.
    told = list({peak.uid: peak for peak in seen}.values())
    one, other = Peaks(), Peaks()
    for peak in told:
        one.learn("t", peak)
    shuffled.shuffle(told)  # type: ignore[attr-defined]
    for peak in told:
        other.learn("t", peak)
    assert one.sizing("t") == other.sizing("t")
    assert one.sizing("t").samples == min(SAMPLES, len(told))


def test_a_task_counts_once_and_what_is_told_last_counts() -> None:
    known = Peaks()
    for megabytes in (100, 900):
        known.learn("t", Peak(1.0, "u", megabytes * MIB))
    assert known.sizing("t").samples == 1
    assert known.sizing("t").request_bytes == 1080 * MIB


def test_old_samples_and_old_templates_are_forgotten() -> None:
    known = Peaks(templates=2)
    known.learn("t", Peak(0.0, "first", 64 * GIB))
    for number in range(SAMPLES):
        known.learn("t", Peak(1.0 + number, f"u{number}", GIB))
    assert known.sizing("t").request_bytes == 1229 * MIB
    known.learn("u", Peak(0.0, "u", GIB))
    known.learn("v", Peak(0.0, "v", GIB))
    assert len(known) == 2
    assert known.sizing("t").samples == 0
