"""The sentence that tells a person why a task waits."""

from __future__ import annotations

import pytest

from swarmtask.scheduler.cycle import explain_task, run_cycle
from swarmtask.scheduler.model import Amounts, Binding, NodeInfo, PendingTask, QueueInfo, Refusal
from tests.scheduler.builders import DEFAULT, GIB, node, shape, snapshot, task


def message(nodes: list[NodeInfo], pending: PendingTask, *queues: QueueInfo) -> str:
    (refusal,) = run_cycle(snapshot(nodes, [pending], *queues)).refusals
    return refusal.message


def test_an_empty_cluster() -> None:
    assert message([], task()) == "no nodes have joined yet"


def test_the_most_frequent_obstacle_comes_first() -> None:
    nodes = [node("a", unschedulable=True), node("b", memory=int(7.4 * GIB)), node("c", memory=2 * GIB)]
    assert message(nodes, task(wants=shape(memory=16 * GIB))) == (
        "0/3 nodes fit: 2 too little memory (needs 16Gi, largest free 7.4Gi; never fits: largest of them offers 7.4Gi), 1 cordoned"
    )


def test_waiting_helps_and_says_so_by_silence() -> None:
    nodes = [node(name, memory=32 * GIB, requested=Amounts(0, 26 * GIB, 0)) for name in "ab"]
    assert message(nodes, task(wants=shape(memory=16 * GIB))) == (
        "0/2 nodes fit: 2 too little memory (needs 16Gi, largest free 6Gi); node a is kept for it"
        " (until 10Gi memory come free there)"
    )


def test_largest_means_largest_of_the_nodes_that_were_refused_for_it() -> None:
    nodes = [node("cordoned", memory=64 * GIB, unschedulable=True), node("small", memory=8 * GIB)]
    assert message(nodes, task(wants=shape(memory=16 * GIB))) == (
        "0/2 nodes fit: 1 too little memory (needs 16Gi, largest free 8Gi; never fits: it offers 8Gi), 1 cordoned"
    )


def test_plurals() -> None:
    wants = shape(capabilities=frozenset({"gpu"}))
    assert message([node("a"), node("b")], task(wants=wants)) == "0/2 nodes fit: 2 lack capability gpu"
    assert message([node("a")], task(wants=wants)) == "0/1 node fits: 1 lacks capability gpu"
    wants = shape(node_name="c")
    assert message([node("a"), node("b")], task(wants=wants)) == "0/2 nodes fit: 2 are not node c, which has not joined"
    full = [node("a", max_tasks=2, tasks=2), node("b", max_tasks=1, tasks=1)]
    assert message(full, task()) == (
        "0/2 nodes fit: 2 at their limits of 3 tasks together; node a is kept for it (until the place of a task comes free there)"
    )


def test_a_pinned_node_that_is_there_but_down() -> None:
    nodes = [node("a"), node("b", ready=False)]
    assert message(nodes, task(wants=shape(node_name="b"))) == "0/2 nodes fit: 1 is not node b, 1 not ready"


@pytest.mark.parametrize(
    ("queue", "reason", "words"),
    [
        (
            QueueInfo(DEFAULT, stopped=True),
            "QueueStopped",
            "queue home/default is stopped; set its spec.stopped to false to start its tasks",
        ),
        (
            QueueInfo(DEFAULT, max_running=1, running=1),
            "QueueFull",
            "queue home/default runs as many tasks as it may (maxRunning 1)",
        ),
        (QueueInfo(DEFAULT, max_running=0), "QueueFull", "queue home/default runs as many tasks as it may (maxRunning 0)"),
        (
            QueueInfo(DEFAULT, max_running=2, running=7),
            "QueueFull",
            "queue home/default runs as many tasks as it may (maxRunning 2)",
        ),
    ],
)
def test_a_queue_that_starts_nothing(queue: QueueInfo, reason: str, words: str) -> None:
    (refusal,) = run_cycle(snapshot([node()], [task()], queue)).refusals
    assert (refusal.reason, refusal.message, dict(refusal.counts), refusal.position) == (reason, words, {}, 1)


def test_all_tasks_of_a_parked_class_share_counts_and_message() -> None:
    small, large = shape(cpu=1000), shape(cpu=3000)
    pending = [task("first", small), task("second", large), task("third", large, at=1), task("fourth", large, priority=-5)]
    result = run_cycle(snapshot([node(cpu=3500)], pending))
    assert [binding.task.key[1] for binding in result.bindings] == ["first"]
    words = "0/1 node fits: 1 too little CPU (needs 3, most free 2500m)"
    kept = "; node laptop is kept for it (until 500m CPU come free there)"
    assert [refusal.message for refusal in result.refusals] == [words + kept, words, words]
    assert {tuple(refusal.counts.items()) for refusal in result.refusals} == {(("cpu", 1),)}


def test_explain_shows_the_nodes_as_they_were_when_the_task_was_decided() -> None:
    pending = [task("first", shape(cpu=3000)), task("second", shape(cpu=500), at=1), task("third", shape(cpu=3000), at=2)]
    cluster = snapshot([node("a", cpu=4000), node("b", cpu=1000)], pending)
    first, second, third = (explain_task(cluster, wanted) for wanted in pending)
    assert isinstance(first.outcome, Binding)
    assert (first.outcome.node, first.outcome.score) == ("a", first.nodes[0].score)
    assert [verdict.refused_by for verdict in first.nodes] == [None, "cpu"]
    assert isinstance(second.outcome, Binding)
    assert second.outcome.node == max(second.nodes, key=lambda verdict: verdict.score).node == "b"
    assert isinstance(third.outcome, Refusal)
    assert [verdict.refused_by for verdict in third.nodes] == ["cpu", "cpu"]


def test_explain_adds_up_and_takes_a_task_that_is_not_queued() -> None:
    found = explain_task(
        snapshot([node("a", requested=Amounts(1000)), node("b")], [], QueueInfo(DEFAULT)), task(wants=shape(cpu=1000))
    )
    assert isinstance(found.outcome, Binding)
    assert found.outcome.node == "b"
    for verdict in found.nodes:
        assert sum(verdict.scores.values()) == pytest.approx(verdict.score)
    assert found.nodes[0].scores.keys() == {"capability", "latency", "cost", "load", "fewTasks"}


def test_explain_of_a_closed_queue_still_judges_the_nodes() -> None:
    found = explain_task(snapshot([node()], [], QueueInfo(DEFAULT, stopped=True)), task())
    assert isinstance(found.outcome, Refusal)
    assert found.outcome.reason == "QueueStopped"
    assert [verdict.refused_by for verdict in found.nodes] == [None]


def test_explain_of_a_task_that_starts_is_not_about_those_behind_it() -> None:
    pending = [task(f"t{number}", shape(cpu=1000), at=float(number)) for number in range(6)]
    for cluster in (snapshot([node()], pending, QueueInfo(DEFAULT, max_running=2)), snapshot([node()], pending)):
        found = explain_task(cluster, pending[0])
        assert isinstance(found.outcome, Binding)
        assert found.outcome.score == found.nodes[0].score > 0.7
