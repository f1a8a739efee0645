"""From Docker's messages to the records that the API keeps: lines joined and cut, floods cut off, positions counted. Pure.

Called by `log_follower`. It follows from the container's log alone which records there are: the rate of a flood is measured by the
times at which Docker has stamped the lines, not by a clock. So whoever reads the log again, from its beginning or from a mark, gets
the same records at the same positions, and an agent that knows nothing any more goes on where the API says.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

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


class Mark(NamedTuple):
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
    """See the module. Give it the messages from `mark.since` on."""

    def __init__(self, mark: Mark, rate: Rate | None = None) -> None:
        self._begun, rate = mark, rate or Rate()
        self._left = mark.skip
        self._seconds: Counter[int] = Counter()
        self._held = 0
        self._disordered = False
        self._position, self._since, self._skip, self._last, self._total, self._credit, self._refilled, self._dropped = mark
        self._safe = mark
        self._parts: dict[Stream, tuple[int, bytearray]] = {}
        self._rate, self._full = rate.bytes_per_s, rate.burst_bytes * SECOND
        self._again = min(self._full, self._rate * SECOND)

    @property
    def mark(self) -> Mark:
        """Everything up to here is in records; what is behind it may be, in part."""
        return self._safe

    @property
    def newest(self) -> int:
        """Nanoseconds: nothing up to here is missing, whether it was taken here or before `mark`."""
        return max(self._last, self._since - 1)

    @property
    def pending(self) -> bool:
        """A line has begun, and is in no record yet."""
        return bool(self._parts)

    def take(self, message: Message) -> list[LogRecord]:
        """The records that follow. Raises PositionLost."""
        nanoseconds = message.nanoseconds
        if self._left:
            self._left -= 1
            self._held += 1
            self._seconds[nanoseconds // SECOND] += 1
            if not self._left and nanoseconds != self._begun.last:
                raise PositionLost("a container's log has changed behind the agent")
            return []
        self._count(nanoseconds)
        records = self._lines(message)
        if not self._parts:
            self._save()
        return records

    def finish(self) -> list[LogRecord]:
        """The log has ended: what is left. Raises PositionLost: it has ended too early."""
        if self._left:
            raise PositionLost("a container's log has become shorter behind the agent")
        records: list[LogRecord] = []
        for stream, (nanoseconds, text) in sorted(self._parts.items()):
            self._limit(records, nanoseconds, stream, bytes(text))
        self._parts.clear()
        if self._dropped:
            self._tell_dropped(records, self._last)
        self._save()
        return records

    def note(self, text: str, kind: Kind = "n") -> LogRecord:
        """A record of ours: it follows from something else than the log."""
        self._position += 1
        self._save()
        return LogRecord(self._last, kind, text.encode())

    def _save(self) -> None:
        self._safe = Mark(
            self._position, self._since, self._skip, self._last, self._total, self._credit, self._refilled, self._dropped
        )  # fmt: skip

    # --- where it is -----------------------------------------------------------------------------------------------------

    def _count(self, nanoseconds: int) -> None:
        second = nanoseconds // SECOND
        self._total += 1
        self._held += 1
        self._seconds[second] += 1
        self._last = nanoseconds
        if nanoseconds < self._since:
            self._disordered = True  # the clock was set back: only the number of messages says how far we are
        if self._disordered:
            self._since, self._skip = 0, self._total
            return
        later = (second - MARGIN_S) * SECOND
        if self._since < later:
            self._since = later
            for old in [one for one in self._seconds if one < second - MARGIN_S]:
                self._held -= self._seconds.pop(old)
        self._skip = self._held

    # --- lines -----------------------------------------------------------------------------------------------------------

    def _lines(self, message: Message) -> list[LogRecord]:
        nanoseconds, stream, text, whole = message
        records: list[LogRecord] = []
        if whole and stream not in self._parts and len(text) <= LINE_BYTES:
            self._limit(records, nanoseconds, stream, text)
            return records
        begun = self._parts.pop(stream, None)
        line = bytearray(text)
        if begun is not None:
            nanoseconds, line = begun[0], begun[1] + text
        while len(line) > LINE_BYTES:
            self._limit(records, nanoseconds, stream, bytes(line[:LINE_BYTES]) + GOES_ON)
            del line[:LINE_BYTES]
        if whole:
            self._limit(records, nanoseconds, stream, bytes(line))
        else:
            self._parts[stream] = (nanoseconds, line)
        return records

    def _limit(self, records: list[LogRecord], nanoseconds: int, stream: Stream, text: bytes) -> None:
        """Add the line, or count it as dropped."""
        if self._credit is None:
            credit = self._full
        else:
            credit = min(self._full, self._credit + self._rate * max(0, nanoseconds - self._refilled))
        self._credit, self._refilled = credit, max(self._refilled, nanoseconds)
        if self._dropped:
            if credit < self._again:
                self._dropped += 1
                return
            self._tell_dropped(records, nanoseconds)
        cost = (len(text) + OVERHEAD_BYTES) * SECOND
        self._position += 1
        if cost > credit:
            self._dropped = 1
            words = b"more than %d bytes a second: lines are dropped from here" % self._rate
            records.append(LogRecord(nanoseconds, "n", words))
        else:
            self._credit = credit - cost
            records.append(LogRecord(nanoseconds, stream, text))

    def _tell_dropped(self, records: list[LogRecord], nanoseconds: int) -> None:
        words = b"%d %s dropped" % (self._dropped, b"line" if self._dropped == 1 else b"lines")
        records.append(LogRecord(nanoseconds, "n", words))
        self._position += 1
        self._dropped = 0
