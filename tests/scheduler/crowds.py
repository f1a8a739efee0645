"""Full clusters: nodes that hold exactly what runs on them, and tasks that wait for them. What follows a decision is `after`."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import strategies as st

from swarmtask.scheduler.model import (
    Amounts,
    CycleResult,
    LimitInfo,
    NodeInfo,
    PendingTask,
    QueueInfo,
    QueueKey,
    RunningTask,
    Snapshot,
    TaskShape,
)

QUEUES: tuple[QueueKey, ...] = (("home", "day"), ("home", "night"), ("lab", "day"))
GIB = 2**30
NOW = 1000.0

LIMITS: tuple[dict[str, int], ...] = ({}, {"x": 4}, {"x": 3, "y": 2})
shapes = st.builds(
    TaskShape,
    st.builds(
        Amounts, st.sampled_from([1000, 2000, 4000, 8000]), st.sampled_from([0, GIB, 4 * GIB]), st.sampled_from([0, 0, 0, 1])
    ),
    node_name=st.sampled_from(["", "", "", "", "a"]),
    limits=st.sampled_from([(), (), (("x", 1),), (("x", 3),), (("x", 1), ("y", 2))]),
    avoid=st.sampled_from([frozenset[str](), frozenset[str](), frozenset({"b"})]),
)


@st.composite
def crowded(draw: st.DrawFn, *, preempts: bool = False, fronts: bool = True) -> Snapshot:
    """A cluster that holds what runs on it, and no more than it may.

    Args:
        preempts: some queues preempt. fronts: some tasks were moved to the front.
    """
    nodes = [
        NodeInfo(
            name,
            ready=True,
            unschedulable=False,
            engines=("swarm",),
            allocatable=Amounts(
                draw(st.sampled_from([4000, 8000])), draw(st.sampled_from([8 * GIB, 16 * GIB])), draw(st.integers(0, 2))
            ),
            max_tasks=draw(st.sampled_from([None, None, 3])),
        )
        for name in "abc"[: draw(st.integers(1, 3))]
    ]
    known = draw(st.lists(shapes, min_size=1, max_size=4))
    running: list[RunningTask] = []
    for number in range(draw(st.integers(0, 12))):
        wants, stopping = draw(st.sampled_from(known)), draw(st.integers(0, 7)) == 0
        one = RunningTask(
            ("lab", f"r{number}"),
            f"r{number}",
            draw(st.sampled_from(QUEUES)),
            priority=draw(st.sampled_from([-1000, 0, 0, 1000])),
            node=draw(st.sampled_from(nodes)).name,
            attempt=1,
            amounts=wants.request,
            limits=wants.limits,
            bound_at=NOW - draw(st.sampled_from([0, 1, 10, 100])),
            ends_at=draw(st.sampled_from([None, NOW - 5, NOW + 10, NOW + 50, NOW + 300])),
            stopping=stopping,
            queued_at=NOW - 100,
        )
        if not over_committed(nodes, [*running, one]):
            running.append(one)
    pending = [
        PendingTask(
            ("home", f"t{number}"),
            f"t{number}",
            draw(st.sampled_from(QUEUES)),
            priority=draw(st.sampled_from([-1000, 0, 0, 1000])),
            queued_at=NOW - draw(st.sampled_from([0, 1, 2, 20_000])),
            shape=draw(st.sampled_from(known)),
            front_at=draw(st.sampled_from([None] * 9 + [NOW])) if fronts else None,
            duration_s=draw(st.sampled_from([None, 5.0, 50.0, 1000.0])),
        )
        for number in range(draw(st.integers(0, 10)))
    ]
    queues = [
        QueueInfo(
            key,
            max_running=draw(st.sampled_from([None, None, 3])),
            max_running_per_node=draw(st.sampled_from([None, None, 2])),
            cohort=draw(st.sampled_from(["", "", "all"])),
            preempts=preempts and draw(st.integers(0, 3)) > 0,
            aging_s=draw(st.sampled_from([None, None, 0.0625])),
        )
        for key in QUEUES
    ]
    limits = {name: LimitInfo(most, QUEUES[0]) for name, most in draw(st.sampled_from(LIMITS)).items()}
    return with_running(Snapshot(NOW, nodes, pending, {queue.key: queue for queue in queues}, limits=limits), running)


@st.composite
def packed(draw: st.DrawFn) -> Snapshot:
    """Nodes full of small tasks, and a task or two of a higher priority than most of them, which may preempt: it mostly does, as
    often as not more than one, and others could have been stopped as well. (`crowded` has few of these.)"""
    nodes = [
        NodeInfo(
            name,
            ready=True,
            unschedulable=False,
            engines=("swarm",),
            allocatable=Amounts(4000, draw(st.sampled_from([4 * GIB, 16 * GIB])), draw(st.sampled_from([0, 2]))),
            max_tasks=draw(st.sampled_from([None, None, 4])),
        )
        for name in "ab"[: draw(st.integers(1, 2))]
    ]
    running: list[RunningTask] = []
    for place in range(draw(st.integers(4, 8)) * len(nodes)):
        one = RunningTask(
            ("lab", f"r{place}"),
            f"r{place}",
            draw(st.sampled_from(QUEUES)),
            priority=draw(st.sampled_from([-1000, -1000, 0, 0, 5, 1000])),
            node=nodes[place % len(nodes)].name,
            attempt=1,
            amounts=Amounts(
                draw(st.sampled_from([500, 1000, 1500])), draw(st.sampled_from([0, GIB, 2 * GIB])), draw(st.sampled_from([0, 0, 1]))
            ),
            limits=draw(st.sampled_from([(), (("x", 1),), (("x", 2),)])),
            bound_at=NOW - draw(st.sampled_from([1, 10, 100])),
            stopping=draw(st.integers(0, 15)) == 0,
            queued_at=NOW - 100,
        )
        if not over_committed(nodes, [*running, one]):
            running.append(one)
    pending = [
        PendingTask(
            ("home", f"t{number}"),
            f"t{number}",
            QUEUES[0],
            priority=draw(st.sampled_from([5, 1000])),
            queued_at=NOW - draw(st.sampled_from([0, 1, 200])),
            shape=TaskShape(
                Amounts(
                    draw(st.sampled_from([1000, 2000, 3000])), draw(st.sampled_from([0, 3 * GIB])), draw(st.sampled_from([0, 0, 1]))
                ),
                limits=draw(st.sampled_from([(), (), (("x", 3),)])),
            ),
        )
        for number in range(draw(st.integers(1, 2)))
    ]
    bounds = {"max_running": draw(st.sampled_from([None, None, 4])), "max_running_per_node": draw(st.sampled_from([None, None, 2]))}
    queues = [QueueInfo(key, preempts=True, aging_s=draw(st.sampled_from([None, None, 0.0625]))) for key in QUEUES]
    queues[0] = replace(queues[0], **bounds)
    limits = {"x": LimitInfo(draw(st.sampled_from([6, 9])), QUEUES[1])}
    return with_running(Snapshot(NOW, nodes, pending, {queue.key: queue for queue in queues}, limits=limits), running)


def over_committed(nodes: list[NodeInfo], running: list[RunningTask]) -> bool:
    for node in nodes:
        here = [one for one in running if one.node == node.name]
        held = sum((one.amounts for one in here), Amounts())
        if not held.fits_in(node.allocatable) or (node.max_tasks is not None and len(here) > node.max_tasks):
            return True
    return False


def with_running(snapshot: Snapshot, running: list[RunningTask]) -> Snapshot:
    """The same cluster with these tasks on it: every sum follows."""
    nodes = []
    for node in snapshot.nodes:
        here = [one for one in running if one.node == node.name]
        held = sum((one.amounts for one in here), Amounts())
        nodes.append(replace(node, requested=held, tasks=len(here), queue_tasks=dict(Counter(one.queue for one in here))))
    queues = {}
    for key, queue in snapshot.queues.items():
        ours = [one for one in running if one.queue == key]
        held = sum((one.amounts for one in ours), Amounts())
        queues[key] = replace(queue, running=len(ours), requested=held)
    limits = {
        name: replace(limit, holders={one.key: dict(one.limits)[name] for one in running if name in dict(one.limits)})
        for name, limit in snapshot.limits.items()
    }
    return replace(snapshot, nodes=nodes, queues=queues, running=running, limits=limits)


def after(snapshot: Snapshot, result: CycleResult) -> Snapshot:
    """The state when the decisions have been taken, and nothing else has happened yet: victims are being stopped."""
    victims = {one.victim.key: one.by.key for one in result.preemptions}
    running = [
        replace(one, stopping=True, makes_room_for=victims[one.key]) if one.key in victims else one for one in snapshot.running
    ]
    running += [started(binding.task, binding.node, snapshot.now) for binding in result.bindings]
    bound = {binding.task.key for binding in result.bindings}
    return with_running(replace(snapshot, pending=[task for task in snapshot.pending if task.key not in bound]), running)


def started(task: PendingTask, node: str, now: float) -> RunningTask:
    return RunningTask(
        task.key,
        task.uid,
        task.queue,
        task.priority,
        node,
        1,
        task.shape.request,
        now,
        limits=task.shape.limits,
        ends_at=None if task.duration_s is None else now + task.duration_s,
        queued_at=task.queued_at,
        fronted=task.front_at is not None,
    )


def stopped(snapshot: Snapshot, wants: dict[tuple[str, str], TaskShape]) -> Snapshot:
    """The state when everything that was being stopped has ended and waits again, in its old place."""
    ended = [one for one in snapshot.running if one.stopping and one.key in wants]
    again = [PendingTask(one.key, one.uid, one.queue, one.priority, one.queued_at or snapshot.now, wants[one.key]) for one in ended]
    left = [one for one in snapshot.running if not one.stopping]
    return with_running(replace(snapshot, pending=[*snapshot.pending, *again]), left)
