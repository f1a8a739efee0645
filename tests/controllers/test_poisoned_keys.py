"""A bug that one object meets: the others go on beside it, it alone is tried again, not all the time, and the log tells of it."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from swarmtask.errors import Invalid
from swarmtask.lifecycle.messages import Bound, Observed, TaskEvent
from swarmtask.resources.kinds import SWARM_TASK
from swarmtask.resources.task import ANNOTATION_CANCEL, attempt_id
from tests.controllers.world import World, running
from tests.fakes.engine import Outcome

LONG_S = 60.0
MOST_TRIES = 25
"""Within LONG_S, with pauses that double up to 30 s and are shortened at random."""


class Poison:
    """Fails for whatever is named like the poisoned object, as often as it is asked.

    Attributes:
        at: moments at which it has struck.
        cured: it strikes no more.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.at: list[float] = []
        self.cured = False

    def strike(self, name: str) -> None:
        if "bad" in name and not self.cured:
            self.at.append(self._world.clock.monotonic())
            raise ZeroDivisionError("a bug")


def told(caplog: pytest.LogCaptureFixture, words: str) -> bool:
    """The log has the words, with the way to the bug."""
    return any(words in record.getMessage() and record.exc_info for record in caplog.records if record.levelno >= logging.ERROR)


@pytest.fixture(autouse=True)
def no_loop_ends(caplog: pytest.LogCaptureFixture) -> Any:
    yield
    assert not [record.getMessage() for record in caplog.get_records("call") if "is started again" in record.getMessage()]


def poison_decisions(world: World, monkeypatch: pytest.MonkeyPatch, about: type = object) -> Poison:
    """Nothing can be decided about a poisoned task when an event of this kind has come; by default whatever has."""
    assert world.operator is not None
    poison, decide = Poison(world), world.operator.executor._decide

    async def poisoned(key: tuple[str, str], uid: str, event: TaskEvent | None) -> None:
        if isinstance(event, about):
            poison.strike(key[1])
        await decide(key, uid, event)

    monkeypatch.setattr(world.operator.executor, "_decide", poisoned)
    return poison


@pytest.mark.slow
async def test_a_task_that_cannot_be_decided_about(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async with running(World("n1", "n2")) as world:
        poison = poison_decisions(world, monkeypatch)
        for number in range(20):  # more than there are workers
            world.add_task(f"bad-{number}")
        await world.pass_time(1)
        for number in range(10):
            world.add_task(f"good-{number}")
        await world.until(lambda: all(world.phase(f"good-{number}") == "Succeeded" for number in range(10)), LONG_S)
        await world.pass_time(LONG_S)
        assert len(poison.at) <= 20 * MOST_TRIES
        assert told(caplog, "SwarmTask default/bad-0")
        poison.cured = True
        await world.until(lambda: all(world.phase(f"bad-{number}") == "Succeeded" for number in range(20)))


async def test_one_event_of_a_task_that_cannot_be_handled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The others of the same task are: it can be cancelled all the same."""
    async with running(World("n1")) as world:
        assert world.operator is not None
        world.engine.script("bad", Outcome(duration_s=None))
        world.add_task("bad")
        await world.until(lambda: world.phase("bad") == "Running")
        poison = poison_decisions(world, monkeypatch, about=Observed)
        task = world.task("bad")
        seen = next(one for one in await world.engine.workloads() if one.task_uid == task.metadata.uid)
        world.operator.executor.offer(task.key, task.metadata.uid, Observed(seen))
        await world.until(lambda: len(poison.at) > 2)
        world.kube.edit(SWARM_TASK, "bad", "default", {"metadata": {"annotations": {ANNOTATION_CANCEL: "enough"}}})
        await world.until(lambda: world.engine.called("stop"), LONG_S)
        assert told(caplog, "SwarmTask default/bad: Observed")
        poison.cured = True
        await world.until(lambda: world.phase("bad") == "Cancelled")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["stop", "submit"])
async def test_an_attempt_that_the_engine_fails_on(
    method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(World("n1", "n2", "n3")) as world:
        poison, call = Poison(world), getattr(world.engine, method)

        async def poisoned(subject: Any, *args: Any) -> None:
            """`subject`: a name or a workload."""
            name = getattr(subject, "name", subject)
            owners = (one for one in world.phases() if name.startswith(attempt_id(world.task(one).metadata.uid, 1)))
            poison.strike(next(owners))
            await call(subject, *args)

        monkeypatch.setattr(world.engine, method, poisoned)
        for name in (*(f"bad-{number}" for number in range(9)), "good"):
            world.engine.script(name, Outcome(duration_s=None if method == "stop" else 1.0))
            world.add_task(name, cpu="100m", memory="64Mi")
        if method == "stop":
            await world.until(lambda: all(world.phase(name) == "Running" for name in world.phases()))
            for name in world.phases():
                world.kube.edit(SWARM_TASK, name, "default", {"metadata": {"annotations": {ANNOTATION_CANCEL: "enough"}}})
        await world.until(lambda: world.phase("good") == ("Cancelled" if method == "stop" else "Succeeded"), LONG_S)
        await world.pass_time(30)
        assert 9 < len(poison.at) <= 9 * MOST_TRIES
        assert told(caplog, "unexpectedly")
        poison.cured = True
        ended = {"Cancelled"} if method == "stop" else {"Succeeded"}
        await world.until(lambda: set(world.phases().values()) == ended)


async def test_an_array_that_cannot_be_tended(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async with running(World("n1", "n2")) as world:
        assert world.operator is not None
        poison, tend = Poison(world), world.operator._arrays._tend

        async def poisoned(key: tuple[str, str]) -> None:
            poison.strike(key[1])
            await tend(key)

        monkeypatch.setattr(world.operator._arrays, "_tend", poisoned)
        for number in range(5):  # more than there are workers
            world.add_task(f"bad-{number}", completions=2, cpu="100m", memory="64Mi")
        await world.pass_time(1)
        world.add_task("good", completions=2, cpu="100m", memory="64Mi")
        await world.until(lambda: world.phase("good") == "Succeeded", LONG_S)
        await world.pass_time(30)
        assert 5 < len(poison.at) <= 5 * MOST_TRIES
        assert told(caplog, "array default/bad-0")
        poison.cured = True
        await world.until(lambda: all(world.phase(f"bad-{number}") == "Succeeded" for number in range(5)))


async def test_an_event_that_cannot_be_posted(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """It is dropped, as any other one that cannot be posted."""
    async with running(World("n1")) as world:
        assert world.operator is not None
        announcer = world.operator._around.announcer
        poison, post = Poison(world), announcer._post

        async def poisoned(event: Any) -> None:
            poison.strike(event.subject["name"])
            await post(event)

        monkeypatch.setattr(announcer, "_post", poisoned)
        world.add_task("bad")
        await world.until(lambda: world.phase("bad") == "Succeeded")
        world.add_task("good")
        await world.until(lambda: ("Completed", 1) in world.events("good"), LONG_S)
        assert len(poison.at) > 4, "more than there are workers"
        assert told(caplog, "an Event about bad")
        assert not world.events("bad")


@pytest.mark.slow
@pytest.mark.parametrize("refused", [True, False])
async def test_a_placement_that_cannot_be_stored_holds_no_room(
    refused: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether the API refuses it for good or it meets a bug: others have the room, and it is placed when that is over."""
    async with running(World("n1")) as world:
        assert world.operator is not None
        poison, patch = Poison(world), world.operator.executor._api.patch

        async def poisoned(kind: Any, name: str, body: Any, *args: Any, **options: Any) -> Any:
            if (body.get("status") or {}).get("attempt"):
                try:
                    poison.strike(name)
                except ZeroDivisionError as error:
                    if refused:
                        raise Invalid("it is too long") from error
                    raise
            return await patch(kind, name, body, *args, **options)

        monkeypatch.setattr(world.operator.executor._api, "patch", poisoned)
        world.add_task("bad", cpu="4")
        await world.until(lambda: poison.at)
        for number in range(5):
            world.add_task(f"good-{number}", cpu="4")
        await world.until(lambda: all(world.phase(f"good-{number}") == "Succeeded" for number in range(5)), LONG_S)
        await world.pass_time(LONG_S)
        assert 3 < len(poison.at) <= 2 * MOST_TRIES
        if not refused:
            assert told(caplog, "SwarmTask default/bad: Bound")
        world.kube.edit(SWARM_TASK, "bad", "default", {"metadata": {"annotations": {ANNOTATION_CANCEL: "enough"}}})
        await world.until(lambda: world.phase("bad") == "Cancelled")


async def test_a_task_whose_placement_could_be_stored_at_last_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(World("n1")) as world:
        assert world.operator is not None
        poison = poison_decisions(world, monkeypatch, about=Bound)
        world.add_task("bad")
        world.add_task("bad-for-good")
        await world.until(lambda: len(poison.at) > 6)
        world.kube.remove(SWARM_TASK, "bad-for-good", "default")
        await world.until(lambda: world.gone("bad-for-good"))
        poison.cured = True
        world.add_task("bad-for-good")
        await world.until(lambda: all(world.phase(name) == "Succeeded" for name in ("bad", "bad-for-good")), LONG_S)
        assert not world.operator.executor._unstored and not world.operator.cache._aside
