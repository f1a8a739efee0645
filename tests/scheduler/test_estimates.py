"""When waiting tasks may start: what is known, what is not, and what the model leaves out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmtask.scheduler.cycle import run_cycle
from swarmtask.scheduler.estimates import Estimates, estimate_starts
from swarmtask.scheduler.model import (
    Amounts,
    CycleResult,
    LimitInfo,
    NodeInfo,
    PendingTask,
    Preemption,
    QueueInfo,
    RunningTask,
    TaskShape,
)
from tests.scheduler.builders import DEFAULT, limited, node, shape, snapshot, task

ONE = shape(cpu=1000)
NIGHT = ("home", "night")


def running(name: str, wants: TaskShape = ONE, ends_at: float | None = None, **facts: Any) -> RunningTask:
    facts = {"queue": DEFAULT, "node": "laptop", **facts}
    return RunningTask(
        ("home", name), f"uid-{name}", priority=0, attempt=1, amounts=wants.request, bound_at=0.0, limits=wants.limits,
        ends_at=ends_at, **facts,
    )  # fmt: skip


def estimate(
    nodes: Iterable[NodeInfo],
    runs: Sequence[RunningTask],
    pending: Sequence[PendingTask],
    *queues: QueueInfo,
    limits: Mapping[str, LimitInfo] | None = None,
) -> tuple[dict[str, float], Estimates, CycleResult]:
    """Starts by task name; what runs is counted on its node."""
    counted = []
    for one in nodes:
        here = [run for run in runs if run.node == one.name]
        counted.append(replace(one, requested=sum((run.amounts for run in here), one.requested), tasks=one.tasks + len(here)))
    frozen = replace(snapshot(counted, pending, *queues, limits=limits), running=tuple(runs))
    result = run_cycle(frozen)
    estimates = estimate_starts(frozen, result)
    return {key[1]: start for key, start in estimates.starts.items()}, estimates, result


def waiting(count: int, wants: TaskShape = ONE, duration_s: float | None = 60, **facts: Any) -> list[PendingTask]:
    return [task(f"t{number}", wants, at=float(number), duration_s=duration_s, **facts) for number in range(count)]


def test_starts_follow_the_ends_in_the_order_of_the_queue() -> None:
    runs = [running("a", ends_at=30), running("b", ends_at=50)]
    starts, _, _ = estimate([node(cpu=2000)], runs, waiting(5))
    assert starts == {"t0": 30, "t1": 50, "t2": 90, "t3": 110, "t4": 150}


def test_what_starts_in_the_same_cycle_counts_as_running() -> None:
    starts, _, _ = estimate([node(cpu=2000)], [], waiting(4))
    assert starts == {"t2": 60, "t3": 60}


def test_nothing_is_known_until_there_is_data() -> None:
    starts, estimates, result = estimate([node(cpu=1000)], [running("a")], waiting(2, duration_s=None))
    assert starts == {}
    assert estimates.why_unknown(result.refusals[0]) == "estimated start unknown: no task like this has finished yet"


def test_the_first_is_known_and_what_depends_on_an_unknown_one_is_not() -> None:
    starts, estimates, result = estimate([node(cpu=1000)], [running("a", ends_at=30)], [*waiting(1, duration_s=None), task(
        "known", ONE, at=9.0, duration_s=5
    )])  # fmt: skip
    assert starts == {"t0": 30}
    assert estimates.why_unknown(result.refusals[0]) == ""
    assert "how long the tasks before it take" in estimates.why_unknown(result.refusals[1])


def test_a_queue_waits_for_its_own_ends() -> None:
    runs = [running("mine", ends_at=100), running("other", queue=NIGHT, ends_at=10)]
    starts, _, _ = estimate([node(cpu=8000)], runs, waiting(2), QueueInfo(DEFAULT, max_running=1, running=1))
    assert starts == {"t0": 100, "t1": 160}


def test_a_node_that_takes_no_more_tasks_gives_back_no_room() -> None:
    """A drained node's tasks end, and nothing starts there; what they held of their queue comes back all the same."""
    runs = [running("drains", ends_at=10, node="drained"), running("stays", ends_at=100)]
    nodes = [node("drained", cpu=1000, unschedulable=True), node(cpu=1000)]
    assert estimate(nodes, runs, waiting(2))[0] == {"t0": 100, "t1": 160}
    roomy = [nodes[0], node(cpu=8000)]
    assert estimate(roomy, runs, waiting(1), QueueInfo(DEFAULT, max_running=2, running=2))[0] == {"t0": 10}


def test_what_does_not_answer_does_not_end() -> None:
    runs = [running("stuck", ends_at=10, node="gone"), running("stopping", node="gone", stopping=True)]
    nodes = [node("gone", cpu=2000, ready=False), node(cpu=8000)]
    assert estimate(nodes, runs, waiting(1), QueueInfo(DEFAULT, max_running=2, running=2))[0] == {}


def test_a_limit_waits_for_those_who_hold_it() -> None:
    seat = shape(cpu=1000, limits=(("seat", 1),))
    runs = [running("holder", seat, ends_at=100), running("other", ends_at=10)]
    for where in (DEFAULT, NIGHT):
        runs[0] = replace(runs[0], queue=where)
        starts, _, _ = estimate([node(cpu=8000)], runs, waiting(2, seat), limits={"seat": limited(1, holder=1)})
        assert starts == {"t0": 100, "t1": 160}


def test_a_bound_per_node_waits_for_an_end_of_its_own() -> None:
    runs = [running("mine", ends_at=100), running("other", queue=NIGHT, ends_at=10)]
    nodes = [node(cpu=8000, queue_tasks={DEFAULT: 1})]
    starts, _, _ = estimate(nodes, runs, waiting(1), QueueInfo(DEFAULT, max_running_per_node=1, running=1))
    assert starts == {"t0": 100}


def test_a_large_one_waits_until_enough_has_ended_and_is_not_passed_by_those_it_waits_with() -> None:
    runs = [running(f"r{number}", ends_at=10.0 * (number + 1)) for number in range(4)]
    pending = [task("large", shape(cpu=3000), at=0.0, duration_s=5), *(replace(one, queued_at=1.0) for one in waiting(1))]
    starts, _, _ = estimate([node(cpu=4000)], runs, pending)
    assert starts == {"large": 30, "t0": 35}


def test_who_waits_for_a_gpu_holds_back_nobody_who_needs_none() -> None:
    runs = [running("training", shape(cpu=1000, gpus=1), ends_at=3600), running("r", ends_at=10)]
    gpu = task("gpu", shape(cpu=1000, gpus=1), at=0.0, duration_s=5)
    pending = [gpu, *(replace(one, queued_at=1.0) for one in waiting(2, duration_s=7200))]
    starts, _, _ = estimate([node(cpu=2000, gpus=1)], runs, pending)
    assert starts["gpu"] == 3600
    assert starts["t0"] >= 3600, "the core that the first one needs besides is kept for it"
    runs = [*runs, running("s", ends_at=10)]
    starts, _, _ = estimate([node(cpu=3000, gpus=1)], runs, pending)
    assert starts["t0"] == 10


def test_one_that_has_ended_by_then_passes_a_large_one_without_delaying_it() -> None:
    runs = [running("short", ends_at=10), running("long", shape(cpu=3000), ends_at=100)]
    large = task("large", shape(cpu=4000), at=0.0, duration_s=5)
    for duration_s, passes in ((90, True), (91, False), (None, False)):
        small = task("small", ONE, at=1.0, duration_s=duration_s)
        starts, _, _ = estimate([node(cpu=4000)], runs, [large, small])
        assert starts == {"large": 100, "small": 10 if passes else 105}


def test_what_is_left_counts_with_what_ends() -> None:
    starts, _, _ = estimate([node(cpu=4000)], [running("r", shape(cpu=2000), ends_at=10)], [task("large", shape(cpu=4000))])
    assert starts == {"large": 10}


def test_what_is_spread_over_nodes_is_of_no_use() -> None:
    nodes = [node(name, cpu=4000) for name in ("n1", "n2", "n3")]
    runs = [
        running(f"r{one.name}", shape(cpu=3000), ends_at=10.0 * (number + 1), node=one.name) for number, one in enumerate(nodes)
    ]
    starts, _, _ = estimate(nodes, runs, waiting(2, shape(cpu=4000)))
    assert starts == {"t0": 10, "t1": 30}, "three single cores are no fourth one"


def test_one_that_no_waiting_helps_has_no_estimate_no_words_and_holds_back_nobody() -> None:
    runs = [running("r", ends_at=10)]
    for hopeless in (shape(cpu=1000, capabilities=frozenset({"browser"})), shape(cpu=64_000), shape(cpu=1000, node_name="gone")):
        starts, estimates, result = estimate([node(cpu=1000)], runs, [task("hopeless", hopeless), task("t", ONE, at=1.0)])
        assert starts == {"t": 10}
        assert estimates.why_unknown(next(one for one in result.refusals if one.task.key[1] == "hopeless")) == ""


def test_a_stopped_queue_starts_nothing() -> None:
    starts, estimates, result = estimate([node(cpu=1000)], [running("r", ends_at=10)], waiting(1), QueueInfo(DEFAULT, stopped=True))
    assert (starts, estimates.why_unknown(result.refusals[0])) == ({}, "")


def test_what_is_being_stopped_or_preempted_gives_its_room_back_now() -> None:
    starts, _, _ = estimate([node(cpu=1000)], [running("r", stopping=True)], waiting(1))
    assert starts == {"t0": 0}
    victim, pending = running("r"), waiting(1)
    frozen = replace(snapshot([node(cpu=1000, requested=Amounts(1000))], pending), running=(victim,))
    result = replace(run_cycle(frozen), preemptions=(Preemption(victim, pending[0]),))
    assert estimate_starts(frozen, result).starts == {("home", "t0"): 0}


def test_only_the_first_are_looked_at() -> None:
    frozen = replace(snapshot([node(cpu=1000, requested=Amounts(1000))], waiting(9)), running=(running("r", ends_at=10),))
    result = run_cycle(frozen)
    estimates = estimate_starts(frozen, result, most=3)
    assert len(estimates.starts) == 3
    assert [estimates.why_unknown(refusal) for refusal in result.refusals[2:4]] == [
        "", "estimated start unknown: too many tasks wait before it",
    ]  # fmt: skip


def test_a_cluster_without_nodes_and_one_without_waiting_tasks() -> None:
    assert estimate([], [], waiting(2))[0] == {}
    assert estimate([node()], [running("r")], [])[0] == {}


shapes = st.sampled_from([ONE, shape(cpu=2000), shape(cpu=500, memory=1 << 30), shape(cpu=1000, gpus=1), shape(cpu=9000)])
durations = st.one_of(st.none(), st.integers(0, 500).map(float))


@pytest.mark.slow
@settings(max_examples=200)
@given(
    runs=st.lists(st.tuples(shapes, durations), max_size=8),
    wanted=st.lists(st.tuples(shapes, durations), max_size=12),
    most=st.one_of(st.none(), st.integers(0, 5)),
)
def test_estimates_lie_ahead_end_and_keep_the_order_within_a_line(
    runs: list[tuple[TaskShape, float | None]], wanted: list[tuple[TaskShape, float | None]], most: int | None
) -> None:
    live = [running(f"r{number}", wants, ends_at) for number, (wants, ends_at) in enumerate(runs)]
    pending = [task(f"t{n:02}", wants, at=float(n), duration_s=duration_s) for n, (wants, duration_s) in enumerate(wanted)]
    queue = QueueInfo(DEFAULT, max_running=most, running=len(live))
    starts, estimates, result = estimate([node(cpu=8000, memory=8 << 30, gpus=2)], live, pending, queue)
    refused = [refusal.task for refusal in result.refusals]
    assert set(starts) <= {one.key[1] for one in refused}
    assert not set(estimates.starts) & estimates.hopeless
    assert all(start >= 0 for start in starts.values())
    by_shape: dict[TaskShape, list[float]] = {}
    for one in refused:
        by_shape.setdefault(one.shape, []).append(starts.get(one.key[1], float("inf")))
    assert all(moments == sorted(moments) for moments in by_shape.values())
    assert estimate([node(cpu=8000, memory=8 << 30, gpus=2)], live, pending, queue)[0] == starts


@settings(max_examples=100)
@given(
    ends=st.lists(st.integers(0, 300), min_size=1, max_size=6),
    durations_s=st.lists(st.integers(0, 300), min_size=1, max_size=20),
)
def test_equal_tasks_on_a_full_cluster_start_as_a_plain_list_schedule_has_it(ends: list[int], durations_s: list[int]) -> None:
    runs = [running(f"r{number}", ends_at=float(end), node=f"n{number % 2}") for number, end in enumerate(ends)]
    pending = [task(f"t{n:02}", ONE, at=float(n), duration_s=float(duration_s)) for n, duration_s in enumerate(durations_s)]
    nodes = [node(name, cpu=1000 * sum(run.node == name for run in runs)) for name in ("n0", "n1")]
    starts, _, _ = estimate(nodes, runs, pending)
    free_at = sorted(map(float, ends))
    for one in pending:
        start = free_at.pop(0)
        assert starts[one.key[1]] == start
        free_at = sorted([*free_at, start + (one.duration_s or 0.0)])
