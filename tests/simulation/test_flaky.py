"""Calls that are under way while their sender is killed: they arrive, and nobody is blamed for not looking at the answer."""

from __future__ import annotations

import asyncio
import gc
import random
from typing import Any

import pytest

from swarmtask.errors import ServiceUnavailable, Timeout
from tests.simulation.chances import Chances
from tests.simulation.flaky import _on_the_wire
from tests.simulation.loop import SimLoop
from tests.simulation.world import WallClock


@pytest.mark.slow
@pytest.mark.parametrize("steps", range(8))
def test_an_answer_that_fails_while_its_sender_is_killed_is_no_bug(steps: int) -> None:
    loop = SimLoop(None)
    unseen: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: unseen.append(context))
    chances, clock = Chances(random.Random(1), {}, ()), WallClock(loop)
    chances.rng = random.Random(3)  # it arrives before its sender gives up

    def kill_after(left: int) -> None:
        if left:
            loop.call_soon(kill_after, left - 1)
        else:
            loop.kill(1)

    async def fail() -> None:
        kill_after(steps)
        raise ServiceUnavailable("it is down")

    async def send() -> None:
        await _on_the_wire(clock, chances, "patch", fail, Timeout)

    sender = loop.begin(1, send)
    loop.run_until_complete(asyncio.sleep(60))
    if not sender.done():
        loop.bury(1)
    else:
        assert isinstance(sender.exception(), ServiceUnavailable)
    del sender
    gc.collect()
    assert unseen == []
    loop.close()
