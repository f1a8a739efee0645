"""Of several operators on one API only the newest works, and what a dead one had sent does not arrive any more."""

from __future__ import annotations

import asyncio

import pytest

from swarmtask.errors import Conflict
from swarmtask.resources.kinds import LEASE, SWARM_TASK
from swarmtask.resources.tenure import Tenure
from tests.controllers.world import World, running

NAME, NAMESPACE = Tenure("").name, Tenure("").namespace


def holder(world: World) -> str:
    lease = world.kube.peek(LEASE, NAME, NAMESPACE) or {}
    return str(lease.get("spec", {}).get("holderIdentity", ""))


async def test_a_placement_that_a_dead_operator_had_sent_is_refused_once_its_successor_has_begun() -> None:
    async with running(World("n1")) as world:
        dead = world.client()
        world.engine.unavailable = True  # nothing is placed meanwhile
        await world.crash()
        world.add_task("a")
        sent = world.task("a").metadata.resource_version
        await world.start(wait=False)
        await world.until(lambda: holder(world) == "operator-2")
        patch = {"metadata": {"resourceVersion": sent}, "status": {"phase": "Starting"}}
        with pytest.raises(Conflict, match="not held by operator-1"):
            await dead.patch(SWARM_TASK, "a", patch, "default", subresource="status")


async def test_a_taking_that_was_under_way_when_its_operator_died_does_not_undo_that_of_its_successor() -> None:
    async with running(World("n1")) as world:
        lease = world.kube.peek(LEASE, NAME, NAMESPACE)
        assert lease is not None
        dead = world.client()
        await world.crash()
        await world.start()
        taking = {"metadata": {"resourceVersion": lease["metadata"]["resourceVersion"]}, "spec": {"holderIdentity": "operator-1"}}
        with pytest.raises(Conflict):
            await dead.patch(LEASE, NAME, taking, NAMESPACE)
        assert holder(world) == "operator-2"
        assert (world.kube.peek(LEASE, NAME, NAMESPACE) or {})["spec"]["leaseTransitions"] == 1


async def test_an_operator_that_another_one_has_followed_ends_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    async with running(World("n1")) as world:
        first, world._running = world._running, None
        assert first is not None
        await world.start()
        await world.until(first.done)
        with pytest.raises(Conflict, match="only the newest works"):
            await first
        assert "another operator works on this API" in caplog.text
        world.add_task("a")
        await world.until(lambda: world.phase("a") == "Succeeded")


async def test_a_lease_that_somebody_has_deleted_is_taken_again() -> None:
    async with running(World("n1")) as world:
        world.kube.remove(LEASE, NAME, NAMESPACE)
        world.add_task("a")
        await world.until(lambda: world.phase("a") == "Succeeded")
        assert holder(world) == "operator-1"


async def test_two_that_begin_at_once_leave_one() -> None:
    async with running(World("n1"), start=False) as world:
        await world.start(wait=False)
        first, world._running = world._running, None
        assert first is not None
        await world.start(wait=False)
        second = world._running
        assert second is not None
        await world.until(lambda: first.done() or second.done())
        ended = first if first.done() else second
        with pytest.raises(Conflict):
            await ended
        world._running = second if ended is first else first
        assert holder(world) == ("operator-2" if ended is first else "operator-1")
        await asyncio.sleep(0)
