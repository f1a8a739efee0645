"""From the shared credential to a token of this node, against the embedded API server."""

from __future__ import annotations

import asyncio
import json
import random
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swarmtask.clock import SystemClock
from swarmtask.errors import Unauthorized
from swarmtask.kube import KubeClient, Object
from swarmtask.nodeagent import enrolment as enrolments
from swarmtask.nodeagent.enrolment import FILE, AnotherNode, Enrolment, Own, Place
from swarmtask.nodeagent.heartbeat import beat
from swarmtask.nodeagent.link import Credentials, Link, read_kubeconfig
from swarmtask.nodeagent.records import Records
from swarmtask.resources.enrolment import BOOTSTRAP_GROUP, BOOTSTRAP_USER, TOKEN_LIFE_S
from swarmtask.resources.kinds import ACCESS_TOKEN, SWARM_NODE
from tests.kube.real import real_api_server

SHARED = "the-credential-that-all-share-0123456789"


class Scene:
    """An API with a SwarmNode, and an agent's two links to it."""

    def __init__(self, client: KubeClient, shared: Link, own: Link, place: Place) -> None:
        self.client, self.shared, self.own, self.place = client, shared, own, place
        self.allowed = True

    def enrolment(self, place: Place | None = None) -> Enrolment:
        return Enrolment(
            self.shared, self.own, place or self.place, may_call=lambda: self.allowed, clock=SystemClock(), rng=random.Random(1)
        )

    async def node(self, name: str, engine_id: str, phase: str = "Ready") -> None:
        body = {"apiVersion": SWARM_NODE.api_version, "kind": "SwarmNode", "metadata": {"name": name}, "spec": {}}
        await self.client.create(SWARM_NODE, body)
        await self.tell(name, engine_id, phase)

    async def tell(self, name: str, engine_id: str, phase: str = "Ready") -> None:
        status = {"status": {"phase": phase, "engines": [{"name": "swarm", "id": engine_id}]}}
        await self.client.patch(SWARM_NODE, name, status, subresource="status")

    async def tokens(self) -> list[Object]:
        found = (await self.client.list(ACCESS_TOKEN)).items
        return [item for item in found if item["spec"]["user"] != BOOTSTRAP_USER]

    async def revoke_all(self) -> None:
        for item in await self.tokens():
            await self.client.delete(ACCESS_TOKEN, item["metadata"]["name"])


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    import hashlib

    async with real_api_server(tmp_path) as kubeconfig, KubeClient.from_kubeconfig(kubeconfig) as client:
        spec = {"user": BOOTSTRAP_USER, "groups": [BOOTSTRAP_GROUP], "digest": hashlib.sha256(SHARED.encode()).hexdigest()}
        body = {"apiVersion": ACCESS_TOKEN.api_version, "kind": "AccessToken", "metadata": {"name": "shared"}, "spec": spec}
        await client.create(ACCESS_TOKEN, body)
        known = read_kubeconfig(kubeconfig)
        credentials = Credentials(known.server, SHARED, known.ca, "swarmtask")
        async with Link(credentials) as shared, Link(credentials) as own:
            yield Scene(client, shared, own, Place("swarm", "id1", known.ca, tmp_path / "state"))


async def test_a_token_of_this_node_is_made_once_and_kept(scene: Scene) -> None:
    await scene.node("laptop", "id1")
    held = await scene.enrolment().enter()
    assert held.node == "laptop"
    path = scene.place.folder / FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    await scene.own.renew("laptop", "boot", 20, "2026-01-01T00:00:00.000000Z")
    beat(scene.place.folder, 1.0)
    assert Records(scene.place.folder).load() == {}, "what lies beside it is no record of an attempt"
    assert await scene.enrolment().enter() == held
    (made,) = await scene.tokens()
    assert made["spec"]["user"] == "system:node:laptop"
    assert held.token not in json.dumps(made)


@pytest.mark.slow
async def test_it_waits_for_its_swarmnode_and_for_the_fence(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrolments, "LONGEST_PAUSE_S", 0.3)
    scene.allowed = False
    entering = asyncio.create_task(scene.enrolment().enter())
    await scene.node("laptop", "id1")
    done, _ = await asyncio.wait([entering], timeout=1)
    assert not done, "the fence says no"
    scene.allowed = True
    assert (await asyncio.wait_for(entering, 20)).node == "laptop"

    other = asyncio.create_task(scene.enrolment(replace(scene.place, engine_node_id="id2")).enter())
    done, _ = await asyncio.wait([other], timeout=1)
    assert not done, "the operator has not made it"
    await scene.node("second", "id2")
    assert (await asyncio.wait_for(other, 20)).node == "second"


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"mark": 1}', b"\xff", None])
async def test_what_is_on_the_disk_and_does_not_belong_here_is_left(scene: Scene, content: bytes | None) -> None:
    await scene.node("laptop", "id1")
    scene.place.folder.mkdir()
    path = scene.place.folder / FILE
    if content is None:
        foreign = replace(scene.place, authority="another API's").mark
        content = json.dumps({"mark": foreign, "node": "laptop", "token": "x", "endsAt": 9e12}).encode()
    path.write_bytes(content)
    assert (await scene.enrolment().enter()).token != "x"
    assert json.loads(path.read_bytes())["node"] == "laptop"


async def test_a_token_that_ends_soon_is_renewed_at_the_start(scene: Scene) -> None:
    await scene.node("laptop", "id1")
    first = scene.enrolment()
    held = await first.enter()
    first._write(replace(held, ends_at=SystemClock().now().timestamp() + TOKEN_LIFE_S / 3 - 1))
    assert (await scene.enrolment().enter()).token != held.token


async def test_a_disk_that_cannot_be_written_stops_nobody(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    await scene.node("laptop", "id1")
    scene.place.folder.write_text("a file where the directory should be")
    assert (await scene.enrolment().enter()).node == "laptop"
    assert "cannot keep the token" in caplog.text


async def keeping(scene: Scene, held: Own, enrolment: Enrolment, monkeypatch: pytest.MonkeyPatch) -> asyncio.Task[None]:
    """Renewal under way, and its token revoked: the agent's next call tells that."""
    monkeypatch.setattr(enrolments, "SHORTEST_S", 0.1)
    task = asyncio.create_task(enrolment.keep(held))
    await scene.revoke_all()
    with pytest.raises(Unauthorized):
        await scene.own.node("laptop")
    return task


async def test_a_token_that_was_revoked_is_replaced(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    await scene.node("laptop", "id1")
    enrolment = scene.enrolment()
    held = await enrolment.enter()
    task = await keeping(scene, held, enrolment, monkeypatch)

    async def works() -> Any:
        while True:
            try:
                return await scene.own.node("laptop")
            except Unauthorized:
                await asyncio.sleep(0.05)

    assert (await asyncio.wait_for(works(), 20))["metadata"]["name"] == "laptop"
    task.cancel()


@pytest.mark.slow
async def test_a_node_that_left_gets_no_other_one(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(enrolments, "LONGEST_PAUSE_S", 0.3)
    await scene.node("laptop", "id1")
    enrolment = scene.enrolment()
    held = await enrolment.enter()
    await scene.tell("laptop", "id1", "Gone")
    task = await keeping(scene, held, enrolment, monkeypatch)
    done, _ = await asyncio.wait([task], timeout=2)
    assert not done
    assert await scene.tokens() == []
    assert "there is no such node" in caplog.text
    task.cancel()


async def test_a_machine_that_is_another_node_by_now_ends(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    await scene.node("laptop", "id1")
    enrolment = scene.enrolment()
    held = await enrolment.enter()
    await scene.tell("laptop", "new")
    await scene.node("laptop-id1", "id1")
    task = await keeping(scene, held, enrolment, monkeypatch)
    with pytest.raises(AnotherNode, match="laptop-id1"):
        await asyncio.wait_for(task, 20)
