"""SwarmNodes from the engines' node lists, and their status.

Two kinds of loops: one per engine reads its list (a slow engine delays only itself), one writes what has changed, at most once per
node and `status_refresh_s`. A node that several engines list under one hostname is one SwarmNode. `spec` belongs to people and is
never written after creation. An attempt whose node has left its engine for good is told so here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from swarmtask.controllers.cache import Cache
from swarmtask.controllers.crashpoints import write_point
from swarmtask.controllers.executor import Executor
from swarmtask.controllers.lane import EngineLane
from swarmtask.controllers.leases import AGENT_SILENT, LEASE_EXPIRED
from swarmtask.controllers.node_facts import NodeFacts, engine_labels, known_apart, match, status_of, without_former_selves
from swarmtask.controllers.node_rules import NodeRules
from swarmtask.controllers.reading import difference
from swarmtask.controllers.surroundings import Surroundings
from swarmtask.controllers.waiting import Bell
from swarmtask.errors import Conflict, NotFound, ServiceUnavailable, SwarmTaskError
from swarmtask.kube import Object
from swarmtask.lifecycle.messages import NodeGone
from swarmtask.resources.kinds import SWARM_NODE
from swarmtask.resources.node import NodeEngine, SwarmNode
from swarmtask.resources.quiet_hours import Stand

logger = logging.getLogger(__name__)

ANNOTATION_LABELS = "swarmtask.io/engine-labels"
"""Labels that were copied from engines, so that they go away with them."""
STALE_POLLS = 5
STALE_S = 5.0
"""An engine that has not listed its nodes for so many intervals, and at least so many seconds, offers none of them."""


class Nodes:
    """See the module. `bell`: ring it when something has changed that a node's status shows."""

    def __init__(
        self, around: Surroundings, cache: Cache, lanes: Mapping[str, EngineLane], executor: Executor, rules: NodeRules
    ) -> None:
        self._api, self._settings, self._clock = around.api, around.settings, around.clock
        self._cache, self._lanes, self._executor, self._rules = cache, lanes, executor, rules
        self._deadlines = around.deadlines
        self._quiet_known: set[str] = set()
        """Nodes for which the next change of their quiet hours is waited for."""
        self._refused: dict[str, str] = {}
        """Why nodes could not be written, as it was logged."""
        self._absent_since: dict[tuple[str, str], float] = {}
        self._offered: frozenset[tuple[str, str]] = frozenset()
        self.bell = Bell(around.clock)
        self.urgent = Bell(around.clock)
        """Ring it after `bell` where what has changed cannot wait for its turn."""
        self.offer_changed: Callable[[], None] = lambda: None
        """Called when other nodes are ready for work than before."""
        self.standing: Callable[[SwarmNode | None, str], str] = lambda node, name: ""
        """What the silence of its agent says of a SwarmNode: see `leases`."""
        self.uncertain: Callable[[str], bool] = lambda name: False
        """Has it an agent of which nothing is heard?"""
        self.reached: frozenset[str] = frozenset()
        """SwarmNodes that an engine reaches, whatever is heard of their agents; by the newest lists."""

    # --- reading engines ---

    async def poll(self, lane: EngineLane) -> None:
        """Read one engine's node list for ever."""
        await lane.started()
        failed = False
        while True:
            asked_at = self._clock.monotonic()
            try:
                found = without_former_selves(await lane.engine.nodes(), known_apart(lane.name, self._cache.nodes))
            except SwarmTaskError as error:
                if not failed:
                    logger.warning("engine %s does not list its nodes: %s", lane.name, error)
                failed = True
                self.bell.ring()  # it may have been silent for too long
            else:
                failed = False
                if found != lane.nodes or self._silent(lane):
                    self.bell.ring()
                lane.nodes, lane.nodes_at = found, asked_at
                self._tell_gone(lane)
            lane.tried_nodes.set()
            await lane.node_poll.wait(self._settings.node_poll_interval_s)

    def _silent(self, lane: EngineLane) -> bool:
        """It has not listed its nodes for too long."""
        limit_s = max(STALE_S, STALE_POLLS * self._settings.node_poll_interval_s)
        return lane.nodes is None or self._clock.monotonic() - lane.nodes_at > limit_s

    def _tell_gone(self, lane: EngineLane) -> None:
        """Attempts on nodes that complete lists have not shown for as long as a workload may be missing. Not those on a node whose
        agent is silent: it has left its engine, or was taken out of it, while it slept."""
        assert lane.nodes is not None  # noqa: S101 - the caller has just set it
        present = {node.id for node in lane.nodes}
        wanted = set()
        for key, attempt in self._cache.live():
            if attempt.engine != lane.name or not attempt.engine_node_id or attempt.engine_node_id in present:
                continue
            node = (lane.name, attempt.engine_node_id)
            wanted.add(node)
            since = self._absent_since.setdefault(node, lane.nodes_at)
            if self.uncertain(attempt.node):
                continue  # it may still run there: `leases` says when it is given up, if ever
            if lane.nodes_at - since >= self._settings.vanish_grace_s:
                message = f"node {attempt.node} has left {lane.name} for good"
                self._executor.offer(key, self._cache.tasks[key].task.metadata.uid, NodeGone(attempt.number, message))
        for node in [node for node in self._absent_since if node[0] == lane.name and node not in wanted]:
            del self._absent_since[node]

    def engine_ready(self, engine: NodeEngine) -> bool:
        """Does this engine offer this node for work, as far as its newest list says?"""
        return (engine.name, engine.id) in self._offered

    # --- writing SwarmNodes ---

    async def run(self) -> None:
        """Until cancelled. `bell` must be rung once to begin."""
        again = True  # also when this loop has failed: the ring that it was woken by is used up
        while True:
            await self.bell.wait(self._settings.status_refresh_s if again else None)
            again = await self.refresh()
            await self.urgent.wait(self._settings.status_refresh_s)

    async def refresh(self) -> bool:
        """Bring every SwarmNode up to date once; what one meets keeps no other. True when something has to be tried again.

        Raises:
            ServiceUnavailable: the API does not answer, for none of them.
        """
        lists = {name: (lane.nodes or (), not self._silent(lane)) for name, lane in self._lanes.items() if lane.nodes is not None}
        facts = {name: self._hear(name, item) for name, item in match(lists, self._cache.nodes).items()}
        self.reached = frozenset(name for name, item in facts.items() if item.reached)
        before, self._offered = self._offered, frozenset(pair for item in facts.values() for pair in item.offered())
        if before != self._offered:
            self.offer_changed()
        again = False
        for name, item in facts.items():
            again |= not await self._try_to_bring_up(name, item)
        unread = self._lanes.keys() - lists.keys()
        for name, node in list(self._cache.nodes.items()):
            # Gone only when every engine that had it was heard and does not list it.
            if name not in facts and not unread & {engine.name for engine in node.status.engines}:
                again |= not await self._try_to_bring_up(name, NodeFacts(()))
        return again

    def _hear(self, name: str, facts: NodeFacts) -> NodeFacts:
        standing = self.standing(self._cache.nodes.get(name), name)
        node = self._cache.nodes.get(name)
        speaks = standing == "" and node is not None and node.status.agent_version is not None and not self.uncertain(name)
        return replace(facts, lost=standing == LEASE_EXPIRED, deserted=standing == AGENT_SILENT, speaks=speaks)

    async def _try_to_bring_up(self, name: str, facts: NodeFacts) -> bool:
        try:
            well = await self._bring_up(name, facts)
        except ServiceUnavailable:
            raise
        except SwarmTaskError as error:
            if self._refused.get(name) != str(error):
                logger.warning("SwarmNode %s: %s; it is tried again", name, error)
            self._refused[name] = str(error)
            return False
        except Exception:  # a bug that one node meets must not end the work for all others, and must not go unseen
            logger.exception("SwarmNode %s: an unexpected error; it is tried again", name)
            return False
        self._refused.pop(name, None)
        return well

    async def _bring_up(self, name: str, facts: NodeFacts) -> bool:
        node = self._cache.nodes.get(name)
        if node is None:
            node = await self._create(name, facts)
            if node is None:
                return False
        node = await self._relabel(node, facts)
        moment = self._clock.now()
        stand = self._rules.quiet(node, moment.timestamp())
        self._wait_for_change(name, stand)
        now = moment.replace(microsecond=0)
        known = self._cache.known_nodes
        requested, tasks = self._cache.requested(name), self._cache.tasks_on(name)
        status = status_of(node, facts, requested, tasks, now, stand=stand, unreadable=known.unreadable.get(name, ""))
        if status == node.status or name in known.mute:
            return True
        patch = {"metadata": {"resourceVersion": node.metadata.resource_version}, "status": difference(node.status, status)}
        return await self._patch(name, patch, subresource="status") is not None

    def _wait_for_change(self, name: str, stand: Stand) -> None:
        """When quiet hours begin or end, somebody has to look again."""
        token = ("quiet hours", name)
        if stand.until is not None:
            self._quiet_known.add(name)
            self._deadlines.set(token, stand.until.timestamp(), self._quiet_changed)
        elif name in self._quiet_known:
            self._quiet_known.discard(name)
            self._deadlines.cancel(token)

    def _quiet_changed(self) -> None:
        self.bell.ring()
        self.offer_changed()

    async def _create(self, name: str, facts: NodeFacts) -> SwarmNode | None:
        """By server-side apply and without a spec: who creates an object owns the defaults that the server puts into it, and a
        person who applies a spec of his own would conflict with the operator."""
        labels = engine_labels(facts)
        body: Object = {
            "apiVersion": SWARM_NODE.api_version, "kind": SWARM_NODE.kind,
            "metadata": {"name": name, "labels": labels, "annotations": {ANNOTATION_LABELS: ",".join(sorted(labels))}},
        }  # fmt: skip
        try:
            with write_point("create-node"):
                obj = await self._api.patch(SWARM_NODE, name, body, type_="apply")
        except Conflict:  # somebody was faster, and has put other labels there
            obj = await self._api.get(SWARM_NODE, name)
        self._cache.apply(SWARM_NODE, obj)
        return self._cache.nodes.get(name)

    async def _relabel(self, node: SwarmNode, facts: NodeFacts) -> SwarmNode:
        """Copy the engines' labels, and take away those that were copied once and are no more."""
        if not facts.listed:
            return node
        wanted = engine_labels(facts)
        copied = set(filter(None, node.metadata.annotations.get(ANNOTATION_LABELS, "").split(",")))
        labels: dict[str, str | None] = {key: value for key, value in wanted.items() if node.metadata.labels.get(key) != value}
        labels |= {key: None for key in copied - wanted.keys() if key in node.metadata.labels}
        if not labels and copied == wanted.keys():
            return node
        metadata = {
            "resourceVersion": node.metadata.resource_version, "labels": labels,
            "annotations": {ANNOTATION_LABELS: ",".join(sorted(wanted))},
        }  # fmt: skip
        return await self._patch(node.metadata.name, {"metadata": metadata}) or node

    async def _patch(self, name: str, patch: Object, subresource: str | None = None) -> SwarmNode | None:
        """The written node; None when it has changed or gone, which the cache then knows."""
        try:
            with write_point("write-node"):
                obj = await self._api.patch(SWARM_NODE, name, patch, subresource=subresource)
        except Conflict:
            self._cache.apply(SWARM_NODE, await self._api.get(SWARM_NODE, name))
            return None
        except NotFound:
            self._cache.remove(SWARM_NODE, ("", name))
            return None
        self._cache.apply(SWARM_NODE, obj)
        return self._cache.nodes.get(name)
