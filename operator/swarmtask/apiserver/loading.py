"""Reading everything that is current when a store is opened, and putting aside what cannot be read.

Called by `disk` once, in the writer's thread; blocks. Every body is checked against its checksum before anything of it is served.
It is decoded only where the facts beside its row (`row_facts`) are missing or are not as they were written; those are written
anew then. Decides nothing about writes.
"""

from __future__ import annotations

import contextlib
import gc
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import structlog

from swarmtask.apiserver.access.vault import SEALED
from swarmtask.apiserver.layout import checksum, rollback
from swarmtask.apiserver.records import ChangeType, Collection, Key, LogEntry, Record
from swarmtask.apiserver.row_facts import FactReader, row_checksum, written
from swarmtask.errors import ConfigurationError

log = structlog.get_logger(__name__)

_CLUSTER_NAMESPACE = Key(("", "namespaces"), "", "kube-system")
"""Its UID is the cluster's: without it nothing that runs is known any more."""
MANY = 10_000
"""So many records are left out of the next garbage collections, before the server is ready and leaves out the rest: one look at
100,000 takes 0.1 s. Fewer are left as they are: whatever else there is at that moment would stay for good with them."""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An object that cannot be read any more. Its row is kept in the table `quarantine`, and nothing of it is served.

    Attributes:
        uid: as the row has it: what refers to it must not be collected as if it had been deleted.
        new: put aside by this start.
    """

    key: Key
    uid: str
    rv: int
    reason: str
    new: bool = False


@dataclass(slots=True)
class Content:
    """What a database holds when it is opened."""

    resource_version: int = 0
    floor: int = 0
    records: list[Record] = field(default_factory=list)
    log: list[LogEntry] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)


class Loader:
    """See the module. For one opening of one file.

    Args:
        opened: turns a stored body into the object's; raises ConfigurationError where the key is wrong, and for all of them.
    """

    def __init__(self, path: Path, opened: Callable[[int, bytes], bytes]) -> None:
        self._path, self._opened = path, opened
        self._collections: dict[Collection, Collection] = {}
        self._facts = FactReader()
        self._decoded: list[Record] = []
        self._damaged: list[tuple[Quarantined, bytes | None]] = []

    def load(self, db: sqlite3.Connection) -> Content:
        """Raises ConfigurationError: the file cannot be used. sqlite3.Error: see `layout.map_error`."""
        meta = dict(db.execute("SELECT name, value FROM meta"))
        content = Content(meta["resource_version"], meta["floor"])
        with _without_collections():
            try:
                content.records = self._objects(db)
            except sqlite3.OperationalError:  # a text that is none
                db.text_factory = _text  # a call for each text takes as long as all the rest
                self._decoded, self._damaged = [], []
                content.records = self._objects(db)
            if self._damaged:
                self._put_aside(db, content)
            known = {one.rv for one, _ in self._damaged}
            rows = db.execute("SELECT grp, plural, namespace, name, uid, rv, reason FROM quarantine ORDER BY rv")
            for group, plural, namespace, name, uid, rv, reason in rows:
                content.quarantined.append(Quarantined(Key((group, plural), namespace, name), uid, rv, reason, new=rv in known))
            content.log = self._log(db, content.records)
            if len(content.records) >= MANY:
                gc.freeze()
        db.text_factory = str
        self._keep_facts(db)
        return content

    def _objects(self, db: sqlite3.Connection) -> list[Record]:
        records = []
        rows = db.execute(
            "SELECT grp, plural, namespace, name, uid, objects.rv, facts, facts_crc, body, crc "
            "FROM objects LEFT JOIN revisions ON objects.rv = revisions.rv"
        )
        place: tuple[str, str, str] | None = None
        for group, plural, namespace, name, uid, rv, facts, facts_crc, stored, crc in rows:
            if place != (group, plural, namespace):
                place = (group, plural, namespace)
                collection, shared = self._collection(group, plural), sys.intern(namespace)
            key = Key(collection, shared, name)
            found = self._facts.read(key, uid, rv, crc, (facts, facts_crc))
            if found is not None and is_whole(stored, crc):
                records.append(Record(key, uid, rv, stored, *found))  # what has facts is not sealed
                continue
            record = self._read(key, rv, stored, crc)
            if isinstance(record, str):
                self._damaged.append((Quarantined(key, uid, rv, record, new=True), stored))
            else:
                records.append(record)
                self._decoded.append(record)
        return records

    def _collection(self, group: str, plural: str) -> Collection:
        """The same object for all keys."""
        return self._collections.setdefault((group, plural), (group, plural))

    def _read(self, key: Key, rv: int, stored: bytes | None, crc: int | None) -> Record | str:
        """The record of a row, from its body, or what is wrong with the row."""
        if stored is None:
            return "its revision is missing"
        if not is_whole(stored, crc):
            return "its body is not as it was written (checksum)"
        body = self._opened(rv, stored)
        try:
            obj = orjson.loads(body)
            metadata = obj["metadata"]
            if metadata.get("name", key.name) != key.name or metadata.get("namespace", key.namespace) != key.namespace:
                return "its row and its body name different objects"
            return Record.of(key, rv, obj, body)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return f"its body is no object ({type(error).__name__})"

    def _log(self, db: sqlite3.Connection, records: Sequence[Record]) -> list[LogEntry]:
        newest = {record.rv: record.key for record in records}
        types: dict[str, ChangeType] = {}
        entries = []
        rows = db.execute("SELECT rv, type, grp, plural, namespace, name, previous_rv FROM log ORDER BY rv")
        for rv, type_, group, plural, namespace, name, previous in rows:
            key = newest.get(rv) or Key(self._collection(group, plural), sys.intern(namespace), name)
            entries.append(LogEntry(rv, types.setdefault(type_, type_), key, previous))
        return entries

    def _put_aside(self, db: sqlite3.Connection, content: Content) -> None:
        """Move rows into the quarantine. The history ends here, so that every watcher lists again and misses what has gone.

        Raises:
            ConfigurationError: the cluster's own namespace is among them.
        """
        for one, _ in self._damaged:
            log.error(
                "an object cannot be read and is not served; the others are", kind=one.key.collection, namespace=one.key.namespace,
                name=one.key.name, uid=one.uid, revision=one.rv, reason=one.reason,
            )  # fmt: skip
            if one.key == _CLUSTER_NAMESPACE:
                raise ConfigurationError(
                    f"{self._path} is damaged (the namespace kube-system, {one.reason}): restore it from a backup (docs/backup.md)"
                )
        content.resource_version += 1
        content.floor = content.resource_version
        db.execute("BEGIN IMMEDIATE")
        try:
            db.executemany(
                "INSERT OR REPLACE INTO quarantine (rv, grp, plural, namespace, name, uid, reason, body) VALUES (?,?,?,?,?,?,?,?)",
                [
                    (one.rv, *one.key.collection, one.key.namespace, one.key.name, one.uid, one.reason, body)
                    for one, body in self._damaged
                ],
            )
            db.executemany("DELETE FROM objects WHERE rv = ?", [(one.rv,) for one, _ in self._damaged])
            db.execute("DELETE FROM log")
            db.execute("DELETE FROM revisions WHERE rv NOT IN (SELECT rv FROM objects)")
            db.execute("UPDATE meta SET value = ? WHERE name IN ('resource_version', 'floor')", (content.resource_version,))
            db.execute("COMMIT")
        except BaseException:
            rollback(db)
            raise

    def _keep_facts(self, db: sqlite3.Connection) -> None:
        """Write down what had to be read from bodies, for the next start. It may fail: then the next one reads them, too."""
        wanted = [
            (*columns, *record.key.collection, record.key.namespace, record.key.name)
            for record in self._decoded
            if (columns := fact_columns(record, checksum(record.body))) != (None, None)
        ]
        if not wanted:
            return
        try:
            db.execute("BEGIN IMMEDIATE")
            db.executemany(
                "UPDATE objects SET facts = ?, facts_crc = ? WHERE grp = ? AND plural = ? AND namespace = ? AND name = ?", wanted
            )
            db.execute("COMMIT")
        except sqlite3.Error as error:
            rollback(db)
            log.warning("what is indexed could not be written beside the objects; starts stay slow", error=str(error))


def fact_columns(record: Record, body_crc: int) -> tuple[bytes, int] | tuple[None, None]:
    """`facts` and `facts_crc` of the row of a record. None of what is sealed: labels of Secrets are to be read by nobody."""
    if record.key.collection in SEALED:
        return None, None
    facts = written(record)
    return facts, row_checksum(record.key, record.uid, record.rv, body_crc, facts)


def is_whole(body: object, crc: int | None) -> bool:
    """A body is what was written."""
    return isinstance(body, bytes) and checksum(body) == crc


def _text(raw: bytes) -> str:
    """Text of a row that may be damaged: it must be possible to name it."""
    return raw.decode("utf-8", "backslashreplace")


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Hundreds of thousands of objects are made that all stay: the garbage collector would look through them again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
