"""From Docker's messages to the records that the API keeps: lines joined and cut, floods cut off, positions counted. Pure.

Called by `log_follower`. It follows from the container's log alone which records there are: the rate of a flood is measured by the
times at which Docker has stamped the lines, not by a clock. So whoever reads the log again, from its beginning or from a mark, gets
the same records at the same positions, and an agent that knows nothing any more goes on where the API says.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from swarmtask.errors import SwarmTaskError
from swarmtask.nodeagent.log_stream import Message, Stream
from swarmtask.resources.log_records import Kind, LogRecord

LINE_BYTES = 64 * 1024
GOES_ON = b" [line goes on]"
"""At the end of every part but the last of a line that is longer than LINE_BYTES."""
SECOND = 10**9
MARGIN_S = 2
"""Docker's times of two streams may be a little out of order: a mark looks back so far."""
OVERHEAD_BYTES = 64
"""What a line costs beside its text: empty ones are not free."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Of one attempt. `burst` bytes may come at once, then so many a second."""

    bytes_per_s: int = 2**20
    burst_bytes: int = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a container's log has been turned into records: enough to go on from here.

    Attributes:
        position: of the next record.
        since: nanoseconds; skip: so many messages from then on have been taken.
        last: time of the message that was taken last; total: messages that were taken since the container began.
        credit: what may come at once, in billionths of a byte; None: all of it. refilled: when it was counted.
        dropped: lines of the flood that is being dropped; 0: none is.
    """

    position: int = 0
    since: int = 0
    skip: int = 0
    last: int = 0
    total: int = 0
    credit: int | None = None
    refilled: int = 0
    dropped: int = 0


class PositionLost(SwarmTaskError):
    """The log does not have what was taken from it where it was: Docker has rotated it."""


class Cutter:
    """See the module. Give it the messages from `mark.since` on.

    Attributes:
        mark: everything up to here is in records; what is behind it may be, in part.
    """

    def __init__(self, mark: Mark, rate: Rate | None = None) -> None:
        self.mark, self._rate = mark, rate or Rate()
        self._left = mark.skip
        self._seconds: Counter[int] = Counter()
        self._now = mark
        self._disordered = False
        self._parts: dict[Stream, tuple[int, bytearray]] = {}

    @property
    def pending(self) -> bool:
        """A line has begun, and is in no record yet."""
        return bool(self._parts)

    def take(self, message: Message) -> list[LogRecord]:
        """The records that follow. Raises PositionLost."""
        if self._left:
            self._left -= 1
            self._seconds[message.nanoseconds // SECOND] += 1
            if not self._left and message.nanoseconds != self.mark.last:
                raise PositionLost("a container's log has changed behind the agent")
            return []
        self._count(message.nanoseconds)
        records = self._lines(message)
        if not self._parts:
            self.mark = self._now
        return records

    def finish(self) -> list[LogRecord]:
        """The log has ended: what is left. Raises PositionLost: it has ended too early."""
        if self._left:
            raise PositionLost("a container's log has become shorter behind the agent")
        records: list[LogRecord] = []
        for stream, (nanoseconds, text) in sorted(self._parts.items()):
            records += self._limited(nanoseconds, stream, bytes(text))
        self._parts.clear()
        if self._now.dropped:
            records += self._dropped(self._now.last)
        self.mark = self._now
        return records

    def note(self, text: str, kind: Kind = "n") -> LogRecord:
        """A record of ours: it follows from something else than the log."""
        self._now = self.mark = replace(self._now, position=self._now.position + 1)
        return LogRecord(self._now.last, kind, text.encode())

    # --- where it is -----------------------------------------------------------------------------------------------------

    def _count(self, nanoseconds: int) -> None:
        second, since, total = nanoseconds // SECOND, self._now.since, self._now.total + 1
        self._seconds[second] += 1
        if nanoseconds < since:
            self._disordered = True  # the clock was set back: only the number of messages says how far we are
        if self._disordered:
            since, skip = 0, total
        else:
            if since < (later := (second - MARGIN_S) * SECOND):
                since = later
                for old in [one for one in self._seconds if one < second - MARGIN_S]:
                    del self._seconds[old]
            skip = self._seconds.total()
        self._now = replace(self._now, since=since, skip=skip, last=nanoseconds, total=total)

    # --- lines -----------------------------------------------------------------------------------------------------------

    def _lines(self, message: Message) -> list[LogRecord]:
        begun = self._parts.pop(message.stream, None)
        nanoseconds, text = (message.nanoseconds, bytearray(message.text)) if begun is None else (begun[0], begun[1] + message.text)
        records: list[LogRecord] = []
        while len(text) > LINE_BYTES:
            records += self._limited(nanoseconds, message.stream, bytes(text[:LINE_BYTES]) + GOES_ON)
            del text[:LINE_BYTES]
        if message.whole:
            records += self._limited(nanoseconds, message.stream, bytes(text))
        else:
            self._parts[message.stream] = (nanoseconds, text)
        return records

    def _limited(self, nanoseconds: int, stream: Stream, text: bytes) -> list[LogRecord]:
        now, rate = self._now, self._rate
        full = rate.burst_bytes * SECOND
        passed = max(0, nanoseconds - now.refilled) if now.credit is not None else 0
        credit = full if now.credit is None else min(full, now.credit + rate.bytes_per_s * passed)
        self._now = now = replace(now, credit=credit, refilled=max(now.refilled, nanoseconds))
        records: list[LogRecord] = []
        if now.dropped:
            if credit < min(full, rate.bytes_per_s * SECOND):
                self._now = replace(now, dropped=now.dropped + 1)
                return []
            records += self._dropped(nanoseconds)
        cost = (len(text) + OVERHEAD_BYTES) * SECOND
        if cost > credit:
            words = b"more than %d bytes a second: lines are dropped from here" % rate.bytes_per_s
            self._now = replace(self._now, dropped=1, position=self._now.position + 1)
            return [*records, LogRecord(nanoseconds, "n", words)]
        self._now = replace(self._now, credit=credit - cost, position=self._now.position + 1)
        return [*records, LogRecord(nanoseconds, stream, text)]

    def _dropped(self, nanoseconds: int) -> list[LogRecord]:
        count = self._now.dropped
        self._now = replace(self._now, dropped=0, position=self._now.position + 1)
        return [LogRecord(nanoseconds, "n", b"%d %s dropped" % (count, b"line" if count == 1 else b"lines"))]
