"""Tells the invariant checker what really happens: the API's watches, and the container events of every node's own dockerd.

One thread per source; all facts go through one lock. The API may be killed and come back, nodes may too: sources reconnect, and
what ended meanwhile is read from the containers themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import docker
import docker.errors
import requests

from swarmtask.errors import Expired, SwarmTaskError
from swarmtask.kube import KubeClient
from swarmtask.resources.kinds import SWARM_NODE, SWARM_QUEUE, SWARM_TASK, Kind
from tests.checker.checker import Checker
from tests.lab.cluster import Lab
from tests.lab.node import LabError

_SERVICE = "com.docker.swarm.service.name"
_LOST = (docker.errors.DockerException, requests.RequestException, OSError, ValueError, LabError)


class Recorder:
    """Use as a context manager around a test; then `assert_ok`."""

    def __init__(self, kubeconfig: Path, lab: Lab) -> None:
        self.checker = Checker()
        self._kubeconfig = kubeconfig
        self._lab = lab
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._streams: dict[str, Any] = {}
        self._open: dict[str, set[str]] = {name: set() for name in lab.nodes}
        self._bound: Counter[str] = Counter()
        self._most: Counter[str] = Counter()
        self._live: dict[str, str] = {}
        self._known: set[str] = set()
        self._destroyed: set[str] = set()
        self._synced = threading.Barrier(4 + len(lab.nodes))

    def __enter__(self) -> Recorder:
        for kind, tell in ((SWARM_TASK, self._task), (SWARM_NODE, self._node), (SWARM_QUEUE, self._queue)):
            self._start(lambda kind=kind, tell=tell: asyncio.run(self._watch(kind, tell)))
        for name in self._lab.nodes:
            self._start(lambda name=name: self._containers(name))
        self._synced.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for stream in list(self._streams.values()):
            with contextlib.suppress(*_LOST, AttributeError):
                stream.close()
        for thread in self._threads:
            thread.join(10)

    def assert_ok(self, *, robbed: Collection[str] = (), doubled: Collection[str] = ()) -> None:
        """No invariant was broken. `robbed`: tasks that are gone too early because the test itself took their finalizer.
        `doubled`: tasks that accept to run twice at once (`nodeLoss.replace: afterLost`)."""
        forgiven = {"I6": robbed, "I2": doubled}
        with self._lock:
            found = [
                violation
                for violation in self.checker.violations()
                if not any(f"/{name} " in f"{violation.subject} " for name in forgiven.get(violation.invariant, ()))
            ]
        assert not found, "\n".join(map(str, found))

    def asleep(self, node: str) -> None:
        """From now on nothing acts on this node."""
        with self._lock:
            self.checker.node_asleep(node, datetime.now(UTC))

    def awake(self, node: str, *, after: timedelta = timedelta()) -> None:
        """It goes on now; what it does within `after` is not held against it."""
        with self._lock:
            self.checker.node_awake(node, datetime.now(UTC) + after)

    def powered_off(self, node: str) -> None:
        """Nothing runs on this node any more."""
        for name in list(self._open[node]):
            self._tell(node, name, started=False, at=datetime.now(UTC))

    def add_node(self, node: str) -> None:
        """Listen to one more node, from its first container on."""
        self._open[node] = set()
        self._start(lambda: self._containers(node, synced=True))

    def node_destroyed(self, node: str) -> None:
        """The machine is no more, and with it whatever ran there."""
        self._destroyed.add(node)
        self.powered_off(node)

    def delete_requested(self, uid: str) -> None:
        """Tell the checker that somebody is about to delete this task; without a finalizer the API shows only that it is gone."""
        with self._lock:
            self.checker.delete_requested(uid, datetime.now(UTC))

    def all_deleted(self) -> None:
        """Tell the checker that somebody asked for the deletion of every task that is known now."""
        with self._lock:
            for uid in self._known:
                self.checker.delete_requested(uid, datetime.now(UTC))

    def most_at_once(self, node: str) -> int:
        """Largest number of live attempts that the API ever showed on a node."""
        with self._lock:
            return self._most[node]

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        self._threads.append(thread)

    # --- the API -------------------------------------------------------------------------------------------------------------

    async def _watch(self, kind: Kind, tell: Callable[[str, dict[str, Any]], None]) -> None:
        client = KubeClient.from_kubeconfig(self._kubeconfig)
        watching = asyncio.create_task(self._follow(client, kind, tell))
        try:
            await asyncio.to_thread(self._stop.wait)
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            await client.aclose()

    async def _follow(self, client: KubeClient, kind: Kind, tell: Callable[[str, dict[str, Any]], None]) -> None:
        first = True
        while True:
            try:
                listed = await client.list(kind)
                for item in listed.items:
                    tell("ADDED", item)
                if first:
                    await asyncio.to_thread(self._synced.wait, 30)
                    first = False
                async for event in client.watch(kind, resource_version=listed.resource_version):
                    if event.type != "BOOKMARK":
                        tell(event.type, event.object)
            except Expired:
                continue
            except SwarmTaskError:
                await asyncio.sleep(0.2)

    def _task(self, event: str, obj: dict[str, Any]) -> None:
        now = datetime.now(UTC)
        with self._lock:
            uid = obj["metadata"]["uid"]
            self._known.add(uid)
            if event == "DELETED":
                self.checker.task_deleted(uid, now)
            else:
                if obj["metadata"].get("deletionTimestamp"):
                    self.checker.delete_requested(uid, now)
                self.checker.task_seen(obj, now)
            attempts = obj.get("status", {}).get("attempts") or []
            live = attempts and attempts[-1]["state"] in ("Starting", "Running", "Stopping", "Unknown") and event != "DELETED"
            before, after = self._live.pop(uid, None), attempts[-1]["node"] if live else None
            if before:
                self._bound[before] -= 1
            if after:
                self._live[uid] = after
                self._bound[after] += 1
                self._most[after] = max(self._most[after], self._bound[after])

    def _node(self, event: str, obj: dict[str, Any]) -> None:
        if event != "DELETED":
            with self._lock:
                self.checker.node_seen(obj, datetime.now(UTC))

    def _queue(self, event: str, obj: dict[str, Any]) -> None:
        if event != "DELETED":
            with self._lock:
                self.checker.queue_seen(obj, datetime.now(UTC))

    # --- the nodes -----------------------------------------------------------------------------------------------------------

    def _containers(self, node: str, *, synced: bool = False) -> None:
        first = not synced
        while not self._stop.is_set() and node not in self._destroyed:
            try:
                client = self._lab.client(node)
                stream = client.events(decode=True, filters={"type": "container", "event": ["start", "die"]})
                self._streams[node] = stream
                self._catch_up(node, client)
                if first:
                    self._synced.wait(30)
                    first = False
                for event in stream:
                    name = event["Actor"]["Attributes"].get(_SERVICE)
                    if name is not None:
                        self._tell(node, name, started=event["Action"] == "start", at=_from_nanoseconds(event["timeNano"]))
            except _LOST:
                pass
            self._stop.wait(0.2)

    def _catch_up(self, node: str, client: docker.DockerClient) -> None:
        """What the stream did not show: containers that ended while the node's dockerd was away."""
        running = {}
        for container in client.containers.list(all=True, ignore_removed=True):
            name = container.labels.get(_SERVICE)
            if name is not None:
                running[name] = container.attrs["State"] in ("running", "paused")
        for name in [name for name in self._open[node] if not running.get(name)]:
            self._tell(node, name, started=False, at=datetime.now(UTC))

    def _tell(self, node: str, attempt_id: str, *, started: bool, at: datetime) -> None:
        with self._lock:
            if started:
                self._open[node].add(attempt_id)
                self.checker.container_started(node, attempt_id, at)
            elif attempt_id in self._open[node]:
                self._open[node].discard(attempt_id)
                self.checker.container_stopped(node, attempt_id, at)


def _from_nanoseconds(count: int) -> datetime:
    return datetime.fromtimestamp(count / 1e9, UTC)
