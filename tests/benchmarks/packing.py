"""B3: how long a fixed amount of work takes, against the least time that any scheduler could need, and against first in, first out
with every task on the least crowded node.

A simulated run over the real scheduler (`replay`): mixed sizes and durations, at least twenty tasks for each place where one can
run at a time. The scheduler is not told durations. Every seed is one run of each kind; figures are over the seeds.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Mapping, Sequence

from swarmtask.scheduler.model import Amounts, NodeInfo, PendingTask, QueueInfo, TaskKey, TaskShape
from tests.benchmarks.measuring import Effort, Figure, Goal, Spread
from tests.benchmarks.replay import Replay

GIB = 2**30
QUEUE = ("home", "default")
NODES = 10
TASKS = 2_000
SIZES = ((250, 0.5), (500, 1), (1000, 1), (1000, 4), (2000, 2), (2000, 8), (4000, 4), (4000, 16), (8000, 8))
"""Thousandths of a core and GiB: from a linter to a build."""
OFTEN = (20, 20, 20, 10, 10, 6, 6, 4, 4)

Work = tuple[list[NodeInfo], list[PendingTask], dict[TaskKey, float]]


def work(seed: int, tasks: int, nodes: int, *, long_tail: bool = False) -> Work:
    """Laptops and desktops, and tasks in random order.

    Args:
        long_tail: most tasks are short, a few take very long; otherwise from ten seconds to two minutes, each as likely.
    """
    chance = random.Random(seed)
    kinds = [(4000, 8), (8000, 16), (8000, 32), (16_000, 32), (16_000, 64)]
    cluster = [
        NodeInfo(f"node-{number:03}", True, False, ("swarm",), Amounts(cpu, memory * GIB))
        for number in range(nodes)
        for cpu, memory in [kinds[number % len(kinds)]]
    ]
    known = [TaskShape(Amounts(cpu, int(memory * GIB))) for cpu, memory in SIZES]
    pending = [
        PendingTask(("home", f"task-{number}"), f"uid-{number:06}", QUEUE, 0, float(number), chance.choices(known, OFTEN)[0])
        for number in range(tasks)
    ]
    durations = {
        task.key: min(1200.0, 20.0 * chance.paretovariate(1.3)) if long_tail else chance.uniform(10.0, 120.0) for task in pending
    }
    return cluster, pending, durations


def lower_bound_s(nodes: Sequence[NodeInfo], pending: Sequence[PendingTask], durations: Mapping[TaskKey, float]) -> float:
    """No scheduler needs less: the work divided by what there is, of each resource, and the longest task."""
    bounds = [max(durations.values())]
    for name in ("cpu_milli", "memory_bytes"):
        there = sum(getattr(node.allocatable, name) for node in nodes)
        bounds.append(sum(getattr(task.shape.request, name) * durations[task.key] for task in pending) / there)
    return max(bounds)


def tasks_per_slot(nodes: Sequence[NodeInfo], pending: Sequence[PendingTask]) -> float:
    """How many times the cluster is filled: tasks, divided by how many of the mean size run at a time."""
    fills = []
    for name in ("cpu_milli", "memory_bytes"):
        there = sum(getattr(node.allocatable, name) for node in nodes)
        fills.append(sum(getattr(task.shape.request, name) for task in pending) / there)
    return max(fills)


def first_in_first_out_s(nodes: Sequence[NodeInfo], pending: Sequence[PendingTask], durations: Mapping[TaskKey, float]) -> float:
    """Strictly in order, nobody overtakes; each task on the node that fits and runs the fewest. Returns the makespan."""
    free = {node.name: node.allocatable for node in nodes}
    count = dict.fromkeys(free, 0)
    ends: list[tuple[float, str, Amounts]] = []
    now = 0.0
    for task in pending:
        request = task.shape.request
        while not (fitting := [name for name in free if request.fits_in(free[name])]):
            now, name, amounts = heapq.heappop(ends)
            free[name] += amounts
            count[name] -= 1
        chosen = min(fitting, key=lambda name: (count[name], name))
        free[chosen] -= request
        count[chosen] += 1
        heapq.heappush(ends, (now + durations[task.key], chosen, request))
    return max(end for end, _, _ in ends)


def makespan(effort: Effort) -> list[Figure]:
    """B3."""
    tasks, nodes = effort.sized(TASKS, 200), effort.sized(NODES, 5)
    sizes = f"{tasks:,} tasks, {nodes} nodes, {tasks_per_slot(*work(0, tasks, nodes)[:2]):.0f} per slot"
    even, even_plain = _runs(effort.seeds, tasks, nodes, long_tail=False)
    tail, tail_plain = _runs(effort.seeds, tasks, nodes, long_tail=True)
    beside = {"seeds": effort.seeds, "first_in_first_out_over_lower_bound": Spread.of(even_plain).median}
    better, better_tail = ("makespan of first in, first out + spread / ours", "the same with a long tail of durations")
    return [
        Figure("B3", f"makespan / lower bound ({sizes})", "x", Spread.of(even), Goal("<=", 1.10), beside),
        Figure("B3", better, "x", Spread.of(_each(even_plain, even)), Goal(">=", 1.2)),
        Figure("B3", "makespan / lower bound with a long tail of durations", "x", Spread.of(tail)),
        Figure("B3", better_tail, "x", Spread.of(_each(tail_plain, tail))),
    ]


def _runs(seeds: int, tasks: int, nodes: int, *, long_tail: bool) -> tuple[list[float], list[float]]:
    """Makespans over the lower bound, ours and those of first in, first out, by seed."""
    ours, plain = [], []
    for seed in range(seeds):
        cluster, pending, durations = work(seed, tasks, nodes, long_tail=long_tail)
        least = lower_bound_s(cluster, pending, durations)
        plain.append(first_in_first_out_s(cluster, pending, durations) / least)
        ours.append(Replay(cluster, pending, durations, {QUEUE: QueueInfo(QUEUE)}).run().makespan_s / least)
    return ours, plain


def _each(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]
