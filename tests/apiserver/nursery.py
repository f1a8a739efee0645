"""Servers that start in a moment: one process has read everything in, and forks for each server.

Used by the test that kills servers by the hundred: reading the program in takes ten times as long as opening its database. What
runs is the same `main`. As a program (`python -m tests.apiserver.nursery`): a line of JSON on stdin, the arguments of a server; its
process ID on stdout.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from swarmtask.apiserver.server import main
from tests.apiserver.server import ROOT, START_TIMEOUT_S, RunningServer, describe


@dataclass
class Nursery:
    """The process that forks, and the data directory of its servers, of which one runs at a time."""

    process: asyncio.subprocess.Process
    data_dir: Path
    pid: int = 0

    async def start(self) -> RunningServer:
        ready = self.data_dir.parent / f"{self.data_dir.name}.ready"
        ready.unlink(missing_ok=True)
        arguments = ["--data-dir", str(self.data_dir), "--listen", "127.0.0.1:0", "--ready-file", str(ready)]
        assert self.process.stdin is not None and self.process.stdout is not None
        async with asyncio.timeout(START_TIMEOUT_S):
            self.process.stdin.write(json.dumps(arguments).encode() + b"\n")
            self.pid = int(await self.process.stdout.readline())
            while not ready.exists():
                assert self._alive(), "the server ended"
                await asyncio.sleep(0.01)
        return describe(self.data_dir, ready.read_text().strip())

    async def end(self, number: signal.Signals) -> None:
        """Send a signal, and wait until the server has gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        async with asyncio.timeout(START_TIMEOUT_S):
            while self._alive():  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.005)

    def _alive(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True


@contextlib.asynccontextmanager
async def nursery(tmp_path: Path) -> AsyncIterator[Nursery]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.apiserver.nursery", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": f"{ROOT / 'operator'}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    found = Nursery(process, tmp_path / "apiserver")
    try:
        yield found
    finally:
        if found.pid:
            await found.end(signal.SIGKILL)
        process.kill()
        await process.wait()


def fork(arguments: list[str]) -> int:
    """The process ID of a server."""
    pid = os.fork()
    if pid:
        return pid
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for descriptor in (0, 1):
        os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    os._exit(main(arguments))


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them: they leave no zombies
    for line in sys.stdin:
        print(fork(json.loads(line)), flush=True)
