"""The operator's loop around node agents: the credential that they share, and tokens of nodes that have left."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from swarmtask.clock import ManualClock, format_time
from swarmtask.controllers.agents import CREDENTIAL_LIFE, KEPT_TOKENS, LOOK_S, RENEW_BEFORE, Agents, surplus_tokens
from swarmtask.engines.base import AgentWish
from swarmtask.errors import EngineRejected, EngineUnavailable
from swarmtask.resources.enrolment import BOOTSTRAP_GROUP, BOOTSTRAP_USER, LABEL_BOOTSTRAP, LABEL_ENGINE_NODE
from swarmtask.resources.kinds import ACCESS_TOKEN, SWARM_NODE
from tests.fakes.kube import FakeKube

WISH = AgentWish("img", "https://10.0.0.1:7443", "PEM", fence_s=20, fence_grace_s=5)


class Host:
    """A swarm that keeps what it is given."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.given: list[str | None] = []
        self.wishes: list[AgentWish] = []
        self.failure: Exception | None = None

    async def address(self) -> str:
        return "10.0.0.1"

    async def tokens(self) -> Sequence[str]:
        return self.held

    async def ensure(self, wish: AgentWish, token: str | None) -> str:
        if self.failure is not None:
            raise self.failure
        self.given.append(token)
        if token is not None:
            self.held = [hashlib.sha256(token.encode()).hexdigest()]
        changed = not self.wishes or self.wishes[-1] != wish or token is not None
        self.wishes.append(wish)
        return "updated the node agents" if changed else ""

    async def remove(self) -> str:
        return ""


class Scene:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.kube = FakeKube(self.clock)
        self.host = Host()
        self.wish = WISH
        self.agents = Agents(self.kube, self.host, self._wished, self.clock)

    async def _wished(self) -> AgentWish:
        return self.wish

    async def tokens(self) -> list[dict[str, Any]]:
        return list((await self.kube.list(ACCESS_TOKEN)).items)


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_one_credential_is_made_and_kept(scene: Scene) -> None:
    await scene.agents.look()
    await scene.agents.look()
    (token,) = await scene.tokens()
    assert scene.host.given[0] is not None
    assert scene.host.given[1:] == [None]
    assert token["spec"]["user"] == BOOTSTRAP_USER
    assert token["spec"]["groups"] == [BOOTSTRAP_GROUP]
    assert token["spec"]["digest"] == scene.host.held[0]
    assert scene.host.given[0] not in str(token), "the API never sees it"


async def test_it_is_renewed_before_it_ends_and_the_old_one_is_revoked(scene: Scene) -> None:
    await scene.agents.look()
    scene.clock.advance((CREDENTIAL_LIFE - RENEW_BEFORE).total_seconds() - 1)
    await scene.agents.look()
    assert scene.host.given[-1] is None
    scene.clock.advance(2)
    await scene.agents.look()
    assert scene.host.given[-1] is not None
    (token,) = await scene.tokens()
    assert token["spec"]["digest"] == scene.host.held[0]


async def test_a_credential_that_was_revoked_by_hand_is_replaced(scene: Scene) -> None:
    await scene.agents.look()
    (token,) = await scene.tokens()
    await scene.kube.delete(ACCESS_TOKEN, token["metadata"]["name"])
    await scene.agents.look()
    (other,) = await scene.tokens()
    assert other["spec"]["digest"] != token["spec"]["digest"]
    assert other["spec"]["digest"] == scene.host.held[0]


async def test_a_credential_that_never_reached_the_engine_is_revoked_at_the_next_look(scene: Scene) -> None:
    scene.host.failure = EngineUnavailable("not now")
    with pytest.raises(EngineUnavailable):
        await scene.agents.look()
    assert len(await scene.tokens()) == 1
    scene.host.failure = None
    await scene.agents.look()
    (token,) = await scene.tokens()
    assert token["spec"]["digest"] == scene.host.held[0]


async def test_a_new_authority_or_address_reaches_the_engine(scene: Scene) -> None:
    await scene.agents.look()
    scene.wish = replace(WISH, ca="OTHER")
    await scene.agents.look()
    assert scene.host.wishes[-1].ca == "OTHER"


async def test_failures_are_told_once_and_tried_again(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    import asyncio

    scene.host.failure = EngineRejected("the image is not here")
    with caplog.at_level(logging.WARNING):
        running = asyncio.create_task(scene.agents.run())
        for _ in range(3):
            for _ in range(50):
                await asyncio.sleep(0)
            scene.clock.advance(LOOK_S)
        scene.host.failure = None
        for _ in range(50):
            await asyncio.sleep(0)
        running.cancel()
    assert caplog.text.count("the image is not here") == 1
    assert scene.host.wishes, "it went on"


def token(node: str, engine_node: str | None, *, hours: float = 1, **more: Any) -> dict[str, Any]:
    ends = format_time(ManualClock().now() + timedelta(hours=hours))
    labels = {LABEL_ENGINE_NODE: engine_node} if engine_node else {}
    return {
        "metadata": {"name": f"t-{node}", "uid": "u", "labels": labels},
        "spec": {"user": f"system:node:{node}", "expirationTimestamp": ends} | more,
    }


def node(name: str, engine_id: str, phase: str = "Ready") -> dict[str, Any]:
    return {"metadata": {"name": name}, "status": {"phase": phase, "engines": [{"name": "swarm", "id": engine_id}]}}


def test_which_tokens_of_nodes_end() -> None:
    now = ManualClock().now()
    nodes = [node("a", "1"), node("gone", "2", "Gone"), node("back", "new"), {"metadata": {"name": "bare"}}]
    good = [token("a", "swarm.1"), token("by-hand", None), token("back", "swarm.new")]
    bad = [
        token("a", "swarm.1", hours=-1), token("gone", "swarm.2"), token("back", "swarm.old"), token("deleted", "swarm.3"),
        token("bare", "swarm.4"),
    ]  # fmt: skip
    assert sorted(map(str, surplus_tokens([*good, *bad], nodes, now))) == sorted(map(str, bad))


def test_the_newest_tokens_of_a_node_are_kept() -> None:
    nodes, made = [node("a", "1"), node("b", "2")], [token("a", "swarm.1") for _ in range(KEPT_TOKENS + 2)]
    for number, one in enumerate(made):
        one["metadata"] |= {"creationTimestamp": f"2026-01-01T00:00:{number:02}Z"}
    found = surplus_tokens([*made, token("b", "swarm.2")], nodes, ManualClock().now())
    assert found == [made[1], made[0]]


async def test_tokens_of_a_node_that_left_are_revoked_and_those_of_others_stay(scene: Scene) -> None:
    for name, phase in (("a", "Ready"), ("b", "Gone")):
        body = {"apiVersion": SWARM_NODE.api_version, "kind": SWARM_NODE.kind, "metadata": {"name": name}, "spec": {}}
        await scene.kube.create(SWARM_NODE, body)
        status = {"status": {"phase": phase, "engines": [{"name": "swarm", "id": f"id-{name}"}]}}
        await scene.kube.patch(SWARM_NODE, name, status, subresource="status")
        made = token(name, f"swarm.id-{name}")
        made |= {"apiVersion": ACCESS_TOKEN.api_version, "kind": ACCESS_TOKEN.kind}
        del made["metadata"]["uid"]
        await scene.kube.create(ACCESS_TOKEN, made)
    await scene.agents.look()
    left = {item["metadata"]["name"] for item in await scene.tokens() if LABEL_BOOTSTRAP not in item["metadata"]["labels"]}
    assert left == {"t-a"}
