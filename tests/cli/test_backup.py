"""What becomes of work that ran between a backup and its restore: a whole control plane, stopped, restored and started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.apiserver.server import describe, http_client
from tests.cli.program import PATIENCE_S, PROGRAM, Up, environment, running_up

CONFIG = "operator: {orphan_grace_s: 1, poll_interval_s: 0.2, idle_poll_interval_s: 0.2}\n"
TASKS = "/apis/swarmtask.io/v1alpha1/namespaces/default/swarmtasks"
QUEUE = "/apis/swarmtask.io/v1alpha1/namespaces/default/swarmqueues/default"
MERGE = {"content-type": "application/merge-patch+json"}


class Place:
    """A folder in which tasks leave a line for each start, and wait for their gate to open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def task(self, name: str) -> dict[str, Any]:
        command = f"echo $$ >> {self.folder}/{name}.started; while [ ! -e {self.folder}/{name}.gate ]; do sleep 0.05; done"
        return {
            "apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmTask", "metadata": {"name": name},
            "spec": {"container": {"image": "none", "command": ["sh", "-c", command]}},
        }  # fmt: skip

    def starts(self, name: str) -> list[str]:
        """Process IDs of the attempts of a task, in order."""
        path = self.folder / f"{name}.started"
        return path.read_text().split() if path.exists() else []

    def open(self, name: str) -> None:
        (self.folder / f"{name}.gate").touch()

    async def until_started(self, name: str, times: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.starts(name)) < times:  # noqa: ASYNC110 - the state is in another process
                await asyncio.sleep(0.05)

    async def until_dead(self, name: str) -> None:
        """Its first attempt does not act any more."""
        process = Path("/proc") / self.starts(name)[0]
        async with asyncio.timeout(PATIENCE_S):
            while process.exists():  # noqa: ASYNC110
                await asyncio.sleep(0.05)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """However the test ends, no task waits for ever."""
    found = Place(tmp_path)
    yield found
    for name in ("known", "waiting", "since"):
        found.open(name)


@contextlib.asynccontextmanager
async def control_plane(tmp_path: Path) -> AsyncIterator[tuple[Up, httpx.AsyncClient]]:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    async with running_up(tmp_path, "--config", str(config)) as up:
        async with http_client(describe(up.data_dir, up.facts["url"])) as api:
            yield up, api
        await up.stop()


async def hold(api: httpx.AsyncClient, *, held: bool) -> None:
    response = await api.patch(QUEUE, json={"spec": {"stopped": held}}, headers=MERGE)
    assert response.status_code == 200, response.text


async def submit(api: httpx.AsyncClient, task: dict[str, Any]) -> None:
    response = await api.post(TASKS, json=task)
    assert response.status_code == 201, response.text


async def until_succeeded(api: httpx.AsyncClient, name: str) -> int:
    """The number of its last attempt."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            status = (await api.get(f"{TASKS}/{name}")).json().get("status") or {}
            if status.get("phase") == "Succeeded":
                return int(status["attempt"])
            assert status.get("phase") not in ("Failed", "Cancelled"), status
            await asyncio.sleep(0.1)


async def program(up: Up, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command on the data directory."""
    return await asyncio.to_thread(
        subprocess.run, [*PROGRAM, *arguments, "--data-dir", str(up.data_dir)], capture_output=True, text=True, check=False,
        env=environment(up.home), timeout=PATIENCE_S,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_work_that_ran_meanwhile(tmp_path: Path, place: Place) -> None:
    file = tmp_path / "b.backup"
    async with control_plane(tmp_path) as (up, api):
        await submit(api, place.task("known"))
        await place.until_started("known", 1)
        await hold(api, held=True)
        await submit(api, place.task("waiting"))
        made = await program(up, "backup", str(file))
        assert made.returncode == 0, made.stderr
        await hold(api, held=False)
        await submit(api, place.task("since"))
        await place.until_started("waiting", 1)
        await place.until_started("since", 1)
        refused = await program(up, "restore", str(file))
        assert (refused.returncode, "stop it first" in refused.stderr) == (4, True), refused.stderr
    restored = await program(up, "restore", str(file))
    assert restored.returncode == 0, restored.stderr
    assert "1 tasks that were accepted after the backup" in restored.stderr
    (unfinished,) = up.data_dir.glob("before-restore-*/unfinished-tasks.json")
    place.open("known")
    async with control_plane(tmp_path) as (up, api):
        assert (await api.get(f"{TASKS}/since")).status_code == 404
        await place.until_dead("since")
        assert await until_succeeded(api, "known") == 1, "its outcome was taken"
        assert len(place.starts("known")) == 1
        await hold(api, held=False)
        place.open("waiting")
        assert await until_succeeded(api, "waiting") == 1
        assert len(place.starts("waiting")) == 1, "when its turn came, its engine had that attempt already"
        (again,) = json.loads(unfinished.read_text())["items"]
        await submit(api, again)
        place.open("since")
        await until_succeeded(api, "since")
