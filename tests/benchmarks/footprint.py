"""B10: what the control plane takes: memory at rest and with ten thousand tasks, the node agent's and its share of a core, and the
time to start. What the agent takes while attempts write is measured in `talking`.

`swarmtask up --engine local` as a person starts it, and `swarmtask node-agent` with the token of a node. Memory is resident memory
(RSS) as the kernel counts it; libraries that two processes share count in both, `pss` beside it counts them once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil

from tests.apiserver.server import describe, http_client, tls
from tests.benchmarks.api import CONNECTIONS, TASKS, Meter, creates, folder
from tests.benchmarks.measuring import Effort, Figure, Goal, Spread
from tests.benchmarks.talking import talking
from tests.benchmarks.wire import Address, send_all
from tests.cli.program import PROGRAM, Up, environment, running_up

MB = 1e6
SETTLE_S = 3.0
LIMIT_S = 300.0
WRITERS = (2, 10, 20)
QUEUES = "/apis/swarmtask.io/v1alpha1/namespaces/default/swarmqueues"
NODES = "/apis/swarmtask.io/v1alpha1/swarmnodes"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"


def footprint(effort: Effort) -> list[Figure]:
    """B10."""
    starts: list[float] = []
    with folder() as place:
        for number in range(effort.pairs):
            starts.append(asyncio.run(_start_s(_made(place / f"start{number}"))))
        watched_s = effort.sized(60, 2)
        idle, full, agent, tasks = asyncio.run(_memory(_made(place / "memory"), effort.sized(10_000, 200), watched_s))
        talks = asyncio.run(talking(_made(place / "talking"), WRITERS, watched_s))
    return [
        Figure("B10", "memory of API server and operator at rest", "MB", Spread.of([idle["rss"]]), Goal("<=", 150), idle),
        Figure("B10", "the same, what both share counted once", "MB", Spread.of([idle["pss"]])),
        Figure("B10", f"memory of both with {tasks:,} tasks that wait", "MB", Spread.of([full["rss"]]), Goal("<=", 400), full),
        Figure("B10", "memory of a node agent", "MB", Spread.of([agent["rss"]]), Goal("<=", 40), agent),
        Figure("B10", f"CPU of the same where nothing runs, over {watched_s} s", "%", Spread.of([agent["cpu"]]), Goal("<=", 1)),
        *(
            Figure(
                "B10",
                f"the same while {talk.writers} attempts write a line a second",
                "%",
                Spread.of([talk.percent]),
                Goal("<=", 1),
            )
            for talk in talks
        ),
        Figure("B10", "`swarmtask up` until the operator reconciles", "s", Spread.of(starts), Goal("<=", 2)),
    ]


def _made(place: Path) -> Path:
    place.mkdir()
    return place


async def _start_s(place: Path) -> float:
    began = time.perf_counter()
    async with running_up(place) as up:
        took = time.perf_counter() - began
        await up.stop()
    return took


async def _memory(place: Path, tasks: int, watched_s: int) -> tuple[dict[str, float], dict[str, float], dict[str, float], int]:
    async with running_up(place) as up:
        facts = up.facts
        server = describe(up.data_dir, facts["url"])
        await asyncio.sleep(SETTLE_S)
        idle = _taken(apiserver=facts["pids"]["apiserver"], operator=facts["pids"]["operator"])
        async with http_client(server) as api:
            async with _agent(up, api, place) as pid:
                agent = _taken(agent=pid) | {"cpu": await _cpu_percent(pid, watched_s)}
            merge = {"content-type": "application/merge-patch+json"}
            held = await api.patch(f"{QUEUES}/default", json={"spec": {"stopped": True}}, headers=merge)
            assert held.status_code == 200, held.text
            address = Address(urlsplit(server.url).port or 0, tls(server), server.token)
            await send_all(address, creates(address, TASKS, tasks, "t"), 201, CONNECTIONS)
            async with asyncio.timeout(LIMIT_S):
                while (await api.get(f"{QUEUES}/default")).json().get("status", {}).get("queued") != tasks:  # noqa: ASYNC110
                    await asyncio.sleep(0.5)
        await asyncio.sleep(SETTLE_S)
        full = _taken(apiserver=facts["pids"]["apiserver"], operator=facts["pids"]["operator"])
        await up.stop()
    return idle, full, agent, tasks


@contextlib.asynccontextmanager
async def _agent(up: Up, api: httpx.AsyncClient, place: Path) -> AsyncIterator[int]:
    """A node agent at work: it has renewed its Lease."""
    node = (await api.get(NODES)).json()["items"][0]["metadata"]["name"]
    kubeconfig = place / "agent.kubeconfig"
    made = await asyncio.to_thread(
        up.command, "token", "create", "agent", "--role", "node", "--node", node, "--write-kubeconfig", str(kubeconfig)
    )
    assert made.returncode == 0, made.stderr
    process = await asyncio.create_subprocess_exec(
        *PROGRAM, "node-agent", "--kubeconfig", str(kubeconfig), "--node", node, "--state", str(place / "agent"),
        "--disk", str(place), "--docker", str(place / "none.sock"),
        env=environment(up.home), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(LIMIT_S):
            while not [lease for lease in (await api.get(LEASES)).json()["items"] if node in json.dumps(lease)]:
                assert process.returncode is None, "the agent ended"
                await asyncio.sleep(0.2)
        await asyncio.sleep(SETTLE_S)
        yield process.pid
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _cpu_percent(pid: int, watched_s: int) -> float:
    """Of one core, over so many seconds."""
    meter, began = Meter(pid), time.perf_counter()
    await asyncio.sleep(watched_s)
    return 100 * meter.lap() / (time.perf_counter() - began)


def _taken(**pids: int) -> dict[str, float]:
    """Megabytes: resident, the same with what is shared counted once, and resident of each."""
    found: dict[str, float] = {"rss": 0.0, "pss": 0.0}
    for name, pid in pids.items():
        memory = psutil.Process(pid).memory_full_info()
        found["rss"] += memory.rss / MB
        found["pss"] += memory.pss / MB
        found[name] = memory.rss / MB
    return found
