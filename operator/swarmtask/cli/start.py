"""The program's first step: read in what the command needs, and no more.

Called by the console script and by `python -m swarmtask`. Imports nothing at its top but what is there already. Ctrl-C while the
program is still being read in ends it quietly, not with a traceback. The control plane stays for weeks: `up` and its two halves
load their own commands alone, and not the client libraries of the others (16 MB of memory in the API server); the children of `up`
load no commands at all.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer

STAYING = ("up", "apiserver", "operator")


def start() -> None:
    """Run the program; never returns."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    run = read_in(sys.argv[1:])  # these imports are what takes the time
    signal.signal(signal.SIGINT, before)
    run()


def read_in(arguments: list[str]) -> Callable[[], None]:
    """The program that these arguments may ask for."""
    if not arguments or arguments[0] not in STAYING:
        from swarmtask.cli.main import app  # noqa: PLC0415

        return _program(app)
    from swarmtask.optional import without  # noqa: PLC0415

    with without("rich"):
        import structlog  # noqa: F401, PLC0415 - it would load rich for tracebacks that we write ourselves
    from swarmtask.cli.child import Orders, run_child  # noqa: PLC0415

    if (orders := Orders.of(arguments)) is not None:
        return lambda: run_child(orders)
    from swarmtask.cli.serving import app  # noqa: PLC0415

    return _program(app)


def _program(app: typer.Typer) -> Callable[[], None]:
    from swarmtask.cli.program import run  # noqa: PLC0415

    return lambda: run(app)
