"""Views: objects that are computed from stored ones whenever somebody asks, and never stored themselves.

Called by the object handlers (get, list) and the watch hub. A view says which stored objects it is made of and what one of them
looks like through it; versions, the event log, selectors and Tables then work as for stored objects. Every projected object carries
the resourceVersion of the object that it is made of. Pure but for the records that it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from swarmtask.apiserver.records import Change, Collection, Key, Record
from swarmtask.apiserver.selectors import Selection


class View(Protocol):
    """One kind of projection."""

    @property
    def source(self) -> Collection:
        """What it is made of."""
        ...

    def project(self, record: Record) -> list[Record]:
        """What one stored object shows, in the order in which lists show it. Fresh records."""
        ...

    def origin(self, key: Key) -> Key | None:
        """Of which stored object something of this key would be made; None: of none."""
        ...

    def may_show(self, record: Record, selection: Selection) -> bool:
        """False where nothing of this object can be selected; cheap, without decoding it."""
        ...


def projected(key: Key, rv: int, obj: dict[str, Any]) -> Record:
    """A record of a computed object."""
    obj["metadata"]["resourceVersion"] = str(rv)
    return Record.of(key, rv, obj, orjson.dumps(obj))


def changes(view: View, change: Change) -> list[Change]:
    """What a change of a stored object is to somebody who looks through the view; what looks the same has not changed.

    A client that has read one of several events goes on after the version of that one. So only the last of them carries the
    version of the change, and the others the one before: whoever is cut off in between gets all of them again.
    """
    before = {record.key: record for record in (view.project(change.previous) if change.previous is not None else ())}
    after = {record.key: record for record in (view.project(change.record) if change.type != "DELETED" else ())}
    found: list[Change] = []
    for key, old in before.items():
        if key not in after:
            found.append(Change("DELETED", _at(old, change.rv), old))
        elif _shown(old) != _shown(after[key]):
            found.append(Change("MODIFIED", after[key], old))
    found += [Change("ADDED", record, None) for key, record in after.items() if key not in before]
    earlier = [Change(one.type, _at(one.record, change.rv - 1), one.previous) for one in found[:-1]]
    return [*earlier, *found[-1:]]


def through(view: View | None, stored: Sequence[Change]) -> list[Change]:
    """Changes as somebody sees them who looks through the view; through none: as they are."""
    if view is None:
        return list(stored)
    return [seen for change in stored for seen in changes(view, change)]


def _shown(record: Record) -> dict[str, Any]:
    obj = record.decode()
    obj["metadata"].pop("resourceVersion", None)
    return obj


def _at(record: Record, rv: int) -> Record:
    """The same object with another version."""
    return record if record.rv == rv else projected(record.key, rv, record.decode())
