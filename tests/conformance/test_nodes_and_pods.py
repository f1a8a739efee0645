"""Laptops as nodes and attempts as pods, by real kubectl programs. The operator's and the agents' part is written by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.apiserver.projections.swarm import attempt, node, task
from tests.conformance.conftest import Kubectl
from tests.conformance.fleet import config, names, text

pytestmark = [pytest.mark.kubectl, pytest.mark.embedded]
BASE = "/apis/swarmtask.io/v1alpha1"


def write_status(kubectl: Kubectl, path: str, status: dict[str, Any]) -> None:
    """As the operator does; the old kubectl knows no --subresource."""
    stored = json.loads(kubectl("get", "--raw", path))
    stored["status"] = status
    kubectl("replace", "--raw", f"{path}/status", "-f", "-", stdin=json.dumps(stored))


def machine(kubectl: Kubectl) -> str:
    """A node of this test's own."""
    name = f"laptop-{kubectl.namespace}"
    wanted = node(name)
    kubectl("create", "-f", "-", stdin=text({**wanted, "metadata": {"name": name}}))
    write_status(kubectl, f"{BASE}/swarmnodes/{name}", wanted["status"])
    return name


def attempts(kubectl: Kubectl, *records: dict[str, Any], name: str = "lint") -> None:
    """Let the task `name` have these attempts; it is created where it does not exist."""
    wanted = task(*records, name=name)
    labels = wanted["metadata"]["labels"]
    kubectl("apply", "-f", "-", stdin=text({**wanted, "metadata": {"name": name, "labels": labels}, "status": {}}))
    write_status(kubectl, f"{BASE}/namespaces/{kubectl.namespace}/swarmtasks/{name}", wanted["status"])


def cells(said: str) -> list[list[str]]:
    return [line.split() for line in said.splitlines()]


def test_get_nodes(kubectl: Kubectl) -> None:
    name = machine(kubectl)
    (row,) = cells(kubectl("get", "node", name, "--no-headers", "-o", "wide"))
    assert row[:3] == [name, "Ready", "<none>"]
    assert row[4:] == ["swarmtask-0.1.0", "10.0.0.5", "<none>", "linux", "6.1.0", "swarm://27.1"]
    assert "INTERNAL-IP" in kubectl("get", "nodes", "-o", "wide").splitlines()[0]
    assert kubectl("get", "no", name, "-o", "jsonpath={.status.nodeInfo.bootID}") == "boot-1"
    assert kubectl("wait", "--for=condition=Ready", f"node/{name}", "--timeout=10s").strip() == f"node/{name} condition met"


def test_describe_node(kubectl: Kubectl) -> None:
    name = machine(kubectl)
    attempts(kubectl, attempt(1, "Failed", node=name), attempt(2, node=name))
    event = {"apiVersion": "v1", "kind": "Event", "metadata": {"name": f"{name}.1", "namespace": "default"}, "type": "Normal",
             "involvedObject": {"kind": "SwarmNode", "apiVersion": "swarmtask.io/v1alpha1", "name": name, "uid": "u"},
             "reason": "NodeBack", "message": "it is heard again", "lastTimestamp": "2026-03-01T12:00:00Z"}  # fmt: skip
    kubectl("create", "-f", "-", "-n", "default", stdin=text(event))
    said = kubectl("describe", "node", name)
    assert "MemorySuffices" in said
    assert said.count("it is heard again") == 1
    pods = said[said.index("Non-terminated Pods") :]
    assert "lint-2" in pods
    assert "lint-1" not in pods
    assert "500m (16%)" in pods, "of the 3 cores that are allocatable"


def test_cordon_taint_label_annotate(kubectl: Kubectl) -> None:
    name = machine(kubectl)
    assert kubectl("cordon", name).strip() == f"node/{name} cordoned"
    assert cells(kubectl("get", "node", name, "--no-headers"))[0][1] == "Ready,SchedulingDisabled"
    assert kubectl("get", "sn", name, "-o", "jsonpath={.spec.unschedulable}") == "true"
    kubectl("patch", "sn", name, "--type=merge", "-p", '{"spec":{"drain":true,"unschedulable":false}}')
    assert kubectl("cordon", name).strip() == f"node/{name} already cordoned"
    assert kubectl("uncordon", name).strip() == f"node/{name} uncordoned"
    assert kubectl("get", "sn", name, "-o", "jsonpath={.spec.drain}") == "false"
    kubectl("taint", "node", name, "gpu=yes:NoSchedule", "slow:PreferNoSchedule")
    kubectl("taint", "node", name, "gpu-")
    assert json.loads(kubectl("get", "sn", name, "-o", "json"))["spec"]["taints"] == [
        {"key": "slow", "value": "", "effect": "PreferNoSchedule"}
    ]
    kubectl("label", "node", name, "room=cellar", "node-role.kubernetes.io/worker=")
    kubectl("annotate", "node", name, "note=loud")
    assert cells(kubectl("get", "nodes", "-l", "room=cellar,note!=x", "-L", "room", "--no-headers"))[0][2] == "worker"
    assert kubectl("get", "sn", name, "-o", "jsonpath={.metadata.labels.room}{.metadata.annotations.note}") == "cellarloud"
    kubectl("label", "node", name, "room-")
    assert kubectl("get", "sn", name, "-o", "jsonpath={.metadata.labels.room}") == ""


def test_apply_edit_and_delete_a_node(kubectl: Kubectl) -> None:
    name = machine(kubectl)
    wish: dict[str, Any] = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"room": "cellar"}}}
    kubectl("apply", "-f", "-", stdin=text(wish))
    assert kubectl("apply", "-f", "-", stdin=text(wish)).strip() == f"node/{name} unchanged"
    wish["spec"] = {"unschedulable": True}
    assert kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text(wish)).endswith("serverside-applied\n")
    assert kubectl("get", "sn", name, "-o", "jsonpath={.spec.unschedulable}{.metadata.labels.room}") == "truecellar"
    kubectl("patch", "node", name, "--type=merge", "-p", '{"spec":{"unschedulable":null}}')
    wish["spec"] = {"podCIDR": "10.0.0.0/8"}
    assert "kubectl edit swarmnode" in kubectl.fails("apply", "-f", "-", stdin=text(wish))
    assert "swarmtask join" in kubectl.fails("create", "-f", "-", stdin=text({**wish, "metadata": {"name": "other"}}))
    assert kubectl("delete", "node", name).strip() == f'node "{name}" deleted'
    assert "NotFound" in kubectl.fails("get", "sn", name)


def test_get_pods(kubectl: Kubectl) -> None:
    attempts(kubectl, attempt(1, "Failed", reason="OOMKilled"), attempt(2, "Starting", node="laptop-2"))
    assert [row[:4] for row in cells(kubectl("get", "pods", "--no-headers"))] == [
        ["lint-1", "0/1", "OOMKilled", "0"], ["lint-2", "0/1", "ContainerCreating", "0"],
    ]  # fmt: skip
    wide = cells(kubectl("get", "po", "-o", "wide", "--no-headers"))
    assert [row[6] for row in wide] == ["laptop-1", "laptop-2"]
    everywhere = cells(kubectl("get", "pods", "-A", "--no-headers"))
    assert [kubectl.namespace, "lint-2"] in [row[:2] for row in everywhere]
    assert names(kubectl, "pods", "--field-selector=spec.nodeName=laptop-2") == {"lint-2"}
    assert names(kubectl, "pods", "-l", "swarmtask.io/task-name=lint,swarmtask.io/attempt=1") == {"lint-1"}
    assert names(kubectl, "pods", "--chunk-size=1") == {"lint-1", "lint-2"}
    assert {"pod/lint-1", "swarmtask.swarmtask.io/lint"} <= {row[0] for row in cells(kubectl("get", "all", "--no-headers")) if row}


def test_watch_pods(kubectl: Kubectl) -> None:
    attempts(kubectl, attempt(1, "Starting"))
    stream = kubectl.follow("get", "pods", "-w", "--no-headers")
    stream.until(lambda line: line.split()[:3] == ["lint-1", "0/1", "ContainerCreating"])
    attempts(kubectl, attempt(1))
    stream.until(lambda line: line.split()[:3] == ["lint-1", "1/1", "Running"])
    attempts(kubectl, attempt(1, "Failed"), attempt(2))
    stream.until(lambda line: line.split()[:3] == ["lint-1", "0/1", "Error"])
    stream.until(lambda line: line.split()[:3] == ["lint-2", "1/1", "Running"])


def test_describe_pod(kubectl: Kubectl) -> None:
    attempts(kubectl, attempt(1, "Failed", message="boom"), attempt(2))
    uid = kubectl("get", "st", "lint", "-o", "jsonpath={.metadata.uid}")
    for number in (1, 2):
        about = {"kind": "SwarmTask", "apiVersion": "swarmtask.io/v1alpha1", "name": "lint", "namespace": kubectl.namespace}
        kubectl("create", "-f", "-", stdin=text({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": f"lint.{number}"}, "involvedObject": {**about, "uid": uid},
            "type": "Normal", "reason": "Scheduled", "message": f"bound to laptop-1 (attempt {number}, engine swarm)",
        }))  # fmt: skip
    said = kubectl("describe", "pod", "lint-1")
    for words in ("Controlled By:", "SwarmTask/lint", "Terminated", "boom", "Exit Code:    3", "acme/lint:1"):
        assert words in said
    assert "attempt 1" in said
    assert "attempt 2" not in said, "events of another attempt"
    assert "Running" in kubectl("describe", "pod", "lint-2")
    events = kubectl("get", "events", "--field-selector=involvedObject.kind=Pod,involvedObject.name=lint-2", "--no-headers")
    assert [row[3] for row in cells(events)] == ["pod/lint-2"]
    assert len(cells(kubectl("get", "events", "--no-headers"))) == 2


def test_delete_a_pod(kubectl: Kubectl) -> None:
    attempts(kubectl, attempt(1, "Failed"), attempt(2))
    assert kubectl("delete", "pod", "lint-1", "--timeout=20s").startswith('pod "lint-1" deleted')
    waiting = kubectl.follow("delete", "pod", "lint-2")
    stream = kubectl.follow("get", "pods", "-w", "--no-headers")
    stream.until(lambda line: line.split()[:3] == ["lint-2", "1/1", "Terminating"])
    assert kubectl("get", "st", "lint", "-o", "jsonpath={.metadata.annotations.swarmtask\\.io/end-attempts}").count("@") == 2
    attempts(kubectl, attempt(1, "Failed"), attempt(2, "Stopped", reason="AttemptDeleted"), attempt(3))
    assert waiting.wait() == 0
    assert names(kubectl, "pods") == {"lint-3"}


def test_drain(kubectl: Kubectl) -> None:
    name = machine(kubectl)
    ended = attempt(1, "Failed", node=name)
    attempts(kubectl, ended, attempt(2, node=name))
    draining = kubectl.follow("drain", name)
    draining.until(lambda line: "evicting pod" in line and "lint-2" in line)
    stream = kubectl.follow("get", "pods", "-w", "--no-headers")
    stream.until(lambda line: line.split()[:3] == ["lint-2", "1/1", "Terminating"])
    attempts(kubectl, ended, attempt(2, "Stopped", node=name, reason="AttemptDeleted"), attempt(3, node="other"))
    assert draining.wait() == 0
    assert f"node/{name} " in draining.seen[-1]
    assert cells(kubectl("get", "node", name, "--no-headers"))[0][1] == "Ready,SchedulingDisabled"


def test_pods_are_not_created(kubectl: Kubectl) -> None:
    assert "Create or edit a SwarmTask instead" in kubectl.fails("run", "x", "--image=y", "--restart=Never")
    attempts(kubectl, attempt(1))
    assert "Create or edit a SwarmTask instead" in kubectl.fails("label", "pod", "lint-1", "a=b")
    assert "SwarmTask runs no Deployments" in kubectl.fails("create", "deployment", "x", "--image=y")
    assert kubectl.run("get", "deployments,services,jobs,pvc").err.startswith("No resources found")


def test_top(kubectl: Kubectl) -> None:
    name = machine(kubectl)
    told = node(name)["status"] | {"attempts": [
        {"id": f"st-{kubectl.namespace}", "state": "Running", "reason": "", "startedAt": "2026-03-01T12:00:00Z", "cpuSeconds": 1e7,
         "peakMemory": "2097152"}]}  # fmt: skip
    body = {"apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmNode", "metadata": {"name": name}, "status": told}
    path = f"{BASE}/swarmnodes/{name}/status?fieldManager=swarmtask-node-agent"
    stored = json.loads(kubectl("get", "--raw", f"{BASE}/swarmnodes/{name}"))
    body["metadata"] = stored["metadata"]
    kubectl("replace", "--raw", path, "-f", "-", stdin=json.dumps({**stored, "status": told}))
    attempts(kubectl, attempt(1, id=f"st-{kubectl.namespace}"))
    (row,) = [row for row in cells(kubectl("top", "nodes", "--no-headers")) if row[0] == name]
    assert row == [name, "1200m", "40%", "2048Mi", "28%"]
    (row,) = cells(kubectl("top", "pods", "--no-headers"))
    assert (row[0], row[2]) == ("lint-1", "2Mi")


def test_logs_and_exec_say_what_to_do(kubectl: Kubectl) -> None:
    attempts(kubectl, attempt(1))
    assert "swarmtask logs lint" in kubectl.fails("logs", "lint-1")
    assert kubectl.fails("exec", "lint-1", "--", "true")
    assert "kubectl logs -f" in kubectl.fails("attach", "lint-1")
    assert "from its node" in kubectl.fails("port-forward", "lint-1", "8080:80")
    if kubectl.version == "current":
        assert "kubectl exec" in kubectl.fails("debug", "lint-1", "--image=x", "--profile=general")


def test_prune_with_the_kinds_that_kubectl_chooses_itself(kubectl: Kubectl) -> None:
    label = {"app": kubectl.namespace}
    attempts(kubectl, attempt(1, "Failed"))
    kubectl("label", "st", "lint", f"app={kubectl.namespace}")
    kubectl("apply", "-f", "-", stdin=text(config("kept", labels=label), config("goes", labels=label)))
    said = kubectl("apply", "--prune", "-l", f"app={kubectl.namespace}", "-f", "-", stdin=text(config("kept", labels=label)))
    assert said.splitlines() == ["configmap/kept unchanged", "configmap/goes pruned"]
    assert names(kubectl, "pods") == {"lint-1"}, "nobody has applied it"
