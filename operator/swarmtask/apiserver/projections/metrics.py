"""What nodes and pods use, as metrics.k8s.io tells it: from what node agents have written into SwarmNodes, and from nothing else.

Called by the handlers. Pure. A node's figures are what its agent measured last; there are none for a node without an agent, and for
one that is not heard. A pod's figures cover the attempt from its start to the last word of the agent: CPU is the average over that
window, memory the most that was in use at once. An attempt of which no agent tells is left out.

Source of the fields: Kubernetes API reference, "metrics.k8s.io".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from swarmtask.apiserver.projections.pods import ANNOTATION_ID, CONTAINER
from swarmtask.clock import format_time, parse_time
from swarmtask.resources import units

GROUP_VERSION = "metrics.k8s.io/v1beta1"
AGENT = "swarmtask-node-agent"
"""Field manager of node agents."""
NODE_WINDOW = "10s"
"""An agent averages over the time between its looks."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What an agent told of one running attempt, and when."""

    started: datetime
    told: datetime
    cpu_s: float
    peak_memory: str


def told_at(swarm_node: Mapping[str, Any]) -> datetime | None:
    """When the agent of a node wrote its status last."""
    times = [
        entry["time"]
        for entry in swarm_node["metadata"].get("managedFields") or ()
        if entry.get("manager") == AGENT and entry.get("subresource") == "status" and entry.get("time")
    ]
    return parse_time(max(times)) if times else None


def node_metrics(swarm_node: Mapping[str, Any]) -> dict[str, Any] | None:
    """The NodeMetrics of a SwarmNode; None where nobody tells, or nothing is heard of it."""
    status, metadata = swarm_node.get("status") or {}, swarm_node["metadata"]
    usage, told = status.get("usage"), told_at(swarm_node)
    if not usage or told is None or not _heard(status):
        return None
    return {
        "kind": "NodeMetrics", "apiVersion": GROUP_VERSION,
        "metadata": {"name": metadata["name"], "creationTimestamp": format_time(told), "labels": metadata.get("labels") or {}},
        "timestamp": format_time(told), "window": NODE_WINDOW,
        "usage": {"cpu": str(usage.get("cpu", "0")), "memory": str(usage.get("memory", "0"))},
    }  # fmt: skip


def _heard(status: Mapping[str, Any]) -> bool:
    """Its Ready is known: an agent that has fallen silent tells nothing of now."""
    return not any(one.get("type") == "Ready" and one.get("status") == "Unknown" for one in status.get("conditions") or ())


def figures_of(swarm_nodes: Iterable[Mapping[str, Any]]) -> dict[str, Figures]:
    """Attempt ID -> what its agent told of it while it ran."""
    found: dict[str, Figures] = {}
    for node in swarm_nodes:
        status, told = node.get("status") or {}, told_at(node)
        if told is None or not _heard(status):
            continue
        for one in status.get("attempts") or ():
            if (
                one.get("state") == "Running"
                and one.get("startedAt")
                and one.get("cpuSeconds") is not None
                and one.get("peakMemory")
            ):
                figures = Figures(parse_time(one["startedAt"]), told, float(one["cpuSeconds"]), str(one["peakMemory"]))
                if figures.told > figures.started:
                    found[one["id"]] = figures
    return found


def pod_metrics(pods: Iterable[Mapping[str, Any]], figures: Mapping[str, Figures]) -> Iterator[dict[str, Any]]:
    """The PodMetrics of the pods of which something is known, in the order of the pods."""
    for pod in pods:
        metadata = pod["metadata"]
        one = figures.get(metadata["annotations"][ANNOTATION_ID])
        if one is None or pod["status"]["phase"] != "Running":
            continue
        window_s = (one.told - one.started).total_seconds()
        usage = {"cpu": units.format_cpu(round(one.cpu_s / window_s * 1000)), "memory": one.peak_memory}
        yield {
            "kind": "PodMetrics", "apiVersion": GROUP_VERSION,
            "metadata": {"name": metadata["name"], "namespace": metadata["namespace"], "labels": metadata.get("labels") or {},
                         "creationTimestamp": format_time(one.told)},
            "timestamp": format_time(one.told), "window": f"{int(window_s)}s",
            "containers": [{"name": CONTAINER, "usage": usage}],
        }  # fmt: skip
