"""Stops containers by a deadline: asked first, killed then, and without Docker where Docker is dead.

Called by `fence` (in its own thread) and by `watch` for an eviction. Never touches the disk or the API: a fence waits for neither.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from swarmtask.errors import EngineUnavailable
from swarmtask.nodeagent.containers import details, listed

logger = logging.getLogger(__name__)

AT_ONCE = 8
LOOK_S = 0.2
KILL_S = 2.0
"""So long a Docker that answers is given to carry out a SIGKILL before the processes are killed without it."""
POINTLESS = frozenset({"SIGKILL", "KILL", "9"})


class Signals(Protocol):
    """What is needed of `daemon.Daemon`."""

    def containers(self) -> list[dict[str, Any]]: ...
    def inspect(self, container_id: str) -> dict[str, Any] | None: ...
    def kill(self, container_id: str, signal: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class Pace:
    """How time passes: `clock` counts the machine's sleep, `wait` need not."""

    clock: Callable[[], float]
    wait: Callable[[float], None]


class Stopper:
    """See the module.

    Args:
        kill_anyway: kill the processes of a container without Docker; True when none is left that could be seen.
    """

    def __init__(self, daemon: Signals, pace: Pace, kill_anyway: Callable[[str], bool]) -> None:
        self._daemon, self._pace, self._kill_anyway = daemon, pace, kill_anyway

    def stop(self, ids: Sequence[str], kill_at: float) -> bool:
        """Stop them. Returns whether all have stopped, as far as can be known.

        Args:
            ids: containers.
            kill_at: by the pace's clock; whoever still runs then is killed. In the past: killed at once.
        """
        left = list(ids)
        if self._pace.clock() < kill_at:
            self.ask(left)
            left = self._until_stopped(left, kill_at)
        return all(self.kill(left).values())

    def ask(self, ids: Sequence[str]) -> None:
        """Send each its own stop signal."""
        self._signal_all(ids, self._ask)

    def kill(self, ids: Sequence[str]) -> dict[str, bool]:
        """End them now: by Docker, and where it does not obey, without it. Whether each has stopped, as far as can be known."""
        left = list(ids)
        if left and self._signal_all(left, lambda container_id: self._daemon.kill(container_id, "SIGKILL")):
            left = self._until_stopped(left, self._pace.clock() + KILL_S)
        ended = dict.fromkeys(ids, True)
        for container_id in left:
            logger.warning("Docker has not stopped container %.12s; its processes are killed", container_id)
            ended[container_id] = self._kill_anyway(container_id)
        return ended

    def rest(self) -> None:
        """Between two looks at what still runs."""
        self._pace.wait(LOOK_S)

    def _ask(self, container_id: str) -> bool:
        answer = self._daemon.inspect(container_id)
        signal = "SIGTERM" if answer is None else details(answer).stop_signal
        return signal in POINTLESS or self._daemon.kill(container_id, signal)

    def _signal_all(self, ids: Sequence[str], send: Callable[[str], bool]) -> bool:
        """Several at once: Docker takes some milliseconds for each. The first failure ends it, a dead Docker times out for all.
        False: Docker does not answer."""
        dead = False

        def one(container_id: str) -> None:
            nonlocal dead
            if dead:
                return
            try:
                send(container_id)
            except EngineUnavailable as error:
                dead = True
                logger.warning("cannot send a signal: %s", error.message)

        if len(ids) == 1:
            one(ids[0])
        elif ids:
            with ThreadPoolExecutor(min(AT_ONCE, len(ids)), thread_name_prefix="stop") as pool:
                list(pool.map(one, ids))
        return not dead

    def _until_stopped(self, ids: Sequence[str], until: float) -> list[str]:
        """Those that still run at that time; while Docker does not answer, all of them."""
        left = list(ids)
        while left:
            alive = self._alive()
            if alive is not None:
                left = [container_id for container_id in left if container_id in alive]
            if not left or self._pace.clock() >= until:
                break
            self._pace.wait(LOOK_S)
        return left

    def _alive(self) -> frozenset[str] | None:
        try:
            found = (listed(item) for item in self._daemon.containers())
            return frozenset(item.id for item in found if item is not None and item.alive)
        except EngineUnavailable:
            return None
