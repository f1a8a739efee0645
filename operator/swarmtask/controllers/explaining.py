"""Why a stored task is where it is: the decision of a cycle, made again from what the API says.

Called by the CLI through the wiring. It reads the API and an in-memory cache of its own; it writes nothing. It sees what the
operator has written, not what the operator's engines said a moment ago, so it can be behind by one refresh of a node's status.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from swarmtask.controllers import task_facts
from swarmtask.controllers.cache import Cache
from swarmtask.controllers.known_queues import DEFAULT_QUEUE
from swarmtask.controllers.node_rules import NodeRules
from swarmtask.controllers.snapshots import queue_info, take_snapshot
from swarmtask.errors import Invalid, NotFound
from swarmtask.kube import ObjectApi
from swarmtask.lifecycle.messages import Reason
from swarmtask.resources.kinds import SWARM_NODE, SWARM_QUEUE, SWARM_TASK
from swarmtask.resources.task import MemoryPlan, Phase, SwarmTask
from swarmtask.scheduler.cycle import Explanation, explain_task
from swarmtask.scheduler.model import RunningTask, TaskKey

_FOR_WHOM = re.compile(r"preempted by ([^/\s]+)/([^/\s]+)")
"""What `lifecycle.draft` writes into the record of an attempt that is stopped to make room. The operator remembers for whom."""


@dataclass(frozen=True, slots=True)
class ExplainedTask:
    """A task and what a cycle says of it.

    Attributes:
        waits: it is before the scheduler; otherwise the explanation is about what would happen if it were queued now, without
            what it holds.
        memory: what its next attempt asks for, and why; None: what its spec says.
    """

    task: SwarmTask
    waits: bool
    explanation: Explanation
    memory: MemoryPlan | None = None


async def explain_stored(api: ObjectApi, key: TaskKey, now: float, rules: NodeRules | None = None) -> ExplainedTask:
    """Explain one task among all that wait. `now`: seconds since the epoch. `rules`: as the operator's settings say.

    Raises:
        NotFound: there is no such task. Invalid: it cannot be read, or is being deleted.
    """
    await api.get(SWARM_TASK, key[1], key[0])  # says NotFound before everything is read
    cache = Cache()
    for kind in (SWARM_NODE, SWARM_QUEUE, SWARM_TASK):
        for obj in (await api.list(kind)).items:
            cache.apply(kind, obj)
    if cache.lacks_default(key[0]):
        _foresee_default(cache, key[0])
    entry = cache.tasks.get(key)
    if entry is None and key in cache.unreadable:
        raise Invalid(f"SwarmTask {'/'.join(key)} cannot be read: see the operator's log, and correct or delete it")
    if entry is None:
        raise NotFound(f"SwarmTask {'/'.join(key)} was deleted just now")
    if entry.invalid is not None:
        raise Invalid(f"SwarmTask {'/'.join(key)}: {entry.invalid}")
    if entry.task.is_array:
        raise Invalid(_about_array(cache, entry.task))
    cache.refresh_sizes(len(cache.tasks))
    entry = cache.tasks[key]
    # What has ended asks for what was learned by now, itself included.
    task, pending, memory = entry.task, entry.pending, cache.sizes.plan(entry.task)
    if pending is None:
        # As if it came to the queue now: last among its equals, and what it holds was given back.
        queued = task.status.model_copy(update={"phase": Phase.QUEUED})
        pending = task_facts.pending_task(task.model_copy(update={"status": queued}), queued_at=now, memory=memory)
        cache.remove(SWARM_TASK, key)
    if pending is None:
        raise Invalid(f"SwarmTask {'/'.join(key)} is being deleted: nothing of it starts any more")
    snapshot = take_snapshot(cache, lambda engine: True, now, rules=rules, whole=True)
    # The queue of a task that does not wait may have nothing else that waits.
    queues = {**snapshot.queues, pending.queue: queue_info(cache, pending.queue)}
    snapshot = replace(snapshot, queues=queues, running=[_leaving_for(cache, one) for one in snapshot.running])
    return ExplainedTask(task, entry.pending is not None, explain_task(snapshot, pending), memory)


def _foresee_default(cache: Cache, namespace: str) -> None:
    """The operator creates it without bounds, unless there was one."""
    if cache.had_default(namespace):
        cache.lose_default(namespace)
    else:
        cache.apply(SWARM_QUEUE, {"metadata": {"name": DEFAULT_QUEUE, "namespace": namespace, "resourceVersion": "0"}})


def _leaving_for(cache: Cache, running: RunningTask) -> RunningTask:
    """With the task that it is being stopped for, where it is."""
    entry = cache.tasks.get(running.key)
    attempt = None if entry is None else entry.task.status.current
    if not running.stopping or attempt is None or attempt.stop_reason != Reason.PREEMPTED:
        return running
    found = _FOR_WHOM.fullmatch(attempt.message or "")
    return running if found is None else replace(running, makes_room_for=(found[1], found[2]))


def _about_array(cache: Cache, array: SwarmTask) -> str:
    """An array is never placed itself: which of its runs to ask about."""
    waiting = [pending.key for pending in cache.waiting() if _runs_for(cache.tasks[pending.key].task, array)]
    name = min(waiting, default=("", f"{array.metadata.name}-N"), key=lambda key: (len(key[1]), key[1]))[1]
    return f"SwarmTask {'/'.join(array.key)} is an array, its runs are placed one by one: explain one, for example {name}"


def _runs_for(task: SwarmTask, array: SwarmTask) -> bool:
    owner = task.array_owner
    return owner is not None and owner.uid == array.metadata.uid
