"""Keeps `attempts` up to date, and makes room when the machine runs out of memory: two threads.

Called by `guard`. One thread looks every second, and reads Docker's whole list when something may have changed, after any doubt,
and every half minute anyway. The other waits for Docker's events, which are hints: a stream that was silent for long is opened
again at once, one that broke after growing pauses, where it stopped, and a list follows. Never calls the API.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from swarmtask.errors import EngineUnavailable
from swarmtask.nodeagent.attempts import Attempts
from swarmtask.nodeagent.containers import event_nanos
from swarmtask.nodeagent.daemon import Daemon, Events
from swarmtask.nodeagent.eviction import Alarm, Candidate, Plea, Strain, grace_s, is_short, message, patience_s, victim
from swarmtask.nodeagent.stopping import Stopper

logger = logging.getLogger(__name__)

LOOK_S = 1.0
LIST_S = 30.0
GATHER_S = 0.1
"""Events come in waves; one list is enough for each."""
LONGEST_PAUSE_S = 5.0
REMEMBERED = 512
"""Events that are known when they come again: more than Docker can repeat."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Watch:
    """See the module.

    Args:
        clock: monotonic seconds; boot_clock: the clock of the stopper's deadlines; now: wall time, UTC.
        reaches: the API was reached a moment ago: it makes sense to ask the operator.
        begun: told the ID of each container that Docker has started, from the thread that listens.

    Attributes:
        pleaded: called, from the watch's thread, when `plea` says something else than before.
    """

    def __init__(
        self,
        attempts: Attempts,
        daemon: Daemon,
        stopper: Stopper,
        strain: Callable[[], Strain],
        *,
        clock: Callable[[], float],
        boot_clock: Callable[[], float],
        now: Callable[[], datetime],
        reaches: Callable[[], bool],
        rng: random.Random,
        begun: Callable[[str], None] = lambda container_id: None,
    ) -> None:
        self._attempts, self._daemon, self._stopper, self._strain = attempts, daemon, stopper, strain
        self._clock, self._boot_clock, self._rng = clock, boot_clock, rng
        self._now, self._reaches, self._begun = now, reaches, begun
        self._alarm = Alarm()
        self._plea: Plea | None = None
        self._hastened: set[str] = set()
        self.pleaded: Callable[[], None] = lambda: None
        self._doubt, self._ended = threading.Event(), threading.Event()
        self._list_at, self._failures = float("-inf"), 0
        self._stream: Events | None = None
        self._known: deque[tuple[int, str, str]] = deque(maxlen=REMEMBERED)

    def doubt(self) -> None:
        """Something may have changed: read Docker's list."""
        self._doubt.set()

    def run(self) -> None:
        """The thread that looks: until `end`."""
        while not self._ended.is_set():
            self.step()
            if self._doubt.wait(LOOK_S):
                self._ended.wait(GATHER_S)

    def step(self) -> None:
        """One look."""
        now = self._clock()
        doubt = self._doubt.is_set() and not self._failures
        self._doubt.clear()
        full = doubt or now >= self._list_at
        try:
            more = self._attempts.look(full=full)
        except EngineUnavailable as error:
            self._failures += 1
            (logger.warning if self._failures == 1 else logger.debug)("attempts are not seen: %s; it is tried again", error.message)
            self._list_at = now + self._pause_s(self._failures)
        else:
            if full:
                self._failures, self._list_at = 0, now + LIST_S
            if more and not self._failures:
                self._list_at = now
        self._relieve(now)

    # --- when memory is short ---

    @property
    def plea(self) -> Plea | None:
        """What the operator is being asked."""
        return self._plea

    def _relieve(self, now: float) -> None:
        strain = self._strain()
        sounds, plea = self._alarm.sounds(strain, now), self._plea
        if plea is not None and not is_short(strain):
            self._ask(None)  # memory is back
        elif plea is not None:
            self._follow_up(plea, now)
        elif sounds and not self._hasten(now):
            candidates = self._attempts.candidates()
            chosen = victim(candidates)
            if chosen is None:
                return
            said = message(chosen, strain)
            if chosen.attempt and self._reaches():
                beside = frozenset(one.container_id for one in candidates)
                self._ask(Plea(chosen, said, now + patience_s(strain), self._now(), beside))
            else:
                self._evict(chosen, said, now)

    def _follow_up(self, plea: Plea, now: float) -> None:
        """The operator was asked, and memory is still short."""
        there = {one.container_id for one in self._attempts.candidates()}
        if self._hasten(now):
            self._ask(None)
        elif plea.beside - there:  # somebody has ended: the operator's choice, or by itself; that makes room, too
            self._alarm.evicted(now)
            self._ask(None)
        elif now >= plea.until:
            logger.warning("the operator has not answered in time")
            self._evict(plea.candidate, plea.message, now)
            self._ask(None)

    def _ask(self, plea: Plea | None) -> None:
        if plea is not None:
            logger.warning("memory is short; the operator is asked to stop attempt %s: %s", plea.candidate.attempt, plea.message)
        self._plea = plea
        self.pleaded()

    def _hasten(self, now: float) -> bool:
        """Somebody was told to end, by the operator for example: that makes room, and cannot take as long as at other times. It is
        not marked: why it ends, they know who have told it."""
        ending = self._attempts.ending()
        fresh = [one for one in ending if one.container_id not in self._hastened]
        self._hastened = {one.container_id for one in ending}
        if not fresh:
            return False
        self._alarm.evicted(now)
        for one in fresh:
            self._stop(one)
        return True

    def _evict(self, chosen: Candidate, said: str, now: float) -> None:
        self._alarm.evicted(now)
        logger.warning("attempt %s is stopped by the node: %s", chosen.attempt, said)
        self._attempts.mark([chosen.container_id], "Evicted", f"stopped by the node: {said}")
        self._stop(chosen)

    def _stop(self, chosen: Candidate) -> None:
        kill_at = self._boot_clock() + grace_s(chosen)
        threading.Thread(target=self._stopper.stop, args=([chosen.container_id], kill_at), name="evict", daemon=True).start()

    # --- events ---

    def listen(self) -> None:
        """The thread that listens: until `end`."""
        failures, since_nanos = 0, None
        while not self._ended.is_set():
            opened = latest = (self._now() - _EPOCH) // timedelta(microseconds=1) * 1000
            try:
                with self._daemon.events(since_nanos=since_nanos) as stream:
                    self._stream = stream
                    since_nanos = since_nanos or opened
                    self.doubt()  # what happened while nobody listened
                    for event in stream:
                        since_nanos = latest = event_nanos(event) or latest
                        if self._is_news(event):
                            failures = 0
                            self._hear(event)
            except EngineUnavailable as error:
                logger.debug("no events: %s", error.message)
                failures += 1
            else:  # nothing happened for long, which is no failure; that the stream is not dead the next one shows
                failures, since_nanos = 0, latest
            finally:
                self._stream = None
            self.doubt()
            if failures:
                self._ended.wait(self._pause_s(failures))

    def _is_news(self, event: Mapping[str, Any]) -> bool:
        """It was not heard before: a stream begins with the moment at which the one before it stopped."""
        at, actor = event_nanos(event), event.get("Actor")
        if at is None:
            return True
        name = (at, str(event.get("Action")), str(actor.get("ID")) if isinstance(actor, dict) else "")
        known = name in self._known
        if not known:
            self._known.append(name)
        return not known

    def _hear(self, event: Mapping[str, Any]) -> None:
        self._attempts.heard(event)
        self.doubt()
        actor = event.get("Actor")
        if event.get("Action") == "start" and isinstance(actor, dict):
            self._begun(str(actor.get("ID")))

    def end(self) -> None:
        """Let both threads end."""
        self._ended.set()
        self._doubt.set()
        stream = self._stream
        if stream is not None:
            stream.close()

    def _pause_s(self, failures: int) -> float:
        return self._rng.uniform(0.2, min(LONGEST_PAUSE_S, 0.5 * 2 ** min(failures, 10)))
