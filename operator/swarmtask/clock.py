"""Time, as an argument.

Lives here: the `Clock` protocol, the system's clock, and a clock that tests and the simulator move by hand. No other module
reads a wall clock. `scheduler/` and `lifecycle/` do not even import this: they take `now` as a value.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Protocol
from zoneinfo import ZoneInfo

NANOS_PER_S = 1_000_000_000
MACHINE_ZONE = Path("/etc/localtime")


def machine_zone() -> tzinfo:
    """The time zone that this machine is set to, with its changes of the clock; UTC where it is set to none."""
    try:
        with MACHINE_ZONE.open("rb") as file:
            return ZoneInfo.from_file(file)
    except (OSError, ValueError):
        return UTC


class Clock(Protocol):
    """Where `now` comes from."""

    def now(self) -> datetime:
        """Wall time, timezone-aware UTC, cut to whole microseconds."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go backwards; does not count sleep of the machine."""
        ...

    def boot_time(self) -> float:
        """Seconds since boot, sleep of the machine included (CLOCK_BOOTTIME): the clock a fence is measured with."""
        ...

    async def sleep(self, delay_s: float) -> None:
        """Wait for `delay_s` seconds of this clock."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    def boot_time(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)


class ManualClock:
    """A clock that moves only when told to.

    `sleep` returns when `advance` has moved the clock past its end; sleepers wake in the order of their deadlines.
    """

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._start = start
        self._elapsed_s = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._ticket = itertools.count()

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._elapsed_s)

    def monotonic(self) -> float:
        return self._elapsed_s

    def boot_time(self) -> float:
        return self._elapsed_s

    async def sleep(self, delay_s: float) -> None:
        if delay_s <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed_s + delay_s, next(self._ticket), future))
        await future

    def advance(self, delta_s: float) -> None:
        """Move time forward by `delta_s` seconds and wake every sleeper whose deadline has come."""
        if delta_s < 0:
            raise ValueError("a clock does not go backwards here; make a second ManualClock for that")
        target = self._elapsed_s + delta_s
        while self._sleepers and self._sleepers[0][0] <= target:
            deadline, _, future = heapq.heappop(self._sleepers)
            self._elapsed_s = max(self._elapsed_s, deadline)
            if not future.done():
                future.set_result(None)
        self._elapsed_s = target


def format_time(moment: datetime) -> str:
    """RFC 3339 in whole seconds and UTC, as Kubernetes' `metav1.Time` writes it."""
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    return moment.isoformat(timespec="seconds")[:19] + "Z"


def format_micro_time(moment: datetime) -> str:
    """RFC 3339 with microseconds, as Kubernetes' `metav1.MicroTime` writes it (Leases, Events)."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def parse_time(text: str) -> datetime:
    """Read an RFC 3339 time into an aware UTC datetime.

    Raises:
        ValueError: the text is no time with a zone.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return moment.astimezone(UTC)
