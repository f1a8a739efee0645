"""SwarmNodes of which something cannot be read: they take nothing new, and all else goes on."""

from __future__ import annotations

from typing import Any

import pytest

from swarmtask.controllers.cache import Cache
from swarmtask.controllers.node_facts import match
from swarmtask.controllers.reading import read_node
from swarmtask.engines.base import EngineNode, NodeState
from swarmtask.kube import Object
from swarmtask.resources.kinds import SWARM_NODE
from swarmtask.resources.meta import get_condition
from swarmtask.resources.node import NodeStatus
from tests.controllers.test_losing_nodes import Laptops, laptops
from tests.controllers.world import World, running
from tests.fakes.engine import Outcome

TWO_WAYS = "Mon, Wed, Fri 09:00-17:00"
"""Quiet hours that an earlier version took."""


def node(version: int = 5, status: Any = None, **spec: Any) -> Object:
    metadata = {"name": "annas-laptop", "uid": "x", "resourceVersion": str(version), "labels": {"a": "b"}}
    return {"apiVersion": SWARM_NODE.api_version, "kind": "SwarmNode", "metadata": metadata, "spec": spec, "status": status or {}}


def spoil(world: World, name: str, **spec: Any) -> None:
    world.unreadable.add(name)
    world.kube.edit(SWARM_NODE, name, None, {"spec": {"quietHours": TWO_WAYS, **spec}})


def ready(world: World, name: str) -> tuple[str, str | None, str]:
    """(status, reason, message) of its condition Ready."""
    status = NodeStatus.model_validate(world.node(name).get("status") or {})
    found = get_condition(status.conditions, "Ready")
    return ("", None, "") if found is None else (found.status, found.reason, found.message)


# --- reading ---


def test_a_field_that_is_refused_takes_no_other_along() -> None:
    read = read_node(node(quietHours=TWO_WAYS, drain=True, maxTasks=2, reserved={"memory": "1Gi"}, capabilities=["browser", 7]))
    assert read.invalid is not None
    assert "spec.quietHours" in read.invalid
    assert not read.mute
    spec = read.node.spec
    assert (spec.quiet_hours, spec.drain, spec.max_tasks, spec.reserved.memory) == ("", True, 2, "1Gi")
    assert spec.capabilities == ["browser"]
    assert read.node.metadata.labels == {"a": "b"}


def test_a_record_that_is_refused_takes_no_other_along_and_nothing_is_written_there() -> None:
    good = {"id": "u-1", "state": "Exited", "exitCode": 0, "reason": "Fenced"}
    read = read_node(node(status={"phase": "Dreaming", "bootID": "b", "attempts": [{"id": "u-2", "state": "Floating"}, good]}))
    assert read.mute
    assert [one.id for one in read.node.status.attempts] == ["u-1"]
    assert (read.node.status.boot_id, read.node.status.phase) == ("b", "NotReady")


@pytest.mark.parametrize("part", ["spec", "status"])
def test_a_part_that_is_no_object_is_read_as_nothing(part: str) -> None:
    read = read_node(node() | {part: "odd"})
    assert read.invalid is not None
    assert read.node.metadata.name == "annas-laptop"


def test_an_engine_id_stays_known() -> None:
    """Else its machine became a second SwarmNode, without what its owner had said."""
    cache = Cache()
    assert cache.apply(SWARM_NODE, node(status={"engines": [{"name": "swarm", "id": "e"}]}, quietHours=TWO_WAYS))
    listed = EngineNode(id="e", hostname="lap", state=NodeState.READY)
    assert list(match({"swarm": ([listed], True)}, cache.nodes)) == ["annas-laptop"]


def test_it_is_told_apart_when_that_changes(caplog: pytest.LogCaptureFixture) -> None:
    cache, changes = Cache(), []
    cache.listeners.append(lambda change: changes.append(change.placement))
    for version, hours in enumerate(["", TWO_WAYS, TWO_WAYS, "22:00-07:00"], 1):
        cache.apply(SWARM_NODE, node(version, quietHours=hours))
    assert changes == [True, True, False, True]
    assert len([one for one in caplog.records if "takes no tasks until it is corrected" in one.message]) == 1
    cache.apply(SWARM_NODE, node(9, quietHours=TWO_WAYS))
    cache.remove(SWARM_NODE, ("", "annas-laptop"))
    assert not cache.nodes
    assert not cache.known_nodes.unreadable


# --- what follows ---


async def test_nothing_starts_there_until_it_is_corrected_and_its_status_says_so() -> None:
    async with running(World("n1")) as world:
        await world.until(lambda: ready(world, "n1")[0] == "True")
        spoil(world, "n1")
        await world.until(lambda: ready(world, "n1")[:2] == ("False", "Unreadable"))
        assert "spec.quietHours" in ready(world, "n1")[2]
        assert world.node("n1")["status"]["phase"] == "NotReady"
        world.add_task("work")
        await world.pass_time(30)
        assert world.phase("work") == "Queued"
        assert "1 not ready" in (world.task("work").status.message or "")
        world.kube.edit(SWARM_NODE, "n1", None, {"spec": {"quietHours": None}})
        world.unreadable.clear()
        await world.until(lambda: world.phase("work") == "Succeeded")
        assert ready(world, "n1")[0] == "True"


async def test_what_it_runs_goes_on_also_after_a_restart() -> None:
    async with running(World("n1")) as world:
        world.engine.script("work", Outcome(duration_s=40))
        world.add_task("work")
        await world.until(lambda: world.phase("work") == "Running")
        spoil(world, "n1")
        await world.stop()
        await world.start()
        await world.until(lambda: world.phase("work") == "Succeeded")
        assert world.task("work").status.attempt == 1
        assert {one["metadata"]["name"] for one in world.kube.all(SWARM_NODE)} == {"n1"}


async def test_a_drain_beside_what_cannot_be_read_counts() -> None:
    async with running(World("n1", "n2")) as world:
        world.engine.script("work", Outcome(duration_s=None), Outcome(duration_s=3))
        world.add_task("work")
        await world.until(lambda: world.phase("work") == "Running")
        first = str(world.task("work").status.node_name)
        spoil(world, first, drain=True)
        await world.until(lambda: world.phase("work") == "Succeeded")
        assert world.task("work").status.node_name != first


async def fenced(lab: Laptops) -> None:
    """Its node ends a polite program, because it does not reach the API."""
    await lab.run_on("work", "n1", Outcome(duration_s=None, term_exit_code=0))
    spoil(lab.world, "n1")
    lab.agents["n1"].reaches = False
    await lab.world.until(lambda: lab.agents["n1"].fenced, 40)
    lab.agents["n1"].reaches = True
    await lab.world.until(lambda: not lab.world.task("work").status.attempts[0].live)


async def test_its_agent_is_heard_about_an_end() -> None:
    async with laptops("n1") as lab:
        await fenced(lab)
        (attempt,) = lab.world.task("work").status.attempts
        assert (attempt.state, attempt.reason) == ("Failed", "NodeLost")
        await lab.world.pass_time(60)
        assert not lab.world.task("work").finished


async def test_its_agent_is_heard_when_memory_is_short() -> None:
    async with laptops("n1") as lab:
        await lab.run_on("work", "n1")
        spoil(lab.world, "n1")
        lab.agents["n1"].short = True
        await lab.world.until(lambda: lab.world.task("work").status.attempts[0].reason == "Evicted")
        assert lab.agents["n1"].evicted == set(), "the operator has answered"
