"""The audit log: who wrote what, when, and with what result; one JSON line per mutating request.

Called by the application after it has decided on an answer. Files `audit/audit.log`, `audit.log.1`, ... in the data directory,
0600, bounded in size and number. Never holds bodies, tokens, or queries beyond dryRun. A disk that cannot be written stops no
request: what was not recorded is counted, and the next line tells how many. What was refused is written down at a pace, so that
nobody, with a token or without, can push the rows of the others out of the files.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import structlog

from swarmtask.apiserver.access.rules import Attributes
from swarmtask.apiserver.access.users import ANONYMOUS, User
from swarmtask.apiserver.pacing import is_exempt
from swarmtask.apiserver.rate_limits import Rate, TokenBuckets
from swarmtask.clock import Clock
from swarmtask.errors import ConfigurationError

log = structlog.get_logger(__name__)

FILE_BYTES = 16 * 2**20
FILES = 8
REFUSED = Rate(per_minute=60, burst=60)
"""Rows for refused requests of one user, and of everybody without a valid token together. At this pace, one alone takes
about a day to fill the files with the longest rows there are."""
GROUP_BYTES = 64 * 1024
"""Lines that wait to be written together: no more than this."""
REFUSED_USERS = 1024
"""Of so many it is kept how many rows were left out; the count of the one who was refused longest ago goes to `othersLeftOut`."""
TEXT_LIMIT = 256
"""Of a text that a client has chosen: characters, and bytes in the file where it has strange ones."""
SHORT_TEXT = TEXT_LIMIT // 6
"""Characters of a text that is within it whatever they are."""
_STRANGERS = ""
"""In the place of a user's name, which is never empty."""


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
        self._buckets = TokenBuckets(clock.monotonic, limit=REFUSED_USERS)
        self._left_out: OrderedDict[str, int] = OrderedDict()
        self._others_left_out = 0
        self._stuck = False
        self._noted: list[bytes] = []
        self._noted_bytes = 0
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        try:
            self._descriptor = self._open()
        except OSError as error:
            raise ConfigurationError(
                f"cannot write the audit log {path}: {error.strerror}; free the path or mend its mode"
            ) from error

    def _open(self) -> int:
        descriptor = _opened(self._path)
        self._size = os.fstat(descriptor).st_size
        return descriptor

    def write(self, row: Row) -> None:
        """Append one line; see `note`."""
        self.note(row)
        self.flush()

    def note(self, row: Row) -> None:
        """Make the line of a request; when `flush` returns it has been written. What nodes send all the time (heartbeats, output)
        is left out when it succeeds: it would push everything else out of the files. So is what is refused too often."""
        if _is_heartbeat(row):
            return
        who = _who(row)
        if _is_refused(row) and not self._admit_refused(who):
            return
        tells = bool(self._lost or self._others_left_out or who in self._left_out)
        if tells:
            self.flush()
        line = orjson.dumps(self._content(row, who), option=orjson.OPT_UTC_Z) + b"\n"
        if tells:  # by itself: what was told is forgotten as soon as it is written
            if self._append(line):
                self._lost = self._others_left_out = 0
                self._left_out.pop(who, None)
            return
        self._noted.append(line)
        self._noted_bytes += len(line)
        if self._noted_bytes >= GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the lines that were noted, in their order and at once; where that fails, as many of them as can be written."""
        if not self._noted:
            return
        noted, self._noted, self._noted_bytes = self._noted, [], 0
        if len(noted) > 1:
            try:
                self._put(b"".join(noted))
            except OSError:
                log.debug("lines of the audit log are written one by one", count=len(noted))
            else:
                return
        for line in noted:
            self._append(line)

    def _append(self, line: bytes) -> bool:
        """Whether it was written. If not, it is counted."""
        try:
            self._put(line)
        except OSError as error:
            if not self._lost:
                log.error("the audit log cannot be written; requests go on", path=str(self._path), error=error.strerror)
            self._lost += 1
            return False
        return True

    def _put(self, lines: bytes) -> None:
        """Raises OSError: nothing of it was written."""
        if self._size and self._size + len(lines) > self._file_bytes:
            self._make_room(len(lines))
        written = os.write(self._descriptor, lines)
        if written != len(lines):
            os.ftruncate(self._descriptor, self._size)  # a full disk takes a part; half a line would spoil the next
            raise OSError(None, "the disk is full")
        self._size += len(lines)

    def _content(self, row: Row, who: str) -> dict[str, Any]:
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
        if left_out := self._left_out.get(who, 0):
            content["refusedLeftOut" if who else "strangersLeftOut"] = left_out
        if self._others_left_out:
            content["othersLeftOut"] = self._others_left_out
        if self._lost:
            content["lostBefore"] = self._lost
        return content

    def _admit_refused(self, who: str) -> bool:
        """Whether it is written down. If not, it is counted, and the next row of the same user tells how many were."""
        if self._buckets.wait_s(who, REFUSED) == 0:
            self._buckets.take(who, REFUSED)
            return True
        self._left_out[who] = self._left_out.get(who, 0) + 1
        self._left_out.move_to_end(who)
        if len(self._left_out) > REFUSED_USERS:
            self._others_left_out += self._left_out.popitem(last=False)[1]
        return False

    def _make_room(self, size: int) -> None:
        """Rotate. As long as that fails, the present file goes on growing, to twice its size.

        Raises:
            OSError: it has.
        """
        try:
            self._rotate()
        except OSError as error:
            if not self._stuck:
                log.error("the audit log cannot be rotated; it is tried again", path=str(self._path), error=error.strerror)
            self._stuck = True
            if self._size + size > 2 * self._file_bytes:
                raise
        else:
            self._stuck = False

    def _rotate(self) -> None:
        """Begin a new file. Whatever fails, `_descriptor` is open and of the newest file that there is, and trying again goes on
        where this one has stopped: the oldest file goes only when all others have their place."""
        fresh = self._path.with_name(f"{self._path.name}.new")
        descriptor = _opened(fresh)
        try:
            if self._path.exists():
                free = next((number for number in range(1, self._files) if not self._numbered(number).exists()), self._files - 1)
                for number in range(free, 0, -1):
                    self._numbered(number - 1).replace(self._numbered(number))
            fresh.replace(self._path)
        except OSError:
            os.close(descriptor)
            raise
        full, self._descriptor, self._size = self._descriptor, descriptor, 0
        os.close(full)

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path

    def close(self) -> None:
        self.flush()
        os.close(self._descriptor)


def _opened(path: Path) -> int:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _cut(text: str) -> str:
    """What a client has chosen, so that no row is long: a control character would be written as six."""
    if len(text) <= SHORT_TEXT and text.isascii():
        return text
    text = text[:TEXT_LIMIT]
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= SHORT_TEXT or len(orjson.dumps(text)) <= TEXT_LIMIT + 2 else text[:SHORT_TEXT]


def _who(row: Row) -> str:
    """Whose request it really is: who acts for others has one pace for all of them."""
    if row.acting is not None:
        return row.acting.name
    return row.user.name if row.user is not None else _STRANGERS


def _is_refused(row: Row) -> bool:
    """It has certainly changed nothing, and its user is one whom bounds hold for. Of a failure (500) nobody can say that."""
    return row.code >= 400 and row.code != 500 and not is_exempt(row.acting or row.user)


def _is_heartbeat(row: Row) -> bool:
    if row.user is None or not row.user.node or row.code >= 300:
        return False
    if row.wanted.verb == "create":
        return row.wanted.full_resource in ("swarmtasks/log", "swarmnodes/log")
    return row.wanted.verb in ("update", "patch") and row.wanted.full_resource in ("leases", "swarmnodes/status")
