"""A client that costs little: prepared requests over kept connections, one or several under way on each; answers are counted.

Used by the benchmarks of the API. It reads no answer beyond its status line, so that what is measured is the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

STATUS = b"HTTP/1.1 "
LIMIT_S = 600.0


@dataclass(frozen=True)
class Address:
    """Where a server listens on this machine, and with which token."""

    port: int
    tls: ssl.SSLContext
    token: str = ""

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        return f"{head}authorization: Bearer {self.token}\r\n\r\n".encode() + body

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls, limit=2**20)


@dataclass
class Counter:
    """Counts a pattern in a stream whose pieces end anywhere."""

    pattern: bytes
    found: int = 0
    _tail: bytes = field(default=b"", repr=False)

    def feed(self, piece: bytes) -> None:
        text = self._tail + piece
        self.found += text.count(self.pattern)
        self._tail = text[-(len(self.pattern) - 1) :]


async def send_all(address: Address, requests: Sequence[bytes], expected: int, connections: int, pipeline: int = 1) -> None:
    """Send every request and wait for every answer. Raises AssertionError for an answer of another status.

    Args:
        pipeline: requests under way on one connection. Clients of Kubernetes have one.
    """

    async def work(mine: Sequence[bytes]) -> None:
        reader, writer = await address.connect()
        answers, good = Counter(STATUS), Counter(STATUS + str(expected).encode())
        try:
            for sent in range(0, len(mine), pipeline):
                writer.write(b"".join(mine[sent : sent + pipeline]))
                while answers.found < min(sent + pipeline, len(mine)):
                    piece = await reader.read(2**20)
                    assert piece, "the server closed the connection"
                    answers.feed(piece)
                    good.feed(piece)
                    assert answers.found == good.found, piece[:500]
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        for number in range(min(connections, len(requests))):
            group.create_task(work(requests[number::connections]))


@contextlib.asynccontextmanager
async def watchers(address: Address, path: str, count: int, events: int) -> AsyncIterator[asyncio.Future[list[None]]]:
    """So many open watches; the future is done when each has got `events` ADDED events."""
    opened = asyncio.Semaphore(0)

    async def follow() -> None:
        reader, writer = await address.connect()
        try:
            writer.write(address.request("GET", path))
            status, added = Counter(STATUS + b"200"), Counter(b'{"type":"ADDED"')
            while added.found < events:
                piece = await reader.read(2**20)
                assert piece, "the watch ended"
                if not status.found:
                    status.feed(piece)
                    assert status.found, piece[:500]
                    opened.release()
                added.feed(piece)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async with asyncio.timeout(LIMIT_S):
        following = asyncio.gather(*(follow() for _ in range(count)))
        try:
            for _ in range(count):
                await opened.acquire()
            yield following
            await following
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following
