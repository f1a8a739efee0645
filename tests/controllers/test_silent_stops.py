"""Stops that were begun around the time at which a node fell silent, and agents that spoke after an attempt had begun."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from swarmtask.resources.kinds import SWARM_NODE, SWARM_TASK
from tests.controllers.test_losing_nodes import DUE_S, Laptops, laptops, last_renewal, second, since, tried_again_after_a_restart
from tests.controllers.world import World, running
from tests.fakes.engine import Outcome

WISHES: dict[str, Any] = {
    "drain": lambda world: world.kube.edit(SWARM_NODE, "n1", None, {"spec": {"drain": True}}),
    "suspend": lambda world: world.kube.edit(SWARM_TASK, "work", "default", {"spec": {"suspend": True}}),
}


async def stopped_as_the_lid_closes(lab: Laptops, how: str, wish: str = "drain", **spec: Any) -> None:
    """Its node falls silent, and before anybody has noticed it is asked to stop."""
    world = lab.world
    await lab.run_on("work", "n1", Outcome(duration_s=600), **spec)
    second(world)
    await world.until(last_renewal(world, "n1"))
    getattr(world.engine, how)("n1")
    await world.pass_time(2)
    WISHES[wish](world)
    await world.until(lambda: world.task("work").status.attempts[0].state == "Stopping", 2)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["disconnect", "freeze"])
@pytest.mark.parametrize("wish", WISHES)
async def test_never_does_not_run_twice_because_it_was_being_stopped(how: str, wish: str) -> None:
    async with laptops("n1") as lab:
        world = lab.world
        await stopped_as_the_lid_closes(lab, how, wish, nodeLoss={"replace": "never"})
        await world.pass_time(60)
        await world.crash()
        await world.start()
        await world.pass_time(60)
        assert (world.phase("work"), world.task("work").status.attempt) == ("Unknown", 1)
        world.kube.edit(SWARM_TASK, "work", "default", {"spec": {"suspend": None}})
        world.engine.reconnect("n1")
        await world.until(lambda: world.phase("work") == "Succeeded", 60)
        assert [attempt.node for attempt in world.task("work").status.attempts] == ["n1", "n2"]


@pytest.mark.slow
async def test_after_lost_is_not_replaced_sooner_because_it_was_being_stopped() -> None:
    async with laptops("n1") as lab:
        world = lab.world
        await stopped_as_the_lid_closes(lab, "disconnect", nodeLoss={"replace": "afterLost", "graceSeconds": 60})
        took_s = 2 + await since(world, lambda: world.task("work").status.attempt == 2)
        assert 64.5 <= took_s <= 68


@asynccontextmanager
async def late_agent() -> AsyncIterator[Laptops]:
    """The agent of n1 speaks for the first time when its attempt runs."""
    world = World("n1")
    async with running(world):
        lab = Laptops(world)
        await lab.run_on("work", "n1", Outcome(duration_s=600, honours_term=False))
        assert world.task("work").status.attempts[0].boot_id is None
        agent = asyncio.create_task(lab.agents["n1"].run())
        try:
            await world.until(lambda: world.task("work").status.attempts[0].boot_id == "boot-1-of-n1", 10)
            yield lab
        finally:
            agent.cancel()
            with suppress(asyncio.CancelledError):
                await agent


async def test_an_attempt_that_began_before_its_agent_spoke_is_waited_for_until_it_was_fenced() -> None:
    async with late_agent() as lab:
        world = lab.world
        second(world)
        await world.pass_time(10)
        await world.until(last_renewal(world, "n1"))
        world.engine.disconnect("n1")
        WISHES["drain"](world)
        await world.pass_time(15)
        await world.crash()
        await world.start()
        took_s = 15 + await since(world, lambda: world.task("work").status.attempt == 2)
        assert took_s >= DUE_S
        world.engine.reconnect("n1")
        await world.pass_time(20)


async def test_a_restart_is_seen_of_an_attempt_that_began_before_its_agent_spoke() -> None:
    async with late_agent() as lab:
        world = lab.world
        await world.pass_time(10)
        await tried_again_after_a_restart(world)
