"""`swarmtask version`, `kubeconfig` and `join`: short answers."""

from __future__ import annotations

import asyncio
import platform
from typing import Annotated

import typer

import swarmtask
from swarmtask.cli import datadir, dockerhost, tables, terminal
from swarmtask.cli.command import command
from swarmtask.cli.options import AnswerOutput, ClientDataDir
from swarmtask.cli.session import Target
from swarmtask.errors import NotFound


def register(app: typer.Typer, panel: str) -> None:
    command(app, "kubeconfig", panel)(kubeconfig)
    command(app, "join", panel)(join)


def register_version(app: typer.Typer, panel: str) -> None:
    command(app, "version", panel)(version)


def version(
    output: Annotated[AnswerOutput, typer.Option("--output", "-o", help="Format of the answer.")] = AnswerOutput.TEXT,
) -> None:
    """Show the version. Needs no control plane."""
    if output is AnswerOutput.JSON:
        terminal.emit(
            tables.to_json({"version": swarmtask.__version__, "python": platform.python_version(), "platform": platform.platform()})
        )
    else:
        terminal.emit(f"swarmtask {swarmtask.__version__}")


def kubeconfig(data_dir: ClientDataDir = None) -> None:
    """Print the path of the control plane's kubeconfig.

    export KUBECONFIG="$(swarmtask kubeconfig)" makes kubectl talk to SwarmTask.
    """
    path = datadir.kubeconfig_path(Target(data_dir).settings().data_dir.expanduser().absolute())
    if not path.is_file():
        raise NotFound(f"there is no control plane yet ({path} does not exist): start one with `swarmtask up`")
    terminal.emit(str(path))


async def join(
    data_dir: ClientDataDir = None,
    manager: Annotated[bool, typer.Option("--manager", help="Join as a further manager, not as a worker.")] = False,
) -> None:
    """Print the command that adds a laptop. Run it there.

    The command holds the swarm's join token: whoever has it can add a machine. It is shown nowhere else.
    """
    settings = Target(data_dir).settings()
    line = await asyncio.to_thread(dockerhost.join_command, settings.swarm.docker_host, manager=manager)
    terminal.say("Run this on the laptop (Linux with Docker installed), as root or as a member of the group docker:", style="dim")
    terminal.emit(line)
