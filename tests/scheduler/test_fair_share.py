"""Queues of one cohort share by weight: who comes next, and where shares go in the long run."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmtask.scheduler.cohorts import offered
from swarmtask.scheduler.cycle import explain_task, run_cycle
from swarmtask.scheduler.model import Amounts, Binding, PendingTask, QueueInfo, QueueKey
from tests.scheduler.builders import DEFAULT, GIB, node, shape, snapshot, task

ALICE, BOB, CAROL = ("a", "alice"), ("b", "bob"), ("c", "carol")
ONE = shape(cpu=1000)


def queue(key: QueueKey, weight: int = 1, *, cpu: int = 0, cohort: str = "all") -> QueueInfo:
    return QueueInfo(key, cohort=cohort, weight=weight, requested=Amounts(cpu))


def backlog(count: int, *keys: QueueKey, **facts: int) -> list[PendingTask]:
    """The tasks of the first queue are older than all of the second, and so on."""
    return [
        task(f"{key[1]}-{number:02}", ONE, at=float(place * 1000 + number), queue=key, **facts)
        for place, key in enumerate(keys)
        for number in range(count)
    ]


def started(pending: list[PendingTask], *queues: QueueInfo, cpu: int = 12_000) -> list[str]:
    return [binding.task.queue[1] for binding in run_cycle(snapshot([node(cpu=cpu)], pending, *queues)).bindings]


def test_the_queue_with_less_comes_first_whatever_the_age() -> None:
    pending = backlog(12, ALICE, BOB)
    assert started(pending, queue(ALICE), queue(BOB)) == ["alice", "bob"] * 6
    assert Counter(started(pending, queue(ALICE), queue(BOB, 3))) == {"alice": 3, "bob": 9}
    assert Counter(started(pending, queue(ALICE, cpu=4000), queue(BOB), cpu=12_000)) == {"alice": 4, "bob": 8}


def test_without_a_cohort_the_order_is_age() -> None:
    pending = backlog(8, ALICE, BOB)
    assert started(pending, queue(ALICE, cohort=""), queue(BOB, 9, cohort="")) == ["alice"] * 8 + ["bob"] * 4


def test_priority_comes_before_fairness() -> None:
    pending = [*backlog(6, ALICE, priority=5), *backlog(6, BOB)]
    assert started(pending, queue(ALICE), queue(BOB, 100), cpu=8000) == ["alice"] * 6 + ["bob"] * 2


def test_within_a_queue_the_order_stays_age_over_all_shapes() -> None:
    pending = [task(f"t{number}", shape(cpu=100 + 100 * (number % 3)), at=float(number), queue=ALICE) for number in range(9)]
    bindings = run_cycle(snapshot([node()], pending, queue(ALICE))).bindings
    assert [binding.task for binding in bindings] == pending


def test_what_one_queue_does_not_use_is_lent() -> None:
    pending = [*backlog(2, ALICE), *backlog(20, BOB)]
    assert Counter(started(pending, queue(ALICE, 5), queue(BOB))) == {"alice": 2, "bob": 10}
    stopped = QueueInfo(ALICE, cohort="all", stopped=True)
    assert Counter(started(pending, stopped, queue(BOB))) == {"bob": 12}


def test_a_cohort_has_its_turn_when_its_oldest_task_is_the_oldest() -> None:
    """Cohorts and queues without one stand to each other by age; a cohort gives its turn to whom it is due."""
    pending = [task(f"a{number}", ONE, at=float(2 * number), queue=ALICE) for number in range(3)]
    pending += [task(f"c{number}", ONE, at=float(2 * number + 1), queue=CAROL) for number in range(3)]
    pending += [task(f"b{number}", ONE, at=100.0 + number, queue=BOB) for number in range(3)]
    queues = [queue(ALICE, cpu=9000), queue(BOB), queue(CAROL, cohort="")]
    # The oldest is Alice's until Bob has nothing left, so his tasks come even before Carol's.
    assert started(pending, *queues) == ["bob", "bob", "bob", "alice", "carol", "alice", "carol", "alice", "carol"]


def test_the_dominant_resource_counts() -> None:
    """The example of the paper: 9 CPUs and 18 GB; tasks of 1 CPU and 4 GB against tasks of 3 CPUs and 1 GB: three and two."""
    pending = [task(f"a{number}", shape(cpu=1000, memory=4 * GIB), at=float(number), queue=ALICE) for number in range(9)]
    pending += [task(f"b{number}", shape(cpu=3000, memory=GIB), at=float(number), queue=BOB) for number in range(9)]
    result = run_cycle(snapshot([node(cpu=9000, memory=18 * GIB)], pending, queue(ALICE), queue(BOB)))
    assert Counter(binding.task.queue for binding in result.bindings) == {ALICE: 3, BOB: 2}


def test_the_whole_has_what_sleeps_and_not_what_has_left() -> None:
    here = node(cpu=4000)
    asleep, left = node("asleep", cpu=8000, gpus=2, ready=False), node("left", cpu=64_000, gpus=8, ready=False, gone=True)
    assert offered([here, asleep, left]) == Amounts(12_000, 16 * GIB, 2)


def test_shares_without_any_nodes_or_any_requests() -> None:
    pending = backlog(3, ALICE, BOB)
    assert len(run_cycle(snapshot([], pending, queue(ALICE), queue(BOB))).refusals) == 6
    free = [task(f"t{number}", at=float(number), queue=BOB if number % 2 else ALICE) for number in range(4)]
    result = run_cycle(snapshot([node("a", cpu=0, memory=0)], free, queue(ALICE), queue(BOB)))
    assert [binding.task for binding in result.bindings] == free


def test_the_explanation_follows_the_turns() -> None:
    pending = backlog(12, ALICE, BOB)
    cluster = snapshot([node(cpu=12_000)], pending, queue(ALICE), queue(BOB, 3))
    decided = {decision.task.uid: decision for decision in (*run_cycle(cluster).bindings, *run_cycle(cluster).refusals)}
    for one in pending:
        assert explain_task(cluster, one).outcome == decided[one.uid]
    assert isinstance(explain_task(cluster, pending[20]).outcome, Binding)
    assert not isinstance(explain_task(cluster, pending[3]).outcome, Binding)


@pytest.mark.slow
@given(
    st.lists(st.integers(1, 5), min_size=2, max_size=4),
    st.lists(st.sampled_from([500, 1000, 1500, 2000]), min_size=1, max_size=3, unique=True),
    st.integers(1, 3),
    st.integers(0, 2**32),
)
@settings(max_examples=6)
def test_in_the_long_run_shares_are_the_weights_within_five_percent(
    weights: list[int], sizes: list[int], busiest: int, seed: int
) -> None:
    """Everybody always has tasks of every size waiting; at first the whole cluster is lent to one. Tasks end at random."""
    chance = random.Random(seed)
    keys: list[QueueKey] = [("team", f"q{number}") for number in range(len(weights))]
    cluster = [node(f"n{number}", cpu=20_000, memory=GIB) for number in range(20)]
    running: list[tuple[PendingTask, str]] = []
    made, held_over_time, rounds, first_counted = 0, Counter[QueueKey](), 50, 25

    for step in range(rounds):
        pending = []
        for key in keys if step else keys[:1]:
            for _ in range(500 if not step else 300):
                made += 1
                pending.append(task(f"t{made}", shape(cpu=chance.choice(sizes)), at=float(made), queue=key))
        loads: dict[str, Amounts] = {}
        held: dict[QueueKey, Amounts] = {}
        for one, name in running:
            loads[name] = loads.get(name, Amounts()) + one.shape.request
            held[one.queue] = held.get(one.queue, Amounts()) + one.shape.request
        nodes = [node(one.name, cpu=20_000, memory=GIB, requested=loads.get(one.name, Amounts())) for one in cluster]
        queues = [
            QueueInfo(key, cohort="all", weight=weight, requested=held.get(key, Amounts()))
            for key, weight in zip(keys, weights, strict=True)
        ]
        running += [(binding.task, binding.node) for binding in run_cycle(snapshot(nodes, pending, *queues)).bindings]
        if step >= first_counted:
            for one, _ in running:
                held_over_time[one.queue] += one.shape.request.cpu_milli
        running = [entry for entry in running if chance.random() > 0.1 * busiest]

    whole = held_over_time.total()
    assert whole >= 0.95 * 400_000 * (rounds - first_counted), "nothing stays idle while somebody waits"
    for key, weight in zip(keys, weights, strict=True):
        assert held_over_time[key] / whole == pytest.approx(weight / sum(weights), rel=0.05)


def test_equal_queues_of_another_namespace_share_too() -> None:
    other = (DEFAULT[0], ALICE[1])
    assert Counter(started(backlog(9, ALICE, other), queue(ALICE), queue(other), cpu=8000)) == {"alice": 8}
    pending = backlog(9, ALICE, other)
    bindings = run_cycle(snapshot([node(cpu=8000)], pending, queue(ALICE), queue(other))).bindings
    assert Counter(binding.task.queue for binding in bindings) == {ALICE: 4, other: 4}
