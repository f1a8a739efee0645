"""`kubectl logs`: what is asked, and what of the store's lines comes out; with a store that records and a real kubectl."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest

from swarmtask.apiserver.projections import logs as room
from swarmtask.apiserver.projections.logs import nanos, wish_of
from swarmtask.apiserver.wire import Request
from swarmtask.errors import BadRequest
from tests.apiserver.access.people import person
from tests.apiserver.projections.swarm import attempt, store_task
from tests.apiserver.server import RunningServer, http_client, kubectl_environment, running_api_server
from tests.lab.tools import kubectl_binaries

LOG = "/api/v1/namespaces/default/pods/{}/log"
START = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
TIMEOUT_S = 30


@dataclass(frozen=True)
class Line:
    at: datetime
    stream: Literal["stdout", "stderr", "note"]
    text: str


def lines(*texts: str) -> list[Line]:
    return [Line(START + timedelta(seconds=number), "stdout", text) for number, text in enumerate(texts)]


@dataclass
class Store:
    """Keeps the lines of attempts, by number; a log that is followed goes on until `complete` is set."""

    kept: dict[int, list[Line]] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    complete: asyncio.Event = field(default_factory=asyncio.Event)
    more: asyncio.Event = field(default_factory=asyncio.Event)
    followed: asyncio.Event = field(default_factory=asyncio.Event)
    given_back: int = 0

    async def read(
        self, namespace: str, task_uid: str, attempt: int, *, tail: int | None = None, since: datetime | None = None,
        follow: bool = False,
    ) -> AsyncIterator[Line]:  # fmt: skip
        self.asked.append({"namespace": namespace, "attempt": attempt, "tail": tail, "since": since, "follow": follow})
        if follow:
            self.followed.set()
        found = self.kept[attempt]
        try:
            sent = max(0, len(found) - tail) if tail is not None else 0
            while True:
                while sent < len(found):
                    sent += 1
                    if since is None or found[sent - 1].at >= since:
                        yield found[sent - 1]
                if not follow or self.complete.is_set():
                    return
                self.more.clear()
                await self.more.wait()
        finally:
            self.given_back += 1

    def append(self, number: int, *more: Line, complete: bool = False) -> None:
        self.kept.setdefault(number, []).extend(more)
        if complete:
            self.complete.set()
        self.more.set()


@pytest.fixture
def store() -> Store:
    return Store({1: lines("old"), 2: lines("one", "two", "drei ü")})


@pytest.fixture
async def server(tmp_path: Path, store: Store) -> AsyncIterator[RunningServer]:
    async with running_api_server(tmp_path, logs=store) as running:
        yield running


@pytest.fixture
async def api(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with http_client(server) as client:
        yield client


async def test_the_lines_of_an_attempt(api: httpx.AsyncClient, store: Store) -> None:
    await store_task(api, attempt(1, "Failed"), attempt(2))
    answer = await api.get(LOG.format("lint-2"))
    assert (answer.status_code, answer.text) == (200, "one\ntwo\ndrei ü\n")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert store.asked[-1] == {"namespace": "default", "attempt": 2, "tail": None, "since": None, "follow": False}
    assert (await api.get(LOG.format("lint-2"), params={"tailLines": "1"})).text == "drei ü\n"
    assert (await api.get(LOG.format("lint-2"), params={"previous": "true"})).text == "old\n"
    stamped = (await api.get(LOG.format("lint-2"), params={"timestamps": "true", "tailLines": "3"})).text
    assert stamped.splitlines()[1] == "2026-03-01T12:00:01.123456000Z two"
    late = {"sinceTime": "2026-03-01T12:00:02Z"}
    assert (await api.get(LOG.format("lint-2"), params=late)).text == "drei ü\n"
    assert (await api.get(LOG.format("lint-2"), params={"limitBytes": "6"})).text == "one\ntw"


async def test_streams_and_marks_of_the_store(api: httpx.AsyncClient, store: Store) -> None:
    store.kept[1] = [Line(START, "stdout", "out"), Line(START, "stderr", "err"), Line(START, "note", "42 lines dropped")]
    await store_task(api, attempt(1))
    assert (await api.get(LOG.format("lint-1"))).text == "out\nerr\n[swarmtask: 42 lines dropped]\n"
    assert (await api.get(LOG.format("lint-1"), params={"stream": "Stderr"})).text == "err\n"


async def test_what_is_not_there_is_told_with_what_to_do(api: httpx.AsyncClient, store: Store) -> None:
    del store.kept[1]
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
    [{"container": "sidecar"}, {"limitBytes": "0"}, {"tailLines": "-1"}, {"tailLines": "x"}, {"sinceSeconds": "9" * 18},
     {"sinceTime": "yesterday"}, {"sinceTime": "2026-01-01T00:00:00Z", "sinceSeconds": "1"}, {"stream": "Both"}],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(query: dict[str, str]) -> None:
    with pytest.raises(BadRequest):
        wish_of(Request("GET", "/", query, {}), START)


def test_times_are_written_as_go_writes_them() -> None:
    assert nanos(START) == "2026-03-01T12:00:00.123456000Z"
    assert nanos(datetime(1, 1, 1, tzinfo=UTC)) == "0001-01-01T00:00:00.000000000Z"


async def test_a_log_is_followed_until_it_is_complete(api: httpx.AsyncClient, store: Store) -> None:
    await store_task(api, attempt(2))
    async with (
        asyncio.timeout(TIMEOUT_S),
        api.stream("GET", LOG.format("lint-2"), params={"follow": "true", "tailLines": "1"}) as answer,
    ):
        found = answer.aiter_lines()
        assert await anext(found) == "drei ü"
        store.append(2, Line(START, "stdout", "four"))
        assert await anext(found) == "four"
        store.append(2, Line(START, "stdout", "five"), complete=True)
        assert [line async for line in found] == ["five"]


async def test_a_silent_log_is_answered_before_its_first_line(
    api: httpx.AsyncClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "FIRST_LINE_S", 0.01)
    store.kept[1] = []
    await store_task(api, attempt(1))
    async with asyncio.timeout(TIMEOUT_S), api.stream("GET", LOG.format("lint-1"), params={"follow": "true"}) as answer:
        assert answer.status_code == 200
        store.append(1, Line(START, "stdout", "at last"), complete=True)
        assert await anext(answer.aiter_lines()) == "at last"


async def test_more_lines_than_fit_into_the_buffer(api: httpx.AsyncClient, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "BUFFER_BYTES", 64)
    store.kept[1] = lines(*(f"line {number}" for number in range(1000)))
    await store_task(api, attempt(1))
    answer = await api.get(LOG.format("lint-1"))
    assert answer.text.splitlines() == [f"line {number}" for number in range(1000)]


async def test_readers_that_leave_and_a_server_that_stops_give_the_store_its_iterators_back(tmp_path: Path, store: Store) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        async with running_api_server(tmp_path / "stopping", logs=store) as server, http_client(server) as api:
            await store_task(api, attempt(2))
            follow = {"follow": "true"}
            async with api.stream("GET", LOG.format("lint-2"), params=follow) as leaves:
                assert await anext(leaves.aiter_lines()) == "one"
            stays = api.stream("GET", LOG.format("lint-2"), params=follow)
            answer = await stays.__aenter__()
            assert await anext(answer.aiter_lines()) == "one"
        assert store.given_back == 2


async def test_a_log_ends_with_the_right_to_read_it(server: RunningServer, api: httpx.AsyncClient) -> None:
    await store_task(api, attempt(2))
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
async def test_a_real_kubectl(server: RunningServer, api: httpx.AsyncClient, store: Store, tmp_path: Path, version: str) -> None:
    binary = kubectl_binaries().get(version)
    if binary is None:
        pytest.skip(f"[missing: kubectl ({version})] `python -m tests.lab.setup` fetches it")
    await store_task(api, attempt(1, "Failed"), attempt(2))

    async def kubectl(*arguments: str) -> tuple[str, str]:
        process = await asyncio.create_subprocess_exec(
            str(binary), "logs", *arguments, env=kubectl_environment(server, tmp_path), stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(TIMEOUT_S):
            out, err = await process.communicate()
        return out.decode(), err.decode()

    assert await kubectl("lint-2") == ("one\ntwo\ndrei ü\n", "")
    assert await kubectl("lint-2", "--tail=1", "--timestamps") == ("2026-03-01T12:00:02.123456000Z drei ü\n", "")
    assert await kubectl("lint-2", "--previous") == ("old\n", "")
    assert await kubectl("lint-2", "--limit-bytes=4") == ("one\n", "")
    assert await kubectl("lint-2", "--since-time=2026-03-01T12:00:02Z") == ("drei ü\n", "")
    both, _ = await kubectl("-l", "team=a", "--tail=1")
    assert sorted(both.splitlines()) == ["drei ü", "old"]
    following = asyncio.create_task(kubectl("lint-2", "-f", "--tail=0", "--since=1h"))
    async with asyncio.timeout(TIMEOUT_S):
        await store.followed.wait()
    assert store.asked[-1]["tail"] == 0
    store.append(2, Line(datetime.now(UTC) + timedelta(days=1), "stdout", "four"), complete=True)
    assert await following == ("four\n", "")
    out, err = await kubectl("lint-7")
    assert (out, "NotFound" in err) == ("", True)
