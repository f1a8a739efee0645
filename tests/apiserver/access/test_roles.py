"""What people may do, over HTTP: the default roles, namespaces, refusals, nobody grants what he does not have."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest

from tests.apiserver.access.people import RBAC, TASKS, bind, client, new_token, person, said, task
from tests.apiserver.server import RunningServer, http_client, running_api_server

CONFIG_MAPS = "/api/v1/namespaces/{}/configmaps"
SECRETS = "/api/v1/namespaces/{}/secrets"


@pytest.fixture
async def team(api: httpx.AsyncClient) -> str:
    response = await api.post("/api/v1/namespaces", json={"metadata": {"name": "team"}})
    assert response.status_code == 201
    return "team"


async def test_a_token_alone_may_look_at_the_api_and_nothing_else(server: RunningServer, api: httpx.AsyncClient) -> None:
    async with person(server, api, "nobody") as nobody:
        for path in ("/api", "/apis", "/api/v1", "/apis/swarmtask.io/v1alpha1", "/version", "/openapi/v2", "/openapi/v3"):
            assert (await nobody.get(path)).status_code == 200, path
        refused = await nobody.get(TASKS.format("default"))
        assert said(refused) == (403, (
            'swarmtasks.swarmtask.io is forbidden: User "nobody" cannot list resource "swarmtasks" in API group "swarmtask.io" '
            'in the namespace "default"'
        ))  # fmt: skip
        assert refused.json()["details"] == {"group": "swarmtask.io", "kind": "swarmtasks"}
        assert (await nobody.get("/api/v1/nosuchthings")).status_code == 403, "what does not exist is not told"
        assert said(await nobody.get("/metrics")) == (403, 'forbidden: User "nobody" cannot get path "/metrics"')


async def test_a_viewer_reads_his_namespace(server: RunningServer, api: httpx.AsyncClient, team: str) -> None:
    assert (await api.post(TASKS.format(team), json=task("one"))).status_code == 201
    async with person(server, api, "vera", ("view", team)) as vera:
        assert [item["metadata"]["name"] for item in (await vera.get(TASKS.format(team))).json()["items"]] == ["one"]
        assert (await vera.get(f"{TASKS.format(team)}/one")).status_code == 200
        assert (await vera.get(f"/api/v1/namespaces/{team}")).status_code == 200
        for path in (TASKS.format("default"), "/apis/swarmtask.io/v1alpha1/swarmtasks", SECRETS.format(team),
                     "/api/v1/namespaces", "/api/v1/namespaces/default", f"{RBAC}/namespaces/{team}/roles"):  # fmt: skip
            assert (await vera.get(path)).status_code == 403, path
        one = f"{TASKS.format(team)}/one"
        merge = {"content-type": "application/merge-patch+json"}
        for refused in (
            await vera.post(TASKS.format(team), json=task("two")),
            await vera.put(one, json=task("one")),
            await vera.patch(one, content=b"{}", headers=merge),
            await vera.delete(one),
            await vera.delete(TASKS.format(team)),
            await vera.patch(f"{one}/status", content=b"{}", headers=merge),
        ):
            assert refused.status_code == 403, refused.text
    assert (await api.get(one)).status_code == 200


async def test_who_may_update_creates_nothing_by_it(server: RunningServer, api: httpx.AsyncClient) -> None:
    leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases"
    rules = [{"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "update"]}]
    body = {"metadata": {"name": "renews"}, "rules": rules}
    assert (await api.post(f"{RBAC}/clusterroles", json=body)).status_code == 201
    async with person(server, api, "rena", ("renews", "default")) as rena:
        lease = {"metadata": {"name": "l"}, "spec": {"holderIdentity": "rena"}}
        assert (await rena.put(f"{leases}/l", json=lease)).status_code == 403
        assert (await api.get(f"{leases}/l")).status_code == 404
        assert (await api.put(f"{leases}/l", json=lease)).status_code == 201
        assert (await rena.put(f"{leases}/l", json=lease)).status_code == 200


async def test_an_editor_works_in_his_namespace_and_no_further(server: RunningServer, api: httpx.AsyncClient, team: str) -> None:
    async with person(server, api, "emil", ("edit", team)) as emil:
        assert (await emil.post(TASKS.format(team), json=task("one"))).status_code == 201
        assert (await emil.post(SECRETS.format(team), json={"metadata": {"name": "s"}})).status_code == 201
        assert (await emil.delete(f"{TASKS.format(team)}/one")).status_code == 200
        assert (await emil.post(TASKS.format("default"), json=task("one"))).status_code == 403
        queue = {"apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmQueue", "metadata": {"name": "q"}, "spec": {}}
        queues = f"/apis/swarmtask.io/v1alpha1/namespaces/{team}/swarmqueues"
        assert (await emil.post(queues, json=queue)).status_code == 403, "bounds of queues are for administrators"
        async with person(server, api, "anton", ("admin", team)) as anton:
            assert (await anton.post(queues, json=queue)).status_code == 201


async def test_a_role_counts_from_its_commit_and_until_it_is_taken_away(
    server: RunningServer, api: httpx.AsyncClient, team: str
) -> None:
    async with client(server, await new_token(api, "nora")) as nora:
        assert (await nora.get(CONFIG_MAPS.format(team))).status_code == 403
        await bind(api, "nora", "view", team)
        assert (await nora.get(CONFIG_MAPS.format(team))).status_code == 200
        assert (await api.delete(f"{RBAC}/namespaces/{team}/rolebindings/nora-view")).status_code == 200
        assert (await nora.get(CONFIG_MAPS.format(team))).status_code == 403


async def test_names_of_single_objects(server: RunningServer, api: httpx.AsyncClient, team: str) -> None:
    rules = [
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["mine"], "verbs": ["get", "list", "watch", "update"]}
    ]
    made = await api.post(f"{RBAC}/namespaces/{team}/roles", json={"metadata": {"name": "one-map"}, "rules": rules})
    assert made.status_code == 201, made.text
    for name in ("mine", "other"):
        assert (await api.post(CONFIG_MAPS.format(team), json={"metadata": {"name": name}})).status_code == 201
    await bind(api, "nils", "one-map", team, kind="Role")
    async with person(server, api, "nils") as nils:
        maps = CONFIG_MAPS.format(team)
        assert (await nils.get(f"{maps}/mine")).status_code == 200
        assert (await nils.get(f"{maps}/other")).status_code == 403
        assert (await nils.get(maps)).status_code == 403
        listed = await nils.get(maps, params={"fieldSelector": "metadata.name=mine"})
        assert [item["metadata"]["name"] for item in listed.json()["items"]] == ["mine"]
        for trick in (
            "metadata.name!=mine",
            "metadata.namespace!=a\\,metadata.name=mine",
            "metadata.name=mi\\ne",
            "metadata.name=",
        ):
            assert (await nils.get(maps, params={"fieldSelector": trick})).status_code == 403, trick


async def test_server_side_apply_creates_only_for_whoever_may_create(
    server: RunningServer, api: httpx.AsyncClient, team: str
) -> None:
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "patch"]}]
    assert (await api.post(f"{RBAC}/namespaces/{team}/roles", json={"metadata": {"name": "p"}, "rules": rules})).status_code == 201
    await bind(api, "paul", "p", team, kind="Role")
    async with person(server, api, "paul") as paul:
        body = json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "1"}})
        where, apply = f"{CONFIG_MAPS.format(team)}/c?fieldManager=t", {"content-type": "application/apply-patch+yaml"}
        refused = await paul.patch(where, content=body, headers=apply)
        assert said(refused) == (
            403, 'configmaps "c" is forbidden: User "paul" cannot create resource "configmaps" in API group "" '
            'in the namespace "team"'
        )  # fmt: skip
        assert (await api.patch(where, content=body, headers=apply)).status_code == 201
        assert (await paul.patch(where, content=body, headers=apply)).status_code == 200


class TestEscalation:
    async def test_a_role_with_more_than_one_has(self, server: RunningServer, api: httpx.AsyncClient, team: str) -> None:
        roles = f"{RBAC}/namespaces/{team}/roles"
        async with person(server, api, "anton", ("admin", team)) as anton:
            own = [{"apiGroups": ["swarmtask.io"], "resources": ["swarmtasks"], "verbs": ["get", "create"]}]
            assert (await anton.post(roles, json={"metadata": {"name": "own"}, "rules": own})).status_code == 201
            more = [{"apiGroups": ["swarmtask.io"], "resources": ["swarmnodes", "swarmtasks"], "verbs": ["get"]}]
            refused = await anton.post(roles, json={"metadata": {"name": "more"}, "rules": more})
            assert said(refused) == (403, (
                'roles.rbac.authorization.k8s.io "more" is forbidden: user "anton" (groups=["system:authenticated"]) is attempting '
                "to grant RBAC permissions not currently held:\n"
                '{APIGroups:["swarmtask.io"], Resources:["swarmnodes"], Verbs:["get"]}'
            ))  # fmt: skip
            assert (await anton.put(f"{roles}/own", json={"metadata": {"name": "own"}, "rules": more})).status_code == 403
            body = json.dumps(
                [{"op": "add", "path": "/rules/-", "value": {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}}]
            )
            patched = await anton.patch(f"{roles}/own", content=body, headers={"content-type": "application/json-patch+json"})
            assert patched.status_code == 403
            labels = json.dumps({"metadata": {"labels": {"a": "b"}}})
            merge = {"content-type": "application/merge-patch+json"}
            assert (await anton.patch(f"{roles}/own", content=labels, headers=merge)).status_code == 200

    async def test_a_binding_to_a_role_that_one_does_not_have(
        self, server: RunningServer, api: httpx.AsyncClient, team: str
    ) -> None:
        bindings = f"{RBAC}/namespaces/{team}/rolebindings"

        def body(role: str) -> dict[str, object]:
            reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}
            return {"metadata": {"name": role}, "roleRef": reference, "subjects": [{"kind": "User", "name": "anton"}]}

        async with person(server, api, "anton", ("admin", team)) as anton:
            assert (await anton.post(bindings, json=body("edit"))).status_code == 201
            assert (await anton.post(bindings, json=body("cluster-admin"))).status_code == 403
            assert (await anton.post(bindings, json=body("no-such-role"))).status_code == 404
            assert (await anton.post(f"{RBAC}/clusterrolebindings", json=body("view"))).status_code == 403
            rules = [{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "resourceNames": ["cluster-admin"],
                      "verbs": ["bind"]}]  # fmt: skip
            assert (
                await api.post(f"{RBAC}/clusterroles", json={"metadata": {"name": "binder"}, "rules": rules})
            ).status_code == 201
            await bind(api, "anton", "binder")
            assert (await anton.post(bindings, json=body("cluster-admin"))).status_code == 201

    async def test_a_role_reference_stays(self, api: httpx.AsyncClient, team: str) -> None:
        await bind(api, "x", "view", team)
        where = f"{RBAC}/namespaces/{team}/rolebindings/x-view"
        body = json.dumps({"roleRef": {"name": "edit"}})
        refused = await api.patch(where, content=body, headers={"content-type": "application/merge-patch+json"})
        assert refused.status_code == 422
        assert "cannot change roleRef" in refused.text

    async def test_a_token_of_somebody_else(self, server: RunningServer, api: httpx.AsyncClient) -> None:
        rules = [{"apiGroups": ["access.swarmtask.io"], "resources": ["accesstokens"], "verbs": ["*"]}]
        assert (await api.post(f"{RBAC}/clusterroles", json={"metadata": {"name": "tokens"}, "rules": rules})).status_code == 201
        async with person(server, api, "tina", ("tokens", "")) as tina:
            with pytest.raises(AssertionError, match="may not make a token that acts as user 'vera'"):
                await new_token(tina, "vera")
            with pytest.raises(AssertionError, match="may not make a token that acts as"):
                await new_token(tina, "tina", ("system:masters",))

    @pytest.mark.parametrize("body", [
        {"metadata": {"name": "r"}, "rules": [{"verbs": ["get"]}]},
        {"metadata": {"name": "r"}, "rules": [{"verbs": ["get"], "nonResourceURLs": ["/x"]}]},
        {"metadata": {"name": "r"}, "rules": [{"verbs": [], "apiGroups": [""], "resources": ["pods"]}]},
        {"metadata": {"name": "r"}, "rules": [{"apiGroups": [""], "resources": ["pods"]}]},
        {"metadata": {"name": "r"}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}] * 1001},
    ])  # fmt: skip
    async def test_malformed_roles(self, api: httpx.AsyncClient, body: dict[str, object]) -> None:
        answer = await api.post(f"{RBAC}/namespaces/default/roles", json=body)
        assert answer.status_code in (400, 422)
        fields = [cause["field"] for cause in answer.json().get("details", {}).get("causes", ())]
        assert len(fields) == len(set(fields)), "each mistake is told once"

    @pytest.mark.parametrize("subject", [
        {"kind": "Robot", "name": "r"}, {"kind": "User"}, {"kind": "User", "name": "u", "apiGroup": "apps"},
        {"kind": "ServiceAccount", "name": "s"}, {"kind": "Group", "name": "g", "namespace": "n"}, "u", None,
    ])  # fmt: skip
    async def test_malformed_bindings(self, api: httpx.AsyncClient, subject: object) -> None:
        body = {
            "metadata": {"name": "b"}, "subjects": [subject],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        }  # fmt: skip
        assert (await api.post(f"{RBAC}/clusterrolebindings", json=body)).status_code in (400, 422)


async def test_an_array_member_is_made_by_the_operator_alone(server: RunningServer, api: httpx.AsyncClient, team: str) -> None:
    """Members skip their queue's bounds, so whoever could make one would skip them too."""
    queue = {"apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmQueue", "metadata": {"name": "q"}, "spec": {"maxQueued": 0}}
    assert (await api.post(f"/apis/swarmtask.io/v1alpha1/namespaces/{team}/swarmqueues", json=queue)).status_code == 201
    array = (await api.post(TASKS.format(team), json=task("array"))).json()["metadata"]
    reference = {"apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmTask", "name": "array", "uid": array["uid"]}

    def member(name: str, **more: object) -> dict[str, object]:
        body = task(name, labels={"swarmtask.io/array": "array"}, ownerReferences=[{**reference, **more}])
        body["spec"]["queue"] = "q"
        return body

    async with person(server, api, "emil", ("edit", team)) as emil:
        tasks = TASKS.format(team)
        refused = await emil.post(tasks, json=member("m", controller=True))
        assert refused.status_code == 403
        assert "swarmtasks/finalizers" in refused.json()["message"]
        assert (await emil.post(tasks, json=member("m", blockOwnerDeletion=True))).status_code == 403
        for disguise in ("swarmtask.io/v1", "swarmtask.io/v1alpha1/x", "swarmtask.io"):
            assert (await emil.post(tasks, json=member("m", controller=True, apiVersion=disguise))).status_code == 403, disguise
        assert (await emil.post(tasks, json=member("m"))).status_code == 429, "it is no member, so the queue's bounds hold"
        assert (await emil.post(tasks, json=task("plain", ownerReferences=[reference]))).status_code == 201
        body = json.dumps({"metadata": {"ownerReferences": [{**reference, "controller": True}]}})
        merge = {"content-type": "application/merge-patch+json"}
        assert (await emil.patch(f"{tasks}/plain", content=body, headers=merge)).status_code == 403
    token = (server.kubeconfig.parent / "operator.token").read_text().strip()
    async with client(server, token) as operator:
        made = await operator.post(TASKS.format(team), json=member("m", controller=True, blockOwnerDeletion=True))
        assert made.status_code == 201, made.text


async def test_impersonation(server: RunningServer, api: httpx.AsyncClient, team: str) -> None:
    await bind(api, "vera", "view", team)
    path = TASKS.format(team)
    assert (await api.get(path, headers={"impersonate-user": "vera"})).status_code == 200
    assert (await api.post(path, json=task("x"), headers={"impersonate-user": "vera"})).status_code == 403
    assert (await api.get(path, headers={"impersonate-user": "system:serviceaccount:team:bot"})).status_code == 403
    assert (await api.get(path, headers={"impersonate-group": "system:masters"})).status_code == 400
    async with person(server, api, "emil", ("edit", team)) as emil:
        refused = await emil.get(path, headers={"impersonate-user": "vera"})
        assert said(refused) == (
            403, 'users "vera" is forbidden: User "emil" cannot impersonate resource "users" in API group "" at the cluster scope'
        )  # fmt: skip
        both = {"impersonate-user": "emil", "impersonate-group": "system:masters"}
        assert (await emil.get(path, headers=both)).status_code == 403


@pytest.mark.slow
async def test_watches_end_with_the_role(server: RunningServer, api: httpx.AsyncClient, team: str) -> None:
    async with (
        person(server, api, "vera", ("view", team)) as vera,
        vera.stream("GET", TASKS.format(team), params={"watch": "1"}) as stream,
    ):
        assert stream.status_code == 200
        lines = stream.aiter_lines()
        assert (await api.post(TASKS.format(team), json=task("one"))).status_code == 201
        assert json.loads(await anext(lines))["type"] == "ADDED"
        assert (await api.delete(f"{RBAC}/namespaces/{team}/rolebindings/vera-view")).status_code == 200
        async with asyncio.timeout(10):
            assert [line async for line in lines] == []


async def test_default_roles_are_set_right_again_at_the_next_start(tmp_path: Path) -> None:
    async with running_api_server(tmp_path) as server, http_client(server) as api:
        before = (await api.get(f"{RBAC}/clusterroles/cluster-admin")).json()
        assert (await api.delete(f"{RBAC}/clusterroles/view")).status_code == 200
        edit = (await api.get(f"{RBAC}/clusterroles/edit")).json()
        assert (await api.put(f"{RBAC}/clusterroles/edit", json={**edit, "rules": []})).status_code == 200
    async with running_api_server(tmp_path) as server, http_client(server) as api:
        assert (await api.get(f"{RBAC}/clusterroles/cluster-admin")).json() == before, "what is right is not written again"
        assert (await api.get(f"{RBAC}/clusterroles/view")).status_code == 200
        assert (await api.get(f"{RBAC}/clusterroles/edit")).json()["rules"] == edit["rules"]


@pytest.mark.slow
async def test_no_tenant_reaches_another_on_any_route(server: RunningServer, api: httpx.AsyncClient, team: str) -> None:
    """Everything that is served, with every method, by the administrator of one namespace against another and the cluster."""
    merge = {"content-type": "application/merge-patch+json"}
    apply = {"content-type": "application/apply-patch+yaml"}
    routes = 0
    async with person(server, api, "anton", ("admin", team)) as anton:
        groups = [item["preferredVersion"]["groupVersion"] for item in (await api.get("/apis")).json()["groups"]]
        for prefix in ("/api/v1", *(f"/apis/{group}" for group in groups)):
            for resource in (await api.get(prefix)).json()["resources"]:
                plural, _, subresource = resource["name"].partition("/")
                if plural.startswith(("selfsubject", "localsubject")):
                    continue
                everywhere = f"{prefix}/{plural}"
                collection = f"{prefix}/namespaces/default/{plural}" if resource["namespaced"] else everywhere
                one = f"{collection}/default" + (f"/{subresource}" if subresource else "")
                asked = [anton.get(one), anton.put(one, json={}), anton.patch(one, content=b"{}", headers=merge),
                         anton.patch(f"{one}?fieldManager=x", content=b"{}", headers=apply), anton.get(f"{one}?watch=1"),
                         anton.post(one, json={})]  # fmt: skip
                if not subresource:
                    asked += [anton.delete(one), anton.get(everywhere), anton.get(f"{everywhere}?watch=1"), anton.get(collection),
                              anton.post(collection, json={}), anton.delete(collection),
                              anton.get(f"{everywhere}?fieldSelector=metadata.namespace%3D{team}")]  # fmt: skip
                for answer in await asyncio.gather(*asked):
                    assert answer.status_code == 403, (answer.request.method, answer.request.url)
                    routes += 1
    assert routes > 200
