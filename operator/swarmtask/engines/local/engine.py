"""The local engine: every attempt is a child process of this machine. For trying things out and for tests: it isolates nothing.

Built by `wiring`. Needs neither Docker nor root. The truth is on disk (`record`), kept by one supervisor per attempt (`shim`), so
that an operator that was killed finds everything again, also what ended meanwhile. The image is ignored. The event loop never
touches the disk: a small thread pool does, with a time-out.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import orjson
import psutil

from swarmtask.clock import Clock
from swarmtask.engines.admission import check_workload, is_name
from swarmtask.engines.base import (
    FINAL_WORKLOAD_STATES,
    Availability,
    EngineCapabilities,
    EngineNode,
    Hint,
    NodeState,
    Observation,
    Workload,
)
from swarmtask.engines.devices import gpu_environment
from swarmtask.engines.local import record as records
from swarmtask.engines.local import shim
from swarmtask.engines.local.output import OutputReader
from swarmtask.engines.local.record import Record
from swarmtask.errors import ConfigurationError, EngineRejected, EngineUnavailable, SwarmTaskError, WorkloadNotFound
from swarmtask.settings import LocalSettings

CALL_TIMEOUT_S = 15.0
START_TIMEOUT_S = 5.0
LOG_POLL_S = 0.1
T = TypeVar("T")


class LocalEngine:
    """See the module's text. Satisfies `swarmtask.engines.base.Engine`.

    Args:
        state_dir: everything is kept below it; made with mode 0700.
    """

    def __init__(self, settings: LocalSettings, state_dir: Path, clock: Clock) -> None:
        self._settings = settings
        self._state = state_dir.absolute()
        self._attempts = self._state / "attempts"
        self._clock = clock
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="local-engine")
        self._boot_id = records.boot_id()
        self._finished: dict[str, Observation] = {}
        self._watchers: list[asyncio.Queue[Hint]] = []
        self._hints: int | None = None

    @property
    def name(self) -> str:
        return records.ENGINE

    @property
    def capabilities(self) -> EngineCapabilities:
        return EngineCapabilities(isolates=False, pulls_images=False, keeps_logs_after_exit=True, remote_nodes=False)

    async def start(self) -> None:
        if os.name != "posix":
            raise ConfigurationError("the local engine needs Linux or macOS: use the swarm engine on this machine")
        if not sys.executable:
            raise ConfigurationError("the local engine cannot find its Python interpreter: start SwarmTask with a regular Python")
        await self._call(self._prepare)

    async def aclose(self) -> None:
        if self._hints is not None:
            asyncio.get_running_loop().remove_reader(self._hints)
            os.close(self._hints)
            self._hints = None
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def nodes(self) -> Sequence[EngineNode]:
        return (await self._call(self._node),)

    async def submit(self, workload: Workload) -> None:
        self._check(workload)
        await self._call(lambda: self._submit(workload))
        self._hint(Hint("workload", workload.name))

    async def stop(self, name: str, grace_s: int) -> None:
        await self._call(lambda: self._stop(name, grace_s))
        self._hint(Hint("workload", name))

    async def remove(self, name: str) -> None:
        await self._call(lambda: self._remove(name))
        self._hint(Hint("workload", name))

    async def workloads(self) -> Sequence[Observation]:
        return await self._call(self._workloads)

    async def watch(self) -> AsyncIterator[Hint]:
        """Supervisors write the name of their attempt into a FIFO when it starts and when it ends."""
        queue: asyncio.Queue[Hint] = asyncio.Queue()
        asyncio.get_running_loop().add_reader(await self._call(self._open_hints), self._read_hints)
        self._watchers.append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._watchers.remove(queue)

    async def logs(
        self, name: str, *, follow: bool = False, tail: int | None = None, timestamps: bool = False
    ) -> AsyncIterator[bytes]:
        attempt = await self._call(lambda: self._find(name))
        if attempt is None:
            raise WorkloadNotFound(f"this machine has no workload {name}: it was removed, or it never was here")
        reader = OutputReader(attempt.directory, tail=tail, timestamps=timestamps)
        try:
            while True:
                seen = await self._call(lambda: attempt.observe(self._boot_id))
                over = seen is None or seen.state in FINAL_WORKLOAD_STATES  # asked before the read: nothing comes after it
                if chunk := await self._call(lambda over=over: reader.advance(ended=over)):  # type: ignore[misc]
                    yield chunk
                if over or not follow:
                    return
                if not chunk:
                    await self._clock.sleep(LOG_POLL_S)
        finally:
            reader.close()

    async def label_node(self, node_id: str, labels: Mapping[str, str | None]) -> None:
        def change(kept: dict[str, Any]) -> None:
            merged = {**kept["labels"], **labels}
            kept["labels"] = {key: value for key, value in merged.items() if value is not None}

        await self._call(lambda: self._change_node(node_id, change))
        self._hint(Hint("node", node_id))

    async def set_availability(self, node_id: str, availability: Availability) -> None:
        await self._call(lambda: self._change_node(node_id, lambda kept: kept.update(availability=availability.value)))
        self._hint(Hint("node", node_id))

    # --- calls ------------------------------------------------------------------------------------------------------------

    async def _call(self, function: Callable[[], T]) -> T:
        """Run in a thread, within the time-out; the disk's errors become EngineUnavailable."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return await asyncio.get_running_loop().run_in_executor(self._threads, function)
        except SwarmTaskError:
            raise
        except TimeoutError as error:
            raise EngineUnavailable(f"the disk under {self._state} did not answer within {CALL_TIMEOUT_S:g} s") from error
        except (OSError, orjson.JSONDecodeError, KeyError) as error:
            raise EngineUnavailable(f"the local engine cannot use {self._state}: {error}") from error

    def _prepare(self) -> None:
        """Make the directories, clear what a crash left, start what was accepted and never started."""
        try:
            self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._attempts.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"cannot write to {self._state}: {error.strerror}; choose another --data-dir") from error
        records.sweep(self._attempts, self._clock.now() - timedelta(minutes=1))
        for attempt in self._list():
            if attempt.read("started.json") is None and attempt.read("exit.json") is None and not attempt.supervised():
                self._supervise(attempt)

    # --- attempts ---------------------------------------------------------------------------------------------------------

    def _check(self, workload: Workload) -> None:
        check_workload(workload)
        if workload.node_id != self._hostname():
            raise EngineRejected(f"the local engine has one node, {self._hostname()}, and not {workload.node_id!r}")
        if not workload.command and not workload.args:
            raise EngineRejected(
                "the local engine runs no image: container.command or container.args must say which program to run"
            )

    def _submit(self, workload: Workload) -> None:
        environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(Path.home()), "LANG": "C.UTF-8"}
        environment.update(workload.env)
        environment.update(gpu_environment(workload, isolated=False))
        try:
            attempt = records.create(self._attempts, workload, self._settings.max_output_bytes, environment)
        except FileExistsError as error:
            attempt = Record(self._attempts / workload.name)
            present = attempt.read("spec.json")
            if present is not None and (present["task_uid"], present["attempt"]) != (workload.task_uid, workload.attempt):
                raise EngineRejected(f"{workload.name} exists already and is not this attempt") from error
            if attempt.read("started.json") is not None or attempt.read("exit.json") is not None or attempt.supervised():
                return
        self._supervise(attempt)

    def _supervise(self, attempt: Record) -> None:
        """Start the supervisor. It makes sure itself that there is only one, and that nothing runs twice."""
        command = [sys.executable, "-I", "-S", shim.__file__, str(attempt.directory), self._boot_id]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, start_new_session=True, cwd="/", close_fds=True, **streams)  # type: ignore[call-overload]
        try:
            process.wait(START_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise EngineUnavailable(f"this machine took more than {START_TIMEOUT_S:g} s to start a process") from error

    def _find(self, name: str) -> Record | None:
        attempt = Record(self._attempts / name)
        os.stat(f"{self._attempts}/")  # noqa: PTH116 - an engine that is gone is another error than a workload that is
        return attempt if is_name(name) and attempt.directory.is_dir() else None

    def _list(self) -> list[Record]:
        return [Record(self._attempts / name) for name in sorted(os.listdir(self._attempts)) if is_name(name)]  # noqa: PTH208

    def _stop(self, name: str, grace_s: int) -> None:
        attempt = self._find(name)
        if attempt is None or attempt.read("exit.json") is not None:
            return
        attempt.ask_to_stop(grace_s)
        if attempt.read("started.json") is None:
            attempt.stop_unstarted(self._clock.now())  # False: a supervisor has it and reads the wish

    def _remove(self, name: str) -> None:
        attempt = self._find(name)
        if attempt is None:
            return
        self._stop(name, 0)
        waited_s = 0.0
        while attempt.read("exit.json") is None and attempt.supervised():
            if waited_s > CALL_TIMEOUT_S - 3:
                raise EngineUnavailable(f"{name} does not end although it was killed; trying again later makes sense")
            time.sleep(0.02)
            waited_s += 0.02
        attempt.observe(self._boot_id)  # kills what a killed supervisor left behind
        self._finished.pop(name, None)
        records.discard(attempt)

    def _workloads(self) -> tuple[Observation, ...]:
        seen = []
        attempts = self._list()
        for attempt in attempts:
            observation = self._finished.get(attempt.name) or attempt.observe(self._boot_id)
            if observation is None:
                continue
            if observation.state in FINAL_WORKLOAD_STATES:
                self._finished[attempt.name] = observation
            seen.append(observation)
        for name in set(self._finished) - {attempt.name for attempt in attempts}:
            del self._finished[name]
        return tuple(seen)

    # --- the node ---------------------------------------------------------------------------------------------------------

    @staticmethod
    def _hostname() -> str:
        """This machine's name as a Kubernetes name allows it."""
        plain = re.sub(r"[^a-z0-9-]+", "-", platform.node().split(".", 1)[0].lower()).strip("-")
        return plain[:63].strip("-") or "localhost"

    def _kept(self) -> dict[str, Any]:
        os.stat(f"{self._attempts}/")  # noqa: PTH116 - see _find
        try:
            kept: dict[str, Any] = orjson.loads((self._state / "node.json").read_bytes())
        except FileNotFoundError:
            kept = {}
        return {"labels": {}, "availability": Availability.ACTIVE.value} | kept

    def _node(self) -> EngineNode:
        kept = self._kept()
        return EngineNode(
            id=self._hostname(),
            hostname=self._hostname(),
            state=NodeState.READY,
            available=kept["availability"] == Availability.ACTIVE.value,
            cpu_milli=(psutil.cpu_count() or 1) * 1000,
            memory_bytes=psutil.virtual_memory().total,
            arch=platform.machine(),
            os=platform.system().lower(),
            engine_version=f"python {platform.python_version()}",
            is_manager=True,
            labels=kept["labels"],
        )

    def _change_node(self, node_id: str, change: Callable[[dict[str, Any]], None]) -> None:
        if node_id != self._hostname():
            raise EngineRejected(f"the local engine has one node, {self._hostname()}, and not {node_id!r}")
        kept = self._kept()
        change(kept)
        shim.write_json(self._state / "node.json", kept)

    # --- hints ------------------------------------------------------------------------------------------------------------

    def _hint(self, hint: Hint) -> None:
        for queue in self._watchers:
            queue.put_nowait(hint)

    def _open_hints(self) -> int:
        if self._hints is None:
            path = self._state / "hints"
            with contextlib.suppress(FileExistsError):
                os.mkfifo(path, 0o600)
            self._hints = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        return self._hints

    def _read_hints(self) -> None:
        if self._hints is None:
            return
        with contextlib.suppress(BlockingIOError):
            for name in set(os.read(self._hints, 65536).decode(errors="replace").split()):
                self._hint(Hint("workload", name))
