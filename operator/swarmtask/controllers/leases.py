"""The word of the nodes: their Leases, and what their agents tell of attempts, turned into events for the lifecycle.

One of it in an operator. It watches the Leases of the nodes for news, and reads all of them once a second as long as there are
any: only a complete read that succeeds proves that a node could have been heard (`hearing`). From that follow which nodes are
lost, which attempts nobody can see, and when these may be replaced; what the agents have written into their SwarmNodes ends
attempts of which the engine cannot speak. Observers ask it what to believe of what an engine shows. It writes nothing but Events.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Literal

from swarmtask.controllers.cache import Cache
from swarmtask.controllers.executor import Executor
from swarmtask.controllers.hearing import Ears
from swarmtask.controllers.lane import EngineLane
from swarmtask.controllers.surroundings import Surroundings
from swarmtask.controllers.waiting import Bell, supervise
from swarmtask.engines.base import Observation
from swarmtask.errors import ConfigurationError, Expired, SwarmTaskError
from swarmtask.lifecycle.deadlines import replacing
from swarmtask.lifecycle.loss import Hearing, NodeWord, news_of, replace_after_s, weigh
from swarmtask.lifecycle.messages import FINAL_WORKLOAD_STATES, Announcement, NodeSilent, NodeTold
from swarmtask.resources import units
from swarmtask.resources.kinds import LEASE, SWARM_NODE
from swarmtask.resources.meta import get_condition
from swarmtask.resources.node import NodeAttempt, SwarmNode
from swarmtask.resources.task import Attempt, Phase, SwarmTask
from swarmtask.settings import OperatorSettings

logger = logging.getLogger(__name__)

LEASE_NAMESPACE = "kube-node-lease"
LIST_S = 1.0
ENGINE_WORD_S = 5.0
"""An agent may tell the end of an attempt before the engine shows it; the engine, which keeps the output, goes first so long."""
VOUCH_S = 25.0
"""Longer than any engine takes to see that a node is gone (Swarm, of a node that hears nothing any more: 21 s, docs/laboratory.md)
and shorter than a fence and its margin: what an engine shows to run is not replaced. No shorter than a fence."""
KILLING_S = 5.0
"""An agent takes so long at most to kill what did not end in its grace period, without Docker's help too."""
SETTLE_S = 5.0
"""A node that is back gets nothing new before its agent can have told what was finished there, and while it comes and goes."""
LEASE_EXPIRED = "LeaseExpired"
AGENT_SILENT = "AgentSilent"
"""Reasons of the condition Ready of a SwarmNode: nothing is heard of it; its engine reaches it, its agent does not speak."""


def require_patience(settings: OperatorSettings) -> None:
    """Refuse times by which an attempt would be replaced before its engine can have vouched for its node (see VOUCH_S), or before
    its agent can have ended it (see KILLING_S).

    Raises:
        ConfigurationError: says what to change.
    """
    fence_s, margin_s = settings.fence_s, settings.fence_margin_s
    if margin_s < KILLING_S:
        raise ConfigurationError(
            f"operator.fence_margin_s ({margin_s:g}) must be {KILLING_S:g} s or more: an agent may need so long to kill what does "
            "not end when it is told to, and its replacement must not run before"
        )
    if fence_s + margin_s > VOUCH_S:
        return
    more_margin, longer_fence = math.floor(VOUCH_S - fence_s) + 1, math.floor(VOUCH_S - margin_s) + 1
    raise ConfigurationError(
        f"operator.fence_s ({fence_s:g}) and operator.fence_margin_s ({margin_s:g}) must be more than {VOUCH_S:g} s together: "
        "Swarm needs up to 21 s to see that a node is gone, and whoever replaces attempts sooner runs work twice whose node is "
        f"well and only its agent silent. Set operator.fence_margin_s to {more_margin} or more, or operator.fence_s to "
        f"{longer_fence} or more"
    )


class Leases:
    """See the module.

    Args:
        reached: SwarmNodes that some engine reaches now, by their newest lists.
        verdict: called when a node was lost or is heard again.

    Attributes:
        ears: how long each node has been silent.
    """

    def __init__(
        self,
        around: Surroundings,
        cache: Cache,
        executor: Executor,
        lanes: Mapping[str, EngineLane],
        *,
        reached: Callable[[], frozenset[str]],
        verdict: Callable[[], None],
    ) -> None:
        self._around, self._cache, self._executor, self._lanes = around, cache, executor, lanes
        self._api, self._clock, self._announcer = around.api, around.clock, around.announcer
        self._reached, self._verdict = reached, verdict
        self.ears = Ears(around.settings.unreachable_s, max(VOUCH_S, around.settings.fence_s), self._was_missed)
        self._bell = Bell(around.clock)
        self._standings: dict[str, str] = {}
        self._uncertain: set[str] = set()
        self._boots: dict[str, str] = {}
        self._ended_at: dict[str, float] = {}
        """Attempt -> when its engine, or its agent, told its end first."""
        self._settled: dict[str, set[str]] = {}
        """Node -> attempts whose record needs no more looking at."""
        self._failing = self._asked = False

    # --- asked by others; none of these waits ---

    def word(self, node: str) -> NodeWord:
        """What is known of a SwarmNode now."""
        return self.ears.word(node, self._clock.monotonic())

    def boot_id(self, node: str) -> str:
        """The boot of a SwarmNode that has an agent; empty: it has none."""
        return self.word(node).boot_id

    def heard(self, node: str) -> bool:
        """Its agent speaks."""
        return self.word(node).hearing is Hearing.HEARD

    def uncertain(self, node: str) -> bool:
        """It has an agent of which nothing is heard: what is missing there may still run."""
        return self.word(node).hearing in (Hearing.NEW, Hearing.SILENT)

    def standing(self, node: SwarmNode | None, name: str) -> str:
        """What its agent's silence says of a SwarmNode: LEASE_EXPIRED, AGENT_SILENT, or nothing."""
        if self.ears.vouched(name) or (not self.ears.open and self._was_missed(name)):
            return AGENT_SILENT  # also as long as no Lease was read: what an operator before this one has found still counts
        word = self.word(name)
        lost_before = node is not None and _why_ready(node) == LEASE_EXPIRED
        unsettled = word.hearing is Hearing.NEW or (word.hearing is Hearing.HEARD and word.since_s < SETTLE_S)
        lost = word.hearing is Hearing.SILENT or (lost_before and unsettled)
        return LEASE_EXPIRED if lost else ""

    def believe(self, task: SwarmTask, attempt: Attempt, seen: Observation) -> Observation | None:
        """What an engine shows of a live attempt, as far as it may be believed by now."""
        waited_s, now, word = 0.0, self._clock.monotonic(), self.word(attempt.node)
        if seen.state in FINAL_WORKLOAD_STATES:
            if self.ears:
                waited_s = now - self._ended_at.setdefault(attempt.id, now)
            if word.hearing is Hearing.NONE and not self.ears.fresh(now):
                word = NodeWord(Hearing.NEW)  # an agent may have come since: the Leases are read, and then this is asked again
                self._asked = True
                self._bell.ring()
        return weigh(
            seen, attempt, task.spec, self._executor.policy, word, record=self._record(attempt),
            unknown=task.status.phase is Phase.UNKNOWN, waited_s=waited_s,
        )  # fmt: skip

    def _record(self, attempt: Attempt) -> NodeAttempt | None:
        node = self._cache.nodes.get(attempt.node)
        if node is None:
            return None
        return next((record for record in node.status.attempts if record.id == attempt.id), None)

    def _was_missed(self, name: str) -> bool:
        node = self._cache.nodes.get(name)
        return node is not None and _why_ready(node) == AGENT_SILENT

    # --- loops ---

    async def run(self) -> None:
        """Until cancelled."""
        clock, rng = self._clock, self._around.rng
        async with asyncio.TaskGroup() as group:
            group.create_task(supervise("watch of leases", self._follow, clock, rng))
            group.create_task(supervise("lists of leases", self._listen, clock, rng))

    async def _follow(self) -> None:
        while True:
            asked_at = self._clock.monotonic()
            listed = await self._api.list(LEASE, LEASE_NAMESPACE)
            for lease in listed.items:
                self.ears.read(lease, self._clock.monotonic())
            self._open_ears(asked_at)
            self._bell.ring()
            try:
                version = listed.resource_version
                async with aclosing(self._api.watch(LEASE, LEASE_NAMESPACE, resource_version=version)) as events:
                    async for event in events:
                        if event.type in ("ADDED", "MODIFIED"):
                            self.ears.read(event.object, self._clock.monotonic())
                            self._bell.ring()
            except Expired:
                logger.info("the watch of the Leases expired: listing again")

    def _open_ears(self, asked_at: float) -> None:
        """From here on it is known which nodes have an agent; what was held back until then is looked at again."""
        first = not self.ears.open
        self.ears.opened(asked_at)
        if first:
            self._look_again()

    def _look_again(self) -> None:
        for lane in self._lanes.values():
            lane.poll.ring()

    async def _listen(self) -> None:
        """Read all Leases, again and again; one read that fails only leaves a gap."""
        while True:
            if not self.ears:
                await self._bell.wait()
            asked_at = self._clock.monotonic()
            try:
                listed = await self._api.list(LEASE, LEASE_NAMESPACE)
            except SwarmTaskError as error:
                if not self._failing:
                    logger.warning("the Leases of the nodes cannot be read, so none of them is judged: %s", error)
                self._failing = True
            else:
                self._failing = False
                self.ears.listed(listed.items, asked_at)
                if self._asked:
                    self._asked = False
                    self._look_again()
            self.judge()
            await self._clock.sleep(self.ears.next_look_s(self._clock.monotonic(), LIST_S))

    # --- what follows ---

    def judge(self) -> None:
        """Tell what is known by now; after every read, also one that has failed."""
        for name in self._reached():
            self.ears.vouch(name)
        self._tell_nodes()
        self._tell_silent()
        self._tell_records()

    def _tell_nodes(self) -> None:
        before, self._standings = self._standings, {
            name: self.standing(self._cache.nodes.get(name), name) for name in self.ears.names
        }  # fmt: skip
        for name, standing in self._standings.items():
            known, word = before.get(name, ""), self.word(name)
            if standing != known:
                self._announce_standing(name, known, standing, word)
            if word.hearing is not Hearing.HEARD:
                continue
            boot_id = self._boots.setdefault(name, word.boot_id)
            if boot_id != word.boot_id:
                self._boots[name] = word.boot_id
                self._announce(name, "Warning", "NodeRestarted", "its boot ID has changed: what ran there before is over")
        for name in self._boots.keys() - self._standings.keys():
            del self._boots[name]
        unsure, self._uncertain = self._uncertain, {name for name in self.ears.names if self.uncertain(name)}
        if before != self._standings:
            self._verdict()
        if before != self._standings or unsure - self._uncertain:  # what was held back until a node was heard is looked at again
            self._look_again()

    def _announce_standing(self, name: str, known: str, standing: str, word: NodeWord) -> None:
        if standing == LEASE_EXPIRED and word.hearing is Hearing.SILENT:
            self._announce(name, "Warning", "NodeUnreachable", "its node agent does not renew its Lease any more")
        elif standing == AGENT_SILENT:
            words = "its engine reaches it, but its node agent is silent: what runs there goes on, nothing new starts"
            self._announce(name, "Warning", "AgentSilent", words)
        elif known and word.hearing is Hearing.HEARD:
            self._announce(name, "Normal", "NodeBack", "its node agent renews its Lease again")

    def _announce(self, name: str, type_: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        node = self._cache.nodes.get(name)
        if node is not None:
            self._announcer.tell(SWARM_NODE, node.metadata, Announcement(type_, reason, message))

    def _tell_silent(self) -> None:
        """Attempts on lost nodes: nobody knows what they do, and when that has lasted long enough they are given up."""
        lost = set(self.ears.silent())
        live = list(self._cache.live()) if lost or self._ended_at else []
        for key, attempt in live:
            if attempt.node not in lost:
                continue
            task, policy = self._cache.tasks[key].task, self._executor.policy
            word = self.word(attempt.node)
            fenced = replacing(task.spec, attempt) == "afterFence"
            silent_s = word.silent_beyond_s(policy.fence_s) if fenced else word.since_s
            due_s = replace_after_s(task.spec, attempt, policy, fenced=True)
            lane = self._lanes.get(attempt.engine)
            if lane is not None and lane.submissions.may_still_land(attempt.id):
                silent_s = 0.0  # a submit that is under way could start it again
            news = task.status.phase is not Phase.UNKNOWN or (attempt.boot_id is None and word.boot_id)
            if news or (due_s is not None and silent_s >= due_s):
                silent = NodeSilent(attempt.number, silent_s, fenced=True, boot_id=word.boot_id)
                self._executor.offer(key, task.metadata.uid, silent)
        for name in self._ended_at.keys() - {attempt.id for _, attempt in live}:
            del self._ended_at[name]

    def _tell_records(self) -> None:
        """What agents have told of ends. The records stay there for an hour: each is looked at until it has had its effect."""
        for name, node in self._cache.nodes.items():
            ended = [record for record in node.status.attempts if record.state == "Exited"]
            settled = self._settled.get(name, set()) & {record.id for record in ended}
            settled |= {record.id for record in ended if record.id not in settled and self._use(name, record)}
            self._settled[name] = settled
        for name in self._settled.keys() - self._cache.nodes.keys():
            del self._settled[name]

    def _use(self, node: str, record: NodeAttempt) -> bool:
        """Offer one record where it says something new. True when it never will."""
        key = self._cache.owner_of(record.id)
        if key is None:
            return True
        task = self._cache.tasks[key].task
        attempt = next((one for one in task.status.attempts if one.id == record.id and one.node == node), None)
        if attempt is None:
            return True
        if attempt.live:
            now = self._clock.monotonic()
            if now - self._ended_at.setdefault(attempt.id, now) < ENGINE_WORD_S:
                return False
        elif not news_of(task, attempt, record, self._memory_bytes(node)):
            return True
        told = NodeTold(attempt.number, record, self.boot_id(node), node in self._reached(), self._memory_bytes(node))
        self._executor.offer(key, task.metadata.uid, told)
        return False

    def _memory_bytes(self, name: str) -> int:
        node = self._cache.nodes.get(name)
        return 0 if node is None else units.memory_bytes(node.status.capacity.memory)


def _why_ready(node: SwarmNode) -> str:
    condition = get_condition(node.status.conditions, "Ready")
    return "" if condition is None else condition.reason or ""
