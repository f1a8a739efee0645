"""`swarmtask apiserver` and `swarmtask operator`: each half of the control plane alone, and as a child of `swarmtask up`.

As a child (`--supervised`) a process announces itself by one JSON line on stdout and ends when its stdin closes, so that it never
outlives a supervisor that was killed. The operator is read in while the API server starts, and waits for its supervisor's word.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from swarmtask import wiring
from swarmtask.cli import datadir, logsetup, terminal
from swarmtask.cli.command import command
from swarmtask.cli.options import Agents, Config, Context, DataDir, Engine, EngineChoice, Kubeconfig, Listen, parse_listen
from swarmtask.cli.supervise import BEGIN
from swarmtask.clock import SystemClock
from swarmtask.errors import EngineUnavailable
from swarmtask.settings import Settings, load_settings

if TYPE_CHECKING:
    from swarmtask.kube import ObjectApi

_PREDECESSOR_S = 10.0
Supervised = Annotated[bool, typer.Option("--supervised", hidden=True)]
LogJson = Annotated[bool | None, typer.Option("--log-json/--log-text", help="Log as JSON lines, or as text.", show_default=False)]
LogLevel = Annotated[
    str | None,
    typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error. (default: info)", show_default=False),
]


def register(app: typer.Typer, panel: str) -> None:
    command(app, "apiserver", panel)(apiserver)
    command(app, "operator", panel)(operator)


def apiserver(
    data_dir: DataDir = None,
    listen: Listen = None,
    config: Config = None,
    log_level: LogLevel = None,
    log_json: LogJson = None,
    supervised: Supervised = False,
) -> None:
    """Run the embedded Kubernetes API alone."""
    settings = load(config, data_dir, listen, log_level=log_level, log_json=log_json)
    logsetup.configure(settings.log_level, json=settings.log_json, component="apiserver")
    with datadir.hold(settings.data_dir, "apiserver", patience_s=_PREDECESSOR_S if supervised else 0):
        wiring.run_server(_serve(settings, supervised=supervised))


async def _serve(settings: Settings, *, supervised: bool) -> None:
    def on_ready(url: str) -> None:
        if supervised:
            _announce({"url": url})
        else:
            terminal.say(f"The API listens on {url}; kubeconfig {datadir.kubeconfig_path(settings.data_dir)}")

    async with _stop_signal(supervised=supervised) as stop:
        await wiring.serve_api(settings, SystemClock(), stop, on_ready)


def operator(
    engine: Engine = EngineChoice.AUTO,
    agents: Agents = None,
    data_dir: DataDir = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    config: Config = None,
    log_level: LogLevel = None,
    log_json: LogJson = None,
    supervised: Supervised = False,
) -> None:
    """Run the control loops alone, against the embedded API or a real cluster."""
    settings = with_agents(load(config, data_dir, None, log_level=log_level, log_json=log_json), agents)
    logsetup.configure(settings.log_level, json=settings.log_json, component="operator")
    from swarmtask.cli.session import find_kubeconfig  # noqa: PLC0415 - the API server does not pay for the client

    name = choose_engine(settings, engine)
    wiring.load_operator(name)
    if supervised and not _told_to_begin():
        return
    own = datadir.operator_kubeconfig_path(settings.data_dir)
    path = own if kubeconfig is None and own.is_file() else find_kubeconfig(settings, kubeconfig)
    with datadir.hold(settings.data_dir, "operator", patience_s=_PREDECESSOR_S if supervised else 0):
        wiring.run_server(_connect_and_operate(settings, path, context, name, supervised=supervised))


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


def load(
    config: Path | None, data_dir: Path | None, listen: str | None, *, log_level: str | None = None, log_json: bool | None = None
) -> Settings:
    """Settings of a process that serves: file, environment, options; the data directory is made and absolute.

    Raises:
        ConfigurationError: a setting is wrong, or the data directory cannot be used.
    """
    settings = load_settings(config, data_dir=data_dir, log_level=log_level, log_json=log_json)
    if listen is not None:
        host, port = parse_listen(listen)
        address = settings.apiserver.model_copy(update={"host": host, "port": port})
        settings = settings.model_copy(update={"apiserver": address})
    return settings.model_copy(update={"data_dir": datadir.prepare(settings.data_dir)})


def with_agents(settings: Settings, deploy: bool | None) -> Settings:
    """The settings with what `--agents` or `--no-agents` said; None: neither was given."""
    if deploy is None:
        return settings
    return settings.model_copy(update={"agents": settings.agents.model_copy(update={"deploy": deploy})})


def choose_engine(settings: Settings, choice: EngineChoice) -> str:
    """The engine that `auto` stands for here: swarm on a manager, else local. Makes no swarm."""
    if choice is not EngineChoice.AUTO:
        return choice.value
    from swarmtask.cli import dockerhost  # noqa: PLC0415 - the Docker SDK, in no process that can do without

    try:
        state = dockerhost.inspect(settings.swarm.docker_host)
    except EngineUnavailable:
        return EngineChoice.LOCAL.value
    return EngineChoice.SWARM.value if state.swarm == "active" and state.manager else EngineChoice.LOCAL.value


def _told_to_begin() -> bool:
    """Wait for the supervisor's word: until the API answers there is nothing to operate on. False when it has gone instead."""
    descriptor, heard = sys.stdin.fileno(), b""
    while BEGIN not in heard:
        more = os.read(descriptor, len(BEGIN) - len(heard))
        if not more:
            return False
        heard += more
    return True


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
