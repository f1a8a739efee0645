"""Reading the output of one attempt while it may still be written: batches of records, in order, to the end.

Called by `attempt_logs`, which makes readers, and by the routes, which end them. Reads files slice by slice, so that memory does
not depend on how much there is or on how slow the client is. Writes nothing.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Protocol

from swarmtask.apiserver.log_files import LogFiles, from_last, read_slice
from swarmtask.clock import Clock
from swarmtask.errors import InsufficientStorage, InternalError, SwarmTaskError
from swarmtask.resources.log_records import LogRecord, decode, lines

LINGER_S = 10.0
"""After an attempt is over, who follows it waits so long for the rest of its output; the end mark ends it earlier."""
UNFINISHED = b"the end of this output has not come: its node has not sent it"
DAMAGED = b"a line is damaged and cannot be shown"
DROPPED = b"%d lines dropped: of one attempt the beginning and the newest part are kept"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class LogId(NamedTuple):
    """Whose output it is."""

    task_uid: str
    attempt: int


class Tasks(Protocol):
    """What is known of tasks, as committed."""

    def namespace_of(self, task_uid: str) -> str | None:
        """None: there is no such task."""
        ...

    def over(self, task_uid: str, attempt: int) -> bool:
        """The attempt has ended, or is unknown: a node may still send what it wrote."""
        ...


@dataclass(slots=True, eq=False)
class OpenLog:
    """The files of an attempt while somebody writes or reads them.

    Attributes:
        dirty: not all of it is on the disk. gone: it is being removed.
        appended_at: monotonic time.
    """

    files: LogFiles
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    readers: set[LogReader] = field(default_factory=set)
    dirty: bool = False
    gone: bool = False
    appended_at: float = 0.0


class Logs(Protocol):
    """What a reader needs of all logs."""

    @property
    def tasks(self) -> Tasks: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def ending(self) -> bool: ...
    async def load(self, key: LogId) -> OpenLog: ...
    async def until(self, event: asyncio.Event, within_s: float | None) -> bool: ...


class LogReader:
    """One reading of one attempt's output, in batches. `end` ends it soon, from the loop."""

    def __init__(self, logs: Logs, key: LogId, *, tail: int | None, since_nanoseconds: int, follow: bool) -> None:
        self._logs, self._key, self._follow = logs, key, follow
        self._tail, self._since = tail, since_nanoseconds
        self.wake = asyncio.Event()
        self._ended = False

    def end(self) -> None:
        self._ended = True
        self.wake.set()

    async def batches(self) -> AsyncGenerator[list[LogRecord], None]:
        """Records as they are there; none of a batch is an end. Raises InternalError: the disk fails."""
        try:
            found = await self._logs.load(self._key)
        except KeyError:
            return  # removed since somebody looked
        found.readers.add(self)
        try:
            async for batch in self._go(found):
                wanted = [record for record in batch if record.kind != "z" and record.nanoseconds >= self._since]
                if wanted:
                    yield wanted
        finally:
            found.readers.discard(self)

    async def _go(self, found: OpenLog) -> AsyncGenerator[list[LogRecord], None]:
        files, position = found.files, 0
        if self._tail is not None:
            position = from_last(files.segments, self._tail, complete=files.complete)
        reading, offset, skip, over_since = -1, 0, 0, None
        while not (self._ended or found.gone):
            self.wake.clear()
            segment = next((one for one in files.segments if one.end > position), None)
            if segment is None:
                if files.complete or self._logs.ending:
                    return
                if over_since is None and self._logs.tasks.over(*self._key):
                    over_since = self._logs.clock.monotonic()
                if self._follow and await self._more(found, over_since):
                    continue
                if over_since is not None:
                    yield [LogRecord(files.last_nanoseconds, "n", UNFINISHED)]
                return
            batch: list[LogRecord] = []
            missing = max(0, segment.first - position)
            if segment.first != reading:
                reading, offset = segment.first, 0
                position = max(position, segment.first)
                skip = position - segment.first
            try:
                content = await asyncio.to_thread(read_slice, files.directory / segment.name, offset, segment.size)
            except FileNotFoundError:
                if found.gone:
                    return
                if segment in files.segments:
                    raise InternalError(f"{files.directory / segment.name} has gone: somebody has removed it") from None
                position -= missing  # dropped while it was opened: the note will tell of all that is missing
                reading = -1
                continue
            except OSError as error:
                raise disk_error(error, files.directory) from error
            if not content:
                position = segment.end  # it is shorter than it was: what is left of it was shown
                continue
            offset += len(content)
            for line in lines(content):
                if skip:
                    skip -= 1
                    continue
                position += 1
                batch.append(decode(line) or LogRecord(batch[-1].nanoseconds if batch else 0, "n", DAMAGED))
            if missing and batch:
                batch.insert(0, LogRecord(batch[0].nanoseconds, "n", DROPPED % missing))
            yield batch

    async def _more(self, found: OpenLog, over_since: float | None) -> bool:
        """Wait; False: nothing more will come."""
        if over_since is None:
            await self.wake.wait()
            return True
        patience_s = max(over_since, found.appended_at) + LINGER_S - self._logs.clock.monotonic()
        return patience_s > 0 and (await self._logs.until(self.wake, patience_s) or found.appended_at > over_since)


def disk_error(error: OSError, path: Path) -> SwarmTaskError:
    """What the disk says, in words that say what to do."""
    if error.errno in _FULL:
        return InsufficientStorage(
            f"the disk of {path} is full: nothing was taken. Free some space and try again", retry_after_s=10
        )
    return InternalError(f"output in {path} cannot be read or written: {error.strerror or error}")
