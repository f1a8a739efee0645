"""Create, get, update, patch and delete over HTTP: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import orjson
import pytest

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
TASKS = "/apis/swarmtask.io/v1alpha1/namespaces/default/swarmtasks"


def config_map(name: str = "cm", **more: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}, **more}


def task(name: str = "t", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmTask", "metadata": {"name": name},
        "spec": {"container": {"image": "busybox"}, **spec},
    }  # fmt: skip


def check_status(response: httpx.Response, code: int, reason: str) -> dict[str, Any]:
    """The answer is a Status that agrees with its HTTP code and ends with a newline."""
    assert response.status_code == code, response.text
    assert response.content.endswith(b"\n")
    status: dict[str, Any] = response.json()
    assert (status["kind"], status["apiVersion"], status["status"]) == ("Status", "v1", "Failure")
    assert (status["code"], status["reason"]) == (code, reason), status
    assert status["message"]
    return status


async def create(api: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = await api.post(path, json=body)
    assert response.status_code == 201, response.text
    created: dict[str, Any] = response.json()
    return created


class TestCreate:
    async def test_sets_what_clients_may_not_choose(self, api: httpx.AsyncClient) -> None:
        body = config_map()
        body["metadata"] |= {"uid": "mine", "creationTimestamp": "2001-01-01T00:00:00Z", "generation": 7, "selfLink": "/x"}
        created = await create(api, CONFIG_MAPS, body)
        metadata = created["metadata"]
        assert metadata["uid"] != "mine"
        assert metadata["creationTimestamp"] != "2001-01-01T00:00:00Z"
        assert metadata["namespace"] == "default"
        assert int(metadata["resourceVersion"]) > 0
        assert "selfLink" not in metadata
        assert (await api.get(f"{CONFIG_MAPS}/cm")).json() == created

    async def test_custom_resource_gets_defaults_generation_and_no_status(self, api: httpx.AsyncClient) -> None:
        created = await create(api, TASKS, task() | {"status": {"phase": "Succeeded"}})
        assert created["metadata"]["generation"] == 1
        assert created["spec"]["queue"] == "default"
        assert "status" not in created

    async def test_generate_name(self, api: httpx.AsyncClient) -> None:
        body = config_map()
        body["metadata"] = {"generateName": "x" * 70 + "-"}
        one, two = [(await create(api, CONFIG_MAPS, body))["metadata"]["name"] for _ in range(2)]
        assert one != two
        assert len(one) == 63
        assert one.startswith("x" * 58)

    async def test_twice_is_already_exists(self, api: httpx.AsyncClient) -> None:
        await create(api, CONFIG_MAPS, config_map())
        status = check_status(await api.post(CONFIG_MAPS, json=config_map()), 409, "AlreadyExists")
        assert status["message"] == 'configmaps "cm" already exists'
        assert status["details"] == {"name": "cm", "kind": "configmaps"}

    async def test_dry_run_stores_nothing(self, api: httpx.AsyncClient) -> None:
        response = await api.post(CONFIG_MAPS, json=config_map(), params={"dryRun": "All"})
        assert response.status_code == 201
        assert response.json()["metadata"]["uid"]
        check_status(await api.get(f"{CONFIG_MAPS}/cm"), 404, "NotFound")
        check_status(await api.post(CONFIG_MAPS, json=config_map(), params={"dryRun": "Some"}), 422, "Invalid")

    async def test_namespace_must_exist_and_agree(self, api: httpx.AsyncClient) -> None:
        status = check_status(await api.post("/api/v1/namespaces/nowhere/configmaps", json=config_map()), 404, "NotFound")
        assert status["message"] == 'namespaces "nowhere" not found'
        other = config_map()
        other["metadata"]["namespace"] = "kube-system"
        check_status(await api.post(CONFIG_MAPS, json=other), 400, "BadRequest")

    async def test_resource_version_must_not_be_set(self, api: httpx.AsyncClient) -> None:
        body = config_map()
        body["metadata"]["resourceVersion"] = "5"
        status = check_status(await api.post(CONFIG_MAPS, json=body), 400, "BadRequest")
        assert status["message"] == "resourceVersion should not be set on objects to be created"

    @pytest.mark.parametrize("body", [
        {"apiVersion": "v2", "kind": "ConfigMap", "metadata": {"name": "a"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}},
        [], "text", 7, None, True,
        {"metadata": []}, {"metadata": {"name": 7}}, {"metadata": {"name": "a", "labels": {"x": 1}}},
        {"metadata": {"name": "a", "labels": []}}, {"metadata": {"name": "a", "finalizers": "x"}},
        {"metadata": {"name": "a", "ownerReferences": [7]}}, {"metadata": {"name": "a", "ownerReferences": [{"uid": 7}]}},
        {"metadata": {"name": "a", "managedFields": [1]}}, {"metadata": {"name": "a"}, "data": []},
        {"metadata": {"name": "a"}, "data": {"k": 7}},
    ])  # fmt: skip
    async def test_of_wrong_shape_is_a_bad_request(self, api: httpx.AsyncClient, body: Any) -> None:
        check_status(await api.post(CONFIG_MAPS, json=body), 400, "BadRequest")

    @pytest.mark.parametrize(("metadata", "field"), [
        ({}, "metadata.name"), ({"name": ""}, "metadata.name"), ({"name": "Upper"}, "metadata.name"),
        ({"name": "a" * 254}, "metadata.name"), ({"name": "a/b"}, "metadata.name"), ({"name": ".."}, "metadata.name"),
        ({"name": "a%b"}, "metadata.name"), ({"name": "a\u0000b"}, "metadata.name"), ({"name": "ä"}, "metadata.name"),
        ({"name": "a\n"}, "metadata.name"),
        ({"name": "a", "labels": {"": "x"}}, "metadata.labels"), ({"name": "a", "labels": {"x": "y z"}}, "metadata.labels"),
        ({"name": "a", "labels": {"x": "y" * 64}}, "metadata.labels"), ({"name": "a", "labels": {"x/y/z": ""}}, "metadata.labels"),
        ({"name": "a", "labels": {"x": "y\n"}}, "metadata.labels"),
        ({"name": "a", "annotations": {"bad key": "x"}}, "metadata.annotations"),
        ({"name": "a", "annotations": {"x": "y" * 262145}}, "metadata.annotations"),
        ({"name": "a", "finalizers": ["nope"]}, "metadata.finalizers"),
        ({"name": "a", "finalizers": ["orphan", "foregroundDeletion"]}, "metadata.finalizers"),
        ({"name": "a", "ownerReferences": [{"kind": "X", "name": "x", "uid": "u"}]}, "metadata.ownerReferences[0].apiVersion"),
    ])  # fmt: skip
    async def test_with_bad_metadata_names_the_field(self, api: httpx.AsyncClient, metadata: Any, field: str) -> None:
        status = check_status(await api.post(CONFIG_MAPS, json={"metadata": metadata}), 422, "Invalid")
        assert field in [cause["field"] for cause in status["details"]["causes"]]
        assert status["details"]["kind"] == "ConfigMap"
        assert f"{field}: " in status["message"]

    async def test_what_is_missing_in_an_owner_is_said_once(self, api: httpx.AsyncClient) -> None:
        for path, body in ((CONFIG_MAPS, config_map()), (TASKS, task())):
            body["metadata"]["ownerReferences"] = [{"kind": "X"}]
            status = check_status(await api.post(path, json=body), 422, "Invalid")
            fields = [cause["field"].rpartition(".")[2] for cause in status["details"]["causes"]]
            assert sorted(fields) == ["apiVersion", "name", "uid"]

    async def test_names_of_namespaces_are_labels(self, api: httpx.AsyncClient) -> None:
        for name in ("a.b", "a" * 64):
            body = {"metadata": {"name": name}}
            check_status(await api.post("/api/v1/namespaces", json=body), 422, "Invalid")
        await create(api, CONFIG_MAPS, config_map("a.b"))


class TestFieldValidation:
    BODY = (
        b'{"apiVersion":"swarmtask.io/v1alpha1","kind":"SwarmTask","metadata":{"name":"t","nope":1},'
        b'"spec":{"queue":"a","queue":"default","contaner":{},"container":{"image":"x","imge":"y"}}}'
    )

    async def post(self, api: httpx.AsyncClient, mode: str) -> httpx.Response:
        headers = {"content-type": "application/json"}
        return await api.post(TASKS, content=self.BODY, params={"fieldValidation": mode} if mode else {}, headers=headers)

    async def test_strict_lists_every_field(self, api: httpx.AsyncClient) -> None:
        status = check_status(await self.post(api, "Strict"), 400, "BadRequest")
        assert status["message"].startswith(
            'SwarmTask in version "v1alpha1" cannot be handled as a SwarmTask: strict decoding error: '
        )
        for part in (
            'unknown field "metadata.nope"', 'unknown field "spec.contaner"', 'unknown field "spec.container.imge"',
            'duplicate field "spec.queue"',
        ):  # fmt: skip
            assert status["message"].count(part) == 1
        check_status(await api.get(f"{TASKS}/t"), 404, "NotFound")

    @pytest.mark.parametrize("mode", ["Warn", ""])
    async def test_warn_prunes_and_says_so(self, api: httpx.AsyncClient, mode: str) -> None:
        response = await self.post(api, mode)
        assert response.status_code == 201, response.text
        warnings = response.headers.get_list("warning")
        assert r'299 - "unknown field \"spec.contaner\""' in warnings
        assert r'299 - "duplicate field \"spec.queue\""' in warnings
        assert len(warnings) == 4
        stored = (await api.get(f"{TASKS}/t")).json()
        assert stored["spec"]["queue"] == "default"
        assert "contaner" not in stored["spec"]
        assert "nope" not in stored["metadata"]

    async def test_ignore_is_silent(self, api: httpx.AsyncClient) -> None:
        response = await self.post(api, "Ignore")
        assert response.status_code == 201
        assert "warning" not in response.headers

    async def test_other_words_are_refused(self, api: httpx.AsyncClient) -> None:
        check_status(await self.post(api, "Lax"), 422, "Invalid")


class TestBodies:
    @pytest.mark.parametrize("content", [
        b"", b"{", b"\xff\xfe", b'{"metadata":{"name":"\xff"}}', b"{\x00}", b"[" * 100_000, b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b'{"a":NaN}', b'{"metadata":{"name":"a"}} trailing', b'{"data":{"x":"\\ud800"},"metadata":{"name":"a"}}',
    ])  # fmt: skip
    async def test_that_are_not_json(self, api: httpx.AsyncClient, content: bytes) -> None:
        headers = {"content-type": "application/json"}
        check_status(await api.post(CONFIG_MAPS, content=content, headers=headers), 400, "BadRequest")

    async def test_nested_a_little_too_deep(self, api: httpx.AsyncClient) -> None:
        body = b'{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"d"},"x":' + b"[" * 130 + b"]" * 130 + b"}"
        status = check_status(await api.post(CONFIG_MAPS, content=body), 400, "BadRequest")
        assert "levels deep" in status["message"]

    @pytest.mark.parametrize("content", [
        b"a: [", b"a: &a [*a]", b"[" * 5000, b"- " * 3000, b"a: b\n---\nc: d\n", b"!!python/object:os.system {}",
        b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
        b"d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n",
        b"metadata: {name: a}\nx: 123456789012345678901234567890",
    ])  # fmt: skip
    async def test_that_are_no_good_yaml(self, api: httpx.AsyncClient, content: bytes) -> None:
        headers = {"content-type": "application/yaml"}
        check_status(await api.post(CONFIG_MAPS, content=content, headers=headers), 400, "BadRequest")

    async def test_yaml_and_no_content_type_are_understood(self, api: httpx.AsyncClient) -> None:
        text = b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: y}\ndata: {when: '2024-01-01', t: \"2024-01-01T00:00:00Z\"}\n"
        response = await api.post(CONFIG_MAPS, content=text, headers={"content-type": "application/yaml"})
        assert response.status_code == 201, response.text
        assert response.json()["data"]["t"] == "2024-01-01T00:00:00Z"
        response = await api.post(CONFIG_MAPS, content=orjson.dumps(config_map("bare")))
        assert "content-type" not in response.request.headers
        assert response.status_code == 201

    async def test_built_in_kinds_may_leave_out_their_type(self, api: httpx.AsyncClient) -> None:
        created = await create(api, CONFIG_MAPS, {"metadata": {"name": "x"}})
        assert (created["apiVersion"], created["kind"]) == ("v1", "ConfigMap")
        check_status(await api.post(TASKS, json={"metadata": {"name": "x"}}), 400, "BadRequest")

    async def test_media_types(self, api: httpx.AsyncClient) -> None:
        body = orjson.dumps(config_map())
        status = check_status(
            await api.post(CONFIG_MAPS, content=body, headers={"content-type": "text/csv"}), 415, "UnsupportedMediaType"
        )
        assert "accepted media types include: application/json" in status["message"]
        protobuf = {"content-type": "application/vnd.kubernetes.protobuf"}
        check_status(await api.post(TASKS, content=b"k8s\x00", headers=protobuf), 415, "UnsupportedMediaType")
        check_status(await api.get(CONFIG_MAPS, headers={"accept": "text/html"}), 406, "NotAcceptable")
        mixed = {"accept": "application/vnd.kubernetes.protobuf,application/json"}
        assert (await api.get(CONFIG_MAPS, headers=mixed)).headers["content-type"] == "application/json"
        yaml = await api.get(CONFIG_MAPS, headers={"accept": "application/yaml"})
        assert yaml.headers["content-type"] == "application/yaml"
        assert yaml.text.startswith("kind: ConfigMapList")

    async def test_larger_than_the_limit(self, api: httpx.AsyncClient) -> None:
        body = orjson.dumps(config_map(data={"a": "x" * (3 * 2**20)}))
        check_status(await api.post(CONFIG_MAPS, content=body), 413, "RequestEntityTooLarge")


class TestReplace:
    async def test_needs_the_stored_version(self, api: httpx.AsyncClient) -> None:
        first = await create(api, TASKS, task())
        second = (await api.put(f"{TASKS}/t", json=first | {"spec": {**first["spec"], "suspend": True}})).json()
        assert second["metadata"]["generation"] == 2
        assert int(second["metadata"]["resourceVersion"]) > int(first["metadata"]["resourceVersion"])
        status = check_status(await api.put(f"{TASKS}/t", json=first), 409, "Conflict")
        assert status["message"] == (
            'Operation cannot be fulfilled on swarmtasks.swarmtask.io "t": the object has been modified; '
            "please apply your changes to the latest version and try again"
        )
        assert status["details"] == {"name": "t", "group": "swarmtask.io", "kind": "swarmtasks"}
        del second["metadata"]["resourceVersion"]
        status = check_status(await api.put(f"{TASKS}/t", json=second), 422, "Invalid")
        assert "metadata.resourceVersion: " in status["message"]
        assert "must be specified for an update" in status["message"]

    async def test_of_built_in_kinds_may_be_unconditional(self, api: httpx.AsyncClient) -> None:
        await create(api, CONFIG_MAPS, config_map())
        response = await api.put(f"{CONFIG_MAPS}/cm", json=config_map(data={"a": "2"}))
        assert response.json()["data"] == {"a": "2"}

    async def test_cannot_change_identity(self, api: httpx.AsyncClient) -> None:
        created = await create(api, CONFIG_MAPS, config_map())
        check_status(await api.put(f"{CONFIG_MAPS}/other", json=created), 400, "BadRequest")
        check_status(await api.put("/api/v1/namespaces/kube-system/configmaps/cm", json=created), 400, "BadRequest")
        moved = orjson.loads(orjson.dumps(created))
        moved["metadata"]["uid"] = "another"
        check_status(await api.put(f"{CONFIG_MAPS}/cm", json=moved), 409, "Conflict")
        changed = orjson.loads(orjson.dumps(created))
        changed["metadata"] |= {
            "creationTimestamp": "2001-01-01T00:00:00Z",
            "deletionTimestamp": "2001-01-01T00:00:00Z",
            "generation": 9,
        }
        changed["data"] = {"b": "2"}
        after = (await api.put(f"{CONFIG_MAPS}/cm", json=changed)).json()["metadata"]
        assert after["creationTimestamp"] == created["metadata"]["creationTimestamp"]
        assert "deletionTimestamp" not in after
        assert after.get("generation") == created["metadata"].get("generation")

    async def test_of_nothing_is_not_found(self, api: httpx.AsyncClient) -> None:
        status = check_status(await api.put(f"{CONFIG_MAPS}/cm", json=config_map()), 404, "NotFound")
        assert status["message"] == 'configmaps "cm" not found'

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/apis/coordination.k8s.io/v1/namespaces/default/leases", {"spec": {"holderIdentity": "me"}}),
            ("/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles", {"rules": []}),
            ("/apis/rbac.authorization.k8s.io/v1/clusterroles", {"rules": []}),
            ("/api/v1/namespaces/default/events", {"involvedObject": {"namespace": "default"}, "reason": "R", "message": "m"}),
        ],
    )
    async def test_of_some_kinds_creates_what_is_not_there(self, api: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
        stranger = await api.put(f"{path}/new", json={"metadata": {"name": "new", "uid": "abc"}, **body})
        check_status(stranger, 409, "Conflict")
        dry = await api.put(f"{path}/new", params={"dryRun": "All"}, json={"metadata": {"name": "new"}, **body})
        assert dry.status_code == 201
        assert (await api.get(f"{path}/new")).status_code == 404
        made = await api.put(f"{path}/new", json={"metadata": {"name": "new", "resourceVersion": "5"}, **body})
        assert made.status_code == 201, made.text
        again = await api.put(f"{path}/new", json={"metadata": {"name": "new"}, **body})
        assert (again.status_code, again.json()) == (200, made.json())

    async def test_that_changes_nothing_bumps_nothing(self, api: httpx.AsyncClient) -> None:
        created = await create(api, TASKS, task())
        same = (await api.put(f"{TASKS}/t", json=created)).json()
        assert same["metadata"]["resourceVersion"] == created["metadata"]["resourceVersion"]
        before = (await api.get(TASKS)).json()["metadata"]["resourceVersion"]
        await api.patch(f"{TASKS}/t", json={"spec": {"suspend": False}}, headers={"content-type": "application/merge-patch+json"})
        assert (await api.get(TASKS)).json()["metadata"]["resourceVersion"] == before


MERGE = {"content-type": "application/merge-patch+json"}
JSON_PATCH = {"content-type": "application/json-patch+json"}
STRATEGIC = {"content-type": "application/strategic-merge-patch+json"}


class TestPatch:
    async def test_merge(self, api: httpx.AsyncClient) -> None:
        created = await create(api, TASKS, task())
        response = await api.patch(f"{TASKS}/t", json={"metadata": {"labels": {"x": "y"}}}, headers=MERGE)
        metadata = response.json()["metadata"]
        assert metadata["labels"] == {"x": "y"}
        assert metadata["generation"] == 1
        stale = {"metadata": {"resourceVersion": created["metadata"]["resourceVersion"], "labels": {"x": "z"}}}
        check_status(await api.patch(f"{TASKS}/t", json=stale, headers=MERGE), 409, "Conflict")

    async def test_json_with_a_test_that_fails(self, api: httpx.AsyncClient) -> None:
        await create(api, TASKS, task())
        patch = [
            {"op": "test", "path": "/metadata/resourceVersion", "value": "1"},
            {"op": "add", "path": "/metadata/finalizers", "value": ["a.b/c"]},
        ]
        check_status(await api.patch(f"{TASKS}/t", json=patch, headers=JSON_PATCH), 422, "Invalid")
        good = await api.patch(f"{TASKS}/t", json=patch[1:], headers=JSON_PATCH)
        assert good.json()["metadata"]["finalizers"] == ["a.b/c"]

    async def test_strategic_is_for_built_in_kinds(self, api: httpx.AsyncClient) -> None:
        await create(api, TASKS, task())
        await create(api, CONFIG_MAPS, config_map())
        check_status(await api.patch(f"{TASKS}/t", json={}, headers=STRATEGIC), 415, "UnsupportedMediaType")
        response = await api.patch(f"{CONFIG_MAPS}/cm", json={"data": {"b": "2"}}, headers=STRATEGIC)
        assert response.json()["data"] == {"a": "1", "b": "2"}

    async def test_is_validated_and_tidied(self, api: httpx.AsyncClient) -> None:
        await create(api, TASKS, task())
        bad = {"spec": {"backoffLimit": -1}}
        status = check_status(await api.patch(f"{TASKS}/t", json=bad, headers=MERGE), 422, "Invalid")
        assert [cause["field"] for cause in status["details"]["causes"]] == ["spec.backoffLimit"]
        unknown = {"spec": {"nope": 1}}
        check_status(
            await api.patch(f"{TASKS}/t", json=unknown, headers=MERGE, params={"fieldValidation": "Strict"}), 400, "BadRequest"
        )
        for content in (b"", b"[]", b"7", b"{"):
            check_status(await api.patch(f"{TASKS}/t", content=content, headers=MERGE), 400, "BadRequest")
        check_status(await api.patch(f"{TASKS}/none", json={}, headers=MERGE), 404, "NotFound")

    async def test_of_wrong_shape_inside_metadata(self, api: httpx.AsyncClient) -> None:
        await create(api, CONFIG_MAPS, config_map())
        for patch in ({"metadata": 7}, {"metadata": {"labels": {"a": 1}}}, {"kind": "Secret"}, {"metadata": {"name": "b"}}):
            check_status(await api.patch(f"{CONFIG_MAPS}/cm", json=patch, headers=MERGE), 400, "BadRequest")

    async def test_apply_creates_then_updates(self, api: httpx.AsyncClient) -> None:
        headers = {"content-type": "application/apply-patch+yaml"}
        body = b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: cm}\ndata: {a: '1', b: '2'}\n"
        check_status(await api.patch(f"{CONFIG_MAPS}/cm", content=body, headers=headers), 422, "Invalid")
        response = await api.patch(f"{CONFIG_MAPS}/cm", content=body, headers=headers, params={"fieldManager": "me"})
        assert response.status_code == 201, response.text
        body = b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: cm}\ndata: {a: '3'}\n"
        response = await api.patch(f"{CONFIG_MAPS}/cm", content=body, headers=headers, params={"fieldManager": "me"})
        assert (response.status_code, response.json()["data"]) == (200, {"a": "3"})
        other = {"fieldManager": "other"}
        body = b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: cm}\ndata: {a: '4'}\n"
        status = check_status(await api.patch(f"{CONFIG_MAPS}/cm", content=body, headers=headers, params=other), 409, "Conflict")
        assert status["details"]["causes"][0]["reason"] == "FieldManagerConflict"
        forced = await api.patch(f"{CONFIG_MAPS}/cm", content=body, headers=headers, params={**other, "force": "true"})
        assert forced.json()["data"] == {"a": "4"}
        named = b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: other}\n"
        check_status(await api.patch(f"{CONFIG_MAPS}/cm", content=named, headers=headers, params=other), 400, "BadRequest")

    async def test_apply_to_another_object_or_version_than_the_one_that_was_read(self, api: httpx.AsyncClient) -> None:
        """A configuration that names a uid or a resourceVersion is meant for that object as it was: nobody's write is lost."""
        created = await create(api, CONFIG_MAPS, config_map())
        newer = await api.patch(
            f"{CONFIG_MAPS}/cm", json={"data": {"a": "2"}}, headers={"content-type": "application/merge-patch+json"}
        )
        path, headers = f"{CONFIG_MAPS}/cm?fieldManager=me&force=true", {"content-type": "application/apply-patch+yaml"}

        async def apply(**metadata: str) -> httpx.Response:
            body = config_map(metadata={"name": "cm", **metadata}, data={"a": "3"})
            return await api.patch(path, content=orjson.dumps(body), headers=headers)

        status = check_status(await apply(resourceVersion=created["metadata"]["resourceVersion"]), 409, "Conflict")
        assert "the object has been modified" in status["message"]
        other = {"uid": "00000000-0000-4000-8000-000000000000"}
        status = check_status(await apply(**other), 422, "Invalid")
        assert "metadata.uid: Invalid value" in status["message"] and "field is immutable" in status["message"]
        by_path = [{"op": "replace", "path": "/metadata/uid", "value": "x"}]
        for kind, patch in (("merge-patch", {"metadata": other}), ("json-patch", by_path)):
            sent = await api.patch(f"{CONFIG_MAPS}/cm", json=patch, headers={"content-type": f"application/{kind}+json"})
            assert check_status(sent, 422, "Invalid")["details"]["causes"][0]["field"] == "metadata.uid"
        put = await api.put(f"{CONFIG_MAPS}/cm", json=config_map(metadata={"name": "cm", **other}))
        assert "Precondition failed: UID" in check_status(put, 409, "Conflict")["message"]
        assert (await api.get(f"{CONFIG_MAPS}/cm")).json()["data"] == {"a": "2"}
        meant = {"uid": created["metadata"]["uid"], "resourceVersion": newer.json()["metadata"]["resourceVersion"]}
        assert (await apply(**meant)).json()["data"] == {"a": "3"}


class TestStatus:
    async def test_is_split_both_ways(self, api: httpx.AsyncClient) -> None:
        await create(api, TASKS, task())
        both = {"spec": {"suspend": True}, "status": {"phase": "Queued"}, "metadata": {"labels": {"a": "b"}}}
        after = (await api.patch(f"{TASKS}/t/status", json=both, headers=MERGE)).json()
        assert after["status"]["phase"] == "Queued"
        assert after["spec"]["suspend"] is False
        assert "labels" not in after["metadata"]
        assert after["metadata"]["generation"] == 1
        after = (await api.patch(f"{TASKS}/t", json=both | {"status": {"phase": "Running"}}, headers=MERGE)).json()
        assert after["status"]["phase"] == "Queued"
        assert after["spec"]["suspend"] is True
        assert after["metadata"]["generation"] == 2
        assert (await api.get(f"{TASKS}/t/status")).json() == after

    async def test_is_validated(self, api: httpx.AsyncClient) -> None:
        await create(api, TASKS, task())
        status = check_status(
            await api.patch(f"{TASKS}/t/status", json={"status": {"phase": "Odd"}}, headers=MERGE), 422, "Invalid"
        )
        assert status["details"]["causes"][0]["field"] == "status.phase"

    async def test_of_kinds_without_it_is_no_path(self, api: httpx.AsyncClient) -> None:
        await create(api, CONFIG_MAPS, config_map())
        check_status(await api.get(f"{CONFIG_MAPS}/cm/status"), 404, "NotFound")


class TestOwnKinds:
    @pytest.mark.parametrize(("spec", "field"), [
        ({"container": {}}, "spec.container.image"),
        ({"container": {"image": "x y"}}, "spec.container.image"),
        ({"container": {"image": 7}}, "spec.container.image"),
        ({"container": {"image": "a", "resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}}},
         "spec.container.resources.limits.memory"),
        ({"container": {"image": "a", "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}},
         "spec.container.resources.limits.cpu"),
        ({"container": {"image": "a", "env": [
            {"name": "A", "value": "1", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}},
         "spec.container.env[0]"),
        ({"priority": 5, "priorityClass": "high"}, "spec"),
        ({"backoffLimit": "3"}, "spec.backoffLimit"),
        ({"engine": "kubernetes"}, "spec.engine"),
    ])  # fmt: skip
    async def test_rules_name_the_field(self, api: httpx.AsyncClient, spec: dict[str, Any], field: str) -> None:
        status = check_status(await api.post(TASKS, json=task(**spec)), 422, "Invalid")
        assert field in [cause["field"] for cause in status["details"]["causes"]], status
        assert status["message"].startswith('SwarmTask.swarmtask.io "t" is invalid: ')
        assert (await api.get(TASKS)).json()["items"] == []

    async def test_missing_spec(self, api: httpx.AsyncClient) -> None:
        body = task()
        del body["spec"]
        status = check_status(await api.post(TASKS, json=body), 422, "Invalid")
        assert "spec" in [cause["field"] for cause in status["details"]["causes"]]

    async def test_duplicate_environment_names(self, api: httpx.AsyncClient) -> None:
        env = [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]
        status = check_status(await api.post(TASKS, json=task(container={"image": "a", "env": env})), 422, "Invalid")
        assert any(cause["field"].startswith("spec.container.env") for cause in status["details"]["causes"])

    async def test_what_exists_from_the_start(self, api: httpx.AsyncClient) -> None:
        namespaces = (await api.get("/api/v1/namespaces")).json()["items"]
        assert {"default", "kube-system", "kube-public", "kube-node-lease"} <= {item["metadata"]["name"] for item in namespaces}
        for name in ("default", "kube-system", "kube-public", "kube-node-lease"):
            check_status(await api.delete(f"/api/v1/namespaces/{name}"), 403, "Forbidden")
        queue = await api.get("/apis/swarmtask.io/v1alpha1/namespaces/default/swarmqueues/default")
        assert queue.status_code == 200


class TestSecretsAndConfigMaps:
    async def test_string_data_becomes_data(self, api: httpx.AsyncClient) -> None:
        body = {"metadata": {"name": "s"}, "stringData": {"a": "ä"}, "data": {"b": base64.b64encode(b"x").decode()}}
        created = await create(api, "/api/v1/namespaces/default/secrets", body)
        assert created["data"] == {"a": base64.b64encode("ä".encode()).decode(), "b": "eA=="}
        assert "stringData" not in created
        assert created["type"] == "Opaque"

    async def test_a_null_is_an_empty_value(self, api: httpx.AsyncClient) -> None:
        """As Go's decoder has it: a key that was written is there."""
        secrets, nothing = "/api/v1/namespaces/default/secrets", {"a": None, "b": None}
        body = {"metadata": {"name": "s"}, "stringData": {"a": None, "c": "x"}, "data": {"a": "eA==", "b": None}}
        assert (await create(api, secrets, body))["data"] == {"a": "", "b": "", "c": "eA=="}
        added = [{"op": "add", "path": "/stringData", "value": {"d": None}}]
        patched = await api.patch(f"{secrets}/s", json=added, headers={"content-type": "application/json-patch+json"})
        assert patched.json()["data"] == {"a": "", "b": "", "c": "eA==", "d": ""}
        merged = await api.patch(f"{secrets}/s", json={"data": {"d": None}}, headers=MERGE)
        assert merged.json()["data"] == {"a": "", "b": "", "c": "eA=="}, "in a merge patch a null removes"
        made = await create(api, CONFIG_MAPS, {"metadata": {"name": "c"}, "data": nothing, "binaryData": {"c": None}})
        assert (made["data"], made["binaryData"]) == ({"a": "", "b": ""}, {"c": ""})
        none = await create(api, CONFIG_MAPS, {"metadata": {"name": "none"}, "data": None})
        assert "data" not in none

    @pytest.mark.slow
    @pytest.mark.parametrize("body", [
        {"data": {"a": "not base64!"}}, {"data": {"bad key": "eA=="}}, {"stringData": {"..": "x"}},
        {"stringData": {"a": "x" * (2**20 + 1)}},
    ])  # fmt: skip
    async def test_bad_secrets(self, api: httpx.AsyncClient, body: dict[str, Any]) -> None:
        check_status(await api.post("/api/v1/namespaces/default/secrets", json={"metadata": {"name": "s"}, **body}), 422, "Invalid")

    @pytest.mark.parametrize("body", [
        {"data": {"a": "x"}, "binaryData": {"a": "eA=="}}, {"binaryData": {"a": "?"}}, {"data": {"a b": ""}},
        {"data": {"a": "x" * (2**20 + 1)}},
    ])  # fmt: skip
    async def test_bad_config_maps(self, api: httpx.AsyncClient, body: dict[str, Any]) -> None:
        check_status(await api.post(CONFIG_MAPS, json={"metadata": {"name": "c"}, **body}), 422, "Invalid")

    async def test_immutable_means_it(self, api: httpx.AsyncClient) -> None:
        await create(api, CONFIG_MAPS, config_map(immutable=True))
        check_status(await api.patch(f"{CONFIG_MAPS}/cm", json={"data": {"a": "2"}}, headers=MERGE), 422, "Invalid")
        check_status(await api.patch(f"{CONFIG_MAPS}/cm", json={"immutable": None}, headers=MERGE), 422, "Invalid")


class TestEvents:
    async def test_are_one_thing_in_two_groups(self, api: httpx.AsyncClient) -> None:
        core, events = "/api/v1/namespaces/default/events", "/apis/events.k8s.io/v1/namespaces/default/events"
        involved = {"kind": "SwarmTask", "name": "t", "namespace": "default", "apiVersion": "swarmtask.io/v1alpha1"}
        await create(api, core, {
            "metadata": {"name": "e1"}, "involvedObject": involved, "reason": "Started", "message": "hello", "type": "Normal",
            "count": 2, "source": {"component": "c"}, "firstTimestamp": "2024-01-01T00:00:00Z",
            "lastTimestamp": "2024-01-01T00:00:00Z",
        })  # fmt: skip
        seen = (await api.get(f"{events}/e1")).json()
        assert (seen["apiVersion"], seen["regarding"], seen["note"], seen["deprecatedCount"]) == (
            "events.k8s.io/v1",
            involved,
            "hello",
            2,
        )
        await create(api, events, {
            "metadata": {"name": "e2"}, "regarding": involved, "reason": "Ended", "note": "bye", "type": "Normal", "action": "End",
            "eventTime": "2024-01-01T00:00:00.000000Z", "reportingController": "c", "reportingInstance": "i",
        })  # fmt: skip
        seen = (await api.get(f"{core}/e2")).json()
        assert (seen["apiVersion"], seen["involvedObject"], seen["message"], seen["reportingComponent"]) == (
            "v1",
            involved,
            "bye",
            "c",
        )
        selector = "involvedObject.name=t,involvedObject.kind=SwarmTask,reason=Ended"
        found = (await api.get(core, params={"fieldSelector": selector})).json()["items"]
        assert [item["metadata"]["name"] for item in found] == ["e2"]
        series = {"count": 2, "lastObservedTime": "2024-01-01T00:00:01.000000Z"}
        patched = (await api.patch(f"{events}/e2", json={"series": series}, headers=MERGE)).json()
        assert (patched["note"], patched["series"]) == ("bye", series)
        assert (await api.get(f"{core}/e2")).json()["series"] == series
