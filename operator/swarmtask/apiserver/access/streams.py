"""Open watches and what they were allowed by: they end when that ends.

Called by the application when a stream begins, and by the authorizer and the tokens when something was changed or revoked. Expiry
is looked at by `run`, which the application keeps going.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from swarmtask.apiserver.access.authorizer import Authorizer
from swarmtask.apiserver.access.rules import Attributes
from swarmtask.apiserver.access.tokens import Login
from swarmtask.apiserver.access.users import User
from swarmtask.clock import Clock

LOOK_S = 5.0
"""An expired token's streams end at most so much later."""


@dataclass(eq=False, slots=True)
class OpenStream:
    """One stream: who reads it (`user`; `login` may impersonate him), with which header, what it shows, how it is ended."""

    login: Login
    header: str
    user: User
    wanted: Attributes
    end: Callable[[], None]


class OpenStreams:
    """One per server. Streams of the administrator himself are not kept here: nothing ends what he may do."""

    def __init__(self, authenticate: Callable[[str], Login | None], authorizer: Authorizer, clock: Clock) -> None:
        self._authenticate, self._authorizer, self._clock = authenticate, authorizer, clock
        self._open: set[OpenStream] = set()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, stream: OpenStream) -> Callable[[], None]:
        """Keep an eye on a stream; returns what to call when it is over."""
        self._open.add(stream)
        return lambda: self._open.discard(stream)

    def check(self) -> None:
        """End every stream whose reader could not open it any more."""
        self._check(tuple(self._open))

    def _check(self, streams: Collection[OpenStream]) -> None:
        for stream in streams:
            login = self._authenticate(stream.header)
            if login is None or login.user != stream.login.user or not self._authorizer.allows(stream.user, stream.wanted):
                self._open.discard(stream)
                stream.end()

    async def run(self) -> None:
        """Look at expiry until cancelled."""
        while True:
            await self._clock.sleep(LOOK_S)
            self._check([item for item in self._open if item.login.expires_at is not None or item.login.credential])
