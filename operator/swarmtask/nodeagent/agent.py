"""The node agent: renews this node's Lease, and tells its SwarmNode what has changed.

Called by `swarmtask node-agent`. Two loops that do not wait for each other: a Lease must be renewed in time however slow a write of
the status is. It decides nothing about placement, and it goes on for ever: an API that is away is normal here. Before every call of
the API it asks the fence, which says no while something may run here that must not.
"""

from __future__ import annotations

import asyncio
import logging
import random
import statistics
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from swarmtask.clock import Clock, format_micro_time, format_time
from swarmtask.errors import Forbidden, NotFound, SwarmTaskError, Unauthorized
from swarmtask.nodeagent.reading import Reading
from swarmtask.nodeagent.report import Condition, Outline, Sight, conditions, is_news, outline, status

logger = logging.getLogger(__name__)

Object = dict[str, Any]
FENCED_PAUSE_S = 0.2
"""While the fence says no, it is asked this often."""
LOOK_S = 2.0
"""A look that takes longer is not waited for."""
ROUND_TRIPS = 5
"""Latency is the median of so many renewals: one slow write is no distance."""


Look = Callable[[], Reading]


async def at_once(look: Look) -> Reading:
    """Look without leaving the loop's own thread."""
    return look()


class NodeApi(Protocol):
    """What the agent needs of its link."""

    async def node(self, name: str) -> Object: ...
    async def node_uid(self, name: str) -> str: ...
    async def node_of_engine(self, engine: str, engine_node_id: str) -> Object | None: ...
    async def tell(self, name: str, status: Mapping[str, Any]) -> Object: ...
    async def renew(self, name: str, holder: str, duration_s: int, renew_time: str) -> float: ...


class Permit(Protocol):
    """What the agent needs of its fence."""

    @property
    def renewed_at(self) -> float: ...
    def ask(self) -> float | None: ...
    def claim(self, asked_at: float) -> None: ...
    def refused(self) -> None: ...
    def renewed(self, asked_at: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Identity:
    """Which SwarmNode this machine is: its name, or how its engine calls it."""

    name: str = ""
    engine: str = ""
    engine_node_id: str = ""


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often things are done, in seconds.

    Attributes:
        lease_s: how long a Lease counts without being renewed (`fenceSeconds`).
        tell_at_least_s: the status is written this often though nothing has changed; tell_at_most_s: and never more often, unless
            an attempt has ended or begun: tell_attempts_s.
        same_node_s: it is looked so often whether the SwarmNode is still the one that was told, and not another of its name. What
            was told went with that one, and the operator counts on all of it within 20 s (`lifecycle.loss.RECORDS_S`).
        retry_s: the longest pause after a failure.
    """

    renew_s: float = 2.0
    lease_s: int = 20
    look_s: float = 2.0
    tell_at_most_s: float = 3.0
    tell_attempts_s: float = 1.0
    tell_at_least_s: float = 300.0
    same_node_s: float = 5.0
    retry_s: float = 5.0


class Agent:
    """See the module.

    Args:
        boot_id: of this boot of the machine; it holds the Lease.
        apart: takes a look where it holds nothing up: the driver of a GPU that has died may not answer for minutes, and the Lease
            must be renewed all the same.
        fence: knows when the Lease was renewed last, by the clock that counts the machine's sleep. Told the moment before the call,
            so that the API's own time of it is never earlier.
        attempts: what `status.attempts` shall say. delivered: told the IDs of those whose ends the API has taken.
        eviction: what `status.eviction` shall say, told at once when it changes.
    """

    def __init__(
        self,
        api: NodeApi,
        look: Look,
        identity: Identity,
        fence: Permit,
        *,
        boot_id: str,
        attempts: Callable[[], list[Object]],
        delivered: Callable[[Iterable[str]], None] = lambda ids: None,
        eviction: Callable[[], Object | None] = lambda: None,
        clock: Clock,
        rng: random.Random,
        version: str,
        rhythm: Rhythm | None = None,
        apart: Callable[[Look], Awaitable[Reading]] = at_once,
    ) -> None:
        self._api, self._look, self._identity, self._clock, self._rng = api, look, identity, clock, rng
        self._boot_id, self._apart, self._delivered = boot_id, apart, delivered
        self.name = ""
        """Of this machine's SwarmNode; empty until it is found."""
        self._looking: asyncio.Future[Reading] | None = None
        self._seen: Reading | None = None
        self._fence, self._attempts, self._eviction = fence, attempts, eviction
        self._urgent = False
        self._attempts_changed = asyncio.Event()
        self._version, self._rhythm = version, rhythm or Rhythm()
        self._round_trips: deque[float] = deque(maxlen=ROUND_TRIPS)
        self._since: dict[str, tuple[bool, str]] = {}
        self._told: tuple[Sight, dict[str, Condition], Outline, float] | None = None
        self._told_eviction: Object | None = None
        self._told_uid = ""
        self._same_until = 0.0

    async def run(self) -> None:
        """Until cancelled."""
        name = self.name = await self._find_itself()
        logger.info("this machine is SwarmNode %s", name)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_lease(name))
            group.create_task(self._keep_status(name))

    def attempts_changed(self) -> None:
        """Some attempt has begun or ended: tell it soon. From the loop's own thread."""
        self._attempts_changed.set()

    def eviction_changed(self) -> None:
        """Memory is short, or not any more: tell it now. From the loop's own thread."""
        self._urgent = True
        self._attempts_changed.set()

    async def _permitted(self) -> float:
        """Boot time before a call of the API, as soon as the fence allows one."""
        while (asked_at := self._fence.ask()) is None:
            await self._clock.sleep(FENCED_PAUSE_S)
        return asked_at

    # --- who am I ---

    async def _find_itself(self) -> str:
        failures = 0
        while True:
            try:
                name = await self._ask_name()
            except SwarmTaskError as error:
                failures += 1
                self._complain(failures, "find this machine's SwarmNode", error)
            else:
                if name is not None:
                    return name
                failures += 1
                self._complain(failures, "find this machine's SwarmNode", "the operator has not made it yet")
            await self._pause(failures)

    async def _ask_name(self) -> str | None:
        await self._permitted()
        who = self._identity
        if who.name:
            try:
                return str((await self._api.node(who.name))["metadata"]["name"])
            except NotFound:
                return None
        found = await self._api.node_of_engine(who.engine, who.engine_node_id)
        return None if found is None else str(found["metadata"]["name"])

    # --- the Lease ---

    async def _keep_lease(self, name: str) -> None:
        failures = 0
        while True:
            asked_at = await self._permitted()
            self._fence.claim(asked_at)
            try:
                took_s = await self._api.renew(name, self._boot_id, self._rhythm.lease_s, format_micro_time(self._clock.now()))
            except SwarmTaskError as error:
                failures += 1
                self._round_trips.clear()
                if isinstance(error, (Unauthorized, Forbidden)):
                    self._fence.refused()
                self._complain(failures, "renew the Lease", error)
            else:
                if failures:
                    logger.info("the Lease is renewed again")
                failures = 0
                self._fence.renewed(asked_at)
                self._round_trips.append(took_s)
            await self._clock.sleep(self._rhythm.renew_s)

    # --- the status ---

    async def _keep_status(self, name: str) -> None:
        failures = 0
        while True:
            try:
                await self._tell_news(name)
                failures = 0
            except SwarmTaskError as error:
                failures += 1
                self._complain(failures, "tell the status", error)
            await (self._pause(failures) if failures else self._until_news())

    async def _until_news(self) -> None:
        """The usual pause, or shorter when some attempt has begun or ended."""
        pause, news = (
            asyncio.ensure_future(self._clock.sleep(self._rhythm.look_s)),
            asyncio.ensure_future(self._attempts_changed.wait()),
        )
        try:
            await asyncio.wait((pause, news), return_when=asyncio.FIRST_COMPLETED)
        finally:
            pause.cancel()
            news.cancel()
        if self._attempts_changed.is_set():
            self._attempts_changed.clear()
            if not self._urgent:
                await self._clock.sleep(self._rhythm.tell_attempts_s)  # others of the same wave come with it
            self._urgent = False

    async def _tell_news(self, name: str) -> None:
        await self._permitted()
        await self._forget_another_node(name)
        sight = Sight(await self._see(), self._latency())
        attempts, eviction = self._attempts(), self._eviction()
        held = conditions(sight.reading, {kind: holds for kind, (holds, _) in self._since.items()})
        now = self._clock.monotonic()
        if self._told is not None and eviction == self._told_eviction:
            told, told_conditions, told_attempts, told_at = self._told
            pause_s = now - told_at
            moved = told_attempts != outline(attempts)
            if pause_s < (self._rhythm.tell_attempts_s if moved else self._rhythm.tell_at_most_s):
                return
            if pause_s < self._rhythm.tell_at_least_s and not moved and not is_news(told, sight, told_conditions, held):
                return
        if not self._since:
            self._since = _transitions(await self._api.node(name))
        body = status(sight, self._version) | {"conditions": self._conditions(held), "attempts": attempts}
        told_node = await self._api.tell(name, body if eviction is None else body | {"eviction": eviction})
        self._told_uid, self._same_until = str(told_node["metadata"].get("uid")), now + self._rhythm.same_node_s
        self._delivered(item["id"] for item in attempts if item["state"] == "Exited")
        self._told, self._told_eviction = (sight, held, outline(attempts), now), eviction

    async def _forget_another_node(self, name: str) -> None:
        """What was told counts for nothing where the SwarmNode was removed since, and made anew. Raises NotFound: not made yet."""
        now = self._clock.monotonic()
        if self._told is None or now < self._same_until:
            return
        if await self._api.node_uid(name) != self._told_uid:
            logger.info("SwarmNode %s was made anew: all is told once more", name)
            self._told = None
        self._same_until = now + self._rhythm.same_node_s

    async def _see(self) -> Reading:
        """A look at the machine; what was seen before when it takes too long: how attempts end must be told all the same."""
        looking = self._looking = self._looking or asyncio.ensure_future(self._apart(self._look))
        if self._seen is not None and not looking.done():
            patience = asyncio.ensure_future(self._clock.sleep(LOOK_S))
            try:
                await asyncio.wait((looking, patience), return_when=asyncio.FIRST_COMPLETED)
            finally:
                patience.cancel()
            if not looking.done():
                return self._seen
        try:
            self._seen = await looking
        finally:
            self._looking = None
        return self._seen

    def _latency(self) -> int | None:
        return round(1000 * statistics.median(self._round_trips)) if self._round_trips else None

    def _conditions(self, held: Mapping[str, Condition]) -> list[Object]:
        """With the times at which each began to hold, or not to."""
        now = format_time(self._clock.now())
        for kind, condition in held.items():
            known = self._since.get(kind)
            if known is None or known[0] != condition.holds:
                self._since[kind] = (condition.holds, now)
        return [
            {
                "type": kind, "status": "True" if condition.holds else "False", "reason": condition.reason,
                "message": condition.message, "lastTransitionTime": self._since[kind][1],
            }
            for kind, condition in held.items()
        ]  # fmt: skip

    # --- patience ---

    def _complain(self, failures: int, what: str, why: object) -> None:
        # The first failure of a row is told; an API that is away for a night fills no log.
        (logger.warning if failures == 1 else logger.debug)("cannot %s: %s; it is tried again", what, why)

    async def _pause(self, failures: int) -> None:
        """Full jitter, so that twenty laptops do not come back in one moment."""
        longest_s = min(self._rhythm.retry_s, 0.5 * 2 ** min(failures, 10))
        await self._clock.sleep(self._rng.uniform(0.1, longest_s))


def _transitions(node: Object) -> dict[str, tuple[bool, str]]:
    """What an agent that ran here before has told: a restart of the agent is no transition."""
    told = (node.get("status") or {}).get("conditions") or ()
    return {item["type"]: (item["status"] == "True", item["lastTransitionTime"]) for item in told}
