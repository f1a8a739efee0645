"""What a laptop says that cannot be: nobody but its own work is worse off for it, and the operator keeps none of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from swarmtask.clock import format_micro_time
from swarmtask.errors import RequestEntityTooLarge, SwarmTaskError
from swarmtask.kube import Object
from swarmtask.resources.fields import MOST_BOOT_ID
from swarmtask.resources.kinds import LEASE, SWARM_NODE, SWARM_TASK
from swarmtask.resources.task import SwarmTask
from tests.controllers.world import World, running
from tests.fakes.agent import LEASES
from tests.fakes.engine import Outcome

LONG_S = 60.0


@pytest.fixture(autouse=True)
def nothing_unexpected(caplog: pytest.LogCaptureFixture) -> Any:
    yield
    assert not [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.ERROR]


@asynccontextmanager
async def laptop(holder: str = "boot-1") -> AsyncIterator[World]:
    """A world of one node, n1, whose Lease is renewed; nothing else is told of it."""
    async with running(World("n1")) as world:
        renewing = asyncio.create_task(renew(world, holder))
        try:
            await world.pass_time(10)
            yield world
        finally:
            renewing.cancel()
            await asyncio.wait((renewing,))


async def renew(world: World, holder: str) -> None:
    metadata = {"name": "n1", "namespace": LEASES}
    world.kube.add(LEASE, {"metadata": metadata, "spec": {"holderIdentity": holder, "leaseDurationSeconds": 20}})
    while True:
        world.kube.edit(LEASE, "n1", LEASES, {"spec": {"renewTime": format_micro_time(world.clock.now())}})
        await world.clock.sleep(2.0)


def tell(world: World, *records: Object) -> None:
    world.kube.edit(SWARM_NODE, "n1", None, {"status": {"attempts": list(records)}}, status=True)


def written(world: World, name: str) -> int:
    """How often the status of a task was sent."""
    return sum(1 for call in world.kube.calls if call.verb == "patch" and call.name == name and call.subresource == "status")


async def test_a_holder_that_is_too_long_for_an_attempt() -> None:
    async with laptop("A" * 1000) as world:
        world.add_task("work")
        await world.until(lambda: world.phase("work") == "Succeeded", LONG_S)
        assert world.task("work").status.attempts[0].boot_id == "A" * MOST_BOOT_ID


@pytest.mark.parametrize("stopping", [False, True])
@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59Z"])
async def test_an_end_at_a_time_that_no_clock_shows(moment: str, stopping: bool) -> None:
    async with laptop() as world:
        world.engine.script("work", Outcome(duration_s=None, honours_term=False), Outcome())
        world.add_task("work", terminationGracePeriodSeconds=3600)
        await world.until(lambda: world.phase("work") == "Running")
        if stopping:
            world.kube.edit(SWARM_TASK, "work", "default", {"spec": {"suspend": True}})
            await world.until(lambda: world.task("work").status.attempts[0].state == "Stopping")
        name = world.task("work").status.attempts[0].id
        tell(world, {"id": name, "state": "Exited", "exitCode": 0, "startedAt": moment, "finishedAt": moment})
        await world.until(lambda: world.phase("work") == ("Pending" if stopping else "Succeeded"), LONG_S)


@pytest.mark.parametrize("peak", ["9e99", "9e18"])
async def test_a_peak_that_cannot_be_is_not_learned(peak: str) -> None:
    async with laptop() as world:
        world.add_task("teacher", memory="128Mi")
        await world.until(lambda: world.phase("teacher") == "Succeeded")
        name = world.task("teacher").status.attempts[0].id
        tell(world, {"id": name, "state": "Exited", "exitCode": 0, "peakMemory": peak, "cpuSeconds": 1.5})
        await world.until(lambda: world.task("teacher").status.attempts[0].cpu_seconds == 1.5)
        stored = world.kube.peek(SWARM_TASK, "teacher", "default")
        assert stored is not None
        attempt = SwarmTask.model_validate(stored).status.attempts[0]
        assert (attempt.peak_memory, stored["status"]["peakMemory"]) == (str(128 * 2**20), "128Mi")
        sent = written(world, "teacher")
        await world.pass_time(30)
        assert written(world, "teacher") == sent, "it is not told for ever"
        world.add_task("pupil", memory="auto")
        await world.until(lambda: world.phase("pupil") == "Succeeded")
        assert world.task("pupil").status.attempts[0].requested.memory == "512Mi"


@pytest.mark.parametrize("reason", ["Foo", "NodeLost"])
async def test_a_stop_that_another_version_asked_for(reason: str) -> None:
    async with laptop() as world:
        world.engine.script("work", Outcome(duration_s=None), Outcome())
        world.add_task("work")
        await world.until(lambda: world.phase("work") == "Running")
        attempt = world.task("work").status.attempts[0].to_dict()
        stop = {"state": "Stopping", "stopReason": reason, "stopRequestedAt": f"{world.clock.now():%Y-%m-%dT%H:%M:%SZ}"}
        world.kube.edit(SWARM_TASK, "work", "default", {"status": {"attempts": [attempt | stop]}}, status=True)
        await world.until(lambda: world.phase("work") == "Succeeded", LONG_S)
        first, second = world.task("work").status.attempts
        assert (first.state, first.reason, second.state) == ("Stopped", reason, "Succeeded")


@pytest.mark.parametrize("subresource", ["", "status"])
async def test_a_node_that_cannot_be_written_keeps_no_other(subresource: str, caplog: pytest.LogCaptureFixture) -> None:
    """Neither from being written, nor a restarted operator from giving work to the others."""

    def too_large() -> SwarmTaskError:
        return RequestEntityTooLarge('swarmnodes.swarmtask.io "n1" is too large')

    async with running(World("n1", "n2", "n3")) as world:
        await world.until(lambda: all(phase_of(world, name) == "Ready" for name in ("n1", "n2", "n3")))
        await world.stop()
        world.kube.fail("patch", too_large, kind=SWARM_NODE, name="n1", subresource=subresource, times=1_000_000)
        copied = {"labels": {"old": "x"}, "annotations": {"swarmtask.io/engine-labels": "old"}}
        world.kube.edit(SWARM_NODE, "n1", None, {"metadata": copied, "spec": {"reserved": {"cpu": "1"}}})
        world.engine.disconnect("n2")
        await world.start()
        await world.until(lambda: phase_of(world, "n2") == "Unreachable", LONG_S)
        world.add_task("work")
        await world.until(lambda: world.phase("work") == "Succeeded", LONG_S)
        assert world.task("work").status.attempts[0].node != "n2"
        assert world.node("n1")["status"]["allocatable"]["cpu"] == "4" or not subresource, "nobody could write it"
    assert caplog.text.count("is too large; it is tried again") == 1


def phase_of(world: World, node: str) -> str:
    return str((world.node(node).get("status") or {}).get("phase"))
