"""`swarmtask up`: the whole control plane on this machine, from nothing to a kubeconfig."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import shlex
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from swarmtask.cli import datadir, logsetup, terminal
from swarmtask.cli.command import command
from swarmtask.cli.controlplane import ControlPlane, Watcher
from swarmtask.cli.halves import load, with_agents
from swarmtask.cli.options import Agents, Config, DataDir, Engine, EngineChoice, Listen
from swarmtask.cli.serve import LogJson, LogLevel, listening
from swarmtask.clock import SystemClock
from swarmtask.errors import ConfigurationError, EngineUnavailable
from swarmtask.settings import Settings, load_settings


def register(app: typer.Typer, panel: str) -> None:
    command(app, "up", panel)(up)


@dataclass(frozen=True, slots=True)
class ChosenEngine:
    """What will run the attempts, and the words that say so."""

    name: str
    description: str


async def up(
    engine: Engine = EngineChoice.AUTO,
    data_dir: DataDir = None,
    listen: Listen = None,
    advertise_addr: Annotated[
        str | None,
        typer.Option(
            "--advertise-addr", metavar="ADDRESS", show_default=False,
            help="Address of this machine for laptops, when a swarm is made. (default: that of the default route)",
        ),
    ] = None,
    ready_file: Annotated[
        Path | None,
        typer.Option(
            "--ready-file", metavar="FILE", dir_okay=False, show_default=False,
            help="Written (JSON: url, kubeconfig, engine, pids) once the API answers and the operator reconciles.",
        ),
    ] = None,
    agents: Agents = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the logs of both processes here too.")] = False,
    config: Config = None,
    log_level: LogLevel = None,
    log_json: LogJson = None,
) -> None:  # fmt: skip
    """Start the control plane on this machine and keep it running.

    Ctrl-C stops it. Tasks that run go on, and are found again at the next start.
    """
    settings = listening(load(config, data_dir, log_level=log_level, log_json=log_json), listen)
    logsetup.configure(settings.log_level, json=settings.log_json, component="up")
    ready_path = ready_file.expanduser().absolute() if ready_file else None
    with datadir.hold(settings.data_dir, "up"):
        chosen = await prepare_engine(settings, engine, advertise_addr)
        settings = await prepare_agents(with_agents(settings, agents), chosen, listen_given=listen is not None)
        plane = ControlPlane(
            settings, chosen.name, SystemClock(), config=config.absolute() if config else None, ready_file=ready_path,
            watcher=_watcher(settings, verbose=verbose),
        )  # fmt: skip
        with stop_on_signal(plane) as stop:
            await _supervise(plane, chosen, stop)
    terminal.say("Stopped. Running tasks were left to their engine.")


async def _supervise(plane: ControlPlane, chosen: ChosenEngine, stop: asyncio.Event) -> None:
    """Start, greet, and wait for a signal or for something that cannot be restarted."""
    stopped = asyncio.create_task(stop.wait())
    session = asyncio.create_task(_run(plane, chosen, stop))
    try:
        await asyncio.wait([stopped, session], return_when=asyncio.FIRST_COMPLETED)
        if not session.done():
            terminal.say("Stopping ...", style="dim")
            if not plane.url:  # still starting: nothing to wait for in there
                session.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await session
    finally:
        stopped.cancel()


async def _run(plane: ControlPlane, chosen: ChosenEngine, stop: asyncio.Event) -> None:
    async with plane.running() as keeper:
        _greet(plane, chosen)
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([stopped, keeper], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if keeper.done():
            await keeper


@contextlib.contextmanager
def stop_on_signal(plane: ControlPlane) -> Iterator[asyncio.Event]:
    """SIGINT and SIGTERM ask for an orderly stop; the second one does not wait."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def ask() -> None:
        if stop.is_set():
            plane.kill()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, ask)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)


async def prepare_engine(settings: Settings, choice: EngineChoice, advertise_addr: str | None) -> ChosenEngine:
    """Find Docker, make a single-node swarm where there is none, and say so.

    Raises:
        EngineUnavailable: Swarm was asked for and Docker does not answer. ConfigurationError: its swarm cannot be used.
    """
    if choice is EngineChoice.LOCAL:
        return ChosenEngine("local", "local processes of this machine, not isolated")
    from swarmtask.cli import dockerhost  # noqa: PLC0415 - the Docker SDK, in no process that can do without

    host = settings.swarm.docker_host
    try:
        state = await asyncio.to_thread(dockerhost.inspect, host)
    except EngineUnavailable as error:
        if choice is EngineChoice.SWARM:
            raise EngineUnavailable(
                f"{error.message}; start it (for example `systemctl start docker`), join its group, or use --engine local"
            ) from error
        terminal.warn("Docker does not answer: tasks run as local processes, not isolated. --engine swarm says why.")
        return ChosenEngine("local", "local processes of this machine, not isolated (Docker does not answer)")
    try:
        dockerhost.require_usable(state)
    except ConfigurationError as error:
        if choice is EngineChoice.SWARM:
            raise
        terminal.warn(f"{error.message}. Tasks run as local processes, not isolated.")
        return ChosenEngine("local", "local processes of this machine, not isolated")
    if state.swarm == "active":
        if advertise_addr:
            terminal.warn("--advertise-addr has no effect: this machine is in a swarm already.")
        return ChosenEngine("swarm", f"Docker Swarm ({state.version}, {state.nodes} node{'' if state.nodes == 1 else 's'})")
    try:
        address = await asyncio.to_thread(dockerhost.make_swarm, host, advertise_addr)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"Docker answers, but no swarm can be made: {error.message}. Choose this machine's address with --advertise-addr, "
            "or use --engine local"
        ) from error
    reach = "only this machine can reach it" if address.startswith("127.") else f"laptops reach it at {address}"
    terminal.say(f"Docker was not in a swarm: made this machine a single-node swarm; {reach}.")
    terminal.say("(`docker swarm leave --force` undoes that; --advertise-addr chooses another address.)", style="dim")
    return ChosenEngine("swarm", f"Docker Swarm ({state.version}, 1 node)")


async def prepare_agents(settings: Settings, chosen: ChosenEngine, *, listen_given: bool) -> Settings:
    """Decide whether nodes get the node agent, and let the API be reached by them if so; say what was decided where it matters.

    Raises:
        ConfigurationError: agents were asked for and cannot be put on nodes.
    """
    asked = settings.agents.deploy
    if asked is False:
        return settings
    from swarmtask.cli import dockerhost  # noqa: PLC0415 - the same

    image = settings.agents.image
    chosen_host = listen_given or "host" in settings.apiserver.model_fields_set
    if chosen.name != "swarm":
        why = "they are put on the nodes of a swarm, and the engine is " + chosen.name
    elif chosen_host and not settings.agents.api_url and is_loopback(settings.apiserver.host):
        why = f"the API listens on {settings.apiserver.host}, which no other machine reaches (--listen 0.0.0.0:7443 listens on all)"
    elif not await asyncio.to_thread(dockerhost.has_image, settings.swarm.docker_host, image):
        why = f"the image {image} is not on this machine (`make image` makes it)"
    else:
        if not chosen_host and not settings.agents.api_url:
            api = settings.apiserver.model_copy(update={"host": "0.0.0.0"})  # with TLS and a token always
            settings = settings.model_copy(update={"apiserver": api})
        return with_agents(settings, True)
    if asked:
        raise ConfigurationError(f"no node agents can be put on nodes: {why}")
    if chosen.name == "swarm":
        terminal.say(f"No node agents: {why}.", style="dim")
    return with_agents(settings, False)


def is_loopback(host: str) -> bool:
    """Only this machine itself reaches what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _watcher(settings: Settings, *, verbose: bool) -> Watcher:
    logs = settings.data_dir / "logs"

    def restarting(name: str, status: int, delay_s: float) -> None:
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        terminal.warn(f"{name} ended {how}; starting it again in {delay_s:.1f} s (log: {logs / name}.log)")

    def echo(name: str, line: str) -> None:
        if verbose:
            terminal.say(line if settings.log_json else f"{name}: {line}", style="dim")

    return Watcher(restarting=restarting, recovered=lambda name: terminal.say(f"{name} is back."), echo=echo)


def _greet(plane: ControlPlane, chosen: ChosenEngine) -> None:
    from swarmtask.cli.console import Text  # noqa: PLC0415 - rich, once the children are at work

    console = terminal.stderr()
    default = plane.settings.data_dir == load_settings().data_dir.expanduser().absolute()
    where = "" if default else f" --data-dir {shlex.quote(str(plane.settings.data_dir))}"
    console.print(Text("\nSwarmTask is up.\n", style="bold green"))
    for label, value in (
        ("API", plane.url),
        ("Engine", chosen.description),
        ("Data", str(plane.settings.data_dir)),
        ("kubeconfig", str(plane.kubeconfig)),
    ):
        console.print(Text.assemble((f"  {label:<12}", "dim"), value))
    steps = [
        (f"export KUBECONFIG={shlex.quote(str(plane.kubeconfig))}", "then kubectl works"),
        (f"swarmtask run{where} IMAGE -- CMD", "a first task"),
        (f"swarmtask status{where}", "nodes, queues and tasks"),
    ]
    if chosen.name == "swarm":
        steps.append(("swarmtask join", "prints the command that adds a laptop"))
    width = max(len(line) for line, _ in steps) + 3
    console.print(Text("\nNext", style="bold"))
    for line, comment in steps:
        console.print(Text.assemble("  ", (f"{line:<{width}}", "cyan"), (comment, "dim")))
    console.print(Text("\nCtrl-C stops the control plane; running tasks go on.\n", style="dim"))
