"""What breaks around the operator: the API, an engine, nodes, and objects that cannot be read."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from swarmtask.clock import ManualClock
from swarmtask.controllers import operator as operator_module
from swarmtask.engines.base import Observation
from swarmtask.errors import Conflict, EngineUnavailable, ServiceUnavailable
from swarmtask.resources.kinds import EVENT, SECRET, SWARM_NODE, SWARM_QUEUE, SWARM_TASK, Kind
from swarmtask.resources.task import ANNOTATION_RETRY
from tests.controllers.world import World, running
from tests.fakes.engine import FakeEngine, Outcome


async def test_a_conflict_is_decided_again_from_the_new_object() -> None:
    async with running(World("n1")) as world:
        world.kube.fail("patch", lambda: Conflict("somebody was faster"), kind=SWARM_TASK, subresource="status", times=3)
        world.add_task("busy")
        await world.until(lambda: world.phase("busy") == "Succeeded")
        assert len(world.engine.called("submit")) == 1


async def test_a_conflict_while_binding_drops_the_placement() -> None:
    async with running(World("n1")) as world:
        world.kube.hold_watches()
        created = world.add_task("moved", cpu="3")
        world.kube.release_watches()
        await world.until(lambda: world.phase("moved") == "Queued")
        # Between the decision and its write the task grows beyond every node, and the operator's watch is late.
        world.kube.fail("patch", lambda: Conflict("somebody was faster"), kind=SWARM_TASK, name="moved", subresource="")
        world.kube.edit(SWARM_TASK, "moved", "default", {"spec": {"container": {"resources": {"requests": {"cpu": "32"}}}}})
        await world.until(lambda: "too little" in (world.task("moved").status.message or ""))
        world.add_task("other", cpu="4")
        await world.until(lambda: world.phase("other") == "Succeeded")
        assert world.task("moved").status.attempt == 0
        assert created["metadata"]["uid"] == world.task("moved").metadata.uid


async def test_a_node_does_not_go_on_counting_a_placement_that_could_not_be_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(World("n1")) as world:
        world.add_queue("q", stopped=True)
        world.add_task("dropped", queue="q")
        await world.until(lambda: world.task("dropped").status.reason == "QueueStopped")
        await world.pass_time(5)
        patch, refuse = world.kube.patch, asyncio.Event()

        async def be_refused_late(kind: Kind, name: str, *args: Any, **options: Any) -> Any:
            if kind is not SWARM_TASK or refuse.is_set():
                return await patch(kind, name, *args, **options)
            await refuse.wait()
            raise Conflict("somebody was faster")

        monkeypatch.setattr(world.kube, "patch", be_refused_late)
        world.kube.edit(SWARM_QUEUE, "q", "default", {"spec": {"stopped": None}})
        await world.pass_time(2)
        world.kube.edit(SWARM_NODE, "n1", None, {"metadata": {"labels": {"room": "attic"}}})  # its status is looked at now
        await world.until(lambda: world.node("n1")["status"].get("tasks") == 1)
        # The queue is closed again, so that nothing else happens that would make anybody look at the node.
        world.kube.edit(SWARM_QUEUE, "q", "default", {"spec": {"stopped": True}})
        await world.pass_time(5)
        refuse.set()
        await world.until(lambda: world.node("n1")["status"]["tasks"] == 0, 30)
        assert world.task("dropped").status.attempt == 0


async def test_a_lost_answer_is_not_done_twice() -> None:
    async with running(World("n1")) as world:
        for subresource in ("", "status"):
            world.kube.fail("patch", kind=SWARM_TASK, subresource=subresource, after=True, times=3)
        world.engine.fail("submit", EngineUnavailable("the answer was lost"), after=True, times=2)
        world.add_task("once")
        await world.until(lambda: world.phase("once") == "Succeeded")
        assert world.task("once").status.attempt == 1


@pytest.mark.parametrize(("spec", "runs"), [({}, "late"), ({"completions": 1}, "late-0")])
async def test_a_deletion_that_arrives_late_spares_what_a_person_has_retried_meanwhile(
    spec: dict[str, Any], runs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(World("n1")) as world:
        under_way: list[Callable[[], Awaitable[None]]] = []
        delete = world.kube.delete

        async def never_arrive(kind: Kind, name: str, namespace: str | None = None, **options: Any) -> None:
            under_way.append(lambda: delete(kind, name, namespace, **options))
            await asyncio.Event().wait()

        world.engine.script(runs, Outcome(exit_code=1), Outcome(duration_s=None))
        world.add_task("late", backoffLimit=0, ttlSecondsAfterFinished=5, **spec)
        await world.until(lambda: world.phase("late") == "Failed")
        with monkeypatch.context() as patched:
            patched.setattr(world.kube, "delete", never_arrive)
            await world.until(lambda: under_way)
            await world.crash()
        world.kube.edit(SWARM_TASK, "late", "default", {"metadata": {"annotations": {ANNOTATION_RETRY: "please"}}})
        await world.start()
        await world.until(lambda: world.phase("late") == "Running")
        (arrive,) = under_way
        with pytest.raises(Conflict):
            await arrive()
        await world.pass_time(5)
        assert world.phase("late") == "Running" and world.task("late").metadata.deletion_timestamp is None


@pytest.mark.parametrize("spec", [{}, {"completions": 1}])
async def test_a_deletion_that_meets_a_change_is_decided_again(spec: dict[str, Any]) -> None:
    async with running(World("n1")) as world:
        world.kube.fail("delete", lambda: Conflict("somebody was faster"), kind=SWARM_TASK, name="brief", times=3)
        world.add_task("brief", ttlSecondsAfterFinished=5, **spec)
        await world.until(lambda: world.gone("brief"))


async def test_the_api_goes_away_and_comes_back() -> None:
    async with running(World("n1")) as world:
        world.engine.script("long", Outcome(duration_s=20))
        world.add_task("long")
        await world.until(lambda: world.phase("long") == "Running")
        world.kube.down = True
        await world.pass_time(40)
        world.kube.down = False
        await world.until(lambda: world.phase("long") == "Succeeded")
        assert world.task("long").status.attempt == 1


async def test_an_expired_watch_is_followed_by_a_list() -> None:
    async with running(World("n1")) as world:
        world.engine.script("a", Outcome(duration_s=None))
        world.add_task("a")
        await world.until(lambda: world.phase("a") == "Running")
        world.kube.hold_watches()
        world.add_task("b")
        world.kube.remove(SWARM_TASK, "a", "default")
        world.kube.expire_watches()
        world.kube.release_watches()
        await world.until(lambda: world.phase("b") == "Succeeded" and world.gone("a"))


async def test_an_engine_that_is_down_holds_tasks_until_it_is_back() -> None:
    async with running(World("n1")) as world:
        world.engine.script("long", Outcome(duration_s=60))
        world.add_task("long")
        await world.until(lambda: world.phase("long") == "Running")
        world.engine.unavailable = True
        await world.until(lambda: world.node("n1")["status"]["phase"] == "NotReady")
        world.add_task("new")
        await world.until(lambda: world.phase("new") == "Queued")
        await world.pass_time(30)
        assert world.phase("new") == "Queued"
        assert world.phase("long") == "Running", "silence of the engine proves nothing"
        world.engine.unavailable = False
        await world.until(lambda: world.phase("new") == "Succeeded")
        await world.until(lambda: world.phase("long") == "Succeeded")
        assert world.task("long").status.attempt == 1


async def test_an_engine_that_is_down_at_the_start_does_not_keep_the_other_from_working() -> None:
    world = World("n1")
    broken = FakeEngine(world.clock, nodes=("m1",), name="local")
    broken.unavailable = True
    world.engines = (broken, world.engine)
    async with running(world):
        world.add_task("here")
        await world.until(lambda: world.phase("here") == "Succeeded")
        broken.unavailable = False
        world.add_task("there", engine="local")
        await world.until(lambda: world.phase("there") == "Succeeded")


async def test_a_slow_engine_does_not_slow_the_other() -> None:
    world = World("n1")
    slow = FakeEngine(world.clock, nodes=("m1",), name="local")
    world.engines = (slow, world.engine)
    async with running(world):
        slow.delay("submit", 60)
        for number in range(40):
            world.add_task(f"slow{number}", engine="local", cpu="100m", memory="16Mi")
        await world.until(lambda: list(world.phases().values()).count("Starting") >= 30)
        began = world.clock.monotonic()
        world.add_task("quick", engine="swarm")
        await world.until(lambda: world.phase("quick") == "Succeeded")
        assert world.clock.monotonic() - began < 10
        slow.delay("submit", 0)


async def test_a_node_that_left_its_engine_is_gone_and_its_work_moves() -> None:
    async with running(World("n1")) as world:
        world.engine.script("nomad", Outcome(duration_s=None), Outcome())
        world.add_task("nomad")
        await world.until(lambda: world.phase("nomad") == "Running")
        world.engine.add_node("n2")
        await world.until(lambda: world.kube.peek(SWARM_NODE, "n2") is not None)
        world.engine.remove_node("n1")
        await world.until(lambda: world.node("n1")["status"]["phase"] == "Gone")
        await world.until(lambda: world.phase("nomad") == "Succeeded")
        attempts = world.task("nomad").status.attempts
        assert [attempt.node for attempt in attempts] == ["n1", "n2"]
        assert world.task("nomad").status.failures == 0


async def test_a_short_sleep_keeps_the_work() -> None:
    async with running(World("n1")) as world:
        world.engine.script("lid", Outcome(duration_s=30))
        world.add_task("lid")
        await world.until(lambda: world.phase("lid") == "Running")
        world.engine.freeze("n1")
        await world.pass_time(8)
        world.engine.reconnect("n1")
        await world.until(lambda: world.phase("lid") == "Succeeded")
        assert world.task("lid").status.attempt == 1


@pytest.mark.slow
async def test_a_long_sleep_costs_one_attempt_and_nothing_of_the_users_budget() -> None:
    """Swarm ends what runs on a node that it has given up (docs/engines.md)."""
    async with running(World("n1")) as world:
        world.engine.script("lid", Outcome(duration_s=30))
        world.add_task("lid", backoffLimit=0)
        await world.until(lambda: world.phase("lid") == "Running")
        world.engine.freeze("n1")
        await world.until(lambda: world.phase("lid") == "Unknown")
        await world.until(lambda: world.node("n1")["status"]["phase"] == "Unreachable")
        await world.pass_time(30)
        assert world.task("lid").status.attempt == 1, "nothing proves that it is over"
        world.engine.reconnect("n1")
        await world.until(lambda: world.phase("lid") == "Succeeded")
        status = world.task("lid").status
        assert [attempt.reason for attempt in status.attempts] == ["NodeLost", "Completed"]
        assert (status.failures, status.infrastructure_losses) == (0, 1)


async def test_a_workload_that_somebody_removed_is_lost_and_replaced() -> None:
    async with running(World("n1")) as world:
        world.engine.script("victim", Outcome(duration_s=None), Outcome())
        world.add_task("victim")
        await world.until(lambda: world.phase("victim") == "Running")
        current = world.task("victim").status.current
        assert current is not None
        world.engine.lose(current.id)
        await world.until(lambda: world.phase("victim") == "Succeeded")
        assert [attempt.reason for attempt in world.task("victim").status.attempts] == ["WorkloadLost", "Completed"]


async def test_stale_news_never_undoes_newer() -> None:
    async with running(World("n1")) as world:
        world.kube.hold_watches()
        world.add_task("late")
        await world.pass_time(5)
        world.kube.release_watches()
        await world.until(lambda: world.phase("late") == "Starting")
        world.kube.hold_watches()
        await world.until(lambda: world.phase("late") == "Succeeded")
        world.kube.release_watches()
        await world.pass_time(5)
        assert world.phase("late") == "Succeeded"
        assert len(world.engine.called("submit")) == 1


# --- secrets ---


def secret(name: str, **values: str) -> dict[str, object]:
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "default"}, "data": data}


def with_secret(name: str, key: str, *, optional: bool = False) -> dict[str, object]:
    reference = {"name": name, "key": key, "optional": optional}
    env = [{"name": "PLAIN", "value": "1"}, {"name": "TOKEN", "valueFrom": {"secretKeyRef": reference}}]
    return {"env": env}


async def test_secrets_reach_the_workload_and_nothing_else() -> None:
    async with running(World("n1")) as world:
        world.kube.add(SECRET, secret("forge", token="canary-5f1d"))
        world.add_task("user", container=with_secret("forge", "token"))
        await world.until(lambda: world.phase("user") == "Running")
        current = world.task("user").status.current
        assert current is not None
        assert dict(world.engine.workload(current.id).env) == {"PLAIN": "1", "TOKEN": "canary-5f1d"}
        await world.until(lambda: world.phase("user") == "Succeeded")
        assert "canary-5f1d" not in repr(world.kube.all(SWARM_TASK)) + repr(world.kube.all(EVENT))


async def test_a_missing_secret_says_what_is_missing() -> None:
    async with running(World("n1")) as world:
        world.kube.add(SECRET, secret("forge", other="x"))
        world.add_task("a", container=with_secret("forge", "token"), backoffLimit=0)
        world.add_task("b", container=with_secret("nowhere", "token"), backoffLimit=0)
        world.add_task("c", container=with_secret("nowhere", "token", optional=True))
        await world.until(lambda: world.phase("a") == "Failed" and world.phase("b") == "Failed" and world.phase("c") == "Succeeded")
        assert world.task("a").status.reason == "SecretNotFound"
        assert "has no key token" in (world.task("a").status.message or "")
        assert "Secret nowhere does not exist" in (world.task("b").status.message or "")


async def test_a_secret_that_is_no_text_is_refused_without_showing_it() -> None:
    async with running(World("n1")) as world:
        body = secret("raw", token="x") | {"data": {"token": base64.b64encode(b"\xff\xfecanary").decode()}}
        world.kube.add(SECRET, body)
        world.add_task("a", container=with_secret("raw", "token"), backoffLimit=0)
        await world.until(lambda: world.phase("a") == "Failed")
        assert "is not text" in (world.task("a").status.message or "")
        assert "canary" not in (world.task("a").status.message or "")


# --- objects that cannot be read ---


async def test_an_object_that_its_model_refuses_fails_with_the_field() -> None:
    async with running(World("n1")) as world:
        world.unreadable.add("odd")
        body = {"apiVersion": SWARM_TASK.api_version, "kind": "SwarmTask", "metadata": {"name": "odd", "namespace": "default"}}
        world.kube.add(SWARM_TASK, body | {"spec": {"container": {"image": 7}, "backoffLimit": "many"}})
        await world.until(lambda: world.phases()["odd"] == "Failed")
        status = (world.kube.peek(SWARM_TASK, "odd") or {})["status"]
        assert status["reason"] == "InvalidObject"
        assert "spec.backoffLimit" in status["message"]
        world.add_task("fine")
        await world.until(lambda: world.phase("fine") == "Succeeded")


async def test_an_object_whose_status_cannot_be_read_is_left_alone() -> None:
    async with running(World("n1")) as world:
        world.unreadable.add("future")
        body = {
            "apiVersion": SWARM_TASK.api_version, "kind": "SwarmTask", "metadata": {"name": "future", "namespace": "default"},
            "spec": {"container": {"image": "busybox"}},
        }  # fmt: skip
        world.kube.add(SWARM_TASK, body, status={"phase": "Dreaming"})
        world.add_task("fine")
        await world.until(lambda: world.phase("fine") == "Succeeded")
        assert (world.kube.peek(SWARM_TASK, "future") or {})["status"] == {"phase": "Dreaming"}


@pytest.mark.slow
async def test_a_refused_write_holds_up_one_task_only() -> None:
    async with running(World("n1")) as world:
        world.kube.fail("patch", lambda: ServiceUnavailable("no"), kind=SWARM_TASK, name="stuck", times=20)
        world.add_task("stuck")
        for number in range(5):
            world.add_task(f"t{number}")
        await world.until(lambda: all(world.phase(f"t{number}") == "Succeeded" for number in range(5)), 60)
        await world.until(lambda: world.phase("stuck") == "Succeeded", 600)


# --- loops that fail, clocks that are set back ---


@pytest.mark.parametrize("kind", [SWARM_NODE, SWARM_QUEUE], ids=["node", "queue"])
async def test_what_a_failed_loop_had_to_write_is_written_when_it_runs_again(kind: Kind) -> None:
    async with running(World("n1")) as world:
        world.engine.script("short", Outcome(duration_s=10))
        world.add_task("short")
        await world.until(lambda: world.phase("short") == "Running")
        await world.pass_time(5)
        world.kube.fail("patch", kind=kind, subresource="status")
        await world.until(lambda: world.phase("short") == "Succeeded")
        await world.pass_time(20)
        assert world.node("n1")["status"]["tasks"] == 0
        assert (world.kube.peek(SWARM_QUEUE, "default", "default") or {})["status"]["running"] == 0


async def test_a_clock_that_is_set_back_does_not_make_anybody_wait_by_as_much() -> None:
    world = World("n1")
    wall = world.clock = world.kube.clock = SetBackClock()
    world.engine = FakeEngine(wall, nodes=("n1",))
    world.engines = (world.engine,)
    async with running(world):
        world.engine.script("retried", Outcome(exit_code=1), Outcome())
        world.engine.script("endless", Outcome(duration_s=None))
        world.add_task("retried", backoff={"initialSeconds": 5, "maxSeconds": 30})
        world.add_task("endless", activeDeadlineSeconds=20, backoffLimit=0)
        await world.until(lambda: world.phase("retried") == "Backoff" and world.phase("endless") == "Running")
        wall.behind_s = 3600
        await world.until(lambda: world.phase("retried") == "Succeeded", 90)
        await world.until(lambda: world.phase("endless") == "Failed", 90)
        assert world.task("endless").status.reason == "ActiveDeadline"


class SetBackClock(ManualClock):
    """Its wall time can be set back; its monotonic time cannot."""

    behind_s = 0.0

    def now(self) -> datetime:
        return super().now() - timedelta(seconds=self.behind_s)


async def test_a_submit_that_arrives_after_its_sender_died_does_not_run_the_attempt_again() -> None:
    """The engine takes its time over a request of an operator that is dead by then; meanwhile the work was done and cleaned up."""
    async with running(World("n1", keep_finished_workloads=0)) as world:
        world.engine.script("t", Outcome(exit_code=1, duration_s=2), Outcome(duration_s=40))
        world.add_task("t", backoff={"initialSeconds": 0})
        await world.until(lambda: world.phase("t") == "Running")
        sent = world.engine.workload(f"{world.task('t').status.attempts[0].id}")
        await world.crash()
        await world.start()
        await world.until(lambda: world.task("t").status.attempt == 2 and world.phase("t") == "Running")
        await world.pass_time(10)
        assert sent.name in world.engine.names(), "its name is what makes the late submit do nothing"
        await world.engine.submit(sent)
        await world.until(lambda: sent.name not in world.engine.names(), 60)
        assert [run.name for run in world.engine.intervals()].count(sent.name) == 1
        await world.until(lambda: world.phase("t") == "Succeeded")


async def test_a_task_that_is_deleted_soon_after_a_restart_goes_when_no_late_submit_can_come() -> None:
    async with running(World("n1")) as world:
        world.engine.script("t", Outcome(duration_s=None))
        created = world.add_task("t")
        await world.until(lambda: world.phase("t") == "Running")
        await world.crash()
        await world.start()
        world.checker.delete_requested(created["metadata"]["uid"], world.clock.now())
        world.kube.remove(SWARM_TASK, "t", "default")
        await world.until(lambda: not world.engine.acting())
        await world.until(lambda: world.gone("t"), 60)
        assert world.engine.names() == set()


async def test_a_reason_that_is_written_slowly_does_not_outlive_the_next_one() -> None:
    async with running(World("n1")) as world:
        world.add_queue("q", stopped=True)
        world.add_task("large", cpu="64", queue="q")
        await world.until(lambda: world.task("large").status.reason == "QueueStopped")
        world.kube.latency_s = 3.0
        world.kube.edit(SWARM_QUEUE, "q", "default", {"spec": {"stopped": False}})
        await world.pass_time(1.5)
        world.kube.edit(SWARM_QUEUE, "q", "default", {"spec": {"stopped": True}})
        await world.until(lambda: world.task("large").status.reason == "NoNodeFits", 10)
        await world.until(lambda: world.task("large").status.reason == "QueueStopped", 20)


class _Stubborn(FakeEngine):
    """Swallows the first cancellation, as a careless library does."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock, nodes=("n1",))
        self.swallowed = 0

    async def workloads(self) -> tuple[Observation, ...]:
        try:
            return await super().workloads()
        except asyncio.CancelledError:
            self.swallowed += 1
            if self.swallowed > 1:
                raise
            return ()


async def test_the_operator_ends_although_a_cancellation_is_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_module, "CANCEL_AGAIN_S", 0.01)
    world = World()
    engine = _Stubborn(world.clock)
    world.engines = (engine,)
    await world.start()
    asked = len(engine.called("workloads"))
    engine.delay("workloads", 3600)
    await world.until(lambda: len(engine.called("workloads")) > asked)
    await world.stop()
    assert engine.swallowed >= 1


async def test_an_edit_while_an_attempt_starts_does_not_send_it_again_after_a_restart() -> None:
    """Nobody had seen its workload yet, and the list of the engine comes late: only that says that it is there."""
    async with running(World("n1")) as world:
        world.engine.script("t", Outcome(duration_s=20))
        world.add_task("t")
        await world.until(lambda: world.engine.called("submit"))
        await world.crash()
        assert not world.task("t").status.attempts[0].observed
        world.kube.edit(SWARM_TASK, "t", "default", {"spec": {"container": {"image": "busybox:2"}}})
        world.engine.delay("workloads", 3)
        await world.start(wait=False)
        await world.pass_time(2)
        assert len(world.engine.called("submit")) == 1
        world.engine.delay("workloads", 0)
        await world.until(lambda: world.phase("t") == "Succeeded")
        assert len(world.engine.called("submit")) == 1
        assert world.task("t").status.attempt == 1


async def test_a_submit_whose_answer_was_lost_counts_though_the_task_is_edited_before_it_is_repeated() -> None:
    async with running(World("n1")) as world:
        world.engine.script("t", Outcome(duration_s=20))
        world.engine.delay("workloads", 30)
        world.engine.fail("submit", EngineUnavailable("the answer was lost"), after=True)
        world.add_task("t")
        await world.until(world.engine.names)
        world.kube.edit(SWARM_TASK, "t", "default", {"spec": {"container": {"image": "busybox:2"}}})
        await world.until(lambda: len(world.engine.called("submit")) == 2)
        world.engine.delay("workloads", 0)
        await world.until(lambda: world.phase("t") == "Succeeded")
        assert world.task("t").status.attempt == 1
        assert world.engine.edited == {world.task("t").status.attempts[0].id}


async def test_an_attempt_that_an_earlier_operator_bound_is_submitted_once_the_engine_does_not_list_it() -> None:
    async with running(World("n1")) as world:
        world.arm("before:submit")
        world.add_task("t")
        await world.until(lambda: world.phase("t") == "Succeeded", restart=True)
        assert world.crashes == ["before:submit"]
        assert world.task("t").status.attempt == 1


async def test_a_deleted_task_stays_until_its_submit_has_ended() -> None:
    """The submit takes longer than a stop that nobody sees may; what it brings is removed before the task goes."""
    async with running(World("n1")) as world:
        world.engine.script("t", Outcome(duration_s=None))
        world.engine.delay("submit", 60)
        created = world.add_task("t", terminationGracePeriodSeconds=1)
        await world.until(lambda: world.engine.called("submit"))
        world.checker.delete_requested(created["metadata"]["uid"], world.clock.now())
        world.kube.remove(SWARM_TASK, "t", "default")
        await world.until(lambda: world.phase("t") == "Cancelled")
        await world.until(lambda: world.engine.names() or world.gone("t"))
        assert not world.gone("t")
        await world.until(lambda: world.gone("t"))
        assert world.engine.names() == set()
