"""Connections, from their acceptance to the first request that says who sends it.

Called by `server`, which hands over its socket, and by the application, which tells who is known. A stranger costs a file and some
memory before anything can be asked of him, so he has little time, and of one address only so many wait at once: the newest, since
whoever has a token shows it within milliseconds. Whoever has shown one is counted by `guests`. Reads no request.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog

from swarmtask.apiserver.access.users import User
from swarmtask.apiserver.guests import Address, Connection, Guests, leave, shares
from swarmtask.apiserver.heads import BoundedHeads

log = structlog.get_logger(__name__)

PATIENCE_S = 10.0
"""From the first packet to the first request with valid credentials: the TLS handshake and the headers."""
STRANGERS = 256
"""Of one address at once."""
NO_ROOM_S = 0.1
"""When the process can open no more files, it tries again after this."""
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Door:
    """One per server. All methods belong to its event loop.

    Args:
        per_client: connections of one user who has shown a token.
        files: that this process may open.
    """

    def __init__(self, *, per_client: int, files: int) -> None:
        self.guests = Guests(per_client, files)
        self._most_strangers = shares(files)[2]
        self._connections: dict[Address, Connection] = {}
        self._strangers: OrderedDict[Connection, None] = OrderedDict()
        self._of_address: dict[str, OrderedDict[Connection, None]] = {}
        self._full = False

    def __len__(self) -> int:
        """Strangers."""
        return len(self._strangers)

    def known(self, client: Any, user: User) -> None:
        """A request of this connection had the valid credentials of `user`; `client` as ASGI names it.

        Raises:
            NoRoom: there are too many of them. It stays a stranger, and ends with the answer.
        """
        connection = self._connections.get((client[0], client[1])) if client is not None else None
        if connection is not None:
            self.guests.welcome(connection, user)
            self._forget_stranger(connection)

    async def admit(
        self, listener: socket.socket, protocol: Callable[[], BoundedHeads], context: ssl.SSLContext, backlog: int
    ) -> None:
        """Accept until cancelled; whose handshake is not done by then is sent away. The socket stays open."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        listener.listen(backlog)
        try:
            while True:
                try:
                    accepted, peer = await loop.sock_accept(listener)
                except OSError as error:
                    await self._no_room(error)
                    continue
                self._full = False
                connection = self._remember((peer[0], peer[1]))
                connection.arriving = loop.create_task(self._welcome(connection, accepted, protocol, context))
        finally:
            for connection in list(self._strangers):
                if connection.arriving is not None and not connection.arriving.done():
                    self._send_away(connection)

    async def _no_room(self, error: OSError) -> None:
        """Accepting has failed: because of one client, or because nothing more can be opened."""
        if error.errno not in _NO_ROOM:
            return
        if not self._full:
            self._full = True
            log.error("no more connections can be taken", error=error.strerror, strangers=len(self), others=len(self.guests))
        await asyncio.sleep(NO_ROOM_S)

    async def _welcome(
        self, connection: Connection, accepted: socket.socket, protocol: Callable[[], BoundedHeads], context: ssl.SSLContext
    ) -> None:
        def made() -> BoundedHeads:
            connection.protocol = protocol()
            connection.protocol.on_lost = partial(self._forget, connection)
            return connection.protocol

        try:
            await asyncio.get_running_loop().connect_accepted_socket(made, accepted, ssl=context, ssl_handshake_timeout=PATIENCE_S)
        except OSError:  # no TLS, none that is spoken here, or it took too long: there is nobody to answer
            self._forget(connection)

    def _remember(self, peer: Address) -> Connection:
        of_address = self._of_address.setdefault(peer[0], OrderedDict())
        while len(of_address) >= STRANGERS:
            self._send_away(next(iter(of_address)))
        while len(self._strangers) >= self._most_strangers:
            self._send_away(next(iter(self._strangers)))
        connection = self._connections[peer] = Connection(peer)
        self._of_address[peer[0]] = of_address  # it goes with the last one
        of_address[connection] = self._strangers[connection] = None
        connection.timer = asyncio.get_running_loop().call_later(PATIENCE_S, self._send_away, connection)
        return connection

    def _send_away(self, connection: Connection) -> None:
        self._forget(connection)
        transport = connection.protocol.transport if connection.protocol is not None else None
        if transport is not None:
            transport.abort()
        elif connection.arriving is not None:
            connection.arriving.cancel()

    def _forget(self, connection: Connection) -> None:
        """It has ended, or is about to."""
        self._forget_stranger(connection)
        leave(connection)
        if self._connections.get(connection.peer) is connection:
            del self._connections[connection.peer]

    def _forget_stranger(self, connection: Connection) -> None:
        if connection.timer is not None:
            connection.timer.cancel()
            connection.timer = None
        if connection in self._strangers:
            del self._strangers[connection]
            of_address = self._of_address[connection.peer[0]]
            del of_address[connection]
            if not of_address:
                del self._of_address[connection.peer[0]]
