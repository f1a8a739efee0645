"""The node agent as a process: `python -m swarmtask.nodeagent JSON`.

Started by `swarmtask node-agent`, which reads and checks the options and then becomes this: the frame of the command line (typer,
rich, pydantic) weighs 15 MB, and this process stays for weeks on small laptops. Builds the agent's objects and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import psutil

import swarmtask
from swarmtask.clock import SystemClock
from swarmtask.errors import ConfigurationError
from swarmtask.nodeagent.agent import Agent, Identity, Rhythm
from swarmtask.nodeagent.fence import Terms
from swarmtask.nodeagent.gpus import Gpus
from swarmtask.nodeagent.guard import Guard, Places
from swarmtask.nodeagent.link import Link, read_kubeconfig
from swarmtask.nodeagent.probe import Probe

USAGE, FAILED = 2, 70


def main(argument: str) -> int:
    """Run the agent until it is stopped; the exit code.

    Args:
        argument: JSON: kubeconfig, node or engine and engineNode, capabilities, disk, docker, cluster, state, proc, cgroups,
            fenceSeconds, fenceGrace, logLevel.
    """
    options = orjson.loads(argument)
    _log(options["logLevel"])
    threading.excepthook = _give_up
    try:
        asyncio.run(_run(options))
    except ConfigurationError as error:
        sys.stderr.write(f"Error: {_one_line(error.message)}\n")
        return USAGE
    return 0


async def _run(options: dict[str, Any]) -> None:
    proc, clock = Path(options["proc"]), SystemClock()
    if proc != Path("/proc"):
        psutil.PROCFS_PATH = str(proc)
    probe = Probe(time.monotonic, Gpus(_nvml()), disk=Path(options["disk"]), capabilities=options["capabilities"], proc=proc)
    identity = Identity(options["node"], options["engine"], options["engineNode"])
    places = Places(Path(options["docker"]), Path(options["state"]), Path(options["cgroups"]), proc, options["cluster"])
    terms = Terms(fence_s=options["fenceSeconds"], grace_s=options["fenceGrace"])
    credentials = read_kubeconfig(Path(options["kubeconfig"]))
    guard = Guard(places, probe.boot_id, probe.strain, clock=clock, wait=time.sleep, rng=random.Random(), terms=terms)
    with guard:  # the fence first: what it must stop is stopped before anything else
        async with Link(credentials) as link:
            agent = Agent(
                link, probe.read, identity, guard.fence, attempts=guard.told, eviction=guard.eviction, clock=clock,
                rng=random.Random(), version=swarmtask.__version__, rhythm=Rhythm(lease_s=options["fenceSeconds"]),
            )  # fmt: skip
            loop = asyncio.get_running_loop()
            guard.attempts.changed = _in_loop(loop, agent.attempts_changed)
            guard.watch.pleaded = _in_loop(loop, agent.eviction_changed)
            running = asyncio.create_task(agent.run())
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, running.cancel)
            with contextlib.suppress(asyncio.CancelledError):
                await running


def _in_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> Callable[[], None]:
    """The call, from any thread; nothing once the loop has ended."""

    def from_thread() -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(call)

    return from_thread


def _nvml() -> Any:
    """NVML's module where this machine has NVIDIA's driver, else None: it is 2 MB that most laptops can do without."""
    if not Path("/dev/nvidiactl").exists() and not Path("/dev/dxg").exists():
        return None
    import pynvml  # noqa: PLC0415

    return pynvml


def _give_up(failure: threading.ExceptHookArgs) -> None:
    """A fence that has stopped looking protects nobody: end, and be started anew, which fences first."""
    name = "" if failure.thread is None else failure.thread.name
    logging.critical("thread %s has failed, the agent ends", name, exc_info=failure.exc_value)
    os._exit(FAILED)


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
