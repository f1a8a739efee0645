"""Connections whose senders have shown a valid token: how many each of them, and all of them, may keep open.

Called by the `door`. A connection costs a file and about 50 kB, used or not, and most programs keep theirs. Where one
too many comes, the one that has been idle for longest makes room, as HTTP allows at any time; where all are in use, the newcomer is
refused. The administrator and the operator are not counted against the others, nor the others against them.
"""

from __future__ import annotations

import asyncio
import resource
from collections import OrderedDict
from dataclasses import dataclass

from swarmtask.apiserver.access.users import User
from swarmtask.apiserver.heads import BoundedHeads
from swarmtask.apiserver.pacing import is_exempt
from swarmtask.errors import TooManyRequests

MOST_FILES = 65_536
ALL_CLIENTS = 12_000
"""Of all users together, if the system lets this process open files enough."""
KEEPERS = 4_000
"""Of the administrator and the operator together, likewise."""
RETRY_AFTER_S = 5
LEAVING = 64
"""Of one room: they were asked to go and still take their last answer, for which TLS gives them 30 s."""
Address = tuple[str, int]


class NoRoom(TooManyRequests):
    """One connection too many; it ends with this answer."""


@dataclass(slots=True, eq=False)
class Connection:
    """One, from its acceptance to its end.

    Attributes:
        arriving: its handshake. protocol: made by then.
        timer: sends it away, as long as nobody knows whose it is.
        room: that it was let into.
    """

    peer: Address
    arriving: asyncio.Task[None] | None = None
    protocol: BoundedHeads | None = None
    timer: asyncio.TimerHandle | None = None
    room: _Room | None = None


class _Room:
    """The connections of one user, or of all keepers; the one whose last request is longest ago first. `leaving` count no more."""

    def __init__(self, name: str, most: int) -> None:
        self.name, self.most = name, most
        self.connections: OrderedDict[Connection, None] = OrderedDict()
        self.leaving: OrderedDict[Connection, None] = OrderedDict()

    def make_room(self) -> bool:
        """Close the connection that is idle for longest. False: all are in use."""
        for connection in self.connections:
            if connection.protocol is not None and connection.protocol.idle:
                del self.connections[connection]
                self.leaving[connection] = None
                connection.protocol.transport.close()
                break
        else:
            return False
        if len(self.leaving) > LEAVING:
            late, _ = self.leaving.popitem(last=False)
            if late.protocol is not None:
                late.protocol.transport.abort()
        return True


class Guests:
    """One per server.

    Args:
        per_client: connections of one user.
        files: that this process may open; see `shares`.
    """

    def __init__(self, per_client: int, files: int) -> None:
        self._all_clients, keepers, _ = shares(files)
        self._per_client = min(per_client, self._all_clients)
        self._keepers = _Room("the administrators", keepers)
        self._clients: dict[str, _Room] = {}

    def __len__(self) -> int:
        return len(self._keepers.connections) + self._count()

    def _count(self) -> int:
        return sum(len(room.connections) for room in self._clients.values())

    def welcome(self, connection: Connection, user: User) -> None:
        """A request of `user` has come over a connection: a new one, or one that has been here for long.

        Raises:
            NoRoom: he has too many, or all have; none of them is idle.
        """
        room = self._keepers if is_exempt(user) else self._clients.get(user.name)
        if room is not None and connection in room.connections:
            room.connections.move_to_end(connection)
            return
        if room is None:
            self._clients = {name: kept for name, kept in self._clients.items() if kept.connections or kept.leaving}
            room = self._clients[user.name] = _Room(user.name, self._per_client)
        leave(connection)
        if len(room.connections) >= room.most and not room.make_room():
            raise NoRoom(
                f"{room.name} may not have more than {room.most} connections open at once, and all of them are in use: "
                "close some, or send requests over one connection",
                retry_after_s=RETRY_AFTER_S,
            )
        if room is not self._keepers and self._count() >= self._all_clients:
            largest = max(self._clients.values(), key=lambda one: len(one.connections))
            if not largest.make_room():
                raise NoRoom(
                    f"{self._all_clients} connections are open, which is all that this server takes, and they are in use: "
                    "try again later",
                    retry_after_s=RETRY_AFTER_S,
                )
        connection.room = room
        room.connections[connection] = None


def leave(connection: Connection) -> None:
    """It counts no more."""
    if connection.room is not None:
        connection.room.connections.pop(connection, None)
        connection.room.leaving.pop(connection, None)
        connection.room = None


def shares(files: int) -> tuple[int, int, int]:
    """How many connections of clients, of keepers and of strangers there is room for; the rest of the files is for the server."""
    return min(ALL_CLIENTS, files * 9 // 16), min(KEEPERS, files * 3 // 16), min(KEEPERS, files // 8)


def use_all_files() -> None:
    """Let this process open as many files as it may at all, `MOST_FILES` at most: every connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def files_allowed() -> int:
    """How many files this process may open; `MOST_FILES` where nothing bounds them."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_FILES if soft == resource.RLIM_INFINITY else soft
