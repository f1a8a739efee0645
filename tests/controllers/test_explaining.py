"""`explain_stored`: what a person is told is what the operator decides."""

from __future__ import annotations

import pytest

from swarmtask.controllers.explaining import explain_stored
from swarmtask.errors import Invalid, NotFound
from swarmtask.resources.kinds import SWARM_TASK
from swarmtask.scheduler.model import Binding, Refusal
from tests.controllers.world import World, running
from tests.fakes.engine import Outcome


async def test_a_waiting_task_is_explained_as_the_operator_explains_it() -> None:
    async with running(World("n1", "n2")) as world:
        world.engine.script("long", Outcome(duration_s=None))
        world.add_task("long", cpu="3")
        world.add_task("large", cpu="64")
        world.add_task("larger", cpu="65")
        await world.until(lambda: 2 in {world.task(name).status.queue_position for name in ("large", "larger")})
        second = next(name for name in ("large", "larger") if world.task(name).status.queue_position == 2)
        found = await explain_stored(world.kube, ("default", second), world.clock.now().timestamp())
        status = world.task(second).status
        assert found.waits
        assert isinstance(found.explanation.outcome, Refusal)
        outcome = found.explanation.outcome
        assert (outcome.position, outcome.reason, outcome.message) == (status.queue_position, status.reason, status.message)
        assert {node.node: node.refused_by for node in found.explanation.nodes} == {"n1": "cpu", "n2": "cpu"}


async def test_the_limits_and_the_strategy_of_the_queue_are_seen() -> None:
    async with running(World("n1", "n2")) as world:
        world.add_queue("models", limits={"model/x": 1}, strategy="pack")
        for name in ("first", "second"):
            world.engine.script(name, Outcome(duration_s=None))
            world.add_task(name, queue="models", limits={"model/x": 1}, cpu="100m")
        await world.until(lambda: sorted(world.phases().values()) == ["Queued", "Running"])
        waiting = next(name for name, phase in world.phases().items() if phase == "Queued")
        found = await explain_stored(world.kube, ("default", waiting), world.clock.now().timestamp())
        assert isinstance(found.explanation.outcome, Refusal)
        assert found.explanation.outcome.reason == "LimitReached"
        assert found.explanation.nodes[0].scores.keys() == {"fullness", "manyTasks"}


async def test_who_waits_for_tasks_that_are_stopped_for_it_is_told_so() -> None:
    """That they are stopped for it, and not for somebody else, the operator knows; here it is read from their records."""
    async with running(World("n1", "n2")) as world:
        world.add_queue("fast", preemption="LowerPriority")
        for name in ("low-1", "low-2"):
            world.engine.script(name, Outcome(duration_s=None, honours_term=False))
            world.add_task(name, cpu="4")
        await world.until(lambda: list(world.phases().values()) == ["Running"] * 2)
        world.add_task("urgent", cpu="4", queue="fast", priorityClass="high")
        world.add_task("less", cpu="4", queue="fast")
        await world.until(lambda: world.task("urgent").status.reason == "Preempting")
        for name in ("urgent", "less"):
            await world.until(lambda name=name: world.task(name).status.reason is not None)  # type: ignore[misc]
            status = world.task(name).status
            found = await explain_stored(world.kube, ("default", name), world.clock.now().timestamp())
            outcome = found.explanation.outcome
            assert isinstance(outcome, Refusal)
            assert (outcome.position, outcome.reason, outcome.message) == (status.queue_position, status.reason, status.message)


@pytest.mark.slow
async def test_a_running_task_is_explained_without_what_it_holds() -> None:
    async with running(World("n1")) as world:
        world.add_queue("one", maxRunning=1, limits={"model/x": 1})
        world.engine.script("whole", Outcome(duration_s=None))
        world.add_task("whole", queue="one", cpu="4", limits={"model/x": 1})
        await world.until(lambda: world.phase("whole") == "Running")
        found = await explain_stored(world.kube, ("default", "whole"), world.clock.now().timestamp())
        assert not found.waits
        assert isinstance(found.explanation.outcome, Binding)
        assert found.explanation.outcome.node == "n1"
        assert world.phase("whole") == "Running"


async def test_an_ended_task_comes_behind_those_that_wait() -> None:
    async with running(World("n1")) as world:
        world.add_task("early", cpu="3")
        await world.until(lambda: world.phase("early") == "Succeeded")
        world.engine.script("long", Outcome(duration_s=None))
        world.add_task("long", cpu="3")
        await world.until(lambda: world.phase("long") == "Running")
        world.add_task("next", cpu="3")
        await world.until(lambda: world.task("next").status.queue_position == 1)
        found = await explain_stored(world.kube, ("default", "early"), world.clock.now().timestamp())
        assert isinstance(found.explanation.outcome, Refusal)
        assert found.explanation.outcome.position == 2


async def test_tasks_that_cannot_be_explained_are_refused_with_the_reason() -> None:
    async with running(World("n1"), start=False) as world:
        now = world.clock.now().timestamp()
        with pytest.raises(NotFound, match="gone"):
            await explain_stored(world.kube, ("default", "gone"), now)
        world.unreadable |= {"bad", "worse"}
        world.kube.add(SWARM_TASK, {"metadata": {"name": "bad", "namespace": "default"}, "spec": {"container": {"image": "A B"}}})
        with pytest.raises(Invalid, match=r"container\.image"):
            await explain_stored(world.kube, ("default", "bad"), now)
        world.kube.add(
            SWARM_TASK, {"metadata": {"name": "worse", "namespace": "default"}, "spec": {}}, status={"phase": "Elsewhere"}
        )
        with pytest.raises(Invalid, match="cannot be read"):
            await explain_stored(world.kube, ("default", "worse"), now)


async def test_a_task_that_is_being_deleted_is_refused() -> None:
    async with running(World("n1")) as world:
        world.engine.script("long", Outcome(duration_s=None))
        world.add_task("long")
        await world.until(lambda: world.phase("long") == "Running")
        await world.crash()
        world.kube.remove(SWARM_TASK, "long", "default")
        with pytest.raises(Invalid, match="being deleted"):
            await explain_stored(world.kube, ("default", "long"), world.clock.now().timestamp())
        await world.start()
        await world.until(lambda: world.gone("long"))
