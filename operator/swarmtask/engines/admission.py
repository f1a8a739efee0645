"""What every engine refuses before it does anything, in the same words. Called by the concrete engines."""

from __future__ import annotations

import re

from swarmtask.engines.base import Workload
from swarmtask.errors import EngineRejected

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def is_name(name: str) -> bool:
    """Whether it can be the name of a workload; what cannot is never looked up either (it could be a path)."""
    return _NAME.fullmatch(name) is not None


def check_workload(workload: Workload) -> None:
    """Raises EngineRejected for what no engine can run."""
    if not is_name(workload.name):
        raise EngineRejected(f"{workload.name!r} is no workload name: at most 63 characters of a-z, 0-9 and -")
    texts = [*workload.command, *workload.args, workload.working_dir, *(text for pair in workload.env for text in pair)]
    if any("\0" in text for text in texts):
        raise EngineRejected("a command, an argument, a variable or the working directory holds a NUL character: remove it")
