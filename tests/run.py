"""The whole suite as pytest runs side by side, two at a time: `python -m tests.run [arguments of pytest]`. `make test` runs this.

Half of the suite computes, the other half mostly waits for Docker nodes; one after the other they would take the sum of both. Each
part writes its own log and JUnit file under `build/test`; its log is shown in one piece when it ends, so that logs are never mixed.
The exit status is 0 only when all parts ran and nothing failed. Interrupted, it lets those that run clean up first.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "test"
PROGRESS_S = 30.0
LOOK_S = 0.2
CLEAN_UP_S = 120.0
"""An interrupted part may take so long to stop what it has started; a second interrupt ends it at once."""
NO_TESTS = 5
"""pytest's exit status when the arguments select nothing."""
INTERRUPTED = 130

LANES = (
    {"product": ("-m", "(docker or lab) and e2e")},
    {"computes": ("-m", "not docker and not lab"), "nodes": ("-m", "(docker or lab) and not e2e")},
)
"""Lanes beside each other, in each one part after another: name of a part -> what selects its tests. The parts that need nodes have
a laboratory each. They take as long as they wait, so the short one runs when what computes has ended."""


class Stop(Exception):
    """Somebody wants it to end."""


@dataclass(frozen=True)
class Counts:
    """How many tests ended how, and for want of what they were skipped."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    lacking: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped, self.lacking + other.lacking
        )

    def __str__(self) -> str:
        words = f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"
        return words + "".join(f"\n  skipped for want of {tool}: {count}" for tool, count in sorted(self.lacking.items()))


def counts_of(junit: Path) -> Counts | None:
    """What a JUnit file tells; None when there is none that can be read, as after a crash."""
    try:
        cases = list(ET.parse(junit).getroot().iter("testcase"))
    except (OSError, ET.ParseError):
        return None
    # A test whose teardown fails as well is two cases, one of them without a failure of its own.
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skips = [skip for case in cases for skip in case.findall("skipped")]
    found = (re.search(r"\[missing: ([^\]]+)\]", f"{skip.get('message')} {skip.text}") for skip in skips)
    lacking = Counter(match[1] for match in found if match)
    return Counts(len(cases) - len(failed) - len(skips), len(failed), len(skips), lacking)


class Part:
    """One pytest run.

    Args:
        folder: takes `NAME.log` and `NAME.xml`.
    """

    def __init__(self, name: str, arguments: Sequence[str], folder: Path) -> None:
        self.name = name
        self.log, self.junit = folder / f"{name}.log", folder / f"{name}.xml"
        self.junit.unlink(missing_ok=True)
        self._began = time.monotonic()
        self.took_s = 0.0
        self.counts = Counts()
        command = [sys.executable, "-m", "pytest", "-q", f"--junit-xml={self.junit}", *arguments]
        with self.log.open("w") as output:
            # A session of its own: an interrupt at the terminal reaches this program alone, which passes it on once.
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def progress(self) -> str:
        """How far it is: pytest's own lines of dots, counted."""
        marks = "".join(re.findall(r"^([.FEsxX]+)(?: +\[ *\d+%\])?$", self.log.read_text(errors="replace"), re.MULTILINE))
        failed = marks.count("F") + marks.count("E")
        return f"{self.name}: {len(marks)} tests done" + (f", {failed} failed" if failed else "")

    @property
    def ok(self) -> bool:
        return self.process.returncode in (0, NO_TESTS)

    def ended(self) -> bool:
        """Is it over? Then its figures are there."""
        if self.process.poll() is None:
            return False
        self.took_s = time.monotonic() - self._began
        self.counts = counts_of(self.junit) or Counts()
        return True

    def interrupt(self) -> None:
        """Ask it to stop; pytest then tears its fixtures down."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """End it and what it has started in its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def report(self, to: TextIO) -> None:
        """The whole log, and how it ended."""
        print(f"===== {self.name} =====\n{self.log.read_text(errors='replace').rstrip()}", file=to)
        print(f"===== {self.line} =====", file=to, flush=True)

    @property
    def line(self) -> str:
        """One line about the end."""
        how = "" if self.ok else f", FAILED with exit status {self.process.returncode}"
        return f"{self.name}: {str(self.counts).partition(chr(10))[0]} in {self.took_s:.0f} s{how}"


class Lane:
    """Parts that run one after another.

    Attributes:
        begun: the parts so far, the last of which runs unless the lane is over.
    """

    def __init__(self, parts: Mapping[str, tuple[str, ...]], arguments: Sequence[str], folder: Path) -> None:
        self._left = deque(parts.items())
        self._arguments, self._folder = arguments, folder
        self.begun: list[Part] = []

    def begin(self) -> bool:
        """Start the next part, if there is one."""
        if not self._left:
            return False
        name, selection = self._left.popleft()
        self.begun.append(Part(name, (*selection, *self._arguments), self._folder))
        return True


def run(lanes: Sequence[Mapping[str, tuple[str, ...]]], arguments: Sequence[str], folder: Path, to: TextIO) -> int:
    """Run them all; 0 when all is well, 1 when something failed, 130 when it was interrupted."""
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    all_lanes = [Lane(parts, arguments, folder) for parts in lanes]
    with _stoppable():
        try:
            _go_through(all_lanes, to)
        except Stop:
            _stop([lane.begun[-1] for lane in all_lanes if lane.begun], to)
            return INTERRUPTED
        except BaseException:
            for part in (part for lane in all_lanes for part in lane.begun):
                part.kill()
            raise
    parts = [part for lane in all_lanes for part in lane.begun]
    total = sum((part.counts for part in parts), Counts())
    print("\n".join(part.line for part in parts), file=to)
    print(f"whole suite: {total}\nin {time.monotonic() - began:.0f} s", file=to, flush=True)
    nothing_ran = all(part.process.returncode == NO_TESTS for part in parts)
    return int(nothing_ran or not all(part.ok for part in parts))


def _go_through(lanes: Sequence[Lane], to: TextIO) -> None:
    left, told = [lane for lane in lanes if lane.begin()], time.monotonic()
    while left:
        time.sleep(LOOK_S)
        for lane in [lane for lane in left if lane.begun[-1].ended()]:
            lane.begun[-1].report(to)
            if not lane.begin():
                left.remove(lane)
        if left and time.monotonic() - told > PROGRESS_S:
            told = time.monotonic()
            print("; ".join(lane.begun[-1].progress for lane in left), file=to, flush=True)


def _stop(running: list[Part], to: TextIO) -> None:
    print("interrupted: what runs cleans up; interrupt once more to end it at once", file=to, flush=True)
    for part in running:
        part.interrupt()
    end = time.monotonic() + CLEAN_UP_S
    with contextlib.suppress(Stop):
        while time.monotonic() < end and not all(part.ended() for part in running):
            time.sleep(LOOK_S)
    for part in running:
        if not part.ended():
            part.kill()
            print(f"{part.name} did not end in time and was killed; see {part.log}", file=to, flush=True)


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP end it."""

    def stop(number: int, _frame: object) -> None:
        raise Stop(signal.Signals(number).name)

    # SIGINT as well: what is started in the background ignores it, and so would the parts, which are told to end by it.
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(run(LANES, sys.argv[1:], FOLDER, sys.stdout))
