"""SwarmNodes as Nodes, and what is written to a Node as a write to its SwarmNode.

Called by the handlers and the watch hub through `NodeView`, and by the handlers for writes. Pure. A Node and its SwarmNode have the
same name, UID, labels, annotations and resourceVersion: they are one object in two forms. Of a Node's spec, `unschedulable` and
`taints` can be written; a drained SwarmNode shows as unschedulable, and `uncordon` takes a drain back, as `swarmtask uncordon` does
too.

Source of the fields: Kubernetes API reference, Node; well-known labels of node roles.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from swarmtask.apiserver.faults import bad_value, not_allowed
from swarmtask.apiserver.projections.pods import GPU_RESOURCE
from swarmtask.apiserver.projections.views import projected
from swarmtask.apiserver.records import Collection, Key, Record
from swarmtask.apiserver.selectors import Selection
from swarmtask.errors import Cause
from swarmtask.resources.kinds import SWARM_NODE

NODES: Collection = ("", "nodes")
SWARM_NODES: Collection = (SWARM_NODE.group, SWARM_NODE.plural)
HOSTNAME_LABEL = "swarmtask.io/hostname"
_SHARED = ("labels", "annotations", "finalizers", "ownerReferences")
"""Metadata that both forms have alike and that can be written."""
_WRITABLE = ("unschedulable", "taints")
_HOW = "only unschedulable and taints of a Node can be written; the rest is in the SwarmNode of its name (kubectl edit swarmnode)"


def node_of(swarm_node: Mapping[str, Any]) -> dict[str, Any]:
    """The Node that a stored SwarmNode shows; without resourceVersion."""
    source = swarm_node["metadata"]
    metadata = {name: source[name] for name in ("name", "uid", "creationTimestamp", *_SHARED) if source.get(name)}
    for name in ("deletionTimestamp", "deletionGracePeriodSeconds"):
        if name in source:
            metadata[name] = source[name]
    wish, status = swarm_node.get("spec") or {}, swarm_node.get("status") or {}
    spec: dict[str, Any] = {}
    if wish.get("unschedulable") or wish.get("drain"):
        spec["unschedulable"] = True
    if wish.get("taints"):
        spec["taints"] = [{name: taint[name] for name in ("key", "value", "effect") if taint.get(name)} for taint in wish["taints"]]
    return {"kind": "Node", "apiVersion": "v1", "metadata": metadata, "spec": spec, "status": _status(source, wish, status)}


def _status(metadata: Mapping[str, Any], wish: Mapping[str, Any], status: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "capacity": _resources(status.get("capacity") or {}, wish),
        "allocatable": _resources(status.get("allocatable") or {}, wish),
        "conditions": _conditions(status),
        "addresses": _addresses(metadata, status),
        "nodeInfo": _info(status),
    }


def _resources(amounts: Mapping[str, Any], wish: Mapping[str, Any]) -> dict[str, str]:
    found = {"cpu": str(amounts.get("cpu", "0")), "memory": str(amounts.get("memory", "0"))}
    if amounts.get("gpu"):
        found[GPU_RESOURCE] = str(amounts["gpu"])
    if wish.get("maxTasks") is not None:
        found["pods"] = str(wish["maxTasks"])
    return found


def _conditions(status: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Ready last, as kubectl expects to find it; what nobody has told is not there."""
    heartbeat = status.get("lastHeartbeatTime")
    shown = []
    for condition in status.get("conditions") or ():
        one = {name: condition[name] for name in ("type", "status", "lastTransitionTime", "reason", "message") if name in condition}
        shown.append(one | ({"lastHeartbeatTime": heartbeat} if heartbeat else {}))
    return sorted(shown, key=lambda one: one["type"] == "Ready")


def _addresses(metadata: Mapping[str, Any], status: Mapping[str, Any]) -> list[dict[str, str]]:
    found = [{"type": "InternalIP", "address": status["address"]}] if status.get("address") else []
    hostname = (metadata.get("labels") or {}).get(HOSTNAME_LABEL) or metadata["name"]
    return [*found, {"type": "Hostname", "address": hostname}]


def _info(status: Mapping[str, Any]) -> dict[str, str]:
    """All fields are required ones; what is not known is empty."""
    engines = status.get("engines") or ()
    agent = status.get("agentVersion") or ""
    return {
        "machineID": "", "systemUUID": "",
        "bootID": status.get("bootID") or "",
        "kernelVersion": status.get("kernel") or "",
        "osImage": status.get("os") or "",
        "operatingSystem": status.get("os") or "",
        "architecture": status.get("arch") or "",
        "containerRuntimeVersion": ", ".join(_runtime(engine) for engine in engines),
        "kubeletVersion": f"swarmtask-{agent}" if agent else "",
        "kubeProxyVersion": "",
    }  # fmt: skip


def _runtime(engine: Mapping[str, Any]) -> str:
    version = engine.get("version")
    return f"{engine.get('name', '')}://{version}" if version else f"{engine.get('name', '')}://"


# --- writing -------------------------------------------------------------------------------------------------------------


def causes_against(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Cause]:
    """Why a Node cannot become what is written: fields that it shows but that are not its own. `old`: as it is shown now."""
    before, after = old.get("spec") or {}, new.get("spec")
    if after is None:
        after = {}
    if not isinstance(after, dict):
        return [bad_value("spec", after, "must be an object")]
    others = sorted(name for name in before.keys() | after.keys() if name not in _WRITABLE and before.get(name) != after.get(name))
    causes = [not_allowed(f"spec.{name}", _HOW) for name in others]
    if not isinstance(after.get("unschedulable") or False, bool):
        causes.append(bad_value("spec.unschedulable", after["unschedulable"], "must be true or false"))
    taints = after.get("taints") or []
    if not isinstance(taints, list) or not all(isinstance(taint, dict) for taint in taints):
        causes.append(bad_value("spec.taints", taints, "must be a list of taints"))
    return causes


def written(swarm_node: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The SwarmNode that says what was written to its Node; `new` has no `causes_against`. The status of a Node is not written."""
    result = copy.deepcopy(dict(swarm_node))
    metadata, given = result["metadata"], new["metadata"]
    for name in _SHARED:
        if given.get(name):
            metadata[name] = given[name]
        else:
            metadata.pop(name, None)
    for name in ("uid", "resourceVersion"):
        if given.get(name):
            metadata[name] = given[name]
    spec = result.setdefault("spec", {})
    wish = new.get("spec") or {}
    closed = bool(wish.get("unschedulable"))
    if closed and not (spec.get("unschedulable") or spec.get("drain")):
        spec["unschedulable"] = True
    elif not closed:
        for name in ("unschedulable", "drain"):
            if spec.get(name):
                spec[name] = False
    taints = _taints(wish.get("taints") or ())
    if taints != (node_of(swarm_node)["spec"].get("taints") or []):
        spec["taints"] = taints
    return result


def applied(body: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a SwarmNode that says what somebody applies to its Node; `body` has no `causes_against` {}."""
    given = body.get("metadata") or {}
    metadata = {name: given[name] for name in ("name", "uid", "resourceVersion", *_SHARED) if given.get(name)}
    wish = body.get("spec") or {}
    spec: dict[str, Any] = {}
    if "unschedulable" in wish:
        spec["unschedulable"] = bool(wish["unschedulable"])
        if not spec["unschedulable"]:
            spec["drain"] = False
    if wish.get("taints"):
        spec["taints"] = _taints(wish["taints"])
    result: dict[str, Any] = {"apiVersion": SWARM_NODE.api_version, "kind": SWARM_NODE.kind, "metadata": metadata}
    return result | ({"spec": spec} if spec else {})


def _taints(taints: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Without `timeAdded`, which a SwarmNode does not keep."""
    return [{name: value for name, value in taint.items() if name != "timeAdded" and value is not None} for taint in taints]


# --- the view ------------------------------------------------------------------------------------------------------------


class NodeView:
    """See `views.View`."""

    source = SWARM_NODES

    def project(self, record: Record) -> list[Record]:
        return [projected(Key(NODES, "", record.key.name), record.rv, node_of(record.decode()))]

    def origin(self, key: Key) -> Key | None:
        return Key(SWARM_NODES, "", key.name)

    def may_show(self, record: Record, selection: Selection) -> bool:
        return True
