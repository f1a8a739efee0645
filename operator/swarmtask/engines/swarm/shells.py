"""Commands run inside an attempt's container, by the Docker of this machine: what `kubectl exec` ends in.

Built by `wiring` and used by the API server through its own protocol. Speaks the Docker Engine API over the unix socket itself,
because the two-way stream of an exec needs the bare connection. It looks only for containers that carry our labels, and touches no
other. Source: Docker Engine API, "Exec" (hijacked streams and their frames of eight bytes).
"""

from __future__ import annotations

import asyncio
import http
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlencode

import orjson

from swarmtask.engines.base import LABEL_ATTEMPT, LABEL_MANAGED, LABEL_TASK_UID
from swarmtask.errors import BadRequest, EngineUnavailable, NotFound

DEFAULT_SOCKET = "/var/run/docker.sock"
MOST_HEAD_BYTES = 64 * 1024
MOST_ANSWER_BYTES = 16 * 2**20
CHUNK_BYTES = 32 * 1024
_FRAME = 8

Output = tuple[Literal["stdout", "stderr"], bytes]


class DockerShells:
    """See the module.

    Args:
        endpoint: `unix://...`; None takes DOCKER_HOST or the usual socket. Others are refused when they are used.
        timeout_s: longest wait for an answer; a command that runs is waited for as long as it takes.
    """

    def __init__(self, endpoint: str | None, *, timeout_s: float) -> None:
        self._endpoint = endpoint or os.environ.get("DOCKER_HOST") or f"unix://{DEFAULT_SOCKET}"
        self._timeout_s = timeout_s

    async def find(self, task_uid: str, attempt: int) -> str | None:
        """The running container of an attempt on this machine; None: there is none.

        Raises:
            EngineUnavailable: Docker does not answer.
        """
        labels = [f"{LABEL_MANAGED}=true", f"{LABEL_TASK_UID}={task_uid}", f"{LABEL_ATTEMPT}={attempt}"]
        filters = orjson.dumps({"label": labels, "status": ["running"]}).decode()
        code, found = await self._call("GET", f"/containers/json?{urlencode({'filters': filters})}")
        if code != http.HTTPStatus.OK or not isinstance(found, list):
            raise EngineUnavailable(f"Docker at {self._endpoint} lists no containers (it answered {code})")
        return next((str(item["Id"]) for item in found if isinstance(item, dict) and item.get("Id")), None)

    async def start(self, container: str, command: Sequence[str], *, stdin: bool, stdout: bool, stderr: bool, tty: bool) -> Shell:
        """Start a command in a container.

        Raises:
            BadRequest: Docker refuses it. NotFound: the container is gone. EngineUnavailable.
        """
        wish = {"Cmd": list(command), "AttachStdin": stdin, "AttachStdout": stdout, "AttachStderr": stderr and not tty, "Tty": tty}
        code, made = await self._call("POST", f"/containers/{quote(container, safe='')}/exec", wish)
        self._check(code, made)
        exec_id = str(made["Id"])
        body = orjson.dumps({"Detach": False, "Tty": tty})
        reader, writer = await self._open()
        try:
            path = f"/exec/{quote(exec_id, safe='')}/start"
            writer.write(_head("POST", path, body, "Connection: Upgrade", "Upgrade: tcp", version="1.1") + body)
            async with asyncio.timeout(self._timeout_s):
                await writer.drain()
                code = await _status(reader)
            if code not in (http.HTTPStatus.SWITCHING_PROTOCOLS, http.HTTPStatus.OK):
                self._check(code, _json(await reader.read(CHUNK_BYTES)))
        except BaseException as error:
            writer.close()
            if isinstance(error, (OSError, TimeoutError, asyncio.IncompleteReadError)):
                raise EngineUnavailable(f"Docker at {self._endpoint} did not start the command: {error}") from error
            raise
        return Shell(self, exec_id, reader, writer, tty=tty)

    async def resize(self, exec_id: str, width: int, height: int) -> None:
        """Tell a terminal its size. One that has ended is no error."""
        await self._call("POST", f"/exec/{quote(exec_id, safe='')}/resize?{urlencode({'w': width, 'h': height})}")

    async def exit_code(self, exec_id: str) -> int:
        """How a command ended. Raises EngineUnavailable: Docker does not know."""
        code, found = await self._call("GET", f"/exec/{quote(exec_id, safe='')}/json")
        ended = found.get("ExitCode") if isinstance(found, dict) else None
        if code != http.HTTPStatus.OK or not isinstance(ended, int):
            raise EngineUnavailable("Docker does not tell how the command ended")
        return ended

    # --- the wire --------------------------------------------------------------------------------------------------------

    @staticmethod
    def _check(code: int, answer: Any) -> None:
        if code < http.HTTPStatus.BAD_REQUEST:
            return
        words = str(answer.get("message", "")) if isinstance(answer, dict) else ""
        if code == http.HTTPStatus.NOT_FOUND:
            raise NotFound(f"the container is gone: {words}")
        raise BadRequest(f"Docker refuses the command: {words or code}")

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if not self._endpoint.startswith("unix://"):
            raise BadRequest(
                "commands are run through Docker's unix socket only, and this server uses "
                f"{self._endpoint}: use `docker exec` there"
            )
        path = Path(self._endpoint.removeprefix("unix://"))
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.open_unix_connection(str(path))
        except (OSError, TimeoutError) as error:
            raise EngineUnavailable(f"Docker at {path} does not answer: {error}") from error

    async def _call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """One request on a connection of its own; HTTP/1.0, so that the answer ends with the connection."""
        reader, writer = await self._open()
        try:
            async with asyncio.timeout(self._timeout_s):
                content = orjson.dumps(body) if body is not None else b""
                writer.write(_head(method, path, content, "Connection: close", version="1.0") + content)
                await writer.drain()
                code = await _status(reader)
                chunks: list[bytes] = []
                while (chunk := await reader.read(CHUNK_BYTES)) and sum(map(len, chunks)) < MOST_ANSWER_BYTES:
                    chunks.append(chunk)
                return code, _json(b"".join(chunks))
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise EngineUnavailable(f"Docker at {self._endpoint} does not answer: {error}") from error
        finally:
            writer.close()


class Shell:
    """A command that runs."""

    def __init__(
        self, shells: DockerShells, exec_id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, tty: bool
    ) -> None:
        self._shells, self._id, self._reader, self._writer, self._tty = shells, exec_id, reader, writer, tty

    async def write(self, data: bytes) -> None:
        """To its standard input. Input that it does not take any more is dropped."""
        with suppress(OSError):
            self._writer.write(data)
            await self._writer.drain()

    async def close_input(self) -> None:
        """The end of its standard input."""
        with suppress(OSError):
            self._writer.write_eof()

    async def output(self) -> AsyncIterator[Output]:
        """What it writes, until it ends. A terminal has only stdout. Raises EngineUnavailable: the stream was cut off."""
        try:
            while True:
                if self._tty:
                    data = await self._reader.read(CHUNK_BYTES)
                    if not data:
                        return
                    yield "stdout", data
                    continue
                try:
                    frame = await self._reader.readexactly(_FRAME)
                except asyncio.IncompleteReadError as error:
                    if error.partial:
                        raise
                    return
                left = int.from_bytes(frame[4:], "big")
                while left:
                    data = await self._reader.read(min(left, CHUNK_BYTES))
                    if not data:
                        raise asyncio.IncompleteReadError(b"", left)
                    left -= len(data)
                    yield ("stderr" if frame[0] == 2 else "stdout"), data
        except (OSError, asyncio.IncompleteReadError) as error:
            raise EngineUnavailable("the connection to Docker was lost while the command ran") from error

    async def resize(self, width: int, height: int) -> None:
        await self._shells.resize(self._id, width, height)

    async def exit_code(self) -> int:
        """After the end of its output. Raises EngineUnavailable."""
        return await self._shells.exit_code(self._id)

    async def close(self) -> None:
        """Let go of it. A command that still runs loses its input and output; Docker does not stop it."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


def _head(method: str, path: str, body: bytes, *more: str, version: str) -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: docker", *more]
    if body or method == "POST":
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _status(reader: asyncio.StreamReader) -> int:
    """The status code of an answer, its headers read."""
    head = await reader.readuntil(b"\r\n\r\n")
    parts = head.split(b" ", 2)
    if len(head) > MOST_HEAD_BYTES or len(parts) < 3 or not parts[1].isdigit():
        raise EngineUnavailable("Docker's answer is no HTTP")
    return int(parts[1])


def _json(content: bytes) -> Any:
    try:
        return orjson.loads(content) if content.strip() else {}
    except orjson.JSONDecodeError:
        return {}
