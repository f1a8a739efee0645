"""What other libraries load or make when they are imported, and a process of ours is better off without.

Called where such another library is imported. Nothing is decided here.
"""

from __future__ import annotations

import contextlib
import os
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


@contextlib.contextmanager
def trusting_nobody() -> Iterator[None]:
    """TLS contexts that are made meanwhile trust no authority. They would read in all that the machine trusts: 25 ms and 2.5 MB for
    a context that a library makes when it is imported, whether it is used or not. One that is used refuses every server. For the
    start of a process, as `without`."""
    places = {"SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": os.devnull}  # where OpenSSL looks first
    before = {name: os.environ.get(name) for name in places}
    os.environ.update(places)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
