"""Objects that were written before the schema of their definition changed: shown as the schema of today has them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest

from swarmtask.apiserver import versions
from swarmtask.apiserver.definitions import key_of
from swarmtask.apiserver.records import Collection, Key, Record
from swarmtask.apiserver.schemas_since import ANNOTATION, forget, since
from swarmtask.apiserver.types import ResourceType
from swarmtask.apiserver.writes import WriteOptions
from tests.apiserver.in_process import Caller

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
CRD = f"{CRDS}/widgets.example.com"
WIDGETS = "/apis/example.com/v1/namespaces/default/widgets"
STORED: Collection = ("example.com", "widgets")
MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
SCHEMA = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties"


def schema(**fields: Mapping[str, Any]) -> dict[str, Any]:
    status = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {"type": "object", "properties": {"spec": {"type": "object", "properties": fields}, "status": status}}


def version(name: str, *, storage: bool, **fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "served": True, "storage": storage, "schema": {"openAPIV3Schema": schema(**fields)},
            "subresources": {"status": {}}, "selectableFields": [{"jsonPath": ".spec.kept"}]}  # fmt: skip


def definition(*of: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "widgets.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget"},
                 "versions": list(of)},
    }  # fmt: skip


TEXT = {"type": "string"}
BEFORE = version("v1", storage=True, kept=TEXT, dropped=TEXT)


@pytest.fixture
def caller(tmp_path: Path) -> Iterator[Caller]:
    opened = Caller(tmp_path / "x.db")
    assert opened("POST", CRDS, orjson.dumps(definition(BEFORE)))[0] == 201
    yield opened
    opened.close()


def write(caller: Caller, name: str = "w", metadata: Mapping[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    body = {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name, **(metadata or {})}, "spec": spec}
    code, created = caller("POST", WIDGETS, orjson.dumps(body))
    assert code == 201, created
    answer: dict[str, Any] = created
    return answer


def change_schema(caller: Caller) -> None:
    """`dropped` goes, and `added` comes with a default."""
    patch = [
        {"op": "remove", "path": f"{SCHEMA}/dropped"},
        {"op": "add", "path": f"{SCHEMA}/added", "value": {"type": "integer", "default": 7}},
    ]
    code, answer = caller("PATCH", CRD, orjson.dumps(patch), JSON_PATCH)
    assert code == 200, answer


def spec_of(caller: Caller, name: str = "w", path: str = WIDGETS) -> Any:
    code, answer = caller("GET", f"{path}/{name}")
    assert code == 200, answer
    return answer["spec"]


def stored(caller: Caller, name: str = "w") -> tuple[ResourceType, Record]:
    rt, record = caller.app.registry.find("example.com", "v1", "widgets"), caller.app.store.get(Key(STORED, "default", name))
    assert rt is not None and record is not None
    return rt, record


def watched(caller: Caller, since: str) -> list[Any]:
    answer = caller.send("GET", WIDGETS, query=f"watch=true&timeoutSeconds=1&resourceVersion={since}")
    return [orjson.loads(line)["object"]["spec"] for line in answer.content.splitlines()]


def test_every_answer_shows_the_schema_of_today(caller: Caller) -> None:
    start = caller("GET", WIDGETS)[1]["metadata"]["resourceVersion"]
    write(caller, kept="x", dropped="y")
    change_schema(caller)
    expected = {"kept": "x", "added": 7}
    assert spec_of(caller) == expected
    assert [item["spec"] for item in caller("GET", WIDGETS)[1]["items"]] == [expected]
    assert [item["spec"] for item in caller("GET", WIDGETS, query="fieldSelector=spec.kept%3Dx")[1]["items"]] == [expected]
    assert watched(caller, "0") == [expected], "the present state"
    assert watched(caller, start) == [expected], "the history"
    table = caller.send(
        "GET", WIDGETS, query="includeObject=Object", headers={"accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
    )
    assert [row["object"]["spec"] for row in table.json()["rows"]] == [expected]


def test_a_field_selector_sees_defaults_of_today(caller: Caller) -> None:
    write(caller, dropped="y")
    patch = [{"op": "replace", "path": f"{SCHEMA}/kept", "value": {**TEXT, "default": "z"}}]
    assert caller("PATCH", CRD, orjson.dumps(patch), JSON_PATCH)[0] == 200
    items = caller("GET", WIDGETS, query="fieldSelector=spec.kept%3Dz")[1]["items"]
    assert [item["metadata"]["name"] for item in items] == ["w"]


def test_a_status_write_leaves_the_spec_to_its_owners(caller: Caller) -> None:
    before = write(caller, kept="x", dropped="y")["metadata"]
    change_schema(caller)
    code, after = caller("PATCH", f"{WIDGETS}/w/status", b'{"status":{"a":1}}', MERGE, query="fieldManager=reporter")
    assert (code, after["spec"], after["status"]) == (200, {"kept": "x", "added": 7}, {"a": 1})
    assert after["metadata"]["generation"] == before["generation"] == 1, "what everybody saw has not changed"
    owned = {entry["manager"]: entry["fieldsV1"] for entry in after["metadata"]["managedFields"]}
    assert owned["reporter"].keys() == {"f:status"}


def test_an_update_that_changes_nothing_keeps_what_is_shown(caller: Caller) -> None:
    write(caller, kept="x", dropped="y")
    change_schema(caller)
    shown = caller("GET", f"{WIDGETS}/w")[1]
    for written in (1, 0):
        answer = caller.send("PATCH", f"{WIDGETS}/w", b"{}", MERGE)
        assert (answer.code, len(answer.written)) == (200, written)
        assert answer.json()["metadata"]["generation"] == 1
        assert answer.json()["spec"] == shown["spec"]
    rt, record = stored(caller)
    assert versions.encoded(rt, record) is record.body


def test_what_the_schemas_of_today_have_accepted_is_answered_as_it_is_stored(caller: Caller) -> None:
    write(caller, "old", kept="x")
    patch = [{"op": "add", "path": f"{SCHEMA}/other", "value": TEXT}]
    assert caller("PATCH", CRD, orjson.dumps(patch), JSON_PATCH)[0] == 200
    write(caller, "new", kept="x")
    rt, record = stored(caller, "new")
    assert versions.encoded(rt, record) is record.body and record.shown is None, "not even looked at"
    rt, record = stored(caller, "old")
    assert versions.encoded(rt, record) is record.body, "the same after the change"
    code, answer = caller("PATCH", CRD, b'{"metadata":{"labels":{"a":"b"}},"spec":{"names":{"shortNames":["wi"]}}}', MERGE)
    assert code == 200, answer
    rt, record = stored(caller, "new")
    assert rt.short_names == ("wi",)
    assert versions.encoded(rt, record) is record.body and record.shown is None, "its schemas have not changed"


def write_around_a_change(caller: Caller) -> None:
    """An object, another schema, and one more object."""
    assert caller("POST", CRDS, orjson.dumps(definition(BEFORE)))[0] == 201
    write(caller, kept="x", dropped="y")
    change_schema(caller)
    write(caller, "new", kept="x")


def test_it_stays_so_after_a_restart(tmp_path: Path) -> None:
    with closing(Caller(tmp_path / "x.db")) as caller:
        write_around_a_change(caller)
    with closing(Caller(tmp_path / "x.db")) as caller:
        assert spec_of(caller) == {"kept": "x", "added": 7}
        rt, record = stored(caller, "new")
        assert versions.encoded(rt, record) is record.body and record.shown is None


LABEL = b'{"metadata":{"labels":{"a":"b"}},"spec":{"names":{"shortNames":["wi"]}}}'


def test_a_definition_that_was_written_for_another_reason_is_no_newer_after_a_restart(tmp_path: Path) -> None:
    """Its objects are answered from their bytes at once, as before the restart."""
    with closing(Caller(tmp_path / "x.db")) as caller:
        write_around_a_change(caller)
        for body in (LABEL, b'{"metadata":{"labels":{"a":"c"}}}'):
            assert caller("PATCH", CRD, body, MERGE)[0] == 200
        assert caller("PATCH", f"{CRD}/status", b'{"status":{"storedVersions":["v1"]}}', MERGE)[0] == 200
        before = stored_type(caller).schemas_since
    with closing(Caller(tmp_path / "x.db")) as caller:
        rt, record = stored(caller, "new")
        assert rt.schemas_since == before
        assert versions.encoded(rt, record) is record.body and record.shown is None
        assert spec_of(caller) == {"kept": "x", "added": 7}, "older than the schemas"
        change_schema_back(caller)
        assert spec_of(caller, "new") == {"kept": "x"}
    with closing(Caller(tmp_path / "x.db")) as caller:
        assert spec_of(caller, "new") == {"kept": "x"}, "a change of the schemas counts"


def change_schema_back(caller: Caller) -> None:
    assert caller("PATCH", CRD, orjson.dumps([{"op": "remove", "path": f"{SCHEMA}/added"}]), JSON_PATCH)[0] == 200


@pytest.mark.slow
def test_nobody_but_the_server_says_since_when_the_schemas_are_what_they_are(caller: Caller) -> None:
    def noted() -> Any:
        return caller("GET", CRD)[1]["metadata"].get("annotations", {}).get(ANNOTATION)

    def annotate(value: str | None) -> dict[str, Any]:
        code, answer = caller("PATCH", CRD, orjson.dumps({"metadata": {"annotations": {ANNOTATION: value}}}), MERGE)
        assert code == 200, answer
        metadata: dict[str, Any] = answer["metadata"]
        return metadata

    first = caller("GET", CRD)[1]["metadata"]
    assert annotate("1@1")["resourceVersion"] == first["resourceVersion"], "nothing is written for it"
    assert caller("PATCH", CRD, LABEL, MERGE)[0] == 200
    truth = f"{first['resourceVersion']}@2"
    assert noted() == truth
    assert annotate("99@2")["annotations"] == annotate(None)["annotations"] == {ANNOTATION: truth}
    change_schema(caller)
    assert noted() is None
    other = orjson.loads(orjson.dumps(definition(BEFORE)).replace(b"idget", b"odget"))
    other["metadata"]["annotations"] = {ANNOTATION: "1@1"}
    assert "annotations" not in caller("POST", CRDS, orjson.dumps(other))[1]["metadata"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5@3", 5), ("", 20), ("5@2", 20), ("99@3", 20), ("x@3", 20), ("5", 20), ("٥@3", 20), ("5@3\n", 20)],
)
def test_a_note_that_does_not_fit_its_definition_does_not_count(text: str, expected: int) -> None:
    metadata = {"resourceVersion": "20", "generation": 3, "annotations": {ANNOTATION: text}}
    assert since({"metadata": metadata}) == expected


def test_a_definition_that_gets_another_version_keeps_no_note() -> None:
    crd = definition(BEFORE)
    crd["metadata"] = {"annotations": {ANNOTATION: "5@3", "a": "b"}}
    forget(crd)
    assert crd["metadata"] == {"annotations": {"a": "b"}}


def test_what_the_server_itself_rewrites_is_brought_up(caller: Caller) -> None:
    one, two = write(caller, "one"), write(caller, "two")
    owners = [
        {"apiVersion": "example.com/v1", "kind": "Widget", "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"]}
        for owner in (one, two)
    ]
    before = write(caller, "child", {"ownerReferences": owners}, kept="x", dropped="y")
    change_schema(caller)
    assert caller("DELETE", f"{WIDGETS}/one")[0] == 200
    after = caller("GET", f"{WIDGETS}/child")[1]
    assert [owner["name"] for owner in after["metadata"]["ownerReferences"]] == ["two"]
    assert after["metadata"]["resourceVersion"] != before["metadata"]["resourceVersion"]
    assert after["spec"] == {"kept": "x", "added": 7}


def test_a_write_waits_for_its_definition(caller: Caller) -> None:
    """It would be written under the old schemas, and after the new ones."""
    service, store = caller.app.service, caller.app.store
    crds, widgets = service.registry.find("apiextensions.k8s.io", "v1", "customresourcedefinitions"), stored_type(caller)
    patch = orjson.dumps([{"op": "add", "path": f"{SCHEMA}/added", "value": {"type": "integer", "default": 7}}])
    body = {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {}}

    async def both() -> None:
        assert crds is not None
        change = asyncio.create_task(service.patch(crds, "", "widgets.example.com", patch, WriteOptions(), content_type=JSON_PATCH))
        await asyncio.sleep(0)
        assert store.head(key_of(STORED)) is not store.get(key_of(STORED)), "on its way to the disk"
        await service.create(widgets, "default", body, WriteOptions())
        await change

    caller.runner.run(both())
    rt, record = stored(caller)
    assert record.rv > rt.schemas_since
    assert record.decode()["spec"] == {"added": 7}


def test_creates_that_come_with_a_change_are_written_under_the_schemas_that_their_versions_say(caller: Caller) -> None:
    patch = orjson.dumps([{"op": "add", "path": f"{SCHEMA}/added", "value": {"type": "integer", "default": 7}}])

    def create(name: str) -> tuple[str, str, bytes, str]:
        body = {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": {}}
        return ("POST", WIDGETS, orjson.dumps(body), "application/json")

    early, late = [f"early-{n}" for n in range(5)], [f"late-{n}" for n in range(5)]
    answers = caller.together([*map(create, early), ("PATCH", CRD, patch, JSON_PATCH), *map(create, late)])
    assert {answer.code for answer in answers} == {200, 201}
    for name in (*early, *late):
        rt, record = stored(caller, name)
        assert record.decode()["spec"] == ({"added": 7} if record.rv > rt.schemas_since else {})
        assert spec_of(caller, name) == {"added": 7}


def stored_type(caller: Caller) -> ResourceType:
    rt = caller.app.registry.find("example.com", "v1", "widgets")
    assert rt is not None
    return rt


def test_defaults_are_those_of_the_version_that_is_stored(caller: Caller) -> None:
    """Also of one that is not served any more; and another version shows only the fields that it has."""
    second = version("v2", storage=False, kept=TEXT, late={**TEXT, "default": "v2"})
    assert caller("PATCH", CRD, orjson.dumps([{"op": "add", "path": "/spec/versions/-", "value": second}]), JSON_PATCH)[0] == 200
    write(caller, kept="x", dropped="y")
    path = WIDGETS.replace("v1", "v2")
    assert spec_of(caller, path=path) == {"kept": "x"}
    change = [
        {"op": "add", "path": f"{SCHEMA}/late", "value": {**TEXT, "default": "v1"}},
        {"op": "replace", "path": "/spec/versions/0/served", "value": False},
    ]
    assert caller("PATCH", CRD, orjson.dumps(change), JSON_PATCH)[0] == 200
    assert caller("GET", f"{WIDGETS}/w")[0] == 404
    assert spec_of(caller, path=path) == {"kept": "x", "late": "v1"}
    code, after = caller("PATCH", f"{path}/w/status", b'{"status":{"a":1}}', MERGE)
    assert (code, after["spec"], after["metadata"]["generation"]) == (200, {"kept": "x", "late": "v1"}, 1)


def test_what_is_not_served_waits_for_its_finalizers(caller: Caller) -> None:
    write(caller, metadata={"finalizers": ["a.b/c"]})
    _, record = stored(caller)
    patch = [{"op": "replace", "path": "/spec/versions/0/served", "value": False}]
    assert caller("PATCH", CRD, orjson.dumps(patch), JSON_PATCH)[0] == 200
    caller.runner.run(caller.app.service.delete_record(record))
    held = caller.app.store.get(record.key)
    assert held is not None and held.deleting
    assert held.decode()["metadata"]["finalizers"] == ["a.b/c"]
    caller.runner.run(caller.app.service.delete_record(held))
    assert caller.app.store.get(record.key) is held, "it is marked once"
