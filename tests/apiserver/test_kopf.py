"""A real kopf operator on the embedded API: resuming, watching, merge patches, finalizers, status, Events."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import httpx
import kopf
import pytest
import yaml

from tests.apiserver.server import RunningServer
from tests.apiserver.waiting import until, until_gone

TASKS = "/apis/swarmtask.io/v1alpha1/namespaces/default/swarmtasks"
MERGE = {"content-type": "application/merge-patch+json"}


def task(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmTask", "metadata": {"name": name},
        "spec": {"container": {"image": "busybox"}},
    }  # fmt: skip


def operator_of(seen: list[tuple[str, str]], server: RunningServer) -> kopf.OperatorRegistry:
    """Handlers that write down what they see, set a status and post an Event."""
    registry = kopf.OperatorRegistry()
    target = ("swarmtask.io", "v1alpha1", "swarmtasks")

    @kopf.on.login(registry=registry)
    def login(**_: Any) -> kopf.ConnectionInfo:
        return kopf.ConnectionInfo(
            server=server.url, ca_path=str(server.ca), scheme="Bearer", token=server.token, default_namespace="default"
        )

    @kopf.on.startup(registry=registry)
    def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix="test.swarmtask.io")
        settings.persistence.finalizer = "test.swarmtask.io/held"

    @kopf.on.resume(*target, registry=registry)
    @kopf.on.create(*target, registry=registry)
    async def on_create(name: str | None, patch: kopf.Patch, body: kopf.Body, **_: Any) -> None:
        seen.append(("create", name or ""))
        patch.status["phase"] = "Queued"
        kopf.event(body, type="Normal", reason="Seen", message="the operator has seen it")

    @kopf.on.update(*target, registry=registry)
    async def on_update(name: str | None, **_: Any) -> None:
        seen.append(("update", name or ""))

    @kopf.on.delete(*target, registry=registry)
    async def on_delete(name: str | None, **_: Any) -> None:
        seen.append(("delete", name or ""))

    return registry


async def test_a_kopf_operator_works(
    server: RunningServer, api: httpx.AsyncClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert yaml.safe_load(server.kubeconfig.read_text())["clusters"]
    caplog.set_level(logging.ERROR)
    seen: list[tuple[str, str]] = []
    await api.post(TASKS, json=task("before"))
    stop, ready = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(kopf.operator(
        registry=operator_of(seen, server), clusterwide=True, standalone=True, stop_flag=stop, ready_flag=ready,
        memo=kopf.Memo(), settings=kopf.OperatorSettings(),
    ))  # fmt: skip
    try:
        async with asyncio.timeout(30):
            await ready.wait()

        async def seen_(*entry: str) -> None:
            async def check() -> bool:
                return tuple(entry) in seen

            await until(check, what=str(entry))

        await seen_("create", "before")
        await api.post(TASKS, json=task("after"))
        await seen_("create", "after")

        async def settled() -> Any:
            body = (await api.get(f"{TASKS}/after")).json()
            return body.get("status", {}).get("phase") == "Queued" and body["metadata"].get("finalizers") == [
                "test.swarmtask.io/held"
            ]

        await until(settled, what="status and finalizer")

        async def events() -> Any:
            found = (
                await api.get("/api/v1/namespaces/default/events", params={"fieldSelector": "involvedObject.name=after"})
            ).json()
            return any(item["reason"] == "Seen" for item in found["items"])

        await until(events, what="the Event")
        await api.patch(f"{TASKS}/after", json={"spec": {"suspend": True}}, headers=MERGE)
        await seen_("update", "after")
        await api.delete(f"{TASKS}/after")
        await seen_("delete", "after")
        await until_gone(api, f"{TASKS}/after")
    finally:
        stop.set()
        await asyncio.wait_for(running, 30)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("kopf")] == []
