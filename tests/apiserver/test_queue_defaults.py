"""SwarmQueue.spec.defaults: what tasks get, at their creation, where they do not say."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.apiserver.queues import APPLY, MERGE, TASKS, edit_queue, make_queue, member, task

DEFAULTS = {
    "priorityClass": "high", "backoffLimit": 7, "queueDeadlineSeconds": 60, "startDeadlineSeconds": 61, "activeDeadlineSeconds": 62,
    "terminationGracePeriodSeconds": 63, "ttlSecondsAfterFinished": 64,
}  # fmt: skip
PARAMETERS = {"fieldManager": "x"}


@pytest.fixture(autouse=True)
async def queue(api: httpx.AsyncClient) -> None:
    await edit_queue(api, defaults=DEFAULTS)


def chosen(obj: dict[str, Any]) -> dict[str, Any]:
    return {name: obj["spec"].get(name) for name in (*DEFAULTS, "priority")}


async def post(api: httpx.AsyncClient, **spec: Any) -> dict[str, Any]:
    response = await api.post(TASKS, json=task(**spec), params=PARAMETERS)
    assert response.status_code == 201, response.text
    created: dict[str, Any] = response.json()
    return created


async def apply(api: httpx.AsyncClient, body: dict[str, Any], **parameters: str) -> dict[str, Any]:
    path = f"{TASKS}/{body['metadata']['name']}"
    response = await api.patch(path, json=body, headers=APPLY, params=PARAMETERS | parameters)
    assert response.status_code in (200, 201), response.text
    applied: dict[str, Any] = response.json()
    return applied


async def test_what_is_left_out_comes_from_the_queue(api: httpx.AsyncClient) -> None:
    created = await post(api)
    assert chosen(created) == DEFAULTS | {"priority": None}
    assert created["spec"]["queue"] == "default"
    assert created["spec"]["dedupeWindowSeconds"] == 3600, "the schema's defaults fill the rest"
    assert (await api.get(f"{TASKS}/t")).json() == created


async def test_what_is_said_wins(api: httpx.AsyncClient) -> None:
    said = {
        "priorityClass": "low", "backoffLimit": 0, "queueDeadlineSeconds": 1, "startDeadlineSeconds": 2, "activeDeadlineSeconds": 3,
        "terminationGracePeriodSeconds": 0, "ttlSecondsAfterFinished": 5,
    }  # fmt: skip
    assert chosen(await post(api, **said)) == said | {"priority": None}


@pytest.mark.slow
async def test_a_priority_of_ones_own_leaves_no_room_for_a_class(api: httpx.AsyncClient) -> None:
    created = await post(api, priority=5)
    assert (created["spec"]["priority"], created["spec"].get("priorityClass")) == (5, None)


async def test_null_counts_as_left_out(api: httpx.AsyncClient) -> None:
    created = await post(api, queue=None, backoffLimit=None, priority=None, priorityClass=None)
    assert chosen(created) == DEFAULTS | {"priority": None}


async def test_another_queue_and_no_queue(api: httpx.AsyncClient) -> None:
    await make_queue(api, "other", defaults={"backoffLimit": 1})
    assert chosen(await post(api, name="a", queue="other"))["backoffLimit"] == 1
    created = await post(api, name="b", queue="missing")
    assert (created["spec"]["backoffLimit"], created["spec"].get("priorityClass")) == (3, None)


async def test_an_edited_queue_changes_no_task(api: httpx.AsyncClient) -> None:
    before = await post(api, name="a")
    await edit_queue(api, defaults={"backoffLimit": 8})
    assert (await api.get(f"{TASKS}/a")).json() == before
    labelled = await api.patch(f"{TASKS}/a", json={"metadata": {"labels": {"x": "y"}}}, headers=MERGE)
    assert labelled.json()["spec"] == before["spec"]
    assert chosen(await post(api, name="b"))["backoffLimit"] == 8


async def test_a_dry_run_shows_them(api: httpx.AsyncClient) -> None:
    response = await api.post(TASKS, json=task(), params={"dryRun": "All"})
    assert chosen(response.json()) == DEFAULTS | {"priority": None}
    assert (await apply(api, task("d"), dryRun="All"))["spec"]["backoffLimit"] == 7


async def test_server_side_apply_gets_them_and_does_not_own_them(api: httpx.AsyncClient) -> None:
    first = await apply(api, task(activeDeadlineSeconds=9))
    assert chosen(first) == DEFAULTS | {"activeDeadlineSeconds": 9, "priority": None}
    owned = first["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"]
    assert set(owned) == {"f:container", "f:activeDeadlineSeconds"}
    again = await apply(api, task(activeDeadlineSeconds=9))
    assert again == first, "applying the same again writes nothing"
    await edit_queue(api, defaults={"backoffLimit": 8})
    assert await apply(api, task(activeDeadlineSeconds=9)) == first
    other = await apply(api, task(backoffLimit=2), fieldManager="y")
    assert other["spec"]["backoffLimit"] == 2, "nobody is in the way of whoever sets one"


@pytest.mark.parametrize("way", ["apply", "merge", "replace"])
@pytest.mark.parametrize("created", ["posted", "applied"])
async def test_a_priority_that_is_set_later_takes_the_place_of_the_class_that_nobody_said(
    api: httpx.AsyncClient, created: str, way: str
) -> None:
    first = await post(api) if created == "posted" else await apply(api, task())
    if way == "apply":
        now = await apply(api, task(priority=5))
    elif way == "merge":
        now = (await api.patch(f"{TASKS}/t", json={"spec": {"priority": 5}}, headers=MERGE)).json()
    else:
        read = first | {"spec": first["spec"] | {"priority": 5}}
        now = (await api.put(f"{TASKS}/t", json=read)).json()
    assert chosen(now) == DEFAULTS | {"priority": 5, "priorityClass": None}
    assert now == (await api.get(f"{TASKS}/t")).json()


async def test_a_class_that_somebody_said_excludes_a_priority(api: httpx.AsyncClient) -> None:
    await post(api, name="posted", priorityClass="high")
    await apply(api, task("applied", priorityClass="high"))
    await post(api, name="edited")
    assert (await api.patch(f"{TASKS}/edited", json={"spec": {"priorityClass": "low"}}, headers=MERGE)).status_code == 200
    for name in ("posted", "applied", "edited"):
        refused = await api.patch(f"{TASKS}/{name}", json={"spec": {"priority": 5}}, headers=MERGE)
        assert (refused.status_code, "exclude each other" in refused.text) == (422, True), name
    both = await api.patch(
        f"{TASKS}/applied", json=task("applied", priorityClass="high", priority=5), headers=APPLY, params=PARAMETERS
    )
    assert both.status_code == 422
    moved = await apply(api, task("applied", priority=5))
    assert chosen(moved)["priority"] == 5


async def test_who_applies_both_is_refused_although_the_class_was_filled_in(api: httpx.AsyncClient) -> None:
    await apply(api, task())
    both = await api.patch(f"{TASKS}/t", json=task(priority=5, priorityClass="high"), headers=APPLY, params=PARAMETERS)
    assert (both.status_code, "exclude each other" in both.text) == (422, True)


async def test_a_class_stays_where_nobody_knows_who_said_it(api: httpx.AsyncClient) -> None:
    await post(api)
    untracked = await api.patch(f"{TASKS}/t", json={"metadata": {"managedFields": [{}]}}, headers=MERGE)
    assert "managedFields" not in untracked.json()["metadata"]
    refused = await api.patch(f"{TASKS}/t", json={"spec": {"priority": 5}}, headers=MERGE)
    assert (refused.status_code, "exclude each other" in refused.text) == (422, True)


async def test_what_a_post_did_not_say_is_owned_by_nobody(api: httpx.AsyncClient) -> None:
    created = await post(api, activeDeadlineSeconds=9)
    owned = created["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"]
    assert "f:activeDeadlineSeconds" in owned and "f:container" in owned
    assert not owned.keys() & {f"f:{name}" for name in DEFAULTS if name != "activeDeadlineSeconds"}


async def test_the_tasks_of_an_array_are_as_it_made_them(api: httpx.AsyncClient) -> None:
    array = await post(api, name="array", completions=2)
    response = await api.post(TASKS, json=member("array-0", array, 0, queue="default", backoffLimit=1))
    created = response.json()
    assert (created["spec"]["backoffLimit"], created["spec"].get("priorityClass")) == (1, None)
    assert created["spec"]["startDeadlineSeconds"] == 600


@pytest.mark.parametrize(
    "body",
    [
        task() | {"spec": None}, task() | {"spec": []}, task() | {"spec": "x"}, task() | {"spec": {"queue": 5}},
        task() | {"spec": {"queue": {}, "container": 1}}, task(backoffLimit="7"), task(priority="high"), task(queue=""),
    ],
)  # fmt: skip
async def test_a_malformed_task_is_refused_as_ever(api: httpx.AsyncClient, body: dict[str, Any]) -> None:
    assert (await api.post(TASKS, json=body)).status_code == 422
    assert (await api.patch(f"{TASKS}/t", json=body, headers=APPLY, params=PARAMETERS)).status_code in (400, 422)
