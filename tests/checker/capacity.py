"""What is bound fits (I9), and what is gone holds nothing (I6, reservations)."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta

from swarmtask.resources import units
from swarmtask.resources.node import SwarmNode
from swarmtask.resources.queue import SwarmQueue
from swarmtask.resources.task import Attempt, SwarmTask
from tests.checker.violation import ViolationLog

_AMOUNTS = ("cpu milli", "memory bytes", "gpu")


class CapacityRules:
    """Sums live attempts per node and queue, and judges each new one: a node that shrinks under attempts breaks nothing."""

    def __init__(self, log: ViolationLog, cleanup: timedelta) -> None:
        self._log = log
        self._cleanup = cleanup
        self._nodes: dict[str, SwarmNode] = {}
        self._queues: dict[tuple[str, str], SwarmQueue] = {}
        self._live: dict[str, tuple[Attempt, tuple[str, str]]] = {}
        self._idle_since: dict[str, datetime] = {}

    def node_seen(self, node: SwarmNode, at: datetime) -> None:
        name = node.metadata.name
        self._nodes[name] = node
        if any(attempt.node == name for attempt, _ in self._live.values()):
            return
        since = self._idle_since.setdefault(name, at)
        if node.status.tasks > 0 and at - since > self._cleanup:
            self._log.add("I6", name, at, f"still counts {node.status.tasks} attempts; none is live since {since.isoformat()}")

    def queue_seen(self, queue: SwarmQueue) -> None:
        self._queues[queue.metadata.namespace or "default", queue.metadata.name] = queue

    def task_gone(self, uid: str, at: datetime) -> None:
        held = self._live.pop(uid, None)
        if held is not None:
            self._idle_since[held[0].node] = at

    def task_seen(self, task: SwarmTask, at: datetime) -> None:
        uid, queue = task.metadata.uid, (task.key[0], task.spec.queue)
        live = next((attempt for attempt in reversed(task.status.attempts) if attempt.live), None)
        held = self._live.get(uid)
        if live is None:
            self.task_gone(uid, at)
            return
        fresh = held is None or held[0].number != live.number
        # The queue that it was started from keeps counting it, even when the spec names another one meanwhile.
        self._live[uid] = (live, queue if fresh or held is None else held[1])
        self._idle_since.pop(live.node, None)
        if fresh:
            self._check_node(task, live, at)
            self._check_gpus(task, live, at)
            self._check_queue(task, live, queue, at)
            self._check_limits(task, live, at)

    def _check_node(self, task: SwarmTask, live: Attempt, at: datetime) -> None:
        node = self._nodes.get(live.node)
        if node is None:
            return
        there = [attempt for attempt, _ in self._live.values() if attempt.node == live.node]
        total: Counter[str] = Counter()
        for attempt in there:
            total.update(
                dict(zip(_AMOUNTS, _amounts(attempt.requested.cpu, attempt.requested.memory, attempt.requested.gpu), strict=True))
            )
        offered = node.status.allocatable
        allowed = dict(zip(_AMOUNTS, _amounts(offered.cpu, offered.memory, offered.gpu), strict=True))
        for name in _AMOUNTS:
            if total[name] > allowed[name]:
                self._log.add(
                    "I9",
                    live.node,
                    at,
                    f"{live.id} ({task.key[0]}/{task.key[1]}) brings {name} to {total[name]} of {allowed[name]}",
                )
        if node.spec.max_tasks is not None and len(there) > node.spec.max_tasks:
            self._log.add("I9", live.node, at, f"{live.id} is attempt {len(there)} of at most {node.spec.max_tasks} (maxTasks)")

    def _check_gpus(self, task: SwarmTask, live: Attempt, at: datetime) -> None:
        """Nobody else holds the GPUs that the attempt was given, and they are as many as it asked for."""
        mine = live.requested.gpu_indices
        if len(set(mine)) != len(mine) or len(mine) not in {0, live.requested.gpu}:
            self._log.add("I9", live.node, at, f"{live.id} asked for {live.requested.gpu} GPUs and was given {mine}")
        for other, _ in self._live.values():
            both = {index for index in mine if any(_same_gpu(live, index, other, its) for its in other.requested.gpu_indices)}
            if both and other.node == live.node and other.id != live.id:
                self._log.add(
                    "I9",
                    live.node,
                    at,
                    f"{live.id} ({task.key[0]}/{task.key[1]}) was given GPU {min(both)}, which {other.id} holds",
                )

    def _check_queue(self, task: SwarmTask, live: Attempt, key: tuple[str, str], at: datetime) -> None:
        queue = self._queues.get(key)
        if queue is None:
            return
        ours = [attempt.node for attempt, its_queue in self._live.values() if its_queue == key]
        bounds = (
            (len(ours), queue.spec.max_running, "maxRunning"),
            (ours.count(live.node), queue.spec.max_running_per_node, f"maxRunningPerNode, on {live.node}"),
        )
        for running, most, name in bounds:
            if most is not None and running > most:
                self._log.add("I9", f"queue {key[0]}/{key[1]}", at, f"{task.key[1]} is number {running} of at most {most} ({name})")

    def _check_limits(self, task: SwarmTask, live: Attempt, at: datetime) -> None:
        """A limit is one for all queues: what tasks of any of them hold counts, and the smallest number that a queue says."""
        for limit, slots in live.requested.limits.items():
            numbers = [queue.spec.limits[limit] for queue in self._queues.values() if limit in queue.spec.limits]
            held = sum(attempt.requested.limits.get(limit, 0) for attempt, _ in self._live.values())
            if numbers and held > min(numbers):
                words = f"{'/'.join(task.key)} takes {slots} slots, which brings it to {held} of {min(numbers)}"
                self._log.add("I9", f"limit {limit}", at, words)


def _same_gpu(one: Attempt, index: int, other: Attempt, its: int) -> bool:
    """Two GPUs whose UUIDs are known are told apart by them: a driver may have numbered them anew in between."""
    mine, theirs = _uuid(one, index), _uuid(other, its)
    return mine == theirs if mine and theirs else index == its


def _uuid(attempt: Attempt, index: int) -> str:
    return next((gpu.uuid for gpu in attempt.requested.gpu_devices if gpu.index == index), "")


def _amounts(cpu: str, memory: str, gpu: int) -> tuple[int, int, int]:
    return units.cpu_milli(cpu), units.memory_bytes(memory), gpu
