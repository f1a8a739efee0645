"""How long tasks of one kind take, learned from those that succeeded.

Called by the controllers' cache, which teaches it every success and asks it for waiting and running tasks. A duration is how long
an attempt holds its place: from being placed to its end, pull and start included. A kind of tasks ("template") is an opaque text
here. Keeps no clock, and bounded memory: the newest `SAMPLES` of each of the `TEMPLATES` templates that were met last.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import OrderedDict
from dataclasses import dataclass, field
from statistics import median

SAMPLES = 50
"""Of each template: old ones say little about today's input."""
TEMPLATES = 4096
OVERDUE_GROWTH = 1.1
"""What has taken longer than all before it is expected to take so much of what it has taken."""
OVERDUE_LIMIT = 2.0
"""What has taken so many times the longest one is no longer expected to end at any time."""


@dataclass(slots=True)
class _Template:
    """Attributes:
    newest: (moment of the end, duration), by moment, so that the order in which they are read after a restart does not matter.
    sorted: the same durations, shortest first.
    """

    newest: list[tuple[float, float]] = field(default_factory=list)
    sorted: list[float] = field(default_factory=list)
    typical_s: float = 0.0

    def learn(self, finished_at: float, duration_s: float) -> None:
        insort(self.newest, (finished_at, duration_s))
        del self.newest[:-SAMPLES]
        self.sorted = sorted(duration for _, duration in self.newest)
        self.typical_s = median(self.sorted)


class Durations:
    """See the module."""

    def __init__(self, templates: int = TEMPLATES) -> None:
        self._most = templates
        self._templates: OrderedDict[str, _Template] = OrderedDict()

    def __len__(self) -> int:
        """Templates of which something is known."""
        return len(self._templates)

    def learn(self, template: str, finished_at: float, duration_s: float) -> None:
        """One of them succeeded.

        Args:
            finished_at: seconds since the epoch.
            duration_s: a negative one (a clock was set back) counts as 0.
        """
        known = self._templates.setdefault(template, _Template())
        self._templates.move_to_end(template)
        known.learn(finished_at, max(0.0, duration_s))
        while len(self._templates) > self._most:
            self._templates.popitem(last=False)

    def typical_s(self, template: str) -> float | None:
        """The median: one that hung or was served from a warm cache does not move it. None until one has succeeded."""
        known = self._templates.get(template)
        if known is None:
            return None
        self._templates.move_to_end(template)
        return known.typical_s

    def ends_at(self, template: str, began_at: float, now: float) -> float | None:
        """When one that was placed at `began_at` is expected to end; None while that is not known.

        It is the median of those that took longer than this one has taken up to now: what has run for an hour is none of those that
        take a minute. What has outlasted all of them is given a tenth more; what has taken twice as long as the longest, nothing:
        nobody knows what it is doing.
        """
        known = self._templates.get(template)
        if known is None:
            return None
        self._templates.move_to_end(template)
        elapsed = max(0.0, now - began_at)
        shorter, all_ = bisect_right(known.sorted, elapsed), len(known.sorted)
        if shorter < all_:  # the median of the rest
            return began_at + (known.sorted[(shorter + all_ - 1) // 2] + known.sorted[(shorter + all_) // 2]) / 2
        if elapsed > OVERDUE_LIMIT * max(1.0, known.sorted[-1]):
            return None
        return began_at + OVERDUE_GROWTH * elapsed
