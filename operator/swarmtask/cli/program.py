"""The frame of the `swarmtask` program: its settings, and how it is run.

Called by `main` (all commands) and `serving` (those that stay). Knows no command.
"""

from __future__ import annotations

import typer

from swarmtask.cli.outcome import last_defence


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
    with last_defence():
        app(prog_name="swarmtask")
