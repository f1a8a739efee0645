"""The output of all attempts as one file: made while agents append, checked before anybody relies on it, and unpacked again.

Called by `downloads` in the server (`pack`), by `swarmtask backup` (`check`) and by `restore` (`unpack`). A tar archive of the
files below `attempt-logs`, each up to its last whole record, with a last member that counts them and holds a digest. All of it
blocks.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from swarmtask.errors import ConfigurationError

_NAME = re.compile(r"([0-9A-Za-z][0-9A-Za-z-]{0,63}/[1-9][0-9]{0,8})/([0-9]{20}\.log)")
_END = "end"
_MOST_BYTES = 2**30
"""Of one file; the server's are a tenth of `apiserver.attempt_log_bytes`."""
_BLOCK = 512


def pack(directory: Path) -> Iterator[bytes]:
    """The archive, piece by piece; what is removed meanwhile is not in it. Raises OSError."""
    digest, count = hashlib.sha256(), 0
    for path in sorted(directory.glob("*/*/*.log")):
        name = path.relative_to(directory).as_posix()
        try:
            content = path.read_bytes() if _NAME.fullmatch(name) else b""
        except FileNotFoundError:
            continue
        content = content[: content.rfind(b"\n") + 1]  # a record may be on its way
        if content:
            _add(digest.update, name, content)
            count += 1
            yield _member(name, content)
    yield _member(_END, f"{count} {digest.hexdigest()}\n".encode()) + bytes(2 * _BLOCK)


def check(path: Path) -> int:
    """Read all of an archive; returns how many attempts it holds. Raises ConfigurationError: it is none, or damaged."""
    return len({whose for whose, _, _ in _read(path)})


def unpack(path: Path, present: Path, target: Path) -> int:
    """Write the output of attempts of which nothing is there below `present` into `target`; returns of how many. What is there
    stays: it was written by the same agents, and later.

    Args:
        target: made here where it is needed. Good only when this returns: at the end it is known whether the archive is whole.

    Raises:
        ConfigurationError: as `check`. OSError.
    """
    found: set[str] = set()
    for whose, name, content in _read(path):
        if (present / whose).exists():
            continue
        folder = target / whose
        for one in (target, folder.parent, folder):
            one.mkdir(mode=0o700, exist_ok=True)
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o600)
        found.add(whose)
    return len(found)


def _read(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """(task and attempt, file, content) of each member. Raises ConfigurationError at the latest when all were seen."""
    digest, count, told = hashlib.sha256(), 0, ""
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                matched = _NAME.fullmatch(member.name)
                file = archive.extractfile(member) if member.isreg() and member.size <= _MOST_BYTES else None
                if told or file is None or (matched is None and member.name != _END):
                    raise ConfigurationError(f"{path} holds {member.name!r}, which no output is: use another one")
                content = file.read()
                if matched is None:
                    told = content.decode("ascii", "replace").strip()
                    continue
                _add(digest.update, member.name, content)
                count += 1
                yield matched[1], matched[2], content
    except (tarfile.TarError, EOFError) as error:
        raise ConfigurationError(f"{path} is no whole archive of output ({error}): use another one") from error
    if told != f"{count} {digest.hexdigest()}":
        raise ConfigurationError(f"{path} is damaged: it is not as it was written. Use another one, or restore without it")


def _add(update: Callable[[bytes], object], name: str, content: bytes) -> None:
    update(b"%s %d:" % (name.encode(), len(content)))
    update(content)


def _member(name: str, content: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o600
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % _BLOCK)
