"""What runs on this node and how it ended: Docker's list, the kernel's figures and the records on disk, brought together.

Called by `watch` (one thread: `look`), by the reader of Docker's events (`heard`), by the fence (`mark`, `fenced_known`) and by the
agent's loop (`told`). Waits for Docker and the disk outside its lock, so that the fence never waits for either. Stops nothing.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from swarmtask.nodeagent.causes import CLOSE, KILLED, Evidence, Mark, below_limit, cause, is_unmet
from swarmtask.nodeagent.cgroups import Cgroup, Cgroups, Usage
from swarmtask.nodeagent.containers import ENDED, Details, Listed, details, event_nanos, listed, signal_number
from swarmtask.nodeagent.daemon import Daemon
from swarmtask.nodeagent.early_figures import OLD_S
from swarmtask.nodeagent.eviction import Candidate
from swarmtask.nodeagent.records import Reason, Record, Records

logger = logging.getLogger(__name__)

MOST = 256
"""Of `status.attempts`, and of ended attempts on the disk."""
KEPT = timedelta(hours=1)
"""An ended attempt is told for so long though its container is gone; counted from when the API took it first."""
YOUNG = timedelta(minutes=1)
MOST_HEARD = 1024
DOUBTS = 30
"""A container that Docker lists as running though its cgroup is gone is asked about again in so many looks."""
MOST_MOMENTS = 16
FATAL = frozenset({"9", "15"})
"""Signals, as Docker's events number them, that mean an end whatever the container's own stop signal is. All others may mean
anything: a JVM that gets QUIT prints its threads and goes on."""
USUAL_GRACE = timedelta(seconds=10)
"""Docker's own, where the task's is not known."""
ENDING = timedelta(seconds=10)
"""Who still runs so long after its grace period does not end of that signal any more."""


@dataclass(slots=True)
class _Running:
    """A container that runs, with what was seen of it. `doubts`: looks in which it may turn out to have ended."""

    item: Listed
    details: Details
    cgroup: Cgroup | None
    usage: Usage | None = None
    doubts: int = 0


@dataclass(slots=True)
class _Heard:
    """Of one container, from Docker's events and from looks while it ran. `counted_at`: when a look has counted a kill last."""

    ooms: list[datetime] = field(default_factory=list)
    counted_at: datetime | None = None
    oom_kills: int = 0
    own_ooms: int = 0
    by_host: bool = False
    signals: dict[str, datetime] = field(default_factory=dict)
    exit_code: int | None = None
    died_at: datetime | None = None


class Attempts:
    """See the module.

    Args:
        now: wall time, UTC.
        early: figures of a container from its first seconds, which a look may have missed.
        changed: called, from whichever thread, when `told` says something else of some attempt than before.
    """

    def __init__(
        self,
        daemon: Daemon,
        cgroups: Cgroups,
        records: Records,
        *,
        now: Callable[[], datetime],
        early: Callable[[str], Usage | None] = lambda container_id: None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._daemon, self._cgroups, self._disk, self._now = daemon, cgroups, records, now
        self.changed, self._early = changed, early
        self._lock = threading.Lock()
        self._records = records.load()
        self._running: dict[str, _Running] = {}
        self._heard: OrderedDict[str, _Heard] = OrderedDict()
        self._marks: dict[str, Mark] = {}
        self._forgotten: set[str] = set()
        self._delivered: dict[str, datetime] = {}
        self._listed = False
        self._began = now()

    # --- for the agent's loop ---

    def told(self) -> list[dict[str, Any]]:
        """`status.attempts`: all that run, then the newest that ended; at most MOST."""
        with self._lock:
            records = list(self._records.values())
        first = datetime.min.replace(tzinfo=UTC)
        records.sort(key=lambda record: (not record.exited, record.recorded_at or record.started_at or first), reverse=True)
        return [record.told() for record in records[:MOST]]

    def delivered(self, attempts: Iterable[str]) -> None:
        """The API has taken that these have ended."""
        with self._lock:
            now = self._now()
            self._delivered = {name: self._delivered.get(name, now) for name in attempts}

    # --- for the reader of events ---

    def heard(self, event: Mapping[str, Any]) -> None:
        """An event of Docker; hints only: the next look asks Docker itself."""
        actor = event.get("Actor")
        actor = actor if isinstance(actor, dict) else {}
        container_id, nanos = actor.get("ID"), event_nanos(event)
        if not isinstance(container_id, str):
            return
        at = self._now() if nanos is None else datetime.fromtimestamp(nanos / 1e9, UTC)
        attributes = actor.get("Attributes")
        code = str(attributes.get("exitCode", "")) if isinstance(attributes, dict) else ""
        with self._lock:
            match event.get("Action"):
                case "oom":
                    self._about(container_id).ooms = [*self._about(container_id).ooms, at][-MOST_MOMENTS:]
                case "kill" if isinstance(attributes, dict):
                    about = self._about(container_id)
                    about.signals = dict([*about.signals.items(), (str(attributes.get("signal"))[:3], at)][-MOST_MOMENTS:])
                case "die":
                    about = self._about(container_id)
                    about.exit_code, about.died_at = int(code) if code.isdecimal() and len(code) < 10 else None, at

    def _about(self, container_id: str) -> _Heard:
        about = self._heard.setdefault(container_id, _Heard())
        self._heard.move_to_end(container_id)
        while len(self._heard) > MOST_HEARD:
            self._heard.popitem(last=False)
        return about

    # --- for those who stop ---

    def mark(self, container_ids: Iterable[str], reason: Reason, message: str) -> None:
        """These are being stopped by the node. In memory: the next look brings it to the disk. The first reason stays."""
        with self._lock:
            at = self._now()
            for container_id in container_ids:
                self._marks.setdefault(container_id, Mark(reason, message, at))

    def fenced_known(self) -> tuple[bool, dict[str, int | None]]:
        """(Docker's list was read since the start, containers that ran when it was read last and are to be fenced: their grace)."""
        with self._lock:
            known = [record for record in self._records.values() if record.fenced and not record.exited]
            return self._listed, {record.container_id: record.grace_s for record in known}

    def kill(self, container_id: str) -> bool:
        """Kill its processes without Docker; True when none is left that could be seen."""
        with self._lock:
            known = next((one.cgroup for one in self._running.values() if one.item.id == container_id), None)
        cgroup = known or self._cgroups.find(0, container_id)
        return cgroup is not None and cgroup.kill()

    def candidates(self) -> list[Candidate]:
        """What runs, for who picks a victim. Who is being stopped already is no choice."""
        return [one for one in self._candidates() if one.container_id not in self._marks]

    def ending(self) -> list[Candidate]:
        """What runs and was told to end by somebody else than this agent a moment ago: its end has begun."""
        with self._lock:
            now = self._now()
            told = {
                one.item.id
                for one in self._running.values()
                if (about := self._heard.get(one.item.id)) is not None and _was_told_to_end(one, about.signals, now)
            }
        return [one for one in self.candidates() if one.container_id in told]

    def _candidates(self) -> list[Candidate]:
        with self._lock:
            return [
                Candidate(
                    container_id=one.item.id, attempt=one.item.attempt, priority=one.item.priority,
                    memory_bytes=0 if one.usage is None else one.usage.memory_bytes,
                    request_bytes=(
                        one.details.memory_request_bytes if one.item.memory_request_bytes is None else one.item.memory_request_bytes
                    ),
                    started_at=one.details.started_at, grace_s=one.item.grace_s,
                )
                for one in self._running.values()
            ]  # fmt: skip

    # --- for the watch ---

    def look(self, *, full: bool) -> bool:
        """Read the figures of all that run; `full`: after Docker's list. True: some container has ended, so a full look is due.

        Raises:
            EngineUnavailable: Docker does not answer; figures were read.
        """
        before = self._digest()
        ended = [self._sample(one) for one in list(self._running.values())]
        self._note_marks()
        try:
            if full:
                self._list()
        finally:
            if self._digest() != before:
                self.changed()
        return any(ended) and not full

    def _digest(self) -> frozenset[tuple[object, ...]]:
        with self._lock:
            return frozenset(
                (record.attempt, record.container_id, record.exited, record.reason) for record in self._records.values()
            )

    def _sample(self, one: _Running) -> bool:
        """True: it has ended, or its figures cannot be read any more."""
        if one.cgroup is None:
            one.doubts -= one.doubts > 0
            return one.doubts > 0
        usage = one.cgroup.read()
        if usage is None:
            return True
        with self._lock:
            one.usage = usage
            about = self._about(one.item.id)
            if (usage.oom_kills or 0) > about.oom_kills:
                about.oom_kills = usage.oom_kills or 0
                about.by_host = below_limit(usage, one.details.memory_limit_bytes, about.own_ooms)
                about.counted_at = self._now()
                about.ooms = [*about.ooms, about.counted_at][-MOST_MOMENTS:]
            about.own_ooms = usage.own_ooms or 0
            record = self._records.get(one.item.attempt)
            if record is not None and not record.exited:
                self._records[record.attempt] = _with_figures(record, usage)
        return False

    def _note_marks(self) -> None:
        with self._lock:
            news = [
                replace(record, reason=mark.reason, message=mark.message, stopping_at=mark.at)
                for record in self._records.values()
                if not record.exited and not record.reason and (mark := self._marks.get(record.container_id)) is not None
            ]
        for record in news:
            self._keep(record, durable=False)

    def _list(self) -> None:
        items = [item for item in map(listed, self._daemon.containers()) if item is not None]
        picks: dict[str, Listed] = {}
        for item in items:  # Docker lists the youngest first; of one attempt only one counts, the one that runs before others
            if item.attempt and (item.attempt not in picks or (item.alive and not picks[item.attempt].alive)):
                picks[item.attempt] = item
        for item in picks.values():
            if item.alive:
                self._runs(item)
            elif item.state in ENDED:
                self._ended(item)
        present = {item.id for item in items}
        for record in list(self._records.values()):
            if not record.exited and record.container_id not in present:
                self._vanished(record)
        self._prune(present)
        self._listed = True

    def _runs(self, item: Listed) -> None:
        known = self._running.get(item.attempt)
        if known is not None and known.item.id == item.id:
            if known.cgroup is not None and known.cgroup.read() is None:  # else every look would ask Docker again
                known.cgroup = self._cgroups.find(known.details.pid, item.id)
                # Docker tells of an end before its list shows it, seconds before on a busy machine (measured on 20.10).
                known.doubts = DOUBTS if known.cgroup is None else 0
            return
        answer = self._daemon.inspect(item.id)
        if answer is None:
            return  # gone since the list was made: the next one tells
        seen = details(answer)
        if not seen.alive:
            self._record_end(item.attempt, item.id, seen, fenced=item.fenced)
            return
        one = _Running(item, seen, self._cgroups.find(seen.pid, item.id))
        before = self._records.get(item.attempt)
        if before is not None and before.container_id == item.id and not before.exited:
            record = replace(
                before, started_at=seen.started_at, fenced=item.fenced, grace_s=item.grace_s
            )  # its figures and its reason from before our start
        else:
            record = Record(item.attempt, item.id, started_at=seen.started_at, fenced=item.fenced, grace_s=item.grace_s)
        with self._lock:
            self._running[item.attempt] = one
            if record.reason and record.stopping_at is not None:
                self._marks.setdefault(item.id, Mark(record.reason, record.message, record.stopping_at))
        self._keep(record, durable=False)
        self._sample(one)

    def _ended(self, item: Listed) -> None:
        record = self._records.get(item.attempt)
        if item.id in self._forgotten or (record is not None and record.exited and record.container_id == item.id):
            return
        answer = self._daemon.inspect(item.id)
        if answer is None:
            return
        seen = details(answer)
        if not seen.alive:
            self._record_end(item.attempt, item.id, seen, fenced=item.fenced)

    def _vanished(self, record: Record) -> None:
        """Removed before Docker could be asked how it ended: Docker's event may have told, or we stopped it; else nobody knows."""
        with self._lock:
            about, mark = self._heard.get(record.container_id), self._marks.get(record.container_id)
            one = self._running.get(record.attempt)
        code = None if about is None else about.exit_code
        if code is None and mark is None and not record.reason:
            with self._lock:
                self._running.pop(record.attempt, None)
                self._records.pop(record.attempt, None)
            self._disk.drop(record.attempt)
            return
        finished_at = None if about is None else about.died_at
        limit = one.details.memory_limit_bytes if one is not None and one.item.id == record.container_id else 0
        seen = Details(
            False, 0, code or 0, oom_killed=False, started_at=record.started_at, finished_at=finished_at, memory_limit_bytes=limit
        )
        self._record_end(record.attempt, record.container_id, seen, fenced=record.fenced, exit_known=code is not None)

    def _record_end(self, attempt: str, container_id: str, seen: Details, *, fenced: bool, exit_known: bool = True) -> None:
        with self._lock:
            before = self._records.get(attempt)
            if before is None or before.container_id != container_id:
                before = Record(attempt, container_id, fenced=fenced)
            mark = self._marks.get(container_id)
            if mark is None and before.reason and before.stopping_at is not None:
                mark = Mark(before.reason, before.message, before.stopping_at)
            about = self._heard.get(container_id) or _Heard()
            one = self._running.get(attempt)
        early = self._early(container_id)
        if early is not None:
            before = _with_figures(before, early)
        exit_code = seen.exit_code if exit_known else None
        evidence = Evidence(flag=seen.oom_killed, limit_bytes=seen.memory_limit_bytes, peak_bytes=before.peak_bytes)
        if exit_code == KILLED:
            late = one.usage if one is not None and one.item.id == container_id else None
            evidence = self._kills(evidence, about, seen, early, late)
        reason, message = cause(exit_code, seen.finished_at, mark, evidence)
        record = replace(
            before, exited=True, started_at=seen.started_at or before.started_at, finished_at=seen.finished_at, exit_code=exit_code,
            reason=reason, message=message, recorded_at=self._now(), told_to_end=self._told_to_end(seen, about),
        )  # fmt: skip
        self._keep(record, durable=True)
        with self._lock:
            self._running.pop(attempt, None)
            self._marks.pop(container_id, None)
            self._heard.pop(container_id, None)
        logger.info("attempt %s has ended: exit code %s %s", attempt, exit_code, reason)

    def _told_to_end(self, seen: Details, about: _Heard) -> bool | None:
        """Of one that began before this agent did nobody knows what it was sent until then."""
        if about.signals.keys() & _fatal(seen):
            return True
        return False if seen.started_at is not None and seen.started_at >= self._began else None

    def _kills(self, evidence: Evidence, about: _Heard, seen: Details, early: Usage | None, late: Usage | None) -> Evidence:
        """The evidence, with what is known of kills for memory.

        Args:
            early: what was seen of it in its first seconds; late: in the last look each second.
        """
        moments, counted_at, by_host = list(about.ooms), about.counted_at, about.by_host
        if early is not None and (early.oom_kills or 0) > about.oom_kills:  # no look each second has counted it
            counted_at = seen.finished_at or self._now()
            if seen.started_at is not None:
                counted_at = min(counted_at, seen.started_at + timedelta(seconds=OLD_S))
            moments.append(counted_at)
            by_host = below_limit(early, seen.memory_limit_bytes, about.own_ooms)
        if counted_at is not None and (seen.finished_at is None or seen.finished_at - counted_at <= CLOSE):
            return replace(evidence, moments=tuple(moments), by_host=by_host)
        figures = [usage for usage in (early, late) if usage is not None]
        return replace(evidence, moments=tuple(moments), unmet=is_unmet(figures, seen.memory_limit_bytes, evidence.peak_bytes))

    def _keep(self, record: Record, *, durable: bool) -> None:
        """On the disk first: what was told is not forgotten."""
        self._disk.put(record, durable=durable)
        with self._lock:
            self._records[record.attempt] = record

    def _prune(self, present: set[str]) -> None:
        now = self._now()
        self._forgotten &= present
        with self._lock:  # a young mark may be of a container that began after the list was made
            self._marks = {name: mark for name, mark in self._marks.items() if name in present or now - mark.at < YOUNG}
        ended = sorted((record for record in self._records.values() if record.exited), key=lambda one: one.recorded_at or now)
        surplus = max(0, len(ended) - MOST)
        for index, record in enumerate(ended):
            gone, taken_at = record.container_id not in present, self._delivered.get(record.attempt)
            if index < surplus or (gone and taken_at is not None and now - taken_at > KEPT):
                with self._lock:
                    self._records.pop(record.attempt, None)
                self._disk.drop(record.attempt)
                if not gone:
                    self._forgotten.add(record.container_id)


def _with_figures(record: Record, usage: Usage) -> Record:
    return replace(
        record,
        peak_bytes=max(record.peak_bytes or 0, usage.peak_bytes),
        cpu_s=record.cpu_s if usage.cpu_s is None else max(record.cpu_s or 0.0, usage.cpu_s),
    )


def _was_told_to_end(one: _Running, signals: Mapping[str, datetime], now: datetime) -> bool:
    grace = USUAL_GRACE if one.item.grace_s is None else timedelta(seconds=one.item.grace_s)
    fatal = _fatal(one.details)
    return any(name in fatal and now - at <= grace + ENDING for name, at in signals.items())


def _fatal(seen: Details) -> frozenset[str]:
    return FATAL | {signal_number(seen.stop_signal)}
