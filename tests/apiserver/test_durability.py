"""kill -9 in the middle of writes: everything acknowledged is there, and versions only grow."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from tests.apiserver.server import ServerProcess, api_server_process, http_client
from tests.apiserver.waiting import until

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
ROUNDS, WRITERS = 3, 4


async def write_until_cut(client: httpx.AsyncClient, prefix: str, acknowledged: dict[str, int]) -> None:
    """Create one object after another until the connection breaks."""
    for number in range(1_000_000):
        name = f"{prefix}-{number}"
        try:
            response = await client.post(CONFIG_MAPS, json={"metadata": {"name": name}, "data": {"n": str(number)}})
        except httpx.TransportError:
            return
        assert response.status_code == 201, response.text
        acknowledged[name] = int(response.json()["metadata"]["resourceVersion"])


async def one_round(process: ServerProcess, number: int, acknowledged: dict[str, int]) -> None:
    server = await process.start()
    async with http_client(server) as client:
        listed = (await client.get(CONFIG_MAPS)).json()
        stored = {item["metadata"]["name"]: int(item["metadata"]["resourceVersion"]) for item in listed["items"]}
        assert acknowledged.items() <= stored.items()
        assert int(listed["metadata"]["resourceVersion"]) >= max(stored.values(), default=0)
        fresh: dict[str, int] = {}
        writers = [asyncio.create_task(write_until_cut(client, f"r{number}-w{writer}", fresh)) for writer in range(WRITERS)]

        async def enough() -> bool:
            return len(fresh) >= 100

        await until(enough, what="a hundred acknowledged writes")
        await process.kill()
        await asyncio.gather(*writers)
        assert min(fresh.values()) > max(stored.values(), default=0)
        acknowledged |= fresh


async def test_acknowledged_writes_survive_kill_9(tmp_path: Path) -> None:
    acknowledged: dict[str, int] = {}
    async with api_server_process(tmp_path) as process:
        for number in range(ROUNDS):
            await one_round(process, number, acknowledged)
        server = await process.start()
        async with http_client(server) as client:
            stored = {item["metadata"]["name"] for item in (await client.get(CONFIG_MAPS)).json()["items"]}
        assert acknowledged.keys() <= stored
        assert await process.terminate() == 0
    assert len(set(acknowledged.values())) == len(acknowledged) >= ROUNDS * 100
