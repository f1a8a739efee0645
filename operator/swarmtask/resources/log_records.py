"""How lines of an attempt's output travel and are kept: one record a line, sealed by its checksum.

Called by the node agent, which writes them, and by the API server, which checks them and puts the same bytes into its files. Pure,
and light: the agent loads nothing of the models. A record is

    CHECKSUM NANOSECONDS KIND TEXT\n

where CHECKSUM is the CRC-32 of all after it in eight hexadecimal digits, NANOSECONDS the time since 1970 in UTC, KIND one letter,
and TEXT any bytes but a line feed: what the container wrote is not decoded on its way.

An agent sends what all attempts of its node have written in one request (`Part`): a request costs it as much as some hundred lines.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

Kind = Literal["o", "e", "n", "z"]
"""o: stdout. e: stderr. n: a note of ours. z: the end, nothing follows; its text is empty."""

MOST_TEXT_BYTES = 64 * 1024 + 64
"""Of one record. The agent cuts lines at 64 KiB; the rest is for its mark."""
MOST_RECORD_BYTES = MOST_TEXT_BYTES + 40
MOST_BODY_BYTES = 256 * 1024
"""Of one append, and of all parts of a request together."""
MOST_PARTS = 64
"""Of one request."""
CONTENT_TYPE = "application/vnd.swarmtask.log"
PARTS_TYPE = "application/vnd.swarmtask.log-parts"
_KINDS: dict[bytes, Kind] = {b"o": "o", b"e": "e", b"n": "n", b"z": "z"}
_MOST_NANOSECONDS = 2**63
_HEADER = re.compile(
    rb"(?P<namespace>[a-z0-9.-]{1,253}) (?P<task>[a-z0-9.-]{1,253}) (?P<uid>[0-9A-Za-z-]{1,64})"
    rb" (?P<attempt>[0-9]{1,9}) (?P<position>[0-9]{1,18}) (?P<size>[0-9]{1,9})\n"
)


class LogRecord(NamedTuple):
    """One line of output, a note, or the end.

    Attributes:
        nanoseconds: since 1970, UTC, as the node's Docker has stamped it.
    """

    nanoseconds: int
    kind: Kind
    text: bytes = b""


def encode(record: LogRecord) -> bytes:
    """The record as its line. A line feed in the text becomes a blank: it would end the record."""
    content = b"%d %s %s" % (record.nanoseconds, record.kind.encode(), record.text.replace(b"\n", b" "))
    return b"%08x %s\n" % (zlib.crc32(content), content)


def decode(line: bytes) -> LogRecord | None:
    """The record of one line, with or without its line feed; None for what is none, or was torn."""
    content = line[9:-1] if line.endswith(b"\n") else line[9:]
    stamp, _, rest = content.partition(b" ")
    kind = _KINDS.get(rest[:1])
    if kind is None or rest[1:2] != b" " or line[8:9] != b" " or not stamp.isdigit() or len(stamp) > 19:
        return None
    try:
        seal = int(line[:8], 16)
    except ValueError:
        return None
    nanoseconds = int(stamp)
    if seal != zlib.crc32(content) or nanoseconds >= _MOST_NANOSECONDS or len(content) > MOST_RECORD_BYTES:
        return None
    return LogRecord(nanoseconds, kind, rest[2:])


def lines(content: bytes) -> Iterator[bytes]:
    """The whole lines of some bytes, line feeds included; what stands behind the last one is left out."""
    start = 0
    while (end := content.find(b"\n", start)) >= 0:
        yield content[start : end + 1]
        start = end + 1


class Part(NamedTuple):
    """What one attempt has written, among that of others of its node.

    Attributes:
        position: of the first record of `body`, counted from 0.
        body: records, or nothing, which makes the output known and asks for its position.
    """

    namespace: str
    task: str
    uid: str
    attempt: int
    position: int
    body: bytes


def pack(parts: Iterable[Part]) -> bytes:
    """The body of a request: before the records of each part a line `NAMESPACE TASK UID ATTEMPT POSITION BYTES`."""
    packed: list[bytes] = []
    for part in parts:
        header = f"{part.namespace} {part.task} {part.uid} {part.attempt} {part.position} {len(part.body)}\n"
        packed += (header.encode(), part.body)
    return b"".join(packed)


def unpack(content: bytes) -> list[Part]:
    """The parts of a request. Raises ValueError: it is none; says at which byte."""
    parts: list[Part] = []
    start = 0
    while start < len(content):
        header = _HEADER.match(content, start)
        if header is None:
            raise ValueError(f"byte {start}: a line `NAMESPACE TASK UID ATTEMPT POSITION BYTES` is expected")
        end = header.end() + int(header["size"])
        if end > len(content):
            raise ValueError(f"byte {start}: the records of this part are cut off")
        names = (header["namespace"].decode(), header["task"].decode(), header["uid"].decode())
        parts.append(Part(*names, int(header["attempt"]), int(header["position"]), content[header.end() : end]))
        start = end
    return parts
