"""All containers of a node, behind a Docker socket; and the agent's process, killed in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swarmtask.clock import SystemClock
from swarmtask.errors import EngineUnavailable, NotFound
from swarmtask.kube import KubeClient
from swarmtask.nodeagent import log_shipper
from swarmtask.nodeagent.daemon import Daemon
from swarmtask.nodeagent.log_follower import GONE, Follower, Habits
from swarmtask.nodeagent.log_shipper import LogShipper
from swarmtask.nodeagent.log_source import LogSource, NoOutput
from swarmtask.resources.kinds import SWARM_NODE, SWARM_TASK
from tests.apiserver.logs import until
from tests.kube.real import real_api_server
from tests.nodeagent.log_fakes import NODE, MemoryApi, TalkingDocker, owner
from tests.nodeagent.processes import agents

QUICK = Habits(batch_s=0.02, announce_s=0.05, over_s=0.2, retry_s=0.05, refused_s=0.05, keep_s=0.0)


def labels(number: int) -> dict[str, str]:
    return {"swarmtask.io/task-namespace": "default", "swarmtask.io/task-name": f"task-{number}"}


@pytest.fixture
def docker(tmp_path: Path) -> Any:
    made = TalkingDocker(tmp_path / "docker.sock", SystemClock())
    made.start()
    yield made
    made.stop()
    assert made.unexpected == []


@contextlib.asynccontextmanager
async def shipping(docker: TalkingDocker, api: MemoryApi, state: Path, habits: Habits = QUICK) -> AsyncIterator[LogShipper]:
    """An agent's part; killed at the end."""
    shipper = LogShipper(
        docker.path,
        Daemon(docker.path),
        api,
        lambda: 0.0,
        state,
        node=lambda: NODE,
        clock=SystemClock(),
        rng=random.Random(1),
        habits=habits,
    )
    running = asyncio.create_task(shipper.run())
    try:
        yield shipper
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


def say(docker: TalkingDocker, name: str, first: int, end: int, stream: int = 1) -> None:
    docker.say(name, *(b"line %d" % number for number in range(first, end)), stream=stream)


def lines(first: int, end: int) -> list[bytes]:
    return [b"line %d" % number for number in range(first, end)]


async def test_each_container_is_sent_to_its_own_attempt(docker: TalkingDocker, tmp_path: Path) -> None:
    api = MemoryApi()
    names = {number: docker.run(number, **labels(number)) for number in (1, 2, 3)}
    docker.run(9)  # its labels name no task
    say(docker, names[1], 0, 2000)
    async with shipping(docker, api, tmp_path) as shipper:
        say(docker, names[2], 0, 5, stream=2)
        docker.end(names[2])
        shipper.changed()
        await until(lambda: api.texts(1) == lines(0, 2000) and api.texts(2) == [*lines(0, 5), b"END"])
        names[4] = docker.run(4, **labels(4))
        say(docker, names[4], 0, 3)
        shipper.changed()
        await until(lambda: api.texts(4) == lines(0, 3))
        assert set(api.records) == {owner(number).attempt for number in names}
        kinds = {record.kind for record in api.records[owner(2).attempt]}
        assert kinds == {"e", "z"}
        docker.remove(names[2])
        shipper.changed()
        await until(lambda: not (tmp_path / "logs" / f"{owner(2).attempt}.json").exists())


async def test_an_agent_that_comes_back_finds_what_ended_and_what_was_removed_meanwhile(
    docker: TalkingDocker, tmp_path: Path
) -> None:
    api = MemoryApi()
    names = {number: docker.run(number, **labels(number)) for number in (1, 2, 3)}
    async with shipping(docker, api, tmp_path):
        for name in names.values():
            say(docker, name, 0, 5)
        await until(lambda: all(api.texts(number) == lines(0, 5) for number in names))
        await until(lambda: len(list((tmp_path / "logs").iterdir())) == 3)
    for name in names.values():
        say(docker, name, 5, 8)
    docker.end(names[2])
    docker.end(names[3])
    docker.remove(names[3])
    async with shipping(docker, api, tmp_path) as shipper:
        await until(lambda: api.texts(1) == lines(0, 8) and api.texts(2) == [*lines(0, 8), b"END"])
        await until(lambda: api.texts(3) == [*lines(0, 5), b"[%s]" % GONE.encode(), b"END"])
        shipper.changed()
        await until(lambda: {path.stem for path in (tmp_path / "logs").iterdir()} == {owner(1).attempt, owner(2).attempt})


@pytest.mark.slow
async def test_attempts_that_write_share_requests_and_what_trickles_is_taken_together(
    docker: TalkingDocker, tmp_path: Path
) -> None:
    """A request for each line of each would cost a laptop a tenth of a core."""
    api, count = MemoryApi(), 8
    names = {number: docker.run(number, **labels(number)) for number in range(1, count + 1)}
    async with shipping(docker, api, tmp_path, replace(QUICK, batch_s=0.2, many_batch_s=0.4)):
        await until(lambda: len(api.records) == count)
        before, parts = api.requests, len(api.calls)
        began = asyncio.get_running_loop().time()
        for line in range(100):
            for name in names.values():
                say(docker, name, line, line + 1)
            await asyncio.sleep(0.01)
        await until(lambda: all(api.texts(number) == lines(0, 100) for number in names))
        stretches = (asyncio.get_running_loop().time() - began) / 0.2
        assert api.requests - before <= 2 * (stretches + 2)
        assert len(api.calls) - parts <= count * 2 * (stretches + 2)
        for name in names.values():
            docker.end(name)
        await until(lambda: all(api.texts(number)[-1] == b"END" for number in names))


async def test_docker_that_goes_away_and_comes_back(docker: TalkingDocker, tmp_path: Path) -> None:
    api = MemoryApi()
    name = docker.run(1, **labels(1))
    async with shipping(docker, api, tmp_path):
        say(docker, name, 0, 5)
        await until(lambda: api.texts(1) == lines(0, 5))
        docker.broken = True
        say(docker, name, 5, 9)
        docker.broken = False
        await until(lambda: api.texts(1) == lines(0, 9))


async def test_a_log_driver_that_cannot_be_read(docker: TalkingDocker, tmp_path: Path) -> None:
    api = MemoryApi()
    name = docker.run(1, **labels(1))
    docker.unreadable.add(name)
    async with shipping(docker, api, tmp_path) as shipper:
        docker.end(name)
        shipper.changed()
        await until(lambda: api.texts(1)[-1:] == [b"END"])
    assert api.texts(1)[0].startswith(b"[the log driver of this node's Docker keeps no output")


async def test_a_bug_with_one_container_costs_no_other_its_output(
    docker: TalkingDocker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    api, run, failed = MemoryApi(), Follower.run, [0]

    async def fails_at_first(self: Follower) -> None:
        if self.owner.number == 1 and failed[0] < 2:
            failed[0] += 1
            raise RuntimeError("nobody has thought of it")
        await run(self)

    monkeypatch.setattr(Follower, "run", fails_at_first)
    monkeypatch.setattr(log_shipper, "FAILED_S", 0.05)
    names = {number: docker.run(number, **labels(number)) for number in (1, 2)}
    async with shipping(docker, api, tmp_path):
        for name in names.values():
            say(docker, name, 0, 5)
        await until(lambda: api.texts(2) == lines(0, 5))
        await until(lambda: api.texts(1) == lines(0, 5))
    assert failed == [2]
    assert caplog.text.count("cannot be sent; it is tried again") == 2


async def test_a_bug_in_one_look_costs_no_output(
    docker: TalkingDocker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    api = MemoryApi()
    names = {number: docker.run(number, **labels(number)) for number in (1, 2)}
    say(docker, names[1], 0, 5)
    async with shipping(docker, api, tmp_path) as shipper:
        await until(lambda: api.texts(1) == lines(0, 5))
        look, struck = shipper._new, 0

        def poisoned(*args: Any) -> Any:
            nonlocal struck
            struck += 1
            if struck == 1:
                raise ZeroDivisionError("a bug")
            return look(*args)

        monkeypatch.setattr(shipper, "_new", poisoned)
        shipper.changed()
        await until(lambda: struck == 1)
        say(docker, names[1], 5, 9)
        names[3] = docker.run(3, **labels(3))
        say(docker, names[3], 0, 3)
        shipper.changed()
        await until(lambda: api.texts(1) == lines(0, 9) and api.texts(3) == lines(0, 3))
    assert "containers cannot be looked at" in caplog.text


async def test_a_docker_that_hangs_leaves_the_threads_of_the_lease_alone(docker: TalkingDocker, tmp_path: Path) -> None:
    for number in range(1, 21):
        docker.run(number, **labels(number))
    let_go, asked = threading.Event(), threading.Event()

    def inspect(self: Daemon, container_id: str) -> None:
        asked.set()
        let_go.wait(60)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Daemon, "inspect", inspect)
        try:
            async with shipping(docker, MemoryApi(), tmp_path):
                await until(asked.is_set)
                async with asyncio.timeout(20):
                    assert await asyncio.to_thread(lambda: "renewed") == "renewed"
        finally:
            let_go.set()


class TestSource:
    async def test_what_there_is_not(self, docker: TalkingDocker, tmp_path: Path) -> None:
        with pytest.raises(NoOutput) as refused:
            async with LogSource(docker.path).open("nobody", since=0, follow=False):
                raise AssertionError("it was opened")
        assert refused.value.gone
        with pytest.raises(EngineUnavailable):
            async with LogSource(tmp_path / "no.sock").open("x", since=0, follow=False):
                raise AssertionError("it was opened")
        docker.broken = True

    @pytest.mark.parametrize("answer", [
        b"", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc", b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n", b"HTTP/1.1 500 Oops\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"x" * 100_000,
    ])  # fmt: skip
    async def test_an_answer_that_is_cut_off_or_none_is_no_end(self, tmp_path: Path, answer: bytes) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            with contextlib.suppress(OSError):
                await writer.drain()
            writer.close()

        server = await asyncio.start_unix_server(serve, tmp_path / "s")
        async with server:
            with pytest.raises(EngineUnavailable):
                async with LogSource(tmp_path / "s").open("x", since=5, follow=True) as chunks:
                    while await chunks.read():
                        pass

    async def test_a_read_that_is_cancelled_loses_nothing(self, tmp_path: Path) -> None:
        asked = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
            for piece in (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                b"3",
                b"\r\na",
                b"bc",
                b"\r",
                b"\n2\r\nde\r\n0\r\n\r\n",
            ):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.05)
            writer.close()

        server = await asyncio.start_unix_server(serve, tmp_path / "s")
        got = b""
        async with server, LogSource(tmp_path / "s").open("x", since=1_500_000_000, follow=True) as chunks:
            while True:
                try:
                    async with asyncio.timeout(0.01):
                        chunk = await chunks.read()
                except TimeoutError:
                    continue
                if not chunk:
                    break
                got += chunk
        assert got == b"abcde"
        assert "follow=1" in asked[0]
        assert "since=1.500000000" in asked[0]


async def _output(client: KubeClient, name: str, **query: str) -> bytes:
    try:
        return b"".join([chunk async for chunk in client.text(SWARM_TASK, name, "default", "log", query)])
    except NotFound:
        return b""


async def _until_async(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while True:
            if await holds():
                return
            await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_the_agents_process_killed_in_the_middle_sends_every_line_once(docker: TalkingDocker, tmp_path: Path) -> None:
    """`swarmtask node-agent` on real clocks against the embedded API; the node is gone when the output is read."""
    async with real_api_server(tmp_path) as kubeconfig, KubeClient.from_kubeconfig(kubeconfig) as client:
        await client.create(SWARM_NODE, {"apiVersion": SWARM_NODE.api_version, "kind": "SwarmNode", "metadata": {"name": "desk"}})
        made = await client.create(
            SWARM_TASK, {"apiVersion": SWARM_TASK.api_version, "kind": "SwarmTask", "metadata": {"name": "task-1"},
                         "spec": {"container": {"image": "acme/lint:1"}}}, "default",
        )  # fmt: skip
        attempt = {"number": 1, "id": "st-1", "node": "desk", "engine": "swarm", "state": "Running"}
        status = {"phase": "Running", "attempt": 1, "attempts": [attempt]}
        await client.patch(SWARM_TASK, "task-1", {"status": status}, "default", subresource="status")
        name = docker.run(1, **labels(1) | {"swarmtask.io/task-uid": made["metadata"]["uid"]})
        say(docker, name, 0, 5000)

        async def begun() -> bool:
            return bool(await _output(client, "task-1"))

        async with agents("--docker", str(docker.path), "--state", str(tmp_path / "state"), "--log-level", "debug") as running:
            await running.start(kubeconfig)
            await _until_async(begun)
            await running.kill()
            say(docker, name, 5000, 10_000, stream=2)
            await running.start(kubeconfig)
            docker.end(name)
            shown = await _output(client, "task-1", follow="true")
        docker.stop()
        assert shown.splitlines() == lines(0, 10_000)
        assert await _output(client, "task-1", tailLines="2") == b"line 9998\nline 9999\n"
