"""The certificates and keys in the folder `pki`: whether they stand as they were issued, and who issues them when they do not.

Called by `auth` at every start and each minute. What the issuer has made or looked at is noted down beside it, with a digest: as
long as the files are those, nobody has to read certificates, and a server at rest does without the library that can (10 MB).
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import orjson

from swarmtask.apiserver.private_files import write_private

SIGNING_KEY = "accounts.key"
FILES = ("ca.crt", "ca.key", "server.crt", "server.key", SIGNING_KEY)
NOTE = "issued.json"
ISSUE_S = 60.0
"""Longest wait for the program that issues."""

Issue = Callable[[Path, Sequence[str], datetime], None]
"""Makes what is missing and renews what has aged, for these names, at that moment. Raises OSError, ValueError, TypeError."""


def stands(folder: Path, names: Sequence[str], now: datetime) -> bool:
    """All files are as they were when they were issued, for these names at least, and none has to be renewed. Raises OSError."""
    try:
        noted = orjson.loads((folder / NOTE).read_bytes())
        aged = now >= datetime.fromisoformat(noted["renew"])
        return not aged and set(names) <= set(noted["names"]) and bool(noted["digest"] == _digest(folder))
    except FileNotFoundError:
        return False
    except (ValueError, TypeError, KeyError, AttributeError):  # not as it was written: whoever issues writes it anew
        return False


def note(folder: Path, names: Sequence[str], renew: datetime) -> None:
    """Keep what there is now as issued, for these names. `renew`: when the first of it has to be renewed. Raises OSError."""
    noted = {"names": sorted(names), "digest": _digest(folder), "renew": renew.isoformat()}
    write_private(folder / NOTE, orjson.dumps(noted, option=orjson.OPT_INDENT_2) + b"\n")


def issue_here(folder: Path, names: Sequence[str], now: datetime) -> None:
    """Issue in this process."""
    from swarmtask.apiserver import issuing  # noqa: PLC0415 - see the module

    issuing.issue(folder, names, now)


def issue_beside(folder: Path, names: Sequence[str], now: datetime) -> None:
    """Issue in a process of its own, for one that stays. Blocks for about a tenth of a second."""
    command = [sys.executable, "-m", "swarmtask.apiserver.issuing", str(folder), now.isoformat(), *names]
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=ISSUE_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"issuing them took more than {ISSUE_S:.0f} s") from error
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip()
        raise ValueError(said or f"issuing them ended with status {done.returncode}")


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in FILES:
        content = (folder / name).read_bytes()
        digest.update(b"%s %d:" % (name.encode(), len(content)))
        digest.update(content)
    return digest.hexdigest()
