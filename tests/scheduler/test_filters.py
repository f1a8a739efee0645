"""Each filter: whom it refuses, whom it lets pass, and in which words."""

from __future__ import annotations

import itertools

import pytest

from swarmtask.scheduler.cycle import explain_task, run_cycle
from swarmtask.scheduler.filters import ROOM_FILTERS, STATIC_FILTERS, tolerates
from swarmtask.scheduler.model import Amounts, GpuInfo, GpuWish, NodeInfo, QueueInfo, Taint, TaskShape, Toleration
from tests.scheduler import oracle
from tests.scheduler.builders import DEFAULT, GIB, node, shape, snapshot, task

QUEUE = QueueInfo(DEFAULT, max_running_per_node=2)
"""Of every task in the tables below."""

GPU_ONLY = Taint("gpu", "only", "NoSchedule")
LEAVING = Taint("leaving", "", "NoExecute")
SLOW = Taint("slow", "", "PreferNoSchedule")
A100 = GpuInfo(0, "nvidia", "NVIDIA A100-SXM4", 40 * GIB)
GTX = GpuInfo(1, "nvidia", "GeForce GTX 1650", 4 * GIB)
MI300 = GpuInfo(2, "amd", "Instinct MI300X", 192 * GIB)
MIXED = node(gpus=3, gpus_listed=(A100, GTX, MI300))

PASSES: list[tuple[str, NodeInfo, TaskShape]] = [
    ("ready", node(), shape()),
    ("cordoned", node(), shape()),
    ("drained", node(), shape()),
    ("quietHours", node(), shape()),
    ("charge", node(min_charge_percent=20), shape()),
    ("charge", node(on_battery=True, charge_percent=20, min_charge_percent=20), shape()),
    ("engine", node(engines=("swarm",)), shape()),
    ("engine", node(engines=("local", "swarm")), shape(engine="swarm")),
    ("nodeName", node("laptop"), shape(node_name="laptop")),
    ("nodeSelector", node(labels={"zone": "home", "arch": "arm64"}), shape(node_selector=(("arch", "arm64"), ("zone", "home")))),
    ("nodeSelector", node(labels={"zone": ""}), shape(node_selector=(("zone", ""),))),
    ("capabilities", node(capabilities=frozenset({"coding", "browser"})), shape(capabilities=frozenset({"coding"}))),
    ("regions", node(region="home"), shape(regions=frozenset({"home", "lab"}))),
    ("taints", node(), shape()),
    ("taints", node(taints=(SLOW,)), shape()),
    ("taints", node(taints=(GPU_ONLY,)), shape(tolerations=(Toleration("gpu", "only", "NoSchedule"),))),
    ("taints", node(taints=(GPU_ONLY,)), shape(tolerations=(Toleration("gpu", None, None),))),
    ("taints", node(taints=(GPU_ONLY, LEAVING)), shape(tolerations=(Toleration("", None, None),))),
    ("taints", node(taints=(LEAVING,)), shape(tolerations=(Toleration("leaving", "", "NoExecute"),))),
    ("cost", node(cost_per_hour=0.02), shape(max_cost_per_hour=0.02)),
    ("cost", node(), shape(max_cost_per_hour=0.0)),
    ("latency", node(latency_ms=50), shape(max_latency_ms=50)),
    ("battery", node(), shape(on_battery="never")),
    ("pressure", node(), shape()),
    ("gpu", node(gpus=2), shape(gpus=2)),
    ("gpu", MIXED, shape(gpus=3)),
    ("gpu", MIXED, shape(gpus=2, gpu=GpuWish("nvidia"))),
    ("gpu", MIXED, shape(gpus=1, gpu=GpuWish("", "a100"))),
    ("gpu", MIXED, shape(gpus=1, gpu=GpuWish("amd", "mi300", 192 * GIB))),
    ("maxTasks", node(max_tasks=2, tasks=1), shape()),
    ("maxTasks", node(max_tasks=None, tasks=10_000), shape()),
    ("maxRunningPerNode", node(tasks=9, queue_tasks={DEFAULT: 1, ("home", "night"): 8}), shape()),
    ("memory", node(memory=8 * GIB, requested=Amounts(0, 4 * GIB, 0)), shape(memory=4 * GIB)),
    ("memory", node(memory=8 * GIB, requested=Amounts(0, 2 * GIB, 0), foreign_bytes=2 * GIB), shape(memory=4 * GIB)),
    ("cpu", node(memory=8 * GIB, requested=Amounts(0, 8 * GIB, 0), foreign_bytes=GIB), shape(cpu=1)),
    ("cpu", node(cpu=4000, requested=Amounts(1000)), shape(cpu=3000)),
]

REFUSES: list[tuple[str, NodeInfo, TaskShape, str]] = [
    ("ready", node(ready=False), shape(), "1 not ready"),
    ("cordoned", node(unschedulable=True), shape(), "1 cordoned"),
    ("drained", node(drained=True), shape(), "1 drained"),
    (
        "quietHours",
        node(quiet=True, quiet_until=25200.0, quiet_words="Thu 07:00 CET"),
        shape(),
        "1 in quiet hours until Thu 07:00 CET",
    ),
    ("quietHours", node(quiet=True), shape(), "1 in quiet hours without an end"),
    (
        "charge",
        node(on_battery=True, charge_percent=12, min_charge_percent=20),
        shape(on_battery="allow"),
        "1 on battery with too little charge (12%, needs 20%)",
    ),
    ("engine", node(engines=("local",)), shape(engine="swarm"), "1 not reached by engine swarm"),
    ("engine", node(engines=()), shape(), "1 not reached by any engine"),
    ("nodeName", node("laptop"), shape(node_name="desktop"), "1 is not node desktop, which has not joined"),
    ("nodeSelector", node(labels={"zone": "attic"}), shape(node_selector=(("zone", "home"),)), "1 without label zone=home"),
    ("nodeSelector", node(), shape(node_selector=(("zone", ""),)), "1 without label zone="),
    (
        "nodeSelector",
        node(labels={"a": "1"}),
        shape(node_selector=(("a", "1"), ("b", "2"))),
        "1 without labels a=1,b=2",
    ),
    ("capabilities", node(), shape(capabilities=frozenset({"gpu"})), "1 lacks capability gpu"),
    (
        "capabilities",
        node(capabilities=frozenset({"coding"})),
        shape(capabilities=frozenset({"coding", "browser"})),
        "1 lacks one of the capabilities browser, coding",
    ),
    ("regions", node(region="attic"), shape(regions=frozenset({"home"})), "1 not in region home"),
    ("regions", node(), shape(regions=frozenset({"lab", "home"})), "1 not in regions home or lab"),
    ("taints", node(taints=(GPU_ONLY,)), shape(), "1 has taint gpu=only:NoSchedule that is not tolerated"),
    (
        "taints",
        node(taints=(GPU_ONLY, LEAVING, SLOW)),
        shape(tolerations=(Toleration("gpu", "other", None), Toleration("leaving", None, "NoSchedule"))),
        "1 has taints gpu=only:NoSchedule, leaving:NoExecute that are not tolerated",
    ),
    (
        "taints",
        node(taints=tuple(Taint(key, "", "NoSchedule") for key in "edcba")),
        shape(),
        "1 has taints a:NoSchedule, b:NoSchedule, c:NoSchedule and 2 more that are not tolerated",
    ),
    ("cost", node(cost_per_hour=1.25), shape(max_cost_per_hour=0.5), "1 costs more than $0.5 an hour (cheapest $1.25)"),
    ("latency", node(latency_ms=51), shape(max_latency_ms=50), "1 not known to be within 50 ms (nearest 51 ms)"),
    ("latency", node(), shape(max_latency_ms=50), "1 not known to be within 50 ms (unknown)"),
    ("battery", node(on_battery=True), shape(on_battery="never"), "1 on battery"),
    ("pressure", node(memory_pressure=True), shape(), "1 under memory pressure"),
    ("pressure", node(disk_pressure=True), shape(), "1 under disk pressure"),
    ("pressure", node(memory_pressure=True, disk_pressure=True), shape(), "1 under pressure (1 memory, 1 disk)"),
    (
        "gpu",
        MIXED,
        shape(gpus=2, gpu=GpuWish("nvidia", "", 8 * GIB)),
        "1 too few GPUs (needs 2 nvidia with 8Gi each, most free 1; never fits: it offers 1)",
    ),
    (
        "gpu",
        node(gpus=2, gpus_listed=(A100, GpuInfo(1, "nvidia", "NVIDIA A100-SXM4", 40 * GIB, held=True))),
        shape(gpus=2, gpu=GpuWish("", "a100")),
        "1 too few GPUs (needs 2 a100, most free 1)",
    ),
    ("gpu", node(gpus=2), shape(gpus=1, gpu=GpuWish("amd")), "1 too few GPUs (needs 1 amd, most free 0; never fits: it offers 0)"),
    ("gpu", node(gpus=2, requested=Amounts(0, 0, 1)), shape(gpus=2), "1 too few GPUs (needs 2, most free 1)"),
    ("gpu", node(), shape(gpus=1), "1 too few GPUs (needs 1, most free 0; never fits: it offers 0)"),
    ("maxTasks", node(max_tasks=2, tasks=2), shape(), "1 at its limit of 2 tasks"),
    ("maxTasks", node(max_tasks=1, tasks=3), shape(), "1 at its limit of 1 task"),
    ("maxTasks", node(max_tasks=0), shape(), "1 at its limit of 0 tasks"),
    (
        "maxRunningPerNode",
        node(tasks=2, queue_tasks={DEFAULT: 2}),
        shape(),
        "1 runs as many tasks of queue home/default as one may (maxRunningPerNode 2)",
    ),
    (
        "memory",
        node(memory=32 * GIB, requested=Amounts(0, 24 * GIB, 0)),
        shape(memory=16 * GIB),
        "1 too little memory (needs 16Gi, largest free 8Gi)",
    ),
    (
        "memory",
        node(memory=8 * GIB, requested=Amounts(0, GIB, 0)),
        shape(memory=16 * GIB),
        "1 too little memory (needs 16Gi, largest free 7Gi; never fits: it offers 8Gi)",
    ),
    (
        "memory",
        node(memory=8 * GIB, requested=Amounts(0, 1, 0)),
        shape(memory=8 * GIB),
        "1 too little memory (needs 8Gi, largest free 8589934591)",
    ),
    (
        "memory",
        node(memory=8 * GIB, requested=Amounts(0, 9 * GIB, 0)),
        shape(memory=GIB),
        "1 too little memory (needs 1Gi, largest free 0)",
    ),
    (
        "memory",
        node(memory=8 * GIB, requested=Amounts(0, 2 * GIB, 0), foreign_bytes=3 * GIB),
        shape(memory=4 * GIB),
        "1 too little memory (needs 4Gi, largest free 3Gi; 1 would fit but for at least 3Gi that others than tasks use)",
    ),
    (
        "memory",
        node(memory=8 * GIB, requested=Amounts(0, 6 * GIB, 0), foreign_bytes=GIB),
        shape(memory=4 * GIB),
        "1 too little memory (needs 4Gi, largest free 1Gi)",
    ),
    ("cpu", node(cpu=2000, requested=Amounts(500)), shape(cpu=2000), "1 too little CPU (needs 2, most free 1500m)"),
    ("cpu", node(cpu=0), shape(cpu=1), "1 too little CPU (needs 1m, most free 0; never fits: it offers 0)"),
]


@pytest.mark.parametrize(("name", "candidate", "wants"), PASSES)
def test_a_node_that_has_what_is_asked_for_passes(name: str, candidate: NodeInfo, wants: TaskShape) -> None:
    found = explain_task(snapshot([candidate], [], QUEUE), task(wants=wants))
    assert found.nodes[0].filters[name] is True
    assert found.nodes[0].refused_by is None
    assert [binding.node for binding in run_cycle(snapshot([candidate], [task(wants=wants)], QUEUE)).bindings] == [candidate.name]


@pytest.mark.parametrize(("name", "candidate", "wants", "words"), REFUSES)
def test_a_node_that_lacks_it_is_refused_in_words(name: str, candidate: NodeInfo, wants: TaskShape, words: str) -> None:
    found = explain_task(snapshot([candidate], [], QUEUE), task(wants=wants))
    assert found.nodes[0].filters[name] is False
    assert found.nodes[0].refused_by == name
    (refusal,) = run_cycle(snapshot([candidate], [task(wants=wants)], QUEUE)).refusals
    assert refusal.message.split("; node ")[0] == f"0/1 node fits: {words}"
    assert refusal.counts == {name: 1}
    assert refusal.reason == "NoNodeFits"


def test_every_filter_has_both_cases_and_a_name_of_its_own() -> None:
    names = [filter_.name for filter_ in (*STATIC_FILTERS, *ROOM_FILTERS)]
    assert len(set(names)) == len(names)
    assert {case[0] for case in PASSES} == set(names)
    assert {case[0] for case in REFUSES} == set(names)


def test_refusals_are_counted_in_the_documented_order() -> None:
    assert [filter_.name for filter_ in (*STATIC_FILTERS, *ROOM_FILTERS)] == [
        "ready", "cordoned", "drained", "quietHours", "charge", "engine", "nodeName", "nodeSelector", "regions", "taints",
        "capabilities", "cost", "latency", "battery", "pressure", "gpu", "maxTasks", "maxRunningPerNode", "memory", "cpu",
    ]  # fmt: skip


def test_a_node_that_several_filters_refuse_is_counted_at_the_first() -> None:
    hopeless = node(
        ready=False, unschedulable=True, engines=(), cpu=0, memory=0, max_tasks=0, taints=(GPU_ONLY,), on_battery=True,
        cost_per_hour=1.0, drained=True, quiet=True, charge_percent=1, min_charge_percent=2,
        memory_pressure=True, disk_pressure=True,
    )  # fmt: skip
    wants = shape(
        1, 1, 1, engine="nomad", node_name="x", node_selector=(("a", "b"),), capabilities=frozenset({"c"}),
        regions=frozenset({"r"}), on_battery="never", max_latency_ms=1, max_cost_per_hour=0.0,
    )  # fmt: skip
    (refusal,) = run_cycle(snapshot([hopeless], [task(wants=wants)])).refusals
    assert refusal.counts == {"ready": 1}
    assert not any(explain_task(snapshot([hopeless], []), task(wants=wants)).nodes[0].filters.values())


def test_of_several_nodes_in_quiet_hours_the_first_to_open_is_named() -> None:
    nodes = [
        node("a", quiet=True, quiet_until=200.0, quiet_words="Fri 07:00 CET"),
        node("b", quiet=True, quiet_until=100.0, quiet_words="Thu 22:00 UTC"),
        node("c", quiet=True),
    ]
    (refusal,) = run_cycle(snapshot(nodes, [task()])).refusals
    assert refusal.message == "0/3 nodes fit: 3 in quiet hours until Thu 22:00 UTC or later"


def test_of_several_nodes_with_too_little_charge_the_fullest_is_named() -> None:
    nodes = [node(name, on_battery=True, charge_percent=left, min_charge_percent=50) for name, left in (("a", 5), ("b", 30))]
    (refusal,) = run_cycle(snapshot(nodes, [task()])).refusals
    assert refusal.message == "0/2 nodes fit: 2 on battery with too little charge (the fullest 30%, needs 50%)"


@pytest.mark.parametrize("wants", [shape(cpu=100), shape(memory=1), shape(gpus=1)])
def test_an_over_committed_node_still_takes_what_asks_for_none_of_the_scarce_resource(wants: TaskShape) -> None:
    over = Amounts(
        *(0 if amount else 10**6 for amount in (wants.request.cpu_milli, wants.request.memory_bytes, wants.request.gpus))
    )
    result = run_cycle(snapshot([node(cpu=1000, memory=1000, gpus=1, requested=over)], [task(wants=wants)]))
    assert len(result.bindings) == 1


def test_labels_that_nobody_selects_on_do_not_matter() -> None:
    nodes = [node(f"n{number}", labels={"hostname": f"n{number}"}) for number in range(3)]
    result = run_cycle(snapshot(nodes, [task(wants=shape(node_selector=(("hostname", "n1"),))), task("other")]))
    assert {binding.task.key[1]: binding.node for binding in result.bindings} == {"other": "n0", "task": "n1"}


def test_words_about_several_nodes() -> None:
    nodes = [node("a", taints=(GPU_ONLY,)), node("b", taints=(GPU_ONLY, SLOW)), node("c", latency_ms=80), node("d")]
    (refusal,) = run_cycle(snapshot(nodes, [task(wants=shape(max_latency_ms=50))])).refusals
    assert refusal.message == (
        "0/4 nodes fit: 2 not known to be within 50 ms (nearest 80 ms, 1 unknown), "
        "2 have taint gpu=only:NoSchedule that is not tolerated"
    )
    assert refusal.counts == {"taints": 2, "latency": 2}
    nodes = [node("a", cost_per_hour=3.0, region="x"), node("b", cost_per_hour=0.75, region="x")]
    (refusal,) = run_cycle(snapshot(nodes, [task(wants=shape(max_cost_per_hour=0.1))])).refusals
    assert refusal.message == "0/2 nodes fit: 2 cost more than $0.1 an hour (cheapest $0.75)"


def test_tolerations_compare_as_in_kubernetes_in_every_combination() -> None:
    effects = ("NoSchedule", "PreferNoSchedule", "NoExecute")
    taints = list(itertools.starmap(Taint, itertools.product(["gpu", "slow"], ["", "only"], effects)))
    tolerations = list(itertools.starmap(Toleration, itertools.product(["", "gpu"], [None, "", "only"], [None, *effects])))
    verdicts = set()
    for first, second, taint in itertools.product(tolerations, tolerations[:3], taints):
        wants = shape(tolerations=(first, second))
        assert tolerates(wants, taint) is oracle.tolerates(wants, taint)
        verdicts.add(tolerates(shape(tolerations=(first,)), taint))
    assert verdicts == {True, False}
    assert tolerates(shape(tolerations=(Toleration("gpu", None, "NoExecute"),)), Taint("gpu", "", "NoExecute"))
    assert not tolerates(shape(tolerations=(Toleration("gpu", None, "NoExecute"),)), Taint("gpu", "", "NoSchedule"))
