"""Small files that a crash at any moment leaves whole: written beside their place and moved there, each with a checksum.

Called by `records` and `log_positions`, which say what is in them. Trouble with the disk is told in the log once and never raised:
the agent goes on without its memory.
"""

from __future__ import annotations

import logging
import os
import zlib
from pathlib import Path
from typing import Any

import orjson

logger = logging.getLogger(__name__)

_BESIDE = ".new"


class SealedFiles:
    """See the module.

    Args:
        kept: what the files are, for the log. price: what it costs that they cannot be used.
    """

    def __init__(self, directory: Path, kept: str, price: str) -> None:
        self.directory, self._kept, self._price = directory, kept, price
        self._complained = False

    def paths(self) -> list[Path]:
        """All that is there, by name; the directory is made. What was left half-written is removed."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            found = sorted(self.directory.iterdir())
        except OSError as error:
            self.complain("read", error)
            return []
        for path in found:
            if path.name.endswith(_BESIDE):
                self.remove(path)
        return [path for path in found if not path.name.endswith(_BESIDE)]

    def put(self, name: str, values: Any, *, durable: bool = False) -> None:
        """Write the file anew. `durable`: it survives a power cut from the moment this returns; else the agent's own end only."""
        path = self.directory / name
        beside = path.with_name(name + _BESIDE)
        try:
            with beside.open("wb") as file:
                file.write(sealed(values))
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            beside.replace(path)
            if durable:
                self.sync()
        except OSError as error:
            self.complain("written", error)
        else:
            self._complained = False

    def remove(self, path: Path) -> None:
        """One that is not there is removed already."""
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self.complain("removed", error)

    def sync(self) -> None:
        """What was moved or made in the directory is on the disk. Raises OSError."""
        handle = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def complain(self, what: str, error: OSError) -> None:
        """Tell it, once until something could be written again."""
        if not self._complained:
            logger.warning("%s cannot be %s in %s: %s; %s", self._kept, what, self.directory, error, self._price)
        self._complained = True


def sealed(values: Any) -> bytes:
    """A line of JSON behind its checksum."""
    content = orjson.dumps(values)
    return b"%08x %s\n" % (zlib.crc32(content), content)


def unsealed(line: bytes) -> Any:
    """What was sealed; None where it is torn."""
    seal, _, content = line.rstrip().partition(b" ")
    try:
        return orjson.loads(content) if int(seal, 16) == zlib.crc32(content) else None
    except ValueError:
        return None
