"""What the store holds: keys, records and changes, as values.

Called by every part of the API server that reads or writes objects. A record is the encoded object plus the few fields that are
looked at without decoding it. Knows nothing of SQL or HTTP.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import orjson

from swarmtask.apiserver.waiting import waits_in

Collection = tuple[str, str]
"""(group, plural): objects of all versions of one kind are stored once."""

ChangeType = Literal["ADDED", "MODIFIED", "DELETED"]


def encoded(obj: Mapping[str, Any]) -> bytes:
    """An object as the JSON that is kept of it, in as much memory as it takes: orjson hands out the whole buffer that it has
    written in, which is four times as large and would stay for as long as the bytes do."""
    return bytes(memoryview(orjson.dumps(obj)))


class Key(NamedTuple):
    """Where an object lives. `namespace` is empty for cluster-scoped kinds."""

    collection: Collection
    namespace: str
    name: str


@dataclass(slots=True)
class Record:
    """One stored revision of one object. Changed by nobody.

    It is not frozen: one is made for each write, and for each row at the start, and a frozen one takes three times as long.

    Attributes:
        rv: resourceVersion, global and growing.
        body: the object as compact JSON, its resourceVersion included.
        api_version: of the version in which it was written.
        owners: UIDs of its ownerReferences.
        waits_in: the queue in which it is a waiting task; empty for everything else.
        shown: kept by `versions`: a schema that is newer than the record, and the body as it shows the object.
    """

    key: Key
    uid: str
    rv: int
    body: bytes = field(repr=False)
    api_version: str
    labels: Mapping[str, str] = field(repr=False)
    owners: tuple[str, ...] = ()
    deleting: bool = False
    waits_in: str = ""
    shown: tuple[Mapping[str, Any], bytes] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, key: Key, rv: int, obj: Mapping[str, Any], body: bytes) -> Record:
        """Build from a decoded object that admission has accepted."""
        metadata = obj["metadata"]
        references = metadata.get("ownerReferences")
        return cls(
            key=key,
            uid=metadata.get("uid", ""),
            rv=rv,
            body=body,
            api_version=sys.intern(obj.get("apiVersion", "")),
            labels=metadata.get("labels") or {},
            owners=tuple([reference.get("uid", "") for reference in references]) if references else (),
            deleting="deletionTimestamp" in metadata,
            waits_in=waits_in(key, obj),
        )

    def decode(self) -> dict[str, Any]:
        """A fresh copy of the object; the caller may change it."""
        decoded: dict[str, Any] = orjson.loads(self.body)
        return decoded


@dataclass(slots=True, eq=False)
class Change:
    """One committed (or still queued) write.

    Attributes:
        record: the object after the write; for DELETED its last state, carrying the resourceVersion of the deletion.
        previous: the object before the write; None for ADDED.
        encoded: lines of watch streams that were already encoded, by whatever the watch room keys them with.
    """

    type: ChangeType
    record: Record
    previous: Record | None
    encoded: dict[Any, bytes] = field(default_factory=dict, repr=False)
    key: Key = field(init=False)
    rv: int = field(init=False)

    def __post_init__(self) -> None:
        self.key, self.rv = self.record.key, self.record.rv  # every listener asks


class LogEntry(NamedTuple):
    """One row of the event log without its bodies."""

    rv: int
    type: ChangeType
    key: Key
    previous_rv: int | None
