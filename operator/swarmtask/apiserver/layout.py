"""The layout of the database: its versions, the steps between them, and whether a file is one of ours and whole.

Called by `disk`, `backup` and `restore` with an open connection. Holds no objects and no queue. SQLite's errors are put into words
here (`map_error`).

How to change the layout: append a step to `STEPS`. Each runs once, in one transaction with all others that a file lacks; a step
that was released is never changed. Older files are brought up to date at start, newer ones are refused.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path

from swarmtask.errors import ConfigurationError, InsufficientStorage, InternalError, SwarmTaskError

APPLICATION_ID = 0x5357544B
"""Marks the file as ours ("SWTK" in ASCII)."""
FIRST_VERSION = 1
"""The resourceVersion of an empty store."""

_FIRST = """
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
_QUARANTINE = """
ALTER TABLE revisions ADD COLUMN crc INTEGER;
CREATE TABLE quarantine (
    rv INTEGER PRIMARY KEY, grp TEXT NOT NULL, plural TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
    uid TEXT NOT NULL, reason TEXT NOT NULL, body BLOB
);
"""
_FACTS = """
ALTER TABLE objects ADD COLUMN facts BLOB;
ALTER TABLE objects ADD COLUMN facts_crc INTEGER;
"""


def checksum(body: bytes) -> int:
    """What is stored beside a body, to tell a damaged one: its CRC-32."""
    return zlib.crc32(body)


def _first(db: sqlite3.Connection) -> None:
    _run(db, _FIRST)
    db.execute("INSERT INTO meta VALUES ('resource_version', ?), ('floor', ?)", (FIRST_VERSION, FIRST_VERSION))
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")


def _with_checksums(db: sqlite3.Connection) -> None:
    """Bodies get a checksum, and objects that cannot be read a place of their own."""
    _run(db, _QUARANTINE)
    db.create_function("swarmtask_crc", 1, checksum, deterministic=True)
    db.execute("UPDATE revisions SET crc = swarmtask_crc(body)")


def _with_facts(db: sqlite3.Connection) -> None:
    """Objects get room for what is indexed of them (`row_facts`); it is filled in when they are read."""
    _run(db, _FACTS)


STEPS: tuple[Callable[[sqlite3.Connection], None], ...] = (_first, _with_checksums, _with_facts)
SCHEMA_VERSION = len(STEPS)


def _run(db: sqlite3.Connection, statements: str) -> None:
    for statement in statements.split(";"):  # `executescript` would commit
        if statement.strip():
            db.execute(statement)


def migrate(db: sqlite3.Connection) -> int:
    """Bring a file up to date, as a whole or not at all. Returns the layout that it had; 0: it was empty.

    Raises:
        sqlite3.Error: nothing was changed.
    """
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version >= SCHEMA_VERSION:
        return int(version)
    db.execute("BEGIN IMMEDIATE")
    try:
        for step in STEPS[version:]:
            step(db)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        db.execute("COMMIT")
    except BaseException:
        rollback(db)
        raise
    return int(version)


def check(db: sqlite3.Connection, path: Path) -> None:
    """Refuse what is not ours, newer, or damaged in its structure.

    Raises:
        ConfigurationError: it cannot be used; says what to do.
    """
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables and application != APPLICATION_ID:
        raise ConfigurationError(f"{path} is a database of another program: choose another data directory")
    if version > SCHEMA_VERSION:
        raise ConfigurationError(
            f"{path} was written by a newer SwarmTask (layout {version}, this one knows {SCHEMA_VERSION}): "
            "upgrade SwarmTask, or restore a backup made by this version"
        )
    (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise ConfigurationError(f"{path} is damaged ({verdict}): restore it from a backup (docs/backup.md)")


def rollback(db: sqlite3.Connection) -> None:
    """End a transaction that failed, where SQLite has not done so itself."""
    if db.in_transaction:
        db.execute("ROLLBACK")


def map_error(error: sqlite3.Error | OSError, path: Path) -> SwarmTaskError:
    """SQLite's errors, in words that say what to do."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    full = code == sqlite3.SQLITE_FULL or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    if full or (code == sqlite3.SQLITE_IOERR and _disk_is_full(path)):
        return InsufficientStorage(
            f"the disk of {path} is full: nothing was written. Free some space and try again", retry_after_s=5
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return ConfigurationError(
            f"{path} is damaged ({error}): stop the server and restore the file from a backup (docs/backup.md)"
        )
    return InternalError(f"the store {path} failed: {error}")


def _disk_is_full(path: Path) -> bool:
    try:
        room = os.statvfs(path.parent)
    except OSError:
        return False
    return room.f_bavail * room.f_frsize < 2**20
