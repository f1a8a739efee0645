"""The files that hold the output of one attempt: segments in a directory, the first of them and the newest are kept.

Called by `attempt_logs`, in threads, one call at a time for each attempt. A segment is named after the position of its first record
and holds records as they came (`swarmtask.resources.log_records`). What a crash tore off at the end is cut when the directory is
opened. Knows no tasks and no HTTP, and waits for nothing but the disk.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from swarmtask.apiserver.private_files import sync
from swarmtask.errors import BadRequest, Conflict
from swarmtask.resources.log_records import LogRecord, decode, lines

_NAME = re.compile(r"([0-9]{20})\.log")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of one attempt is kept: the first `head` segments and the newest `tail`, of about so many bytes each."""

    segment_bytes: int = 2**20
    head: int = 2
    tail: int = 8

    @classmethod
    def of(cls, total_bytes: int) -> Limits:
        """A fifth for the beginning, the rest for the end."""
        return cls(segment_bytes=max(1, total_bytes // 10))


@dataclass(frozen=True, slots=True)
class Segment:
    """One file. Its records have the positions `first` to `first + count - 1`."""

    first: int
    count: int
    size: int

    @property
    def end(self) -> int:
        return self.first + self.count

    @property
    def name(self) -> str:
        return f"{self.first:020d}.log"


@dataclass(slots=True)
class LogFiles:
    """The output of one attempt on disk.

    Attributes:
        segments: replaced as a whole, so that who reads meanwhile sees a state that was.
        position: of the record that comes next: so many were ever taken.
        last_nanoseconds: of the newest record; 0 where there is none.
        complete: the newest record is the end.
        end_kept: and it survives a power cut. named: so do the names of the directories to here.
    """

    directory: Path
    limits: Limits
    segments: tuple[Segment, ...] = ()
    last_nanoseconds: int = 0
    complete: bool = False
    end_kept: bool = False
    named: bool = False

    @property
    def position(self) -> int:
        return self.segments[-1].end if self.segments else 0

    @property
    def size(self) -> int:
        return sum(segment.size for segment in self.segments)

    @classmethod
    def open(cls, directory: Path, limits: Limits) -> LogFiles:
        """What is there; a torn end is cut off. Raises FileNotFoundError where there is no such directory, OSError."""
        found = sorted((int(match[1]), name) for name in os.listdir(directory) if (match := _NAME.fullmatch(name)))  # noqa: PTH208
        files = cls(directory, limits)
        for index, (first, name) in enumerate(found):
            content = (directory / name).read_bytes()
            if index < len(found) - 1:
                files.segments += (Segment(first, content.count(b"\n"), len(content)),)
                continue
            count, size, last = _sound(content)
            if size < len(content):
                os.truncate(directory / name, size)
            files.segments += (Segment(first, count, size),)
            if last is None and index:  # the newest has nothing yet: the one before has the newest record
                _, _, last = _sound((directory / found[index - 1][1]).read_bytes())
            if last is not None:
                files.last_nanoseconds, files.complete = last.nanoseconds, last.kind == "z"
        return files

    def append(self, content: bytes, count: int, last: LogRecord) -> int:
        """Write whole records behind the others; returns by how many bytes the directory has grown (or shrunk).

        The end is on the disk when this returns: nobody sends it again. After a failure nothing of it is there: the next append
        finds what was there before.

        Raises:
            OSError: as the disk says.
        """
        before = self.size
        newest = self.segments[-1] if self.segments else None
        if newest is None or (newest.size and newest.size + len(content) > self.limits.segment_bytes):
            newest = Segment(self.position, 0, 0)
            self._create(newest)
            self.segments += (newest,)
        path = self.directory / newest.name
        handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(handle, newest.size)  # what an append that failed may have left behind
            _write(handle, content, newest.size)
            if last.kind == "z":
                os.fsync(handle)
                self._keep_names()
        except OSError:
            os.ftruncate(handle, newest.size)
            raise
        finally:
            os.close(handle)
        grown = replace(newest, count=newest.count + count, size=newest.size + len(content))
        self.segments = (*self.segments[:-1], grown)
        self.last_nanoseconds, self.complete, self.end_kept = last.nanoseconds, last.kind == "z", last.kind == "z"
        self._rotate()
        return self.size - before

    def _create(self, segment: Segment) -> None:
        if self.segments:
            sync(self.directory / self.segments[-1].name)  # it is done; from now on only the newest can be torn
        else:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(self.directory / segment.name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
        sync(self.directory)

    def _keep_names(self) -> None:
        """Those of the files, of this directory and of that of the task, which may be as new as the output."""
        if not self.named:
            for directory in (self.directory, self.directory.parent, self.directory.parent.parent):
                sync(directory)
            self.named = True

    def _rotate(self) -> None:
        while len(self.segments) > self.limits.head + self.limits.tail:
            self._drop(self.limits.head)

    def shrink(self) -> int:
        """Leave the newest segment alone; returns by how many bytes the directory has shrunk. Raises OSError."""
        before = self.size
        while len(self.segments) > 1:
            self._drop(0)
        return before - self.size

    def _drop(self, index: int) -> None:
        (self.directory / self.segments[index].name).unlink(missing_ok=True)
        self.segments = (*self.segments[:index], *self.segments[index + 1 :])

    def sync(self) -> None:
        """What was appended survives a power cut from now on. Raises OSError."""
        if self.segments:
            sync(self.directory / self.segments[-1].name)

    def keep_end(self) -> None:
        """An end that was found here, and that a server before this one may have left to the kernel, survives a power cut from now
        on. Raises OSError."""
        if self.complete and not self.end_kept:
            self.sync()
            self._keep_names()
            self.end_kept = True


def from_last(segments: Sequence[Segment], count: int, *, complete: bool) -> int:
    """The position from which `count` lines are left of what is kept. The end is no line."""
    left = count + complete
    for segment in reversed(segments):
        if segment.count >= left:
            return segment.end - left
        left -= segment.count
    return segments[0].first if segments else 0


def read_slice(path: Path, offset: int, end: int, *, most: int = 256 * 1024) -> bytes:
    """Whole lines from an offset on, at most about `most` bytes; empty at `end`. Raises FileNotFoundError, OSError."""
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read(min(most, end - offset))
        cut = content.rfind(b"\n") + 1
        return content[:cut] if cut else content + file.readline(end - offset - len(content))


def take(files: LogFiles, position: int, body: bytes) -> int:
    """Append what is new of the body; by how many bytes the files have grown. Raises Conflict, BadRequest, OSError."""
    files.keep_end()  # every answer to come says that it is there
    expected = files.position
    if position > expected:
        raise Conflict(f"there is a gap: the next record has position {expected}, and not {position}", details=details(files))
    start, count, total, last, ended = 0, 0, 0, None, False
    for line in lines(body):
        record = decode(line)
        if record is None or ended:
            raise BadRequest(f"record {total} of the body is none, or stands behind the end")
        total, last, ended = total + 1, record, record.kind == "z"
        if position + total <= expected:
            start += len(line)
        else:
            count += 1
    if body and not body.endswith(b"\n"):
        raise BadRequest("the body ends within a record")
    if last is None or not count:
        return 0
    if files.complete:
        raise Conflict("the end was appended before: nothing can follow it", details=details(files))
    return files.append(body[start:], count, last)


def survey(directory: Path) -> list[tuple[float, int, tuple[str, int]]]:
    """(time of the newest write, bytes, whose) of everything, the oldest first."""
    found = []
    for path in directory.glob("*/*"):
        if path.name.isdecimal() and path.is_dir():
            stats = [one.stat() for one in path.iterdir()]
            newest = max((one.st_mtime for one in stats), default=0.0)
            found.append((newest, sum(one.st_size for one in stats), (path.parent.name, int(path.name))))
    return sorted(found)


def remove_tree(path: Path) -> int:
    """The bytes that it held; one that is not there held none."""
    size = sum(one.stat().st_size for one in path.rglob("*.log"))
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return 0
    return size


def details(files: LogFiles) -> dict[str, int | bool]:
    """What a refused append is told of the state, in the details of its Status."""
    return {"position": files.position, "lastNanoseconds": files.last_nanoseconds, "complete": files.complete}


def _write(handle: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written


def _sound(content: bytes) -> tuple[int, int, LogRecord | None]:
    """(records, bytes) up to the first that is torn, and the last of them."""
    count, size, last = 0, 0, None
    for line in lines(content):
        record = decode(line)
        if record is None:
            break
        count, size, last = count + 1, size + len(line), record
    return count, size, last
