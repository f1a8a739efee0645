"""Nodes, pods, metrics, Events and the kinds that are always empty, through a running server."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.apiserver.projections.swarm import (
    MERGE,
    NODES,
    TASKS,
    attempt,
    node,
    store_node,
    store_task,
    write_attempts,
)
from tests.apiserver.server import RunningServer
from tests.apiserver.streams import names, watching

PODS = "/api/v1/namespaces/default/pods"
STRATEGIC = {"content-type": "application/strategic-merge-patch+json"}
APPLY = {"content-type": "application/apply-patch+yaml"}
TABLE = {"accept": "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"}


async def get(api: httpx.AsyncClient, path: str, **query: str) -> dict[str, Any]:
    answer = await api.get(path, params=query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def pod_names(api: httpx.AsyncClient, path: str = PODS, **query: str) -> list[str]:
    return [item["metadata"]["name"] for item in (await get(api, path, **query))["items"]]


# --- reading ---


async def test_a_pod_is_read_alone_in_lists_and_as_a_table(api: httpx.AsyncClient) -> None:
    stored = await store_task(api, attempt(1, "Failed"), attempt(2))
    one = await get(api, f"{PODS}/lint-2")
    assert (one["kind"], one["status"]["phase"]) == ("Pod", "Running")
    assert one["metadata"]["resourceVersion"] == stored["metadata"]["resourceVersion"]
    whole = await get(api, PODS)
    assert (whole["kind"], whole["apiVersion"]) == ("PodList", "v1")
    assert whole["items"][1] == one
    table = (await api.get("/api/v1/pods", headers=TABLE)).json()
    assert [column["name"] for column in table["columnDefinitions"]][:4] == ["Name", "Ready", "Status", "Restarts"]
    assert [row["cells"][:3] for row in table["rows"]] == [["lint-1", "0/1", "Error"], ["lint-2", "1/1", "Running"]]
    for missing in ("lint-3", "lint", "other-1"):
        answer = await api.get(f"{PODS}/{missing}")
        assert (answer.status_code, answer.json()["message"]) == (404, f'pods "{missing}" not found')


async def test_selectors(api: httpx.AsyncClient) -> None:
    await store_task(api, attempt(1, "Failed"), attempt(2), name="a")
    await store_task(api, attempt(1, node="laptop-2"), name="b")
    assert await pod_names(api, fieldSelector="spec.nodeName=laptop-1") == ["a-1", "a-2"]
    assert await pod_names(api, fieldSelector="spec.nodeName=laptop-1,status.phase!=Failed") == ["a-2"]
    assert await pod_names(api, fieldSelector="metadata.name=b-1") == ["b-1"]
    assert await pod_names(api, "/api/v1/pods", fieldSelector="metadata.name=a-2,metadata.namespace=default") == ["a-2"]
    assert await pod_names(api, labelSelector="swarmtask.io/attempt=1,team=a") == ["a-1", "b-1"]
    assert await pod_names(api, labelSelector="team=b") == []
    assert (await api.get(PODS, params={"fieldSelector": "spec.image=x"})).status_code == 400


async def test_lists_in_pages_are_one_snapshot(api: httpx.AsyncClient) -> None:
    for name in ("a", "a-1", "b"):
        await store_task(api, *(attempt(number, "Failed") for number in (1, 2, 10)), name=name)
    wanted = [f"{name}-{number}" for name in ("a", "a-1", "b") for number in (1, 2, 10)]
    assert await pod_names(api) == wanted
    page = await get(api, PODS, limit="2")
    found = page["items"]
    await write_attempts(api, attempt(11), name="a-1")
    await api.delete(f"{TASKS}/b")
    while token := page["metadata"].get("continue"):
        page = await get(api, PODS, limit="2", **{"continue": token})
        found += page["items"]
    assert [item["metadata"]["name"] for item in found] == wanted
    assert await pod_names(api) == ["a-1", "a-2", "a-10", "a-1-11"]


async def test_a_watch_of_pods_from_a_list_on(api: httpx.AsyncClient) -> None:
    await store_task(api, attempt(1, "Starting"))
    listed = await get(api, PODS)
    since = listed["metadata"]["resourceVersion"]
    async with watching(api, PODS, resourceVersion=since, allowWatchBookmarks="true") as stream:
        await write_attempts(api, attempt(1))
        assert (await stream.next())["type"] == "MODIFIED"
        await api.patch(f"{TASKS}/lint", json={"metadata": {"annotations": {"note": "x"}}}, headers=MERGE)
        await write_attempts(api, attempt(1, "Failed"), attempt(2, "Starting"))
        await stream.next()
        await stream.next()
        await api.delete(f"{TASKS}/lint")
        await stream.until(lambda event: event["type"] == "DELETED" and event["object"]["metadata"]["name"] == "lint-2")
    said = names(stream.seen)
    assert said == [
        ("MODIFIED", "lint-1"),
        ("MODIFIED", "lint-1"),
        ("ADDED", "lint-2"),
        ("DELETED", "lint-1"),
        ("DELETED", "lint-2"),
    ]
    assert [event["object"]["status"]["phase"] for event in stream.seen[:3]] == ["Running", "Failed", "Pending"]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in stream.seen]
    assert versions == sorted(versions)
    async with watching(api, PODS, resourceVersion=since) as again:
        await again.until(lambda event: event["type"] == "DELETED" and event["object"]["metadata"]["name"] == "lint-2")
    assert names(again.seen) == said, "the log tells the same as the live stream"


async def test_a_watch_sees_pods_come_into_a_selection_and_leave_it(api: httpx.AsyncClient) -> None:
    await store_task(api, attempt(1))
    query = {"fieldSelector": "spec.nodeName=laptop-1,status.phase!=Failed", "sendInitialEvents": "true",
             "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}  # fmt: skip
    async with watching(api, "/api/v1/pods", accept=TABLE["accept"], **query) as stream:
        first = await stream.next()
        assert first["object"]["rows"][0]["cells"][:3] == ["lint-1", "1/1", "Running"]
        assert (await stream.next())["type"] == "BOOKMARK"
        await write_attempts(api, attempt(1, "Failed"))
        assert (await stream.next())["type"] == "DELETED"


async def test_a_watch_of_one_node(api: httpx.AsyncClient) -> None:
    await store_node(api)
    async with watching(api, "/api/v1/nodes", fieldSelector="metadata.name=laptop-1") as stream:
        assert (await stream.next())["type"] == "ADDED"
        await api.patch("/api/v1/nodes/laptop-1", json={"spec": {"unschedulable": True}}, headers=STRATEGIC)
        event = await stream.next()
        assert (event["type"], event["object"]["kind"], event["object"]["spec"]) == ("MODIFIED", "Node", {"unschedulable": True})


# --- nodes are written through ---


async def test_cordon_taint_and_label_reach_the_swarm_node(api: httpx.AsyncClient) -> None:
    await store_node(api)
    path = "/api/v1/nodes/laptop-1"
    taints = [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]
    for content, body in (
        (STRATEGIC, {"spec": {"unschedulable": True}}), (MERGE, {"metadata": {"labels": {"room": "cellar"}}}),
        (STRATEGIC, {"spec": {"taints": taints}}),
    ):  # fmt: skip
        answer = await api.patch(path, json=body, headers=content)
        assert answer.status_code == 200, answer.text
        assert answer.json()["kind"] == "Node"
    stored = await get(api, f"{NODES}/laptop-1")
    assert (stored["spec"]["unschedulable"], stored["spec"]["taints"]) == (True, taints)
    assert stored["metadata"]["labels"]["room"] == "cellar"
    assert answer.json()["metadata"]["resourceVersion"] == stored["metadata"]["resourceVersion"]
    removal = [{"op": "remove", "path": "/spec/taints"}, {"op": "remove", "path": "/spec/unschedulable"}]
    answer = await api.patch(path, json=removal, headers={"content-type": "application/json-patch+json"})
    assert answer.status_code == 200, answer.text
    stored = await get(api, f"{NODES}/laptop-1")
    assert (stored["spec"]["unschedulable"], stored["spec"]["taints"]) == (False, [])


async def test_a_write_that_changes_nothing_is_none(api: httpx.AsyncClient) -> None:
    await store_node(api)
    before = await get(api, "/api/v1/nodes/laptop-1")
    answer = await api.put("/api/v1/nodes/laptop-1", json=before)
    assert (answer.status_code, answer.json()) == (200, before)
    answer = await api.patch("/api/v1/nodes/laptop-1?dryRun=All", json={"spec": {"unschedulable": True}}, headers=STRATEGIC)
    assert answer.json()["spec"] == {"unschedulable": True}
    assert await get(api, "/api/v1/nodes/laptop-1") == before


async def test_a_stale_node_is_a_conflict(api: httpx.AsyncClient) -> None:
    await store_node(api)
    stale = await get(api, "/api/v1/nodes/laptop-1")
    await api.patch(f"{NODES}/laptop-1", json={"spec": {"region": "home"}}, headers=MERGE)
    stale["spec"]["unschedulable"] = True
    answer = await api.put("/api/v1/nodes/laptop-1", json=stale)
    assert (answer.status_code, answer.json()["reason"]) == (409, "Conflict")
    test = [{"op": "test", "path": "/metadata/resourceVersion", "value": stale["metadata"]["resourceVersion"]}]
    answer = await api.patch("/api/v1/nodes/laptop-1", json=test, headers={"content-type": "application/json-patch+json"})
    assert answer.status_code == 422


async def test_server_side_apply_owns_the_fields_of_the_swarm_node(api: httpx.AsyncClient) -> None:
    await store_node(api)
    body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "laptop-1", "labels": {"room": "cellar"}}}
    path = "/api/v1/nodes/laptop-1?fieldManager="
    answer = await api.patch(f"{path}one", content=json.dumps(body), headers=APPLY)
    assert answer.status_code == 200, answer.text
    other = {**body, "metadata": {"name": "laptop-1", "labels": {"room": "attic"}}}
    answer = await api.patch(f"{path}two", content=json.dumps(other), headers=APPLY)
    assert answer.status_code == 409
    assert answer.json()["details"]["causes"][0]["reason"] == "FieldManagerConflict"
    gone = {**body, "metadata": {"name": "laptop-1"}}
    answer = await api.patch(f"{path}one", content=json.dumps(gone), headers=APPLY)
    assert "room" not in answer.json()["metadata"]["labels"], "what is applied no longer goes"
    answer = await api.patch("/api/v1/nodes/other?fieldManager=one", content=json.dumps({"kind": "Node"}), headers=APPLY)
    assert answer.status_code == 404, "nothing is created by applying it"
    assert (await api.patch("/api/v1/nodes/laptop-1", content=json.dumps(body), headers=APPLY)).status_code == 422


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"spec": {"podCIDR": "10.0.0.0/8"}}, "spec.podCIDR"),
        ({"spec": {"unschedulable": "yes"}}, "spec.unschedulable"),
        ({"spec": {"taints": "none"}}, "spec.taints"),
        ({"spec": {"taints": [{"key": "x", "effect": "Sometimes"}]}}, "spec.taints[0].effect"),
        ({"spec": "x"}, "spec"),
        ({"metadata": {"labels": {"a b": "c"}}}, "metadata.labels"),
    ],
)  # fmt: skip
async def test_what_a_node_cannot_be_is_refused_with_the_field(api: httpx.AsyncClient, body: Any, field: str) -> None:
    await store_node(api)
    answer = await api.patch("/api/v1/nodes/laptop-1", json=body, headers=MERGE)
    assert answer.status_code == 422, answer.text
    assert field in {cause["field"] for cause in answer.json()["details"]["causes"]}


async def test_nodes_are_not_created_and_a_deleted_one_is_the_swarm_node(api: httpx.AsyncClient) -> None:
    await store_node(api)
    answer = await api.post("/api/v1/nodes", json={"metadata": {"name": "x"}})
    assert (answer.status_code, "swarmtask join" in answer.json()["message"]) == (405, True)
    assert (await api.delete("/api/v1/nodes")).status_code == 405
    wrong = {"preconditions": {"uid": "other"}}
    assert (await api.request("DELETE", "/api/v1/nodes/laptop-1", json=wrong)).status_code == 409
    answer = await api.delete("/api/v1/nodes/laptop-1")
    assert (answer.status_code, answer.json()["details"]["kind"]) == (200, "nodes")
    assert (await api.get(f"{NODES}/laptop-1")).status_code == 404
    for method in ("GET", "DELETE"):
        assert (await api.request(method, "/api/v1/nodes/laptop-1")).status_code == 404
    assert (await api.patch("/api/v1/nodes/laptop-1", json={}, headers=MERGE)).status_code == 404


# --- pods are ended ---


async def test_deleting_a_pod_names_the_attempt_on_its_task(api: httpx.AsyncClient) -> None:
    await store_task(api, attempt(1, "Failed"), attempt(2))
    pod = await get(api, f"{PODS}/lint-2")
    wrong = {"preconditions": {"uid": "other"}}
    assert (await api.request("DELETE", f"{PODS}/lint-2", json=wrong)).status_code == 409
    answer = await api.request("DELETE", f"{PODS}/lint-2", json={"preconditions": {"uid": pod["metadata"]["uid"]}})
    assert (answer.status_code, answer.json()["kind"]) == (200, "Pod"), "it waits for the end of the attempt"
    assert "deletionTimestamp" in answer.json()["metadata"]
    stored = await get(api, f"{TASKS}/lint")
    assert stored["metadata"]["annotations"]["swarmtask.io/end-attempts"].startswith("2@")
    again = await api.delete(f"{PODS}/lint-2")
    assert (again.status_code, again.json()) == (200, answer.json()), "asked for once"
    assert await get(api, f"{TASKS}/lint") == stored
    async with watching(api, PODS, fieldSelector="metadata.name=lint-2") as stream:
        await stream.next()
        await write_attempts(api, attempt(1, "Failed"), attempt(2, "Stopped", reason="AttemptDeleted"))
        assert (await stream.next())["type"] == "DELETED"
    assert await pod_names(api) == ["lint-1"]


@pytest.mark.slow
async def test_a_pod_that_is_over_is_gone_at_once_and_its_task_stays(api: httpx.AsyncClient) -> None:
    await store_task(api, attempt(1, "Failed"), attempt(2))
    assert (await api.delete(f"{PODS}/lint-1?dryRun=All")).status_code == 200
    assert await pod_names(api) == ["lint-1", "lint-2"]
    answer = await api.delete(f"{PODS}/lint-1")
    assert (answer.status_code, answer.json()["kind"], answer.json()["details"]["name"]) == (200, "Status", "lint-1")
    assert await pod_names(api) == ["lint-2"]
    assert len((await get(api, f"{TASKS}/lint"))["status"]["attempts"]) == 2
    assert (await api.delete(f"{PODS}/lint-1")).status_code == 404
    assert (await api.delete(f"{PODS}/nonsense")).status_code == 404


async def test_a_collection_of_pods(api: httpx.AsyncClient) -> None:
    await store_task(api, attempt(1, "Failed"), name="a")
    await store_task(api, attempt(1, "Succeeded"), name="b")
    answer = await api.delete(PODS, params={"fieldSelector": "status.phase=Failed"})
    assert (answer.status_code, [item["metadata"]["name"] for item in answer.json()["items"]]) == (200, ["a-1"])
    assert await pod_names(api) == ["b-1"]
    assert (await api.delete("/api/v1/pods")).status_code == 405


@pytest.mark.parametrize("api_version", ["policy/v1", "policy/v1beta1"])
async def test_an_eviction_ends_an_attempt(api: httpx.AsyncClient, api_version: str) -> None:
    await store_task(api, attempt(1))
    body: dict[str, Any] = {"apiVersion": api_version, "kind": "Eviction", "metadata": {"name": "lint-1", "namespace": "default"}}
    path = f"{PODS}/lint-1/eviction"
    wrong = {**body, "deleteOptions": {"preconditions": {"uid": "other"}}}
    assert (await api.post(path, json=wrong)).status_code == 409
    assert (await api.post(path, json={**body, "metadata": {"name": "lint-2"}})).status_code == 400
    assert (await api.post(path, json={**body, "kind": "Pod"})).status_code == 400
    assert (await api.post(path, json={**body, "deleteOptions": {"dryRun": ["All"]}})).status_code == 201
    assert "deletionTimestamp" not in (await get(api, f"{PODS}/lint-1"))["metadata"]
    answer = await api.post(path, json=body)
    assert (answer.status_code, answer.json()["status"]) == (201, "Success")
    assert "deletionTimestamp" in (await get(api, f"{PODS}/lint-1"))["metadata"]
    assert (await api.post(f"{PODS}/lint-9/eviction", json=body | {"metadata": {}})).status_code == 404
    assert (await api.get(path)).status_code == 405


async def test_pods_are_not_made_or_changed(api: httpx.AsyncClient) -> None:
    await store_task(api, attempt(1))
    pod = await get(api, f"{PODS}/lint-1")
    for answer in (
        await api.post(PODS, json=pod), await api.put(f"{PODS}/lint-1", json=pod),
        await api.patch(f"{PODS}/lint-1", json={"metadata": {"labels": {"a": "b"}}}, headers=MERGE),
    ):  # fmt: skip
        assert (answer.status_code, answer.json()["reason"]) == (405, "MethodNotAllowed")
        assert "SwarmTask" in answer.json()["message"]


async def test_a_server_that_runs_no_commands_says_where_they_can_be_run(api: httpx.AsyncClient) -> None:
    await store_task(api, attempt(1))
    answer = await api.post(f"{PODS}/lint-1/exec?command=sh", headers={"connection": "Upgrade", "upgrade": "SPDY/3.1"})
    assert answer.status_code == 400
    assert "laptop-1: run `docker exec` there" in answer.json()["message"]


# --- the rest ---


async def test_metrics(api: httpx.AsyncClient) -> None:
    told = node()
    told["status"]["attempts"] = [
        {
            "id": "st-x-1",
            "state": "Running",
            "reason": "",
            "startedAt": "2026-03-01T12:00:00Z",
            "cpuSeconds": 5.0,
            "peakMemory": "9",
        }
    ]
    await store_node(api, told)
    await store_node(api, node("silent", ready="Unknown"))
    await store_task(api, attempt(1))
    base = "/apis/metrics.k8s.io/v1beta1"
    nodes = await get(api, f"{base}/nodes")
    assert (nodes["kind"], [item["metadata"]["name"] for item in nodes["items"]]) == ("NodeMetricsList", ["laptop-1"])
    assert (await get(api, f"{base}/nodes/laptop-1"))["usage"] == {"cpu": "1200m", "memory": "2048Mi"}
    (pod,) = (await get(api, f"{base}/namespaces/default/pods"))["items"]
    assert (pod["kind"], pod["containers"][0]["usage"]["memory"]) == ("PodMetrics", "9")
    assert (await get(api, f"{base}/pods", labelSelector="team=b"))["items"] == []
    answer = await api.get(f"{base}/nodes/silent")
    assert (answer.status_code, "node agent" in answer.json()["message"]) == (404, True)
    assert (await api.delete(f"{base}/nodes/laptop-1")).status_code == 405
    assert (await api.get(f"{base}/nodes?watch=true")).status_code == 405


async def test_events_are_asked_for_by_pod_and_by_node(api: httpx.AsyncClient) -> None:
    stored = await store_task(api, attempt(1, "Failed"), attempt(2))
    about = {"kind": "SwarmTask", "apiVersion": "swarmtask.io/v1alpha1", "name": "lint", "namespace": "default",
             "uid": stored["metadata"]["uid"]}  # fmt: skip
    host = {"kind": "SwarmNode", "apiVersion": "swarmtask.io/v1alpha1", "name": "laptop-1", "uid": "u"}
    for number, (subject, message) in enumerate((
        (about, "bound to laptop-1 (attempt 1, engine swarm)"), (about, "bound to laptop-1 (attempt 2, engine swarm)"),
        (about, "waiting in queue default"), (host, "is heard again"),
        ({**about, "apiVersion": "other.io/v1"}, "of another kind of the same name, attempt 1"),
    )):  # fmt: skip
        event = {"metadata": {"name": f"e{number}"}, "involvedObject": subject, "message": message, "type": "Normal", "reason": "R"}
        assert (await api.post("/api/v1/namespaces/default/events", json=event)).status_code == 201
    path = "/api/v1/namespaces/default/events"

    async def found(selector: str, where: str = path) -> list[str]:
        return [item["metadata"]["name"] for item in (await get(api, where, fieldSelector=selector))["items"]]

    uid = (await get(api, f"{PODS}/lint-2"))["metadata"]["uid"]
    assert await found(f"involvedObject.name=lint-2,involvedObject.namespace=default,involvedObject.uid={uid}") == ["e1", "e2"]
    assert await found("involvedObject.kind=Pod,involvedObject.name=lint-1") == ["e0", "e2"]
    assert await found("involvedObject.kind=Pod") == ["e0", "e1"], "without a name, those that speak of an attempt"
    assert await found("involvedObject.kind=Pod,involvedObject.name=nonsense") == []
    assert await found("involvedObject.kind=Node,involvedObject.name=laptop-1,involvedObject.uid=laptop-1") == ["e3"]
    assert await found("involvedObject.kind=Node,involvedObject.uid=u") == [], "kubectl asks twice, and shows both answers"
    assert await found("involvedObject.kind=SwarmTask,involvedObject.apiVersion=swarmtask.io/v1alpha1") == ["e0", "e1", "e2"]
    newer = "/apis/events.k8s.io/v1/namespaces/default/events"
    assert await found("regarding.kind=Node", newer) == ["e3"]
    (event,) = (await get(api, path, fieldSelector="involvedObject.kind=Node"))["items"]
    assert event["involvedObject"] == {"kind": "Node", "apiVersion": "v1", "name": "laptop-1", "uid": "laptop-1"}
    assert len((await get(api, path))["items"]) == 5, "each once, about what it was posted for"
    async with watching(api, path, fieldSelector="involvedObject.kind=Pod,involvedObject.name=lint-2") as stream:
        seen = [(await stream.next())["object"]["involvedObject"]["kind"] for _ in range(2)]
    assert seen == ["Pod", "Pod"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", ["/apis/apps/v1/namespaces/default/deployments", "/api/v1/services", "/apis/policy/v1/poddisruptionbudgets"]
)
async def test_kinds_of_which_there_never_is_anything(api: httpx.AsyncClient, path: str) -> None:
    found = await get(api, path)
    assert found["items"] == []
    assert found["kind"].endswith("List")
    if "/namespaces/" in path:
        answer = await api.post(path, json={"metadata": {"name": "x"}})
        assert (answer.status_code, "SwarmTask runs no Deployments" in answer.json()["message"]) == (405, True)
        assert (await api.get(f"{path}/x")).status_code == 404
    async with watching(api, path, timeoutSeconds="1", allowWatchBookmarks="true") as stream:
        assert [event["type"] for event in await stream.rest()] == ["BOOKMARK"]


async def test_nothing_that_is_projected_is_stored(api: httpx.AsyncClient, server: RunningServer) -> None:
    await store_task(api, attempt(1))
    await get(api, PODS)
    database = b"".join((server.kubeconfig.parent / f"swarmtask.db{part}").read_bytes() for part in ("", "-wal"))
    assert b"lint" in database
    assert b'"kind":"Pod"' not in database
