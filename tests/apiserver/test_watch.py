"""Watches and lists over HTTP: what is sent, in which order, and what happens at the edges."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from swarmtask.apiserver import watch as watch_module
from tests.apiserver.server import RunningServer, http_client, running_api_server
from tests.apiserver.streams import names, watching

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
EVERYWHERE = "/api/v1/configmaps"
MERGE = {"content-type": "application/merge-patch+json"}


async def create(api: httpx.AsyncClient, name: str, path: str = CONFIG_MAPS, **metadata: Any) -> dict[str, Any]:
    response = await api.post(path, json={"metadata": {"name": name, **metadata}, "data": {"a": "1"}})
    assert response.status_code == 201, response.text
    created: dict[str, Any] = response.json()
    return created


async def label(api: httpx.AsyncClient, name: str, **labels: str | None) -> dict[str, Any]:
    response = await api.patch(f"{CONFIG_MAPS}/{name}", json={"metadata": {"labels": labels}}, headers=MERGE)
    patched: dict[str, Any] = response.json()
    return patched


async def version(api: httpx.AsyncClient, path: str = CONFIG_MAPS) -> str:
    found: str = (await api.get(path)).json()["metadata"]["resourceVersion"]
    return found


@pytest.mark.parametrize("since", [None, "0"])
async def test_without_a_version_begins_with_what_is_there(api: httpx.AsyncClient, since: str | None) -> None:
    await create(api, "a")
    await create(api, "b")
    query = {} if since is None else {"resourceVersion": since}
    async with watching(api, CONFIG_MAPS, **query) as stream:
        assert names([await stream.next(), await stream.next()]) == [("ADDED", "a"), ("ADDED", "b")]
        await create(api, "c")
        await api.delete(f"{CONFIG_MAPS}/a")
        assert names([await stream.next(), await stream.next()]) == [("ADDED", "c"), ("DELETED", "a")]


async def test_from_a_version_replays_exactly_what_came_after(api: httpx.AsyncClient) -> None:
    await create(api, "before")
    since = await version(api)
    created = await create(api, "a")
    patched = await label(api, "a", x="y")
    deleted_at = int(patched["metadata"]["resourceVersion"]) + 1
    await api.delete(f"{CONFIG_MAPS}/a")
    async with watching(api, CONFIG_MAPS, resourceVersion=since) as stream:
        events = [await stream.next() for _ in range(3)]
        assert names(events) == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]
        assert events[0]["object"] == created
        assert events[1]["object"] == patched
        assert events[2]["object"]["metadata"]["resourceVersion"] == str(deleted_at)
        await create(api, "b")
        assert names([await stream.next()]) == [("ADDED", "b")]


async def test_namespaces_are_kept_apart(api: httpx.AsyncClient) -> None:
    async with watching(api, CONFIG_MAPS) as one, watching(api, EVERYWHERE) as all_of_them:
        await create(api, "other", "/api/v1/namespaces/kube-system/configmaps")
        await create(api, "mine")
        assert names([await one.next()]) == [("ADDED", "mine")]
        assert names([await all_of_them.next(), await all_of_them.next()]) == [("ADDED", "other"), ("ADDED", "mine")]


@pytest.mark.parametrize("live", [True, False])
async def test_selectors_turn_edges_into_added_and_deleted(api: httpx.AsyncClient, live: bool) -> None:
    since = await version(api)

    async def change() -> list[dict[str, Any]]:
        await create(api, "a")
        one = await label(api, "a", x="1")
        two = await label(api, "a", x="1", y="2")
        three = await label(api, "a", x="9")
        await label(api, "a", x="8")
        four = await label(api, "a", x="1")
        await api.delete(f"{CONFIG_MAPS}/a")
        return [one, two, three, four]

    done = [] if live else await change()
    async with watching(api, CONFIG_MAPS, resourceVersion=since, labelSelector="x=1") as stream:
        done = done or await change()
        events = [await stream.next() for _ in range(5)]
    assert [event["type"] for event in events] == ["ADDED", "MODIFIED", "DELETED", "ADDED", "DELETED"]
    assert [event["object"]["metadata"]["resourceVersion"] for event in events[:4]] == [
        one["metadata"]["resourceVersion"] for one in done
    ]
    assert events[2]["object"]["metadata"]["labels"] == {"x": "1", "y": "2"}, "what left is shown as it was"


async def test_one_object_by_name(api: httpx.AsyncClient) -> None:
    await create(api, "a")
    await create(api, "b")
    async with watching(api, CONFIG_MAPS, fieldSelector="metadata.name=b") as stream:
        assert names([await stream.next()]) == [("ADDED", "b")]
    one = await api.get(f"{CONFIG_MAPS}/a", params={"watch": "1"})  # as in Kubernetes: a watch is of a collection
    assert (one.json()["kind"], one.json()["metadata"]["name"]) == ("ConfigMap", "a")
    assert (await api.get(f"{CONFIG_MAPS}/none", params={"watch": "1"})).status_code == 404


@pytest.mark.slow
async def test_time_out_ends_with_a_bookmark(api: httpx.AsyncClient) -> None:
    since = await version(api)
    async with watching(api, CONFIG_MAPS, resourceVersion=since, timeoutSeconds="1", allowWatchBookmarks="true") as stream:
        created = await create(api, "a")
        other = await create(api, "elsewhere", "/api/v1/namespaces/kube-system/configmaps")
        events = await stream.rest()
    assert names(events) == [("ADDED", "a")]
    assert events[0]["object"] == created
    assert events[-1]["type"] == "BOOKMARK"
    assert events[-1]["object"]["kind"] == "ConfigMap"
    assert int(events[-1]["object"]["metadata"]["resourceVersion"]) >= int(other["metadata"]["resourceVersion"])


@pytest.mark.slow
async def test_bookmarks_come_periodically_to_those_who_want_them(tmp_path: Path) -> None:
    async with running_api_server(tmp_path, bookmark_interval_s=0.1) as server, http_client(server) as api:
        async with watching(api, CONFIG_MAPS, resourceVersion=await version(api), allowWatchBookmarks="1") as stream:
            assert [(await stream.next())["type"] for _ in range(3)] == ["BOOKMARK"] * 3
        async with watching(api, CONFIG_MAPS, resourceVersion=await version(api), timeoutSeconds="1") as stream:
            assert await stream.rest() == []


async def test_initial_events_end_with_a_marked_bookmark(api: httpx.AsyncClient) -> None:
    await create(api, "a")
    query = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
    async with watching(api, CONFIG_MAPS, **query) as stream:
        assert names([await stream.next()]) == [("ADDED", "a")]
        end = await stream.next()
        assert end["type"] == "BOOKMARK"
        assert end["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
        await create(api, "b")
        assert names([await stream.next()]) == [("ADDED", "b")]
    for bad in ({"sendInitialEvents": "true"}, {"resourceVersionMatch": "NotOlderThan"}, {**query, "allowWatchBookmarks": "false"}):
        response = await api.get(CONFIG_MAPS, params={"watch": "true", **bad})
        assert response.status_code == 422, response.text
    listed = await api.get(CONFIG_MAPS, params={"sendInitialEvents": "true"})
    assert (listed.status_code, "forbidden for list" in listed.text) == (422, True)


@pytest.mark.slow
@pytest.mark.parametrize("since", ["1", "99999999"])
async def test_an_unknown_version_is_an_error_event_not_an_http_error(tmp_path: Path, since: str) -> None:
    async with running_api_server(tmp_path, event_log_rows=100) as server, http_client(server) as api:
        await asyncio.gather(*(create(api, f"n{number}") for number in range(200)))
        async with watching(api, CONFIG_MAPS, resourceVersion=since) as stream:
            (event,) = await stream.rest()
    assert event["type"] == "ERROR"
    assert (event["object"]["kind"], event["object"]["code"], event["object"]["reason"]) == ("Status", 410, "Expired")


async def test_watchers_survive_a_restart_without_relisting(tmp_path: Path) -> None:
    async with running_api_server(tmp_path) as server, http_client(server) as api:
        await create(api, "a")
        since = await version(api)
        await label(api, "a", x="1")
        await api.delete(f"{CONFIG_MAPS}/a")
    async with (
        running_api_server(tmp_path) as server,
        http_client(server) as api,
        watching(api, CONFIG_MAPS, resourceVersion=since, labelSelector="x=1") as stream,
    ):
        assert names([await stream.next(), await stream.next()]) == [("ADDED", "a"), ("DELETED", "a")]


@pytest.mark.slow
async def test_tables_name_their_columns_once(api: httpx.AsyncClient) -> None:
    await create(api, "a")
    accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
    async with watching(api, CONFIG_MAPS, accept=accept, allowWatchBookmarks="true", timeoutSeconds="1") as stream:
        first = await stream.next()
        await label(api, "a", x="1")
        second = await stream.next()
        (last,) = await stream.rest()
    assert first["object"]["kind"] == second["object"]["kind"] == "Table"
    assert [column["name"] for column in first["object"]["columnDefinitions"]] == ["Name", "Data", "Age"]
    assert second["object"]["columnDefinitions"] in ([], None)
    assert second["object"]["rows"][0]["cells"][:2] == ["a", 1]
    assert (last["type"], last["object"]["kind"], last["object"]["rows"]) == ("BOOKMARK", "Table", [])


@pytest.mark.slow
async def test_a_slow_reader_is_cut_off_and_misses_nothing(
    server: RunningServer, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "QUEUE_LIMIT", 5)
    since = await version(api)
    big = "x" * 200_000
    seen: list[str] = []
    async with watching(api, CONFIG_MAPS, resourceVersion=since) as stream:
        for number in range(60):
            await api.post(CONFIG_MAPS, json={"metadata": {"name": f"n{number:02}"}, "data": {"a": big}})
        cut = await stream.rest()
    assert 0 < len(cut) < 60
    assert all(event["type"] == "ADDED" for event in cut)
    seen += [event["object"]["metadata"]["name"] for event in cut]
    since = cut[-1]["object"]["metadata"]["resourceVersion"]
    async with watching(api, CONFIG_MAPS, resourceVersion=since) as stream:
        while len(seen) < 60:
            seen.append((await stream.next())["object"]["metadata"]["name"])
    assert seen == [f"n{number:02}" for number in range(60)]


@pytest.mark.slow
async def test_many_watchers_see_the_same_order(api: httpx.AsyncClient) -> None:
    since = await version(api)

    async def follow() -> list[tuple[str, str]]:
        async with watching(api, CONFIG_MAPS, resourceVersion=since) as stream:
            return names([await stream.next() for _ in range(60)])

    followers = [asyncio.create_task(follow()) for _ in range(8)]
    await asyncio.gather(*(create(api, f"n{number}") for number in range(40)))
    await asyncio.gather(*(label(api, f"n{number}", a="b") for number in range(20)))
    orders = await asyncio.gather(*followers)
    assert all(order == orders[0] for order in orders)
    assert len(set(orders[0])) == 60


class TestLists:
    async def test_pages_are_one_snapshot(self, api: httpx.AsyncClient) -> None:
        for number in range(7):
            await create(api, f"n{number}")
        page = (await api.get(CONFIG_MAPS, params={"limit": 3})).json()
        first = page["metadata"]["resourceVersion"]
        assert page["metadata"]["remainingItemCount"] == 4
        seen = [(item["metadata"]["name"], item["metadata"].get("labels")) for item in page["items"]]
        await api.delete(f"{CONFIG_MAPS}/n5")
        await create(api, "n55")
        await label(api, "n4", changed="yes")
        await api.delete(f"{CONFIG_MAPS}/n0")
        while token := page["metadata"].get("continue"):
            page = (await api.get(CONFIG_MAPS, params={"limit": 3, "continue": token})).json()
            assert page["metadata"]["resourceVersion"] == first
            seen += [(item["metadata"]["name"], item["metadata"].get("labels")) for item in page["items"]]
        assert seen == [(f"n{number}", None) for number in range(7)]
        exact = await api.get(CONFIG_MAPS, params={"resourceVersion": first, "resourceVersionMatch": "Exact"})
        assert [item["metadata"]["name"] for item in exact.json()["items"]] == [f"n{number}" for number in range(7)]

    @pytest.mark.parametrize("token", ["nonsense", "e30", "WzEsMiwzXQ", "!!!", "WzEsIiIsInNlY3JldHMiLCJkZWZhdWx0IiwiYSJd"])
    async def test_unknown_tokens_are_expired(self, api: httpx.AsyncClient, token: str) -> None:
        response = await api.get(CONFIG_MAPS, params={"limit": 3, "continue": token})
        assert (response.status_code, response.json()["reason"]) == (410, "Expired")

    @pytest.mark.slow
    async def test_compacted_tokens_are_expired(self, tmp_path: Path) -> None:
        async with running_api_server(tmp_path, event_log_rows=100) as server, http_client(server) as api:
            await asyncio.gather(*(create(api, f"n{number}") for number in range(5)))
            token = (await api.get(CONFIG_MAPS, params={"limit": 3})).json()["metadata"]["continue"]
            await asyncio.gather(*(create(api, f"m{number}") for number in range(300)))
            response = await api.get(CONFIG_MAPS, params={"limit": 3, "continue": token})
            assert (response.status_code, response.json()["reason"]) == (410, "Expired")

    @pytest.mark.parametrize("match", ["Exact", "NotOlderThan"])
    async def test_a_token_says_already_which_version_is_read(self, api: httpx.AsyncClient, match: str) -> None:
        await create(api, "a")
        await create(api, "b")
        token = (await api.get(CONFIG_MAPS, params={"limit": 1})).json()["metadata"]["continue"]
        refused = await api.get(CONFIG_MAPS, params={"limit": 1, "continue": token, "resourceVersionMatch": match})
        assert refused.status_code == 422
        assert "resourceVersionMatch is forbidden when continue is provided" in refused.json()["message"]

    async def test_selectors(self, api: httpx.AsyncClient) -> None:
        await create(api, "a", labels={"x": "1", "y": ""})
        await create(api, "b", labels={"x": "2"})
        await create(api, "c")

        async def select(**query: str) -> list[str]:
            response = await api.get(CONFIG_MAPS, params=query)
            assert response.status_code == 200, response.text
            return [item["metadata"]["name"] for item in response.json()["items"]]

        assert await select(labelSelector="x") == ["a", "b"]
        assert await select(labelSelector="!x") == ["c"]
        assert await select(labelSelector="x in (1, 3),y=") == ["a"]
        assert await select(labelSelector="x notin (1)") == ["b", "c"]
        assert await select(labelSelector="x!=1") == ["b", "c"]
        assert await select(labelSelector="x>1") == ["b"]
        assert await select(fieldSelector="metadata.name!=a,metadata.namespace=default") == ["b", "c"]
        assert await select(labelSelector="x", limit="1") == ["a"]

    @pytest.mark.parametrize("query", [
        {"labelSelector": "x in"}, {"labelSelector": "x in (1"}, {"labelSelector": "=x"}, {"labelSelector": "a b"},
        {"labelSelector": "x=ü"}, {"labelSelector": "x,"}, {"labelSelector": "x>a"}, {"labelSelector": "!"},
        {"labelSelector": "x in (a b)"}, {"labelSelector": "x in (a,("}, {"labelSelector": ",x"},
        {"fieldSelector": "data.a=1"}, {"fieldSelector": "metadata.name"}, {"limit": "-1"}, {"limit": "x"},
        {"resourceVersion": "abc"}, {"resourceVersion": "-1"}, {"watch": "1", "timeoutSeconds": "soon"},
    ])  # fmt: skip
    async def test_bad_parameters_are_bad_requests(self, api: httpx.AsyncClient, query: dict[str, str]) -> None:
        response = await api.get(CONFIG_MAPS, params=query)
        assert (response.status_code, response.json()["reason"]) == (400, "BadRequest"), response.text

    async def test_versions_ahead_of_time(self, api: httpx.AsyncClient) -> None:
        response = await api.get(CONFIG_MAPS, params={"resourceVersion": "99999999"})
        assert response.status_code == 504
        assert response.json()["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge"

    async def test_partial_metadata(self, api: httpx.AsyncClient) -> None:
        await create(api, "a", labels={"x": "1"})
        accept = {"accept": "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"}
        listed = (await api.get(CONFIG_MAPS, headers=accept)).json()
        assert (listed["kind"], listed["items"][0]["kind"]) == ("PartialObjectMetadataList", "PartialObjectMetadata")
        assert "data" not in listed["items"][0]
