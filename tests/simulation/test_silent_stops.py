"""The checker sees it when what must not run twice does, because of what was asked for while its node was silent."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from unittest.mock import patch

import pytest

from swarmtask.lifecycle import deadlines
from swarmtask.resources.kinds import SWARM_NODE, SWARM_TASK
from swarmtask.resources.task import SwarmTask
from tests.fakes.engine import Outcome
from tests.simulation.bugs import BUGS
from tests.simulation.chances import KINDS
from tests.simulation.workload import Birth, load
from tests.simulation.world import World


def as_its_network_breaks(replace: str, ask: Callable[[World, SwarmTask], None]) -> World:
    """A run in which nothing else happens. Its task goes on for ten minutes on the node that nobody hears."""
    world = World(1, load("sleepers"), [], lambda purpose: random.Random(f"drained/{purpose}"), without=KINDS)
    spec = {"container": {"image": "work:1"}, "nodeLoss": {"replace": replace}}

    async def story() -> None:
        world.start_operator()
        await asyncio.sleep(15)
        world.create_task(Birth(0.0, "work", spec, (Outcome(duration_s=600), Outcome(duration_s=600)), 0))
        await asyncio.sleep(10)
        (task,) = world.tasks()
        node = task.status.node_name
        assert node is not None
        world.engine.disconnect(node)
        await asyncio.sleep(1)
        ask(world, task)
        await asyncio.sleep(90)
        world.look_closely()

    world.run(story)
    return world


def drained_as_its_network_breaks(replace: str) -> World:
    return as_its_network_breaks(
        replace, lambda world, task: world.kube.edit(SWARM_NODE, task.status.node_name or "", None, {"spec": {"drain": True}})
    )


def edited_as_its_network_breaks(before: str, after: str) -> World:
    edit = {"spec": {"nodeLoss": {"replace": after}}}
    return as_its_network_breaks(before, lambda world, task: world.kube.edit(SWARM_TASK, "work", "default", edit))


@pytest.mark.parametrize("replace", ["never", "afterFence"])
def test_what_is_waited_for_runs_once(replace: str) -> None:
    assert drained_as_its_network_breaks(replace).failures == []


def test_what_is_not_waited_for_runs_twice_and_that_is_found() -> None:
    """Too rare a meeting for seeds to find it soon: so it is arranged."""
    with patch.object(deadlines, "silence_decides", lambda *given: False):
        failures = drained_as_its_network_breaks("never").failures
    assert [failure.split()[0] for failure in failures] == ["I2"]


WORDS = ("afterFence", "afterLost", "never")


@pytest.mark.parametrize("before", WORDS)
@pytest.mark.parametrize("after", WORDS)
def test_an_edit_while_its_node_is_silent_runs_it_twice_only_where_that_is_accepted(before: str, after: str) -> None:
    world = edited_as_its_network_breaks(before, after)
    assert world.failures == []
    (task,) = world.tasks()
    replaced = after == "afterLost" or before == after == "afterFence"
    assert task.status.attempt == (2 if replaced else 1)


def test_a_fence_that_is_not_there_is_seen() -> None:
    with BUGS["relies_on_a_fence_that_is_not_there"]():
        failures = edited_as_its_network_breaks("never", "afterFence").failures
    assert [failure.split()[0] for failure in failures] == ["I2"]
