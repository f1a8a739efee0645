"""The output of an attempt as text: what is asked of it, how its records are written, and the answer that streams them.

Called by the routes of `swarmtasks/log` and of `pods/log`, which find the attempt and say in their own words what is missing. Where
records come from is `log_reader`; nothing here knows of files, tasks or pods.

Source of the parameters: Kubernetes API reference, "read log of the specified Pod".
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from swarmtask.apiserver.attempt_logs import AttemptLogs
from swarmtask.apiserver.log_reader import LogReader
from swarmtask.apiserver.wire import Request, Response, since_of
from swarmtask.errors import BadRequest, TooManyRequests
from swarmtask.resources.log_records import LogRecord

MOST_READERS = 1000
"""Of all output together, by whatever route."""
_STREAMS = {"All": frozenset("oen"), "Stdout": frozenset("o"), "Stderr": frozenset("e")}


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of an output.

    Attributes:
        tail: only so many records of the end. since: only records from then on.
        limit_bytes: of the text, at least 1.
        kinds: of records that are wanted; see `LogRecord`.
    """

    tail: int | None = None
    since: datetime | None = None
    follow: bool = False
    timestamps: bool = False
    limit_bytes: int | None = None
    kinds: frozenset[str] = _STREAMS["All"]


def wish_of(request: Request, now: datetime) -> Wish:
    """From the query of a GET. Raises BadRequest: a parameter cannot be read."""
    limit, stream = request.number("limitBytes"), request.query.get("stream", "") or "All"
    if limit == 0:
        raise BadRequest("limitBytes: must be greater than 0")
    if stream not in _STREAMS:
        raise BadRequest(f"stream: {stream!r} is not one of {', '.join(_STREAMS)}")
    tail = request.number("tailLines")
    if tail is not None and stream != "All":
        raise BadRequest("tailLines counts the lines of both streams: it cannot be given together with one of them")
    return Wish(
        tail, since_of(request, now), request.flag("follow"), request.flag("timestamps"), limit, _STREAMS[stream]
    )  # fmt: skip


class LogTexts:
    """Answers that show output. One per server."""

    def __init__(self, logs: AttemptLogs) -> None:
        self._logs = logs
        self._reading = 0

    def answer(self, namespace: str, task_uid: str, attempt: int, wish: Wish) -> Response:
        """A stream, which ends as `AttemptLogs.reader` says; it is answered at once, even if nothing has been written yet.

        Raises:
            KeyError: nothing is known of the attempt. TooManyRequests.
        """
        reader = self._logs.reader(namespace, task_uid, attempt, tail=wish.tail, since=wish.since, follow=wish.follow)
        if self._reading >= MOST_READERS:
            raise TooManyRequests("too many people read output: try again later", retry_after_s=10)
        return Response(200, content_type="text/plain; charset=utf-8", stream=self._chunks(reader, wish), on_close=reader.end)

    async def _chunks(self, reader: LogReader, wish: Wish) -> AsyncGenerator[bytes, None]:
        self._reading += 1
        left, batches = wish.limit_bytes, reader.batches()
        try:
            async for batch in batches:
                text = b"".join(text_of(record, timestamps=wish.timestamps) for record in batch if record.kind in wish.kinds)
                if left is not None:
                    text = text[:left]
                    left -= len(text)
                if text:
                    yield text
                if left == 0:
                    return
        finally:
            self._reading -= 1
            await batches.aclose()


def text_of(record: LogRecord, *, timestamps: bool) -> bytes:
    """A line as it is shown: the container's own bytes, or a note in brackets."""
    text = b"[swarmtask: %s]" % record.text if record.kind == "n" else record.text
    return (stamp(record.nanoseconds) + b" " if timestamps else b"") + text + b"\n"


def stamp(nanoseconds: int) -> bytes:
    """RFC 3339 with nine digits, as Docker and Kubernetes write it."""
    seconds, rest = divmod(nanoseconds, 10**9)
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    except OverflowError:
        moment = datetime.max.replace(tzinfo=UTC)
    return b"%s.%09dZ" % (moment.strftime("%Y-%m-%dT%H:%M:%S").encode(), rest)
