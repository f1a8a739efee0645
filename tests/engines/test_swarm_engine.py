"""The Swarm engine keeps the contract on a real, private, one-node swarm, and survives a daemon that hangs."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from swarmtask.clock import SystemClock
from swarmtask.engines.base import Engine, Hint, WorkloadState
from swarmtask.engines.swarm import SwarmEngine
from swarmtask.engines.swarm.observe import Observer
from swarmtask.errors import ConfigurationError, EngineRejected, EngineUnavailable
from swarmtask.lifecycle.messages import Reason
from swarmtask.settings import SwarmSettings
from tests.engines.contract import ENDLESS, EngineContract, Program, ProgramContract, Rig, exits
from tests.lab import images
from tests.lab.cluster import Lab
from tests.lab.node import NodeSize
from tests.lab.outer import OuterDocker, connect
from tests.lab.tools import Missing

GIB = 2**30
pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def outer() -> Iterator[OuterDocker]:
    try:
        outer = connect()
    except Missing as error:
        pytest.skip(str(error))
    yield outer
    outer.close()


@pytest.fixture(scope="module")
def lab(outer: OuterDocker) -> Iterator[Lab]:
    """A swarm of our own: a manager that works, and a laptop to do faults to."""
    with Lab((NodeSize("desktop", 2, 8 * GIB), NodeSize("laptop-1", 1, 4 * GIB)), docker_url=outer.url) as lab:
        lab.load_image(images.TASK_TAG)
        yield lab


class SwarmRig(Rig):
    image = images.TASK_TAG
    _runs = itertools.count(1)

    def __init__(self, lab: Lab, node: str = "desktop", **settings: Any) -> None:
        self.lab = lab
        self.cluster = secrets.token_hex(4)
        # Patient: a Docker that is held up by a busy machine is not what these tests are about.
        self.settings = SwarmSettings(docker_host=lab.docker_host(lab.manager), **{"timeout_s": 60.0, **settings})
        super().__init__(self.fresh(), lab.swarm_node_id(node))
        self.run_number = next(self._runs)

    def fresh(self, **changes: Any) -> SwarmEngine:
        return SwarmEngine(self.settings.model_copy(update=changes), self.cluster, SystemClock())

    def workload(self, program: Program, **changes: Any):
        work = super().workload(program, **changes)
        if "name" in changes:
            return work
        return replace(work, name=f"st-{self.cluster}-{self.run_number}-{work.task_uid.removeprefix('uid-')}")

    async def foreign(self) -> Callable[[], Any]:
        api = self.lab.manager_client().api
        names = [f"foreign-{self.cluster}", f"other-{self.cluster}"]

        def make() -> None:
            template = {"ContainerSpec": {"Image": images.TASK_TAG, "Command": ["sleep", "600"]}}
            api.create_service(template, name=names[0])
            labels = {"swarmtask.io/managed": "true", "swarmtask.io/cluster": "somebody-else"}
            api.create_service(template, name=names[1], labels=labels)

        await asyncio.to_thread(make)
        for name in names:
            await self.engine.stop(name, 0)
            await self.engine.remove(name)

        def untouched() -> bool:
            there = [api.inspect_service(name) for name in names]
            for name in names:
                api.remove_service(name)
            return all(service["Version"]["Index"] > 0 and service["Spec"]["Mode"] == ONE for service in there)

        return lambda: asyncio.to_thread(untouched)

    async def break_engine(self) -> None:
        self.engine = SwarmEngine(SwarmSettings(docker_host="unix:///no/such/docker.sock"), self.cluster, SystemClock())


ONE = {"Replicated": {"Replicas": 1}}


async def clean(rig: SwarmRig) -> None:
    engine = rig.fresh()
    for seen in await engine.workloads():
        await engine.remove(seen.name)
    await engine.aclose()


@pytest.fixture
async def rig(lab: Lab) -> AsyncIterator[SwarmRig]:
    rig = SwarmRig(lab)
    await rig.engine.start()
    yield rig
    await rig.engine.aclose()
    await clean(rig)


@pytest.fixture
async def laptop(lab: Lab) -> AsyncIterator[SwarmRig]:
    """The same with work on the other node, which is put in order again."""
    rig = SwarmRig(lab, "laptop-1")
    yield rig
    await asyncio.to_thread(lab.node("laptop-1").restore)
    await asyncio.to_thread(lab.wait_ready)
    await rig.engine.aclose()
    await clean(rig)


class TestSwarmKeepsTheContract(EngineContract, ProgramContract):
    pass


def test_it_is_an_engine() -> None:
    engine: Engine = SwarmEngine(SwarmSettings(), "c", SystemClock())
    assert engine.name == "swarm"


async def test_a_missing_image_is_told_with_dockers_words(rig: SwarmRig) -> None:
    seen = await rig.run(exits(0), image="swarmtask-test/no-such-image:9")
    assert (seen.state, seen.reason) == (WorkloadState.REJECTED, Reason.IMAGE_PULL_FAILED)
    assert "swarmtask-test/no-such-image:9" in seen.message
    assert "No such image" in seen.message


async def test_an_image_that_only_another_node_lacks_is_named_as_it_was_asked_for(lab: Lab, laptop: SwarmRig) -> None:
    def tag() -> None:
        client = lab.client("desktop")
        client.api.tag(images.TASK_TAG, "swarmtask-test/only-here", "1")
        container = client.api.create_container("swarmtask-test/only-here:1", ["true"])
        client.api.commit(container["Id"], "swarmtask-test/only-here", "2")
        client.api.remove_container(container["Id"])

    await asyncio.to_thread(tag)
    seen = await laptop.run(exits(0), image="swarmtask-test/only-here:2")
    assert seen.reason is Reason.IMAGE_PULL_FAILED
    assert seen.message.startswith("swarmtask-test/only-here:2: ")


async def test_what_no_engine_can_run_is_refused(rig: SwarmRig) -> None:
    for changes in ({"name": "Upper_Case"}, {"args": ("a\0b",)}, {"image": "Not An Image"}):
        with pytest.raises(EngineRejected):
            await rig.engine.submit(rig.workload(exits(0), **changes))
    assert not await rig.engine.workloads()


async def test_the_stored_service_is_hardened(rig: SwarmRig) -> None:
    work = rig.workload(ENDLESS, cpu_limit_milli=500, env=(("A", "{{x}}"),))
    await rig.engine.submit(work)
    api = rig.lab.manager_client().api
    spec = (await asyncio.to_thread(api.inspect_service, work.name))["Spec"]
    template, container = spec["TaskTemplate"], spec["TaskTemplate"]["ContainerSpec"]
    assert container["CapabilityDrop"] == ["ALL"]
    assert "CapabilityAdd" not in container
    assert not {"Mounts", "Secrets", "Configs", "Sysctls", "Hosts", "User", "Groups", "TTY"} & set(container)
    assert template["Resources"] == {"Limits": {"NanoCPUs": 500_000_000, "MemoryBytes": 64 * 2**20, "Pids": 4096}}
    assert template["RestartPolicy"]["Condition"] == "none"
    assert template["Placement"]["Constraints"] == [f"node.id=={rig.node_id}"]
    assert template["LogDriver"]["Options"] == {"max-size": "32m", "max-file": "2", "compress": "true"}
    assert not template.get("Networks")
    assert spec["EndpointSpec"] == {"Mode": "dnsrr"}
    assert spec["Mode"] == ONE
    assert container["Env"] == ['A={{"{{"}}x}}', "NVIDIA_VISIBLE_DEVICES=void"]


async def test_the_container_has_no_capability(rig: SwarmRig) -> None:
    work = rig.workload(Program("grep -E 'CapEff|CapBnd' /proc/self/status; chown 1:1 /tmp 2>&1"))
    await rig.engine.submit(work)
    assert (await rig.finished(work.name)).exit_code == 1
    text = (await rig.read(work.name)).decode()
    assert text.count("0000000000000000") == 2
    assert "not permitted" in text


async def test_a_new_operator_sees_the_same(rig: SwarmRig) -> None:
    running, ended = rig.workload(ENDLESS), rig.workload(exits(6))
    await rig.engine.submit(running)
    await rig.engine.submit(ended)
    await rig.running(running.name)
    await rig.finished(ended.name)
    other = rig.fresh()
    await other.submit(running)
    seen = {one.name: (one.state, one.exit_code, one.reason) for one in await other.workloads()}
    await other.aclose()
    assert seen == {running.name: (WorkloadState.RUNNING, None, None), ended.name: (WorkloadState.EXITED, 6, None)}


async def test_kill_9_of_itself_on_a_healthy_node_is_a_plain_exit(rig: SwarmRig) -> None:
    for code in (137, 143, 255):
        seen = await rig.run(exits(code))
        assert (seen.exit_code, seen.reason) == (code, None)


@pytest.mark.parametrize("signal", ["TERM", "KILL"])
async def test_a_restart_of_the_nodes_docker_is_told_from_an_exit(lab: Lab, laptop: SwarmRig, signal: Any) -> None:
    before, during = laptop.workload(exits(137)), laptop.workload(ENDLESS)
    for work in (before, during):
        await laptop.engine.submit(work)
    own = await laptop.finished(before.name)
    await laptop.running(during.name)
    await asyncio.sleep(3.5)  # away from the registration of the node's start, which would excuse `before`
    restart = asyncio.ensure_future(asyncio.to_thread(lab.restart_dockerd, "laptop-1", signal))
    seen = await laptop.finished(during.name)
    await restart
    assert own.reason is None
    if (seen.exit_code, signal) != (0, "KILL"):  # a program that makes 0 of SIGTERM is complete for Swarm, and nobody can tell
        assert (seen.state, seen.reason) == (WorkloadState.EXITED, Reason.NODE_RESTARTED)
    after = await laptop.observe(before.name)
    assert after == own


async def test_a_power_cut_is_told_from_an_exit(lab: Lab, laptop: SwarmRig) -> None:
    work = laptop.workload(ENDLESS)
    await laptop.engine.submit(work)
    await laptop.running(work.name)
    await asyncio.to_thread(lab.kill, "laptop-1")
    lost = await laptop.until(work.name, lambda seen: seen.state is not WorkloadState.RUNNING)
    assert lost.state is WorkloadState.UNKNOWN
    with pytest.raises(EngineUnavailable, match="laptop-1"):
        await laptop.read(work.name)
    await asyncio.to_thread(lab.start_node, "laptop-1")
    seen = await laptop.finished(work.name)
    assert seen.reason in (Reason.NODE_RESTARTED, Reason.NODE_LOST)


async def test_work_that_ends_in_a_partition_keeps_its_exit_code(lab: Lab, laptop: SwarmRig) -> None:
    work = laptop.workload(Program("sleep 5; exit 3"))
    await laptop.engine.submit(work)
    await laptop.running(work.name)
    await asyncio.to_thread(lab.partition, "laptop-1")
    await laptop.until(work.name, lambda seen: seen.state is WorkloadState.UNKNOWN)
    await asyncio.to_thread(lab.heal, "laptop-1")
    seen = await laptop.finished(work.name)
    assert (seen.state, seen.exit_code, seen.reason) == (WorkloadState.EXITED, 3, None)


async def test_what_swarm_ends_after_a_long_partition_is_lost_and_not_failed(lab: Lab, laptop: SwarmRig) -> None:
    work = laptop.workload(ENDLESS)
    await laptop.engine.submit(work)
    await laptop.running(work.name)
    await asyncio.to_thread(lab.partition, "laptop-1")
    await laptop.until(work.name, lambda seen: seen.state is WorkloadState.UNKNOWN)
    await asyncio.to_thread(lab.heal, "laptop-1")
    seen = await laptop.finished(work.name)
    assert (seen.state, seen.reason) == (WorkloadState.EXITED, Reason.NODE_LOST)


async def test_a_hanging_docker_costs_the_time_out_and_no_more(lab: Lab, rig: SwarmRig) -> None:
    engine = rig.fresh(timeout_s=1.0, threads=2)
    await engine.start()
    await asyncio.to_thread(lab.pause, "desktop")
    try:
        begun = time.monotonic()
        answers = await asyncio.gather(*(engine.workloads() for _ in range(12)), return_exceptions=True)
        assert all(isinstance(answer, EngineUnavailable) for answer in answers), answers
        assert time.monotonic() - begun < 6
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.ensure_future(tick())
        with pytest.raises(EngineUnavailable):
            await engine.nodes()
        ticking.cancel()
        assert ticks > 20  # the loop went on
    finally:
        await asyncio.to_thread(lab.unpause, "desktop")
    for _ in range(100):
        try:
            await engine.workloads()
            break
        except EngineUnavailable:
            await asyncio.sleep(0.1)
    else:
        pytest.fail("it did not recover")
    await engine.aclose()


async def test_watch_comes_back_after_a_restart_of_docker_and_says_resync(lab: Lab, rig: SwarmRig) -> None:
    hints: list[Hint] = []

    async def listen() -> None:
        async for hint in rig.engine.watch():
            hints.append(hint)

    listening = asyncio.ensure_future(listen())

    async def until_resyncs(count: int) -> None:
        for _ in range(600):
            if hints.count(Hint("resync")) >= count:
                return
            await asyncio.sleep(0.1)
        pytest.fail(f"no resync came, only {hints}")

    await until_resyncs(1)
    await asyncio.to_thread(lab.restart_dockerd, "desktop", "TERM")
    await until_resyncs(2)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    await asyncio.to_thread(lab.wait_ready)


async def test_start_says_what_to_do(lab: Lab, outer: OuterDocker) -> None:
    for host, words in [
        ("unix:///no/such/docker.sock", "systemctl start docker"),
        (lab.docker_host("laptop-1"), "docker node promote"),
    ]:
        with pytest.raises(ConfigurationError, match=words):
            await SwarmEngine(SwarmSettings(docker_host=host), "c", SystemClock()).start()


async def test_a_long_output_arrives_whole(rig: SwarmRig) -> None:
    work = rig.workload(Program("seq 1 20000; head -c 50000 /dev/zero | tr '\\0' x; echo"))
    await rig.engine.submit(work)
    await rig.finished(work.name)
    text = await rig.read(work.name)
    assert text == b"".join(f"{number}\n".encode() for number in range(1, 20001)) + b"x" * 50000 + b"\n"


async def test_logs_let_go_when_nobody_reads_on(rig: SwarmRig) -> None:
    work = rig.workload(Program("trap 'exit 0' TERM; while :; do echo tick; sleep 0.05; done"))
    await rig.engine.submit(work)
    await rig.running(work.name)
    stream = rig.engine.logs(work.name, follow=True)
    assert b"tick" in await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    await rig.engine.remove(work.name)


async def test_stop_keeps_the_logs(rig: SwarmRig) -> None:
    work = rig.workload(Program("trap 'echo ended; exit 0' TERM; echo begun; while :; do sleep 0.05; done"))
    await rig.engine.submit(work)
    await rig.said(work.name, b"begun")
    await rig.engine.stop(work.name, 2)
    await rig.finished(work.name)
    assert await rig.read(work.name, follow=True) == b"begun\nended\n"


def test_observer_forgets_what_is_gone() -> None:
    observer = Observer()
    node = {"ID": "n", "Version": {"Index": 1}, "Spec": {}, "Status": {"State": "ready"}, "UpdatedAt": "2026-01-01T00:00:00.5Z"}
    observer.observe([], [], [node])
    observer.observe([], [], [])
    assert not observer._nodes
    assert not observer._registered
