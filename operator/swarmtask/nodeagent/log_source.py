"""The output of a container from Docker's socket, as it comes.

Called by `log_follower`. On the loop, one connection each, with a small buffer: a thread for each container would weigh more.
HTTP/1.1 by hand as far as one GET needs it: the end of a chunked answer tells an end from a connection that broke.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast
from urllib.parse import quote, urlencode

from swarmtask.errors import EngineUnavailable
from swarmtask.nodeagent.log_cutter import SECOND

BUFFER_BYTES = 16 * 1024
MOST_LINE_BYTES = 1024
"""Of the line before a chunk."""
ANSWER_S = 5.0
SILENCE_S = 30.0
"""Docker reads what is in its files faster than that."""


class NoOutput(EngineUnavailable):
    """Docker has no output of this container that could be read. `gone`: nor the container itself."""

    def __init__(self, message: str, *, gone: bool) -> None:
        super().__init__(message)
        self.gone = gone


class LogSource:
    """See the module."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path

    @contextlib.asynccontextmanager
    async def open(self, container_id: str, *, since: int, follow: bool, newest: bool = False) -> AsyncIterator[Chunks]:
        """What it wrote from a time on (nanoseconds; 0: from the beginning), with `follow` until it ends.

        Args:
            newest: its newest message alone.

        Raises:
            NoOutput: the container is gone, or its log driver keeps nothing that can be read. EngineUnavailable.
        """
        query = {"stdout": "1", "stderr": "1", "timestamps": "1"}
        if follow:
            query["follow"] = "1"
        if newest:
            query["tail"] = "1"
        if since:
            query["since"] = f"{since // SECOND}.{since % SECOND:09d}"
        request = f"GET /containers/{quote(container_id, safe='')}/logs?{urlencode(query)} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        writer: asyncio.StreamWriter | None = None
        try:
            try:
                async with asyncio.timeout(ANSWER_S):
                    reader, writer = await asyncio.open_unix_connection(str(self._path), limit=BUFFER_BYTES)
                    writer.write(request.encode())
                    head = await reader.readuntil(b"\r\n\r\n")
                    code, chunked = _read_head(head)
                    if code != 200:
                        raise await _refusal(reader, code)
            except (OSError, EOFError, asyncio.LimitOverrunError, TimeoutError) as error:
                raise EngineUnavailable(f"the Docker at {self._path} gives no output: {error or type(error).__name__}") from error
            yield Chunks(reader, writer, chunked=chunked, silence_s=None if follow else SILENCE_S)
        finally:
            if writer is not None:
                writer.transport.abort()


class Chunks:
    """The body of an answer. `read` gives what is there, empty at a clean end."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, chunked: bool, silence_s: float | None
    ) -> None:
        self._reader, self._writer, self._chunked, self._silence_s = reader, writer, chunked, silence_s
        self._transport = cast("asyncio.ReadTransport", writer.transport)
        self._left = 0
        self._rest = b""
        self._closing = False
        self._ended = False

    def cut(self) -> None:
        """End a read that waits, with EngineUnavailable."""
        self._writer.transport.abort()

    def pause(self) -> None:
        """Leave what comes in the socket, and beyond that with Docker: nothing wakes this process."""
        self._transport.pause_reading()

    def resume(self) -> None:
        self._transport.resume_reading()

    async def read(self) -> bytes:
        """All that is there, at most BUFFER_BYTES. May be cancelled: nothing is lost. Raises EngineUnavailable: it broke off."""
        try:
            if self._silence_s is None:
                return await self._read()
            async with asyncio.timeout(self._silence_s):
                return await self._read()
        except (OSError, EOFError, ValueError) as error:  # ValueError: no chunk
            raise EngineUnavailable(f"Docker's output of a container broke off: {error or type(error).__name__}") from error

    async def _read(self) -> bytes:
        while not self._ended:
            raw = await self._reader.read(BUFFER_BYTES)
            if not raw and self._chunked:
                raise EOFError("the connection was closed")
            self._ended = not raw
            data = self._content(raw) if self._chunked else raw
            if data:
                return data
        return b""

    def _content(self, raw: bytes) -> bytes:
        """What chunks carry. Raises ValueError: these are none."""
        raw, self._rest, at, pieces = self._rest + raw, b"", 0, []
        while at < len(raw) and not self._ended:
            if self._left:
                pieces.append(raw[at : at + self._left])
                at += len(pieces[-1])
                self._left -= len(pieces[-1])
                self._closing = not self._left
                continue
            end = raw.find(b"\r\n", at)
            if end < 0:
                self._rest = raw[at:]
                break
            line, at = raw[at:end], end + 2
            if not self._closing:
                self._left = int(line.split(b";")[0], 16)
                self._ended = not self._left
            if self._left < 0 or (self._closing and line) or len(line) > MOST_LINE_BYTES:
                raise ValueError("no chunk")
            self._closing = False
        if len(self._rest) > MOST_LINE_BYTES:
            raise ValueError("no chunk")
        return b"".join(pieces)


def _read_head(head: bytes) -> tuple[int, bool]:
    """(code, chunked). Raises EOFError: no HTTP."""
    first, _, rest = head.decode("latin-1").partition("\r\n")
    parts = first.split(" ", 2)
    if len(parts) < 2 or not parts[1].isdigit():
        raise EOFError("it does not speak HTTP")
    fields = [line.partition(":") for line in rest.split("\r\n")]
    return int(parts[1]), any(name.lower() == "transfer-encoding" and "chunked" in value.lower() for name, _, value in fields)


async def _refusal(reader: asyncio.StreamReader, code: int) -> EngineUnavailable:
    said = (await reader.read(1024)).decode("utf-8", "replace")
    if code == 404:
        return NoOutput("the container is gone", gone=True)
    if "does not support reading" in said:
        return NoOutput("the log driver of this node's Docker keeps no output that can be read", gone=False)
    return EngineUnavailable(f"Docker gives no output of a container: it answered {code}")
