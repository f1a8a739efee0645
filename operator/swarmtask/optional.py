"""Libraries that others use where they are installed, and that a process of ours is better off without.

Called where such another library is imported. Nothing is decided here.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def without(*names: str) -> Iterator[None]:
    """What is imported meanwhile finds these top-level packages missing, unless they are loaded already. Afterwards they can be
    imported as ever. For the start of a process: another thread that imports one of them at the same time would miss it, too."""
    absent = [name for name in names if name not in sys.modules]
    for name in absent:
        sys.modules[name] = None  # type: ignore[assignment]  # that is how the import system is told
    try:
        yield
    finally:
        for name in absent:
            sys.modules.pop(name, None)
