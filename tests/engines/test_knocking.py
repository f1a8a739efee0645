"""Which nodes that Swarm has lost have left it: they refuse a connection, again and again."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from swarmtask.clock import ManualClock
from swarmtask.engines.base import EngineNode, NodeState
from swarmtask.engines.swarm import knocking
from swarmtask.engines.swarm.knocking import EVERY_S, Knocking

DOWN = EngineNode("n1", "laptop", NodeState.DOWN, address="10.0.0.7")


class Doors:
    """Machines that refuse or are silent."""

    def __init__(self) -> None:
        self.refusing: set[str] = set()
        self.asked: list[str] = []

    async def __call__(self, address: str) -> bool:
        self.asked.append(address)
        return address in self.refusing


async def looked(knocks: Knocking, clock: ManualClock, *nodes: EngineNode) -> list[bool]:
    judged = knocks.judge(nodes)
    for _ in range(5):
        await asyncio.sleep(0)
    clock.advance(EVERY_S)
    return [node.left for node in judged]


async def test_a_node_has_left_when_it_refused_twice() -> None:
    clock, doors = ManualClock(), Doors()
    knocks = Knocking(clock, doors)
    doors.refusing.add("10.0.0.7")
    assert await looked(knocks, clock, DOWN) == [False]
    assert await looked(knocks, clock, DOWN) == [False]
    assert await looked(knocks, clock, DOWN) == [True]
    assert await looked(knocks, clock, replace(DOWN, state=NodeState.READY)) == [False]
    assert await looked(knocks, clock, DOWN) == [False], "it counts anew when it was back"
    knocks.close()


async def test_a_node_that_sleeps_has_not_left() -> None:
    clock, doors = ManualClock(), Doors()
    knocks = Knocking(clock, doors)
    for _ in range(6):
        assert await looked(knocks, clock, DOWN) == [False]
    doors.refusing.add("10.0.0.7")
    assert await looked(knocks, clock, DOWN) == [False]
    doors.refusing.clear()
    assert await looked(knocks, clock, DOWN) == [False]
    doors.refusing.add("10.0.0.7")
    assert await looked(knocks, clock, DOWN) == [False], "two refusals with silence between them are none in a row"
    assert await looked(knocks, clock, DOWN) == [False]
    assert await looked(knocks, clock, DOWN) == [True]
    knocks.close()


async def test_nobody_knocks_where_there_is_no_door_and_not_more_often_than_it_is_time() -> None:
    clock, doors = ManualClock(), Doors()
    knocks = Knocking(clock, doors)
    for address in ("", "0.0.0.0", "127.0.0.1", "not an address"):
        knocks.judge([replace(DOWN, address=address)])
    knocks.judge([replace(DOWN, is_manager=True), replace(DOWN, id="n2", state=NodeState.READY)])
    for _ in range(10):
        knocks.judge([replace(DOWN, id="n3")])
        await asyncio.sleep(0)
    assert doors.asked == ["10.0.0.7"]
    knocks.close()


async def test_a_closed_port_refuses_and_an_open_one_does_not() -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    before = knocking.SWARM_PORT
    try:
        knocking.SWARM_PORT = port
        assert await knocking.refuses("127.0.0.1") is False
        server.close()
        await server.wait_closed()
        assert await knocking.refuses("127.0.0.1") is True
    finally:
        knocking.SWARM_PORT = before
