"""Each filter: whom it refuses, whom it lets pass, and in which words."""

from __future__ import annotations

import pytest

from swarmtask.scheduler.cycle import explain_task, run_cycle
from swarmtask.scheduler.filters import ROOM_FILTERS, STATIC_FILTERS
from swarmtask.scheduler.model import Amounts, NodeInfo, QueueInfo, TaskShape
from tests.scheduler.builders import DEFAULT, GIB, node, shape, snapshot, task

QUEUE = QueueInfo(DEFAULT, max_running_per_node=2)
"""Of every task in the tables below."""

PASSES: list[tuple[str, NodeInfo, TaskShape]] = [
    ("ready", node(), shape()),
    ("cordoned", node(), shape()),
    ("engine", node(engines=("swarm",)), shape()),
    ("engine", node(engines=("local", "swarm")), shape(engine="swarm")),
    ("nodeName", node("laptop"), shape(node_name="laptop")),
    ("nodeSelector", node(labels={"zone": "home", "arch": "arm64"}), shape(node_selector=(("arch", "arm64"), ("zone", "home")))),
    ("nodeSelector", node(labels={"zone": ""}), shape(node_selector=(("zone", ""),))),
    ("capabilities", node(capabilities=frozenset({"coding", "browser"})), shape(capabilities=frozenset({"coding"}))),
    ("gpu", node(gpus=2), shape(gpus=2)),
    ("maxTasks", node(max_tasks=2, tasks=1), shape()),
    ("maxTasks", node(max_tasks=None, tasks=10_000), shape()),
    ("maxRunningPerNode", node(tasks=9, queue_tasks={DEFAULT: 1, ("home", "night"): 8}), shape()),
    ("memory", node(memory=8 * GIB, requested=Amounts(0, 4 * GIB, 0)), shape(memory=4 * GIB)),
    ("cpu", node(cpu=4000, requested=Amounts(1000)), shape(cpu=3000)),
]

REFUSES: list[tuple[str, NodeInfo, TaskShape, str]] = [
    ("ready", node(ready=False), shape(), "1 not ready"),
    ("cordoned", node(unschedulable=True), shape(), "1 cordoned"),
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
        "ready", "cordoned", "engine", "nodeName", "nodeSelector", "capabilities", "gpu", "maxTasks",
        "maxRunningPerNode", "memory", "cpu",
    ]  # fmt: skip


def test_a_node_that_several_filters_refuse_is_counted_at_the_first() -> None:
    hopeless = node(ready=False, unschedulable=True, engines=(), cpu=0, memory=0, max_tasks=0)
    wants = shape(1, 1, 1, engine="nomad", node_name="x", node_selector=(("a", "b"),), capabilities=frozenset({"c"}))
    (refusal,) = run_cycle(snapshot([hopeless], [task(wants=wants)])).refusals
    assert refusal.counts == {"ready": 1}
    assert not any(explain_task(snapshot([hopeless], []), task(wants=wants)).nodes[0].filters.values())


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
