"""What became of the attempts on this node, on its disk: one small file each, which a crash at any moment leaves whole.

Called by `attempts`, from one thread. The file of an attempt that ended is on the disk (fsync of the file and of its directory)
before it is told to anybody. A file that cannot be read is put away with a warning:
one attempt's cause is then unknown, nothing else. Also here: the moment at which the Lease was renewed last. It decides nothing.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from swarmtask.clock import format_micro_time, format_time, parse_time
from swarmtask.nodeagent.sealed_files import SealedFiles, sealed, unsealed

logger = logging.getLogger(__name__)

Reason = Literal["", "OOMKilled", "Evicted", "Fenced"]
MOST_MESSAGE = 1024
_NAME = re.compile(r"st-[0-9a-f]{16}-[0-9]{1,9}")
_TIMES = ("started_at", "finished_at", "stopping_at", "recorded_at")
_REASONS = ("", "OOMKilled", "Evicted", "Fenced")
_LEASE = "lease"
_LEASE_BYTES = 256


@dataclass(frozen=True, slots=True)
class Record:
    """One attempt on this node; times by this node's clock.

    Attributes:
        container_id: the container that ran it last.
        exited: it has ended; else it ran when this was written.
        exit_code: None where nobody saw it.
        reason: what the node did to it. Of one that runs: what it is being stopped for.
        stopping_at: when the node began to stop it for that reason.
        recorded_at: when its end was found.
        told_to_end: somebody had sent it a signal to end before it ended; None: nobody knows.
        fenced: it must not run while the API cannot be reached. grace_s: between SIGTERM and SIGKILL, as its task declares.
    """

    attempt: str
    container_id: str
    exited: bool = False
    started_at: datetime | None = None
    finished_at: datetime | None = None
    exit_code: int | None = None
    reason: Reason = ""
    message: str = ""
    peak_bytes: int | None = None
    cpu_s: float | None = None
    stopping_at: datetime | None = None
    recorded_at: datetime | None = None
    told_to_end: bool | None = None
    fenced: bool = False
    grace_s: int | None = None

    def told(self) -> dict[str, Any]:
        """As an entry of a SwarmNode's `status.attempts` (`swarmtask.resources.node.NodeAttempt`)."""
        optional = {
            "startedAt": None if self.started_at is None else format_time(self.started_at),
            "finishedAt": None if self.finished_at is None else format_time(self.finished_at),
            "exitCode": self.exit_code if self.exited else None,
            "toldToEnd": self.told_to_end if self.exited else None,
            "message": self.message[:MOST_MESSAGE] or None,
            "peakMemory": None if self.peak_bytes is None else str(self.peak_bytes),
            "cpuSeconds": None if self.cpu_s is None else round(self.cpu_s, 3),
        }
        shown = {name: value for name, value in optional.items() if value is not None}
        return {"id": self.attempt, "state": "Exited" if self.exited else "Running", "reason": self.reason} | shown


class Records:
    """See the module. A directory that cannot be written is told in the log once; the agent goes on without it."""

    def __init__(self, directory: Path) -> None:
        self._files = SealedFiles(directory, "records of attempts", "what ends while the API is away may be run again")

    def load(self) -> dict[str, Record]:
        """All that can be read, by attempt. What was left half-written is removed."""
        found: dict[str, Record] = {}
        for path in self._files.paths():
            if path.suffix == ".json":
                record = _read(path)
                if record is None or record.attempt != path.stem:
                    logger.warning("the record %s cannot be read and is put away: it was torn, or is of another version", path.name)
                    self._files.remove(path)
                else:
                    found[record.attempt] = record
        return found

    def put(self, record: Record, *, durable: bool) -> None:
        """Write it. `durable`: it survives a power cut from the moment this returns; else the agent's own end only."""
        if not _NAME.fullmatch(record.attempt):
            raise ValueError(f"{record.attempt!r} is no attempt's ID")
        self._files.put(f"{record.attempt}.json", _plain(record), durable=durable)

    def drop(self, attempt: str) -> None:
        """Forget it; one that is not there is dropped already."""
        self._files.remove(self._files.directory / f"{attempt}.json")

    # --- the Lease ---

    def put_lease(self, boot_id: str, renewed_at: float) -> None:
        """When the Lease was renewed last, in seconds since that boot.

        In place and without fsync: the page outlives this process, and after a power cut the boot is another one anyway. Moving a
        new file there every two seconds would keep a laptop's disk awake.
        """
        line = sealed([boot_id, renewed_at]).ljust(_LEASE_BYTES)
        try:
            handle = os.open(self._files.directory / _LEASE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(handle, line, 0)
            finally:
                os.close(handle)
        except OSError as error:
            self._files.complain("written", error)

    def lease(self, boot_id: str) -> float | None:
        """When it was renewed last in this boot; None when nobody knows."""
        try:
            content = (self._files.directory / _LEASE).read_bytes()[:_LEASE_BYTES]
        except OSError:
            return None
        match unsealed(content):
            case [str(boot), float() | int() as renewed_at] if boot == boot_id:
                return float(renewed_at)
        return None

    def lease_claimed(self) -> bool:
        """Whether an agent of this machine may have made a Lease, in whichever boot; True also when the disk cannot say."""
        try:
            (self._files.directory / _LEASE).stat()
        except FileNotFoundError:
            return False
        except OSError as error:
            self._files.complain("read", error)
        return True

    def claim_lease(self, claimed: bool) -> None:
        """Keep that there may be a Lease from now on (it survives a power cut), or that there is none."""
        path = self._files.directory / _LEASE
        if not claimed:
            self._files.remove(path)
            return
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
            self._files.sync()
        except OSError as error:
            self._files.complain("written", error)


def _plain(record: Record) -> dict[str, Any]:
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return values | {name: None if values[name] is None else format_micro_time(values[name]) for name in _TIMES}


def _read(path: Path) -> Record | None:
    try:
        values = unsealed(path.read_bytes())
        if not isinstance(values, dict) or not _NAME.fullmatch(str(values.get("attempt"))):
            return None
        known: dict[str, Any] = {field.name: values[field.name] for field in fields(Record) if field.name in values}
        for name in _TIMES:
            known[name] = None if known.get(name) is None else parse_time(known[name])
        record = Record(**known)
    except (OSError, TypeError, ValueError):
        return None
    return record if _sound(record) else None


def _sound(record: Record) -> bool:
    """The checksum has held, so this is another version's file at worst."""
    return (
        isinstance(record.container_id, str)
        and all(isinstance(value, bool) for value in (record.exited, record.fenced))
        and record.reason in _REASONS
        and isinstance(record.told_to_end, bool | None)
        and isinstance(record.message, str)
        and all(isinstance(value, int | None) for value in (record.exit_code, record.peak_bytes, record.grace_s))
        and isinstance(record.cpu_s, int | float | None)
    )
