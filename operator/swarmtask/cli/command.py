"""How a function becomes a command: async bodies, errors as messages and exit codes, Ctrl-C, a closed pipe.

Called by the command modules through `command`. No command handles these things itself.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from swarmtask.cli import terminal
from swarmtask.cli.exits import ExitCode, exit_code_of
from swarmtask.errors import SwarmTaskError


def command(app: typer.Typer, name: str, panel: str, **settings: Any) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Register a function, plain or async, as the command `name` under the help panel `panel`."""

    def register(function: Callable[..., Any]) -> Callable[..., None]:
        guarded = guard(function)
        app.command(name, rich_help_panel=panel, **settings)(guarded)
        return guarded

    return register


def guard(function: Callable[..., Any]) -> Callable[..., None]:
    """Run the function and turn whatever goes wrong into a message on stderr and an exit code (docs/cli.md)."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> None:
        try:
            result = function(*args, **kwargs)
            if inspect.iscoroutine(result):
                asyncio.run(result)
            sys.stdout.flush()
        except SwarmTaskError as error:
            if debugging():
                raise
            terminal.complain(error)
            raise typer.Exit(exit_code_of(error)) from None
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except BrokenPipeError:
            # The interpreter flushes stdout once more at exit: give it somewhere to go.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(ExitCode.BROKEN_PIPE) from None
        except OSError as error:
            if debugging():
                raise
            terminal.complain(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
            raise typer.Exit(ExitCode.FAILED) from None

    return call


def debugging() -> bool:
    """SWARMTASK_DEBUG=1 asks for tracebacks instead of messages."""
    return os.environ.get("SWARMTASK_DEBUG", "") not in ("", "0")
