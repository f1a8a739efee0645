"""The options that many commands share, so that they are spelled and explained the same everywhere.

Called by the command modules in their signatures. Holds no behaviour but reading HOST:PORT and K=V.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Output(StrEnum):
    """How objects are written to stdout."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


class AnswerOutput(StrEnum):
    """How an answer that is no object is written to stdout."""

    TEXT = "text"
    JSON = "json"


class EngineChoice(StrEnum):
    """What runs the attempts. auto: Swarm if Docker answers, else local processes."""

    AUTO = "auto"
    SWARM = "swarm"
    LOCAL = "local"


_CONNECTION = "Connection"

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", help="Where the control plane keeps its files.", show_default=False, file_okay=False),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", envvar="SWARMTASK_CONFIG", help="YAML file with settings.", show_default=False),
]
ClientDataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="DIR",
        help="Data directory of the control plane; its kubeconfig is used.",
        rich_help_panel=_CONNECTION,
        show_default=False,
    ),
]
Kubeconfig = Annotated[
    Path | None,
    typer.Option(
        "--kubeconfig",
        metavar="FILE",
        help="Kubeconfig to use. Otherwise the data directory's, then $KUBECONFIG.",
        rich_help_panel=_CONNECTION,
        show_default=False,
    ),
]
Context = Annotated[
    str | None,
    typer.Option("--context", metavar="NAME", help="Context of the kubeconfig.", rich_help_panel=_CONNECTION, show_default=False),
]
Namespace = Annotated[
    str | None,
    typer.Option(
        "--namespace", "-n", metavar="NAME", help="Namespace. (default: the context's, else default)",
        rich_help_panel=_CONNECTION, show_default=False,
    ),
]  # fmt: skip
Selector = Annotated[
    str, typer.Option("--selector", "-l", metavar="LABELS", help="Label selector, for example app=lint.", show_default=False)
]
Engine = Annotated[EngineChoice, typer.Option("--engine", help="What runs the attempts.")]
Listen = Annotated[
    str | None,
    typer.Option(
        "--listen",
        metavar="HOST:PORT",
        help="Where the API listens; port 0 picks a free one. (default: 127.0.0.1:7443)",
        show_default=False,
    ),
]


Agents = Annotated[
    bool | None,
    typer.Option(
        "--agents/--no-agents",
        help="Put the node agent on every node of the swarm. (default: `up` does, where the agent's image is here)",
        show_default=False,
    ),
]


def parse_listen(text: str) -> tuple[str, int]:
    """`127.0.0.1:0`, `[::1]:7443` -> host and port.

    Raises:
        typer.BadParameter: it is not HOST:PORT.
    """
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise typer.BadParameter(
            f"{text!r} is not HOST:PORT; write for example 127.0.0.1:7443, or 127.0.0.1:0 for a free port", param_hint="--listen"
        )
    return host, int(port)


def parse_pairs(items: list[str], option: str) -> dict[str, str]:
    """`K=V` items of `option`; a name that is given twice keeps its last value.

    Raises:
        typer.BadParameter: an item has no `=` or no name.
    """
    values: dict[str, str] = {}
    for item in items:
        name, separator, value = item.partition("=")
        if not separator or not name:
            raise typer.BadParameter(f"{item!r} is not NAME=VALUE", param_hint=option)
        values[name] = value
    return values
