"""B11: a simulated run of a million tasks on ten thousand nodes, and how time grows from a tenth of it.

The real scheduler on an event queue (`replay`): no API, no engine, no operator. Each size runs in a process of its own, so that the
memory of one is not counted for the other; making the tasks is counted in memory and not in time.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

from swarmtask.scheduler.model import Amounts, NodeInfo, PendingTask
from tests.benchmarks.kernel import GIB, QUEUE, shapes
from tests.benchmarks.measuring import Effort, Figure, Goal, Spread
from tests.benchmarks.replay import Replay

MIB = 2**20
GAP_S = 10.0
"""Of simulated time; the operator's is far shorter, and a cycle of such a cluster takes about as long as this makes it wait."""


def run(tasks: int, nodes: int) -> dict[str, float]:
    """One run in this process."""
    chance = random.Random(1)
    cluster = [
        NodeInfo(
            f"node-{number:05}",
            True,
            False,
            ("swarm",),
            Amounts(chance.choice([4000, 8000, 16_000]), chance.choice([16, 32]) * GIB),
        )
        for number in range(nodes)
    ]
    known = shapes()
    pending = [
        PendingTask(
            ("home", f"task-{number}"),
            f"uid-{number:07}",
            QUEUE,
            chance.choice([0, 0, 0, 1000]),
            float(number),
            chance.choice(known),
        )
        for number in range(tasks)
    ]
    durations = {task.key: chance.uniform(30.0, 300.0) for task in pending}
    wall, cpu = time.perf_counter(), time.process_time()
    outcome = Replay(cluster, pending, durations, gap_s=GAP_S).run()
    return {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "peak_mib": _peak_mib(),
        "cycles": outcome.cycles,
        "placed": outcome.placed,
        "simulated_s": outcome.makespan_s,
    }


def _peak_mib() -> float:
    """VmHWM and not `ru_maxrss`: a process inherits that of its parent, and the benchmarks before this one leave 3 GB there."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def measured(tasks: int, nodes: int) -> dict[str, float]:
    """One run in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.growth", str(tasks), str(nodes)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def simulated(effort: Effort) -> list[Figure]:
    """B11. Interleaved; one round takes two minutes."""
    nodes, large, small = effort.sized(10_000, 100), effort.sized(1_000_000, 10_000), effort.sized(100_000, 1_000)
    tenth = max(1, nodes // 10)
    rounds = [(measured(small, nodes), measured(small, tenth), measured(large, nodes)) for _ in range(max(1, effort.pairs))]
    beside = dict(zip(("small", "small_and_few_nodes", "large"), rounds[0], strict=True))
    what = f"{nodes:,} nodes, {large:,} tasks"
    return [
        Figure(
            "B11",
            f"CPU seconds of a simulated run of {what}",
            "s",
            Spread.of([big["cpu_s"] for *_, big in rounds]),
            Goal("<=", 60),
            beside,
        ),
        Figure(
            "B11",
            "peak memory of the same",
            "MiB",
            Spread.of([big["peak_mib"] for *_, big in rounds]),
            Goal("<=", 1.5 * 1000**3 / MIB),
        ),
        Figure(
            "B11",
            f"time with {large:,} tasks / with {small:,}",
            "x",
            Spread.of([big["cpu_s"] / little["cpu_s"] for little, _, big in rounds]),
            Goal("<=", 11),
        ),
        # The little run finds an empty cluster and never a full one. This one is as full as the large one all the time.
        Figure(
            "B11",
            f"the same, with {tenth:,} nodes for {small:,} tasks",
            "x",
            Spread.of([big["cpu_s"] / little["cpu_s"] for _, little, big in rounds]),
        ),
    ]


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]), int(sys.argv[2]))))
