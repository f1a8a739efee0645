"""Nodes that are kept for tasks that do not fit yet: whom they hold back, and that nobody starves."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmtask.scheduler.cycle import explain_task, run_cycle
from swarmtask.scheduler.model import (
    Amounts,
    CycleResult,
    NodeInfo,
    PendingTask,
    QueueInfo,
    RunningTask,
    Snapshot,
    TaskShape,
)
from tests.scheduler.builders import DEFAULT, GIB, limited, node, shape, snapshot, task
from tests.scheduler.crowds import started, with_running

NIGHT = ("home", "night")
NOW = 1000.0


def runs(name: str, where: str = "a", cpu: int = 1000, *, ends_at: float | None = None, stopping: bool = False) -> RunningTask:
    return RunningTask(("home", name), name, NIGHT, 0, where, 1, Amounts(cpu), 0.0, ends_at=ends_at, stopping=stopping)


def crowd(
    nodes: list[NodeInfo], running: list[RunningTask], pending: list[PendingTask], *queues: QueueInfo, **limits: int
) -> Snapshot:
    known = {DEFAULT: QueueInfo(DEFAULT), NIGHT: QueueInfo(NIGHT), **{queue.key: queue for queue in queues}}
    stated = {name: limited(most) for name, most in limits.items()}
    return with_running(replace(snapshot(nodes, pending, *known.values(), limits=stated), now=NOW), running)


def names(result: CycleResult) -> list[str]:
    return [binding.task.key[1] for binding in result.bindings]


def small(name: str, cpu: int = 1000, duration_s: float | None = None) -> PendingTask:
    return task(name, shape(cpu=cpu), at=999.0, queue=NIGHT, duration_s=duration_s)


LARGE = task("large", shape(cpu=4000), at=998.0)


def test_only_what_ends_in_time_or_leaves_the_room_passes() -> None:
    running = [runs("r", cpu=3000, ends_at=NOW + 100)]
    pending = [LARGE, small("short", duration_s=90.0), small("long", duration_s=200.0), small("unknown")]
    result = run_cycle(crowd([node("a")], running, pending))
    assert names(result) == ["short"]
    assert {one.task.key[1]: one.reason for one in result.refusals} == {
        "large": "NoNodeFits", "long": "Reserved", "unknown": "NoNodeFits",
    }  # fmt: skip
    assert result.refusals[0].message.endswith("; node a is kept for it (expected free in 100s)")
    result = run_cycle(crowd([node("a", cpu=5000)], running, pending[:1] + pending[2:]))
    assert names(result) == ["long"], "one core is left beside it"
    (_, held) = result.refusals
    assert (held.reason, held.message, dict(held.counts)) == (
        "Reserved",
        "fits on a, which is kept for home/large",
        {"reserved": 1},
    )


def test_the_node_that_is_free_first_or_lacks_least_is_kept() -> None:
    running = [runs("ra", "a", 3000, ends_at=NOW + 500), runs("rb", "b", 3000, ends_at=NOW + 50), runs("rc", "c", 1000)]
    nodes = [node(name) for name in "abc"]
    assert "node b is kept" in run_cycle(crowd(nodes, running, [LARGE])).refusals[0].message
    unknown = [replace(one, ends_at=None) for one in running]
    assert "node c is kept for it (until 1 CPU come free there)" in run_cycle(crowd(nodes, unknown, [LARGE])).refusals[0].message
    leaving = [replace(unknown[0], stopping=True), *unknown[1:]]
    assert "node a is kept for it (until what is being stopped" in run_cycle(crowd(nodes, leaving, [LARGE])).refusals[0].message


def test_what_can_never_fit_keeps_nothing() -> None:
    giant = replace(LARGE, shape=shape(cpu=9000))
    assert names(run_cycle(crowd([node("a")], [], [giant, small("s")]))) == ["s"]
    elsewhere = replace(LARGE, shape=shape(cpu=4000, node_name="b"))
    assert names(run_cycle(crowd([node("a")], [runs("r")], [elsewhere, small("s")]))) == ["s"]
    greedy = replace(LARGE, shape=shape(limits=(("x", 4),)))
    one = replace(small("s"), queue=DEFAULT, shape=shape(limits=(("x", 1),)))
    assert names(run_cycle(crowd([node("a")], [], [greedy, one], x=3))) == ["s"]


def test_slots_that_come_free_are_left_to_who_needs_several() -> None:
    holds = replace(runs("r"), queue=DEFAULT, limits=(("x", 1),))
    three = task("three", shape(limits=(("x", 3),)), at=1.0)
    others = [task(f"{name}", shape(limits=((name, 1),)), at=2.0) for name in "xy"]
    result = run_cycle(crowd([node("a")], [holds], [three, *others], x=3, y=9))
    assert names(result) == ["y"]
    (first, second) = result.refusals
    assert first.reason == "LimitReached"
    assert (second.reason, second.message) == (
        "Reserved",
        "limit x of queue home/default is kept for home/three, which comes first (1 of 3 held, needs 1; held by r)",
    )


@pytest.mark.parametrize("nowhere", [shape(limits=(("x", 3),), node_name="off"), shape(cpu=9000, limits=(("x", 3),))])
def test_slots_are_not_left_to_what_no_node_could_take(nowhere: TaskShape) -> None:
    """It would starve all who share a limit with it, and wait for ever itself."""
    holds = replace(runs("r"), queue=DEFAULT, limits=(("x", 1),))
    waiting = [task("never", nowhere, at=1.0), *[task(name, shape(limits=(("x", 1),)), at=2.0) for name in ("s1", "s2", "s3")]]
    cluster = crowd([node("a")], [holds], waiting, x=3)
    result = run_cycle(cluster)
    assert names(result) == ["s1", "s2"]
    never, third = result.refusals
    assert (never.reason, third.reason) == ("NoNodeFits", "LimitReached")
    explained = explain_task(cluster, never.task)
    assert explained.outcome == never
    assert [verdict.refused_by is None for verdict in explained.nodes] == [False]


def test_slots_are_left_to_what_fits_when_others_have_ended() -> None:
    """Also where all its nodes are kept for others in this cycle."""
    running = [replace(runs("r", cpu=8000), queue=DEFAULT, limits=(("x", 1),))]
    three = task("three", shape(cpu=4000, limits=(("x", 3),)), at=1.0)
    one = task("one", shape(cpu=0, limits=(("x", 1),)), at=2.0)
    result = run_cycle(crowd([node("a", cpu=8000)], running, [replace(LARGE, shape=shape(cpu=8000), priority=9), three, one], x=3))
    assert [refusal.reason for refusal in result.refusals] == ["NoNodeFits", "LimitReached", "Reserved"]


def test_a_place_of_the_queue_is_kept_with_the_node() -> None:
    pending = [LARGE, *[replace(small(f"s{number}"), queue=DEFAULT) for number in range(3)]]
    nodes = [node("a"), node("b", cpu=2000)]
    result = run_cycle(crowd(nodes, [runs("r")], pending, QueueInfo(DEFAULT, max_running=2)))
    assert names(result) == ["s0"]
    assert {one.message for one in result.refusals[1:]} == {
        "the last places of queue home/default (maxRunning 2) are kept for home/large, which comes first"
    }


def test_the_explanation_shows_where_something_is_kept() -> None:
    cluster = crowd([node("a", cpu=5000), node("b", cpu=500)], [runs("r", cpu=3000)], [LARGE, small("s", 2000)])
    found = explain_task(cluster, cluster.pending[1])
    assert [(verdict.node, verdict.refused_by) for verdict in found.nodes] == [("a", "reserved"), ("b", "cpu")]
    assert found.outcome.message.startswith("fits on a, which is kept for home/large; elsewhere: 1 too little CPU")  # type: ignore[union-attr]


@pytest.mark.slow
@given(st.integers(0, 2**32), st.integers(1, 3), st.sampled_from(["none", "right", "wrong"]), st.booleans())
@settings(max_examples=25)
def test_a_large_task_starts_in_spite_of_an_endless_stream(seed: int, count: int, known: str, elsewhere: bool) -> None:
    """Nodes full of tasks of at most 20 s, and always more of them; ends are not known, known, or expected wrongly. When nobody may
    start on a kept node who does not end in time, it is free within the longest run; a wrong guess can cost some of them."""
    chance = random.Random(seed)
    nodes = [node(f"n{number}", memory=16 * GIB) for number in range(count)]
    stream = NIGHT if elsewhere else DEFAULT
    running: dict[str, tuple[RunningTask, float]] = {}
    waiting: dict[str, tuple[PendingTask, float]] = {}
    large = task("large", shape(cpu=4000), at=NOW + 20)
    made, now = 0, NOW
    while now < NOW + 400:
        running = {name: one for name, one in running.items() if one[1] > now}
        while len(waiting) < 6:
            lasts_s = float(chance.randint(1, 20))
            guess = {"none": None, "right": lasts_s, "wrong": float(chance.randint(1, 20))}[known]
            waiting[f"s{made}"] = (
                task(f"s{made}", shape(cpu=1000), at=now, queue=stream, duration_s=guess), lasts_s,
            )  # fmt: skip
            made += 1
        pending = [one for one, _ in waiting.values()] + ([large] if now >= NOW + 20 else [])
        state = crowd(nodes, [one for one, _ in running.values()], pending)
        for binding in run_cycle(replace(state, now=now)).bindings:
            if binding.task == large:
                return
            one, lasts_s = waiting.pop(binding.task.key[1])
            running[one.key[1]] = (started(one, binding.node, now), now + lasts_s)
        now += 1.0
    pytest.fail("it starved")


@pytest.mark.slow
@given(st.integers(0, 2**32))
@settings(max_examples=20)
def test_a_right_expectation_is_kept(seed: int) -> None:
    """Where every end is known, whoever is let in does not put off the moment that the large task was told at first."""
    chance = random.Random(seed)
    nodes = [node("a"), node("b")]
    running = [runs(f"r{number}", "ab"[number % 2], ends_at=NOW + chance.randint(1, 60)) for number in range(8)]
    large = task("large", shape(cpu=4000), at=0.0)
    ends = [sorted(one.ends_at or 0.0 for one in running if one.node == name)[-1] for name in "ab"]
    made, now = 0, NOW
    while now <= min(ends):
        pending = [large]
        for _ in range(4):
            made += 1
            pending.append(small(f"s{made}", duration_s=float(chance.randint(1, 60))))
        result = run_cycle(replace(crowd(nodes, running, pending), now=now))
        if "large" in names(result):
            return
        running += [started(binding.task, binding.node, now) for binding in result.bindings]
        now += 1.0
        running = [one for one in running if (one.ends_at or 0.0) > now]
    pytest.fail("it was put off")
