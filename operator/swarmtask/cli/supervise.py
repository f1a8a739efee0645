"""Child processes that are kept running: start, announce, log, restart with growing delays, stop.

Called by `up` and `demo`. A child speaks one line of JSON on stdout once it is ready, logs to stderr (kept in a
file that is rotated), and ends when its stdin closes. Nothing here knows what a child does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson

from swarmtask.cli.exits import ExitCode
from swarmtask.clock import Clock
from swarmtask.errors import ConfigurationError, ServiceUnavailable, SwarmTaskError

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 30.0
STABLE_S = 60.0
"""A child that ran this long has earned a quick restart."""
STARTS_BEFORE_GIVING_UP = 4
"""Only before it was ready for the first time: afterwards it is restarted for ever."""
LOG_BYTES = 8 * 2**20
BEGIN = b"begin\n"
"""What a child that waits is sent."""
_TAIL_LINES = 30
_HOPELESS = frozenset({ExitCode.USAGE, ExitCode.REFUSED, ExitCode.CONFLICT, ExitCode.NOT_FOUND})


class RotatingLog:
    """Appends to a file; at `LOG_BYTES` the file becomes `<name>.1`, and the one before that is gone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)

    def write(self, line: bytes) -> None:
        if self._file.tell() + len(line) > LOG_BYTES:
            self._file.close()
            self._path.replace(self._path.with_name(self._path.name + ".1"))
            self._file = self._path.open("ab", buffering=0)
        self._file.write(line)

    def close(self) -> None:
        self._file.close()


class Child:
    """One process that is kept running until `stop`.

    Args:
        argv: asked anew for every start, so that a restart may use what the first start found out (the port).
        on_ready: called with what the child announced, at every start.
        on_exit: called with the exit status and the delay before the next start.
        echo: called with every line that the child logs.
        waits: it reads in what it needs, and then waits for a line on stdin before it does anything: `begin` sends it, at every
            start from then on.
    """

    def __init__(
        self,
        name: str,
        argv: Callable[[], Sequence[str]],
        log: Path,
        clock: Clock,
        *,
        on_ready: Callable[[Child, dict[str, Any]], None],
        on_exit: Callable[[Child, int, float], None],
        echo: Callable[[Child, str], None] = lambda _child, _line: None,
        waits: bool = False,
    ) -> None:
        self.name = name
        self.pid: int | None = None
        self.starts = 0
        self._argv = argv
        self._log = log
        self._clock = clock
        self._on_ready = on_ready
        self._on_exit = on_exit
        self._echo = echo
        self._process: asyncio.subprocess.Process | None = None
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._ever_ready = asyncio.Event()
        self._stopping = asyncio.Event()
        self._waits, self._may_begin = waits, asyncio.Event()

    @property
    def tail(self) -> list[str]:
        """The last lines that the child logged."""
        return list(self._tail)

    async def keep_running(self) -> None:
        """Run the child, and run it again whenever it ends, until `stop`.

        Raises:
            ConfigurationError: it refuses to start and trying again would not help; carries its own words.
            ServiceUnavailable: it ended several times before it was ever ready.
        """
        log = RotatingLog(self._log)
        failures = 0
        try:
            while not self._stopping.is_set():
                begun = self._clock.monotonic()
                status = await self._run_once(log)
                if self._stopping.is_set():
                    return
                failures = 1 if self._clock.monotonic() - begun > STABLE_S else failures + 1
                if not self._ever_ready.is_set() and (status in _HOPELESS or failures >= STARTS_BEFORE_GIVING_UP):
                    raise self._verdict(status)
                delay_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** (failures - 1))
                self._on_exit(self, status, delay_s)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay_s):
                        await self._stopping.wait()
        finally:
            log.close()

    async def wait_ready(self) -> None:
        """Return when the child has been ready once."""
        await self._ever_ready.wait()

    def begin(self) -> None:
        """Let a child that waits go on, now and whenever it is started again."""
        self._may_begin.set()

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, and SIGKILL after `grace_s` seconds. Returns when no process is left."""
        self._stopping.set()
        process = self._process
        if process is None or process.returncode is not None:
            return
        _signal(process, signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await process.wait()
        except TimeoutError:
            _signal(process, signal.SIGKILL)
            await process.wait()

    def kill(self) -> None:
        """SIGKILL at once; for a second Ctrl-C."""
        self._stopping.set()
        if self._process is not None and self._process.returncode is None:
            _signal(self._process, signal.SIGKILL)

    async def _run_once(self, log: RotatingLog) -> int:
        self.starts += 1
        # A session of its own: Ctrl-C in the terminal reaches the supervisor alone, which then stops the children in order.
        process = await asyncio.create_subprocess_exec(
            *self._argv(), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            start_new_session=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}, limit=2**20,
        )  # fmt: skip
        self._process, self.pid = process, process.pid
        if self._stopping.is_set():  # stopped between the decision to start and the start
            _signal(process, signal.SIGTERM)
        readers = [asyncio.create_task(self._read_announcements(process)), asyncio.create_task(self._read_log(process, log))]
        telling = asyncio.create_task(self._tell(process))
        try:
            return await process.wait()
        finally:
            telling.cancel()
            # A grandchild may hold the pipes open after the child has gone: what it says is not waited for.
            await asyncio.wait(readers, timeout=1.0)
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, telling, return_exceptions=True)
            if process.returncode is None:
                _signal(process, signal.SIGKILL)
                await process.wait()
            self.pid = None

    async def _tell(self, process: asyncio.subprocess.Process) -> None:
        """Send a child that waits the line that it waits for, as soon as it may begin."""
        await self._may_begin.wait()
        if self._waits and process.stdin is not None:
            with contextlib.suppress(ConnectionError):  # it has ended: whoever waits for it sees that
                process.stdin.write(BEGIN)
                await process.stdin.drain()

    async def _read_announcements(self, process: asyncio.subprocess.Process) -> None:
        async for line in _lines(process.stdout):
            try:
                facts = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(facts, dict):
                self._ever_ready.set()
                self._on_ready(self, facts)

    async def _read_log(self, process: asyncio.subprocess.Process, log: RotatingLog) -> None:
        async for line in _lines(process.stderr):
            log.write(line)
            text = line.decode("utf-8", "replace").rstrip("\n")
            self._tail.append(text)
            self._echo(self, text)

    def _verdict(self, status: int) -> SwarmTaskError:
        said = "\n".join(f"  {line}" for line in self.tail[-8:]) or "  (it said nothing)"
        message = f"{self.name} does not start (exit status {status}); its last words, of {self._log}:\n{said}"
        return ConfigurationError(message) if status in _HOPELESS else ServiceUnavailable(message)


async def _lines(stream: asyncio.StreamReader | None) -> Any:
    """Lines of a stream, each at most 1 MiB; a longer one comes in pieces."""
    if stream is None:
        return
    while True:
        try:
            line = await stream.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                yield error.partial + b"\n"
            return
        except asyncio.LimitOverrunError as error:
            line = await stream.readexactly(error.consumed) + b"\n"
        yield line


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
