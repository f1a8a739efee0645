"""One page of a list: which of the stored records are on it, or of what a view shows of them.

Called by the object handlers, which know versions, tokens and answers.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from swarmtask.apiserver.projections.views import View
from swarmtask.apiserver.records import Key, Record
from swarmtask.apiserver.selectors import Selection

VIEW_STEP = 200
"""Stored objects that are looked at through a view before others' requests have their turn."""


@dataclass(slots=True)
class Page:
    """A list, or a part of one. `metadata` of the list: `continue` is there when something follows."""

    records: list[Record] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)


def fill(page: Page, stored: Sequence[Record], selection: Selection, limit: int, after: Key | None) -> None:
    """Take what is selected of the stored records, after a key, up to a limit."""
    start = bisect_right(stored, after, key=lambda record: record.key) if after is not None else 0
    for position in range(start, len(stored)):
        record = stored[position]
        if selection and not selection.matches(record):
            continue
        if len(page.records) == limit:
            page.metadata["continue"] = ""
            if not selection:
                page.metadata["remainingItemCount"] = len(stored) - position
            return
        page.records.append(record)


async def fill_through(  # noqa: PLR0917 - as `fill`, and a view
    page: Page, view: View, stored: Sequence[Record], selection: Selection, limit: int, after: Key | None
) -> None:
    """The same through a view, in the order of what it is made of. Others' requests go on in between: nothing is kept decoded."""
    origin = view.origin(after) if after is not None else None
    name = selection.fields.name
    if name is not None:
        stored = [record for record in stored if record.key == view.origin(Key(record.key.collection, record.key.namespace, name))]
    start = bisect_left(stored, origin, key=lambda record: record.key) if origin is not None else 0
    for count, record in enumerate(stored[start:], 1):
        if count % VIEW_STEP == 0:
            await asyncio.sleep(0)
        if not view.may_show(record, selection):
            continue
        shown = view.project(record)
        if record.key == origin:
            keys = [one.key for one in shown]
            shown = shown[keys.index(after) + 1 :] if after in keys else shown
        for one in shown:
            if not selection.matches(one):
                continue
            if len(page.records) == limit:
                page.metadata["continue"] = ""
                return
            page.records.append(one)
