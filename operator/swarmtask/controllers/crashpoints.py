"""Named places around every write to the API or an engine, at which a test can let the operator die.

Called by whoever writes: `with write_point("submit"):` names the moments `before:submit` and `after:submit`. Armed by the setting
`operator.crash_point` (the process ends at once, as by `kill -9`) or, inside a test, by `arm`. Never does anything when not armed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

WRITES: Final = (
    "add-finalizer", "write-status", "post-event", "submit", "stop", "remove", "release-finalizer", "delete-task", "create-node",
    "write-node", "create-queue", "write-queue", "remove-orphan", "write-array", "create-member", "delete-member", "steer-member",
    "label-node", "take-tenure",
)  # fmt: skip
"""Every write of the operator has one of these names."""
POINTS: Final = tuple(f"{moment}:{write}" for write in WRITES for moment in ("before", "after"))

EXIT_CODE: Final = 137


def _die(point: str) -> None:
    os._exit(EXIT_CODE)


class _Armed:
    point: str = ""
    action: Callable[[str], None] = staticmethod(_die)


def arm(point: str, action: Callable[[str], None] | None = None) -> None:
    """Let `action` happen whenever `point` is reached; by default the process ends there. An empty name disarms.

    Raises:
        ValueError: there is no such point.
    """
    if point and point not in POINTS:
        raise ValueError(f"there is no crash point {point!r}; there are: {', '.join(POINTS)}")
    _Armed.point, _Armed.action = point, action or _die


class write_point:  # noqa: N801 - reads as a verb where it is used; a class is the cheapest context manager
    """Around one write: the moments before it and after its success."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        if _Armed.point:
            self._reach("before")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if _Armed.point and kind is None:
            self._reach("after")

    def _reach(self, moment: str) -> None:
        point = f"{moment}:{self._name}"
        if point == _Armed.point:
            _Armed.action(point)
