"""SwarmNodes as Nodes, and writes of Nodes as writes of SwarmNodes."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

import pytest

from swarmtask.apiserver.builtins import builtin_types
from swarmtask.apiserver.projections.nodes import applied, causes_against, node_of, written
from swarmtask.apiserver.tables import table
from tests.apiserver.projections.swarm import node

NODE = next(rt for rt in builtin_types() if (rt.api_version, rt.kind) == ("v1", "Node"))


def cells(obj: dict[str, Any]) -> list[Any]:
    (row,) = table(NODE, [obj], include="None", now=datetime(2026, 3, 1, 12, 30, tzinfo=UTC))["rows"]
    return list(row["cells"])


def test_a_node_says_what_its_swarm_node_says() -> None:
    shown = node_of(node(maxTasks=3, taints=[{"key": "gpu", "value": "", "effect": "NoSchedule"}]))
    assert shown["metadata"]["uid"] == node()["metadata"]["uid"], "one object in two forms"
    assert "managedFields" not in shown["metadata"]
    assert shown["spec"] == {"taints": [{"key": "gpu", "effect": "NoSchedule"}]}
    status = shown["status"]
    assert status["capacity"] == {"cpu": "4", "memory": "8Gi", "swarmtask.io/gpu": "1", "pods": "3"}
    assert status["addresses"] == [
        {"type": "InternalIP", "address": "10.0.0.5"}, {"type": "Hostname", "address": "Annas-Laptop"},
    ]  # fmt: skip
    assert [condition["type"] for condition in status["conditions"]] == ["MemoryPressure", "Ready"]
    assert all(condition["lastHeartbeatTime"] == "2026-03-01T12:00:00Z" for condition in status["conditions"])
    assert status["nodeInfo"]["containerRuntimeVersion"] == "swarm://27.1"


def test_a_node_of_which_nobody_has_told_anything() -> None:
    shown = node_of({"metadata": {"name": "new"}})
    assert shown["status"]["conditions"] == []
    assert shown["status"]["addresses"] == [{"type": "Hostname", "address": "new"}]
    assert cells(shown)[:3] == ["new", "Unknown", "<none>"]
    assert cells(shown)[4:] == ["<none>"] * 6


@pytest.mark.parametrize(
    ("ready", "spec", "word"),
    [
        ("True", {}, "Ready"), ("False", {}, "NotReady"), ("Unknown", {}, "NotReady"),
        ("True", {"unschedulable": True}, "Ready,SchedulingDisabled"), ("True", {"drain": True}, "Ready,SchedulingDisabled"),
    ],
)  # fmt: skip
def test_the_word_for_its_state(ready: str, spec: dict[str, Any], word: str) -> None:
    assert cells(node_of(node(ready=ready, **spec)))[1] == word


def test_roles_come_from_labels() -> None:
    labelled = node()
    labelled["metadata"]["labels"] = {"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/gpu": "", "a": "b"}
    assert cells(node_of(labelled))[2] == "gpu,worker"


# --- writing ---


def write(stored: dict[str, Any], **spec: Any) -> dict[str, Any]:
    new = node_of(stored)
    new["spec"] |= spec
    assert causes_against(node_of(stored), new) == []
    return written(stored, new)


def test_cordon_and_uncordon() -> None:
    stored = node(region="home")
    cordoned = write(stored, unschedulable=True)
    assert (cordoned["spec"]["unschedulable"], cordoned["spec"]["region"]) == (True, "home")
    assert stored == node(region="home"), "what goes in stays as it is"
    drained = node(unschedulable=True, drain=True)
    opened = write(drained, unschedulable=False)
    assert (opened["spec"]["unschedulable"], opened["spec"]["drain"]) == (False, False), "as `swarmtask uncordon`"
    assert write(node(drain=True), unschedulable=True)["spec"].get("unschedulable") is None, "it shows so already"


def test_taints_labels_and_annotations() -> None:
    taint = {"key": "gpu", "value": "yes", "effect": "NoSchedule", "timeAdded": None}
    assert write(node(), taints=[taint])["spec"]["taints"] == [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]
    stored = node(taints=[{"key": "a", "value": "", "effect": "NoSchedule"}])
    new = node_of(stored)
    del new["spec"]["taints"]
    new["metadata"]["labels"] = {"room": "cellar"}
    new["metadata"]["annotations"] = {"note": "loud"}
    result = written(stored, new)
    assert result["spec"]["taints"] == []
    assert (result["metadata"]["labels"], result["metadata"]["annotations"]) == ({"room": "cellar"}, {"note": "loud"})
    assert result["metadata"]["managedFields"] == stored["metadata"]["managedFields"]


def test_the_status_of_a_node_is_not_written_and_other_fields_are_refused() -> None:
    shown = node_of(node())
    new = copy.deepcopy(shown)
    new["status"] = {"phase": "whatever"}
    assert causes_against(shown, new) == []
    assert written(node(), new)["status"] == node()["status"]
    new["spec"] = {"podCIDR": "10.0.0.0/8", "unschedulable": "yes", "taints": "none"}
    assert [cause.field for cause in causes_against(shown, new)] == ["spec.podCIDR", "spec.unschedulable", "spec.taints"]
    assert "kubectl edit swarmnode" in causes_against(shown, new)[0].message
    assert [cause.field for cause in causes_against(shown, {"spec": [1]})] == ["spec"]


def test_what_somebody_applies() -> None:
    metadata = {"name": "laptop-1", "labels": {"room": "cellar"}, "creationTimestamp": None}
    body = {"metadata": metadata, "spec": {"unschedulable": True}}
    assert applied(body) == {
        "apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmNode",
        "metadata": {"name": "laptop-1", "labels": {"room": "cellar"}}, "spec": {"unschedulable": True},
    }  # fmt: skip
    assert applied({"metadata": {"name": "laptop-1"}, "spec": {"unschedulable": False}})["spec"] == {
        "unschedulable": False, "drain": False,
    }  # fmt: skip
    assert "spec" not in applied({"metadata": {"name": "laptop-1"}})
