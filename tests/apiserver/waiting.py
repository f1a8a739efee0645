"""Waiting for a state, not for time to pass."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

TIMEOUT_S = 20


async def until(check: Callable[[], Awaitable[Any]], *, what: str = "the state") -> Any:
    """Ask again until the answer is true; returns it."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while not (answer := await check()):  # noqa: ASYNC110 - the state is in another process
                await asyncio.sleep(0.01)
            return answer
    except TimeoutError as error:
        raise AssertionError(f"{what} was not reached in {TIMEOUT_S} s") from error


async def until_gone(api: httpx.AsyncClient, path: str) -> None:
    async def gone() -> bool:
        return (await api.get(path)).status_code == 404

    await until(gone, what=f"{path} gone")
