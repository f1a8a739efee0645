"""What watches over the attempts of this node: Docker, cgroups, records, fence and eviction, built and started together.

Called by `__main__`. Its threads go on whatever the agent's loop and its network do.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from swarmtask.clock import Clock, format_time
from swarmtask.errors import EngineUnavailable
from swarmtask.nodeagent.attempts import Attempts
from swarmtask.nodeagent.boot_timer import Pause
from swarmtask.nodeagent.cgroups import Cgroups
from swarmtask.nodeagent.containers import listed
from swarmtask.nodeagent.daemon import Daemon, NoDaemon
from swarmtask.nodeagent.early_figures import EarlyFigures
from swarmtask.nodeagent.eviction import Strain
from swarmtask.nodeagent.fence import Fence, Terms
from swarmtask.nodeagent.records import Records
from swarmtask.nodeagent.stopping import Pace, Stopper
from swarmtask.nodeagent.watch import Watch

logger = logging.getLogger(__name__)

IMPATIENT_S = 2.0
"""Who must stop containers in time cannot wait longer for Docker's answer; there is another way."""
REACHED_S = 6.0
"""An API that has renewed the Lease within this is worth asking for help."""
FENCED = "stopped by the node, because it could not reach the API for {seconds:g} s"


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are on this machine, as seen from this process.

    Attributes:
        docker: Docker's socket.
        state: a directory of the agent's own, which survives restarts.
        cgroups, proc: the host's /sys/fs/cgroup and /proc.
        cluster: only containers of this control plane; empty means of every one.
    """

    docker: Path
    state: Path
    cgroups: Path = Path("/sys/fs/cgroup")
    proc: Path = Path("/proc")
    cluster: str = ""


class Guard:
    """See the module; a context manager around its threads.

    Args:
        boot_id: of this boot of the machine.
        strain: how short memory is now.
        wait: lets time pass in a thread, seconds.
        pause: how the fence's thread waits; see `Fence`.
    """

    def __init__(
        self,
        places: Places,
        boot_id: str,
        strain: Callable[[], Strain],
        *,
        clock: Clock,
        wait: Callable[[float], None],
        rng: random.Random,
        terms: Terms | None = None,
        pause: Pause | None = None,
    ) -> None:
        self._clock = clock
        self._daemon = Daemon(places.docker, cluster=places.cluster, timeout_s=IMPATIENT_S)
        records = Records(places.state)
        patient = Daemon(places.docker, cluster=places.cluster)
        cgroups = Cgroups(places.cgroups, places.proc)
        self.early = EarlyFigures(cgroups, clock.monotonic)
        self.attempts = Attempts(patient, cgroups, records, now=clock.now, early=self.early.usage)
        self._stopper = Stopper(self._daemon, Pace(clock.boot_time, wait), self.attempts.kill)
        self.watch = Watch(
            self.attempts, patient, self._stopper, strain, clock=clock.monotonic, boot_clock=clock.boot_time, now=clock.now,
            reaches=lambda: clock.boot_time() - self.fence.renewed_at < REACHED_S, rng=rng,
            begun=self.early.begun,
        )  # fmt: skip
        self.fence = Fence(
            self._sweep, clock.boot_time, terms=terms, renewed_at=records.lease(boot_id),
            remember=lambda renewed_at: records.put_lease(boot_id, renewed_at), claimed=records.lease_claimed(),
            claim=records.claim_lease, pause=pause,
        )  # fmt: skip
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Guard:
        for name, run in (
            ("fence", self.fence.run),
            ("watch", self.watch.run),
            ("listen", self.watch.listen),
            ("early", self.early.run),
        ):
            thread = threading.Thread(target=run, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.fence.end()
        self.watch.end()
        self.early.end()
        for thread in self._threads:
            thread.join(timeout=2)
        if not any(thread.is_alive() for thread in self._threads):
            self.fence.close()

    def told(self) -> list[dict[str, Any]]:
        """`status.attempts`."""
        return self.attempts.told()

    def delivered(self, attempts: Iterable[str]) -> None:
        """The API knows the ends of these."""
        self.attempts.delivered(attempts)

    def eviction(self) -> dict[str, Any] | None:
        """`status.eviction`."""
        plea = self.watch.plea
        if plea is None:
            return None
        return {"id": plea.candidate.attempt, "requestedAt": format_time(plea.asked_at), "message": plea.message}

    def _sweep(self, since: float) -> bool:
        """Stop all that is fenced, each with its own grace; what begins meanwhile, too. True when nothing of it runs any more.

        Args:
            since: boot time from which graces count.
        """
        asked: set[str] = set()
        ended: dict[str, bool] = {}
        while True:
            try:
                found = [item for item in map(listed, self._daemon.containers()) if item is not None]
            except EngineUnavailable as error:
                return self._sweep_without_docker(since, error)
            kill_at = {item.id: since + self._grace_s(item.grace_s) for item in found if item.alive and item.fenced}
            left = [name for name in kill_at if name not in ended]
            if not left:
                return all(ended[name] for name in kill_at)
            fresh = [name for name in left if name not in asked]
            if fresh:
                self._say(len(fresh))
                self._mark(fresh)
            late = [name for name in left if kill_at[name] <= self._clock.boot_time()]
            self._stopper.ask([name for name in fresh if name not in late])
            asked.update(fresh)
            ended |= self._stopper.kill(late)
            self.watch.doubt()
            if not late:
                self._stopper.rest()

    def _sweep_without_docker(self, since: float, error: EngineUnavailable) -> bool:
        """Containers go on when Docker dies. What is known of them is killed without its help, when their time has come."""
        complete, known = self.attempts.fenced_known()
        now = self._clock.boot_time()
        late = [name for name, grace_s in known.items() if since + self._grace_s(grace_s) <= now]
        self._mark(late)
        killed = [self.attempts.kill(container_id) for container_id in late]
        return len(late) == len(known) and all(killed) and (complete or isinstance(error, NoDaemon))

    def _grace_s(self, declared: int | None) -> float:
        terms = self.fence.terms
        return terms.grace_s if declared is None else min(float(declared), terms.most_grace_s)

    def _mark(self, ids: list[str]) -> None:
        self.attempts.mark(ids, "Fenced", FENCED.format(seconds=self.fence.terms.fence_s))

    @staticmethod
    def _say(count: int) -> None:
        logger.warning("%d fenced %s stopped", count, "container is" if count == 1 else "containers are")
