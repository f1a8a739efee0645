"""B8: durable creates against a raw ASGI echo, and what one more watcher costs. B9, the API's part: ready again after kill -9.

The server is a process of its own, over TLS, on a real disk; CPU time is the server's. Rates are wall time: they show what the
machine had to give at that moment, to both in turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from swarmtask.apiserver.access.vault import Vault
from swarmtask.apiserver.places import DATABASE, SECRETS_KEY
from swarmtask.apiserver.records import Key
from swarmtask.apiserver.store import Store
from tests.apiserver.server import RunningServer, ServerProcess, api_server_process, describe, http_client, tls
from tests.benchmarks.measuring import Effort, Figure, Goal, Spread
from tests.benchmarks.wire import Address, send_all, watchers
from tests.resources.bad_tasks import good_task

TASKS = "/apis/swarmtask.io/v1alpha1/namespaces/default/swarmtasks"
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
CONNECTIONS = 32
CLIENTS: tuple[tuple[int, int], ...] = ((CONNECTIONS, 1), (128, 1), (CONNECTIONS, 4))
"""(connections, requests under way on each): how creates are compared with an echo. Clients have one request at a time on a
connection; several make an echo cheaper than any client sees it."""
WATCHERS = 100
START_S = 60.0
FILL_STEP = 2_000


@dataclass(frozen=True)
class Load:
    """What some requests took: wall seconds of the client, CPU seconds of the server."""

    count: int
    wall_s: float
    cpu_s: float

    @property
    def rate(self) -> float:
        return self.count / self.wall_s

    @property
    def each_us(self) -> float:
        return 1e6 * self.cpu_s / self.count


class Meter:
    """CPU seconds of a process since the last look, to the nanosecond: `/proc` counts in hundredths of a second, which an idle node
    agent does not take in two."""

    def __init__(self, pid: int) -> None:
        self._clock = (~pid << 3) | 2  # as clock_getcpuclockid(3) makes it on Linux
        self._before = self._now()

    def _now(self) -> float:
        return time.clock_gettime(self._clock)

    def lap(self) -> float:
        before, self._before = self._before, self._now()
        return self._before - before


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """On the disk, not in memory: commits are to cost what they cost."""
    with tempfile.TemporaryDirectory(prefix="swarmtask-bench-", ignore_cleanup_errors=True) as path:
        yield Path(path)


@contextlib.asynccontextmanager
async def api_and_echo(place: Path) -> AsyncIterator[tuple[Address, int, Address, int]]:
    """(API, its process, echo, its process)."""
    async with api_server_process(place) as process:
        server = await process.start()
        ready = place / "echo.ready"
        pki = process.data_dir / "pki"
        echo = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.benchmarks.echo", str(pki / "server.crt"), str(pki / "server.key"), str(ready)
        )
        try:
            await until_exists(ready)
            api = Address(urlsplit(server.url).port or 0, tls(server), server.token)
            yield api, pid_of(process), Address(_port(ready), tls(server)), echo.pid
        finally:
            echo.kill()
            await echo.wait()


def _port(ready: Path) -> int:
    return int(ready.read_text())


def pid_of(process: ServerProcess) -> int:
    assert process.process is not None
    return process.process.pid


async def until_exists(path: Path) -> None:
    async with asyncio.timeout(START_S):
        while not path.exists():  # noqa: ASYNC110, ASYNC240 - another process makes it
            await asyncio.sleep(0.01)


def creates(address: Address, path: str, count: int, prefix: str) -> list[bytes]:
    """Requests that create a task each."""
    made = []
    for number in range(count):
        task = good_task(f"{prefix}-{number}")
        made.append(address.request("POST", path, orjson.dumps(task)))
    return made


async def loaded(address: Address, pid: int, requests: list[bytes], connections: int, pipeline: int) -> Load:
    meter, began = Meter(pid), time.perf_counter()
    await send_all(address, requests, 201, connections, pipeline)
    return Load(len(requests), time.perf_counter() - began, meter.lap())


# --- B8 ---


def durable_creates(effort: Effort) -> list[Figure]:
    """B8: creates of SwarmTasks, each on the disk before it is answered, and an echo of the same bodies in turn; then watchers."""
    return [*asyncio.run(_creates(effort)), *asyncio.run(_fan_out(effort))]


async def _creates(effort: Effort) -> list[Figure]:
    figures: list[Figure] = []
    with folder() as place:
        async with api_and_echo(place) as servers:
            await send_all(servers[0], creates(servers[0], TASKS, 100, "warm"), 201, CONNECTIONS)
            await send_all(servers[2], creates(servers[2], "/", 100, "warm"), 201, CONNECTIONS)
            for connections, pipeline in CLIENTS:
                figures += await _against_echo(effort, servers, connections, pipeline)
    return figures


async def _against_echo(
    effort: Effort, servers: tuple[Address, int, Address, int], connections: int, pipeline: int
) -> list[Figure]:
    """Both in turn."""
    api, api_pid, echo, echo_pid = servers
    count = effort.sized(4_000, 100)
    created: list[Load] = []
    echoed: list[Load] = []
    for pair in range(effort.pairs):
        prefix = f"c{connections}-p{pipeline}-{pair}"
        created.append(await loaded(api, api_pid, creates(api, TASKS, count, prefix), connections, pipeline))
        echoed.append(await loaded(echo, echo_pid, creates(echo, "/", count, prefix), connections, pipeline))
    rates = [a.rate / b.rate for a, b in zip(created, echoed, strict=True)]
    costs = [max(b.each_us, 0.1) / max(a.each_us, 0.1) for a, b in zip(created, echoed, strict=True)]
    beside = {
        "connections": connections, "creates_per_s": Spread.of([load.rate for load in created]).median,
        "echoes_per_s": Spread.of([load.rate for load in echoed]).median,
        "create_cpu_us": Spread.of([load.each_us for load in created]).median,
        "echo_cpu_us": Spread.of([load.each_us for load in echoed]).median,
    }  # fmt: skip
    how = f", {connections} connections" + (f", {pipeline} under way on each" if pipeline > 1 else "")
    goal = Goal(">=", 0.25) if pipeline == 1 else None
    return [
        Figure("B8", f"durable creates/s / raw echoes/s{how}", "x", Spread.of(rates), goal, beside),
        Figure("B8", f"CPU of a raw echo / of a durable create{how}", "x", Spread.of(costs), None, beside),
        Figure("B8", f"durable creates{how}", "/s", Spread.of([load.rate for load in created])),
    ]


async def _fan_out(effort: Effort) -> list[Figure]:
    """One watcher and a hundred in turn, while as many objects are made."""
    events = effort.sized(2_000, 60)
    one: list[float] = []
    many: list[float] = []
    with folder() as place:
        async with api_server_process(place) as process:
            server = await process.start()
            address = Address(urlsplit(server.url).port or 0, tls(server), server.token)
            for pair in range(effort.pairs):
                one.append(await _event_us(address, process, 1, events, f"o{pair}"))
                many.append(await _event_us(address, process, WATCHERS, events, f"m{pair}"))
    more = [max((b - a) / (WATCHERS - 1), 0.01) for a, b in zip(one, many, strict=True)]
    ratio = [extra / max(first, 0.1) for extra, first in zip(more, one, strict=True)]
    beside = {"with_one_us": Spread.of(one).median, "with_all_us": Spread.of(many).median}
    return [
        Figure("B8", f"one more of {WATCHERS} watchers / an event written, encoded and sent to the first", "x", Spread.of(ratio),
               Goal("<=", 0.05), beside),
        Figure("B8", f"CPU of one event for one more of {WATCHERS} watchers", "us", Spread.of(more)),
    ]  # fmt: skip


async def _event_us(address: Address, process: ServerProcess, count: int, events: int, prefix: str) -> float:
    """CPU of the server per object made, while so many watch."""
    bodies = [orjson.dumps({"metadata": {"name": f"{prefix}-{number}"}, "data": {"a": "x" * 1000}}) for number in range(events)]
    requests = [address.request("POST", CONFIG_MAPS, body) for body in bodies]
    path = f"{CONFIG_MAPS}?watch=1&resourceVersion={await _version(process)}"
    async with watchers(address, path, count, events) as following:
        meter = Meter(pid_of(process))
        await send_all(address, requests, 201, CONNECTIONS)
        await following
        return 1e6 * meter.lap() / events


async def _version(process: ServerProcess) -> str:
    url = (process.data_dir.parent / f"{process.data_dir.name}.ready").read_text().strip()
    async with http_client(describe(process.data_dir, url)) as client:
        version: str = (await client.get(f"{CONFIG_MAPS}?limit=1")).json()["metadata"]["resourceVersion"]
        return version


# --- B9, the part of the API ---


def ready_again(effort: Effort) -> list[Figure]:
    """B9: from the start of the process after a kill -9 until it answers, and a bare scan of the same rows."""
    return asyncio.run(_ready_again(effort))


async def _ready_again(effort: Effort) -> list[Figure]:
    count = effort.sized(100_000, 1_000)
    restarts: list[float] = []
    scans: list[float] = []
    with folder() as place:
        async with api_server_process(place) as process:
            stored = await _example(process)
            assert await process.terminate() == 0
            await _fill(process.data_dir, stored, count)
            for pair in range(effort.pairs):
                await _write_some(await process.start(), pair)
                await process.kill()
                scans.append(await asyncio.to_thread(_scan_s, process.data_dir / DATABASE, count))
                began = time.perf_counter()
                await process.start()
                restarts.append(time.perf_counter() - began)
                await process.kill()
    ratios = [a / b for a, b in zip(restarts, scans, strict=True)]
    beside = {"tasks": count, "ready_s": Spread.of(restarts).median, "scan_s": Spread.of(scans).median}
    return [
        Figure("B9", f"API ready again after kill -9 with {count:,} tasks / a bare scan of the rows", "x", Spread.of(ratios),
               Goal("<=", 5), beside),
        Figure("B9", f"API ready again with {count:,} tasks, start of the process included", "s", Spread.of(restarts)),
    ]  # fmt: skip


async def _example(process: ServerProcess) -> dict[str, Any]:
    """A task as the server stores it."""
    async with http_client(await process.start()) as client:
        response = await client.post(TASKS, json=good_task("example"))
        assert response.status_code == 201, response.text
        stored: dict[str, Any] = response.json()
        return stored


async def _write_some(server: RunningServer, pair: int) -> None:
    """So that the journal holds something that the kill leaves there."""
    async with http_client(server) as client:
        for number in range(20):
            await client.post(CONFIG_MAPS, json={"metadata": {"name": f"k{pair}-{number}"}})


async def _fill(data_dir: Path, stored: dict[str, Any], count: int) -> None:
    """Tasks straight into the store, as many to a commit as it takes."""
    store = await Store.open(data_dir / DATABASE, event_log_rows=20_000, vault=Vault(data_dir / SECRETS_KEY))
    try:
        for start in range(0, count, FILL_STEP):
            writes = []
            for number in range(start, min(start + FILL_STEP, count)):
                metadata = {**stored["metadata"], "name": f"t-{number}", "uid": f"00000000-0000-0000-0000-{number:012}"}
                key = Key(("swarmtask.io", "swarmtasks"), "default", metadata["name"])
                writes.append(store.put(key, {**stored, "metadata": metadata}, replacing=None))
            await asyncio.gather(*writes)
    finally:
        await store.close()


def _scan_s(path: Path, least: int) -> float:
    """Read every current row once, and nothing else."""
    began = time.perf_counter()
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
        rows = db.execute("SELECT grp, plural, namespace, name, uid, objects.rv, body FROM objects JOIN revisions USING (rv)")
        seen = sum(1 for _ in rows)
    took = time.perf_counter() - began
    assert seen >= least
    return took
