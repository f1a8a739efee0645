"""Coroutines that mostly need not wait, and their time limit."""

from __future__ import annotations

import asyncio

import pytest

from swarmtask.apiserver.eager import within

LONG_S = 60.0


class Work:
    """Waits for as many events as there are, one after the other; notes how it ended."""

    def __init__(self, *events: asyncio.Event) -> None:
        self.events = events
        self.ended = ""

    async def run(self) -> str:
        try:
            for event in self.events:
                await event.wait()
        except BaseException as error:
            self.ended = type(error).__name__
            raise
        self.ended = "done"
        return "result"


def event(*, is_set: bool) -> asyncio.Event:
    made = asyncio.Event()
    if is_set:
        made.set()
    return made


async def test_work_that_need_not_wait_is_done_at_once() -> None:
    turns: list[None] = []
    asyncio.get_running_loop().call_soon(turns.append, None)
    assert await within(LONG_S, Work(event(is_set=True)).run()) == "result"
    assert turns == [], "it took a turn of the event loop"


async def test_what_it_raises_at_once_is_raised() -> None:
    async def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await within(LONG_S, fail())


async def test_work_that_waits_goes_on_when_what_it_waits_for_has_come() -> None:
    first, second = event(is_set=False), event(is_set=False)
    work = Work(event(is_set=True), first, second)
    doing = asyncio.create_task(within(LONG_S, work.run()))
    await asyncio.sleep(0)
    first.set()
    await asyncio.sleep(0)
    assert not doing.done()
    second.set()
    assert await doing == "result"
    assert work.ended == "done"


@pytest.mark.parametrize("reached", [0, 1], ids=["while it waits for the first time", "later"])
async def test_the_limit_ends_it_wherever_it_waits(reached: int) -> None:
    never = event(is_set=False)
    later = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(later.set_result, None)

    work = Work(never)

    async def waits_before() -> str:
        if reached:
            await later
        return await work.run()

    with pytest.raises(TimeoutError):
        await within(0.01, waits_before())
    assert work.ended in ("CancelledError", "GeneratorExit")


async def test_who_is_cancelled_ends_the_work_too() -> None:
    work = Work(event(is_set=False))
    doing = asyncio.create_task(within(LONG_S, work.run()))
    await asyncio.sleep(0)
    doing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await doing
    assert work.ended in ("CancelledError", "GeneratorExit")
