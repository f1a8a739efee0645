"""The `swarmtask` program as a subprocess, as other programs start it: `up` with a ready file, and single commands."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
PROGRAM = (sys.executable, "-m", "swarmtask")
PATIENCE_S = 60


def environment(home: Path, **more: str) -> dict[str, str]:
    """Nothing of this machine's configuration; the sources of this tree."""
    return {
        "PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", "TERM": "dumb",
        "PYTHONPATH": f"{ROOT / 'operator'}{os.pathsep}{ROOT}", **more,
    }  # fmt: skip


@dataclass
class Up:
    """A running `swarmtask up`."""

    process: asyncio.subprocess.Process
    data_dir: Path
    ready_file: Path
    home: Path

    @property
    def facts(self) -> dict[str, Any]:
        return json.loads(self.ready_file.read_text())

    def command(self, *arguments: str, input: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        """Run one command against it."""
        return subprocess.run(
            [*PROGRAM, *arguments], input=input, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
            env=environment(self.home, SWARMTASK_DATA_DIR=str(self.data_dir), **env),
        )  # fmt: skip

    async def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Exit status and what it said on stderr."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        _, stderr = await asyncio.wait_for(self.process.communicate(), PATIENCE_S)
        assert self.process.returncode is not None
        return self.process.returncode, stderr.decode()


@contextlib.asynccontextmanager
async def running_up(folder: Path, *options: str) -> AsyncIterator[Up]:
    """`up --engine local` on a free port. Whatever the test does, nothing of it is left at the end."""
    data_dir, home = folder / "data", folder / "home"
    ready_file = folder / "ready.json"
    home.mkdir(exist_ok=True)
    ready_file.unlink(missing_ok=True)  # an `up` that was killed leaves its file behind
    process = await asyncio.create_subprocess_exec(
        *PROGRAM, "up", "--engine", "local", "--listen", "127.0.0.1:0", "--data-dir", str(data_dir),
        "--ready-file", str(ready_file), *options,
        env=environment(home), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    family: list[psutil.Process] = []
    try:
        await until_exists(ready_file, process)
        family = psutil.Process(process.pid).children(recursive=True)
        yield Up(process, data_dir, ready_file, home)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await asyncio.wait_for(process.communicate(), PATIENCE_S)
        _, alive = await asyncio.to_thread(psutil.wait_procs, family, 20)
        for leftover in alive:
            leftover.kill()
        assert not alive, f"left behind: {alive}"


async def until_exists(path: Path, process: asyncio.subprocess.Process) -> None:
    """Wait for a file, or fail with what the process said."""
    async with asyncio.timeout(PATIENCE_S):
        while not await asyncio.to_thread(path.exists):
            if process.returncode is not None:
                _, stderr = await process.communicate()
                raise AssertionError(f"ended with {process.returncode}: {stderr.decode()}")
            await asyncio.sleep(0.02)


async def until_changed(up: Up, name: str, before: int) -> int:
    """The new process ID of a child, once the ready file tells another one."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(FileNotFoundError):
                if (now := up.facts["pids"][name]) not in (before, None):
                    return int(now)
            await asyncio.sleep(0.02)
