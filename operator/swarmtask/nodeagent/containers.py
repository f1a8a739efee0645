"""What Docker says of one container, as a value. Pure.

Made by `attempts` and `stopping` from Docker's JSON, which is read with care: labels are written by whoever may use Docker.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from swarmtask.clock import parse_time

LABEL_TASK_UID = "swarmtask.io/task-uid"
LABEL_TASK_NAMESPACE = "swarmtask.io/task-namespace"
LABEL_TASK_NAME = "swarmtask.io/task-name"
LABEL_ATTEMPT = "swarmtask.io/attempt"
LABEL_FENCE = "swarmtask.io/fence"
LABEL_PRIORITY = "swarmtask.io/priority"
LABEL_GRACE = "swarmtask.io/grace-seconds"
LABEL_MEMORY_REQUEST = "swarmtask.io/memory-request"
"""As in `swarmtask.engines.base`, which loads more than this process may; a test compares them."""

ALIVE = frozenset({"running", "paused", "restarting"})
ENDED = frozenset({"exited", "dead", "removing"})

_UID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NUMBER = re.compile(r"[0-9]{1,9}")
_PRIORITY = re.compile(r"-?[0-9]{1,12}")
_SECONDS = re.compile(r"[0-9]{1,4}")
_BYTES = re.compile(r"[0-9]{1,18}")
_OBJECT = re.compile(r"[a-z0-9](?:[-.a-z0-9]{0,251}[a-z0-9])?")
_SIGNAL = re.compile(r"[A-Z0-9+-]{1,16}")
_NEVER = 1970
"""Docker writes the year 1 for what has not happened."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A container in Docker's list.

    Attributes:
        attempt: the attempt's ID; empty where the labels name none, and then nothing is told of it.
        fenced: to be stopped when the API cannot be reached.
        grace_s: between SIGTERM and SIGKILL, as its task declares; None where nobody has said it.
        memory_request_bytes: what it was promised; None likewise.
    """

    id: str
    attempt: str
    state: str
    fenced: bool = False
    priority: int = 0
    grace_s: int | None = None
    memory_request_bytes: int | None = None

    @property
    def alive(self) -> bool:
        return self.state in ALIVE


@dataclass(frozen=True, slots=True)
class Details:
    """A container as Docker looks into it.

    Attributes:
        pid: of its main process, as the host counts; 0 when it does not run.
        oom_killed: Docker has heard that the kernel killed some process of it for memory.
        memory_request_bytes: what it was promised, as far as Docker knows: its reservation, else its limit, else 0.
    """

    alive: bool
    pid: int
    exit_code: int
    oom_killed: bool
    started_at: datetime | None
    finished_at: datetime | None
    memory_request_bytes: int = 0
    memory_limit_bytes: int = 0
    stop_signal: str = "SIGTERM"
    tty: bool = False


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose attempt a container is.

    Attributes:
        attempt: its ID.
    """

    attempt: str
    namespace: str
    task: str
    uid: str
    number: int


def owner(item: Mapping[str, Any]) -> Owner | None:
    """Whose container an entry of Docker's list is; None where its labels do not say it."""
    labels = _mapping(item.get("Labels"))
    uid, number = str(labels.get(LABEL_TASK_UID, "")), str(labels.get(LABEL_ATTEMPT, ""))
    namespace, task, found = (
        str(labels.get(LABEL_TASK_NAMESPACE, "")),
        str(labels.get(LABEL_TASK_NAME, "")),
        attempt_id(uid, number),
    )
    if not found or not _OBJECT.fullmatch(namespace) or not _OBJECT.fullmatch(task):
        return None
    return Owner(found, namespace, task, uid, int(number))


def listed(item: Mapping[str, Any]) -> Listed | None:
    """One entry of Docker's list; None when it is none."""
    labels, container_id, state = item.get("Labels"), item.get("Id"), item.get("State")
    if not isinstance(labels, dict) or not isinstance(container_id, str) or not isinstance(state, str):
        return None
    return Listed(
        id=container_id,
        attempt=attempt_id(str(labels.get(LABEL_TASK_UID, "")), str(labels.get(LABEL_ATTEMPT, ""))),
        state=state.lower(),
        fenced=labels.get(LABEL_FENCE) == "true",
        priority=_number(labels, LABEL_PRIORITY, _PRIORITY) or 0,
        grace_s=_number(labels, LABEL_GRACE, _SECONDS),
        memory_request_bytes=_number(labels, LABEL_MEMORY_REQUEST, _BYTES),
    )


def _number(labels: Mapping[str, Any], name: str, pattern: re.Pattern[str]) -> int | None:
    text = str(labels.get(name, ""))
    return int(text) if pattern.fullmatch(text) else None


def event_nanos(event: Mapping[str, Any]) -> int | None:
    """When an event of Docker happened, by Docker's clock: nanoseconds since the epoch. None where it does not say."""
    nanos = event.get("timeNano")
    return nanos if isinstance(nanos, int) and 0 < nanos < 2**62 else None


def attempt_id(uid: str, number: str) -> str:
    """The attempt's ID from its labels, as `swarmtask.resources.task.attempt_id` makes it; empty where they name none."""
    if not _UID.fullmatch(uid) or not _NUMBER.fullmatch(number):
        return ""
    return f"st-{uid.replace('-', '')[:16]}-{int(number)}"


def details(answer: Mapping[str, Any]) -> Details:
    """From `GET /containers/ID/json`; what is missing there is as if it had not happened."""
    state, host, config = (_mapping(answer.get(name)) for name in ("State", "HostConfig", "Config"))
    stop_signal = str(config.get("StopSignal") or "SIGTERM").upper()
    limit = _whole(host.get("Memory"))
    return Details(
        alive=bool(state.get("Running")) or str(state.get("Status", "")).lower() in ALIVE,
        pid=_whole(state.get("Pid")),
        exit_code=_whole(state.get("ExitCode")),
        oom_killed=state.get("OOMKilled") is True,
        started_at=moment(state.get("StartedAt")),
        finished_at=moment(state.get("FinishedAt")),
        memory_request_bytes=_whole(host.get("MemoryReservation")) or limit,
        memory_limit_bytes=limit,
        stop_signal=stop_signal if _SIGNAL.fullmatch(stop_signal) else "SIGTERM",
        tty=config.get("Tty") is True,
    )


def signal_number(name: str) -> str:
    """A signal's number as Docker's events tell it (`SIGTERM`, `TERM` and `15` are all 15); empty for what is none."""
    bare = name.removeprefix("SIG")
    if bare.isdecimal():
        return bare
    real_time = re.fullmatch(r"(RTMIN|RTMAX)([+-][0-9]{1,2})", bare)
    try:
        number = int(signal.Signals[f"SIG{bare if real_time is None else real_time.group(1)}"])
    except KeyError:
        return ""
    return str(number + (0 if real_time is None else int(real_time.group(2))))


def moment(text: object) -> datetime | None:
    """A time as Docker writes it (RFC 3339, nanoseconds); None for what has not happened and for what is no time."""
    try:
        found = parse_time(str(text))
    except (ValueError, OverflowError):
        return None
    return found if found.year >= _NEVER else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
