"""A WebSocket on a connection that began as HTTP. Made by `heads`, which must not read this in before there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uvicorn.protocols.websockets.wsproto_impl import WSProtocol


class Socket(WSProtocol):
    """uvicorn's, and a word when the connection has ended."""

    def __init__(self, *args: Any, on_lost: Callable[[], None], **options: Any) -> None:
        super().__init__(*args, **options)
        self._on_lost = on_lost

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._on_lost()
