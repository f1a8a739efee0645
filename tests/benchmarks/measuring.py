"""How the benchmarks measure, judge and tell: timings, goals, the table and the JSON.

Used by every benchmark of this folder; `python -m tests.benchmarks` prints and writes what they return. A figure is compared with
its goal for a person to read: no test fails by it.
"""

from __future__ import annotations

import gc
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy

FSYNCS = 20


@dataclass(frozen=True)
class Timing:
    """Seconds for `count` decisions."""

    count: int
    cpu_s: float
    wall_s: float

    @property
    def each_us(self) -> float:
        return 1e6 * self.cpu_s / self.count


def timed(decide: Callable[[], int]) -> Timing:
    """`decide` returns how many things it decided; above 0."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    count = decide()
    return Timing(count, time.process_time() - cpu, time.perf_counter() - wall)


def interleaved(first: Callable[[], int], second: Callable[[], int], pairs: int) -> tuple[list[Timing], list[Timing]]:
    """Both in turn, A/B/A/B, so that what else runs on the machine disturbs both."""
    firsts: list[Timing] = []
    seconds: list[Timing] = []
    for _ in range(pairs):
        firsts.append(timed(first))
        seconds.append(timed(second))
    return firsts, seconds


def ratios(above: Sequence[Timing], below: Sequence[Timing]) -> list[float]:
    """How many times more CPU time a decision of `above` takes, pair by pair."""
    return [a.each_us / b.each_us for a, b in zip(above, below, strict=True)]


@dataclass(frozen=True)
class Spread:
    """The median of some measurements, with the lowest and the highest."""

    median: float
    lowest: float
    highest: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values), len(values))


@dataclass(frozen=True)
class Goal:
    """What BENCHMARKS.md asks for: at least, or at most, so much."""

    side: Literal[">=", "<="]
    bound: float

    def reached_by(self, value: float) -> bool:
        return value >= self.bound if self.side == ">=" else value <= self.bound

    def verdict(self, value: float) -> str:
        if self.reached_by(value):
            return "reached"
        missing = abs(value - self.bound) / self.bound
        return f"missed by {missing:.0%}"


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        benchmark: "B1". what: for a person. unit: "x" for a ratio.
        goal: None: only told, nobody asked for it.
        beside: further facts, by name with their units: CPU and wall time, sizes.
    """

    benchmark: str
    what: str
    unit: str
    value: Spread
    goal: Goal | None = None
    beside: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        return self.goal.verdict(self.value.median) if self.goal is not None else ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"verdict": self.verdict}


@dataclass(frozen=True)
class Effort:
    """How much to measure.

    Attributes:
        part: every size is divided by it. pairs: interleaved measurements of each comparison; seeds: of each simulated run.
    """

    part: int = 1
    pairs: int = 5
    seeds: int = 5

    @classmethod
    def quick(cls) -> Effort:
        """To try the benchmarks themselves: figures of small sizes say little."""
        return cls(part=100, pairs=1, seeds=1)

    def sized(self, count: int, least: int = 1) -> int:
        return max(least, count // self.part)


def fsync_ms() -> Spread:
    """What making a few bytes durable costs in the folder for temporary files."""
    taken = []
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "probe").open("wb") as file:
        for number in range(FSYNCS):
            file.write(b"%d\n" % number)
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            taken.append(1e3 * (time.perf_counter() - began))
    return Spread.of(taken)


def machine() -> dict[str, Any]:
    """What the figures were measured on, and how busy it was."""
    return {
        "architecture": platform.machine(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "fsync_ms": asdict(fsync_ms()),
    }


def table(figures: Sequence[Figure]) -> str:
    """One line per figure; the goal stands beside it."""
    rows = [("", "what", "median", "lowest..highest", "goal", "")]
    for figure in figures:
        spread = f"{_short(figure.value.lowest)}..{_short(figure.value.highest)} of {figure.value.count}"
        goal = "" if figure.goal is None else f"{figure.goal.side} {_short(figure.goal.bound)}"
        rows.append((figure.benchmark, figure.what, f"{_short(figure.value.median)} {figure.unit}", spread, goal, figure.verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _short(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
