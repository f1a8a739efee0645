"""A call that is cancelled in the moment in which its answer comes: the cancellation counts, or the loop that called never ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from swarmtask.clock import SystemClock
from swarmtask.engines.local.engine import LocalEngine
from swarmtask.engines.swarm.client import DockerClient
from swarmtask.settings import LocalSettings


def _local(directory: Path) -> Callable[[], Awaitable[Any]]:
    engine = LocalEngine(LocalSettings(), directory, SystemClock())
    return engine.nodes


def _docker(directory: Path) -> Callable[[], Awaitable[Any]]:
    client = DockerClient(f"unix://{directory}/none.sock", timeout_s=5, threads=1)
    return lambda: client.call(lambda api: api.ping())


@pytest.mark.parametrize("make", [_local, _docker], ids=["local", "docker"])
async def test_a_cancellation_that_comes_with_the_answer_counts(
    make: Callable[[Path], Callable[[], Awaitable[Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = make(tmp_path)
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Any] = loop.create_future()
    monkeypatch.setattr(loop, "run_in_executor", lambda *_: answer)
    task = asyncio.ensure_future(call())
    await asyncio.sleep(0)
    answer.set_result(None)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
