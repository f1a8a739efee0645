"""The agent's loops on a clock that is moved by hand, against an API that is away, slow or has never heard of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from swarmtask.clock import ManualClock
from swarmtask.errors import Forbidden, NotFound, ServiceUnavailable
from swarmtask.nodeagent.agent import Agent, Identity, Object
from swarmtask.nodeagent.fence import Fence
from swarmtask.nodeagent.reading import Reading
from tests.nodeagent.test_report import FACTS, READING


class FakeApi:
    """One SwarmNode and one Lease."""

    def __init__(self) -> None:
        self.nodes: dict[str, Object] = {"laptop": {"metadata": {"name": "laptop", "uid": "u1"}, "status": {}}}
        self.engine_nodes = {("swarm", "n1"): "laptop"}
        self.away = False
        self.round_trip_s = 0.012
        self.renewals: list[tuple[str, str, int, str]] = []
        self.told: list[dict[str, Any]] = []
        self.asked = 0

    def _answer(self) -> None:
        if self.away:
            raise ServiceUnavailable("the API does not answer")

    async def node(self, name: str) -> Object:
        self._answer()
        if name not in self.nodes:
            raise NotFound(name)
        return self.nodes[name]

    async def node_uid(self, name: str) -> str:
        self.asked += 1
        return str((await self.node(name))["metadata"]["uid"])

    async def node_of_engine(self, engine: str, engine_node_id: str) -> Object | None:
        self._answer()
        name = self.engine_nodes.get((engine, engine_node_id))
        return None if name is None else self.nodes[name]

    async def tell(self, name: str, status: Mapping[str, Any]) -> Object:
        await self.node(name)
        self.told.append(dict(status))
        return self.nodes[name]

    async def renew(self, name: str, holder: str, duration_s: int, renew_time: str) -> float:
        self._answer()
        self.renewals.append((name, holder, duration_s, renew_time))
        return self.round_trip_s


class Machine:
    """A machine whose readings are set by hand, with an agent on it."""

    def __init__(self, identity: Identity | None = None, reading: Reading = READING) -> None:
        self.clock, self.api = ManualClock(), FakeApi()
        self.reading = reading
        self.attempts: list[Object] = []
        self.eviction: Object | None = None
        self.delivered: list[str] = []
        self.can_sweep = True
        self.sees = asyncio.Event()
        self.sees.set()
        self.sweeps: list[float] = []
        self.claims: list[tuple[bool, int]] = []
        self.fence = Fence(
            self.sweep, self.clock.boot_time, claimed=False,
            claim=lambda claimed: self.claims.append((claimed, len(self.api.renewals))),
        )  # fmt: skip
        self.agent = Agent(
            self.api, self.look, identity or Identity(engine="swarm", engine_node_id="n1"), self.fence,
            boot_id=self.reading.facts.boot_id, apart=self.look_apart, attempts=lambda: list(self.attempts),
            delivered=self.delivered.extend, eviction=lambda: self.eviction, clock=self.clock, rng=random.Random(1), version="9",
        )  # fmt: skip
        self._running: asyncio.Task[None] | None = None

    def look(self) -> Reading:
        return self.reading

    async def look_apart(self, look: Callable[[], Reading]) -> Reading:
        await self.sees.wait()
        return look()

    def sweep(self, kill_at: float) -> bool:
        self.sweeps.append(self.clock.boot_time())
        return self.can_sweep

    async def settle(self) -> None:
        for _ in range(30):
            await asyncio.sleep(0)

    async def start(self) -> None:
        self._running = asyncio.create_task(self.agent.run())
        await self.settle()

    async def pass_s(self, seconds: float) -> None:
        for _ in range(round(seconds * 4)):
            self.clock.advance(0.25)
            self.fence.tick()
            await self.settle()

    async def stop(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    def condition(self, kind: str) -> dict[str, Any]:
        return next(item for item in self.api.told[-1]["conditions"] if item["type"] == kind)


@pytest.fixture
async def machine() -> AsyncIterator[Machine]:
    machine = Machine()
    yield machine
    await machine.stop()


async def test_the_lease_is_renewed_every_two_seconds(machine: Machine) -> None:
    await machine.start()
    await machine.pass_s(10)
    assert len(machine.api.renewals) == 6
    assert {renewal[:3] for renewal in machine.api.renewals} == {("laptop", "boot-1", 20)}
    assert [renewal[3][17:19] for renewal in machine.api.renewals] == ["00", "02", "04", "06", "08", "10"]
    assert machine.fence.renewed_at == 10.0


async def test_whose_end_the_api_has_taken_is_said(machine: Machine) -> None:
    """So that nothing is forgotten that nobody has been told."""
    machine.api.away = True
    machine.attempts = [{"id": "st-1", "state": "Exited", "reason": ""}, {"id": "st-2", "state": "Running", "reason": ""}]
    await machine.start()
    await machine.pass_s(15)
    assert machine.delivered == []
    machine.api.away = False
    await machine.pass_s(15)
    assert machine.delivered
    assert set(machine.delivered) == {"st-1"}


async def test_a_look_that_does_not_end_costs_no_lease(machine: Machine) -> None:
    """A GPU that falls off its bus may hold up its driver for minutes; work on a node that is well must not be fenced for it."""
    machine.sees.clear()
    await machine.start()
    await machine.pass_s(60)
    assert len(machine.api.renewals) == 31
    assert (machine.api.told, machine.sweeps) == ([], [])
    machine.sees.set()
    await machine.pass_s(6)
    told = len(machine.api.told)
    assert told > 0
    machine.sees.clear()
    machine.reading = replace(READING, on_battery=True)
    machine.attempts = [{"id": "st-1", "state": "Exited", "reason": ""}]
    await machine.pass_s(8)
    assert [item["attempts"] for item in machine.api.told[told:]] == [machine.attempts], "ends are told with what was seen before"
    assert machine.condition("OnBattery")["status"] == "False"
    machine.sees.set()
    await machine.pass_s(8)
    assert machine.condition("OnBattery")["status"] == "True"


async def test_an_idle_machine_is_told_once_and_then_rarely(machine: Machine) -> None:
    await machine.start()
    await machine.pass_s(60)
    told = len(machine.api.told)
    assert told <= 2, "the latency is known only after the first renewal"
    assert machine.api.told[-1]["latencyMilliseconds"] == 12
    await machine.pass_s(300)
    assert len(machine.api.told) == told + 1


async def test_a_swarm_node_that_was_made_anew_is_told_all_once_more(machine: Machine) -> None:
    """What it was told went with the one before, and the operator counts on having been told within 20 s."""
    await machine.start()
    await machine.pass_s(60)
    machine.attempts = [{"id": "st-1", "state": "Exited"}]
    machine.agent.attempts_changed()
    await machine.pass_s(4)
    told, asked = len(machine.api.told), machine.api.asked
    machine.api.nodes["laptop"] = {"metadata": {"name": "laptop", "uid": "u2"}, "status": {}}
    await machine.pass_s(8)
    assert [item["attempts"] for item in machine.api.told[told:]] == [machine.attempts]
    await machine.pass_s(60)
    assert len(machine.api.told) == told + 1
    assert machine.api.asked - asked <= 68 / 5, "that costs a request, too"
    del machine.api.nodes["laptop"]
    await machine.pass_s(30)
    machine.api.nodes["laptop"] = {"metadata": {"name": "laptop", "uid": "u3"}, "status": {}}
    await machine.pass_s(8)
    assert [item["attempts"] for item in machine.api.told[told + 1 :]] == [machine.attempts]


async def test_news_is_told_at_once_but_never_more_often_than_every_three_seconds(machine: Machine) -> None:
    await machine.start()
    await machine.pass_s(20)
    told = len(machine.api.told)
    machine.reading = replace(READING, on_battery=True)
    await machine.pass_s(2)
    assert len(machine.api.told) == told + 1
    assert machine.condition("OnBattery")["status"] == "True"
    for number in range(40):
        machine.reading = replace(READING, on_battery=bool(number % 2))
        await machine.pass_s(0.5)
    assert len(machine.api.told) - told <= 1 + 20 / 3


async def test_transition_times_are_those_of_the_change(machine: Machine) -> None:
    await machine.start()
    await machine.pass_s(20)
    first = machine.condition("OnBattery")["lastTransitionTime"]
    machine.reading = replace(READING, battery_percent=50)
    await machine.pass_s(10)
    assert machine.condition("OnBattery")["lastTransitionTime"] == first
    machine.reading = replace(READING, on_battery=True)
    await machine.pass_s(10)
    assert machine.condition("OnBattery")["lastTransitionTime"] > first
    assert machine.condition("Hot")["lastTransitionTime"] == first


async def test_a_restarted_agent_changes_no_transition_time(machine: Machine) -> None:
    old = {"type": "OnBattery", "status": "False", "lastTransitionTime": "2025-01-01T00:00:00Z"}
    machine.api.nodes["laptop"]["status"] = {"conditions": [old, {**old, "type": "Hot", "status": "True"}]}
    await machine.start()
    await machine.pass_s(3)
    assert machine.condition("OnBattery")["lastTransitionTime"] == "2025-01-01T00:00:00Z"
    assert machine.condition("Hot")["lastTransitionTime"] > "2025-12-31", "it is not hot any more"


async def test_an_api_that_is_away_is_waited_for(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    await machine.start()
    await machine.pass_s(10)
    renewed, told = len(machine.api.renewals), len(machine.api.told)
    machine.api.away = True
    machine.reading = replace(READING, on_battery=True)
    await machine.pass_s(600)
    assert (len(machine.api.renewals), len(machine.api.told)) == (renewed, told)
    assert machine.fence.renewed_at == 10.0
    assert sum(record.levelname == "WARNING" for record in caplog.records) == 3, "the Lease, the status, the fence"
    machine.api.away = False
    await machine.pass_s(6)
    assert len(machine.api.renewals) > renewed
    assert machine.condition("OnBattery")["status"] == "True"


async def test_a_machine_that_the_operator_does_not_know_yet_waits(machine: Machine) -> None:
    machine.api.engine_nodes.clear()
    await machine.start()
    await machine.pass_s(30)
    assert machine.api.renewals == []
    machine.api.engine_nodes["swarm", "n1"] = "laptop"
    await machine.pass_s(6)
    assert machine.api.renewals[0][0] == "laptop"


async def test_a_named_node_is_waited_for_too() -> None:
    machine = Machine(Identity(name="desk"))
    await machine.start()
    await machine.pass_s(10)
    assert machine.api.renewals == []
    machine.api.nodes["desk"] = {"metadata": {"name": "desk"}}
    await machine.pass_s(6)
    assert machine.api.renewals[0][0] == "desk"
    await machine.stop()


async def test_a_restart_of_the_machine_shows_as_another_holder() -> None:
    machine = Machine(reading=replace(READING, facts=replace(FACTS, boot_id="boot-2")))
    await machine.start()
    assert machine.api.renewals[0][1] == "boot-2"
    await machine.stop()


# --- the fence's word ---


async def test_nobody_calls_the_api_before_the_fence_has_done_its_work(machine: Machine) -> None:
    await machine.start()
    await machine.pass_s(10)
    machine.can_sweep = False
    renewed, told = len(machine.api.renewals), len(machine.api.told)
    machine.clock.advance(600)  # the lid was closed; the API answers at once
    await machine.settle()
    machine.reading = replace(READING, on_battery=True)
    await machine.pass_s(30)
    assert machine.sweeps
    assert (len(machine.api.renewals), len(machine.api.told)) == (renewed, told)
    machine.can_sweep = True
    await machine.pass_s(6)
    assert len(machine.api.renewals) > renewed
    assert machine.condition("OnBattery")["status"] == "True"
    last = len(machine.sweeps)
    await machine.pass_s(30)
    assert len(machine.sweeps) == last, "the Lease is held again"


async def test_an_attempt_that_ended_is_told_sooner_than_other_news(machine: Machine) -> None:
    await machine.start()
    await machine.pass_s(20)
    told = len(machine.api.told)
    machine.attempts = [{"id": "st-1", "state": "Exited", "reason": "", "exitCode": 0}]
    machine.agent.attempts_changed()
    await machine.pass_s(1.5)
    assert len(machine.api.told) == told + 1
    assert machine.api.told[-1]["attempts"] == machine.attempts
    machine.attempts = [{**machine.attempts[0], "peakMemory": "5"}]
    await machine.pass_s(30)
    assert len(machine.api.told) == told + 1, "what it uses is no news"


async def test_a_wave_of_ends_is_not_a_wave_of_writes(machine: Machine) -> None:
    await machine.start()
    await machine.pass_s(20)
    told = len(machine.api.told)
    for number in range(40):
        machine.attempts = [*machine.attempts, {"id": f"st-{number}", "state": "Exited", "reason": "", "exitCode": 0}]
        machine.agent.attempts_changed()
        await machine.pass_s(0.25)
    await machine.pass_s(3)
    assert len(machine.api.told) - told <= 11
    assert len(machine.api.told[-1]["attempts"]) == 40


async def test_that_there_may_be_a_lease_is_kept_before_the_first_call_and_once(machine: Machine) -> None:
    machine.api.away = True
    await machine.start()
    await machine.pass_s(60)
    assert machine.claims == [], "it never reached the API"
    assert machine.sweeps == []
    machine.api.away = False
    await machine.pass_s(20)
    assert machine.claims == [(True, 0)]
    assert len(machine.api.renewals) > 3


async def test_a_token_that_may_not_hold_the_lease_fences_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object) -> float:
        raise Forbidden("leases are not for this token")

    monkeypatch.setattr(machine.api, "renew", refuse)
    await machine.start()
    await machine.pass_s(60)
    assert {claimed for claimed, _ in machine.claims} == {True, False}
    assert machine.sweeps == []


async def test_a_cry_for_help_is_told_in_a_moment_and_taken_back_as_soon(machine: Machine) -> None:
    await machine.start()
    await machine.pass_s(4)
    told = len(machine.api.told)
    machine.eviction = {"id": "st-1", "requestedAt": "2026-01-01T00:00:00Z"}
    machine.agent.eviction_changed()
    await machine.settle()
    assert [body.get("eviction") for body in machine.api.told[told:]] == [machine.eviction]
    machine.eviction = None
    machine.agent.eviction_changed()
    await machine.settle()
    assert "eviction" not in machine.api.told[-1]
    assert len(machine.api.told) == told + 2
