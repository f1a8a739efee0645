"""`swarmtask image push`: images of this machine for nodes that can reach no registry."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from swarmtask import wiring
from swarmtask.cli import terminal
from swarmtask.cli.command import command
from swarmtask.cli.options import ClientDataDir, Context, Kubeconfig
from swarmtask.cli.session import Target, connect


def register(app: typer.Typer, panel: str) -> None:
    group = typer.Typer(help="Images that nodes fetch from this machine.", no_args_is_help=True)
    group.callback()(_image)
    command(group, "push", "Images")(push)
    app.add_typer(group, name="image", rich_help_panel=panel)


def _image() -> None:
    """Images that nodes fetch from this machine."""


async def push(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="As `docker image ls` shows it.", show_default=False)],
    data_dir: ClientDataDir = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Bring images of this machine to where every node can pull them, and print their names for tasks.

    Run it on the machine of the control plane. The printed name, 127.0.0.1:PORT/NAME@sha256:..., is good in spec.container.image
    on every node; so is the one with the image's tag in place of the digest.
    """
    async with connect(Target(data_dir, kubeconfig, context)) as session:
        with contextlib.closing(wiring.image_registry(session.settings, await session.cluster_id())) as registry:
            for image in images:
                terminal.emit(await registry.publish(image))
