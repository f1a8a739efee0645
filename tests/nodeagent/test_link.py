"""The agent's line to the embedded API server, and kubeconfigs that are none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from swarmtask.errors import ConfigurationError, NotFound, ServiceUnavailable, SwarmTaskError, Unauthorized
from swarmtask.kube import KubeClient
from swarmtask.nodeagent import link as links
from swarmtask.nodeagent.link import LEASE_NAMESPACE, Credentials, Link, read_kubeconfig
from swarmtask.nodeagent.report import Sight, status
from swarmtask.resources.kinds import LEASE, SWARM_NODE
from swarmtask.resources.node import SwarmNode
from tests.kube.real import real_api_server
from tests.nodeagent.test_report import READING

CONTEXT = "{contexts: [{name: a, context: {cluster: c, user: u}}], current-context: a, "
RENEWED = "2026-01-01T00:00:00.000000Z"


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[Link, KubeClient]]:
    async with (
        real_api_server(tmp_path) as kubeconfig,
        KubeClient.from_kubeconfig(kubeconfig) as client,
        Link(read_kubeconfig(kubeconfig)) as link,
    ):
        body = {"apiVersion": SWARM_NODE.api_version, "kind": "SwarmNode", "metadata": {"name": "laptop"}, "spec": {}}
        await client.create(SWARM_NODE, body)
        yield link, client


def _condition(kind: str, value: str = "False") -> dict[str, str]:
    return {"type": kind, "status": value, "reason": "Test", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}


async def test_two_write_one_status_and_neither_takes_the_others_part(served: tuple[Link, KubeClient]) -> None:
    link, client = served
    operators = {"phase": "Ready", "engines": [{"name": "swarm", "id": "n1"}], "conditions": [_condition("Ready", "True")]}
    await client.patch(SWARM_NODE, "laptop", {"status": operators}, subresource="status")
    await link.tell("laptop", status(Sight(READING, 7), "1") | {"conditions": [_condition("Hot"), _condition("OnBattery")]})
    node = SwarmNode.model_validate(await link.node("laptop"))
    assert node.status.phase == "Ready"
    assert {item.type for item in node.status.conditions} == {"Ready", "Hot", "OnBattery"}
    assert (node.status.latency_milliseconds, len(node.status.gpus)) == (7, 1)

    await link.tell("laptop", {"power": {"onBattery": True}, "conditions": [_condition("OnBattery", "True")]})
    node = SwarmNode.model_validate(await link.node("laptop"))
    assert {item.type: item.status for item in node.status.conditions} == {"Ready": "True", "OnBattery": "True"}
    assert (node.status.latency_milliseconds, node.status.gpus, node.status.power.on_battery) == (None, [], True)
    assert await link.node_uid("laptop") == node.metadata.uid
    found = await link.node_of_engine("swarm", "n1")
    assert found is not None
    assert found["metadata"]["name"] == "laptop"
    assert await link.node_of_engine("local", "n1") is None


async def test_a_node_of_many_is_found_without_reading_all_of_them_at_once(
    served: tuple[Link, KubeClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    link, client = served
    for number in range(3):
        name = f"z{number}"
        body = {"apiVersion": SWARM_NODE.api_version, "kind": "SwarmNode", "metadata": {"name": name}, "spec": {}}
        await client.create(SWARM_NODE, body)
        await client.patch(SWARM_NODE, name, {"status": {"engines": [{"name": "swarm", "id": name}]}}, subresource="status")
    monkeypatch.setattr(links, "NODES_AT_ONCE", 1)
    sizes: list[int] = []
    call = link._call

    async def counted(*given: Any, **options: Any) -> Any:
        answer = await call(*given, **options)
        sizes.append(len(answer["items"]))
        return answer

    monkeypatch.setattr(link, "_call", counted)
    found = await link.node_of_engine("swarm", "z2")
    assert found is not None
    assert found["metadata"]["name"] == "z2"
    assert sizes == [1, 1, 1, 1]
    assert await link.node_of_engine("swarm", "none") is None


async def test_a_lease_is_made_and_renewed(served: tuple[Link, KubeClient]) -> None:
    link, client = served
    assert 0 < await link.renew("laptop", "boot-1", 20, RENEWED) < 60
    await link.renew("laptop", "boot-1", 20, RENEWED.replace("00:00.", "00:02."))
    lease = await client.get(LEASE, "laptop", LEASE_NAMESPACE)
    assert lease["spec"] == {"holderIdentity": "boot-1", "leaseDurationSeconds": 20, "renewTime": "2026-01-01T00:00:02.000000Z"}


async def test_a_node_that_is_not_there_and_a_wrong_token(served: tuple[Link, KubeClient], tmp_path: Path) -> None:
    link, _ = served
    with pytest.raises(NotFound, match="nobody"):
        await link.node("nobody")
    with pytest.raises(NotFound, match="nobody"):
        await link.node_uid("nobody")
    known = read_kubeconfig(tmp_path / "kubeconfig")
    async with Link(Credentials(known.server, "wrong", known.ca)) as stranger:
        with pytest.raises(Unauthorized):
            await stranger.node("laptop")
    async with Link(Credentials(known.server, known.token)) as trusting_the_world:
        with pytest.raises(ServiceUnavailable, match="does not answer"):
            await trusting_the_world.node("laptop")


@pytest.mark.parametrize(("code", "text"), [(200, b"<html>"), (502, b"bad gateway"), (418, b""), (200, b"[]"), (302, b"{}")])
async def test_something_else_that_answers(monkeypatch: pytest.MonkeyPatch, code: int, text: bytes) -> None:
    answer = urllib3.HTTPResponse(body=text, status=code, headers={"Location": "https://evil.invalid"})
    monkeypatch.setattr(urllib3.connectionpool.HTTPSConnectionPool, "urlopen", lambda *_, **__: answer)
    async with Link(Credentials("https://elsewhere.invalid", "t")) as link:
        with pytest.raises(SwarmTaskError, match=f"answered {code}"):
            await link.node("laptop")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no kubeconfig"),
        ("[", "cannot read"),
        ("contexts: []\ncurrent-context: x", "no kubeconfig"),
        (CONTEXT + "clusters: [{name: c, cluster: {server: 'http://x'}}], users: [{name: u, user: {token: t}}]}", "not https"),
        (CONTEXT + "clusters: [{name: c, cluster: {server: 'https://x'}}], users: [{name: u, user: {}}]}", "no token"),
    ],
)
def test_a_kubeconfig_that_is_none_says_so(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=words):
        read_kubeconfig(path)


def test_a_kubeconfig_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read"):
        read_kubeconfig(tmp_path / "none")


def test_files_beside_the_kubeconfig_are_found(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    (tmp_path / "ca.pem").write_text("PEM")
    (tmp_path / "config").write_text(
        "{contexts: [{name: a, context: {cluster: c, user: u}}], current-context: a, users: [{name: u, user: {tokenFile: token}}], "
        "clusters: [{name: c, cluster: {server: 'https://x/', certificate-authority: ca.pem}}]}"
    )
    assert read_kubeconfig(tmp_path / "config") == Credentials("https://x", "abc", "PEM")
