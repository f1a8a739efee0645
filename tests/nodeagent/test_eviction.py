"""When somebody has to go for the machine's sake, and who."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmtask.nodeagent.eviction import Alarm, Candidate, Strain, grace_s, message, patience_s, victim
from tests.nodeagent.fakes import GIB, START

SHORT = Strain(available_bytes=GIB // 4, memory_bytes=8 * GIB, pressure=0.5)
ONE = Candidate("c1", "st-1", 0, GIB, GIB, START)


def test_it_sounds_when_memory_stays_short() -> None:
    alarm = Alarm()
    assert not alarm.sounds(SHORT, 0)
    assert not alarm.sounds(SHORT, 2)
    assert alarm.sounds(SHORT, 3)
    alarm.evicted(3)
    assert not alarm.sounds(SHORT, 4)
    assert not alarm.sounds(SHORT, 12)
    assert alarm.sounds(SHORT, 13)


def test_a_short_moment_or_one_sign_alone_is_no_alarm() -> None:
    alarm = Alarm()
    for now in range(0, 20, 2):
        assert not alarm.sounds(SHORT if now % 4 else replace(SHORT, pressure=0.1), now)
    for now in range(20, 40):
        assert not alarm.sounds(replace(SHORT, available_bytes=GIB), now), "a full page cache is no want"


def test_the_operator_is_waited_for_the_shorter_the_harder_the_pressure() -> None:
    waits = [patience_s(replace(SHORT, pressure=share)) for share in (0.0, 0.2, 0.5, 0.8, 1.0)]
    assert waits == pytest.approx([4.0, 4.0, 2.5, 1.0, 1.0])


def test_nobody_s_grace_is_waited_for_longer_than_memory_can_wait() -> None:
    assert [grace_s(replace(ONE, grace_s=declared)) for declared in (None, 0, 2, 600)] == [5.0, 0, 2, 5.0]


def test_the_order_of_sacrifice() -> None:
    dear, hog = replace(ONE, priority=10, memory_bytes=9 * GIB, container_id="dear"), replace(ONE, memory_bytes=3 * GIB)
    young = replace(hog, started_at=START + timedelta(seconds=5), container_id="young")
    promised = replace(hog, memory_bytes=5 * GIB, request_bytes=5 * GIB, container_id="promised")
    assert victim([dear, ONE, hog]) == hog
    assert victim([hog, young]) == young
    assert victim([hog, promised]) == hog
    assert victim([dear]) == dear
    assert victim([]) is None
    assert victim([replace(hog, started_at=None), young]) == replace(hog, started_at=None)


CANDIDATES = st.lists(
    st.builds(
        Candidate, st.text("abc", min_size=1, max_size=3), st.just("st"), st.integers(-5, 5), st.integers(0, GIB),
        st.integers(0, GIB), st.one_of(st.none(), st.just(START)),
    ),
    max_size=6,
)  # fmt: skip


@given(CANDIDATES)
def test_nobody_goes_before_one_of_lower_priority_and_order_does_not_matter(candidates: list[Candidate]) -> None:
    chosen = victim(candidates)
    assert chosen == victim(candidates[::-1])
    if chosen is not None:
        assert chosen.priority == min(one.priority for one in candidates)


def test_the_message_says_why_and_why_this_one() -> None:
    assert message(ONE, SHORT) == "256 MiB of 8192 MiB were left; it had priority 0 and used 1024 MiB"
