"""Commands in containers: the wire to Docker, against a socket that plays Docker, and against a real one."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from swarmtask.engines.base import LABEL_ATTEMPT, LABEL_MANAGED, LABEL_TASK_UID
from swarmtask.engines.swarm.shells import DockerShells, Shell
from swarmtask.errors import BadRequest, EngineUnavailable, NotFound
from tests.lab import images
from tests.lab.outer import OuterDocker

TIMEOUT_S = 60
Stream = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def frame(stream: int, data: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


class Docker:
    """Plays Docker on a unix socket: answers by path, and hands the stream of a started command to `stream`."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.answers: dict[str, tuple[int, Any]] = {
            "/containers/json": (200, [{"Id": "c1"}]), "/containers/c1/exec": (201, {"Id": "e1"}),
            "/exec/e1/start": (101, {}), "/exec/e1/json": (200, {"ExitCode": 0}), "/exec/e1/resize": (200, {}),
        }  # fmt: skip
        self.stream: Stream | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            method, target, _ = head[0].split()
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            url = urlsplit(target)
            self.asked.append((method, target, json.loads(body) if body else None))
            code, answer = self.answers[url.path]
            if code == 101:
                assert (headers["upgrade"], headers["connection"]) == ("tcp", "upgrade")
                writer.write(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
                assert self.stream is not None
                await self.stream(reader, writer)
            else:
                writer.write(f"HTTP/1.0 {code} X\r\nContent-Type: application/json\r\n\r\n".encode() + json.dumps(answer).encode())
            await writer.drain()
        writer.close()


@pytest.fixture
async def docker(tmp_path: Path) -> AsyncIterator[Docker]:
    daemon = Docker()
    server = await asyncio.start_unix_server(daemon.serve, str(tmp_path / "docker.sock"))
    async with server:
        yield daemon


@pytest.fixture
def shells(docker: Docker, tmp_path: Path) -> DockerShells:
    return DockerShells(f"unix://{tmp_path}/docker.sock", timeout_s=TIMEOUT_S)


async def start(shells: DockerShells, *, tty: bool = False) -> Shell:
    return await shells.start("c1", ["sh"], stdin=True, stdout=True, stderr=True, tty=tty)


async def all_output(shell: Shell) -> list[tuple[str, bytes]]:
    async with asyncio.timeout(TIMEOUT_S):
        return [one async for one in shell.output()]


async def test_only_running_containers_with_our_labels_are_found(docker: Docker, shells: DockerShells) -> None:
    assert await shells.find("uid-1", 3) == "c1"
    (_, target, _) = docker.asked[0]
    assert json.loads(parse_qs(urlsplit(target).query)["filters"][0]) == {
        "label": [f"{LABEL_MANAGED}=true", f"{LABEL_TASK_UID}=uid-1", f"{LABEL_ATTEMPT}=3"], "status": ["running"],
    }  # fmt: skip
    docker.answers["/containers/json"] = (200, [])
    assert await shells.find("uid-1", 3) is None
    docker.answers["/containers/json"] = (500, {"message": "broken"})
    with pytest.raises(EngineUnavailable):
        await shells.find("uid-1", 3)


async def test_streams_are_told_apart_and_the_input_ends(docker: Docker, shells: DockerShells) -> None:
    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = await reader.read()  # until the end of the input
        writer.write(frame(1, said.upper()) + frame(2, b"warning") + frame(1, b"x" * 100_000))

    docker.stream = stream
    shell = await start(shells)
    await shell.write(b"hello ")
    await shell.write(b"there")
    await shell.close_input()
    output = await all_output(shell)
    assert output[:2] == [("stdout", b"HELLO THERE"), ("stderr", b"warning")]
    assert b"".join(data for _, data in output[2:]) == b"x" * 100_000
    docker.answers["/exec/e1/json"] = (200, {"ExitCode": 3})
    assert await shell.exit_code() == 3
    await shell.close()
    wish = next(body for method, target, body in docker.asked if target == "/containers/c1/exec")
    assert wish == {"Cmd": ["sh"], "AttachStdin": True, "AttachStdout": True, "AttachStderr": True, "Tty": False}


async def test_a_terminal_is_one_stream_with_a_size(docker: Docker, shells: DockerShells) -> None:
    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"$ \x01\x00")

    docker.stream = stream
    shell = await start(shells, tty=True)
    assert b"".join(data for _, data in await all_output(shell)) == b"$ \x01\x00"
    await shell.resize(80, 24)
    assert docker.asked[-1][1] == "/exec/e1/resize?w=80&h=24"


async def test_a_stream_that_is_cut_off_is_no_end(docker: Docker, shells: DockerShells) -> None:
    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(frame(1, b"hello")[:-2])

    docker.stream = stream
    with pytest.raises(EngineUnavailable, match="was lost"):
        await all_output(await start(shells))


async def test_what_docker_refuses(docker: Docker, shells: DockerShells, tmp_path: Path) -> None:
    docker.answers["/containers/c1/exec"] = (404, {"message": "No such container"})
    with pytest.raises(NotFound, match="No such container"):
        await start(shells)
    docker.answers["/containers/c1/exec"] = (409, {"message": "container is paused"})
    with pytest.raises(BadRequest, match="paused"):
        await start(shells)
    docker.answers["/containers/c1/exec"] = (201, {"Id": "e1"})
    docker.answers["/exec/e1/start"] = (400, {"message": "no such file"})
    with pytest.raises(BadRequest, match="no such file"):
        await start(shells)
    docker.answers["/exec/e1/json"] = (200, {"ExitCode": None})
    with pytest.raises(EngineUnavailable):
        await shells.exit_code("e1")
    with pytest.raises(EngineUnavailable, match="does not answer"):
        await DockerShells(f"unix://{tmp_path}/none.sock", timeout_s=TIMEOUT_S).find("u", 1)
    with pytest.raises(BadRequest, match="unix socket only"):
        await DockerShells("tcp://127.0.0.1:1", timeout_s=TIMEOUT_S).find("u", 1)


@pytest.mark.docker
async def test_a_real_docker(outer_docker: OuterDocker) -> None:
    labels = {LABEL_MANAGED: "true", LABEL_TASK_UID: "shells-test", LABEL_ATTEMPT: "1"}
    with contextlib.closing(outer_docker.client()) as client:
        images.task_image(client)
        container = client.containers.run(images.TASK_TAG, ["sleep", "600"], detach=True, labels=labels)
        try:
            shells = DockerShells(outer_docker.url, timeout_s=TIMEOUT_S)
            found = await shells.find("shells-test", 1)
            assert found == container.id
            assert await shells.find("shells-test", 2) is None
            script = 'read word; echo "got $word"; echo oops >&2; exit 7'
            shell = await shells.start(found, ["sh", "-c", script], stdin=True, stdout=True, stderr=True, tty=False)
            await shell.write(b"hello\n")
            assert sorted(await all_output(shell)) == [("stderr", b"oops\n"), ("stdout", b"got hello\n")]
            assert await shell.exit_code() == 7
            await shell.close()
            shell = await shells.start(found, ["cat"], stdin=True, stdout=True, stderr=True, tty=False)
            await shell.write(b"all of it")
            await shell.close_input()
            assert await all_output(shell) == [("stdout", b"all of it")]
            assert await shell.exit_code() == 0
            shell = await shells.start(found, ["sh", "-c", "read x; stty size"], stdin=True, stdout=True, stderr=True, tty=True)
            await shell.resize(91, 31)
            await shell.write(b"\n")
            assert b"31 91" in b"".join(data for _, data in await all_output(shell))
        finally:
            container.remove(force=True)
