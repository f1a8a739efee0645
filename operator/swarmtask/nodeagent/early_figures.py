"""The figures of containers that have just begun: one that lives for less than the watch's second would leave none behind.

Called by `watch` when Docker tells of a start and asked by `attempts` when one has ended; a thread of its own looks, first soon and
then ever less often, until the watch's own looks are often enough. Reads the kernel's files and nothing else.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from swarmtask.nodeagent.cgroups import Cgroup, Cgroups, Usage

SOONEST_S = 0.02
GROWTH = 0.2
"""Looked at again when it is by so much older: what is missed at its end is at most that share of its life."""
OLD_S = 5.0
"""From then on a look each second misses no more."""
MOST = 64
"""Of more that begin at once, those that come later have to do with the watch's looks."""
KEPT = 512


@dataclass(slots=True)
class _Young:
    cgroup: Cgroup
    began_at: float
    due_at: float


class EarlyFigures:
    """See the module. Thread-safe.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, cgroups: Cgroups, clock: Callable[[], float]) -> None:
        self._cgroups, self._clock = cgroups, clock
        self._lock = threading.Lock()
        self._young: dict[str, _Young] = {}
        self._seen: OrderedDict[str, Usage] = OrderedDict()
        self._begun, self._ended = threading.Event(), threading.Event()

    def usage(self, container_id: str) -> Usage | None:
        """What was seen of it last, with its highest peak; None: nothing, or so long ago that 512 others have begun since."""
        with self._lock:
            return self._seen.get(container_id)

    def begun(self, container_id: str) -> None:
        """Docker has started it."""
        if container_id in self._young or len(self._young) >= MOST:
            return
        cgroup = self._cgroups.find(0, container_id)
        if cgroup is None or not self._look(container_id, cgroup):
            return
        now = self._clock()
        with self._lock:
            self._young[container_id] = _Young(cgroup, now, now + SOONEST_S)
        self._begun.set()

    def step(self) -> float | None:
        """Look at all that are due. Seconds until the next is; None: there is none."""
        now = self._clock()
        with self._lock:
            young = dict(self._young)
        for container_id, one in list(young.items()):
            age_s = now - one.began_at
            if now < one.due_at:
                continue
            if self._look(container_id, one.cgroup) and age_s < OLD_S:
                one.due_at = now + max(SOONEST_S, GROWTH * age_s)
            else:
                del young[container_id]
                with self._lock:
                    del self._young[container_id]
        return min(one.due_at for one in young.values()) - now if young else None

    def run(self) -> None:
        """The thread that looks: until `end`."""
        while not self._ended.is_set():
            self._begun.wait(self.step())
            self._begun.clear()

    def end(self) -> None:
        """Let the thread end."""
        self._ended.set()
        self._begun.set()

    def _look(self, container_id: str, cgroup: Cgroup) -> bool:
        usage = cgroup.read()
        if usage is None:
            return False
        with self._lock:
            before = self._seen.pop(container_id, usage)
            self._seen[container_id] = replace(usage, peak_bytes=max(usage.peak_bytes, before.peak_bytes))
            while len(self._seen) > KEPT:
                self._seen.popitem(last=False)
        return True
