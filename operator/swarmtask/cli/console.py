"""The terminal as rich sees it. Loaded by `terminal` with the first line that a person is told.

The two halves of the control plane talk to nobody in most of their lives: without rich each of them is 5 MB smaller.
"""

from __future__ import annotations

import sys

from rich.console import Console
from rich.text import Text

__all__ = ["Console", "Text", "stderr", "stdout"]


class _Console(Console):
    """Leaves a reader that went away to the command wrapper, which knows the exit code; rich would exit with 1."""

    def on_broken_pipe(self) -> None:
        raise  # noqa: PLE0704 - rich calls this from its handler of BrokenPipeError


def stdout() -> Console:
    """Where data goes. Made anew each time: tests and pipes replace the stream."""
    return _Console(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=True)


def stderr() -> Console:
    """Where talk goes."""
    return Console(file=sys.stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)
