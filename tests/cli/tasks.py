"""Stored objects for the CLI's tests."""

from __future__ import annotations

from typing import Any

from swarmtask.kube import Object
from swarmtask.resources.kinds import SWARM_NODE, SWARM_QUEUE, SWARM_TASK
from swarmtask.resources.task import attempt_id
from tests.fakes.kube import FakeKube


def attempt(number: int = 1, state: str = "Running", *, uid: str = "00000000-0000-4000-8000-000000000001", **more: Any) -> Object:
    return {"number": number, "id": attempt_id(uid, number), "node": "desk", "engine": "local", "state": state, **more}


def add_task(kube: FakeKube, name: str, phase: str = "Queued", **status: Any) -> Object:
    """A task of namespace default (or `namespace`), labelled app=test, in the queue default (or `queue`). `spec`: what else it
    wishes."""
    namespace, spec = status.pop("namespace", "default"), {"queue": status.pop("queue", "default")} | status.pop("spec", {})
    body = {
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": "test"}},
        "spec": {"container": {"image": "acme/lint:1"}} | spec,
    }
    return kube.add(SWARM_TASK, body, status={"phase": phase, **status})


def add_node(kube: FakeKube, name: str = "desk") -> Object:
    return kube.add(
        SWARM_NODE,
        {"metadata": {"name": name}, "spec": {"unschedulable": False}},
        status={
            "phase": "Ready", "tasks": 2, "allocatable": {"cpu": "4", "memory": "8Gi", "gpu": 0},
            "requested": {"cpu": "1500m", "memory": "1536Mi", "gpu": 0},
        },
    )  # fmt: skip


def add_queue(kube: FakeKube, name: str = "default", *, spec: Object | None = None, **status: Any) -> Object:
    return kube.add(
        SWARM_QUEUE,
        {"metadata": {"name": name, "namespace": "default"}, "spec": {"maxRunning": 5} | (spec or {})},
        status={"queued": 3, "running": 2} | status,
    )
