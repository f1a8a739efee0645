"""Preemption by priority: who may, who is stopped, and that it comes to an end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings

from swarmtask.scheduler.cycle import explain_task, run_cycle
from swarmtask.scheduler.model import (
    Amounts,
    CycleResult,
    GpuInfo,
    GpuWish,
    LimitInfo,
    NodeInfo,
    PendingTask,
    QueueInfo,
    RunningTask,
    Snapshot,
    TaskShape,
)
from tests.scheduler.builders import DEFAULT, limited, node, shape, snapshot, task
from tests.scheduler.crowds import after, crowded, packed, stopped, with_running

NIGHT = ("home", "night")
PREEMPTS = QueueInfo(DEFAULT, preempts=True)


def runs(name: str, where: str = "a", cpu: int = 1000, *, priority: int = 0, at: float = 0.0, **facts: object) -> RunningTask:
    one = RunningTask(("home", name), f"uid-{name}", NIGHT, priority, where, 1, Amounts(cpu), at)
    return replace(one, **facts)  # type: ignore[arg-type]


def cycle(
    nodes: Sequence[NodeInfo],
    running: Sequence[RunningTask],
    pending: Sequence[PendingTask],
    *queues: QueueInfo,
    limits: Mapping[str, LimitInfo] | None = None,
) -> CycleResult:
    return run_cycle(crowd(nodes, running, pending, *queues, limits=limits))


def crowd(
    nodes: Sequence[NodeInfo],
    running: Sequence[RunningTask],
    pending: Sequence[PendingTask],
    *queues: QueueInfo,
    limits: Mapping[str, LimitInfo] | None = None,
) -> Snapshot:
    bare = replace(snapshot(nodes, pending, *(queues or (PREEMPTS,)), limits=limits), now=1000.0)
    return with_running(bare, list(running))


def victims(result: CycleResult) -> list[str]:
    return sorted(one.victim.key[1] for one in result.preemptions)


URGENT = task("urgent", shape(cpu=2000), priority=1000, at=999.0)


def test_a_task_stops_lower_priority_and_says_whom() -> None:
    running = [runs("low-1", cpu=2000), runs("low-2", cpu=2000)]
    result = cycle([node("a")], running, [URGENT])
    assert victims(result) == ["low-1"]
    assert not result.bindings
    (refusal,) = result.refusals
    assert refusal.reason == "Preempting"
    assert refusal.message == "node a is kept for it until home/low-1, of lower priority, has been stopped"
    assert dict(refusal.counts) == {"cpu": 1}


def test_nobody_is_stopped_unless_the_queue_says_so_or_for_equals_or_betters() -> None:
    running = [runs("low", cpu=4000)]
    assert not cycle([node("a")], running, [URGENT], QueueInfo(DEFAULT)).preemptions
    assert not cycle([node("a")], [runs("equal", cpu=4000, priority=1000)], [URGENT]).preemptions
    assert not cycle([node("a")], running, [URGENT], QueueInfo(DEFAULT, preempts=True, stopped=True)).preemptions
    aged = replace(URGENT, priority=0, queued_at=0.0)
    assert not cycle([node("a")], running, [aged], QueueInfo(DEFAULT, preempts=True, aging_s=1.0)).preemptions


def test_nobody_is_stopped_where_room_comes_free_or_never_suffices() -> None:
    running = [runs("leaving", cpu=2000, stopping=True), runs("low", cpu=2000)]
    result = cycle([node("a")], running, [URGENT])
    assert not result.preemptions
    assert "node a is kept for it until what is being stopped has ended" in result.refusals[0].message
    huge = replace(URGENT, shape=shape(cpu=9000))
    assert not cycle([node("a")], running, [huge]).preemptions
    half = [runs("low", cpu=2000), runs("high", cpu=2000, priority=2000)]
    assert not cycle([node("a")], half, [replace(URGENT, shape=shape(cpu=4000))]).preemptions


def test_an_attempt_that_is_not_stored_or_whose_node_is_away_is_no_victim() -> None:
    assert not cycle([node("a")], [runs("assumed", cpu=4000, attempt=0)], [URGENT]).preemptions
    assert not cycle([node("a", ready=False)], [runs("low", cpu=4000)], [URGENT]).preemptions


def test_the_least_important_then_the_fewest_then_the_newest() -> None:
    nodes = [node("a"), node("b"), node("c")]
    running = [
        runs("important", "a", 4000, priority=500),
        *[runs(f"small-{number}", "b", 1000) for number in range(4)],
        runs("old", "c", 2000, at=10.0),
        runs("new", "c", 2000, at=900.0),
    ]
    assert victims(cycle(nodes, running, [URGENT])) == ["new"]
    assert victims(cycle(nodes[:2], running, [URGENT])) == ["small-0", "small-1"]
    assert victims(cycle(nodes[:1], running, [URGENT])) == ["important"]


def test_nobody_is_stopped_who_does_not_help() -> None:
    running = [runs("memory", cpu=0, amounts=Amounts(0, 2**30)), runs("cpu", cpu=4000, at=500.0)]
    assert victims(cycle([node("a")], running, [URGENT])) == ["cpu"]


def test_only_gpus_that_count_make_room() -> None:
    gpus = (GpuInfo(0, "nvidia", "T4", held=True), GpuInfo(1, "nvidia", "A100", held=True))
    running = [
        runs("t4", amounts=Amounts(1000, 0, 1), gpus=(0,), at=900.0),
        runs("a100", amounts=Amounts(1000, 0, 1), gpus=(1,), at=1.0),
    ]
    wants = replace(URGENT, shape=shape(gpus=1, gpu=GpuWish(model="a100")))
    assert victims(cycle([replace(node("a", gpus=2), gpus=gpus)], running, [wants])) == ["a100"]
    assert victims(cycle([replace(node("a", gpus=2), gpus=gpus)], running, [replace(URGENT, shape=shape(gpus=1))])) == ["t4"]
    assert not cycle([replace(node("a", gpus=2), gpus=gpus[:1])], running[:1], [wants]).preemptions


def test_several_share_no_victims_and_each_keeps_its_room() -> None:
    running = [runs(f"low-{number}", cpu=1000, at=float(number)) for number in range(4)]
    pending = [task(f"u{number}", shape(cpu=2000), priority=1000, at=float(number)) for number in range(3)]
    before = crowd([node("a")], running, pending)
    result = run_cycle(before)
    assert victims(result) == ["low-0", "low-1", "low-2", "low-3"]
    assert [refusal.reason for refusal in result.refusals] == ["Preempting", "Preempting", "NoNodeFits"]
    again = run_cycle(after(before, result))
    assert not again.preemptions
    assert [refusal.message for refusal in again.refusals] == [refusal.message for refusal in result.refusals]


def test_what_comes_free_meanwhile_is_not_taken_by_others() -> None:
    running = [runs("low", cpu=2000), runs("leaving", cpu=2000, stopping=True, priority=2000)]
    large = replace(URGENT, shape=shape(cpu=4000))
    small = task("small", shape(cpu=1000), at=0.0)
    before = crowd([node("a", cpu=5000)], running, [large, small])
    result = run_cycle(before)
    assert victims(result) == ["low"]
    assert [binding.task.key[1] for binding in result.bindings] == ["small"], "one core is left beside it"
    small = task("small", shape(cpu=2000), at=0.0)
    refusals = {
        one.task.key[1]: one
        for one in cycle([node("a", cpu=6000)], running, [replace(large, shape=shape(cpu=6000)), small]).refusals
    }
    assert refusals["small"].reason == "Reserved"
    assert refusals["small"].message == "fits on a, which is kept for home/urgent"


def test_a_full_queue_is_opened_by_its_own_tasks_and_a_limit_by_whoever_holds_it() -> None:
    queue = replace(PREEMPTS, max_running=1)
    ours, theirs = runs("ours", queue=DEFAULT), runs("theirs", "b", priority=-5)
    assert victims(cycle([node("a"), node("b")], [ours, theirs], [URGENT], queue)) == ["ours"]
    assert not cycle([node("a"), node("b")], [replace(ours, priority=1000), theirs], [URGENT], queue).preemptions
    limits = {"x": limited(4)}
    running = [
        runs("holds", queue=DEFAULT, limits=(("x", 2),), at=1.0),
        runs("other", limits=(("x", 2),), at=2.0),
        runs("none", at=3.0),
    ]
    wants = replace(URGENT, shape=shape(cpu=1000, limits=(("x", 1),)))
    assert victims(cycle([node("a")], running, [wants], PREEMPTS, limits=limits)) == ["other"], "it has done less"
    assert not cycle([node("a")], running, [replace(wants, shape=shape(limits=(("x", 5),)))], PREEMPTS, limits=limits).preemptions
    above = [replace(one, priority=1000) if one.limits else one for one in running]
    assert not cycle([node("a")], above, [wants], PREEMPTS, limits=limits).preemptions


def test_who_has_aged_above_it_is_not_stopped() -> None:
    """It would only come back before it."""
    aging = QueueInfo(NIGHT, aging_s=0.5)
    running = [runs("patient", cpu=4000, queued_at=0.0)]
    assert not cycle([node("a")], running, [URGENT], PREEMPTS, aging).preemptions
    assert victims(cycle([node("a")], [replace(running[0], queued_at=900.0)], [URGENT], PREEMPTS, aging)) == ["patient"]


def test_who_was_moved_to_the_front_is_not_stopped_by_its_own_queue() -> None:
    moved = runs("moved", cpu=4000, queue=DEFAULT, fronted=True)
    assert not cycle([node("a")], [moved], [URGENT]).preemptions
    assert victims(cycle([node("a")], [replace(moved, queue=NIGHT)], [URGENT])) == ["moved"]


@pytest.mark.slow
@given(crowded(preempts=True, fronts=False) | packed())
@settings(max_examples=300)
def test_victims_are_lower_few_and_needed_and_the_decision_is_final(before: Snapshot) -> None:
    """(Nobody was moved to the front: that can put a low priority first for a moment, which another queue then preempts. And nobody
    who waits has a known duration: once he has started, his end can move what is kept for another, see docs/scheduler.md.)"""
    before = replace(before, pending=[replace(one, duration_s=None) for one in before.pending])
    result = run_cycle(before)
    by = {one.by.key: one.by for one in result.preemptions}
    keys = [one.victim.key for one in result.preemptions]
    assert len(keys) == len(set(keys))
    for one in result.preemptions:
        assert one.victim.priority < one.by.priority
        assert not one.victim.stopping
        assert before.queues[one.by.queue].preempts
    refused = {refusal.task.key: refusal for refusal in result.refusals}
    assert all(refused[key].reason == "Preempting" for key in by)
    # A cycle on the state after the decisions stops nobody anew, and tells those who wait for it the same.
    second = run_cycle(after(before, result))
    assert not second.preemptions
    again = {refusal.task.key: refusal for refusal in second.refusals}
    assert all(again[key].reason == "Preempting" for key in by)
    for key, preemptor in by.items():
        explained = explain_task(before, preemptor)
        assert explained.outcome == refused[key]


@pytest.mark.slow
@given(crowded(preempts=True) | packed())
@settings(max_examples=300)
def test_who_preempts_alone_starts_next_and_with_one_victim_less_would_not(before: Snapshot) -> None:
    alone = replace(before, pending=before.pending[:1])
    result = run_cycle(alone)
    if not result.preemptions:
        return
    chosen = [one.victim for one in result.preemptions]
    rest = [one for one in alone.running if one not in chosen and not one.stopping]
    assert [one.task for one in run_cycle(with_running(alone, rest)).bindings] == alone.pending
    for victim in chosen:
        assert not run_cycle(with_running(alone, [*rest, victim])).bindings, f"{victim.key} was stopped in vain"


@pytest.mark.slow
def test_there_is_something_to_choose_in_packed_crowds() -> None:
    """The tests around this one show nothing where nobody, or one of one, is stopped."""
    seen = Counter[str]()

    @given(packed())
    @settings(max_examples=300)
    def count(before: Snapshot) -> None:
        stops = run_cycle(replace(before, pending=before.pending[:1])).preemptions
        names = {one.victim.key for one in stops}
        nodes = {one.victim.node for one in stops}
        seen["some"] += bool(stops)
        seen["several"] += len(stops) > 1
        seen["a choice"] += any(
            one.node in nodes and one.key not in names and one.priority < stops[0].by.priority for one in before.running
        )

    count()
    assert seen["some"] > 20
    assert seen["several"] > 8
    assert seen["a choice"] > 12


@pytest.mark.slow
@given(crowded(preempts=True) | packed())
@settings(max_examples=150)
def test_it_comes_to_an_end(before: Snapshot) -> None:
    """Everything that is stopped waits again in its old place; nothing else happens. Every task is stopped a few times at most, by
    ever higher priorities, until nobody preempts any more."""
    wants = {one.key: TaskShape(one.amounts, limits=one.limits) for one in before.running}
    wants |= {one.key: one.shape for one in before.pending}
    state, stops = before, 0
    for _ in range(60):
        result = run_cycle(state)
        stops += len(result.preemptions)
        state = stopped(after(state, result), wants)
        if not result.preemptions and not result.bindings:
            break
    else:
        raise AssertionError("it goes on for ever")
    assert stops <= 4 * len(wants)


@pytest.mark.slow
@given(crowded())
@settings(max_examples=100)
def test_for_equal_priorities_it_changes_nothing(waiting: Snapshot) -> None:
    """Who may preempt among equals stops nobody, and everybody starts who would have started otherwise."""
    equal = replace(
        waiting,
        pending=[replace(task, priority=0) for task in waiting.pending],
        running=[replace(one, priority=0) for one in waiting.running],
    )
    bold = replace(equal, queues={key: replace(queue, preempts=True) for key, queue in equal.queues.items()})
    assert run_cycle(bold) == run_cycle(equal)


def test_a_bound_that_was_lowered_below_what_runs_costs_nobody_a_victim() -> None:
    """It is not for one urgent task to stop all that are over the bound; when they have ended, one makes room for it."""
    crew = [runs(f"r{number}", "ab"[number % 2], cpu=100, queue=DEFAULT, limits=(("x", 1),)) for number in range(6)]
    nodes = [node("a"), node("b")]
    wants = replace(URGENT, shape=shape(cpu=1000, limits=(("x", 1),)))
    for queue, limits in (
        (replace(PREEMPTS, max_running=2), None),
        (PREEMPTS, {"x": limited(2)}),
        (replace(PREEMPTS, max_running_per_node=2), None),
    ):
        assert not victims(cycle(nodes, crew, [wants], queue, limits=limits)), queue
        full = crew[:4] if queue.max_running_per_node else crew[:2]
        assert len(victims(cycle(nodes, full, [wants], queue, limits=limits))) == 1, queue
    for bounded in (2, 3):
        result = cycle([replace(one, max_tasks=bounded) for one in nodes], crew, [wants])
        assert len(victims(result)) == (0 if bounded == 2 else 1)


def test_slots_and_places_held_on_a_node_that_is_away_do_not_come_back_soon() -> None:
    for queue, limits in ((replace(PREEMPTS, max_running=2), None), (PREEMPTS, {"x": limited(2)})):
        crew = [
            runs("leaving", "away", queue=DEFAULT, limits=(("x", 1),), stopping=True),
            runs("low", "a", queue=DEFAULT, limits=(("x", 1),)),
        ]
        wants = replace(URGENT, shape=shape(cpu=1000, limits=(("x", 1),)))
        assert victims(cycle([node("a"), node("away", ready=False)], crew, [wants], queue, limits=limits)) == ["low"]
        assert not victims(cycle([node("a"), node("away")], crew, [wants], queue, limits=limits))


def test_a_younger_task_of_a_line_makes_room_only_when_it_is_its_turn() -> None:
    """All three are equally important. The third must not have the second node kept for it before the second had its turn, which
    fits there at once and leaves too little for the third."""
    running = [runs("l1", "a", 1600, priority=-5), runs("l2", "b", 1600, priority=-5)]
    sizes = {"first": 2000, "second": 500, "third": 2000}
    pending = [task(name, shape(cpu=cpu), at=float(age)) for age, (name, cpu) in enumerate(sizes.items())]
    result = cycle([node("a", cpu=2100), node("b", cpu=2100)], running, pending)
    assert [(one.task.key[1], one.node) for one in result.bindings] == [("second", "b")]
    assert victims(result) == ["l1"]
    alone = cycle([node("a", cpu=2100), node("b", cpu=2100)], running, [pending[0], pending[2]])
    assert victims(alone) == ["l1", "l2"], "where nobody stands between them both do in one cycle"
