"""What every engine must do, run on all of them: the fake, the local engine, real Swarm.

A test module makes a `rig` fixture (its engine and how to pass time) and subclasses `EngineContract`; engines that run real
programs subclass `ProgramContract` too. Nothing here knows which engine it is, only what its capabilities say.
"""

from __future__ import annotations

import asyncio
import itertools
import shlex
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from swarmtask.controllers.node_labels import label_changes
from swarmtask.engines.base import (
    FINAL_WORKLOAD_STATES,
    Availability,
    Engine,
    Hint,
    NodeState,
    Observation,
    Workload,
    WorkloadState,
)
from swarmtask.errors import EngineRejected, EngineUnavailable, WorkloadNotFound
from swarmtask.lifecycle.messages import Reason
from tests.fakes.engine import Outcome

MIB = 2**20


@dataclass(frozen=True)
class Program:
    """One behaviour, for a real shell and for the fake."""

    script: str
    outcome: Outcome = field(default_factory=Outcome)


def exits(code: int) -> Program:
    return Program(f"exit {code}", Outcome(exit_code=code, duration_s=0.1))


def says(*lines: str) -> Program:
    output = tuple(f"{line}\n".encode() for line in lines)
    return Program("printf '%s\\n' " + " ".join(map(shlex.quote, lines)), Outcome(duration_s=0.1, output=output))


ENDLESS = Program("trap 'exit 0' TERM; while :; do sleep 0.05; done", Outcome(duration_s=None, term_exit_code=0))
# These say when their traps are set: a signal before that would end them in another way.
POLITE = Program(
    "trap 'exit 0' TERM; echo armed; while :; do sleep 0.05; done",
    Outcome(duration_s=None, term_exit_code=0, output=(b"armed\n",)),
)
STUBBORN = Program(
    "trap '' TERM; echo armed; while :; do sleep 0.05; done",
    Outcome(duration_s=None, honours_term=False, output=(b"armed\n",)),
)
KILLS_ITSELF = Program("kill -KILL $$; sleep 60", Outcome(exit_code=137, duration_s=0.1))
EATS_MEMORY = Program("exec tail /dev/zero", Outcome(duration_s=1, oom=True))
SLOW_SPEAKER = Program("echo one; sleep 1; echo two", Outcome(duration_s=1, output=(b"one\n", b"two\n")))


class Rig:
    """One engine under test.

    Attributes:
        shell: how a script becomes a command.
        kill_is_137: a program that kills itself with SIGKILL can do so (PID 1 of a container cannot).
    """

    image = "swarmtask.test/busybox:1"
    shell: tuple[str, ...] = ("/bin/sh", "-c")
    patience_s = 60.0

    def __init__(self, engine: Engine, node_id: str) -> None:
        self.engine = engine
        self.node_id = node_id
        self._numbers = itertools.count(1)

    async def pass_time(self) -> None:
        """Let a little time go by."""
        await asyncio.sleep(0.05)

    def elapsed_s(self) -> float:
        """Seconds on the clock that the engine lives by."""
        return time.monotonic()

    def workload(self, program: Program, **changes: Any) -> Workload:
        number = next(self._numbers)
        fields: dict[str, Any] = {
            "name": f"st-contract-{number}-1", "task_uid": f"uid-{number}", "namespace": "default", "task_name": f"task-{number}",
            "attempt": 1, "node_id": self.node_id, "image": self.image, "command": self.shell, "args": (program.script,),
            "cpu_request_milli": 100, "memory_request_bytes": 32 * MIB, "memory_limit_bytes": 64 * MIB, "grace_s": 2,
        }  # fmt: skip
        return Workload(**{**fields, **changes})

    async def observe(self, name: str) -> Observation | None:
        return next((seen for seen in await self.engine.workloads() if seen.name == name), None)

    async def until(self, name: str, wanted: Callable[[Observation], bool]) -> Observation:
        """The first observation of `name` that is wanted; fails with the last one seen."""
        deadline, seen = self.elapsed_s() + self.patience_s, None
        while self.elapsed_s() < deadline:
            seen = await self.observe(name)
            if seen is not None and wanted(seen):
                return seen
            await self.pass_time()
        raise AssertionError(f"{name} did not get there within {self.patience_s} s; last seen: {seen}")

    async def finished(self, name: str) -> Observation:
        return await self.until(name, lambda seen: seen.state in FINAL_WORKLOAD_STATES)

    async def running(self, name: str) -> Observation:
        seen = await self.until(name, lambda seen: seen.state not in (WorkloadState.PENDING, WorkloadState.PREPARING))
        assert seen.state is WorkloadState.RUNNING, seen
        return seen

    async def said(self, name: str, text: bytes) -> None:
        """Wait until the workload runs and has written `text`."""
        await self.running(name)
        deadline = self.elapsed_s() + self.patience_s
        while text not in await self.read(name):
            assert self.elapsed_s() < deadline, f"{name} did not say {text!r}"
            await self.pass_time()

    async def run(self, program: Program, **changes: Any) -> Observation:
        work = self.workload(program, **changes)
        await self.engine.submit(work)
        return await self.finished(work.name)

    async def read(self, name: str, **options: Any) -> bytes:
        """All of `logs`, letting time pass while it waits."""
        reading = asyncio.ensure_future(collect(self.engine.logs(name, **options)))
        deadline = self.elapsed_s() + self.patience_s
        while not reading.done():
            assert self.elapsed_s() < deadline, f"logs of {name} did not end"
            await self.pass_time()
        return reading.result()

    async def foreign(self) -> Callable[[], Any]:
        """Make an object that is not ours where the engine has such a thing; the answer says (async) whether it still lives."""

        async def untouched() -> bool:
            return True

        return untouched

    async def break_engine(self) -> None:
        """Make the engine unreachable for the rest of the test."""
        raise NotImplementedError


async def collect(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


class EngineContract:
    """Holds for every engine, the fake included."""

    @pytest.mark.parametrize("code", [0, 1, 42, 255])
    async def test_exit_code_is_told_truly(self, rig: Rig, code: int) -> None:
        seen = await rig.run(exits(code))
        assert (seen.state, seen.exit_code, seen.reason) == (WorkloadState.EXITED, code, None)
        assert seen.node_id == rig.node_id
        assert seen.engine == rig.engine.name
        assert seen.finished_at is not None
        assert seen.started_at is None or seen.started_at <= seen.finished_at  # Swarm forgets when a short one began

    async def test_observation_names_its_owner(self, rig: Rig) -> None:
        seen = await rig.run(exits(0), namespace="team-a", task_name="lint", task_uid="u-7", attempt=3)
        assert (seen.namespace, seen.task_name, seen.task_uid, seen.attempt) == ("team-a", "lint", "u-7", 3)

    @pytest.mark.parametrize("fence", [True, False])
    async def test_observation_tells_whether_it_was_made_to_be_fenced(self, rig: Rig, fence: bool) -> None:
        work = rig.workload(ENDLESS, fence=fence)
        await rig.engine.submit(work)
        assert (await rig.running(work.name)).fence is fence
        await rig.engine.stop(work.name, 0)
        assert (await rig.finished(work.name)).fence is fence

    async def test_submitting_the_same_again_changes_nothing(self, rig: Rig) -> None:
        work = rig.workload(ENDLESS)
        await rig.engine.submit(work)
        first = await rig.running(work.name)
        await asyncio.gather(*(rig.engine.submit(work) for _ in range(5)))
        again = await rig.running(work.name)
        assert again.started_at == first.started_at
        assert [seen.name for seen in await rig.engine.workloads()] == [work.name]

    async def test_submitting_the_same_again_after_it_ended_does_not_run_it_again(self, rig: Rig) -> None:
        work = rig.workload(exits(3))
        await rig.engine.submit(work)
        first = await rig.finished(work.name)
        await rig.engine.submit(work)
        for _ in range(20):
            await rig.pass_time()
            assert await rig.observe(work.name) == first

    async def test_many_submitted_at_once_all_end(self, rig: Rig) -> None:
        works = [rig.workload(exits(number), memory_limit_bytes=16 * MIB) for number in range(8)]
        await asyncio.gather(*(rig.engine.submit(work) for work in works))
        seen = [await rig.finished(work.name) for work in works]
        assert [one.exit_code for one in seen] == list(range(8))

    async def test_stop_ends_a_program_that_honours_term(self, rig: Rig) -> None:
        work = rig.workload(POLITE, grace_s=30)
        await rig.engine.submit(work)
        await rig.said(work.name, b"armed")
        begun = rig.elapsed_s()
        await rig.engine.stop(work.name, 30)
        seen = await rig.finished(work.name)
        assert rig.elapsed_s() - begun < 15
        assert (seen.state, seen.exit_code) == (WorkloadState.EXITED, 0)

    async def test_stop_kills_after_the_grace_and_not_before(self, rig: Rig) -> None:
        work = rig.workload(STUBBORN, grace_s=2)  # Swarm holds to the grace that it was submitted with
        await rig.engine.submit(work)
        await rig.said(work.name, b"armed")
        begun = rig.elapsed_s()
        await rig.engine.stop(work.name, 2)
        seen = await rig.finished(work.name)
        assert 1.5 <= rig.elapsed_s() - begun < 20
        assert (seen.state, seen.exit_code) == (WorkloadState.EXITED, 137)

    async def test_a_stopped_workload_stays_to_be_seen_and_does_not_start_again(self, rig: Rig) -> None:
        work = rig.workload(ENDLESS)
        await rig.engine.submit(work)
        await rig.running(work.name)
        await rig.engine.stop(work.name, 5)
        first = await rig.finished(work.name)
        for _ in range(20):
            await rig.pass_time()
            assert await rig.observe(work.name) == first

    async def test_stop_right_after_submit_ends_it(self, rig: Rig) -> None:
        work = rig.workload(ENDLESS)
        await rig.engine.submit(work)
        await rig.engine.stop(work.name, 2)
        seen = await rig.finished(work.name)
        assert seen.state in (WorkloadState.STOPPED, WorkloadState.EXITED)

    async def test_stop_of_a_finished_workload_keeps_its_record(self, rig: Rig) -> None:
        work = rig.workload(exits(3))
        await rig.engine.submit(work)
        first = await rig.finished(work.name)
        await rig.engine.stop(work.name, 5)
        for _ in range(10):
            await rig.pass_time()
            seen = await rig.observe(work.name)
            assert seen is not None
            assert (seen.state, seen.exit_code, seen.finished_at) == (first.state, 3, first.finished_at)

    async def test_stop_and_remove_of_the_unknown_succeed(self, rig: Rig) -> None:
        await rig.engine.stop("st-never-was-1", 5)
        await rig.engine.remove("st-never-was-1")

    async def test_remove_of_a_finished_workload_forgets_it(self, rig: Rig) -> None:
        work = rig.workload(exits(0))
        await rig.engine.submit(work)
        await rig.finished(work.name)
        await rig.engine.remove(work.name)
        assert not await rig.engine.workloads()
        await rig.engine.remove(work.name)

    async def test_remove_of_a_running_workload_ends_and_forgets_it(self, rig: Rig) -> None:
        work = rig.workload(ENDLESS)
        await rig.engine.submit(work)
        await rig.running(work.name)
        await rig.engine.remove(work.name)
        assert await rig.observe(work.name) is None

    async def test_workloads_are_all_of_ours_and_nothing_else(self, rig: Rig) -> None:
        untouched = await rig.foreign()
        works = [rig.workload(ENDLESS) for _ in range(3)]
        for work in works:
            await rig.engine.submit(work)
        assert sorted(seen.name for seen in await rig.engine.workloads()) == sorted(work.name for work in works)
        for work in works:
            await rig.engine.remove(work.name)
        assert not await rig.engine.workloads()
        assert await untouched()

    async def test_logs_after_the_end(self, rig: Rig) -> None:
        work = rig.workload(says("first", "second", "dritte Zeile: äöü €"))
        await rig.engine.submit(work)
        await rig.finished(work.name)
        assert (await rig.read(work.name)).decode() == "first\nsecond\ndritte Zeile: äöü €\n"

    async def test_logs_tail(self, rig: Rig) -> None:
        work = rig.workload(says("a", "b", "c", "d"))
        await rig.engine.submit(work)
        await rig.finished(work.name)
        assert await rig.read(work.name, tail=2) == b"c\nd\n"
        assert await rig.read(work.name, tail=0) == b""
        assert await rig.read(work.name, tail=99) == b"a\nb\nc\nd\n"

    async def test_logs_with_timestamps(self, rig: Rig) -> None:
        work = rig.workload(says("x"))
        await rig.engine.submit(work)
        await rig.finished(work.name)
        stamp, _, text = (await rig.read(work.name, timestamps=True)).partition(b" ")
        assert text == b"x\n"
        assert stamp.startswith(b"20")
        assert stamp.endswith(b"Z")

    async def test_logs_follow_until_the_end(self, rig: Rig) -> None:
        work = rig.workload(SLOW_SPEAKER)
        await rig.engine.submit(work)
        await rig.running(work.name)
        assert await rig.read(work.name, follow=True) == b"one\ntwo\n"

    async def test_logs_followed_from_the_submit_on(self, rig: Rig) -> None:
        work = rig.workload(SLOW_SPEAKER)
        await rig.engine.submit(work)
        assert await rig.read(work.name, follow=True) == b"one\ntwo\n"

    async def test_logs_of_a_silent_program_are_empty(self, rig: Rig) -> None:
        work = rig.workload(exits(0))
        await rig.engine.submit(work)
        await rig.finished(work.name)
        assert await rig.read(work.name) == b""

    async def test_logs_of_the_unknown(self, rig: Rig) -> None:
        with pytest.raises(WorkloadNotFound):
            await rig.read("st-never-was-1")

    async def test_nodes(self, rig: Rig) -> None:
        node = next(node for node in await rig.engine.nodes() if node.id == rig.node_id)
        assert node.state is NodeState.READY
        assert node.available
        assert node.hostname
        assert node.cpu_milli >= 1000
        assert node.memory_bytes >= 256 * MIB

    async def test_label_node_sets_removes_and_leaves_the_rest(self, rig: Rig) -> None:
        async def labels() -> dict[str, str]:
            return dict(next(node for node in await rig.engine.nodes() if node.id == rig.node_id).labels)

        before = await labels()
        await rig.engine.label_node(rig.node_id, {"swarmtask.io/a": "1", "swarmtask.io/b": "{{x}} ü"})
        await rig.engine.label_node(rig.node_id, {"swarmtask.io/a": None, "swarmtask.io/never": None})
        assert await labels() == {**before, "swarmtask.io/b": "{{x}} ü"}
        await rig.engine.label_node(rig.node_id, {"swarmtask.io/b": None})
        assert await labels() == before

    async def test_labels_that_are_written_as_they_differ_come_to_rest(self, rig: Rig) -> None:
        """What the operator writes of a node's facts, and takes away again."""

        async def labels() -> dict[str, str]:
            return dict(next(node for node in await rig.engine.nodes() if node.id == rig.node_id).labels)

        before = await labels()
        for facts in ({"cpu": "4", "gpu-model": "NVIDIA-GeForce-RTX-3060"}, {"cpu": "8"}, {}):
            await rig.engine.label_node(rig.node_id, label_changes(await labels(), facts))
            listed = await labels()
            assert label_changes(listed, facts) == {}
            assert {key: listed[key] for key in before} == before
            assert {fact: listed[f"swarmtask.io/{fact}"] for fact in facts} == facts
        assert await labels() == before

    async def test_availability(self, rig: Rig) -> None:
        for availability, expected in [(Availability.PAUSE, False), (Availability.ACTIVE, True)]:
            await rig.engine.set_availability(rig.node_id, availability)
            node = next(node for node in await rig.engine.nodes() if node.id == rig.node_id)
            assert node.available is expected

    async def test_an_unknown_node_is_refused(self, rig: Rig) -> None:
        with pytest.raises(EngineRejected):
            await rig.engine.label_node("no-such-node", {"swarmtask.io/a": "1"})

    async def test_watch_hints_at_a_new_workload(self, rig: Rig) -> None:
        work = rig.workload(exits(0))
        hints: list[Hint] = []

        async def listen() -> None:
            async for hint in rig.engine.watch():
                hints.append(hint)

        listening = asyncio.ensure_future(listen())
        deadline = rig.elapsed_s() + rig.patience_s
        try:
            for _ in range(10):
                await rig.pass_time()
            await rig.engine.submit(work)
            while Hint("workload", work.name) not in hints:
                assert rig.elapsed_s() < deadline, f"no hint of {work.name} came, only {hints}"
                await rig.pass_time()
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def test_a_broken_engine_is_told_within_the_time_out(self, rig: Rig) -> None:
        work = rig.workload(exits(0))
        await rig.break_engine()
        for call in (
            rig.engine.workloads, rig.engine.nodes, lambda: rig.engine.submit(work), lambda: rig.engine.stop(work.name, 1),
            lambda: rig.engine.remove(work.name), lambda: rig.read(work.name),
        ):  # fmt: skip
            with pytest.raises(EngineUnavailable):
                await asyncio.wait_for(call(), 30)

    async def test_own_memory_limit_ends_only_the_greedy(self, rig: Rig) -> None:
        seen = await rig.run(EATS_MEMORY, memory_limit_bytes=32 * MIB)
        assert seen.state is WorkloadState.EXITED
        assert seen.exit_code == 137
        assert seen.reason in (None, Reason.OOM_KILLED)  # Swarm's API cannot say

    async def test_another_workload_of_the_same_name_is_refused_and_changes_nothing(self, rig: Rig) -> None:
        work = rig.workload(ENDLESS)
        await rig.engine.submit(work)
        first = await rig.running(work.name)
        for other in ({"task_uid": "uid-of-another"}, {"attempt": work.attempt + 1}):
            with pytest.raises(EngineRejected, match="exists already"):
                await rig.engine.submit(replace(work, **other))
        assert await rig.running(work.name) == first

    async def test_an_attempt_that_is_there_stays_as_it_is_though_its_task_was_edited(self, rig: Rig) -> None:
        work = rig.workload(ENDLESS)
        await rig.engine.submit(work)
        first = await rig.running(work.name)
        await rig.engine.submit(replace(work, args=(exits(0).script,), env=(("NEW", "value"),)))
        assert await rig.running(work.name) == first


NASTY = [
    "", " ", "two words", "  edges  ", '"double"', "'single'", "back\\slash", "$HOME $(id) `id`", "{{x}}", "{{.Node.Hostname}}",
    "{{", "}}", "{{{{", "{{ {{x}} }}", "{ {", 'a{{"b"}}c`d', "{{/*", "line\nbreak", "tab\tstop", "äöü € 漢字", "%s %d", "*",
    "-n", "--", "#not a comment", "a=b=c", "\x01\x7f", "{{`", "`{{`}}", "x" * 4000,
]  # fmt: skip


class ProgramContract:
    """Holds for engines that run real programs."""

    async def test_arguments_arrive_literally(self, rig: Rig) -> None:
        script = 'for a in "$@"; do printf "%s\\0" "$a"; done'
        work = rig.workload(Program(script), args=(script, "zero", *NASTY))
        await rig.engine.submit(work)
        seen = await rig.finished(work.name)
        assert seen.exit_code == 0, seen
        assert (await rig.read(work.name)).decode().split("\0")[:-1] == NASTY

    async def test_environment_arrives_literally(self, rig: Rig) -> None:
        env = tuple((f"V{number}", value) for number, value in enumerate(NASTY))
        work = rig.workload(Program("env -0"), env=env)
        await rig.engine.submit(work)
        seen = await rig.finished(work.name)
        assert seen.exit_code == 0, seen
        arrived = dict(line.split("=", 1) for line in (await rig.read(work.name)).decode().split("\0")[:-1])
        assert {name: arrived.get(name) for name, _ in env} == dict(env)

    async def test_a_missing_program_is_told(self, rig: Rig) -> None:
        work = rig.workload(Program(""), command=("/no/such/program",), args=())
        await rig.engine.submit(work)
        seen = await rig.finished(work.name)
        assert seen.state in (WorkloadState.REJECTED, WorkloadState.EXITED)
        assert seen.exit_code != 0
        assert "no such file" in seen.message.lower(), seen

    async def test_stop_reaches_the_children_too(self, rig: Rig) -> None:
        script = "(trap '' TERM; while :; do sleep 0.05; done) & trap 'exit 7' TERM; echo armed; while :; do sleep 0.05; done"
        work = rig.workload(Program(script))
        await rig.engine.submit(work)
        await rig.said(work.name, b"armed")
        await rig.engine.stop(work.name, 5)
        seen = await rig.finished(work.name)
        assert seen.exit_code == 7

    async def test_working_directory(self, rig: Rig) -> None:
        work = rig.workload(Program("pwd"), working_dir="/tmp")
        await rig.engine.submit(work)
        await rig.finished(work.name)
        assert await rig.read(work.name) == b"/tmp\n"

    async def test_stdin_is_empty_and_stderr_is_kept(self, rig: Rig) -> None:
        work = rig.workload(Program("cat; echo oops >&2; echo end"))
        await rig.engine.submit(work)
        await rig.finished(work.name)
        assert sorted((await rig.read(work.name)).splitlines()) == [b"end", b"oops"]
