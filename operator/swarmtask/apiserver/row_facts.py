"""What is kept beside an object's row so that a start need not decode its body: labels, owners, where it waits.

Called by `disk` when it writes rows and when it reads them all. The facts follow from the body and are never trusted on their own:
each row has a checksum over itself, its body's checksum and them, and a row that does not agree with it is read from its body
again. So are rows that have none (written by an older version, or renumbered by a restore), and those of another `FORMAT`.
"""

from __future__ import annotations

import sys
import zlib
from typing import Any, NamedTuple

import orjson

from swarmtask.apiserver.records import Key, Record

FORMAT = 1
"""To be raised whenever a fact is added or follows otherwise from a body: all rows are then read from their bodies once."""


class Facts(NamedTuple):
    """As `records.Record` has them. Rows that say the same share one: nothing in it is ever changed."""

    api_version: str
    labels: dict[str, str]
    owners: tuple[str, ...]
    deleting: bool
    waits_in: str


def written(record: Record) -> bytes:
    """The facts of a record as they are stored."""
    labels = dict(record.labels)
    return orjson.dumps([FORMAT, record.api_version, labels, record.owners, record.deleting, record.waits_in])


def row_checksum(key: Key, uid: str, rv: int, body_crc: int | None, facts: bytes) -> int:
    """Over everything in a row and the checksum of its body, so that a name, a version or a body that is not as it was written is
    noticed."""
    group, plural = key.collection
    row = f"{group}\0{plural}\0{key.namespace}\0{key.name}\0{uid}\0{rv}\0{body_crc}\0"
    return zlib.crc32(facts, zlib.crc32(row.encode()))


class FactReader:
    """Reads the facts of many rows; most of them say the same."""

    def __init__(self) -> None:
        self._known: dict[bytes, Facts | None] = {}

    def read(self, key: Key, uid: str, rv: int, body_crc: int | None, columns: tuple[Any, Any]) -> Facts | None:
        """None: the row has none, or they are not what was written beside it and that body."""
        facts, facts_crc = columns
        if not isinstance(facts, bytes):
            return None
        try:
            found = self._known[facts]
        except KeyError:
            found = self._known[facts] = _decoded(facts)
        return found if found is not None and row_checksum(key, uid, rv, body_crc, facts) == facts_crc else None


def _decoded(facts: bytes) -> Facts | None:
    try:
        form, api_version, labels, owners, deleting, waits_in = orjson.loads(facts)
    except (ValueError, TypeError):
        return None
    if form != FORMAT:
        return None
    return Facts(sys.intern(api_version), labels, tuple(owners), deleting, sys.intern(waits_in))
