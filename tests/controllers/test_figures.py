"""Throughput and waits of queues: what counts, what is forgotten, and when it is written."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmtask.clock import ManualClock, format_time
from swarmtask.controllers.cache import Cache
from swarmtask.controllers.figures import WAITS, Figures, Reading, percentile
from swarmtask.kube import Object
from swarmtask.resources.kinds import SWARM_QUEUE, SWARM_TASK
from tests.controllers.world import World, running
from tests.fakes.engine import Outcome

QUEUE = ("default", "default")
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


class Tasks:
    """A cache that is told of tasks, and its figures."""

    def __init__(self) -> None:
        self.clock = ManualClock(BEGIN)
        self.figures = Figures(self.clock)
        self.cache = Cache()
        self.cache.witnesses.append(self.figures.note)
        self._version = 0

    def put(self, name: str, phase: str = "Running", uid: str = "", **moments_s: float | None) -> Object:
        """`queued`, `start`, `completion`: seconds after the beginning."""
        self._version += 1
        status: dict[str, Any] = {"phase": phase}
        for field, moment_s in moments_s.items():
            if moment_s is not None:
                status[f"{field}Time"] = format_time(BEGIN + timedelta(seconds=moment_s))
        body = {
            "apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmTask",
            "metadata": {"name": name, "namespace": "default", "uid": uid or name, "resourceVersion": str(self._version)},
            "spec": {"container": {"image": "busybox"}}, "status": status,
        }  # fmt: skip
        self.cache.apply(SWARM_TASK, body)
        return body

    def read(self) -> Reading:
        """`changes_at` in seconds after the beginning."""
        found = self.figures.read(QUEUE)
        return replace(found, changes_at=None if found.changes_at is None else found.changes_at - BEGIN.timestamp())


def test_nothing_happened() -> None:
    assert Tasks().read() == Reading()


def test_waits_and_ends_count_once_however_often_they_are_told() -> None:
    tasks = Tasks()
    tasks.clock.advance(100)
    for _ in range(3):
        tasks.put("a", queued=0, start=30)
    for phase in ("Succeeded", "Succeeded"):
        tasks.put("a", phase, queued=0, start=30, completion=90)
    assert tasks.read() == Reading(0.1, 30, 30, 690)


def test_what_never_ran_is_no_throughput_and_no_wait() -> None:
    tasks = Tasks()
    tasks.put("cancelled", "Cancelled", queued=0, completion=5)
    tasks.put("expired", "Expired", queued=0, completion=5)
    assert tasks.read() == Reading()


def test_only_the_first_start_of_a_budget_is_a_wait() -> None:
    tasks = Tasks()
    tasks.clock.advance(100)
    tasks.put("a", queued=0, start=10)
    tasks.put("a", "Queued", queued=50, start=10)  # it failed and is queued again
    tasks.put("a", queued=50, start=10)
    tasks.put("read after a restart", queued=50, start=10)
    assert tasks.read().wait_p99_s == 10


def test_another_task_of_the_same_name_is_another_one() -> None:
    tasks = Tasks()
    tasks.clock.advance(100)
    tasks.put("a", "Succeeded", uid="1", queued=0, start=30, completion=90)
    tasks.put("a", "Succeeded", uid="2", queued=0, start=30, completion=90)
    assert tasks.read().throughput_per_minute == 0.2


def test_windows_pass_and_leave_nothing() -> None:
    tasks = Tasks()
    tasks.clock.advance(60)
    for number in range(30):
        tasks.put(f"t{number}", "Failed", queued=0, start=number, completion=60)
    assert tasks.read() == Reading(3.0, 14, 29, 660)
    tasks.clock.advance(600)
    assert tasks.read() == Reading(0.0, 14, 29, 3600)
    tasks.clock.advance(2950)
    assert tasks.read() == Reading(0.0, 20, 29, 3611)
    tasks.clock.advance(100)
    assert tasks.read() == Reading()
    assert not tasks.figures._queues


def test_what_was_long_ago_when_it_is_read_is_left_out() -> None:
    tasks = Tasks()
    tasks.clock.advance(7200)
    tasks.put("old", "Succeeded", queued=0, start=10, completion=20)
    assert tasks.read() == Reading()


def test_a_clock_that_was_set_back_leaves_nothing_for_ever() -> None:
    tasks = Tasks()
    tasks.put("ahead", "Succeeded", queued=0, start=86_400, completion=90_000)
    tasks.clock.advance(3601)
    assert tasks.read() == Reading()


def test_memory_is_bounded() -> None:
    tasks = Tasks()
    tasks.clock.advance(3000)
    for number in range(WAITS + 100):
        tasks.put(f"t{number % 7}", uid=str(number), queued=0, start=number / 2, completion=None)
    assert len(tasks.figures._queues[QUEUE].waits) == WAITS
    assert tasks.read().wait_p50_s is not None


@given(st.lists(st.integers(0, 1000), min_size=1), st.sampled_from([50, 99]))
def test_a_percentile_is_one_of_the_values_and_enough_are_no_larger(values: list[int], percent: int) -> None:
    ordered = sorted(values)
    found = percentile(ordered, percent)
    assert found in values
    assert sum(value <= found for value in values) * 100 >= percent * len(values)
    assert sum(value < found for value in values) * 100 < percent * len(values)


@pytest.mark.parametrize("percent", [50, 99])
def test_a_percentile_of_nothing(percent: int) -> None:
    assert percentile([], percent) is None


def status_of(world: World, name: str = "default") -> Object:
    return (world.kube.peek(SWARM_QUEUE, name, "default") or {}).get("status") or {}


def queue_writes(world: World, since: int) -> int:
    return len([call for call in list(world.kube.calls)[since:] if call.kind == "SwarmQueue" and call.verb == "patch"])


@pytest.mark.slow
async def test_the_status_of_a_queue_shows_figures_that_age_and_come_to_rest() -> None:
    async with running(World("n1", status_refresh_s=1.0)) as world:
        for number in range(12):
            world.engine.script(f"t{number}", Outcome(duration_s=10))
            world.add_task(f"t{number}")
        await world.until(lambda: set(world.phases().values()) == {"Succeeded"}, 300)
        await world.until(lambda: status_of(world).get("throughputPerMinute") == 1.2)
        assert 0 <= status_of(world)["waitSecondsP50"] <= status_of(world)["waitSecondsP99"] <= 30
        since = len(world.kube.calls)
        await world.until(lambda: status_of(world).get("throughputPerMinute") == 0, 700)
        assert queue_writes(world, since) <= 3, "twelve ends within half a minute"
        world.clock.advance(3600)
        await world.until(lambda: "waitSecondsP50" not in status_of(world))
        await world.pass_time(5)
        since = len(world.kube.calls)
        await world.pass_time(60)
        assert queue_writes(world, since) == 0
        assert world.operator is not None
        assert world.operator._queues._due is None, "nothing is looked at again for the sake of time"


async def test_figures_are_the_same_after_a_restart() -> None:
    async with running(World("n1")) as world:
        for number in range(6):
            world.add_task(f"t{number}")
        await world.until(lambda: status_of(world).get("throughputPerMinute") == 0.6)
        before, since = status_of(world), len(world.kube.calls)
        await world.stop()
        await world.start()
        await world.pass_time(5)
        assert status_of(world) == before
        assert queue_writes(world, since) == 0
