"""`swarmtask apiserver` and `swarmtask operator`: each half of the control plane alone, by hand or under systemd.

Called through the program. What they do is in `halves`; as children of `up` they are `child`.
"""

from __future__ import annotations

from typing import Annotated

import typer

from swarmtask import wiring
from swarmtask.cli import datadir, halves, logsetup
from swarmtask.cli.command import command
from swarmtask.cli.options import Agents, Config, Context, DataDir, Engine, EngineChoice, Kubeconfig, Listen, parse_listen
from swarmtask.errors import EngineUnavailable
from swarmtask.settings import Settings

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
) -> None:
    """Run the embedded Kubernetes API alone."""
    settings = listening(halves.load(config, data_dir, log_level=log_level, log_json=log_json), listen)
    logsetup.configure(settings.log_level, json=settings.log_json, component="apiserver")
    halves.run_apiserver(settings, supervised=False)


def operator(
    engine: Engine = EngineChoice.AUTO,
    agents: Agents = None,
    data_dir: DataDir = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    config: Config = None,
    log_level: LogLevel = None,
    log_json: LogJson = None,
) -> None:
    """Run the control loops alone, against the embedded API or a real cluster."""
    settings = halves.with_agents(halves.load(config, data_dir, log_level=log_level, log_json=log_json), agents)
    logsetup.configure(settings.log_level, json=settings.log_json, component="operator")
    from swarmtask.cli.session import find_kubeconfig  # noqa: PLC0415 - the API server does not pay for the client

    name = choose_engine(settings, engine)
    wiring.load_operator(name)
    own = datadir.operator_kubeconfig_path(settings.data_dir)
    path = own if kubeconfig is None and own.is_file() else find_kubeconfig(settings, kubeconfig)
    halves.run_operator(settings, path, context, name, supervised=False)


def listening(settings: Settings, listen: str | None) -> Settings:
    """The settings with what `--listen` said; None: it was not given. Raises typer.BadParameter."""
    return settings if listen is None else halves.listening_on(settings, *parse_listen(listen))


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
