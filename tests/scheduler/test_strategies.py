"""Which of the nodes that fit each strategy chooses."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmtask.resources.fields import Strategy
from swarmtask.scheduler.cycle import explain_task, run_cycle
from swarmtask.scheduler.model import Amounts, NodeInfo, QueueInfo, TaskShape
from swarmtask.scheduler.scores import total_of
from tests.scheduler.builders import DEFAULT, GIB, node, shape, snapshot, task

NAMES: tuple[Strategy, ...] = get_args(Strategy)
LADEN = node("laden", requested=Amounts(2000, 2 * GIB), tasks=1)
BUSY = node("busy", requested=Amounts(3000, GIB), tasks=3)
FULL = node("full", requested=Amounts(1000, 7 * GIB), tasks=2)
CLUSTER = [BUSY, FULL, LADEN]


def chosen(strategy: Strategy, nodes: list[NodeInfo], wants: TaskShape, count: int = 1) -> list[str]:
    pending = [task(f"t{number:03}", wants, at=float(number)) for number in range(count)]
    return [binding.node for binding in run_cycle(snapshot(nodes, pending, QueueInfo(DEFAULT, strategy=strategy))).bindings]


@pytest.mark.parametrize(
    ("strategy", "expected"), [("balanced", "laden"), ("pack", "full"), ("spread", "laden"), ("least-busy", "full")]
)
def test_each_has_its_own_taste(strategy: Strategy, expected: str) -> None:
    assert chosen(strategy, CLUSTER, shape(cpu=500, memory=GIB // 2)) == [expected]


def test_pack_fills_one_node_before_it_begins_another() -> None:
    nodes = [node("a"), node("b"), node("c")]
    assert chosen("pack", nodes, shape(cpu=1000), 9) == ["a"] * 4 + ["b"] * 4 + ["c"]
    assert chosen("pack", [node("a"), node("b", tasks=1)], shape(), 3) == ["b"] * 3


def test_spread_counts_tasks_whatever_their_size() -> None:
    nodes = [node("small", cpu=1000, memory=GIB), node("large", cpu=64_000, memory=64 * GIB)]
    assert Counter(chosen("spread", nodes, shape(cpu=10), 40)) == {"small": 20, "large": 20}
    many = [node("large", cpu=64_000, memory=64 * GIB, tasks=901), node("small", tasks=900)]
    assert chosen("spread", many, shape(cpu=1000)) == ["small"]


def test_spread_takes_the_emptier_of_nodes_with_as_many_tasks() -> None:
    assert chosen("spread", [node("a", requested=Amounts(3000)), node("b")], shape(cpu=10)) == ["b"]


def test_round_robin_goes_on_where_it_stopped() -> None:
    nodes = [node("a", turn=7), node("b", turn=3), node("c")]
    assert chosen("round-robin", nodes, shape(cpu=100), 7) == ["c", "b", "a", "c", "b", "a", "c"]


def test_round_robin_leaves_out_whom_it_cannot_use_and_forgets_nobody() -> None:
    nodes = [node("a", cpu=300), node("b"), node("c", unschedulable=True)]
    assert chosen("round-robin", nodes, shape(cpu=200), 4) == ["a", "b", "b", "b"]


def test_a_task_overrides_its_queue() -> None:
    queue = QueueInfo(DEFAULT, strategy="pack")
    pending = [task("usual", shape(cpu=500)), task("special", shape(cpu=500, strategy="balanced"), at=1.0)]
    result = run_cycle(snapshot([LADEN, node("empty")], pending, queue))
    assert [binding.node for binding in result.bindings] == ["laden", "empty"]


def test_equal_tasks_of_queues_with_different_strategies() -> None:
    night = ("home", "night")
    pending = [task("a", shape(cpu=500)), task("b", shape(cpu=500), at=1.0, queue=night)]
    queues = [QueueInfo(DEFAULT, strategy="pack"), QueueInfo(night, strategy="least-busy")]
    assert [binding.node for binding in run_cycle(snapshot([LADEN, node("empty")], pending, *queues)).bindings] == [
        "laden",
        "empty",
    ]


@pytest.mark.parametrize("strategy", NAMES)
def test_a_node_to_avoid_is_the_last_resort_of_every_strategy(strategy: Strategy) -> None:
    nodes = [node("a", requested=Amounts(2000, 4 * GIB), tasks=50), node("b", turn=10**9), node("c", tasks=10**6, turn=1)]
    for avoided in nodes:
        (name,) = chosen(strategy, nodes, shape(avoid=frozenset({avoided.name})))
        assert name != avoided.name
    assert chosen(strategy, nodes[:1], shape(avoid=frozenset({"a"}))) == ["a"]


AMOUNTS = st.sampled_from([0, 1, 500, 4000, 2**40, 2**62])
ANY_NODE = st.builds(
    lambda cpu, memory, gpus, held, tasks, turn: node(
        cpu=cpu, memory=memory, gpus=gpus, requested=Amounts(held, held, held), tasks=tasks, turn=turn
    ),
    AMOUNTS, AMOUNTS, AMOUNTS, AMOUNTS, st.sampled_from([0, 1, 10**6, 2**70]), st.sampled_from([0, 1, 10**9, 2**70]),
)  # fmt: skip


ANY_SHAPE = st.builds(shape, AMOUNTS, AMOUNTS, st.sampled_from([0, 1, 64]))
"""A SwarmTask asks for at most 64 GPUs."""


@given(ANY_NODE, ANY_SHAPE, st.sampled_from(NAMES))
def test_scores_are_shares_whatever_a_node_offers_and_holds(candidate: NodeInfo, wants: TaskShape, strategy: Strategy) -> None:
    (verdict,) = explain_task(snapshot([candidate], [], QueueInfo(DEFAULT, strategy=strategy)), task(wants=wants)).nodes
    assert 0.0 <= verdict.score <= 1.0
    assert verdict.scores.keys() == set(total_of(strategy, (40, 30, 20, 10)).names)
    assert sum(verdict.scores.values()) == pytest.approx(verdict.score)
    assert all(0.0 <= share <= 1.0 for share in verdict.scores.values())


@pytest.mark.parametrize("strategy", NAMES)
def test_nodes_that_offer_nothing_take_tasks_that_ask_for_nothing(strategy: Strategy) -> None:
    assert chosen(strategy, [node("a", cpu=0, memory=0)], shape(), 3) == ["a"] * 3


@pytest.mark.parametrize("strategy", NAMES)
def test_the_whole_cluster_is_used_when_it_is_needed(strategy: Strategy) -> None:
    nodes = [node(name) for name in "abc"]
    assert Counter(chosen(strategy, nodes, shape(cpu=1000), 20)) == {"a": 4, "b": 4, "c": 4}
