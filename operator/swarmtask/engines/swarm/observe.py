"""From Swarm's services, tasks and nodes to observations. Pure, except that it remembers what Swarm forgets.

Called by `engine`. Facts that shape it (measured, docs/engines.md):

- A service's first task is the attempt. A second one appears only when we stopped it, and never runs.
- A lost node's tasks stay as they were last seen: they prove nothing.
- A node's dockerd that ends by SIGTERM removes its task containers: `failed`, "No such container", exit code 0.
- A node that was Down gets its running tasks ended when it is back (`shutdown`), although nothing replaces them.
- After kill -9 or a power cut the next dockerd ends what was left: 137, 255, or what the program made of SIGTERM, at the moment at
  which the node registers with the manager again. The same codes at any other time are the program's own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from swarmtask.clock import parse_time
from swarmtask.engines.base import (
    FINAL_WORKLOAD_STATES,
    LABEL_ATTEMPT,
    LABEL_FENCE,
    LABEL_TASK_NAME,
    LABEL_TASK_NAMESPACE,
    LABEL_TASK_UID,
    EngineNode,
    NodeState,
    Observation,
    WorkloadState,
)
from swarmtask.engines.swarm.spec import LABEL_IMAGE, LABEL_STOPPED
from swarmtask.lifecycle.messages import Reason

ENGINE = "swarm"
Json = Mapping[str, Any]

_PREPARING = frozenset({"preparing", "ready", "starting"})
_ENDED = frozenset({"complete", "shutdown", "failed", "rejected"})
_NODE_STATES = {"ready": NodeState.READY, "down": NodeState.DOWN, "disconnected": NodeState.DOWN}
GPU_VENDORS = ("nvidia",)
"""A service is given no devices of its machine; NVIDIA's runtime alone needs none: a variable tells it what to show."""
_GPU_KINDS = frozenset({"gpu", "nvidia-gpu", "nvidia.com/gpu"})
_IMAGE_WORDS = (
    "no such image", "pull access denied", "manifest unknown", "manifest for", "repository does not exist",
    "failed to resolve reference", "invalid reference format", "error pulling image", "no matching manifest",
)  # fmt: skip
REGISTERED_NEAR = timedelta(seconds=3)
"""Measured: an end made by a returning dockerd is stamped within 0.1 s of the registration. The rest is for clocks that differ."""


def moment(text: Any) -> datetime | None:
    """Docker's nanoseconds, cut to what Python has; its zero time means nothing."""
    if not isinstance(text, str) or text.startswith("0001-"):
        return None
    whole, point, fraction = text.removesuffix("Z").partition(".")
    return parse_time(f"{whole}{point}{fraction[:6]}+00:00") if text.endswith("Z") else parse_time(text)


def engine_node(node: Json) -> EngineNode:
    """An element of `GET /nodes`."""
    description, status, spec = node.get("Description") or {}, node.get("Status") or {}, node.get("Spec") or {}
    resources, platform = description.get("Resources") or {}, description.get("Platform") or {}
    return EngineNode(
        id=node["ID"],
        hostname=description.get("Hostname", ""),
        state=_NODE_STATES.get(status.get("State", ""), NodeState.UNKNOWN),
        available=spec.get("Availability", "active") == "active",
        address=status.get("Addr", ""),
        cpu_milli=int(resources.get("NanoCPUs", 0)) // 1_000_000,
        memory_bytes=int(resources.get("MemoryBytes", 0)),
        gpus=_gpus(resources.get("GenericResources") or ()),
        gpu_vendors=GPU_VENDORS,
        arch=platform.get("Architecture", ""),
        os=platform.get("OS", ""),
        engine_version=(description.get("Engine") or {}).get("EngineVersion", ""),
        is_manager=spec.get("Role") == "manager",
        message=status.get("Message", ""),
        labels=dict(spec.get("Labels") or {}),
        joined_at=moment(node.get("CreatedAt")),
    )


def _gpus(generic: Iterable[Json]) -> int:
    """Generic resources come as a count or as one entry per named device."""
    count = 0
    for resource in generic:
        discrete, named = resource.get("DiscreteResourceSpec"), resource.get("NamedResourceSpec")
        if discrete and str(discrete.get("Kind", "")).lower() in _GPU_KINDS:
            count += int(discrete.get("Value", 0))
        elif named and str(named.get("Kind", "")).lower() in _GPU_KINDS:
            count += 1
    return count


@dataclass
class _Seen:
    version: int
    spec: Any


class Observer:
    """Remembers, between reads: when nodes registered, when tasks began to run, and how each end was judged."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Seen] = {}
        self._registered: dict[str, deque[datetime]] = {}
        self._started: dict[str, datetime] = {}
        self._judged: dict[str, Observation] = {}

    def note_nodes(self, nodes: Sequence[Json]) -> None:
        """Keep when each node last registered: it is ready and its record changed, although nobody changed its spec (a label,
        its availability). A node seen for the first time may have registered when it was last changed."""
        for node in nodes:
            version, spec, at = node["Version"]["Index"], node.get("Spec"), moment(node.get("UpdatedAt"))
            seen = self._nodes.get(node["ID"])
            ready = (node.get("Status") or {}).get("State") == "ready"
            if at is not None and ready and (seen is None or (version != seen.version and spec == seen.spec)):
                self._registered.setdefault(node["ID"], deque(maxlen=32)).append(at)
            self._nodes[node["ID"]] = _Seen(version, spec)
        for gone in set(self._nodes) - {node["ID"] for node in nodes}:
            del self._nodes[gone]
            self._registered.pop(gone, None)

    def observe(self, services: Sequence[Json], tasks: Sequence[Json], nodes: Sequence[Json]) -> tuple[Observation, ...]:
        """One observation per service, in the services' order."""
        self.note_nodes(nodes)
        listed = {node["ID"]: engine_node(node) for node in nodes}
        of: dict[str, list[Json]] = {}
        for task in tasks:
            of.setdefault(task["ServiceID"], []).append(task)
        seen = tuple(self._observe(service, first_task(of.get(service["ID"], ())), listed) for service in services)
        present = {task["ID"] for task in tasks}
        for memory in (self._started, self._judged):
            for task_id in set(memory) - present:
                del memory[task_id]
        return seen

    def _observe(self, service: Json, task: Json | None, nodes: Mapping[str, EngineNode]) -> Observation:
        spec = service["Spec"]
        labels = spec.get("Labels") or {}
        attempt = labels.get(LABEL_ATTEMPT, "")
        container = (spec.get("TaskTemplate") or {}).get("ContainerSpec") or {}
        made_with = container.get("Labels") or {}
        blank = Observation(
            name=spec["Name"],
            engine=ENGINE,
            task_uid=labels.get(LABEL_TASK_UID, ""),
            namespace=labels.get(LABEL_TASK_NAMESPACE, ""),
            task_name=labels.get(LABEL_TASK_NAME, ""),
            attempt=int(attempt) if attempt.isdigit() else 0,
            state=WorkloadState.PENDING,
            fence=made_with.get(LABEL_FENCE) == "true" if container else None,  # what has no label is not stopped by an agent
        )
        stopped = labels.get(LABEL_STOPPED) == "true"
        if task is None or not task.get("NodeID"):
            if stopped:
                return replace(blank, state=WorkloadState.STOPPED, message="stopped before it had a node")
            return replace(blank, message=_said(task))
        if (judged := self._judged.get(task["ID"])) is not None:
            return judged
        image, node = made_with.get(LABEL_IMAGE, ""), nodes.get(task["NodeID"])
        seen = self._assigned(replace(blank, node_id=task["NodeID"]), task, node, image, stopped)
        if seen.state in FINAL_WORKLOAD_STATES:
            self._judged[task["ID"]] = seen
        return seen

    def _assigned(self, blank: Observation, task: Json, node: EngineNode | None, image: str, stopped: bool) -> Observation:
        status = task["Status"]
        state, at = status.get("State", ""), moment(status.get("Timestamp"))
        if state in _ENDED:
            return self._ended(blank, task, image, stopped)
        if node is None or state in ("orphaned", "remove"):
            return replace(blank, state=WorkloadState.UNKNOWN, message=f"node {task['NodeID']} is no longer part of the swarm")
        if state == "running" and at is not None:
            self._started.setdefault(task["ID"], at)
        started = self._started.get(task["ID"])
        if node.state is not NodeState.READY:
            why = f"node {node.hostname} is {node.state.value.lower()}" + (f": {node.message}" if node.message else "")
            return replace(blank, state=WorkloadState.UNKNOWN, message=why, started_at=started)
        if state == "running":
            return replace(blank, state=WorkloadState.RUNNING, started_at=started)
        if state in _PREPARING:
            return replace(blank, state=WorkloadState.PREPARING, message=_said(task))
        return replace(blank, state=WorkloadState.PENDING, message=_said(task))

    def _ended(self, blank: Observation, task: Json, image: str, stopped: bool) -> Observation:
        status = task["Status"]
        state, at = status["State"], moment(status.get("Timestamp"))
        container = status.get("ContainerStatus") or {}
        said = str(status.get("Err") or "")
        ended = replace(blank, finished_at=at, message=said, started_at=self._started.get(task["ID"]))
        ran = bool(container.get("ContainerID"))
        if not ran and any(word in said.lower() for word in _IMAGE_WORDS):
            told = said if not image or image in said else f"{image}: {said}"
            return replace(ended, state=WorkloadState.REJECTED, reason=Reason.IMAGE_PULL_FAILED, message=told)
        if state == "rejected":
            return replace(ended, state=WorkloadState.REJECTED, reason=Reason.ENGINE_REJECTED)
        if not ran and state == "shutdown":
            reason = None if stopped else Reason.NODE_LOST
            return replace(ended, state=WorkloadState.STOPPED, reason=reason, message=said or "stopped before it ran")
        if not ran and state == "failed":
            return replace(ended, state=WorkloadState.REJECTED, reason=Reason.ENGINE_REJECTED)
        if state == "failed" and said.startswith("starting container failed"):
            # The container exists but its program never ran: no such program, no such directory, no network on the node.
            return replace(ended, state=WorkloadState.REJECTED, reason=Reason.ENGINE_REJECTED)
        if state == "failed" and said.startswith("No such container"):
            why = "its container is gone: the node's Docker was restarted, or somebody removed it"
            return replace(ended, state=WorkloadState.EXITED, reason=Reason.NODE_RESTARTED, message=f"{why} ({said})")
        code = container.get("ExitCode", 0)
        if state == "shutdown" and not stopped:
            why = "Swarm ended it because its node had been lost for a while, or was drained"
            return replace(ended, state=WorkloadState.EXITED, exit_code=_true(code), reason=Reason.NODE_LOST, message=why)
        back = None if stopped else self._came_back(task, at)
        if back is not None and state == "complete":
            why = f"it ended while the node's Docker was away or as it came back at {back:%H:%M:%S}; Swarm cannot tell which"
            return replace(ended, state=WorkloadState.EXITED, exit_code=_true(code), message=why)
        if back is not None:
            why = f"the node or its Docker came back at {back:%H:%M:%S} and ended what was left"
            return replace(
                ended, state=WorkloadState.EXITED, exit_code=_true(code), reason=Reason.NODE_RESTARTED, message=f"{why} ({said})"
            )
        return replace(ended, state=WorkloadState.EXITED, exit_code=_true(code))

    def _came_back(self, task: Json, ended: datetime | None) -> datetime | None:
        """When the node registered, if that explains the end: the task was there before, and ended at that moment."""
        began = self._started.get(task["ID"]) or moment(task.get("CreatedAt"))
        for registered in self._registered.get(task["NodeID"], ()):
            if ended is not None and began is not None and began < registered and abs(ended - registered) <= REGISTERED_NEAR:
                return registered
        return None


def first_task(tasks: Iterable[Json]) -> Json | None:
    """The task of a service that is the attempt itself."""
    return min(tasks, key=_age, default=None)


def has_ended(task: Json) -> bool:
    return task["Status"].get("State") in _ENDED


def _age(task: Json) -> tuple[str, int]:
    return str(task.get("CreatedAt", "")), int(task["Version"]["Index"])


def _true(code: int) -> int | None:
    """Swarm says -1 where it does not know."""
    return code if code >= 0 else None


def _said(task: Json | None) -> str:
    if task is None:
        return ""
    return str(task["Status"].get("Err") or task["Status"].get("Message") or "")
