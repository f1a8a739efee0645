"""When the machine runs out of memory, who goes first, and how long the operator is waited for. Pure.

Called by `watch`. LIFECYCLE, "Memory": the agent ends the least important attempt before the kernel picks one by its own measure.
It asks the operator first, which knows better what is important by now, and acts alone when that takes too long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

SCARCE = 0.05
"""Less than this share of the memory is available ..."""
PRESSED = 0.2
"""... and tasks waited for memory for this share of the time ..."""
HELD_S = 3.0
"""... for so long: then somebody has to go."""
PAUSE_S = 10.0
"""After an eviction, until the next: memory takes a while to come back, and pressure is an average of ten seconds."""
MOST_GRACE_S = 5.0
PATIENCE_S, HURRY_S = 4.0, 1.0
"""So long the operator's answer is waited for: at PRESSED, and when tasks wait for memory for HOPELESS of the time."""
HOPELESS = 0.8
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Strain:
    """How short memory is. `pressure`: share of the time in which tasks waited for it."""

    available_bytes: int
    memory_bytes: int
    pressure: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """An attempt that runs. `request_bytes`: what it was promised; 0 where nobody knows. `grace_s`: what its task declares."""

    container_id: str
    attempt: str
    priority: int
    memory_bytes: int
    request_bytes: int
    started_at: datetime | None
    grace_s: int | None = None


class Alarm:
    """Whether somebody has to go now. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._quiet_until = float("-inf")

    def sounds(self, strain: Strain, now: float) -> bool:
        """Tell it of every look."""
        if not is_short(strain):
            self._since = None
            return False
        if self._since is None:
            self._since = now
        return now - self._since >= HELD_S and now >= self._quiet_until

    def evicted(self, now: float) -> None:
        """Somebody goes; wait for the effect."""
        self._since, self._quiet_until = None, now + PAUSE_S


@dataclass(frozen=True, slots=True)
class Plea:
    """What the operator was asked: to end this one. `until`: then the agent acts alone. `beside`: containers that ran then."""

    candidate: Candidate
    message: str
    until: float
    asked_at: datetime
    beside: frozenset[str] = frozenset()


def is_short(strain: Strain) -> bool:
    """Now, whatever was before."""
    return strain.available_bytes < SCARCE * strain.memory_bytes and strain.pressure >= PRESSED


def patience_s(strain: Strain) -> float:
    """How long the operator's answer can be waited for: the harder the pressure, the shorter."""
    share = (strain.pressure - PRESSED) / (HOPELESS - PRESSED)
    return PATIENCE_S - (PATIENCE_S - HURRY_S) * min(1.0, max(0.0, share))


def victim(candidates: Sequence[Candidate]) -> Candidate | None:
    """The lowest priority; of these the one farthest above its request; of these the youngest. None: nobody is there."""
    unknown = datetime.max.replace(tzinfo=UTC)
    return max(
        candidates,
        key=lambda one: (-one.priority, one.memory_bytes - one.request_bytes, one.started_at or unknown, one.container_id),
        default=None,
    )


def grace_s(chosen: Candidate) -> float:
    """Seconds between SIGTERM and SIGKILL: its own, but memory is short, and not everybody's can be waited for."""
    return MOST_GRACE_S if chosen.grace_s is None else min(MOST_GRACE_S, chosen.grace_s)


def message(chosen: Candidate, strain: Strain) -> str:
    """For a person."""
    return (
        f"{strain.available_bytes / MIB:.0f} MiB of {strain.memory_bytes / MIB:.0f} MiB were left; it had "
        f"priority {chosen.priority} and used {chosen.memory_bytes / MIB:.0f} MiB"
    )
