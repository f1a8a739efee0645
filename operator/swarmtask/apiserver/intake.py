"""Bodies of requests, from the wire into memory, and how much of them may be there at once.

Called by the application for each request that may have a body, once it is known whose it is. A body that is small costs a
comparison; of larger ones the bytes count that have come, as long as their request goes on: whoever opens many connections and lets
the last byte of each wait holds no more than his share. The administrator and the operator have no bound. Reads no content.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from swarmtask.apiserver.access.room import Visit
from swarmtask.apiserver.eager import within
from swarmtask.apiserver.pacing import is_exempt
from swarmtask.errors import BadRequest, RequestEntityTooLarge, SwarmTaskError, Timeout, TooManyRequests

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

DRAIN_LIMIT_BYTES = 64 * 2**20
"""How much of a body that is refused is still read (and thrown away), so that its sender gets to read the refusal."""
SMALL_BYTES = 16 * 1024
"""So large a body counts nothing: one for each connection that a user may have is less than two shares."""
SHARE_BYTES = 16 * 2**20
"""Of one user at once; at least four of the largest bodies."""
SHARES = 4
"""Of all users together."""
RETRY_AFTER_S = 2


class Intake:
    """One per server.

    Args:
        most_bytes: of one body.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._small_bytes = min(SMALL_BYTES, most_bytes)
        self._share = max(SHARE_BYTES, 4 * most_bytes)
        self._held: Counter[str] = Counter()
        self._total = 0

    @property
    def held_bytes(self) -> int:
        """Of all bodies that count now."""
        return self._total

    async def read(self, receive: Receive, visit: Visit, limit_s: float) -> bytes:
        """The whole body. What it counts is in `visit.held_bytes`, until `release`.

        Raises:
            Timeout: it did not come in time. BadRequest: nor will it. RequestEntityTooLarge. TooManyRequests: there is no room now.
        """
        try:
            return await within(limit_s, self._receive(receive, visit))
        except TimeoutError as error:
            raise Timeout(f"the body was not complete after {limit_s:g} s: send it again") from error

    def release(self, visit: Visit) -> None:
        """Its body counts no more; may be called more than once."""
        if not visit.held_bytes or visit.login is None:
            return
        name = visit.login.user.name
        self._held[name] -= visit.held_bytes
        self._total -= visit.held_bytes
        visit.held_bytes = 0
        if not self._held[name]:
            del self._held[name]

    async def _receive(self, receive: Receive, visit: Visit) -> bytes:
        chunks: list[bytes] = []
        size = 0
        refusal: SwarmTaskError | None = None
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise BadRequest("the client closed the connection before the body was complete")
            chunk: bytes = message.get("body", b"")
            size += len(chunk)
            if size > self._small_bytes and refusal is None and (refusal := self._problem(visit, size)) is not None:
                chunks.clear()
                self.release(visit)
            if refusal is None:
                chunks.append(chunk)
            elif size > DRAIN_LIMIT_BYTES:
                break
            if not message.get("more_body", False):
                break
            del message, chunk  # while it waits for the next piece, what was thrown away takes no memory
        if refusal is not None:
            raise refusal
        return b"".join(chunks)

    def _problem(self, visit: Visit, size: int) -> SwarmTaskError | None:
        """Count a body of which so many bytes are there; what is against it."""
        if size > self._most_bytes:
            return RequestEntityTooLarge(f"Request entity too large: limit is {self._most_bytes}")
        if visit.login is None or is_exempt(visit.login.user):
            return None
        name, more = visit.login.user.name, size - visit.held_bytes
        if self._held[name] + more > self._share:
            whose = f"{name} has requests with more than {self._share} bytes of bodies under way"
        elif self._total + more > SHARES * self._share:
            whose = f"requests with more than {SHARES * self._share} bytes of bodies are under way"
        else:
            self._held[name] += more
            self._total += more
            visit.held_bytes = size
            return None
        return TooManyRequests(f"{whose}: send large ones one after the other, and this one again", retry_after_s=RETRY_AFTER_S)
