"""The control plane as two supervised children, started together; the operator begins when the API answers, and stops first.

Called by `up` and `demo`. Knows the orders of the children and when the whole is ready; prints nothing itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import orjson

from swarmtask import wiring
from swarmtask.cli import datadir
from swarmtask.cli.child import Orders
from swarmtask.cli.supervise import Child
from swarmtask.clock import Clock
from swarmtask.errors import ConfigurationError, ServiceUnavailable, SwarmTaskError
from swarmtask.settings import Settings

STOP_GRACE_S = 8.0


@dataclass(frozen=True, slots=True)
class Watcher:
    """Who is told what happens to the children. `restarting`: name, exit status, seconds until the next start."""

    restarting: Callable[[str, int, float], None] = lambda _name, _status, _delay: None
    recovered: Callable[[str], None] = lambda _name: None
    echo: Callable[[str, str], None] = lambda _name, _line: None


@dataclass
class ControlPlane:
    """API server and operator of one data directory.

    Attributes:
        engine: swarm or local.
        ready_file: kept up to date with URL and process IDs while the control plane is ready; removed at the end.
        url: known once the API server has been ready.
    """

    settings: Settings
    engine: str
    clock: Clock
    config: Path | None = None
    ready_file: Path | None = None
    watcher: Watcher = field(default_factory=Watcher)
    url: str = ""
    _is_ready: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.kubeconfig = datadir.kubeconfig_path(self.settings.data_dir)
        logs = self.settings.data_dir / "logs"
        self._apiserver = Child(
            "apiserver", self._apiserver_argv, logs / "apiserver.log", self.clock,
            on_ready=self._on_ready, on_exit=self._on_exit, echo=self._on_line,
        )  # fmt: skip
        self._operator = Child(
            "operator", self._operator_argv, logs / "operator.log", self.clock,
            on_ready=self._on_ready, on_exit=self._on_exit, echo=self._on_line, waits=True,
        )  # fmt: skip

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """Start both; yields, once the API answers and the operator reconciles, a task that ends only with an error. Stops both.

        Raises:
            SwarmTaskError: one of them does not start, or the settings would not let it.
        """
        wiring.require_sound(self.settings, (self.engine,))
        if self.ready_file is not None:
            _require_writable(self.ready_file)
        keeper = asyncio.create_task(self._keep())
        try:
            ready = asyncio.create_task(self._is_ready.wait())
            await asyncio.wait([ready, keeper], return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
            if keeper.done():
                await keeper
                raise ServiceUnavailable("the control plane ended before it was ready")
            yield keeper
        finally:
            await self._stop(keeper)

    def kill(self) -> None:
        """End both at once, without waiting for anything."""
        self._operator.kill()
        self._apiserver.kill()

    async def _keep(self) -> None:
        """Both children. Ends with the first error of either."""
        apiserver = asyncio.create_task(self._apiserver.keep_running())
        operator = asyncio.create_task(self._operator.keep_running())
        try:
            done, _ = await asyncio.wait([apiserver, operator], return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            apiserver.cancel()
            operator.cancel()
            await asyncio.gather(apiserver, operator, return_exceptions=True)

    async def _stop(self, keeper: asyncio.Task[None]) -> None:
        if self.ready_file is not None:
            self.ready_file.unlink(missing_ok=True)
        # The operator first: it still writes to the API what it has in hand.
        await self._operator.stop(STOP_GRACE_S)
        await self._apiserver.stop(STOP_GRACE_S)
        keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError, SwarmTaskError):
            await keeper

    def _apiserver_argv(self) -> list[str]:
        host, port = self.settings.apiserver.host, self.settings.apiserver.port
        if self.url and port == 0:
            port = urlsplit(self.url).port or 0  # clients hold the first URL: a restart keeps the port
        return self._orders("apiserver", listen=(host, port)).argv()

    def _operator_argv(self) -> list[str]:
        return self._orders("operator", engine=self.engine, agents=bool(self.settings.agents.deploy)).argv()

    def _orders(self, part: Literal["apiserver", "operator"], **more: Any) -> Orders:
        settings = self.settings
        return Orders(
            part=part,
            data_dir=settings.data_dir,
            log_level=settings.log_level,
            log_json=settings.log_json,
            config=self.config,
            **more,
        )

    def _on_ready(self, child: Child, facts: dict[str, Any]) -> None:
        if child is self._apiserver:
            self.url = str(facts.get("url", ""))
            self._operator.begin()  # it has read in what it needs meanwhile
        elif not self._is_ready.is_set():
            self._is_ready.set()
        if child.starts > 1:
            self.watcher.recovered(child.name)
        if self._is_ready.is_set():
            self._write_ready_file()

    def _on_exit(self, child: Child, status: int, delay_s: float) -> None:
        self.watcher.restarting(child.name, status, delay_s)

    def _on_line(self, child: Child, line: str) -> None:
        self.watcher.echo(child.name, line)

    def _write_ready_file(self) -> None:
        if self.ready_file is None:
            return
        facts = {
            "url": self.url,
            "kubeconfig": str(self.kubeconfig),
            "engine": self.engine,
            "dataDir": str(self.settings.data_dir),
            "pids": {"up": os.getpid(), "apiserver": self._apiserver.pid, "operator": self._operator.pid},
        }
        datadir.write_atomically(self.ready_file, orjson.dumps(facts, option=orjson.OPT_INDENT_2) + b"\n")


def _require_writable(ready_file: Path) -> None:
    """Remove a stale ready file, and refuse a place where none can be written: whoever waits for it would wait for ever.

    Raises:
        ConfigurationError: it cannot be written.
    """
    try:
        ready_file.unlink(missing_ok=True)
        datadir.probe_writable(ready_file)
    except OSError as error:
        raise ConfigurationError(
            f"cannot write the ready file {ready_file}: {error.strerror}; name another with --ready-file"
        ) from error
