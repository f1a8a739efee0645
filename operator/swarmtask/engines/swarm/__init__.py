"""The Docker Swarm engine: one service per attempt, over the docker SDK. Measured facts and rules: docs/engines.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swarmtask.engines.swarm.engine import SwarmEngine

__all__ = ["SwarmEngine"]


def __getattr__(name: str) -> Any:
    """The engine when it is asked for: the API server uses `shells` alone, without the SDK (7 MB)."""
    if name != "SwarmEngine":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from swarmtask.engines.swarm.engine import SwarmEngine  # noqa: PLC0415 - see above

    return SwarmEngine
