"""SwarmQueue.spec.maxQueued: how many tasks may wait, whatever happens to them and however they come."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.apiserver.queues import APPLY, BASE, MERGE, TASKS, edit_queue, make_queue, member, named, names, set_status, submit, task
from tests.apiserver.server import api_server_process, http_client, running_api_server
from tests.apiserver.waiting import until_gone


def refused(response: httpx.Response) -> dict[str, Any]:
    """The answer is a whole refusal: Status, header and words."""
    status: dict[str, Any] = response.json()
    assert (response.status_code, status["code"], status["reason"]) == (429, 429, "TooManyRequests"), response.text
    assert response.headers["retry-after"] == str(status["details"]["retryAfterSeconds"])
    assert 1 <= int(response.headers["retry-after"]) <= 10
    assert (status["details"]["group"], status["details"]["kind"]) == ("swarmtask.io", "swarmtasks")
    assert [(cause["field"], cause["reason"]) for cause in status["details"]["causes"]] == [("spec.queue", "QueueFull")]
    return status


async def test_of_64_concurrent_creates_exactly_10_are_accepted(api: httpx.AsyncClient) -> None:
    await edit_queue(api, maxQueued=10)
    answers = await asyncio.gather(*(api.post(TASKS, json=task(name)) for name in named("t", 64)))
    accepted = sorted(answer.json()["metadata"]["name"] for answer in answers if answer.status_code == 201)
    assert len(accepted) == 10
    assert await names(api) == accepted
    for answer in answers:
        if answer.status_code != 201:
            refused(answer)


async def test_the_refusal_says_what_to_do(api: httpx.AsyncClient) -> None:
    await edit_queue(api, maxQueued=1)
    assert await submit(api, "a") == [201]
    status = refused(await api.post(TASKS, json=task("b")))
    for words in ('swarmtasks.swarmtask.io "b" was not accepted', "queue default is full", "1 of at most 1", "cancel",
                  "kubectl -n default edit swarmqueue default"):  # fmt: skip
        assert words in status["message"]
    assert status["details"]["name"] == "b"
    await edit_queue(api, maxQueued=0)
    assert "accepts no tasks" in refused(await api.post(TASKS, json=task("b")))["message"]


@pytest.mark.parametrize(("throughput", "seconds"), [(0.0, 1), (600.0, 1), (20.0, 3), (0.5, 10)])
async def test_the_advice_when_to_try_again_follows_the_throughput(api: httpx.AsyncClient, throughput: float, seconds: int) -> None:
    await edit_queue(api, maxQueued=0)
    path = f"{BASE}/swarmqueues/default/status"
    response = await api.patch(path, json={"status": {"throughputPerMinute": throughput}}, headers=MERGE)
    assert response.status_code == 200, response.text
    assert refused(await api.post(TASKS, json=task()))["details"]["retryAfterSeconds"] == seconds


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["Starting", "Running", "Unknown", "Succeeded", "Failed", "Cancelled", "Expired"])
async def test_a_bound_or_finished_task_frees_its_place(api: httpx.AsyncClient, phase: str) -> None:
    await edit_queue(api, maxQueued=1)
    assert await submit(api, "a", "b") == [201, 429]
    await set_status(api, "a", phase)
    assert await submit(api, "b", "c") == [201, 429]


@pytest.mark.parametrize("phase", ["Pending", "Queued", "Backoff"])
async def test_a_task_that_waits_takes_a_place(api: httpx.AsyncClient, phase: str) -> None:
    await edit_queue(api, maxQueued=1)
    assert await submit(api, "a") == [201]
    await set_status(api, "a", phase)
    assert await submit(api, "b") == [429]


async def test_a_deleted_task_frees_its_place_also_while_a_finalizer_holds_it(api: httpx.AsyncClient) -> None:
    await edit_queue(api, maxQueued=1)
    body = task("a")
    body["metadata"]["finalizers"] = ["swarmtask.io/test"]
    assert (await api.post(TASKS, json=body)).status_code == 201
    assert await submit(api, "b") == [429]
    assert (await api.delete(f"{TASKS}/a")).status_code == 200
    assert await submit(api, "b", "c") == [201, 429]
    await api.patch(f"{TASKS}/a", json={"metadata": {"finalizers": None}}, headers=MERGE)
    await until_gone(api, f"{TASKS}/a")
    assert await submit(api, "c") == [429], "one place was freed twice"


async def test_what_was_accepted_stays(api: httpx.AsyncClient) -> None:
    """Lowered below what waits, exceeded by a task that comes back: nothing is taken away, edits go on, no create comes in."""
    await edit_queue(api, maxQueued=2)
    assert await submit(api, "a", "b") == [201, 201]
    await set_status(api, "a", "Running")
    assert await submit(api, "c") == [201]
    await edit_queue(api, maxQueued=1)
    await set_status(api, "a", "Backoff")
    assert await names(api) == ["a", "b", "c"]
    response = await api.patch(f"{TASKS}/a", json={"spec": {"backoffLimit": 9}}, headers=MERGE)
    assert response.status_code == 200, response.text
    for name in ("a", "b"):
        await set_status(api, name, "Cancelled")
        assert await submit(api, "d") == [429]
    await set_status(api, "c", "Cancelled")
    assert await submit(api, "d", "e") == [201, 429]


async def test_an_edited_bound_holds_for_the_next_create(api: httpx.AsyncClient) -> None:
    assert await submit(api, "a", "b") == [201, 201]
    await edit_queue(api, maxQueued=2)
    assert await submit(api, "c") == [429]
    await edit_queue(api, maxQueued=3)
    assert await submit(api, "c", "d") == [201, 429]
    await edit_queue(api, maxQueued=None)
    assert await submit(api, "d", "e") == [201, 201]


@pytest.mark.slow
async def test_creates_and_edits_of_the_queue_at_the_same_time(api: httpx.AsyncClient) -> None:
    """Whichever bound held at the moment, never more than the larger one is exceeded."""
    await edit_queue(api, maxQueued=5)

    async def keep_editing() -> None:
        for bound in (3, 5, 4, 5):
            await edit_queue(api, maxQueued=bound)

    answers, _ = await asyncio.gather(
        asyncio.gather(*(api.post(TASKS, json=task(name)) for name in named("t", 40))), keep_editing()
    )
    accepted = sum(answer.status_code == 201 for answer in answers)
    assert accepted == len(await names(api)) <= 5
    assert accepted >= 3


async def test_queues_and_namespaces_are_apart(api: httpx.AsyncClient) -> None:
    await edit_queue(api, maxQueued=1)
    await make_queue(api, "other", maxQueued=1)
    assert await submit(api, "a", "b") == [201, 429]
    assert await submit(api, "c", "d", queue="other") == [201, 429]
    assert await submit(api, *named("free", 3), queue="missing") == [201] * 3, "a queue without an object has no bound"
    await make_queue(api, "missing", maxQueued=3)
    assert await submit(api, "e", queue="missing") == [429], "tasks that came before their queue count"
    await api.post("/api/v1/namespaces", json={"metadata": {"name": "n"}})
    elsewhere = TASKS.replace("/default/", "/n/")
    assert (await api.post(elsewhere, json=task("a"))).status_code == 201


class TestMoves:
    async def test_a_move_into_a_full_queue_is_refused(self, api: httpx.AsyncClient) -> None:
        await make_queue(api, "small", maxQueued=1)
        assert await submit(api, "a", queue="small") == [201]
        assert await submit(api, "b") == [201]
        move = {"spec": {"queue": "small"}}
        status = refused(await api.patch(f"{TASKS}/b", json=move, headers=MERGE))
        assert "edit swarmqueue small" in status["message"]
        refused(await api.patch(f"{TASKS}/b", json=move, headers=MERGE, params={"dryRun": "All"}))
        applied = task("b", queue="small")
        refused(await api.patch(f"{TASKS}/b", json=applied, headers=APPLY, params={"fieldManager": "x", "force": "true"}))
        stored = (await api.get(f"{TASKS}/b")).json()
        assert stored["spec"]["queue"] == "default"
        stored["spec"]["queue"] = "small"
        refused(await api.put(f"{TASKS}/b", json=stored))

    async def test_a_move_takes_a_place_and_frees_one(self, api: httpx.AsyncClient) -> None:
        await edit_queue(api, maxQueued=1)
        await make_queue(api, "other", maxQueued=1)
        assert await submit(api, "a") == [201]
        moved = await api.patch(f"{TASKS}/a", json={"spec": {"queue": "other"}}, headers=MERGE)
        assert moved.status_code == 200, moved.text
        assert await submit(api, "b") == [201]
        assert await submit(api, "c", queue="other") == [429]

    async def test_concurrent_moves_count_each_other(self, api: httpx.AsyncClient) -> None:
        await make_queue(api, "small", maxQueued=3)
        assert await submit(api, *named("t", 12)) == [201] * 12
        answers = await asyncio.gather(
            *(api.patch(f"{TASKS}/{name}", json={"spec": {"queue": "small"}}, headers=MERGE) for name in named("t", 12))
        )
        assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 9

    async def test_a_task_that_does_not_wait_moves_freely(self, api: httpx.AsyncClient) -> None:
        await make_queue(api, "none", maxQueued=0)
        assert await submit(api, "a") == [201]
        await set_status(api, "a", "Running")
        moved = await api.patch(f"{TASKS}/a", json={"spec": {"queue": "none"}}, headers=MERGE)
        assert moved.status_code == 200, moved.text


class TestWaysToCreate:
    async def test_a_dry_run_is_refused_alike_and_takes_nothing(self, api: httpx.AsyncClient) -> None:
        await edit_queue(api, maxQueued=1)
        for _ in range(3):
            assert (await api.post(TASKS, json=task("a"), params={"dryRun": "All"})).status_code == 201
        assert await submit(api, "a") == [201]
        refused(await api.post(TASKS, json=task("b"), params={"dryRun": "All"}))

    async def test_server_side_apply(self, api: httpx.AsyncClient) -> None:
        await edit_queue(api, maxQueued=1)
        parameters = {"fieldManager": "x"}
        assert (await api.patch(f"{TASKS}/a", json=task("a"), headers=APPLY, params=parameters)).status_code == 201
        refused(await api.patch(f"{TASKS}/b", json=task("b"), headers=APPLY, params=parameters))
        again = await api.patch(f"{TASKS}/a", json=task("a", backoffLimit=1), headers=APPLY, params=parameters)
        assert again.status_code == 200, "what is there can be applied again"

    async def test_generated_names(self, api: httpx.AsyncClient) -> None:
        await edit_queue(api, maxQueued=2)
        body = task()
        body["metadata"] = {"generateName": "t-"}
        answers = await asyncio.gather(*(api.post(TASKS, json=body) for _ in range(8)))
        assert sorted(answer.status_code for answer in answers) == [201] * 2 + [429] * 6

    async def test_other_faults_come_first(self, api: httpx.AsyncClient) -> None:
        await edit_queue(api, maxQueued=1)
        assert await submit(api, "a", "a") == [201, 409]
        assert await submit(api, "b", backoffLimit=-1) == [422]

    async def test_the_tasks_of_an_array_were_accepted_with_it(self, api: httpx.AsyncClient) -> None:
        await edit_queue(api, maxQueued=2)
        array = (await api.post(TASKS, json=task("array", completions=3))).json()
        for index in range(3):
            response = await api.post(TASKS, json=member(f"array-{index}", array, index))
            assert response.status_code == 201, response.text
        assert await submit(api, "a", "b") == [201, 429], "an array takes one place, its tasks none"
        response = await api.post(TASKS, json=member("array-3", array, 3))
        assert response.status_code == 201, "a full queue does not refuse what was accepted"

    async def test_only_tasks_are_bound(self, api: httpx.AsyncClient) -> None:
        await edit_queue(api, maxQueued=0)
        body = {"metadata": {"name": "c"}, "data": {"spec": "queue"}}
        assert (await api.post("/api/v1/namespaces/default/configmaps", json=body)).status_code == 201


async def test_a_deleted_namespace_leaves_no_count_behind(api: httpx.AsyncClient) -> None:
    namespace, tasks = "/api/v1/namespaces/n", TASKS.replace("/default/", "/n/")
    for _ in range(2):
        await api.post("/api/v1/namespaces", json={"metadata": {"name": "n"}})
        body = {"apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmQueue", "metadata": {"name": "default"}}
        queues = tasks.replace("swarmtasks", "swarmqueues")
        assert (await api.post(queues, json=body | {"spec": {"maxQueued": 2}})).status_code == 201
        codes = [(await api.post(tasks, json=task(name))).status_code for name in ("a", "b", "c")]
        assert codes == [201, 201, 429]
        assert (await api.delete(namespace)).status_code == 200
        await until_gone(api, namespace)


async def test_the_count_is_right_after_a_restart(tmp_path: Path) -> None:
    async with running_api_server(tmp_path) as server, http_client(server) as api:
        await edit_queue(api, maxQueued=3)
        assert await submit(api, "a", "b", "c", "d") == [201, 201, 201, 429]
        await set_status(api, "a", "Running")
        assert (await api.delete(f"{TASKS}/b")).status_code == 200
    async with running_api_server(tmp_path) as server, http_client(server) as api:
        assert await submit(api, "d", "e", "f") == [201, 201, 429]


@pytest.mark.slow
async def test_the_count_is_right_after_a_kill(tmp_path: Path) -> None:
    """Killed amid creates: as many are accepted afterwards as the stored ones leave room for."""
    async with api_server_process(tmp_path) as process:
        async with http_client(await process.start()) as api:
            await edit_queue(api, maxQueued=50)
            creates = [asyncio.create_task(api.post(TASKS, json=task(name))) for name in named("t", 40)]
            await asyncio.wait(creates, return_when=asyncio.FIRST_COMPLETED)
            await process.kill()
            await asyncio.gather(*creates, return_exceptions=True)
        async with http_client(await process.start()) as api:
            stored = len(await names(api))
            assert stored > 0
            answers = await asyncio.gather(*(api.post(TASKS, json=task(name)) for name in named("u", 60)))
            assert sum(answer.status_code == 201 for answer in answers) == 50 - stored
            assert len(await names(api)) == 50
