"""Watches: fan-out of committed changes to streams, replay from the disk log, bookmarks.

Called by the list handlers (a GET with `watch=true`) and by the store after each commit. One `Watcher` per stream with a bounded
queue: a reader that falls too far behind is cut off and finds what it missed in the log when it comes back. An event is encoded
once per type and version, however many streams carry it. Never decides what a client may see: the handler has done that.

Source of the semantics: Kubernetes documentation, "API concepts", "Efficient detection of changes".
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from swarmtask.apiserver import versions
from swarmtask.apiserver.projections.views import View, through
from swarmtask.apiserver.records import Change, Collection, LogEntry, Record
from swarmtask.apiserver.selectors import Selection
from swarmtask.apiserver.store import Store
from swarmtask.apiserver.types import ResourceType
from swarmtask.apiserver.wire import status_of
from swarmtask.clock import Clock
from swarmtask.errors import Expired, SwarmTaskError, TooManyRequests

QUEUE_LIMIT = 4096
"""Events a reader may be behind. They are shared between streams, so this bounds time more than memory."""
WATCHER_LIMIT = 10_000
CHUNK_BYTES = 128 * 1024
REPLAY_STEP = 200
DEFAULT_TIMEOUT_S = 1800.0
"""Streams without timeoutSeconds end after once to twice this: clients spread their reconnects."""
INITIAL_EVENTS_END = "k8s.io/initial-events-end"
EventType = Literal["ADDED", "MODIFIED", "DELETED"]


@dataclass(frozen=True, slots=True)
class WatchRequest:
    """What a stream asks for.

    Attributes:
        since: start after this version; None starts with the present state (synthetic ADDED events).
        initial_events: send the present state first and mark its end with a bookmark.
        shape: "" for the objects themselves; Table or PartialObjectMetadata.
        render: turns an object into that shape.
        client: who reads, where the number of his streams is bounded; empty where it is not.
        view: what is seen of stored objects; None: these themselves.
    """

    rt: ResourceType
    namespace: str | None
    selection: Selection
    since: int | None
    bookmarks: bool = False
    initial_events: bool = False
    timeout_s: float | None = None
    shape: str = ""
    render: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    client: str = ""
    view: View | None = None

    @property
    def source(self) -> Collection:
        """The stored objects that the stream is about."""
        return self.view.source if self.view is not None else versions.collection_of(self.rt)


class Watcher:
    """The queue of one stream.

    Attributes:
        start: the version at which it was registered: later changes arrive in the queue, earlier ones are replayed.
        present: the stored records of that moment, where the stream begins with what they show.
    """

    def __init__(self, request: WatchRequest, start: int, present: list[Record]) -> None:
        self.request = request
        self.start = start
        self.present = present
        self.queue: deque[tuple[EventType, Change]] = deque()
        self.wake = asyncio.Event()
        self.overrun = False
        self.ended = False
        self.bookmark_due = False

    def offer(self, change: Change) -> None:
        """Take a change if it concerns this stream."""
        namespace = self.request.namespace
        if namespace is not None and change.key.namespace != namespace:
            return
        type_ = edge(self.request.selection, change)
        if type_ is None or self.overrun:
            return
        if len(self.queue) >= QUEUE_LIMIT:
            self.overrun = True
            self.queue.clear()
        else:
            self.queue.append((type_, change))
        self.wake.set()

    def end(self) -> None:
        """End the stream soon: the client has gone, its time is up, or the server stops."""
        self.ended = True
        self.wake.set()


def edge(selection: Selection, change: Change) -> EventType | None:
    """What a change is to somebody who sees only selected objects."""
    if not selection:
        return change.type
    before = change.previous is not None and selection.matches(change.previous)
    if change.type == "DELETED":
        return "DELETED" if before else None
    after = selection.matches(change.record)
    if after:
        return "MODIFIED" if before else "ADDED"
    return "DELETED" if before else None


class WatchHub:
    """All streams of one server."""

    def __init__(self, store: Store, clock: Clock, *, bookmark_interval_s: float, client_limit: int = WATCHER_LIMIT) -> None:
        self._store = store
        self._clock = clock
        self._interval_s = bookmark_interval_s
        self._client_limit = client_limit
        self._of_clients: Counter[str] = Counter()
        self._watchers: dict[Collection, set[Watcher]] = {}
        self._closed = False

    def __len__(self) -> int:
        return sum(len(watchers) for watchers in self._watchers.values())

    def on_commit(self, changes: Sequence[Change]) -> None:
        """A store listener."""
        for change in changes:
            seen: dict[View, list[Change]] = {}
            for watcher in self._watchers.get(change.key.collection, ()):
                view = watcher.request.view
                if view is None:
                    watcher.offer(change)
                    continue
                if view not in seen:
                    seen[view] = through(view, [change])
                for projected in seen[view]:
                    watcher.offer(projected)

    def end_all(self) -> None:
        """End every stream and refuse new ones; the server stops."""
        self._closed = True
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.end()

    def end_collection(self, collection: Collection) -> None:
        """End the streams of a type that is served otherwise, or not any more: they show objects as the definition had them."""
        for watcher in self._watchers.get(collection, ()):
            watcher.end()

    def open(self, request: WatchRequest) -> Watcher:
        """Register a stream at the present moment; `stream` must be iterated or closed afterwards."""
        if len(self) >= WATCHER_LIMIT:
            raise TooManyRequests("too many watches are open: close some or try again later", retry_after_s=10)
        if request.client and self._of_clients[request.client] >= self._client_limit:
            raise TooManyRequests(
                f"{request.client} has {self._client_limit} watches open: close some or try again later", retry_after_s=10
            )
        collection = request.source
        begins_with_all = request.since is None or request.initial_events
        present = self._store.index.records(collection, request.namespace) if begins_with_all else []
        watcher = Watcher(request, self._store.resource_version, present)
        watcher.ended = self._closed
        self._watchers.setdefault(collection, set()).add(watcher)
        if request.client:
            self._of_clients[request.client] += 1
        return watcher

    def close(self, watcher: Watcher) -> None:
        """End and forget a stream; closing twice is fine."""
        watcher.end()
        watchers, client = self._watchers[watcher.request.source], watcher.request.client
        if client and watcher in watchers:
            self._of_clients[client] -= 1
            if not self._of_clients[client]:
                del self._of_clients[client]
        watchers.discard(watcher)

    async def stream(self, watcher: Watcher) -> AsyncGenerator[bytes, None]:
        """Chunks of newline-separated events until the stream ends. Forgets the watcher at the end."""
        timer = asyncio.create_task(self._time(watcher))
        try:
            async for chunk in self._beginning(watcher):
                yield chunk
                if self._closed:
                    return  # the client lists again: no bookmark has told it that this was all
            async for chunk in self._live(watcher):
                yield chunk
        except SwarmTaskError as error:
            yield _error_line(error)
        finally:
            timer.cancel()
            self.close(watcher)

    async def _time(self, watcher: Watcher) -> None:
        """Marks when a bookmark is due, and ends the stream in time."""
        left = watcher.request.timeout_s or DEFAULT_TIMEOUT_S * (1 + random.random())
        while left > self._interval_s:
            await self._clock.sleep(self._interval_s)
            left -= self._interval_s
            watcher.bookmark_due = True
            watcher.wake.set()
        await self._clock.sleep(left)
        watcher.end()

    async def _beginning(self, watcher: Watcher) -> AsyncIterator[bytes]:
        request, start = watcher.request, watcher.start
        if request.since is None or request.initial_events:
            records, watcher.present = watcher.present, []
            for position in range(0, len(records), REPLAY_STEP):
                step = _present(request, records[position : position + REPLAY_STEP])
                lines = [encode(request, "ADDED", Change("ADDED", record, None)) for record in step]
                if lines:
                    yield b"".join(lines)
            if request.initial_events:
                yield bookmark(request, start, initial_end=True)
            return
        if request.since > start:
            raise Expired(f"too new resource version: {request.since}, current: {start}: list again")
        history = self._store.history(request.since, request.source, request.namespace)
        entries = [entry for entry in history if entry.rv <= start]
        for position in range(0, len(entries), REPLAY_STEP):
            changes = through(request.view, await self._past(entries[position : position + REPLAY_STEP]))
            lines = [encode(request, type_, change) for change in changes if (type_ := edge(request.selection, change))]
            if lines:
                yield b"".join(lines)

    async def _past(self, entries: Sequence[LogEntry]) -> list[Change]:
        wanted = [entry.rv for entry in entries] + [entry.previous_rv for entry in entries if entry.previous_rv is not None]
        bodies = await self._store.bodies(wanted)

        def record(entry: LogEntry, rv: int) -> Record:
            return Record.of(entry.key, rv, orjson.loads(bodies[rv]), bodies[rv])

        return [
            Change(entry.type, record(entry, entry.rv), record(entry, entry.previous_rv) if entry.previous_rv is not None else None)
            for entry in entries
        ]

    async def _live(self, watcher: Watcher) -> AsyncIterator[bytes]:
        request, sent = watcher.request, watcher.start
        while True:
            if watcher.overrun:
                return  # the client resumes from the last event that it has read; the log holds the rest
            lines, size = [], 0
            while watcher.queue and size < CHUNK_BYTES:
                type_, change = watcher.queue.popleft()
                line = encode(request, type_, change)
                lines.append(line)
                size += len(line)
                sent = change.rv
            if lines:
                yield b"".join(lines)
                continue
            if watcher.ended:
                if request.bookmarks:
                    yield bookmark(request, self._quiet_version(watcher, sent))
                return
            if watcher.bookmark_due:
                watcher.bookmark_due = False
                if request.bookmarks:
                    yield bookmark(request, self._quiet_version(watcher, sent))
                continue
            watcher.wake.clear()
            await watcher.wake.wait()

    def _quiet_version(self, watcher: Watcher, sent: int) -> int:
        """The version up to which the stream has seen everything."""
        return sent if watcher.queue or watcher.overrun else self._store.resource_version


def _present(request: WatchRequest, stored: Sequence[Record]) -> list[Record]:
    """What the stream sees of stored records now."""
    view, selection = request.view, request.selection
    if view is None:
        return [record for record in stored if selection.matches(record)]
    shown = (one for record in stored if view.may_show(record, selection) for one in view.project(record))
    return [record for record in shown if selection.matches(record)]


def encode(request: WatchRequest, type_: EventType, change: Change) -> bytes:
    """One line of a stream. An object that left the selection is shown as it was, with the version of the change."""
    left = type_ == "DELETED" and change.type != "DELETED" and change.previous is not None
    if request.render is not None:
        obj = versions.decode(request.rt, change.previous if left and change.previous is not None else change.record)
        obj["metadata"]["resourceVersion"] = str(change.rv)
        return _line(type_, orjson.dumps(request.render(obj)))
    cached = (type_, request.rt.api_version, request.rt.schemas_since)
    line = change.encoded.get(cached)
    if line is None:
        if left and change.previous is not None:
            obj = versions.decode(request.rt, change.previous)
            obj["metadata"]["resourceVersion"] = str(change.rv)
            body = orjson.dumps(obj)
        else:
            body = versions.encoded(request.rt, change.record)
        line = change.encoded[cached] = _line(type_, body)
    return line


def bookmark(request: WatchRequest, version: int, *, initial_end: bool = False) -> bytes:
    """A line that says how far the stream has come."""
    metadata: dict[str, Any] = {"resourceVersion": str(version), "creationTimestamp": None}
    if initial_end:
        metadata["annotations"] = {INITIAL_EVENTS_END: "true"}
    obj: dict[str, Any] = {"kind": request.rt.kind, "apiVersion": request.rt.api_version, "metadata": metadata}
    if request.shape == "Table":
        obj = {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": [], "rows": []}
    elif request.shape:
        obj |= {"kind": request.shape, "apiVersion": "meta.k8s.io/v1"}
    return _line("BOOKMARK", orjson.dumps(obj))


def _error_line(error: SwarmTaskError) -> bytes:
    return _line("ERROR", orjson.dumps(status_of(error)))


def _line(type_: str, body: bytes) -> bytes:
    return b'{"type":"%b","object":%b}\n' % (type_.encode(), body)
