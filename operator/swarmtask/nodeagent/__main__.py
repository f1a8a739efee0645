"""The node agent as a process: `python -m swarmtask.nodeagent JSON`.

Started by `swarmtask node-agent`, which reads and checks the options and then becomes this: the frame of the command line (typer,
rich, pydantic) weighs 15 MB, and this process stays for weeks on small laptops. Builds the agent's objects and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import psutil

import swarmtask
from swarmtask.clock import Clock, SystemClock
from swarmtask.errors import ConfigurationError
from swarmtask.nodeagent import heartbeat
from swarmtask.nodeagent.agent import Agent, Identity, Look, Rhythm
from swarmtask.nodeagent.boot_timer import boot_pause
from swarmtask.nodeagent.daemon import Daemon
from swarmtask.nodeagent.enrolment import AnotherNode, Enrolment, Place
from swarmtask.nodeagent.fence import Fence, Terms
from swarmtask.nodeagent.gpus import Gpus
from swarmtask.nodeagent.guard import Guard, Places
from swarmtask.nodeagent.link import Credentials, Link, read_kubeconfig
from swarmtask.nodeagent.log_shipper import LogShipper
from swarmtask.nodeagent.probe import Probe
from swarmtask.nodeagent.reading import Reading

USAGE, FAILED = 2, 70
Work = Callable[[], Coroutine[Any, Any, None]]


def main(argument: str) -> int:
    """Run the agent until it is stopped; the exit code.

    Args:
        argument: JSON: kubeconfig, bootstrap, node or engine and engineNode, capabilities, disk, docker, cluster, state, proc,
            cgroups, fenceSeconds, fenceGrace, logLevel.
    """
    options = orjson.loads(argument)
    _log(options["logLevel"])
    threading.excepthook = _give_up
    code = 0
    try:
        asyncio.run(_run(options))
    except* ConfigurationError as group:
        sys.stderr.write(f"Error: {_one_line(str(group.exceptions[0]))}\n")
        code = USAGE
    except* AnotherNode as group:
        logging.warning("%s; the agent starts anew", group.exceptions[0])
        code = FAILED
    return code


async def _run(options: dict[str, Any]) -> None:
    proc, clock = Path(options["proc"]), SystemClock()
    if proc != Path("/proc"):
        psutil.PROCFS_PATH = str(proc)
    gpus = Gpus(None, find=_nvml)
    probe = Probe(time.monotonic, gpus, disk=Path(options["disk"]), capabilities=options["capabilities"], proc=proc)
    eyes = ThreadPoolExecutor(1, thread_name_prefix="look")  # one and the same thread: psutil measures CPU time for each apart

    async def apart(look: Look) -> Reading:
        return await asyncio.get_running_loop().run_in_executor(eyes, look)

    identity = Identity(options["node"], options["engine"], options["engineNode"])
    places = Places(Path(options["docker"]), Path(options["state"]), Path(options["cgroups"]), proc, options["cluster"])
    terms = Terms(fence_s=options["fenceSeconds"], grace_s=options["fenceGrace"])
    credentials = read_kubeconfig(Path(options["kubeconfig"]))
    guard = Guard(
        places, probe.boot_id, probe.strain, clock=clock, wait=time.sleep, rng=random.Random(), terms=terms,
        pause=boot_pause(clock.boot_time, terms.tick_s),
    )  # fmt: skip
    with guard:  # the fence first: what it must stop is stopped before anything else
        async with Link(credentials) as link:
            work: Work
            agent = Agent(
                link, probe.read, identity, guard.fence, boot_id=probe.boot_id, attempts=guard.told,
                delivered=guard.delivered, eviction=guard.eviction, clock=clock, rng=random.Random(), version=swarmtask.__version__,
                rhythm=Rhythm(lease_s=options["fenceSeconds"]), apart=apart,
            )  # fmt: skip
            shipper = LogShipper(
                places.docker, Daemon(places.docker, cluster=places.cluster), link, guard.fence.ask, places.state,
                node=lambda: agent.name, clock=clock, rng=random.Random(),
            )  # fmt: skip
            loop = asyncio.get_running_loop()
            guard.attempts.changed = _in_loop(loop, agent.attempts_changed, shipper.changed)
            guard.watch.pleaded = _in_loop(loop, agent.eviction_changed)
            work = functools.partial(_shipping, agent.run, shipper.run)
            if options["bootstrap"]:
                place = Place(identity.engine, identity.engine_node_id, credentials.ca, places.state)
                work = functools.partial(_enrolled, work, credentials, link, place, guard.fence)
            running = asyncio.create_task(_with_heart(work, places.state, clock))
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, running.cancel)
            with contextlib.suppress(asyncio.CancelledError):
                await running


async def _shipping(work: Work, ship: Work) -> None:
    """The work, and beside it the output of attempts on its way; without that the work goes on."""
    shipping = asyncio.create_task(ship())
    shipping.add_done_callback(_shipping_ended)
    try:
        await work()
    finally:
        shipping.cancel()
        await asyncio.wait((shipping,))


def _shipping_ended(shipping: asyncio.Task[None]) -> None:
    if not shipping.cancelled():
        logging.critical("output of attempts is not sent any more: restart the agent", exc_info=shipping.exception())


async def _enrolled(work: Work, shared: Credentials, link: Link, place: Place, fence: Fence) -> None:
    """The work, with a token of this node's own."""
    async with Link(shared) as bootstrap, asyncio.TaskGroup() as group:
        enrolment = Enrolment(
            bootstrap, link, place, may_call=lambda: fence.ask() is not None, clock=SystemClock(), rng=random.Random()
        )
        held = await enrolment.enter()
        group.create_task(work())
        group.create_task(enrolment.keep(held))


async def _with_heart(work: Work, state: Path, clock: Clock) -> None:
    """The work, and beside it the heartbeat for whoever checks."""

    async def beats() -> None:
        failed = False
        while True:
            try:
                heartbeat.beat(state, clock.monotonic())
                failed = False
            except OSError as error:
                if not failed:
                    logging.warning("cannot note the heartbeat in %s: %s", state, error)
                failed = True
            await clock.sleep(heartbeat.BEAT_S)

    beating = asyncio.create_task(beats())
    try:
        await work()
    finally:
        beating.cancel()


def _in_loop(loop: asyncio.AbstractEventLoop, *calls: Callable[[], None]) -> Callable[[], None]:
    """The calls, from any thread; nothing once the loop has ended."""

    def from_thread() -> None:
        with contextlib.suppress(RuntimeError):
            for call in calls:
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
