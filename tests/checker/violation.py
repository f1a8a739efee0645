"""One violation, the list of them, and how an engine-side name tells its owner."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken invariant.

    Attributes:
        invariant: I1 to I10.
        subject: what it is about (a task, a node, a stream).
        evidence: the facts that contradict the invariant.
    """

    invariant: str
    subject: str
    at: datetime
    evidence: str

    def __str__(self) -> str:
        return f"{self.invariant} {self.subject} at {self.at.isoformat()}: {self.evidence}"


class ViolationLog:
    """Where the rules write what they find; each finding once."""

    def __init__(self) -> None:
        self.found: list[Violation] = []
        self._known: set[tuple[str, str, str]] = set()

    def add(self, invariant: str, subject: str, at: datetime, evidence: str) -> None:
        key = (invariant, subject, evidence)
        if key not in self._known:
            self._known.add(key)
            self.found.append(Violation(invariant, subject, at, evidence))


def owner_digits(attempt_id: str) -> tuple[str, int] | None:
    """(digits of the owner's UID, attempt number) of `st-<16 digits>-<number>`; None when the name has another form."""
    parts = attempt_id.split("-")
    if len(parts) != 3 or parts[0] != "st" or not parts[2].isdigit():
        return None
    return parts[1], int(parts[2])


def digits_of(uid: str) -> str:
    """The part of a UID that names of its attempts carry."""
    return uid.replace("-", "")[:16]
