"""Docker's stream of a container's output, taken apart into messages. Pure.

Called by `log_follower`. Docker gives one message for each line, and several for a line of more than 16 KiB, each with the time at
which it was written in front (`timestamps=1`). Without a terminal every message has a head that names its stream and length; with
one, messages follow each other as text. Source: Docker Engine API, "Attach to a container", "Stream format".
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal, NamedTuple, Protocol

from swarmtask.errors import EngineUnavailable

MOST_MESSAGE_BYTES = 2**20
"""Docker's own are below 17 KiB; longer ones are no stream of Docker's."""
PIECE_BYTES = 16 * 1024
"""At which Docker cuts lines."""
_HEAD = 8
_STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ?")
_STAMP_BYTES = 31
"""Of a time with nine digits and the blank behind it, as Docker writes it."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Stream = Literal["o", "e"]


class Message(NamedTuple):
    """What Docker has kept as one entry.

    Attributes:
        nanoseconds: since 1970. whole: the line ends here; else the next message of this stream goes on with it.
    """

    nanoseconds: int
    stream: Stream
    text: bytes
    whole: bool


class Parser(Protocol):
    """Takes bytes as they come, gives the messages that are complete."""

    def feed(self, chunk: bytes) -> list[Message]: ...
    def close(self) -> list[Message]:
        """The stream has ended: what is left."""
        ...


def parser(*, tty: bool) -> Parser:
    return Plain() if tty else Multiplexed()


class Multiplexed:
    """Of a container without a terminal: frames of stream, length and message."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> list[Message]:
        """Raises EngineUnavailable: that is no such stream."""
        buffer, found, start = self._buffer, [], 0
        buffer += chunk
        while len(buffer) - start >= _HEAD:
            length = int.from_bytes(buffer[start + 4 : start + _HEAD])
            stream = buffer[start]
            if length > MOST_MESSAGE_BYTES or stream not in (0, 1, 2) or any(buffer[start + 1 : start + 4]):
                raise EngineUnavailable("Docker's output of a container is not in the form that it should have")
            end = start + _HEAD + length
            if len(buffer) < end:
                break
            found.append(_message("e" if stream == 2 else "o", bytes(buffer[start + _HEAD : end])))
            start = end
        del buffer[:start]
        return found

    def close(self) -> list[Message]:
        """A frame that was cut off is none. Raises EngineUnavailable."""
        if self._buffer:
            raise EngineUnavailable("Docker's output of a container broke off in the middle of a line")
        return []


class Plain:
    """Of a container with a terminal: all is stdout."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._nanoseconds: int | None = None

    def feed(self, chunk: bytes) -> list[Message]:
        """Raises EngineUnavailable: that is no such stream."""
        buffer, found, start = self._buffer, [], 0
        buffer += chunk
        longest = _STAMP_BYTES + PIECE_BYTES
        while start < len(buffer):
            end = buffer.find(b"\n", start, start + longest + 1) + 1
            if not end:
                # Of a longer line Docker repeats the time in front of every piece: see what follows before it is cut.
                if len(buffer) - start < longest + _STAMP_BYTES:
                    break
                end = start + longest
            found.append(self._message(bytes(buffer[start:end])))
            start = end
        del buffer[:start]
        return found

    def close(self) -> list[Message]:
        """Raises EngineUnavailable: that is no such stream."""
        rest, piece = bytes(self._buffer), _STAMP_BYTES + PIECE_BYTES
        self._buffer.clear()
        return [self._message(rest[at : at + piece]) for at in range(0, len(rest), piece)]

    def _message(self, content: bytes) -> Message:
        message = _message("o", content, self._nanoseconds)
        self._nanoseconds = None if message.whole else message.nanoseconds
        return message


def _message(stream: Stream, content: bytes, before: int | None = None) -> Message:
    """`before`: the time of the part before it, where it may be the rest of a line."""
    match = _STAMP.match(content)
    nanoseconds, start = (before, 0) if match is None else (_nanoseconds(match), match.end())
    if nanoseconds is None:
        raise EngineUnavailable("Docker's output of a container has no time in front of a line")
    whole = content.endswith(b"\n")
    return Message(nanoseconds, stream, content[start : -1 if whole else None], whole)


def _nanoseconds(match: re.Match[bytes]) -> int | None:
    """None for what is no time, or before 1970."""
    moment, fraction, zone = match.groups()
    seconds = _seconds(moment, zone)
    return None if seconds is None else seconds * 10**9 + int((fraction or b"").ljust(9, b"0"))


@lru_cache(maxsize=64)
def _seconds(moment: bytes, zone: bytes) -> int | None:
    """Thousands of lines share a second."""
    try:
        seconds = int((datetime.fromisoformat((moment + zone).decode()) - _EPOCH).total_seconds())
    except (ValueError, OverflowError):
        return None
    return seconds if seconds >= 0 else None
