"""`swarmtask demo`: the product shown on real work, in less than half a minute."""

from swarmtask.cli.demo.command import register

__all__ = ["register"]
