"""From the credential that all nodes share to a token of this node alone, kept on the disk and renewed.

Called by `__main__` where the agent was given such a credential. The token is made here and never leaves the machine before it is
used: the API is told its SHA-256. It lies in the agent's state directory, readable by its owner alone, so that an agent that starts
anew needs no other one. The API takes it back when the node leaves its engine; then the agent asks again, and ends where it is told
that it is another node by now: who it is is found out at its start.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import orjson

from swarmtask.clock import Clock, format_time
from swarmtask.errors import SwarmTaskError
from swarmtask.nodeagent.link import Link, Object
from swarmtask.resources.enrolment import LABEL_ENGINE_NODE, TOKEN_LIFE_S, engine_node

logger = logging.getLogger(__name__)

TOKEN_BYTES = 32
FILE = "own-token"
"""Beside the records of attempts, whose names end in `.json`."""
LONGEST_PAUSE_S = 10.0
SHORTEST_S = 30.0
"""Between two tokens at least, whatever clocks and the API say."""


class AnotherNode(Exception):
    """The API knows this machine as another SwarmNode than before: the agent has to start anew."""


@dataclass(frozen=True, slots=True)
class Own:
    """A token of this node.

    Attributes:
        node: the SwarmNode. ends_at: seconds since the epoch, by this machine's clock when it was made.
    """

    node: str
    token: str
    ends_at: float


@dataclass(frozen=True, slots=True)
class Place:
    """What the token belongs to: another API, or another node of the engine, needs another one.

    Attributes:
        authority: the API's certificates, PEM.
        folder: of the agent's state, where the token is kept.
    """

    engine: str
    engine_node_id: str
    authority: str
    folder: Path

    @property
    def mark(self) -> str:
        return hashlib.sha256("\0".join((self.engine, self.engine_node_id, self.authority)).encode()).hexdigest()


class Enrolment:
    """See the module.

    Args:
        shared: a link with the credential that all nodes share. own: the one that the agent works with.
        may_call: the fence's word: no call of the API while it says no.
    """

    def __init__(
        self, shared: Link, own: Link, place: Place, *, may_call: Callable[[], bool], clock: Clock, rng: random.Random
    ) -> None:
        self._shared, self._own, self._place, self._path = shared, own, place, place.folder / FILE
        self._may_call, self._clock, self._rng = may_call, clock, rng
        self._node = ""

    async def enter(self) -> Own:
        """A token that is good for a while yet, from the disk or a new one; the agent's link uses it then. Waits for the API."""
        held = self._read()
        if held is None or self._left_s(held) < TOKEN_LIFE_S / 3:
            held = await self._make()
        self._node = held.node
        self._own.use(held.token)
        return held

    async def keep(self, held: Own) -> None:
        """Renew it when two thirds of its life are over, or when the API does not take it any more. Until cancelled.

        Raises:
            AnotherNode: see there.
        """
        while True:
            await self._until_due(max(SHORTEST_S, self._left_s(held) - TOKEN_LIFE_S / 3))
            held = await self._make()
            if held.node != self._node:
                raise AnotherNode(f"this machine was SwarmNode {self._node} and is {held.node} now")
            self._own.use(held.token)
            await self._clock.sleep(SHORTEST_S)

    async def _until_due(self, seconds: float) -> None:
        sleep, refused = (
            asyncio.ensure_future(self._clock.sleep(seconds)),
            asyncio.ensure_future(self._own.refused.wait()),
        )
        try:
            await asyncio.wait((sleep, refused), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
            refused.cancel()

    def _left_s(self, held: Own) -> float:
        return held.ends_at - self._clock.now().timestamp()

    async def _make(self) -> Own:
        """A new token, as soon as the API makes one."""
        failures = 0
        while True:
            if self._may_call():
                try:
                    made = await self._ask()
                except SwarmTaskError as error:
                    failures += 1
                    (logger.warning if failures == 1 else logger.debug)(
                        "cannot get a token of this node: %s; it is tried again", error
                    )
                else:
                    if made is not None:
                        self._write(made)
                        logger.info("got a token of SwarmNode %s", made.node)
                        return made
                    failures += 1
                    if failures == 1:
                        logger.info("the operator has not made this machine's SwarmNode yet")
            await self._clock.sleep(self._rng.uniform(0.2, min(LONGEST_PAUSE_S, 0.5 * 2 ** min(failures, 8))))

    async def _ask(self) -> Own | None:
        place = self._place
        found: Object | None = await self._shared.node_of_engine(place.engine, place.engine_node_id)
        if found is None:
            return None
        node, token = str(found["metadata"]["name"]), secrets.token_urlsafe(TOKEN_BYTES)
        ends = self._clock.now() + timedelta(seconds=TOKEN_LIFE_S)
        labels = {LABEL_ENGINE_NODE: engine_node(place.engine, place.engine_node_id)}
        await self._shared.make_token(node, labels, hashlib.sha256(token.encode()).hexdigest(), format_time(ends))
        return Own(node, token, ends.timestamp())

    # --- the disk ---

    def _read(self) -> Own | None:
        """What was kept, if it belongs here; anything else is as good as nothing."""
        try:
            kept = orjson.loads(self._path.read_bytes())
            if kept["mark"] != self._place.mark:
                return None
            return Own(str(kept["node"]), str(kept["token"]), float(kept["endsAt"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("cannot read %s: %s; a new token is made", self._path, error)
            return None

    def _write(self, own: Own) -> None:
        """At no moment can anybody else read it. A disk that is full costs a token at the next start, nothing else."""
        body = orjson.dumps({"mark": self._place.mark, "node": own.node, "token": own.token, "endsAt": own.ends_at})
        draft = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                draft.unlink()
            logger.warning("cannot keep the token of this node in %s: %s", self._path, error)
