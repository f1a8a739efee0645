"""Attempts that a person has ended: the annotation `swarmtask.io/end-attempts` of a task, read and written.

Called by the lifecycle, which stops a live attempt that the annotation names, and by the API server, which writes it when a pod is
deleted or evicted and shows no pod for an attempt that is named and over. Pure. The value is a list of attempt numbers with commas
between them, each with the time at which its end was asked for: `2@2026-01-01T00:00:00Z,3@...`; a person may leave the time out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from datetime import datetime

from swarmtask.clock import format_time, parse_time

ANNOTATION_END = "swarmtask.io/end-attempts"
"""Set to the numbers of attempts that must end, with commas between them: the task is queued again. `kubectl delete pod` does."""
_ENTRY = re.compile(r"([1-9][0-9]{0,8})(?:@([0-9TZ:+.-]{20,32}))?")


def ended(annotations: Mapping[str, str]) -> dict[int, datetime | None]:
    """Number -> when its end was asked for, where that is said. What cannot be read names nothing."""
    found: dict[int, datetime | None] = {}
    for part in annotations.get(ANNOTATION_END, "").split(","):
        match = _ENTRY.fullmatch(part.strip())
        if match is not None:
            found.setdefault(int(match.group(1)), _time(match.group(2)))
    return found


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return parse_time(text)
    except (ValueError, OverflowError):  # a zone may carry the first and the last day out of the calendar
        return None


def with_ended(annotations: Mapping[str, str], number: int, now: datetime, known: Collection[int]) -> str:
    """The annotation's value with one more attempt named. Numbers that are not `known` any more are left out: it stays short."""
    entries = {old: when for old, when in ended(annotations).items() if old in known}
    entries.setdefault(number, now)
    return ",".join(f"{one}@{format_time(when)}" if when is not None else str(one) for one, when in sorted(entries.items()))
