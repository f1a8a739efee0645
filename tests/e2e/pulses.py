"""The pulse of attempts: what their own containers write while they act, and from that how long two of one task acted at once.

Called by `stage`. A container that runs `PULSE` writes the moment, several times a second; its output is followed through the
node's own dockerd, which a partition does not hide. Moments are seconds since the machine started, counted while it sleeps: all
nodes of a laboratory share that clock. Nothing here asks SwarmTask.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import defaultdict
from typing import Any

import docker.errors
import requests

from tests.lab.cluster import Lab
from tests.lab.node import LabError

BEAT_S = 0.5
PULSE = f'while read up rest </proc/uptime; do echo "pulse $up"; sleep {BEAT_S}; done'
"""A script: beats until it is ended."""
_SERVICE = "com.docker.swarm.service.name"
_LOST = (docker.errors.DockerException, requests.RequestException, OSError, ValueError, LabError)
_PAUSE_S = 1.5
"""Beats that are farther apart than this have a sleep in between."""


class Pulses:
    """Follows every attempt on some nodes; use as a context manager."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._lock = threading.Lock()
        self._beats: dict[str, set[float]] = defaultdict(set)
        self._said: dict[str, set[str]] = defaultdict(set)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._followed: set[str] = set()
        self._streams: list[Any] = []

    def __enter__(self) -> Pulses:
        for name in self._lab.nodes:
            self.follow(name)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for stream in list(self._streams):
            with contextlib.suppress(*_LOST, AttributeError):
                stream.close()
        for thread in self._threads:
            thread.join(5)

    def follow(self, node: str) -> None:
        """Listen to one more node."""
        self._start(self._node, node)

    def of(self, attempt_id: str) -> list[float]:
        """Moments at which this attempt acted, oldest first."""
        with self._lock:
            return sorted(self._beats.get(attempt_id, ()))

    def spans(self, attempt_id: str) -> list[tuple[float, float]]:
        """From when to when it acted without a pause."""
        found: list[tuple[float, float]] = []
        for beat in self.of(attempt_id):
            if found and beat - found[-1][1] <= _PAUSE_S:
                found[-1] = (found[-1][0], beat)
            else:
                found.append((beat, beat))
        return found

    def overlap_s(self, attempt_ids: list[str], *, until: float = math.inf) -> float:
        """For how many seconds two of these acted at once, up to that moment."""
        spans = [self.spans(attempt_id) for attempt_id in attempt_ids]
        pairs = ((one, other) for index, ours in enumerate(spans) for theirs in spans[:index] for one in ours for other in theirs)
        return sum(max(0.0, min(one[1], other[1], until) - max(one[0], other[0])) for one, other in pairs)

    def said(self, attempt_id: str, line: str) -> bool:
        """Whether this attempt has written such a line."""
        with self._lock:
            return line in self._said.get(attempt_id, ())

    # --- threads ---

    def _start(self, work: Any, *args: str) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _node(self, node: str) -> None:
        """Every container that begins, and those that were there before; nodes come and go."""
        while not self._stop.is_set():
            try:
                client = self._lab.client(node)
                stream = client.events(decode=True, filters={"type": "container", "event": "start"})
                self._streams.append(stream)
                for row in client.api.containers(all=True):
                    self._found(node, row["Id"], row["Labels"] or {})
                for event in stream:
                    self._found(node, event["Actor"]["ID"], event["Actor"]["Attributes"])
            except _LOST:
                pass
            self._stop.wait(0.2)

    def _found(self, node: str, container_id: str, labels: dict[str, str]) -> None:
        attempt_id = labels.get(_SERVICE)
        with self._lock:
            known = attempt_id is None or container_id in self._followed
            self._followed.add(container_id)
        if not known:
            self._start(self._output, node, container_id, str(attempt_id))

    def _output(self, node: str, container_id: str, attempt_id: str) -> None:
        try:
            stream = self._lab.client(node).api.logs(container_id, stream=True, follow=True, stdout=True, stderr=False)
            self._streams.append(stream)
            rest = b""
            for chunk in stream:
                *lines, rest = (rest + chunk).split(b"\n")
                beats = [float(line.split()[1]) for line in lines if line.startswith(b"pulse ")]
                with self._lock:
                    self._beats[attempt_id].update(beats)
                    self._said[attempt_id].update(line.decode() for line in lines if not line.startswith(b"pulse "))
        except _LOST:
            with self._lock:
                self._followed.discard(container_id)  # its node comes back, perhaps, and knows the whole output
