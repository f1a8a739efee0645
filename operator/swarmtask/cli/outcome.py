"""What a program of ours ends with: errors as messages and exit codes, Ctrl-C, a closed pipe, and never a traceback.

Called by the command wrapper and by the children of `up`, which go without the library of the command line.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from swarmtask.cli import terminal
from swarmtask.cli.exits import ExitCode, exit_code_of
from swarmtask.errors import SwarmTaskError


def outcome_of(work: Callable[[], None]) -> ExitCode:
    """Do the work, and turn whatever goes wrong into a message on stderr and an exit code (docs/cli.md)."""
    try:
        work()
        sys.stdout.flush()
    except SwarmTaskError as error:
        if debugging():
            raise
        terminal.complain(error)
        return exit_code_of(error)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more at exit: give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.BROKEN_PIPE
    except OSError as error:
        if debugging():
            raise
        terminal.complain(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
        return ExitCode.FAILED
    return ExitCode.OK


@contextlib.contextmanager
def last_defence() -> Iterator[None]:
    """Around a whole program: a defect is told as one, in a line."""
    terminal.open_closed_streams()
    try:
        yield
    except Exception as error:
        if debugging():
            raise
        terminal.complain(
            f"internal error ({type(error).__name__}: {error}). This is a defect of SwarmTask: "
            "set SWARMTASK_DEBUG=1 to see the traceback, and report it"
        )
        sys.exit(ExitCode.FAILED)


def debugging() -> bool:
    """SWARMTASK_DEBUG=1 asks for tracebacks instead of messages."""
    return os.environ.get("SWARMTASK_DEBUG", "") not in ("", "0")
