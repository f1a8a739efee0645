"""Waits for a moment of boot time, which goes on while the machine sleeps.

Made for the fence's thread. What threads and event loops wait for is counted on a clock that stands while the machine sleeps, so
whoever must not be late after a sleep would have to look several times a second, and keep an idle laptop awake with it. A timer of
the kernel on CLOCK_BOOTTIME has fired when the machine wakes. Source: timerfd_create(2), Linux 3.15; Python has it from 3.13 on.
"""

from __future__ import annotations

import ctypes
import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from swarmtask.clock import NANOS_PER_S

_ABSOLUTE = 1  # TFD_TIMER_ABSTIME


class Pause(Protocol):
    """How one thread waits, and others wake it."""

    def until(self, due: float) -> None:
        """Return at that boot time, or when woken; perhaps sooner: whoever waits looks again."""
        ...

    def wake(self) -> None:
        """End the wait that is on, or the next. From any thread."""
        ...

    def close(self) -> None:
        """Nobody waits any more."""
        ...


class Ticks:
    """Where there is no such timer: every wait ends after `tick_s` seconds at the latest. For clocks of any kind."""

    def __init__(self, clock: Callable[[], float], tick_s: float) -> None:
        self._clock, self._tick_s = clock, tick_s
        self._woken = threading.Event()

    def until(self, due: float) -> None:
        self._woken.wait(min(self._tick_s, max(0.0, due - self._clock())))
        self._woken.clear()

    def wake(self) -> None:
        self._woken.set()

    def close(self) -> None:
        pass


class BootTimer:
    """See the module. Raises OSError: this kernel has no such timer."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        try:
            timer = self._libc.timerfd_create(time.CLOCK_BOOTTIME, os.O_CLOEXEC | os.O_NONBLOCK)
            self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except AttributeError as error:  # another system than Linux
            raise OSError(f"no timer that counts sleep: {error}") from error
        if timer < 0:
            os.close(self._bell)
            raise _failure("timerfd_create")
        self._timer: int = timer
        self._either = select.poll()
        for descriptor in (self._timer, self._bell):
            self._either.register(descriptor, select.POLLIN)

    def until(self, due: float) -> None:
        left_s = due - time.clock_gettime(time.CLOCK_BOOTTIME)
        if left_s > 0:
            self._set(due)
            self._either.poll(1000 * (left_s + 1))
        with suppress(BlockingIOError):
            os.eventfd_read(self._bell)

    def wake(self) -> None:
        os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        os.close(self._timer)
        os.close(self._bell)

    def _set(self, due: float) -> None:
        """Setting a timer forgets that it has fired."""
        seconds, nanos = divmod(int(due * NANOS_PER_S) + 1, NANOS_PER_S)
        value = _Setting(_Time(0, 0), _Time(seconds, nanos))
        if self._libc.timerfd_settime(self._timer, _ABSOLUTE, ctypes.byref(value), None) < 0:
            raise _failure("timerfd_settime")


class _Time(ctypes.Structure):
    """`struct timespec`."""

    _fields_ = (("seconds", ctypes.c_long), ("nanos", ctypes.c_long))


class _Setting(ctypes.Structure):
    """`struct itimerspec`."""

    _fields_ = (("interval", _Time), ("first", _Time))


def _failure(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")


def boot_pause(clock: Callable[[], float], tick_s: float) -> Pause:
    """The timer, or ticks where this kernel has none. `clock`: boot time."""
    try:
        return BootTimer()
    except OSError:
        return Ticks(clock, tick_s)
