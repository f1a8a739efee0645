"""CustomResourceDefinitions: from apply to removal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from tests.apiserver.server import http_client, running_api_server
from tests.apiserver.streams import names, watching
from tests.apiserver.waiting import until, until_gone

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
WIDGETS = "/apis/example.com/v1/namespaces/default/widgets"
MERGE = {"content-type": "application/merge-patch+json"}


def definition(plural: str = "widgets", kind: str = "Widget", **names: Any) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {
            "spec": {"type": "object", "properties": {"size": {"type": "integer", "default": 3}}},
            "status": {"type": "object"},
        },
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": f"{plural}.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": plural, "kind": kind, **names},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}],
        },
    }  # fmt: skip


def widget(name: str = "w", **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec}


def conditions(crd: dict[str, Any]) -> dict[str, str]:
    return {condition["type"]: condition["status"] for condition in crd["status"]["conditions"]}


async def create(api: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = await api.post(path, json=body)
    assert response.status_code == 201, response.text
    created: dict[str, Any] = response.json()
    return created


async def test_what_is_acknowledged_is_served(api: httpx.AsyncClient) -> None:
    assert (await api.get(WIDGETS)).status_code == 404
    crd = await create(api, CRDS, definition())
    assert conditions(crd) == {"NamesAccepted": "True", "Established": "True"}
    assert crd["status"]["storedVersions"] == ["v1"]
    assert crd["status"]["acceptedNames"] == {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"}
    created = await create(api, WIDGETS, widget())
    assert created["spec"] == {"size": 3}
    groups = (await api.get("/apis")).json()["groups"]
    assert "example.com" in [group["name"] for group in groups]
    resources = (await api.get("/apis/example.com/v1")).json()["resources"]
    assert [resource["name"] for resource in resources] == ["widgets"]


async def test_a_new_schema_counts_at_once(api: httpx.AsyncClient) -> None:
    crd = await create(api, CRDS, definition())
    await create(api, WIDGETS, widget("old", size=100))
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["spec"]["properties"]["size"]["maximum"] = 10
    crd["spec"]["versions"][0]["subresources"] = {"status": {}}
    updated = await api.put(f"{CRDS}/widgets.example.com", json=crd)
    assert updated.status_code == 200, updated.text
    refused = await api.post(WIDGETS, json=widget(size=11))
    assert refused.status_code == 422
    assert [cause["field"] for cause in refused.json()["details"]["causes"]] == ["spec.size"]
    old = await api.patch(f"{WIDGETS}/old", json={"metadata": {"labels": {"a": "b"}}}, headers=MERGE)
    assert old.status_code == 200, "what was stored before may still be labelled"
    status = await api.patch(f"{WIDGETS}/old/status", json={"status": {}}, headers=MERGE)
    assert status.status_code == 200


async def test_open_watches_end_with_the_definition_that_they_were_opened_under(api: httpx.AsyncClient) -> None:
    crd = await create(api, CRDS, definition())
    async with watching(api, WIDGETS, allowWatchBookmarks="true") as stream:
        labelled = await api.patch(f"{CRDS}/widgets.example.com", json={"metadata": {"labels": {"a": "b"}}}, headers=MERGE)
        assert labelled.status_code == 200
        await create(api, WIDGETS, widget("before", size=1))
        assert names([await stream.next()]) == [("ADDED", "before")]
        schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        schema["properties"]["spec"]["properties"]["colour"] = {"type": "string", "default": "red"}
        changed = await api.patch(f"{CRDS}/widgets.example.com", json={"spec": crd["spec"]}, headers=MERGE)
        assert changed.status_code == 200, changed.text
        last = (await stream.rest())[-1]
    assert last["type"] == "BOOKMARK"
    async with watching(api, WIDGETS, resourceVersion=last["object"]["metadata"]["resourceVersion"]) as stream:
        await create(api, WIDGETS, widget("after", size=1))
        event = await stream.next()
    assert (names([event]), event["object"]["spec"]) == ([("ADDED", "after")], {"size": 1, "colour": "red"})


async def test_versions(api: httpx.AsyncClient) -> None:
    body = definition()
    body["spec"]["versions"].append({**body["spec"]["versions"][0], "name": "v2", "storage": False})
    await create(api, CRDS, body)
    await create(api, WIDGETS, widget(size=1))
    seen = (await api.get(WIDGETS.replace("v1", "v2") + "/w")).json()
    assert (seen["apiVersion"], seen["spec"]) == ("example.com/v2", {"size": 1})
    listed = (await api.get(WIDGETS.replace("v1", "v2"))).json()
    assert [item["apiVersion"] for item in listed["items"]] == ["example.com/v2"]
    async with watching(api, WIDGETS.replace("v1", "v2")) as stream:
        assert (await stream.next())["object"]["apiVersion"] == "example.com/v2"
    crd = (await api.get(f"{CRDS}/widgets.example.com")).json()
    crd["spec"]["versions"] = [{**crd["spec"]["versions"][1], "storage": True}]
    refused = await api.put(f"{CRDS}/widgets.example.com", json=crd)
    assert refused.status_code == 422
    assert refused.json()["details"]["causes"][0]["field"] == "status.storedVersions[0]"


async def test_names_in_use_are_refused_until_free(api: httpx.AsyncClient) -> None:
    await create(api, CRDS, definition())
    second = await create(api, CRDS, definition("gadgets", "Widget", singular="gadget", listKind="GadgetList"))
    assert conditions(second) == {"NamesAccepted": "False", "Established": "False"}
    assert {condition["reason"] for condition in second["status"]["conditions"]} == {"KindConflict", "NotAccepted"}
    assert (await api.get("/apis/example.com/v1/gadgets")).status_code == 404
    await api.delete(f"{CRDS}/widgets.example.com")
    await until_gone(api, f"{CRDS}/widgets.example.com")

    async def accepted() -> bool:
        crd = (await api.get(f"{CRDS}/gadgets.example.com")).json()
        return conditions(crd)["Established"] == "True"

    await until(accepted, what="the second definition accepted")
    assert (await api.get("/apis/example.com/v1/gadgets")).status_code == 200


async def test_deletion_takes_the_objects_along(api: httpx.AsyncClient) -> None:
    await create(api, CRDS, definition())
    await create(api, WIDGETS, widget("free"))
    held = widget("held")
    held["metadata"]["finalizers"] = ["a.b/c"]
    await create(api, WIDGETS, held)
    async with watching(api, WIDGETS) as stream:
        await stream.next()
        await stream.next()
        marked = (await api.delete(f"{CRDS}/widgets.example.com")).json()
        assert marked["metadata"]["finalizers"] == ["customresourcecleanup.apiextensions.k8s.io"]
        assert conditions(marked)["Terminating"] == "True"
        await until_gone(api, f"{WIDGETS}/free")
        assert (await api.post(WIDGETS, json=widget("late"))).status_code in (403, 405)
        released = await api.patch(f"{WIDGETS}/held", json={"metadata": {"finalizers": None}}, headers=MERGE)
        assert released.status_code == 200
        await until_gone(api, f"{CRDS}/widgets.example.com")
        await stream.rest()
    assert (await api.get(WIDGETS)).status_code == 404
    await create(api, CRDS, definition())
    assert (await api.get(WIDGETS)).json()["items"] == []


async def test_they_survive_a_restart(tmp_path: Path) -> None:
    async with running_api_server(tmp_path) as server, http_client(server) as api:
        await create(api, CRDS, definition())
        await create(api, WIDGETS, widget(size=1))
    async with running_api_server(tmp_path) as server, http_client(server) as api:
        assert (await api.get(f"{WIDGETS}/w")).json()["spec"] == {"size": 1}
        before = (await api.get(CRDS)).json()["metadata"]["resourceVersion"]
    async with running_api_server(tmp_path) as server, http_client(server) as api:
        assert (await api.get(CRDS)).json()["metadata"]["resourceVersion"] == before, "a restart writes nothing"


@pytest.mark.parametrize("change", [
    lambda crd: crd["metadata"].update(name="wrong.example.com"),
    lambda crd: crd["spec"].update(scope="Everywhere"),
    lambda crd: crd["spec"].update(versions=[]),
    lambda crd: crd["spec"]["versions"][0].update(storage=False),
    lambda crd: crd["spec"]["versions"][0].pop("schema"),
    lambda crd: crd["spec"]["names"].pop("kind"),
    lambda crd: crd.pop("spec"),
    lambda crd: crd.update(spec=7),
    lambda crd: crd["spec"].update(names=[]),
    lambda crd: crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"].update(a={"type": "odd"}),
])  # fmt: skip
async def test_bad_ones_are_refused(api: httpx.AsyncClient, change: Any) -> None:
    body = definition()
    change(body)
    response = await api.post(CRDS, json=body)
    assert response.status_code in (400, 422), response.text
    assert response.json()["kind"] == "Status"


async def test_identity_cannot_change(api: httpx.AsyncClient) -> None:
    await create(api, CRDS, definition())
    response = await api.patch(f"{CRDS}/widgets.example.com", json={"spec": {"scope": "Cluster"}}, headers=MERGE)
    assert response.status_code == 422
    assert response.json()["details"]["causes"][0]["field"] == "spec.scope"


async def test_a_wrong_list_of_stored_versions_can_be_mended(api: httpx.AsyncClient) -> None:
    await create(api, CRDS, definition())
    path = f"{CRDS}/widgets.example.com"
    for stored, shown in ((["odd"], ["odd", "v1"]), (["v1"], ["v1"])):
        told = await api.patch(f"{path}/status", json={"status": {"storedVersions": stored}}, headers=MERGE)
        assert (told.status_code, told.json()["status"]["storedVersions"]) == (200, shown), "the storage version belongs there"
        labelled = await api.patch(path, json={"metadata": {"labels": {"at": stored[0]}}}, headers=MERGE)
        assert labelled.status_code == 200, labelled.text


async def test_clients_of_a_deprecated_version_are_warned(api: httpx.AsyncClient) -> None:
    crd = definition()
    (first,) = crd["spec"]["versions"]
    old, older = {**first, "name": "v1beta1", "storage": False}, {**first, "name": "v1alpha1", "storage": False}
    crd["spec"]["versions"] = [
        {**older, "deprecated": True, "deprecationWarning": 'do not "use" it'},
        {**old, "deprecated": True},
        first,
    ]
    await create(api, CRDS, crd)
    assert "warning" not in (await api.get(WIDGETS)).headers
    listed = await api.get(WIDGETS.replace("v1", "v1beta1", 1))
    assert listed.headers["warning"] == '299 - "example.com/v1beta1 Widget is deprecated; use example.com/v1 Widget"'
    made = await api.post(WIDGETS.replace("v1", "v1alpha1", 1), json={**widget(), "apiVersion": "example.com/v1alpha1"})
    assert made.headers["warning"] == '299 - "do not \\"use\\" it"'
    for wrong in ({"deprecated": False, "deprecationWarning": "x"}, {"deprecated": True, "deprecationWarning": "a\nb"}):
        crd["spec"]["versions"][0] = {**older, **wrong}
        refused = await api.put(f"{CRDS}/widgets.example.com", json={**crd, "metadata": (await api.get(
            f"{CRDS}/widgets.example.com")).json()["metadata"]})  # fmt: skip
        assert refused.status_code == 422
        assert "spec.versions[0].deprecationWarning" in refused.json()["message"]


async def test_one_that_goes_away_may_not_change_into_another(api: httpx.AsyncClient) -> None:
    await create(api, CRDS, definition())
    held = widget("held")
    held["metadata"]["finalizers"] = ["a.b/c"]
    await create(api, WIDGETS, held)
    secrets = "/api/v1/namespaces/default/secrets"
    await create(api, secrets, {"metadata": {"name": "s"}})
    path = f"{CRDS}/widgets.example.com"
    crd = (await api.delete(path)).json()
    for spec in (
        {"group": "", "names": {"plural": "secrets"}},
        {"versions": [{**crd["spec"]["versions"][0], "schema": {"openAPIV3Schema": "not a schema"}}]},
        {"versions": []},
        {"scope": "Cluster"},
    ):
        refused = await api.patch(path, json={"spec": spec}, headers=MERGE)
        assert refused.status_code == 422, refused.text
    # Nor does its status decide whether its objects go with it, and whether they are served until then.
    status = {"conditions": [{"type": "Established", "status": "False", "reason": "X"}], "acceptedNames": None}
    changed = await api.patch(f"{path}/status", json={"status": status}, headers=MERGE)
    assert changed.status_code == 200, changed.text
    assert conditions(changed.json()) == {"Established": "True", "NamesAccepted": "True", "Terminating": "True"}
    assert (await api.patch(path, json={"metadata": {"labels": {"a": "b"}}}, headers=MERGE)).status_code == 200
    assert (await api.patch(f"{WIDGETS}/held", json={"metadata": {"finalizers": None}}, headers=MERGE)).status_code == 200
    await until_gone(api, path)
    assert (await api.get(WIDGETS)).status_code == 404
    assert (await api.get(f"{secrets}/s")).status_code == 200


async def test_a_refused_one_takes_nothing_of_a_built_in_kind_along(api: httpx.AsyncClient) -> None:
    crd = definition("roles", "Role")
    crd["metadata"] = {"name": "roles.rbac.authorization.k8s.io", "annotations": {"api-approved.kubernetes.io": "https://x"}}
    crd["spec"]["group"] = "rbac.authorization.k8s.io"
    refused = await create(api, CRDS, crd)
    assert conditions(refused)["Established"] == "False"
    roles = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles"
    await create(api, roles, {"metadata": {"name": "r"}, "rules": []})
    path = f"{CRDS}/roles.rbac.authorization.k8s.io"
    given = [{**condition, "status": "True"} for condition in refused["status"]["conditions"]]
    patched = await api.patch(f"{path}/status", json={"status": {"conditions": given}}, headers=MERGE)
    assert conditions(patched.json()) == {"NamesAccepted": "False", "Established": "False"}
    await api.delete(path)
    await until_gone(api, path)
    assert (await api.get(f"{roles}/r")).status_code == 200


@pytest.mark.parametrize("container", [f"{CRDS}/widgets.example.com", "/api/v1/namespaces/team"])
async def test_what_is_not_served_holds_up_no_deletion(api: httpx.AsyncClient, container: str) -> None:
    await create(api, "/api/v1/namespaces", {"metadata": {"name": "team"}})
    await create(api, CRDS, definition())
    await create(api, WIDGETS.replace("default", "team"), widget())
    patch = [{"op": "replace", "path": "/spec/versions/0/served", "value": False}]
    changed = await api.patch(
        f"{CRDS}/widgets.example.com", content=orjson.dumps(patch), headers={"content-type": "application/json-patch+json"}
    )
    assert changed.status_code == 200, changed.text
    assert (await api.delete(container)).status_code == 200
    await until_gone(api, container)
