"""An application in this process, called without a socket: fast enough for thousands of strange requests.

    caller = Caller(tmp_path / "x.db")
    answer = caller.send("POST", "/api/v1/namespaces", body=b"...")
    caller.close()

Every request is bounded, and the caller sees every write that a request commits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import orjson
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from swarmtask.apiserver.access.audit import AuditLog
from swarmtask.apiserver.access.vault import Vault
from swarmtask.apiserver.app import Application
from swarmtask.apiserver.auth import Authenticator, digest
from swarmtask.apiserver.issuing import pem_of
from swarmtask.apiserver.records import Change
from swarmtask.clock import SystemClock
from swarmtask.settings import ApiServerSettings

TOKEN = "t"
TIMEOUT_S = 20
CPU_LIMIT_S = 10.0
"""Of one request: it holds everybody else up for so long. Far above what any takes, so that a busy machine does not matter."""
CALM_TURNS = 5


@dataclass
class Answer:
    """What came back.

    Attributes:
        written: what was committed between the request and its answer.
        cpu_s: processor time of this process meanwhile.
    """

    code: int
    headers: dict[str, str]
    content: bytes
    written: list[Change] = field(default_factory=list)
    cpu_s: float = 0.0

    def json(self) -> Any:
        return orjson.loads(self.content)


class Caller:
    """An application and a way to call it. Not for use inside of a running event loop.

    Args:
        on_head: called with the body of a request when the head of its answer is sent.
    """

    def __init__(self, path: Path, *, audit: AuditLog | None = None, on_head: Callable[[bytes], None] | None = None) -> None:
        self.runner = asyncio.Runner()
        self._on_head = on_head
        opening = Application.open(
            path, ApiServerSettings(), Authenticator([digest(TOKEN)]), SystemClock(),
            vault=Vault(path.with_suffix(".key")), signing_pem=pem_of(generate_private_key(SECP256R1())), audit=audit,
        )  # fmt: skip
        self.app = self.runner.run(opening)
        self._committed: list[Change] = []
        self.app.store.subscribe(self._committed.extend)

    def close(self) -> None:
        self.runner.run(self.app.close())
        self.runner.close()

    def __call__(self, method: str, path: str, body: bytes = b"", content_type: str = "application/json", query: str = "") -> Any:
        """(code, decoded body)."""
        answer = self.send(method, path, body, content_type, query=query)
        return answer.code, answer.json()

    def send(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        content_type: str = "application/json",
        *,
        query: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request, when everything before it has come to rest. `path` as it is on the wire, escapes and all."""

        async def alone() -> Answer:
            async with self._at_rest():
                began = time.process_time()
                answer = await self._ask(method, path, body, content_type, query=query, headers=headers or {})
                answer.cpu_s = time.process_time() - began
                answer.written = list(self._committed)
                return answer

        return self.runner.run(alone())

    def together(self, requests: Sequence[tuple[str, str, bytes, str]]) -> list[Answer]:
        """(method, path, body, content type) each, all at the same time."""

        async def all_of_them() -> list[Answer]:
            return await asyncio.gather(*(self._ask(*request, query="", headers={}) for request in requests))

        return self.runner.run(all_of_them())

    @asynccontextmanager
    async def _at_rest(self) -> AsyncIterator[None]:
        """Let deletions that were set off before come to their end, so that `written` is of this request alone."""
        store = self.app.store
        calm, version = 0, store.resource_version
        async with asyncio.timeout(TIMEOUT_S):
            while calm < CALM_TURNS:
                await store.settled()
                await asyncio.sleep(0)
                calm, version = (calm + 1, version) if version == store.resource_version else (0, store.resource_version)
        self._committed.clear()
        yield

    async def _ask(
        self, method: str, path: str, body: bytes, content_type: str, *, query: str, headers: Mapping[str, str]
    ) -> Answer:
        messages: list[Any] = []
        requests = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Any:
            """The body, and after a few turns the end of the connection: a stream is looked at, not followed."""
            request = next(requests, None)
            if request is None:
                for _ in range(CALM_TURNS):
                    await asyncio.sleep(0)
                return {"type": "http.disconnect"}
            return request

        async def send(message: Any) -> None:
            messages.append(message)
            if self._on_head is not None and message["type"] == "http.response.start":
                self._on_head(body)

        sent = {"authorization": f"Bearer {TOKEN}", "content-type": content_type, **headers}
        scope = {
            "type": "http", "method": method, "path": unquote(path), "raw_path": path.encode("utf-8", "surrogatepass"),
            "query_string": query.encode("utf-8", "surrogatepass"),
            "headers": [(name.encode("latin-1"), value.encode("utf-8", "surrogatepass")) for name, value in sent.items()],
        }  # fmt: skip
        async with asyncio.timeout(TIMEOUT_S):
            await self.app(scope, receive, send)
        answered = {name.decode("latin-1"): value.decode("latin-1") for name, value in messages[0]["headers"]}
        return Answer(messages[0]["status"], answered, b"".join(message.get("body", b"") for message in messages[1:]))


def check(answer: Answer) -> None:
    """Whatever was sent: soon, never a failure of the server, and a refusal says why and has written nothing."""
    assert answer.code < 500 or answer.code == 504, (answer.code, answer.content[:400])
    assert answer.cpu_s < CPU_LIMIT_S, answer.cpu_s
    if answer.code < 400:
        return
    status = answer.json()
    assert (status["kind"], status["status"], status["code"]) == ("Status", "Failure", answer.code)
    assert status["message"]
    assert status["reason"]
    assert answer.content.endswith(b"\n")
    assert answer.written == [], f"a refused request wrote {answer.written}"
