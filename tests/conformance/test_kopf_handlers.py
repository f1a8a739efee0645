"""A kopf operator with every kind of handler: they go on through a restart of the server and through a history that was compacted,
and two operators agree by peering who of them works."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import kopf
import pytest

from tests.apiserver.server import RunningServer, http_client
from tests.conformance.test_kopf import GROUP, HISTORY_ROWS, TASKS, TIMEOUT_S, Server, create, move

pytestmark = [pytest.mark.kubectl, pytest.mark.embedded]
MERGE = {"content-type": "application/merge-patch+json"}
PEERINGS = "/apis/kopf.dev/v1/namespaces/default/kopfpeerings"
PEERING: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "kopfpeerings.kopf.dev"},
    "spec": {
        "group": "kopf.dev", "scope": "Namespaced", "names": {"plural": "kopfpeerings", "kind": "KopfPeering"},
        "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {
            "type": "object", "properties": {"status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}}}}],
    },
}  # fmt: skip


class Diary:
    """What the handlers of one operator were called for."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        self.index: dict[str, set[str]] = {}
        self.running: set[str] = set()
        self._news = asyncio.Event()

    def note(self, what: str, name: str | None) -> None:
        self.calls[(what, name or "")] += 1
        self.tell()

    def tell(self) -> None:
        self._news.set()

    async def until(self, what: str, name: str, times: int = 1) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while self.calls[(what, name)] < times:
                self._news.clear()
                await self._news.wait()

    async def until_running(self, *names: str) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while self.running != set(names):
                self._news.clear()
                await self._news.wait()


def handlers(server: RunningServer, diary: Diary, prefix: str) -> kopf.OperatorRegistry:
    """One of every kind."""
    registry = kopf.OperatorRegistry()

    @kopf.on.startup(registry=registry)  # type: ignore[arg-type]
    def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.networking.error_backoffs = [0.1, 0.2, 0.5]
        settings.watching.reconnect_backoff = 0.1
        settings.persistence.finalizer = f"{prefix}.example.com/held"
        settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=f"{prefix}.example.com")
        settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=f"{prefix}.example.com")
        settings.peering.lifetime = 5

    @kopf.on.login(registry=registry)  # type: ignore[arg-type]
    def login(**_: Any) -> kopf.ConnectionInfo:
        return kopf.ConnectionInfo(server=server.url, ca_path=str(server.ca), token=server.token, default_namespace="default")

    @kopf.index(*GROUP, id="by_queue", registry=registry)
    def by_queue(name: str | None, spec: Any, **_: Any) -> Any:
        return {spec.get("queue", "default"): name}

    @kopf.on.create(*GROUP, registry=registry)
    async def created(name: str | None, patch: kopf.Patch, by_queue: Any, **_: Any) -> dict[str, str]:
        diary.index = {key: set(values) for key, values in by_queue.items()}
        patch.metadata.labels["seen"] = "yes"
        diary.note("create", name)
        return {"by": prefix}

    @kopf.on.update(*GROUP, field="spec.queue", registry=registry)
    async def updated(name: str | None, new: Any, by_queue: Any, **_: Any) -> None:
        diary.index = {key: set(values) for key, values in by_queue.items()}
        diary.note(f"update to {new}", name)

    @kopf.on.delete(*GROUP, registry=registry)
    async def deleted(name: str | None, body: kopf.Body, **_: Any) -> None:
        kopf.event(body, type="Normal", reason="Farewell", message="it goes")
        diary.note("delete", name)

    @kopf.on.event(*GROUP, registry=registry)
    async def seen(type: str | None, name: str | None, **_: Any) -> None:
        diary.note("event", name)

    @kopf.timer(*GROUP, interval=0.2, registry=registry)
    async def tick(name: str | None, **_: Any) -> None:
        diary.note("timer", name)

    @kopf.daemon(*GROUP, cancellation_timeout=1.0, registry=registry)
    async def live(name: str | None, stopped: Any, **_: Any) -> None:
        diary.running.add(name or "")
        diary.tell()
        try:
            await stopped.wait()
        finally:
            diary.running.discard(name or "")
            diary.tell()

    return registry


@contextlib.asynccontextmanager
async def operator(server: RunningServer, prefix: str = "one", **options: Any) -> AsyncIterator[Diary]:
    diary = Diary()
    stop = asyncio.Event()
    running = asyncio.create_task(kopf.operator(
        registry=handlers(server, diary, prefix), namespaces=["default"], stop_flag=stop, **{"standalone": True, **options}
    ))  # fmt: skip
    try:
        yield diary
        assert not running.done(), running.exception()
    finally:
        stop.set()
        await asyncio.wait_for(running, TIMEOUT_S)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    result = Server(tmp_path)
    try:
        yield result
    finally:
        await result.stop(kill=True)


async def gone(api: httpx.AsyncClient, name: str) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while (await api.get(f"{TASKS}/{name}")).status_code != 404:  # noqa: ASYNC110 - the state is in another process
            await asyncio.sleep(0.05)


async def test_every_handler_goes_on_through_a_restart_and_a_compacted_history(server: Server) -> None:
    running = await server.start()
    async with operator(running) as diary:
        async with http_client(running) as api:
            await create(api, "a")
            await diary.until("create", "a")
            await diary.until("timer", "a", 2)
            await diary.until_running("a")
            assert diary.index == {"default": {"a"}}
        await server.stop(kill=True)
        running = await server.start()
        async with http_client(running) as api:
            await move(api, "a", "night")
            await diary.until("update to night", "a")
            assert diary.index == {"night": {"a"}}
            await create(api, "b")
            await diary.until("create", "b")
            await diary.until_running("a", "b")
            await diary.until("timer", "a", diary.calls[("timer", "a")] + 2)
            obj = (await api.get(f"{TASKS}/a")).json()
            assert obj["metadata"]["labels"]["seen"] == "yes"
            assert obj["metadata"]["finalizers"] == ["one.example.com/held"]
        await server.stop()
        elsewhere = await server.start(elsewhere=True)
        async with http_client(elsewhere) as api:
            for number in range(3 * HISTORY_ROWS):
                await move(api, "a", f"q{number}")
            assert (await api.delete(f"{TASKS}/b")).status_code == 200
        await server.stop()
        running = await server.start()
        async with http_client(running) as api:
            await diary.until(f"update to q{3 * HISTORY_ROWS - 1}", "a")
            await diary.until("delete", "b")
            await gone(api, "b")
            await diary.until_running("a")
            found = (await api.get("/api/v1/namespaces/default/events", params={"fieldSelector": "reason=Farewell"})).json()
            assert [item["involvedObject"]["name"] for item in found["items"]] == ["b"]
            assert (await api.delete(f"{TASKS}/a")).status_code == 200
            await gone(api, "a")
            await diary.until_running()
    assert diary.calls[("create", "a")] == diary.calls[("create", "b")] == diary.calls[("delete", "b")] == 1


async def test_of_two_operators_the_one_with_the_higher_priority_works(server: Server) -> None:
    running = await server.start()
    async with http_client(running) as api:
        answer = await api.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", json=PEERING)
        assert answer.status_code == 201, answer.text
        body = {"apiVersion": "kopf.dev/v1", "kind": "KopfPeering", "metadata": {"name": "crew"}}
        assert (await api.post(PEERINGS, json=body)).status_code == 201
        peering = {"standalone": False, "peering_name": "crew"}
        async with operator(running, "low", **peering, priority=1) as low:
            await create(api, "first")
            await low.until("create", "first")
            async with operator(running, "high", **peering, priority=9) as high:
                await create(api, "second")
                await high.until("create", "second")
                await peers(api, 2)
                await high.until("timer", "second")
                await create(api, "third")
                await high.until("create", "third")
                assert low.calls[("create", "third")] == 0, "it must have stood back"
            await low.until("create", "third")
            await peers(api, 1)
        for name in ("first", "second", "third"):
            patch = json.dumps({"metadata": {"finalizers": None}})
            assert (await api.patch(f"{TASKS}/{name}", content=patch, headers=MERGE)).status_code == 200


async def peers(api: httpx.AsyncClient, count: int) -> None:
    """So many operators keep themselves alive in the status of the peering."""
    async with asyncio.timeout(TIMEOUT_S):
        while len([peer for peer in (await api.get(f"{PEERINGS}/crew")).json().get("status", {}).values() if peer]) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
