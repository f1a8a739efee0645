"""A node agent for tests and the simulator: it does on a fake engine's node what the real one does on a machine.

It renews the node's Lease every two seconds in which its machine is awake and reaches the API, stops what carries the fence when it
could not for `fence_s` seconds of true time (sleep included; after waking up before anything else goes on), remembers how attempts
ended as on a disk, and tells it when it can. When its machine runs out of memory it asks the operator to stop one, and acts alone
when it gets no answer. Used with `FakeKube`, to which it speaks directly: nothing comes between them but what
a test switches off.
"""

from __future__ import annotations

import math
from datetime import timedelta

from swarmtask.clock import Clock, format_micro_time, format_time
from swarmtask.engines.base import Workload
from swarmtask.kube import Object
from swarmtask.resources.kinds import LEASE, SWARM_NODE
from swarmtask.resources.units import format_memory
from tests.fakes.engine import FakeEngine, Interval
from tests.fakes.kube import FakeKube

LEASES = "kube-node-lease"
RENEW_S = 2.0
STEP_S = 0.5
MOST_GRACE_S = 30.0
"""No fenced attempt gets more, whatever its task declares."""
TELL_S = 3.0
ASK_S = 3.0
"""So long the operator's answer to a wish for memory is waited for; PAUSE_S later somebody else may have to go."""
PAUSE_S = 10.0
EVICTION_GRACE_S = 5.0
SAME_NODE_S = 5.0
"""So often it looks whether its SwarmNode is still the one that it has told."""
RETRY_S = 5.0
"""The longest pause of the real one after a failure: what it has to say may come so long after its node is back."""


class FakeAgent:
    """See the module. One per node of the engine.

    Args:
        clock: true time.
        fence_s: as the operator has it.
        skew_s: how wrong the node's own wall clock is.

    Attributes:
        alive: False: its process is dead. reaches: False: the API cannot be reached from here, though the engine may be.
        short: its machine runs out of memory.
        fenced: attempts that it has stopped. evicted: those that it has stopped alone for the machine's sake.
    """

    def __init__(
        self, kube: FakeKube, engine: FakeEngine, clock: Clock, node_id: str, *, fence_s: float, skew_s: float = 0.0
    ) -> None:
        self._kube, self._engine, self._clock, self.node_id = kube, engine, clock, node_id
        self._fence_s, self._skew = fence_s, timedelta(seconds=skew_s)
        self.alive = self.reaches = True
        self.short = False
        self.fenced: set[str] = set()
        self.evicted: set[str] = set()
        self._plea: tuple[str, float, frozenset[str]] | None = None
        self._quiet_until = float("-inf")
        self._told_plea: Object | None = None
        self._renewed_at = float("inf")  # a node that was never heard promises nothing
        self._tried_at = self._tell_from = float("-inf")
        self._records: dict[str, Object] = {}
        self._told: list[Object] | None = None
        self._told_uid, self._same_until = "", 0.0
        engine.on_sleep.append(self._woken)
        engine.on_run.append(self._started)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.step()
            await self._clock.sleep(STEP_S)

    def step(self) -> None:
        """Everything that is due now."""
        if not self.alive or not self._engine.awake(self.node_id):
            return
        now = self._clock.boot_time()
        if self._isolated(now):
            self._fence(now)
        if now - self._tried_at >= RENEW_S and not (self._isolated(now) and self._fenced_run()):
            self._tried_at = now
            self._renew(now)
        self._look()
        self._relieve(now)
        if now >= self._tell_from or self._plea_shown() != self._told_plea:
            self._tell(now)

    # --- the fence ---

    def _isolated(self, now: float) -> bool:
        return now - self._renewed_at >= self._fence_s

    def _woken(self, node_id: str, asleep: bool) -> None:
        if node_id == self.node_id and not asleep and self.alive:
            now = self._clock.boot_time()
            self._look()
            if self._isolated(now):
                self._fence(now)

    def _started(self, interval: Interval) -> None:
        """Its Docker has started something: not while it is cut off."""
        now = self._clock.boot_time()
        if interval.node_id == self.node_id and interval.ended is None and self.alive and self._isolated(now):
            for work, seen in self._engine.containers(self.node_id):
                if seen.name == interval.name and work.fence:
                    self._stop(work, 0.0)

    def _fence(self, now: float) -> None:
        for work, interval in self._engine.containers(self.node_id):
            if interval.ended is None and work.fence and (interval.name not in self.fenced or self._late(work, now)):
                self._stop(work, self._renewed_at + self._fence_s + min(work.grace_s, MOST_GRACE_S) - now)

    def _fenced_run(self) -> bool:
        """Something that must not run twice still runs: until it has ended the API is not called."""
        return any(interval.ended is None and work.fence for work, interval in self._engine.containers(self.node_id))

    def _late(self, work: Workload, now: float) -> bool:
        return now >= self._renewed_at + self._fence_s + min(work.grace_s, MOST_GRACE_S)

    def _stop(self, work: Workload, grace_s: float) -> None:
        self.fenced.add(work.name)
        self._engine.kill(work.name, max(0.0, grace_s))

    # --- when memory is short ---

    def _relieve(self, now: float) -> None:
        running = {work.name: work for work, seen in self._engine.containers(self.node_id) if seen.ended is None}
        ending = any(self._engine.stopping(name) for name in running)
        if self._plea is not None:
            name, asked_at, beside = self._plea
            answered = ending or not beside <= running.keys()
            if self.short and not answered and now - asked_at >= ASK_S:
                self.evicted.add(name)
                self._engine.kill(name, min(EVICTION_GRACE_S, running[name].grace_s))
                answered = True
            if answered:
                self._quiet_until = now + PAUSE_S
            if answered or not self.short:
                self._plea = None
        elif self.short and running and not ending and now >= self._quiet_until:
            self._plea = (min(running, key=lambda name: (running[name].priority, name)), now, frozenset(running))

    def _plea_shown(self) -> Object | None:
        if self._plea is None:
            return None
        name, asked_at, _ = self._plea
        asked = self._clock.now() - timedelta(seconds=self._clock.boot_time() - asked_at) + self._skew
        return {"id": name, "requestedAt": format_time(asked), "message": "hardly any memory was left"}

    # --- what it tells ---

    def _node(self) -> Object | None:
        """Its SwarmNode."""
        for node in self._kube.view(SWARM_NODE):
            if any(engine["id"] == self.node_id for engine in (node.get("status") or {}).get("engines") or ()):
                return node
        return None

    def _name(self) -> str | None:
        node = self._node()
        return None if node is None else str(node["metadata"]["name"])

    def _online(self) -> bool:
        return self.reaches and self._engine.connected(self.node_id) and not self._kube.down

    def _renew(self, now: float) -> None:
        name = self._name() if self._online() else None
        if name is None:
            return
        spec = {
            "holderIdentity": f"boot-{self._engine.boot(self.node_id)}-of-{self.node_id}",
            "leaseDurationSeconds": math.ceil(self._fence_s),
            "renewTime": format_micro_time(self._clock.now() + self._skew),
        }  # fmt: skip
        if self._kube.peek(LEASE, name, LEASES) is None:
            self._kube.add(LEASE, {"metadata": {"name": name, "namespace": LEASES}, "spec": spec})
        else:
            self._kube.edit(LEASE, name, LEASES, {"spec": spec})
        self._renewed_at = now

    def _look(self) -> None:
        for work, interval in self._engine.containers(self.node_id):
            record: Object = {"id": work.name, "state": "Running", "startedAt": format_time(interval.started + self._skew)}
            if interval.ended is not None:
                record |= {"state": "Exited", "finishedAt": format_time(interval.ended + self._skew)}
                reason = "Fenced" if work.name in self.fenced else "Evicted" if work.name in self.evicted else ""
                record |= {"exitCode": interval.exit_code, "reason": reason, "toldToEnd": self._engine.told_to_end(work.name)}
                record |= {"peakMemory": format_memory(interval.peak_bytes), "cpuSeconds": 1.5}
            self._records[work.name] = record

    def _tell(self, now: float) -> None:
        records = [self._records[name] for name in sorted(self._records)][-256:]
        plea = self._plea_shown()
        self._forget_another_node(now)
        if records == self._told and plea == self._told_plea:
            return
        node = self._node() if self._online() else None
        if node is None:
            self._tell_from = now + RETRY_S
            return
        name, self._told_uid = str(node["metadata"]["name"]), str(node["metadata"]["uid"])
        self._kube.edit(SWARM_NODE, name, None, {"status": {"attempts": records, "eviction": plea}}, status=True)
        self._told, self._told_plea, self._tell_from = records, plea, now + TELL_S

    def _forget_another_node(self, now: float) -> None:
        """What was told counts for nothing where its SwarmNode was removed since, and made anew."""
        if now < self._same_until or not self._online():
            return
        self._same_until = now + SAME_NODE_S
        node = self._node()
        if node is not None and node["metadata"]["uid"] != self._told_uid:
            self._told = None
