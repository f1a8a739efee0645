"""Empty, huge and lopsided input; and where work goes when nodes differ."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from swarmtask.scheduler import placement
from swarmtask.scheduler.cycle import run_cycle
from swarmtask.scheduler.model import Amounts, QueueInfo, TaskShape
from tests.scheduler.builders import DEFAULT, GIB, node, shape, snapshot, task

HUGE = [2**53 + 1, 2**60, 2**62 - 1, 2**62, 2**63, 2**100]


def test_nothing_at_all() -> None:
    result = run_cycle(snapshot([], []))
    assert (result.bindings, result.refusals) == ((), ())
    assert run_cycle(snapshot([node()], [])).bindings == ()


@pytest.mark.parametrize("amount", HUGE)
@pytest.mark.parametrize("field", ["cpu_milli", "memory_bytes", "gpus"])
def test_a_huge_request_is_refused_and_disturbs_nobody(field: str, amount: int) -> None:
    wants = TaskShape(Amounts(**{field: amount}))
    result = run_cycle(snapshot([node()], [task("huge", wants), task("usual", shape(cpu=4000, memory=8 * GIB))]))
    assert [binding.task.key[1] for binding in result.bindings] == ["usual"]
    assert sum(result.refusals[0].counts.values()) == 1


@pytest.mark.parametrize("amount", [amount for amount in HUGE if amount < 2**62])
def test_amounts_stay_exact_up_to_the_limit(amount: int) -> None:
    big = node(memory=amount)
    assert len(run_cycle(snapshot([big], [task(wants=shape(memory=amount))])).bindings) == 1
    assert not run_cycle(snapshot([big], [task(wants=shape(memory=amount + 1))])).bindings
    two = [task("a", shape(memory=amount - 1)), task("b", shape(memory=2))]
    assert len(run_cycle(snapshot([big], two)).bindings) == 1


def test_a_wish_beyond_the_limit_fits_nowhere_not_even_on_a_node_beyond_it() -> None:
    assert not run_cycle(snapshot([node(memory=2**100)], [task(wants=shape(memory=2**90))])).bindings


def test_a_node_that_holds_far_more_than_it_offers() -> None:
    over = node(cpu=0, memory=0, requested=Amounts(2**100, 2**100, 2**100), tasks=2**70, max_tasks=1)
    result = run_cycle(snapshot([over], [task(wants=shape(1, 1, 1)), task("free")]))
    assert [dict(refusal.counts) for refusal in result.refusals] == [{"maxTasks": 1}, {"gpu": 1}]


def test_nodes_that_offer_nothing_take_tasks_that_ask_for_nothing() -> None:
    nothing = node("a", cpu=0, memory=0)
    (binding,) = run_cycle(snapshot([nothing], [task()])).bindings
    assert 0.0 <= binding.score <= 1.0
    (binding,) = run_cycle(snapshot([nothing, node("b")], [task()])).bindings
    assert binding.node == "b"


@pytest.mark.slow
def test_a_hundred_thousand_identical_tasks() -> None:
    wants = shape(cpu=100)
    pending = [task(f"t{number}", wants, at=float(number)) for number in range(100_000)]
    nodes = [node(f"n{number}", cpu=10_000) for number in range(10)]
    result = run_cycle(snapshot(nodes, pending, QueueInfo(DEFAULT, max_running=99_000)))
    assert Counter(binding.node for binding in result.bindings) == {f"n{number}": 100 for number in range(10)}
    assert [binding.task for binding in result.bindings] == pending[:1000]
    assert [refusal.position for refusal in result.refusals] == list(range(1, 99_001))
    words = "0/10 nodes fit: 10 too little CPU (needs 100m, most free 0)"
    assert result.refusals[0].message == f"{words}; node n0 is kept for it (until 100m CPU come free there)"
    assert {refusal.message for refusal in result.refusals[1:]} == {words}


def test_more_shapes_than_evaluations_are_kept_decide_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [node(f"n{number}", cpu=4000 + 100 * number) for number in range(7)]
    pending = [task(f"t{number}", shape(cpu=100 + number % 13), at=float(number)) for number in range(200)]
    roomy = run_cycle(snapshot(nodes, pending))
    monkeypatch.setattr(placement, "KEPT_BYTES", 16 * 7 * 3)
    assert run_cycle(snapshot(nodes, pending)) == roomy


def test_a_class_that_slept_through_more_placements_than_there_are_nodes() -> None:
    nodes = [node("a", cpu=50_000), node("b", cpu=40_000)]
    rare, usual = shape(cpu=3000), shape(cpu=1000)
    pending = [task("rare-1", rare), *(task(f"t{number:02}", usual, at=1.0) for number in range(60)), task("rare-2", rare, at=2.0)]
    result = run_cycle(snapshot(nodes, pending))
    assert len(result.bindings) == 62
    assert [binding.node for binding in result.bindings if binding.task.shape == rare] == ["a", "a"]


@pytest.mark.parametrize("limits", [{"node_selector": (("zone", "home"),)}, {"node_name": "near"}, {"engine": "swarm"}])
def test_a_node_that_is_not_allowed_stays_so_when_others_are_placed_on_it(limits: dict[str, Any]) -> None:
    nodes = [node("far", cpu=64_000, memory=64 * GIB, engines=("local",)), node("near", labels={"zone": "home"})]
    bound, free = shape(cpu=500, **limits), shape(cpu=1000)
    pending = [task(f"t{number}", bound if number % 2 else free, at=float(number)) for number in range(8)]
    result = run_cycle(snapshot(nodes, pending))
    assert [binding.node for binding in result.bindings] == ["far", "near"] * 4


def test_equal_nodes_are_filled_evenly_in_the_order_of_their_names() -> None:
    nodes = [node(name) for name in ("c", "a", "b")]
    result = run_cycle(snapshot(nodes, [task(f"t{number}", shape(cpu=1000), at=float(number)) for number in range(6)]))
    assert [binding.node for binding in result.bindings] == ["a", "b", "c", "a", "b", "c"]


def test_tasks_without_requests_spread_by_their_number() -> None:
    nodes = [node("a", tasks=2), node("b"), node("c", tasks=1)]
    result = run_cycle(snapshot(nodes, [task(f"t{number}", at=float(number)) for number in range(6)]))
    assert [binding.node for binding in result.bindings] == ["b", "b", "c", "a", "b", "c"]


def test_work_goes_where_most_is_left_of_the_scarcest_resource() -> None:
    nodes = [node("much-cpu", cpu=16_000, memory=4 * GIB), node("even", cpu=8000, memory=8 * GIB)]
    (binding,) = run_cycle(snapshot(nodes, [task(wants=shape(cpu=1000, memory=3 * GIB))])).bindings
    assert binding.node == "even"
    (binding,) = run_cycle(snapshot(nodes, [task(wants=shape(cpu=4000))])).bindings
    assert binding.node == "much-cpu"


def test_gpus_count_only_for_those_who_ask() -> None:
    nodes = [node("busy-gpu", cpu=8000, gpus=2, requested=Amounts(0, 0, 2)), node("plain", cpu=4000)]
    (binding,) = run_cycle(snapshot(nodes, [task(wants=shape(cpu=1000, strategy="least-busy"))])).bindings
    assert binding.node == "busy-gpu"
    nodes = [node("half", cpu=8000, gpus=2, requested=Amounts(0, 0, 1)), node("idle", cpu=4000, gpus=2)]
    (binding,) = run_cycle(snapshot(nodes, [task(wants=shape(cpu=1000, gpus=1))])).bindings
    assert binding.node == "idle"


def test_a_node_where_an_attempt_failed_is_the_last_resort() -> None:
    nodes = [node("big", cpu=64_000), node("busy", cpu=1000, requested=Amounts(cpu_milli=500), tasks=3)]
    small = shape(cpu=500, avoid=frozenset({"big", "one that is no more"}))
    first, second = run_cycle(snapshot(nodes, [task("a", small, at=1), task("b", small, at=2)])).bindings
    assert (first.node, second.node) == ("busy", "big"), "it is taken when no other fits, and not before"
    assert 0 < second.score < first.score
