"""Reading what a local attempt has written, while it writes on and after it ended.

Called by `engine` in a thread. The supervisor writes (`shim.Output`): `output.1.log` is older than `output.log`, one record a line.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

DROPPED = b"[swarmtask: earlier output was dropped; only the newest part is kept]\n"


def text_of(record: bytes, timestamps: bool, *, fresh_line: bool) -> bytes:
    """The program's bytes of one stored line. A time stamp goes before the first piece of a line only."""
    stamp, _, rest = record.partition(b" ")
    kind, _, text = rest.partition(b" ")
    head = stamp + b" " if timestamps and fresh_line else b""
    return head + text.removesuffix(b"\n") + (b"" if kind == b"P" else b"\n")


class OutputReader:
    """Goes through the records once; `advance` returns what is new since the last call."""

    def __init__(self, directory: Path, *, tail: int | None, timestamps: bool) -> None:
        self._current, self._older = directory / "output.log", directory / "output.1.log"
        self._tail, self._timestamps = tail, timestamps
        self._file: BinaryIO | None = None
        self._fresh_line = True
        self._rest = b""

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def advance(self, *, ended: bool = False) -> bytes:
        """Everything new; empty when there is nothing. `ended`: the writer is done, nothing will be completed."""
        if self._file is None:
            return self._first()
        chunk = self._render(self._records(self._file))
        while (newer := self._rotated(self._file)) is not None:
            chunk += self._render(self._records(self._file))  # written between the read above and the rotation
            self._file.close()
            self._file, self._rest = newer, b""
            chunk += self._render(self._records(newer))
        if ended and self._rest:  # the disk was full in the middle of a record
            chunk += self._render([self._rest])
            self._rest = b""
        return chunk

    def _first(self) -> bytes:
        try:
            self._file = self._current.open("rb")
        except FileNotFoundError:
            return b""
        records: list[bytes] = []
        try:
            records += self._older.read_bytes().splitlines(keepends=True)
            dropped = True
        except FileNotFoundError:
            dropped = False
        records += self._records(self._file)
        if self._tail is None:
            return (DROPPED if dropped else b"") + self._render(records)
        return self._render(self._last_lines(records, self._tail))

    @staticmethod
    def _last_lines(records: list[bytes], count: int) -> list[bytes]:
        """The records of the last `count` lines; pieces belong to the line that follows them."""
        lines: deque[list[bytes]] = deque(maxlen=count)
        line: list[bytes] = []
        for record in records:
            line.append(record)
            if record.split(b" ", 2)[1:2] == [b"F"]:
                lines.append(line)
                line = []
        if line:
            lines.append(line)
        return [record for line in lines for record in line]

    def _records(self, file: BinaryIO) -> Iterator[bytes]:
        data = self._rest + file.read()
        *whole, self._rest = data.split(b"\n")
        return (line + b"\n" for line in whole)

    def _rotated(self, file: BinaryIO) -> BinaryIO | None:
        """The file that has taken the place of ours, opened."""
        try:
            newer = self._current.open("rb")
        except FileNotFoundError:
            return None  # between two renames, or removed
        mine, other = _identity(file), _identity(newer)
        if mine == other:
            newer.close()
            return None
        return newer

    def _render(self, records: Iterable[bytes]) -> bytes:
        out = bytearray()
        for record in records:
            text = text_of(record, self._timestamps, fresh_line=self._fresh_line)
            self._fresh_line = text.endswith(b"\n")
            out += text
        return bytes(out)


def _identity(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino
