"""resourceVersion only grows and a watch skips nothing (I10)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from tests.checker.violation import Violation, ViolationLog


@dataclass
class _Stream:
    topic: str
    since: int
    delivered: set[int] = field(default_factory=set)
    last: int = 0


class WatchRules:
    """Compares what was acknowledged with what watches delivered."""

    def __init__(self, log: ViolationLog) -> None:
        self._log = log
        self._highest: dict[str, int] = {}
        self._writes: dict[str, dict[int, datetime]] = {}
        self._streams: dict[str, _Stream] = {}

    def version_seen(self, version: int, at: datetime, source: str) -> None:
        highest = self._highest.get(source, 0)
        if version < highest:
            self._log.add("I10", source, at, f"resourceVersion {version} after {highest}")
        self._highest[source] = max(version, highest)

    def write_acknowledged(self, version: int, at: datetime, topic: str) -> None:
        self._writes.setdefault(topic, {})[version] = at

    def opened(self, stream: str, since: int, topic: str) -> None:
        self._streams[stream] = _Stream(topic, since, last=since)

    def event(self, stream: str, version: int, at: datetime, *, bookmark: bool) -> None:
        known = self._streams[stream]
        if version < known.last:
            self._log.add("I10", f"watch {stream}", at, f"resourceVersion {version} after {known.last}")
        if not bookmark:
            known.delivered.add(version)
        known.last = max(known.last, version)

    def gaps(self) -> list[Violation]:
        """Acknowledged writes that a watch has passed by."""
        found = []
        for name, stream in self._streams.items():
            for version, at in self._writes.get(stream.topic, {}).items():
                if stream.since < version <= stream.last and version not in stream.delivered:
                    evidence = f"skipped acknowledged write {version} (since {stream.since}, reached {stream.last})"
                    found.append(Violation("I10", f"watch {name}", at, evidence))
        return found
