"""API servers for tests: in this process, or as a process of their own that can be killed.

    async with running_api_server(tmp_path) as server:
        server.url, server.kubeconfig, server.ca, server.token

Ports are chosen by the system; everything started here is stopped here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from swarmtask.apiserver.projections.exec import Shells
from swarmtask.apiserver.server import KUBECONFIG, run_api_server
from swarmtask.clock import Clock, SystemClock
from swarmtask.settings import ApiServerSettings, Settings

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 60


class RunningServer(NamedTuple):
    """How to reach a server. `ca` is the path of the authority's certificate."""

    url: str
    kubeconfig: Path
    ca: Path
    token: str


def describe(data_dir: Path, url: str) -> RunningServer:
    return RunningServer(url, data_dir / KUBECONFIG, data_dir / "pki" / "ca.crt", (data_dir / "admin.token").read_text().strip())


@contextlib.asynccontextmanager
async def running_api_server(
    tmp_path: Path, *, clock: Clock | None = None, shells: Shells | None = None, **options: Any
) -> AsyncIterator[RunningServer]:
    """A server on this event loop. `options` go to `ApiServerSettings`. Started again on one `tmp_path` it finds what it stored."""
    data_dir = tmp_path / "apiserver"
    settings = Settings(data_dir=data_dir, apiserver=ApiServerSettings(**{"host": "127.0.0.1", "port": 0, **options}))
    stop = asyncio.Event()
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(
        run_api_server(settings, clock=clock or SystemClock(), stop=stop, on_ready=ready.set_result, shells=shells)
    )
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            await asyncio.wait({serving, ready}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
        yield describe(data_dir, ready.result())
    finally:
        stop.set()
        await serving


_FIRST: list[tempfile.TemporaryDirectory[str]] = []


async def copy_first_start(tmp_path: Path) -> None:
    """Give `tmp_path` what the first start of a server leaves. A second start takes half the time; the copies have tokens and
    certificates in common."""
    if not _FIRST:
        folder = tempfile.TemporaryDirectory(prefix="swarmtask-first-")
        async with running_api_server(Path(folder.name)):
            pass
        _FIRST.append(folder)
    shutil.copytree(Path(_FIRST[0].name) / "apiserver", tmp_path / "apiserver")


def _kept(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what would make every start compile our modules anew: it is measured how long starts take."""
    return {name: value for name, value in environment.items() if name != "PYTHONDONTWRITEBYTECODE"}


@dataclass
class ServerProcess:
    """A server in its own process. `start` may be called again after `kill`."""

    data_dir: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> RunningServer:
        ready = self.data_dir.parent / f"{self.data_dir.name}.ready"
        ready.unlink(missing_ok=True)
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "swarmtask.apiserver.server",
            "--data-dir", str(self.data_dir), "--listen", "127.0.0.1:0", "--ready-file", str(ready),
            env={**_kept(os.environ), "PYTHONPATH": f"{ROOT / 'operator'}{os.pathsep}{ROOT}", **self.environment},
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        async with asyncio.timeout(START_TIMEOUT_S):
            while not ready.exists():
                if self.process.returncode is not None:
                    raise AssertionError(f"the server ended with {self.process.returncode}")
                await asyncio.sleep(0.02)
        return describe(self.data_dir, ready.read_text().strip())

    async def kill(self) -> None:
        """kill -9, and wait until it has gone."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    async def terminate(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def api_server_process(tmp_path: Path, **environment: str) -> AsyncIterator[ServerProcess]:
    """A server process that is not started yet; killed at the end."""
    server = ServerProcess(tmp_path / "apiserver", environment)
    try:
        yield server
    finally:
        await server.kill()


def tls(server: RunningServer) -> ssl.SSLContext:
    """Trusts the server's own authority and nothing else."""
    return ssl.create_default_context(cafile=server.ca)


@contextlib.asynccontextmanager
async def http_client(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the administrator."""
    async with httpx.AsyncClient(
        base_url=server.url, verify=tls(server), headers={"authorization": f"Bearer {server.token}"}, timeout=30
    ) as client:
        yield client


def kubectl_environment(server: RunningServer, home: Path) -> dict[str, str]:
    """Environment of a kubectl that sees only this server and keeps its caches under `home`."""
    return {**os.environ, "KUBECONFIG": str(server.kubeconfig), "HOME": str(home), "KUBECACHEDIR": str(home / "cache")}
