"""How a function becomes a command: async bodies, and what it ends with.

Called by the command modules through `command`. No command handles errors, Ctrl-C or a closed pipe itself (`outcome`).
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from typing import Any

import typer

from swarmtask.cli.exits import ExitCode
from swarmtask.cli.outcome import outcome_of


def command(app: typer.Typer, name: str, panel: str, **settings: Any) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Register a function, plain or async, as the command `name` under the help panel `panel`."""

    def register(function: Callable[..., Any]) -> Callable[..., None]:
        guarded = guard(function)
        app.command(name, rich_help_panel=panel, **settings)(guarded)
        return guarded

    return register


def guard(function: Callable[..., Any]) -> Callable[..., None]:
    """Run the function, and end the program with an exit code where something goes wrong."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> None:
        def work() -> None:
            result = function(*args, **kwargs)
            if inspect.iscoroutine(result):
                asyncio.run(result)

        code = outcome_of(work)
        if code is not ExitCode.OK:
            raise typer.Exit(code)

    return call
