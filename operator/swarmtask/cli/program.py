"""The frame of the `swarmtask` program: its settings, and the last line of defence against a traceback.

Called by `main` (all commands) and `serving` (those that stay). Knows no command.
"""

from __future__ import annotations

import sys

import typer

from swarmtask.cli import terminal
from swarmtask.cli.command import debugging
from swarmtask.cli.exits import ExitCode


def new_app() -> typer.Typer:
    """The program without commands."""
    return typer.Typer(
        name="swarmtask",
        help="A desktop and spare laptops as one batch cluster, driven with kubectl.",
        epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 conflict, 5 unreachable, 6 refused, 130 interrupted.",
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def run(app: typer.Typer) -> None:
    """Run the program; never returns."""
    terminal.open_closed_streams()
    try:
        app(prog_name="swarmtask")
    except Exception as error:
        if debugging():
            raise
        terminal.complain(
            f"internal error ({type(error).__name__}: {error}). This is a defect of SwarmTask: "
            "set SWARMTASK_DEBUG=1 to see the traceback, and report it"
        )
        sys.exit(ExitCode.FAILED)
