"""The embedded API server inside the test's own event loop, on a port that the system chose."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from swarmtask.apiserver.server import KUBECONFIG, run_api_server
from swarmtask.clock import SystemClock
from swarmtask.settings import ApiServerSettings, Settings


@asynccontextmanager
async def real_api_server(data_dir: Path, port: int = 0) -> AsyncIterator[Path]:
    """A served API; gives the path of its kubeconfig. Ends with the block."""
    settings = Settings(data_dir=data_dir, apiserver=ApiServerSettings(port=port))
    stop, ready = asyncio.Event(), asyncio.Event()
    serving = asyncio.create_task(run_api_server(settings, clock=SystemClock(), stop=stop, on_ready=lambda _: ready.set()))
    answering = asyncio.create_task(ready.wait())
    try:
        await asyncio.wait({serving, answering}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            await serving
        yield data_dir / KUBECONFIG
    finally:
        answering.cancel()
        stop.set()
        await serving
