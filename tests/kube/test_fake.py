"""The in-memory API keeps the contract, and fails when told to."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from swarmtask.errors import Conflict, Expired, ServiceUnavailable
from swarmtask.resources.kinds import CONFIG_MAP, SWARM_TASK
from tests.fakes.kube import FakeKube
from tests.kube.contract import ObjectApiContract, Under, config_map, task


class TestFakeKube(ObjectApiContract):
    @pytest.fixture
    def api(self) -> FakeKube:
        return FakeKube()

    @pytest.fixture
    def under(self, api: FakeKube) -> Under:
        return api.under


async def test_the_nth_matching_call_fails() -> None:
    kube = FakeKube()
    kube.fail("patch", lambda: Conflict("told to"), kind=SWARM_TASK, subresource="status", skip=1)
    kube.add(SWARM_TASK, task("a"))
    for version, phase in enumerate(("Queued", "Starting", "Running")):
        patch = kube.patch(SWARM_TASK, "a", {"status": {"phase": phase}}, "default", subresource="status")
        if version == 1:
            with pytest.raises(Conflict):
                await patch
        else:
            assert (await patch)["status"]["phase"] == phase


async def test_a_lost_answer_has_taken_effect() -> None:
    kube = FakeKube()
    kube.fail("create", after=True)
    with pytest.raises(ServiceUnavailable):
        await kube.create(CONFIG_MAP, config_map("a"), "default")
    assert kube.peek(CONFIG_MAP, "a") is not None


async def test_a_stopped_server_refuses_everything() -> None:
    kube = FakeKube()
    kube.down = True
    with pytest.raises(ServiceUnavailable):
        await kube.list(CONFIG_MAP)
    kube.down = False
    assert not (await kube.list(CONFIG_MAP)).items


async def test_a_compacted_history_ends_watches_with_expired() -> None:
    kube = FakeKube()
    since = (await kube.list(CONFIG_MAP)).resource_version
    kube.add(CONFIG_MAP, config_map("a"))
    async with aclosing(kube.watch(CONFIG_MAP, resource_version=since)) as stream:
        assert (await anext(stream)).type == "ADDED"
        kube.expire_watches()
        with pytest.raises(Expired):
            await anext(stream)
    with pytest.raises(Expired):
        await anext(kube.watch(CONFIG_MAP, resource_version=since))


async def test_a_bounded_history_expires_old_versions() -> None:
    kube = FakeKube(history=3)
    since = (await kube.list(CONFIG_MAP)).resource_version
    for number in range(4):
        kube.add(CONFIG_MAP, config_map(f"a{number}"))
    with pytest.raises(Expired):
        await anext(kube.watch(CONFIG_MAP, resource_version=since))


async def test_held_watches_are_stale_until_released() -> None:
    kube = FakeKube()
    since = (await kube.list(CONFIG_MAP)).resource_version
    async with aclosing(kube.watch(CONFIG_MAP, resource_version=since)) as stream:
        kube.hold_watches()
        kube.add(CONFIG_MAP, config_map("a"))
        pending = asyncio.ensure_future(anext(stream))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not pending.done()
        kube.release_watches()
        assert (await pending).object["metadata"]["name"] == "a"


def test_two_fakes_of_one_seed_are_alike() -> None:
    one, two = (FakeKube(seed=7).add(CONFIG_MAP, config_map("a")) for _ in range(2))
    assert one == two
