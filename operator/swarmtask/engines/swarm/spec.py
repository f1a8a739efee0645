"""The Swarm service of one attempt, built field by field from an allow list. Pure.

Called by `engine`. Nothing of a user's object is passed through: what is not named here cannot reach Swarm. No mounts, networks,
ports, secrets, devices, sysctls, added capabilities (except the administrator's), host namespaces, or placement other than the one
node. Swarm expands `{{...}}` in environment variables (measured; not in commands and arguments): they are escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from swarmtask.clock import NANOS_PER_S
from swarmtask.engines.base import (
    LABEL_ATTEMPT,
    LABEL_CLUSTER,
    LABEL_FENCE,
    LABEL_GRACE,
    LABEL_MANAGED,
    LABEL_MEMORY_REQUEST,
    LABEL_PRIORITY,
    LABEL_SPEC_HASH,
    LABEL_TASK_NAME,
    LABEL_TASK_NAMESPACE,
    LABEL_TASK_UID,
    Workload,
)
from swarmtask.engines.devices import gpu_environment

LABEL_STOPPED = "swarmtask.io/stopped"
"""Value `true` on a service that was told to stop; set in the same update that takes its task away."""
LABEL_IMAGE = "swarmtask.io/image"
"""The image as it was asked for, when it is pinned by ID or digest."""
NOWHERE = "node.id==stopped"
"""A constraint that no node meets: node IDs have 25 characters."""
NANOS_PER_MILLI_CPU = 1_000_000
LOG_OPTIONS = {"max-size": "32m", "max-file": "2", "compress": "true"}
"""Per attempt. JSON doubles short lines: with these, 10 MB of output stay readable; the older file is compressed. Few large files,
not many small ones: Docker's streams lose and repeat lines when they are a whole file behind as the log is rotated (20.10.24)."""


def escape(text: str) -> str:
    """A Swarm template that expands to `text`: the only thing that means anything to it is `{{`."""
    return text.replace("{{", '{{"{{"}}')


def owner_labels(workload: Workload, cluster_id: str) -> dict[str, str]:
    return {
        LABEL_MANAGED: "true",
        LABEL_CLUSTER: cluster_id,
        LABEL_TASK_UID: workload.task_uid,
        LABEL_TASK_NAMESPACE: workload.namespace,
        LABEL_TASK_NAME: workload.task_name,
        LABEL_ATTEMPT: str(workload.attempt),
        LABEL_SPEC_HASH: workload.spec_hash,
    }


def agent_labels(workload: Workload) -> dict[str, str]:
    """What the node agent has to know of a container."""
    return {
        LABEL_FENCE: "true" if workload.fence else "false",
        LABEL_PRIORITY: str(workload.priority),
        LABEL_GRACE: str(workload.grace_s),
        LABEL_MEMORY_REQUEST: str(workload.memory_request_bytes),
    }


def label_filter(cluster_id: str) -> dict[str, list[str]]:
    """What `GET /services` and `GET /tasks` are asked for: ours and nothing else."""
    return {"label": [f"{LABEL_MANAGED}=true", f"{LABEL_CLUSTER}={cluster_id}"]}


def task_template(
    workload: Workload, cluster_id: str, image: str, *, pids_limit: int, capability_add: Sequence[str] = ()
) -> dict[str, Any]:
    """`TaskTemplate` of the service. `image` is what `workload.image` was resolved to."""
    container: dict[str, Any] = {
        "Image": image,
        "Labels": owner_labels(workload, cluster_id) | agent_labels(workload) | {LABEL_IMAGE: workload.image},
        "StopGracePeriod": workload.grace_s * NANOS_PER_S,
        "CapabilityDrop": ["ALL"],
        "Privileges": {"NoNewPrivileges": True},  # kept by API 1.44 and later; older ones lose it in silence
    }
    if workload.command:
        container["Command"] = list(workload.command)
    if workload.args:
        container["Args"] = list(workload.args)
    variables = dict(workload.env) | gpu_environment(workload, isolated=True)
    if variables:
        container["Env"] = [f"{name}={escape(value)}" for name, value in variables.items()]
    if workload.working_dir:
        container["Dir"] = workload.working_dir
    if capability_add:
        container["CapabilityAdd"] = list(capability_add)
    return {
        "ContainerSpec": container,
        "Resources": resources(workload, pids_limit),
        "RestartPolicy": {"Condition": "none", "MaxAttempts": 0},
        "Placement": {"Constraints": [f"node.id=={workload.node_id}"]},
        "LogDriver": {"Name": "json-file", "Options": LOG_OPTIONS},
        "Networks": [],
    }


def resources(workload: Workload, pids_limit: int) -> dict[str, Any]:
    """Limits hold the attempt. Nothing is reserved in Swarm: our scheduler alone decides what fits, and a reservation would let
    Swarm keep waiting with what our scheduler has placed (an administrator may set allocatable above what Swarm reports, and Swarm
    frees a reservation only some time after the end)."""
    limits: dict[str, Any] = {"Pids": pids_limit}
    if workload.memory_limit_bytes is not None:
        limits["MemoryBytes"] = workload.memory_limit_bytes
    if workload.cpu_limit_milli is not None:
        limits["NanoCPUs"] = workload.cpu_limit_milli * NANOS_PER_MILLI_CPU
    return {"Limits": limits}


def lost_hardening(stored: dict[str, Any]) -> list[str]:
    """Which protections the engine has not stored, read back from a service's `TaskTemplate`."""
    container = stored.get("ContainerSpec", {})
    lost = []
    if container.get("CapabilityDrop") != ["ALL"]:
        lost.append("CapabilityDrop")
    if not (container.get("Privileges") or {}).get("NoNewPrivileges"):
        lost.append("NoNewPrivileges")
    if not (stored.get("Resources", {}).get("Limits") or {}).get("Pids"):
        lost.append("Pids")
    return lost
