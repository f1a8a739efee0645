"""Exit codes: the contract between `swarmtask` and the scripts that call it (docs/cli.md).

Called by the command wrapper, which turns every error into one of these. Decides nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from swarmtask import errors


class ExitCode(IntEnum):
    """What a caller can tell apart."""

    OK = 0
    FAILED = 1
    """The work itself failed: a task that was waited for, the demo, or an error that is a defect of SwarmTask."""
    USAGE = 2
    """The command line is wrong."""
    NOT_FOUND = 3
    CONFLICT = 4
    """It exists already, somebody else changed or owns it, or another process holds the data directory."""
    UNREACHABLE = 5
    """The API or the engine does not answer."""
    REFUSED = 6
    """Understood and refused: invalid object, no permission, wrong settings, wrong state."""
    INTERRUPTED = 130
    """Ctrl-C."""
    BROKEN_PIPE = 141
    """The reader of stdout went away."""


def exit_code_of(error: errors.SwarmTaskError) -> ExitCode:
    """The exit code that says what kind of error this is."""
    match error:
        case errors.NotFound() | errors.WorkloadNotFound():
            return ExitCode.NOT_FOUND
        case errors.Conflict() | errors.AlreadyExists():
            return ExitCode.CONFLICT
        case errors.ServiceUnavailable() | errors.Timeout() | errors.EngineUnavailable():
            return ExitCode.UNREACHABLE
        case errors.TooManyRequests() | errors.InsufficientStorage() | errors.Permanent():
            return ExitCode.REFUSED
        case _:
            return ExitCode.FAILED


def combined(codes: Iterable[ExitCode]) -> ExitCode:
    """One code for several objects: the common one when all failures agree, else FAILED; OK when nothing failed."""
    distinct = {code for code in codes if code is not ExitCode.OK}
    if not distinct:
        return ExitCode.OK
    return distinct.pop() if len(distinct) == 1 else ExitCode.FAILED
