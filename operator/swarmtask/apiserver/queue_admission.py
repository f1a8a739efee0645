"""What a SwarmQueue says about the tasks that are put into it: how many may wait, how fast they may come, what they get by default.

Called by the object service at each create and edit, on the event loop, between reading the head and writing. Decides on the head,
so that of any number of concurrent creates exactly as many are accepted as there is room for. Looks at one queue and one number per
write, whatever is stored. What was accepted is never touched again: an edit of the queue holds for the creates after it.

docs/queues.md tells users what follows from this.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from pydantic import ValidationError

from swarmtask.apiserver import faults
from swarmtask.apiserver.rate_limits import Rate, TokenBuckets
from swarmtask.apiserver.records import Key, Record
from swarmtask.apiserver.store import Store
from swarmtask.apiserver.types import ResourceType
from swarmtask.apiserver.waiting import TASKS, is_array_member, queue_of, waits_in
from swarmtask.clock import Clock
from swarmtask.errors import Cause, TooManyRequests
from swarmtask.resources.meta import GROUP
from swarmtask.resources.queue import QueueSpec

log = structlog.get_logger(__name__)

QUEUES = (GROUP, "swarmqueues")
FULL_RETRY_MIN_S, FULL_RETRY_MAX_S = 1, 10
"""Retry-After where a queue is full. kubectl says nothing while it waits, and waits ten times: with the least of them it tells a
person after ten seconds that nothing moves, with the most after 100."""
CACHE_LIMIT = 1024
"""Queues kept decoded."""
FULL, TOO_FAST = "QueueFull", "ClientRateLimited"
"""Reasons of the causes in the details of a refusal: what a program can tell apart."""
_PRIORITY, _PRIORITY_CLASS = "priority", "priorityClass"

Token = tuple[str, str, str]
"""(namespace, queue, client): whose bucket a token came from."""


@dataclass(frozen=True, slots=True)
class _Rules:
    """What admission reads of one SwarmQueue. `throughput`: tasks that finished per minute, 0 while not known."""

    max_queued: int | None = None
    rate: Rate | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    throughput: float = 0.0

    @classmethod
    def of(cls, queue: Mapping[str, Any]) -> _Rules:
        """From a stored SwarmQueue. One that another version wrote and this one cannot read has no rules until it is edited."""
        try:
            spec = QueueSpec.model_validate(queue.get("spec") or {})
        except ValidationError as error:
            name = queue["metadata"].get("name", "")
            log.warning("a queue cannot be read, its bounds and defaults are not in force: edit it", queue=name, error=str(error))
            return _NO_RULES
        limit, status = spec.client_rate_limit, queue.get("status")
        throughput = status.get("throughputPerMinute") if isinstance(status, dict) else None
        return cls(
            max_queued=spec.max_queued,
            rate=Rate(limit.per_minute, limit.burst) if limit is not None else None,
            defaults=spec.defaults.to_dict(),
            throughput=throughput if isinstance(throughput, int | float) else 0.0,
        )


_NO_RULES = _Rules()


class QueueAdmission:
    """One per server."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._buckets = TokenBuckets(clock.monotonic)
        self._cache: dict[Key, tuple[int, _Rules]] = {}

    def fill_defaults(self, rt: ResourceType, namespace: str, obj: dict[str, Any]) -> Collection[str]:
        """Fill, in place, what a new task leaves out with the defaults of its queue. Before the defaults of the schema.

        The tasks of an array have what the array got when it was created.

        Returns:
            The fields of its spec that were filled in. The writer did not say them and is not to own them.
        """
        spec = obj.get("spec")
        if rt.storage_key != TASKS or not isinstance(spec, dict) or is_array_member(obj["metadata"]):
            return ()  # validation says what is wrong with another spec
        defaults = self._rules(namespace, queue_of(obj)).defaults
        filled = [name for name in defaults if name != _PRIORITY_CLASS and spec.get(name) is None]
        if _PRIORITY_CLASS in defaults and spec.get(_PRIORITY_CLASS) is None and spec.get(_PRIORITY) is None:
            filled.append(_PRIORITY_CLASS)
        for name in filled:
            spec[name] = defaults[name]
        return filled

    @staticmethod
    def give_way(rt: ResourceType, old: Mapping[str, Any], new: dict[str, Any]) -> None:
        """Take, in place, the priority class that a queue filled in from a task that is given a priority of its own.

        The two exclude each other, and whoever sets the one has not said the other: nobody owns it. Where ownership is not tracked,
        nobody knows who said it, and it stays.
        """
        spec, before = new.get("spec"), old.get("spec")
        if rt.storage_key != TASKS or not isinstance(spec, dict) or not isinstance(before, dict):
            return
        priority_class = spec.get(_PRIORITY_CLASS)
        if spec.get(_PRIORITY) is None or priority_class is None or priority_class != before.get(_PRIORITY_CLASS):
            return
        tracked = old["metadata"].get("managedFields") or ()
        # Server-side apply has put into the new object whoever says it from now on; a PUT may bring none at all.
        if tracked and not any(_owns_class(entry) for entry in (*tracked, *(new["metadata"].get("managedFields") or ()))):
            del spec[_PRIORITY_CLASS]

    def admit(self, rt: ResourceType, namespace: str, obj: Mapping[str, Any], *, client: str, dry_run: bool) -> Token | None:
        """Let a new, valid object in; the last step before it is written.

        Args:
            client: authenticated name of who creates it; empty for the server itself, which no rate limits.
            dry_run: decide alike, but take nothing.

        Returns:
            A token to give back should the write fail, if one was taken.

        Raises:
            TooManyRequests: its queue is full, or the client is too fast. Nothing was taken.
        """
        if rt.storage_key != TASKS or is_array_member(obj["metadata"]):
            return None
        name, queue = obj["metadata"]["name"], queue_of(obj)
        rules = self._rules(namespace, queue)
        self._check_room(rt, name, namespace, queue, rules)
        if rules.rate is None or not client:
            return None
        token = (namespace, queue, client)
        wait_s = self._buckets.wait_s(token, rules.rate)
        if wait_s > 0:
            raise _too_fast(rt, name, token, rules.rate, max(1, math.ceil(wait_s)))
        if dry_run:
            return None
        self._buckets.take(token, rules.rate)
        return token

    def give_back(self, token: Token | None) -> None:
        """The task for which this token was taken could not be written after all."""
        if token is not None:
            self._buckets.give_back(token)

    def admit_edit(self, rt: ResourceType, old: Record, new: Mapping[str, Any]) -> None:
        """Let an edit of a stored task through; one that puts it into another queue needs room there, as a create does.

        Raises:
            TooManyRequests: that queue is full.
        """
        if rt.storage_key != TASKS:
            return
        queue = waits_in(old.key, new)
        if queue and queue != old.waits_in:
            self._check_room(rt, old.key.name, old.key.namespace, queue, self._rules(old.key.namespace, queue))

    def _check_room(self, rt: ResourceType, name: str, namespace: str, queue: str, rules: _Rules) -> None:
        if rules.max_queued is None:
            return
        waiting = self._store.waiting.of(namespace, queue)
        if waiting >= rules.max_queued:
            raise _full(rt, name, (namespace, queue), waiting, rules)

    def _rules(self, namespace: str, queue: str) -> _Rules:
        """What the queue says now, writes on their way to the disk included; no rules where there is no such queue."""
        key = Key(QUEUES, namespace, queue)
        record = self._store.head(key)
        if record is None:
            return _NO_RULES
        cached = self._cache.get(key)
        if cached is not None and cached[0] == record.rv:
            return cached[1]
        if len(self._cache) >= CACHE_LIMIT:
            self._cache.clear()
        rules = _Rules.of(record.decode())
        self._cache[key] = (record.rv, rules)
        return rules


def _owns_class(entry: Any) -> bool:
    """Of an entry of managedFields."""
    fields = entry.get("fieldsV1") if isinstance(entry, dict) else None
    below = fields.get("f:spec") if isinstance(fields, dict) else None
    return isinstance(below, dict) and "f:" + _PRIORITY_CLASS in below


def _full(rt: ResourceType, name: str, place: tuple[str, str], waiting: int, rules: _Rules) -> TooManyRequests:
    namespace, queue = place
    retry_after_s = FULL_RETRY_MIN_S
    if rules.throughput > 0:
        retry_after_s = min(FULL_RETRY_MAX_S, max(FULL_RETRY_MIN_S, math.ceil(60 / rules.throughput)))
    raise_it = f"kubectl -n {namespace} edit swarmqueue {queue}"
    if rules.max_queued == 0:
        why = f"the queue {queue} accepts no tasks, its maxQueued is 0. Use another queue, or raise the bound: {raise_it}"
    else:
        why = (
            f"the queue {queue} is full: {waiting} of at most {rules.max_queued} tasks (maxQueued) wait in it, and stay there. "
            f"Try again when some have started, cancel some of them, use another queue, or raise the bound: {raise_it}"
        )
    return _refused(rt, name, why, FULL, retry_after_s)


def _too_fast(rt: ResourceType, name: str, token: Token, rate: Rate, retry_after_s: int) -> TooManyRequests:
    namespace, queue, client = token
    why = (
        f"{client} creates tasks of the queue {queue} faster than its clientRateLimit allows ({rate.per_minute} per minute, "
        f"{rate.burst} at once). Try again in {retry_after_s} s, or raise the limit: kubectl -n {namespace} edit swarmqueue {queue}"
    )
    return _refused(rt, name, why, TOO_FAST, retry_after_s)


def _refused(rt: ResourceType, name: str, why: str, reason: str, retry_after_s: int) -> TooManyRequests:
    return TooManyRequests(
        f'{rt.qualified_plural} "{name}" was not accepted: {why}',
        details=faults.details(rt, name), causes=[Cause("spec.queue", reason, why)], retry_after_s=retry_after_s,
    )  # fmt: skip
