"""What the scheduler promises where everything meets: queues, cohorts, limits, single GPUs, aging, reservations and preemption.

The other files of this folder look at one rule at a time; `test_properties` holds single cycles against the oracle, without
preemption. Here the sums are taken, and who was passed over is told, without a model of how decisions are made.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmtask.scheduler.cycle import run_cycle
from swarmtask.scheduler.headroom import Headroom
from swarmtask.scheduler.model import (
    CycleResult,
    GpuInfo,
    GpuWish,
    NodeInfo,
    PendingTask,
    QueueInfo,
    QueueKey,
    RunningTask,
    Snapshot,
    TaskShape,
)
from tests.scheduler.builders import GIB, limited, node, shape, snapshot, task
from tests.scheduler.crowds import after, crowded, over_committed, started, with_running
from tests.scheduler.oracle import Oracle

NOW = 1000.0
DAY, NIGHT, LAB = ("home", "day"), ("home", "night"), ("lab", "day")
KINDS = (
    shape(cpu=1000),
    shape(cpu=3000, memory=4 * GIB),
    shape(cpu=500, gpus=1),
    shape(cpu=500, gpus=2, gpu=GpuWish(model="a100")),
    shape(cpu=500, limits=(("x", 1),)),
    shape(cpu=1000, gpus=1, gpu=GpuWish(memory_bytes=2**34), limits=(("x", 2), ("y", 1))),
)
CARDS = (
    GpuInfo(0, "nvidia", "T4", 2**34),
    GpuInfo(2, "nvidia", "A100", 2**36),
    GpuInfo(3, "nvidia", "A100", 2**36),
    GpuInfo(7, "amd", "MI300", 2**37),
)
EVERYTHING = (
    QueueInfo(DAY, max_running=5, cohort="all", weight=3, preempts=True),
    QueueInfo(NIGHT, max_running_per_node=2, cohort="all"),
    QueueInfo(LAB, aging_s=30.0, preempts=True),
)
LIMITS = {"x": limited(3, DAY), "y": limited(1, NIGHT)}


def cluster() -> list[NodeInfo]:
    return [node("a", cpu=6000, gpus=4, gpus_listed=CARDS), node("b", cpu=4000, gpus=2), node("c", cpu=8000, max_tasks=4)]


def state_of(now: float, pending: list[PendingTask], running: list[RunningTask]) -> Snapshot:
    """The cluster with what runs on it; its single GPUs are marked as held."""
    filled = with_running(replace(snapshot(cluster(), pending, *EVERYTHING, limits=LIMITS), now=now), running)
    nodes = []
    for one in filled.nodes:
        held = {index for run in running if run.node == one.name for index in run.gpus}
        single = one.gpus or tuple(GpuInfo(index) for index in range(one.allocatable.gpus))
        nodes.append(replace(one, gpus=tuple(replace(gpu, held=gpu.index in held) for gpu in single)))
    return replace(filled, nodes=nodes)


def assert_nothing_is_over_committed(state: Snapshot) -> None:
    running = list(state.running)
    assert not over_committed(list(state.nodes), running)
    given = [(run.node, index) for run in running for index in run.gpus]
    assert len(given) == len(set(given)), "a GPU was given twice"
    assert len(given) == sum(run.amounts.gpus for run in running)
    for queue in state.queues.values():
        ours = [run for run in running if run.queue == queue.key]
        assert queue.max_running is None or len(ours) <= queue.max_running
        per_node = Counter(run.node for run in ours)
        assert queue.max_running_per_node is None or all(count <= queue.max_running_per_node for count in per_node.values())
    for name, limit in state.limits.items():
        assert sum(dict(run.limits).get(name, 0) for run in running) <= limit.most


@pytest.mark.slow
@given(st.integers(0, 2**32))
@settings(max_examples=15)
def test_over_many_cycles_nothing_is_over_committed_whatever_meets(seed: int) -> None:
    """Tasks of every kind come, are preempted, end and come again, for some hundreds of seconds."""
    chance = random.Random(seed)
    wants: dict[tuple[str, str], PendingTask] = {}
    waiting: dict[tuple[str, str], PendingTask] = {}
    running: list[RunningTask] = []
    now, made, placed = NOW, 0, 0
    for _ in range(40):
        for _ in range(chance.randint(0, 4)):
            made += 1
            one = task(
                f"t{made}",
                chance.choice(KINDS),
                priority=chance.choice([0, 0, 0, 10, 1000]),
                at=now,
                queue=chance.choice([DAY, NIGHT, LAB]),
                duration_s=chance.choice([None, 5.0, 60.0]),
            )
            wants[one.key] = waiting[one.key] = one
        result = run_cycle(state_of(now, list(waiting.values()), running))
        victims = {one.victim.key: one.by.key for one in result.preemptions}
        running = [replace(one, stopping=True, makes_room_for=victims[one.key]) if one.key in victims else one for one in running]
        for binding in result.bindings:
            del waiting[binding.task.key]
            running.append(replace(started(binding.task, binding.node, now), gpus=binding.gpus))
        assert_nothing_is_over_committed(state_of(now, [], running))
        placed += len(result.bindings)
        now += chance.choice([0.0, 1.0, 20.0])
        ended = [one for one in running if chance.random() < (0.6 if one.stopping else 0.15)]
        waiting |= {one.key: wants[one.key] for one in ended if one.stopping}
        running = [one for one in running if one not in ended]
    assert placed > 10


KEPT = re.compile(r"node (\w+) is kept for it")


def kept_for_others(better: PendingTask, fits: set[str], before: Snapshot, result: CycleResult) -> bool:
    """Whether all nodes where it fits, or slots that it needs or a place of its queue, are kept for tasks that come before it: for
    tasks before it in the order, and at its own level for queues that take turns."""
    levels = Oracle.of(before).levels
    order = {one.uid: rank for rank, one in enumerate(Oracle.order(before))}
    nodes: set[str] = set()
    queue = before.queues[better.queue]
    names = {name for name, _ in better.shape.limits if name in before.limits}
    for refusal in result.refusals:
        one, found = refusal.task, KEPT.search(refusal.message)
        turns = before.queues[one.queue].cohort and levels[one.uid] == levels[better.uid]
        if one == better or (order[one.uid] > order[better.uid] and not turns):
            continue
        nodes |= {found[1]} if found else set()
        if names & {name for name, _ in one.shape.limits}:
            return True
        if one.queue == better.queue and found and queue.max_running is not None:
            return True
    return fits <= nodes


@pytest.mark.slow
@given(crowded(preempts=True))
@settings(max_examples=300)
def test_nobody_is_passed_over_who_could_have_started(before: Snapshot) -> None:
    """When a task starts, every better one that stays behind fits nowhere, or its queue lets it not, or what it could take is
    kept for one that comes before it; it then waits (Reserved) or preempts on another node. Queues of one cohort take turns and
    are not compared at one level."""
    result = run_cycle(before)
    oracle, order = Oracle.of(before), {task.uid: rank for rank, task in enumerate(Oracle.order(before))}
    reasons = {refusal.task.uid: refusal.reason for refusal in result.refusals}
    behind = [refusal.task for refusal in result.refusals]
    for binding in result.bindings:
        for better in behind:
            turns = before.queues[binding.task.queue].cohort and oracle.levels[better.uid] == oracle.levels[binding.task.uid]
            if order[better.uid] > order[binding.task.uid] or turns:
                continue
            fits = {one.name for one in oracle.nodes if oracle.refused_by(one, better) is None}
            passed = f"{better.key} ({reasons[better.uid]}) was passed over by {binding.task.key}"
            if fits and oracle.closed(better) is None:
                assert reasons[better.uid] in ("Reserved", "Preempting"), passed
                assert kept_for_others(better, fits, before, result), passed
        oracle.place(binding.task, binding.node)


def test_who_preempts_on_one_node_is_passed_by_a_short_task_on_the_node_that_is_kept_for_another() -> None:
    """`first` waits for the end of `long` on a. `second` would fit there now, but not be gone by then, so it stops `low` on b;
    `short` will be gone, and starts on a."""
    queues = [QueueInfo(DAY, preempts=True), QueueInfo(NIGHT)]
    first = task("first", shape(cpu=4000, node_name="a"), priority=9, at=NOW, queue=NIGHT)
    second = task("second", shape(cpu=1000), priority=5, at=NOW, queue=DAY)
    short = task("short", shape(cpu=1000), at=NOW, queue=NIGHT, duration_s=5.0)
    long = replace(started(task("long", shape(cpu=2000), priority=9, queue=NIGHT), "a", NOW), ends_at=NOW + 60)
    low = started(task("low", shape(cpu=1000), priority=-5, queue=NIGHT), "b", NOW)
    nodes = [node("a", cpu=4000), node("b", cpu=1000)]
    before = with_running(replace(snapshot(nodes, [first, second, short], *queues), now=NOW), [long, low])
    result = run_cycle(before)
    assert [(one.task, one.node) for one in result.bindings] == [(short, "a")]
    assert [(one.victim, one.by) for one in result.preemptions] == [(low, second)]
    assert {one.task.key[1]: one.reason for one in result.refusals} == {"first": "NoNodeFits", "second": "Preempting"}


SMALL = (shape(cpu=1000), shape(cpu=500, gpus=1), shape(cpu=1500, limits=(("x", 1),)))
CROWDED = (node("a", cpu=5000, gpus=2), node("b", cpu=3000, gpus=1))
ROOMY = (node("a", cpu=500_000, gpus=200, max_tasks=500),)


def waits_s(
    large: PendingTask,
    queues: list[QueueInfo],
    nodes: tuple[NodeInfo, ...],
    streams: list[QueueKey],
    *,
    seed: int,
    priority: int = 0,
) -> float | None:
    """How long the large task waits behind streams of small ones that never end: in each of these queues three of every kind wait
    at any time, and each runs for up to ten seconds. None: it has not started after 400 s."""
    chance = random.Random(seed)
    running: dict[str, tuple[RunningTask, float]] = {}
    waiting: list[PendingTask] = []
    made = 0
    for now in (NOW + second for second in range(420)):
        running = {name: one for name, one in running.items() if one[1] > now}
        for queue in streams:
            for wants in SMALL:
                for _ in range(3 - sum(one.queue == queue and one.shape is wants for one in waiting)):
                    made += 1
                    learned = chance.choice([None, 3.0, 10.0])
                    waiting.append(task(f"s{made}", wants, at=now, queue=queue, duration_s=learned, priority=priority))
        pending = [*waiting, large] if now >= large.queued_at else waiting
        bare = replace(snapshot(nodes, pending, *queues, limits={"x": limited(6, LAB)}), now=now)
        state = with_running(bare, [one for one, _ in running.values()])
        for binding in run_cycle(state).bindings:
            if binding.task == large:
                return now - large.queued_at
            waiting.remove(binding.task)
            running[binding.task.key[1]] = (started(binding.task, binding.node, now), now + chance.randint(1, 10))
    return None


LARGE = task("large", shape(cpu=4000, gpus=2, limits=(("x", 6),)), at=NOW + 20, queue=DAY)


def sharing(cohort: str = "", most: int | None = 4) -> list[QueueInfo]:
    return [
        QueueInfo(DAY, cohort=cohort, max_running=most),
        QueueInfo(NIGHT, cohort=cohort, weight=2),
        QueueInfo(LAB),
    ]


@pytest.mark.slow
@given(st.integers(0, 2**32), st.booleans(), st.sampled_from(["", "all"]))
@settings(max_examples=12)
def test_a_task_that_takes_gpus_and_slots_starts_in_spite_of_endless_streams(seed: int, own: bool, cohort: str) -> None:
    """It needs most of the cores, both cards and all slots of a limit at the same moment, while other tasks, of its own queue too
    and of one that shares with it, take one of each again and again."""
    assert waits_s(LARGE, sharing(cohort), CROWDED, [DAY, NIGHT, LAB] if own else [NIGHT, LAB], seed=seed) is not None
    others = [DAY] if own else [NIGHT, LAB]
    assert waits_s(LARGE, sharing(cohort, None), ROOMY, others, seed=seed) is not None, "it needs slots alone"


@pytest.mark.slow
@pytest.mark.parametrize("streams", [[DAY], [NIGHT], [LAB]])
@pytest.mark.parametrize("cohort", ["", "all"])
def test_those_streams_would_starve_it_if_nothing_were_kept(
    monkeypatch: pytest.MonkeyPatch, cohort: str, streams: list[QueueKey]
) -> None:
    """What the test above shows is the doing of reservations, of nodes and of slots, also for streams of other queues."""
    seed = 4
    monkeypatch.setattr(Headroom, "_reserve", lambda *_: None)
    assert waits_s(LARGE, sharing(cohort), CROWDED, [DAY, NIGHT, LAB], seed=seed) is None
    assert waits_s(LARGE, sharing(cohort, None), ROOMY, streams, seed=seed) is not None
    monkeypatch.setattr(Headroom, "_keep_slots", lambda *_: None)
    assert waits_s(LARGE, sharing(cohort, None), ROOMY, streams, seed=seed) is None


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_aging_brings_a_task_past_an_endless_stream_of_more_important_ones(seed: int) -> None:
    """Two points of priority, at one for every 20 s; without aging priority is strict, and it waits for ever."""
    streams = [NIGHT, LAB]
    assert waits_s(LARGE, sharing(), CROWDED, streams, seed=seed, priority=2) is None
    aging = [replace(queue, aging_s=20.0) for queue in sharing()]
    waited = waits_s(LARGE, aging, CROWDED, streams, seed=seed, priority=2)
    assert waited is not None
    assert waited >= 40


LIMIT = {"x": limited(400, DAY)}


def shares_over_time(
    weights: tuple[int, int], wants: tuple[TaskShape, TaskShape], seed: int, *, nodes: int, rounds: int, ends: float
) -> list[float]:
    """What part of all that is held each of two queues has in the second half of the time, as dominant shares. Both always have
    tasks waiting; at first the whole cluster is lent to one. `ends`: the part of what runs that ends from one cycle to the next."""
    chance = random.Random(seed)
    keys: list[QueueKey] = [DAY, NIGHT]
    running: list[RunningTask] = []
    held = dict.fromkeys(keys, 0.0)
    made = 0
    for step in range(rounds):
        pending = []
        for key, wanted in zip(keys[: step + 1], wants, strict=False):
            for _ in range(max(20, 10 * nodes) if ends > 0.1 or not step else 20):
                made += 1
                pending.append(task(f"t{made}", wanted, at=float(made), queue=key))
        queues = [QueueInfo(key, cohort="all", weight=weight, max_running=200) for key, weight in zip(keys, weights, strict=True)]
        cluster = [node(f"n{number}", cpu=20_000, gpus=5) for number in range(nodes)]
        running += [
            started(one.task, one.node, 0.0)
            for one in run_cycle(with_running(snapshot(cluster, pending, *queues, limits=LIMIT), running)).bindings
        ]
        if step >= rounds // 2:
            for one in running:
                held[one.queue] += max(one.amounts.cpu_milli / 20_000, one.amounts.gpus / 5)
        running = [one for one in running if chance.random() > ends]
    return [held[key] / sum(held.values()) for key in keys]


@pytest.mark.slow
@given(st.sampled_from([(1, 1), (1, 2), (1, 3)]), st.integers(0, 2**32))
@settings(max_examples=3)
def test_dominant_shares_are_the_weights_within_five_percent_where_they_are_of_different_resources(
    weights: tuple[int, int], seed: int
) -> None:
    """One queue's tasks take GPUs first of all, the other's cores alone; limits and bounds are in force, and do not bind. (All take
    equally many cores: what is left on single nodes fits both.)"""
    wants = (shape(cpu=2000, gpus=1, limits=(("x", 1),)), shape(cpu=2000))
    shares = shares_over_time(weights, wants, seed, nodes=20, rounds=50, ends=0.2)
    for share, weight in zip(shares, weights, strict=True):
        assert share == pytest.approx(weight / sum(weights), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("weights", [(1, 2), (1, 3)])
def test_where_sizes_differ_shares_are_off_by_what_is_left_on_single_nodes(weights: tuple[int, int]) -> None:
    """Tasks of 4 cores against tasks of 2 cores and a GPU. What one small task leaves on a full node only a small one can take,
    whoever is due: the sooner a cycle follows an end, the less often that happens."""
    wants, fair = (shape(cpu=2000, gpus=1), shape(cpu=4000)), weights[0] / sum(weights)
    soon, _ = shares_over_time(weights, wants, 1, nodes=10, rounds=600, ends=0.02)
    late, _ = shares_over_time(weights, wants, 1, nodes=10, rounds=60, ends=0.2)
    assert fair - 0.01 < soon < fair + 0.03
    assert soon < late < fair + 0.06


@pytest.mark.slow
@given(crowded(preempts=True, fronts=False))
@settings(max_examples=150)
def test_nobody_is_stopped_for_a_task_that_can_start_or_for_an_equal(before: Snapshot) -> None:
    """And what was decided is final: another cycle stops nobody else for it."""
    alone = replace(before, pending=before.pending[:1])
    calm = replace(alone, queues={key: replace(queue, preempts=False) for key, queue in alone.queues.items()})
    starts, result = run_cycle(calm).bindings, run_cycle(alone)
    assert not starts or (result.bindings == starts and not result.preemptions)
    assert all(one.victim.priority < one.by.priority for one in result.preemptions)
    assert not run_cycle(after(alone, result)).preemptions
