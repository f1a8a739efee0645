"""The checker sees it when what must not run twice does, because it was being stopped while its node was silent."""

from __future__ import annotations

import asyncio
import random
from unittest.mock import patch

import pytest

from swarmtask.lifecycle import deadlines
from swarmtask.resources.kinds import SWARM_NODE
from tests.fakes.engine import Outcome
from tests.simulation.chances import KINDS
from tests.simulation.workload import Birth, load
from tests.simulation.world import World


def drained_as_its_network_breaks(replace: str) -> World:
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
        world.kube.edit(SWARM_NODE, node, None, {"spec": {"drain": True}})
        await asyncio.sleep(90)
        world.look_closely()

    world.run(story)
    return world


@pytest.mark.parametrize("replace", ["never", "afterFence"])
def test_what_is_waited_for_runs_once(replace: str) -> None:
    assert drained_as_its_network_breaks(replace).failures == []


def test_what_is_not_waited_for_runs_twice_and_that_is_found() -> None:
    """Too rare a meeting for seeds to find it soon: so it is arranged."""
    with patch.object(deadlines, "silence_decides", lambda *given: False):
        failures = drained_as_its_network_breaks("never").failures
    assert [failure.split()[0] for failure in failures] == ["I2"]
