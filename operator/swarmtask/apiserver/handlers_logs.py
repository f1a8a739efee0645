"""Routes of `swarmtasks/log` and `swarmnodes/log`: node agents append, people read.

Called by the application with a resolved target, after it has asked whether the user may do this at all. Which attempts a node may
append to is decided here, because it depends on the query or the body. How output is asked for and written is `log_text`, as for
pods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from swarmtask.apiserver import faults
from swarmtask.apiserver.access.nodes import NODES, is_attempt_on
from swarmtask.apiserver.access.users import User
from swarmtask.apiserver.attempt_logs import AttemptLogs, Position
from swarmtask.apiserver.log_text import LogTexts, wish_of
from swarmtask.apiserver.records import Key, Record
from swarmtask.apiserver.routing import Target
from swarmtask.apiserver.store import Store
from swarmtask.apiserver.waiting import TASKS
from swarmtask.apiserver.wire import Request, Response, respond, status_of, unsupported
from swarmtask.clock import Clock
from swarmtask.errors import BadRequest, Forbidden, NotFound, RequestEntityTooLarge, SwarmTaskError
from swarmtask.resources.log_records import CONTENT_TYPE, MOST_BODY_BYTES, MOST_PARTS, PARTS_TYPE, Part, unpack
from swarmtask.resources.meta import GROUP
from swarmtask.resources.task import LIVE_ATTEMPT_STATES

_NO_TRIAL = "an append cannot be tried: leave dryRun out"
LONGEST_WAIT_S = 30
"""Of `waitSeconds`: for the first output of an attempt, or for the end of one that is over."""
_LIVE = frozenset(state.value for state in LIVE_ATTEMPT_STATES)
_BINARY = ("application/octet-stream", CONTENT_TYPE)
_PARTS = ("application/octet-stream", PARTS_TYPE)
COLLECTIONS = (TASKS, NODES)
"""Whose subresource `log` is answered here."""


@dataclass(slots=True)
class StoredTasks:
    """What the logs need to know of tasks, from the committed objects."""

    store: Store

    def namespace_of(self, task_uid: str) -> str | None:
        record = self._record(task_uid)
        return None if record is None else record.key.namespace

    def over(self, task_uid: str, attempt: int) -> bool:
        record = self._record(task_uid)
        if record is None:
            return True
        found = attempt_of(record.decode(), attempt)
        return found is None or found.get("state") not in _LIVE

    def _record(self, task_uid: str) -> Record | None:
        record = self.store.index.by_uid(task_uid)
        return record if record is not None and record.key.collection == TASKS else None


def attempt_of(task: dict[str, Any], number: int) -> dict[str, Any] | None:
    """The record of an attempt; None where the task has none (any more)."""
    attempts = (task.get("status") or {}).get("attempts")
    found = (
        [item for item in attempts if isinstance(item, dict) and item.get("number") == number] if isinstance(attempts, list) else []
    )
    return found[0] if found else None


class LogHandlers:
    """GET and POST of `swarmtasks/NAME/log`, POST of `swarmnodes/NAME/log`."""

    def __init__(self, store: Store, logs: AttemptLogs, texts: LogTexts, clock: Clock) -> None:
        self._store, self._logs, self._texts, self._clock = store, logs, texts, clock

    async def handle(self, request: Request, target: Target, user: User) -> Response:
        """Raises NotFound, MethodNotAllowed, BadRequest, and what an append raises."""
        if request.method not in ("GET", "POST"):
            raise faults.method_not_allowed()
        name = target.name or ""
        if target.rt.storage_key == NODES:
            return await self._append_parts(request, name)
        record = self._store.get(Key(TASKS, target.namespace or "", name))
        if record is None:
            raise faults.not_found(target.rt, name)
        if request.method == "POST":
            return await self._append(request, target, record, user)
        return await self._read(request, target, record)

    # --- appending -------------------------------------------------------------------------------------------------------

    async def _append(self, request: Request, target: Target, record: Record, user: User) -> Response:
        attempt, position = request.number("attempt"), request.number("position")
        uid = request.query.get("uid", "")
        if attempt is None or position is None or not uid:
            raise BadRequest("an append needs the query parameters uid, attempt and position")
        if request.content_type not in _BINARY:
            raise unsupported(_BINARY)
        if request.dry_run:
            raise BadRequest(_NO_TRIAL)
        if uid != record.uid:
            # NotFound and no conflict: who appends to a task that was replaced by another of its name has nothing to try again.
            raise faults.not_found(target.rt, record.key.name)
        return respond(await self._take(record, user.node, attempt, position, request.body), status=201)

    async def _append_parts(self, request: Request, node: str) -> Response:
        """What attempts on one node have written, answered part by part. Whether the SwarmNode still exists does not matter."""
        if request.content_type not in _PARTS:
            raise unsupported(_PARTS)
        if request.dry_run:
            raise BadRequest(_NO_TRIAL)
        try:
            parts = unpack(request.body)
        except ValueError as error:
            raise BadRequest(f"these are no parts of output: {error}") from error
        if len(parts) > MOST_PARTS or sum(len(part.body) for part in parts) > MOST_BODY_BYTES:
            raise RequestEntityTooLarge(f"Request entity too large: limit is {MOST_PARTS} parts, {MOST_BODY_BYTES} together")
        items = []
        for part in parts:
            try:
                items.append(await self._append_part(part, node))
            except SwarmTaskError as error:
                items.append(status_of(error))
        found = {"kind": "AttemptLogList", "apiVersion": "swarmtask.io/v1alpha1", "metadata": {}, "items": items}
        return respond(found, status=201)

    async def _append_part(self, part: Part, node: str) -> dict[str, Any]:
        record = self._store.get(Key(TASKS, part.namespace, part.task))
        if record is None or record.uid != part.uid:
            raise NotFound(f"there is no task {part.namespace}/{part.task} with the UID {part.uid} (any more)")
        return await self._take(record, node, part.attempt, part.position, part.body)

    async def _take(self, record: Record, node: str, attempt: int, position: int, body: bytes) -> dict[str, Any]:
        """Append to an attempt of a task. `node`: only if the attempt is on that one; empty: wherever it is."""
        task = record.decode()
        if node and not is_attempt_on(task, node, attempt):
            why = f"attempt {attempt} is not one of its node: {node}"
            raise Forbidden(
                f'swarmtasks.{GROUP} "{record.key.name}" is forbidden: a node may append only to attempts on itself, and {why}',
                details={"name": record.key.name, "group": GROUP, "kind": "swarmtasks"},
            )
        if attempt_of(task, attempt) is None:
            raise NotFound(f"{record.key.name} has no attempt {attempt} (any more)")
        return _answer(record, attempt, await self._logs.append(record.uid, attempt, position, body))

    # --- reading ---------------------------------------------------------------------------------------------------------

    async def _read(self, request: Request, target: Target, record: Record) -> Response:
        name, task = record.key.name, record.decode()
        attempt = request.number("attempt")
        if attempt is None:
            attempt = int((task.get("status") or {}).get("attempt") or 0)
        if not attempt:
            raise NotFound(f"{name} has not run yet", details=faults.details(target.rt, name))
        wish, wait_s = wish_of(request, self._clock.now()), min(request.number("waitSeconds") or 0, LONGEST_WAIT_S)
        namespace = record.key.namespace
        if wait_s:
            await self._logs.settle(namespace, record.uid, attempt, within_s=wait_s)
        try:
            return self._texts.answer(namespace, record.uid, attempt, wish)
        except KeyError:
            raise NotFound(
                f"no output of attempt {attempt} of {name} has come: its node sends none, or it was removed",
                details=faults.details(target.rt, name),
            ) from None


def _answer(record: Record, attempt: int, at: Position) -> dict[str, Any]:
    return {
        "kind": "AttemptLog", "apiVersion": "swarmtask.io/v1alpha1",
        "metadata": {"name": record.key.name, "namespace": record.key.namespace, "uid": record.uid},
        "attempt": attempt, "position": at.position, "lastNanoseconds": at.last_nanoseconds, "complete": at.complete,
    }  # fmt: skip
