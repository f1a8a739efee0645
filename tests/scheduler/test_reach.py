"""Which tasks no node could ever take, and the smallest node for those that one can."""

from __future__ import annotations

from typing import Any

import pytest

from swarmtask.scheduler.cycle import run_cycle
from swarmtask.scheduler.model import Amounts, GpuInfo, GpuWish, QueueInfo, Snapshot, Taint
from swarmtask.scheduler.reach import OTHERS_PATIENCE_S, Reach, out_of_reach
from tests.scheduler.builders import DEFAULT, GIB, node, shape, snapshot, task

SMALL, LARGE = node("small", memory=4 * GIB), node("large", memory=16 * GIB)


def test_what_a_node_offers_is_in_reach_however_busy_it_is() -> None:
    busy = node("large", memory=16 * GIB, requested=Amounts(0, 16 * GIB), foreign_bytes=8 * GIB, memory_pressure=True)
    for other in (LARGE, busy, node("l", memory=16 * GIB, ready=False, engines=()), node("l", memory=16 * GIB, unschedulable=True)):
        assert out_of_reach([SMALL, other], shape(memory=16 * GIB), 0.0) == ""


def test_more_than_any_node_offers_is_out_of_reach_in_words() -> None:
    words = "the next attempt needs 17Gi of memory, and the largest of 2 nodes that may run it offers 16Gi"
    assert out_of_reach([SMALL, LARGE], shape(memory=17 * GIB), 0.0) == words
    words = "the next attempt needs 4294967297 of memory, and the only node that may run it offers 4Gi"
    assert out_of_reach([SMALL], shape(memory=4 * GIB + 1), 0.0) == words


@pytest.mark.parametrize(
    ("facts", "wishes"),
    [
        ({"gone": True}, {}),
        ({}, {"node_name": "small"}),
        ({}, {"node_selector": (("zone", "home"),)}),
        ({}, {"regions": frozenset({"lab"})}),
        ({"taints": (Taint("gpu", "", "NoSchedule"),)}, {}),
        ({}, {"engine": "local"}),
        ({"cost_per_hour": 2.0}, {"max_cost_per_hour": 1.0}),
        ({}, {"capabilities": frozenset({"kvm"})}),
        ({"cpu": 100}, {}),
        ({"gpus": 1, "gpus_listed": (GpuInfo(0, "amd"),)}, {"gpu": GpuWish("nvidia"), "gpus": 1}),
        ({"gpus": 1, "gpus_listed": (GpuInfo(64, "intel"),)}, {"gpus": 1}),
    ],
)
def test_a_node_that_cannot_take_it_for_another_reason_does_not_help(facts: dict[str, Any], wishes: dict[str, Any]) -> None:
    able = node(
        "small", memory=4 * GIB, gpus=1, gpus_listed=(GpuInfo(0, "nvidia"),), labels={"zone": "home"}, region="lab",
        engines=("local", "swarm"), capabilities=frozenset({"kvm"}),
    )  # fmt: skip
    large = node("large", **{"memory": 16 * GIB, **facts})
    wants = shape(cpu=1000, memory=8 * GIB, **wishes)
    assert "the only node that may run it offers 4Gi" in out_of_reach([able, large], wants, 0.0)
    assert out_of_reach([large], wants, 0.0) == "", "memory is not what keeps it away"


def test_no_node_at_all_proves_nothing() -> None:
    assert out_of_reach([], shape(memory=GIB), 1e9) == ""


def test_hope_for_what_others_use_ends() -> None:
    busy = node("a", memory=16 * GIB, foreign_bytes=8 * GIB)
    assert out_of_reach([busy], shape(memory=10 * GIB), OTHERS_PATIENCE_S) == ""
    words = out_of_reach([busy], shape(memory=10 * GIB), OTHERS_PATIENCE_S + 1)
    assert "has had for 1 h, beside what others than tasks use, 8Gi" in words
    assert out_of_reach([busy], shape(memory=8 * GIB), 1e9) == ""


def test_the_answer_of_a_snapshot_depends_on_how_long_each_task_has_waited() -> None:
    late, early = task("late", shape(memory=10 * GIB), at=0.0), task("early", shape(memory=10 * GIB), at=1e6)
    reach = Reach(Snapshot(1e6, [node(memory=16 * GIB, foreign_bytes=8 * GIB)], [late, early], {}))
    assert reach.lacks(late)
    assert not reach.lacks(early)


# --- the smallest node that fits -----------------------------------------------------------------------------------------


def test_the_smallest_node_that_fits_is_preferred_to_the_queues_strategy() -> None:
    nodes = [LARGE, SMALL, node("middle", memory=8 * GIB)]
    wants = shape(memory=5 * GIB, strategy="smallest")
    (binding,) = run_cycle(snapshot(nodes, [task(wants=wants)], QueueInfo(DEFAULT, strategy="spread"))).bindings
    assert binding.node == "middle"


def test_a_larger_one_is_taken_where_the_smallest_is_full() -> None:
    full = node("middle", memory=8 * GIB, requested=Amounts(0, 4 * GIB))
    wants = shape(memory=5 * GIB, strategy="smallest")
    (binding,) = run_cycle(snapshot([LARGE, full], [task(wants=wants)], QueueInfo(DEFAULT))).bindings
    assert binding.node == "large"


def test_among_nodes_of_one_size_the_one_with_fewest_tasks_is_taken() -> None:
    nodes = [node("a", tasks=2), node("b", tasks=1), LARGE]
    (binding,) = run_cycle(snapshot(nodes, [task(wants=shape(memory=GIB, strategy="smallest"))], QueueInfo(DEFAULT))).bindings
    assert binding.node == "b"


def test_a_node_that_is_a_last_resort_stays_one_however_small() -> None:
    nodes = [node("small", memory=4 * GIB, on_battery=True), LARGE]
    (binding,) = run_cycle(snapshot(nodes, [task(wants=shape(memory=GIB, strategy="smallest"))], QueueInfo(DEFAULT))).bindings
    assert binding.node == "large"
