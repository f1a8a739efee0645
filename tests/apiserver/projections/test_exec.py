"""`kubectl exec`: WebSockets, channels and exit status, with shells that record; and a real kubectl."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode, urlsplit

import httpx
import orjson
import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, RejectConnection, RejectData, Request

from swarmtask.apiserver import server as server_room
from swarmtask.apiserver.pacing import BURST_S
from swarmtask.apiserver.projections.exec import CLOSE, ERROR, RESIZE, STDERR, STDIN, STDOUT, V4, V5, wish_of
from swarmtask.errors import BadRequest, EngineUnavailable
from tests.apiserver.access.people import RBAC, bind, new_token
from tests.apiserver.projections.swarm import attempt, store_task
from tests.apiserver.server import RunningServer, http_client, kubectl_environment, running_api_server, tls
from tests.lab.tools import kubectl_binaries, named_kubectl, or_skip

EXEC = "/api/v1/namespaces/default/pods/lint-1/exec"
TIMEOUT_S = 60
Output = tuple[Literal["stdout", "stderr"], bytes]


@dataclass
class Shell:
    """Says back what it is told, on stderr too where a line begins with "!"; ends at the end of its input, or with "exit N"."""

    code: int = 0
    sizes: list[tuple[int, int]] = field(default_factory=list)
    said: asyncio.Queue[Output | None] = field(default_factory=asyncio.Queue)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    broken: bool = False

    async def write(self, data: bytes) -> None:
        if data.startswith(b"exit "):
            self.code = int(data.split()[1])
            self.said.put_nowait(None)
        else:
            self.said.put_nowait(("stderr" if data.startswith(b"!") else "stdout", data))

    async def close_input(self) -> None:
        self.said.put_nowait(None)

    async def output(self) -> AsyncIterator[Output]:
        while (one := await self.said.get()) is not None:
            yield one
        if self.broken:
            raise EngineUnavailable("the connection to Docker was lost")

    async def resize(self, width: int, height: int) -> None:
        self.sizes.append((width, height))

    async def exit_code(self) -> int:
        return self.code

    async def close(self) -> None:
        self.closed.set()


@dataclass
class Shells:
    """One container, of the attempt `here`."""

    here: int = 1
    shell: Shell = field(default_factory=Shell)
    started: list[dict[str, Any]] = field(default_factory=list)

    async def find(self, task_uid: str, attempt: int) -> str | None:
        return "c1" if attempt == self.here else None

    async def start(self, container: str, command: Sequence[str], *, stdin: bool, stdout: bool, stderr: bool, tty: bool) -> Shell:
        self.started.append({"container": container, "command": list(command), "stdin": stdin, "tty": tty})
        if command[0] == "missing":
            raise BadRequest("Docker refuses the command: no such file")
        if command[0] == "true":
            self.shell.said.put_nowait(None)
        return self.shell


@dataclass
class Socket:
    """A WebSocket's client side. `status`, `answer`: of a handshake that was refused."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    connection: WSConnection
    protocol: str | None = None
    status: int = 101
    answer: dict[str, Any] = field(default_factory=dict)
    received: list[bytes] = field(default_factory=list)
    over: bool = False

    async def send(self, channel: int, data: bytes) -> None:
        self.writer.write(self.connection.send(BytesMessage(bytes([channel]) + data)))
        await self.writer.drain()

    async def step(self) -> None:
        """Take what comes next."""
        async with asyncio.timeout(TIMEOUT_S):
            data = await self.reader.read(65536)
        self.over = not data
        self.connection.receive_data(data or None)
        body = b""
        for event in self.connection.events():
            if isinstance(event, AcceptConnection):
                self.protocol = event.subprotocol
            elif isinstance(event, RejectConnection):
                self.status = event.status_code
            elif isinstance(event, RejectData):
                body += event.data
            elif isinstance(event, BytesMessage):
                self.received.append(bytes(event.data))
            elif isinstance(event, CloseConnection):
                self.over = True
        if body:
            self.answer = orjson.loads(body)

    async def until(self, message: bytes) -> None:
        while message not in self.received:
            assert not self.over, self.received
            await self.step()

    async def end(self) -> dict[str, Any]:
        """Read to the end; the Status of the error channel."""
        while not self.over:
            await self.step()
        (status,) = [orjson.loads(one[1:]) for one in self.received if one[0] == ERROR] or [{}]
        return dict(status)


async def open_socket(
    server: RunningServer,
    *command: str,
    protocols: tuple[str, ...] = (V5, V4),
    token: str | None = None,
    path: str = EXEC,
    **query: str,
) -> Socket:
    """Open one, or be refused."""
    where = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port, ssl=tls(server))
    connection = WSConnection(ConnectionType.CLIENT)
    asked = [*(("command", part) for part in command), *({"stdout": "true", "stderr": "true", **query}).items()]
    writer.write(connection.send(Request(
        host=where.netloc, target=f"{path}?{urlencode(asked)}", subprotocols=list(protocols),
        extra_headers=[(b"authorization", f"Bearer {token or server.token}".encode())],
    )))  # fmt: skip
    socket = Socket(reader, writer, connection)
    while socket.protocol is None and not socket.answer and not socket.over:
        await socket.step()
    return socket


@pytest.fixture
def shells() -> Shells:
    return Shells()


@pytest.fixture
async def server(tmp_path: Path, shells: Shells) -> AsyncIterator[RunningServer]:
    async with running_api_server(tmp_path, shells=shells) as running:
        yield running


@pytest.fixture
async def api(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with http_client(server) as client:
        yield client


async def test_streams_sizes_and_the_exit_status(server: RunningServer, api: httpx.AsyncClient, shells: Shells) -> None:
    await store_task(api, attempt(1))
    socket = await open_socket(server, "sh", "-c", "a b", stdin="true", tty="true")
    assert socket.protocol == V5
    assert shells.started == [{"container": "c1", "command": ["sh", "-c", "a b"], "stdin": True, "tty": True}]
    await socket.send(RESIZE, b'{"Width":80,"Height":24}')
    await socket.send(RESIZE, b"nonsense")
    await socket.send(STDIN, b"hello")
    await socket.until(bytes([STDOUT]) + b"hello")
    await socket.send(STDIN, b"!oops")
    await socket.until(bytes([STDERR]) + b"!oops")
    await socket.send(STDIN, b"exit 3")
    status = await socket.end()
    assert (status["reason"], status["details"]["causes"]) == ("NonZeroExitCode", [{"reason": "ExitCode", "message": "3"}])
    assert shells.shell.sizes == [(80, 24)]
    await asyncio.wait_for(shells.shell.closed.wait(), TIMEOUT_S)


async def test_the_end_of_the_input(server: RunningServer, api: httpx.AsyncClient) -> None:
    await store_task(api, attempt(1))
    socket = await open_socket(server, "cat", stdin="true")
    await socket.send(STDIN, b"all")
    await socket.send(CLOSE, bytes([STDIN]))
    assert await socket.end() == {"metadata": {}, "status": "Success"}
    assert bytes([STDOUT]) + b"all" in socket.received


async def test_the_older_protocol(server: RunningServer, api: httpx.AsyncClient) -> None:
    await store_task(api, attempt(1))
    socket = await open_socket(server, "true", protocols=(V4,))
    assert (socket.protocol, (await socket.end())["status"]) == (V4, "Success")
    refused = await open_socket(server, "true", protocols=("channel.k8s.io",))
    assert (refused.status, V5 in refused.answer["message"]) == (400, True)


async def test_a_stream_that_breaks_is_told(server: RunningServer, api: httpx.AsyncClient, shells: Shells) -> None:
    shells.shell.broken = True
    await store_task(api, attempt(1))
    assert "was lost" in (await (await open_socket(server, "true")).end())["message"]


async def test_what_cannot_be_run_is_refused_before_the_socket_opens(
    server: RunningServer, api: httpx.AsyncClient, shells: Shells
) -> None:
    await store_task(api, attempt(1), attempt(2, "Failed"), attempt(3, engine="local"), attempt(4, node="laptop-2"))

    async def refused(name: str, *command: str, **query: str) -> tuple[int, str]:
        socket = await open_socket(server, *command, path=EXEC.replace("lint-1", name), **query)
        return socket.status, socket.answer["message"]

    for name, code, words in (
        ("lint-2", 400, "not Running"), ("lint-3", 400, "process of the machine"), ("lint-4", 404, "runs on node laptop-2"),
        ("lint-9", 404, "not found"),
    ):  # fmt: skip
        status, message = await refused(name, "sh")
        assert (status, words in message) == (code, True), message
        # A client that falls back to SPDY is told the same.
        answer = await api.post(EXEC.replace("lint-1", name), params={"command": "sh", "stdout": "true"})
        assert (answer.status_code, answer.json()["message"]) == (status, message)
    assert (await refused("lint-1"))[1].startswith("there is no command")
    assert (await refused("lint-1", "sh", container="other"))[0] == 400
    assert (await refused("lint-1", "missing"))[1] == "Docker refuses the command: no such file"
    assert (await open_socket(server, "sh", path="/api/v1/namespaces/default/configmaps")).status == 400
    assert (await open_socket(server, "sh", path="/nowhere")).status == 404
    assert "SPDY" in (await api.post(EXEC, params={"command": "sh", "stdout": "true"})).json()["message"]
    assert shells.started == [{"container": "c1", "command": ["missing"], "stdin": False, "tty": False}]


@pytest.mark.parametrize(
    "query", [b"command=sh", b"stdout=1", b"command=a%00b&stdout=1", b"command=a&stdout=1&container=x", b"command=a&" * 2000]
)
def test_wishes_that_make_no_sense(query: bytes) -> None:
    with pytest.raises(BadRequest):
        wish_of(query)


async def test_rights_are_those_of_a_writer_and_end_the_session(
    server: RunningServer, api: httpx.AsyncClient, shells: Shells
) -> None:
    await store_task(api, attempt(1))
    assert (await open_socket(server, "sh", token="x" * 40)).status == 401
    token = await new_token(api, "vera")
    await bind(api, "vera", "view", "default")
    assert (await open_socket(server, "sh", token=token)).status == 403
    assert shells.started == []
    await bind(api, "vera", "edit", "default")
    socket = await open_socket(server, "sh", token=token, stdin="true")
    await socket.send(STDIN, b"hello")
    await socket.until(bytes([STDOUT]) + b"hello")
    assert (await api.delete(f"{RBAC}/namespaces/default/rolebindings/vera-edit")).status_code == 200
    assert await socket.end() == {}
    await asyncio.wait_for(shells.shell.closed.wait(), TIMEOUT_S)
    rows = [json.loads(line) for line in (server.kubeconfig.parent / "audit" / "audit.log").read_text().splitlines()]
    codes = [row["code"] for row in rows if row.get("subresource") == "exec" or "exec" in str(row.get("resource", ""))]
    assert {403, 101} <= set(codes)


def exec_rows(server: RunningServer) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (server.kubeconfig.parent / "audit" / "audit.log").read_text().splitlines()]
    return [row for row in rows if row.get("resource") == "pods/exec"]


async def test_handshakes_count_as_requests(tmp_path: Path) -> None:
    async with running_api_server(tmp_path, shells=Shells(), client_requests_per_second=1) as server, http_client(server) as api:
        token = await new_token(api, "vera")
        refused = [await open_socket(server, "sh", token=token) for _ in range(3 * BURST_S)]
        assert [socket.status for socket in refused[:BURST_S]] == [403] * BURST_S
        assert 429 in [socket.status for socket in refused[BURST_S:]]
        strangers = [(await open_socket(server, "sh", token="x" * 40)).status for _ in range(3 * BURST_S)]
        assert strangers[:BURST_S] == [401] * BURST_S
        assert 429 in strangers[BURST_S:]
        for socket in refused:
            socket.writer.close()
        assert (await open_socket(server, "sh")).status == 404, "the administrator is not held up"


async def test_a_command_whose_start_is_cut_off_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_room, "GRACE_S", 0.05)
    shells, starting = Shells(), asyncio.Event()

    async def never(*_: Any, **__: Any) -> Shell:
        starting.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(shells, "start", never)
    async with running_api_server(tmp_path, shells=shells) as server, http_client(server) as api:
        await store_task(api, attempt(1))
        opening = asyncio.create_task(open_socket(server, "sh"))
        await asyncio.wait_for(starting.wait(), TIMEOUT_S)
    await asyncio.gather(opening, return_exceptions=True)
    assert [(row["code"], row["reason"]) for row in exec_rows(server)] == [(500, "CutOff")]


async def test_a_client_that_leaves_and_a_server_that_stops_let_go_of_the_command(tmp_path: Path) -> None:
    shells = Shells()
    async with running_api_server(tmp_path / "stopping", shells=shells) as server, http_client(server) as api:
        await store_task(api, attempt(1))
        socket = await open_socket(server, "sh", stdin="true")
        socket.writer.close()
        await asyncio.wait_for(shells.shell.closed.wait(), TIMEOUT_S)
        shells.shell = Shell()
        stays = await open_socket(server, "sh", stdin="true")
    assert shells.shell.closed.is_set()
    await stays.end()


@pytest.mark.kubectl
async def test_a_real_kubectl(server: RunningServer, api: httpx.AsyncClient, shells: Shells, tmp_path: Path) -> None:
    await store_task(api, attempt(1), attempt(2, node="laptop-2"))
    binaries = kubectl_binaries()
    with or_skip():
        named_kubectl("current")

    async def kubectl(version: str, *arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            str(binaries[version]), "exec", *arguments, env=kubectl_environment(server, tmp_path),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(TIMEOUT_S):
            out, err = await process.communicate(stdin)
        return process.returncode or 0, out.decode(), err.decode()

    assert await kubectl("current", "-i", "lint-1", "--", "cat", stdin=b"hello\n") == (0, "hello\n", "")
    shells.shell = Shell(code=7)
    code, _, err = await kubectl("current", "lint-1", "--", "true")
    assert (code, "exit code 7" in err) == (7, True)
    code, _, err = await kubectl("current", "lint-2", "--", "true")
    assert (code, "runs on node laptop-2" in err) == (1, True)
    if "debian" in binaries:
        code, _, err = await kubectl("debian", "lint-1", "--", "true")
        assert (code, "kubectl 1.31 or newer" in err) == (1, True)
