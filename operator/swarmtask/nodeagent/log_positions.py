"""How far the output of each attempt was sent, on this node's disk: one small file each.

Called by `log_shipper` and `log_follower`, from the loop: a file is a few hundred bytes. Written beside its place and moved there,
without fsync: what is missing after a power cut is found by asking the API. A file that cannot be read counts as none.
"""

from __future__ import annotations

import logging
import re
import zlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import orjson

from swarmtask.nodeagent.containers import Owner
from swarmtask.nodeagent.log_cutter import Mark

logger = logging.getLogger(__name__)

_NAME = re.compile(r"st-[0-9a-f]{16}-[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class Sent:
    """What was sent of one container's output, and has been acknowledged.

    Attributes:
        done: all of it, and its end.
    """

    owner: Owner
    container_id: str
    mark: Mark
    done: bool = False


class Positions:
    """See the module. A directory that cannot be written is told in the log once; the agent goes on without it."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._complained = directory, False

    def load(self) -> dict[str, Sent]:
        """All that can be read, by the attempt's ID."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            paths = sorted(self._directory.iterdir())
        except OSError as error:
            self._complain("read", error)
            return {}
        found = {}
        for path in paths:
            sent = _read(path) if path.suffix == ".json" and _NAME.fullmatch(path.stem) else None
            if sent is None or sent.owner.attempt != path.stem:
                self._remove(path)
            else:
                found[path.stem] = sent
        return found

    def put(self, sent: Sent) -> None:
        """Keep it in place of what was known of the attempt."""
        values = {"owner": asdict(sent.owner), "container_id": sent.container_id, "mark": sent.mark._asdict(), "done": sent.done}
        content = orjson.dumps(values)
        path = self._directory / f"{sent.owner.attempt}.json"
        try:
            beside = path.with_suffix(".new")
            beside.write_bytes(b"%08x %s\n" % (zlib.crc32(content), content))
            beside.replace(path)
        except OSError as error:
            self._complain("written", error)
        else:
            self._complained = False

    def drop(self, attempt: str) -> None:
        """Forget it."""
        self._remove(self._directory / f"{attempt}.json")

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self._complain("removed", error)

    def _complain(self, what: str, error: OSError) -> None:
        if not self._complained:
            logger.warning(
                "positions of output cannot be %s in %s: %s; it is read again after a restart", what, self._directory, error
            )
        self._complained = True


def _read(path: Path) -> Sent | None:
    try:
        seal, _, content = path.read_bytes().rstrip().partition(b" ")
        if int(seal, 16) != zlib.crc32(content):
            return None
        values = orjson.loads(content)
        mark = Mark(**{name: values["mark"][name] for name in Mark._fields})
        owner = Owner(**{item.name: values["owner"][item.name] for item in fields(Owner)})
        return Sent(owner, str(values["container_id"]), mark, values["done"] is True)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # torn, or of another version
