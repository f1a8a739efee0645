"""API server and operator as processes that stay: until a signal, and as a child until the supervisor is gone.

Called by `serve` (by hand) and `child` (under `up` and `demo`). A child announces itself by one JSON line on stdout and ends when
its stdin closes, so that it never outlives a supervisor that was killed. The library of the command line is not loaded here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from swarmtask import wiring
from swarmtask.cli import datadir, terminal
from swarmtask.clock import SystemClock
from swarmtask.settings import Settings, load_settings

if TYPE_CHECKING:
    from swarmtask.kube import ObjectApi

_PREDECESSOR_S = 10.0


def load(config: Path | None, data_dir: Path | None, *, log_level: str | None = None, log_json: bool | None = None) -> Settings:
    """Settings of a process that serves: file, environment, options; the data directory is made and absolute.

    Raises:
        ConfigurationError: a setting is wrong, or the data directory cannot be used.
    """
    settings = load_settings(config, data_dir=data_dir, log_level=log_level, log_json=log_json)
    return settings.model_copy(update={"data_dir": datadir.prepare(settings.data_dir)})


def listening_on(settings: Settings, host: str, port: int) -> Settings:
    """The settings with another address for the API."""
    return settings.model_copy(update={"apiserver": settings.apiserver.model_copy(update={"host": host, "port": port})})


def with_agents(settings: Settings, deploy: bool | None) -> Settings:
    """The settings with what was said of node agents; None: nothing was."""
    if deploy is None:
        return settings
    return settings.model_copy(update={"agents": settings.agents.model_copy(update={"deploy": deploy})})


def run_apiserver(settings: Settings, *, supervised: bool) -> None:
    """Serve the API until it is to stop.

    Raises:
        AlreadyExists: another one serves this data directory. ConfigurationError, and what serving raises.
    """
    with _holding(settings, "apiserver", supervised=supervised):
        wiring.run_server(_serve(settings, supervised=supervised))


def run_operator(settings: Settings, kubeconfig: Path, context: str | None, engine: str, *, supervised: bool) -> None:
    """Run the control loops until they are to stop.

    Args:
        engine: swarm or local.

    Raises:
        AlreadyExists: another one runs for this data directory. ConfigurationError, and what operating raises.
    """
    with _holding(settings, "operator", supervised=supervised):
        wiring.run_server(_connect_and_operate(settings, kubeconfig, context, engine, supervised=supervised))


def _holding(settings: Settings, component: str, *, supervised: bool) -> contextlib.AbstractContextManager[None]:
    """A child that is started again may meet the end of the one before."""
    return datadir.hold(settings.data_dir, component, patience_s=_PREDECESSOR_S if supervised else 0)


async def _serve(settings: Settings, *, supervised: bool) -> None:
    def on_ready(url: str) -> None:
        if supervised:
            _announce({"url": url})
        else:
            terminal.say(f"The API listens on {url}; kubeconfig {datadir.kubeconfig_path(settings.data_dir)}")

    async with _stop_signal(supervised=supervised) as stop:
        await wiring.serve_api(settings, SystemClock(), stop, on_ready)


async def _connect_and_operate(settings: Settings, kubeconfig: Path, context: str | None, engine: str, *, supervised: bool) -> None:
    async with _stop_signal(supervised=supervised) as stop:
        api = await wiring.kube_client(kubeconfig, context, decides=True)
        try:
            await _operate(settings, api, engine, stop, supervised=supervised)
        finally:
            await api.aclose()


async def _operate(settings: Settings, api: ObjectApi, engine: str, stop: asyncio.Event, *, supervised: bool) -> None:
    ready = asyncio.Event()

    async def tell() -> None:
        await ready.wait()
        if supervised:
            _announce({"engine": engine})
        else:
            terminal.say(f"The operator reconciles; engine {engine}")

    teller = asyncio.create_task(tell())
    try:
        await wiring.operate(settings, SystemClock(), api, (engine,), stop, ready)
    finally:
        teller.cancel()


def _announce(facts: dict[str, Any]) -> None:
    sys.stdout.write(orjson.dumps(facts).decode() + "\n")
    sys.stdout.flush()


@contextlib.asynccontextmanager
async def _stop_signal(*, supervised: bool) -> AsyncIterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set, and for a child the end of its supervisor."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    descriptor = sys.stdin.fileno() if supervised else None
    if descriptor is not None:

        def at_end() -> None:
            if not os.read(descriptor, 4096):
                loop.remove_reader(descriptor)
                stop.set()

        loop.add_reader(descriptor, at_end)
    try:
        yield stop
    finally:
        if descriptor is not None:
            loop.remove_reader(descriptor)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
