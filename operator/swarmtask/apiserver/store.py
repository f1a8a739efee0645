"""The only SQL: objects, their revisions and the event log in SQLite, with group commit.

Called by the object service, the watch room and the collector, all on one event loop. How a write goes:

1. The caller reads `head(key)`, decides, and calls `put` or `remove` without awaiting in between: writers are serialised by the
   event loop, against a head that includes writes still on their way to the disk.
2. The write joins the batch. One thread owns the one writing connection and commits whatever has gathered while it was committing
   the batch before (group commit, synchronous=FULL).
3. After the commit the index changes, listeners are told, and the caller's future resolves. Readers and watchers only ever see what
   is on disk; a read after an acknowledged write sees it.

A batch that cannot be committed (disk full) fails as a whole, together with every write that was queued behind it: those may have
been decided on it. The head falls back to what is on disk and the next write tries again.

Layout: `revisions` holds each body once; `objects` points to the newest revision of a key; `log` is the watch history and points to
the revision and to the one before it. Compaction drops the oldest log rows in small steps, and with each the revision that it
replaced: what remains is exactly what a list at a version above the floor, or a watch from it, can ask for.

Bodies of Secrets are sealed on their way to the disk and opened on their way back, where there is a vault (`access.vault`).
"""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import structlog

from swarmtask.apiserver.access.vault import SEALED, Vault, is_sealed
from swarmtask.apiserver.index import Index
from swarmtask.apiserver.records import Change, Collection, Key, LogEntry, Record
from swarmtask.apiserver.waiting import WaitingCounts
from swarmtask.errors import ConfigurationError, Expired, InsufficientStorage, InternalError, ServiceUnavailable, SwarmTaskError

log = structlog.get_logger(__name__)

SCHEMA_VERSION = 1
APPLICATION_ID = 0x5357544B
"""Marks the file as ours ("SWTK" in ASCII)."""
BATCH_LIMIT = 512
COMPACTION_STEP = 256
"""Log rows dropped per commit at most, on top of as many as the commit added: no commit has to wait long for compaction."""
FETCH_STEP = 500
FIRST_VERSION = 1

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE revisions (rv INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE objects (
    grp TEXT NOT NULL, plural TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
    uid TEXT NOT NULL, rv INTEGER NOT NULL, PRIMARY KEY (grp, plural, namespace, name)
) WITHOUT ROWID;
CREATE TABLE log (
    rv INTEGER PRIMARY KEY, type TEXT NOT NULL, grp TEXT NOT NULL, plural TEXT NOT NULL,
    namespace TEXT NOT NULL, name TEXT NOT NULL, previous_rv INTEGER
);
"""

Listener = Callable[[Sequence[Change]], None]


def map_error(error: sqlite3.Error | OSError, path: Path) -> SwarmTaskError:
    """SQLite's errors, in words that say what to do."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return InsufficientStorage(
            f"the disk of {path} is full: nothing was written. Free some space and try again", retry_after_s=5
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return ConfigurationError(f"{path} is damaged ({error}): stop the server and restore the file from a backup")
    if code == sqlite3.SQLITE_IOERR and _disk_is_full(path):
        return InsufficientStorage(
            f"the disk of {path} is full: nothing was written. Free some space and try again", retry_after_s=5
        )
    return InternalError(f"the store {path} failed: {error}")


def _disk_is_full(path: Path) -> bool:
    try:
        room = os.statvfs(path.parent)
    except OSError:
        return False
    return room.f_bavail * room.f_frsize < 2**20


class Store:
    """Objects on disk and in memory. Make one with `Store.open`; all methods belong to the event loop that opened it."""

    def __init__(self, path: Path, *, event_log_rows: int, vault: Vault | None = None) -> None:
        self._path = path
        self._vault = vault
        self._log_limit = event_log_rows
        self._writer_thread = ThreadPoolExecutor(1, "store-writer")
        self._reader_thread = ThreadPoolExecutor(1, "store-reader")
        self._db: sqlite3.Connection
        self._reader: sqlite3.Connection
        self.index = Index()
        self.waiting = WaitingCounts()
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
            await loop.run_in_executor(store._writer_thread, store._open)
            store._reader = await loop.run_in_executor(store._reader_thread, store._open_reader)
        except (sqlite3.Error, OSError) as error:
            store._shut_threads()
            raise map_error(error, path) from error
        except SwarmTaskError:
            store._shut_threads()
            raise
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
        await loop.run_in_executor(self._reader_thread, self._reader.close)
        await loop.run_in_executor(self._writer_thread, self._db.close)
        self._shut_threads()

    def subscribe(self, listener: Listener) -> None:
        """Call `listener` with each committed batch, in order, on the event loop, before the writers' futures resolve."""
        self._listeners.append(listener)

    # --- reading ---------------------------------------------------------------------------------------------------------

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
            found = await asyncio.get_running_loop().run_in_executor(self._reader_thread, self._fetch, wanted)
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

    def put(self, key: Key, obj: dict[str, Any], *, replacing: Record | None) -> Awaitable[Record]:
        """Write an object; sets its resourceVersion. The result resolves when it is on disk.

        Args:
            replacing: what `head(key)` said when the caller decided; None to create.

        Raises:
            RuntimeError: the head is not `replacing` any more: the caller awaited between reading and writing.
            ServiceUnavailable: the server is stopping.
        The awaitable raises InsufficientStorage or InternalError when the commit failed; nothing was written then.
        """
        self._check_writable(key, replacing)
        rv = self._next_version()
        obj["metadata"]["resourceVersion"] = str(rv)
        record = Record.of(key, rv, obj, orjson.dumps(obj))
        return self._enqueue(Change("MODIFIED" if replacing is not None else "ADDED", record, replacing))

    def remove(self, key: Key, obj: dict[str, Any], *, replacing: Record) -> Awaitable[Record]:
        """Remove an object; `obj` is its last state, which watchers get with the resourceVersion of the removal.

        Raises: as `put`.
        """
        self._check_writable(key, replacing)
        rv = self._next_version()
        obj["metadata"]["resourceVersion"] = str(rv)
        return self._enqueue(Change("DELETED", Record.of(key, rv, obj, orjson.dumps(obj)), replacing))

    async def settled(self) -> None:
        """Wait for the writes that are on their way now: what was decided on the head is then also what a reader sees."""
        if self._newest is not None and not self._newest.done():
            await asyncio.wait([self._newest])

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

    def _next_version(self) -> int:
        self._last_rv += 1
        return self._last_rv

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
            await asyncio.sleep(0)  # let every writer that is ready in this turn join the batch
            while self._queue:
                batch, self._queue = self._queue[:BATCH_LIMIT], self._queue[BATCH_LIMIT:]
                changes = [change for change, _ in batch]
                try:
                    compacted = await loop.run_in_executor(self._writer_thread, self._commit, changes)
                except (sqlite3.Error, OSError) as error:
                    self._fail(batch, map_error(error, self._path))
                else:
                    self._publish(batch, compacted)
            if self._closing:
                return

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

    # --- in the threads --------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        fresh = not self._path.exists()
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        os.fchmod(descriptor, 0o600)  # secrets are in it; SQLite gives its journal the same mode
        os.close(descriptor)
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, cached_statements=64)
        try:
            db.execute("PRAGMA busy_timeout = 5000")
            if not fresh:
                self._check_identity(db)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA journal_size_limit = 67108864")
            self._migrate(db)
            self._load(db)
            if self._vault is not None:
                self._vault.keep()
                self._reseal(db, self._vault)
        except BaseException:
            db.close()
            raise
        self._db = db

    def _check_identity(self, db: sqlite3.Connection) -> None:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (application,) = db.execute("PRAGMA application_id").fetchone()
        tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and application != APPLICATION_ID:
            raise ConfigurationError(f"{self._path} is a database of another program: choose another data directory")
        if version > SCHEMA_VERSION:
            raise ConfigurationError(
                f"{self._path} was written by a newer SwarmTask (layout {version}, this one knows {SCHEMA_VERSION}): "
                "upgrade SwarmTask, or restore a backup made by this version"
            )
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise ConfigurationError(f"{self._path} is damaged ({verdict}): restore it from a backup")

    def _migrate(self, db: sqlite3.Connection) -> None:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version == SCHEMA_VERSION:
            return
        db.execute("BEGIN IMMEDIATE")
        try:
            for statement in _SCHEMA.split(";"):
                if statement.strip():
                    db.execute(statement)
            db.execute("INSERT INTO meta VALUES ('resource_version', ?), ('floor', ?)", (FIRST_VERSION, FIRST_VERSION))
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            db.execute("COMMIT")
        except sqlite3.Error:
            _rollback(db)
            raise

    def _load(self, db: sqlite3.Connection) -> None:
        meta = dict(db.execute("SELECT name, value FROM meta"))
        self._committed_rv = self._last_rv = meta["resource_version"]
        self._floor = meta["floor"]
        rows = db.execute(
            "SELECT grp, plural, namespace, name, objects.rv, body FROM objects LEFT JOIN revisions ON objects.rv = revisions.rv"
        )
        records = []
        for group, plural, namespace, name, rv, stored in rows:
            if stored is None:
                raise ConfigurationError(f"{self._path} is damaged (revision {rv} is missing): restore it from a backup")
            body = self._opened(rv, stored)
            records.append(Record.of(Key((group, plural), namespace, name), rv, orjson.loads(body), body))
        self.index.load(records)
        self.waiting.load(records)
        self._log = [
            LogEntry(rv, type_, Key((group, plural), namespace, name), previous)
            for rv, type_, group, plural, namespace, name, previous in db.execute(
                "SELECT rv, type, grp, plural, namespace, name, previous_rv FROM log ORDER BY rv"
            )
        ]

    def _open_reader(self) -> sqlite3.Connection:
        reader = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        reader.execute("PRAGMA query_only = ON")
        reader.execute("PRAGMA wal_autocheckpoint = 0")
        return reader

    def _fetch(self, versions: list[int]) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        for start in range(0, len(versions), FETCH_STEP):
            step = versions[start : start + FETCH_STEP]
            marks = ",".join("?" * len(step))
            rows = self._reader.execute(f"SELECT rv, body FROM revisions WHERE rv IN ({marks})", step)
            found.update((rv, self._opened(rv, body)) for rv, body in rows)
        return found

    def _commit(self, changes: Sequence[Change]) -> int:
        """Write one batch in one transaction; returns how many of the oldest log rows it compacted."""
        db = self._db
        last = changes[-1].rv
        try:
            db.execute("BEGIN IMMEDIATE")
            self._insert(db, changes, self._vault)
            compacted = self._compact(db, len(changes))
            db.execute("UPDATE meta SET value = ? WHERE name = 'resource_version'", (last,))
            db.execute("COMMIT")
        except sqlite3.Error:
            _rollback(db)
            raise
        return compacted

    @staticmethod
    def _insert(db: sqlite3.Connection, changes: Sequence[Change], vault: Vault | None) -> None:
        bodies = [
            (change.rv, vault.seal(change.rv, change.record.body))
            if vault is not None and change.key.collection in SEALED
            else (change.rv, change.record.body)
            for change in changes
        ]
        db.executemany("INSERT INTO revisions VALUES (?, ?)", bodies)
        db.executemany(
            "INSERT INTO log VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (change.rv, change.type, *change.key.collection, change.key.namespace, change.key.name,
                 change.previous.rv if change.previous is not None else None)
                for change in changes
            ],
        )  # fmt: skip
        newest = {change.key: change for change in changes}
        db.executemany(
            "INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?, ?)",
            [
                (*key.collection, key.namespace, key.name, change.record.uid, change.rv)
                for key, change in newest.items()
                if change.type != "DELETED"
            ],
        )
        db.executemany(
            "DELETE FROM objects WHERE grp = ? AND plural = ? AND namespace = ? AND name = ?",
            [(*key.collection, key.namespace, key.name) for key, change in newest.items() if change.type == "DELETED"],
        )

    def _compact(self, db: sqlite3.Connection, added: int) -> int:
        excess = len(self._log) + added - self._log_limit
        if excess <= 0:
            return 0
        # Only rows committed before this batch: `_log` holds exactly those while the event loop waits for this thread.
        entries = self._log[: min(excess, added + COMPACTION_STEP, len(self._log))]
        if not entries:
            return 0
        floor = entries[-1].rv
        gone = [(entry.previous_rv,) for entry in entries if entry.previous_rv is not None]
        gone += [(entry.rv,) for entry in entries if entry.type == "DELETED"]
        db.executemany("DELETE FROM revisions WHERE rv = ?", gone)
        db.execute("DELETE FROM log WHERE rv <= ?", (floor,))
        db.execute("UPDATE meta SET value = ? WHERE name = 'floor'", (floor,))
        return len(entries)

    # --- sealed bodies, also in the threads ------------------------------------------------------------------------------

    def _opened(self, rv: int, body: bytes) -> bytes:
        if self._vault is not None:
            return self._vault.open(rv, body)
        if is_sealed(body):
            raise ConfigurationError(f"{self._path} holds encrypted Secrets, and there is no key to read them with")
        return body

    async def rotate_key(self) -> tuple[str, int]:
        """Seal everything with a new key, and forget the old one. Returns the new key's ID and how many revisions were sealed.

        Cut off at any moment, it goes on when the store is opened next.

        Raises: InsufficientStorage, InternalError: nothing was lost; try again.
        """
        vault = self._vault
        if vault is None:
            raise InternalError("this store seals nothing")

        def rotate() -> int:
            vault.begin_rotation()
            return self._reseal(self._db, vault)

        try:
            count = await asyncio.get_running_loop().run_in_executor(self._writer_thread, rotate)
        except (sqlite3.Error, OSError) as error:
            raise map_error(error, self._path) from error
        log.info("Secrets encrypted with a new key", key=vault.key_id, revisions=count)
        return vault.key_id, count

    def _reseal(self, db: sqlite3.Connection, vault: Vault) -> int:
        """Seal with the present key what is not; what was plain, or sealed with a key that leaves, does not stay in the file."""
        wanted = []
        for group, plural in sorted(SEALED):
            rows = db.execute(
                "SELECT rv, body FROM revisions WHERE rv IN (SELECT rv FROM objects WHERE grp = ?1 AND plural = ?2 UNION "
                "SELECT rv FROM log WHERE grp = ?1 AND plural = ?2 UNION "
                "SELECT previous_rv FROM log WHERE grp = ?1 AND plural = ?2)", (group, plural),
            )  # fmt: skip
            wanted += [(vault.seal(rv, vault.open(rv, body)), rv) for rv, body in rows if not vault.is_current(body)]
        if wanted:
            db.execute("PRAGMA secure_delete = ON")  # overwrites the place where the old bodies were
            db.execute("BEGIN IMMEDIATE")
            try:
                db.executemany("UPDATE revisions SET body = ? WHERE rv = ?", wanted)
                db.execute("COMMIT")
            except sqlite3.Error:
                _rollback(db)
                raise
            finally:
                db.execute("PRAGMA secure_delete = OFF")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        if vault.rotating:
            vault.end_rotation()
        return len(wanted)

    def _shut_threads(self) -> None:
        self._reader_thread.shutdown(wait=False)
        self._writer_thread.shutdown(wait=False)


def _rollback(db: sqlite3.Connection) -> None:
    if db.in_transaction:
        db.execute("ROLLBACK")
