"""kill -9 in the middle of writes: everything acknowledged is there, versions only grow, watchers miss nothing."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson

from tests.apiserver.server import ServerProcess, api_server_process, http_client
from tests.apiserver.waiting import until

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
KILLS, WRITERS, WRITES_PER_ROUND = 20, 4, 25


@dataclass
class Ledger:
    """What was acknowledged, what was asked for without an answer, and what a watcher saw."""

    created: dict[str, int] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    unanswered: set[str] = field(default_factory=set)
    seen: list[tuple[int, str, str]] = field(default_factory=list)
    resume_from: str = ""


async def write_until_cut(client: httpx.AsyncClient, prefix: str, ledger: Ledger) -> None:
    """Create one object after another, delete every fifth, until the connection breaks."""
    for number in range(1_000_000):
        name = f"{prefix}-{number}"
        ledger.unanswered.add(name)
        try:
            response = await client.post(CONFIG_MAPS, json={"metadata": {"name": name}, "data": {"n": str(number)}})
            assert response.status_code == 201, response.text
            ledger.created[name] = int(response.json()["metadata"]["resourceVersion"])
            if number % 5 == 4:
                response = await client.delete(f"{CONFIG_MAPS}/{name}")
                assert response.status_code == 200, response.text
                ledger.deleted.add(name)
        except httpx.TransportError:
            return
        ledger.unanswered.discard(name)


async def watch_until_cut(client: httpx.AsyncClient, ledger: Ledger) -> None:
    """Resume where the watch before was cut, as clients do, and note every event."""
    query = {"watch": "1", "resourceVersion": ledger.resume_from, "allowWatchBookmarks": "true"}
    with contextlib.suppress(httpx.TransportError):
        async with client.stream("GET", CONFIG_MAPS, params=query, timeout=60) as response:
            async for line in response.aiter_lines():
                note(orjson.loads(line), ledger)


def note(event: dict[str, Any], ledger: Ledger) -> None:
    metadata = event["object"]["metadata"]
    assert event["type"] in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK"), event
    ledger.resume_from = metadata["resourceVersion"]
    if event["type"] != "BOOKMARK":
        ledger.seen.append((int(metadata["resourceVersion"]), event["type"], metadata["name"]))


async def check_stored(client: httpx.AsyncClient, ledger: Ledger) -> int:
    """Compare what is stored with what was promised; the collection's version."""
    listed = (await client.get(CONFIG_MAPS)).json()
    stored = {item["metadata"]["name"]: int(item["metadata"]["resourceVersion"]) for item in listed["items"]}
    certain = {name: rv for name, rv in ledger.created.items() if name not in ledger.deleted | ledger.unanswered}
    assert certain.items() <= stored.items(), "an acknowledged object is missing or another one"
    assert not (stored.keys() & ledger.deleted), "an acknowledged deletion came undone"
    assert stored.keys() <= certain.keys() | ledger.unanswered, "an object that nobody asked for"
    version = int(listed["metadata"]["resourceVersion"])
    assert version >= max([*ledger.created.values(), *stored.values()], default=0)
    return version


async def one_round(process: ServerProcess, number: int, ledger: Ledger) -> None:
    server = await process.start()
    async with http_client(server) as client:
        before = await check_stored(client, ledger)
        ledger.resume_from = ledger.resume_from or str(before)
        known = len(ledger.created)
        watcher = asyncio.create_task(watch_until_cut(client, ledger))
        writers = [asyncio.create_task(write_until_cut(client, f"r{number}-w{writer}", ledger)) for writer in range(WRITERS)]

        async def enough() -> bool:
            return len(ledger.created) - known >= WRITES_PER_ROUND

        await until(enough, what="enough acknowledged writes")
        await process.kill()
        await asyncio.gather(watcher, *writers)
        assert min(list(ledger.created.values())[known:]) > before, "a version was given twice"


async def test_twenty_kills_lose_no_acknowledged_write(tmp_path: Path) -> None:
    ledger = Ledger()
    async with api_server_process(tmp_path) as process:
        for number in range(KILLS):
            await one_round(process, number, ledger)
        server = await process.start()
        async with http_client(server) as client:
            last = await check_stored(client, ledger)
            watcher = asyncio.create_task(watch_until_cut(client, ledger))

            async def caught_up() -> bool:
                return int(ledger.resume_from) >= last

            await until(caught_up, what="the watcher caught up")
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
        assert await process.terminate() == 0
    check_watcher(ledger)


def check_watcher(ledger: Ledger) -> None:
    """Every acknowledged write was seen once, in the order of its version."""
    versions = [rv for rv, _, _ in ledger.seen]
    assert versions == sorted(set(versions)), "an event twice or out of order"
    added = {name: rv for rv, type_, name in ledger.seen if type_ == "ADDED"}
    assert ledger.created.items() <= added.items(), "a watcher missed a creation"
    assert ledger.deleted <= {name for _, type_, name in ledger.seen if type_ == "DELETED"}, "a watcher missed a deletion"
    assert len(set(ledger.created.values())) == len(ledger.created) >= KILLS * WRITES_PER_ROUND
