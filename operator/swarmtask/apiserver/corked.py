"""A connection's transport that can be corked: what is written meanwhile leaves as one.

Made by `heads` for each connection, and offered to the application as an extension of each request (ASGI: `scope["extensions"]`).
uvicorn writes the head of an answer and its body one after the other, and each write is a TLS record, a packet and a wake-up of the
client (docs/performance.md). Nothing here depends on how uvicorn works: it is given a transport, and writes to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

EXTENSION = "swarmtask.corked"
JOINED_BYTES = 64 * 1024
"""What is larger leaves as it was written: a copy of it would cost more than a record."""
_OPEN = nullcontext()


class Corked(asyncio.Transport):
    """The transport of a connection. `with` it, it is corked. Nothing is held back while it closes."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self.uncorked = transport
        self._held: list[bytes | bytearray | memoryview] | None = None

    def __enter__(self) -> None:
        self._held = []

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        held, self._held = self._held, None
        if not held:
            return
        if len(held) > 1 and sum(map(len, held)) <= JOINED_BYTES:
            self.uncorked.write(b"".join(held))
        else:
            for piece in held:
                self.uncorked.write(piece)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._held is None:
            self.uncorked.write(data)
        else:
            self._held.append(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        for data in list_of_data:
            self.write(data)

    def close(self) -> None:
        self.__exit__(None, None, None)
        self.uncorked.close()

    def abort(self) -> None:
        self._held = None
        self.uncorked.abort()

    def write_eof(self) -> None:
        self.__exit__(None, None, None)
        self.uncorked.write_eof()

    # --- the rest is the transport's -------------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        return self.uncorked.is_closing()

    def can_write_eof(self) -> bool:
        return self.uncorked.can_write_eof()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.uncorked.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.uncorked.set_protocol(protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.uncorked.get_protocol()

    def is_reading(self) -> bool:
        return self.uncorked.is_reading()

    def pause_reading(self) -> None:
        self.uncorked.pause_reading()

    def resume_reading(self) -> None:
        self.uncorked.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.uncorked.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self.uncorked.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self.uncorked.get_write_buffer_limits()


def corked(scope: Mapping[str, Any]) -> AbstractContextManager[None]:
    """What to answer a request within, so that head and body leave together; does nothing where its server offers no cork."""
    offered = scope.get("extensions", {}).get(EXTENSION)
    return _OPEN if offered is None else offered["transport"]
