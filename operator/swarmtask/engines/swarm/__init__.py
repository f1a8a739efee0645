"""The Docker Swarm engine: one service per attempt, over the docker SDK. Measured facts and rules: docs/engines.md."""

from swarmtask.engines.swarm.engine import SwarmEngine

__all__ = ["SwarmEngine"]
