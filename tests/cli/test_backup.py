"""`swarmtask backup` and `restore` as a person uses them, and what becomes of work that ran between the two."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import pytest

from tests.cli.program import PATIENCE_S, PROGRAM, Up, environment, running_up
from tests.cli.test_up import task

CONFIG = "operator: {orphan_grace_s: 1, poll_interval_s: 0.2, idle_poll_interval_s: 0.2}\n"


def marking(folder: Path, name: str) -> str:
    """A task that leaves a line for each start, and ends when its gate opens."""
    started, gate = folder / f"{name}.started", folder / f"{name}.gate"
    return task(name, f"echo $$ >> {started}; while [ ! -e {gate} ]; do sleep 0.05; done")


def starts(folder: Path, name: str) -> list[str]:
    """Process IDs of the attempts of a task, in order."""
    path = folder / f"{name}.started"
    return path.read_text().split() if path.exists() else []


async def until_started(folder: Path, name: str, times: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while len(starts(folder, name)) < times:  # noqa: ASYNC110 - the state is in another process
            await asyncio.sleep(0.05)


async def until_dead(pid: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while Path(f"/proc/{pid}").exists():  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.05)


def done(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout


def phase(up: Up, name: str) -> tuple[str, int]:
    status = json.loads(done(up.command("get", "task", name, "-o", "json")))["status"]
    return status["phase"], status.get("attempt", 0)


def restore(up: Up, file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, "restore", str(file), "--data-dir", str(up.data_dir)], capture_output=True, text=True, check=False,
        env=environment(up.home), timeout=PATIENCE_S,
    )  # fmt: skip


@pytest.mark.slow
async def test_work_that_ran_meanwhile(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    file = tmp_path / "b.backup"
    async with running_up(tmp_path, "--config", str(config)) as up:
        done(up.command("apply", "-f", "-", input=marking(tmp_path, "known")))
        await until_started(tmp_path, "known", 1)
        done(up.command("queue", "hold", "default"))
        done(up.command("apply", "-f", "-", input=marking(tmp_path, "waiting")))
        said = done(up.command("backup", str(file)))
        assert said.endswith("checked\n")
        done(up.command("queue", "release", "default"))
        done(up.command("apply", "-f", "-", input=marking(tmp_path, "since")))
        await until_started(tmp_path, "waiting", 1)
        await until_started(tmp_path, "since", 1)
        refused = restore(up, file)
        assert refused.returncode == 4
        assert "stop it first" in refused.stderr
        await up.stop()
    restored = restore(up, file)
    assert restored.returncode == 0, restored.stderr
    assert "1 tasks that were accepted after the backup" in restored.stderr
    (unfinished,) = up.data_dir.glob("before-restore-*/unfinished-tasks.json")
    (tmp_path / "known.gate").touch()
    async with running_up(tmp_path, "--config", str(config)) as up:
        assert up.command("get", "task", "since").returncode == 3
        for name in ("waiting", "since"):
            await until_dead(starts(tmp_path, name)[0])
        done(up.command("logs", "-f", "known"))
        assert phase(up, "known") == ("Succeeded", 1), "its outcome was taken"
        assert len(starts(tmp_path, "known")) == 1
        done(up.command("queue", "release", "default"))
        await until_started(tmp_path, "waiting", 2)
        (tmp_path / "waiting.gate").touch()
        done(up.command("logs", "-f", "waiting"))
        assert phase(up, "waiting")[0] == "Succeeded", "it was accepted, so it is done"
        done(up.command("apply", "-f", str(unfinished)))
        (tmp_path / "since.gate").touch()
        done(up.command("logs", "-f", "since"))
        assert phase(up, "since")[0] == "Succeeded"
        await up.stop()
