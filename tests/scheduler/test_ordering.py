"""Who starts first, and what queues hold back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swarmtask.scheduler.cycle import run_cycle
from swarmtask.scheduler.model import CycleResult, QueueInfo, Snapshot
from tests.scheduler.builders import DEFAULT, GIB, limited, node, shape, snapshot, task

NIGHT = ("home", "night")


def started(result: CycleResult) -> list[str]:
    return [binding.task.key[1] for binding in result.bindings]


def waiting(result: CycleResult) -> dict[str, int]:
    return {refusal.task.key[1]: refusal.position for refusal in result.refusals}


def test_priority_then_age_then_uid() -> None:
    pending = [
        task("young", at=2.0),
        task("old", at=1.0),
        task("urgent", priority=1000, at=9.0),
        task("idle", priority=-1000, at=0.0),
        task("twin-b", at=1.5, uid="b"),
        task("twin-a", at=1.5, uid="a"),
    ]
    assert started(run_cycle(snapshot([node()], pending))) == ["urgent", "old", "twin-a", "twin-b", "young", "idle"]


def test_order_is_strict_across_queues_and_shapes() -> None:
    pending = [
        task(f"t{number}", shape(cpu=number % 3), priority=-(number // 2), at=float(number), queue=NIGHT if number % 2 else DEFAULT)
        for number in range(20)
    ]
    assert started(run_cycle(snapshot([node(cpu=100_000)], reversed(pending)))) == [f"t{number}" for number in range(20)]


def test_an_urgent_task_behind_fifty_others_is_next() -> None:
    pending = [task(f"low-{number:02}", shape(cpu=1000), at=float(number)) for number in range(50)]
    urgent = task("urgent", shape(cpu=1000), priority=1000, at=99.0)
    result = run_cycle(snapshot([node(cpu=1000)], [*pending, urgent]))
    assert started(result) == ["urgent"]
    assert waiting(result)["low-00"] == 1
    assert waiting(result)["low-49"] == 50


def test_a_large_task_that_does_not_fit_lets_smaller_ones_start() -> None:
    pending = [task("large", shape(cpu=8000), priority=1000), task("small", shape(cpu=1000))]
    result = run_cycle(snapshot([node(cpu=4000)], pending))
    assert started(result) == ["small"]
    assert waiting(result) == {"large": 1}


def test_positions_are_counted_per_queue() -> None:
    pending = [task(f"t{number}", at=float(number), queue=NIGHT if number % 2 else DEFAULT) for number in range(6)]
    assert waiting(run_cycle(snapshot([], pending))) == {"t0": 1, "t2": 2, "t4": 3, "t1": 1, "t3": 2, "t5": 3}


def test_a_full_queue_does_not_hold_back_another() -> None:
    pending = [task(f"t{number}", at=float(number), queue=NIGHT if number % 2 else DEFAULT) for number in range(6)]
    result = run_cycle(snapshot([node()], pending, QueueInfo(DEFAULT, max_running=3, running=2), QueueInfo(NIGHT)))
    assert started(result) == ["t0", "t1", "t3", "t5"]
    assert {(refusal.task.key[1], refusal.reason) for refusal in result.refusals} == {("t2", "QueueFull"), ("t4", "QueueFull")}


def test_a_queue_fills_with_its_most_urgent_tasks_whatever_their_shape() -> None:
    pending = [task(f"t{number}", shape(cpu=number), priority=number) for number in range(5)]
    assert started(run_cycle(snapshot([node()], pending, QueueInfo(DEFAULT, max_running=2)))) == ["t4", "t3"]


def test_a_task_that_does_not_fit_takes_no_place_in_its_queue() -> None:
    pending = [task("large", shape(cpu=9000), priority=1), task("small", shape(cpu=1000))]
    assert started(run_cycle(snapshot([node()], pending, QueueInfo(DEFAULT, max_running=1)))) == ["small"]


@pytest.mark.parametrize(
    ("queues", "words"),
    [
        (
            [],
            "queue home/default has no SwarmQueue any more, and nothing of it starts: create it, with its bounds",
        ),
        ([QueueInfo(DEFAULT, unknown="cannot be read")], "queue home/default cannot be read"),
        ([QueueInfo(DEFAULT, unknown="cannot be read", stopped=True)], "queue home/default cannot be read"),
    ],
    ids=["no object", "unreadable", "stopped besides"],
)
def test_nothing_of_a_queue_starts_whose_bounds_nobody_knows(queues: list[QueueInfo], words: str) -> None:
    known = {queue.key: queue for queue in [QueueInfo(NIGHT), *queues]}
    result = run_cycle(Snapshot(0.0, [node()], [task("a"), task("b", queue=NIGHT)], known))
    assert started(result) == ["b"]
    assert [(refusal.reason, refusal.message) for refusal in result.refusals] == [("QueueUnknown", words)]


def test_what_refuses_by_bounds_of_an_earlier_version_says_so() -> None:
    pending = [task(wants=shape(limits=(("x", 1),)))]
    queue = QueueInfo(DEFAULT, outdated="it is old")
    for bounded in (replace(queue, max_running=0), replace(queue, stopped=True)):
        (refusal,) = run_cycle(snapshot([node()], pending, bounded)).refusals
        assert refusal.message.endswith("; it is old")
    for stated_by in (DEFAULT, NIGHT):
        limits = {"x": limited(1, stated_by, other=1)}
        (refusal,) = run_cycle(snapshot([node()], pending, queue, limits=limits)).refusals
        assert refusal.message.endswith("; it is old") is (stated_by == DEFAULT)


def test_a_queue_spreads_when_it_may_run_little_on_each_node() -> None:
    pending = [task(f"t{number}", at=float(number)) for number in range(6)]
    nodes = [node("large", cpu=64_000, memory=64 * GIB), node("small", queue_tasks={DEFAULT: 1}, tasks=1)]
    result = run_cycle(snapshot(nodes, pending, QueueInfo(DEFAULT, max_running_per_node=2)))
    assert [binding.node for binding in result.bindings] == ["large", "large", "small"]
    assert {refusal.message for refusal in result.refusals} == {
        "0/2 nodes fit: 2 run as many tasks of queue home/default as one may (maxRunningPerNode 2)"
        + ("; node large is kept for it (until a task of its queue has ended there)" if number == 3 else "")
        for number in range(3, 6)
    }


def test_a_queue_that_is_full_on_every_node_does_not_hold_back_equal_tasks_of_another() -> None:
    pending = [task(f"t{number}", at=float(number), queue=NIGHT if number % 2 else DEFAULT) for number in range(6)]
    result = run_cycle(snapshot([node()], pending, QueueInfo(DEFAULT, max_running_per_node=1), QueueInfo(NIGHT)))
    assert started(result) == ["t0", "t1", "t3", "t5"]
    assert [dict(refusal.counts) for refusal in result.refusals] == [{"maxRunningPerNode": 1}] * 2


def test_a_bound_of_nothing_per_node_starts_nothing() -> None:
    result = run_cycle(snapshot([node("a"), node("b")], [task()], QueueInfo(DEFAULT, max_running_per_node=0)))
    assert [dict(refusal.counts) for refusal in result.refusals] == [{"maxRunningPerNode": 2}]
