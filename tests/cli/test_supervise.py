"""Supervision of child processes: restart, announcement, giving up, stopping. Real processes, a clock of our own for the delays."""

from __future__ import annotations

import asyncio
import os
import sys
import textwrap
from pathlib import Path
from typing import Any

import psutil
import pytest

from swarmtask.cli import supervise
from swarmtask.cli.supervise import Child, RotatingLog
from swarmtask.clock import SystemClock
from swarmtask.errors import ConfigurationError, ServiceUnavailable


class Recorder:
    """What the supervisor told."""

    def __init__(self) -> None:
        self.ready: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.exits: asyncio.Queue[tuple[int, float]] = asyncio.Queue()
        self.lines: list[str] = []
        self.spoke = asyncio.Event()

    def child(self, tmp_path: Path, program: str, *arguments: str, waits: bool = False) -> Child:
        argv = [sys.executable, "-c", textwrap.dedent(program), *arguments]
        return Child(
            "child", lambda: argv, tmp_path / "logs" / "child.log", SystemClock(),
            on_ready=lambda _, facts: self.ready.put_nowait(facts),
            on_exit=lambda _, status, delay_s: self.exits.put_nowait((status, delay_s)),
            echo=lambda _, line: self.hear(line), waits=waits,
        )  # fmt: skip

    def hear(self, line: str) -> None:
        self.lines.append(line)
        self.spoke.set()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "FIRST_DELAY_S", 0.01)


READY_THEN_WAIT = """
    import json, os, sys
    print("hello from the log", file=sys.stderr, flush=True)
    print(json.dumps({"pid": os.getpid()}), flush=True)
    sys.stdin.read()
"""


async def test_a_killed_child_is_started_again_and_announces_itself_again(tmp_path: Path) -> None:
    told = Recorder()
    child = told.child(tmp_path, READY_THEN_WAIT)
    keeper = asyncio.create_task(child.keep_running())
    first = (await asyncio.wait_for(told.ready.get(), 20))["pid"]
    assert child.pid == first
    os.kill(first, 9)
    status, delay_s = await asyncio.wait_for(told.exits.get(), 20)
    assert (status, delay_s) == (-9, 0.01)
    second = (await asyncio.wait_for(told.ready.get(), 20))["pid"]
    assert second != first
    os.kill(second, 9)
    assert (await asyncio.wait_for(told.exits.get(), 20))[1] == 0.02  # grows
    third = (await asyncio.wait_for(told.ready.get(), 20))["pid"]
    await child.stop(10)
    await keeper
    assert not psutil.pid_exists(third)
    assert child.starts == 3
    assert (tmp_path / "logs" / "child.log").read_text().count("hello from the log") >= 1


async def test_a_child_that_refuses_is_not_tried_again_and_its_words_are_told(tmp_path: Path) -> None:
    told = Recorder()
    child = told.child(tmp_path, "import sys; print('port 7443 is taken', file=sys.stderr); sys.exit(6)")
    with pytest.raises(ConfigurationError, match="port 7443 is taken"):
        await child.keep_running()
    assert child.starts == 1


async def test_a_child_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    told = Recorder()
    child = told.child(tmp_path, "import sys; print('boom', file=sys.stderr); sys.exit(1)")
    with pytest.raises(ServiceUnavailable, match="boom"):
        await child.keep_running()
    assert child.starts == supervise.STARTS_BEFORE_GIVING_UP


async def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    told = Recorder()
    child = told.child(
        tmp_path,
        """
        import signal, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("{}", flush=True)
        while True: time.sleep(60)
        """,
    )
    keeper = asyncio.create_task(child.keep_running())
    await asyncio.wait_for(told.ready.get(), 20)
    pid = child.pid
    assert pid is not None
    await child.stop(0.05)
    await asyncio.wait_for(keeper, 20)
    assert not psutil.pid_exists(pid)


@pytest.mark.slow
async def test_a_child_sees_the_end_of_its_supervisor(tmp_path: Path) -> None:
    """The supervisor is killed with -9; the child, which waits for the end of its stdin, is gone soon after."""
    pid_file = tmp_path / "pid"
    write_pid = f"pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))"
    child_program = f"import os, pathlib, sys; {write_pid}; print('{{}}', flush=True); sys.stdin.read()"
    supervisor_program = f"""
import asyncio, pathlib, sys
from swarmtask.cli.supervise import Child
from swarmtask.clock import SystemClock
child = Child("child", lambda: [sys.executable, "-c", {child_program!r}], pathlib.Path({str(tmp_path / "log")!r}), SystemClock(),
              on_ready=lambda *_: print("ready", flush=True), on_exit=lambda *_: None)
asyncio.run(child.keep_running())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        supervisor_program,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 30) == b"ready\n"
    child_process = psutil.Process(int(pid_file.read_text()))
    process.kill()
    await process.wait()
    await asyncio.to_thread(child_process.wait, 20)
    assert not child_process.is_running()


async def test_noise_on_stdout_and_endless_lines_do_no_harm(tmp_path: Path) -> None:
    told = Recorder()
    child = told.child(
        tmp_path,
        """
        import sys
        print("not json")
        print("[1, 2]")
        sys.stderr.write("x" * 3_000_000 + "\\n")
        sys.stderr.write("\\xff no newline at the end")
        print('{"ok": true}', flush=True)
        sys.stdin.read()
        """,
    )
    keeper = asyncio.create_task(child.keep_running())
    assert await asyncio.wait_for(told.ready.get(), 20) == {"ok": True}
    await child.stop(10)
    await keeper
    assert sum(line.count("x") for line in told.lines) == 3_000_000
    assert told.lines[-1].endswith("no newline at the end")


def test_a_log_never_grows_beyond_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "LOG_BYTES", 100)
    log = RotatingLog(tmp_path / "a.log")
    for number in range(100):
        log.write(f"line {number:03}\n".encode())
    log.close()
    current, previous = (tmp_path / "a.log").read_text(), (tmp_path / "a.log.1").read_text()
    assert len(current) <= 100 and len(previous) <= 100
    assert (previous + current).endswith("line 098\nline 099\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.log", "a.log.1"]


WAIT_THEN_READY = """
    import json, sys
    print("read in", file=sys.stderr, flush=True)
    sys.stdin.readline()
    print(json.dumps({}), flush=True)
    sys.stdin.read()
"""


async def test_a_child_that_waits_begins_when_it_is_told_and_whenever_it_is_started_again(tmp_path: Path) -> None:
    told = Recorder()
    child = told.child(tmp_path, WAIT_THEN_READY, waits=True)
    keeper = asyncio.create_task(child.keep_running())
    await asyncio.wait_for(told.spoke.wait(), 20)
    assert told.ready.empty()
    child.begin()
    await asyncio.wait_for(told.ready.get(), 20)
    assert child.pid is not None
    os.kill(child.pid, 9)
    await asyncio.wait_for(told.exits.get(), 20)
    await asyncio.wait_for(told.ready.get(), 20)
    await child.stop(10)
    await keeper


async def test_a_child_that_still_waits_can_be_stopped(tmp_path: Path) -> None:
    told = Recorder()
    child = told.child(tmp_path, WAIT_THEN_READY, waits=True)
    keeper = asyncio.create_task(child.keep_running())
    await asyncio.wait_for(told.spoke.wait(), 20)
    await child.stop(10)
    await keeper
    assert child.pid is None
    assert told.ready.empty()
