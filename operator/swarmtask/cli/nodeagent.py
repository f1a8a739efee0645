"""`swarmtask node-agent`: what runs on every laptop. Reads the options, then becomes the agent's own small process."""

from __future__ import annotations

import os
import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import orjson
import typer

from swarmtask.cli.command import command
from swarmtask.nodeagent import heartbeat

CAPABILITY = re.compile(r"[a-zA-Z0-9]([-a-zA-Z0-9_.]{0,61}[a-zA-Z0-9])?")
"""As `swarmtask.resources.fields.Capability`, which a test compares: the API refuses a whole status for one that is none."""
MOST_CAPABILITIES = 60
"""With the four that may be found, no more than a SwarmNode has room for."""


class Level(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def register(app: typer.Typer, panel: str) -> None:
    command(app, "node-agent", panel)(node_agent)


def node_agent(
    kubeconfig: Annotated[
        Path | None,
        typer.Option(
            "--kubeconfig", metavar="FILE", envvar="SWARMTASK_AGENT_KUBECONFIG", show_default=False,
            help="Where the API is, and a token. Needed.",
        ),
    ] = None,
    bootstrap: Annotated[
        bool,
        typer.Option(
            "--bootstrap", help="The token is one that all nodes share: make one of this node with it. Goes with --engine-node."
        ),
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether the agent that uses --state lives: exit code 0 or 1.")
    ] = False,
    node: Annotated[
        str, typer.Option("--node", metavar="NAME", help="The SwarmNode that this machine is.", show_default=False)
    ] = "",
    engine_node: Annotated[
        str,
        typer.Option(
            "--engine-node",
            metavar="ENGINE/ID",
            envvar="SWARMTASK_AGENT_ENGINE_NODE",
            help="The same as its engine calls it, for example swarm/8ux3.",
            show_default=False,
        ),
    ] = "",
    capability: Annotated[
        list[str] | None,
        typer.Option(
            "--capability", metavar="NAME", help="What the machine offers, beside what is detected. Repeatable.", show_default=False
        ),
    ] = None,
    disk: Annotated[
        Path, typer.Option("--disk", metavar="DIR", help="A directory on the disk that holds images and containers.")
    ] = Path("/var/lib/docker"),
    docker: Annotated[Path, typer.Option("--docker", metavar="FILE", help="Docker's socket, to see and to stop attempts.")] = Path(
        "/var/run/docker.sock"
    ),
    cluster_id: Annotated[
        str,
        typer.Option(
            "--cluster-id",
            metavar="ID",
            help="Look after this installation's containers only. All of SwarmTask's unless set.",
            show_default=False,
        ),
    ] = "",
    state: Annotated[
        Path, typer.Option("--state", metavar="DIR", help="Where the ends of attempts are kept until they are told.")
    ] = Path("/var/lib/swarmtask/node-agent"),
    fence_seconds: Annotated[
        int,
        typer.Option(
            "--fence-seconds", min=5, max=3600, metavar="SECONDS", help="Stop fenced attempts after so long without the API."
        ),
    ] = 20,
    fence_grace: Annotated[
        int,
        typer.Option(
            "--fence-grace",
            min=0,
            max=600,
            metavar="SECONDS",
            help="Then kill those that have not ended after so long, where their task declares no grace period.",
        ),
    ] = 5,
    proc: Annotated[Path, typer.Option("--proc", metavar="DIR", help="The host's /proc.")] = Path("/proc"),
    cgroups: Annotated[Path, typer.Option("--cgroups", metavar="DIR", help="The host's /sys/fs/cgroup.")] = Path("/sys/fs/cgroup"),
    log_level: Annotated[Level, typer.Option("--log-level", help="How much is said, on stderr.")] = Level.INFO,
) -> None:  # fmt: skip
    """Report what this machine has and how it is: memory, pressure, power, temperature, GPUs, attempts.

    Renews the node's Lease every two seconds and writes its SwarmNode's status when something matters. Stops fenced attempts when
    the API cannot be reached, and the least important one when memory runs out. Runs until it is stopped.
    """
    if check:
        raise typer.Exit(heartbeat.main([str(state.expanduser().absolute())]))
    if kubeconfig is None:
        raise typer.BadParameter("it is needed: a file that says where the API is, and holds a token", param_hint="--kubeconfig")
    engine, _, engine_id = engine_node.partition("/")
    if bool(node) == bool(engine_node) or (engine_node and not (engine and engine_id)):
        raise typer.BadParameter("say which node this is: either --node NAME or --engine-node ENGINE/ID", param_hint="--node")
    offered = list(dict.fromkeys(capability or []))
    wrong = [name for name in offered if not CAPABILITY.fullmatch(name)]
    if wrong or len(offered) > MOST_CAPABILITIES:
        words = f"{wrong[0]!r} is no name: letters, digits, '-', '_' and '.', at most 63" if wrong else "they are too many"
        raise typer.BadParameter(f"{words}; at most {MOST_CAPABILITIES} can be told", param_hint="--capability")
    if bootstrap and not engine_id:
        raise typer.BadParameter("goes with --engine-node: by it the operator knows the machine", param_hint="--bootstrap")
    options = {
        "bootstrap": bootstrap,
        "kubeconfig": str(kubeconfig.expanduser().absolute()),
        "node": node,
        "engine": engine,
        "engineNode": engine_id,
        "capabilities": offered,
        "disk": str(disk),
        "docker": str(docker.expanduser().absolute()),
        "cluster": cluster_id,
        "state": str(state.expanduser().absolute()),
        "fenceSeconds": fence_seconds,
        "fenceGrace": fence_grace,
        "proc": str(proc.absolute()),
        "cgroups": str(cgroups.absolute()),
        "logLevel": log_level.value,
    }
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "swarmtask.nodeagent", orjson.dumps(options).decode()])  # noqa: S606
