"""The committed objects in memory: by key in order, by UID, by owner.

Called by the store alone, which changes it after each commit on the event loop. Bodies stay encoded (a decoded object takes about
five times the room). Never sees a write that is not on disk.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter

from swarmtask.apiserver.records import Change, Collection, Key, Record

_AFTER_EVERY_NAME = "\U0010ffff"


class Index:
    """All committed records."""

    def __init__(self) -> None:
        self._records: dict[Key, Record] = {}
        self._order: dict[Collection, list[Key]] = {}
        self._by_uid: dict[str, Key] = {}
        self._by_owner: dict[str, set[Key]] = {}

    def load(self, records: Sequence[Record]) -> None:
        """Fill an empty index; sorts the order lists once instead of at every insert."""
        self._records = {record.key: record for record in records}
        self._by_uid = {record.uid: record.key for record in records if record.uid}
        for record in records:
            for owner in record.owners:
                self._by_owner.setdefault(owner, set()).add(record.key)
        for collection, group in groupby(self._records, key=attrgetter("collection")):
            self._order.setdefault(collection, []).extend(group)
        for keys in self._order.values():
            keys.sort()

    def apply(self, change: Change) -> None:
        """Take over one committed change."""
        key = change.key
        old = self._records.get(key)
        if old is not None:
            self._unlink(old)
        if change.type == "DELETED":
            if old is not None:
                del self._records[key]
                keys = self._order[key.collection]
                del keys[bisect_left(keys, key)]
            return
        if old is None:
            insort(self._order.setdefault(key.collection, []), key)
        self._records[key] = change.record
        self._link(change.record)

    def get(self, key: Key) -> Record | None:
        return self._records.get(key)

    def by_uid(self, uid: str) -> Record | None:
        key = self._by_uid.get(uid)
        return self._records.get(key) if key is not None else None

    def dependents(self, uid: str) -> list[Record]:
        """Records whose ownerReferences name this UID."""
        return [self._records[key] for key in sorted(self._by_owner.get(uid, ()))]

    def keys(self, collection: Collection, namespace: str | None = None) -> list[Key]:
        """Keys in order of (namespace, name); of one namespace, or of all when None."""
        keys = self._order.get(collection, [])
        if namespace is None:
            return keys
        low = bisect_left(keys, Key(collection, namespace, ""))
        high = bisect_right(keys, Key(collection, namespace, _AFTER_EVERY_NAME))
        return keys[low:high]

    def records(self, collection: Collection, namespace: str | None = None) -> list[Record]:
        return [self._records[key] for key in self.keys(collection, namespace)]

    def collections(self) -> list[Collection]:
        """Collections that hold at least one object."""
        return [collection for collection, keys in self._order.items() if keys]

    def __iter__(self) -> Iterator[Record]:
        return iter(list(self._records.values()))

    def __len__(self) -> int:
        return len(self._records)

    def _link(self, record: Record) -> None:
        if record.uid:
            self._by_uid[record.uid] = record.key
        for owner in record.owners:
            self._by_owner.setdefault(owner, set()).add(record.key)

    def _unlink(self, record: Record) -> None:
        if self._by_uid.get(record.uid) == record.key:
            del self._by_uid[record.uid]
        for owner in record.owners:
            dependents = self._by_owner.get(owner)
            if dependents is not None:
                dependents.discard(record.key)
                if not dependents:
                    del self._by_owner[owner]
