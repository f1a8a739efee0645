"""The virtual loop: time that jumps, orders that a seed decides, and operators that can be killed at any await."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.loop import Livelock, SimLoop, Stalled
from tests.simulation.story import simulate

ROOT = Path(__file__).parents[2]


def test_time_jumps_instead_of_passing() -> None:
    loop = SimLoop(None)

    async def wait() -> float:
        await asyncio.sleep(86_400)
        return asyncio.get_running_loop().time()

    assert loop.run_until_complete(wait()) == 86_400
    loop.close()


def order_of(seed: int) -> list[int]:
    loop, seen = SimLoop(random.Random(seed)), []

    async def note(number: int) -> None:
        seen.append(number)

    async def together() -> None:
        await asyncio.gather(*(note(number) for number in range(8)))

    loop.run_until_complete(together())
    loop.close()
    return seen


def test_a_seed_decides_the_order_of_what_is_ready_together() -> None:
    assert order_of(1) == order_of(1)
    assert order_of(1) != order_of(2)
    assert sorted(order_of(3)) == list(range(8))


def test_what_can_never_go_on_is_an_error_and_no_hanging_test() -> None:
    loop = SimLoop(None)
    with pytest.raises(Stalled):
        loop.run_until_complete(asyncio.Event().wait())


def test_going_round_in_circles_is_an_error() -> None:
    loop = SimLoop(None, max_steps=1000)

    async def circle() -> None:
        for _ in itertools.count():
            await asyncio.sleep(0)

    with pytest.raises(Livelock):
        loop.run_until_complete(circle())


def test_the_killed_do_nothing_any_more() -> None:
    loop, deeds = SimLoop(None), []

    async def child() -> None:
        try:
            await asyncio.sleep(1)
            deeds.append("worked on")
        finally:
            await asyncio.sleep(0)
            deeds.append("cleaned up")

    async def process() -> None:
        asyncio.get_running_loop().call_later(2, deeds.append, "timer")
        async with asyncio.TaskGroup() as group:
            group.create_task(child())
            group.create_task(child())

    async def world() -> None:
        loop.begin(7, process)
        await asyncio.sleep(0.5)
        loop.kill(7)
        loop.bury(7)
        await asyncio.sleep(10)

    loop.run_until_complete(world())
    assert deeds == []
    assert loop.living() == []
    loop.close()


def test_the_stopped_go_on_later() -> None:
    loop, moments = SimLoop(None), []

    async def process() -> None:
        for _ in range(3):
            await asyncio.sleep(1)
            moments.append(loop.time())

    async def world() -> None:
        loop.begin(1, process)
        await asyncio.sleep(1.5)
        loop.pause(1)
        await asyncio.sleep(8.5)
        loop.resume(1)
        await asyncio.sleep(5)

    loop.run_until_complete(world())
    assert moments == [1.0, 10.0, 11.0]
    loop.close()


def fingerprint(seed: int, workload: str, hash_seed: str) -> str:
    code = f"from tests.simulation.story import simulate; print(simulate({seed}, {workload!r}).fingerprint)"
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.slow
def test_a_run_is_the_same_in_every_process() -> None:
    """Neither the order of sets and addresses in memory nor an earlier run may show."""
    simulate(3, "burst")
    here = simulate(8, "laptops").fingerprint
    assert here == fingerprint(8, "laptops", "1") == fingerprint(8, "laptops", "424242")
    assert here != simulate(13, "laptops").fingerprint
