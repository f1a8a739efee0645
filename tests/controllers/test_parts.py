"""The small parts: queue by key, timers, bells, supervision, crash points, patches, node facts, the ration of refusals."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from swarmtask.clock import ManualClock
from swarmtask.controllers import crashpoints
from swarmtask.controllers.announcements import Announcer
from swarmtask.controllers.crashpoints import POINTS, write_point
from swarmtask.controllers.keyed_queue import SHARE, KeyedQueue
from swarmtask.controllers.node_facts import NodeFacts, engine_labels, match, node_name, phase_of, status_of
from swarmtask.controllers.reading import difference
from swarmtask.controllers.scheduling import POSITIONS_PER_STEP, REFUSALS_PER_S, RefusalBudget
from swarmtask.controllers.waiting import STALE_TIMERS, Bell, Timers, supervise
from swarmtask.engines.base import EngineNode, NodeState
from swarmtask.errors import ServiceUnavailable
from swarmtask.lifecycle.messages import Announcement
from swarmtask.resources.kinds import EVENT, SWARM_TASK
from swarmtask.resources.meta import ObjectMeta
from swarmtask.resources.node import NodeEngine, NodePhase, NodeStatus, SwarmNode
from swarmtask.resources.task import Phase, TaskStatus
from swarmtask.scheduler.model import Amounts, PendingTask, Refusal, TaskShape
from tests.fakes.kube import FakeKube

GIB = 2**30


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


# --- keyed queue ---


def make_queue(patient_at_once: int | None = None) -> tuple[KeyedQueue[str, str, int], ManualClock, Timers]:
    clock = ManualClock()
    delays = Timers(clock, clock.monotonic)
    return KeyedQueue(delays, random.Random(1), patient_at_once=patient_at_once), clock, delays


async def test_items_of_one_key_are_taken_together_and_never_by_two() -> None:
    queue, _, _ = make_queue()
    queue.put("a", "x", 1)
    queue.put("a", "y", 2)
    queue.put("a", "x", 3)
    key, items = await queue.take()
    assert (key, items) == ("a", {"y": 2, "x": 3}), "the newer item of a slot replaces the older"
    queue.put("a", "x", 4)
    queue.put("b", "x", 5)
    assert (await queue.take())[0] == "b", "a is being handled"
    queue.done("a")
    assert await queue.take() == ("a", {"x": 4})


async def test_a_retry_comes_back_after_a_pause_and_yields_to_newer_items() -> None:
    queue, clock, delays = make_queue()
    running = asyncio.create_task(delays.run())
    queue.put("a", "x", 1)
    key, items = await queue.take()
    queue.put("a", "x", 2)
    pause_s = queue.retry(key, items | {"y": 9})
    taking = asyncio.create_task(queue.take())
    await settle()
    assert not taking.done()
    clock.advance(pause_s + 0.001)
    assert await taking == ("a", {"x": 2, "y": 9})
    running.cancel()


async def test_what_is_forgotten_is_not_taken() -> None:
    queue, _, _ = make_queue()
    queue.put("a", "x", 1)
    queue.put("b", "x", 1)
    queue.forget("a")
    assert (await queue.take())[0] == "b"
    assert not queue.ready


async def test_what_can_wait_lets_others_pass_and_comes_up_all_the_same() -> None:
    queue, _, _ = make_queue()
    for number in range(3):
        queue.put(f"patient-{number}", "x", number, can_wait=True)
    for number in range(20):
        queue.put(f"urgent-{number}", "x", number)
    order = [(await queue.take())[0] for _ in range(23)]
    assert [key for key in order if key.startswith("urgent")] == [f"urgent-{number}" for number in range(20)]
    assert [order.index(f"patient-{number}") for number in range(3)] == [SHARE - 1, 2 * SHARE - 1, 22]


async def test_the_lowest_rank_is_taken_first_and_who_has_waited_longest_now_and_then() -> None:
    queue, clock, delays = make_queue()
    running = asyncio.create_task(delays.run())
    for number in range(20):
        queue.put(f"old-{number}", "x", number, rank=5)
    for number in range(8):
        queue.put(f"new-{number}", "x", number, rank=number % 2)
    queue.put("old-19", "y", 1)
    queue.put("old-19", "z", 1, rank=9)
    order = [(await queue.take())[0] for _ in range(28)]
    assert order[:7] == ["old-19", "new-0", "new-2", "new-4", "new-6", "new-1", "new-3"], "who moves forward keeps its age"
    assert order[7] == "old-0", "the share of who has waited longest"
    assert order[8:10] == ["new-5", "new-7"]
    assert order[10:] == [f"old-{number}" for number in range(1, 19)]
    pause_s = queue.retry("old-3", {"x": 3})
    queue.done("old-4")
    for key in ("a", "old-4"):
        queue.put(key, "x", 1, rank=4)
    clock.advance(pause_s + 0.001)
    await settle()
    queue.put("b", "x", 1, rank=6)
    assert [(await queue.take())[0] for _ in range(4)] == ["a", "old-4", "old-3", "b"], (
        "a retry keeps its rank, what is done has none"
    )
    running.cancel()


async def test_a_key_hurries_as_soon_as_something_of_it_cannot_wait() -> None:
    queue, clock, delays = make_queue()
    running = asyncio.create_task(delays.run())
    for key in ("a", "b", "c"):
        queue.put(key, "x", 1, can_wait=True)
    queue.put("b", "y", 2)
    queue.put("b", "z", 3, can_wait=True)
    assert await queue.take() == ("b", {"x": 1, "y": 2, "z": 3})
    queue.put("b", "x", 4, can_wait=True)
    queue.put("b", "y", 5)
    queue.done("b")
    assert await queue.take() == ("b", {"x": 4, "y": 5}), "also when that comes while it is being handled"
    pause_s = queue.retry("b", {"y": 5})
    queue.put("b", "x", 6, can_wait=True)
    clock.advance(pause_s + 0.001)
    await settle()
    assert await queue.take() == ("b", {"y": 5, "x": 6}), "and when it is tried again"
    assert [(await queue.take())[0] for _ in range(2)] == ["a", "c"]
    running.cancel()


async def test_what_can_wait_is_handled_by_few_at_a_time() -> None:
    queue, clock, delays = make_queue(patient_at_once=2)
    running = asyncio.create_task(delays.run())
    for key in ("a", "b", "c", "d"):
        queue.put(key, "x", 1, can_wait=True)
    takers = [asyncio.create_task(queue.take()) for _ in range(4)]
    await settle()
    assert [taker.done() for taker in takers] == [True, True, False, False]
    queue.put("urgent", "x", 1)
    await settle()
    assert takers[2].result() == ("urgent", {"x": 1}), "the place of a taker is kept for it"
    queue.done("urgent")
    assert not takers[3].done()
    pause_s = queue.retry("a", {"x": 1})
    await settle()
    assert takers[3].result() == ("c", {"x": 1}), "one that is given back makes place for the next"
    clock.advance(pause_s + 0.001)
    await settle()
    queue.done("b")
    queue.done("c")
    assert [(await queue.take())[0] for _ in range(2)] == ["d", "a"]
    queue.put("e", "x", 1, can_wait=True)
    queue.forget("e")
    assert len(queue) == 2, "being handled"
    running.cancel()


async def test_an_arrival_wakes_one_taker_and_one_that_goes_away_passes_it_on() -> None:
    queue, _, _ = make_queue()
    takers = [asyncio.create_task(queue.take()) for _ in range(4)]
    await settle()
    takers[1].cancel()
    queue.put("a", "x", 1)
    takers[0].cancel()  # called, but it never gets to answer
    queue.put("b", "x", 2)
    takers[2].cancel()  # the same, and nobody but the last is left
    await settle()
    assert takers[3].done()
    assert takers[3].result() == ("a", {"x": 1})
    assert await queue.take() == ("b", {"x": 2})
    assert all(taker.cancelled() for taker in takers[:3])
    last = asyncio.create_task(queue.take())
    await settle()
    queue.put("c", "x", 3)
    assert await last == ("c", {"x": 3}), "no arrival is lost to those who went"


# --- timers, bells, supervision ---


async def test_timers_call_in_order_and_a_new_moment_replaces_the_old() -> None:
    clock = ManualClock()
    timers = Timers(clock, clock.monotonic)
    called: list[str] = []

    def call(name: str) -> Callable[[], None]:
        return lambda: called.append(name)

    timers.set("late", 100, call("late"))
    timers.set("moved", 50, call("too early"))
    running = asyncio.create_task(timers.run())
    await settle()
    timers.set("moved", 70, call("moved"))
    timers.set("early", 10, call("early"))
    timers.set("never", 20, call("never"))
    timers.cancel("never")
    for _ in range(60):
        clock.advance(2)
        await settle()
    assert called == ["early", "moved", "late"]
    assert len(timers) == 0
    running.cancel()


async def test_what_is_left_of_a_time_is_never_so_little_that_it_is_over_at_once() -> None:
    """What is asked for again as long as something is left would turn in a circle: 58.3 + 4e-15 is 58.3."""
    clock, called = ManualClock(), 0
    clock.advance(58.3)
    timers = Timers(clock, clock.monotonic)

    def look() -> None:
        nonlocal called
        called += 1

    timers.after("left", 4e-15, look)
    running = asyncio.create_task(timers.run())
    await settle()
    assert called == 0
    clock.advance(1)
    await settle()
    running.cancel()
    assert called == 1


async def test_timers_do_not_remember_what_was_replaced_or_cancelled() -> None:
    clock = ManualClock()
    timers = Timers(clock, clock.monotonic)
    called: list[float] = []
    for moment in range(20_000):
        timers.set("moved on and on", 100.0 + moment, lambda: called.append(clock.monotonic()))
        timers.set(("ended long before", moment), 86_400.0, lambda: called.append(-1.0))
        timers.cancel(("ended long before", moment))
    assert len(timers._heap) <= STALE_TIMERS + 2
    running = asyncio.create_task(timers.run())
    await settle()
    clock.advance(19_000)
    await settle()
    assert not called
    clock.advance(2000)
    await settle()
    assert len(called) == 1
    running.cancel()


async def test_a_bell_rings_once_for_many_rings() -> None:
    clock = ManualClock()
    bell = Bell(clock)
    bell.ring()
    bell.ring()
    assert await bell.wait(5)
    waiting = asyncio.create_task(bell.wait(5))
    await settle()
    clock.advance(5)
    assert not await waiting


async def test_a_loop_that_fails_or_ends_is_started_again() -> None:
    clock, runs = ManualClock(), 0

    async def loop() -> None:
        nonlocal runs
        runs += 1
        match runs:
            case 1:
                raise ServiceUnavailable("expected")
            case 2:
                raise ZeroDivisionError("a bug")
            case 3:
                return
            case _:
                await asyncio.Event().wait()

    supervisor = asyncio.create_task(supervise("test", loop, clock, random.Random(1)))
    for _ in range(50):
        await settle()
        clock.advance(1)
    assert runs == 4
    supervisor.cancel()
    with pytest.raises(asyncio.CancelledError):
        await supervisor


async def test_a_loop_of_several_tasks_of_which_one_fails_is_started_again() -> None:
    """In Python 3.11 a TaskGroup leaves the task that waited for it marked as being cancelled."""
    clock, runs, ended = ManualClock(), 0, 0

    async def work(number: int) -> None:
        nonlocal ended
        try:
            if number == 2 and runs < 3:
                raise ZeroDivisionError("a bug")
            await asyncio.Event().wait()
        finally:
            ended += 1

    async def loop() -> None:
        nonlocal runs
        runs += 1
        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(work(number))

    supervisor = asyncio.create_task(supervise("test", loop, clock, random.Random(1)))
    for _ in range(50):
        await settle()
        clock.advance(1)
    assert (runs, ended, supervisor.done()) == (3, 8, False)
    supervisor.cancel()
    with pytest.raises(asyncio.CancelledError):
        await supervisor
    assert ended == 12, "its own cancellation reaches all that the loop has begun, and is waited for"


async def test_a_loop_in_which_something_else_was_cancelled_is_started_again() -> None:
    clock, runs = ManualClock(), 0

    async def loop() -> None:
        nonlocal runs
        runs += 1
        call: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if runs < 3:
            call.cancel()
        await call

    supervisor = asyncio.create_task(supervise("test", loop, clock, random.Random(1)))
    for _ in range(50):
        await settle()
        clock.advance(1)
    assert (runs, supervisor.done()) == (3, False)
    supervisor.cancel()
    with pytest.raises(asyncio.CancelledError):
        await supervisor


async def test_a_loop_that_fails_while_it_is_cancelled_ends() -> None:
    async def loop() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ZeroDivisionError("a bug in cleaning up")

    supervisor = asyncio.create_task(supervise("test", loop, ManualClock(), random.Random(1)))
    await settle()
    supervisor.cancel()
    with pytest.raises(asyncio.CancelledError):
        await supervisor


# --- crash points ---


def test_points_are_reached_around_a_write() -> None:
    reached: list[str] = []
    try:
        for point in ("before:submit", "after:submit"):
            crashpoints.arm(point, reached.append)
            with write_point("submit"):
                reached.append("write")
            with pytest.raises(KeyError), write_point("submit"):
                raise KeyError
    finally:
        crashpoints.arm("")
    assert reached == ["before:submit", "write", "before:submit", "write", "after:submit"]


def test_an_unknown_point_is_refused() -> None:
    with pytest.raises(ValueError, match="before:submit"):
        crashpoints.arm("before:lunch")


def test_an_armed_process_ends_at_once() -> None:
    program = (
        "from swarmtask.controllers import crashpoints\n"
        "crashpoints.arm('after:submit')\n"
        "with crashpoints.write_point('submit'): print('written', flush=True)\n"
        "print('alive', flush=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert (done.stdout, done.returncode) == ("written\n", crashpoints.EXIT_CODE)


def test_every_point_has_two_moments() -> None:
    assert len(POINTS) == len(set(POINTS)) == 2 * len(crashpoints.WRITES)


# --- patches ---


def test_a_status_patch_names_what_changed_and_what_went_away() -> None:
    old = TaskStatus(phase=Phase.QUEUED, queue_position=3, message="waits")
    new = TaskStatus(phase=Phase.STARTING, attempt=0, node_name="n1")
    patch = difference(old, new)
    assert patch == {"phase": "Starting", "nodeName": "n1", "queuePosition": None, "message": None}
    assert difference(old, old) == {}


def test_a_status_patch_reaches_into_mappings() -> None:
    old = NodeStatus()
    new = old.model_copy(update={"requested": old.requested.model_copy(update={"cpu": "2"})})
    assert difference(old, new) == {"requested": {"cpu": "2", "memory": "0", "gpu": 0}}


# --- node facts ---


def engine_node(id_: str, hostname: str = "laptop", **changes: object) -> EngineNode:
    values = {"id": id_, "hostname": hostname, "state": NodeState.READY, "cpu_milli": 4000, "memory_bytes": 8 * GIB} | changes
    return EngineNode(**values)  # type: ignore[arg-type]


def known(name: str, *engines: tuple[str, str]) -> SwarmNode:
    node = SwarmNode()
    node.metadata.name = name
    node.status.engines = [NodeEngine(name=engine, id=id_) for engine, id_ in engines]
    return node


def test_a_joining_node_gets_no_name_before_it_tells_its_own() -> None:
    """Swarm lists a node some milliseconds before the node describes itself."""
    assert match({"swarm": ([engine_node("s1", "")], True)}, {}) == {}
    assert list(match({"swarm": ([engine_node("s1", "Anna's Laptop")], True)}, {})) == ["anna-s-laptop"]
    assert list(match({"swarm": ([engine_node("s1", "")], True)}, {"laptop": known("laptop", ("swarm", "s1"))})) == ["laptop"]


@pytest.mark.parametrize(
    ("hostname", "name"),
    [
        ("Laptop", "laptop"),
        ("Anna's Laptop.local", "anna-s-laptop.local"),
        ("..", "node"),
        ("", "node"),
        ("ä_ö", "node"),
        ("x" * 300, "x" * 240),
    ],
)
def test_hostnames_become_object_names(hostname: str, name: str) -> None:
    assert node_name(hostname) == name


def test_one_machine_in_two_engines_is_one_node() -> None:
    facts = match({"swarm": ([engine_node("s1")], True), "local": ([engine_node("l1")], True)}, {})
    assert list(facts) == ["laptop"]
    assert [item.engine for item in facts["laptop"].listed] == ["swarm", "local"]


def test_two_machines_of_one_hostname_are_two_nodes() -> None:
    facts = match({"swarm": ([engine_node("s1abcdefghij"), engine_node("s2abcdefghij")], True)}, {})
    assert set(facts) == {"laptop", "laptop-s2abcdef"}
    again = match(
        {"swarm": ([engine_node("s2abcdefghij")], True)}, {"laptop-s2abcdef": known("laptop-s2abcdef", ("swarm", "s2abcdefghij"))}
    )
    assert set(again) == {"laptop-s2abcdef"}, "a node keeps its name when its twin leaves"


def test_a_machine_that_joined_again_takes_its_name_back() -> None:
    facts = match({"swarm": ([engine_node("new")], True)}, {"laptop": known("laptop", ("swarm", "old"))})
    assert list(facts) == ["laptop"]


def test_a_renamed_machine_keeps_its_node() -> None:
    facts = match({"swarm": ([engine_node("s1", "other")], True)}, {"laptop": known("laptop", ("swarm", "s1"))})
    assert list(facts) == ["laptop"]


def test_labels_are_the_machines_facts_and_what_is_valid_of_the_engines() -> None:
    labels = {"team": "a", "bad key!": "x", "long": "y" * 64, "swarmtask.io/arch": "lies"}
    facts = match({"swarm": ([engine_node("s1", arch="x86_64", os="linux", labels=labels)], True)}, {})["laptop"]
    assert engine_labels(facts) == {
        "team": "a", "swarmtask.io/arch": "amd64", "swarmtask.io/os": "linux", "swarmtask.io/hostname": "laptop",
        "swarmtask.io/engine": "swarm",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("node", "heard", "phase"),
    [
        (engine_node("a"), True, NodePhase.READY),
        (engine_node("a"), False, NodePhase.NOT_READY),
        (engine_node("a", available=False), True, NodePhase.DRAINING),
        (engine_node("a", state=NodeState.DOWN), True, NodePhase.UNREACHABLE),
        (engine_node("a", state=NodeState.UNKNOWN), True, NodePhase.NOT_READY),
    ],
)
def test_phases(node: EngineNode, heard: bool, phase: NodePhase) -> None:
    assert phase_of(match({"swarm": ([node], heard)}, {})["laptop"])[0] is phase


def test_a_node_that_nobody_lists_is_gone() -> None:
    assert phase_of(NodeFacts(()))[0] is NodePhase.GONE


def test_allocatable_is_capacity_less_what_is_reserved_and_never_negative() -> None:
    node = known("laptop")
    node.spec.reserved.cpu, node.spec.reserved.memory = "1", "100Gi"
    now = datetime(2026, 1, 1, tzinfo=UTC)
    facts = match({"swarm": ([engine_node("s1")], True)}, {})["laptop"]
    status = status_of(node, facts, Amounts(500, GIB), 1, now)
    assert (status.allocatable.cpu, status.allocatable.memory) == ("3", "0")
    assert (status.requested.cpu, status.requested.memory, status.tasks) == ("500m", "1Gi", 1)
    node.status = status
    later = datetime(2026, 1, 1, 1, tzinfo=UTC)
    assert status_of(node, facts, Amounts(500, GIB), 1, later) == status, "nothing changed, nothing to write"
    assert status_of(node, facts, Amounts(), 0, later).last_heartbeat_time == now, "sums are no news from an engine"


# --- the ration of refusals ---


def refusal(number: int) -> Refusal:
    task = PendingTask(("default", f"t{number}"), f"u{number}", ("default", "default"), 0, float(number), TaskShape(Amounts()))
    return Refusal(task, number + 1, "NoNodeFits", "0/0 nodes fit")


def test_ten_thousand_refusals_are_told_at_a_bounded_rate() -> None:
    budget = RefusalBudget(1.0)
    everything = [refusal(number) for number in range(10_000)]
    told = sum(len(budget.choose(everything, second * 0.25)) for second in range(40))
    assert told <= REFUSALS_PER_S * 11


def test_one_task_is_told_seldom_and_the_front_of_the_queue_more_often() -> None:
    budget = RefusalBudget(1.0)
    front, back = refusal(0), refusal(10 * POSITIONS_PER_STEP)
    told = [item.position for tenth in range(100) for item in budget.choose([front, back], tenth / 10)]
    assert told.count(front.position) == 10
    assert told.count(back.position) == 1


def test_who_waits_no_more_is_not_remembered() -> None:
    budget = RefusalBudget(1.0)
    everything = [refusal(number) for number in range(50)]
    budget.choose(everything, 0.0)
    waiting = [item.task.key for item in everything[:10]]
    budget.retain(waiting)
    assert len(budget) == 10
    assert [item.position for item in budget.choose(everything, 0.5)] == [item.position for item in everything[10:]]


# --- events ---


async def test_events_of_one_moment_keep_their_order() -> None:
    """kubectl sorts by lastTimestamp."""
    clock, api = ManualClock(), FakeKube()
    announcer = Announcer(api, clock)
    loop = asyncio.create_task(announcer.run())
    said = ["AttemptFailed", "BackOff", "DeadLetter", "AttemptFailed"]
    for reason in said[:3]:
        announcer.tell(SWARM_TASK, ObjectMeta(name="lint", namespace="default", uid="u-1"), Announcement("Normal", reason, "words"))
    clock.advance(1)
    announcer.tell(SWARM_TASK, ObjectMeta(name="lint", namespace="default", uid="u-1"), Announcement("Normal", said[3], "words"))
    await settle()
    loop.cancel()
    events = sorted((await api.list(EVENT)).items, key=lambda event: event["lastTimestamp"])
    assert [event["reason"] for event in events] == ["BackOff", "DeadLetter", "AttemptFailed"]
    assert events[-1]["count"] == 2
    moments = [datetime.fromisoformat(event["firstTimestamp"]) for event in events]
    assert len(set(moments)) == 3
    assert max(moments) - min(moments) < timedelta(milliseconds=1)
