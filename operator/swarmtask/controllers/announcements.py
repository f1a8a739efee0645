"""Kubernetes Events: what happened to a task, told to whoever runs `kubectl describe`.

Called by the executor after a status was written, and by controllers with something to say. Events are told beside the work, never
in its way: they wait in a bounded queue of their own, and one that cannot be posted is logged and dropped. Repetitions are counted
in one Event instead of becoming many.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from swarmtask.clock import Clock, format_micro_time
from swarmtask.controllers.crashpoints import write_point
from swarmtask.errors import AlreadyExists, Forbidden, NotFound, SwarmTaskError
from swarmtask.kube import Object, ObjectApi
from swarmtask.lifecycle.endings import ending_of
from swarmtask.lifecycle.messages import Announcement
from swarmtask.resources.kinds import EVENT, SWARM_TASK, Kind
from swarmtask.resources.meta import FIELD_MANAGER, ObjectMeta
from swarmtask.resources.task import SwarmTask

logger = logging.getLogger(__name__)

BACKLOG = 5_000
"""Events that wait at most. A flood (ten thousand tasks created at once) is not worth holding up anything else."""
WORKERS = 4
TOLD_AGAIN_S, TOLD_AGAIN = 600.0, 500
"""Ends that are told again after a start: those of so many seconds, and the newest so many of them."""


@dataclass(frozen=True, slots=True)
class _Told:
    subject: Object
    announcement: Announcement
    when: str
    once: bool = False


class Announcer:
    """Posts Events in the background."""

    def __init__(self, api: ObjectApi, clock: Clock) -> None:
        self._api, self._clock = api, clock
        self._dropped = 0
        self._last = datetime.min.replace(tzinfo=UTC)
        self._queue: asyncio.Queue[_Told] = asyncio.Queue(BACKLOG)

    def tell_ends_again(self, tasks: Iterable[SwarmTask]) -> None:
        """Those of the last minutes, which an operator that died may have told nobody. Where they were told nothing changes."""
        now = self._clock.now()
        recent = []
        for task in tasks:
            end, announcement = task.status.completion_time, ending_of(task)
            if end is not None and announcement is not None and now - end < timedelta(seconds=TOLD_AGAIN_S):
                recent.append((end, task.metadata, announcement))
        recent.sort(key=lambda one: one[0])
        for end, metadata, announcement in recent[-TOLD_AGAIN:]:
            self._put(SWARM_TASK, metadata, announcement, format_micro_time(min(end, now)), once=True)

    def tell(self, kind: Kind, metadata: ObjectMeta, announcement: Announcement) -> None:
        """Queue an Event about an object; at once, never waits."""
        self._put(kind, metadata, announcement, self._moment(), once=False)

    def _put(self, kind: Kind, metadata: ObjectMeta, announcement: Announcement, when: str, *, once: bool) -> None:
        reference: Object = {
            "apiVersion": kind.api_version, "kind": kind.kind, "name": metadata.name, "uid": metadata.uid,
            "resourceVersion": metadata.resource_version,
        }  # fmt: skip
        if metadata.namespace:
            reference["namespace"] = metadata.namespace
        try:
            self._queue.put_nowait(_Told(reference, announcement, when, once))
        except asyncio.QueueFull:
            if not self._dropped:
                logger.warning(
                    "more Events than can be posted: those that find no room are dropped, beginning with %s", metadata.name
                )
            self._dropped += 1

    def _moment(self) -> str:
        """Now, to the microsecond, and never twice the same: kubectl sorts Events by time, and several happen in one second."""
        now = self._clock.now()
        if timedelta() <= self._last - now < timedelta(milliseconds=1):
            now = self._last + timedelta(microseconds=1)
        self._last = now
        return format_micro_time(now)

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            told = await self._queue.get()
            if self._dropped and self._queue.empty():
                logger.warning("%s Events were dropped", self._dropped)
                self._dropped = 0
            try:
                await self._post(told)
            except (NotFound, Forbidden):
                pass  # the namespace is going away, and its Events with it
            except SwarmTaskError as error:
                logger.warning("an Event about %s could not be posted: %s", told.subject["name"], error)
            except Exception:  # a bug that one Event meets must not end all others, and must not go unseen
                logger.exception("an Event about %s could not be posted, unexpectedly", told.subject["name"])

    async def _post(self, told: _Told) -> None:
        event = event_object(told.subject, told.announcement, told.when)
        name, namespace = event["metadata"]["name"], event["metadata"]["namespace"]
        try:
            with write_point("post-event"):
                await self._api.create(EVENT, event, namespace)
        except AlreadyExists:
            if told.once:
                return
            known = await self._api.get(EVENT, name, namespace)
            again = {"count": int(known.get("count") or 1) + 1, "lastTimestamp": told.when, "message": event["message"]}
            with write_point("post-event"):
                await self._api.patch(EVENT, name, again, namespace)


def event_object(subject: Object, announcement: Announcement, when: str) -> Object:
    """A core/v1 Event. Its name is a function of what it says, so that saying it again finds it."""
    said = "\0".join((subject["uid"], announcement.type, announcement.reason, announcement.message))
    digest = hashlib.sha256(said.encode()).hexdigest()[:16]
    namespace = subject.get("namespace") or "default"
    return {
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": f"{subject['name'][:236]}.{digest}", "namespace": namespace},
        "involvedObject": subject, "type": announcement.type, "reason": announcement.reason, "message": announcement.message[:1024],
        "source": {"component": FIELD_MANAGER}, "reportingComponent": FIELD_MANAGER, "reportingInstance": "",
        "firstTimestamp": when, "lastTimestamp": when, "count": 1,
    }  # fmt: skip
