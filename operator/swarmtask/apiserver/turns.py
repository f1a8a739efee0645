"""Turns of the event loop between the steps of a write, so that requests that came together take each step together.

Called by the object service, between steps that decide nothing; the store asks it before a commit. Many clients at once: the code
and the data of one step stay in the processor's caches while all of them take it, instead of making room for the next step's for
each of them. A create that was one of thirty took three quarters of the time (docs/performance.md); alone, as long as before.
"""

from __future__ import annotations

import types
from collections.abc import Generator


class Turns:
    """One per store.

    Attributes:
        waiting: requests between two steps now. Whoever runs while one waits can know that more is about to be written.
    """

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting = 0

    @types.coroutine
    def next(self) -> Generator[None, None, None]:
        """Wait until everybody else who can go on has gone on. What was known before may not be true after it."""
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1
