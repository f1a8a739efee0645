"""One run: the real operator in a world that a seed shakes.

`World` holds the virtual loop, the API, the engine and the checker, starts and kills operators, and tells the checker everything.
What happens to it is decided by `happenings`; how it must end, by `verdict`. One seed and one workload are one run, the same on
every machine; whatever is random is drawn from sources named here.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from contextvars import Context
from datetime import UTC, datetime, timedelta
from typing import Any

from swarmtask.controllers import crashpoints
from swarmtask.controllers.operator import Operator
from swarmtask.controllers.sizes import memory_template_of
from swarmtask.engines.base import EngineNode, NodeState
from swarmtask.kube import Object
from swarmtask.lifecycle.members import member_name
from swarmtask.lifecycle.messages import Reason
from swarmtask.resources import units
from swarmtask.resources.kinds import EVENT, LEASE, SWARM_NODE, SWARM_QUEUE, SWARM_TASK, Kind
from swarmtask.resources.node import SwarmNode
from swarmtask.resources.task import Attempt, AttemptState, Phase, SwarmTask
from swarmtask.resources.tenure import Tenure
from swarmtask.scheduler.model import Amounts, TaskKey
from swarmtask.settings import OperatorSettings
from tests.checker.checker import Checker
from tests.checker.violation import digits_of, owner_digits
from tests.fakes.agent import LEASES, FakeAgent
from tests.fakes.engine import FakeEngine, Interval
from tests.fakes.kube import FakeKube
from tests.simulation.chances import Chances
from tests.simulation.drains import Drains
from tests.simulation.flaky import FlakyEngine, FlakyKube
from tests.simulation.fronts import Fronts
from tests.simulation.limits import Limits
from tests.simulation.loop import GENERATION, SimLoop
from tests.simulation.memories import PROMPT_S, Memories
from tests.simulation.preemptions import Preemptions
from tests.simulation.workload import Birth, Workload

START = datetime(2026, 1, 1, tzinfo=UTC)
GIB = 2**30
FENCE_S = 12.0
AGENTS_SHARE = 0.6
KNOWN_S = 1.5
"""An operator that is left in peace has acted within this on what it has read."""
TAUGHT_S = PROMPT_S + 1.0
"""What it has known for so long was known when it decided what it stores now."""
CALM_S = 35.0
"""After the last fault nothing of it is on its way any more."""
UNPROVEN = "counted as stopped without proof"
NOT_WAITED_FOR = (Reason.CANCELLED, Reason.START_DEADLINE, Reason.ACTIVE_DEADLINE)
"""Who is stopped for one of these runs again only after a retry by a person, or by the word of its task."""
STOPPED = (Reason.DRAINED, Reason.PREEMPTED, Reason.EVICTED, Reason.ATTEMPT_DELETED, Reason.SUSPENDED)
"""Who was to stop for one of these runs again."""
_ATTEMPT = re.compile(r"st-[0-9a-f]{16}-\d+")


class Crash(BaseException):
    """Unwinds an operator that has just been killed at an armed point; nothing catches it."""


class WallClock:
    """Virtual time; `ahead_s` is how wrong its wall time is."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self.ahead_s = 0.0

    def now(self) -> datetime:
        return START + timedelta(seconds=self._loop.time() + self.ahead_s)

    def monotonic(self) -> float:
        return self._loop.time()

    def boot_time(self) -> float:
        return self._loop.time()

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)


class World:
    """See the module.

    Attributes:
        haste: so many times as often as `chances` says something happens.
        failures: what was found wrong, oldest first; the run ends at the first.
        restores: what ends every condition that is not for ever (a held watch, a lost node); called when faults end.
    """

    def __init__(
        self,
        seed: int,
        workload: Workload,
        births: Collection[Birth],
        source: Callable[[str], random.Random],
        *,
        without: Collection[str] = (),
        haste: float = 1.0,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        self.source, self.workload, self.births, self.haste = source, workload, births, haste
        self.loop = SimLoop(source("order"))
        self.clock, self.true_clock = WallClock(self.loop), WallClock(self.loop)
        self.chances = Chances(source("faults"), workload.faults, without)
        self.failures: list[str] = []
        self.restores: dict[str, Callable[[], None]] = {}
        self.operators = 0
        self.commits = 0
        self._trace, self._digest = trace, hashlib.sha256()
        self._verdict: asyncio.Future[None] = self.loop.create_future()
        self._asked_to_delete: set[str] = set()
        self.excused: set[str] = set()
        """Attempts whose overlaps are nobody's fault: they could not be stopped with proof, or somebody removed them by hand while
        a submit of them was under way."""
        self._bound_at: dict[str, int] = {}
        """Attempt -> the generation of its task when it was bound."""
        self._bound_under: dict[str, str] = {}
        """Attempt -> `nodeLoss.replace` when it was bound: only under afterFence its container was made to be fenced."""
        self._over: set[str] = set()
        """Attempts that were stored as over."""
        self._edited: set[str] = set()
        """Attempts whose task was edited after they had been bound."""
        self._unseen: set[str] = set()
        """Attempts that nobody could see for a while, or that were given up so."""
        self._latest_wall = START
        self._runs_changed = False
        self._known: dict[str, SwarmTask] = {}
        """UID -> the newest version of a task, read."""
        self._won: dict[tuple[str, str], str] = {}
        """(UID of an array, name of a run) -> UID of the run that succeeded."""
        self._attempts: dict[str, int] = {}
        """Digits of a task's UID -> its highest attempt number so far."""
        self.agents: dict[str, FakeAgent] = {}
        """Node ID -> its agent. Some worlds have one on every node, the others have none."""
        by_seed = source("agents").random() < AGENTS_SHARE
        self._has_agents = by_seed if workload.agents is None else workload.agents
        self._policies = source("policies")
        self.peace_at: float | None = None
        self._done_since: dict[tuple[int, str], float] = {}
        """(Operator, attempt) -> when that operator knew from its node that it had completed."""
        self.adopted: set[str] = set()
        """Orphans that were put onto the engine behind the operator's back."""
        self.died_at: Counter[str] = Counter()
        """Crash point -> how often an operator was killed there."""
        self.exit_codes: defaultdict[str, set[int | None]] = defaultdict(set)
        """Attempt -> how it ended. More than one only where it was removed by hand while a submit of it was under way: the checker
        allows no other second run."""

        self.checker = Checker(cleanup_s=1e6, orphan_s=1e6)  # how soon it must be tidy, `verdict` says: faults may last
        self.limits = Limits(self._tell_limits)
        self._preemptions = Preemptions(
            [name for name, spec in workload.queues.items() if spec.get("preemption") == "LowerPriority"]
        )
        self._drains = Drains()
        self._memories = Memories(self.clock.now, self._taught)
        self._auto = any("auto" in group.memory for group in workload.tasks)
        self._taught_since: dict[tuple[int, str], float] = {}
        self._decided_s: dict[tuple[int, TaskKey], float] = {}
        """When this operator decided on a placement that is being written: it may wait for a write before it that hangs."""
        """(Operator, template) -> when that operator knew first what a task of that template had used."""
        self._fronts = Fronts(self._offers) if not self.chances.allowed else None
        """Only where nothing goes wrong: elsewhere the operator may not have heard of the move."""
        self.kube = FakeKube(self.clock, seed=seed)
        self.kube.on_commit.append(self._committed)
        self.engine = FakeEngine(self.true_clock)
        self.engine.on_run.append(self._ran)
        self.engine.on_sleep.append(self._slept)
        self.node_ids: list[str] = []
        for group in workload.nodes:
            for _ in range(group.count):
                self.add_node(f"n{len(self.node_ids) + 1}", group.cpu_milli, group.memory_gib, group.gpus)
        self.flaky_engine = FlakyEngine(self.engine, self.chances, self.clock, self._touched)
        # Few members, so that some are deleted; a short fence, so that losses outlast it.
        self.settings = OperatorSettings(keep_array_members=1, time_zone="UTC", fence_s=FENCE_S, fence_margin_s=3.0)
        self.operator: Operator | None = None
        self.flaky_kube = FlakyKube(self.kube, self.chances, self.clock)
        for name, spec in workload.queues.items():
            self.make_queue(name, spec)

    # --- the run ---

    def run(self, story: Callable[[], Any]) -> None:
        """Let `story` happen; returns at its end, or at the first failure."""
        logger = logging.getLogger("swarmtask")
        handler, before = _Listener(self), (logger.level, logger.propagate)
        logger.addHandler(handler)
        logger.setLevel(logging.ERROR if self._trace is None else logging.INFO)
        logger.propagate = False
        self.loop.set_exception_handler(self._unhandled)
        try:
            main = self.loop.create_task(story())
            main.add_done_callback(self._ended)
            self.loop.run_until_complete(self._verdict)
        finally:
            crashpoints.arm("")
            self._clear()
            logger.removeHandler(handler)
            logger.setLevel(before[0])
            logger.propagate = before[1]

    def _ended(self, main: asyncio.Task[None]) -> None:
        if main.cancelled():
            return
        error = main.exception()
        if error is not None and not self._verdict.done():
            self._verdict.set_exception(error)
        elif not self._verdict.done():
            self._verdict.set_result(None)

    def _clear(self) -> None:
        """Leave nothing behind, whatever the run was doing."""
        if self.operator is not None:
            self.loop.kill(self.operators)
        self.loop.bury_the_dead()
        self.loop.set_exception_handler(lambda _loop, _context: None)
        left = self.loop.living()
        for task in left:
            task.cancel()
        if left:
            self.loop.run_until_complete(asyncio.wait(left))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    def fail(self, what: str, subject: str, evidence: str) -> None:
        """Something must not be so: the run ends here."""
        self.failures.append(f"{what} {subject} at {self.loop.time():.3f}s: {evidence}")
        self.note(f"!!! {self.failures[-1]}")
        if not self._verdict.done():
            self._verdict.set_result(None)

    def note(self, text: str) -> None:
        """One line of what happened, part of the run's fingerprint."""
        line = f"{self.loop.time():10.4f} {text}"
        self._digest.update(line.encode())
        if self._trace is not None:
            self._trace(line)

    @property
    def fingerprint(self) -> str:
        """Equal for two runs in which the same things happened at the same moments."""
        return self._digest.hexdigest()[:16]

    # --- operators ---

    def start_operator(self) -> None:
        """A fresh one, as after the start of its process."""
        assert self.operator is None
        self.operators += 1
        number = self.operators
        self.limits.restarted()
        kube = self.flaky_kube = FlakyKube(self.kube.under(Tenure(f"operator-{number}")), self.chances, self.clock)
        operator = self.operator = Operator(kube, [self.flaky_engine], self.settings, self.clock, self.source(f"operator {number}"))
        stop, ready = asyncio.Event(), asyncio.Event()
        task = self.loop.begin(number, lambda: operator.run(stop=stop, ready=ready))
        task.add_done_callback(lambda done: self._operator_ended(number, done))
        self.note(f"operator {number} starts")

    def _operator_ended(self, number: int, done: asyncio.Task[None]) -> None:
        if number == self.operators and self.operator is not None:
            error = None if done.cancelled() else done.exception()
            self.fail("BUG", f"operator {number}", f"has ended by itself: {error!r}")

    def kill_operator(self, why: str, pause_s: float) -> None:
        """At once, wherever it is; another one starts after the pause. Safe from within the operator."""
        if self.operator is None:
            return
        number = self.operators
        self.operator = None
        self.note(f"operator {number} is killed: {why}")
        self.loop.kill(number)
        outside = Context()  # this may be called from within the operator, whose own callbacks are dead by now
        self.loop.call_soon(self.loop.bury, number, context=outside)
        self.loop.call_later(pause_s, self._restart, context=outside)

    def _restart(self) -> None:
        if self.operator is None and not self._verdict.done():
            self.start_operator()

    def arm(self, point: str, pause_s: float) -> None:
        """Kill the operator when it reaches this point."""

        def die(reached: str) -> None:
            crashpoints.arm("")
            self.died_at[reached] += 1
            self.kill_operator(reached, pause_s)
            raise Crash(reached)

        crashpoints.arm(point, die)
        self.note(f"armed {point}")

    # --- what people and machines do ---

    def set_clock(self, by_s: float) -> None:
        """The operator's wall clock is set. A time that it has shown has been, also when nothing was written at that moment."""
        self._latest_wall = max(self._latest_wall, self.clock.now())
        self.clock.ahead_s += by_s
        self.note(f"the wall clock is set by {by_s:+.1f} s")

    def add_node(self, hostname: str, cpu_milli: int, memory_gib: int, gpus: int) -> None:
        """A machine joins the engine; one that was there before gets another ID, as in Swarm."""
        number = sum(known.partition(".")[0] == hostname for known in self.engine._nodes)
        node_id = hostname if not number else f"{hostname}.{number}"
        self.engine.add_node(
            EngineNode(
                id=node_id, hostname=hostname, state=NodeState.READY, cpu_milli=cpu_milli, memory_bytes=memory_gib * GIB,
                gpus=gpus, arch="x86_64", os="linux", engine_version="fake",
            )
        )  # fmt: skip
        self.node_ids.append(node_id)
        if self._has_agents:
            agent = FakeAgent(
                self.kube, self.engine, self.true_clock, node_id, fence_s=FENCE_S, skew_s=self._policies.uniform(-99, 99)
            )
            self.agents[node_id] = agent
            self.loop.create_task(agent.run(), context=Context())

    def make_queue(self, name: str, spec: Object) -> None:
        body = {"apiVersion": SWARM_QUEUE.api_version, "kind": "SwarmQueue", "metadata": {"name": name, "namespace": "default"}}
        self.kube.add(SWARM_QUEUE, body | {"spec": spec})

    def create_task(self, birth: Birth) -> None:
        if self.kube.peek(SWARM_TASK, birth.name, "default") is not None:
            return
        self.engine.script(birth.name, *birth.outcomes)
        for index, outcomes in enumerate(birth.members):
            self.engine.script(member_name(birth.name, index), *outcomes)
        spec = (self._node_loss() if self._has_agents else {}) | birth.spec
        body = {"metadata": {"name": birth.name, "namespace": "default"}, "spec": spec}
        created = self.kube.add(SWARM_TASK, body)
        self.checker.acknowledged_create("default", birth.name, created["metadata"]["uid"], self.true_clock.now())

    def _node_loss(self) -> Object:
        replace = self._policies.choices(("afterFence", "never", "afterLost"), (7, 1, 2))[0]
        return {"nodeLoss": {"replace": replace, "graceSeconds": self._policies.choice((0, 3, 10))}}

    def fenced(self, attempt: str) -> bool:
        """Its node has stopped it, or tried to, because it could not reach the API."""
        return any(attempt in agent.fenced for agent in self.agents.values())

    def excuse_node(self, node_id: str) -> None:
        """Nothing fences what runs there: its agent is dead. Also not what was removed while the node could not hear of it."""
        runs = self.engine._runs.items()
        self.excused |= {name for name, run in runs if run.workload.node_id == node_id}
        self.excused |= {seen.name for _, seen in self.engine.containers(node_id) if seen.ended is None}

    def delete_task(self, obj: Object) -> None:
        uid = obj["metadata"]["uid"]
        self._asked_to_delete.add(uid)
        self.checker.delete_requested(uid, self.true_clock.now())
        self.kube.remove(SWARM_TASK, obj["metadata"]["name"], obj["metadata"]["namespace"])

    # --- telling the checker ---

    def _committed(self, kind: Kind, obj: Object, gone: bool) -> None:
        if kind in (EVENT, LEASE):
            return
        self.commits += 1
        now, metadata = self.true_clock.now(), obj["metadata"]
        self._latest_wall = max(self._latest_wall, self.clock.now())
        self.checker.resource_version_seen(metadata["resourceVersion"], now)
        self.note(f"{kind.kind} {metadata['name']} {metadata['resourceVersion']} {'gone' if gone else _summary(kind, obj)}")
        if kind is SWARM_TASK:
            self._task_committed(obj, gone, now)
        elif kind is SWARM_QUEUE:
            # Of what is gone nothing starts, it limits nobody else, and its other bounds hold until it says something else.
            self.limits.changed(kind, obj | {"spec": (obj.get("spec") or {}) | {"maxRunning": 0, "limits": {}}} if gone else obj)
        elif kind is SWARM_NODE and not gone:
            self._drains.node_seen(obj)
            self.limits.changed(kind, obj)
        self.look()

    def _task_committed(self, obj: Object, gone: bool, now: datetime) -> None:
        uid = obj["metadata"]["uid"]
        task = self._read(obj)
        if task.status.attempt > self._attempts.get(digits_of(uid), 0):
            self._check_repeated(task)
        self._attempts[digits_of(uid)] = max(task.status.attempt, self._attempts.get(digits_of(uid), 0))
        for attempt in task.status.attempts:
            self._bound_under.setdefault(attempt.id, task.spec.node_loss.replace)
            if not attempt.live and attempt.id not in self._over:
                self._over.add(attempt.id)
                if self._may_overlap(task, attempt):  # by what its task said then: an edit that comes later excuses nothing
                    self.excused.add(attempt.id)
            if self._bound_at.setdefault(attempt.id, task.metadata.generation) != task.metadata.generation:
                self._edited.add(attempt.id)
            if attempt.state is AttemptState.SUCCEEDED and self.fenced(attempt.id):
                self.fail("FENCE", task.metadata.name, f"{attempt.id} is Succeeded, yet its node had stopped it")
            lost = task.status.phase is Phase.UNKNOWN and attempt.state is AttemptState.UNKNOWN
            if lost or (attempt.reason in (Reason.NODE_LOST, *STOPPED) and attempt.exit_code is None):
                self._unseen.add(attempt.id)
            # Nobody waits for the word of an agent about what no fence ends: docs/node-agent.md, "Eviction".
            evicted = attempt.fence is False and any(attempt.id in agent.evicted for agent in self.agents.values())
            polite = attempt.id in self._unseen and self.engine.cut_short(attempt.id) and not evicted
            if attempt.state is AttemptState.SUCCEEDED and polite:
                self.fail("POLITE", task.metadata.name, f"{attempt.id} is Succeeded, yet it had been told to end before it did")
        unjust = self._preemptions.seen(task)
        if unjust is not None:
            self.fail("PREEMPT", task.metadata.name, unjust)
        wrong = self._drains.seen(task)
        if wrong is not None:
            self.fail("DRAIN", task.metadata.name, wrong)
        wrong = self._memories.seen(task)
        if wrong is not None:
            self.fail("MEMORY", task.metadata.name, wrong)
        overtaken = self._fronts.seen(task, self.loop.time()) if self._fronts is not None and not gone else None
        if overtaken is not None:
            self.fail("FRONT", task.metadata.name, overtaken)
        owner = task.array_owner
        if owner is not None and not gone:
            self._check_index(owner.uid, task)
        if (gone or task.metadata.deletion_timestamp is not None) and uid not in self._asked_to_delete and owner is None:
            self._asked_to_delete.add(uid)
            done, ttl_s = task.status.completion_time, task.spec.ttl_seconds_after_finished
            if not task.finished or done is None or done + timedelta(seconds=ttl_s) > self._latest_wall:
                self.fail("I1", task.metadata.name, f"deleted by the operator in phase {task.status.phase}, before its time")
            self.checker.delete_requested(uid, now)
        if not gone:
            self.checker.task_seen(task, now)
            return
        self.checker.task_deleted(uid, now)
        held = {run.workload.name for run in self.engine._runs.values() if run.workload.task_uid == uid}
        for name in sorted(held - self.flaky_engine.late):
            self.fail("I6", task.metadata.name, f"is gone while the engine still holds {name}")

    def _may_overlap(self, task: SwarmTask, attempt: Attempt) -> bool:
        """By its own wish, or because it could not be stopped with proof and need not be waited for: a person or a deadline has
        ended it, or nothing fences it because its node's agent has never spoken. What was not made to be fenced is waited for as
        under never, whatever its task says by now. Never one that its engine has not shown: that one is waited for, and looked for
        before another one starts."""
        replace = task.spec.node_loss.replace
        if replace == "afterLost":
            return True
        if attempt.message is None or UNPROVEN not in attempt.message or not attempt.observed:
            return False
        if replace == "never" or self._bound_under[attempt.id] != "afterFence":
            return attempt.stop_reason in NOT_WAITED_FOR
        return self.kube.peek(LEASE, attempt.node, LEASES) is None

    def _check_repeated(self, task: SwarmTask) -> None:
        """Finished work is not run again by an operator that knows of it."""
        before = next((one for one in task.status.attempts if one.number == task.status.attempt - 1), None)
        since = None if before is None else self._done_since.get((self.operators, before.id))
        if before is None or since is None or self.peace_at is None or before.state is AttemptState.SUCCEEDED:
            return
        unseen = before.reason == Reason.NODE_LOST or (before.reason in STOPPED and before.exit_code is None)
        if self.loop.time() - max(since, self.peace_at + CALM_S) > KNOWN_S and unseen:
            self.fail("REPEAT", task.metadata.name, f"{before.id} had completed, and its node had told so")

    def _learn_what_is_done(self) -> None:
        if self.operator is None:
            return
        for node in self.operator.cache.nodes.values():
            for record in node.status.attempts:
                stopped = self.engine.told_to_end(record.id)  # a polite end is not one of its own
                if record.state == "Exited" and record.exit_code == 0 and not record.reason and not stopped:
                    self._done_since.setdefault((self.operators, record.id), self.loop.time())

    def _learn_what_is_taught(self) -> None:
        if self.operator is None or not self._auto:
            return
        cache, decided = self.operator.cache, self._decided_s
        assumed = [key for key in cache.tasks if cache.assumption(key) is not None]
        self._decided_s = {(self.operators, key): decided.get((self.operators, key), self.loop.time()) for key in assumed}
        for entry in cache.tasks.values():
            status, current = entry.task.status, entry.task.status.current
            done = status.phase is Phase.SUCCEEDED and current is not None and current.reason == Reason.COMPLETED
            if done and current is not None and current.peak_memory:
                self._taught_since.setdefault((self.operators, memory_template_of(entry.task)), self.loop.time())

    def _taught(self, task: SwarmTask) -> bool:
        since_s = self._taught_since.get((self.operators, memory_template_of(task)))
        decided_s = self._decided_s.get((self.operators, (task.metadata.namespace, task.metadata.name)), self.loop.time())
        return since_s is not None and decided_s - since_s > TAUGHT_S

    def _slept(self, node: str, asleep: bool) -> None:
        (self.checker.node_asleep if asleep else self.checker.node_awake)(node, self.true_clock.now())

    def _offers(self) -> dict[str, Amounts]:
        """What each node could give if nothing ran on it."""
        nodes = [SwarmNode.model_validate(obj) for obj in self.kube.view(SWARM_NODE)]
        offers = {node.metadata.name: node.status.allocatable for node in nodes}
        return {
            name: Amounts(units.cpu_milli(offer.cpu), units.memory_bytes(offer.memory), offer.gpu) for name, offer in offers.items()
        }

    def _check_index(self, array: str, task: SwarmTask) -> None:
        """I3: an index whose run has succeeded never runs again, unless a person deleted that run, or had retried it: what the
        array has recorded stays, so its success does not count."""
        slot, uid = (array, task.metadata.name), task.metadata.uid
        winner = self._won.get(slot)
        if task.status.phase is Phase.SUCCEEDED and task.status.observed_retry is None:
            self._won[slot] = uid
        elif winner not in (None, uid) and winner not in self._asked_to_delete and task.status.attempt:
            self.fail("I3", task.metadata.name, f"runs again after {winner} had succeeded")

    def tasks(self) -> list[SwarmTask]:
        """Every stored task, by name."""
        return [self._read(obj) for obj in self.kube.view(SWARM_TASK)]

    def _read(self, obj: Object) -> SwarmTask:
        """Each version is read once; nobody here changes what was read."""
        metadata = obj["metadata"]
        known = self._known.get(metadata["uid"])
        if known is None or known.metadata.resource_version != metadata["resourceVersion"]:
            known = self._known[metadata["uid"]] = SwarmTask.model_validate(obj)
        return known

    def _ran(self, interval: Interval) -> None:
        self._runs_changed = True
        if interval.ended is None:
            self.note(f"runs {interval.name} on {interval.node_id}")
            if interval.node_id in self.agents and not self.agents[interval.node_id].alive:
                self.excused.add(interval.name)  # nothing fences it
            self.checker.container_started(interval.node_id, interval.name, interval.started)
        else:
            self.note(f"ends {interval.name} with {interval.exit_code}")
            self.exit_codes[interval.name].add(interval.exit_code)
            self.checker.container_stopped(interval.node_id, interval.name, interval.ended)

    def _touched(self, verb: str, name: str) -> None:
        """I7: only what is ours is stopped or removed."""
        self.note(f"{verb} {name}")
        owner = owner_digits(name)
        known = self._attempts.get(owner[0], 0) if owner is not None else 0
        if name not in self.adopted and (owner is None or owner[1] > known):
            self.fail("I7", name, f"{verb} of something that was never ours")

    def _tell_limits(self, kind: Kind, obj: Object) -> None:
        if kind is SWARM_NODE:
            self.checker.node_seen(obj, self.true_clock.now())
        else:
            self.checker.queue_seen(obj, self.true_clock.now())

    def look(self) -> None:
        """Ask the checker, cheaply; after everything that has changed something."""
        if self.operator is not None:
            self.limits.look(self.operator.cache, self.flaky_kube.sent)
        found = self.checker.recorded()
        if found and not self.failures:
            self.fail(found[0].invariant, found[0].subject, found[0].evidence)

    def look_closely(self) -> None:
        """Ask the checker for what has to be computed too."""
        self.look()
        self._learn_what_is_done()
        self._learn_what_is_taught()
        if not self._runs_changed or self.failures:
            return
        self._runs_changed = False
        for violation in self.checker.violations():
            if violation.invariant == "I2" and self.excused & set(_ATTEMPT.findall(violation.evidence)):
                continue
            self.fail(violation.invariant, violation.subject, violation.evidence)
        for message in self.engine.unexpected:
            self.fail("I4", "engine", message)
        for name in sorted(self.engine.edited - self._edited):
            self.fail("I4", "engine", f"submit of {name} with another spec than before, though nobody edited its task")

    def _unhandled(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), Crash):
            self.fail("BUG", "asyncio", f"{context.get('message')}: {context.get('exception')!r}")

    def logged(self, record: logging.LogRecord) -> None:
        """An operator that meets something unexpected says so in its log, and goes on; here that is a finding."""
        if GENERATION.get() == 0:
            return  # a dead one is being unwound
        if self._trace is not None:
            self._trace(f"{self.loop.time():10.4f}   log: {record.getMessage()}")
        if record.exc_info or "by itself" in record.getMessage():
            words = logging.Formatter("%(message)s").format(record)
            self.fail("BUG", record.name, words)


class _Listener(logging.Handler):
    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        self._world.logged(record)


def _summary(kind: Kind, obj: Object) -> str:
    status = obj.get("status") or {}
    if kind is not SWARM_TASK:
        return f"{status.get('phase', '')} {obj.get('spec')}"
    attempts = status.get("attempts") or []
    newest = f"{attempts[-1]['number']} {attempts[-1]['state']} on {attempts[-1]['node']}" if attempts else "none"
    being_deleted = " deleting" if obj["metadata"].get("deletionTimestamp") else ""
    return f"{status.get('phase')} {status.get('reason')} attempt {newest}{being_deleted}"
