"""What engines and nodes show: no overlap (I2), nothing left over (I6), no orphans, nothing foreign touched (I7)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tests.checker.objects import TaskRules
from tests.checker.violation import Violation, ViolationLog, owner_digits

_OPEN = datetime.max.replace(tzinfo=UTC)


@dataclass
class _Run:
    """One life of one container."""

    node: str
    attempt_id: str
    begin: datetime
    end: datetime = _OPEN

    def __str__(self) -> str:
        end = "now" if self.end == _OPEN else self.end.isoformat()
        return f"{self.attempt_id} on {self.node} from {self.begin.isoformat()} to {end}"


class WorkloadRules:
    """Keeps container lives and the engines' lists."""

    def __init__(self, log: ViolationLog, tasks: TaskRules, cleanup: timedelta, orphan: timedelta) -> None:
        self._log = log
        self._tasks = tasks
        self._cleanup = cleanup
        self._orphan = orphan
        self._runs: dict[str, list[_Run]] = defaultdict(list)
        self._asleep: dict[str, list[list[datetime]]] = defaultdict(list)
        self._orphan_since: dict[tuple[str, str], datetime] = {}
        self._foreign: dict[str, dict[str, str]] = {}

    def started(self, node: str, attempt_id: str, at: datetime) -> None:
        owner = owner_digits(attempt_id)
        if owner is None:
            self._log.add("I4", attempt_id, at, f"a container on {node} has a name that no attempt can have")
            return
        self._runs[owner[0]].append(_Run(node, attempt_id, at))

    def stopped(self, node: str, attempt_id: str, at: datetime) -> None:
        owner = owner_digits(attempt_id)
        if owner is None:
            return
        open_runs = [
            run for run in self._runs[owner[0]] if run.attempt_id == attempt_id and run.node == node and run.end == _OPEN
        ]  # fmt: skip
        for run in open_runs:
            run.end = max(at, run.begin)

    def slept(self, node: str, at: datetime) -> None:
        spans = self._asleep[node]
        if not spans or spans[-1][1] != _OPEN:
            spans.append([at, _OPEN])

    def woke(self, node: str, at: datetime) -> None:
        for span in self._asleep[node]:
            span[1] = min(span[1], max(at, span[0]))

    def _together(self, run: _Run, other: _Run) -> bool:
        """Whether both could act at one moment: neither was asleep with its machine."""
        begin, end = max(run.begin, other.begin), min(run.end, other.end)
        for node in (run.node, other.node):
            for since, until in self._asleep.get(node, ()):
                if since <= begin < until:
                    begin = until  # spans come in the order of time; one that begins later leaves something before it
        return begin < end

    def overlaps(self) -> list[Violation]:
        """I2, computed from the lives of the containers of each task."""
        found = []
        for digits, runs in self._runs.items():
            ordered = sorted(runs, key=lambda run: (run.begin, run.end))
            seen: set[str] = set()
            for index, run in enumerate(ordered):
                if run.attempt_id in seen:
                    found.append(
                        Violation("I2", self._tasks.subject(digits), run.begin, f"{run.attempt_id} ran a second time: {run}")
                    )
                seen.add(run.attempt_id)
                for other in ordered[:index]:
                    if run.begin < other.end and run.attempt_id != other.attempt_id and self._together(run, other):
                        found.append(Violation("I2", self._tasks.subject(digits), run.begin, f"{run} overlaps {other}"))
        return found

    def listed(self, engine: str, names: Collection[str], at: datetime) -> None:
        for name in names:
            gone_at, orphaned = self._ownership(name)
            if gone_at is not None and at - gone_at > self._cleanup:
                self._log.add("I6", name, at, f"{engine} still lists it; its task is gone since {gone_at.isoformat()}")
            if orphaned:
                since = self._orphan_since.setdefault((engine, name), at)
                if at - since > self._orphan:
                    self._log.add("I7", name, at, f"{engine} lists it without an owner since {since.isoformat()}")
            else:
                self._orphan_since.pop((engine, name), None)
        for key in [key for key in self._orphan_since if key[0] == engine and key[1] not in names]:
            del self._orphan_since[key]

    def foreign_listed(self, engine: str, objects: Mapping[str, str], at: datetime) -> None:
        baseline = self._foreign.setdefault(engine, dict(objects))
        for name, mark in baseline.items():
            if name not in objects:
                self._log.add("I7", name, at, f"{engine} no longer has it, and it was never ours")
            elif objects[name] != mark:
                self._log.add("I7", name, at, f"changed on {engine} from {mark} to {objects[name]}, and it was never ours")

    def _ownership(self, name: str) -> tuple[datetime | None, bool]:
        """(when its task went, whether nobody owns it)."""
        parsed = owner_digits(name)
        owner = self._tasks.owner(parsed[0]) if parsed is not None else None
        if parsed is None or owner is None:
            return None, True
        task, deleted_at = owner
        if deleted_at is not None:
            return deleted_at, False
        return None, task is None or parsed[1] > task.status.attempt
