"""Many runs, over several processes. Called by the command line; the tests take `runs` from here."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator

from tests.simulation.story import Result, simulate
from tests.simulation.workload import Scope, names

PROGRESS_S = 10.0


def chosen(workload: str) -> list[str]:
    """The workload of that name, or all. Raises SystemExit: there is none of that name."""
    if workload and workload not in names():
        raise SystemExit(f"there is no workload {workload}; there are: {', '.join(names())}")
    return [workload] if workload else names()


def runs(seeds: range, workload: str = "") -> Iterator[tuple[int, str]]:
    """(seed, workload) of many runs: every seed once, the workloads in turn."""
    turn = chosen(workload)
    return ((seed, turn[seed % len(turn)]) for seed in seeds)


Job = tuple[int, str, tuple[str, ...], Scope | None]


def _one(job: Job) -> Result:
    seed, workload, without, scope = job
    return simulate(seed, workload, without=without, scope=scope)


def many(seeds: range, workload: str, without: tuple[str, ...], processes: int, scope: Scope | None = None) -> int:
    """Run them all, telling how it goes; 1 when a run was not clean."""
    jobs: list[Job] = [(*run, without, scope) for run in runs(seeds, workload)]
    began = told = time.monotonic()
    done, virtual_s, commits, operators = 0, 0.0, 0, 0
    dirty: Counter[str] = Counter()
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for result in pool.imap_unordered(_one, jobs, chunksize=4):
            done, virtual_s = done + 1, virtual_s + result.virtual_s
            commits, operators = commits + result.commits, operators + result.operators
            dirty[result.workload] += bool(result.failures)
            report(result)
            if time.monotonic() - told > PROGRESS_S:
                told = time.monotonic()
                print(f"{done}/{len(jobs)} runs, {dirty.total()} not clean, {done / (told - began):.1f}/s", flush=True)
    took_s = time.monotonic() - began
    print(
        f"{done} runs in {took_s:.0f} s ({done / took_s:.1f}/s): {virtual_s / 3600:.1f} virtual hours, {commits} writes, "
        f"{operators - done} restarts of the operator; {dirty.total()} runs not clean"
        + "".join(f"\n  {name}: {count}" for name, count in sorted(dirty.items()) if count)
    )
    return int(dirty.total() > 0)


def report(result: Result) -> None:
    """Say what was wrong and how to see it again; nothing of a clean run."""
    for failure in result.failures[:5]:
        print(f"{result.workload} seed {result.seed}: {failure}")
    if result.failures:
        print(f"  replay: {result.replay}", flush=True)
