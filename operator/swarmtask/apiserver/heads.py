"""uvicorn's HTTP protocol with a bound on what comes before a body, answers that can leave in one piece, and a word to the door
when the connection ends.

Given to uvicorn by `server`, made and looked at by the `door`. The parser itself would keep headers without end, and they come
before anybody has shown a token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from swarmtask.apiserver.corked import EXTENSION, Corked

MOST_HEAD_BYTES = 64 * 1024
"""Of one request, and one read of the socket more. A token with its groups takes one or two kilobytes."""


def _nothing() -> None:
    """Nobody asked to be told."""


class BoundedHeads(HttpToolsProtocol):
    """One connection.

    Attributes:
        on_lost: called once, when the connection has ended; also when a WebSocket has taken it over.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.on_lost: Callable[[], None] = _nothing
        self._in_head, self._head_bytes = True, 0
        self._handed_over = False
        self._extensions: dict[str, Any] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        corked = Corked(transport)
        self._extensions[EXTENSION] = {"transport": corked}
        super().connection_made(corked)

    @property
    def idle(self) -> bool:
        """No request of it is being answered: HTTP allows to close it, and clients send the next one over another connection. The
        last answer may still be on its way."""
        return not self._handed_over and (self.cycle is None or (self.cycle.response_complete and not self.pipeline))

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self.send_400_response(f"The head of a request must not be longer than {MOST_HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = self._extensions
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def handle_websocket_upgrade(self) -> None:
        self._handed_over = True
        self.ws_protocol_class = partial(web_socket, on_lost=self.on_lost)  # type: ignore[assignment]  # called, and no more
        super().handle_websocket_upgrade()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.on_lost()


def web_socket(*args: Any, on_lost: Callable[[], None] = _nothing, **options: Any) -> asyncio.Protocol:
    """The protocol of a WebSocket; read in with the first of them, since few servers ever see one."""
    from swarmtask.apiserver.web_sockets import Socket  # noqa: PLC0415

    return Socket(*args, on_lost=on_lost, **options)
