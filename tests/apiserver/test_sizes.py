"""How large a stored object becomes: no series of writes makes one grow without end, and one that is too large is not stuck."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from swarmtask.apiserver.apply import ANCIENT_CHANGES, MOST_TRACKED_BYTES
from swarmtask.apiserver.records import Key
from swarmtask.apiserver.sizes import OBJECT_LIMIT_BYTES, RESERVED_BYTES, STATUS_LIMIT_BYTES
from tests.apiserver.in_process import Answer, Caller, check

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
TASKS = "/apis/swarmtask.io/v1alpha1/namespaces/default/swarmtasks"
NODES = "/apis/swarmtask.io/v1alpha1/swarmnodes"
NODE = {"apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmNode", "spec": {}}
MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"
AS_OPERATOR = {"impersonate-user": "system:swarmtask:operator", "impersonate-group": "system:swarmtask:operators"}
TASK = {"apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmTask", "spec": {"container": {"image": "x"}}}


@pytest.fixture
def caller(tmp_path: Path) -> Iterator[Caller]:
    made = Caller(tmp_path / "x.db")
    yield made
    made.close()


def labels(prefix: str, count: int) -> dict[str, str]:
    """About 74 bytes each in the object, and 16 in its managedFields."""
    return {f"{prefix}-{number:05d}": "v" * 60 for number in range(count)}


def patch(caller: Caller, path: str, change: Any, *, query: str = "", content_type: str = MERGE) -> Answer:
    answer = caller.send("PATCH", path, orjson.dumps(change), content_type, query=query)
    check(answer)
    return answer


def refused(answer: Answer, name: str) -> None:
    assert answer.code == 413, answer.content[:300]
    status = answer.json()
    assert status["reason"] == "RequestEntityTooLarge"
    assert status["details"]["name"] == name
    assert "take something out of it first" in status["message"]
    assert answer.written == []


@pytest.mark.slow
def test_patches_do_not_make_an_object_grow_without_end(caller: Caller) -> None:
    assert caller.send("POST", CONFIG_MAPS, orjson.dumps({"metadata": {"name": "x"}})).code == 201
    answers = [patch(caller, f"{CONFIG_MAPS}/x", {"metadata": {"labels": labels(f"l{turn}", 11_000)}}) for turn in range(4)]
    assert [answer.code for answer in answers] == [200, 200, 413, 413]
    refused(answers[2], "x")
    stored = caller.send("GET", f"{CONFIG_MAPS}/x")
    assert stored.code == 200
    assert OBJECT_LIMIT_BYTES // 2 < len(stored.content) <= OBJECT_LIMIT_BYTES + 1
    applied = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"labels": labels("a", 11_000)}}
    refused(patch(caller, f"{CONFIG_MAPS}/x", applied, query="fieldManager=m", content_type=APPLY), "x")
    refused(patch(caller, f"{CONFIG_MAPS}/x", {"metadata": {"labels": labels("d", 11_000)}}, query="dryRun=All"), "x")
    large = {"metadata": {"name": "y", "labels": labels("l", 29_000)}}
    refused(caller.send("POST", CONFIG_MAPS, orjson.dumps(large)), "y")
    refused(caller.send("POST", CONFIG_MAPS, orjson.dumps(large), query="dryRun=All"), "y")


def test_the_largest_secret_and_config_map_of_kubernetes_fit(caller: Caller) -> None:
    """With an annotation of the most that there may be."""
    annotations = {"a.io/note": "n" * (256 * 1024 - 9)}
    for kind, data in (("configmaps", {"data": {"a": "x" * 2**20}}), ("secrets", {"stringData": {"a": "x" * 2**20}})):
        body = {"metadata": {"name": "large", "annotations": annotations}, **data}
        answer = caller.send("POST", f"/api/v1/namespaces/default/{kind}", orjson.dumps(body))
        assert answer.code == 201, answer.content[:300]


@pytest.mark.slow
def test_one_that_is_larger_already_can_be_read_made_smaller_and_deleted(caller: Caller) -> None:
    key = Key(("", "configmaps"), "default", "x")
    metadata = {"name": "x", "namespace": "default", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}
    obj = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata | {"labels": labels("l", 40_000)}}
    size = len(orjson.dumps(obj))
    assert size > OBJECT_LIMIT_BYTES

    async def store() -> None:
        await caller.app.store.put(key, obj, replacing=None)

    caller.runner.run(store())
    assert caller.send("GET", f"{CONFIG_MAPS}/x").code == 200
    assert len(caller.send("GET", CONFIG_MAPS).json()["items"]) >= 1
    refused(patch(caller, f"{CONFIG_MAPS}/x", {"metadata": {"labels": {"one": "more"}}}), "x")
    smaller = patch(caller, f"{CONFIG_MAPS}/x", {"metadata": {"labels": dict.fromkeys(labels("l", 5000))}})
    assert smaller.code == 200
    assert OBJECT_LIMIT_BYTES < len(smaller.content) < size, "step by step"
    gone = caller.send("DELETE", f"{CONFIG_MAPS}/x", query="propagationPolicy=Foreground")
    assert gone.code == 200, "what the server writes itself is not held against anybody"


@pytest.mark.slow
def test_a_task_of_the_most_there_may_be_gets_its_status(caller: Caller) -> None:
    low, high = 26_000, 30_000
    while high - low > 5:  # nearly to the last label that goes in
        middle = (low + high) // 2
        body = {**TASK, "metadata": {"name": "t", "labels": labels("l", middle)}}
        fits = caller.send("POST", TASKS, orjson.dumps(body), query="dryRun=All").code == 201
        low, high = (middle, high) if fits else (low, middle)
    body = {**TASK, "metadata": {"name": "t", "labels": labels("l", low)}}
    assert caller.send("POST", TASKS, orjson.dumps(body)).code == 201
    refused(patch(caller, f"{TASKS}/t", {"metadata": {"labels": labels("m", 10)}}), "t")
    assert patch(caller, f"{TASKS}/t/status", {"status": {"phase": "Queued", "message": "m" * 4000}}).code == 200
    assert (
        patch(caller, f"{TASKS}/t", {"spec": {"suspend": True}, "metadata": {"labels": dict.fromkeys(labels("l", 10))}}).code == 200
    )


def test_a_status_has_a_bound_of_its_own(caller: Caller) -> None:
    definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    free = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {
        "name": "v1", "served": True, "storage": True, "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": free, "status": free}}},
    }  # fmt: skip
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "widgets.a.io"},
        "spec": {"group": "a.io", "scope": "Cluster", "names": {"plural": "widgets", "kind": "Widget"}, "versions": [version]},
    }  # fmt: skip
    assert caller.send("POST", definitions, orjson.dumps(definition)).code == 201
    path = "/apis/a.io/v1/widgets"
    body = {"apiVersion": "a.io/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"a": "x" * (2 * 2**20 - 1000)}}
    assert caller.send("POST", path, orjson.dumps(body)).code == 201
    assert patch(caller, f"{path}/w/status", {"status": {"a": "y" * (STATUS_LIMIT_BYTES - 100)}}).code == 200
    refused(patch(caller, f"{path}/w/status", {"status": {"b": "y" * 100}}), "w")
    assert patch(caller, f"{path}/w", {"spec": {"b": "z"}}).code == 200, "a full status keeps nobody from writing the rest"
    refused(patch(caller, f"{path}/w", {"spec": {"b": "z" * 1000}}), "w")
    assert patch(caller, f"{path}/w", {"spec": {"a": None}}).code == 200


@pytest.mark.slow
def test_the_operator_has_room_beyond_that_of_others(caller: Caller) -> None:
    body = {**TASK, "metadata": {"name": "t", "labels": labels("l", 28_000)}}
    assert caller.send("POST", TASKS, orjson.dumps(body)).code == 201
    stored = caller.send("GET", f"{TASKS}/t").json()
    del stored["metadata"]["managedFields"]
    more = labels("m", 1 + (OBJECT_LIMIT_BYTES - len(orjson.dumps(stored))) // 73)
    change = orjson.dumps({"metadata": {"labels": more}})
    refused(caller.send("PATCH", f"{TASKS}/t", change, MERGE), "t")
    answer = caller.send("PATCH", f"{TASKS}/t", change, MERGE, headers=AS_OPERATOR)
    assert answer.code == 200, answer.content[:300]
    without_end = orjson.dumps({"metadata": {"labels": labels("n", RESERVED_BYTES // 60)}})
    refused(caller.send("PATCH", f"{TASKS}/t", without_end, MERGE, headers=AS_OPERATOR), "t")


def conditions(count: int) -> list[dict[str, str]]:
    moment = "2026-01-01T00:00:00Z"
    return [{"type": f"C{n:04d}", "status": "True", "reason": "R", "lastTransitionTime": moment} for n in range(count)]


def owners(obj: Any) -> list[tuple[str, str]]:
    return [(entry["manager"], entry["operation"]) for entry in obj["metadata"]["managedFields"]]


@pytest.mark.slow
def test_managers_with_ever_new_names_keep_nobody_from_writing(caller: Caller) -> None:
    """Each of them applies the same status, and would own every field of it once more."""
    assert caller.send("POST", TASKS, orjson.dumps({**TASK, "metadata": {"name": "t"}})).code == 201
    body = {**TASK, "status": {"conditions": conditions(5000)}}
    del body["spec"]
    sizes = []
    for manager in "abcdef":
        answer = patch(caller, f"{TASKS}/t/status", body, query=f"fieldManager={manager}&force=true", content_type=APPLY)
        assert answer.code == 200, answer.content[:300]
        sizes.append(len(orjson.dumps(answer.json()["metadata"]["managedFields"])))
    assert max(sizes) <= MOST_TRACKED_BYTES
    assert max(sizes) > MOST_TRACKED_BYTES // 2, "the test reaches the bound"
    assert (ANCIENT_CHANGES, "Update") in owners(answer.json())
    assert patch(caller, f"{TASKS}/t", {"spec": {"suspend": True}}, query="fieldManager=kubectl").code == 200
    stored = caller.send("GET", f"{TASKS}/t").json()
    assert len(stored["status"]["conditions"]) == 5000
    fewer = {**body, "status": {"conditions": conditions(1)}}
    other = patch(caller, f"{TASKS}/t/status", fewer, query="fieldManager=z", content_type=APPLY)
    assert other.code == 200, "what it says is what others say, too"


def test_who_owns_what_costs_no_room_for_fields(caller: Caller) -> None:
    """Small values under many names: managedFields are not much shorter than what they tell of."""
    assert caller.send("POST", CONFIG_MAPS, orjson.dumps({"metadata": {"name": "x", "labels": labels("l", 27_000)}})).code == 201
    assert len(caller.send("GET", f"{CONFIG_MAPS}/x").content) > OBJECT_LIMIT_BYTES
    assert patch(caller, f"{CONFIG_MAPS}/x", {"metadata": {"labels": {"a": "b"}}}, query="fieldManager=n").code == 200


@pytest.mark.slow
def test_managed_fields_that_a_client_writes_do_not_grow_without_end(caller: Caller) -> None:
    assert caller.send("POST", CONFIG_MAPS, orjson.dumps({"metadata": {"name": "x"}, "data": {"a": "b"}})).code == 201
    codes = []
    for turn in range(4):
        fields = {"f:data": {f"f:{turn}-{number:05d}": {} for number in range(48_000)}}
        entry = {"manager": f"m{turn}", "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": fields}
        change = [{"op": "add", "path": "/metadata/managedFields/-", "value": entry}]
        answer = patch(caller, f"{CONFIG_MAPS}/x", [*change, {"op": "add", "path": "/data/a", "value": str(turn)}],
                       content_type="application/json-patch+json")  # fmt: skip
        codes.append(answer.code)
    assert codes == [200, 200, 413, 413]
    refused(answer, "x")
    assert patch(caller, f"{CONFIG_MAPS}/x", {"metadata": {"managedFields": [{}]}}).code == 200
    assert patch(caller, f"{CONFIG_MAPS}/x", {"data": {"a": "c"}}).code == 200


def test_one_beyond_its_bound_is_made_smaller_by_whoever_comes(caller: Caller) -> None:
    """Also by one who is written down for it with more bytes than he takes out."""
    key = Key(("", "configmaps"), "default", "x")
    fields = {"f:metadata": {"f:labels": {"f:l-00000": {}}}}
    entry = {"manager": "m", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": fields}
    metadata: dict[str, Any] = {"name": "x", "namespace": "default", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}
    metadata |= {"labels": labels("l", 40_000), "managedFields": [entry]}
    obj = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}

    async def store() -> None:
        await caller.app.store.put(key, obj, replacing=None)

    caller.runner.run(store())
    less = {"metadata": {"labels": {"l-00001": ""}}}
    answer = patch(caller, f"{CONFIG_MAPS}/x", less, query="fieldManager=one-with-a-very-long-name-indeed")
    assert answer.code == 200, answer.content[:300]
    assert len(answer.content) > len(orjson.dumps(obj))


def test_the_operator_has_room_in_a_full_status(caller: Caller) -> None:
    assert caller.send("POST", NODES, orjson.dumps({**NODE, "metadata": {"name": "n"}})).code == 201
    message = "m" * 32_000
    full = {"conditions": [{**condition, "message": message} for condition in conditions(32)]}
    assert patch(caller, f"{NODES}/n/status", {"status": full}).code == 200
    status = caller.send("GET", f"{NODES}/n").json()["status"]
    last = {**conditions(33)[-1], "message": "m" * (STATUS_LIMIT_BYTES - len(orjson.dumps(status)) - 150)}
    more = {"conditions": [*status["conditions"], last]}
    assert patch(caller, f"{NODES}/n/status", {"status": more}).code == 200
    change = {"status": {"phase": "Unreachable", "message": "nothing is heard of it" * 10}}
    refused(patch(caller, f"{NODES}/n/status", change), "n")
    answer = caller.send("PATCH", f"{NODES}/n/status", orjson.dumps(change), MERGE, headers=AS_OPERATOR)
    assert answer.code == 200, answer.content[:300]
