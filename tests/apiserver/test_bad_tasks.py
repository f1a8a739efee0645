"""Every bad SwarmTask of the list over plain HTTP: a Status that names the field, and nothing stored."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.resources.bad_tasks import bad_tasks, good_task

TASKS = "/apis/swarmtask.io/v1alpha1/namespaces/default/swarmtasks"


def problem(response: httpx.Response, names: tuple[str, ...]) -> str:
    """What is wrong with a refusal; empty when nothing is."""
    if response.status_code not in (400, 422):
        return f"answered {response.status_code}"
    status: dict[str, Any] = response.json()
    if (status["kind"], status["status"], status["code"]) != ("Status", "Failure", response.status_code):
        return f"no Status: {status}"
    if not any(name in status["message"] for name in names):
        return f"no field named: {status['message'][:300]}"
    if response.status_code == 422:
        causes = status["details"].get("causes", [])
        if not any(name in cause.get("field", "") for cause in causes for name in names):
            return f"no cause names the field: {causes}"
        if not all(cause["reason"] and cause["message"] for cause in causes):
            return f"an empty cause: {causes}"
    return ""


async def test_bad_tasks_are_refused_and_nothing_is_stored(api: httpx.AsyncClient) -> None:
    before = (await api.get(TASKS)).json()["metadata"]["resourceVersion"]
    problems = {}
    for case in bad_tasks():
        response = await api.post(f"{TASKS}?fieldValidation=Strict", json=case.manifest)
        if why := problem(response, case.names):
            problems[case.id] = why
    assert problems == {}
    after = (await api.get(TASKS)).json()
    assert after["items"] == []
    assert after["metadata"]["resourceVersion"] == before


@pytest.mark.slow
async def test_a_bad_replacement_leaves_the_task_as_it_was(api: httpx.AsyncClient) -> None:
    created = (await api.post(TASKS, json=good_task())).json()
    problems = {}
    for case in bad_tasks():
        metadata = {**case.manifest["metadata"], "resourceVersion": created["metadata"]["resourceVersion"]}
        metadata["name"] = metadata["name"] if case.id.startswith("name-") and "name" in metadata else "good"
        response = await api.put(f"{TASKS}/good?fieldValidation=Strict", json={**case.manifest, "metadata": metadata})
        if case.id != "name-missing" and response.status_code not in (400, 422):
            problems[case.id] = response.status_code
        patch = {name: value for name, value in case.manifest.items() if name == "spec"}
        await api.patch(f"{TASKS}/good?dryRun=All", json=patch, headers={"content-type": "application/merge-patch+json"})
    assert problems == {}
    assert (await api.get(f"{TASKS}/good")).json() == created


async def test_auto_is_stored_as_it_was_written(api: httpx.AsyncClient) -> None:
    task = good_task("sized")
    task["spec"]["container"]["resources"] = {"requests": {"memory": "auto"}, "limits": {"memory": "4Gi"}}
    task["spec"]["failurePolicy"] = [{"onReasons": ["OOMKilled"], "action": "Retry", "memoryFactor": 1.5, "maxMemory": "4Gi"}]
    response = await api.post(f"{TASKS}?fieldValidation=Strict", json=task)
    assert response.status_code == 201, response.text
    spec = response.json()["spec"]
    assert spec["container"]["resources"]["requests"]["memory"] == "auto"
    assert spec["failurePolicy"][0]["memoryFactor"] == 1.5
