"""What the tests of queues share: tasks, edits of the queue `default`, a clock whose seconds are moved by hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import httpx

from swarmtask.clock import SystemClock

BASE = "/apis/swarmtask.io/v1alpha1/namespaces/default"
TASKS, QUEUES = f"{BASE}/swarmtasks", f"{BASE}/swarmqueues"
MERGE = {"content-type": "application/merge-patch+json"}
APPLY = {"content-type": "application/apply-patch+yaml"}


class SteeredClock(SystemClock):
    """The date is the machine's (certificates are checked against it); `monotonic` moves when it is told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds


def task(name: str = "t", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmTask", "metadata": {"name": name},
        "spec": {"container": {"image": "busybox"}, **spec},
    }  # fmt: skip


def member(name: str, owner: dict[str, Any], index: int = 0, **spec: Any) -> dict[str, Any]:
    """A task of an array."""
    body = task(name, **spec)
    body["metadata"]["labels"] = {"swarmtask.io/array": owner["metadata"]["name"], "swarmtask.io/index": str(index)}
    body["metadata"]["ownerReferences"] = [
        {
            "apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"], "controller": True, "blockOwnerDeletion": True,
        }
    ]  # fmt: skip
    return body


async def edit_queue(api: httpx.AsyncClient, queue: str = "default", **spec: Any) -> None:
    response = await api.patch(f"{QUEUES}/{queue}", json={"spec": spec}, headers=MERGE)
    assert response.status_code == 200, response.text


async def make_queue(api: httpx.AsyncClient, queue: str, **spec: Any) -> None:
    body = {"apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmQueue", "metadata": {"name": queue}, "spec": spec}
    response = await api.post(QUEUES, json=body)
    assert response.status_code == 201, response.text


async def submit(api: httpx.AsyncClient, *names: str, **spec: Any) -> list[int]:
    """Create tasks one after the other; the codes of the answers."""
    return [(await api.post(TASKS, json=task(name, **spec))).status_code for name in names]


async def set_status(api: httpx.AsyncClient, name: str, phase: str) -> None:
    response = await api.patch(f"{TASKS}/{name}/status", json={"status": {"phase": phase}}, headers=MERGE)
    assert response.status_code == 200, response.text


async def names(api: httpx.AsyncClient) -> list[str]:
    return [item["metadata"]["name"] for item in (await api.get(TASKS)).json()["items"]]


def named(prefix: str, count: int) -> Iterable[str]:
    return (f"{prefix}{number}" for number in range(count))
