"""`kubectl exec`: a command inside an attempt, over a WebSocket.

Called by `sockets`, and by the handlers for clients that speak SPDY, which get the refusal that fits. The command itself is run by
whoever implements `Shells`; no engine is known here. It can be run where the container is on the machine of this server's own
Docker; otherwise the refusal names the node.

Source: the subprotocols v4.channel.k8s.io and v5.channel.k8s.io of Kubernetes: a message begins with a byte that names a channel.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from urllib.parse import parse_qsl

import orjson

from swarmtask.apiserver.projections.pods import ANNOTATION_ENGINE, ANNOTATION_ID, CONTAINER, LABEL_ATTEMPT
from swarmtask.apiserver.wire import status_of
from swarmtask.errors import BadRequest, NotFound, SwarmTaskError

V5, V4 = "v5.channel.k8s.io", "v4.channel.k8s.io"
STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
MOST_ARGUMENTS = 1000
MOST_SESSIONS = 100

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Shell(Protocol):
    """A command that runs."""

    async def write(self, data: bytes) -> None: ...
    async def close_input(self) -> None: ...
    def output(self) -> AsyncIterator[tuple[Literal["stdout", "stderr"], bytes]]:
        """What it writes, until it ends."""
        ...

    async def resize(self, width: int, height: int) -> None: ...
    async def exit_code(self) -> int:
        """After the end of its output."""
        ...

    async def close(self) -> None: ...


class Shells(Protocol):
    """Runs commands in containers of this machine."""

    async def find(self, task_uid: str, attempt: int) -> str | None:
        """The running container of an attempt; None: not on this machine. Raises EngineUnavailable."""
        ...

    async def start(self, container: str, command: Sequence[str], *, stdin: bool, stdout: bool, stderr: bool, tty: bool) -> Shell:
        """Raises BadRequest, NotFound, EngineUnavailable."""
        ...


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be run, and which of its streams are wanted."""

    command: tuple[str, ...]
    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool


def wish_of(query: bytes) -> Wish:
    """From the query of the URL. Raises BadRequest."""
    try:
        pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=MOST_ARGUMENTS)
    except ValueError as error:
        raise BadRequest(f"the query cannot be read: {error}") from error
    command = tuple(value for name, value in pairs if name == "command")
    named = dict(pairs)
    if named.get("container", CONTAINER) not in ("", CONTAINER):
        raise BadRequest(f"container {named['container']} is not valid: the container of every pod is {CONTAINER}")
    if not command:
        raise BadRequest("there is no command to run: name one behind --")
    if any("\x00" in part for part in command):
        raise BadRequest("a command cannot contain NUL")
    wish = Wish(command, *(named.get(name, "") in ("1", "true") for name in ("stdin", "stdout", "stderr", "tty")))
    if not (wish.stdin or wish.stdout or wish.stderr):
        raise BadRequest("ask for at least one of stdin, stdout, stderr")
    return wish


class PodCommands:
    """All commands that run through this server. `shells` None: it can run none."""

    def __init__(self, shells: Shells | None) -> None:
        self._shells = shells
        self._open: set[asyncio.Task[None]] = set()

    def end_all(self) -> None:
        """Cut off every session; the server stops."""
        for task in self._open:
            task.cancel()

    async def container_of(self, pod: Mapping[str, Any]) -> str:
        """Where a command for this pod would run.

        Raises:
            BadRequest: it does not run, or its engine has no containers. NotFound: it runs on another machine.
            EngineUnavailable: Docker does not answer.
        """
        metadata, name = pod["metadata"], pod["metadata"]["name"]
        engine, node = metadata["annotations"][ANNOTATION_ENGINE], pod["spec"]["nodeName"]
        if pod["status"]["phase"] != "Running":
            raise BadRequest(f"cannot run a command in pod {name}: it is {pod['status']['phase']}, not Running")
        elsewhere = f"run `docker exec` there: docker ps --filter name={metadata['annotations'][ANNOTATION_ID]}"
        if engine == "local":
            raise BadRequest(f"pod {name} is a process of the machine {node}, not a container: run the command there")
        if self._shells is None:
            raise BadRequest(f"this server runs no commands in containers; pod {name} is on node {node}: {elsewhere}")
        container = await self._shells.find(metadata["ownerReferences"][0]["uid"], int(metadata["labels"][LABEL_ATTEMPT]))
        if container is None:
            raise NotFound(
                f"pod {name} runs on node {node}, which is not the machine of this API server, and commands can be run only on "
                f"this one: {elsewhere}"
            )
        return container

    async def start(self, pod: Mapping[str, Any], wish: Wish) -> Shell:
        """Start what is asked for. Raises as `container_of`, and what Docker refuses."""
        container = await self.container_of(pod)
        assert self._shells is not None  # noqa: S101 - `container_of` refuses
        if len(self._open) >= MOST_SESSIONS:
            raise BadRequest(f"{MOST_SESSIONS} commands run through this server: end one, or try again later")
        return await self._shells.start(
            container, wish.command, stdin=wish.stdin, stdout=wish.stdout, stderr=wish.stderr, tty=wish.tty
        )

    async def run(self, shell: Shell, wish: Wish, receive: Receive, send: Send, *, end: asyncio.Event) -> None:
        """Carry its streams until it ends, the client leaves, or `end` is set. The WebSocket has been accepted.

        The client gets the exit status and the socket is closed, unless the client was first.
        """
        session = asyncio.create_task(self._session(shell, wish, receive, send), name="exec")
        self._open.add(session)
        ending = asyncio.create_task(end.wait())
        try:
            await asyncio.wait({session, ending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ending.cancel()
            session.cancel()
            await asyncio.wait({session})
            self._open.discard(session)
            await shell.close()
        if not session.cancelled() and (error := session.exception()) is not None:
            raise error

    async def _session(self, shell: Shell, wish: Wish, receive: Receive, send: Send) -> None:
        feeding = asyncio.create_task(_feed(shell, wish, receive))
        showing = asyncio.create_task(_show(shell, send))
        try:
            await asyncio.wait({feeding, showing}, return_when=asyncio.FIRST_COMPLETED)
            if not showing.done():
                return  # the client has left
            status = showing.result()
        finally:
            for task in (feeding, showing):
                task.cancel()
            await asyncio.wait({feeding, showing})
        await send({"type": "websocket.send", "bytes": bytes([ERROR]) + orjson.dumps(status)})
        await send({"type": "websocket.close", "code": 1000})


async def _show(shell: Shell, send: Send) -> dict[str, Any]:
    """Send its output; returns how it ended, as a Status."""
    try:
        async for stream, data in shell.output():
            await send({"type": "websocket.send", "bytes": bytes([STDERR if stream == "stderr" else STDOUT]) + data})
        code = await shell.exit_code()
    except SwarmTaskError as error:
        return status_of(error)
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    return {
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": f"command terminated with non-zero exit code: exit status {code}",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }  # fmt: skip


async def _feed(shell: Shell, wish: Wish, receive: Receive) -> None:
    """Take what the client sends until it leaves. What makes no sense is passed over, as Kubernetes does."""
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return
        data: bytes = message.get("bytes") or (message.get("text") or "").encode()
        if not data:
            continue
        channel, content = data[0], data[1:]
        if channel == STDIN and wish.stdin and content:
            await shell.write(content)
        elif channel == CLOSE and content[:1] == bytes([STDIN]):
            await shell.close_input()
        elif channel == RESIZE and wish.tty:
            size = _size(content)
            if size is not None:
                await shell.resize(*size)


def _size(content: bytes) -> tuple[int, int] | None:
    try:
        said = orjson.loads(content)
        width, height = int(said["Width"]), int(said["Height"])
    except (ValueError, TypeError, KeyError):
        return None
    return (width, height) if 0 < width < 2**16 and 0 < height < 2**16 else None
