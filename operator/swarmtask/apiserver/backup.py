"""Backups of a database: made while the server writes, checked before anybody relies on them.

Called by `downloads` in the server (`make`), and by `swarmtask backup` and `restore` on the finished file (`read`). A backup is an
SQLite database in the layout of the server that made it, without history, and with a table `backup` that says what it is and holds
a digest of every row. It holds no keys and no tokens; the values of Secrets in it are sealed. All of it blocks.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from swarmtask import __version__
from swarmtask.apiserver.access.vault import MAGIC, key_id_of
from swarmtask.apiserver.layout import APPLICATION_ID, SCHEMA_VERSION, checksum
from swarmtask.clock import format_time
from swarmtask.errors import ConfigurationError, InsufficientStorage

SPARE_BYTES = 64 * 2**20
"""What a backup leaves free on the data disk beyond what it needs itself: the server goes on writing."""
_TABLES = (("meta", "name"), ("objects", "grp, plural, namespace, name"), ("revisions", "rv"), ("log", "rv"), ("quarantine", "rv"))


@dataclass(frozen=True, slots=True)
class Facts:
    """What a backup says of itself.

    Attributes:
        created: when, RFC 3339. version: of SwarmTask. layout: of the tables.
        resource_version: of the newest write in it.
        objects: how many. quarantined: how many could not be read any more when it was made.
        keys: IDs of the keys with which Secrets in it are sealed.
        damaged: objects whose stored body was not as it was written; each as GROUP/PLURAL NAMESPACE/NAME.
    """

    created: str
    version: str
    layout: int
    resource_version: int
    objects: int
    quarantined: int
    keys: tuple[str, ...]
    damaged: tuple[str, ...] = ()


def make(source: Path, target: Path, created: datetime) -> None:
    """Copy a database that is in use, as it is at one moment. Writers are not held up.

    Args:
        target: made here, mode 0600; must not exist. Where this raises, the caller removes it.

    Raises:
        InsufficientStorage: there is no room for a copy beside the database. sqlite3.Error, OSError: see `layout.map_error`.
    """
    _require_room(source, target)
    os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    with contextlib.closing(sqlite3.connect(source, isolation_level=None)) as live:
        live.execute("PRAGMA wal_autocheckpoint = 0")  # the server's own connection alone checkpoints
        live.execute("VACUUM INTO ?", (str(target),))
    with contextlib.closing(sqlite3.connect(target, isolation_level=None)) as copy:
        copy.execute("PRAGMA journal_mode = OFF")  # if this is cut off, the file is thrown away
        copy.execute("PRAGMA synchronous = OFF")
        copy.execute("DELETE FROM log")
        copy.execute("DELETE FROM revisions WHERE rv NOT IN (SELECT rv FROM objects)")
        copy.execute("UPDATE meta SET value = (SELECT value FROM meta WHERE name = 'resource_version') WHERE name = 'floor'")
        copy.execute("CREATE TABLE backup (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID")
        facts = {"format": "1", "created": format_time(created), "version": __version__}
        copy.executemany("INSERT INTO backup VALUES (?, ?)", facts.items())
        copy.execute("INSERT INTO backup VALUES ('digest', ?)", (_digest(copy),))
        copy.execute("VACUUM")
    with target.open("rb") as file:
        os.fsync(file.fileno())


def _require_room(source: Path, target: Path) -> None:
    size = sum(path.stat().st_size for path in (source, source.with_name(f"{source.name}-wal")) if path.exists())
    disk = os.statvfs(target.parent)
    free, needed = disk.f_bavail * disk.f_frsize, 2 * size + SPARE_BYTES
    if free < needed:
        raise InsufficientStorage(
            f"a backup needs {needed // 2**20} MB on the disk of {target.parent} while it is made, and {free // 2**20} MB are "
            "free: free some space and try again", retry_after_s=60,
        )  # fmt: skip


def read(path: Path) -> Facts:
    """Check a whole backup, row by row, and say what it is. Changes nothing and leaves nothing beside it.

    Raises:
        ConfigurationError: it is no backup, of a newer layout, or damaged; says which.
        OSError: it cannot be read.
    """
    with path.open("rb"):
        pass  # SQLite would not say why
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as db:
            return _read(db, path)
    except sqlite3.Error as error:
        raise ConfigurationError(f"{path} is no whole backup ({error}): use another one") from error


def _read(db: sqlite3.Connection, path: Path) -> Facts:
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (layout,) = db.execute("PRAGMA user_version").fetchone()
    named = db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'backup'").fetchone()[0]
    if application != APPLICATION_ID or not named:
        raise ConfigurationError(f"{path} was not made by `swarmtask backup`: name a file that was")
    if layout > SCHEMA_VERSION:
        raise ConfigurationError(
            f"{path} was made by a newer SwarmTask (layout {layout}, this one knows {SCHEMA_VERSION}): upgrade SwarmTask, or use "
            "a backup made by this version"
        )
    facts = dict(db.execute("SELECT name, value FROM backup"))
    (verdict,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok" or facts.get("digest") != _digest(db):
        raise ConfigurationError(f"{path} is damaged: it is not as it was written. Use another backup")
    meta = dict(db.execute("SELECT name, value FROM meta"))
    sealed = db.execute("SELECT body FROM revisions WHERE substr(body, 1, ?) = ?", (len(MAGIC), MAGIC))
    rows = db.execute("SELECT grp, plural, namespace, name, body, crc FROM objects LEFT JOIN revisions USING (rv)")
    damaged = [
        f"{group}/{plural} {namespace}/{name}"
        for group, plural, namespace, name, body, crc in rows
        if body is None or checksum(body) != crc
    ]
    return Facts(
        created=facts["created"], version=facts["version"], layout=layout, resource_version=meta["resource_version"],
        objects=db.execute("SELECT count(*) FROM objects").fetchone()[0],
        quarantined=db.execute("SELECT count(*) FROM quarantine").fetchone()[0],
        keys=tuple(sorted({key_id_of(body) for (body,) in sealed})), damaged=tuple(damaged),
    )  # fmt: skip


def _digest(db: sqlite3.Connection) -> str:
    """SHA-256 over every row but its own."""
    digest = hashlib.sha256()
    queries = [f"SELECT * FROM {table} ORDER BY {order}" for table, order in _TABLES]
    for query in [*queries, "SELECT * FROM backup WHERE name != 'digest' ORDER BY name"]:
        digest.update(query.encode())
        for row in db.execute(query):
            for value in row:
                raw = value if isinstance(value, bytes) else b"" if value is None else str(value).encode()
                digest.update(b"%s%d:" % (type(value).__name__.encode(), len(raw)))
                digest.update(raw)
    return digest.hexdigest()
