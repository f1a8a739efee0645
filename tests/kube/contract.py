"""What every `ObjectApi` keeps: one suite, run on the in-memory API and, through `KubeClient`, on the embedded API server.

A module subclasses `ObjectApiContract` and provides the fixture `api`. Every test works in the namespace `default` with names of
its own and expects nothing of what else is stored there.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest

from swarmtask.errors import AlreadyExists, Conflict, NotFound, SwarmTaskError
from swarmtask.kube import Object, ObjectApi, WatchEvent
from swarmtask.resources.kinds import CONFIG_MAP, LEASE, NAMESPACE, SECRET, SWARM_NODE, SWARM_TASK, Kind
from swarmtask.resources.tenure import Tenure

_numbers = itertools.count(1)
FINALIZER = "swarmtask.io/contract-test"
Under = Callable[[Tenure], ObjectApi]


begins = ""
"""How every name begins; a suite that shares its server with others says more."""


def fresh(prefix: str = "thing") -> str:
    return f"{begins}{prefix}-{next(_numbers)}"


def config_map(name: str, **extra: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name} | extra.pop("metadata", {}),
        "data": {"a": "1"},
    } | extra


def task(name: str, **metadata: Any) -> Object:
    return {
        "apiVersion": SWARM_TASK.api_version, "kind": "SwarmTask", "metadata": {"name": name} | metadata,
        "spec": {"container": {"image": "busybox", "command": ["true"]}},
    }  # fmt: skip


async def events_until(
    api: ObjectApi, kind: Kind, since: str, last: str, *, label_selector: str = "", field_selector: str = ""
) -> list[WatchEvent]:
    """Events after `since` up to and including the one whose object is at version `last`; bookmarks left out."""
    events: list[WatchEvent] = []

    async def collect() -> None:
        watch = api.watch(kind, "default", resource_version=since, label_selector=label_selector, field_selector=field_selector)
        async with aclosing(watch) as stream:
            async for event in stream:
                if event.type == "BOOKMARK":
                    continue
                events.append(event)
                if event.object["metadata"]["resourceVersion"] == last:
                    return

    await asyncio.wait_for(collect(), 20)
    return events


class ObjectApiContract:
    """Fixtures: `api`, and `under`, which makes a client of the same server that writes under a tenure."""

    # --- create, get, list ---

    async def test_a_created_object_has_the_servers_metadata(self, api: ObjectApi) -> None:
        name = fresh()
        created = await api.create(SWARM_TASK, task(name), "default")
        metadata = created["metadata"]
        assert metadata["namespace"] == "default"
        assert metadata["uid"] and metadata["creationTimestamp"].endswith("Z")
        assert int(metadata["resourceVersion"]) > 0
        assert metadata["generation"] == 1
        assert await api.get(SWARM_TASK, name, "default") == created

    async def test_the_same_name_twice_is_already_exists(self, api: ObjectApi) -> None:
        name = fresh()
        await api.create(CONFIG_MAP, config_map(name), "default")
        with pytest.raises(AlreadyExists) as caught:
            await api.create(CONFIG_MAP, config_map(name), "default")
        assert name in str(caught.value)

    async def test_a_name_can_be_left_to_the_server(self, api: ObjectApi) -> None:
        body = config_map("x")
        body["metadata"] = {"generateName": f"{begins}made-"}
        first, second = await api.create(CONFIG_MAP, body, "default"), await api.create(CONFIG_MAP, body, "default")
        assert first["metadata"]["name"].startswith(f"{begins}made-")
        assert first["metadata"]["name"] != second["metadata"]["name"]

    async def test_a_missing_object_is_not_found(self, api: ObjectApi) -> None:
        name = fresh()
        for call in (api.get(SECRET, name, "default"), api.delete(SECRET, name, "default"), api.get(SWARM_NODE, name)):
            with pytest.raises(NotFound) as caught:
                await call
            assert name in str(caught.value)

    async def test_a_missing_namespace_is_not_found(self, api: ObjectApi) -> None:
        with pytest.raises(NotFound):
            await api.create(CONFIG_MAP, config_map(fresh()), "no-such-namespace")

    async def test_a_dry_run_stores_nothing(self, api: ObjectApi) -> None:
        name = fresh()
        answer = await api.create(CONFIG_MAP, config_map(name), "default", dry_run=True)
        assert answer["metadata"]["name"] == name
        with pytest.raises(NotFound):
            await api.get(CONFIG_MAP, name, "default")

    async def test_lists_are_complete_and_carry_kind_and_version(self, api: ObjectApi) -> None:
        label = fresh("batch")
        names = {fresh() for _ in range(12)}
        for name in names:
            await api.create(CONFIG_MAP, config_map(name, metadata={"labels": {"batch": label}}), "default")
        listed = await api.list(CONFIG_MAP, label_selector=f"batch={label}")
        assert {item["metadata"]["name"] for item in listed.items} == names
        assert all(item["kind"] == "ConfigMap" and item["apiVersion"] == "v1" for item in listed.items)
        assert int(listed.resource_version) >= max(int(item["metadata"]["resourceVersion"]) for item in listed.items)
        assert not (await api.list(CONFIG_MAP, "kube-system", label_selector=f"batch={label}")).items

    async def test_selectors(self, api: ObjectApi) -> None:
        run = fresh("run")
        for name, tier in ((f"{run}-a", "front"), (f"{run}-b", "back"), (f"{run}-c", "store")):
            await api.create(CONFIG_MAP, config_map(name, metadata={"labels": {"run": run, "tier": tier}}), "default")

        async def names(labels: str, fields: str = "") -> set[str]:
            found = await api.list(CONFIG_MAP, "default", label_selector=labels, field_selector=fields)
            return {item["metadata"]["name"].removeprefix(f"{run}-") for item in found.items}

        assert await names(f"run={run},tier in (front, back)") == {"a", "b"}
        assert await names(f"run={run},tier notin (front)") == {"b", "c"}
        assert await names(f"run={run},tier!=store") == {"a", "b"}
        assert await names(f"run={run},!tier") == set()
        assert await names(f"run={run},tier") == {"a", "b", "c"}
        assert await names(f"run={run}", f"metadata.name={run}-b") == {"b"}

    async def test_the_system_namespace_has_a_uid(self, api: ObjectApi) -> None:
        assert (await api.get(NAMESPACE, "kube-system"))["metadata"]["uid"]

    # --- writes ---

    async def test_replace_needs_the_version_that_was_read(self, api: ObjectApi) -> None:
        created = await api.create(SWARM_TASK, task(fresh()), "default")
        created["spec"]["suspend"] = True
        changed = await api.replace(SWARM_TASK, created)
        assert changed["metadata"]["generation"] == 2
        with pytest.raises(Conflict):
            await api.replace(SWARM_TASK, created)

    async def test_a_write_that_changes_nothing_bumps_nothing(self, api: ObjectApi) -> None:
        created = await api.create(SWARM_TASK, task(fresh()), "default")
        again = await api.replace(SWARM_TASK, created)
        patched = await api.patch(SWARM_TASK, created["metadata"]["name"], {"metadata": {"labels": None}}, "default")
        assert (
            again["metadata"]["resourceVersion"] == patched["metadata"]["resourceVersion"] == created["metadata"]["resourceVersion"]
        )

    async def test_status_and_spec_are_written_apart(self, api: ObjectApi) -> None:
        name = fresh()
        await api.create(SWARM_TASK, task(name) | {"status": {"phase": "Running"}}, "default")
        assert "phase" not in (await api.get(SWARM_TASK, name, "default")).get("status", {})

        both = {"spec": {"suspend": True}, "status": {"phase": "Queued"}}
        after = await api.patch(SWARM_TASK, name, both, "default", subresource="status")
        assert after["status"]["phase"] == "Queued"
        assert not after["spec"].get("suspend")
        assert after["metadata"]["generation"] == 1

        both["status"] = {"phase": "Running"}
        after = await api.patch(SWARM_TASK, name, both, "default")
        assert after["status"]["phase"] == "Queued"
        assert after["spec"]["suspend"] is True
        assert after["metadata"]["generation"] == 2

    async def test_a_status_can_be_replaced_as_a_whole(self, api: ObjectApi) -> None:
        name = fresh()
        created = await api.create(SWARM_TASK, task(name), "default")
        created["status"] = {"phase": "Running", "nodeName": "a"}
        running = await api.replace(SWARM_TASK, created, subresource="status")
        running["status"] = {"phase": "Backoff"}
        after = await api.replace(SWARM_TASK, running, subresource="status")
        assert after["status"]["phase"] == "Backoff"
        assert "nodeName" not in after["status"]
        with pytest.raises(Conflict):
            await api.replace(SWARM_TASK, running, subresource="status")

    async def test_a_merge_patch_can_name_the_version_it_expects(self, api: ObjectApi) -> None:
        name = fresh()
        created = await api.create(SWARM_TASK, task(name), "default")
        version = created["metadata"]["resourceVersion"]
        patch = {"metadata": {"resourceVersion": version}, "status": {"phase": "Queued"}}
        await api.patch(SWARM_TASK, name, patch, "default", subresource="status")
        with pytest.raises(Conflict):
            await api.patch(SWARM_TASK, name, patch | {"status": {"phase": "Running"}}, "default", subresource="status")

    async def test_a_merge_patch_removes_with_null(self, api: ObjectApi) -> None:
        name = fresh()
        await api.create(CONFIG_MAP, config_map(name, metadata={"labels": {"a": "1", "b": "2"}}), "default")
        after = await api.patch(CONFIG_MAP, name, {"metadata": {"labels": {"a": None}}}, "default")
        assert after["metadata"]["labels"] == {"b": "2"}

    async def test_a_json_patch_tests_and_changes(self, api: ObjectApi) -> None:
        name = fresh()
        await api.create(CONFIG_MAP, config_map(name), "default")
        test, change = {"op": "test", "path": "/data/a", "value": "1"}, {"op": "replace", "path": "/data/a", "value": "2"}
        after = await api.patch(CONFIG_MAP, name, [test, change], "default", type_="json")
        assert after["data"] == {"a": "2"}
        with pytest.raises(SwarmTaskError):
            await api.patch(CONFIG_MAP, name, [test, change], "default", type_="json")
        assert (await api.get(CONFIG_MAP, name, "default"))["data"] == {"a": "2"}

    # --- deletion ---

    async def test_a_finalizer_holds_the_object_until_it_is_taken_off(self, api: ObjectApi) -> None:
        name = fresh()
        await api.create(SWARM_TASK, task(name, finalizers=[FINALIZER]), "default")
        await api.delete(SWARM_TASK, name, "default")
        going = await api.get(SWARM_TASK, name, "default")
        assert going["metadata"]["deletionTimestamp"]
        with pytest.raises(SwarmTaskError):
            await api.patch(SWARM_TASK, name, {"metadata": {"finalizers": [FINALIZER, "swarmtask.io/late"]}}, "default")
        await api.delete(SWARM_TASK, name, "default")
        await api.patch(SWARM_TASK, name, {"metadata": {"finalizers": None}}, "default")
        with pytest.raises(NotFound):
            await api.get(SWARM_TASK, name, "default")

    async def test_a_deletion_can_name_the_uid_it_means(self, api: ObjectApi) -> None:
        name = fresh()
        created = await api.create(CONFIG_MAP, config_map(name), "default")
        with pytest.raises(Conflict):
            await api.delete(CONFIG_MAP, name, "default", uid="00000000-0000-0000-0000-000000000000")
        await api.delete(CONFIG_MAP, name, "default", uid=created["metadata"]["uid"])
        with pytest.raises(NotFound):
            await api.get(CONFIG_MAP, name, "default")

    async def test_a_patch_can_name_the_uid_it_means(self, api: ObjectApi) -> None:
        name = fresh()
        created = await api.create(CONFIG_MAP, config_map(name), "default")
        with pytest.raises(Conflict):
            other = {"metadata": {"uid": "00000000-0000-0000-0000-000000000000"}, "data": {"changed": "wrongly"}}
            await api.patch(CONFIG_MAP, name, other, "default")
        meant = {"metadata": {"uid": created["metadata"]["uid"]}, "data": {"changed": "rightly"}}
        assert (await api.patch(CONFIG_MAP, name, meant, "default"))["data"]["changed"] == "rightly"

    async def test_a_deletion_can_name_the_version_it_was_decided_on(self, api: ObjectApi) -> None:
        name = fresh()
        created = await api.create(CONFIG_MAP, config_map(name), "default")
        uid, seen = created["metadata"]["uid"], created["metadata"]["resourceVersion"]
        changed = await api.patch(CONFIG_MAP, name, {"data": {"changed": "since"}}, "default")
        with pytest.raises(Conflict):
            await api.delete(CONFIG_MAP, name, "default", uid=uid, resource_version=seen)
        assert (await api.get(CONFIG_MAP, name, "default"))["data"]["changed"] == "since"
        await api.delete(CONFIG_MAP, name, "default", uid=uid, resource_version=changed["metadata"]["resourceVersion"])
        with pytest.raises(NotFound):
            await api.get(CONFIG_MAP, name, "default")

    async def test_what_an_object_owns_goes_with_it(self, api: ObjectApi) -> None:
        owner = await api.create(CONFIG_MAP, config_map(fresh()), "default")
        reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"]}
        owned, stays = fresh(), fresh()
        since = (await api.list(CONFIG_MAP, "default")).resource_version
        await api.create(CONFIG_MAP, config_map(stays), "default")
        await api.create(CONFIG_MAP, config_map(owned, metadata={"ownerReferences": [reference]}), "default")
        await api.delete(CONFIG_MAP, owner["metadata"]["name"], "default", propagation="Background")

        async def collected() -> None:
            async with aclosing(api.watch(CONFIG_MAP, "default", resource_version=since)) as stream:
                async for event in stream:
                    if event.type == "DELETED" and event.object["metadata"]["name"] == owned:
                        return

        await asyncio.wait_for(collected(), 20)
        await api.get(CONFIG_MAP, stays, "default")

    # --- watch ---

    async def test_a_watch_from_a_list_misses_nothing(self, api: ObjectApi) -> None:
        name = fresh()
        since = (await api.list(CONFIG_MAP, "default")).resource_version
        await api.create(CONFIG_MAP, config_map(name), "default")
        await api.patch(CONFIG_MAP, name, {"data": {"a": "2"}}, "default")
        await api.delete(CONFIG_MAP, name, "default")
        events: list[WatchEvent] = []

        async def collect() -> None:
            async with aclosing(api.watch(CONFIG_MAP, "default", resource_version=since)) as stream:
                async for event in stream:
                    if event.object["metadata"].get("name") == name:
                        events.append(event)
                        if event.type == "DELETED":
                            return

        await asyncio.wait_for(collect(), 20)
        assert [event.type for event in events] == ["ADDED", "MODIFIED", "DELETED"]
        versions = [int(event.object["metadata"]["resourceVersion"]) for event in events]
        assert versions == sorted(set(versions))
        assert events[2].object["data"] == {"a": "2"}

    async def test_a_watch_shows_live_changes(self, api: ObjectApi) -> None:
        name = fresh()
        since = (await api.list(CONFIG_MAP, "default")).resource_version

        async def follow() -> str:
            async with aclosing(api.watch(CONFIG_MAP, "default", resource_version=since)) as stream:
                async for event in stream:
                    if event.object["metadata"].get("name") == name:
                        return event.type
            return "ended"

        follower = asyncio.create_task(follow())
        await asyncio.sleep(0)
        await api.create(CONFIG_MAP, config_map(name), "default")
        assert await asyncio.wait_for(follower, 20) == "ADDED"

    async def test_a_label_that_comes_and_goes_adds_and_deletes(self, api: ObjectApi) -> None:
        name, label = fresh(), fresh("edge")
        since = (await api.list(CONFIG_MAP, "default")).resource_version
        await api.create(CONFIG_MAP, config_map(name), "default")
        await api.patch(CONFIG_MAP, name, {"metadata": {"labels": {"edge": label}}}, "default")
        last = await api.patch(CONFIG_MAP, name, {"metadata": {"labels": {"edge": None}}}, "default")
        version = last["metadata"]["resourceVersion"]
        events = await events_until(api, CONFIG_MAP, since, version, label_selector=f"edge={label}")
        assert [event.type for event in events] == ["ADDED", "DELETED"]

    async def test_a_watch_of_one_object_by_name(self, api: ObjectApi) -> None:
        name, other = fresh(), fresh()
        since = (await api.list(CONFIG_MAP, "default")).resource_version
        await api.create(CONFIG_MAP, config_map(other), "default")
        created = await api.create(CONFIG_MAP, config_map(name), "default")
        version = created["metadata"]["resourceVersion"]
        events = await events_until(api, CONFIG_MAP, since, version, field_selector=f"metadata.name={name}")
        assert [event.object["metadata"]["name"] for event in events] == [name]

    async def test_version(self, api: ObjectApi) -> None:
        assert (await api.version())["gitVersion"].startswith("v1.")

    # --- tenures ---

    async def test_writes_under_a_tenure_are_refused_unless_its_lease_has_that_holder(self, api: ObjectApi, under: Under) -> None:
        lease, name = fresh("lease"), fresh()
        first, second = (under(Tenure(holder, lease, "default")) for holder in ("one", "two"))
        await api.create(CONFIG_MAP, config_map(name), "default")
        with pytest.raises(Conflict, match="not held by one"):
            await first.patch(CONFIG_MAP, name, {"data": {"a": "2"}}, "default")
        body = {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": {"name": lease}, "spec": {"holderIdentity": "one"}}
        held = await first.create(LEASE, body, "default")
        await first.patch(CONFIG_MAP, name, {"data": {"a": "2"}}, "default")
        for refused in (
            second.patch(CONFIG_MAP, name, {"data": {"a": "3"}}, "default"),
            second.create(CONFIG_MAP, config_map(fresh()), "default"),
            second.replace(CONFIG_MAP, await api.get(CONFIG_MAP, name, "default")),
            second.delete(CONFIG_MAP, name, "default"),
        ):
            with pytest.raises(Conflict, match="not held by two"):
                await refused
        assert (await second.get(CONFIG_MAP, name, "default"))["data"] == {"a": "2"}
        taken = {"metadata": {"resourceVersion": held["metadata"]["resourceVersion"]}, "spec": {"holderIdentity": "two"}}
        await second.patch(LEASE, lease, taken, "default")
        await second.patch(CONFIG_MAP, name, {"data": {"a": "3"}}, "default")
        with pytest.raises(Conflict, match="not held by one"):
            await first.delete(CONFIG_MAP, name, "default")
        await api.patch(CONFIG_MAP, name, {"data": {"a": "4"}}, "default")  # who names no tenure writes as ever
