"""The end of a server: watches close at once, and nobody who does not read can hold it up.

No test here measures time. `GRACE_S` is the bound for those who do not go by themselves; where it is an hour, what ends has ended
before anything was cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import structlog

from swarmtask.apiserver import server as room
from swarmtask.apiserver import watch
from swarmtask.apiserver.builtins import builtin_types
from swarmtask.apiserver.disk import Disk
from swarmtask.apiserver.records import Key
from swarmtask.apiserver.selectors import FieldSelector, LabelSelector, Selection
from swarmtask.apiserver.store import Store
from swarmtask.apiserver.types import TypeRegistry
from swarmtask.clock import SystemClock
from tests.apiserver.server import RunningServer, http_client, running_api_server, tls
from tests.apiserver.streams import watching

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
WATCHES = 100
HOUR_S = 3600.0
TIMEOUT_S = 60


def test_the_bound_leaves_half_of_a_second_for_the_rest() -> None:
    """docs/backup.md promises a second for all of it."""
    assert 0 < room.GRACE_S <= 0.5


@contextlib.asynccontextmanager
async def deaf(server: RunningServer) -> AsyncIterator[asyncio.StreamReader]:
    """A watch whose client takes the headers, and then nothing."""
    host, port = server.url.removeprefix("https://").split(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # or the kernel reads in its stead
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=connection, ssl=tls(server), server_hostname=host, limit=1024)
    try:
        path = f"{CONFIG_MAPS}?watch=true&resourceVersion=0"
        writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {server.token}\r\n\r\n".encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        yield reader
    finally:
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await writer.wait_closed()


async def follow(api: httpx.AsyncClient, opened: asyncio.Semaphore) -> list[dict[str, Any]]:
    """What a reader gets from the first object to the end of its stream."""
    async with watching(api, CONFIG_MAPS, allowWatchBookmarks="true") as stream:
        await stream.next()
        opened.release()
        return await stream.rest()


@contextlib.asynccontextmanager
async def stopping(server: contextlib.AbstractAsyncContextManager[RunningServer]) -> AsyncIterator[None]:
    """The word to stop is given before the block, and the end awaited after it."""
    ending = asyncio.create_task(server.__aexit__(None, None, None))  # type: ignore[arg-type]
    try:
        yield
    finally:
        async with asyncio.timeout(TIMEOUT_S):
            await ending


@pytest.mark.slow
async def test_a_hundred_watches_end_before_anything_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "GRACE_S", HOUR_S)
    running = running_api_server(tmp_path)
    server = await running.__aenter__()
    async with http_client(server) as api, asyncio.timeout(TIMEOUT_S):
        created = await api.post(CONFIG_MAPS, json={"metadata": {"name": "a"}})
        version = created.json()["metadata"]["resourceVersion"]
        opened = asyncio.Semaphore(0)
        api.timeout = httpx.Timeout(TIMEOUT_S)
        followers = [asyncio.create_task(follow(api, opened)) for _ in range(WATCHES)]
        for _ in followers:
            await opened.acquire()
        async with stopping(running):
            ends = await asyncio.gather(*followers)
            await api.aclose()
    for rest in ends:
        assert [event["type"] for event in rest] == ["BOOKMARK"], "each is told how far it has come, and its stream ends in order"
        assert int(rest[0]["object"]["metadata"]["resourceVersion"]) >= int(version)


@pytest.mark.slow
async def test_readers_that_take_nothing_are_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who read have ended long before; the server ends although nobody has taken what waits for the others."""
    monkeypatch.setattr(room, "GRACE_S", 0.05)
    running = running_api_server(tmp_path)
    server = await running.__aenter__()
    async with http_client(server) as api, contextlib.AsyncExitStack() as silent, asyncio.timeout(TIMEOUT_S):
        for number in range(8):  # more than the sockets between them take
            await api.post(CONFIG_MAPS, json={"metadata": {"name": f"n{number}"}, "data": {"x": "x" * 900_000}})
        readers = [await silent.enter_async_context(deaf(server)) for _ in range(3)]
        opened = asyncio.Semaphore(0)
        reading = asyncio.create_task(follow(api, opened))
        await opened.acquire()
        with structlog.testing.capture_logs() as told:
            async with stopping(running):
                assert (await reading)[-1]["type"] in ("ADDED", "BOOKMARK")
        (line,) = [entry for entry in told if entry["event"] == "every connection is closed"]
        assert line["cut_off"] >= len(readers)
        for reader in readers:
            with contextlib.suppress(OSError, ssl.SSLError):
                content = await reader.read(-1)
                assert not content.endswith(b"0\r\n\r\n"), "what was cut off does not look whole"


async def test_a_write_that_is_cut_off_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is committed, since it was on its way to the disk; its client is not told, but the audit log is."""
    monkeypatch.setattr(room, "GRACE_S", 0.05)
    may_commit, commit = threading.Event(), Disk.commit
    running = running_api_server(tmp_path)
    server = await running.__aenter__()
    committing, loop = asyncio.Event(), asyncio.get_running_loop()

    def slow(disk: Disk, *changes: Any) -> None:
        loop.call_soon_threadsafe(committing.set)
        may_commit.wait(TIMEOUT_S)
        commit(disk, *changes)

    monkeypatch.setattr(Disk, "commit", slow)
    async with http_client(server) as api, asyncio.timeout(TIMEOUT_S):
        asked = asyncio.create_task(api.post(CONFIG_MAPS, json={"metadata": {"name": "late"}}))
        await committing.wait()
        try:
            async with stopping(running):
                answer = (await asyncio.gather(asked, return_exceptions=True))[0]
                may_commit.set()
        finally:
            may_commit.set()
        assert isinstance(answer, httpx.TransportError) or answer.status_code == 500
    rows = [orjson.loads(line) for line in (server.kubeconfig.parent / "audit" / "audit.log").read_bytes().splitlines()]
    assert [(row["name"], row["code"], row["reason"]) for row in rows] == [("late", 500, "CutOff")]
    async with running_api_server(tmp_path) as server, http_client(server) as api:
        assert (await api.get(f"{CONFIG_MAPS}/late")).status_code == 200


async def test_an_idle_connection_does_not_hold_it_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "GRACE_S", 0.05)
    running = running_api_server(tmp_path)
    server = await running.__aenter__()
    async with http_client(server) as api, asyncio.timeout(TIMEOUT_S):
        assert (await api.get("/version")).status_code == 200
        async with stopping(running):
            pass
        with pytest.raises(httpx.TransportError):
            await api.get("/version")


async def test_a_watch_that_is_still_at_its_beginning_is_not_taken_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends there, and no bookmark says that the beginning was all."""
    monkeypatch.setattr(watch, "REPLAY_STEP", 1)
    clock, rt = SystemClock(), TypeRegistry(builtin_types()).find("", "v1", "configmaps")
    assert rt is not None
    store = await Store.open(tmp_path / "x.db", event_log_rows=100, vault=None)
    try:
        for name in ("a", "b", "c"):
            obj = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default", "uid": name}}
            await store.put(Key(("", "configmaps"), "default", name), obj, replacing=None)
        hub = watch.WatchHub(store, clock, bookmark_interval_s=60)
        everything = Selection(LabelSelector(""), FieldSelector("", rt))
        asked = watch.WatchRequest(rt, None, everything, None, bookmarks=True, initial_events=True)
        stream = hub.stream(hub.open(asked))
        first = await anext(stream)
        hub.end_all()
        assert orjson.loads(first)["type"] == "ADDED"
        assert [chunk async for chunk in stream] == []
    finally:
        await store.close()
