"""The node role over HTTP: what the agent of a laptop may do with its token, and what a thief of the laptop may not."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from swarmtask.clock import SystemClock, format_time
from swarmtask.nodeagent.agent import Agent, Identity, Rhythm
from swarmtask.nodeagent.fence import Fence
from swarmtask.nodeagent.gpus import Gpus
from swarmtask.nodeagent.link import Credentials, Link
from swarmtask.nodeagent.probe import Probe
from swarmtask.resources.enrolment import BOOTSTRAP_GROUP, BOOTSTRAP_USER, LABEL_ENGINE_NODE, MOST_TOKENS
from swarmtask.resources.fields import MOST_BOOT_ID
from tests.apiserver.access.people import TASKS, client, new_token, person, task
from tests.apiserver.server import RunningServer

NODES = "/apis/swarmtask.io/v1alpha1/swarmnodes"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/{}/leases"
OWN = LEASES.format("kube-node-lease")
ACCESS_TOKENS = "/apis/access.swarmtask.io/v1alpha1/accesstokens"
MERGE = {"content-type": "application/merge-patch+json"}


@pytest.fixture
async def nodes(api: httpx.AsyncClient) -> None:
    for name in ("n1", "n2"):
        body = {"apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmNode", "metadata": {"name": name}, "spec": {}}
        assert (await api.post(NODES, json=body)).status_code == 201
        status = json.dumps({"status": {"phase": "Ready", "engines": [{"name": "swarm", "id": f"id-{name}"}]}})
        assert (await api.patch(f"{NODES}/{name}/status", content=status, headers=MERGE)).status_code == 200


@pytest.fixture
async def agent(server: RunningServer, api: httpx.AsyncClient, nodes: None) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the token of node n1."""
    async with client(server, await new_token(api, "system:node:n1", ("system:nodes",))) as opened:
        yield opened


async def status_of(api: httpx.AsyncClient, name: str) -> dict[str, Any]:
    status: dict[str, Any] = (await api.get(f"{NODES}/{name}")).json()["status"]
    return status


async def test_the_real_agent_needs_nothing_else(
    server: RunningServer, api: httpx.AsyncClient, nodes: None, tmp_path: Path
) -> None:
    probe = Probe(SystemClock().monotonic, Gpus(None, tmp_path / "drm"), disk=tmp_path)
    token = await new_token(api, "system:node:n1", ("system:nodes",))
    async with Link(Credentials(server.url, token, server.ca.read_text())) as link:
        agent = Agent(
            link, probe.read, Identity(engine="swarm", engine_node_id="id-n1"), Fence(lambda _: True, SystemClock().monotonic),
            boot_id=probe.boot_id, attempts=lambda: [{"id": "st-1-1", "state": "Exited", "exitCode": 3}], clock=SystemClock(),
            rng=random.Random(1), version="1", rhythm=Rhythm(renew_s=0.05, look_s=0.05, tell_at_most_s=0.0),
        )  # fmt: skip
        running = asyncio.create_task(agent.run())
        try:
            async with asyncio.timeout(20):
                while (
                    not {"usage", "attempts"} <= (await status_of(api, "n1")).keys()
                    or (await api.get(f"{OWN}/n1")).status_code != 200
                ):
                    assert not running.done()
                    await asyncio.sleep(0.02)
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
    status = await status_of(api, "n1")
    assert status["phase"] == "Ready"
    assert [record["id"] for record in status["attempts"]] == ["st-1-1"]


async def test_its_lease_and_no_other(agent: httpx.AsyncClient, api: httpx.AsyncClient) -> None:
    def lease(name: str, **metadata: Any) -> dict[str, Any]:
        return {"metadata": {"name": name, **metadata}, "spec": {"holderIdentity": name}}

    assert (await agent.post(OWN, json=lease("n2"))).status_code == 403
    assert (await agent.post(OWN, json={"metadata": {"generateName": "n1"}, "spec": {}})).status_code == 403
    assert (await agent.post(LEASES.format("default"), json=lease("n1"))).status_code == 403
    assert (await agent.post(OWN, json=lease("n1", finalizers=["x/y"]))).status_code == 403
    assert (await agent.post(OWN, json=lease("n1"))).status_code == 201
    assert (await api.post(OWN, json=lease("n2"))).status_code == 201
    body = json.dumps({"spec": {"holderIdentity": "boot"}})
    assert (await agent.patch(f"{OWN}/n1", content=body, headers=MERGE)).status_code == 200
    assert (await agent.patch(f"{OWN}/n2", content=body, headers=MERGE)).status_code == 403
    assert (await agent.delete(f"{OWN}/n1")).status_code == 403
    assert (await agent.get(f"{OWN}/n2")).status_code == 403
    apply = {"content-type": "application/apply-patch+yaml"}
    applied = json.dumps({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", **lease("n3")})
    assert (await agent.patch(f"{OWN}/n3?fieldManager=a", content=applied, headers=apply)).status_code == 403


async def test_its_own_status_and_of_that_what_it_may_say(agent: httpx.AsyncClient, api: httpx.AsyncClient) -> None:
    def status(**fields: Any) -> str:
        return json.dumps({"status": fields})

    assert (await agent.patch(f"{NODES}/n1/status", content=status(bootID="b"), headers=MERGE)).status_code == 200
    assert (await agent.patch(f"{NODES}/n2/status", content=status(bootID="b"), headers=MERGE)).status_code == 403

    def condition(type_: str) -> dict[str, Any]:
        told = {"type": type_, "status": "True", "reason": "Yes", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        return {"conditions": [told]}

    assert (
        await agent.patch(f"{NODES}/n1/status", content=status(**condition("MemoryPressure")), headers=MERGE)
    ).status_code == 200
    for fields in ({"phase": "Gone"}, {"engines": [{"name": "swarm", "id": "id-n2"}]}, {"allocatable": {"cpu": "9"}}, {"tasks": 7},
                   {"arch": "arm64"}, {"os": "plan9"}, {"message": "all is well"}, condition("Ready"), condition("Drained"),
                   condition("QuietHours")):  # fmt: skip
        refused = await agent.patch(f"{NODES}/n1/status", content=status(**fields), headers=MERGE)
        assert refused.status_code == 403, fields
    assert (await agent.patch(f"{NODES}/n1", content=json.dumps({"spec": {"maxTasks": 9}}), headers=MERGE)).status_code == 403
    assert (await agent.delete(f"{NODES}/n1")).status_code == 403
    assert (await agent.get(NODES)).status_code == 200
    assert (await status_of(api, "n2")).get("bootID") is None


async def test_its_status_may_be_the_first_one(agent: httpx.AsyncClient, api: httpx.AsyncClient) -> None:
    assert (await api.delete(f"{NODES}/n1")).status_code == 200
    bare = {"apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmNode", "metadata": {"name": "n1"}, "spec": {}}
    assert (await api.post(NODES, json=bare)).status_code == 201
    for fields, code in (({"phase": "Ready"}, 403), ({"tasks": 1}, 403), ({"bootID": "b"}, 200)):
        answer = await agent.patch(f"{NODES}/n1/status", content=json.dumps({"status": fields}), headers=MERGE)
        assert answer.status_code == code, answer.text
    assert (await status_of(api, "n1"))["bootID"] == "b"


async def test_nothing_of_tenants(agent: httpx.AsyncClient, api: httpx.AsyncClient) -> None:
    assert (await api.post(TASKS.format("default"), json=task("other"))).status_code == 201
    for path in (TASKS.format("default"), f"{TASKS.format('default')}/other", "/api/v1/namespaces/default/secrets",
                 "/api/v1/namespaces", "/apis/access.swarmtask.io/v1alpha1/accesstokens", "/api/v1/namespaces/default/configmaps",
                 "/apis/swarmtask.io/v1alpha1/swarmtasks"):  # fmt: skip
        assert (await agent.get(path)).status_code == 403, path
    assert (await agent.post(TASKS.format("default"), json=task("mine"))).status_code == 403


def attempt(number: int, node: str, **more: Any) -> dict[str, Any]:
    return {"number": number, "id": f"x-{number}", "node": node, "engine": "swarm", "state": "Running", **more}


async def test_records_of_attempts_are_the_operators(agent: httpx.AsyncClient, api: httpx.AsyncClient) -> None:
    """How they ended an agent tells in the status of its SwarmNode: what stands in a task the operator takes for its own word."""
    path = f"{TASKS.format('default')}/t"
    assert (await api.post(TASKS.format("default"), json=task("t"))).status_code == 201

    def status(*attempts: dict[str, Any], **more: Any) -> str:
        return json.dumps({"status": {"phase": "Running", "attempts": list(attempts), **more}})

    stored = status(attempt(1, "n2", state="Failed"), attempt(2, "n1"))
    assert (await api.patch(f"{path}/status", content=stored, headers=MERGE)).status_code == 200
    before = (await agent.get(path)).json()
    assert before["status"]["attempts"][1]["node"] == "n1"
    first = attempt(1, "n2", state="Failed")
    for lie in (
        status(first, attempt(2, "n1", state="Stopping", stopReason="Foo", stopRequestedAt="2026-01-01T12:00:00Z")),
        status(first, attempt(2, "n1", state="Failed", exitCode=137, reason="OOMKilled")),
        status(first, attempt(2, "n1", peakMemory="1Gi", cpuSeconds=1.5)),
        status(first, attempt(2, "n1", bootID="b", startedAt="2026-01-01T12:00:00Z")),
        status(attempt(1, "n2", state="Succeeded"), attempt(2, "n1")),
        status(first),
        status(first, attempt(2, "n1"), attempt(3, "n1")),
        json.dumps({"status": {"phase": "Succeeded"}}),
    ):
        assert (await agent.patch(f"{path}/status", content=lie, headers=MERGE)).status_code == 403, lie
    assert (await agent.put(f"{path}/status", json=before)).status_code == 403
    assert (await agent.patch(path, content=json.dumps({"metadata": {"labels": {"a": "b"}}}), headers=MERGE)).status_code == 403
    assert (await api.get(path)).json()["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


# --- what cannot be ---


def conditions(count: int, message: str = "") -> list[dict[str, Any]]:
    moment = "2026-01-01T00:00:00Z"
    return [
        {"type": f"C{number}", "status": "True", "reason": "Yes", "message": message, "lastTransitionTime": moment}
        for number in range(count)
    ]


@pytest.mark.parametrize("fields", [{"kernel": "k" * 257}, {"agentVersion": "1" * 257}, {"conditions": conditions(65)}])
async def test_an_agent_tells_nothing_of_any_length(fields: dict[str, Any], agent: httpx.AsyncClient) -> None:
    answer = await agent.patch(f"{NODES}/n1/status", content=json.dumps({"status": fields}), headers=MERGE)
    assert answer.status_code == 422, answer.text


async def test_what_an_agent_tells_in_all_leaves_room_for_the_operator(agent: httpx.AsyncClient, api: httpx.AsyncClient) -> None:
    async def tell(**fields: Any) -> httpx.Response:
        return await agent.patch(f"{NODES}/n1/status", content=json.dumps({"status": fields}), headers=MERGE)

    assert (await tell(conditions=conditions(15, "m" * 32_000))).status_code == 200
    refused = await tell(conditions=conditions(20, "m" * 32_000))
    assert (refused.status_code, "524288 bytes" in refused.json()["message"]) == (403, True)
    assert (await tell(conditions=conditions(14, "m" * 32_000))).status_code == 200
    # Larger already: it may be made smaller, and what does not grow may change.
    large = json.dumps({"status": {"conditions": conditions(25, "m" * 32_000)}})
    assert (await api.patch(f"{NODES}/n1/status", content=large, headers=MERGE)).status_code == 200
    assert (await tell(conditions=conditions(22, "m" * 32_000))).status_code == 200
    assert (await tell(kernel="k" * 200)).status_code == 403


@pytest.mark.slow
async def test_an_agent_of_many_names_leaves_room_for_others(agent: httpx.AsyncClient, api: httpx.AsyncClient) -> None:
    """As who owns every field of its status it may be written down as often as it likes, and not for longer than that."""
    apply = {"content-type": "application/apply-patch+yaml"}
    attempts = [{"id": f"st-{number}-{'x' * 50}", "state": "Running"} for number in range(256)]
    body = {"apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmNode", "status": {"attempts": attempts}}
    codes = []
    for number in range(30):
        path = f"{NODES}/n1/status?fieldManager=m{number}&force=true"
        codes.append((await agent.patch(path, content=json.dumps(body), headers=apply)).status_code)
    assert (codes[0], codes[-1], set(codes)) == (200, 403, {200, 403})
    cordon = json.dumps({"spec": {"unschedulable": True}})
    assert (await api.patch(f"{NODES}/n1", content=cordon, headers=MERGE)).status_code == 200
    lost = json.dumps({"status": {"phase": "Unreachable"}})
    assert (await api.patch(f"{NODES}/n1/status", content=lost, headers=MERGE)).status_code == 200


async def test_a_lease_is_held_by_a_boot_and_no_longer_text(agent: httpx.AsyncClient) -> None:
    def lease(holder: str) -> dict[str, Any]:
        return {"metadata": {"name": "n1"}, "spec": {"holderIdentity": holder}}

    refused = await agent.post(OWN, json=lease("A" * (MOST_BOOT_ID + 1)))
    assert (refused.status_code, "no longer than 128" in refused.json()["message"]) == (403, True)
    assert (await agent.post(OWN, json=lease("A" * MOST_BOOT_ID))).status_code == 201
    body = json.dumps({"spec": {"holderIdentity": "A" * 1000}})
    assert (await agent.patch(f"{OWN}/n1", content=body, headers=MERGE)).status_code == 403


def ended(**told: Any) -> dict[str, Any]:
    return {"id": "st-1-1", "state": "Exited", "exitCode": 0, **told}


@pytest.mark.parametrize("text", [
    "0001-01-01T00:00:00+14:00", "0001-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "2262-04-12T00:00:00Z", "9999-12-31T23:59:59Z",
    "9999-12-31T23:59:59-14:00",
])  # fmt: skip
async def test_an_agent_tells_no_time_that_no_clock_shows(text: str, agent: httpx.AsyncClient, api: httpx.AsyncClient) -> None:
    for status in (
        {"attempts": [ended(), {**ended(finishedAt=text), "id": "st-2-1"}]},
        {"attempts": [ended(startedAt=text)]},
        {"attempts": [{"id": "st-1-1", "state": "Running", "startedAt": text}]},
        {"eviction": {"id": "st-1-1", "requestedAt": text}},
    ):
        refused = await agent.patch(f"{NODES}/n1/status", content=json.dumps({"status": status}), headers=MERGE)
        assert refused.status_code == 403, refused.text
        assert f"no clock shows {text}" in refused.json()["message"]
    assert "attempts" not in await status_of(api, "n1")


@pytest.mark.parametrize("text", ["1970-01-01T00:00:00Z", "2026-01-01T00:00:00.123456789Z", "2200-01-01T00:00:00+14:00"])
async def test_an_agent_whose_clock_is_wrong_tells_all_the_same(text: str, agent: httpx.AsyncClient) -> None:
    body = json.dumps({"status": {"attempts": [ended(startedAt=text, finishedAt=text)]}})
    told = await agent.patch(f"{NODES}/n1/status", content=body, headers=MERGE)
    assert told.status_code == 200, told.text


@pytest.mark.parametrize(
    ("peak", "code"),
    [
        ("9e99", 403),
        ("9" * 19 + "E", 403),
        ("8Ei", 403),
        (10**117, 422),
        ("1" * 118, 422),
        (2**64, 422),
        (2**63 - 1, 200),
        ("9e18", 200),  # a machine may have it, for all that is known here: the operator knows this one
        ("1.5Gi", 200),
    ],
)
async def test_an_agent_tells_no_peak_that_no_machine_has(peak: Any, code: int, agent: httpx.AsyncClient) -> None:
    body = json.dumps({"status": {"attempts": [ended(peakMemory=peak)]}})
    answer = await agent.patch(f"{NODES}/n1/status", content=body, headers=MERGE)
    assert answer.status_code == code, answer.text


def wish(node: str, *, engine_node: str = "", hours: float = 24, digest: str = "a") -> dict[str, Any]:
    """An AccessToken as an agent asks for it with the credential that all agents share."""
    ends = SystemClock().now() + timedelta(hours=hours)
    return {
        "apiVersion": "access.swarmtask.io/v1alpha1", "kind": "AccessToken",
        "metadata": {"generateName": "node-", "labels": {LABEL_ENGINE_NODE: engine_node or f"swarm.id-{node}"}},
        "spec": {
            "user": f"system:node:{node}", "groups": ["system:nodes"], "expirationTimestamp": format_time(ends),
            "digest": hashlib.sha256(digest.encode()).hexdigest(),
        },
    }  # fmt: skip


@pytest.fixture
async def join(server: RunningServer, api: httpx.AsyncClient, nodes: None) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the credential that all agents share."""
    async with client(server, await new_token(api, BOOTSTRAP_USER, (BOOTSTRAP_GROUP,))) as opened:
        yield opened


async def test_with_the_shared_credential_a_token_of_a_node_is_made(server: RunningServer, join: httpx.AsyncClient) -> None:
    assert (await join.post(ACCESS_TOKENS, json=wish("n1", digest="t0ken"))).status_code == 201
    async with client(server, "t0ken") as agent:
        assert (await agent.get(f"{NODES}/n1")).status_code == 200
        assert (await agent.patch(f"{NODES}/n2/status", content=json.dumps({"status": {}}), headers=MERGE)).status_code == 403
        assert (await agent.post(ACCESS_TOKENS, json=wish("n1", digest="more"))).status_code == 403, "nor another one"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (wish("n3"), "no such node"),
        (wish("gone"), "no such node"),
        (wish("n1", engine_node="swarm.id-n2"), "must say which node of its engine it is (swarm.id-n1)"),
        (wish("n1", hours=24 * 7 + 1), "within 7 days"),
        (wish("n1", hours=-1), "within 7 days"),
    ],
)
async def test_a_token_of_a_node_is_refused(
    api: httpx.AsyncClient, join: httpx.AsyncClient, body: dict[str, Any], said: str
) -> None:
    gone = {"apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmNode", "metadata": {"name": "gone"}, "spec": {}}
    assert (await api.post(NODES, json=gone)).status_code == 201
    status = json.dumps({"status": {"phase": "Gone", "engines": [{"name": "swarm", "id": "id-gone"}]}})
    assert (await api.patch(f"{NODES}/gone/status", content=status, headers=MERGE)).status_code == 200
    answer = await join.post(ACCESS_TOKENS, json=body)
    assert answer.status_code == 403
    assert said in answer.json()["message"]


async def test_a_token_of_a_node_without_an_end_is_refused(join: httpx.AsyncClient) -> None:
    body = wish("n1")
    del body["spec"]["expirationTimestamp"]
    assert (await join.post(ACCESS_TOKENS, json=body)).status_code == 403


async def test_a_stolen_shared_credential_makes_so_many_tokens_and_no_more(join: httpx.AsyncClient) -> None:
    codes = [(await join.post(ACCESS_TOKENS, json=wish("n1", digest=str(number)))).status_code for number in range(MOST_TOKENS + 1)]
    assert codes == [*[201] * MOST_TOKENS, 403]
    assert (await join.post(ACCESS_TOKENS, json=wish("n2", digest="other"))).status_code == 201


async def test_the_shared_credential_is_good_for_nothing_else(server: RunningServer, join: httpx.AsyncClient) -> None:
    for user, groups in (
        ("anna", ()), ("anna", ("system:nodes",)), ("system:node:n1", ("system:nodes", "system:masters")),
        (BOOTSTRAP_USER, (BOOTSTRAP_GROUP,)), ("system:node:n1", ()),
    ):  # fmt: skip
        with pytest.raises(AssertionError, match="may not make a token"):
            await new_token(join, user, groups)
    assert (await join.get(ACCESS_TOKENS)).status_code == 403
    assert (await join.get("/api/v1/secrets")).status_code == 403
    assert (await join.get(TASKS)).status_code == 403
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "n1"}, "spec": {}}
    assert (await join.post(OWN, json=lease)).status_code == 403
    assert (await join.patch(f"{NODES}/n1/status", content=json.dumps({"status": {}}), headers=MERGE)).status_code == 403
    acting = {"Impersonate-User": "system:node:n1", "Impersonate-Group": "system:nodes"}
    assert (await join.get(NODES, headers=acting)).status_code == 403


async def test_the_operator_makes_the_shared_credential_and_may_act_with_no_other(
    server: RunningServer, api: httpx.AsyncClient, nodes: None
) -> None:
    async with person(server, api, "op", ("system:swarmtask:operator", "")) as operator:
        await new_token(operator, BOOTSTRAP_USER, (BOOTSTRAP_GROUP,))
        with pytest.raises(AssertionError, match="may not make a token"):
            await new_token(operator, BOOTSTRAP_USER, (BOOTSTRAP_GROUP, "system:masters"))
        assert (await operator.post(ACCESS_TOKENS, json=wish("n1"))).status_code == 201


async def test_an_administrator_makes_tokens_of_nodes_that_are_to_come(server: RunningServer, api: httpx.AsyncClient) -> None:
    async with client(server, await new_token(api, "system:node:n7", ("system:nodes",))) as agent:
        assert (await agent.get(NODES)).status_code == 200
