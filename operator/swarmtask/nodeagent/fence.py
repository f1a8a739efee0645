"""The fence: a node that cannot renew its Lease stops what must not run twice, by itself.

Called by `agent` before every call of the API, and by a thread of its own that depends on neither network nor disk. LIFECYCLE,
"Losing a node": the operator starts a replacement only when this must have acted. It decides nothing else, and never calls the API.

In steps:
0. As long as nobody on this machine has ever called for the Lease, the operator counts no silence of it: nothing was promised, and
   nothing is stopped. The promise begins with the first call that may have made the Lease, and is on the disk before that call.
1. The Lease is *held* for `fence_s` of boot time (which counts the machine's sleep) from the moment before the call that renewed
   it, provided that the answer came before it had expired: nobody knows when a call that slept reached the API.
2. When that has passed it is *expired*, whatever the API says now: nobody may call the API until all that is fenced has stopped.
3. Then the Lease may be renewed. What was started meanwhile is stopped once more after the first success, and only then the Lease
   is held again: an order of the operator from before the loss may have arrived in between.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from swarmtask.nodeagent.boot_timer import Pause, Ticks

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Terms:
    """Seconds of boot time.

    Attributes:
        fence_s: without a renewal, until containers are stopped.
        grace_s: after that, until those that have not ended are killed whose task does not say how long. Counted from the same
            moment: one that wakes from a long sleep kills at once, because its replacement may run already. The operator replaces
            the task's own grace and its margin (10 s) after the fence; what is left of these is Docker's time to kill.
        most_grace_s: no task gets more: until its attempts have ended the API is not called, and the whole node waits for that.
        tick_s: how often the thread looks where it does not know when to: while the Lease is expired, or nobody has called for it.
        again_s: while the Lease stays expired, what was started since is stopped this often.
    """

    fence_s: float = 20.0
    grace_s: float = 5.0
    most_grace_s: float = 30.0
    tick_s: float = 0.2
    again_s: float = 2.0


class Fence:
    """See the module. Thread-safe.

    Args:
        sweep: stop all that is fenced, whose grace began at the given boot time; True when nothing of it runs any more.
        clock: boot time, seconds.
        renewed_at: when the Lease was renewed last in this boot, as the disk knows; None counts from now.
        remember: keep the moment of a renewal for an agent that comes after this one.
        claimed: there may be a Lease that an agent before this one has made; also when the disk cannot say.
        claim: keep for an agent that comes after this one that there may be a Lease (True), or that there is none (False).
        pause: how the thread waits, its own from now on; by default it looks every `tick_s`.
    """

    def __init__(
        self,
        sweep: Callable[[float], bool],
        clock: Callable[[], float],
        *,
        terms: Terms | None = None,
        renewed_at: float | None = None,
        remember: Callable[[float], None] = lambda renewed_at: None,
        claimed: bool = True,
        claim: Callable[[bool], None] = lambda claimed: None,
        pause: Pause | None = None,
    ) -> None:
        self._sweep, self._clock, self._remember, self._claim = sweep, clock, remember, claim
        self._claimed = claimed
        self._first = False
        """The call under way is the first that may make the Lease: all before it were refused."""
        self.terms = terms or Terms()
        now = clock()
        self._renewed_at = now if renewed_at is None or renewed_at > now else renewed_at
        self._lock = threading.Lock()
        self._sweeping = threading.Lock()
        self._expired_from: float | None = None
        self._swept_at: float | None = None
        self._renewed_since = self._failed = False
        self._pause = pause or Ticks(clock, self.terms.tick_s)
        self._ended = threading.Event()

    @property
    def renewed_at(self) -> float:
        """When the Lease was renewed last, as far as is known; boot time."""
        with self._lock:
            return self._renewed_at

    def ask(self) -> float | None:
        """Boot time before a call of the API, or None: the Lease has expired, and what is fenced may still run."""
        with self._lock:
            now = self._clock()
            self._look(now)
            swept_at = self._swept_at
            if self._expired_from is None or (swept_at is not None and now < swept_at + self.terms.fence_s):
                return now
        self._pause.wake()
        return None

    def claim(self, asked_at: float) -> None:
        """The API is about to be asked for the Lease: from now on there may be one. `asked_at`: what `ask` gave.

        Waits for the disk, the first time on a machine: an agent that comes after this one must fence too.
        """
        with self._lock:
            if self._claimed:
                self._first = False  # the one before may have made it: its answer was lost
                return
        self._claim(True)
        with self._lock:
            self._claimed = self._first = True
            self._renewed_at = max(self._renewed_at, asked_at)

    def refused(self) -> None:
        """The API has answered that it gives no Lease. Where no call before this one can have made it, there is none."""
        with self._lock:
            if not self._first:
                return
            self._claimed = self._first = False
        self._claim(False)

    def renewed(self, asked_at: float) -> None:
        """The API has renewed the Lease. `asked_at`: what `ask` gave before the call."""
        with self._lock:
            self._claimed, self._first = True, False
            self._look(self._clock())
            self._renewed_at = max(self._renewed_at, asked_at)
            held = self._expired_from is None
            self._renewed_since = not held
        if held:  # else an agent that comes after this one must fence too
            self._remember(asked_at)
        else:
            self._pause.wake()

    def tick(self) -> None:
        """Look once, and do what is due. Blocks while containers are being stopped; a second caller returns at once."""
        with self._lock:
            now = self._clock()
            self._look(now)
            expired_from, last, swept_at = self._expired_from, self._renewed_since, self._swept_at
        rests = swept_at is not None and not last and now < swept_at + self.terms.again_s
        if expired_from is None or rests or not self._sweeping.acquire(blocking=False):
            return
        try:
            stopped = self._sweep(expired_from)
        finally:
            self._sweeping.release()
        with self._lock:
            if not stopped and not self._failed:
                logger.error("not all that must not run twice could be stopped; the API is not called until it has")
            self._failed = not stopped
            # The moment before the sweep: what began to run while it went on may have been missed.
            self._swept_at = now if stopped else None
            if stopped and last and self._clock() < self._renewed_at + self.terms.fence_s:
                self._expired_from, self._swept_at, self._renewed_since = None, None, False
                logger.info("the Lease is held again")

    def run(self) -> None:
        """The thread: until `end`."""
        while not self._ended.is_set():
            self.tick()
            self._pause.until(self._next_look())

    def end(self) -> None:
        """Let the thread end."""
        self._ended.set()
        self._pause.wake()

    def close(self) -> None:
        """Its thread has ended, and nobody asks any more."""
        self._pause.close()

    def _next_look(self) -> float:
        """Boot time. A Lease that is held may be renewed meanwhile: then the look at its end finds that it is not due yet."""
        with self._lock:
            if self._claimed and self._expired_from is None:
                return self._renewed_at + self.terms.fence_s
        return self._clock() + self.terms.tick_s

    def _look(self, now: float) -> None:
        due = self._renewed_at + self.terms.fence_s
        if now < due or not self._claimed:
            return
        if self._expired_from is None:
            logger.warning("the Lease was not renewed for %.0f s: what must not run twice is stopped", now - self._renewed_at)
            self._expired_from, self._swept_at = due, None
        elif self._renewed_since:  # renewed once, and lost again before the last sweep
            self._expired_from, self._swept_at, self._renewed_since = due, None, False
