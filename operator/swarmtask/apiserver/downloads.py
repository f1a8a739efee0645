"""The route that hands out a backup: `POST /swarmtask/backup`, for those who may do everything.

Called by the application. The copy is made in a thread beside the database and has no name any more when the first byte of it is
sent, so that nothing is left of it however the download ends. With `?part=output` the output of attempts is sent instead.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import BinaryIO

import structlog

from swarmtask.apiserver import backup, faults
from swarmtask.apiserver.layout import map_error
from swarmtask.apiserver.places import ATTEMPT_LOGS
from swarmtask.apiserver.wire import Request, Response
from swarmtask.clock import Clock
from swarmtask.errors import BadRequest, TooManyRequests

log = structlog.get_logger(__name__)

BACKUP_PATH = "/swarmtask/backup"
OUTPUT = "output"
CHUNK_BYTES = 256 * 1024
_PATTERN = ".backup-*"


class BackupDownloads:
    """One per server. `path`: the database."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path, self._clock = path, clock
        self._making = False

    def sweep(self) -> None:
        """Remove what a server that was killed has left of a copy. Before the first request."""
        for left in self._path.parent.glob(_PATTERN):
            left.unlink(missing_ok=True)

    async def download(self, request: Request) -> Response:
        """Make a backup and send it.

        Raises:
            MethodNotAllowed: not a POST. TooManyRequests: one is being made. InsufficientStorage: no room for the copy.
            BadRequest: an unknown part.
        """
        if request.method != "POST":
            raise faults.method_not_allowed()
        part = request.query.get("part", "")
        if part not in ("", OUTPUT):
            raise BadRequest(f"part: {part!r} is not known: leave it out, or ask for {OUTPUT}")
        if part == OUTPUT:
            from swarmtask.apiserver import output_archive  # noqa: PLC0415 - it reads in tarfile, which few servers ever need

            pieces = output_archive.pack(self._path.with_name(ATTEMPT_LOGS))
            return Response(200, content_type="application/x-tar", stream=_pieces(pieces))
        if self._making:
            raise TooManyRequests("a backup is being made: try again when it is done", retry_after_s=10)
        self._making = True
        try:
            file = await asyncio.to_thread(self._make)
        except (sqlite3.Error, OSError) as error:
            raise map_error(error, self._path) from error
        return Response(200, content_type="application/vnd.sqlite3", stream=_chunks(file))

    def _make(self) -> BinaryIO:
        target = self._path.with_name(f".backup-{secrets.token_hex(8)}.db")
        try:
            backup.make(self._path, target, self._clock.now())
            log.info("a backup was made", bytes=target.stat().st_size)
            return target.open("rb")
        finally:
            for name in (target, target.with_name(f"{target.name}-journal")):
                name.unlink(missing_ok=True)
            self._making = False  # here, since the thread goes on when its request is cancelled


async def _pieces(pieces: Iterator[bytes]) -> AsyncGenerator[bytes, None]:
    while (piece := await asyncio.to_thread(next, pieces, b"")) != b"":
        yield piece


async def _chunks(file: BinaryIO) -> AsyncGenerator[bytes, None]:
    try:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk
    finally:
        file.close()
