"""The agent as a process of its own, started as people start it, and containers of a real Docker for it to look at."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.lab import images, tools

if TYPE_CHECKING:
    from tests.lab.outer import OuterDocker


@dataclass
class Agents:
    """One agent after the other, of the same node."""

    options: tuple[str, ...]
    processes: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def start(self, kubeconfig: Path) -> None:
        program = (sys.executable, "-m", "swarmtask", "node-agent", "--kubeconfig", str(kubeconfig), "--node", "desk")
        self.processes.append(await asyncio.create_subprocess_exec(*program, *self.options))

    async def kill(self) -> None:
        """Whichever is alive, with no time to say anything."""
        for process in self.processes:
            if process.returncode is None:
                process.kill()
                await process.wait()


@contextlib.asynccontextmanager
async def agents(*options: str) -> AsyncIterator[Agents]:
    """None is left behind."""
    made = Agents(options)
    try:
        yield made
    finally:
        await made.kill()


@contextlib.contextmanager
def real_docker(outer: OuterDocker, cluster: str) -> Iterator[tuple[Any, str]]:
    """(a client, an image to run); containers that carry the cluster's label are removed at the end. Skips where there is none."""
    client = outer.client()
    with contextlib.closing(client):
        with tools.or_skip():
            image = images.task_image(client)
        try:
            yield client, image
        finally:
            for container in client.containers.list(all=True, filters={"label": f"swarmtask.io/cluster={cluster}"}):
                container.remove(force=True, v=True)
