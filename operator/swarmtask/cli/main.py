"""The `swarmtask` program: the list of commands, and the last line of defence against a traceback.

Called by the console script and by `python -m swarmtask.cli.main`. Every command registers itself from its own module.
"""

from __future__ import annotations

import sys

import typer

from swarmtask.cli import apply, demo, explain, get, info, logs, run, serve, status, steer, terminal, up
from swarmtask.cli.command import debugging
from swarmtask.cli.exits import ExitCode

TASKS, CONTROL_PLANE, OTHER = "Tasks", "Control plane", "Other"

app = typer.Typer(
    name="swarmtask",
    help="A desktop and spare laptops as one batch cluster, driven with kubectl.",
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 conflict, 5 unreachable, 6 refused, 130 interrupted.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

up.register(app, CONTROL_PLANE)
status.register(app, CONTROL_PLANE)
info.register(app, CONTROL_PLANE)
serve.register(app, CONTROL_PLANE)
run.register(app, TASKS)
apply.register(app, TASKS)
get.register(app, TASKS)
explain.register(app, TASKS)
logs.register(app, TASKS)
steer.register(app, TASKS)
demo.register(app, OTHER)
info.register_version(app, OTHER)


def main() -> None:
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


if __name__ == "__main__":
    main()
