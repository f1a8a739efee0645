"""Many runs, over several processes. Called by the command line; the tests take `runs` from here."""

from __future__ import annotations

import gc
import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from swarmtask.controllers import crashpoints
from tests.simulation.chances import KINDS
from tests.simulation.story import Result, simulate
from tests.simulation.workload import Scope, names

PROGRESS_S = 10.0
CHUNK = 8
"""Runs that a process takes at a time."""
MOST_CPU_S = 300.0
"""Of one run, which takes 0.1 on average."""
INTERRUPTED = 130
"""The exit status of what Ctrl-C has ended."""


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


class Endless(KeyboardInterrupt):
    """One run has had its CPU time. Of this kind, because an event loop lets it through as nothing else."""


def _one(job: Job, most_cpu_s: float = MOST_CPU_S) -> Result:
    """Run one, for so long and no longer: a run that goes round within one step would hold back all that come after it."""
    seed, workload, without, scope = job
    late: list[float] = []

    def stop(*_: object) -> None:
        late.append(most_cpu_s)
        raise Endless

    before = signal.signal(signal.SIGPROF, stop)
    # CPU time, so that a busy machine fails no run; again and again, because whoever has no end may catch everything too.
    signal.setitimer(signal.ITIMER_PROF, most_cpu_s, 1.0)
    try:
        return simulate(seed, workload, without=without, scope=scope)
    except BaseException:  # what clears up after it may fail in any way, and be stopped again
        if not late:
            raise
        failure = f"BUG the run does not end: still busy after {most_cpu_s:g} s of CPU time"
        return Result(seed, workload, (failure,), "", steps=0, virtual_s=0.0, commits=0, operators=1, asked=scope)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)


@dataclass
class Sums:
    """What many runs came to."""

    done: int = 0
    virtual_s: float = 0.0
    commits: int = 0
    operators: int = 0
    dirty: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    died_at: Counter[str] = field(default_factory=Counter)

    def add(self, result: Result) -> None:
        self.done += 1
        self.virtual_s += result.virtual_s
        self.commits += result.commits
        self.operators += result.operators
        self.dirty[result.workload] += bool(result.failures)
        self.faults += result.faults
        self.died_at += result.died_at

    def __str__(self) -> str:
        lines = [
            f"{self.virtual_s / 3600:.1f} virtual hours, {self.commits} writes, {self.operators - self.done} restarts of operators",
            "faults: " + ", ".join(f"{kind} {self.faults[kind]}" for kind in KINDS),
            f"killed at {len(self.died_at)} of {len(crashpoints.POINTS)} crash points: "
            + ", ".join(f"{point} {self.died_at[point]}" for point in crashpoints.POINTS),
            f"{self.dirty.total()} runs not clean",
        ]
        return "\n".join([*lines, *(f"  {name}: {count}" for name, count in sorted(self.dirty.items()) if count)])


def many(seeds: range, workload: str, without: tuple[str, ...], processes: int, scope: Scope | None = None) -> int:
    """Run them all, telling how it goes; 1 when a run was not clean, 130 when interrupted (then too it tells what was found)."""
    total, jobs = len(seeds), ((*run, without, scope) for run in runs(seeds, workload))
    sums = Sums()
    began = told = time.monotonic()
    interrupted = False
    with multiprocessing.get_context("spawn").Pool(processes, _undisturbed) as pool:
        try:
            # In order, so that after an interruption it is known from where to go on.
            for result in pool.imap(_one, jobs, chunksize=CHUNK):
                sums.add(result)
                report(result)
                if time.monotonic() - told > PROGRESS_S:
                    told = time.monotonic()
                    speed = sums.done / (told - began)
                    left = f"{speed:.1f}/s, {(total - sums.done) / speed / 60:.0f} min left"
                    print(f"{sums.done}/{total} runs, {sums.dirty.total()} not clean, {left}", flush=True)
        except KeyboardInterrupt:
            interrupted = True
    took_s = time.monotonic() - began
    print(f"{sums.done} runs in {took_s:.0f} s ({sums.done / took_s:.1f}/s): {sums}", flush=True)
    if interrupted:
        print(f"interrupted; to go on: --from {seeds.start + sums.done} --seeds {total - sums.done}", flush=True)
        return INTERRUPTED
    return int(sums.dirty.total() > 0)


def _undisturbed() -> None:
    """Ctrl-C reaches every process of the terminal; only the first one answers it, and ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # what was imported stays: the collections between runs need not look at it


def report(result: Result) -> None:
    """Say what was wrong and how to see it again; nothing of a clean run."""
    for failure in result.failures[:5]:
        print(f"{result.workload} seed {result.seed}: {failure}")
    if result.failures:
        print(f"  replay: {result.replay}", flush=True)
