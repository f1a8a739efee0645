"""The audit log: who wrote what, when, and with what result; one JSON line per mutating request.

Called by the application after it has decided on an answer. Files `audit/audit.log`, `audit.log.1`, ... in the data directory,
0600, bounded in size and number. Never holds bodies, tokens, or queries beyond dryRun. A disk that cannot be written stops no
request: what was not recorded is counted, and the next line tells how many.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import structlog

from swarmtask.apiserver.access.rules import Attributes
from swarmtask.apiserver.access.users import ANONYMOUS, User
from swarmtask.clock import Clock
from swarmtask.errors import ConfigurationError

log = structlog.get_logger(__name__)

FILE_BYTES = 16 * 2**20
FILES = 8
STRANGERS_PER_S = 5
"""Rows for requests without a valid token: more of them may not push the others out of the files."""
TEXT_LIMIT = 256


class Row(NamedTuple):
    """One request.

    Attributes:
        user: None: no valid token.
        acting: who has impersonated `user`; None: nobody.
        reason: of the Status; empty when it succeeded.
        named: the object of a create, whose path names none.
    """

    user: User | None
    acting: User | None
    wanted: Attributes
    code: int
    reason: str = ""
    source: str = ""
    agent: str = ""
    dry_run: bool = False
    took_s: float = 0.0
    named: str = ""


class AuditLog:
    """An append-only file that is rotated. One per server."""

    def __init__(self, path: Path, clock: Clock, *, file_bytes: int = FILE_BYTES, files: int = FILES) -> None:
        self._path, self._clock = path, clock
        self._file_bytes, self._files = file_bytes, files
        self._lost = 0
        self._strangers = (0.0, 0, 0)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        try:
            self._descriptor = self._open()
        except OSError as error:
            raise ConfigurationError(
                f"cannot write the audit log {path}: {error.strerror}; free the path or mend its mode"
            ) from error

    def _open(self) -> int:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.fchmod(descriptor, 0o600)
        self._size = os.fstat(descriptor).st_size
        return descriptor

    def write(self, row: Row) -> None:
        """Append one line. What nodes send all the time (heartbeats, output) is left out when it succeeds: it would push everything
        else out of the files."""
        if _is_heartbeat(row):
            return
        suppressed = 0
        if row.user is None:
            allowed, suppressed = self._admit_stranger()
            if not allowed:
                return
        line = orjson.dumps(self._content(row, suppressed), option=orjson.OPT_UTC_Z) + b"\n"
        try:
            if self._size and self._size + len(line) > self._file_bytes:
                self._rotate()
            written = os.write(self._descriptor, line)
            if written != len(line):
                os.ftruncate(self._descriptor, self._size)  # a full disk takes a part; half a line would spoil the next
                raise OSError(None, "the disk is full")
        except OSError as error:
            if not self._lost:
                log.error("the audit log cannot be written; requests go on", path=str(self._path), error=error.strerror)
            self._lost += 1
            return
        self._size += len(line)
        self._lost = 0

    def _content(self, row: Row, suppressed: int) -> dict[str, Any]:
        user, wanted = row.user, row.wanted
        content: dict[str, Any] = {
            "time": self._clock.now(),
            "user": user.name if user is not None else ANONYMOUS,
            "groups": user.groups if user is not None else (),
        }
        if user is not None and user.extra:
            content["extra"] = {key: list(values) for key, values in user.extra.items()}
        if row.acting is not None:
            content["impersonatedBy"] = row.acting.name
        content["source"], content["agent"], content["verb"] = row.source, _cut(row.agent), wanted.verb
        if wanted.path:
            content["path"] = _cut(wanted.path)
        else:
            content["group"], content["resource"] = _cut(wanted.group), _cut(wanted.full_resource)
            content["namespace"], content["name"] = _cut(wanted.namespace), _cut(wanted.name or row.named)
        if row.dry_run:
            content["dryRun"] = True
        content["code"], content["reason"], content["milliseconds"] = row.code, row.reason, round(row.took_s * 1000, 1)
        if suppressed:
            content["strangersLeftOut"] = suppressed
        if self._lost:
            content["lostBefore"] = self._lost
        return content

    def _admit_stranger(self) -> tuple[bool, int]:
        """(write it, how many were left out before)."""
        began, count, left_out = self._strangers
        now = self._clock.monotonic()
        if now - began >= 1.0:
            self._strangers = (now, 1, 0)
            return True, left_out
        if count < STRANGERS_PER_S:
            self._strangers = (began, count + 1, left_out)
            return True, 0
        self._strangers = (began, count, left_out + 1)
        return False, 0

    def _rotate(self) -> None:
        for number in range(self._files - 1, 0, -1):
            older = self._path if number == 1 else self._numbered(number - 1)
            if older.exists():
                older.replace(self._numbered(number))
        os.close(self._descriptor)
        self._descriptor = self._open()

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def close(self) -> None:
        os.close(self._descriptor)


def _cut(text: str) -> str:
    return text[:TEXT_LIMIT] if text.isascii() else text.encode("utf-8", "replace").decode()[:TEXT_LIMIT]


def _is_heartbeat(row: Row) -> bool:
    if row.user is None or not row.user.node or row.code >= 300:
        return False
    if row.wanted.verb == "create":
        return row.wanted.full_resource == "swarmtasks/log"
    return row.wanted.verb in ("update", "patch") and row.wanted.full_resource in ("leases", "swarmnodes/status")
