"""What a node agent takes while the attempts of its node write: its share of a core.

`swarmtask node-agent` beside an API server in a process of its own, and a Docker that is none: its containers write a line a second
each, all of them at moments of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import httpx

from swarmtask.clock import SystemClock
from tests.apiserver.server import RunningServer, api_server_process, http_client
from tests.benchmarks.api import TASKS, Meter
from tests.cli.program import PROGRAM, environment
from tests.nodeagent.log_fakes import TalkingDocker
from tests.resources.bad_tasks import good_task

NODES = "/apis/swarmtask.io/v1alpha1/swarmnodes"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
NODE = "desk"
WITHIN_S = 120.0
SETTLE_S = 5.0
LINE = b"2026-01-01 12:00:00 INFO agent: a step of many is done, and the next one begins"
MERGE = {"content-type": "application/merge-patch+json"}


@dataclass(frozen=True)
class Talk:
    """What the agent takes of one core while so many attempts write."""

    writers: int
    percent: float


async def talking(place: Path, writers: tuple[int, ...], watched_s: float) -> list[Talk]:
    """One after the other, with one agent, on whose node as many attempts run as the most that write."""
    docker, found = TalkingDocker(place / "docker.sock", SystemClock()), []
    docker.start()
    try:
        async with api_server_process(place) as process:
            server = await process.start()
            async with http_client(server) as api, _agent(server, place) as pid:
                names = await _begun(api, docker, max(writers))
                for number in writers:
                    async with _writing(docker, names[:number]):
                        await asyncio.sleep(SETTLE_S)
                        meter = Meter(pid)
                        await asyncio.sleep(watched_s)
                        found.append(Talk(number, 100 * meter.lap() / watched_s))
                await _until_said(api, docker, names)
    finally:
        docker.stop()
    assert not docker.unexpected, docker.unexpected
    return found


@contextlib.asynccontextmanager
async def _agent(server: RunningServer, place: Path) -> AsyncIterator[int]:
    async with http_client(server) as api:
        body = {"apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmNode", "metadata": {"name": NODE}}
        made = await api.post(NODES, json=body)
        assert made.status_code == 201, made.text
    process = await asyncio.create_subprocess_exec(
        *PROGRAM, "node-agent", "--kubeconfig", str(server.kubeconfig), "--node", NODE, "--state", str(place / "agent"),
        "--disk", str(place), "--docker", str(place / "docker.sock"),
        env=environment(place), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with http_client(server) as api, asyncio.timeout(WITHIN_S):
            while (await api.get(f"{LEASES}/{NODE}")).status_code != HTTPStatus.OK:  # noqa: ASYNC110 - another process makes it
                await asyncio.sleep(0.2)
        yield process.pid
    finally:
        process.terminate()
        await process.wait()


async def _begun(api: httpx.AsyncClient, docker: TalkingDocker, count: int) -> list[str]:
    """Containers, by their IDs, of tasks that have an attempt on the node each."""
    names = []
    for number in range(1, count + 1):
        made = await api.post(TASKS, json=good_task(f"talker-{number}"))
        assert made.status_code == 201, made.text
        uid = made.json()["metadata"]["uid"]
        attempt = {
            "number": number, "id": f"st-{uid.replace('-', '')[:16]}-{number}", "node": NODE, "engine": "swarm", "state": "Running",
        }  # fmt: skip
        status = {"status": {"phase": "Running", "attempt": number, "attempts": [attempt]}}
        told = await api.patch(f"{TASKS}/talker-{number}/status", json=status, headers=MERGE)
        assert told.status_code == 200, told.text
        labels = {"task-uid": uid, "task-name": f"talker-{number}", "task-namespace": "default"}
        names.append(docker.run(number, **{f"swarmtask.io/{name}": value for name, value in labels.items()}))
    return names


@contextlib.asynccontextmanager
async def _writing(docker: TalkingDocker, names: list[str]) -> AsyncIterator[None]:
    """Each of them writes once a second, and no two at the same moment."""

    async def write(number: int, name: str) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time() + number / len(names)
        while True:
            await asyncio.sleep(at - loop.time())
            docker.say(name, LINE)
            at += 1

    writing = [asyncio.create_task(write(number, name)) for number, name in enumerate(names)]
    try:
        yield
    finally:
        for one in writing:
            one.cancel()
        await asyncio.gather(*writing, return_exceptions=True)


async def _until_said(api: httpx.AsyncClient, docker: TalkingDocker, names: list[str]) -> None:
    """The API has every line: what was measured was the work."""
    async with asyncio.timeout(WITHIN_S):
        for number, name in enumerate(names, 1):
            while True:
                answer = await api.get(f"{TASKS}/talker-{number}/log")
                if answer.text.count("\n") == len(docker.output.get(name, ())):
                    break
                await asyncio.sleep(0.2)
