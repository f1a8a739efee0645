"""`kubectl logs`: which attempt is meant, what is asked, and what comes out of what was appended; with real kubectls, too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from swarmtask.apiserver import log_text
from swarmtask.apiserver.log_text import stamp, wish_of
from swarmtask.apiserver.wire import Request
from swarmtask.errors import BadRequest
from swarmtask.resources.log_records import CONTENT_TYPE, Kind, LogRecord, encode
from tests.apiserver.access.people import person
from tests.apiserver.projections.swarm import TASKS, attempt, store_task
from tests.apiserver.server import RunningServer, http_client, kubectl_environment, running_api_server
from tests.lab.tools import named_kubectl, or_skip

LOG = "/api/v1/namespaces/default/pods/{}/log"
START = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
START_NS = 1_772_366_400_123_456_789
TIMEOUT_S = 30


class Agent:
    """Appends output of attempts of the task `lint`, a second a line."""

    def __init__(self, api: httpx.AsyncClient) -> None:
        self._api = api
        self._positions: dict[int, int] = {}

    async def append(self, number: int, *texts: str, kind: Kind = "o", complete: bool = False, later_s: int = 0) -> None:
        """`later_s`: than the lines before; no text only makes the output known."""
        position = self._positions.get(number, 0)
        records = [
            LogRecord(START_NS + (position + count + later_s) * 10**9, kind, text.encode()) for count, text in enumerate(texts)
        ]
        if complete:
            records.append(LogRecord(records[-1].nanoseconds if records else START_NS, "z"))
        uid = (await self._api.get(f"{TASKS}/lint")).json()["metadata"]["uid"]
        answer = await self._api.post(
            f"{TASKS}/lint/log", params={"uid": uid, "attempt": str(number), "position": str(position)},
            content=b"".join(map(encode, records)), headers={"content-type": CONTENT_TYPE},
        )  # fmt: skip
        assert answer.status_code == 201, answer.text
        self._positions[number] = position + len(records)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RunningServer]:
    async with running_api_server(tmp_path) as running:
        yield running


@pytest.fixture
async def api(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with http_client(server) as client:
        yield client


async def two_attempts(api: httpx.AsyncClient) -> Agent:
    """The first has ended; the second runs."""
    await store_task(api, attempt(1, "Failed"), attempt(2))
    agent = Agent(api)
    await agent.append(1, "old", complete=True)
    await agent.append(2, "one", "two", "drei ü")
    return agent


@pytest.mark.slow
async def test_the_lines_of_an_attempt(api: httpx.AsyncClient) -> None:
    await two_attempts(api)
    answer = await api.get(LOG.format("lint-2"))
    assert (answer.status_code, answer.text) == (200, "one\ntwo\ndrei ü\n")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert (await api.get(LOG.format("lint-2"), params={"tailLines": "1"})).text == "drei ü\n"
    assert (await api.get(LOG.format("lint-2"), params={"previous": "true"})).text == "old\n"
    stamped = (await api.get(LOG.format("lint-2"), params={"timestamps": "true", "tailLines": "3"})).text
    assert stamped.splitlines()[1] == "2026-03-01T12:00:01.123456789Z two"
    late = {"sinceTime": "2026-03-01T12:00:02Z"}
    assert (await api.get(LOG.format("lint-2"), params=late)).text == "drei ü\n"
    assert (await api.get(LOG.format("lint-2"), params={"limitBytes": "6"})).text == "one\ntw"
    assert (await api.get(LOG.format("lint-2"), params={"limitBytes": "4", "follow": "true"})).text == "one\n", "it ends there"


async def test_a_pod_shows_the_bytes_that_its_task_shows(api: httpx.AsyncClient) -> None:
    agent = await two_attempts(api)
    await agent.append(2, "42 lines dropped", kind="n")
    for query in ({}, {"tailLines": "2", "timestamps": "true"}, {"limitBytes": "9"}, {"stream": "Stdout"}):
        of_the_pod = await api.get(LOG.format("lint-2"), params=query)
        of_the_task = await api.get(f"{TASKS}/lint/log", params={"attempt": "2", **query})
        assert (of_the_pod.status_code, of_the_pod.content) == (of_the_task.status_code, of_the_task.content), query


async def test_streams_and_marks_of_the_store(api: httpx.AsyncClient) -> None:
    await store_task(api, attempt(1))
    agent = Agent(api)
    await agent.append(1, "out")
    await agent.append(1, "err", kind="e")
    await agent.append(1, "42 lines dropped", kind="n")
    assert (await api.get(LOG.format("lint-1"))).text == "out\nerr\n[swarmtask: 42 lines dropped]\n"
    assert (await api.get(LOG.format("lint-1"), params={"stream": "Stderr"})).text == "err\n"


@pytest.mark.slow
async def test_what_is_not_there_is_told_with_what_to_do(api: httpx.AsyncClient) -> None:
    await store_task(api, attempt(1, "Failed"), attempt(9, "Starting"))
    gone = await api.get(LOG.format("lint-1"))
    assert (gone.status_code, "swarmtask logs lint -n default" in gone.json()["message"]) == (404, True)
    waiting = await api.get(LOG.format("lint-9"))
    assert (waiting.status_code, "no output yet" in waiting.json()["message"]) == (400, True)
    first = await api.get(LOG.format("lint-1"), params={"previous": "true"})
    assert (first.status_code, "previous terminated container" in first.json()["message"]) == (400, True)
    assert (await api.get(LOG.format("other-1"))).status_code == 404
    assert (await api.post(LOG.format("lint-1"))).status_code == 405


@pytest.mark.parametrize(
    "query",
    [{"limitBytes": "0"}, {"tailLines": "-1"}, {"tailLines": "x"}, {"sinceSeconds": "9" * 18},
     {"sinceTime": "yesterday"}, {"sinceTime": "2026-01-01T00:00:00Z", "sinceSeconds": "1"}, {"stream": "Both"},
     {"stream": "Stderr", "tailLines": "1"}],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(query: dict[str, str]) -> None:
    with pytest.raises(BadRequest):
        wish_of(Request("GET", "/", query, {}), START)


async def test_a_container_that_no_pod_has_is_refused(api: httpx.AsyncClient) -> None:
    await two_attempts(api)
    refused = await api.get(LOG.format("lint-2"), params={"container": "sidecar"})
    assert (refused.status_code, "container of every pod is main" in refused.json()["message"]) == (400, True)
    assert (await api.get(LOG.format("lint-2"), params={"container": "main"})).status_code == 200


def test_times_are_written_as_go_writes_them() -> None:
    assert stamp(START_NS) == b"2026-03-01T12:00:00.123456789Z"
    assert stamp(0) == b"1970-01-01T00:00:00.000000000Z"
    assert stamp(2**63 - 1).endswith(b"Z")


async def test_a_log_is_followed_until_it_is_complete(api: httpx.AsyncClient) -> None:
    agent = await two_attempts(api)
    async with (
        asyncio.timeout(TIMEOUT_S),
        api.stream("GET", LOG.format("lint-2"), params={"follow": "true", "tailLines": "1"}) as answer,
    ):
        found = answer.aiter_lines()
        assert await anext(found) == "drei ü"
        await agent.append(2, "four")
        assert await anext(found) == "four"
        await agent.append(2, "five", complete=True)
        assert [line async for line in found] == ["five"]


async def test_a_silent_log_is_answered_before_its_first_line(api: httpx.AsyncClient) -> None:
    await store_task(api, attempt(1))
    agent = Agent(api)
    await agent.append(1)
    async with asyncio.timeout(TIMEOUT_S), api.stream("GET", LOG.format("lint-1"), params={"follow": "true"}) as answer:
        assert answer.status_code == 200
        await agent.append(1, "at last", complete=True)
        assert await anext(answer.aiter_lines()) == "at last"


async def test_at_most_so_many_read_at_once(api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """However they come: pods and tasks share the bound, and who has left makes room."""
    monkeypatch.setattr(log_text, "MOST_READERS", 1)
    await two_attempts(api)
    follow = {"follow": "true"}
    async with asyncio.timeout(TIMEOUT_S), api.stream("GET", LOG.format("lint-2"), params=follow) as answer:
        assert await anext(answer.aiter_lines()) == "one"
        refused = await api.get(f"{TASKS}/lint/log")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "10")
    async with asyncio.timeout(TIMEOUT_S):
        while (await api.get(LOG.format("lint-2"))).status_code != 200:
            pass


async def test_a_log_that_is_followed_ends_when_the_server_stops(tmp_path: Path) -> None:
    running = running_api_server(tmp_path / "stopping")
    server = await running.__aenter__()
    async with http_client(server) as api, asyncio.timeout(TIMEOUT_S):
        await two_attempts(api)
        async with api.stream("GET", LOG.format("lint-2"), params={"follow": "true"}) as answer:
            found = answer.aiter_lines()
            assert await anext(found) == "one"
            ending = asyncio.create_task(running.__aexit__(None, None, None))
            assert [line async for line in found] == ["two", "drei ü"]
        await api.aclose()
        await ending


async def test_a_log_ends_with_the_right_to_read_it(server: RunningServer, api: httpx.AsyncClient) -> None:
    await two_attempts(api)
    async with person(server, api, "vera", ("view", "default")) as vera:
        assert (await vera.get(LOG.format("lint-2"))).status_code == 200
        async with asyncio.timeout(TIMEOUT_S), vera.stream("GET", LOG.format("lint-2"), params={"follow": "true"}) as answer:
            found = answer.aiter_lines()
            await anext(found)
            removed = await api.delete("/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings/vera-view")
            assert removed.status_code == 200
            assert [line async for line in found] == ["two", "drei ü"]
        assert (await vera.get(LOG.format("lint-2"))).status_code == 403


@pytest.mark.kubectl
@pytest.mark.parametrize("version", ["debian", "current"])
async def test_a_real_kubectl(server: RunningServer, api: httpx.AsyncClient, tmp_path: Path, version: str) -> None:
    with or_skip():
        binary = named_kubectl(version)
    agent = await two_attempts(api)

    async def kubectl(*arguments: str) -> tuple[str, str]:
        process = await asyncio.create_subprocess_exec(
            str(binary), "logs", *arguments, env=kubectl_environment(server, tmp_path), stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(TIMEOUT_S):
            out, err = await process.communicate()
        return out.decode(), err.decode()

    assert await kubectl("lint-2") == ("one\ntwo\ndrei ü\n", "")
    assert await kubectl("lint-2", "--tail=1", "--timestamps") == ("2026-03-01T12:00:02.123456789Z drei ü\n", "")
    assert await kubectl("lint-2", "--previous") == ("old\n", "")
    assert await kubectl("lint-2", "--limit-bytes=4") == ("one\n", "")
    assert await kubectl("lint-2", "--since-time=2026-03-01T12:00:02Z") == ("drei ü\n", "")
    both, _ = await kubectl("-l", "team=a", "--tail=1")
    assert sorted(both.splitlines()) == ["drei ü", "old"]
    process = await asyncio.create_subprocess_exec(
        str(binary), "logs", "lint-2", "-f", "--tail=1", env=kubectl_environment(server, tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(TIMEOUT_S):
        assert await process.stdout.readline() == "drei ü\n".encode(), "it follows"
        await agent.append(2, "four", complete=True)
        assert (await process.communicate())[0] == b"four\n"
    out, err = await kubectl("lint-7")
    assert (out, "NotFound" in err) == ("", True)
