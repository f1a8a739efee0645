"""How much memory tasks of one kind need, learned from the peaks of attempts that ended.

Called by the controllers, which teach it every task that ended and ask it for tasks that request `auto`. A kind of tasks
("template") is an opaque text here. Keeps no clock, and bounded memory: the newest `SAMPLES` of each of the `TEMPLATES` templates
that were met last.

The rule (docs/memory.md): the 95th percentile (nearest rank) and a fifth more, and never less than the highest peak of an attempt
that succeeded and a twentieth more. An attempt that was killed at its limit has shown no peak, only that it needs at least as much:
it counts in the percentile, where one that ran wild among twenty is left out, and not as a highest peak. One that succeeded
although it used all that it had shows that this suffices: kernels fill what a program leaves with page cache, and a peak at the
limit would otherwise make every generation larger than the last. Autopilot sizes Google's jobs in the same spirit, from a window of
peaks and a safety margin (Rzadca et al., EuroSys 2020).
"""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict
from dataclasses import dataclass, field

from swarmtask.resources.fields import AUTO_MEMORY
from swarmtask.resources.units import humanize_memory, memory_bytes

SAMPLES = 50
"""Of each template: old ones say little about today's input."""
TEMPLATES = 4096
QUANTILE_PERCENT = 95
HEADROOM_PERCENT = 20
"""On top of the percentile."""
MARGIN_PERCENT = 5
"""On top of the highest peak."""
FEW = 3
"""With fewer samples than this, no less than the default is asked for."""
DEFAULT_BYTES = memory_bytes(AUTO_MEMORY)
LEAST_BYTES = 64 * 2**20
"""Below this a container's own start becomes the risk; Docker takes no limit under 6 MiB."""
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Peak:
    """One task that ended.

    Attributes:
        ended_at: seconds since the epoch. uid: of the task; it counts once.
        memory_bytes: the most that its last attempt used, or at least tried to.
        killed: it was killed at its limit: it needs that much at least.
        limit_bytes: the most that it could use; 0: it had no limit, or that is not known.
    """

    ended_at: float
    uid: str
    memory_bytes: int
    killed: bool = False
    limit_bytes: int = 0

    @property
    def saturated(self) -> bool:
        """It succeeded, and came so close to its limit that the limit says more than the peak."""
        return not self.killed and 0 < self.limit_bytes * 100 < self.memory_bytes * (100 + MARGIN_PERCENT)

    def and_more(self, percent: int) -> int:
        """What another one like it should have, in bytes."""
        return _more(max(self.memory_bytes, self.limit_bytes), 0) if self.saturated else _more(self.memory_bytes, percent)


@dataclass(frozen=True, slots=True)
class Sizing:
    """What a task of a template should ask for. `samples`: how many tasks that was learned from; 0: it is the default."""

    request_bytes: int
    samples: int
    words: str


@dataclass(slots=True)
class _Template:
    """Attributes:
    newest: sorted by moment, so that the order in which they are read after a restart does not matter.
    """

    newest: list[tuple[float, str]] = field(default_factory=list)
    peaks: dict[str, Peak] = field(default_factory=dict)

    def learn(self, peak: Peak) -> None:
        known = self.peaks.pop(peak.uid, None)
        if known is not None:
            self.newest.remove((known.ended_at, known.uid))
        insort(self.newest, (peak.ended_at, peak.uid))
        self.peaks[peak.uid] = peak
        for _, uid in self.newest[:-SAMPLES]:
            del self.peaks[uid]
        del self.newest[:-SAMPLES]


class Peaks:
    """See the module."""

    def __init__(self, templates: int = TEMPLATES) -> None:
        self._most = templates
        self._templates: OrderedDict[str, _Template] = OrderedDict()

    def __len__(self) -> int:
        """Templates of which something is known."""
        return len(self._templates)

    def learn(self, template: str, peak: Peak) -> None:
        """One of them ended. Told again, it replaces what was told of the same task."""
        known = self._templates.setdefault(template, _Template())
        self._templates.move_to_end(template)
        known.learn(peak)
        while len(self._templates) > self._most:
            self._templates.popitem(last=False)

    def sizing(self, template: str, largest_bytes: int = 0) -> Sizing:
        """What a task of the template should ask for.

        Args:
            largest_bytes: what the largest node offers; 0: not known. Room to spare is given up rather than fit on no node.
        """
        known = self._templates.get(template)
        if known is None:
            return size((), largest_bytes)
        self._templates.move_to_end(template)
        return size(tuple(known.peaks.values()), largest_bytes)


def size(peaks: tuple[Peak, ...], largest_bytes: int = 0) -> Sizing:
    """The rule of the module, for these peaks. Whole mebibytes, rounded up."""
    count = len(peaks)
    if not count:
        fits = min(DEFAULT_BYTES, largest_bytes) if largest_bytes > 0 else DEFAULT_BYTES
        return Sizing(fits, 0, "no attempt of its template was seen yet")
    by_need = sorted(peaks, key=lambda peak: (peak.and_more(HEADROOM_PERCENT), peak.uid))
    quantile = by_need[-(-count * QUANTILE_PERCENT // 100) - 1]
    highest = max((peak.and_more(MARGIN_PERCENT) for peak in peaks if not peak.killed), default=0)
    wanted, floor = quantile.and_more(HEADROOM_PERCENT), max(LEAST_BYTES, highest)
    attempts = f"{count} attempt{'' if count == 1 else 's'}"
    words = f"p{QUANTILE_PERCENT} of {attempts} + {HEADROOM_PERCENT} %"
    if quantile.saturated:
        words = f"p{QUANTILE_PERCENT} of {attempts}, which used all it had and succeeded"
    if wanted < floor:
        wanted = floor
        least = floor == LEAST_BYTES
        words = f"the least there is; {attempts} used less" if least else f"highest of {attempts} + {MARGIN_PERCENT} %"
    if count < FEW and wanted < DEFAULT_BYTES:
        wanted = DEFAULT_BYTES
        words = f"the default, as only {attempts} ended (most memory {humanize_memory(max(peak.memory_bytes for peak in peaks))})"
    if floor <= largest_bytes < wanted:
        wanted, words = largest_bytes, f"all that the largest node offers, instead of {words}"
    return Sizing(wanted, count, words)


def _more(count: int, percent: int) -> int:
    """So many percent more, in whole mebibytes."""
    return -(-count * (100 + percent) // (100 * _MIB)) * _MIB
