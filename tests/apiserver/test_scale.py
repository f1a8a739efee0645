"""The scale subresource of custom kinds that declare it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
FARMS = "/apis/example.com/v1/namespaces/default/farms"
MERGE = {"content-type": "application/merge-patch+json"}
JSON_PATCH = {"content-type": "application/json-patch+json"}
NUMBERS = {"type": "object", "properties": {"replicas": {"type": "integer", "maximum": 9}, "selector": {"type": "string"}}}
DEFINITION: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "farms.example.com"},
    "spec": {
        "group": "example.com", "scope": "Namespaced", "names": {"plural": "farms", "kind": "Farm"},
        "versions": [{
            "name": "v1", "served": True, "storage": True,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": NUMBERS, "status": NUMBERS}}},
            "subresources": {"status": {}, "scale": {
                "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector"}},
        }],
    },
}  # fmt: skip


@pytest.fixture
async def farm(api: httpx.AsyncClient) -> dict[str, Any]:
    assert (await api.post(CRDS, json=DEFINITION)).status_code == 201
    response = await api.post(FARMS, json={"apiVersion": "example.com/v1", "kind": "Farm", "metadata": {"name": "f"}})
    assert response.status_code == 201, response.text
    await api.patch(f"{FARMS}/f/status", json={"status": {"replicas": 2, "selector": "a=b"}}, headers=MERGE)
    created: dict[str, Any] = (await api.get(f"{FARMS}/f")).json()
    return created


async def test_a_scale_shows_the_numbers(api: httpx.AsyncClient, farm: dict[str, Any]) -> None:
    scale = (await api.get(f"{FARMS}/f/scale")).json()
    assert (scale["kind"], scale["apiVersion"]) == ("Scale", "autoscaling/v1")
    assert (scale["spec"], scale["status"]) == ({"replicas": 0}, {"replicas": 2, "selector": "a=b"})
    assert scale["metadata"] == {
        name: farm["metadata"][name] for name in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    }


async def test_what_is_written_through_it_is_in_the_object(api: httpx.AsyncClient, farm: dict[str, Any]) -> None:
    scale = (await api.get(f"{FARMS}/f/scale")).json()
    scale["spec"]["replicas"] = 3
    put = await api.put(f"{FARMS}/f/scale", json=scale)
    assert (put.status_code, put.json()["kind"], put.json()["spec"]) == (200, "Scale", {"replicas": 3})
    after = (await api.get(f"{FARMS}/f")).json()
    assert after["spec"] == {"replicas": 3}
    assert after["status"] == farm["status"]
    assert after["metadata"]["generation"] == farm["metadata"]["generation"] + 1
    assert (await api.put(f"{FARMS}/f/scale", json=scale)).status_code == 409, "an old resourceVersion"
    merged = await api.patch(f"{FARMS}/f/scale", json={"spec": {"replicas": 4}}, headers=MERGE)
    assert merged.json()["spec"] == {"replicas": 4}
    changes = [{"op": "test", "path": "/spec/replicas", "value": 4}, {"op": "replace", "path": "/spec/replicas", "value": 5}]
    assert (await api.patch(f"{FARMS}/f/scale", json=changes, headers=JSON_PATCH)).json()["spec"] == {"replicas": 5}
    dry = await api.patch(f"{FARMS}/f/scale?dryRun=All", json={"spec": {"replicas": 7}}, headers=MERGE)
    assert dry.json()["spec"] == {"replicas": 7}
    assert (await api.get(f"{FARMS}/f")).json()["spec"] == {"replicas": 5}


@pytest.mark.parametrize("body", [
    [], {"kind": "Farm"}, {"spec": {"replicas": -1}}, {"spec": {"replicas": "3"}}, {"spec": {"replicas": True}}, {"spec": []},
    {"spec": {"replicas": 10}}, {"spec": {"replicas": 10**12}}, {"metadata": {"name": "other"}},
    {"metadata": {"resourceVersion": 5}},
])  # fmt: skip
async def test_what_is_no_scale_is_refused(api: httpx.AsyncClient, farm: dict[str, Any], body: Any) -> None:
    response = await api.put(f"{FARMS}/f/scale", json=body)
    assert response.status_code in (400, 422), response.text
    assert response.json()["kind"] == "Status"
    assert (await api.get(f"{FARMS}/f")).json() == farm


@pytest.mark.slow
async def test_what_has_no_scale(api: httpx.AsyncClient, farm: dict[str, Any]) -> None:
    assert (await api.get(f"{FARMS}/nothing/scale")).status_code == 404
    assert (await api.get("/apis/swarmtask.io/v1alpha1/namespaces/default/swarmtasks/x/scale")).status_code == 404
    assert (await api.delete(f"{FARMS}/f/scale")).status_code == 405
    applied = {"content-type": "application/apply-patch+yaml"}
    assert (await api.patch(f"{FARMS}/f/scale?fieldManager=m", content=b"{}", headers=applied)).status_code == 415


@pytest.mark.usefixtures("farm")
async def test_who_writes_through_it_owns_the_number_by_it(api: httpx.AsyncClient) -> None:
    body = {"apiVersion": "example.com/v1", "kind": "Farm", "metadata": {"name": "g"}, "spec": {"selector": "a=b"}}
    assert (await api.post(f"{FARMS}?fieldManager=me", json=body)).status_code == 201

    async def owners() -> set[tuple[str, str, str]]:
        entries = (await api.get(f"{FARMS}/g")).json()["metadata"]["managedFields"]
        return {(one["manager"], one.get("subresource", ""), one["apiVersion"]) for one in entries if "f:spec" in one["fieldsV1"]}

    me = ("me", "", "example.com/v1")
    await api.patch(f"{FARMS}/g/scale?fieldManager=hpa", json={"spec": {"replicas": 3}}, headers=MERGE)
    assert await owners() == {me, ("hpa", "scale", "example.com/v1")}
    await api.patch(f"{FARMS}/g?fieldManager=hpa", json={"spec": {"replicas": 4}}, headers=MERGE)
    assert await owners() == {me, ("hpa", "", "example.com/v1")}


async def test_what_a_scale_does_not_have_is_told(api: httpx.AsyncClient, farm: dict[str, Any]) -> None:
    body = {"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {"name": "f"}, "spec": {"replicas": 1, "odd": 2}, "x": 1}
    strict = await api.put(f"{FARMS}/f/scale", params={"fieldValidation": "Strict"}, json=body)
    assert strict.status_code == 400
    assert 'unknown field "spec.odd", unknown field "x"' in strict.json()["message"]
    assert (await api.get(f"{FARMS}/f")).json()["metadata"]["resourceVersion"] == farm["metadata"]["resourceVersion"]
    warned = await api.put(f"{FARMS}/f/scale", params={"fieldValidation": "Warn"}, json=body)
    assert warned.status_code == 200
    assert warned.headers.get_list("warning") == ['299 - "unknown field \\"spec.odd\\""', '299 - "unknown field \\"x\\""']
