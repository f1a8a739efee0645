"""The SQL of a store at work: one writing connection and one reading connection to the database, and what goes through them.

Called by the store, in its two threads; every method blocks. Knows revisions, objects and the log as rows, seals and opens bodies
where there is a vault; `loading` reads them all at the start. Decides nothing: which writes form a batch and which log rows go is
the store's.

Layout: `revisions` holds each body once, with a checksum; `objects` points to the newest revision of a key, and has beside it what
is indexed of it (`row_facts`); `log` is the watch history and points to the revision and to the one before it. Compaction drops the
oldest log rows, and with each the revision that it replaced: what remains is exactly what a list at a version above the floor, or a
watch from it, can ask for.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from swarmtask.apiserver.access.vault import SEALED, Vault, is_sealed
from swarmtask.apiserver.layout import check, checksum, migrate, rollback
from swarmtask.apiserver.loading import Content, Loader, fact_columns, is_whole
from swarmtask.apiserver.records import Change, LogEntry
from swarmtask.errors import ConfigurationError

FETCH_STEP = 500


class Disk:
    """The database file of one store.

    Attributes:
        db: the writing connection. Only it writes and checkpoints.
    """

    def __init__(self, path: Path, vault: Vault | None) -> None:
        self._path = path
        self.vault = vault
        self.db: sqlite3.Connection
        self._reader: sqlite3.Connection

    # --- life, in the writer's thread ------------------------------------------------------------------------------------

    def open(self) -> Content:
        """Open or make the file, check it, bring it up to date, read what is current.

        Raises:
            ConfigurationError: damaged, not ours, newer, or its Secrets cannot be read. sqlite3.Error, OSError: see `map_error`.
        """
        fresh = not self._path.exists()
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        os.fchmod(descriptor, 0o600)  # secrets are in it; SQLite gives its journal the same mode
        os.close(descriptor)
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, cached_statements=64)
        try:
            db.execute("PRAGMA busy_timeout = 5000")
            if not fresh:
                check(db, self._path)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA journal_size_limit = 67108864")
            migrate(db)
            content = Loader(self._path, self._opened).load(db)
            if self.vault is not None:
                self.vault.keep()
                self._reseal(db, self.vault)
        except BaseException:
            db.close()
            raise
        self.db = db
        return content

    def open_reader(self) -> None:
        """In the reader's thread."""
        reader = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        reader.execute("PRAGMA query_only = ON")
        reader.execute("PRAGMA wal_autocheckpoint = 0")
        self._reader = reader

    def close_reader(self) -> None:
        self._reader.close()

    def close(self) -> None:
        self.db.close()

    # --- reading ---------------------------------------------------------------------------------------------------------

    def fetch(self, versions: list[int]) -> dict[int, bytes]:
        """Bodies of revisions, in the reader's thread. What is compacted or damaged is not among them."""
        found: dict[int, bytes] = {}
        for start in range(0, len(versions), FETCH_STEP):
            step = versions[start : start + FETCH_STEP]
            marks = ",".join("?" * len(step))
            rows = self._reader.execute(f"SELECT rv, body, crc FROM revisions WHERE rv IN ({marks})", step)
            found.update((rv, self._opened(rv, body)) for rv, body, crc in rows if is_whole(body, crc))
        return found

    # --- writing, in the writer's thread ---------------------------------------------------------------------------------

    def commit(self, changes: Sequence[Change], dropped: Sequence[LogEntry]) -> None:
        """Write one batch in one transaction, and compact: `dropped` are the oldest rows of the log.

        Raises:
            sqlite3.Error: nothing was written.
        """
        db = self.db
        try:
            db.execute("BEGIN IMMEDIATE")
            self._insert(db, changes)
            if dropped:
                _compact(db, dropped)
            db.execute("UPDATE meta SET value = ? WHERE name = 'resource_version'", (changes[-1].rv,))
            db.execute("COMMIT")
        except sqlite3.Error:
            rollback(db)
            raise

    def _insert(self, db: sqlite3.Connection, changes: Sequence[Change]) -> None:
        vault = self.vault
        bodies = []
        for change in changes:
            body = change.record.body
            if vault is not None and change.key.collection in SEALED:
                body = vault.seal(change.rv, body)
            bodies.append((change.rv, body, checksum(body)))
        crcs = {rv: crc for rv, _, crc in bodies}
        db.executemany("INSERT INTO revisions (rv, body, crc) VALUES (?, ?, ?)", bodies)
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
            "INSERT OR REPLACE INTO objects (grp, plural, namespace, name, uid, rv, facts, facts_crc) VALUES (?,?,?,?,?,?,?,?)",
            [
                (*key.collection, key.namespace, key.name, change.record.uid, change.rv,
                 *fact_columns(change.record, crcs[change.rv]))
                for key, change in newest.items()
                if change.type != "DELETED"
            ],
        )  # fmt: skip
        db.executemany(
            "DELETE FROM objects WHERE grp = ? AND plural = ? AND namespace = ? AND name = ?",
            [(*key.collection, key.namespace, key.name) for key, change in newest.items() if change.type == "DELETED"],
        )

    # --- sealed bodies ---------------------------------------------------------------------------------------------------

    def _opened(self, rv: int, body: bytes) -> bytes:
        if self.vault is not None:
            return self.vault.open(rv, body)
        if is_sealed(body):
            raise ConfigurationError(f"{self._path} holds encrypted Secrets, and there is no key to read them with")
        return body

    def rotate(self, vault: Vault) -> int:
        """Seal everything with a new key, in the writer's thread. Returns how many revisions that were."""
        vault.begin_rotation()
        return self._reseal(self.db, vault)

    def _reseal(self, db: sqlite3.Connection, vault: Vault) -> int:
        """Seal with the present key what is not; what was plain, or sealed with a key that leaves, does not stay in the file."""
        wanted = []
        for group, plural in sorted(SEALED):
            rows = db.execute(
                "SELECT rv, body, crc FROM revisions WHERE rv IN (SELECT rv FROM objects WHERE grp = ?1 AND plural = ?2 UNION "
                "SELECT rv FROM log WHERE grp = ?1 AND plural = ?2 UNION "
                "SELECT previous_rv FROM log WHERE grp = ?1 AND plural = ?2)", (group, plural),
            )  # fmt: skip
            for rv, body, crc in rows:
                if is_whole(body, crc) and not vault.is_current(body):
                    sealed = vault.seal(rv, vault.open(rv, body))
                    wanted.append((sealed, checksum(sealed), rv))
        if wanted:
            db.execute("PRAGMA secure_delete = ON")  # overwrites the place where the old bodies were
            db.execute("BEGIN IMMEDIATE")
            try:
                db.executemany("UPDATE revisions SET body = ?, crc = ? WHERE rv = ?", wanted)
                db.execute("COMMIT")
            except sqlite3.Error:
                rollback(db)
                raise
            finally:
                db.execute("PRAGMA secure_delete = OFF")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        if vault.rotating:
            vault.end_rotation()
        return len(wanted)


def _compact(db: sqlite3.Connection, dropped: Sequence[LogEntry]) -> None:
    floor = dropped[-1].rv
    gone = [(entry.previous_rv,) for entry in dropped if entry.previous_rv is not None]
    gone += [(entry.rv,) for entry in dropped if entry.type == "DELETED"]
    db.executemany("DELETE FROM revisions WHERE rv = ?", gone)
    db.execute("DELETE FROM log WHERE rv <= ?", (floor,))
    db.execute("UPDATE meta SET value = ? WHERE name = 'floor'", (floor,))
