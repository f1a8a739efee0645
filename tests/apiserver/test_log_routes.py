"""`swarmtasks/log` over HTTP: who may append what, who may read, and what following means."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from swarmtask.errors import Forbidden, NotFound
from swarmtask.nodeagent.link import Credentials, Link
from swarmtask.nodeagent.log_sender import Refused, Taken
from swarmtask.resources.log_records import CONTENT_TYPE, MOST_BODY_BYTES, MOST_PARTS, PARTS_TYPE, LogRecord, Part, encode, pack
from tests.apiserver.access.people import TASKS, client, new_token, person, said, task
from tests.apiserver.logs import END, body, line, until
from tests.apiserver.server import RunningServer, api_server_process, http_client, running_api_server

PATH = TASKS.format("default")
NODES = "/apis/swarmtask.io/v1alpha1/swarmnodes"
MERGE = {"content-type": "application/merge-patch+json"}
BINARY = {"content-type": CONTENT_TYPE}


def attempt(number: int, node: str = "n1", state: str = "Running", **more: Any) -> dict[str, Any]:
    return {"number": number, "id": f"st-{number}", "node": node, "engine": "swarm", "state": state, **more}


async def set_attempts(api: httpx.AsyncClient, name: str, *attempts: dict[str, Any]) -> None:
    status = {"status": {"phase": "Running", "attempt": attempts[-1]["number"], "attempts": list(attempts)}}
    answer = await api.patch(f"{PATH}/{name}/status", content=json.dumps(status), headers=MERGE)
    assert answer.status_code == 200, answer.text


async def new_task(api: httpx.AsyncClient, name: str, *attempts: dict[str, Any]) -> str:
    """Its UID."""
    made = await api.post(PATH, json=task(name))
    assert made.status_code == 201, made.text
    if attempts:
        await set_attempts(api, name, *attempts)
    uid: str = made.json()["metadata"]["uid"]
    return uid


async def append(  # noqa: PLR0917
    who: httpx.AsyncClient, name: str, uid: str, number: int, position: int, content: bytes, **query: str
) -> httpx.Response:
    parameters = {"uid": uid, "attempt": str(number), "position": str(position)} | query
    return await who.post(f"{PATH}/{name}/log", params=parameters, content=content, headers=BINARY)


async def read(who: httpx.AsyncClient, name: str, **query: str) -> str:
    answer = await who.get(f"{PATH}/{name}/log", params=query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    return answer.text


@pytest.fixture
async def agent(server: RunningServer, api: httpx.AsyncClient) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the token of node n1."""
    async with client(server, await new_token(api, "system:node:n1", ("system:nodes",))) as opened:
        yield opened


async def test_a_node_appends_and_people_read(server: RunningServer, api: httpx.AsyncClient, agent: httpx.AsyncClient) -> None:
    uid = await new_task(api, "a", attempt(1))
    content = line(0) + line(1, "e", b"\xff raw \x1b[31m") + line(2, "n", b"42 lines dropped")
    answer = await append(agent, "a", uid, 1, 0, content)
    assert answer.status_code == 201, answer.text
    assert answer.json() == {
        "kind": "AttemptLog", "apiVersion": "swarmtask.io/v1alpha1",
        "metadata": {"name": "a", "namespace": "default", "uid": uid},
        "attempt": 1, "position": 3, "lastNanoseconds": 2 * 10**9, "complete": False,
    }  # fmt: skip
    shown = await api.get(f"{PATH}/a/log")
    assert shown.content == b"line 0\n\xff raw \x1b[31m\n[swarmtask: 42 lines dropped]\n", "bytes are not touched"
    assert await read(api, "a", tailLines="1", timestamps="true", attempt="1") == (
        "1970-01-01T00:00:02.000000000Z [swarmtask: 42 lines dropped]\n"
    )
    assert await read(api, "a", sinceTime="1970-01-01T00:00:02Z") == "[swarmtask: 42 lines dropped]\n"
    assert await read(api, "a", sinceSeconds="60") == ""
    assert await read(api, "a", tailLines="0") == ""
    pod = await api.get("/api/v1/namespaces/default/pods/a-1/log")
    assert (pod.status_code, pod.text) == (200, "line 0\n\ufffd raw \x1b[31m\n[swarmtask: 42 lines dropped]\n"), "the same"


async def test_positions_over_http(api: httpx.AsyncClient, agent: httpx.AsyncClient) -> None:
    uid = await new_task(api, "a", attempt(1))
    assert (await append(agent, "a", uid, 1, 0, body(0, 5))).status_code == 201
    assert (await append(agent, "a", uid, 1, 2, body(2, 7))).json()["position"] == 7
    gap = await append(agent, "a", uid, 1, 9, line(9))
    assert (gap.status_code, gap.json()["reason"]) == (409, "Conflict")
    assert gap.json()["details"] == {"position": 7, "lastNanoseconds": 6 * 10**9, "complete": False}
    assert (await append(agent, "a", uid, 1, 7, END)).json()["complete"] is True
    assert (await append(agent, "a", uid, 1, 8, line(8))).status_code == 409
    assert await read(api, "a", follow="true") == "".join(f"line {number}\n" for number in range(7))


@pytest.mark.parametrize(("query", "content", "headers", "code"), [
    ({"uid": ""}, line(0), BINARY, 400),
    ({"attempt": "x"}, line(0), BINARY, 400),
    ({"position": "-1"}, line(0), BINARY, 400),
    ({"attempt": "9"}, line(0), BINARY, 404),
    ({"uid": "00000000-0000-4000-8000-000000000000"}, line(0), BINARY, 404),
    ({"uid": "../../etc"}, line(0), BINARY, 404),
    ({"dryRun": "All"}, line(0), BINARY, 400),
    ({}, b"no record\n", BINARY, 400),
    ({}, b"x" * (MOST_BODY_BYTES + 1), BINARY, 413),
    ({}, line(0), {"content-type": "application/json"}, 415),
])  # fmt: skip
async def test_appends_that_are_none(  # noqa: PLR0917
    api: httpx.AsyncClient, server: RunningServer, query: dict[str, str], content: bytes, headers: dict[str, str], code: int
) -> None:
    uid = await new_task(api, "a", attempt(1))
    parameters = {"uid": uid, "attempt": "1", "position": "0"} | query
    answer = await api.post(f"{PATH}/a/log", params=parameters, content=content, headers=headers)
    assert (answer.status_code, answer.json()["kind"]) == (code, "Status"), answer.text
    assert not list((server.kubeconfig.parent / "attempt-logs").rglob("*.log"))


async def test_other_methods_other_kinds_and_discovery(api: httpx.AsyncClient) -> None:
    await new_task(api, "a", attempt(1))
    for method in ("PUT", "PATCH", "DELETE"):
        assert (await api.request(method, f"{PATH}/a/log", json={})).status_code == 405, method
    queues = PATH.replace("swarmtasks", "swarmqueues")
    assert (await api.get(f"{queues}/default/log")).status_code == 404
    listed = (await api.get("/apis/swarmtask.io/v1alpha1")).json()["resources"]
    (entry,) = [item for item in listed if item["name"] == "swarmtasks/log"]
    assert entry["verbs"] == ["create", "get"]
    assert (await api.get("/openapi/v2")).status_code == 200


class TestAccess:
    async def test_a_node_reaches_only_attempts_on_itself(self, api: httpx.AsyncClient, agent: httpx.AsyncClient) -> None:
        uid = await new_task(api, "a", attempt(1), attempt(2, "n2"))
        other = await new_task(api, "b", attempt(1, "n2"))
        unbound = await new_task(api, "c")
        assert (await append(agent, "a", uid, 1, 0, line(0))).status_code == 201
        refused = await append(agent, "a", uid, 2, 0, line(0))
        assert refused.status_code == 403
        assert "attempt 2 is not one of its node: n1" in said(refused)[1]
        for name, whose in (("b", other), ("c", unbound), ("nobody", uid)):
            assert (await append(agent, name, whose, 1, 0, line(0))).status_code == 403, name
        assert (await append(agent, "a", other, 1, 0, line(0))).status_code == 404, "another task's UID"
        assert (await agent.get(f"{PATH}/a/log")).status_code == 403, "what it has sent is no longer its own"

    async def test_viewers_read_and_nobody_else_writes(
        self, server: RunningServer, api: httpx.AsyncClient, agent: httpx.AsyncClient
    ) -> None:
        uid = await new_task(api, "a", attempt(1))
        await append(agent, "a", uid, 1, 0, line(0))
        for role in ("view", "edit"):
            async with person(server, api, f"someone-{role}", (role, "default")) as someone:
                assert await read(someone, "a") == "line 0\n"
                assert (await append(someone, "a", uid, 1, 1, line(1))).status_code == 403
        async with person(server, api, "stranger") as stranger:
            assert (await stranger.get(f"{PATH}/a/log")).status_code == 403
        async with person(server, api, "elsewhere", ("view", "kube-system")) as elsewhere:
            assert (await elsewhere.get(f"{PATH}/a/log")).status_code == 403

    async def test_appends_of_nodes_do_not_fill_the_audit_log(
        self, server: RunningServer, api: httpx.AsyncClient, agent: httpx.AsyncClient
    ) -> None:
        uid = await new_task(api, "a", attempt(1))
        await append(agent, "a", uid, 1, 0, line(0))
        await append(agent, "a", uid, 2, 0, line(0))
        rows = [json.loads(row) for row in (server.kubeconfig.parent / "audit" / "audit.log").read_text().splitlines()]
        assert [row["code"] for row in rows if row.get("resource") == "swarmtasks/log"] == [403]


class TestReading:
    async def test_what_is_not_there_says_so(self, api: httpx.AsyncClient) -> None:
        await new_task(api, "a")
        assert said(await api.get(f"{PATH}/a/log")) == (404, "a has not run yet")
        await set_attempts(api, "a", attempt(1))
        code, message = said(await api.get(f"{PATH}/a/log"))
        assert (code, "no output of attempt 1 of a has come" in message) == (404, True)
        assert (await api.get(f"{PATH}/nobody/log")).status_code == 404
        for query in ({"sinceTime": "yesterday"}, {"sinceTime": "2026-01-01T00:00:00Z", "sinceSeconds": "1"}, {"tailLines": "x"}):
            assert (await api.get(f"{PATH}/a/log", params=query)).status_code == 400, query

    async def test_following_goes_on_to_the_end(self, api: httpx.AsyncClient, agent: httpx.AsyncClient) -> None:
        uid = await new_task(api, "a", attempt(1))
        await append(agent, "a", uid, 1, 0, line(0))
        seen = bytearray()

        async def follow() -> None:
            async with api.stream("GET", f"{PATH}/a/log", params={"follow": "true"}) as stream:
                async for chunk in stream.aiter_bytes():
                    seen.extend(chunk)

        following = asyncio.create_task(follow())
        for number in range(1, 4):
            await until(lambda number=number: seen.count(b"\n") == number)  # type: ignore[misc]
            await append(agent, "a", uid, 1, number, line(number))
        await append(agent, "a", uid, 1, 4, END)
        async with asyncio.timeout(20):
            await following
        assert seen == b"".join(b"line %d\n" % number for number in range(4))

    @pytest.mark.slow
    async def test_a_wait_for_what_is_on_its_way(self, api: httpx.AsyncClient, agent: httpx.AsyncClient) -> None:
        uid = await new_task(api, "a", attempt(1))
        waiting = asyncio.create_task(api.get(f"{PATH}/a/log", params={"waitSeconds": "30"}))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await append(agent, "a", uid, 1, 0, line(0))
        assert (await waiting).text == "line 0\n"
        await set_attempts(api, "a", attempt(1, state="Succeeded"))
        ended = "[swarmtask: the end of this output has not come: its node has not sent it]\n"
        assert await read(api, "a") == f"line 0\n{ended}"
        waiting = asyncio.create_task(api.get(f"{PATH}/a/log", params={"waitSeconds": "30"}))
        await asyncio.sleep(0.2)
        await append(agent, "a", uid, 1, 1, line(1) + END)
        assert (await waiting).text == "line 0\nline 1\n"

    @pytest.mark.slow
    async def test_it_goes_with_the_task(self, server: RunningServer, api: httpx.AsyncClient, agent: httpx.AsyncClient) -> None:
        uid = await new_task(api, "a", attempt(1))
        await append(agent, "a", uid, 1, 0, line(0))
        folder = server.kubeconfig.parent / "attempt-logs"
        assert [path.name for path in folder.iterdir()] == [uid]
        assert (await api.delete(f"{PATH}/a")).status_code == 200
        await until(lambda: not list(folder.iterdir()))
        again = await new_task(api, "a", attempt(1))
        assert (await append(agent, "a", uid, 1, 1, line(1))).status_code == 404
        assert (await api.get(f"{PATH}/a/log")).status_code == 404
        assert (await append(agent, "a", again, 1, 0, line(7))).status_code == 201


async def test_output_is_there_after_a_restart_of_the_server(tmp_path: Path) -> None:
    async with running_api_server(tmp_path) as server, http_client(server) as api:
        uid = await new_task(api, "a", attempt(1))
        assert (await append(api, "a", uid, 1, 0, body(0, 3))).status_code == 201
    async with running_api_server(tmp_path) as server, http_client(server) as api:
        assert await read(api, "a") == "line 0\nline 1\nline 2\n"
        assert (await append(api, "a", uid, 1, 3, line(3))).json()["position"] == 4


@pytest.mark.slow
async def test_what_was_answered_outlives_a_server_that_is_killed(tmp_path: Path) -> None:
    async with api_server_process(tmp_path) as process:
        server, acknowledged = await process.start(), 0
        async with http_client(server) as api:
            uid = await new_task(api, "a", attempt(1))
            killing = asyncio.get_running_loop().call_later(0.3, lambda: process.process and process.process.kill())
            try:
                while acknowledged < 10_000:
                    answer = await append(api, "a", uid, 1, acknowledged, line(acknowledged))
                    assert answer.status_code == 201
                    acknowledged += 1
            except httpx.TransportError:
                pass
            killing.cancel()
        await process.kill()
        async with http_client(await process.start()) as api:
            answer = await append(api, "a", uid, 1, 0, b"")
            assert answer.json()["position"] in (acknowledged, acknowledged + 1), "the answer to one may have been under way"
            shown = await read(api, "a")
            assert shown.splitlines()[:acknowledged] == [f"line {number}" for number in range(acknowledged)]
    assert acknowledged > 0


async def append_parts(who: httpx.AsyncClient, content: bytes, node: str = "n1", **headers: str) -> httpx.Response:
    return await who.post(f"{NODES}/{node}/log", content=content, headers={"content-type": PARTS_TYPE} | headers)


class TestParts:
    """What all attempts on a node have written, in one request."""

    async def test_each_part_has_its_own_answer(self, api: httpx.AsyncClient, agent: httpx.AsyncClient) -> None:
        first, second = await new_task(api, "a", attempt(1)), await new_task(api, "b", attempt(1, "n2"), attempt(2))
        parts = [
            Part("default", "a", first, 1, 0, body(0, 3)),
            Part("default", "b", second, 1, 0, line(0)),
            Part("default", "nobody", first, 1, 0, line(0)),
            Part("default", "b", first, 1, 0, line(0)),
            Part("default", "a", first, 7, 0, line(0)),
            Part("default", "a", first, 1, 9, line(9)),
            Part("default", "a", first, 1, 3, b"no record\n"),
            Part("default", "b", second, 2, 0, b""),
            Part("default", "a", first, 1, 2, body(2, 5) + END),
        ]
        answer = await append_parts(agent, pack(parts))
        assert (answer.status_code, answer.json()["kind"]) == (201, "AttemptLogList"), answer.text
        items = answer.json()["items"]
        assert [item.get("code", 0) for item in items] == [0, 403, 404, 404, 403, 409, 400, 0, 0]
        assert items[0] == {
            "kind": "AttemptLog", "apiVersion": "swarmtask.io/v1alpha1",
            "metadata": {"name": "a", "namespace": "default", "uid": first},
            "attempt": 1, "position": 3, "lastNanoseconds": 2 * 10**9, "complete": False,
        }  # fmt: skip
        assert "attempt 1 is not one of its node: n1" in items[1]["message"]
        assert items[5]["details"] == {"position": 3, "lastNanoseconds": 2 * 10**9, "complete": False}
        assert (items[7]["position"], items[8]["position"], items[8]["complete"]) == (0, 6, True)
        assert await read(api, "a") == "".join(f"line {number}\n" for number in range(5))
        assert (await append_parts(agent, b"")).json()["items"] == []

    @pytest.mark.parametrize("content", [
        b"nonsense", b"default a uid 1 0 5\nabc", b"default a uid 1 0 -5\nabcde", b"default a uid one 0 0\n",
        b"default a uid 1 0\n", b"default ../../etc uid 1 0 0\n", b"default a uid 1 0 0\n\n", b"default a uid 1 0 0", b"\xff" * 100,
    ])  # fmt: skip
    async def test_of_a_body_that_cannot_be_read_nothing_is_taken(
        self, server: RunningServer, api: httpx.AsyncClient, agent: httpx.AsyncClient, content: bytes
    ) -> None:
        uid = await new_task(api, "a", attempt(1))
        answer = await append_parts(agent, pack([Part("default", "a", uid, 1, 0, line(0))]) + content)
        assert (answer.status_code, answer.json()["kind"]) == (400, "Status"), answer.text
        assert not list((server.kubeconfig.parent / "attempt-logs").rglob("*.log"))

    async def test_what_is_too_much_or_no_append_is_refused(self, api: httpx.AsyncClient, agent: httpx.AsyncClient) -> None:
        uid = await new_task(api, "a", attempt(1))
        one = Part("default", "a", uid, 1, 0, b"")
        big = encode(LogRecord(1, "o", b"x" * 60_000))
        assert (await append_parts(agent, pack([one] * MOST_PARTS))).status_code == 201
        assert (await append_parts(agent, pack([one] * (MOST_PARTS + 1)))).status_code == 413
        assert (await append_parts(agent, pack([one._replace(body=big)] * 5))).status_code == 413
        assert (await append_parts(agent, pack([one]), **{"content-type": "application/json"})).status_code == 415
        dry = await agent.post(
            f"{NODES}/n1/log", params={"dryRun": "All"}, content=pack([one]), headers={"content-type": PARTS_TYPE}
        )
        assert dry.status_code == 400
        for method in ("GET", "PUT", "PATCH", "DELETE"):
            assert (await api.request(method, f"{NODES}/n1/log")).status_code == 405, method
        listed = (await api.get("/apis/swarmtask.io/v1alpha1")).json()["resources"]
        (entry,) = [item for item in listed if item["name"] == "swarmnodes/log"]
        assert (entry["verbs"], entry["namespaced"]) == (["create"], False)

    async def test_a_node_speaks_for_itself_alone(
        self, server: RunningServer, api: httpx.AsyncClient, agent: httpx.AsyncClient
    ) -> None:
        uid = await new_task(api, "a", attempt(1), attempt(2, "n2"))
        content = pack([Part("default", "a", uid, 2, 0, line(0))])
        assert (await append_parts(agent, content, "n2")).status_code == 403
        assert [item["code"] for item in (await append_parts(agent, content)).json()["items"]] == [403]
        async with person(server, api, "someone-edit", ("edit", "default")) as someone:
            assert (await append_parts(someone, content, "n2")).status_code == 403
        assert [item.get("code") for item in (await append_parts(api, content)).json()["items"]] == [403], (
            "nor an admin for another"
        )
        assert [item.get("code") for item in (await append_parts(api, content, "n2")).json()["items"]] == [None]
        rows = [json.loads(row) for row in (server.kubeconfig.parent / "audit" / "audit.log").read_text().splitlines()]
        told = [(row["user"], row["code"]) for row in rows if row.get("resource") == "swarmnodes/log"]
        assert ("system:node:n1", 201) not in told
        assert ("system:node:n1", 403) in told


async def test_the_agents_link(server: RunningServer, api: httpx.AsyncClient, agent: httpx.AsyncClient) -> None:
    uid = await new_task(api, "a", attempt(1))
    record = encode(LogRecord(5, "o", b"x"))
    whose = Part("default", "a", uid, 1, 0, b"")
    token = await new_token(api, "system:node:n2", ("system:nodes",))
    own = agent.headers["authorization"].removeprefix("Bearer ")
    async with Link(Credentials(server.url, own, server.ca.read_text())) as link:
        assert await link.append_logs("n1", [whose]) == [Taken(0, 0, complete=False)]
        parts = [
            whose._replace(body=record),
            whose._replace(position=7, body=record),
            whose._replace(uid="00000000-0000-4000-8000-000000000000"),
        ]
        taken, refused, unknown = await link.append_logs("n1", parts)
        assert taken == Taken(1, 5, complete=False)
        assert isinstance(refused, Refused)
        assert refused.taken == taken
        assert isinstance(unknown, NotFound)
    async with Link(Credentials(server.url, token, server.ca.read_text())) as link:
        (refused,) = await link.append_logs("n2", [whose])
        assert isinstance(refused, Forbidden)
        with pytest.raises(Forbidden):
            await link.append_logs("n1", [whose])
