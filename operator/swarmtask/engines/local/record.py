"""What the local engine keeps on disk: one directory per attempt, written by the engine and by the attempt's supervisor.

Called by `engine`. Layout of STATE/attempts/NAME:

    spec.json     written by the engine before the directory appears under its name: owner, argv, limits, fence (never env)
    env.json      environment; deleted by the supervisor as soon as the program has started
    lock          held by the supervisor as long as it lives
    started.json  written by the supervisor before the program starts: boot ID, PID and its start time
    stop.json     written by the engine: grace and when
    exit.json     written by the supervisor at the end
    output.log, output.1.log, control (a FIFO), work/ (the default working directory)

Blocking; the engine calls it in a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import psutil

from swarmtask.clock import parse_time
from swarmtask.engines.base import Observation, Workload, WorkloadState
from swarmtask.engines.local.shim import start_ticks, write_json
from swarmtask.lifecycle.messages import Reason

ENGINE = "local"
OWNER_FIELDS = ("task_uid", "namespace", "task_name", "attempt", "node_id")


@dataclass(frozen=True, slots=True)
class Record:
    """The directory of one attempt."""

    directory: Path

    @property
    def name(self) -> str:
        return self.directory.name

    def read(self, file: str) -> dict[str, Any] | None:
        """A JSON file of the record, None when it is not there (yet)."""
        try:
            value = orjson.loads((self.directory / file).read_bytes())
        except FileNotFoundError:
            return None
        return value if isinstance(value, dict) else None

    def supervised(self) -> bool:
        """Whether a supervisor holds the lock."""
        try:
            handle = os.open(self.directory / "lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def ask_to_stop(self, grace_s: int) -> None:
        """Leave the wish on disk, then wake the supervisor, which holds to the earliest end of several wishes."""
        write_json(self.directory / "stop.json", {"grace_s": grace_s})
        with contextlib.suppress(OSError):  # no supervisor listens: it will read the file when it starts, or never needs to
            handle = os.open(self.directory / "control", os.O_WRONLY | os.O_NONBLOCK)
            try:
                os.write(handle, b"x")
            finally:
                os.close(handle)

    def stop_unstarted(self, now: datetime) -> bool:
        """Write the end of an attempt that no supervisor has; False when one took it meanwhile."""
        handle = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self.read("started.json") is None and self.read("exit.json") is None:
                end = {"state": "Stopped", "exit_code": None, "reason": None, "message": "stopped before it ran"}
                write_json(self.directory / "exit.json", end | {"finished_at": now.isoformat()})
                (self.directory / "env.json").unlink(missing_ok=True)
        except BlockingIOError:
            return False
        finally:
            os.close(handle)
        return True

    def kill_left_over(self) -> None:
        """Kill a program whose supervisor was killed: by PID and start time, so that nobody else's process is meant."""
        started = self.read("started.json")
        if started is not None and started["pid"] and started["ticks"] and start_ticks(started["pid"]) == started["ticks"]:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(started["pid"], signal.SIGKILL)

    def observe(self, boot_id: str) -> Observation | None:
        """What is known of this attempt; None when its directory is being removed."""
        spec = self.read("spec.json")
        if spec is None:
            return None
        ended, started = self.read("exit.json"), self.read("started.json")
        if ended is None and not self.supervised():
            begun_before = started is not None
            ended, started = self.read("exit.json"), self.read("started.json")  # it may have ended between the two looks
            # It may also have begun between them: only a supervisor that held the lock before can have lost it.
            if ended is None and started is not None and begun_before:
                ended = self._lost(started, boot_id)
        state = WorkloadState.PENDING if started is None else WorkloadState.RUNNING
        if ended is not None:
            state = WorkloadState(ended["state"])
        return Observation(
            name=self.name,
            engine=ENGINE,
            state=state,
            exit_code=ended["exit_code"] if ended else None,
            reason=Reason(ended["reason"]) if ended and ended["reason"] else None,
            message=ended["message"] if ended else "",
            started_at=parse_time(started["started_at"]) if started else None,
            finished_at=parse_time(ended["finished_at"]) if ended and ended["finished_at"] else None,
            fence=fence if isinstance(fence := spec.get("fence"), bool) else None,  # older versions did not keep it
            **{field: spec[field] for field in OWNER_FIELDS},
        )

    def _lost(self, started: Mapping[str, Any], boot_id: str) -> dict[str, Any]:
        """It was started, has no supervisor and no end: the machine was restarted, or somebody killed the supervisor."""
        lost: dict[str, Any] = {"state": "Exited", "exit_code": None, "reason": None, "finished_at": None}
        if started["boot_id"] != boot_id:
            return lost | {"reason": Reason.NODE_RESTARTED.value, "message": "this machine was restarted while it ran"}
        self.kill_left_over()
        return lost | {"message": "its supervisor was killed; how the program ended is not known"}


def create(attempts: Path, workload: Workload, max_output_bytes: int, environment: Mapping[str, str]) -> Record:
    """Make the directory of an attempt, all of it or nothing.

    Raises:
        FileExistsError: there is one of that name already.
    """
    final = attempts / workload.name
    if final.exists():
        raise FileExistsError(final)
    draft = attempts / f".{workload.name}.{secrets.token_hex(6)}"
    draft.mkdir(mode=0o700)
    try:
        working_dir = workload.working_dir or str(final / "work")
        (draft / "work").mkdir()
        spec = {
            "name": workload.name, "argv": [*workload.command, *workload.args],
            "working_dir": working_dir, "memory_limit_bytes": workload.memory_limit_bytes, "grace_s": workload.grace_s,
            "max_output_bytes": max_output_bytes, "fence": workload.fence,
            **{field: getattr(workload, field) for field in OWNER_FIELDS},
        }  # fmt: skip
        write_json(draft / "env.json", dict(environment))
        write_json(draft / "spec.json", spec)
        try:
            draft.rename(final)
        except OSError as error:  # ENOTEMPTY or EEXIST: somebody was faster
            if final.exists():
                raise FileExistsError(final) from error
            raise
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return Record(final)


def discard(record: Record) -> None:
    """Take the directory away at once (a rename), then delete it."""
    grave = record.directory.with_name(f".{record.name}.{secrets.token_hex(6)}")
    try:
        record.directory.rename(grave)
    except FileNotFoundError:
        return
    shutil.rmtree(grave, ignore_errors=True)


def sweep(attempts: Path, older_than: datetime) -> None:
    """Delete drafts and half-deleted directories that a crash left; young ones may be another operator's work of this moment."""
    for entry in attempts.iterdir():
        if entry.name.startswith(".") and entry.stat().st_mtime < older_than.timestamp():
            shutil.rmtree(entry, ignore_errors=True)


def boot_id() -> str:
    """Changes with every start of this machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"boot-{round(psutil.boot_time())}"
