"""Last resorts, and what the strategy balanced weighs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from swarmtask.scheduler.cycle import explain_task, run_cycle
from swarmtask.scheduler.model import Amounts, NodeInfo, QueueInfo, Taint, TaskShape, Toleration, Weights
from tests.scheduler.builders import DEFAULT, GIB, node, shape, snapshot, task

SLOW = Taint("slow", "", "PreferNoSchedule")
WISHES = shape(cpu=1000, avoid=frozenset({"failed"}), preferred_regions=frozenset({"home"}))
FAULTS: dict[str, dict[str, Any]] = {
    "regions": {"region": "attic"},
    "battery": {"on_battery": True},
    "taints": {"taints": (SLOW,)},
    "failedThere": {"name": "failed"},
}
"""The mildest first."""


def faulty(*faults: str) -> NodeInfo:
    facts: dict[str, Any] = {"name": "-".join(faults) or "faultless", "region": "home"}
    for fault in faults:
        facts |= FAULTS[fault]
    return node(**facts)


def order(nodes: list[NodeInfo], wants: TaskShape, *queues: QueueInfo) -> list[str]:
    """The node of each of as many tasks as there are nodes; each fills one."""
    nodes = [node(one.name, cpu=1000, **{name: getattr(one, name) for name in ("region", "on_battery", "taints")}) for one in nodes]
    pending = [task(f"t{number}", wants, at=float(number)) for number in range(len(nodes))]
    return [binding.node for binding in run_cycle(snapshot(nodes, pending, *queues)).bindings]


def test_the_worst_fault_decides_then_the_next() -> None:
    """Every combination of three of the faults, in the documented order: as if they were digits."""
    mild = list(FAULTS)[:3]
    ranked = [
        faulty(*(fault for fault, set_ in zip(mild, bits[::-1], strict=True) if set_))
        for bits in itertools.product([False, True], repeat=3)
    ]
    expected = [one.name for one in ranked]
    assert order(ranked, WISHES) == expected
    assert order(ranked[::-1], WISHES, QueueInfo(DEFAULT, strategy="pack")) == expected


def test_where_it_failed_comes_after_everything_else() -> None:
    assert order([faulty("failedThere"), faulty("regions", "battery", "taints")], WISHES) == ["regions-battery-taints", "failed"]


def test_a_much_better_score_does_not_make_up_for_a_fault() -> None:
    nodes = [
        node("battery", cpu=64_000, memory=64 * GIB, on_battery=True, latency_ms=0),
        node("desk", cpu=1000, requested=Amounts(0, 7 * GIB), tasks=99, latency_ms=9999, cost_per_hour=99, gpus=64),
    ]
    first, second = run_cycle(snapshot(nodes, [task("a", shape(cpu=1000)), task("b", shape(cpu=1000), at=1)])).bindings
    assert (first.node, second.node) == ("desk", "battery"), "it is taken when no other fits, and not before"
    assert 0 < second.score < first.score


@pytest.mark.parametrize(
    "wants",
    [
        shape(on_battery="allow", tolerations=(Toleration("slow", None, None),)),
        shape(on_battery="allow", tolerations=(Toleration("", None, "PreferNoSchedule"),)),
    ],
)
def test_who_does_not_mind_goes_by_score_alone(wants: TaskShape) -> None:
    nodes = [node("a", taints=(SLOW,), on_battery=True), node("b", requested=Amounts(2000))]
    (binding,) = run_cycle(snapshot(nodes, [task(wants=wants)])).bindings
    assert binding.node == "a"


def test_explanations_name_the_broken_preferences_worst_first() -> None:
    nodes = [faulty(), faulty("regions", "battery", "taints", "failedThere")]
    verdicts = {verdict.node: verdict for verdict in explain_task(snapshot(nodes, []), task(wants=WISHES)).nodes}
    assert verdicts["faultless"].last_resort == ()
    assert verdicts["failed"].last_resort == ("failedThere", "taints", "battery", "regions")
    assert verdicts["failed"].refused_by is None


# --- balanced ---


def shares(candidate: NodeInfo, wants: TaskShape, weights: Weights) -> dict[str, float]:
    (verdict,) = explain_task(snapshot([candidate], [], QueueInfo(DEFAULT, weights=weights)), task(wants=wants)).nodes
    return dict(verdict.scores)


@pytest.mark.parametrize(
    ("score", "candidate", "expected"),
    [
        ("capability", node(), 1.0),
        ("capability", node(capabilities=frozenset({"a"})), 0.5),
        ("capability", node(gpus=3), 0.25),
        ("capability", node(gpus=1, capabilities=frozenset({"a", "b"})), 0.25),
        ("latency", node(latency_ms=0), 1.0),
        ("latency", node(latency_ms=125.0), 0.75),
        ("latency", node(latency_ms=500), 0.0),
        ("latency", node(latency_ms=1e12), 0.0),
        ("latency", node(latency_ms=None), 0.5),
        ("cost", node(cost_per_hour=0), 1.0),
        ("cost", node(cost_per_hour=2.5), 0.75),
        ("cost", node(cost_per_hour=10), 0.0),
        ("cost", node(cost_per_hour=1e30), 0.0),
        ("load", node(requested=Amounts(1000)), 0.75),
        ("load", node(cpu=0, memory=0), 0.0),
        ("load", node(requested=Amounts(9000)), 0.0),
    ],
)
def test_what_each_score_of_balanced_measures(score: str, candidate: NodeInfo, expected: float) -> None:
    order_ = ("capability", "load", "latency", "cost")
    weights = (int(score == order_[0]), int(score == order_[1]), int(score == order_[2]), int(score == order_[3]))
    found = shares(candidate, shape(), weights)
    assert found.keys() == {score, "fewTasks"}
    assert found[score] == pytest.approx(expected / 1.001)


def test_what_is_asked_for_makes_a_special_node_a_good_one() -> None:
    special = node(capabilities=frozenset({"browser"}), gpus=1)
    wants = shape(capabilities=frozenset({"browser"}), gpus=1)
    assert shares(special, wants, (1, 0, 0, 0))["capability"] == pytest.approx(1 / 1.001)
    assert shares(node(), wants, (1, 0, 0, 0))["capability"] == pytest.approx(1 / 1.001), "never above 1, though it does not fit"


def test_the_weights_are_shares_of_the_total() -> None:
    found = shares(node(latency_ms=0), shape(), (40, 30, 20, 10))
    parts = {"capability": 0.4, "load": 0.3, "latency": 0.2, "cost": 0.1, "fewTasks": 0.001}
    assert found == pytest.approx({name: part / 1.001 for name, part in parts.items()})
    assert shares(node(latency_ms=0), shape(), (400, 300, 200, 100)) == pytest.approx(found)


def test_special_nodes_stay_free_until_they_are_needed() -> None:
    nodes = [node("gpu", cpu=8000, memory=16 * GIB, gpus=2), node("plain", cpu=2000)]
    pending = [task(f"t{number}", shape(cpu=1000), at=float(number)) for number in range(3)]
    assert [binding.node for binding in run_cycle(snapshot(nodes, pending)).bindings] == ["plain", "plain", "gpu"]


def test_each_queue_weighs_for_itself() -> None:
    night = ("home", "night")
    queues = [QueueInfo(DEFAULT, weights=(0, 0, 0, 1)), QueueInfo(night, weights=(0, 0, 1, 0))]
    nodes = [node("cheap", cost_per_hour=0, latency_ms=400), node("near", cost_per_hour=5, latency_ms=1)]
    pending = [task("a", shape(cpu=10)), task("b", shape(cpu=10), at=1.0, queue=night), task("c", shape(cpu=10), at=2.0)]
    assert [binding.node for binding in run_cycle(snapshot(nodes, pending, *queues)).bindings] == ["cheap", "near", "cheap"]


def test_with_nothing_to_weigh_the_number_of_tasks_decides() -> None:
    nodes = [node("a", tasks=1), node("b")]
    (binding,) = run_cycle(snapshot(nodes, [task()], QueueInfo(DEFAULT, weights=(0, 0, 0, 0)))).bindings
    assert binding.node == "b"
    assert 0 < binding.score <= 1
    assert not run_cycle(snapshot([], [task()], QueueInfo(DEFAULT, weights=(0, 0, 0, 0)))).bindings


def test_the_load_keeps_counting_while_tasks_are_placed() -> None:
    """Static shares are taken once; what placements change is asked again."""
    nodes = [node("far", latency_ms=250), node("near", latency_ms=0)]
    pending = [task(f"t{number}", shape(cpu=1000), at=float(number)) for number in range(5)]
    placed = [binding.node for binding in run_cycle(snapshot(nodes, pending)).bindings]
    assert placed[0] == "near"
    assert set(placed) == {"near", "far"}
