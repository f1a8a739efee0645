"""A whole operator: what people say of nodes, that is drains, quiet hours, charge, what they keep for themselves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from swarmtask.controllers.cache import Cache
from swarmtask.kube import Object
from swarmtask.lifecycle.messages import Drain
from swarmtask.resources.kinds import SWARM_NODE
from tests.controllers.world import World, running
from tests.fakes.engine import Outcome

ENDLESS = Outcome(duration_s=None)


def condition(world: World, node: str, type_: str) -> tuple[str, str, str] | None:
    """(status, reason, message)."""
    for one in (world.node(node).get("status") or {}).get("conditions") or []:
        if one["type"] == type_:
            return one["status"], one["reason"], one["message"]
    return None


def phase(world: World, node: str) -> tuple[str, str | None]:
    status: Object = world.node(node).get("status") or {}
    return status.get("phase", ""), status.get("message")


async def joined(world: World, *names: str) -> None:
    await world.until(lambda: all(world.kube.peek(SWARM_NODE, name) and phase(world, name)[0] == "Ready" for name in names))


def wish(world: World, node: str, **spec: Any) -> None:
    world.kube.edit(SWARM_NODE, node, None, {"spec": spec})


def message(world: World, name: str) -> str:
    return world.task(name).status.message or ""


# --- drain ---


async def test_a_drained_node_becomes_empty_and_its_work_goes_on_elsewhere() -> None:
    async with running(World("n1", "n2")) as world:
        await joined(world, "n1", "n2")
        for number in range(4):
            world.engine.script(f"t{number}", Outcome(duration_s=60))
            world.add_task(f"t{number}")
        await world.until(lambda: list(world.phases().values()) == ["Running"] * 4)
        moved = [f"t{number}" for number in range(4) if world.task(f"t{number}").status.node_name == "n1"]
        assert moved
        wish(world, "n1", drain=True)
        await world.until(lambda: phase(world, "n1")[0] == "Draining")
        await world.until(lambda: condition(world, "n1", "Drained") == ("True", "Drained", "nothing of SwarmTask runs here"))
        assert phase(world, "n1") == ("Draining", "drained: nothing of SwarmTask runs here, and nothing starts")
        await world.until(lambda: all(world.task(name).status.node_name == "n2" for name in moved))
        for name in moved:
            status = world.task(name).status
            assert (status.attempts[0].reason, status.failures, status.infrastructure_losses) == ("Drained", 0, 0)
        assert world.node("n1")["spec"].get("unschedulable") in (None, False), "a drain is no cordon"
        wish(world, "n1", drain=None)
        await joined(world, "n1")
        assert condition(world, "n1", "Drained") is None
        await world.until(lambda: set(world.phases().values()) == {"Succeeded"}, 300)


async def test_while_attempts_are_left_the_node_says_how_many() -> None:
    async with running(World("n1")) as world:
        world.engine.script("stubborn", Outcome(duration_s=None, honours_term=False))
        world.add_task("stubborn", terminationGracePeriodSeconds=20)
        await world.until(lambda: world.phase("stubborn") == "Running")
        wish(world, "n1", drain=True)
        await world.until(lambda: phase(world, "n1") == ("Draining", "being drained: 1 attempt left"))
        assert condition(world, "n1", "Drained") == ("False", "Draining", "1 attempt left")
        assert message(world, "stubborn") == "stopping attempt 1 on n1: n1 is being drained"
        await world.until(lambda: world.phase("stubborn") == "Queued")
        await world.until(lambda: message(world, "stubborn") == "0/1 node fits: 1 drained")
        await world.until(lambda: (condition(world, "n1", "Drained") or ("",))[0] == "True")
        generation = world.node("n1")["metadata"]["generation"]
        (one,) = [one for one in world.node("n1")["status"]["conditions"] if one["type"] == "Drained"]
        assert one["observedGeneration"] == generation
        wish(world, "n1", drain=False)
        await world.until(lambda: world.phase("stubborn") == "Running")


async def test_a_placement_that_crosses_the_drain_is_taken_back() -> None:
    async with running(World("n1", "n2")) as world:
        await joined(world, "n1", "n2")
        world.kube.edit(SWARM_NODE, "n2", None, {"spec": {"unschedulable": True}})
        world.engine.script("late", ENDLESS)
        world.add_task("late")
        await world.until(lambda: world.task("late").status.attempt == 1)
        assert world.phase("late") == "Starting"
        wish(world, "n1", drain=True)
        wish(world, "n2", unschedulable=False)
        await world.until(lambda: world.phase("late") == "Running" and world.task("late").status.node_name == "n2")
        await world.until(lambda: (condition(world, "n1", "Drained") or ("",))[0] == "True")


async def test_a_drain_survives_the_death_of_the_operator() -> None:
    async with running(World("n1", "n2")) as world:
        await joined(world, "n1", "n2")
        for number in range(3):
            world.engine.script(f"t{number}", Outcome(duration_s=40))
            world.add_task(f"t{number}", placement={"nodeSelector": {"swarmtask.io/hostname": "n1"}})
        await world.until(lambda: list(world.phases().values()) == ["Running"] * 3)
        await world.crash()
        wish(world, "n1", drain=True)
        await world.start(wait=False)
        await world.until(lambda: "Drained" in {world.task(f"t{number}").status.reason for number in range(3)})
        await world.crash()
        await world.start()
        await world.until(lambda: (condition(world, "n1", "Drained") or ("",))[0] == "True")
        assert list(world.phases().values()) == ["Queued"] * 3
        wish(world, "n1", drain=False)
        await world.until(lambda: set(world.phases().values()) == {"Succeeded"}, 300)
        assert {world.task(f"t{number}").status.failures for number in range(3)} == {0}


async def test_a_node_that_does_not_answer_is_drained_when_it_is_back() -> None:
    async with running(World("n1", vanish_grace_s=600.0)) as world:
        world.engine.script("away", ENDLESS)
        world.add_task("away")
        await world.until(lambda: world.phase("away") == "Running")
        world.engine.freeze("n1")
        await world.until(lambda: world.phase("away") == "Unknown")
        wish(world, "n1", drain=True)
        await world.until(lambda: (condition(world, "n1", "Drained") or ("",))[0] == "False")
        await world.pass_time(5)
        current = world.task("away").status.current
        assert current is not None
        assert current.stop_reason != "Drained", "nobody could see it stop"
        world.engine.reconnect("n1")
        await world.until(lambda: (condition(world, "n1", "Drained") or ("",))[0] == "True", 300)


async def test_who_thinks_better_of_it_stops_nothing_more() -> None:
    async with running(World("n1")) as world:
        world.engine.script("stays", ENDLESS)
        world.add_task("stays")
        await world.until(lambda: world.phase("stays") == "Running")
        assert world.operator is not None
        cache: Cache = world.operator.cache
        assert not cache.drains("n1")
        assert not cache.drains("elsewhere")
        world.operator.executor.offer(("default", "stays"), world.task("stays").metadata.uid, Drain(1, "n1"))
        await world.pass_time(3)
        assert (world.phase("stays"), world.task("stays").status.reason) == ("Running", None)


# --- quiet hours ---

NIGHT = {"time_zone": "Europe/Berlin"}


@pytest.mark.slow
async def test_in_quiet_hours_nothing_starts_and_what_runs_goes_on() -> None:
    async with running(World("n1", **NIGHT)) as world:  # it is Thursday 01:00 in Berlin
        await joined(world, "n1")
        world.engine.script("early", Outcome(duration_s=None))
        world.add_task("early")
        await world.until(lambda: world.phase("early") == "Running")
        wish(world, "n1", quietHours="22:00-01:02")
        world.add_task("late")
        await world.until(lambda: message(world, "late") == "0/1 node fits: 1 in quiet hours until Thu 01:02 CET")
        words = "quiet hours: no new attempts until Thu 01:02 CET"
        await world.until(lambda: condition(world, "n1", "QuietHours") == ("True", "QuietHours", words))
        assert phase(world, "n1") == ("Ready", words)
        assert world.phase("early") == "Running"
        await world.until(lambda: world.phase("late") == "Running")
        assert timedelta(0) <= world.clock.now() - datetime(2026, 1, 1, 0, 2, tzinfo=UTC) < timedelta(seconds=5), "woken in time"
        await world.until(lambda: condition(world, "n1", "QuietHours") == ("False", "Open", "no new attempts from Thu 22:00 CET"))
        assert phase(world, "n1") == ("Ready", None)
        wish(world, "n1", quietHours="")
        await world.until(lambda: condition(world, "n1", "QuietHours") is None)


async def test_quiet_hours_begin_by_themselves() -> None:
    async with running(World("n1", "n2", **NIGHT)) as world:
        await joined(world, "n1", "n2")
        wish(world, "n2", drain=True)
        wish(world, "n1", quietHours="Thu 01:01-23:00")
        await world.until(lambda: (condition(world, "n1", "QuietHours") or ("",))[0] == "True", 90)
        assert timedelta(0) <= world.clock.now() - datetime(2026, 1, 1, 0, 1, tzinfo=UTC) < timedelta(seconds=5)
        world.add_task("late")
        words = "0/2 nodes fit: 1 in quiet hours until Thu 23:00 CET, 1 drained"
        await world.until(lambda: message(world, "late") == words)


async def test_quiet_hours_that_are_edited_count_at_once() -> None:
    async with running(World("n1", **NIGHT)) as world:
        await joined(world, "n1")
        wish(world, "n1", quietHours="00:00-24:00")
        world.add_task("waits")
        await world.until(lambda: message(world, "waits") == "0/1 node fits: 1 in quiet hours without an end")
        words = "quiet hours without an end: no new attempts"
        await world.until(lambda: condition(world, "n1", "QuietHours") == ("True", "QuietHours", words))
        wish(world, "n1", quietHours="03:00-04:00")
        await world.until(lambda: world.phase("waits") == "Succeeded")


# --- charge and reserve ---


async def test_a_node_with_too_little_charge_takes_nothing_until_it_is_charged() -> None:
    async with running(World("n1")) as world:
        await joined(world, "n1")

        def power(on_battery: bool, percent: int | None) -> None:
            report = {"onBattery": on_battery, "percent": percent}
            world.kube.edit(SWARM_NODE, "n1", None, {"status": {"power": report}}, status=True)

        power(True, 19)
        world.add_task("waits", placement={"onBattery": "allow"})
        words = "0/1 node fits: 1 on battery with too little charge (19%, needs 20%)"
        await world.until(lambda: message(world, "waits") == words)
        wish(world, "n1", minBatteryPercent=19)
        await world.until(lambda: world.phase("waits") == "Succeeded")
        wish(world, "n1", minBatteryPercent=None)
        world.add_task("mains", placement={"onBattery": "allow"})
        await world.until(lambda: message(world, "mains") == words)
        power(False, 19)
        await world.until(lambda: world.phase("mains") == "Succeeded")


async def test_what_the_owner_keeps_counts_at_once_and_is_shown() -> None:
    async with running(World("n1")) as world:
        await joined(world, "n1")
        before = world.node("n1")["status"]
        wish(world, "n1", reserved={"cpu": "3", "memory": "1Gi"})
        world.add_task("large", cpu="2")
        await world.until(lambda: "1 too little CPU (needs 2, most free 1; never fits: it offers 1)" in message(world, "large"))
        await world.until(lambda: world.node("n1")["status"]["allocatable"]["cpu"] == "1")
        assert world.node("n1")["status"]["capacity"] == before["capacity"]
        wish(world, "n1", reserved={"cpu": "64", "memory": "1Ti"})
        await world.until(lambda: world.node("n1")["status"]["allocatable"] == {"cpu": "0", "memory": "0", "gpu": 0})
        wish(world, "n1", reserved=None, unschedulable=True)
        await world.until(lambda: world.node("n1")["status"]["allocatable"] == before["allocatable"])
        wish(world, "n1", unschedulable=False)
        await world.until(lambda: world.phase("large") == "Succeeded")
