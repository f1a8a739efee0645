"""Faults planted into the real code, one at a time: the simulator that does not find them proves nothing.

Used by `test_bugs`. Each is a mistake that somebody could make in good faith; each is a context manager that patches the real code
and puts it back. Never imported by anything but tests.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

from swarmtask.controllers import arrays, leases, observer, scheduling, sizes, submission, task_facts
from swarmtask.controllers import executor as executor_module
from swarmtask.controllers.cache import Cache
from swarmtask.controllers.draining import Draining
from swarmtask.controllers.entries import Holding
from swarmtask.controllers.executor import Executor
from swarmtask.controllers.known_queues import KnownQueues
from swarmtask.controllers.lane import EngineLane
from swarmtask.controllers.observer import Observer
from swarmtask.controllers.snapshots import take_snapshot
from swarmtask.controllers.twins import Twins
from swarmtask.controllers.waiting import Timers
from swarmtask.lifecycle import array, commands, deadlines, draft, loss, observed, verdicts
from swarmtask.lifecycle import task as machine
from swarmtask.lifecycle.array import DeleteMember
from swarmtask.lifecycle.messages import Drain, Observed, Reason, ReleaseFinalizer
from swarmtask.resources.kinds import SWARM_TASK
from swarmtask.resources.meta import FINALIZER
from swarmtask.resources.task import AttemptState
from swarmtask.scheduler import headroom
from swarmtask.scheduler.model import Amounts, QueueInfo, Snapshot
from swarmtask.scheduler.ordering import Gate, Order
from swarmtask.scheduler.reach import Reach

Bug = Callable[[], Any]
BUGS: dict[str, Bug] = {}
RARE = {
    "believes_old_news": "vanishing", "counts_on_a_removed_program_s_end": "vanishing",
    "counts_runs_that_nobody_wants_any_more": "arrays",
    "does_not_hear_who_is_to_come_first": "aging", "gives_a_gpu_twice": "gpus",
    "preempts_its_equals": "preemption", "relies_on_a_fence_that_is_not_there": "edits", "shares_without_weights": "teams",
    "takes_what_was_deleted_for_unbounded": "burst",
}  # fmt: skip
"""Bugs that few runs of all can meet -> the workload that does."""
MET_AT = {
    "counts_what_was_never_shown_as_stopped": 393, "deletes_a_run_before_it_is_recorded": 188, "learns_nothing": 384,
    "lets_each_queue_count_slots_for_itself": 162, "preempts_for_every_queue": 121, "relies_on_a_fence_that_is_not_there": 115,
    "replaces_before_the_fence": 293, "resubmits_under_the_same_number": 118, "runs_finished_work_again": 138,
    "shares_without_weights": 85, "submits_something_else_each_time": 69,
}  # fmt: skip
"""Bugs that take many runs to be met -> the first seed that met them, where the search begins. Nothing else depends on it."""


def bug(plant: Callable[[], Iterator[None]]) -> Bug:
    """Enter it into the list, under its name."""
    BUGS[plant.__name__] = contextmanager(plant)
    return BUGS[plant.__name__]


# --- writing ---


class _WithoutVersion:
    """The API, to someone who does not say which version he has decided on."""

    def __init__(self, api: Any) -> None:
        self._api = api

    async def patch(self, kind: Any, name: str, body: Any, namespace: str | None = None, **options: Any) -> Any:
        metadata = {field: value for field, value in body.get("metadata", {}).items() if field != "resourceVersion"}
        return await self._api.patch(kind, name, body | {"metadata": metadata}, namespace, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._api, name)


@bug
def writes_without_precondition() -> Iterator[None]:
    """A status is written over whatever is there."""
    original = Executor.write

    async def write(self: Executor, *arguments: Any, **options: Any) -> None:
        self._api, kept = _WithoutVersion(self._api), self._api
        try:
            await original(self, *arguments, **options)
        finally:
            self._api = kept

    with patch.object(Executor, "write", write):
        yield


@bug
def loses_a_task_on_conflict() -> Iterator[None]:
    """After a conflict the task is forgotten instead of read again."""

    async def refresh(self: Executor, key: Any, *rest: Any, **options: Any) -> None:
        self._cache.remove(SWARM_TASK, key)

    with patch.object(Executor, "refresh", refresh):
        yield


@bug
def removes_the_finalizer_early() -> Iterator[None]:
    """The task is let go before its workload is gone."""
    original = executor_module.outstanding

    def outstanding(stored: Any, *rest: Any, **options: Any) -> Any:
        found = original(stored, *rest, **options)
        if stored.metadata.deletion_timestamp is not None and FINALIZER in stored.metadata.finalizers:
            return (ReleaseFinalizer(), *found)
        return found

    with patch.object(executor_module, "outstanding", outstanding):
        yield


@bug
def deletes_before_the_time_to_live_is_over() -> Iterator[None]:
    """A finished task goes at once."""
    with patch.object(commands, "expiry", lambda spec, status, *rest, **options: status.completion_time):
        yield


# --- remembering ---


def _without_room(held: Holding) -> Holding:
    """The same place, of which nothing is taken. Who lives there and who is counted must still agree: the cache relies on that."""
    return replace(held, amounts=Amounts(), limits=(), gpus=())


@bug
def forgets_what_it_assumed() -> Iterator[None]:
    """A placement that is not stored yet takes no room."""
    original = Cache.assume

    def assume(self: Cache, pending: Any, *where: Any, **options: Any) -> bool:
        taken = original(self, pending, *where, **options)
        if taken:
            before = self._holding(pending.key)
            assumed = self._assumed[pending.key]
            self._assumed[pending.key] = replace(assumed, holding=_without_room(assumed.holding))
            self._account(pending.key, before)
        return taken

    with patch.object(Cache, "assume", assume):
        yield


@bug
def frees_the_node_when_stopping_begins() -> Iterator[None]:
    """An attempt that is being stopped holds nothing any more."""
    original = task_facts.holding_of

    def holding_of(stored: Any, *rest: Any, **options: Any) -> Any:
        held, current = original(stored, *rest, **options), stored.status.current
        return _without_room(held) if held is not None and current.state is AttemptState.STOPPING else held

    with patch.object(task_facts, "holding_of", holding_of):
        yield


@bug
def gives_a_gpu_twice() -> Iterator[None]:
    """Which GPUs of a node are held is forgotten, only how many."""
    with patch.object(Cache, "gpus_held", lambda self, *node, **options: frozenset()):
        yield


@bug
def believes_old_news() -> Iterator[None]:
    """Whatever comes last is taken for the newest."""
    original = Cache.apply

    def apply(self: Cache, kind: Any, obj: Any, **options: Any) -> bool:
        slot = (kind.plural, (obj["metadata"].get("namespace") or "", obj["metadata"]["name"]))
        self._versions.pop(slot, None)
        self._tombstones.pop(slot, None)
        return original(self, kind, obj, **options)

    with patch.object(Cache, "apply", apply):
        yield


# --- limits ---


@bug
def ignores_max_tasks() -> Iterator[None]:
    """spec.maxTasks of a node does not count."""

    def snapshot(*seen: Any, **options: Any) -> Snapshot:
        taken = take_snapshot(*seen, **options)
        return replace(taken, nodes=[replace(node, max_tasks=None) for node in taken.nodes])

    with patch.object(scheduling, "take_snapshot", snapshot), patch.object(scheduling, "still_takes", _always):
        yield


@bug
def ignores_max_running() -> Iterator[None]:
    """spec.maxRunning of a queue does not count."""

    def snapshot(*seen: Any, **options: Any) -> Snapshot:
        taken = take_snapshot(*seen, **options)
        return replace(taken, queues={key: replace(queue, max_running=None) for key, queue in taken.queues.items()})

    with patch.object(scheduling, "take_snapshot", snapshot), patch.object(Cache, "has_room", _always):
        yield


def _always(*_: Any, **__: Any) -> bool:
    return True


@bug
def takes_what_was_deleted_for_unbounded() -> Iterator[None]:
    """A queue without an object counts as there, and has no bounds."""
    everything = patch.multiple(KnownQueues, exists=_always, unknown=lambda self, key: "")
    with everything, patch.object(Cache, "has_room", _always):
        yield


# --- preemption ---


@bug
def preempts_its_equals() -> Iterator[None]:
    """A task of the same priority may be stopped, too."""
    original = headroom.candidates

    def candidates(occupancy: Any, columns: Any, task: Any, level: int, *rest: Any, **options: Any) -> Any:
        return original(occupancy, columns, replace(task, priority=task.priority + 1), level + 1, *rest, **options)

    with patch.object(headroom, "candidates", candidates), patch.object(Executor, "_needs_room", _always):
        yield


@bug
def preempts_for_every_queue() -> Iterator[None]:
    """spec.preemption of a queue does not count."""

    def snapshot(*seen: Any, **options: Any) -> Snapshot:
        taken = take_snapshot(*seen, **options)
        return replace(taken, queues={key: replace(queue, preempts=True) for key, queue in taken.queues.items()})

    with patch.object(scheduling, "take_snapshot", snapshot):
        yield


@bug
def counts_preemptions() -> Iterator[None]:
    """Who is preempted pays for it from backoffLimit."""
    rules = MappingProxyType({
        reason: replace(rule, counts=True) if reason is Reason.PREEMPTED else rule for reason, rule in verdicts.RULES.items()
    })  # fmt: skip
    with patch.object(verdicts, "RULES", rules):
        yield


# --- drains ---


@bug
def counts_drains() -> Iterator[None]:
    """Who is stopped because its node is drained pays for it as for a lost node."""
    original = draft.Draft.stopped

    def stopped(self: Any, attempt: Any, *rest: Any, **options: Any) -> None:
        if attempt.stop_reason == Reason.DRAINED:
            self.status.infrastructure_losses += 1
        original(self, attempt, *rest, **options)

    with patch.object(draft.Draft, "stopped", stopped):
        yield


@bug
def drains_every_node() -> Iterator[None]:
    """One drained node stops what runs on the others, too."""

    def step(self: Draining) -> int:
        if any(node.spec.drain for node in self._cache.nodes.values()):
            for key, attempt in self._cache.live():
                self._executor.offer(key, self._cache.tasks[key].task.metadata.uid, Drain(attempt.number, attempt.node))
        return 0

    with patch.object(Draining, "step", step), patch.object(Cache, "drains", lambda self, *node, **options: True):
        yield


# --- memory ---


@bug
def climbs_nothing() -> Iterator[None]:
    """After a kill for memory the next attempt asks for as much again."""
    with patch.object(draft, "climb", lambda *given, **options: None):
        yield


@bug
def climbs_for_ever() -> Iterator[None]:
    """Nobody asks whether any node has so much."""
    with patch.object(Reach, "lacks", lambda self, task: ""):
        yield


@bug
def learns_nothing() -> Iterator[None]:
    """What tasks have used is not remembered for those of their like."""
    with patch.object(sizes, "peak_of", lambda task: None):
        yield


@bug
def counts_evictions() -> Iterator[None]:
    """Who had to go because the machine ran out of memory pays for it from backoffLimit."""
    rules = MappingProxyType({
        reason: replace(rule, counts=True) if reason is Reason.EVICTED else rule for reason, rule in verdicts.RULES.items()
    })  # fmt: skip
    with patch.object(verdicts, "RULES", rules):
        yield


# --- twins and arrays ---


@bug
def runs_the_same_work_twice() -> Iterator[None]:
    """Nobody looks for another task with the same dedupeKey."""
    with patch.object(Twins, "of", lambda self, *given, **options: None):
        yield


@bug
def counts_runs_that_nobody_wants_any_more() -> Iterator[None]:
    """What had ended beyond a number of runs that was lowered counts as if it were below."""
    with patch.object(array._Draft, "wanted", lambda self, indices: indices):
        yield


@bug
def deletes_a_run_before_it_is_recorded() -> Iterator[None]:
    """A run of an array that has ended is deleted at once, and so runs again when its end was not recorded yet."""
    original = arrays.outstanding

    def outstanding(task: Any, members: Any, *rest: Any, **options: Any) -> Any:
        ended = tuple(DeleteMember(member) for member in members.values() if member.ended and not member.deleting)
        return (*ended, *original(task, members, *rest, **options))

    with patch.object(arrays, "outstanding", outstanding):
        yield


# --- attempts ---


@bug
def resubmits_under_the_same_number() -> Iterator[None]:
    """A workload that vanished is submitted again, without a new attempt."""
    original = observed._lose

    def lose(one: Any, live: Any, reason: Reason, *rest: Any, **options: Any) -> None:
        if reason is Reason.WORKLOAD_LOST and live.state is not AttemptState.STOPPING:
            one.update(live, state=AttemptState.STARTING, observed=False, started_at=None)
        else:
            original(one, live, reason, *rest, **options)

    with patch.object(observed, "_lose", lose):
        yield


@bug
def submits_something_else_each_time() -> Iterator[None]:
    """What an attempt runs depends on when it is submitted."""
    original, times = submission.build_workload, itertools.count()

    def build(*arguments: Any) -> Any:
        return replace(original(*arguments), env=(("SUBMITTED", str(next(times))),))

    with patch.object(submission, "build_workload", build):
        yield


@bug
def ignores_slots() -> Iterator[None]:
    """spec.limits of queues does not count."""

    def snapshot(*seen: Any, **options: Any) -> Snapshot:
        return replace(take_snapshot(*seen, **options), limits={})

    with patch.object(scheduling, "take_snapshot", snapshot), patch.object(Cache, "has_room", _always):
        yield


@bug
def lets_each_queue_count_slots_for_itself() -> Iterator[None]:
    """What one queue starts in a cycle leaves a limit as it was for the others."""
    original = Order._gate

    def gate(self: Order, queue: QueueInfo) -> Gate:
        made = original(self, queue)
        made.slots = copy.deepcopy(made.slots)
        return made

    with patch.object(Order, "_gate", gate), patch.object(Cache, "has_room", _always):
        yield


@bug
def shares_without_weights() -> Iterator[None]:
    """All queues of a cohort are due the same."""

    def snapshot(*seen: Any, **options: Any) -> Snapshot:
        taken = take_snapshot(*seen, **options)
        return replace(taken, queues={key: replace(queue, weight=1) for key, queue in taken.queues.items()})

    with patch.object(scheduling, "take_snapshot", snapshot):
        yield


@bug
def counts_infrastructure_losses() -> Iterator[None]:
    """What the infrastructure loses is paid from backoffLimit."""
    losses = (Reason.NODE_LOST, Reason.NODE_RESTARTED, Reason.WORKLOAD_LOST)
    rules = MappingProxyType({
        reason: replace(rule, counts=True) if reason in losses else rule for reason, rule in verdicts.RULES.items()
    })  # fmt: skip
    with patch.object(verdicts, "RULES", rules):
        yield


@bug
def believes_an_old_attempt() -> Iterator[None]:
    """What the engine shows of an earlier attempt is taken for the current one."""

    def tell_live(self: Observer, listing: Any) -> None:
        for key, _ in self._live():
            uid = self._cache.tasks[key].task.metadata.uid
            for seen in listing.by_task.get(uid, ()):
                self._executor.offer(key, uid, Observed(seen))

    def find_live(one: Any, event: Any) -> Any:
        return one.live

    with patch.object(Observer, "_tell_live", tell_live), patch.object(observed, "find_live", find_live):
        yield


@bug
def counts_attempts_anew_after_a_retry() -> Iterator[None]:
    """A retry by a person starts again at attempt 1."""
    original = draft.Draft.new_budget

    def new_budget(self: Any, *request: Any, **options: Any) -> None:
        original(self, *request, **options)
        self.status.attempt = 0

    with patch.object(draft.Draft, "new_budget", new_budget):
        yield


@bug
def takes_asking_for_stopping() -> Iterator[None]:
    """An attempt counts as over as soon as it was asked to stop."""
    original = draft.Draft.begin_stop

    def begin_stop(self: Any, *given: Any, **options: Any) -> None:
        original(self, *given, **options)
        if self.live is not None:
            self.stopped(self.live, "stopped, or so it is believed")

    with patch.object(draft.Draft, "begin_stop", begin_stop):
        yield


@bug
def takes_every_end_for_success() -> Iterator[None]:
    """The exit code is not looked at."""
    original = observed._reason_of

    def reason_of(*given: Any, **options: Any) -> Reason:
        reason = original(*given, **options)
        return Reason.COMPLETED if reason is Reason.ERROR else reason

    with patch.object(observed, "_reason_of", reason_of):
        yield


# --- losing nodes ---


@bug
def replaces_before_the_fence() -> Iterator[None]:
    """A lost node is taken for a dead one."""

    def replace_after_s(*given: Any, **options: Any) -> float:
        return 5.0

    with patch.object(observed, "replace_after_s", replace_after_s), patch.object(leases, "replace_after_s", replace_after_s):
        yield


@bug
def relies_on_a_fence_that_is_not_there() -> Iterator[None]:
    """Whether an attempt is fenced is read from its task, which may have been edited since the container was made."""

    def replacing(spec: Any, attempt: Any) -> str:
        return str(spec.node_loss.replace)

    with ExitStack() as planted:
        for module in (deadlines, leases, loss, observed):
            planted.enter_context(patch.object(module, "replacing", replacing))
        yield


@bug
def runs_finished_work_again() -> Iterator[None]:
    """What a node tells of work that it finished while it was away comes too late for the operator."""
    with patch.object(observed, "finished_away", lambda *given, **options: False):
        yield


@bug
def takes_a_polite_end_away_for_success() -> Iterator[None]:
    """A node that was given up tells of exit code 0, and that it had been told to end is not looked at."""
    original = loss.finished_away

    def finished_away(task: Any, attempt: Any, record: Any) -> bool:
        return original(task, attempt, record.model_copy(update={"told_to_end": False}))

    with patch.object(observed, "finished_away", finished_away):
        yield


@bug
def takes_a_polite_end_for_success() -> Iterator[None]:
    """The engine's word alone decides how an attempt has ended."""
    with patch.object(loss, "_may_be_explained", lambda *given, **options: False):
        yield


# --- looking ---


@bug
def does_not_hear_who_is_to_come_first() -> Iterator[None]:
    """A task that a person has moved to the front stays where it was."""
    with patch.object(task_facts, "front_at", lambda task: None):
        yield


@bug
def looks_at_the_engine_once() -> Iterator[None]:
    """Neither hints nor time lead to another look at the engine's list."""

    async def run(self: Observer) -> None:
        await self._lane.started()
        await self._poll()
        await asyncio.Event().wait()

    with patch.object(Observer, "run", run):
        yield


@bug
def counts_on_a_removed_program_s_end() -> Iterator[None]:
    """What somebody has removed is taken for dead, though it has its grace."""
    with patch.object(observer, "promised_grace_s", lambda *given: 0):
        yield


@bug
def counts_what_was_never_shown_as_stopped() -> Iterator[None]:
    """An attempt whose submit had no answer is over when its stop has had the time to take effect."""

    original = deadlines.unseen_stop_deadline

    def by_the_clock(spec: Any, attempt: Any, phase: Any, policy: Any) -> Any:
        return original(spec, attempt, phase, policy) if attempt.observed else deadlines.stop_over(spec, attempt, policy)

    with (
        patch.object(commands, "unseen_stop_deadline", by_the_clock),
        patch.object(machine, "unseen_stop_deadline", by_the_clock),
        patch.object(commands, "_proven", _always),
    ):
        yield


@bug
def leaves_orphans_alone() -> Iterator[None]:
    """What nobody owns stays on the engine."""

    async def clear_orphans(self: Observer, *listing: Any, **options: Any) -> None:
        pass

    with patch.object(Observer, "_clear_orphans", clear_orphans):
        yield


@bug
def removes_what_is_not_its_own() -> Iterator[None]:
    """Cleaning up goes by the beginning of a name, and so meets what belongs to others."""
    original = EngineLane.remove

    def remove(self: EngineLane, name: str, *rest: Any, **options: Any) -> None:
        original(self, name, *rest, **options)
        original(self, name.rpartition("-")[0], *rest, **options)

    with patch.object(EngineLane, "remove", remove):
        yield


@bug
def sleeps_through_deadlines() -> Iterator[None]:
    """Nothing wakes up when a stored moment has come."""
    original = Timers.set

    def set_(self: Timers, token: Any, *rest: Any, **options: Any) -> None:
        if not (isinstance(token, tuple) and token[0] == "wake"):
            original(self, token, *rest, **options)

    with patch.object(Timers, "set", set_):
        yield
