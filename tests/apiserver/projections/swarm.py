"""Stored tasks and nodes for the tests of projections, as the operator and node agents leave them."""

from __future__ import annotations

from typing import Any

import httpx

UID = "0f1e2d3c-4b5a-4978-8796-a5b4c3d2e1f0"
BASE = "/apis/swarmtask.io/v1alpha1"
TASKS = f"{BASE}/namespaces/default/swarmtasks"
NODES = f"{BASE}/swarmnodes"
MERGE = {"content-type": "application/merge-patch+json"}


def attempt(number: int, state: str = "Running", **facts: Any) -> dict[str, Any]:
    """A record of an attempt on laptop-1; it has ended unless its state is a live one."""
    minute = f"2026-03-01T12:{number:02}"
    record: dict[str, Any] = {
        "number": number, "id": f"st-x-{number}", "node": "laptop-1", "engine": "swarm", "state": state,
        "boundAt": f"{minute}:00Z", "requested": {"cpu": "500m", "memory": "512Mi", "gpu": 0},
    }  # fmt: skip
    if state != "Starting":
        record["startedAt"] = f"{minute}:05Z"
    if state in ("Succeeded", "Failed", "Stopped"):
        record |= {"finishedAt": f"{minute}:30Z", "exitCode": 0 if state == "Succeeded" else 3}
        record["reason"] = "Completed" if state == "Succeeded" else "Error"
    return {name: value for name, value in {**record, **facts}.items() if value is not None}


def task(*attempts: dict[str, Any], name: str = "lint", annotations: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """A stored SwarmTask."""
    newest = attempts[-1]["number"] if attempts else 0
    return {
        "apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmTask",
        "metadata": {"name": name, "namespace": "default", "uid": UID, "labels": {"team": "a"}, "annotations": annotations or {},
                     "creationTimestamp": "2026-03-01T12:00:00Z", "resourceVersion": "7"},
        "spec": {"container": {"image": "acme/lint:1", "command": ["lint"], "args": ["--all"],
                               "env": [{"name": "A", "value": "1"}]}, **spec},
        "status": {"phase": "Running", "attempt": newest, "attempts": list(attempts)},
    }  # fmt: skip


def node(name: str = "laptop-1", ready: str = "True", **spec: Any) -> dict[str, Any]:
    """A stored SwarmNode with an agent."""
    since = "2026-03-01T11:00:00Z"
    return {
        "apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmNode",
        "metadata": {"name": name, "uid": "n" + UID[1:], "labels": {"swarmtask.io/hostname": "Annas-Laptop"},
                     "creationTimestamp": since, "resourceVersion": "5", "managedFields": [
                         {"manager": "swarmtask-node-agent", "operation": "Apply", "subresource": "status",
                          "time": "2026-03-01T12:10:00Z"}]},
        "spec": spec,
        "status": {
            "phase": "Ready", "address": "10.0.0.5", "arch": "amd64", "os": "linux", "kernel": "6.1.0", "agentVersion": "0.1.0",
            "bootID": "boot-1", "lastHeartbeatTime": "2026-03-01T12:00:00Z",
            "engines": [{"name": "swarm", "id": "x", "version": "27.1"}],
            "capacity": {"cpu": "4", "memory": "8Gi", "gpu": 1}, "allocatable": {"cpu": "3", "memory": "7Gi", "gpu": 1},
            "conditions": [
                {"type": "Ready", "status": ready, "reason": "EngineReady", "message": "ok", "lastTransitionTime": since},
                {"type": "MemoryPressure", "status": "False", "reason": "MemorySuffices", "lastTransitionTime": since},
            ],
            "usage": {"cpu": "1200m", "memory": "2048Mi"},
        },
    }  # fmt: skip


async def store_node(api: httpx.AsyncClient, obj: dict[str, Any] | None = None) -> dict[str, Any]:
    """Create a SwarmNode and let its agent write the status."""
    wanted = obj or node()
    name = wanted["metadata"]["name"]
    body = {**wanted, "metadata": {"name": name, "labels": wanted["metadata"]["labels"]}}
    made = await api.post(NODES, json=body)
    assert made.status_code == 201, made.text
    path = f"{NODES}/{name}/status?fieldManager=swarmtask-node-agent&force=true"
    status = {"apiVersion": wanted["apiVersion"], "kind": "SwarmNode", "metadata": {"name": name}, "status": wanted["status"]}
    written = await api.patch(path, json=status, headers={"content-type": "application/apply-patch+yaml"})
    assert written.status_code == 200, written.text
    stored: dict[str, Any] = written.json()
    return stored


async def store_task(api: httpx.AsyncClient, *attempts: dict[str, Any], name: str = "lint", **spec: Any) -> dict[str, Any]:
    """Create a SwarmTask with these attempts; returns what is stored."""
    wanted = task(*attempts, name=name, **spec)
    body = {**wanted, "metadata": {"name": name, "labels": {"team": "a"}}}
    made = await api.post(TASKS, json=body)
    assert made.status_code == 201, made.text
    return await write_attempts(api, *attempts, name=name)


async def write_attempts(api: httpx.AsyncClient, *attempts: dict[str, Any], name: str = "lint") -> dict[str, Any]:
    """As the operator does."""
    newest = attempts[-1]["number"] if attempts else 0
    status = {"phase": "Running", "attempt": newest, "attempts": list(attempts)}
    written = await api.patch(f"{TASKS}/{name}/status", json={"status": status}, headers=MERGE)
    assert written.status_code == 200, written.text
    stored: dict[str, Any] = written.json()
    return stored
