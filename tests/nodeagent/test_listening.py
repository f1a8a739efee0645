"""The thread that listens to Docker's events: streams that fall silent or break, and what comes again when they are opened anew."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from swarmtask.errors import EngineUnavailable
from swarmtask.nodeagent.attempts import Attempts
from swarmtask.nodeagent.cgroups import Cgroups
from swarmtask.nodeagent.daemon import Daemon
from swarmtask.nodeagent.eviction import Strain
from swarmtask.nodeagent.records import Records
from swarmtask.nodeagent.stopping import Pace, Stopper
from swarmtask.nodeagent.watch import Watch
from tests.nodeagent.fakes import HandClock, container_id

MINUTE_S = 60.0
SILENCE, BREAK = "silence", "break"


class Pauses(random.Random):
    """Counts how often a pause is made, and makes none."""

    made = 0

    def uniform(self, a: float, b: float) -> float:
        self.made += 1
        return 0.0


class Streams(Daemon):
    """Each stream of events as scripted: (moment in seconds, what) by event, then how it ends. The last one ends the watch."""

    def __init__(self, clock: HandClock, *streams: list[Any]) -> None:
        super().__init__(Path("/none"))
        self.clock, self.streams = clock, list(streams)
        self.watch: Watch
        self.since: list[float | None] = []

    @contextmanager
    def events(self, *, since_nanos: int | None = None, silence_s: float = MINUTE_S) -> Iterator[Any]:  # type: ignore[override]
        self.since.append(None if since_nanos is None else since_nanos / 1e9 - nanos(0) / 1e9)
        script = self.streams.pop(0)
        if not self.streams:
            self.watch.end()
        yield self._stream(script)

    def _stream(self, script: list[Any]) -> Iterator[dict[str, Any]]:
        for one in script:
            if one == BREAK:
                raise EngineUnavailable("it broke")
            if one == SILENCE:
                self.clock.elapsed_s += MINUTE_S
                return
            at, action = one
            self.clock.elapsed_s = max(self.clock.elapsed_s, at)
            yield {"Action": action, "timeNano": nanos(at), "Actor": {"ID": container_id(1), "Attributes": {"signal": "15"}}}


def nanos(elapsed_s: float) -> int:
    clock = HandClock()
    clock.elapsed_s = elapsed_s
    return round((clock.now() - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()) * 10**9


class Ear:
    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, *streams: list[Any]) -> None:
        self.clock, self.pauses = HandClock(), Pauses()
        self.heard: list[str] = []
        self.begun: list[str] = []
        daemon = self.daemon = Streams(self.clock, *streams)
        attempts = Attempts(daemon, Cgroups(path, path), Records(path / "state"), now=self.clock.now)
        monkeypatch.setattr(attempts, "heard", lambda event: self.heard.append(event["Action"]))
        watch = daemon.watch = Watch(
            attempts, daemon, Stopper(daemon, Pace(self.clock.boot_time, self.clock.wait), attempts.kill),
            lambda: Strain(1, 1, 0.0), clock=self.clock.monotonic, boot_clock=self.clock.boot_time, now=self.clock.now,
            reaches=lambda: False, rng=self.pauses, begun=self.begun.append,
        )  # fmt: skip
        watch.listen()


def test_after_a_silence_it_listens_again_at_once_from_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ear = Ear(
        tmp_path, monkeypatch, [SILENCE], [SILENCE], [(1130, "kill"), SILENCE], [(1130, "kill"), (1131, "die"), SILENCE], [SILENCE]
    )
    assert ear.pauses.made == 0
    assert ear.daemon.since == [None, 1000, 1060, 1130, 1131], "the moment of the last event, or of the last opening"
    assert ear.heard == ["kill", "die"], "each once"


def test_after_a_break_it_waits_and_misses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ear = Ear(
        tmp_path, monkeypatch, [(1001, "start"), (1002, "oom"), BREAK], [BREAK], [(1002, "oom"), (1003, "die"), BREAK], [SILENCE]
    )  # fmt: skip
    assert ear.pauses.made == 3
    assert ear.daemon.since == [None, 1002, 1002, 1003]
    assert ear.heard == ["start", "oom", "die"]
    assert ear.begun == [container_id(1)]
