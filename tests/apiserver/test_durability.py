"""kill -9 in the middle of writes: everything acknowledged is there, versions only grow, watchers miss nothing."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from tests.apiserver.nursery import Nursery, nursery
from tests.apiserver.server import http_client
from tests.apiserver.waiting import until

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
WRITERS, WATCHERS, WRITES_PER_ROUND = 8, 3, 25


@dataclass
class Ledger:
    """What was acknowledged, and what was asked for without an answer."""

    created: dict[str, int] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    unanswered: set[str] = field(default_factory=set)
    newest: int = 0


@dataclass
class View:
    """What one watcher saw, and the objects that it believes are there: names and versions."""

    resume_from: str = ""
    seen: list[tuple[int, str, str]] = field(default_factory=list)
    objects: dict[str, int] = field(default_factory=dict)


async def write_until_cut(client: httpx.AsyncClient, prefix: str, ledger: Ledger) -> None:
    """Create one object after another, delete every third, until the connection breaks."""
    for number in range(1_000_000):
        name = f"{prefix}-{number}"
        ledger.unanswered.add(name)
        try:
            response = await client.post(CONFIG_MAPS, json={"metadata": {"name": name}, "data": {"n": str(number)}})
            assert response.status_code == 201, response.text
            ledger.created[name] = int(response.json()["metadata"]["resourceVersion"])
            if number % 3 == 2:
                response = await client.delete(f"{CONFIG_MAPS}/{name}")
                assert response.status_code == 200, response.text
                ledger.deleted.add(name)
        except httpx.TransportError:
            return
        ledger.unanswered.discard(name)


async def watch_until_cut(client: httpx.AsyncClient, view: View) -> None:
    """Resume where the watch before was cut, as clients do, and note every event."""
    query = {"watch": "1", "resourceVersion": view.resume_from, "allowWatchBookmarks": "true"}
    with contextlib.suppress(httpx.TransportError):
        async with client.stream("GET", CONFIG_MAPS, params=query, timeout=60) as response:
            async for line in response.aiter_lines():
                note(orjson.loads(line), view)


def note(event: dict[str, Any], view: View) -> None:
    metadata = event["object"]["metadata"]
    assert event["type"] in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK"), event
    view.resume_from = metadata["resourceVersion"]
    if event["type"] == "BOOKMARK":
        return
    version, name = int(metadata["resourceVersion"]), metadata["name"]
    view.seen.append((version, event["type"], name))
    if event["type"] == "DELETED":
        del view.objects[name]
    else:
        view.objects[name] = version


async def check_stored(client: httpx.AsyncClient, ledger: Ledger) -> int:
    """Compare what is stored with what was promised; the collection's version."""
    listed = (await client.get(CONFIG_MAPS)).json()
    stored = {item["metadata"]["name"]: int(item["metadata"]["resourceVersion"]) for item in listed["items"]}
    certain = {name: rv for name, rv in ledger.created.items() if name not in ledger.deleted | ledger.unanswered}
    assert certain.items() <= stored.items(), "an acknowledged object is missing or another one"
    assert not (stored.keys() & ledger.deleted), "an acknowledged deletion came undone"
    assert stored.keys() <= certain.keys() | ledger.unanswered, "an object that nobody asked for"
    version = int(listed["metadata"]["resourceVersion"])
    assert version >= max([ledger.newest, *stored.values()], default=0), "the version went back"
    ledger.newest = version
    return version


async def one_round(process: Nursery, number: int, ledger: Ledger, views: list[View]) -> None:
    server = await process.start()
    async with http_client(server) as client:
        before = await check_stored(client, ledger)
        for view in views:
            view.resume_from = view.resume_from or str(before)
        known = len(ledger.created)
        watchers = [asyncio.create_task(watch_until_cut(client, view)) for view in views]
        writers = [asyncio.create_task(write_until_cut(client, f"r{number}-w{writer}", ledger)) for writer in range(WRITERS)]

        async def enough() -> bool:
            return len(ledger.created) - known >= WRITES_PER_ROUND

        await until(enough, what="enough acknowledged writes")
        await process.end(signal.SIGKILL)
        await asyncio.gather(*watchers, *writers)
        new = list(ledger.created.values())[known:]
        assert min(new) > before, "a version was given twice"
        ledger.newest = max(ledger.newest, *new)


@pytest.mark.parametrize("kills", [5, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
async def test_kills_lose_no_acknowledged_write(tmp_path: Path, kills: int) -> None:
    ledger, views = Ledger(), [View() for _ in range(WATCHERS)]
    async with nursery(tmp_path) as process:
        for number in range(kills):
            await one_round(process, number, ledger, views)
        server = await process.start()
        async with http_client(server) as client:
            last = await check_stored(client, ledger)
            listed = (await client.get(CONFIG_MAPS)).json()["items"]
            watchers = [asyncio.create_task(watch_until_cut(client, view)) for view in views]

            async def caught_up() -> bool:
                return all(int(view.resume_from) >= last for view in views)

            await until(caught_up, what="the watchers caught up")
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)
        await process.end(signal.SIGTERM)
    stored = {item["metadata"]["name"]: int(item["metadata"]["resourceVersion"]) for item in listed}
    for view in views:
        check_watcher(ledger, view)
        assert view.objects == stored, "what a watcher believes is not what is stored"
    assert len(set(ledger.created.values())) == len(ledger.created) >= kills * WRITES_PER_ROUND
    print(f"{kills} kills, {len(ledger.created)} creations and {len(ledger.deleted)} deletions acknowledged, last version {last}")


def check_watcher(ledger: Ledger, view: View) -> None:
    """Every acknowledged write was seen once, in the order of its version."""
    versions = [rv for rv, _, _ in view.seen]
    assert versions == sorted(set(versions)), "an event twice or out of order"
    added = {name: rv for rv, type_, name in view.seen if type_ == "ADDED"}
    assert ledger.created.items() <= added.items(), "a watcher missed a creation"
    assert ledger.deleted <= {name for _, type_, name in view.seen if type_ == "DELETED"}, "a watcher missed a deletion"
