"""The pauses of the fence's thread, on the real clock: the end of each is what is asked for, not how soon it came."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from unittest import mock

import pytest

from swarmtask.nodeagent import boot_timer
from swarmtask.nodeagent.boot_timer import BootTimer, Pause, Ticks, boot_pause

LONG_S = 600.0


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@pytest.fixture(params=["timer", "ticks"])
def pause(request: pytest.FixtureRequest) -> Iterator[Pause]:
    made: Pause = BootTimer() if request.param == "timer" else Ticks(now, LONG_S)
    with closing(made):
        yield made


def test_it_ends_at_its_time_again_and_again(pause: Pause) -> None:
    for _ in range(3):
        due = now() + 0.05
        pause.until(due)
        assert now() >= due - 0.001


def test_what_is_due_already_is_not_waited_for(pause: Pause) -> None:
    pause.until(now() - 1)
    pause.until(0.0)


def test_it_can_be_woken_before_and_meanwhile(pause: Pause) -> None:
    pause.wake()
    pause.wake()
    pause.until(now() + LONG_S)
    waiting = threading.Thread(target=pause.until, args=(now() + LONG_S,))
    waiting.start()
    pause.wake()
    waiting.join(20)
    assert not waiting.is_alive()


def test_one_wake_ends_one_wait(pause: Pause) -> None:
    pause.wake()
    pause.until(now() + LONG_S)
    due = now() + 0.05
    pause.until(due)
    assert now() >= due - 0.001


def test_a_tick_is_the_longest_wait_where_there_is_no_timer() -> None:
    clock = itertools.count(0.0, 1.0)
    Ticks(lambda: next(clock), 0.01).until(LONG_S)


def test_the_timer_counts_the_sleep_of_the_machine() -> None:
    """That it does so is the kernel's; that it was asked for it is told by what the kernel knows of the descriptor."""
    with closing(BootTimer()) as timer:
        told = Path(f"/proc/self/fdinfo/{timer._timer}").read_text()
    assert f"clockid: {time.CLOCK_BOOTTIME}" in told.splitlines()


def test_a_kernel_without_it_ticks() -> None:
    with closing(boot_pause(now, 0.2)) as pause:
        assert isinstance(pause, BootTimer)
    with mock.patch.object(boot_timer.ctypes, "CDLL", return_value=object()), closing(boot_pause(now, 0.2)) as pause:
        assert isinstance(pause, Ticks)
