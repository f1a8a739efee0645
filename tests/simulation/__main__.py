"""`python -m tests.simulation`: replay one seed, or run many.

    python -m tests.simulation --seed 17 --workload steady [--trace] [--without node,clock]
    python -m tests.simulation --seeds 10000 [--from 0] [--workload steady] [--jobs 2]
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator

from tests.simulation.story import Result, simulate
from tests.simulation.workload import names

PROGRESS_S = 10.0


def main() -> int:
    """Exit status 1 when a run was not clean."""
    options = _options()
    without = tuple(filter(None, options.without.split(",")))
    if options.seed is not None:
        found = [
            simulate(options.seed, name, without=without, trace=print if options.trace else None)
            for name in _chosen(options.workload)
        ]
        for result in found:
            _report(result)
            print(f"{result.workload} seed {result.seed}: fingerprint {result.fingerprint}, {result.virtual_s:.0f} virtual s")
        return int(any(result.failures for result in found))
    return _many(options, without)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description="Runs of the real operator on virtual time.")
    parser.add_argument("--seed", type=int, help="replay this one")
    parser.add_argument("--seeds", type=int, default=100, help="run so many")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first of them")
    parser.add_argument("--workload", default="", help=f"one of: {', '.join(names())}; all in turn when not given")
    parser.add_argument("--without", default="", help="kinds of faults to leave out, separated by commas, for example node,clock")
    parser.add_argument("--trace", action="store_true", help="print everything that happens")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    return parser.parse_args()


def _chosen(workload: str) -> list[str]:
    if workload and workload not in names():
        raise SystemExit(f"there is no workload {workload}; there are: {', '.join(names())}")
    return [workload] if workload else names()


def runs(seeds: range, workload: str = "") -> Iterator[tuple[int, str]]:
    """(seed, workload) of many runs: every seed once, the workloads in turn."""
    chosen = _chosen(workload)
    return ((seed, chosen[seed % len(chosen)]) for seed in seeds)


def _one(job: tuple[int, str, tuple[str, ...]]) -> Result:
    return simulate(job[0], job[1], without=job[2])


def _many(options: argparse.Namespace, without: tuple[str, ...]) -> int:
    jobs = [(*run, without) for run in runs(range(options.first, options.first + options.seeds), options.workload)]
    began = told = time.monotonic()
    done, virtual_s, commits, operators = 0, 0.0, 0, 0
    dirty: Counter[str] = Counter()
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for result in pool.imap_unordered(_one, jobs, chunksize=4):
            done, virtual_s = done + 1, virtual_s + result.virtual_s
            commits, operators = commits + result.commits, operators + result.operators
            dirty[result.workload] += bool(result.failures)
            _report(result)
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


def _report(result: Result) -> None:
    for failure in result.failures[:5]:
        print(f"{result.workload} seed {result.seed}: {failure}")
    if result.failures:
        print(f"  replay: {result.replay}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
