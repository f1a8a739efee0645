"""Connections, from their acceptance to the first request that says who sends it.

Called by `server`, which hands over its socket, and by the application, which tells who is known. A stranger costs a file and some
memory before anything can be asked of him, so he has little time, and of one address only so many wait at once: the newest, since
whoever has a token shows it within milliseconds. Reads no request and knows no user.
"""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import ssl
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

log = structlog.get_logger(__name__)

PATIENCE_S = 10.0
"""From the first packet to the first request with valid credentials: the TLS handshake and the headers."""
STRANGERS = 256
"""Of one address at once."""
MOST_FILES = 65_536
NO_ROOM_S = 0.1
"""When the process can open no more files, it tries again after this."""
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

Address = tuple[str, int]


def use_all_files() -> None:
    """Let this process open as many files as it may at all, `MOST_FILES` at most: every connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@dataclass(slots=True, eq=False)
class _Stranger:
    """A connection of which nobody knows whose it is. `arriving`: its handshake. `transport`: when that is done."""

    peer: Address
    arriving: asyncio.Task[None] | None = None
    transport: asyncio.BaseTransport | None = None
    timer: asyncio.TimerHandle | None = None


class Door:
    """One per server. All methods belong to its event loop."""

    def __init__(self) -> None:
        self._strangers: dict[str, OrderedDict[Address, _Stranger]] = {}
        self._full = False

    def __len__(self) -> int:
        """Strangers."""
        return sum(map(len, self._strangers.values()))

    def known(self, client: Any) -> None:
        """A request of this connection had valid credentials; `client` as ASGI names it."""
        if client is None:
            return
        stranger = self._strangers.get(client[0], OrderedDict()).get((client[0], client[1]))
        if stranger is not None:
            self._forget(stranger)

    async def admit(
        self, listener: socket.socket, protocol: Callable[[], asyncio.Protocol], context: ssl.SSLContext, backlog: int
    ) -> None:
        """Accept until cancelled; whose handshake is not done by then is sent away. The socket stays open."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        listener.listen(backlog)
        try:
            while True:
                try:
                    connection, peer = await loop.sock_accept(listener)
                except OSError as error:
                    await self._no_room(error)
                    continue
                self._full = False
                stranger = self._remember((peer[0], peer[1]))
                stranger.arriving = loop.create_task(self._welcome(stranger, connection, protocol, context))
        finally:
            for stranger in [one for of_address in self._strangers.values() for one in of_address.values()]:
                if stranger.transport is None:
                    self._send_away(stranger)

    async def _no_room(self, error: OSError) -> None:
        """Accepting has failed: because of one client, or because nothing more can be opened."""
        if error.errno not in _NO_ROOM:
            return
        if not self._full:
            self._full = True
            log.error("no more connections can be taken", error=error.strerror, strangers=len(self))
        await asyncio.sleep(NO_ROOM_S)

    async def _welcome(
        self, stranger: _Stranger, connection: socket.socket, protocol: Callable[[], asyncio.Protocol], context: ssl.SSLContext
    ) -> None:
        loop = asyncio.get_running_loop()
        try:
            stranger.transport, _ = await loop.connect_accepted_socket(
                protocol, connection, ssl=context, ssl_handshake_timeout=PATIENCE_S
            )
        except OSError:  # no TLS, none that is spoken here, or it took too long: there is nobody to answer
            self._forget(stranger)

    def _remember(self, peer: Address) -> _Stranger:
        strangers = self._strangers.setdefault(peer[0], OrderedDict())
        while len(strangers) >= STRANGERS:
            self._send_away(next(iter(strangers.values())))
        stranger = strangers[peer] = _Stranger(peer)
        self._strangers[peer[0]] = strangers  # it goes with the last one
        stranger.timer = asyncio.get_running_loop().call_later(PATIENCE_S, self._send_away, stranger)
        return stranger

    def _send_away(self, stranger: _Stranger) -> None:
        self._forget(stranger)
        if isinstance(stranger.transport, asyncio.WriteTransport):
            stranger.transport.abort()
        elif stranger.arriving is not None:
            stranger.arriving.cancel()

    def _forget(self, stranger: _Stranger) -> None:
        if stranger.timer is not None:
            stranger.timer.cancel()
        strangers = self._strangers.get(stranger.peer[0], OrderedDict())
        if strangers.get(stranger.peer) is stranger:
            del strangers[stranger.peer]
            if not strangers:
                self._strangers.pop(stranger.peer[0], None)
