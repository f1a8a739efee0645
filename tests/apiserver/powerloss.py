"""A disk that loses power: what SQLite writes is recorded beneath it, and any moment can be rebuilt with what a disk may have lost.

Used by the durability tests. Inside `recording`, every database that this process opens with `sqlite3` goes through a layer over
SQLite's own file access (a VFS, installed through ctypes in the very library that Python's module uses). Writes reach the real file
as well. `rebuild` then makes the files as they may lie there if the power had failed after so many operations: whatever was written
before the last sync of a file is there; of what was written since, any part may be, whole or torn at a sector.
"""

from __future__ import annotations

import contextlib
import ctypes
import random
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

SECTOR_BYTES = 512
Loss = Literal["everything unsynced", "some of it", "some of it, torn"]
LOSSES: tuple[Loss, ...] = ("everything unsynced", "some of it", "some of it, torn")
_SQLITE_OK = 0
_SKIP = "[missing: a SQLite library that Python's module is linked to] writes cannot be recorded"


@dataclass(frozen=True, slots=True)
class Operation:
    """One call that reached the disk, or a mark that the test has put between them.

    Attributes:
        file: name without its folder.
        size: the offset of a write, the length of a truncated file.
    """

    kind: Literal["write", "truncate", "sync", "delete", "mark"]
    file: str = ""
    size: int = 0
    content: bytes = b""
    mark: Any = None


@dataclass
class Recorder:
    """Everything that happened, in order."""

    operations: list[Operation] = field(default_factory=list)

    def mark(self, what: Any) -> None:
        """Note something of the test's own between the operations."""
        self.operations.append(Operation("mark", mark=what))

    def boundaries(self) -> list[int]:
        """Moments just before and just after each sync."""
        syncs = [place for place, operation in enumerate(self.operations) if operation.kind == "sync"]
        return sorted({*syncs, *(place + 1 for place in syncs)})

    def rebuild(self, moment: int, folder: Path, loss: Loss, chance: random.Random) -> None:
        """The files as they may be if the power failed when `moment` operations had been made."""
        folder.mkdir()
        happened = self.operations[:moment]
        for name in dict.fromkeys(operation.file for operation in happened if operation.kind != "mark"):
            of_file = [operation for operation in happened if operation.file == name]
            deletions = [place for place, operation in enumerate(of_file) if operation.kind == "delete"]
            if deletions and (deletions[-1] == len(of_file) - 1):
                continue  # without it; a name that comes back is another story than a lost write
            of_file = of_file[deletions[-1] + 1 :] if deletions else of_file
            synced = max((place for place, operation in enumerate(of_file) if operation.kind == "sync"), default=-1)
            content = bytearray()
            for operation in of_file[: synced + 1]:
                _perform(content, operation)
            for operation in of_file[synced + 1 :]:
                _perform(content, _lossy(operation, loss, chance))
            (folder / name).write_bytes(content)


def _lossy(operation: Operation, loss: Loss, chance: random.Random) -> Operation | None:
    if loss == "everything unsynced" or chance.random() < 0.5:
        return None
    if loss == "some of it, torn" and operation.kind == "write" and len(operation.content) > SECTOR_BYTES:
        sectors = chance.randrange(1, -(-len(operation.content) // SECTOR_BYTES))
        return Operation("write", operation.file, operation.size, operation.content[: sectors * SECTOR_BYTES])
    return operation


def _perform(content: bytearray, operation: Operation | None) -> None:
    if operation is None:
        return
    if operation.kind == "write":
        end = operation.size + len(operation.content)
        if len(content) < end:
            content.extend(bytes(end - len(content)))
        content[operation.size : end] = operation.content
    elif operation.kind == "truncate":
        if len(content) > operation.size:
            del content[operation.size :]
        else:
            content.extend(bytes(operation.size - len(content)))


# --- the layer -----------------------------------------------------------------------------------------------------------

_Pointer, _Int, _Int64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_Open = ctypes.CFUNCTYPE(_Int, _Pointer, _Pointer, _Pointer, _Int, _Pointer)
"""With the name as the pointer that it is: SQLite's files keep it, so a copy in Python would be gone when they look at it again."""
_Delete = ctypes.CFUNCTYPE(_Int, _Pointer, ctypes.c_char_p, _Int)
_Write = ctypes.CFUNCTYPE(_Int, _Pointer, _Pointer, _Int, _Int64)
_Truncate = ctypes.CFUNCTYPE(_Int, _Pointer, _Int64)
_Sync = ctypes.CFUNCTYPE(_Int, _Pointer, _Int)


class _Vfs(ctypes.Structure):
    """`sqlite3_vfs` (sqlite.org, "OS Interface Object")."""

    _fields_ = (
        ("version", _Int), ("file_size", _Int), ("path_length", _Int), ("next", _Pointer), ("name", ctypes.c_char_p),
        ("data", _Pointer), ("open", _Pointer), ("delete", _Pointer), *((f"other{number}", _Pointer) for number in range(14)),
    )  # fmt: skip


class _Methods(ctypes.Structure):
    """`sqlite3_io_methods` (sqlite.org, "OS Interface File Virtual Methods Object")."""

    _fields_ = (
        ("version", _Int), ("close", _Pointer), ("read", _Pointer), ("write", _Pointer), ("truncate", _Pointer), ("sync", _Pointer),
        *((f"other{number}", _Pointer) for number in range(13)),
    )  # fmt: skip


def _library() -> ctypes.CDLL:
    """The SQLite that Python's module calls, where it is a library of its own."""
    try:
        library = ctypes.CDLL("libsqlite3.so.0")
    except OSError:
        pytest.skip(_SKIP)
    library.sqlite3_libversion.restype = ctypes.c_char_p
    mapped = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libsqlite3" in line]
    if library.sqlite3_libversion().decode() != sqlite3.sqlite_version or len(set(mapped)) != 1:
        pytest.skip(_SKIP)
    library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
    library.sqlite3_vfs_find.argtypes = (ctypes.c_char_p,)
    library.sqlite3_vfs_register.argtypes = (ctypes.POINTER(_Vfs), _Int)
    library.sqlite3_vfs_unregister.argtypes = (ctypes.POINTER(_Vfs),)
    return library


class _Layer:
    """The callbacks. Their pointers must stay alive as long as a database is open."""

    def __init__(self, base: Any, recorder: Recorder) -> None:
        self._base, self._recorder = base, recorder
        self._files: dict[int, str] = {}
        self._methods: dict[int, _Methods] = {}
        self._alive: list[Any] = []
        self.vfs = _Vfs.from_buffer_copy(base.contents)
        self.vfs.name = b"powerloss"
        self.vfs.next = None
        real_open, real_delete = _Open(base.contents.open), _Delete(base.contents.delete)
        address = ctypes.cast(base, _Pointer)

        def open_(_: int, name: int | None, file: int, flags: int, out: int) -> int:
            code = real_open(address, name, file, flags, out)
            if code == _SQLITE_OK and name is not None:
                self._files[file] = Path(ctypes.string_at(name).decode()).name
                place = ctypes.cast(file, ctypes.POINTER(_Pointer))
                place[0] = ctypes.addressof(self._wrapped(place[0]))
            return code

        def delete(_: int, name: bytes, sync: int) -> int:
            recorder.operations.append(Operation("delete", Path(name.decode()).name))
            return real_delete(address, name, sync)

        self.vfs.open = self._pointer(_Open(open_))
        self.vfs.delete = self._pointer(_Delete(delete))

    def _pointer(self, function: Any) -> int | None:
        self._alive.append(function)
        return ctypes.cast(function, _Pointer).value

    def _wrapped(self, methods: int) -> _Methods:
        """A copy of a table of file methods that tells what is written. SQLite's files know their state, not their table."""
        if methods in self._methods:
            return self._methods[methods]
        real = _Methods.from_address(methods)
        table = _Methods.from_buffer_copy(real)
        write, truncate, sync = _Write(real.write), _Truncate(real.truncate), _Sync(real.sync)
        note: Callable[[Operation], None] = self._recorder.operations.append

        def write_(file: int, content: int, length: int, offset: int) -> int:
            note(Operation("write", self._files[file], offset, ctypes.string_at(content, length)))
            return write(file, content, length, offset)

        def truncate_(file: int, size: int) -> int:
            note(Operation("truncate", self._files[file], size))
            return truncate(file, size)

        def sync_(file: int, flags: int) -> int:
            code = sync(file, flags)
            note(Operation("sync", self._files[file]))
            return code

        table.write, table.truncate = self._pointer(_Write(write_)), self._pointer(_Truncate(truncate_))
        table.sync = self._pointer(_Sync(sync_))
        self._methods[methods] = table
        return table


_kept: list[_Layer] = []
"""SQLite may call into a layer until the last database that was opened through it is closed, and nobody tells when that is."""


@contextlib.contextmanager
def recording() -> Iterator[Recorder]:
    """Record what every database that is opened inside writes."""
    library, recorder = _library(), Recorder()
    base = library.sqlite3_vfs_find(None)
    layer = _Layer(base, recorder)
    _kept.append(layer)
    assert library.sqlite3_vfs_register(ctypes.byref(layer.vfs), 1) == _SQLITE_OK
    try:
        yield recorder
    finally:
        library.sqlite3_vfs_unregister(ctypes.byref(layer.vfs))
        library.sqlite3_vfs_register(base, 1)
