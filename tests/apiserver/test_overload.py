"""Too much of something: it is refused with a word on when to come again, and everybody else is served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from swarmtask.apiserver import watch as watch_module
from swarmtask.apiserver.access.users import ADMINISTRATOR, OPERATOR, User
from swarmtask.apiserver.pacing import BURST_S, RequestPace
from swarmtask.clock import ManualClock
from swarmtask.errors import TooManyRequests
from tests.apiserver.access.people import person
from tests.apiserver.server import RunningServer, http_client, running_api_server
from tests.apiserver.streams import watching
from tests.apiserver.waiting import until

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"


def test_each_client_has_a_pace_of_his_own() -> None:
    clock = ManualClock()
    pace = RequestPace(clock, 2)
    anna, bert = User("anna"), User("bert")
    for _ in range(2 * BURST_S):
        pace.admit(anna, "192.0.2.1")
    with pytest.raises(TooManyRequests) as refusal:
        pace.admit(anna, "192.0.2.2")
    assert refusal.value.retry_after_s == 1
    pace.admit(bert, "192.0.2.1")
    for _ in range(2 * BURST_S):
        pace.admit(None, "192.0.2.1")
    with pytest.raises(TooManyRequests):
        pace.admit(None, "192.0.2.1")
    pace.admit(None, "192.0.2.2")
    clock.advance(1)
    pace.admit(anna, "192.0.2.1")
    pace.admit(anna, "192.0.2.1")
    with pytest.raises(TooManyRequests):
        pace.admit(anna, "192.0.2.1")
    for _ in range(100):
        pace.admit(ADMINISTRATOR, "")
        pace.admit(OPERATOR, "")
        RequestPace(clock, 0).admit(anna, "")


async def test_who_asks_too_fast_is_told_when_to_come_again(tmp_path: Path) -> None:
    async with (
        running_api_server(tmp_path, client_requests_per_second=1) as server,
        http_client(server) as api,
        person(server, api, "anna", ("view", "default")) as anna,
    ):
        answers = [await anna.get(CONFIG_MAPS) for _ in range(3 * BURST_S)]
        assert [answer.status_code for answer in answers[:BURST_S]] == [200] * BURST_S
        refused = [answer for answer in answers if answer.status_code != 200]
        assert refused
        for answer in refused:
            assert (answer.status_code, answer.json()["reason"]) == (429, "TooManyRequests")
            assert answer.headers["retry-after"] == str(answer.json()["details"]["retryAfterSeconds"]) == "1"
        assert (await api.get(CONFIG_MAPS)).status_code == 200, "the others are served"
        strangers = [
            (await api.get(CONFIG_MAPS, headers={"authorization": "Bearer wrong"})).status_code for _ in range(3 * BURST_S)
        ]
        assert strangers[:BURST_S] == [401] * BURST_S
        assert set(strangers[BURST_S:]) == {401, 429} or set(strangers[BURST_S:]) == {429}
        assert (await api.get("/readyz", headers={"authorization": ""})).status_code == 200


async def test_a_client_has_so_many_watches_and_no_more(tmp_path: Path) -> None:
    async with (
        running_api_server(tmp_path, client_watches=2) as server,
        http_client(server) as api,
        person(server, api, "anna", ("view", "default")) as anna,
    ):
        async with watching(anna, CONFIG_MAPS), watching(anna, CONFIG_MAPS):
            refused = await anna.get(CONFIG_MAPS, params={"watch": "1"})
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "10")
            async with watching(api, CONFIG_MAPS), watching(api, CONFIG_MAPS), watching(api, CONFIG_MAPS):
                pass

        async def free_again() -> bool:
            async with anna.stream("GET", CONFIG_MAPS, params={"watch": "1"}) as response:
                return response.status_code == 200

        await until(free_again, what="a closed watch counts no more")


async def test_the_server_has_so_many_watches_and_no_more(
    server: RunningServer, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "WATCHER_LIMIT", 2)
    async with watching(api, CONFIG_MAPS), watching(api, CONFIG_MAPS):
        refused = await api.get(CONFIG_MAPS, params={"watch": "1"})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "10")
        assert (await api.get(CONFIG_MAPS)).status_code == 200, "lists go on"


@pytest.mark.parametrize("nested", [b"[" * 200 + b"]" * 200, b'{"a":' * 200 + b"1" + b"}" * 200])
async def test_a_body_that_is_too_deep_or_too_large_is_refused(api: httpx.AsyncClient, nested: bytes) -> None:
    body = b'{"metadata":{"name":"x"},"data":' + nested + b"}"
    deep = await api.post(CONFIG_MAPS, content=body, headers={"content-type": "application/json"})
    assert (deep.status_code, deep.json()["reason"]) == (400, "BadRequest")
    large: dict[str, Any] = {"metadata": {"name": "x"}, "data": {"a": "x" * (3 * 2**20)}}
    response = await api.post(CONFIG_MAPS, content=orjson.dumps(large))
    assert (response.status_code, response.json()["reason"]) == (413, "RequestEntityTooLarge")
    assert (await api.get(f"{CONFIG_MAPS}/x")).status_code == 404
