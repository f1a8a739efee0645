"""Nodes with an agent fall silent, come back, restart, or lose no more than their agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from swarmtask.controllers.submission import LANDING_S
from swarmtask.engines.base import EngineNode, NodeState
from swarmtask.errors import EngineUnavailable, ServiceUnavailable
from swarmtask.kube import ObjectList
from swarmtask.resources.kinds import LEASE, SWARM_NODE, SWARM_TASK, Kind
from swarmtask.resources.task import ANNOTATION_CANCEL
from tests.controllers.world import World, running
from tests.fakes.agent import LEASES, FakeAgent
from tests.fakes.engine import Outcome
from tests.fakes.kube import FakeKube

GIB = 2**30
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
FENCE_S = 20.0
DUE_S = FENCE_S + 10 + 10
"""The fence, the grace period that tasks have unless they say otherwise, and the operator's margin."""


class Laptops:
    """A world whose nodes have agents."""

    def __init__(self, world: World, **skews: float) -> None:
        self.world = world
        self.agents = {
            node: FakeAgent(world.kube, world.engine, world.clock, node, fence_s=FENCE_S, skew_s=skews.get(node, 0.0))
            for node in world.engine._nodes
        }

    def phase(self, node: str) -> str:
        return str(self.world.node(node)["status"]["phase"])

    def names(self) -> set[str]:
        return {str(node["metadata"]["name"]) for node in self.world.kube.all(SWARM_NODE)}

    async def settle(self) -> None:
        """Every node has been heard."""
        told = lambda: [lease for lease in self.world.kube.all(LEASE) if lease["metadata"]["namespace"] == LEASES]  # noqa: E731
        await self.world.until(lambda: len(told()) == len(self.agents))
        await self.world.pass_time(12)

    async def run_on(self, name: str, node: str, outcome: Outcome | None = None, **spec: Any) -> None:
        self.world.engine.script(name, outcome or Outcome(duration_s=None), Outcome(duration_s=3))
        self.world.add_task(name, placement={"nodeSelector": {}}, **spec)
        await self.world.until(lambda: self.world.phase(name) == "Running")
        assert self.world.task(name).status.node_name == node


@asynccontextmanager
async def laptops(*nodes: str, start: bool = True, **options: Any) -> AsyncIterator[Laptops]:
    world = World(*nodes, **options)
    async with running(world, start=start):
        found = Laptops(world)
        tasks = [asyncio.create_task(agent.run()) for agent in found.agents.values()]
        try:
            if start:
                await found.settle()
            yield found
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


def second(world: World) -> None:
    """A node joins, for whoever has to go elsewhere."""
    world.engine.add_node("n2")


async def since(world: World, condition: Callable[[], object], limit_s: float = 200.0) -> float:
    """Seconds of the clock until it holds."""
    began = world.clock.monotonic()
    await world.until(condition, limit_s)
    return world.clock.monotonic() - began


def last_renewal(world: World, node: str) -> Callable[[], bool]:
    """True just after the next renewal of this node."""
    before = world.kube.peek(LEASE, node, LEASES)
    return lambda: world.kube.peek(LEASE, node, LEASES) != before


async def test_a_silent_node_is_unreachable_within_five_seconds_and_its_tasks_are_unknown() -> None:
    async with laptops("n1") as lab:
        world = lab.world
        await lab.run_on("work", "n1", Outcome(duration_s=60))
        await world.until(last_renewal(world, "n1"))
        world.engine.disconnect("n1")
        took_s = await since(world, lambda: lab.phase("n1") == "Unreachable")
        assert 4.0 <= took_s <= 5.0
        await world.until(lambda: world.phase("work") == "Unknown", 1)
        assert ("NodeUnreachable", 1) in world.events("work") and ("NodeUnreachable", 1) in world.events("n1")


async def test_a_node_that_is_back_in_time_goes_on_with_its_attempt() -> None:
    async with laptops("n1") as lab:
        world = lab.world
        await lab.run_on("work", "n1", Outcome(duration_s=60))
        world.engine.disconnect("n1")
        await world.pass_time(9)
        assert world.phase("work") == "Unknown"
        world.engine.reconnect("n1")
        await world.until(lambda: world.phase("work") == "Running", 4)
        await world.until(lambda: world.phase("work") == "Succeeded")
        assert world.task("work").status.attempt == 1
        await world.until(lambda: lab.phase("n1") == "Ready", 10)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["disconnect", "freeze", "power_off"])
async def test_a_lost_attempt_is_replaced_only_after_its_node_must_have_stopped_it(how: str) -> None:
    async with laptops("n1") as lab:
        world = lab.world
        await lab.run_on("work", "n1")
        second(world)
        await world.until(last_renewal(world, "n1"))
        getattr(world.engine, how)("n1")
        took_s = await since(world, lambda: world.task("work").status.attempts[0].reason == "NodeLost")
        assert DUE_S <= took_s <= DUE_S + 2
        await world.until(lambda: world.phase("work") == "Running")
        assert world.task("work").status.node_name == "n2"
        world.engine.reconnect("n1")
        await world.until(lambda: world.phase("work") == "Succeeded")
        assert (world.task("work").status.attempt, world.task("work").status.failures) == (2, 0)


@pytest.mark.slow
@pytest.mark.parametrize("replace", ["afterFence", "never"])
@pytest.mark.parametrize("upgraded", ["before it was lost", "while it is lost"])
async def test_an_attempt_of_the_version_before_is_replaced_like_any_other(replace: str, upgraded: str) -> None:
    """That version did not record whether an attempt is fenced; its engine shows with what it was made."""
    async with laptops("n1") as lab:
        world = lab.world

        async def upgrade() -> None:
            await world.stop()
            (attempt,) = world.kube.peek(SWARM_TASK, "work", "default")["status"]["attempts"]
            assert attempt.pop("fence") is (replace == "afterFence")
            world.kube.edit(SWARM_TASK, "work", "default", {"status": {"attempts": [attempt]}}, status=True)
            await world.start()

        await lab.run_on("work", "n1", nodeLoss={"replace": replace})
        second(world)
        if upgraded == "before it was lost":
            await upgrade()
            await world.until(lambda: world.task("work").status.attempts[0].fence is (replace == "afterFence"), 5)
        world.engine.disconnect("n1")
        await world.pass_time(15)
        if upgraded == "while it is lost":
            await upgrade()
            await world.until(lambda: world.task("work").status.attempts[0].fence is (replace == "afterFence"), 5)
        world.kube.edit(SWARM_TASK, "work", "default", {"spec": {"nodeLoss": {"replace": "afterFence"}}})
        if replace == "never":
            await world.pass_time(200)
            assert (world.phase("work"), world.task("work").status.attempt) == ("Unknown", 1)
            world.engine.reconnect("n1")
            world.kube.edit(SWARM_TASK, "work", "default", {"metadata": {"annotations": {ANNOTATION_CANCEL: "x"}}})
        else:
            await world.until(lambda: world.task("work").status.attempts[0].reason == "NodeLost", DUE_S + 10)
        await world.until(lambda: world.task("work").finished)


async def test_an_agent_that_was_told_a_longer_fence_is_believed() -> None:
    """The setting was made shorter while the node was away, or its agent was not started anew yet."""
    async with laptops("n1") as lab:
        world = lab.world
        lab.agents["n1"]._fence_s = FENCE_S + 25
        await lab.run_on("work", "n1")
        second(world)
        await world.until(last_renewal(world, "n1"))
        world.engine.disconnect("n1")
        took_s = await since(world, lambda: world.task("work").status.attempts[0].reason == "NodeLost")
        assert DUE_S + 25 <= took_s <= DUE_S + 27


async def test_after_lost_does_not_wait_for_a_fence() -> None:
    async with laptops("n1") as lab:
        world = lab.world
        await lab.run_on("work", "n1", nodeLoss={"replace": "afterLost", "graceSeconds": 3})
        second(world)
        await world.until(last_renewal(world, "n1"))
        world.engine.power_off("n1")
        took_s = await since(world, lambda: world.task("work").status.attempts[0].reason == "NodeLost")
        assert 7.0 <= took_s <= 9.5
        await world.until(lambda: world.phase("work") == "Succeeded")


async def test_after_lost_counts_from_the_engines_word_where_there_is_no_agent() -> None:
    async with running(World("n1")) as world:
        world.engine.script("work", Outcome(duration_s=None), Outcome())
        world.add_task("work", nodeLoss={"replace": "afterLost", "graceSeconds": 3})
        await world.until(lambda: world.phase("work") == "Running")
        second(world)
        world.engine.power_off("n1")
        took_s = await since(world, lambda: world.task("work").status.attempt == 2)
        assert 12 + 3 <= took_s <= 40
        await world.until(lambda: world.phase("work") == "Succeeded")


@pytest.mark.slow
async def test_never_waits_for_the_node() -> None:
    async with laptops("n1") as lab:
        world = lab.world
        await lab.run_on("work", "n1", Outcome(duration_s=10), nodeLoss={"replace": "never"})
        second(world)
        world.engine.disconnect("n1")
        await world.pass_time(300)
        assert (world.phase("work"), world.task("work").status.attempt) == ("Unknown", 1)
        world.engine.reconnect("n1")
        await world.until(lambda: world.phase("work") == "Succeeded")
        assert world.task("work").status.attempt == 1


async def test_work_that_was_finished_while_its_node_was_away_is_not_run_again() -> None:
    async with laptops("n1") as lab:
        world = lab.world
        await lab.run_on("work", "n1", Outcome(duration_s=15))
        world.engine.disconnect("n1")
        # There is no other node, so it was given up but not replaced when its node is back.
        await world.until(lambda: world.phase("work") in ("Backoff", "Queued"))
        assert world.task("work").status.attempts[0].reason == "NodeLost"
        await world.pass_time(30)
        world.engine.reconnect("n1")
        await world.until(lambda: world.phase("work") == "Succeeded", 10)
        status = world.task("work").status
        assert (status.attempt, status.attempts[0].reason, status.exit_code) == (1, "Completed", 0)
        assert status.attempts[0].peak_memory == "64Mi" and ("FinishedWhileAway", 1) in world.events("work")


async def finish_away(lab: Laptops, stop: Callable[[], object], away_s: float = 60) -> None:
    """A program ends by itself while its node is away, 1 s after whose loss it was to stop."""
    world = lab.world
    await lab.run_on("work", "n1", Outcome(duration_s=14), cpu="4")
    await world.until(last_renewal(world, "n1"))
    world.engine.disconnect("n1")
    await world.pass_time(1)
    stop()
    await world.pass_time(away_s)
    assert not world.task("work").finished
    world.engine.reconnect("n1")
    await world.until(lambda: world.task("work").finished, 40)
    status = world.task("work").status
    assert (status.phase, status.attempt, status.exit_code) == ("Succeeded", 1, 0)


@pytest.mark.parametrize("away_s", [20, 60])
@pytest.mark.parametrize("how", ["drain", "suspend", "preempt"])
async def test_work_that_was_finished_before_a_stop_could_reach_it_is_not_run_again(how: str, away_s: float) -> None:
    async with laptops("n1") as lab:
        world = lab.world

        def stop() -> None:
            if how == "drain":
                world.kube.edit(SWARM_NODE, "n1", None, {"spec": {"drain": True}})
            elif how == "suspend":
                world.kube.edit(SWARM_TASK, "work", "default", {"spec": {"suspend": True}})
            else:
                world.add_queue("urgent", preemption="LowerPriority")
                world.engine.script("boss", Outcome(duration_s=100))
                world.add_task("boss", cpu="4", priority=100, queue="urgent")

        await finish_away(lab, stop, away_s)


async def test_who_obeys_a_stop_politely_before_its_node_is_lost_has_not_finished() -> None:
    async with laptops("n1") as lab:
        world = lab.world
        world.engine.timings = replace(world.engine.timings, term_s=2.0)
        await lab.run_on("work", "n1", Outcome(duration_s=30, term_exit_code=0))
        world.kube.edit(SWARM_TASK, "work", "default", {"spec": {"suspend": True}})
        await world.until(lambda: world.engine.told_to_end(world.task("work").status.attempts[0].id))
        world.engine.disconnect("n1")
        await world.until(lambda: world.phase("work") == "Pending", 90)
        world.engine.reconnect("n1")
        await world.pass_time(30)
        record = world.node("n1")["status"]["attempts"][0]
        assert (record["exitCode"], record["reason"], record["toldToEnd"]) == (0, "", True)
        assert world.phase("work") == "Pending"


async def test_what_an_attempt_used_is_recorded() -> None:
    async with laptops("n1") as lab:
        world = lab.world
        await lab.run_on("work", "n1", Outcome(duration_s=2))
        await world.until(lambda: world.task("work").status.attempts[0].peak_memory == "64Mi", 15)
        assert world.task("work").status.attempts[0].cpu_seconds == 1.5


async def tried_again_after_a_restart(world: World) -> None:
    """n1 goes off under the task `work` and comes back: what ended there is the machine's doing."""
    world.engine.power_off("n1")
    await world.pass_time(6)
    world.engine.reconnect("n1")
    await world.until(lambda: world.task("work").status.attempt == 2)
    assert world.task("work").status.attempts[0].reason == "NodeRestarted"
    assert world.task("work").status.failures == 0


async def test_a_restarted_node_explains_every_exit_code() -> None:
    async with laptops("n1") as lab:
        world = lab.world
        await lab.run_on("work", "n1")
        await tried_again_after_a_restart(world)
        await world.until(lambda: ("NodeRestarted", 1) in world.events("n1"))
        await world.until(lambda: world.phase("work") == "Succeeded")


async def test_a_program_that_ends_politely_when_it_is_fenced_has_not_completed() -> None:
    async with laptops("n1") as lab:
        world = lab.world
        polite = Outcome(duration_s=None, term_exit_code=0)
        await lab.run_on("work", "n1", polite)
        lab.agents["n1"].reaches = False  # while the engine goes on to show what happens there
        await world.until(lambda: lab.agents["n1"].fenced, 40)
        await world.pass_time(5)
        assert not world.task("work").finished
        lab.agents["n1"].reaches = True
        await world.until(lambda: world.task("work").status.attempts[0].state == "Failed")
        assert world.task("work").status.attempts[0].reason == "NodeLost"
        await world.until(lambda: world.phase("work") == "Succeeded")
        assert world.task("work").status.attempt == 2


@pytest.mark.slow
async def test_a_node_that_lost_no_more_than_its_agent_is_judged_by_its_engine() -> None:
    async with laptops("n1") as lab:
        world = lab.world
        await lab.run_on("work", "n1", Outcome(duration_s=100))
        lab.agents["n1"].alive = False
        await world.until(lambda: lab.phase("n1") == "Unreachable", 8)
        await world.until(lambda: lab.phase("n1") == "NotReady", 30)
        assert ("AgentSilent", 1) in world.events("n1")
        await world.until(lambda: world.phase("work") == "Running", 5)
        await world.stop()
        world.kube.fail("list", kind=LEASE, times=4)  # the next operator looks at its nodes before it has read a Lease
        await world.start()
        await world.pass_time(10)
        assert lab.phase("n1") == "NotReady"
        await world.until(lambda: world.phase("work") == "Succeeded")
        assert world.task("work").status.attempt == 1
        lab.agents["n1"].alive = True
        await world.until(lambda: lab.phase("n1") == "Ready", 10)


async def test_an_api_that_was_away_makes_no_node_unreachable() -> None:
    async with laptops("n1", "n2") as lab:
        world = lab.world
        await lab.run_on("work", world.task("work").status.node_name if world.phases() else "n1", Outcome(duration_s=60))
        world.kube.down = True
        await world.pass_time(15)
        world.kube.down = False
        seen: set[str] = set()

        def calm() -> bool:
            seen.update(lab.phase(node) for node in ("n1", "n2"))
            return False

        with pytest.raises(AssertionError):
            await world.until(calm, 20)
        assert seen == {"Ready"}
        await world.until(lambda: world.phase("work") == "Succeeded")
        assert world.task("work").status.attempt == 1


async def test_a_new_operator_counts_silence_anew() -> None:
    async with laptops("n1") as lab:
        world = lab.world
        await lab.run_on("work", "n1")
        second(world)
        world.engine.disconnect("n1")
        await world.pass_time(35)
        await world.crash()
        await world.start()
        await world.pass_time(20)
        assert (world.phase("work"), lab.phase("n1")) == ("Unknown", "Unreachable")
        assert [count for reason, count in world.events("work") if reason == "NodeUnreachable"] == [1]
        await world.until(lambda: world.phase("work") == "Succeeded", 60)
        world.engine.reconnect("n1")
        await world.pass_time(5)


async def test_what_a_new_operator_binds_before_a_node_was_heard_starts_when_it_is() -> None:
    async with laptops("n1") as lab:
        world = lab.world
        await world.crash()
        await world.until(last_renewal(world, "n1"), 5)
        await world.start()
        await world.pass_time(0.5)  # nothing is live: the engine will not be asked again for long
        world.add_task("early")
        await world.until(lambda: world.phase("early") == "Starting", 2)
        assert world.engine.called("submit") == []
        heard = last_renewal(world, "n1")
        await world.until(heard, 3)
        assert await since(world, lambda: world.engine.called("submit"), 20) <= 1.5


@pytest.mark.slow
async def test_flapping_costs_nothing() -> None:
    async with laptops("n1") as lab:
        world = lab.world
        await lab.run_on("work", "n1", Outcome(duration_s=300))
        for _ in range(20):
            world.engine.disconnect("n1")
            await world.pass_time(5)
            world.engine.reconnect("n1")
            await world.pass_time(5)
        await world.until(lambda: world.phase("work") == "Succeeded", 200)
        assert world.task("work").status.attempt == 1


async def test_a_wrong_clock_of_a_laptop_means_nothing() -> None:
    world = World("n1")
    async with running(world):
        lab = Laptops(world, n1=-3600.0)
        agent = asyncio.create_task(lab.agents["n1"].run())
        await lab.settle()
        await lab.run_on("work", "n1", Outcome(duration_s=20))
        await world.until(lambda: world.phase("work") == "Succeeded")
        assert lab.phase("n1") == "Ready" and world.task("work").status.attempt == 1
        agent.cancel()
        with suppress(asyncio.CancelledError):
            await agent


async def test_a_cancelled_attempt_on_a_silent_node_waits_for_the_fence_and_a_deleted_one_does_not() -> None:
    async with laptops("n1") as lab:
        world = lab.world
        await lab.run_on("held", "n1")
        await lab.run_on("gone", "n1")
        await world.until(last_renewal(world, "n1"))
        world.engine.disconnect("n1")
        world.kube.edit(SWARM_TASK, "held", "default", {"spec": {"suspend": True}})
        world.kube.remove(SWARM_TASK, "gone", "default")
        assert await since(world, lambda: world.gone("gone")) < DUE_S
        assert await since(world, lambda: world.phase("held") == "Pending") >= DUE_S - 25
        assert world.task("held").status.attempts[0].state == "Stopped"
        world.engine.reconnect("n1")
        await world.pass_time(5)


@pytest.mark.slow
async def test_a_node_that_left_while_it_was_silent_may_still_run_its_work() -> None:
    async with laptops("n1") as lab:
        world = lab.world
        await lab.run_on("work", "n1")
        second(world)
        await world.until(last_renewal(world, "n1"))
        world.engine.disconnect("n1")
        await world.pass_time(6)
        world.kube.remove(SWARM_NODE, "n1")
        world.engine.remove_node("n1")
        took_s = 6 + await since(world, lambda: world.task("work").status.attempts[0].reason == "NodeLost")
        assert DUE_S <= took_s <= DUE_S + 3
        await world.until(lambda: world.phase("work") == "Succeeded")


def ubuntu(node_id: str, day: int) -> EngineNode:
    """Machines that were all set up alike: one hostname."""
    return EngineNode(
        id=node_id, hostname="ubuntu", state=NodeState.READY, cpu_milli=4000, memory_bytes=8 * GIB, arch="x86_64", os="linux",
        engine_version="fake", joined_at=BEGAN + timedelta(days=day),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("restart", [False, True])
async def test_a_machine_that_sleeps_is_not_taken_for_another_of_its_hostname(restart: bool) -> None:
    async with laptops(ubuntu("n1", 0)) as lab:
        world = lab.world
        await lab.run_on("work", "ubuntu", Outcome(duration_s=10), nodeLoss={"replace": "never"})
        world.engine.add_node(ubuntu("n2", 1))
        await world.until(lambda: "ubuntu-n2" in lab.names())
        world.engine.freeze("n1")
        await world.pass_time(30)
        if restart:
            await world.crash()
            await world.start()
        await world.pass_time(60)
        assert (world.phase("work"), lab.phase("ubuntu"), lab.phase("ubuntu-n2")) == ("Unknown", "Unreachable", "Ready")
        world.engine.reconnect("n1")
        await world.until(lambda: lab.phase("ubuntu") == "Ready", 40)
        await world.until(lambda: world.task("work").finished)
        assert lab.names() == {"ubuntu", "ubuntu-n2"}


@pytest.mark.parametrize("restart", [False, True])
async def test_a_laptop_that_joins_again_is_the_node_that_it_was(restart: bool) -> None:
    async with laptops(ubuntu("n1", 0)) as lab:
        world = lab.world
        world.kube.edit(SWARM_NODE, "ubuntu", None, {"spec": {"maxTasks": 3}})
        world.engine.power_off("n1")
        await world.pass_time(30)
        assert lab.phase("ubuntu") == "Unreachable"
        if restart:
            await world.crash()
        world.engine.add_node(ubuntu("n2", 1))
        if restart:
            await world.start()
        again = FakeAgent(world.kube, world.engine, world.clock, "n2", fence_s=FENCE_S)
        agent = asyncio.create_task(again.run())
        await world.until(lambda: lab.phase("ubuntu") == "Ready", 40)
        node = world.node("ubuntu")
        assert ([item["id"] for item in node["status"]["engines"]], node["spec"]["maxTasks"]) == (["n2"], 3)
        assert lab.names() == {"ubuntu"}
        agent.cancel()
        with suppress(asyncio.CancelledError):
            await agent


@pytest.mark.slow
@pytest.mark.parametrize(("replace", "due_s"), [("never", None), ("afterLost", 4.5 + 30)])
async def test_a_node_that_left_while_it_was_silent_is_waited_for_as_its_task_says(replace: str, due_s: float | None) -> None:
    async with laptops("n1") as lab:
        world = lab.world
        await lab.run_on("work", "n1", nodeLoss={"replace": replace})
        second(world)
        await world.until(last_renewal(world, "n1"))
        world.engine.disconnect("n1")
        await world.pass_time(6)
        world.engine.remove_node("n1")
        if due_s is None:
            await world.pass_time(120)
            assert (world.phase("work"), world.task("work").status.attempt) == ("Unknown", 1)
            world.kube.remove(LEASE, "n1", LEASES)  # a person knows that it will not come back
        took_s = 6 + await since(world, lambda: world.task("work").status.attempts[0].reason == "NodeLost", 60)
        assert due_s is None or due_s <= took_s <= due_s + 3
        await world.until(lambda: world.phase("work") == "Succeeded")


async def test_an_operator_that_starts_believes_no_end_before_it_knows_who_has_an_agent() -> None:
    """The node stopped it because it could not reach the API, and the program ended politely, with 0; the engine shows that before
    the Leases are read."""
    async with laptops("n1") as lab:
        world = lab.world
        await lab.run_on("work", "n1", Outcome(duration_s=None, term_exit_code=0))
        await world.stop()
        lab.agents["n1"].reaches = False
        await world.pass_time(FENCE_S + 5)
        assert lab.agents["n1"].fenced
        await world.start(wait=False)
        await world.pass_time(2)
        assert world.phase("work") == "Running"
        lab.agents["n1"].reaches = True
        await world.until(lambda: world.task("work").status.attempts[0].reason == "NodeLost")
        await world.until(lambda: world.phase("work") == "Succeeded", 300)
        assert world.task("work").status.attempt == 2


async def test_what_may_still_arrive_at_its_engine_has_not_vanished_from_it() -> None:
    """Its node falls silent before its engine has shown it, and is back while a submit that was given up may be on its way."""
    async with laptops("n1") as lab:
        world = lab.world
        world.engine.script("work", Outcome(duration_s=3))
        world.engine.fail("submit", EngineUnavailable("no answer"), times=100)
        world.add_task("work", terminationGracePeriodSeconds=1)
        await world.until(lambda: world.engine.called("submit"))
        lab.agents["n1"].reaches = False
        await world.until(lambda: world.phase("work") == "Unknown", 10)
        lab.agents["n1"].reaches = True
        world.engine._faults.clear()
        given_up_at = world.clock.monotonic()
        await world.until(lambda: world.task("work").status.attempts[0].reason == "WorkloadLost", 90)
        assert world.clock.monotonic() - given_up_at >= LANDING_S - 6
        await world.until(lambda: world.phase("work") == "Succeeded", 60)


async def test_an_end_counts_when_it_was_read_just_before_that_no_agent_may_have_brought_it_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The Leases cannot be read for a while, in which an agent may have come to the node, lost the API and fenced."""
    deaf, read = [False], FakeKube.list

    async def listed(kube: FakeKube, kind: Kind, *args: Any, **options: Any) -> ObjectList:
        if kind is LEASE and deaf[0]:
            raise ServiceUnavailable("this list failed")
        return await read(kube, kind, *args, **options)

    monkeypatch.setattr(FakeKube, "list", listed)
    async with running(World("n1")) as world:
        world.engine.script("work", Outcome(duration_s=20))
        world.add_task("work")
        await world.until(lambda: world.phase("work") == "Running")
        deaf[0] = True
        await world.pass_time(60)
        assert world.phase("work") == "Running"
        deaf[0] = False
        await world.until(lambda: world.phase("work") == "Succeeded", 5)
