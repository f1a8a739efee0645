"""`kubectl logs`: the output of an attempt, from the store of logs, as the lines that clients of Kubernetes expect.

Called by the handlers with the pod. Where the output is kept is behind `LogSource`; no engine is asked here. Marks of the store's
own (`note`, such as lines that were dropped) come as `[swarmtask: ...]`, as `swarmtask logs` shows them.

Source of the parameters: Kubernetes API reference, "read log of the specified Pod".
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

from swarmtask.apiserver.projections.pods import ANNOTATION_ENGINE, CONTAINER, LABEL_ATTEMPT, is_live
from swarmtask.apiserver.wire import Request, Response, since_of
from swarmtask.clock import Clock
from swarmtask.errors import BadRequest, NotFound

FIRST_LINE_S = 0.5
"""A log that is followed and silent is answered after this, so that the client knows that it is connected."""
BUFFER_BYTES = 128 * 1024
"""Read ahead at most, beyond one line."""


class LogLine(Protocol):
    """One line. `text` without its newline; `stream` `note`: a mark of the store's own."""

    @property
    def at(self) -> datetime: ...
    @property
    def stream(self) -> Literal["stdout", "stderr", "note"]: ...
    @property
    def text(self) -> str: ...


class LogSource(Protocol):
    """Where the output of attempts is kept."""

    def read(
        self, namespace: str, task_uid: str, attempt: int, *, tail: int | None = None, since: datetime | None = None,
        follow: bool = False,
    ) -> AsyncIterator[LogLine]:  # fmt: skip
        """Lines, oldest first. Ends when the log is complete, or at its present end without `follow`.

        Raises:
            KeyError: nothing is known of the attempt.
        """
        ...


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of a log."""

    tail: int | None = None
    since: datetime | None = None
    follow: bool = False
    timestamps: bool = False
    previous: bool = False
    limit_bytes: int | None = None
    streams: frozenset[str] = frozenset({"stdout", "stderr", "note"})


def wish_of(request: Request, now: datetime) -> Wish:
    """The query of a GET of a log.

    Raises:
        BadRequest: a parameter cannot be read, or names a container that no pod has.
    """
    container = request.query.get("container", "")
    if container not in ("", CONTAINER):
        raise BadRequest(f"container {container} is not valid: the container of every pod is {CONTAINER}")
    return Wish(
        tail=request.number("tailLines"), since=since_of(request, now), follow=request.flag("follow"),
        timestamps=request.flag("timestamps"), previous=request.flag("previous"), limit_bytes=_limit(request),
        streams=_streams(request.query.get("stream", "") or "All"),
    )  # fmt: skip


def _limit(request: Request) -> int | None:
    limit = request.number("limitBytes")
    if limit == 0:
        raise BadRequest("limitBytes: must be greater than 0")
    return limit


def _streams(word: str) -> frozenset[str]:
    chosen = {"All": {"stdout", "stderr", "note"}, "Stdout": {"stdout"}, "Stderr": {"stderr"}}.get(word)
    if chosen is None:
        raise BadRequest(f"stream: {word!r} is not one of All, Stdout, Stderr")
    return frozenset(chosen)


class PodLogs:
    """Answers GETs of `pods/NAME/log`."""

    def __init__(self, store: LogSource, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._open: set[_Stream] = set()

    def end_all(self) -> None:
        """End every log that is followed; the server stops."""
        for stream in list(self._open):
            stream.end()

    async def answer(self, request: Request, pod: Mapping[str, Any]) -> Response:
        """The log of a pod's attempt, or of the attempt before it (`previous`).

        Raises:
            BadRequest: the parameters make no sense, or there is no output yet. NotFound: none is kept.
        """
        wish = wish_of(request, self._clock.now())
        metadata = pod["metadata"]
        owner, number = metadata["ownerReferences"][0], int(metadata["labels"][LABEL_ATTEMPT])
        instead = f"try `swarmtask logs {owner['name']} -n {metadata['namespace']}`"
        if wish.previous:
            number -= 1
            if number == 0:
                raise BadRequest(f'previous terminated container "{CONTAINER}" in pod "{metadata["name"]}" not found')
        try:
            lines = self._store.read(
                metadata["namespace"], owner["uid"], number, tail=wish.tail, since=wish.since, follow=wish.follow
            )
            stream = _Stream(lines, wish, self._open.discard)
            self._open.add(stream)
            await stream.begin()
        except KeyError:
            if is_live(pod) and not wish.previous:
                raise BadRequest(f'container "{CONTAINER}" in pod "{metadata["name"]}" has no output yet; {instead}') from None
            engine = metadata["annotations"][ANNOTATION_ENGINE]
            raise NotFound(f"no output of attempt {number} is kept (engine {engine}): {instead}") from None
        return Response(200, content_type="text/plain; charset=utf-8", stream=stream.chunks(), on_close=stream.end)


class _Stream:
    """One log on its way to a client: a task reads lines into a buffer of bounded size, `chunks` empties it."""

    def __init__(self, lines: AsyncIterator[LogLine], wish: Wish, forget: Callable[[_Stream], None]) -> None:
        self._lines, self._wish, self._forget = lines, wish, forget
        self._left = wish.limit_bytes
        self._buffer = bytearray()
        self._news, self._room = asyncio.Event(), asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._ended = False

    async def begin(self) -> None:
        """Wait for the first line, but not for long. Raises as the store does."""
        self._reader = asyncio.create_task(self._read(), name="log of an attempt")
        self._reader.add_done_callback(lambda _: self._news.set())
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST_LINE_S):
                    await self._news.wait()
            if self._reader.done():
                self._reader.result()
        except BaseException:
            await self._close()
            raise

    def end(self) -> None:
        """End it soon; more than once is fine."""
        self._ended = True
        self._news.set()
        self._forget(self)
        if self._reader is not None:
            self._reader.cancel()

    async def _read(self) -> None:
        async for line in self._lines:
            if line.stream not in self._wish.streams:
                continue
            self._buffer += self._cut(written(line, timestamps=self._wish.timestamps))
            self._news.set()
            if self._left == 0:
                return
            while len(self._buffer) >= BUFFER_BYTES:
                self._room.clear()
                await self._room.wait()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Whole lines, as many as have come."""
        try:
            while self._reader is not None and not self._ended:
                over = self._reader.done()
                if self._buffer:
                    chunk, self._buffer = bytes(self._buffer), bytearray()
                    self._room.set()
                    yield chunk
                elif over:
                    self._reader.result()
                    return
                else:
                    self._news.clear()
                    await self._news.wait()
        except KeyError:
            return  # the log was removed while it was read
        finally:
            await self._close()

    async def _close(self) -> None:
        """Give the store its iterator back: nothing must wait in it any more."""
        self.end()
        if self._reader is not None:
            await asyncio.wait({self._reader})
        if isinstance(self._lines, AsyncGenerator):
            await self._lines.aclose()

    def _cut(self, data: bytes) -> bytes:
        if self._left is None:
            return data
        data = data[: self._left]
        self._left -= len(data)
        return data


def written(line: LogLine, *, timestamps: bool) -> bytes:
    """A line as clients get it."""
    text = f"[swarmtask: {line.text}]" if line.stream == "note" else line.text
    stamp = f"{nanos(line.at)} " if timestamps else ""
    return f"{stamp}{text}\n".encode("utf-8", "replace")


def nanos(moment: datetime) -> str:
    """RFC 3339 as Go writes it with nanoseconds, of which the last three digits are not known."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "000Z"
