"""The node agent as a process: `python -m swarmtask.nodeagent JSON`.

Started by `swarmtask node-agent`, which reads and checks the options and then becomes this: the frame of the command line (typer,
rich, pydantic) weighs 15 MB, and this process stays for weeks on small laptops. Builds the agent's objects and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import orjson

import swarmtask
from swarmtask.clock import SystemClock
from swarmtask.errors import ConfigurationError
from swarmtask.nodeagent.agent import Agent, Identity
from swarmtask.nodeagent.gpus import Gpus
from swarmtask.nodeagent.link import Link, read_kubeconfig
from swarmtask.nodeagent.probe import Probe

USAGE = 2


def main(argument: str) -> int:
    """Run the agent until it is stopped; the exit code.

    Args:
        argument: JSON: kubeconfig, node or engine and engineNode, capabilities, disk, logLevel.
    """
    options = orjson.loads(argument)
    _log(options["logLevel"])
    try:
        asyncio.run(_run(options))
    except ConfigurationError as error:
        sys.stderr.write(f"Error: {_one_line(error.message)}\n")
        return USAGE
    return 0


async def _run(options: dict[str, Any]) -> None:
    gpus = Gpus(_nvml())
    probe = Probe(time.monotonic, gpus, disk=Path(options["disk"]), capabilities=options["capabilities"])
    identity = Identity(options["node"], options["engine"], options["engineNode"])
    async with Link(read_kubeconfig(Path(options["kubeconfig"]))) as link:
        agent = Agent(link, probe.read, identity, clock=SystemClock(), rng=random.Random(), version=swarmtask.__version__)
        running = asyncio.create_task(agent.run())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, running.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await running


def _nvml() -> Any:
    """NVML's module where this machine has NVIDIA's driver, else None: it is 2 MB that most laptops can do without."""
    if not Path("/dev/nvidiactl").exists() and not Path("/dev/dxg").exists():
        return None
    import pynvml  # noqa: PLC0415

    return pynvml


class _Lines(logging.Formatter):
    """One line per record, safe for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        return f"{moment} {record.levelname.lower():7} {_one_line(super().format(record))}"


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _log(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    for name in ("urllib3", "asyncio"):
        logging.getLogger(name).setLevel("WARNING")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
