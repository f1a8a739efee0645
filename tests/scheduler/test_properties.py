"""What holds for every snapshot, checked against the oracle and by replaying decisions."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmtask.resources.fields import Strategy
from swarmtask.scheduler.cycle import explain_task, run_cycle
from swarmtask.scheduler.model import (
    Amounts,
    Binding,
    GpuInfo,
    GpuWish,
    LimitInfo,
    NodeInfo,
    PendingTask,
    QueueInfo,
    RunningTask,
    Snapshot,
    Taint,
    TaskShape,
    Toleration,
)
from tests.scheduler.crowds import crowded
from tests.scheduler.oracle import STEP, Oracle, rounded, single_gpus

CAPABILITIES = ("browser", "coding")
LIMITS = ("model/x", "provider/y")
QUEUES = (("home", "default"), ("home", "night"), ("lab", "default"))

# Few distinct values, so that ties, exact fits and full nodes are common; mostly ones of which several fit, so that much is placed.
GPUS = [0, 0, 1, 1, 2]
amounts = st.builds(
    Amounts,
    st.sampled_from([4000, 4000, 8000, 1000, 500, 1, 0, 2**60]),
    st.sampled_from([2**33, 2**33, 2**34, 2**31, 2**30, 1, 0, 2**60]),
    st.sampled_from([4, 2, 1, 0]),
)
wishes = st.builds(
    Amounts,
    st.sampled_from([500, 0, 1000, 1, 2000, 500, 100, 100, 4000, 2**60, 2**70]),
    st.sampled_from([2**30, 0, 2**31, 2**20, 1, 2**29, 2**28, 2**20, 2**33, 2**60, 2**63]),
    st.sampled_from(GPUS),
)
node_names = st.sampled_from(["a", "b", "c", "d", "e"])
labels = st.dictionaries(st.sampled_from(["zone", "arch"]), st.sampled_from(["", "x", "y"]))


REGIONS = ("", "home", "lab")
effects = st.sampled_from(["NoSchedule", "NoSchedule", "PreferNoSchedule", "PreferNoSchedule", "NoExecute"])
taints = st.builds(Taint, st.sampled_from(["gpu", "slow"]), st.sampled_from(["", "only"]), effects)
tolerations = st.builds(
    Toleration, st.sampled_from(["gpu", "slow", ""]), st.sampled_from([None, None, "", "only"]), st.one_of(st.none(), effects)
)
vendors, models = st.sampled_from(["nvidia", "nvidia", "amd", ""]), st.sampled_from(["Tesla A100", "Tesla A100", "MI300", ""])
gpu_wishes = st.one_of(
    st.just(GpuWish()),
    st.builds(
        GpuWish, st.sampled_from(["", "", "nvidia", "amd"]), st.sampled_from(["", "a1", "a1", "mi"]), st.sampled_from([0, 0, 2**33])
    ),
)


def some_of(fields: dict[str, st.SearchStrategy[object]]) -> st.SearchStrategy[dict[str, object]]:
    """Values for none of the fields, mostly, or for up to three."""
    some = st.lists(st.sampled_from(sorted(fields)), max_size=3, unique=True)
    chosen = st.one_of(st.just([]), st.just([]), some)
    return chosen.flatmap(lambda names: st.fixed_dictionaries({name: fields[name] for name in names}))


@st.composite
def listed_gpus(draw: st.DrawFn) -> tuple[GpuInfo, ...]:
    """As a node may list them: in any order, with gaps, held or not."""
    indices = draw(st.lists(st.integers(0, 5), unique=True, min_size=2, max_size=6))
    memory = st.sampled_from([0, 2**33, 2**35])
    return tuple(GpuInfo(index, draw(vendors), draw(models), draw(memory), draw(st.integers(0, 4)) == 0) for index in indices)


strategies: st.SearchStrategy[Strategy] = st.sampled_from(["balanced", "pack", "spread", "least-busy", "round-robin"])


quirks: dict[str, st.SearchStrategy[object]] = {
    "ready": st.just(value=False),
    "unschedulable": st.just(value=True),
    "engines": st.sampled_from([("local",), ("swarm", "local"), ()]),
    "requested": amounts,
    "queue_tasks": st.dictionaries(st.sampled_from(QUEUES), st.integers(1, 2), max_size=1),
    "max_tasks": st.integers(0, 9),
    "labels": labels,
    "capabilities": st.frozensets(st.sampled_from(CAPABILITIES)),
    "taints": st.lists(taints, min_size=1, max_size=2).map(tuple),
    "region": st.sampled_from(REGIONS),
    "cost_per_hour": st.sampled_from([0.02, 1.5, 10.0, 1e6]),
    "latency_ms": st.sampled_from([0.0, 1.5, 80.0, 500.0, 1e6]),
    "on_battery": st.just(value=True),
    "drained": st.just(value=True),
    "quiet": st.just(value=True),
    "charge_percent": st.sampled_from([0, 19, 20, 100]),
    "min_charge_percent": st.sampled_from([20, 100]),
    "foreign_bytes": st.sampled_from([1, 2**29, 2**31, 2**33, 2**60]),
    "memory_pressure": st.just(value=True),
    "disk_pressure": st.just(value=True),
}
"""What makes a node other than the rest. Few at a time, so that most nodes take most tasks."""


@st.composite
def nodes(draw: st.DrawFn, name: str) -> NodeInfo:
    allocatable = draw(amounts)
    gpus = draw(st.one_of(st.just(()), listed_gpus(), listed_gpus()))
    if gpus:
        # The count follows the list, some time later.
        allocatable = replace(allocatable, gpus=draw(st.sampled_from([len(gpus), len(gpus), len(gpus) + 1, len(gpus) - 1])))
    facts = {"ready": True, "unschedulable": False, "engines": ("local", "swarm"), **draw(some_of(quirks))}
    if gpus and "requested" not in facts:
        # Attempts hold what is marked, and sometimes one more of which nobody knows which it is.
        facts["requested"] = Amounts(gpus=sum(gpu.held for gpu in gpus) + draw(st.sampled_from([0, 1, 1])))
    return NodeInfo(
        name=name,
        allocatable=allocatable,
        tasks=draw(st.integers(0, 3)),
        turn=draw(st.integers(0, 4)),
        gpus=gpus,
        **facts,
    )


demands: dict[str, st.SearchStrategy[object]] = {
    "engine": st.sampled_from(["swarm", "swarm", "nomad"]),
    "node_name": node_names,
    "node_selector": labels.map(lambda wanted: tuple(sorted(wanted.items()))),
    "capabilities": st.frozensets(st.sampled_from(CAPABILITIES)),
    "strategy": st.one_of(strategies, st.just("smallest")),
    "limits": st.dictionaries(st.sampled_from(LIMITS), st.integers(1, 3), max_size=2).map(
        lambda taken: tuple(sorted(taken.items()))
    ),
    "avoid": st.frozensets(node_names),
    "tolerations": st.lists(tolerations, min_size=1, max_size=2).map(tuple),
    "regions": st.frozensets(st.sampled_from(REGIONS[1:])),
    "preferred_regions": st.frozensets(st.sampled_from(REGIONS[1:])),
    "max_latency_ms": st.sampled_from([1, 100, 10_000_000]),
    "max_cost_per_hour": st.sampled_from([0.0, 0.02, 5.0]),
    "on_battery": st.sampled_from(["allow", "never"]),
}
"""What a task may want beside room."""
shapes = st.builds(lambda request, gpu, some: TaskShape(request, gpu=gpu, **some), wishes, gpu_wishes, some_of(demands))
queue_weights = st.one_of(
    st.just((40, 30, 20, 10)), st.tuples(*[st.sampled_from([0, 1, 1000])] * 4).filter(any), st.just((0, 0, 0, 7))
)


holders = st.dictionaries(st.tuples(st.sampled_from(["home", "lab"]), st.sampled_from(["x", "y"])), st.integers(1, 2))
limits = st.builds(LimitInfo, st.integers(0, 8), st.sampled_from(QUEUES), holders)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    names = draw(st.lists(node_names, unique=True, min_size=draw(st.sampled_from([0, 3, 4, 5]))))
    known = draw(st.lists(shapes, min_size=1, max_size=6))
    count = draw(st.integers(0, 25))
    pending = [
        PendingTask(
            key=("home", f"task-{number}"),
            uid=f"{draw(st.integers(0, 9))}-{number}",
            queue=draw(st.sampled_from(QUEUES)),
            priority=draw(st.sampled_from([-1000, 0, 0, 1000])),
            queued_at=float(draw(st.integers(0, 3))),
            shape=draw(st.sampled_from(known)),
            front_at=draw(st.sampled_from([None] * 9 + [1.0, 2.0])),
            duration_s=draw(st.sampled_from([None, 5.0, 50.0, 1000.0])),
        )
        for number in range(count)
    ]
    queues = [
        QueueInfo(
            key,
            stopped=draw(st.integers(0, 9)) == 0,
            max_running=draw(st.one_of(st.none(), st.integers(0, 6))),
            max_running_per_node=draw(st.one_of(st.none(), st.none(), st.integers(0, 3))),
            running=draw(st.integers(0, 3)),
            strategy=draw(strategies),
            cohort=draw(st.sampled_from(["", "", "all", "other"])),
            weight=draw(st.sampled_from([1, 1, 2, 10])),
            requested=draw(st.one_of(st.just(Amounts()), wishes)),
            aging_s=draw(st.sampled_from([None, None, 1 / 1024, 1.0, 30.0])),
            weights=draw(queue_weights),
        )
        for key in QUEUES[: draw(st.integers(0, len(QUEUES)))]
    ]
    cluster = [draw(nodes(name)) for name in names]
    now = draw(st.sampled_from([0.0, 60.0, 20_000.0]))
    running = [
        RunningTask(
            ("lab", f"running-{number}"),
            f"r{number}",
            draw(st.sampled_from(QUEUES)),
            priority=0,
            node=draw(node_names),
            attempt=1,
            amounts=Amounts(
                draw(st.sampled_from([500, 1000, 4000])), draw(st.sampled_from([2**30, 2**33])), draw(st.sampled_from(GPUS))
            ),
            bound_at=0.0,
            ends_at=draw(st.sampled_from([None, now - 3, now + 10, now + 100, now + 2000])),
            stopping=draw(st.integers(0, 5)) == 0,
        )
        for number in range(draw(st.integers(0, 6)))
    ]
    return Snapshot(
        now,
        cluster,
        pending,
        {queue.key: queue for queue in queues},
        running,
        draw(st.dictionaries(st.sampled_from(LIMITS), limits)),
    )


@given(snapshots() | crowded())
@settings(max_examples=300)
def test_replayed_in_order_every_decision_is_the_oracles(snapshot: Snapshot) -> None:
    """No over-commitment, no better task passed over, no worse node taken, the right reason and counts for everyone else."""
    result = run_cycle(snapshot)
    bound = {binding.task.uid: binding for binding in result.bindings}
    refused = {refusal.task.uid: refusal for refusal in result.refusals}
    assert len(bound) == len(result.bindings)
    assert len(refused) == len(result.refusals)
    assert sorted([*bound, *refused]) == sorted(task.uid for task in snapshot.pending)

    oracle = Oracle.of(snapshot)
    order = Oracle.order(snapshot)
    engines = {node.name: node.engines for node in snapshot.nodes}
    parked: dict[tuple[object, ...], dict[str, int]] = {}
    waiting, started = list(order), []
    while waiting:
        task = oracle.next(waiting)
        binding = bound.get(task.uid)
        closed = oracle.closed(task)
        if binding is not None:
            assert closed is None
            scores = {node: score for node, score in oracle.scores(task).items() if oracle.may_take(task, node)}
            assert binding.node in scores
            steps, total = scores[binding.node]
            assert binding.score == pytest.approx(total * STEP**steps, rel=1e-9, abs=0.0)
            assert steps == min(taken for taken, _ in scores.values())
            assert total >= max(rival for taken, rival in scores.values() if taken == steps) - 1e-9
            assert binding.gpus == oracle.gpus(task, binding.node)
            assert 0.0 <= binding.score <= 1.0
            assert binding.engine == (task.shape.engine or engines[binding.node][0])
            oracle.take_spare(task, binding.node)
            oracle.place(task, binding.node)
            started.append(binding)
            waiting.remove(task)
            continue
        # What stands still now stands still for the rest of the cycle, and with it all that is like it.
        line = (task.queue, oracle.levels[task.uid], task.shape, rounded(task.duration_s))
        alike = [
            other for other in waiting if (other.queue, oracle.levels[other.uid], other.shape, rounded(other.duration_s)) == line
        ]
        waiting = [other for other in waiting if other not in alike]
        for other in alike:
            refusal = refused[other.uid]
            if refusal.reason == "NoNodeFits":
                # The counts are those of the moment when the class was parked.
                assert closed in (None, "NoNodeFits")
                assert not oracle.scores(other)
                queue = snapshot.queues.get(other.queue) or QueueInfo(other.queue)
                share = other.queue if queue.max_running_per_node is not None else None
                strategy = other.shape.strategy or queue.strategy
                weights = queue.weights if strategy == "balanced" else None
                counts = parked.setdefault((other.shape, strategy, weights, share), oracle.refusals(other))
                assert dict(refusal.counts) == counts
                assert sum(counts.values()) == len(snapshot.nodes)
                assert refusal.message.startswith(f"0/{len(snapshot.nodes)} " if snapshot.nodes else "no nodes have joined yet")
            elif closed is None:
                # It fits, but only where that would hold up somebody who comes before it.
                scores = oracle.scores(other)
                assert refusal.reason == "Reserved"
                assert scores
                assert not any(oracle.may_take(other, node) for node in scores)
                assert dict(refusal.counts) == oracle.refusals(other) | {"reserved": len(scores)}
            else:
                assert refusal.reason == closed
                assert not refusal.counts
        oracle.refuse(task, closed or ("Reserved" if oracle.scores(task) else "NoNodeFits"))
    assert started == list(result.bindings)


@given(snapshots() | crowded(preempts=True))
@settings(max_examples=80)
def test_nothing_is_over_committed(snapshot: Snapshot) -> None:
    """The sums alone, without the oracle."""
    result = run_cycle(snapshot)
    for node in snapshot.nodes:
        here = [binding.task for binding in result.bindings if binding.node == node.name]
        for name in ("cpu_milli", "memory_bytes", "gpus"):
            asked = sum(getattr(task.shape.request, name) for task in here)
            others = node.foreign_bytes if name == "memory_bytes" else 0
            assert not asked or getattr(node.requested, name) + asked + others <= getattr(node.allocatable, name)
        assert not here or not (node.memory_pressure or node.disk_pressure)
        offered = {gpu.index for gpu in single_gpus(node)}
        given = [index for binding in result.bindings if binding.node == node.name for index in binding.gpus]
        assert len(given) == sum(task.shape.request.gpus for task in here)
        assert len(set(given)) == len(given), "a GPU was given twice"
        assert offered.issuperset(given)
        assert not {gpu.index for gpu in node.gpus if gpu.held}.intersection(given)
        assert not given or node.requested.gpus + len(given) <= len(offered)
        assert not here or node.max_tasks is None or node.tasks + len(here) <= node.max_tasks
        for queue in snapshot.queues.values():
            ours = sum(task.queue == queue.key for task in here)
            most = queue.max_running_per_node
            assert not ours or most is None or node.queue_tasks.get(queue.key, 0) + ours <= most
    for queue in snapshot.queues.values():
        started = sum(binding.task.queue == queue.key for binding in result.bindings)
        assert not started or not queue.stopped
        assert not started or queue.max_running is None or queue.running + started <= queue.max_running
    for name, limit in snapshot.limits.items():
        taken = sum(dict(binding.task.shape.limits).get(name, 0) for binding in result.bindings)
        assert not taken or sum(limit.holders.values()) + taken <= limit.most


@given(snapshots() | crowded(preempts=True))
@settings(max_examples=80)
def test_positions_number_the_waiting_tasks_of_each_queue_in_order(snapshot: Snapshot) -> None:
    refused = {refusal.task.uid: refusal for refusal in run_cycle(snapshot).refusals}
    for queue in {task.queue for task in snapshot.pending}:
        waiting = [task for task in Oracle.order(snapshot) if task.queue == queue and task.uid in refused]
        assert [refused[task.uid].position for task in waiting] == list(range(1, len(waiting) + 1))


@given(snapshots(), st.randoms(use_true_random=False))
@settings(max_examples=80)
def test_the_order_of_the_input_does_not_matter(snapshot: Snapshot, shuffler: random.Random) -> None:
    mixed_nodes, mixed_pending, mixed_queues = list(snapshot.nodes), list(snapshot.pending), list(snapshot.queues.items())
    mixed_running = list(snapshot.running)
    for values in (mixed_nodes, mixed_pending, mixed_queues, mixed_running):
        shuffler.shuffle(values)
    mixed = replace(snapshot, nodes=mixed_nodes, pending=mixed_pending, queues=dict(mixed_queues), running=mixed_running)
    assert run_cycle(mixed) == run_cycle(snapshot)


@given(snapshots() | crowded(preempts=True))
@settings(max_examples=80)
def test_the_explanation_is_the_decision(snapshot: Snapshot) -> None:
    result = run_cycle(snapshot)
    decided = {decision.task.uid: decision for decision in (*result.bindings, *result.refusals)}
    for task in snapshot.pending[:5]:
        explanation = explain_task(snapshot, task)
        assert explanation.outcome == decided[task.uid]
        verdicts = {verdict.node: verdict for verdict in explanation.nodes}
        assert verdicts.keys() == {node.name for node in snapshot.nodes}
        for verdict in explanation.nodes:
            assert 0.0 <= verdict.score <= 1.0
            assert all(0.0 <= share <= 1.0 for share in verdict.scores.values())
            assert (verdict.refused_by is None) == all(verdict.filters.values())
        outcome = explanation.outcome
        if isinstance(outcome, Binding):
            assert verdicts[outcome.node].score == outcome.score
            best = min(
                (verdict for verdict in explanation.nodes if verdict.refused_by is None),
                key=lambda verdict: (-verdict.score, verdict.node),
            )
            assert best.node == outcome.node
        elif outcome.reason == "NoNodeFits" or outcome.counts:
            refused_by = [verdict.refused_by for verdict in explanation.nodes]
            assert {name: refused_by.count(name) for name in set(refused_by)} == dict(outcome.counts)
        assert explanation.level == Oracle.of(snapshot).levels[task.uid]


@given(snapshots() | crowded(preempts=True))
@settings(max_examples=80)
def test_a_cycle_leaves_nothing_for_a_second_one(snapshot: Snapshot) -> None:
    """With the bindings assumed, the tasks that were refused fit nowhere, or where something is kept for others."""
    result = run_cycle(snapshot)
    oracle = Oracle.of(snapshot)
    for binding in result.bindings:
        oracle.place(binding.task, binding.node)
    for refusal in result.refusals:
        fits = any(oracle.refused_by(node, refusal.task) is None for node in oracle.nodes)
        # Who may not use what is kept for another may have others stopped elsewhere: then that is the reason.
        kept = refusal.reason == "Reserved" or (refusal.reason == "Preempting" and "reserved" in refusal.counts)
        assert oracle.closed(refusal.task) is not None or not fits or kept
