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
        (Backoff(initial_seconds=10, factor=2, max_seconds=100), [10, 20, 40, 80, 100, 100]),
        (Backoff(initial_seconds=10, factor=1, max_seconds=100), [10, 10, 10]),
        (Backoff(type="linear", initial_seconds=10, max_seconds=35), [10, 20, 30, 35, 35]),
        (Backoff(initial_seconds=0, max_seconds=100), [0, 0, 0]),
        (Backoff(initial_seconds=50, max_seconds=20), [20, 20]),
    ],
)
def test_delays(backoff: Backoff, delays: list[int]) -> None:
    assert [retry_delay_s(backoff, earlier) for earlier in range(len(delays))] == delays


@given(
    st.sampled_from(["exponential", "linear"]), st.integers(0, 31_536_000), st.integers(1, 100), st.integers(0, 31_536_000),
    st.integers(-5, 1000),
)  # fmt: skip
def test_a_delay_is_never_negative_and_never_above_its_limit(
    kind: str, initial: int, factor: int, limit: int, earlier: int
) -> None:
    backoff = Backoff.model_validate({"type": kind, "initialSeconds": initial, "factor": factor, "maxSeconds": limit})
    assert 0 <= retry_delay_s(backoff, earlier) <= limit


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
