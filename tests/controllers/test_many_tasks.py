"""Many tasks at once: capacity, order, and how much is written."""

from __future__ import annotations

from collections import Counter

import pytest

from swarmtask.resources.kinds import SWARM_QUEUE, SWARM_TASK
from tests.controllers.world import World, running
from tests.fakes.engine import Outcome


@pytest.mark.slow
async def test_fifty_tasks_on_three_nodes_never_exceed_a_node() -> None:
    async with running(World("n1", "n2", "n3")) as world:
        peaks: Counter[str] = Counter()

        def watch_load() -> bool:
            load: Counter[str] = Counter()
            for obj in world.kube.all(SWARM_TASK):
                attempts = (obj.get("status") or {}).get("attempts") or []
                for attempt in attempts:
                    if attempt["state"] in ("Starting", "Running", "Stopping", "Unknown"):
                        load[attempt["node"]] += 1
            for node, count in load.items():
                peaks[node] = max(peaks[node], count)
            return set(world.phases().values()) == {"Succeeded"}

        for number in range(50):
            world.engine.script(f"t{number}", Outcome(duration_s=1 + number % 4))
            world.add_task(f"t{number}")
        await world.until(watch_load, 300)
        # Four cores each: four tasks of one core, and all three nodes were used.
        assert set(peaks) == {"n1", "n2", "n3"}
        assert max(peaks.values()) <= 4
        assert len(world.engine.called("submit")) == 50


async def test_a_queue_limit_holds() -> None:
    async with running(World("n1", "n2")) as world:
        world.add_queue("narrow", maxRunning=2)
        for number in range(8):
            world.add_task(f"t{number}", queue="narrow")
        most = 0

        def watch_load() -> bool:
            nonlocal most
            phases = list(world.phases().values())
            most = max(most, sum(phase in ("Starting", "Running") for phase in phases))
            return set(phases) == {"Succeeded"}

        await world.until(watch_load, 300)
        assert most == 2


async def test_what_runs_counts_in_the_queue_that_it_was_started_from() -> None:
    async with running(World("n1")) as world:
        world.add_queue("narrow", maxRunning=1)
        world.engine.script("first", Outcome(duration_s=None))
        world.add_task("first", queue="narrow")
        await world.until(lambda: world.phase("first") == "Running")
        world.kube.edit(SWARM_TASK, "first", "default", {"spec": {"queue": "default"}})
        world.add_task("second", queue="narrow")
        await world.until(lambda: world.task("second").status.reason == "QueueFull")
        await world.pass_time(5)
        assert world.phase("second") == "Queued"


async def test_a_queue_shows_what_it_has_let_start_wherever_that_has_moved() -> None:
    async with running(World("n1")) as world:
        world.add_queue("one", maxRunning=1)
        world.add_queue("two")
        for name in ("a", "b"):
            world.engine.script(name, Outcome(duration_s=30))
        world.add_task("a", queue="one")
        await world.until(lambda: world.phase("a") == "Running")
        world.add_task("b", queue="one")
        await world.until(lambda: world.task("b").status.reason == "QueueFull")
        world.kube.edit(SWARM_TASK, "a", "default", {"spec": {"queue": "two"}})
        await world.pass_time(5)

        def shown(name: str) -> int:
            return int(world.kube.peek(SWARM_QUEUE, name, "default")["status"].get("running", 0))

        assert (world.phase("b"), shown("one"), shown("two")) == ("Queued", 1, 0), "it still holds the one place"
        await world.until(lambda: world.phase("a") == "Succeeded" and world.phase("b") == "Running")
        await world.until(lambda: (shown("one"), shown("two")) == (1, 0))
        await world.until(lambda: world.phase("b") == "Succeeded" and shown("one") == 0)


async def test_a_queue_bounds_what_each_node_runs_of_it_and_can_be_edited() -> None:
    async with running(World("n1", "n2")) as world:
        world.add_queue("thin", maxRunningPerNode=1)
        for number in range(6):
            world.engine.script(f"t{number}", Outcome(duration_s=None))
            world.add_task(f"t{number}", queue="thin", cpu="100m")

        def nodes_in_use() -> list[str]:
            tasks = [world.task(f"t{number}").status for number in range(6)]
            return sorted(status.node_name or "" for status in tasks if status.phase == "Running")

        await world.until(lambda: nodes_in_use() == ["n1", "n2"])
        waiting = [world.task(f"t{number}").status for number in range(6) if world.phase(f"t{number}") == "Queued"]
        await world.until(lambda: "maxRunningPerNode 1" in str(world.describe()))
        assert len(waiting) == 4
        world.kube.edit(SWARM_QUEUE, "thin", "default", {"spec": {"maxRunningPerNode": 2}})
        await world.until(lambda: nodes_in_use() == ["n1", "n1", "n2", "n2"])


async def test_high_priority_overtakes_fifty() -> None:
    async with running(World("n1")) as world:
        for number in range(50):
            world.engine.script(f"low{number}", Outcome(duration_s=5))
            world.add_task(f"low{number}", priorityClass="low")
        await world.until(lambda: list(world.phases().values()).count("Running") == 4)
        world.add_task("urgent", priorityClass="high")
        await world.until(lambda: world.task("urgent").status.start_time is not None)
        started = sum(world.task(f"low{number}").status.start_time is not None for number in range(50))
        assert started <= 4 + 3, "it must start next: at most the other places of the same moment go to others"
        await world.until(lambda: world.phase("urgent") == "Succeeded")


@pytest.mark.slow
async def test_what_is_written_grows_with_what_happens_and_not_with_time() -> None:
    async with running(World("n1", status_refresh_s=1.0)) as world:
        for number in range(200):
            world.engine.script(f"t{number}", Outcome(duration_s=None))
            world.add_task(f"t{number}")
        await world.until(lambda: list(world.phases().values()).count("Running") == 4)
        await world.until(
            lambda: all(world.task(f"t{number}").status.message or world.task(f"t{number}").status.attempt for number in range(200))
        )
        await world.pass_time(30)
        before = len(world.kube.calls)
        await world.pass_time(60)
        # Nothing happens, so nothing is written and hardly anything is asked.
        assert [call for call in list(world.kube.calls)[before:] if call.verb not in ("get", "list", "watch")] == []


@pytest.mark.slow
async def test_what_was_told_to_tasks_that_are_gone_is_forgotten() -> None:
    async with running(World("n1")) as world:
        names = [f"t{number}" for number in range(130)]
        for name in names:
            world.add_task(name, cpu="64")
        await world.until(lambda: all(world.task(name).status.reason == "NoNodeFits" for name in names))
        assert world.operator is not None
        scheduling = world.operator.scheduling
        assert scheduling.remembered == len(names)
        for name in names:
            world.kube.edit(SWARM_TASK, name, "default", {"metadata": {"annotations": {"swarmtask.io/cancel": ""}}})
        await world.until(lambda: set(world.phases().values()) == {"Cancelled"})
        world.add_task("last", cpu="64")
        await world.until(lambda: world.task("last").status.reason == "NoNodeFits")
        assert scheduling.remembered == 1


@pytest.mark.slow
async def test_news_about_places_in_a_long_queue_is_rationed() -> None:
    async with running(World("n1", status_refresh_s=1.0)) as world:
        for number in range(400):
            world.engine.script(f"t{number}", Outcome(duration_s=0.5))
            world.add_task(f"t{number}")
        await world.pass_time(10)
        began, before = world.clock.monotonic(), len(world.kube.calls)
        await world.pass_time(20)
        writes = [call for call in list(world.kube.calls)[before:] if call.verb == "patch" and call.kind == "SwarmTask"]
        about_places = [
            call for call in writes if "queuePosition" in call.body.get("status", {}) and "attempts" not in call.body["status"]
        ]
        seconds = world.clock.monotonic() - began
        assert len(about_places) <= 100 * seconds
        per_task = Counter(call.name for call in about_places)
        assert max(per_task.values()) <= seconds + 1
        finished = list(world.phases().values()).count("Succeeded")
        assert finished > 40


@pytest.mark.slow
async def test_the_queue_status_follows_at_most_once_a_second() -> None:
    async with running(World("n1", status_refresh_s=1.0)) as world:
        for number in range(60):
            world.add_task(f"t{number}")
        began = world.clock.monotonic()
        await world.until(lambda: set(world.phases().values()) == {"Succeeded"}, 300)
        seconds = world.clock.monotonic() - began
        writes = [call for call in world.kube.calls if call.kind == "SwarmQueue" and call.verb == "patch"]
        assert len(writes) <= seconds + 2
        await world.until(lambda: not (world.kube.peek(SWARM_QUEUE, "default") or {})["status"].get("running"))


@pytest.mark.slow
async def test_a_limit_of_two_is_never_exceeded_by_thirty_tasks_and_is_shown() -> None:
    async with running(World("n1", "n2")) as world:
        world.add_queue("models", limits={"model/x": 2})
        most_shown = 0
        for number in range(30):
            world.engine.script(f"t{number}", Outcome(duration_s=1 + number % 3))
            world.add_task(f"t{number}", queue="models", cpu="100m", limits={"model/x": 1})
        world.add_task("free", queue="models", cpu="100m")

        def held() -> int:
            return (
                (world.kube.peek(SWARM_QUEUE, "models", "default") or {}).get("status", {}).get("limitsHeld", {}).get("model/x", -1)
            )

        def watch_load() -> bool:
            nonlocal most_shown
            assert len(world.engine.acting()) <= 3, "two with the limit, one without"
            most_shown = max(most_shown, held())
            return set(world.phases().values()) == {"Succeeded"}

        await world.until(lambda: any(world.task(f"t{number}").status.reason == "LimitReached" for number in range(30)))
        waiting = next(world.task(f"t{number}").status for number in range(30) if world.task(f"t{number}").status.reason)
        assert "limit model/x of queue default/models is reached (2 of 2 held, needs 1; held by t" in (waiting.message or "")
        await world.until(watch_load, 300)
        assert most_shown == 2
        await world.until(lambda: held() == 0)


async def test_a_limit_is_held_as_it_was_taken_and_a_raised_one_acts_at_once() -> None:
    async with running(World("n1")) as world:
        world.add_queue("models", limits={"model/x": 1})
        for name in ("first", "second"):
            world.engine.script(name, Outcome(duration_s=None))
            world.add_task(name, queue="models", cpu="100m", limits={"model/x": 1})
        await world.until(lambda: "LimitReached" in {world.task(name).status.reason for name in ("first", "second")})
        holder = next(name for name in ("first", "second") if world.phase(name) in ("Starting", "Running"))
        world.kube.edit(SWARM_TASK, holder, "default", {"spec": {"limits": None}})
        await world.pass_time(5)
        assert sorted(world.phases().values()) == ["Queued", "Running"], "what is held was recorded when it was bound"
        world.kube.edit(SWARM_QUEUE, "models", "default", {"spec": {"limits": {"model/x": 2}}})
        await world.until(lambda: set(world.phases().values()) == {"Running"})


async def test_strategies_of_queue_and_task_reach_the_scheduler() -> None:
    async with running(World("n1", "n2", "n3")) as world:
        world.add_queue("packed", strategy="pack")
        for number in range(3):
            world.engine.script(f"packed{number}", Outcome(duration_s=None))
            world.add_task(f"packed{number}", queue="packed", cpu="100m")
        await world.until(lambda: set(world.phases().values()) == {"Running"})
        assert {world.task(f"packed{number}").status.node_name for number in range(3)} == {"n1"}
        for number in range(6):
            world.add_task(f"round{number}", queue="packed", cpu="100m", placement={"strategy": "round-robin"})
            await world.until(lambda name=f"round{number}": world.phase(name) == "Succeeded")
        assert [world.task(f"round{number}").status.node_name for number in range(6)] == ["n2", "n3", "n1", "n2", "n3", "n1"]


@pytest.mark.slow
async def test_two_queues_of_a_cohort_share_three_to_one_and_take_back_what_was_lent() -> None:
    async with running(World("n1", "n2")) as world:
        world.add_queue("major", cohort="all", weight=3)
        world.add_queue("minor", cohort="all")
        for number in range(40):
            world.engine.script(f"minor{number}", Outcome(duration_s=4 + number % 5))
            world.add_task(f"minor{number}", queue="minor", memory="64Mi")

        def counts() -> tuple[int, int]:
            live = [obj for obj in world.kube.view(SWARM_TASK) if obj.get("status", {}).get("phase") in ("Starting", "Running")]
            queues = [obj["spec"]["queue"] for obj in live]
            return queues.count("major"), queues.count("minor")

        await world.until(lambda: counts() == (0, 8))
        for number in range(40):
            world.engine.script(f"major{number}", Outcome(duration_s=4 + number % 5))
            world.add_task(f"major{number}", queue="major", memory="64Mi")
        await world.until(lambda: counts() == (6, 2))
        seen: Counter[str] = Counter()

        def watch_shares() -> bool:
            major, minor = counts()
            seen.update({"major": major, "minor": minor})
            return list(world.phases().values()).count("Queued") < 30

        await world.until(watch_shares, 300)
        assert 0.70 <= seen["major"] / seen.total() <= 0.80
        await world.until(lambda: set(world.phases().values()) == {"Succeeded"}, 300)


@pytest.mark.slow
async def test_an_urgent_task_does_not_wait_until_all_that_came_before_it_were_let_in() -> None:
    """And what runs is heard meanwhile. (Each task that comes costs a write, so a burst keeps the operator busy for a while.)"""
    async with running(World("n1")) as world:
        world.add_queue("burst", stopped=True)
        for number in range(400):
            world.add_task(f"t{number}", queue="burst")
        world.add_task("urgent", priorityClass="high")
        let_in: list[int] = []

        def urgent_is_in() -> bool:
            phases = world.phases()
            let_in.append(sum(phase == "Queued" for name, phase in phases.items() if name != "urgent"))
            return phases["urgent"] not in ("", "Pending")

        await world.until(urgent_is_in)
        assert let_in[-1] < 100
        await world.until(lambda: world.phase("urgent") == "Succeeded" and list(world.phases().values()).count("Queued") == 400)
