"""The scheduling cycle by itself: B1 (against a plain per-node loop) and the flatness of B2.

    python -m tests.benchmarks.kernel [--pairs 5] [--sample 40] [--json FILE] [--quick]

Prints a table on stderr and JSON on stdout (or into FILE). Two things are compared in one run on one machine, interleaved; figures
are medians with the lowest and the highest. Times are CPU time of this process, so that what else runs on the machine disturbs
less; wall time is recorded beside it.

The plain loop is what a scheduler without columns does: for every task, ask every node with the plain rules of the tests' oracle,
score those that fit, take the best. It is measured on a sample of the tasks and costs the same for each.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy

from swarmtask.scheduler.cycle import run_cycle
from swarmtask.scheduler.model import Amounts, NodeInfo, PendingTask, Snapshot, TaskShape
from tests.scheduler.oracle import Oracle

GIB = 2**30
QUEUE = ("home", "default")


@dataclass(frozen=True)
class Timing:
    """Seconds for `count` decisions."""

    count: int
    cpu_s: float
    wall_s: float

    @property
    def each_us(self) -> float:
        return 1e6 * self.cpu_s / self.count


def workload(tasks: int, nodes: int, *, shapes: int = 64, seed: int = 1, roomy: bool = True) -> Snapshot:
    """Laptops and servers of twelve sizes, and tasks of `shapes` shapes, mixed in priority and age.

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
    known = [TaskShape(Amounts(250 * (1 + number % 4), 2**28 * (1 + number // 4))) for number in range(shapes)]
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
    return Snapshot(0.0, cluster, pending, {})


def timed(decide: Callable[[], int]) -> Timing:
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    count = decide()
    return Timing(count, time.process_time() - cpu, time.perf_counter() - wall)


def placements(snapshot: Snapshot) -> Callable[[], int]:
    return lambda: len(run_cycle(snapshot).bindings)


def refusals(snapshot: Snapshot) -> Callable[[], int]:
    return lambda: len(run_cycle(snapshot).refusals)


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


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def compare(first: Callable[[], int], second: Callable[[], int], pairs: int) -> dict[str, dict[str, float]]:
    """Both, interleaved: microseconds of CPU per decision, decisions per second, and the ratio second / first of each pair."""
    firsts: list[Timing] = []
    seconds: list[Timing] = []
    for _ in range(pairs):
        firsts.append(timed(first))
        seconds.append(timed(second))
    return {
        "first_us": spread([timing.each_us for timing in firsts]),
        "second_us": spread([timing.each_us for timing in seconds]),
        "first_per_cpu_s": spread([timing.count / timing.cpu_s for timing in firsts]),
        "first_per_wall_s": spread([timing.count / timing.wall_s for timing in firsts]),
        "ratio": spread([b.each_us / a.each_us for a, b in zip(firsts, seconds, strict=True)]),
    }


def measure(pairs: int, sample: int, quick: bool) -> dict[str, object]:
    part = 10 if quick else 1

    def sized(tasks: int, nodes: int) -> Snapshot:
        return workload(tasks // part, nodes // part)

    results: dict[str, object] = {
        "machine": f"{platform.machine()}, Python {platform.python_version()}, numpy {numpy.__version__}",
        "sizes divided by": part,
    }
    large = sized(50_000, 5_000)
    results["B1 placement: cycle, plain loop (50,000 tasks of 64 shapes, 5,000 nodes)"] = compare(
        placements(large), plain_loop(large, sample), pairs
    )
    few_nodes, many_nodes = sized(20_000, 1_000), sized(20_000, 10_000)
    results["B2 placement: 1,000 nodes, 10,000 nodes"] = compare(placements(few_nodes), placements(many_nodes), pairs)
    short, long = sized(10_000, 1_000), sized(1_000_000, 1_000)
    results["B2 placement: 10,000 queued, 1,000,000 queued"] = compare(placements(short), placements(long), pairs)
    # One node: nearly all of them wait, which is what most cycles of a long queue see.
    short, long = (workload(count // part, 1, roomy=False) for count in (10_000, 1_000_000))
    results["B2 task that goes on waiting: 10,000 queued, 1,000,000 queued"] = compare(refusals(short), refusals(long), pairs)
    return results


def table(results: dict[str, object]) -> str:
    lines = [f"{'':74} {'first':>10} {'second':>10} {'ratio':>8}  spread of the ratio"]
    for name, result in results.items():
        if isinstance(result, dict):
            ratio = result["ratio"]
            lines.append(
                f"{name:74} {result['first_us']['median']:8.1f}us {result['second_us']['median']:8.1f}us {ratio['median']:8.2f}"
                f"  {ratio['lowest']:.2f}..{ratio['highest']:.2f}; first: {result['first_per_cpu_s']['median']:,.0f} per CPU second"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the scheduling cycle.")
    parser.add_argument("--pairs", type=int, default=5, help="interleaved measurements of each comparison (default 5)")
    parser.add_argument("--sample", type=int, default=40, help="tasks that the plain loop places (default 40)")
    parser.add_argument("--json", type=Path, help="write the figures into this file instead of stdout")
    parser.add_argument("--quick", action="store_true", help="a tenth of the size, to try the benchmark itself")
    options = parser.parse_args()
    results = measure(options.pairs, options.sample, options.quick)
    print(table(results), file=sys.stderr)
    text = json.dumps(results, indent=2)
    if options.json:
        options.json.write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
