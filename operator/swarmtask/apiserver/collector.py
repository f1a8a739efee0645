"""What deletion sets in motion: dependents, finalizers of the propagation policies, namespaces, definitions, old Events.

Called by the store after commits (`on_commit`, which only notes what has to be looked at) and run by the server as one task. Every
step looks at the present state and may be repeated: nothing is lost by a crash, `start` looks at everything once.

Source of the rules: Kubernetes documentation, "Garbage Collection", "Finalizers", "Namespaces".
"""

from __future__ import annotations

import asyncio
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

import structlog

from swarmtask.apiserver.definitions import CLEANUP_FINALIZER, DEFINITIONS, collection_of, is_established, key_of, retry_refused
from swarmtask.apiserver.namespaces import namespace_waits
from swarmtask.apiserver.object_parts import NAMESPACES, Propagation
from swarmtask.apiserver.objects import ObjectService
from swarmtask.apiserver.owners import Owners
from swarmtask.apiserver.records import Change, Key, Record
from swarmtask.apiserver.versions import EVENTS
from swarmtask.apiserver.writes import WriteOptions
from swarmtask.clock import Clock, format_time, parse_time
from swarmtask.errors import AlreadyExists, SwarmTaskError

log = structlog.get_logger(__name__)

WAVE = 256
"""Deletions in flight at the same time: they share commits."""
RETRY_DELAY_S = 1.0
SWEEP_INTERVAL_S = 30.0

Task = Literal["policy", "namespace", "definition", "refused", "owners", "owner gone"]
Work = tuple[Task, Key, str]
"""What to do, with which object, and the UID where the object has gone."""


class Collector:
    """One per server. `run` works until cancelled."""

    def __init__(self, service: ObjectService, clock: Clock, *, event_ttl_s: float) -> None:
        self._service = service
        self._store = service.store
        self._clock = clock
        self._event_ttl = timedelta(seconds=event_ttl_s)
        self._owners = Owners(self._store, service.registry, frozenset(one.uid for one in self._store.quarantined))
        self._sweep_interval_s = min(SWEEP_INTERVAL_S, event_ttl_s / 4)
        self._work: OrderedDict[Work, None] = OrderedDict()
        self._wake = asyncio.Event()
        self._events: OrderedDict[Key, datetime] = OrderedDict()

    def start(self) -> None:
        """Look at everything that is stored; once, before `run`."""
        for record in self._store.index:
            self._note_written(record, new=True)
        now = self._clock.now()
        aged = [(_event_time(record.decode(), now), record.key) for record in self._store.index.records(EVENTS)]
        self._events.update((key, moment) for moment, key in sorted(aged))

    def on_commit(self, changes: Sequence[Change]) -> None:
        """A store listener: notes what has to be looked at."""
        now = self._clock.now()
        for change in changes:
            if change.type == "DELETED":
                self._note_removed(change.record)
            else:
                if change.key.collection == EVENTS:
                    self._events[change.key] = now
                    self._events.move_to_end(change.key)
                previous = change.previous
                self._note_written(change.record, new=previous is None or previous.owners != change.record.owners)

    def _note_written(self, record: Record, *, new: bool) -> None:
        if record.deleting:
            self._add("policy", record.key)
            if record.key.collection == NAMESPACES:
                self._add("namespace", record.key)
            elif record.key.collection == DEFINITIONS:
                self._add("definition", record.key)
        elif new and record.owners:
            self._add("owners", record.key)

    def _note_removed(self, record: Record) -> None:
        key = record.key
        self._events.pop(key, None)
        if self._store.index.dependents(record.uid):
            self._add("owner gone", key, record.uid)
        for uid in record.owners:
            owner = self._store.index.by_uid(uid)
            if owner is not None and owner.deleting:
                self._add("policy", owner.key)
        if key.collection == DEFINITIONS:
            for other in self._store.index.records(DEFINITIONS):
                self._add("refused", other.key)
        else:
            definition = self._store.get(key_of(key.collection))
            if definition is not None and definition.deleting:
                self._add("definition", definition.key)
        namespace = self._store.get(Key(NAMESPACES, "", key.namespace)) if key.namespace else None
        if namespace is not None and namespace.deleting:
            self._add("namespace", namespace.key)

    def _add(self, task: Task, key: Key, uid: str = "") -> None:
        self._work[(task, key, uid)] = None
        self._wake.set()

    # --- loops -----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until cancelled. What fails (a full disk) is tried again later."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sweep_events())
            while True:
                await self._wake.wait()
                self._wake.clear()
                await self._work_off()

    async def _work_off(self) -> None:
        while self._work:
            work, _ = self._work.popitem(last=False)
            try:
                await self._do(work)
                continue
            except SwarmTaskError as error:
                log.warning("collection is tried again", task=work[0], key=work[1], error=error.message)
            except Exception:  # a bug that one object meets must not end the work for all others, and must not go unseen
                log.exception("collection failed unexpectedly and is tried again", task=work[0], key=work[1])
            await self._clock.sleep(RETRY_DELAY_S)
            self._work[work] = None

    async def _do(self, work: Work) -> None:
        task, key, uid = work
        match task:
            case "policy":
                await self._follow_policy(key)
            case "namespace":
                await self._empty_namespace(key)
            case "definition":
                await self._empty_definition(key)
            case "refused":
                await self._retry_refused(key)
            case "owners":
                record = self._store.get(key)
                if record is not None and not record.deleting:
                    await self._check_owners(record, None)
            case "owner gone":
                for record in self._store.index.dependents(uid):
                    await self._check_owners(record, (key, uid))

    async def _sweep_events(self) -> None:
        while True:
            await self._clock.sleep(self._sweep_interval_s)
            try:
                await self.sweep_events()
            except SwarmTaskError as error:
                log.warning("old events stay for now", error=error.message)
            except Exception:  # as above
                log.exception("old events stay for now")

    async def sweep_events(self) -> None:
        """Delete the Events whose time is up."""
        limit = self._clock.now() - self._event_ttl
        old = []
        for key, moment in self._events.items():
            if moment > limit:
                break
            record = self._store.get(key)
            if record is not None and not record.deleting:
                old.append(record)
        await self._delete_all(old)

    # --- owners and dependents -------------------------------------------------------------------------------------------

    async def _check_owners(self, record: Record, gone: tuple[Key, str] | None) -> None:
        """Delete a dependent none of whose owners is left; drop references to those that are gone; report those that lead nowhere.

        Args:
            gone: key and UID of an owner that is known to have gone.
        """
        if record.deleting:
            return
        references = record.decode()["metadata"].get("ownerReferences") or []
        misplaced = [(one, why) for one in references if (why := self._owners.misplaced(one, record))]
        absent = [one for one in references if self._owners.is_absent(one, record, gone)]

        def drop(obj: dict[str, Any]) -> None:
            metadata = obj["metadata"]
            metadata["ownerReferences"] = [one for one in metadata.get("ownerReferences", ()) if one not in absent]

        if absent and len(absent) == len(references):
            log.info("dependent deleted", key=record.key)
            await self._service.delete_record(record)
        elif absent:
            await self._service.rewrite(record.key, drop)
        for reference, why in misplaced:
            await self._report(record, reference, why)

    async def _report(self, dependent: Record, reference: Mapping[str, Any], message: str) -> None:
        """A Warning Event about a reference that leads nowhere, as Kubernetes posts it. One for each, as long as there is one."""
        rt, events = self._service.type_of(dependent), self._service.registry.find("", "v1", "events")
        if rt is None or events is None:
            return
        now = format_time(self._clock.now())
        namespace = dependent.key.namespace or "default"
        name = f"{dependent.uid}.{zlib.crc32(reference['uid'].encode()):08x}"
        event = {
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": namespace},
            "involvedObject": {
                "apiVersion": rt.api_version, "kind": rt.kind, "name": dependent.key.name, "uid": dependent.uid,
                **({"namespace": dependent.key.namespace} if dependent.key.namespace else {}),
            },
            "type": "Warning", "reason": "OwnerRefInvalidNamespace", "message": message,
            "source": {"component": "swarmtask-apiserver"}, "firstTimestamp": now, "lastTimestamp": now, "count": 1,
        }  # fmt: skip
        try:
            await self._service.create(events, namespace, event, WriteOptions())
        except AlreadyExists:
            return
        except SwarmTaskError as error:
            log.warning("a reference to an owner could not be reported", key=dependent.key, report=message, error=error.message)

    async def _follow_policy(self, key: Key) -> None:
        """Work on the finalizers `orphan` and `foregroundDeletion` of an object that is being deleted."""
        record = self._store.get(key)
        if record is None or not record.deleting:
            return
        finalizers = record.decode()["metadata"].get("finalizers", ())
        dependents = self._store.index.dependents(record.uid)
        if "orphan" in finalizers:
            for dependent in dependents:
                await self._service.rewrite(dependent.key, _without_owner(record.uid))
            await self._service.rewrite(key, _without_finalizer("orphan"))
        elif "foregroundDeletion" in finalizers:
            blocking = [dependent for dependent in dependents if self._owners.depends(dependent, record, blocking=True)]
            for dependent in dependents:
                if self._owners.depends(dependent, record):
                    await self._take_along(dependent, record.uid)
            if not blocking:
                await self._service.rewrite(key, _without_finalizer("foregroundDeletion"))

    async def _take_along(self, dependent: Record, owner_uid: str) -> None:
        if dependent.deleting:
            return
        others = [
            reference for reference in dependent.decode()["metadata"].get("ownerReferences", ())
            if reference["uid"] != owner_uid and not self._owners.is_absent(reference, dependent)
        ]  # fmt: skip
        if others:
            await self._service.rewrite(dependent.key, _without_owner(owner_uid))
            return
        below: Propagation | None = "Foreground" if self._store.index.dependents(dependent.uid) else None
        await self._service.delete_record(dependent, below)

    # --- namespaces and definitions --------------------------------------------------------------------------------------

    async def _empty_namespace(self, key: Key) -> None:
        record = self._store.get(key)
        if record is None or not record.deleting:
            return
        await self._delete_all(one for one in self._content(key.name) if not one.deleting)
        left = self._content(key.name)
        if left:
            now = self._clock.now()
            await self._service.rewrite(key, lambda obj: namespace_waits(obj, left, now))
            return  # each removal brings us back here

        def release(obj: dict[str, Any]) -> None:
            spec = obj.setdefault("spec", {})
            spec["finalizers"] = [name for name in spec.get("finalizers", ()) if name != "kubernetes"]

        await self._service.rewrite(key, release)

    def _content(self, namespace: str) -> list[Record]:
        index = self._store.index
        return [record for collection in index.collections() for record in index.records(collection, namespace)]

    async def _empty_definition(self, key: Key) -> None:
        record = self._store.get(key)
        if record is None or not record.deleting:
            return
        if CLEANUP_FINALIZER not in record.decode()["metadata"].get("finalizers", ()):
            return
        collection = collection_of(record)
        if not any(rt.storage_key == collection and not rt.custom for rt in self._service.registry):  # one that took such a name
            await self._delete_all(one for one in self._store.index.records(collection) if not one.deleting)
            if self._store.index.keys(collection):
                return  # each removal brings us back here
        await self._service.rewrite(key, _without_finalizer(CLEANUP_FINALIZER))

    async def _retry_refused(self, key: Key) -> None:
        record = self._store.get(key)
        if record is None or is_established(record.decode()):
            return
        now = self._clock.now()
        await self._service.rewrite(key, lambda crd: retry_refused(self._store, crd, now))

    async def _delete_all(self, records: Iterable[Record]) -> None:
        remaining = list(records)
        for position in range(0, len(remaining), WAVE):
            await asyncio.gather(*(self._service.delete_record(record) for record in remaining[position : position + WAVE]))


def _without_owner(uid: str) -> Callable[[dict[str, Any]], None]:
    def change(obj: dict[str, Any]) -> None:
        metadata = obj["metadata"]
        left = [reference for reference in metadata.get("ownerReferences", ()) if reference["uid"] != uid]
        if left:
            metadata["ownerReferences"] = left
        else:
            metadata.pop("ownerReferences", None)

    return change


def _without_finalizer(name: str) -> Callable[[dict[str, Any]], None]:
    def change(obj: dict[str, Any]) -> None:
        metadata = obj["metadata"]
        metadata["finalizers"] = [one for one in metadata.get("finalizers", ()) if one != name]

    return change


def _event_time(event: Mapping[str, Any], now: datetime) -> datetime:
    """When an Event was last written: at its creation, or later where it says so. What a clock of the future wrote counts for
    nothing: `sweep_events` expects no moment after those of Events that are still to come."""
    series = event.get("series")
    texts = [event["metadata"].get("creationTimestamp"), event.get("lastTimestamp"), event.get("eventTime")]
    if isinstance(series, dict):
        texts.append(series.get("lastObservedTime"))
    moments = []
    for text in texts:
        try:
            moments.append(parse_time(text))
        except (TypeError, ValueError):
            continue
    return max((moment for moment in moments if moment <= now), default=now)
