"""How a run must end: everything finished or waiting for an honest reason, nothing left over, all sums right.

Used by `story`, which asks `wrongs` until the answer is empty or its patience is over. Compares what is stored, what truly is on
the engine and what the operator remembers; changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

from swarmtask.controllers.cache import Cache
from swarmtask.engines.base import NodeState
from swarmtask.lifecycle.messages import FINAL_WORKLOAD_STATES
from swarmtask.resources import units
from swarmtask.resources.kinds import SWARM_NODE, SWARM_QUEUE
from swarmtask.resources.node import NodePhase, SwarmNode
from swarmtask.resources.queue import SwarmQueue
from swarmtask.resources.task import BOUND_PHASES, LABEL_DEAD_LETTER, Attempt, Phase, SwarmTask
from swarmtask.scheduler.model import Amounts
from tests.checker.violation import digits_of, owner_digits
from tests.simulation.world import World

LATE_S = 45.0
"""A finished task may outlive its time to live by this."""


def wrongs(world: World) -> Iterator[str]:
    """What is not yet as it must be in the end, each with its reason, one by one; none: the run has ended well."""
    tasks = world.tasks()
    nodes = [SwarmNode.model_validate(obj) for obj in world.kube.all(SWARM_NODE)]
    queues = [SwarmQueue.model_validate(obj) for obj in world.kube.all(SWARM_QUEUE)]
    yield from _restless(world, tasks, nodes, queues)
    yield from _left_over(world, tasks)
    yield from _untrue(world, tasks)
    held = _held(tasks)
    yield from _nodes(nodes, held)
    yield from _queues(queues, tasks)
    if world.operator is not None:
        yield from _memory(world.operator.cache, tasks, held)
        if world.operator.executor.backlog:
            yield f"{world.operator.executor.backlog} tasks still have events that wait"


# --- tasks ---


def _restless(world: World, tasks: list[SwarmTask], nodes: list[SwarmNode], queues: list[SwarmQueue]) -> Iterator[str]:
    room = dict(_rooms(world, tasks, nodes))
    for task in tasks:
        if task.metadata.deletion_timestamp is not None:
            yield f"{task.metadata.name} is still being deleted"
        elif not task.finished:
            lie = _array_lie(task, tasks, queues) if task.is_array else _lie(task, tasks, nodes, room, queues)
            if lie:
                yield f"{task.metadata.name} is {task.status.phase.value} {task.status.reason}: {lie}"
        elif task.status.completion_time is not None:
            end = task.status.completion_time + timedelta(seconds=task.spec.ttl_seconds_after_finished + LATE_S)
            if end < world.clock.now():
                yield f"{task.metadata.name} has outlived its time to live"


def _array_lie(task: SwarmTask, tasks: list[SwarmTask], queues: list[SwarmQueue]) -> str:
    """The same for an array: it waits for runs, and why these wait is asked of each."""
    status, spec = task.status, task.spec
    if not status.message:
        return "it does not say why"
    if spec.suspend or status.reason == "Suspended":
        return "" if spec.suspend and status.reason == "Suspended" and status.phase is Phase.PENDING else "suspended or not?"
    if status.reason == "QueueNotFound":
        return "its queue exists" if any(one.metadata.name == spec.queue for one in queues) else ""
    runs = [one for one in tasks if one.array_owner is not None and one.array_owner.uid == task.metadata.uid]
    return "" if any(not run.finished for run in runs) else "none of its runs waits for anything"


def _lie(
    task: SwarmTask, tasks: list[SwarmTask], nodes: list[SwarmNode], room: dict[str, Amounts], queues: list[SwarmQueue]
) -> str:
    """Why the reason for which this task waits is not true; empty when it is."""
    status, spec = task.status, task.spec
    queue = next((one for one in queues if one.metadata.name == spec.queue), None)
    if not status.message:
        return "it does not say why"
    if spec.suspend or status.reason == "Suspended":
        return "" if spec.suspend and status.reason == "Suspended" and status.phase is Phase.PENDING else "suspended or not?"
    match status.phase, status.reason:
        case Phase.PENDING, "Deduplicated":
            twins = [one for one in tasks if one.spec.dedupe_key == spec.dedupe_key and not one.finished and one is not task]
            return (
                ""
                if any(_may_work(one, held=queue is not None and queue.spec.stopped) for one in twins)
                else "no task of its dedupeKey is at work, or can be"
            )
        case Phase.PENDING, "QueueNotFound":
            return "its queue exists" if queue is not None else ""
        case Phase.QUEUED, "QueueStopped":
            return "" if queue is not None and queue.spec.stopped else "its queue is not stopped"
        case Phase.QUEUED, "QueueFull":
            return "" if queue is not None and queue.spec.max_running == 0 else "its queue has room, or will have"
        case Phase.QUEUED, "LimitReached":
            never = [name for name, slots in spec.limits.items() if any(slots > one.spec.limits.get(name, slots) for one in queues)]
            return "" if never else "the slots that it needs are free, or will be"
        case Phase.QUEUED, "NoNodeFits" if queue is not None and queue.spec.max_running_per_node == 0:
            return ""
        case Phase.QUEUED, "NoNodeFits":
            requests, where, plan = spec.container.resources.requests, spec.placement.node_name, status.memory
            memory = requests.memory if plan is None else plan.request
            wish = Amounts(units.cpu_milli(requests.cpu), units.memory_bytes(memory), requests.gpu)
            untried = plan is not None and plan.basis == "Ladder" and _asked(status.current) < units.memory_bytes(plan.request)
            if untried and not where and _beyond(wish, nodes):
                return "it has climbed beyond all nodes, and is no dead letter"
            fits = sorted(name for name, free in room.items() if wish.fits_in(free) and where in ("", name))
            return f"it fits on {', '.join(fits)}" if fits else ""
        case _:
            return "this is no reason to wait for ever"


def _may_work(task: SwarmTask, *, held: bool) -> bool:
    """Others may wait for it: it does not wait for one of them itself, nor before its first attempt for the release of its queue.
    `held`: those in stopped queues may."""
    status = task.status
    begun = status.start_time is not None or status.failures > 0 or status.infrastructure_losses > 0
    return status.reason != "Deduplicated" and (held or begun or status.reason != "QueueStopped")


def _asked(attempt: Attempt | None) -> int:
    """Memory in bytes."""
    return 0 if attempt is None else units.memory_bytes(attempt.requested.memory)


def _beyond(wish: Amounts, nodes: list[SwarmNode]) -> bool:
    """No node that has enough of everything else has so much memory, even if nothing ran there."""
    offers = [node.status.allocatable for node in nodes if node.status.phase is not NodePhase.GONE]
    able = [one for one in offers if units.cpu_milli(one.cpu) >= wish.cpu_milli and one.gpu >= wish.gpus]
    return bool(able) and all(units.memory_bytes(one.memory) < wish.memory_bytes for one in able)


def _rooms(world: World, tasks: list[SwarmTask], nodes: list[SwarmNode]) -> Iterator[tuple[str, Amounts]]:
    """What each node that takes work could give to one more task."""
    held = _held(tasks)
    ready = {node_id for node_id in world.node_ids if world.engine._show(world.engine._nodes[node_id]).state is NodeState.READY}
    for node in nodes:
        there = held.get(node.metadata.name, (0, Amounts()))
        full = node.spec.max_tasks is not None and there[0] >= node.spec.max_tasks
        if not node.spec.unschedulable and not full and any(engine.id in ready for engine in node.status.engines):
            offered = node.status.allocatable
            yield (
                node.metadata.name,
                Amounts(units.cpu_milli(offered.cpu), units.memory_bytes(offered.memory), offered.gpu) - there[1],
            )


def _untrue(world: World, tasks: list[SwarmTask]) -> Iterator[str]:
    """What was stored about programs, against how they truly ended."""
    for task in tasks:
        marked = task.metadata.labels.get(LABEL_DEAD_LETTER) == "true"
        if marked != (task.status.phase is Phase.FAILED):
            yield f"{task.metadata.name} is {task.status.phase.value}, dead-letter label {marked}"
        for attempt in task.status.attempts:
            true = world.exit_codes.get(attempt.id, {attempt.exit_code})
            if attempt.exit_code is not None and attempt.exit_code not in true:
                yield f"{attempt.id} is stored with exit code {attempt.exit_code}, it was {true}"
        current = task.status.current
        if task.is_array or task.status.reason == "Deduplicated":
            continue
        if task.status.phase is Phase.SUCCEEDED and (current is None or 0 not in world.exit_codes.get(current.id, ())):
            yield f"{task.metadata.name} is Succeeded, yet its attempt never ended with 0"


# --- the engine ---


def _left_over(world: World, tasks: list[SwarmTask]) -> Iterator[str]:
    owners = {digits_of(task.metadata.uid): task for task in tasks}
    world.engine._settle()
    for name, run in sorted(world.engine._runs.items()):
        digits = owner_digits(name)
        task = owners.get(digits[0]) if digits is not None else None
        if digits is None or task is None or digits[1] > task.status.attempt:
            yield f"the engine holds {name}, which nobody owns"
        elif run.state not in FINAL_WORKLOAD_STATES:
            current = task.status.current
            if current is None or not current.live or current.number != digits[1]:
                yield f"{name} is {run.state.value} on the engine, though its task has done with it"


# --- sums ---


def _held(tasks: list[SwarmTask]) -> dict[str, tuple[int, Amounts]]:
    held: dict[str, tuple[int, Amounts]] = {}
    for task in tasks:
        current = task.status.current
        if current is not None and current.live:
            count, sums = held.get(current.node, (0, Amounts()))
            wish = current.requested
            held[current.node] = (
                count + 1, sums + Amounts(units.cpu_milli(wish.cpu), units.memory_bytes(wish.memory), wish.gpu)
            )  # fmt: skip
    return held


def _nodes(nodes: list[SwarmNode], held: dict[str, tuple[int, Amounts]]) -> Iterator[str]:
    for node in nodes:
        count, sums = held.get(node.metadata.name, (0, Amounts()))
        told = node.status.requested
        if (node.status.tasks, Amounts(units.cpu_milli(told.cpu), units.memory_bytes(told.memory), told.gpu)) != (count, sums):
            yield f"node {node.metadata.name} says {node.status.tasks} tasks with {told}; it holds {count} with {sums}"
        if node.status.phase not in (NodePhase.READY, NodePhase.GONE):
            yield f"node {node.metadata.name} is {node.status.phase.value}: {node.status.message}"


def _queues(queues: list[SwarmQueue], tasks: list[SwarmTask]) -> Iterator[str]:
    for queue in queues:
        phases = Counter(task.status.phase for task in tasks if task.spec.queue == queue.metadata.name and not task.is_array)
        # Who runs is counted where he was let in, as the bounds count him, whatever his spec says by now.
        attempts = [task.status.current for task in tasks if task.status.phase in BOUND_PHASES]
        running = sum(attempt is not None and attempt.requested.queue == queue.metadata.name for attempt in attempts)
        truth = (phases[Phase.QUEUED], running, phases[Phase.FAILED])
        told = (queue.status.queued, queue.status.running, queue.status.dead_letters)
        if told != truth:
            yield f"queue {queue.metadata.name} says {told} queued, running, dead letters; true is {truth}"
        slots: Counter[str] = Counter()
        for task in tasks:
            if task.status.phase in BOUND_PHASES and task.status.current is not None:
                slots.update(task.status.current.requested.limits)
        held = {name: slots[name] for name in queue.spec.limits}
        if queue.status.limits_held != held:
            yield f"queue {queue.metadata.name} says that {queue.status.limits_held} of its limits are held; true is {held}"


def _memory(cache: Cache, tasks: list[SwarmTask], held: dict[str, tuple[int, Amounts]]) -> Iterator[str]:
    if cache.tasks.keys() != {task.key for task in tasks}:
        yield f"the operator remembers {sorted(cache.tasks.keys() ^ {task.key for task in tasks})} wrongly"
    for name in sorted({*cache._sums.requested, *held}):
        truth = held.get(name, (0, Amounts()))
        if (cache.tasks_on(name), cache.requested(name)) != truth:
            yield f"the operator counts {cache.tasks_on(name)} tasks with {cache.requested(name)} on {name}; true is {truth}"
    if cache._assumed:
        yield f"the operator still assumes placements of {sorted(cache._assumed)}"
