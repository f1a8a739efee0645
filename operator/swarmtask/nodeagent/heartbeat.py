"""Whether the agent lives: it notes the time in a file, and a health check reads it.

Written by `__main__`'s loop; read by `swarmtask-agent-health DIR` and `swarmtask node-agent --check`. It says that the agent's loop
turns, not that the API can be reached: an agent that waits for the API is well, and starting it anew would help nobody. Imports
next to nothing: the check runs twice a minute on laptops, and pathlib alone would take two thirds of it.
"""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FILE = "heartbeat"
WIDTH = 23
BEAT_S = 10.0
FRESH_S = 45.0
"""Older than this, several beats are missing."""


def beat(folder: Path, monotonic: float) -> None:
    """Note that the agent lives. In place and of one length: it needs no room on a disk that has become full. Raises OSError."""
    handle = os.open(f"{folder}/{FILE}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.pwrite(handle, f"{monotonic:.1f}".ljust(WIDTH).encode() + b"\n", 0)
    finally:
        os.close(handle)


def problem(folder: Path | str, monotonic: float) -> str:
    """Why the agent of this state directory is not well; empty: it is.

    Args:
        monotonic: seconds on the clock that runs while the machine is awake, and begins anew with each boot: a file from before the
            last boot is not taken for a beat, and a laptop that has slept is not taken for dead.
    """
    try:
        with open(f"{folder}/{FILE}", "rb") as file:  # noqa: PTH123 - see above
            noted = float(file.read(WIDTH))
    except (OSError, ValueError) as error:
        return f"no heartbeat in {folder}: {error}"
    age_s = monotonic - noted
    return "" if -1 <= age_s <= FRESH_S else f"the last heartbeat in {folder} is {age_s:.0f} s old"


def main(arguments: list[str] | None = None, monotonic: Callable[[], float] = time.monotonic) -> int:
    """`swarmtask-agent-health DIR`: exit code 0 if it is well, 1 if not, with the reason on stderr."""
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) != 1:
        sys.stderr.write("usage: swarmtask-agent-health DIR (the agent's --state)\n")
        return 2
    found = problem(given[0], monotonic())
    if found:
        sys.stderr.write(f"{found}\n")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
