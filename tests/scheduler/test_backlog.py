"""What waits is kept in order, and a cycle over a part of it decides what a cycle over all of it would."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmtask.scheduler import backlog, headroom
from swarmtask.scheduler.backlog import Backlog, Cut
from swarmtask.scheduler.cycle import run_cycle
from swarmtask.scheduler.line import Line, Place
from swarmtask.scheduler.model import Amounts, CycleResult, PendingTask, QueueInfo, Snapshot
from swarmtask.scheduler.standing import order_key, place_of
from tests.scheduler.builders import DEFAULT, GIB, node, shape, snapshot, task
from tests.scheduler.crowds import crowded, started, with_running
from tests.scheduler.test_properties import snapshots

SMALL, LARGE = shape(cpu=1000), shape(cpu=4000, memory=GIB)
NONE_LEFT = Amounts()


def cut_of(cluster: Snapshot, free: Amounts = NONE_LEFT, slots: int | None = None, whole: int = 3, place: Place = order_key) -> Cut:
    preempting = {key for key, queue in cluster.queues.items() if queue.preempts}
    with patch.object(backlog, "WHOLE", whole), patch.object(backlog, "MARGIN", 1), patch.object(backlog, "MOST", 3):
        return Backlog(cluster.pending).cut(free, slots, place, preempting)


def another_key(task: PendingTask) -> tuple[int, float, str]:
    """The same order, by a function that the backlog does not know."""
    return order_key(task)


def decided(cluster: Snapshot, cut: Cut) -> CycleResult:
    return cut.settle(run_cycle(replace(cluster, pending=cut.tasks, cut=cut)))


def all_refusals(cut: Cut, result: CycleResult) -> list[object]:
    return sorted([*result.refusals, *cut.beyond(result, 0, cut.hidden)], key=lambda refusal: refusal.task.uid)


@pytest.mark.slow
@given(snapshots() | crowded(preempts=True), st.integers(1, 12), st.integers(0, 20_000), st.integers(1, 3))
@settings(max_examples=300)
def test_a_cut_changes_no_decision(cluster: Snapshot, whole: int, free: int, preemptors: int) -> None:
    """Also where the bound on what may start is far too low or too high, where tasks gain priority by waiting, and where several of
    a line preempt; what runs is stopped for the same tasks."""
    with patch.object(backlog, "MOST_PREEMPTORS", preemptors), patch.object(headroom, "MOST_PREEMPTORS", preemptors):
        result, place = run_cycle(cluster), place_of(cluster.queues, cluster.now)
        cut = cut_of(cluster, Amounts(free, free * 2**20, free // 4000), whole=whole, place=place)
        settled = decided(cluster, cut)
    assert len(cut.tasks) + cut.hidden == len(cluster.pending)
    if settled.complete:
        assert tuple(settled.bindings) == tuple(result.bindings)
        assert tuple(settled.preemptions) == tuple(result.preemptions)
        assert all_refusals(cut, settled) == sorted(result.refusals, key=lambda refusal: refusal.task.uid)
    else:
        assert settled.bindings
        assert tuple(settled.bindings) == tuple(result.bindings[: len(settled.bindings)])
        assert not settled.refusals
        assert not settled.preemptions


@pytest.mark.slow
@given(snapshots(), st.integers(1, 6), st.integers(0, 20_000))
@settings(max_examples=60)
def test_what_was_learned_from_earlier_cycles_changes_no_decision(cluster: Snapshot, whole: int, free: int) -> None:
    """Cycle after cycle over one backlog; what starts has left it by the next, as if it had ended at once."""
    place = place_of(cluster.queues, cluster.now)
    with patch.object(backlog, "WHOLE", whole), patch.object(backlog, "MARGIN", 1):
        kept = Backlog(cluster.pending)
        for _ in range(8):
            cut = kept.cut(Amounts(free, free * 2**20, free // 4000), None, place)
            settled = decided(cluster, cut)
            result = run_cycle(replace(cluster, pending=tuple(kept.tasks())))
            assert tuple(settled.bindings) == tuple(result.bindings[: len(settled.bindings)])
            if settled.complete:
                assert len(settled.bindings) == len(result.bindings)
                assert all_refusals(cut, settled) == sorted(result.refusals, key=lambda refusal: refusal.task.uid)
            for binding in settled.bindings:
                kept.drop(binding.task.key)


def test_the_next_cycle_looks_as_deep_as_was_worth_it() -> None:
    """Many small ones behind large ones that fit nowhere: whoever looks from the front sees too few of them at first."""
    pending = [*(task(f"t{number:04}", LARGE, at=number) for number in range(2000))]
    pending += [task(f"small-{number:04}", SMALL, at=5000 + number) for number in range(2000)]
    cluster = snapshot([node(f"n{number}", cpu=3000) for number in range(100)], pending)
    kept, free = Backlog(pending), Amounts(300_000, 10**15)
    depths = []
    for _ in range(4):
        cut = kept.cut(free, None)
        depths.append(Counter(one.shape for one in cut.tasks))
        for binding in decided(cluster, cut).bindings:
            kept.drop(binding.task.key)
    assert depths[0][SMALL] < 300, "the first one does not know better"
    assert depths[-1][SMALL] > 300, "all that can start"
    assert all(depth[LARGE] <= 2 * backlog.WHOLE + backlog.MARGIN for depth in depths)


@pytest.mark.parametrize("tasks", [3, 300])
@pytest.mark.parametrize("spread", [0, 1, 7])
def test_places_are_counted_the_same_for_few_and_for_many(tasks: int, spread: int) -> None:
    """Also where all were queued at one moment, so that names decide, and among several priorities."""
    chance = random.Random(spread)
    sizes = [shape(cpu=5000 + number) for number in range(6)]
    pending = [
        task(
            f"t{number:05}",
            chance.choices(sizes, (1, 1, 1, 1, 1, tasks))[0],
            priority=chance.choice([0, 0, 5]),
            at=spread * chance.randrange(90),
        )
        for number in range(600)
    ]
    cluster = snapshot([node(cpu=1000)], pending)
    cut = cut_of(cluster, whole=tasks)
    settled = decided(cluster, cut)
    places = {one.key: number for number, one in enumerate(sorted(pending, key=order_key), 1)}
    assert cut.hidden
    assert {refusal.task.key: refusal.position for refusal in settled.refusals} == {one.key: places[one.key] for one in cut.tasks}


def test_a_long_line_is_not_read_to_its_end() -> None:
    cluster = snapshot([node(cpu=2000)], [task(f"t{number:04}", SMALL, at=number) for number in range(500)])
    cut = cut_of(cluster, free=Amounts(2000, GIB), whole=10)
    assert [one.key[1] for one in cut.tasks] == [f"t{number:04}" for number in range(10)]
    result = decided(cluster, cut)
    assert result.complete
    assert len(result.bindings) == 2
    assert [(refusal.task.key[1], refusal.position) for refusal in cut.beyond(result, 488, 5)] == [("t0498", 497), ("t0499", 498)]


def test_several_of_a_line_behind_a_long_one_preempt_in_one_cycle() -> None:
    """The many before them fit nowhere; each of the five has a victim."""
    fast, pinned = ("home", "fast"), shape(cpu=1000, node_name="elsewhere")
    pending = [task(f"t{number:04}", pinned, priority=2000, at=number) for number in range(500)]
    pending += [task(f"u{number}", SMALL, priority=1000, at=number, queue=fast) for number in range(5)]
    cluster = snapshot([node(cpu=5000)], pending, QueueInfo(DEFAULT), QueueInfo(fast, preempts=True))
    low = [started(task(f"low{number}", SMALL), "laptop", 0.0) for number in range(5)]
    result = decided(with_running(cluster, low), cut_of(cluster))
    assert [one.by.key[1] for one in result.preemptions] == [f"u{number}" for number in range(5)]


def test_what_stands_behind_a_long_line_is_looked_at() -> None:
    """The large ones fit nowhere; the small one behind all of them starts."""
    pending = [*(task(f"t{number:04}", LARGE, at=number) for number in range(500)), task("small", SMALL, at=1000)]
    cluster = snapshot([node(cpu=2000)], pending)
    cut = cut_of(cluster, free=Amounts(2000, GIB))
    assert len(cut.tasks) < 10
    result = decided(cluster, cut)
    assert [binding.task.key[1] for binding in result.bindings] == ["small"]
    assert [refusal.position for refusal in result.refusals] == [1, 2, 3]


def test_places_count_those_that_were_not_looked_at() -> None:
    other = ("home", "other")
    pending = [task(f"t{number:04}", SMALL, at=number) for number in range(500)]
    pending += [task("odd", LARGE, at=250.5), task("elsewhere", SMALL, queue=other, at=250.5)]
    cluster = snapshot([node(cpu=0)], pending, QueueInfo(DEFAULT), QueueInfo(other))
    cut = cut_of(cluster)
    positions = {refusal.task.key[1]: refusal.position for refusal in decided(cluster, cut).refusals}
    assert positions == {"t0000": 1, "t0001": 2, "t0002": 3, "odd": 252, "elsewhere": 1}


def test_a_line_that_runs_out_ends_what_is_told() -> None:
    """Tasks that take nothing have no bound; the younger ones of another line must not start before the rest of theirs."""
    pending = [
        *(task(f"free{number}", at=number) for number in range(50)),
        *(task(f"s{number}", SMALL, at=100) for number in range(50)),
    ]
    cluster = snapshot([node(cpu=100_000)], pending)
    cut = cut_of(cluster, free=Amounts(100_000, GIB))
    result = decided(cluster, cut)
    assert not result.complete
    assert [binding.task.key[1] for binding in result.bindings] == ["free0", "free1", "free2", "free3"]


def test_a_short_backlog_is_not_cut() -> None:
    cluster = snapshot([node()], [task(f"t{number}", at=number) for number in range(3)])
    cut = cut_of(cluster)
    result = run_cycle(cluster)
    assert not cut.ends
    assert cut.settle(result) is result
    assert cut.beyond(result, 0, 10) == []
    assert Backlog().cut(NONE_LEFT, None).tasks == ()


def test_who_was_moved_to_the_front_is_always_looked_at() -> None:
    pending = [task(f"t{number:04}", SMALL, at=number) for number in range(100)]
    pending += [task(f"moved{number}", SMALL, at=500, front_at=600.0 + number) for number in range(20)]
    names = [one.key[1] for one in cut_of(snapshot([], pending)).tasks]
    assert [name for name in names if name.startswith("moved")] == [f"moved{number}" for number in reversed(range(20))]


@pytest.mark.parametrize("chunk", [1, 2, 512])
def test_it_holds_what_a_plain_mapping_holds(chunk: int) -> None:
    """Thousands of tasks come, change their priority, queue and shape, and go, in any order."""
    chance, kept, known = random.Random(chunk), Backlog(), dict[tuple[str, str], PendingTask]()
    with patch("swarmtask.scheduler.line.CHUNK", chunk), patch.object(backlog, "WHOLE", 0):
        for _ in range(6000):
            name = f"t{chance.randrange(400)}"
            if chance.random() < 0.4:
                kept.drop(("home", name))
                known.pop(("home", name), None)
            else:
                one = task(name, chance.choice([SMALL, LARGE]), priority=chance.choice([0, 1]), at=float(chance.randrange(50)))
                kept.put(one)
                known[one.key] = one
        assert {one.key: one for one in kept.tasks()} == known
        everything = kept.cut(Amounts(10**9, 10**15), None)
        assert not everything.ends
        for priority in (0, 1):
            for wants in (SMALL, LARGE):
                line = [one for one in everything.tasks if (one.priority, one.shape) == (priority, wants)]
                assert line == sorted(line, key=lambda one: (one.queued_at, one.uid))
        assert kept.oldest() == {DEFAULT: min(one.queued_at for one in known.values())}
        for key in known:
            kept.drop(key)
    assert (len(kept), kept.oldest(), list(kept.tasks())) == (0, {}, [])


def test_the_moments_of_a_line_are_those_of_its_tasks_after_every_change() -> None:
    chance, kept = random.Random(7), list[PendingTask]()
    with patch("swarmtask.scheduler.line.CHUNK", 4):
        one = Line(task("like"))
        for number in range(400):
            if kept and chance.random() < 0.45:
                one.remove(kept.pop(chance.randrange(len(kept))))
            else:
                kept.append(task(f"t{number}", at=float(chance.randrange(50))))
                one.add(kept[-1])
            start, count = chance.randrange(len(kept) + 2), chance.randrange(30)
            assert one.moments(start, count).tolist() == sorted(each.queued_at for each in kept)[start : start + count]
