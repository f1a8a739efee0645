"""A real kopf operator against the API server: it must survive a restart of the server, and a 410 after a long absence."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import kopf
import pytest

from tests.apiserver.server import ROOT, RunningServer, describe, http_client

pytestmark = [pytest.mark.kubectl, pytest.mark.embedded]

GROUP = ("swarmtask.io", "v1alpha1", "swarmtasks")
TASKS = "/apis/swarmtask.io/v1alpha1/namespaces/default/swarmtasks"
TIMEOUT_S = 60
HISTORY_ROWS = 100


class Server:
    """A server process that comes back on the same port, or for a while on another one."""

    def __init__(self, folder: Path) -> None:
        self._data_dir, self._ready = folder / "data", folder / "ready"
        self._port = 0
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, *, elsewhere: bool = False) -> RunningServer:
        self._ready.unlink(missing_ok=True)
        port = 0 if elsewhere else self._port
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "swarmtask.apiserver.server", "--data-dir", str(self._data_dir),
            "--listen", f"127.0.0.1:{port}", "--ready-file", str(self._ready),
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'operator'}{os.pathsep}{ROOT}",
                 "SWARMTASK_APISERVER__EVENT_LOG_ROWS": str(HISTORY_ROWS)},
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        async with asyncio.timeout(TIMEOUT_S):
            while not self._ready.exists():
                assert self._process.returncode is None, "the server ended at once"
                await asyncio.sleep(0.02)
        server = describe(self._data_dir, self._ready.read_text().strip())
        if not elsewhere:
            self._port = int(server.url.rpartition(":")[2])
        return server

    async def stop(self, *, kill: bool = False) -> None:
        if self._process is not None and self._process.returncode is None:
            if kill:
                self._process.kill()
            else:
                self._process.terminate()
            await self._process.wait()


class Seen:
    """What the handlers were told."""

    def __init__(self) -> None:
        self._events: list[tuple[str | None, str, str]] = []
        self._news = asyncio.Event()

    def note(self, kind: str | None, body: Any) -> None:
        self._events.append((kind, body["metadata"]["name"], body["spec"].get("queue", "")))
        self._news.set()

    def forget(self) -> None:
        self._events.clear()

    async def until(self, name: str, queue: str = "default", *, deleted: bool = False) -> None:
        """Wait until an object was reported in this state."""
        async with asyncio.timeout(TIMEOUT_S):
            while not any(item[1:] == (name, queue) and (item[0] == "DELETED") is deleted for item in self._events):
                self._news.clear()
                await self._news.wait()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    result = Server(tmp_path)
    try:
        yield result
    finally:
        await result.stop(kill=True)


@contextlib.asynccontextmanager
async def operator(server: RunningServer) -> AsyncIterator[Seen]:
    """A kopf operator on this event loop that looks at tasks and does nothing."""
    registry, seen = kopf.OperatorRegistry(), Seen()

    @kopf.on.startup(registry=registry)  # type: ignore[arg-type]
    def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.networking.error_backoffs = [0.1, 0.2, 0.5]
        settings.watching.reconnect_backoff = 0.1
        settings.posting.enabled = False

    @kopf.on.login(registry=registry)  # type: ignore[arg-type]
    def login(**_: Any) -> kopf.ConnectionInfo:
        return kopf.ConnectionInfo(server=server.url, ca_path=str(server.ca), token=server.token, default_namespace="default")

    @kopf.on.event(*GROUP, registry=registry)
    def look(type: str | None, body: Any, **_: Any) -> None:
        seen.note(type, body)

    stop = asyncio.Event()
    running = asyncio.create_task(kopf.operator(registry=registry, clusterwide=True, standalone=True, stop_flag=stop))
    try:
        yield seen
        assert not running.done(), running.exception()
    finally:
        stop.set()
        await asyncio.wait_for(running, TIMEOUT_S)


async def create(api: httpx.AsyncClient, name: str) -> None:
    answer = await api.post(TASKS, json={
        "apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmTask", "metadata": {"name": name},
        "spec": {"container": {"image": "acme/lint:1"}}})  # fmt: skip
    assert answer.status_code == 201, answer.text


async def move(api: httpx.AsyncClient, name: str, queue: str) -> None:
    answer = await api.patch(
        f"{TASKS}/{name}", content=json.dumps({"spec": {"queue": queue}}), headers={"content-type": "application/merge-patch+json"}
    )
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
async def test_events_go_on_after_a_restart_of_the_server(server: Server, kill: bool) -> None:
    running = await server.start()
    async with operator(running) as seen:
        async with http_client(running) as api:
            await create(api, "a")
            await create(api, "b")
            await seen.until("a")
            await seen.until("b")
            await move(api, "a", "night")
            await seen.until("a", "night")
        seen.forget()
        await server.stop(kill=kill)
        running = await server.start()
        async with http_client(running) as api:
            await move(api, "a", "day")
            await seen.until("a", "day")
            await create(api, "c")
            await seen.until("c")
            assert (await api.delete(f"{TASKS}/b")).status_code == 200
            await seen.until("b", deleted=True)


async def test_an_operator_that_was_away_too_long_lists_again(server: Server) -> None:
    running = await server.start()
    async with operator(running) as seen:
        async with http_client(running) as api:
            await create(api, "a")
            await seen.until("a")
        seen.forget()
        await server.stop()
        elsewhere = await server.start(elsewhere=True)
        async with http_client(elsewhere) as api:
            old = (await api.get(TASKS)).json()["metadata"]["resourceVersion"]
            await create(api, "b")
            for index in range(3 * HISTORY_ROWS):
                await move(api, "b", f"q{index}")
            async with api.stream("GET", TASKS, params={"watch": "1", "resourceVersion": old, "timeoutSeconds": "5"}) as answer:
                assert answer.status_code == 200, "an HTTP 410 ends kopf"
                first = json.loads(await anext(answer.aiter_lines()))
            assert (first["type"], first["object"]["code"]) == ("ERROR", 410)
        await server.stop()
        running = await server.start()
        await seen.until("b", f"q{3 * HISTORY_ROWS - 1}")
        async with http_client(running) as api:
            await create(api, "c")
            await seen.until("c")
