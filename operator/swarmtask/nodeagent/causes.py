"""Why a container ended. Pure.

Called by `attempts`. LIFECYCLE, "Memory": the same SIGKILL, so the same exit code, has three causes, and neither Docker's flag nor
the kernel's counter tells alone whether the main process died of it: both count every process of the container.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from swarmtask.nodeagent.cgroups import Usage
from swarmtask.nodeagent.records import Reason

KILLED = 137
"""128 + SIGKILL, as Docker gives it."""
CLOSE = timedelta(seconds=2)
"""A kill for memory that was noticed so long before the end, or later, was the end: looks are a second apart."""
NEAR = 0.95
"""Who never used this share of its limit has not met it."""
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Mark:
    """The node has begun to stop it."""

    reason: Reason
    message: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of kills for memory in one container.

    Attributes:
        moments: when such a kill was noticed, by counting or by Docker's event.
        by_host: at the last such count the container had never run against its own limit: the machine itself was out of memory.
        unmet: nobody counted the last such kill, and by all that is known it was not at the container's own limit.
        flag: Docker's own, which does not say when, nor of which process.
    """

    moments: tuple[datetime, ...] = ()
    by_host: bool = False
    unmet: bool = False
    flag: bool = False
    limit_bytes: int = 0
    peak_bytes: int | None = None


def below_limit(usage: Usage, limit_bytes: int, own_ooms_before: int = 0) -> bool:
    """What was killed was not killed for the container's own limit: cgroup v2 counts that apart (`oom` of memory.events, which a
    machine without memory leaves alone). v1 does not: then, it has never met its limit. Two signs, because Linux 6.18 kills at
    the limit and leaves failcnt at 0 (measured).

    Args:
        own_ooms_before: `usage.own_ooms` of the look before.
    """
    if usage.own_ooms is not None:
        return usage.own_ooms <= own_ooms_before
    return usage.limit_hits == 0 and usage.peak_bytes < NEAR * limit_bytes


def is_unmet(figures: Sequence[Usage], limit_bytes: int, peak_bytes: int | None) -> bool:
    """What was killed without anybody's counting it in its own cgroup was not killed for its own limit.

    With cgroup v2 Docker's event and flag are no proof that it was: containerd sends an oom event for each kill, the machine's too.
    The cgroup around it knows; where that does not say, one that was far below its limit when it was seen last has not met it. With
    v1 they come from kills at the own limit alone.

    Args:
        figures: looks at it, in no order.
        peak_bytes: the most that it is known to have used.
    """
    last = max(figures, key=lambda usage: (usage.own_ooms or 0, usage.peak_bytes), default=None)
    if last is None or last.own_ooms is None:
        return False
    met = None if last.above is None else last.above.met_limit()
    if met is not None:
        return not met
    return last.own_ooms == 0 and peak_bytes is not None and peak_bytes < NEAR * limit_bytes


def cause(exit_code: int | None, finished_at: datetime | None, mark: Mark | None, evidence: Evidence) -> tuple[Reason, str]:
    """(reason, message). An empty reason: the exit code says it all.

    Whoever ended before the node began to stop it has ended by itself. A wall clock may be set back a little after a sleep: a
    failure just before is the node's doing; a success is believed, since finished work is never run again.
    """
    if mark is not None and (finished_at is None or finished_at >= mark.at - (CLOSE if exit_code else timedelta())):
        return mark.reason, mark.message
    if exit_code != KILLED:
        return "", ""  # a child that was killed is its main process's affair
    if evidence.moments:
        died_of_it = finished_at is None or any(finished_at - noticed <= CLOSE for noticed in evidence.moments)
    else:
        died_of_it = evidence.flag
    if not died_of_it:
        return "", ""
    if evidence.by_host or not evidence.limit_bytes:
        return "Evicted", f"the kernel killed it because the machine was out of memory{_peak(evidence)}"
    if evidence.unmet:
        limit = f"{evidence.limit_bytes / MIB:.0f} MiB"
        words = f"the kernel killed it for memory, and not at its limit of {limit}: the machine must have been out of memory"
        return "Evicted", words + _peak(evidence)
    return "OOMKilled", f"the kernel killed it at its memory limit of {evidence.limit_bytes / MIB:.0f} MiB{_peak(evidence)}"


def _peak(evidence: Evidence) -> str:
    return "" if evidence.peak_bytes is None else f"; the most it used was {evidence.peak_bytes / MIB:.0f} MiB"
