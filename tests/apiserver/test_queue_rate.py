"""SwarmQueue.spec.clientRateLimit: how fast one client may create tasks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmtask.apiserver.app import Application
from swarmtask.apiserver.auth import Authenticator
from swarmtask.apiserver.rate_limits import Rate, TokenBuckets
from swarmtask.apiserver.records import Key
from swarmtask.apiserver.store import Store
from swarmtask.apiserver.writes import WriteOptions, Written
from swarmtask.clock import ManualClock
from swarmtask.errors import AlreadyExists, InsufficientStorage, Invalid, TooManyRequests
from swarmtask.settings import ApiServerSettings
from tests.apiserver.queues import TASKS, SteeredClock, edit_queue, make_queue, member, named, set_status, submit, task
from tests.apiserver.server import http_client, running_api_server


class TestOverHttp:
    @pytest.fixture
    def clock(self) -> SteeredClock:
        return SteeredClock()

    @pytest.fixture
    async def api(self, tmp_path: Path, clock: SteeredClock) -> AsyncIterator[httpx.AsyncClient]:
        async with running_api_server(tmp_path, clock=clock) as server, http_client(server) as client:
            yield client

    async def test_a_burst_then_as_many_as_the_minute_allows(self, api: httpx.AsyncClient, clock: SteeredClock) -> None:
        await edit_queue(api, clientRateLimit={"perMinute": 20, "burst": 3})
        assert await submit(api, "a", "b", "c", "d") == [201, 201, 201, 429]
        clock.seconds += 2.9
        assert await submit(api, "d") == [429]
        clock.seconds += 0.1
        assert await submit(api, "d", "e") == [201, 429]
        clock.seconds += 3600
        assert await submit(api, *named("later", 4)) == [201, 201, 201, 429], "no more than a burst is saved up"

    async def test_the_refusal_says_who_and_when(self, api: httpx.AsyncClient, clock: SteeredClock) -> None:
        await edit_queue(api, clientRateLimit={"perMinute": 2, "burst": 1})
        assert await submit(api, "a") == [201]
        clock.seconds += 9.5
        answer = await api.post(TASKS, json=task("b"))
        status = answer.json()
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "21")
        assert status["reason"] == "TooManyRequests"
        assert status["details"]["retryAfterSeconds"] == 21
        assert status["details"]["causes"][0]["reason"] == "ClientRateLimited"
        for words in ('"b" was not accepted', "swarmtask-admin", "2 per minute", "1 at once", "Try again in 21 s",
                      "kubectl -n default edit swarmqueue default"):  # fmt: skip
            assert words in status["message"]
        clock.seconds += 21
        assert await submit(api, "b") == [201], "a client that waits as long as it was told comes in"

    async def test_concurrent_creates_share_one_bucket(self, api: httpx.AsyncClient) -> None:
        await edit_queue(api, clientRateLimit={"perMinute": 1, "burst": 5})
        answers = await asyncio.gather(*(api.post(TASKS, json=task(name)) for name in named("t", 40)))
        assert sum(answer.status_code == 201 for answer in answers) == 5

    async def test_what_is_not_created_takes_no_token(self, api: httpx.AsyncClient) -> None:
        await edit_queue(api, clientRateLimit={"perMinute": 1, "burst": 2}, maxQueued=1)
        assert await submit(api, "a") == [201]
        assert await submit(api, *named("full", 3)) == [429] * 3
        await edit_queue(api, maxQueued=None)
        assert await submit(api, *named("wrong", 3), backoffLimit=-1) == [422] * 3
        assert await submit(api, "a", "a") == [409, 409]
        for _ in range(3):
            assert (await api.post(TASKS, json=task("dry"), params={"dryRun": "All"})).status_code == 201
        assert await submit(api, "b", "c") == [201, 429]
        assert (await api.post(TASKS, json=task("dry"), params={"dryRun": "All"})).status_code == 429

    async def test_only_creates_of_tasks_of_that_queue_are_limited(self, api: httpx.AsyncClient) -> None:
        await edit_queue(api, clientRateLimit={"perMinute": 1, "burst": 1})
        await make_queue(api, "other", clientRateLimit={"perMinute": 1, "burst": 1})
        array = (await api.post(TASKS, json=task("array", completions=3))).json()
        assert await submit(api, "a") == [429]
        for index in range(3):
            assert (await api.post(TASKS, json=member(f"array-{index}", array, index))).status_code == 201
        await set_status(api, "array", "Running")
        assert await submit(api, "b", "c", queue="other") == [201, 429]
        assert await submit(api, "d", "e", queue="free") == [201, 201]

    async def test_an_edited_limit_holds_at_once(self, api: httpx.AsyncClient, clock: SteeredClock) -> None:
        await edit_queue(api, clientRateLimit={"perMinute": 1, "burst": 1})
        assert await submit(api, "a", "b") == [201, 429]
        await edit_queue(api, clientRateLimit={"perMinute": 60, "burst": 2})
        assert await submit(api, "b", "c") == [201, 429]
        await edit_queue(api, clientRateLimit={"perMinute": 600, "burst": 100})
        assert await submit(api, *named("many", 50)) == [201] * 50
        await edit_queue(api, clientRateLimit={"perMinute": 1, "burst": 1})
        answer = await api.post(TASKS, json=task("z"))
        assert answer.headers["retry-after"] == "60", "a lowered limit asks nobody to wait for an old burst"
        await edit_queue(api, clientRateLimit=None)
        assert await submit(api, "z", "y") == [201, 201]


# --- below HTTP ----------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def application(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Application]:
    app = await Application.open(tmp_path / "x.db", ApiServerSettings(), Authenticator([]), clock)
    try:
        yield app
    finally:
        await app.close()


async def limit(app: Application, **rate: int) -> None:
    rt = app.registry.find("swarmtask.io", "v1alpha1", "swarmqueues")
    assert rt is not None
    record = app.store.get(app.service.key(rt, "default", "default"))
    assert record is not None
    body = record.decode()
    body["spec"]["clientRateLimit"] = rate
    await app.service.replace(rt, "default", "default", body, WriteOptions())


async def create(app: Application, name: str, client: str, **spec: Any) -> Written:
    rt = app.registry.find("swarmtask.io", "v1alpha1", "swarmtasks")
    assert rt is not None
    return await app.service.create(rt, "default", task(name, **spec), WriteOptions(client=client))


async def test_each_client_has_a_bucket_and_the_server_has_none(tmp_path: Path) -> None:
    clock = ManualClock()
    async with application(tmp_path, clock) as app:
        await limit(app, perMinute=6, burst=1)
        await create(app, "a", "ann")
        await create(app, "b", "bob")
        for client in ("ann", "bob"):
            with pytest.raises(TooManyRequests, match=client) as caught:
                await create(app, "c", client)
            assert caught.value.retry_after_s == 10
        for name in named("own", 5):
            await create(app, name, "")
        clock.advance(10)
        await create(app, "c", "ann")


async def test_a_create_that_cannot_be_written_gives_its_token_back(tmp_path: Path) -> None:
    async with application(tmp_path, ManualClock()) as app:
        await limit(app, perMinute=1, burst=1)
        fill_disk(app.store)
        for _ in range(3):
            with pytest.raises(InsufficientStorage):
                await create(app, "a", "ann", container={"image": "x", "args": ["y" * 30_000] * 3})
        app.store._disk.db.execute("PRAGMA max_page_count = 1000000")
        with pytest.raises(Invalid):
            await create(app, "a", "ann", queue="Not a name")
        await create(app, "a", "ann")
        with pytest.raises(AlreadyExists):
            await create(app, "a", "ann")
        with pytest.raises(TooManyRequests):
            await create(app, "b", "ann")


@pytest.mark.parametrize("spec", [{"clientRateLimit": 5}, {"maxQueued": "many"}, {"defaults": ["x"]}, [], "x"])
async def test_a_queue_that_another_version_wrote_stops_no_create(tmp_path: Path, spec: Any) -> None:
    async with application(tmp_path, ManualClock()) as app:
        key = Key(("swarmtask.io", "swarmqueues"), "default", "default")
        record = app.store.head(key)
        assert record is not None
        body = record.decode() | {"spec": spec, "status": {"throughputPerMinute": "fast"}}
        await app.store.put(key, body, replacing=record)
        await create(app, "a", "ann")


def fill_disk(store: Store) -> None:
    pages = store._disk.db.execute("PRAGMA page_count").fetchone()[0]
    store._disk.db.execute(f"PRAGMA max_page_count = {pages + 1}")


# --- the buckets ---------------------------------------------------------------------------------------------------------


class Now:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_buckets_that_are_full_again_are_forgotten() -> None:
    now = Now()
    buckets = TokenBuckets(now)
    rate = Rate(per_minute=60, burst=5)
    for client in range(1000):
        buckets.take(client, rate)
        now.seconds += 0.5
    assert len(buckets) <= 3, "each is full again after a second"


def test_no_more_buckets_than_the_limit() -> None:
    buckets = TokenBuckets(Now(), limit=10)
    rate = Rate(per_minute=1, burst=1)
    for client in range(100):
        buckets.take(client, rate)
    assert len(buckets) == 10
    assert buckets.wait_s(99, rate) > 0
    assert buckets.wait_s(0, rate) == 0, "forgotten: full"


def test_a_token_comes_back_once() -> None:
    buckets = TokenBuckets(Now())
    rate = Rate(per_minute=1, burst=2)
    buckets.take("a", rate)
    for _ in range(3):
        buckets.give_back("a")
    buckets.give_back("unknown")
    for _ in range(2):
        assert buckets.wait_s("a", rate) == 0
        buckets.take("a", rate)
    assert buckets.wait_s("a", rate) == pytest.approx(60)


@given(
    rate=st.builds(Rate, per_minute=st.integers(1, 10_000), burst=st.integers(1, 50)),
    pauses=st.lists(st.floats(0, 30, allow_nan=False), max_size=80),
)
def test_never_more_than_the_burst_and_the_rate_allow(rate: Rate, pauses: list[float]) -> None:
    """For every window: accepted <= burst + window * rate. And whoever waits as long as told is accepted."""
    now = Now()
    buckets = TokenBuckets(now)
    accepted: list[float] = []
    for pause in pauses:
        now.seconds += pause
        wait_s = buckets.wait_s("a", rate)
        assert 0 <= wait_s <= 1 / rate.per_second + 1e-6
        if wait_s > 0:
            now.seconds += wait_s
            assert buckets.wait_s("a", rate) == 0
        buckets.take("a", rate)
        accepted.append(now.seconds)
    for first in range(len(accepted)):
        for last in range(first, len(accepted)):
            window = accepted[last] - accepted[first]
            assert last - first + 1 <= rate.burst + window * rate.per_second + 1e-6
