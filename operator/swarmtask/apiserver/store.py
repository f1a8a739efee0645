"""Objects, their revisions and the event log: in memory, and on disk with group commit.

Called by the object service, the watch room and the collector, all on one event loop. How a write goes:

1. The caller reads `head(key)`, decides, and calls `put` or `remove` without awaiting in between: writers are serialised by the
   event loop, against a head that includes writes still on their way to the disk.
2. The write joins the batch: whatever has gathered while the batch before was committed, and what arrives at once after it. One
   thread owns the one writing connection (`disk`) and commits it (group commit, synchronous=FULL).
3. After the commit the index changes, listeners are told, and the caller's future resolves. Readers and watchers only ever see what
   is on disk; a read after an acknowledged write sees it.

A batch that cannot be committed (disk full) fails as a whole, together with every write that was queued behind it: those may have
been decided on it. The head falls back to what is on disk and the next write tries again.

The log is bounded: with each commit its oldest rows go, in small steps.
"""

from __future__ import annotations

import asyncio
import sqlite3
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import structlog

from swarmtask.apiserver.access.vault import Vault
from swarmtask.apiserver.disk import Disk
from swarmtask.apiserver.index import Index
from swarmtask.apiserver.layout import FIRST_VERSION, map_error
from swarmtask.apiserver.loading import Quarantined
from swarmtask.apiserver.records import Change, Collection, Key, LogEntry, Record, encoded
from swarmtask.apiserver.turns import Turns
from swarmtask.apiserver.waiting import WaitingCounts
from swarmtask.errors import Expired, InternalError, ServiceUnavailable, SwarmTaskError

log = structlog.get_logger(__name__)

BATCH_LIMIT = 512
GATHER_S = 0.01
"""The longest that a write waits for others to join its commit. Commits take 0.2 to 10 ms on ordinary disks."""
COMPACTION_STEP = 256
"""Log rows dropped per commit at most, on top of as many as the commit added: no commit has to wait long for compaction."""

Listener = Callable[[Sequence[Change]], None]


class Store:
    """Objects on disk and in memory. Make one with `Store.open`; all methods belong to the event loop that opened it."""

    def __init__(self, path: Path, *, event_log_rows: int, vault: Vault | None = None) -> None:
        self._path = path
        self._disk = Disk(path, vault)
        self._log_limit = event_log_rows
        self._writer_thread = ThreadPoolExecutor(1, "store-writer")
        self._reader_thread = ThreadPoolExecutor(1, "store-reader")
        self.quarantined: tuple[Quarantined, ...] = ()
        """Objects that could not be read; not served, and not deleted either."""
        self.index = Index()
        self.waiting = WaitingCounts()
        self.turns = Turns()
        self._log: list[LogEntry] = []
        self._floor = 0
        self._committed_rv = FIRST_VERSION
        self._last_rv = FIRST_VERSION
        self._overlay: dict[Key, tuple[Change, asyncio.Future[Record]]] = {}
        self._newest: asyncio.Future[Record] | None = None
        self._queue: list[tuple[Change, asyncio.Future[Record]]] = []
        self._wake = asyncio.Event()
        self._closing = False
        self._flusher: asyncio.Task[None] | None = None
        self._listeners: list[Listener] = []

    # --- life ------------------------------------------------------------------------------------------------------------

    @classmethod
    async def open(cls, path: Path, *, event_log_rows: int, vault: Vault | None = None) -> Store:
        """Open or make the database, check it, and load what is current into memory.

        Args:
            vault: seals Secrets; what is not sealed yet, or with an older key, is so before this returns. None: they stay plain.

        Raises:
            ConfigurationError: damaged, not ours, or written by a newer version.
            InsufficientStorage: no room to make it.
        """
        store = cls(path, event_log_rows=event_log_rows, vault=vault)
        loop = asyncio.get_running_loop()
        try:
            content = await loop.run_in_executor(store._writer_thread, store._disk.open)
            await loop.run_in_executor(store._reader_thread, store._disk.open_reader)
        except (sqlite3.Error, OSError) as error:
            store._shut_threads()
            raise map_error(error, path) from error
        except SwarmTaskError:
            store._shut_threads()
            raise
        store._committed_rv = store._last_rv = content.resource_version
        store._floor, store._log = content.floor, content.log
        store.index.load(content.records)
        store.waiting.load(content.records)
        store.quarantined = tuple(content.quarantined)
        store._flusher = asyncio.create_task(store._flush(), name="store-flusher")
        log.info(
            "store opened", path=str(path), sqlite=sqlite3.sqlite_version, objects=len(store.index), log_rows=len(store._log),
            resource_version=store._committed_rv,
        )  # fmt: skip
        return store

    async def close(self) -> None:
        """Commit what is queued, then close. Later writes are refused."""
        self._closing = True
        self._wake.set()
        if self._flusher is not None:
            await self._flusher
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._reader_thread, self._disk.close_reader)
        await loop.run_in_executor(self._writer_thread, self._disk.close)
        self._shut_threads()

    def subscribe(self, listener: Listener) -> None:
        """Call `listener` with each committed batch, in order, on the event loop, before the writers' futures resolve."""
        self._listeners.append(listener)

    # --- reading ---------------------------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """Of the database."""
        return self._path

    @property
    def resource_version(self) -> int:
        """Of the newest committed write."""
        return self._committed_rv

    @property
    def floor(self) -> int:
        """The oldest version from which a watch can start or at which a list can be read."""
        return self._floor

    def get(self, key: Key) -> Record | None:
        """The committed object."""
        return self.index.get(key)

    def head(self, key: Key) -> Record | None:
        """The object as the next write will find it: queued writes included. For decisions of writers, never for answers."""
        pending = self._overlay.get(key)
        if pending is not None:
            return None if pending[0].type == "DELETED" else pending[0].record
        return self.index.get(key)

    def heads(self, collection: Collection) -> list[Record]:
        """`head` of a whole, small collection."""
        keys = dict.fromkeys([*self.index.keys(collection), *(key for key in self._overlay if key.collection == collection)])
        return [record for key in keys if (record := self.head(key)) is not None]

    def history(self, since: int, collection: Collection, namespace: str | None = None) -> list[LogEntry]:
        """Log entries after `since`, of one collection.

        Raises:
            Expired: compacted.
        """
        self.check_retained(since)
        start = bisect_right(self._log, since, key=lambda entry: entry.rv)
        return [
            entry
            for entry in self._log[start:]
            if entry.key.collection == collection and (namespace is None or entry.key.namespace == namespace)
        ]

    def check_retained(self, version: int) -> None:
        """Raises Expired when the history after `version` is not complete any more."""
        if version < self._floor:
            raise Expired(f"too old resource version: {version} ({self._floor})")

    async def bodies(self, versions: Iterable[int]) -> dict[int, bytes]:
        """Bodies of past revisions, read from disk.

        Raises:
            Expired: one of them was compacted meanwhile.
        """
        wanted = sorted(set(versions))
        if not wanted:
            return {}
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._reader_thread, self._disk.fetch, wanted)
        except sqlite3.Error as error:
            raise map_error(error, self._path) from error
        if len(found) != len(wanted):
            raise Expired(f"too old resource version: {wanted[0]} ({self._floor})")
        return found

    async def records_at(self, version: int, collection: Collection, namespace: str | None = None) -> list[Record]:
        """All records of a collection as they were at `version`, in order of key.

        Raises:
            Expired: compacted.
        """
        past: dict[Key, int | None] = {}
        for entry in self.history(version, collection, namespace):
            past.setdefault(entry.key, entry.previous_rv)
        current = self.index.records(collection, namespace)
        if not past:
            return current
        bodies = await self.bodies(rv for rv in past.values() if rv is not None)
        records = [record for record in current if record.key not in past]
        for key, rv in past.items():
            if rv is not None:
                records.append(Record.of(key, rv, orjson.loads(bodies[rv]), bodies[rv]))
        records.sort(key=lambda record: record.key)
        return records

    # --- writing ---------------------------------------------------------------------------------------------------------

    def put(
        self, key: Key, obj: dict[str, Any], *, replacing: Record | None, fits: Callable[[int], None] | None = None
    ) -> Awaitable[Record]:
        """Write an object; sets its resourceVersion. The result resolves when it is on disk.

        Args:
            replacing: what `head(key)` said when the caller decided; None to create.
            fits: asked with the bytes of the object as JSON before anything else happens; what it raises is raised.

        Raises:
            RuntimeError: the head is not `replacing` any more: the caller awaited between reading and writing.
            ServiceUnavailable: the server is stopping.
        The awaitable raises InsufficientStorage or InternalError when the commit failed; nothing was written then.
        """
        self._check_writable(key, replacing)
        rv = self._last_rv + 1
        obj["metadata"]["resourceVersion"] = str(rv)
        body = encoded(obj)
        if fits is not None:
            fits(len(body))
        self._last_rv = rv
        record = Record.of(key, rv, obj, body)
        return self._enqueue(Change("MODIFIED" if replacing is not None else "ADDED", record, replacing))

    def remove(self, key: Key, obj: dict[str, Any], *, replacing: Record) -> Awaitable[Record]:
        """Remove an object; `obj` is its last state, which watchers get with the resourceVersion of the removal.

        Raises: as `put`.
        """
        self._check_writable(key, replacing)
        self._last_rv = rv = self._last_rv + 1
        obj["metadata"]["resourceVersion"] = str(rv)
        return self._enqueue(Change("DELETED", Record.of(key, rv, obj, encoded(obj)), replacing))

    async def settled(self) -> None:
        """Wait for the writes that are on their way now: what was decided on the head is then also what a reader sees."""
        if self._newest is not None and not self._newest.done():
            await asyncio.wait([self._newest])

    def is_pending(self, key: Key) -> bool:
        """A write to this key is still on its way."""
        return key in self._overlay

    async def durable(self, key: Key) -> None:
        """Wait for the newest write to one key, if it is still on its way. Raises as that write does."""
        pending = self._overlay.get(key)
        if pending is not None:
            await asyncio.shield(pending[1])

    def _check_writable(self, key: Key, replacing: Record | None) -> None:
        if self._closing:
            raise ServiceUnavailable("the server is stopping: try again", retry_after_s=1)
        if self.head(key) is not replacing:
            raise RuntimeError(f"{key} changed between the decision and the write")

    def _enqueue(self, change: Change) -> asyncio.Future[Record]:
        future: asyncio.Future[Record] = asyncio.get_running_loop().create_future()
        self._overlay[change.key] = (change, future)
        self.waiting.staged(change)
        self._queue.append((change, future))
        self._newest = future
        self._wake.set()
        return future

    async def _flush(self) -> None:
        """Commit batch after batch until closed. The only consumer of the queue."""
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                await self._gather()
                batch, self._queue = self._queue[:BATCH_LIMIT], self._queue[BATCH_LIMIT:]
                changes = [change for change, _ in batch]
                old = self._old_entries(len(changes))
                try:
                    await loop.run_in_executor(self._writer_thread, self._disk.commit, changes, old)
                except (sqlite3.Error, OSError) as error:
                    self._fail(batch, map_error(error, self._path))
                else:
                    self._publish(batch, len(old))
            if self._closing:
                return

    async def _gather(self) -> None:
        """Let the writers that are ready join the batch: as long as each turn of the event loop brings more of them, or some are
        between two steps of what they write.

        A thread that commits beside a busy event loop makes both slower, because they share the interpreter: three quarters of the
        time for as many creates were measured, and no less delay for one alone (docs/performance.md).
        """
        loop, seen = asyncio.get_running_loop(), 0
        until = loop.time() + GATHER_S
        while (seen < len(self._queue) or self.turns.waiting) and len(self._queue) < BATCH_LIMIT and loop.time() < until:
            seen = len(self._queue)
            await asyncio.sleep(0)

    def _old_entries(self, added: int) -> list[LogEntry]:
        """The log rows to drop with a commit that adds so many: only rows that were committed before it."""
        excess = len(self._log) + added - self._log_limit
        return self._log[: min(excess, added + COMPACTION_STEP)] if excess > 0 else []

    def _publish(self, batch: Sequence[tuple[Change, asyncio.Future[Record]]], compacted: int) -> None:
        changes = []
        for change, future in batch:
            self.index.apply(change)
            pending = self._overlay.get(change.key)
            if pending is not None and pending[1] is future:
                del self._overlay[change.key]
            previous = change.previous.rv if change.previous is not None else None
            self._log.append(LogEntry(change.rv, change.type, change.key, previous))
            changes.append(change)
        self._committed_rv = changes[-1].rv
        if compacted:
            self._floor = self._log[compacted - 1].rv
            del self._log[:compacted]
        for listener in self._listeners:
            listener(changes)
        for change, future in batch:
            if not future.done():
                future.set_result(change.record)

    def _fail(self, batch: Sequence[tuple[Change, asyncio.Future[Record]]], error: SwarmTaskError) -> None:
        queued, self._queue = self._queue, []
        self._overlay.clear()
        log.error("writes refused", count=len(batch) + len(queued), error=error.message)
        for change, future in (*batch, *queued):
            self.waiting.undone(change)
            if not future.done():
                future.set_exception(error)
                future.exception()  # the writer may be gone; it must not be reported as never retrieved

    # --- the key of sealed bodies ----------------------------------------------------------------------------------------

    async def rotate_key(self) -> tuple[str, int]:
        """Seal everything with a new key, and forget the old one. Returns the new key's ID and how many revisions were sealed.

        Cut off at any moment, it goes on when the store is opened next.

        Raises: InsufficientStorage, InternalError: nothing was lost; try again.
        """
        vault = self._disk.vault
        if vault is None:
            raise InternalError("this store seals nothing")
        try:
            count = await asyncio.get_running_loop().run_in_executor(self._writer_thread, self._disk.rotate, vault)
        except (sqlite3.Error, OSError) as error:
            raise map_error(error, self._path) from error
        log.info("Secrets encrypted with a new key", key=vault.key_id, revisions=count)
        return vault.key_id, count

    def _shut_threads(self) -> None:
        self._reader_thread.shutdown(wait=False)
        self._writer_thread.shutdown(wait=False)
