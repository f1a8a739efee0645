"""Reading watches in tests: open one, take events until something is seen, close it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import orjson

TIMEOUT_S = 20


class Stream:
    """An open watch; `seen` holds every event so far."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines
        self.seen: list[dict[str, Any]] = []

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(TIMEOUT_S):
            event: dict[str, Any] = orjson.loads(await anext(self._lines))
        self.seen.append(event)
        return event

    async def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first event that is wanted; the others are in `seen`."""
        while True:
            event = await self.next()
            if wanted(event):
                return event

    async def rest(self) -> list[dict[str, Any]]:
        """Everything until the server ends the stream."""
        async with asyncio.timeout(TIMEOUT_S):
            rest = [orjson.loads(line) async for line in self._lines]
        self.seen += rest
        return rest


@contextlib.asynccontextmanager
async def watching(
    client: httpx.AsyncClient, path: str, *, accept: str = "application/json", **query: str
) -> AsyncIterator[Stream]:
    """Open a watch. Query names as in the URL."""
    async with client.stream("GET", path, params={"watch": "true", **query}, headers={"accept": accept}, timeout=60) as response:
        assert response.status_code == 200, await response.aread()
        yield Stream(response.aiter_lines())


def names(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(type, name) of each event that is about an object."""
    return [(event["type"], event["object"]["metadata"]["name"]) for event in events if event["type"] != "BOOKMARK"]
