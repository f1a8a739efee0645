"""Deletion and what it sets in motion: finalizers, owners, namespaces, old Events."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import structlog

from swarmtask.apiserver.app import Application
from swarmtask.apiserver.auth import Authenticator
from swarmtask.apiserver.writes import DeleteOptions, WriteOptions
from swarmtask.clock import ManualClock
from swarmtask.settings import ApiServerSettings
from tests.apiserver.server import http_client, running_api_server
from tests.apiserver.streams import watching
from tests.apiserver.waiting import until, until_gone

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
TASKS = "/apis/swarmtask.io/v1alpha1/namespaces/default/swarmtasks"
MERGE = {"content-type": "application/merge-patch+json"}


async def create(api: httpx.AsyncClient, name: str, path: str = CONFIG_MAPS, **metadata: Any) -> dict[str, Any]:
    response = await api.post(path, json={"metadata": {"name": name, **metadata}})
    assert response.status_code == 201, response.text
    created: dict[str, Any] = response.json()
    return created


async def create_task(api: httpx.AsyncClient, name: str, **metadata: Any) -> dict[str, Any]:
    response = await api.post(TASKS, json={
        "apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmTask", "metadata": {"name": name, **metadata},
        "spec": {"container": {"image": "x"}},
    })  # fmt: skip
    assert response.status_code == 201, response.text
    created: dict[str, Any] = response.json()
    return created


def owned_by(owner: dict[str, Any], **more: Any) -> dict[str, Any]:
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
    }
    return {"ownerReferences": [reference | more]}


async def status_of(api: httpx.AsyncClient, name: str, path: str = CONFIG_MAPS) -> int:
    return (await api.get(f"{path}/{name}")).status_code


async def delete(api: httpx.AsyncClient, path: str, **body: Any) -> httpx.Response:
    return await api.request("DELETE", path, json=body)


async def until_reported(api: httpx.AsyncClient, name: str) -> list[dict[str, Any]]:
    """Events of references to owners that an object of this name cannot have."""
    found: list[dict[str, Any]] = []

    async def reported() -> bool:
        selector = f"reason=OwnerRefInvalidNamespace,involvedObject.name={name}"
        found[:] = (await api.get("/api/v1/events", params={"fieldSelector": selector})).json()["items"]
        return bool(found)

    await until(reported, what=f"an Event about the owner of {name}")
    return found


class TestDelete:
    async def test_answers_with_a_status(self, api: httpx.AsyncClient) -> None:
        created = await create(api, "a")
        response = await api.delete(f"{CONFIG_MAPS}/a")
        assert response.json() == {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
            "details": {"name": "a", "kind": "configmaps", "uid": created["metadata"]["uid"]},
        }  # fmt: skip
        assert (await api.delete(f"{CONFIG_MAPS}/a")).status_code == 404

    async def test_waits_for_finalizers(self, api: httpx.AsyncClient) -> None:
        await create_task(api, "t", finalizers=["a.b/c", "a.b/d"])
        first = (await api.delete(f"{TASKS}/t")).json()
        assert first["metadata"]["deletionTimestamp"]
        assert first["metadata"]["generation"] == 2
        again = (await api.delete(f"{TASKS}/t")).json()
        assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
        added = await api.patch(f"{TASKS}/t", json={"metadata": {"finalizers": ["a.b/c", "a.b/d", "a.b/e"]}}, headers=MERGE)
        assert added.status_code == 422
        assert "no new finalizers can be added" in added.json()["message"]
        assert (await api.patch(f"{TASKS}/t", json={"metadata": {"finalizers": ["a.b/c"]}}, headers=MERGE)).status_code == 200
        async with watching(api, TASKS, resourceVersion=(await api.get(TASKS)).json()["metadata"]["resourceVersion"]) as stream:
            assert (await api.patch(f"{TASKS}/t", json={"metadata": {"finalizers": None}}, headers=MERGE)).status_code == 200
            event = await stream.next()
        assert (event["type"], event["object"]["metadata"]["name"]) == ("DELETED", "t")
        assert (await api.get(f"{TASKS}/t")).status_code == 404

    async def test_preconditions(self, api: httpx.AsyncClient) -> None:
        created = (await create(api, "a"))["metadata"]
        wrong = await delete(api, f"{CONFIG_MAPS}/a", preconditions={"uid": "other"})
        assert (wrong.status_code, wrong.json()["reason"]) == (409, "Conflict")
        assert "the UID in the precondition (other) does not match the UID in record" in wrong.json()["message"]
        wrong = await delete(api, f"{CONFIG_MAPS}/a", preconditions={"resourceVersion": "1"})
        assert wrong.status_code == 409
        right = {"uid": created["uid"], "resourceVersion": created["resourceVersion"]}
        assert (await delete(api, f"{CONFIG_MAPS}/a", preconditions=right)).status_code == 200

    @pytest.mark.slow
    async def test_dry_run(self, api: httpx.AsyncClient) -> None:
        await create(api, "a")
        assert (await delete(api, f"{CONFIG_MAPS}/a", dryRun=["All"])).status_code == 200
        assert (await api.delete(f"{CONFIG_MAPS}/a", params={"dryRun": "All"})).status_code == 200
        assert await status_of(api, "a") == 200

    @pytest.mark.parametrize(("body", "code"), [
        ({"propagationPolicy": "Sideways"}, 422), ({"preconditions": "x"}, 400), ({"preconditions": {"uid": 7}}, 400),
        ({"kind": "Pod"}, 400), ({"dryRun": ["Some"]}, 422), ({"propagationPolicy": "Orphan", "orphanDependents": True}, 422),
        ([], 400),
    ])  # fmt: skip
    async def test_bad_options(self, api: httpx.AsyncClient, body: Any, code: int) -> None:
        await create(api, "a")
        assert (await api.request("DELETE", f"{CONFIG_MAPS}/a", json=body)).status_code == code
        assert await status_of(api, "a") == 200

    async def test_collections(self, api: httpx.AsyncClient) -> None:
        for name, value in (("a", "1"), ("b", "1"), ("c", "2")):
            await create(api, name, labels={"x": value})
        await create(api, "other", "/api/v1/namespaces/kube-system/configmaps", labels={"x": "1"})
        response = await api.delete(CONFIG_MAPS, params={"labelSelector": "x=1"})
        assert response.json()["kind"] == "ConfigMapList"
        assert [item["metadata"]["name"] for item in response.json()["items"]] == ["a", "b"]
        left = (await api.get("/api/v1/configmaps")).json()["items"]
        assert [item["metadata"]["name"] for item in left] == ["c", "other"]
        assert (await api.delete("/api/v1/configmaps")).status_code == 405


class TestOwners:
    async def test_background(self, api: httpx.AsyncClient) -> None:
        owner = await create_task(api, "owner")
        await create(api, "child", **owned_by(owner))
        child = (await api.get(f"{CONFIG_MAPS}/child")).json()
        await create(api, "grandchild", **owned_by(child))
        assert (await delete(api, f"{TASKS}/owner")).status_code == 200
        assert await status_of(api, "owner", TASKS) == 404
        await until_gone(api, f"{CONFIG_MAPS}/child")
        await until_gone(api, f"{CONFIG_MAPS}/grandchild")

    async def test_one_of_two_owners_left(self, api: httpx.AsyncClient) -> None:
        one, two = await create_task(api, "one"), await create_task(api, "two")
        references = [*owned_by(one)["ownerReferences"], *owned_by(two)["ownerReferences"]]
        await create(api, "child", ownerReferences=references)
        await delete(api, f"{TASKS}/one")

        async def dropped() -> bool:
            child = (await api.get(f"{CONFIG_MAPS}/child")).json()
            return [reference["name"] for reference in child["metadata"]["ownerReferences"]] == ["two"]

        await until(dropped, what="the reference to the owner that has gone dropped")

    async def test_foreground_waits_for_blocking_dependents(self, api: httpx.AsyncClient) -> None:
        owner = await create_task(api, "owner")
        await create(api, "child", finalizers=["a.b/c"], **owned_by(owner, blockOwnerDeletion=True))
        await create(api, "loose", finalizers=["a.b/c"], **owned_by(owner))
        response = await delete(api, f"{TASKS}/owner", propagationPolicy="Foreground")
        assert response.json()["metadata"]["finalizers"] == ["foregroundDeletion"]

        async def marked() -> bool:
            items = (await api.get(CONFIG_MAPS)).json()["items"]
            return all("deletionTimestamp" in item["metadata"] for item in items)

        await until(marked, what="dependents marked")
        assert await status_of(api, "owner", TASKS) == 200
        await api.patch(f"{CONFIG_MAPS}/child", json={"metadata": {"finalizers": None}}, headers=MERGE)
        await until_gone(api, f"{TASKS}/owner")
        assert await status_of(api, "loose") == 200

    async def test_orphan(self, api: httpx.AsyncClient) -> None:
        owner = await create_task(api, "owner")
        await create(api, "child", **owned_by(owner))
        await delete(api, f"{TASKS}/owner", propagationPolicy="Orphan")
        await until_gone(api, f"{TASKS}/owner")
        child = (await api.get(f"{CONFIG_MAPS}/child")).json()
        assert "ownerReferences" not in child["metadata"]

    async def test_owners_that_never_were(self, api: httpx.AsyncClient) -> None:
        reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "no-such-uid"}
        foreign = {"apiVersion": "example.com/v1", "kind": "Unknown", "name": "x", "uid": "no-such-uid"}
        await create(api, "unknown-kind", ownerReferences=[foreign])
        await create(api, "absent", ownerReferences=[reference])
        await until_gone(api, f"{CONFIG_MAPS}/absent")
        assert await status_of(api, "unknown-kind") == 200

    @pytest.mark.parametrize("kind", [("v1", "Pod"), ("metrics.k8s.io/v1beta1", "PodMetrics")])
    async def test_an_owner_that_is_shown_and_not_stored_is_not_looked_up(
        self, api: httpx.AsyncClient, kind: tuple[str, str]
    ) -> None:
        pod = {"apiVersion": kind[0], "kind": kind[1], "metadata": {"name": "task-1", "uid": "u"}}
        await create(api, "of-a-pod", **owned_by(pod))
        absent = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "never", "uid": "u2"}}
        await create(api, "of-none", **owned_by(absent))
        await until_gone(api, f"{CONFIG_MAPS}/of-none")
        assert await status_of(api, "of-a-pod") == 200

    async def test_an_owner_in_another_namespace_is_none(self, api: httpx.AsyncClient) -> None:
        elsewhere = await create(api, "owner", "/api/v1/namespaces/kube-system/configmaps")
        await create(api, "child", **owned_by(elsewhere))
        await until_gone(api, f"{CONFIG_MAPS}/child")

    async def test_kind_and_name_count_and_not_the_uid_alone(self, api: httpx.AsyncClient) -> None:
        owner = await create(api, "owner")
        for name, wrong in (("other-kind", {"kind": "Secret"}), ("other-name", {"name": "nobody"})):
            await create(api, name, **owned_by(owner, **wrong))
            await until_gone(api, f"{CONFIG_MAPS}/{name}")
        second = await create(api, "second")
        both = owned_by(owner)["ownerReferences"] + owned_by(second, kind="Secret")["ownerReferences"]
        await create(api, "both", ownerReferences=both)

        async def right_one_left() -> bool:
            child = (await api.get(f"{CONFIG_MAPS}/both")).json()
            return [one["name"] for one in child["metadata"]["ownerReferences"]] == ["owner"]

        await until(right_one_left, what="the wrong reference dropped")

    async def test_a_node_owns_as_its_swarm_node(self, api: httpx.AsyncClient) -> None:
        swarm_nodes = "/apis/swarmtask.io/v1alpha1/swarmnodes"
        body = {"apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmNode", "metadata": {"name": "n"}, "spec": {}}
        response = await api.post(swarm_nodes, json=body)
        assert response.status_code == 201, response.text
        node = (await api.get("/api/v1/nodes/n")).json()
        await create(api, "of-node", **owned_by({"apiVersion": "v1", "kind": "Node", **node}))
        await create(api, "of-nobody", **owned_by({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "m", "uid": "u"}}))
        await until_gone(api, f"{CONFIG_MAPS}/of-nobody")
        assert await status_of(api, "of-node") == 200
        await delete(api, f"{swarm_nodes}/n")
        await until_gone(api, f"{CONFIG_MAPS}/of-node")

    async def test_an_object_without_a_namespace_is_never_collected_for_an_owner_in_one(self, api: httpx.AsyncClient) -> None:
        owner = await create(api, "owner")
        roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles"
        await create(api, "child", roles, **owned_by(owner, blockOwnerDeletion=True))
        events = await until_reported(api, "child")
        assert events[0]["involvedObject"]["kind"] == "ClusterRole"
        assert "never collected" in events[0]["message"]
        await delete(api, f"{CONFIG_MAPS}/owner", propagationPolicy="Foreground")
        await until_gone(api, f"{CONFIG_MAPS}/owner")
        await create(api, "later", ownerReferences=[{"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "no-such-uid"}])
        await until_gone(api, f"{CONFIG_MAPS}/later")  # by then the one before has been looked at
        assert await status_of(api, "child", roles) == 200

    async def test_an_owner_in_another_namespace_is_reported(self, api: httpx.AsyncClient) -> None:
        elsewhere = await create(api, "owner", "/api/v1/namespaces/kube-system/configmaps")
        await create(api, "child", **owned_by(elsewhere))
        assert "counts as gone" in (await until_reported(api, "child"))[0]["message"]

    async def test_what_may_not_be_deleted_holds_nothing_up(self, tmp_path: Path) -> None:
        app = await Application.open(
            tmp_path / "x.db", ApiServerSettings(), Authenticator([]), ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
        )  # it waits for ever where the collector waits
        namespaces, config_maps = app.registry.find("", "v1", "namespaces"), app.registry.find("", "v1", "configmaps")
        assert namespaces is not None and config_maps is not None
        nobody = [{"apiVersion": "v1", "kind": "Namespace", "name": "x", "uid": "no-such-uid"}]
        patch = orjson.dumps({"metadata": {"ownerReferences": nobody}})
        with structlog.testing.capture_logs() as logs:
            merge = "application/merge-patch+json"
            await app.service.patch(namespaces, "", "default", patch, WriteOptions(), content_type=merge)
            body = {"metadata": {"name": "child", "ownerReferences": nobody}}
            await app.service.create(config_maps, "default", body, WriteOptions())

            async def gone() -> bool:
                return not app.store.index.keys(("", "configmaps"), "default")

            await until(gone, what="the next dependent collected")
        assert [line["key"].name for line in logs if line["event"] == "not deleted"] == ["default"]
        await app.close()


class TestNamespaces:
    @pytest.mark.slow
    async def test_are_emptied_then_removed(self, api: httpx.AsyncClient) -> None:
        created = await create(api, "team", "/api/v1/namespaces")
        assert created["status"] == {"phase": "Active"}
        assert created["spec"] == {"finalizers": ["kubernetes"]}
        assert created["metadata"]["labels"] == {"kubernetes.io/metadata.name": "team"}
        inside = "/api/v1/namespaces/team/configmaps"
        await create(api, "held", inside, finalizers=["a.b/c"])
        await asyncio.gather(*(create(api, f"n{number}", inside) for number in range(300)))
        marked = (await api.delete("/api/v1/namespaces/team")).json()
        assert marked["status"]["phase"] == "Terminating"

        async def only_the_held_one() -> bool:
            return [item["metadata"]["name"] for item in (await api.get(inside)).json()["items"]] == ["held"]

        await until(only_the_held_one, what="everything else gone")

        async def says_why() -> bool:
            status = (await api.get("/api/v1/namespaces/team")).json()["status"]
            return {condition["type"]: condition["message"] for condition in status.get("conditions", ())} == {
                "NamespaceContentRemaining": "Some resources are remaining: configmaps has 1 resource instances",
                "NamespaceFinalizersRemaining": (
                    "Some content in the namespace has finalizers remaining: a.b/c in 1 resource instances"
                ),
            }

        await until(says_why, what="the conditions name what is waited for")
        refused = await api.post(inside, json={"metadata": {"name": "late"}})
        assert refused.status_code == 403
        assert refused.json()["message"] == (
            'configmaps "late" is forbidden: unable to create new content in namespace team because it is being terminated'
        )
        assert refused.json()["details"]["causes"][0]["reason"] == "NamespaceTerminating"
        await api.patch(f"{inside}/held", json={"metadata": {"finalizers": None}}, headers=MERGE)
        await until_gone(api, "/api/v1/namespaces/team")

    async def test_that_must_stay(self, api: httpx.AsyncClient) -> None:
        for name in ("default", "kube-system", "kube-public"):
            response = await api.delete(f"/api/v1/namespaces/{name}")
            assert response.status_code == 403
            assert "this namespace may not be deleted" in response.json()["message"]

    async def test_go_on_after_a_restart(self, tmp_path: Path) -> None:
        async with running_api_server(tmp_path) as server, http_client(server) as api:
            await create(api, "team", "/api/v1/namespaces")
            await create(api, "held", "/api/v1/namespaces/team/configmaps", finalizers=["a.b/c"])
            await api.delete("/api/v1/namespaces/team")
        async with running_api_server(tmp_path) as server, http_client(server) as api:
            await api.patch("/api/v1/namespaces/team/configmaps/held", json={"metadata": {"finalizers": None}}, headers=MERGE)
            await until_gone(api, "/api/v1/namespaces/team")

    @pytest.mark.slow
    async def test_finalize_subresource(self, api: httpx.AsyncClient) -> None:
        created = await create(api, "team", "/api/v1/namespaces")
        created["spec"] = {"finalizers": []}
        after = (await api.put("/api/v1/namespaces/team", json=created)).json()
        assert after["spec"] == {"finalizers": ["kubernetes"]}
        created["metadata"] = after["metadata"]
        after = (await api.put("/api/v1/namespaces/team/finalize", json=created)).json()
        assert not after["spec"].get("finalizers")


async def test_old_events_go(tmp_path: Path) -> None:
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    settings = ApiServerSettings(event_ttl_s=3600)
    app = await Application.open(tmp_path / "x.db", settings, Authenticator([]), clock)

    async def write(name: str) -> None:
        rt = app.registry.find("", "v1", "events")
        assert rt is not None
        involved = {"kind": "SwarmTask", "name": "t", "namespace": "default"}
        body = {"metadata": {"name": name}, "involvedObject": involved, "reason": "R", "message": "m", "type": "Normal"}
        await app.service.create(rt, "default", body, WriteOptions())

    def present() -> list[str]:
        return [key.name for key in app.store.index.keys(("", "events"))]

    await write("first")
    clock.advance(1800)
    await write("second")
    await app.collector.sweep_events()
    assert present() == ["first", "second"]
    clock.advance(timedelta(minutes=31).total_seconds())
    await app.collector.sweep_events()
    assert present() == ["second"]
    await app.close()
    app = await Application.open(tmp_path / "x.db", settings, Authenticator([]), clock)
    await app.collector.sweep_events()
    assert present() == ["second"]
    clock.advance(1800)
    await app.collector.sweep_events()
    assert present() == []
    await app.close()


async def test_events_of_a_clock_that_is_ahead_do_not_keep_others(tmp_path: Path) -> None:
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    settings = ApiServerSettings(event_ttl_s=3600)
    app = await Application.open(tmp_path / "x.db", settings, Authenticator([]), clock)

    async def write(name: str, **more: Any) -> None:
        rt = app.registry.find("", "v1", "events")
        assert rt is not None
        involved = {"kind": "SwarmTask", "name": "t", "namespace": "default"}
        body = {"metadata": {"name": name}, "involvedObject": involved, "reason": "R", "message": "m", "type": "Normal", **more}
        await app.service.create(rt, "default", body, WriteOptions())

    await write("future", lastTimestamp="2099-01-01T00:00:00Z")
    await app.close()
    app = await Application.open(tmp_path / "x.db", settings, Authenticator([]), clock)
    clock.advance(1800)
    await write("later")
    for seconds, left in ((1801, ["later"]), (1800, [])):
        clock.advance(seconds)
        await app.collector.sweep_events()
        assert [key.name for key in app.store.index.keys(("", "events"))] == left
    await app.close()


@pytest.mark.slow
async def test_a_bug_that_one_object_meets_does_not_end_the_work_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    app = await Application.open(tmp_path / "x.db", ApiServerSettings(), Authenticator([]), clock)
    rt = app.registry.find("", "v1", "namespaces")
    assert rt is not None
    do, struck, cured = app.collector._do, 0, False

    async def poisoned(work: Any) -> None:
        nonlocal struck
        if work[1].name == "bad" and not cured:
            struck += 1
            raise ZeroDivisionError("a bug")
        await do(work)

    def gone(name: str) -> bool:
        return all(key.name != name for key in app.store.index.keys(("", "namespaces")))

    async def pass_time(seconds: int, name: str) -> None:
        for _ in range(100 * seconds):
            if gone(name):
                return
            clock.advance(0.01)
            await asyncio.sleep(0.001)

    monkeypatch.setattr(app.collector, "_do", poisoned)
    for name in ("bad", "good"):
        await app.service.create(rt, "", {"metadata": {"name": name}}, WriteOptions())
        await app.service.delete(rt, "", name, DeleteOptions())
    await pass_time(20, "good")
    assert (gone("good"), gone("bad"), app.ready) == (True, False, True)
    await pass_time(5, "bad")
    assert 2 <= struck <= 60
    cured = True
    await pass_time(20, "bad")
    assert gone("bad")
    await app.close()
