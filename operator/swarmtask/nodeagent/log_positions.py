"""How far the output of each attempt was sent, on this node's disk: one small file each.

Called by `log_shipper` and `log_follower`, from the loop: a file is a few hundred bytes. Without fsync:
what is missing after a power cut is found by asking the API. A file that cannot be read counts as none.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from swarmtask.nodeagent.containers import Owner
from swarmtask.nodeagent.log_cutter import Mark
from swarmtask.nodeagent.sealed_files import SealedFiles, unsealed

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
        self._files = SealedFiles(directory, "positions of output", "it is read again after a restart")

    def load(self) -> dict[str, Sent]:
        """All that can be read, by the attempt's ID."""
        found = {}
        for path in self._files.paths():
            sent = _read(path) if path.suffix == ".json" and _NAME.fullmatch(path.stem) else None
            if sent is None or sent.owner.attempt != path.stem:
                self._files.remove(path)
            else:
                found[path.stem] = sent
        return found

    def put(self, sent: Sent) -> None:
        """Keep it in place of what was known of the attempt."""
        values = {"owner": asdict(sent.owner), "container_id": sent.container_id, "mark": sent.mark._asdict(), "done": sent.done}
        self._files.put(f"{sent.owner.attempt}.json", values)

    def drop(self, attempt: str) -> None:
        """Forget it."""
        self._files.remove(self._files.directory / f"{attempt}.json")


def _read(path: Path) -> Sent | None:
    try:
        values = unsealed(path.read_bytes())
        mark = Mark(**{name: values["mark"][name] for name in Mark._fields})
        owner = Owner(**{item.name: values["owner"][item.name] for item in fields(Owner)})
        return Sent(owner, str(values["container_id"]), mark, values["done"] is True)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # torn, or of another version
