"""The fake keeps the contract, and shows the faults that it is told to show."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from swarmtask.clock import ManualClock
from swarmtask.engines.base import Engine, NodeState, WorkloadState
from swarmtask.errors import EngineRejected, EngineUnavailable
from swarmtask.lifecycle.messages import Reason
from tests.engines.contract import ENDLESS, EngineContract, Program, Rig, exits
from tests.fakes.engine import FakeEngine, Outcome, UnexpectedCall


class FakeRig(Rig):
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.fake = FakeEngine(self.clock, nodes=("n1", "n2"))
        super().__init__(self.fake, "n1")

    async def pass_time(self) -> None:
        self.clock.advance(0.1)
        for _ in range(5):
            await asyncio.sleep(0)

    def elapsed_s(self) -> float:
        return self.clock.monotonic()

    def workload(self, program: Program, **changes):
        work = super().workload(program, **changes)
        self.fake.script(work.task_name, program.outcome)
        return work

    async def break_engine(self) -> None:
        self.fake.unavailable = True


@pytest.fixture
def rig() -> FakeRig:
    return FakeRig()


class TestFakeKeepsTheContract(EngineContract):
    pass


def test_the_fake_is_an_engine() -> None:
    engine: Engine = FakeEngine(ManualClock())
    assert engine.name == "swarm"


async def states(rig: FakeRig) -> dict[str, WorkloadState]:
    return {seen.name: seen.state for seen in await rig.engine.workloads()}


async def test_work_ended_in_a_partition_is_reported_after_healing(rig: FakeRig) -> None:
    work = rig.workload(Program("", Outcome(exit_code=4, duration_s=5)))
    await rig.engine.submit(work)
    await rig.running(work.name)
    rig.fake.disconnect("n1")
    rig.clock.advance(6)
    assert await states(rig) == {work.name: WorkloadState.RUNNING}  # not yet noticed, and already untrue
    rig.clock.advance(10)
    assert await states(rig) == {work.name: WorkloadState.UNKNOWN}
    assert next(node for node in await rig.engine.nodes() if node.id == "n1").state is NodeState.DOWN
    assert rig.fake.acting() == {}
    rig.fake.reconnect("n1")
    assert await states(rig) == {work.name: WorkloadState.UNKNOWN}
    rig.clock.advance(4)
    seen = await rig.finished(work.name)
    assert (seen.exit_code, seen.reason) == (4, None)


async def test_a_power_cycle_is_told_from_an_exit(rig: FakeRig) -> None:
    work = rig.workload(ENDLESS)
    await rig.engine.submit(work)
    await rig.running(work.name)
    rig.fake.power_off("n1")
    assert rig.fake.acting() == {}
    rig.clock.advance(60)
    assert await states(rig) == {work.name: WorkloadState.UNKNOWN}
    rig.fake.reconnect("n1")
    rig.clock.advance(4)
    seen = await rig.finished(work.name)
    assert (seen.exit_code, seen.reason) == (255, Reason.NODE_RESTARTED)


async def test_a_frozen_node_goes_on_where_it_stopped(rig: FakeRig) -> None:
    work = rig.workload(Program("", Outcome(duration_s=10)))
    await rig.engine.submit(work)
    await rig.running(work.name)
    rig.fake.freeze("n1")
    rig.clock.advance(11)
    rig.fake.reconnect("n1")
    rig.clock.advance(5)
    assert await states(rig) == {work.name: WorkloadState.RUNNING}
    rig.clock.advance(6)
    assert await states(rig) == {work.name: WorkloadState.EXITED}


async def test_what_still_runs_on_a_node_that_was_down_is_ended_when_it_is_back(rig: FakeRig) -> None:
    for lose in (rig.fake.disconnect, rig.fake.freeze):
        work = rig.workload(ENDLESS)
        await rig.engine.submit(work)
        await rig.running(work.name)
        lose("n1")
        rig.clock.advance(100)
        assert (await states(rig))[work.name] is WorkloadState.UNKNOWN
        rig.fake.reconnect("n1")
        seen = await rig.finished(work.name)
        assert seen.reason is Reason.NODE_LOST
        assert rig.fake.acting() == {}


async def test_what_is_removed_during_a_partition_acts_until_healing(rig: FakeRig) -> None:
    work = rig.workload(ENDLESS)
    await rig.engine.submit(work)
    await rig.running(work.name)
    rig.fake.disconnect("n1")
    await rig.engine.remove(work.name)
    assert await states(rig) == {}
    assert rig.fake.acting() == {work.name: work.task_uid}
    rig.fake.reconnect("n1")
    rig.clock.advance(1)
    assert rig.fake.acting() == {}
    (interval,) = rig.fake.intervals()
    assert interval.ended is not None


async def test_what_is_removed_is_out_of_sight_at_once_and_has_its_grace(rig: FakeRig) -> None:
    stubborn = replace(ENDLESS, outcome=replace(ENDLESS.outcome, honours_term=False))
    work = replace(rig.workload(stubborn), grace_s=7)
    await rig.engine.submit(work)
    await rig.running(work.name)
    await rig.engine.remove(work.name)
    rig.clock.advance(6)
    assert await states(rig) == {}
    assert rig.fake.acting() == {work.name: work.task_uid}
    rig.clock.advance(2)
    assert rig.fake.acting() == {}
    (interval,) = rig.fake.intervals()
    assert interval.exit_code == 137


async def test_a_stop_during_a_partition_arrives_after_healing(rig: FakeRig) -> None:
    work = rig.workload(ENDLESS)
    await rig.engine.submit(work)
    await rig.running(work.name)
    rig.fake.disconnect("n1")
    await rig.engine.stop(work.name, 5)
    rig.clock.advance(30)
    assert rig.fake.acting() == {work.name: work.task_uid}
    rig.fake.reconnect("n1")
    rig.clock.advance(4)
    assert (await rig.finished(work.name)).exit_code == 0


async def test_pull_failures_and_refusals(rig: FakeRig) -> None:
    seen = await rig.run(Program("", Outcome(pull_error="No such image: nope:1")))
    assert (seen.state, seen.reason, seen.message) == (
        WorkloadState.REJECTED, Reason.IMAGE_PULL_FAILED, "No such image: nope:1",
    )  # fmt: skip
    with pytest.raises(EngineRejected, match="too big"):
        await rig.engine.submit(rig.workload(Program("", Outcome(refused="too big"))))


async def test_faults_strike_the_nth_call_before_or_after_it_took_effect(rig: FakeRig) -> None:
    first, second, third = (rig.workload(exits(0)) for _ in range(3))
    rig.fake.fail("submit", EngineUnavailable("gone"), nth=2)
    await rig.engine.submit(first)
    with pytest.raises(EngineUnavailable):
        await rig.engine.submit(second)
    assert rig.fake.names() == {first.name}
    rig.fake.fail("submit", EngineUnavailable("answer lost"), after=True)
    with pytest.raises(EngineUnavailable):
        await rig.engine.submit(third)
    assert rig.fake.names() == {first.name, third.name}
    assert [call.name for call in rig.fake.called("submit")] == [first.name, second.name, third.name]


async def test_slow_calls_take_their_time_of_the_clock(rig: FakeRig) -> None:
    rig.fake.delay("workloads", 30)
    call = asyncio.ensure_future(rig.engine.workloads())
    await asyncio.sleep(0)
    rig.clock.advance(29)
    await asyncio.sleep(0)
    assert not call.done()
    rig.clock.advance(1)
    assert await call == ()


async def test_the_unexpected_fails(rig: FakeRig) -> None:
    with pytest.raises(UnexpectedCall):
        await rig.engine.submit(rig.workload(exits(0), node_id="n9"))
    with pytest.raises(UnexpectedCall):
        rig.fake.check()


async def test_attempts_follow_the_script_in_order(rig: FakeRig) -> None:
    rig.fake.script("t", Outcome(exit_code=1), Outcome(exit_code=0))
    codes = []
    for number in range(3):
        work = Rig.workload(rig, exits(0), task_name="t", attempt=number + 1)
        await rig.engine.submit(work)
        codes.append((await rig.finished(work.name)).exit_code)
    assert codes == [1, 0, 0]


async def test_a_node_taken_out_for_good(rig: FakeRig) -> None:
    work = rig.workload(ENDLESS)
    await rig.engine.submit(work)
    await rig.running(work.name)
    rig.fake.remove_node("n1")
    assert [node.id for node in await rig.engine.nodes()] == ["n2"]
    assert await states(rig) == {work.name: WorkloadState.UNKNOWN}


async def test_orphans_and_losses(rig: FakeRig) -> None:
    work = rig.workload(ENDLESS)
    rig.fake.adopt(work)
    await rig.running(work.name)
    assert rig.fake.called("submit") == []
    rig.fake.lose(work.name)
    assert await states(rig) == {}


async def test_a_node_that_sleeps_while_a_program_is_being_stopped_goes_on_stopping_it(rig: FakeRig) -> None:
    work = rig.workload(Program("", Outcome(duration_s=None, honours_term=False)))
    await rig.engine.submit(work)
    rig.clock.advance(2)
    await rig.engine.stop(work.name, 3)
    rig.clock.advance(1)
    rig.fake.freeze("n1")
    rig.clock.advance(5)
    rig.fake.reconnect("n1")
    assert work.name in rig.fake.acting(), "it had three seconds and has slept through most of them"
    rig.clock.advance(3)
    assert rig.fake.acting() == {}
    assert [run.exit_code for run in rig.fake.intervals()] == [137]
