"""The output of attempts as the API keeps it: appended by node agents, read by people, here after the node has gone.

Called by the routes of `swarmtasks/log` (appends) and by `log_text`, through which every route shows output; the application opens
it, tells it of commits and keeps `run` going. Files lie below one directory, by task UID and attempt (`log_files`); nothing of them
is in SQLite.

- An append names the position of its first record. What is known already is taken as done, a gap is refused: so an agent may send
  again whatever it is not sure of.
- An append is in the kernel's hands when it is answered and on the disk a second later (fsync). A power cut may cost that second;
  the agent then finds that an older position is expected and sends it once more from the container's own log. The end, after which
  no agent asks, is on the disk with all before it when it is answered.
- Of one attempt the beginning and the newest part stay. Of all attempts together, those that finished first go first.
- The files of a task go with the task.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import structlog

from swarmtask.apiserver.log_files import Limits, LogFiles, details, remove_tree, survey, take
from swarmtask.apiserver.log_reader import EPOCH, LogId, LogReader, OpenLog, Tasks, disk_error
from swarmtask.apiserver.records import Change
from swarmtask.apiserver.waiting import TASKS
from swarmtask.clock import Clock
from swarmtask.errors import BadRequest, Conflict, RequestEntityTooLarge, SwarmTaskError
from swarmtask.resources.log_records import MOST_BODY_BYTES

log = structlog.get_logger(__name__)

SYNC_S = 1.0
MOST_LOADED = 256
ROOM = 0.9
"""When all together is too much, it is brought down to this share of the bound."""
_UID = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,63}")


@dataclass(frozen=True, slots=True)
class Position:
    """Where the next append goes on.

    Attributes:
        position: of the next record.
        last_nanoseconds: time of the newest record, 0 where there is none.
        complete: the end has been appended.
    """

    position: int
    last_nanoseconds: int
    complete: bool


class AttemptLogs:
    """See the module. One per server; all methods belong to its event loop.

    Args:
        total_bytes: of all attempts together.
    """

    def __init__(
        self, directory: Path, tasks: Tasks, clock: Clock, *, limits: Limits | None = None, total_bytes: int = 2 * 2**30
    ) -> None:
        self._directory, self.tasks, self.clock = directory, tasks, clock
        self._limits, self._total_bytes = limits or Limits(), total_bytes
        self._logs: OrderedDict[LogId, OpenLog] = OrderedDict()
        self._loading = asyncio.Lock()
        self._waiting: dict[LogId, set[asyncio.Event]] = {}
        self._deleted: set[str] = set()
        self._work = asyncio.Event()
        self.ending = False
        self.used_bytes = 0

    async def open(self) -> None:
        """Find what is there; what belongs to no task is removed. Raises InternalError, InsufficientStorage."""
        try:
            uids = await asyncio.to_thread(self._prepare)
            orphans = [uid for uid in uids if self.tasks.namespace_of(uid) is None]
            self.used_bytes = await asyncio.to_thread(self._clear, orphans)
        except OSError as error:
            raise disk_error(error, self._directory) from error
        self._work.set()

    def _prepare(self) -> list[str]:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return [path.name for path in self._directory.iterdir() if _UID.fullmatch(path.name) and path.is_dir()]

    def _clear(self, orphans: Sequence[str]) -> int:
        for uid in orphans:
            shutil.rmtree(self._directory / uid, ignore_errors=True)  # tried again at the next start
        return sum(path.stat().st_size for path in self._directory.glob("*/*/*.log"))

    # --- writing ---------------------------------------------------------------------------------------------------------

    async def append(self, task_uid: str, attempt: int, position: int, body: bytes) -> Position:
        """Take records, the first of which has this position. An empty body makes the log known, and tells its position.

        Raises:
            Conflict: a gap, or records behind the end; `details` hold the position that is expected and the newest time.
            BadRequest: no records. RequestEntityTooLarge. InsufficientStorage: the disk is full; nothing of it was taken.
        """
        if len(body) > MOST_BODY_BYTES:
            raise RequestEntityTooLarge(f"Request entity too large: limit is {MOST_BODY_BYTES}")
        key = _checked(task_uid, attempt)
        found = await self.load(key, create=True)
        async with found.lock:
            if found.gone:
                raise Conflict("the task is being removed, and its output with it", details=details(found.files))
            before = found.files.position
            try:
                grown = await asyncio.to_thread(take, found.files, position, body)
            except OSError as error:
                raise disk_error(error, found.files.directory) from error
            self.used_bytes += grown
            if found.files.position > before:
                found.dirty, found.appended_at = True, self.clock.monotonic()
                self._work.set()
                _wake(found)
            for event in self._waiting.get(key, ()):
                event.set()
            self._shed()
            return Position(found.files.position, found.files.last_nanoseconds, found.files.complete)

    async def load(self, key: LogId, *, create: bool = False) -> OpenLog:
        """For readers. Raises KeyError: nothing is known of it."""
        async with self._loading:
            found = self._logs.get(key)
            if found is None:
                path = self._path(key)
                try:
                    if create and not path.is_dir():
                        await asyncio.to_thread(path.mkdir, mode=0o700, parents=True, exist_ok=True)
                    found = OpenLog(await asyncio.to_thread(LogFiles.open, path, self._limits))
                except FileNotFoundError:
                    raise KeyError(key) from None
                except OSError as error:
                    raise disk_error(error, path) from error
                self._logs[key] = found
            self._logs.move_to_end(key)
            return found

    def _shed(self) -> None:
        for key in list(self._logs)[: max(0, len(self._logs) - MOST_LOADED)]:
            one = self._logs[key]
            if not (one.readers or one.dirty or one.lock.locked()):
                del self._logs[key]

    def _path(self, key: LogId) -> Path:
        return self._directory / key.task_uid / str(key.attempt)

    # --- reading ---------------------------------------------------------------------------------------------------------

    def reader(
        self,
        namespace: str,
        task_uid: str,
        attempt: int,
        *,
        tail: int | None = None,
        since: datetime | None = None,
        follow: bool = False,
    ) -> LogReader:
        """What an attempt has written.

        Ends at the present end, or with `follow` when nothing more will come: the end was appended, or the attempt has been over
        for a while.

        Args:
            tail: only so many records of the end. since: only records from then on.

        Raises:
            KeyError: nothing is known of it, at once.
        """
        if not self.knows(namespace, task_uid, attempt):
            raise KeyError(LogId(task_uid, attempt))
        since_ns = 0 if since is None else (since - EPOCH) // timedelta(microseconds=1) * 1000
        return LogReader(self, LogId(task_uid, attempt), tail=tail, since_nanoseconds=since_ns, follow=follow)

    def knows(self, namespace: str, task_uid: str, attempt: int) -> bool:
        """Somebody has appended to it, if only nothing."""
        if _UID.fullmatch(task_uid) is None or self.tasks.namespace_of(task_uid) != namespace:
            return False
        key = LogId(task_uid, attempt)
        return key in self._logs or self._path(key).is_dir()

    async def settle(self, namespace: str, task_uid: str, attempt: int, *, within_s: float) -> None:
        """Wait until something is known of it, and of an attempt that is over the end; but not longer than that."""
        key, event = LogId(task_uid, attempt), asyncio.Event()
        self._waiting.setdefault(key, set()).add(event)
        deadline = self.clock.monotonic() + within_s
        try:
            while not await self._settled(namespace, key):
                left = deadline - self.clock.monotonic()
                if left <= 0 or self.ending:
                    return
                event.clear()
                await self.until(event, left)
        finally:
            waiting = self._waiting[key]
            waiting.discard(event)
            if not waiting:
                del self._waiting[key]

    async def _settled(self, namespace: str, key: LogId) -> bool:
        if not self.knows(namespace, *key):
            return False
        try:
            return not self.tasks.over(*key) or (await self.load(key)).files.complete
        except KeyError:
            return False

    def end_reads(self) -> None:
        """The server stops: end what is being read."""
        self.ending = True
        for one in self._logs.values():
            _wake(one)
        for events in self._waiting.values():
            for event in events:
                event.set()

    async def until(self, event: asyncio.Event, within_s: float | None) -> bool:
        """Wait for it; False: the time is over."""
        if within_s is None:
            await event.wait()
            return True
        waiting, pause = asyncio.ensure_future(event.wait()), asyncio.ensure_future(self.clock.sleep(max(0.0, within_s)))
        try:
            await asyncio.wait((waiting, pause), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            pause.cancel()
        return event.is_set()

    # --- keeping house ---------------------------------------------------------------------------------------------------

    def on_commit(self, changes: Sequence[Change]) -> None:
        """A listener of the store: what was written of a task that was removed is removed; who follows an attempt looks again."""
        uids: dict[str, bool] = {}
        for change in changes:
            if change.key.collection == TASKS:
                uids[change.record.uid] = change.type == "DELETED"
        if not uids:
            return
        for key, one in self._logs.items():
            if key.task_uid in uids:
                one.gone = one.gone or uids[key.task_uid]
                _wake(one)
        for key, events in self._waiting.items():
            if key.task_uid in uids:
                for event in events:
                    event.set()
        deleted = [uid for uid, removed in uids.items() if removed and _UID.fullmatch(uid)]
        if deleted:
            self._deleted.update(deleted)
            self._work.set()

    async def run(self) -> None:
        """Bring to the disk what was appended, remove what has to go; until cancelled."""
        while True:
            await self._work.wait()
            self._work.clear()
            await self.keep_house()
            await self.clock.sleep(SYNC_S)

    async def keep_house(self) -> None:
        """One round of `run`."""
        deleted, self._deleted = self._deleted, set()
        for uid in deleted:
            await self._remove_task(uid)
        for one in [one for one in self._logs.values() if one.dirty]:
            one.dirty = False
            try:
                await asyncio.to_thread(one.files.sync)
            except OSError as error:
                if not one.gone:
                    log.error("output cannot be brought to the disk", path=str(one.files.directory), error=error.strerror)
        self._shed()
        if self.used_bytes > self._total_bytes:
            await self._make_room()

    async def close(self) -> None:
        """Bring everything to the disk. `run` has ended."""
        self.end_reads()
        await self.keep_house()

    async def _remove_task(self, uid: str) -> None:
        for key in [key for key in self._logs if key.task_uid == uid]:
            one = self._logs[key]
            one.gone = True
            async with one.lock:
                self._logs.pop(key, None)
        try:
            self.used_bytes -= await asyncio.to_thread(remove_tree, self._directory / uid)
        except OSError as error:
            log.error("output of a removed task cannot be removed", path=str(self._directory / uid), error=error.strerror)

    async def _make_room(self) -> None:
        """Finished attempts, the oldest first; then what unfinished ones wrote before their newest part."""
        wanted = int(self._total_bytes * ROOM)
        try:
            stored = await asyncio.to_thread(survey, self._directory)
            self.used_bytes = sum(size for _, size, _ in stored)
            running: list[LogId] = []
            for _, _, whose in stored:
                key = LogId(*whose)
                if self.used_bytes <= wanted:
                    return
                if self.tasks.over(*key):
                    await self._forget(key)
                else:
                    running.append(key)
            for key in running:
                if self.used_bytes <= wanted:
                    return
                one = await self.load(key)
                async with one.lock:
                    self.used_bytes -= await asyncio.to_thread(one.files.shrink)
        except (OSError, SwarmTaskError, KeyError) as error:
            log.error("old output cannot be removed; it takes more room than it may", error=str(error))

    async def _forget(self, key: LogId) -> None:
        one = self._logs.get(key)
        if one is not None:
            one.gone = True
            _wake(one)
            async with one.lock:
                self._logs.pop(key, None)
        self.used_bytes -= await asyncio.to_thread(remove_tree, self._path(key))


def _wake(one: OpenLog) -> None:
    for reader in one.readers:
        reader.wake.set()


def _checked(task_uid: str, attempt: int) -> LogId:
    if not _UID.fullmatch(task_uid) or not 1 <= attempt < 10**9:
        raise BadRequest("uid must be a task's UID, attempt a number from 1 on")
    return LogId(task_uid, attempt)
