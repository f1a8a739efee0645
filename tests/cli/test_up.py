"""`swarmtask up --engine local` from end to end, as a subprocess: ready file, tasks, crashes, stop, start again."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import stat
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.cli.program import PROGRAM, environment, running_up, until_changed
from tests.lab.tools import kubectl_binaries

TASK = """\
apiVersion: swarmtask.io/v1alpha1
kind: SwarmTask
metadata: {name: NAME}
spec:
  container: {image: none, command: [sh, -c, "COMMAND"]}
"""


def task(name: str, command: str) -> str:
    return TASK.replace("NAME", name).replace("COMMAND", command)


@pytest.mark.slow
async def test_from_nothing_to_a_finished_task_and_back_again(tmp_path: Path) -> None:
    async with running_up(tmp_path) as up:
        facts = up.facts
        assert facts["engine"] == "local"
        assert re.fullmatch(r"https://127\.0\.0\.1:\d+", facts["url"])
        assert facts["kubeconfig"] == str(up.data_dir / "kubeconfig")
        assert facts["pids"]["up"] == up.process.pid
        assert all(psutil.pid_exists(pid) for pid in facts["pids"].values())
        assert stat.S_IMODE((up.data_dir / "kubeconfig").stat().st_mode) == 0o600
        assert stat.S_IMODE(up.data_dir.stat().st_mode) == 0o700

        applied = up.command("apply", "-f", "-", input=task("hello", "echo hello; echo oops >&2"))
        assert (applied.returncode, applied.stdout) == (0, "swarmtask.swarmtask.io/hello created\n"), applied.stderr
        followed = up.command("logs", "-f", "hello")
        assert followed.returncode == 0, followed.stderr
        assert sorted(followed.stdout.split()) == ["hello", "oops"]
        shown = json.loads(up.command("get", "task", "hello", "-o", "json").stdout)
        assert shown["status"]["phase"] == "Succeeded"
        assert up.command("kubeconfig").stdout == facts["kubeconfig"] + "\n"
        assert "1 Succeeded" in up.command("status").stdout

        code, said = await up.stop()
        assert code == 0, said
        assert not up.ready_file.exists()
        assert not any(psutil.pid_exists(pid) for pid in facts["pids"].values() if pid != os.getpid())
        assert "SwarmTask is up." in said and "Stopped." in said and "Traceback" not in said
        assert up.command("get", "tasks").returncode == 5
    async with running_up(tmp_path) as up:
        again = json.loads(up.command("get", "task", "hello", "-o", "json").stdout)
        assert again["status"] == shown["status"]
        assert up.command("logs", "hello").stdout == followed.stdout


@pytest.mark.slow
async def test_children_that_are_killed_come_back_on_the_same_port(tmp_path: Path) -> None:
    async with running_up(tmp_path) as up:
        before = up.facts
        os.kill(before["pids"]["operator"], signal.SIGKILL)
        await until_changed(up, "operator", before["pids"]["operator"])
        os.kill(before["pids"]["apiserver"], signal.SIGKILL)
        await until_changed(up, "apiserver", before["pids"]["apiserver"])
        assert up.facts["url"] == before["url"]
        ran = up.command("run", "none", "--name", "after", "--follow", "--", "echo", "still here")
        assert (ran.returncode, ran.stdout) == (0, "still here\n"), ran.stderr
        code, said = await up.stop(signal.SIGINT)
        assert code == 0
        assert "operator ended by signal 9" in said and "apiserver is back" in said


@pytest.mark.slow
async def test_a_running_attempt_survives_and_is_found_again(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with running_up(tmp_path) as up:
        command = f"echo begun; while [ ! -e {gate} ]; do sleep 0.05; done; echo done"
        assert up.command("apply", "-f", "-", input=task("long", command)).returncode == 0
        follower = await asyncio.create_subprocess_exec(
            *PROGRAM, "logs", "-f", "long", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            env=environment(up.home, SWARMTASK_DATA_DIR=str(up.data_dir)),
        )  # fmt: skip
        assert follower.stdout is not None
        assert await asyncio.wait_for(follower.stdout.readline(), 60) == b"begun\n"
        follower.kill()
        await follower.wait()
        assert (await up.stop())[0] == 0
    gate.touch()
    async with running_up(tmp_path) as up:
        followed = up.command("logs", "-f", "long")
        assert followed.stdout == "begun\ndone\n", followed.stderr
        finished = json.loads(up.command("get", "task", "long", "-o", "json").stdout)["status"]
        assert (finished["phase"], finished["attempt"]) == ("Succeeded", 1)


@pytest.mark.slow
async def test_a_second_up_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    async with running_up(tmp_path) as up:
        second = up.command("up", "--engine", "local", "--listen", "127.0.0.1:0")
        assert second.returncode == 4
        assert f"process {up.process.pid}" in second.stderr and "--data-dir" in second.stderr
        assert up.ready_file.exists()
        assert up.command("status").returncode == 0


@pytest.mark.slow
async def test_an_up_that_is_killed_takes_its_children_with_it(tmp_path: Path) -> None:
    async with running_up(tmp_path) as up:
        children = [psutil.Process(up.facts["pids"][name]) for name in ("apiserver", "operator")]
        os.kill(up.process.pid, signal.SIGKILL)
        await up.process.communicate()
        _, alive = await asyncio.to_thread(psutil.wait_procs, children, 30)
        assert not alive
    async with running_up(tmp_path) as up:
        assert up.command("get", "nodes").returncode == 0


@pytest.mark.slow
async def test_a_taken_port_is_said_and_nothing_is_left_running(tmp_path: Path) -> None:
    async with running_up(tmp_path) as up:
        address = up.facts["url"].removeprefix("https://")
        other = up.command("up", "--engine", "local", "--listen", address, "--data-dir", str(tmp_path / "other"))
        assert other.returncode == 6
        assert "--listen" in other.stderr and "Traceback" not in other.stderr


@pytest.mark.slow
async def test_the_life_of_a_task_through_the_commands(tmp_path: Path) -> None:
    """Failure, retry by a person, cancel: what each command says and the exit code it ends with."""
    async with running_up(tmp_path) as up:
        marker = tmp_path / "marker"
        failed = up.command("run", "none", "--name", "flaky", "--backoff-limit", "0", "--wait", "--", "test", "-e", str(marker))
        assert failed.returncode == 1
        assert "flaky: Failed" in failed.stderr
        marker.touch()
        assert up.command("retry", "flaky").stdout == "swarmtask.swarmtask.io/flaky retry requested\n"
        assert up.command("logs", "-f", "flaky").returncode == 0
        assert json.loads(up.command("get", "task", "flaky", "-o", "json").stdout)["status"]["phase"] == "Succeeded"

        assert up.command("run", "none", "--name", "endless", "--", "sleep", "600").returncode == 0
        assert up.command("cancel", "endless", "--reason", "enough").returncode == 0
        up.command("logs", "-f", "endless")
        ended = json.loads(up.command("get", "task", "endless", "-o", "json").stdout)["status"]
        assert ended["phase"] == "Cancelled"

        big = up.command("run", "none", "--name", "big", "--memory", "900Ti")
        assert big.returncode == 0
        waiting = up.command("logs", "big")
        assert waiting.returncode == 3
        assert up.command("cancel", "big").returncode == 0


KUBECTL = kubectl_binaries().get("current")


@pytest.mark.kubectl
@pytest.mark.skipif(KUBECTL is None, reason="[missing: kubectl (current)] `python -m tests.lab.setup` fetches it")
async def test_kubectl_drives_it_with_the_printed_kubeconfig(tmp_path: Path) -> None:
    async with running_up(tmp_path) as up:

        def kubectl(*arguments: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [str(KUBECTL), "--kubeconfig", up.facts["kubeconfig"], *arguments], input=input, capture_output=True, text=True,
                timeout=60, check=False, env=environment(up.home),
            )  # fmt: skip

        applied = await asyncio.to_thread(kubectl, "apply", "-f", "-", input=task("hello", "echo hi"))
        assert applied.stdout == "swarmtask.swarmtask.io/hello created\n", applied.stderr
        waited = await asyncio.to_thread(kubectl, "wait", "--for=condition=Complete", "--timeout=50s", "swarmtask/hello")
        assert waited.returncode == 0, waited.stderr
        assert up.command("logs", "hello").stdout == "hi\n"
        ours = up.command("get", "tasks").stdout.splitlines()[0].split()
        theirs = (await asyncio.to_thread(kubectl, "get", "st")).stdout.splitlines()[0].split()
        assert ours == theirs
