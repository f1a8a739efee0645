"""Has a node that Swarm has lost left the swarm, or does it sleep? Swarm itself says `heartbeat failure` of both.

Called by `engine` with every node list. A machine in a swarm listens for the others on TCP port 7946; one that has left refuses the
connection, one that sleeps, is off or is far away says nothing. So only a refusal says that it has left, and only several in a row:
a Docker that starts anew refuses for a moment, too. Knocking goes on beside the lists and delays none of them.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

from swarmtask.clock import Clock
from swarmtask.engines.base import EngineNode, NodeState

SWARM_PORT = 7946
"""Source: Docker documentation, "Getting started with swarm mode" (open protocols and ports between the hosts)."""
EVERY_S = 4.0
TIMEOUT_S = 2.0
REFUSALS = 2
"""In a row, `EVERY_S` apart."""

Refuses = Callable[[str], Awaitable[bool]]


async def refuses(address: str) -> bool:
    """Whether the machine answers that nobody listens there."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            _, writer = await asyncio.open_connection(address, SWARM_PORT)
    except ConnectionRefusedError:
        return True
    except (OSError, TimeoutError):
        return False
    writer.close()
    return False


class Knocking:
    """See the module. One per engine, in one event loop."""

    def __init__(self, clock: Clock, refuses: Refuses = refuses) -> None:
        self._clock, self._refuses = clock, refuses
        self._refusals: dict[str, int] = {}
        self._next_at: dict[str, float] = {}
        self._under_way: set[asyncio.Task[None]] = set()

    def judge(self, nodes: Iterable[EngineNode]) -> tuple[EngineNode, ...]:
        """The nodes, those marked that have left. Knocks at the doors of lost ones where it is time to."""
        found = tuple(nodes)
        lost = {node.id: node for node in found if node.state is NodeState.DOWN and _can_be_asked(node)}
        for known in self._next_at.keys() - lost.keys():
            del self._next_at[known]
            self._refusals.pop(known, None)
        now = self._clock.monotonic()
        for node in lost.values():
            if now >= self._next_at.get(node.id, 0.0):
                self._next_at[node.id] = now + EVERY_S
                task = asyncio.create_task(self._knock(node.id, node.address))
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)
        return tuple(
            replace(node, left=True) if node.id in lost and self._refusals.get(node.id, 0) >= REFUSALS else node for node in found
        )

    async def _knock(self, node_id: str, address: str) -> None:
        refused = await self._refuses(address)
        if node_id in self._next_at:  # else it is back, or forgotten
            self._refusals[node_id] = self._refusals.get(node_id, 0) + 1 if refused else 0

    def close(self) -> None:
        for task in self._under_way:
            task.cancel()


def _can_be_asked(node: EngineNode) -> bool:
    """Not managers, which must be demoted before they leave, and no address that means this machine."""
    try:
        address = ipaddress.ip_address(node.address)
    except ValueError:
        return False
    return not (node.is_manager or address.is_loopback or address.is_unspecified)
