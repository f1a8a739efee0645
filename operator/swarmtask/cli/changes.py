"""What happens to objects, as a stream that a command can end at any point.

Called by `get -w`, `logs -f`, `run --wait` and `demo`. A stream is closed where it was opened: left to the garbage collector, its
connection would be closed in the middle of the event loop's end.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

from swarmtask.cli.session import Session
from swarmtask.errors import Expired
from swarmtask.kube import Object, WatchEvent
from swarmtask.resources.kinds import Kind


async def changes(
    session: Session, kind: Kind, scope: str | None, *, name: str = "", selector: str = ""
) -> AsyncGenerator[WatchEvent]:
    """What is there now as ADDED, then every change. Use it within `contextlib.aclosing`.

    Starts over by itself when the server has forgotten the position: objects that were already given and have not changed are not
    given twice, and those that have gone meanwhile are given as DELETED, as they were seen last.
    """
    fields = f"metadata.name={name}" if name else ""
    seen: dict[str, Object] = {}
    while True:
        found = await session.api.list(kind, scope, label_selector=selector, field_selector=fields)
        there = {_uid(obj) for obj in found.items}
        for uid in [uid for uid in seen if uid not in there]:
            yield WatchEvent("DELETED", seen.pop(uid))
        for obj in found.items:
            before = seen.get(_uid(obj))
            if before is None or _version(before) != _version(obj):
                yield WatchEvent("ADDED" if before is None else "MODIFIED", obj)
                seen[_uid(obj)] = obj
        try:
            async with watching(session, kind, scope, found.resource_version, fields=fields, selector=selector) as events:
                async for event in events:
                    if event.type == "BOOKMARK":
                        continue
                    if event.type == "DELETED":
                        seen.pop(_uid(event.object), None)
                    else:
                        seen[_uid(event.object)] = event.object
                    yield event
        except Expired:
            continue


@contextlib.asynccontextmanager
async def watching(
    session: Session, kind: Kind, scope: str | None, version: str, *, fields: str = "", selector: str = ""
) -> AsyncIterator[AsyncIterator[WatchEvent]]:
    """The watch that follows a list; closed at the end of the block."""
    events = session.api.watch(kind, scope, resource_version=version, label_selector=selector, field_selector=fields)
    try:
        yield events
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()


def _uid(obj: Object) -> str:
    return str(obj.get("metadata", {}).get("uid", ""))


def _version(obj: Object) -> str:
    return str(obj.get("metadata", {}).get("resourceVersion", ""))
