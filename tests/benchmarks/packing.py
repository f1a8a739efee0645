"""B3: how long a fixed amount of work takes, against the least time that any scheduler could need, and against first in, first out
with every task on the least crowded node.

A simulated run over the real scheduler (`replay`): mixed sizes, durations with a long tail, at least twenty tasks for each place
where one can run at a time. The scheduler is not told durations. Every seed is one run of each kind; figures are over the seeds.
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
NODES = 20
TASKS = 5_000
LONGEST_S = 1200.0
SIZES = ((250, 0.5), (500, 1), (1000, 1), (1000, 4), (2000, 2), (2000, 8), (4000, 4), (4000, 16), (8000, 8))
"""Thousandths of a core and GiB: from a linter to a build."""
OFTEN = (20, 20, 20, 10, 10, 6, 6, 4, 4)

Work = tuple[list[NodeInfo], list[PendingTask], dict[TaskKey, float]]


def work(seed: int, tasks: int, nodes: int) -> Work:
    """Laptops, desktops and a few servers, and tasks in random order."""
    chance = random.Random(seed)
    kinds = [(8000, 16), (8000, 32), (16_000, 32), (16_000, 64), (32_000, 64)]
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
    durations = {task.key: min(LONGEST_S, 20.0 * chance.paretovariate(1.3)) for task in pending}
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
    tasks, nodes = effort.sized(TASKS, 200), effort.sized(NODES, 4)
    ours: dict[str, list[float]] = {"balanced": [], "pack": []}
    plain: list[float] = []
    filled: list[float] = []
    for seed in range(effort.seeds):
        cluster, pending, durations = work(seed, tasks, nodes)
        least = lower_bound_s(cluster, pending, durations)
        filled.append(tasks_per_slot(cluster, pending))
        plain.append(first_in_first_out_s(cluster, pending, durations) / least)
        for strategy, found in ours.items():
            queue = QueueInfo(QUEUE, strategy=strategy)  # type: ignore[arg-type]
            found.append(Replay(cluster, pending, durations, {QUEUE: queue}).run().makespan_s / least)
    sizes = f"{tasks:,} tasks, {nodes} nodes, {min(filled):.0f} tasks per slot"
    figures = [
        Figure("B3", f"makespan / lower bound ({sizes})", "x", Spread.of(ours["balanced"]), Goal("<=", 1.10), {"seeds": effort.seeds}),
        Figure(
            "B3",
            "makespan of first in, first out + spread / ours",
            "x",
            Spread.of([theirs / mine for theirs, mine in zip(plain, ours["balanced"], strict=True)]),
            Goal(">=", 1.2),
            {"first_in_first_out_over_lower_bound": Spread.of(plain).median},
        ),
        Figure("B3", "makespan / lower bound with the strategy pack", "x", Spread.of(ours["pack"])),
    ]
    return figures
