"""The local engine: attempts are child processes of this machine, supervised by one small process each. See docs/engines.md."""

from swarmtask.engines.local.engine import LocalEngine

__all__ = ["LocalEngine"]
