"""The invariants of the design (I1 to I10), checked against what was really seen.

Called by unit tests, by the laboratory's end-to-end tests and by the simulator: whatever happens is told to a `Checker` as facts,
and it answers with violations and their evidence. It never looks anything up by itself and knows no clock: every fact carries its
time.

Facts about tasks are told in the order in which one watch (or one list after another) shows them. Engine facts may come in any
order; overlaps are computed from their times.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from swarmtask.resources.node import SwarmNode
from swarmtask.resources.queue import SwarmQueue
from swarmtask.resources.task import SwarmTask
from tests.checker.arrays import ArrayRules
from tests.checker.capacity import CapacityRules
from tests.checker.objects import TaskRules
from tests.checker.twins import TwinRules
from tests.checker.violation import Violation, ViolationLog, owner_digits
from tests.checker.watches import WatchRules
from tests.checker.workloads import WorkloadRules


class Checker:
    """Takes facts, gives violations.

    Args:
        infrastructure_loss_limit: as the operator under test has it (I8).
        cleanup_s: after a task is gone, nothing of it may be listed for longer (I6).
        orphan_s: an object with our label and no owner may be listed this long (I7).
    """

    def __init__(self, *, infrastructure_loss_limit: int = 20, cleanup_s: float = 60.0, orphan_s: float = 60.0) -> None:
        self._log = ViolationLog()
        self._tasks = TaskRules(self._log, infrastructure_loss_limit)
        self._twins = TwinRules(self._log)
        self._capacity = CapacityRules(self._log, timedelta(seconds=cleanup_s))
        self._workloads = WorkloadRules(self._log, self._tasks, timedelta(seconds=cleanup_s), timedelta(seconds=orphan_s))
        self._watches = WatchRules(self._log)
        self._arrays = ArrayRules(self._log)

    # --- facts about the API ---------------------------------------------------------------------------------------------

    def acknowledged_create(self, namespace: str, name: str, uid: str, at: datetime) -> None:
        """The API answered a create with success: from now on the task must not get lost (I1)."""
        self._tasks.acknowledged(namespace, name, uid, at)

    def delete_requested(self, uid: str, at: datetime) -> None:
        """Somebody asked for the deletion of this task."""
        self._tasks.delete_requested(uid)

    def task_seen(self, obj: SwarmTask | Mapping[str, Any], at: datetime) -> None:
        """A task as the API shows it (created, changed, or listed)."""
        task = obj if isinstance(obj, SwarmTask) else SwarmTask.model_validate(obj)
        self._tasks.seen(task, at)
        self._twins.task_seen(task, at)
        self._capacity.task_seen(task, at)
        self._arrays.seen(task, at)

    def task_deleted(self, uid: str, at: datetime) -> None:
        """The API shows that the task is gone (DELETED)."""
        self._tasks.deleted(uid, at)
        self._twins.task_gone(uid)
        self._capacity.task_gone(uid, at)
        self._arrays.gone(uid)

    def tasks_listed(self, objects: Iterable[SwarmTask | Mapping[str, Any]], at: datetime) -> None:
        """A full list of all tasks: whatever was acknowledged and not deleted must be in it."""
        tasks = [obj if isinstance(obj, SwarmTask) else SwarmTask.model_validate(obj) for obj in objects]
        for task in tasks:
            self.task_seen(task, at)
        self._tasks.listed({task.metadata.uid for task in tasks}, at)

    def node_seen(self, obj: SwarmNode | Mapping[str, Any], at: datetime) -> None:
        """A node as the API shows it; its allocatable bounds what is bound from now on (I9)."""
        self._capacity.node_seen(obj if isinstance(obj, SwarmNode) else SwarmNode.model_validate(obj), at)

    def queue_seen(self, obj: SwarmQueue | Mapping[str, Any], at: datetime) -> None:
        """A queue as the API shows it; its bounds hold for what is bound from now on (I9)."""
        self._capacity.queue_seen(obj if isinstance(obj, SwarmQueue) else SwarmQueue.model_validate(obj))

    def resource_version_seen(self, version: str | int, at: datetime, *, source: str = "api") -> None:
        """The resourceVersion of a list or of an acknowledged write; those of one source only grow (I10), restarts included."""
        self._watches.version_seen(int(version), at, source)

    def write_acknowledged(self, version: str | int, at: datetime, *, topic: str = "swarmtasks") -> None:
        """A write of this topic (plural of the kind) was acknowledged with this resourceVersion: every watch must show it."""
        self._watches.write_acknowledged(int(version), at, topic)

    def watch_opened(self, stream: str, since: str | int, at: datetime, *, topic: str = "swarmtasks") -> None:
        """A watch of a whole topic began after this resourceVersion (opening it again after a 410 starts anew)."""
        self._watches.opened(stream, int(since), topic)

    def watch_event(self, stream: str, version: str | int, at: datetime, *, bookmark: bool = False) -> None:
        """The watch delivered an event; a bookmark says that everything up to its resourceVersion has been delivered."""
        self._watches.event(stream, int(version), at, bookmark=bookmark)

    # --- facts about engines ---------------------------------------------------------------------------------------------

    def container_started(self, node: str, attempt_id: str, at: datetime) -> None:
        """The main process of an attempt began on a node, by the node's own evidence."""
        self._workloads.started(node, attempt_id, at)

    def container_stopped(self, node: str, attempt_id: str, at: datetime) -> None:
        """The main process of an attempt ended."""
        self._workloads.stopped(node, attempt_id, at)

    def node_asleep(self, node: str, at: datetime) -> None:
        """Nothing on this node acts from now on: a closed lid."""
        self._workloads.slept(node, at)

    def node_awake(self, node: str, at: datetime) -> None:
        """It goes on."""
        self._workloads.woke(node, at)

    def engine_listed(self, engine: str, names: Collection[str], at: datetime) -> None:
        """Everything that carries our label on this engine or node: services, containers, secrets, volumes (attempt IDs)."""
        self._workloads.listed(engine, names, at)

    def foreign_listed(self, engine: str, objects: Mapping[str, str], at: datetime) -> None:
        """Everything on the engine that is not ours: name -> anything that changes when it is touched (ID, version)."""
        self._workloads.foreign_listed(engine, objects, at)

    # --- the answer ------------------------------------------------------------------------------------------------------

    def unfinished(self) -> list[str]:
        """Known tasks that are neither deleted nor at a terminal phase, as "namespace/name phase"."""
        return self._tasks.unfinished()

    def recorded(self) -> list[Violation]:
        """What was found as facts came in; cheap enough to ask after every one. `violations` adds what has to be computed."""
        return self._log.found

    def violations(self) -> list[Violation]:
        """Everything that was found, oldest first; computed ones (overlaps, gaps in watches) included."""
        found = [*self._log.found, *self._workloads.overlaps(), *self._watches.gaps()]
        return sorted(set(found), key=lambda violation: (violation.at, violation.invariant, violation.subject))

    def assert_ok(self) -> None:
        """Raises AssertionError that lists every violation with its evidence."""
        found = self.violations()
        if found:
            raise AssertionError(f"{len(found)} violated:\n" + "\n".join(str(violation) for violation in found))


__all__ = ["Checker", "Violation", "owner_digits"]
