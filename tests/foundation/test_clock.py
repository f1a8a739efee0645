from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone

import pytest

from swarmtask.clock import ManualClock, SystemClock, format_micro_time, format_time, parse_time


async def test_sleepers_wake_in_the_order_of_their_deadlines() -> None:
    clock = ManualClock()
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, delay_s: float) -> None:
        await clock.sleep(delay_s)
        woken.append((name, clock.monotonic()))

    async with asyncio.TaskGroup() as group:
        for name, delay_s in (("late", 3.0), ("early", 1.0), ("middle", 2.0)):
            group.create_task(sleeper(name, delay_s))
        await asyncio.sleep(0)
        clock.advance(2.5)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [name for name, _ in woken] == ["early", "middle"]
        clock.advance(1)
    assert woken[-1][0] == "late"


async def test_a_cancelled_sleeper_is_forgotten() -> None:
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(5))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    clock.advance(10)


def test_a_manual_clock_does_not_go_backwards() -> None:
    with pytest.raises(ValueError, match="backwards"):
        ManualClock().advance(-1)


def test_the_system_clock_is_aware_and_monotonic() -> None:
    clock = SystemClock()
    assert clock.now().tzinfo is UTC
    assert clock.monotonic() <= clock.monotonic()
    assert clock.boot_time() > 0


def test_times_are_written_and_read_as_kubernetes_does() -> None:
    moment = datetime(2026, 3, 29, 2, 30, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    assert format_time(moment) == "2026-03-29T00:30:00Z"
    assert format_micro_time(moment) == "2026-03-29T00:30:00.123456Z"
    assert parse_time("2026-03-29T02:30:00+02:00") == moment.replace(microsecond=0)
    assert parse_time(format_micro_time(moment)) == moment


@pytest.mark.parametrize("text", ["", "yesterday", "2026-03-29T00:30:00", "2026-13-01T00:00:00Z"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_time(text)
