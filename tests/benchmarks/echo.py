"""A raw ASGI echo, as a process of its own: what HTTP and TLS alone cost.

    python -m tests.benchmarks.echo CERTIFICATE KEY READY_FILE

Served as the API server is (uvicorn, httptools, uvloop, TLS). READY_FILE gets the port. Runs until it is killed.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

Message = MutableMapping[str, Any]


async def echo(scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
    """Answer with the body of the request."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 201, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def serve(certificate: str, key: str, ready_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        config = uvicorn.Config(
            echo, http="httptools", ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
            ssl_certfile=certificate, ssl_keyfile=key, timeout_keep_alive=75,
        )  # fmt: skip
        serving = asyncio.create_task(uvicorn.Server(config).serve(sockets=[listener]))
        partial = ready_file.with_suffix(".partial")
        partial.write_text(str(listener.getsockname()[1]))
        partial.replace(ready_file)
        await serving


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
