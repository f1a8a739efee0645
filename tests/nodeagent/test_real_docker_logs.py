"""Output of containers of a real Docker, through the agent's process and the embedded API, with the agent killed in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from docker.types import LogConfig

from swarmtask.errors import NotFound
from swarmtask.kube import KubeClient
from swarmtask.nodeagent.log_follower import UNMATCHED
from swarmtask.resources.kinds import SWARM_NODE, SWARM_TASK
from tests.kube.real import real_api_server
from tests.nodeagent.processes import Agents, agents, real_docker

if TYPE_CHECKING:
    from tests.lab.outer import OuterDocker

CLUSTER = "test-real-docker-logs"
LINES = 10_000
WORK = (
    "i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done; sleep 5; "
    "while [ $i -lt 7500 ]; do echo line $i >&2; i=$((i+1)); done; "
    "while [ $i -lt 10000 ]; do echo line $i; i=$((i+1)); done"
)


class Node:
    """A SwarmNode whose agent comes and goes; containers as the swarm engine labels them."""

    def __init__(self, url: str, client: Any, image: str, folder: Path) -> None:
        self.client, self.image, self.folder = client, image, folder
        self.options = (
            "--docker", url.removeprefix("unix://"), "--cluster-id", CLUSTER, "--state", str(folder / "state"),
        )  # fmt: skip

    async def task(self, api: KubeClient, name: str, command: str, **options: Any) -> Any:
        """A task with one attempt, and its container."""
        body = {
            "apiVersion": SWARM_TASK.api_version, "kind": "SwarmTask", "metadata": {"name": name},
            "spec": {"container": {"image": "acme/lint:1"}},
        }  # fmt: skip
        uid = (await api.create(SWARM_TASK, body, "default"))["metadata"]["uid"]
        attempt = {"number": 1, "id": "st-1", "node": "desk", "engine": "swarm", "state": "Running"}
        status = {"phase": "Running", "attempt": 1, "attempts": [attempt]}
        await api.patch(SWARM_TASK, name, {"status": status}, "default", subresource="status")
        labels = {
            "swarmtask.io/managed": "true", "swarmtask.io/cluster": CLUSTER, "swarmtask.io/task-uid": uid,
            "swarmtask.io/task-namespace": "default", "swarmtask.io/task-name": name, "swarmtask.io/attempt": "1",
            "swarmtask.io/fence": "false",
        }  # fmt: skip
        run = self.client.containers.run
        return await asyncio.to_thread(
            run, self.image, ["sh", "-c", command], detach=True, labels=labels, network_mode="none", **options
        )


@pytest.fixture
def node(outer_docker: OuterDocker, tmp_path: Path) -> Iterator[Node]:
    with real_docker(outer_docker, CLUSTER) as (client, image):
        yield Node(outer_docker.url, client, image, tmp_path)


@asynccontextmanager
async def cluster(node: Node) -> AsyncIterator[tuple[Path, KubeClient, Agents]]:
    """(the API's kubeconfig, a client, agents of the one node); ends with the block."""
    async with (
        real_api_server(node.folder) as kubeconfig,
        KubeClient.from_kubeconfig(kubeconfig) as api,
        agents(*node.options) as running,
    ):
        await api.create(SWARM_NODE, {"apiVersion": SWARM_NODE.api_version, "kind": "SwarmNode", "metadata": {"name": "desk"}})
        yield kubeconfig, api, running


async def _output(api: KubeClient, name: str, **query: str) -> bytes:
    try:
        return b"".join([chunk async for chunk in api.text(SWARM_TASK, name, "default", "log", query)])
    except NotFound:
        return b""


async def _until(api: KubeClient, name: str, holds: Callable[[bytes], bool], **query: str) -> bytes:
    async with asyncio.timeout(120):
        while True:
            shown = await _output(api, name, **query)
            if holds(shown):
                return shown
            await asyncio.sleep(0.1)


async def test_ten_thousand_lines_with_the_agent_killed_in_the_middle_are_all_there_once(node: Node) -> None:
    """The container is removed before anybody reads: what counts is what the API has."""
    async with cluster(node) as (kubeconfig, api, running):
        await running.start(kubeconfig)
        container = await node.task(api, "counter", WORK)
        await _until(api, "counter", lambda shown: shown.count(b"\n") > 100)
        await running.kill()
        before = len((await _output(api, "counter")).splitlines())
        await asyncio.to_thread(container.wait)
        await running.start(kubeconfig)
        shown = (await _output(api, "counter", follow="true")).splitlines()
        await asyncio.to_thread(container.remove, force=True)
        await running.kill()
        assert before < LINES
        # stdout and stderr are two pipes: Docker orders what came through one, and keeps about the order of both.
        assert sorted(shown) == sorted(b"line %d" % number for number in range(LINES)), f"{before} were there before"
        assert shown[:5000] == [b"line %d" % number for number in range(5000)]
        assert await _output(api, "counter") == b"".join(line + b"\n" for line in shown)


async def test_terminals_long_lines_and_bytes_of_a_real_docker(node: Node) -> None:
    async with cluster(node) as (kubeconfig, api, running):
        long = "head -c 40000 /dev/zero | tr '\\0' x; echo; printf 'no end'"
        await node.task(api, "plain", f"printf '\\377\\000\\033[31m\\n'; {long}")
        await node.task(api, "terminal", f"echo hello; {long}", tty=True)
        await node.task(api, "split", "head -c 200000 /dev/zero | tr '\\0' y; echo")
        await running.start(kubeconfig)
        plain, terminal, split = [
            await _until(api, name, bool, follow="true", waitSeconds="30") for name in ("plain", "terminal", "split")
        ]
        # Docker's json-file writes JSON, which has no other bytes than those of UTF-8: it has put U+FFFD in place of \xff.
        assert plain == b"\xef\xbf\xbd\x00\x1b[31m\n" + b"x" * 40_000 + b"\nno end\n"
        assert terminal == b"hello\r\n" + b"x" * 40_000 + b"\r\nno end\n"
        parts = split.splitlines()
        assert [len(part.removesuffix(b" [line goes on]")) for part in parts] == [65_536, 65_536, 65_536, 200_000 - 3 * 65_536]
        assert all(part.endswith(b" [line goes on]") for part in parts[:3])


async def test_a_log_that_is_rotated_faster_than_it_is_read_goes_on_to_be_sent_while_its_container_runs(node: Node) -> None:
    """Docker's stream is left behind by its own rotation: it leaves out lines, repeats others, and is silent from then on. What
    comes after that is sent nevertheless, and where lines are not as they were written a mark says so."""
    flood = 60_000
    script = (
        f'awk \'BEGIN {{ for (i = 0; i < {flood}; i++) print "line", i, "of a program that writes much at once" }}\'; '
        "while sleep 0.2; do echo beat; done"
    )
    small = LogConfig(type=LogConfig.types.JSON, config={"max-size": "1m", "max-file": "20", "compress": "true"})
    async with cluster(node) as (kubeconfig, api, running):
        await running.start(kubeconfig)
        container = await node.task(api, "writer", script, log_config=small)
        shown = (await _until(api, "writer", lambda shown: shown.endswith(b"beat\n"))).splitlines()
        await asyncio.to_thread(container.reload)
        assert container.status == "running"
        if b"[swarmtask: %s]" % UNMATCHED.encode() not in shown:
            lines = [line.split()[1] for line in shown if line.startswith(b"line ")]
            assert lines == [b"%d" % number for number in range(flood)]
        await running.kill()
