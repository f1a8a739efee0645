"""What engines list, as facts about SwarmNodes: names, merged resources, phase, labels. Pure.

Called by the node controller. Takes lists and known nodes, returns values; reads no clock and no API.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from swarmtask.controllers.node_wishes import conditions_as_wished, phase_as_wished, quiet_words
from swarmtask.engines.base import EngineNode, NodeState
from swarmtask.resources import units
from swarmtask.resources.meta import set_condition
from swarmtask.resources.node import NodeEngine, NodePhase, NodeResources, NodeStatus, SwarmNode, usable_gpus
from swarmtask.resources.quiet_hours import Stand
from swarmtask.scheduler.model import Amounts

_LABEL_KEY = re.compile(units.LABEL_KEY_PATTERN)
_LABEL_VALUE = re.compile(units.LABEL_VALUE_PATTERN)
OPEN = Stand(quiet=False)
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm", "i686": "386"}
"""As engines and kernels say it -> as Kubernetes' `kubernetes.io/arch` says it."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One engine's entry. `heard`: the engine has answered lately."""

    engine: str
    node: EngineNode
    heard: bool

    @property
    def offered(self) -> bool:
        return self.heard and self.node.state is NodeState.READY and self.node.available


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One machine as its engines list it, the preferred engine first. Nothing listed: it is gone.

    Attributes:
        lost: nothing is heard of it. deserted: nothing is heard of its agent, but an engine reaches it.
        speaks: its agent is heard.
    """

    listed: tuple[Listed, ...]
    lost: bool = False
    deserted: bool = False
    speaks: bool = False

    def offered(self) -> Iterator[tuple[str, str]]:
        """(engine, its node ID) that take work now."""
        taken = self.lost or self.deserted
        return ((item.engine, item.node.id) for item in self.listed if item.offered and not taken)

    @property
    def reached(self) -> bool:
        """An engine reaches the machine, whether it may give it work or not."""
        return any(item.heard and item.node.state is NodeState.READY for item in self.listed)

    @property
    def left(self) -> bool:
        """The machine has left its engines, which do not know that yet (`docker swarm leave`), and its agent is silent."""
        return bool(self.listed) and all(item.heard and item.node.left for item in self.listed) and not self.speaks

    @property
    def best(self) -> EngineNode | None:
        """The entry to believe: of an engine that takes work there, else the first."""
        return next((item.node for item in self.listed if item.offered), self.listed[0].node if self.listed else None)


def node_name(hostname: str) -> str:
    """A hostname as a Kubernetes object name: `Anna's Laptop.local` -> `anna-s-laptop.local`."""
    parts = [re.sub(r"[^a-z0-9]+", "-", part).strip("-") for part in hostname.lower().split(".")]
    return ".".join(part for part in parts if part)[:240].strip("-.") or "node"


Apart = Callable[[str, str], bool]


def known_apart(engine: str, known: Mapping[str, SwarmNode]) -> Apart:
    """Of two IDs of one engine: are they known to be two machines? Those are that have worked at once, and so became SwarmNodes of
    different names. It outlives an operator, as they do.

    A machine that leaves and joins again before its engine has missed it seems to be two for a moment, too; its boot ID tells.
    """
    owners = {
        item.id: (name, node.status.boot_id) for name, node in known.items() for item in node.status.engines if item.name == engine
    }

    def apart(one: str, other: str) -> bool:
        if one not in owners or other not in owners:
            return False
        (name, boot_id), (other_name, other_boot_id) = owners[one], owners[other]
        return name != other_name and not (boot_id and boot_id == other_boot_id)

    return apart


def without_former_selves(nodes: Sequence[EngineNode], apart: Apart = lambda one, other: False) -> tuple[EngineNode, ...]:
    """An engine's list without what machines were before they came back under another ID: an engine keeps such entries for ever.

    One that is lost is left out when a machine of the same hostname has joined later and works: it is the same machine, as far as
    anybody can tell, which goes on under the new ID; unless the two are known to be two, one of which sleeps.
    """
    working: dict[str, list[tuple[datetime, str]]] = {}
    for node in nodes:
        if node.state is NodeState.READY and node.joined_at is not None:
            working.setdefault(node.hostname, []).append((node.joined_at, node.id))

    def goes_on(node: EngineNode) -> bool:
        joined_at = node.joined_at
        if node.state is not NodeState.DOWN or joined_at is None:
            return False
        return any(later > joined_at and not apart(node.id, other) for later, other in working.get(node.hostname, ()))

    return tuple(node for node in nodes if not goes_on(node))


def match(lists: Mapping[str, tuple[Sequence[EngineNode], bool]], known: Mapping[str, SwarmNode]) -> dict[str, NodeFacts]:
    """Which SwarmNode is which engine node.

    Args:
        lists: engine -> (its complete list, whether it has answered lately), preferred engines first.
        known: existing SwarmNodes by name; a node keeps the name under which its engine ID is known.

    Returns:
        SwarmNode name -> its facts. Two nodes of one engine never share a name: the later one gets a suffix from its ID. A node
        that is joining and has not told its hostname yet is left out: a name, once given, stays.
    """
    owners = {(engine.name, engine.id): name for name, node in known.items() for engine in node.status.engines}
    found: dict[str, list[Listed]] = {}
    newcomers: list[Listed] = []
    for engine, (nodes, heard) in lists.items():
        for node in sorted(nodes, key=lambda node: node.id):
            item = Listed(engine, node, heard)
            name = owners.get((engine, node.id))
            if name is not None and all(other.engine != engine for other in found.get(name, ())):
                found.setdefault(name, []).append(item)
            elif node.hostname:
                newcomers.append(item)
    for item in newcomers:
        name = node_name(item.node.hostname)
        if any(other.engine == item.engine for other in found.get(name, ())):
            name = f"{name}-{node_name(item.node.id)[:8].strip('-.')}"
        found.setdefault(name, []).append(item)
    order = list(lists)
    return {name: NodeFacts(tuple(sorted(items, key=lambda item: order.index(item.engine)))) for name, items in found.items()}


def engine_labels(facts: NodeFacts) -> dict[str, str]:
    """Labels of a SwarmNode: those of its engines that are valid labels, and the machine's own facts."""
    labels: dict[str, str] = {}
    for item in reversed(facts.listed):
        labels |= {key: value for key, value in item.node.labels.items() if len(key) <= 253}
    best = facts.best
    if best is not None:
        labels["swarmtask.io/arch"] = _ARCHITECTURES.get(best.arch, best.arch)
        labels["swarmtask.io/os"] = best.os
        labels["swarmtask.io/hostname"] = best.hostname
        labels["swarmtask.io/engine"] = facts.listed[0].engine
    return {
        key: value
        for key, value in labels.items()
        if value and len(value) <= 63 and _LABEL_KEY.fullmatch(key) and _LABEL_VALUE.fullmatch(value)
    }


def phase_of(facts: NodeFacts) -> tuple[NodePhase, str, str]:
    """(phase, CamelCase reason, words for a person)."""
    if not facts.listed:
        return NodePhase.GONE, "LeftEngine", "no engine lists this node any more"
    if facts.left:
        name, node = facts.listed[0].engine, facts.listed[0].node
        words = f"the machine has left {name}, or its Docker is stopped; `docker node rm {node.id}` makes {name} forget it"
        return NodePhase.GONE, "LeftEngine", words
    if facts.lost:
        words = "its node agent does not renew its Lease: the machine sleeps, is off, or cannot reach the API"
        return NodePhase.UNREACHABLE, "LeaseExpired", words
    if facts.deserted and facts.reached:
        words = (
            "its engine reaches it, but its node agent is silent: what runs there goes on, nothing new starts. See that the agent "
            "runs and reaches the API; where it was taken away for good, delete the Lease of this name in kube-node-lease"
        )
        return NodePhase.NOT_READY, "AgentSilent", words
    if any(item.offered for item in facts.listed):
        return NodePhase.READY, "EngineReady", "an engine takes work for this node"
    heard = [item for item in facts.listed if item.heard]
    if not heard:
        names = ", ".join(item.engine for item in facts.listed)
        return NodePhase.NOT_READY, "EngineSilent", f"engine {names} does not answer"
    words = next((item.node.message for item in heard if item.node.message), "")
    if any(item.node.state is NodeState.READY for item in heard):
        return NodePhase.DRAINING, "EngineDraining", words or "its engine was told to give it nothing new"
    if any(item.node.state is NodeState.DOWN for item in heard):
        return NodePhase.UNREACHABLE, "EngineLostNode", words or "its engine has lost the node"
    return NodePhase.NOT_READY, "EngineUnsure", words or "its engine cannot say yet whether the node works"


def status_of(
    node: SwarmNode,
    facts: NodeFacts,
    requested: Amounts,
    tasks: int,
    now: datetime,
    *,
    stand: Stand = OPEN,
    unreadable: str = "",
) -> NodeStatus:
    """The status of a SwarmNode; equal to the old one when nothing has changed.

    Args:
        now: in whole seconds.
        stand: of its quiet hours.
        unreadable: why something of the stored node cannot be read.
    """
    old = node.status
    phase, reason, message = phase_as_wished(node, tasks, phase_of(facts), unreadable)
    best = facts.best
    engines = [_engine(item) for item in facts.listed]
    # Few engines know GPUs; what the node itself lists counts where it is more, as far as it can be given away. What a person has
    # declared to the engine counts also where the agent sees nothing of it.
    gpus = max(best.gpus, len(usable_gpus(old.gpus, engines))) if best is not None else 0
    capacity = _resources(Amounts(best.cpu_milli, best.memory_bytes, gpus)) if best is not None else old.capacity
    reserved = Amounts(units.cpu_milli(node.spec.reserved.cpu), units.memory_bytes(node.spec.reserved.memory))
    offered = _amounts(capacity) - reserved
    status = old.model_copy(
        update={
            "phase": phase,
            "message": (quiet_words(stand) if stand.quiet else None) if phase is NodePhase.READY else message,
            "engines": engines,
            "capacity": capacity,
            "allocatable": _resources(Amounts(max(0, offered.cpu_milli), max(0, offered.memory_bytes), offered.gpus)),
            "requested": _resources(requested),
            "tasks": tasks,
            "address": (best.address or None) if best is not None else old.address,
            "arch": (_ARCHITECTURES.get(best.arch, best.arch) or None) if best is not None else old.arch,
            "os": (best.os or None) if best is not None else old.os,
            "conditions": conditions_as_wished(
                set_condition(
                    old.conditions,
                    "Ready",
                    None if phase is NodePhase.UNREACHABLE else phase in (NodePhase.READY, NodePhase.DRAINING),
                    reason=reason,
                    message=message,
                    now=now,
                    observed_generation=node.metadata.generation or None,
                ),
                node,
                tasks,
                phase=phase,
                stand=stand,
                now=now,
            ),
        }
    )
    told = old.model_copy(update={"requested": status.requested, "tasks": status.tasks})
    return status.model_copy(update={"last_heartbeat_time": now}) if told != status else status


def _engine(item: Listed) -> NodeEngine:
    vendors = None if item.node.gpu_vendors is None else list(item.node.gpu_vendors)
    return NodeEngine(name=item.engine, id=item.node.id, version=item.node.engine_version or None, gpu_vendors=vendors)


def _resources(amounts: Amounts) -> NodeResources:
    return NodeResources(
        cpu=units.format_cpu(amounts.cpu_milli), memory=units.format_memory(amounts.memory_bytes), gpu=amounts.gpus
    )


def _amounts(resources: NodeResources) -> Amounts:
    return Amounts(units.cpu_milli(resources.cpu), units.memory_bytes(resources.memory), resources.gpu)


def offered_memory(node: SwarmNode) -> int:
    """Bytes that a node offers to tasks: its capacity less what is reserved."""
    return max(0, units.memory_bytes(node.status.capacity.memory) - units.memory_bytes(node.spec.reserved.memory))


def offers_otherwise(old: SwarmNode, new: SwarmNode) -> bool:
    """Whether a scheduling cycle would see a difference. What its tasks hold is the operator's own writing."""
    own = {"requested": new.status.requested, "tasks": new.status.tasks, "attempts": new.status.attempts}
    return old.spec != new.spec or old.metadata.labels != new.metadata.labels or old.status.model_copy(update=own) != new.status
