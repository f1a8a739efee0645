"""Cells of Tables of Nodes, Pods and their metrics that no JSON path describes.

Called by `apiserver.tables`. Each takes a projected object and the time; the words are those that `kubectl get` shows of a cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

_NONE = "<none>"
_ROLE_LABEL = "node-role.kubernetes.io/"
Cell = Callable[[Mapping[str, Any], datetime], Any]


def _containers(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list((pod.get("status") or {}).get("containerStatuses") or ())


def _pod_ready(pod: Mapping[str, Any], now: datetime) -> str:
    wanted = len((pod.get("spec") or {}).get("containers") or ())
    return f"{sum(1 for one in _containers(pod) if one.get('ready'))}/{wanted}"


def _pod_status(pod: Mapping[str, Any], now: datetime) -> str:
    status = pod.get("status") or {}
    if "deletionTimestamp" in (pod.get("metadata") or {}):
        return "Terminating"
    word = status.get("reason") or status.get("phase") or ""
    for one in _containers(pod):
        state = one.get("state") or {}
        for kind in ("waiting", "terminated"):
            word = (state.get(kind) or {}).get("reason") or word
    return str(word)


def _pod_restarts(pod: Mapping[str, Any], now: datetime) -> int:
    return sum(int(one.get("restartCount") or 0) for one in _containers(pod))


def _or_none(*path: str) -> Cell:
    def cell(obj: Mapping[str, Any], now: datetime) -> Any:
        value: Any = obj
        for part in path:
            value = value.get(part) if isinstance(value, Mapping) else None
        return value or _NONE

    return cell


def _nothing(obj: Mapping[str, Any], now: datetime) -> str:
    return _NONE


def _node_status(node: Mapping[str, Any], now: datetime) -> str:
    conditions = (node.get("status") or {}).get("conditions") or ()
    ready = next((one.get("status") for one in conditions if one.get("type") == "Ready"), None)
    word = "Unknown" if ready is None else "Ready" if ready == "True" else "NotReady"
    return f"{word},SchedulingDisabled" if (node.get("spec") or {}).get("unschedulable") else word


def _node_roles(node: Mapping[str, Any], now: datetime) -> str:
    labels = (node.get("metadata") or {}).get("labels") or {}
    roles = sorted(key.removeprefix(_ROLE_LABEL) for key in labels if key.startswith(_ROLE_LABEL) and key != _ROLE_LABEL)
    return ",".join(roles) or _NONE


def _node_address(node: Mapping[str, Any], now: datetime) -> str:
    addresses = (node.get("status") or {}).get("addresses") or ()
    return next((one["address"] for one in addresses if one.get("type") == "InternalIP"), _NONE)


def _pod_usage(resource: str) -> Cell:
    def cell(metrics: Mapping[str, Any], now: datetime) -> Any:
        containers = metrics.get("containers") or ()
        return ",".join(str((one.get("usage") or {}).get(resource, "")) for one in containers)

    return cell


CELLS: dict[str, Cell] = {
    "@pod_ready": _pod_ready,
    "@pod_status": _pod_status,
    "@pod_restarts": _pod_restarts,
    "@pod_ip": _or_none("status", "podIP"),
    "@pod_node": _or_none("spec", "nodeName"),
    "@none": _nothing,
    "@node_status": _node_status,
    "@node_roles": _node_roles,
    "@node_version": _or_none("status", "nodeInfo", "kubeletVersion"),
    "@node_address": _node_address,
    "@node_os": _or_none("status", "nodeInfo", "osImage"),
    "@node_kernel": _or_none("status", "nodeInfo", "kernelVersion"),
    "@node_runtime": _or_none("status", "nodeInfo", "containerRuntimeVersion"),
    "@usage_cpu": _pod_usage("cpu"),
    "@usage_memory": _pod_usage("memory"),
}
"""Name, as `Column.json_path` has it -> cell."""
