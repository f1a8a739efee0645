"""From a snapshot of the cache, through one scheduling cycle, to facts for the executor.

Woken by every change that a cycle could see; changes that come together share one cycle. What the cycle places is assumed in the
cache at once and offered as `Bound`; whom it preempts counts as being stopped at once and is offered as `Preempt`. What it leaves
is told to the tasks as `Unplaced`, but sparingly: a place in the queue is news for a person, and ten thousand waiting tasks must
not mean ten thousand writes a second. Decides nothing itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from swarmtask.controllers.cache import Cache
from swarmtask.controllers.executor import Executor
from swarmtask.controllers.node_rules import NodeRules
from swarmtask.controllers.single_gpus import given
from swarmtask.controllers.snapshots import EngineReady, still_takes, take_snapshot
from swarmtask.controllers.surroundings import Surroundings
from swarmtask.controllers.waiting import Bell
from swarmtask.lifecycle.messages import Bound, Preempt, Unplaced
from swarmtask.scheduler.backlog import WHOLE, Cut
from swarmtask.scheduler.cycle import run_cycle
from swarmtask.scheduler.estimates import ESTIMATED, Estimates, estimate_starts
from swarmtask.scheduler.model import Binding, CycleResult, Preemption, Refusal, Snapshot, TaskKey
from swarmtask.scheduler.reach import Reach

logger = logging.getLogger(__name__)

REFUSALS_PER_S = 100
"""At most so many tasks are told in one second why they wait."""
POSITIONS_PER_STEP = 20
"""Per so many places in the queue, news about the place is written that many times more seldom."""
HEAD_START_S = 0.01
"""What starts is written before the others are told why they wait: so much earlier."""
DRIFT_S, DRIFT_SHARE = 10.0, 0.1
"""An estimate that moves by less than either is no news."""
QUIET_S = 3600.0
"""Where nothing happens although it was expected, estimates are looked at again after this at the latest."""
AGING_S = 30.0
"""Where waiting tasks age there is a cycle so often at least: by waiting alone one comes before another that a node is kept for."""


@dataclass(frozen=True, slots=True)
class Decided:
    """One cycle that has been acted on: what it saw, what it said, and who is to be told why it waits."""

    snapshot: Snapshot
    result: CycleResult
    refusals: Sequence[Refusal]


class Scheduling:
    """See the module.

    Args:
        engine_ready: does this engine offer this node for work right now?
        rules: when nodes take work at all.

    Attributes:
        bell: ring it when something has changed.
        cycles: how many cycles have run.
    """

    def __init__(self, around: Surroundings, cache: Cache, executor: Executor, engine_ready: EngineReady, rules: NodeRules) -> None:
        self._cache, self._executor, self._settings, self._clock = cache, executor, around.settings, around.clock
        self._engine_ready, self._rules = engine_ready, rules
        self.bell = Bell(around.clock)
        self.boot_id: Callable[[str], str] = lambda node: ""
        """The boot of a SwarmNode that has an agent; empty: it has none."""
        self.cycles = 0
        self.first_cycle = asyncio.Event()
        self._beyond_from = 0
        self._estimates = Estimates()
        self._estimate_again_at = float("-inf")
        self._said: dict[TaskKey, tuple[int, str, str, float | None]] = {}
        """What each waiting task was told last, stored by now or not."""
        self._refusals = RefusalBudget(around.settings.status_refresh_s)

    @property
    def remembered(self) -> int:
        """Tasks of which it is remembered what they were told, or when."""
        return max(len(self._said), len(self._refusals))

    async def run(self) -> None:
        """Until cancelled. `bell` must be rung once to begin."""
        timeout_s: float | None = None
        took_s, quiet_s = 0.0, DRIFT_S
        while True:
            rung = await self.bell.wait(timeout_s)
            # Where nothing happens although it was expected, estimates are looked at again, ever more seldom.
            quiet_s = DRIFT_S if rung else min(2 * quiet_s, QUIET_S)
            # Changes within the gap share a cycle; a cycle over very many tasks leaves at least two thirds of the time to others.
            await self._clock.sleep(max(self._settings.cycle_gap_s, 2 * took_s))
            began = self._clock.monotonic()
            decided = self.decide()
            took_s = self._clock.monotonic() - began
            if decided.result.bindings and decided.refusals:
                await self._clock.sleep(HEAD_START_S)
            began = self._clock.monotonic()
            deferred = self.tell(decided)
            took_s += self._clock.monotonic() - began
            timeout_s = self._settings.status_refresh_s if deferred else None
            if not deferred and self._estimates.starts:
                ahead_s = min(self._estimates.starts.values()) - self._clock.now().timestamp()
                timeout_s = max(0.0, ahead_s) + quiet_s
            if self._cache.next_front_at is not None:
                ahead_s = max(0.0, self._cache.next_front_at - self._clock.now().timestamp())
                timeout_s = ahead_s if timeout_s is None else min(ahead_s, timeout_s)
            ages_s = self._ages_s(decided.snapshot)
            if ages_s is not None:
                timeout_s = ages_s if timeout_s is None else min(ages_s, timeout_s)

    def _ages_s(self, snapshot: Snapshot) -> float | None:
        """After how many seconds tasks that wait have gained so much that another cycle may decide otherwise; None: never."""
        aging = {key: queue.aging_s for key, queue in snapshot.queues.items() if queue.aging_s is not None}
        waiting = {task.queue for task in snapshot.pending} if aging else set()
        fastest = min((aging_s for key, aging_s in aging.items() if key in waiting), default=None)
        return None if fastest is None else max(self._settings.status_refresh_s, min(fastest, AGING_S))

    def decide(self) -> Decided:
        """One cycle: what it places and whom it preempts is handed to the executor."""
        snapshot = take_snapshot(self._cache, self._engine_ready, self._clock.now().timestamp(), rules=self._rules)
        result = run_cycle(snapshot)
        refusals = result.refusals
        if snapshot.cut is not None:
            result = snapshot.cut.settle(result)
            refusals = [*result.refusals, *self._beyond(snapshot.cut, result)]
        self.cycles += 1
        for binding in result.bindings:
            self._bind(binding)
        for preemption in result.preemptions:
            self._preempt(preemption)
        if not result.complete:
            self.bell.ring()
        return Decided(snapshot, result, refusals)

    def still_takes(self, key: TaskKey, engine: str) -> bool:
        """Whether the node of an assumed task still lets it start there by way of this engine."""
        return still_takes(self._cache, key, engine, self._engine_ready, self._clock.now().timestamp(), rules=self._rules)

    def tell(self, decided: Decided) -> bool:
        """Why the others wait. True when some task has not been told yet."""
        snapshot, result = decided.snapshot, decided.result
        deferred = self._tell(decided.refusals, snapshot) if self._estimate(snapshot, result) else True
        self.first_cycle.set()
        return deferred or (snapshot.cut is not None and bool(snapshot.cut.ends))

    def _beyond(self, cut: Cut, result: CycleResult) -> list[Refusal]:
        """The next ones of those that the cycle did not look at, so that each of them is told sooner or later."""
        if not result.complete or not cut.hidden:
            return []
        start = self._beyond_from % cut.hidden
        found = cut.beyond(result, start, self._refusals.left(self._clock.monotonic()))
        self._beyond_from = start + len(found)
        return found

    def _estimate(self, snapshot: Snapshot, result: CycleResult) -> bool:
        """False when it is too early for that: estimating takes a tenth of the time at most, and what is told is told with it."""
        began = self._clock.monotonic()
        if began < self._estimate_again_at or not result.complete:
            return False
        # Of a backlog that was cut only these are known to stand one behind the other.
        cut = snapshot.cut is not None and bool(snapshot.cut.ends)
        self._estimates = estimate_starts(snapshot, result, max(0, WHOLE - len(result.bindings)) if cut else ESTIMATED)
        self._estimate_again_at = began + 11 * (self._clock.monotonic() - began)
        return True

    def _bind(self, binding: Binding) -> None:
        node = self._cache.nodes.get(binding.node)
        engine = next((item for item in node.status.engines if item.name == binding.engine), None) if node else None
        if node is None or engine is None:
            return
        devices = given(node, binding.gpus)
        if not self._cache.assume(binding.task, binding.node, binding.gpus, tuple(gpu.uuid for gpu in devices)):
            return
        self._refusals.forget(binding.task.key)
        entry = self._cache.tasks.get(binding.task.key)
        memory = None if entry is None else entry.memory
        boot_id = self.boot_id(binding.node)
        bound = Bound(binding.node, binding.engine, engine.id, binding.gpus, devices, memory=memory, boot_id=boot_id)
        self._executor.offer(binding.task.key, binding.task.uid, bound)

    def _preempt(self, preemption: Preemption) -> None:
        victim = preemption.victim
        if self._cache.assume_preempted(victim.key, victim.attempt, preemption.by.key):
            self._executor.offer(victim.key, victim.uid, Preempt(victim.attempt, preemption.by.key))

    def _tell(self, refusals: Sequence[Refusal], snapshot: Snapshot) -> bool:
        now, wall, starts = self._clock.monotonic(), snapshot.now, self._estimates.starts
        reach = Reach(snapshot)
        lost: dict[TaskKey, str] = {}
        if len(self._said) > 2 * len(self._cache.backlog) + 100:
            self._said = {key: said for key, said in self._said.items() if key in self._cache.backlog}
        if len(self._refusals) > 2 * len(self._cache.backlog) + 100:
            self._refusals.retain(self._cache.backlog)
        news = []
        for refusal in refusals:
            entry = self._cache.tasks.get(refusal.task.key)
            status = entry.task.status if entry is not None else None
            said = self._said.get(refusal.task.key)
            told = (refusal.position, refusal.reason, refusal.message)
            start = starts.get(refusal.task.key)
            if entry is not None and entry.memory is not None and entry.memory.basis == "Ladder":
                lost[refusal.task.key] = reach.lacks(refusal.task)
            # What is stored may be about to be overwritten by what was said before and is still being written.
            if status is None or (
                not lost.get(refusal.task.key)
                and (status.queue_position, status.reason, status.message) == told
                and not moved(_seconds(status.estimated_start_time), start, wall)
                and (said is None or (said[:3] == told and not moved(said[3], start, wall)))
            ):
                continue
            # A task that knows no reason yet comes first, whatever its place.
            news.append((status.reason is not None, refusal.position, refusal))
        news.sort(key=lambda item: item[:2])
        chosen = self._refusals.choose([refusal for _, _, refusal in news], now)
        for refusal in chosen:
            start = starts.get(refusal.task.key)
            self._said[refusal.task.key] = (refusal.position, refusal.reason, refusal.message, start)
            unplaced = Unplaced(
                refusal.position,
                refusal.reason,
                refusal.message,
                None if start is None else datetime.fromtimestamp(start, UTC),
                self._estimates.why_unknown(refusal),
                self._cache.tasks[refusal.task.key].memory,
                lost.get(refusal.task.key, ""),
            )
            self._executor.offer(refusal.task.key, refusal.task.uid, unplaced)
        return len(chosen) < len(news)


def moved(old: float | None, new: float | None, now: float) -> bool:
    """Whether another estimate is news: it is known, or not known, now; or it is off by more than ten seconds and more than a tenth
    of the time until then. All in seconds since the epoch."""
    if old is None or new is None:
        return old is not new
    return abs(new - old) > max(DRIFT_S, DRIFT_SHARE * (new - now))


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


class RefusalBudget:
    """Which of the waiting tasks are told now.

    One task is told at most once in `refresh_s`, the more seldom the further back it waits, and all together never more than
    REFUSALS_PER_S in a second.
    """

    def __init__(self, refresh_s: float) -> None:
        self._refresh_s = refresh_s
        self._told: dict[TaskKey, float] = {}
        self._tokens = float(REFUSALS_PER_S)
        self._filled_at = float("-inf")

    def choose(self, refusals: Iterable[Refusal], now: float) -> list[Refusal]:
        """Those that may be written, in the given order. `now`: monotonic seconds."""
        self._fill(now)
        chosen = []
        for refusal in refusals:
            if self._tokens < 1:
                break
            pause_s = self._refresh_s * (1 + refusal.position // POSITIONS_PER_STEP)
            if now - self._told.get(refusal.task.key, float("-inf")) < pause_s:
                continue
            self._tokens -= 1
            self._told[refusal.task.key] = now
            chosen.append(refusal)
        return chosen

    def left(self, now: float) -> int:
        """How many may be told now at most."""
        self._fill(now)
        return int(self._tokens)

    def _fill(self, now: float) -> None:
        self._tokens = min(REFUSALS_PER_S, self._tokens + max(0.0, now - self._filled_at) * REFUSALS_PER_S)
        self._filled_at = now

    def __len__(self) -> int:
        """Tasks that are remembered."""
        return len(self._told)

    def forget(self, key: TaskKey) -> None:
        self._told.pop(key, None)

    def retain(self, keys: Container[TaskKey]) -> None:
        """Forget all others: those that were cancelled, deleted or expired while they waited."""
        self._told = {key: told for key, told in self._told.items() if key in keys}
