"""Arrays from their creation to their end: the window, the record, and whatever a person does in between."""

from __future__ import annotations

from typing import Any

from swarmtask.resources.kinds import SWARM_TASK
from tests.controllers.world import World, running
from tests.fakes.engine import Outcome


async def test_all_indices_run_once_and_are_recorded() -> None:
    async with running(World("n1", "n2")) as world:
        world.add_task("many", completions=30, parallelism=8, cpu="100m", memory="64Mi")
        await world.until(lambda: world.phase("many") == "Succeeded")
        print(world.describe())
        print(world.kube.peek(SWARM_TASK, "many", "default"))
