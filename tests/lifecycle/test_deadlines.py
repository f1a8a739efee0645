"""Delays and deadlines as numbers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmtask.lifecycle.deadlines import retry_at, retry_delay_s, whole
from swarmtask.resources.failures import Backoff

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("backoff", "delays"),
    [
        (Backoff(initial_seconds=10, factor=2, max_seconds=100, jitter_percent=0), [10, 20, 40, 80, 100, 100]),
        (Backoff(initial_seconds=10, factor=1, max_seconds=100, jitter_percent=0), [10, 10, 10]),
        (Backoff(type="linear", initial_seconds=10, max_seconds=35, jitter_percent=0), [10, 20, 30, 35, 35]),
        (Backoff(initial_seconds=0, max_seconds=100), [0, 0, 0]),
        (Backoff(initial_seconds=50, max_seconds=20, jitter_percent=0), [20, 20]),
    ],
)
def test_delays(backoff: Backoff, delays: list[int]) -> None:
    assert [retry_delay_s(backoff, earlier, "st-1") for earlier in range(len(delays))] == delays


BACKOFFS = st.builds(
    Backoff, type=st.sampled_from(["exponential", "linear"]), initial_seconds=st.integers(0, 31_536_000),
    factor=st.integers(1, 100), max_seconds=st.integers(0, 31_536_000), jitter_percent=st.integers(0, 100),
)  # fmt: skip


@given(BACKOFFS, st.integers(-5, 1000), st.text(max_size=20))
def test_a_delay_is_never_negative_and_never_above_its_limit(backoff: Backoff, earlier: int, salt: str) -> None:
    full = retry_delay_s(backoff.model_copy(update={"jitter_percent": 0}), earlier, salt)
    delay_s = retry_delay_s(backoff, earlier, salt)
    assert 0 <= full - full * backoff.jitter_percent // 100 <= delay_s <= full <= backoff.max_seconds
    assert delay_s == retry_delay_s(backoff, earlier, salt)


def test_jitter_keeps_tasks_apart_that_failed_together() -> None:
    backoff = Backoff(initial_seconds=100, max_seconds=100, jitter_percent=20)
    delays = [retry_delay_s(backoff, 0, f"st-{number:016x}-1") for number in range(2000)]
    assert set(delays) == set(range(80, 101))
    assert max(delays.count(delay_s) for delay_s in set(delays)) < 200


@given(st.integers(0, 999_999), st.integers(0, 86_400))
def test_a_backoff_ends_on_a_whole_second_and_never_early(microsecond: int, delay_s: int) -> None:
    now = NOW.replace(microsecond=microsecond)
    end = retry_at(now, delay_s)
    assert end.microsecond == 0
    if delay_s == 0:
        assert end <= now
    else:
        assert timedelta() <= end - now - timedelta(seconds=delay_s) < timedelta(seconds=1)


def test_stored_times_are_utc_and_whole() -> None:
    berlin = timezone(timedelta(hours=1))
    assert whole(datetime(2026, 3, 1, 13, 0, 0, 999_999, tzinfo=berlin)) == NOW
    assert whole(datetime(2026, 3, 1, 13, 0, 0, tzinfo=berlin)).tzinfo is UTC
