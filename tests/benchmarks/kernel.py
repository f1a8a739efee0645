"""B1 and B2: the scheduling cycle by itself, against a plain per-node loop, and flat in nodes and in tasks that wait.

Times are CPU time of this process, so that what else runs on the machine disturbs less; wall time is recorded beside it.

The plain loop is what a scheduler without columns does: for every task, ask every node with the plain rules of the tests' oracle,
score those that fit, take the best. It is measured on a sample of the tasks and costs the same for each.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from swarmtask.scheduler.backlog import Backlog
from swarmtask.scheduler.cycle import run_cycle
from swarmtask.scheduler.model import Amounts, NodeInfo, PendingTask, QueueInfo, Snapshot, TaskShape
from tests.benchmarks.measuring import Effort, Figure, Goal, Spread, Timing, interleaved, ratios
from tests.scheduler.oracle import Oracle

GIB = 2**30
QUEUE = ("home", "default")
OPEN = {QUEUE: QueueInfo(QUEUE)}
SHAPES = 64
SAMPLE = 40
"""Tasks that the plain loop places."""
CYCLES = 20
"""Cycles of a long queue are measured together: one is short."""


def shapes(count: int = SHAPES) -> list[TaskShape]:
    """From a quarter of a core and 256 MiB upwards."""
    return [TaskShape(Amounts(250 * (1 + number % 4), 2**28 * (1 + number // 4))) for number in range(count)]


def workload(tasks: int, nodes: int, *, seed: int = 1, roomy: bool = True) -> Snapshot:
    """Laptops and servers of twelve sizes, and tasks of 64 shapes, mixed in priority and age.

    Args:
        roomy: whether every task finds room; otherwise most of them wait.
    """
    chance = random.Random(seed)
    scale = max(1, -(-tasks // (4 * nodes))) if roomy else 1
    cluster = [
        NodeInfo(
            name=f"node-{number:05}",
            ready=True,
            unschedulable=False,
            engines=("swarm",),
            allocatable=Amounts(scale * chance.choice([4000, 8000, 16_000, 32_000]), scale * chance.choice([16, 32, 64]) * GIB),
            max_tasks=scale * 40,
            labels={"hostname": f"node-{number:05}", "arch": chance.choice(["amd64", "arm64"])},
        )
        for number in range(nodes)
    ]
    known = shapes()
    pending = [
        PendingTask(
            key=("home", f"task-{number}"),
            uid=f"uid-{number:07}",
            queue=QUEUE,
            priority=chance.choice([0, 0, 0, 1000]),
            queued_at=float(chance.randrange(100_000)),
            shape=chance.choice(known),
        )
        for number in range(tasks)
    ]
    return Snapshot(0.0, cluster, pending, OPEN)


def placements(snapshot: Snapshot) -> Callable[[], int]:
    return lambda: len(run_cycle(snapshot).bindings)


def plain_loop(snapshot: Snapshot, sample: int) -> Callable[[], int]:
    """Places the first `sample` tasks one by one."""

    def decide() -> int:
        oracle = Oracle.of(snapshot)
        for task in first:
            scores = oracle.scores(task)
            oracle.place(task, min(scores, key=lambda name: (scores[name][0], -scores[name][1])))
        return len(first)

    first = Oracle.order(snapshot)[:sample]
    return decide


def full_cycles(snapshot: Snapshot) -> Callable[[], int]:
    """Cycles in which nothing starts because everything is full: what most cycles of a long queue see. The queue is kept in order
    from change to change, as the operator keeps it; between two cycles one task leaves and one comes."""
    backlog = Backlog(snapshot.pending)
    names = iter(range(10**9))
    first = snapshot.pending[0]

    def decide() -> int:
        for _ in range(CYCLES):
            name = f"late-{next(names)}"
            late = PendingTask(("home", name), name, QUEUE, 0, 1e6, first.shape)
            backlog.put(late)
            cut = backlog.cut(Amounts(), None)
            cut.settle(run_cycle(Snapshot(0.0, snapshot.nodes, cut.tasks, OPEN, cut=cut)))
            backlog.drop(late.key)
        return CYCLES

    return decide


def placement(effort: Effort) -> list[Figure]:
    """B1."""
    snapshot = workload(effort.sized(50_000, 100), effort.sized(5_000, 10))
    ours, plain = interleaved(placements(snapshot), plain_loop(snapshot, SAMPLE), effort.pairs)
    sizes = f"{len(snapshot.pending):,} tasks of {SHAPES} shapes, {len(snapshot.nodes):,} nodes"
    return [
        Figure(
            "B1",
            f"cycle against a plain loop ({sizes})",
            "x",
            Spread.of(ratios(plain, ours)),
            Goal(">=", 100),
            _beside(ours, plain),
        ),
        Figure(
            "B1",
            "placements per CPU second, queue and bookkeeping included",
            "/s",
            Spread.of([timing.count / timing.cpu_s for timing in ours]),
            Goal(">=", 50_000),
            {"per_wall_second": Spread.of([timing.count / timing.wall_s for timing in ours]).median},
        ),
    ]


def flatness(effort: Effort) -> list[Figure]:
    """B2."""
    pairs, figures = effort.pairs, []

    def compare(what: str, small: Callable[[], int], large: Callable[[], int]) -> None:
        few, many = interleaved(small, large, pairs)
        figures.append(Figure("B2", what, "x", Spread.of(ratios(many, few)), Goal("<=", 1.3), _beside(few, many)))

    tasks = effort.sized(20_000, 100)
    few_nodes, many_nodes = effort.sized(1_000, 10), effort.sized(10_000, 100)
    compare(
        f"time per placement with {many_nodes:,} nodes / with {few_nodes:,}",
        placements(workload(tasks, few_nodes)),
        placements(workload(tasks, many_nodes)),
    )
    short, long = effort.sized(10_000, 100), effort.sized(1_000_000, 10_000)
    compare(
        f"time per placement with {long:,} queued / with {short:,} (1 cycle places all)",
        placements(workload(short, few_nodes)),
        placements(workload(long, few_nodes)),
    )
    compare(
        f"a cycle in which nothing can start, with {long:,} waiting / with {short:,}",
        full_cycles(full(workload(short, 10, roomy=False))),
        full_cycles(full(workload(long, 10, roomy=False))),
    )
    return figures


def full(snapshot: Snapshot) -> Snapshot:
    """The same, with nothing free on any node."""
    nodes = [
        NodeInfo(node.name, True, False, node.engines, node.allocatable, requested=node.allocatable, tasks=1)
        for node in snapshot.nodes
    ]
    return Snapshot(0.0, nodes, snapshot.pending, OPEN)


def _beside(first: list[Timing], second: list[Timing]) -> dict[str, object]:
    return {
        name: {
            "cpu_us_each": Spread.of([timing.each_us for timing in timings]).median,
            "wall_us_each": Spread.of([1e6 * timing.wall_s / timing.count for timing in timings]).median,
        }
        for name, timings in (("first", first), ("second", second))
    }
