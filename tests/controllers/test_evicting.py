"""Nodes that run out of memory: their agents ask, the operator chooses, and an agent that hears nothing acts alone."""

from __future__ import annotations

import pytest

from swarmtask.kube import Object
from swarmtask.resources.kinds import SWARM_NODE, SWARM_TASK
from tests.controllers.test_losing_nodes import Laptops, laptops
from tests.fakes.engine import Outcome

LONG = Outcome(duration_s=None)


def ends(lab: Laptops, name: str) -> list[tuple[str, str | None, str | None]]:
    """(state, reason, reason of the stop) of each attempt."""
    attempts = lab.world.task(name).status.attempts
    return [(one.state.value, one.reason, one.stop_reason) for one in attempts]


async def test_the_operator_stops_whom_the_agent_names_and_he_goes_on_elsewhere() -> None:
    async with laptops("n1", "n2") as lab:
        world = lab.world
        world.add_task("work", placement={"nodeSelector": {}})
        world.engine.script("work", LONG, Outcome(duration_s=3))
        await world.until(lambda: world.phase("work") == "Running")
        node = world.task("work").status.node_name
        assert node is not None
        lab.agents[node].short = True
        await world.until(lambda: ends(lab, "work")[0] == ("Failed", "Evicted", "Evicted"))
        assert lab.agents[node].evicted == set()
        first = world.task("work").status.attempts[0]
        assert first.message is not None
        assert first.message.startswith(f"{node} runs out of memory: hardly any memory was left")
        lab.agents[node].short = False
        await world.until(lambda: world.phase("work") == "Succeeded", 300)
        status = world.task("work").status
        assert (status.failures, status.infrastructure_losses) == (0, 1)
        assert status.node_name != node
        assert world.node(node)["status"].get("eviction") is None


async def test_whose_priority_was_lowered_meanwhile_goes_instead() -> None:
    async with laptops("n1") as lab:
        world = lab.world
        for name in ("a", "b"):
            await lab.run_on(name, "n1", LONG, priority=5)
        world.kube.edit(SWARM_TASK, "b", "default", {"spec": {"priority": -5}})
        lab.agents["n1"].short = True
        await world.until(lambda: ends(lab, "b")[0][1] == "Evicted")
        assert ends(lab, "a") == [("Running", None, None)]
        assert lab.agents["n1"].evicted == set()


async def test_an_agent_that_gets_no_answer_acts_alone() -> None:
    async with laptops("n1") as lab:
        world = lab.world
        await lab.run_on("work", "n1", Outcome(duration_s=None, term_exit_code=0))
        await world.stop()
        lab.agents["n1"].short = True
        await world.pass_time(6)
        assert len(lab.agents["n1"].evicted) == 1
        lab.agents["n1"].short = False
        await world.start()
        await world.until(lambda: ends(lab, "work")[0][1] == "Evicted")
        assert world.task("work").status.failures == 0


async def test_a_wish_of_an_agent_that_is_not_heard_and_an_old_one_stop_nobody() -> None:
    async with laptops("n1", "n2") as lab:
        world = lab.world
        await lab.run_on("work", "n1")
        for node, name in (("n1", "st-0000000000000000-1"), ("n2", world.task("work").status.attempts[0].id)):
            wish = {"id": name, "requestedAt": "2026-01-01T00:00:00Z"}
            world.kube.edit(SWARM_NODE, node, None, {"status": {"eviction": wish}}, status=True)
        await world.pass_time(5)
        assert ends(lab, "work") == [("Running", None, None)]
        lab.agents["n1"].alive = False
        await world.pass_time(8)
        wish = {"id": world.task("work").status.attempts[0].id, "requestedAt": "2026-01-01T00:00:05Z"}
        world.kube.edit(SWARM_NODE, "n1", None, {"status": {"eviction": wish}}, status=True)
        await world.pass_time(5)
        assert ends(lab, "work")[0][1:] == (None, None)


@pytest.mark.parametrize("later", [None, {"id": "st-0000000000000000-1", "requestedAt": "2026-01-01T00:00:09Z"}])
async def test_a_wish_that_is_no_more_when_the_api_is_well_again_ends_nobody(later: Object | None) -> None:
    """Memory has come back, or the agent has acted alone and asks for somebody else by now."""
    async with laptops("n1") as lab:
        world = lab.world
        await lab.run_on("work", "n1", LONG)
        lab.agents["n1"].alive = False  # what it tells is told here
        wish = {"id": world.task("work").status.attempts[0].id, "requestedAt": "2026-01-01T00:00:00Z"}
        world.kube.fail("patch", kind=SWARM_TASK, name="work", times=3)
        world.kube.edit(SWARM_NODE, "n1", None, {"status": {"eviction": wish}}, status=True)
        await world.pass_time(0.2)
        world.kube.edit(SWARM_NODE, "n1", None, {"status": {"eviction": later}}, status=True)
        await world.pass_time(4)
        assert ends(lab, "work") == [("Running", None, None)]


async def test_one_wish_ends_one_attempt() -> None:
    """The agent has not taken it back yet when the first has ended."""
    async with laptops("n1") as lab:
        world = lab.world
        for name in ("a", "b", "c"):
            await lab.run_on(name, "n1", LONG)
        lab.agents["n1"].alive = False  # as if it were too slow to tell anything more
        wish = {"id": world.task("a").status.attempts[0].id, "requestedAt": "2026-01-01T00:00:00Z"}
        world.kube.edit(SWARM_TASK, "b", "default", {"spec": {"priority": -5}})
        await world.pass_time(1)
        world.kube.edit(SWARM_NODE, "n1", None, {"status": {"eviction": wish}}, status=True)
        await world.until(lambda: ends(lab, "b")[0][1] == "Evicted")
        await world.pass_time(1)
        assert ends(lab, "a") == ends(lab, "c")
        assert ends(lab, "a")[0][2] is None
