"""Who may do what with nodes and pods: no more than with what is behind them."""

from __future__ import annotations

import httpx
import pytest

from tests.apiserver.access.people import RBAC, bind, person
from tests.apiserver.projections.swarm import MERGE, attempt, store_node, store_task
from tests.apiserver.server import RunningServer

PODS = "/api/v1/namespaces/default/pods"
NODE = "/api/v1/nodes/laptop-1"
EVICTION = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "lint-1"}}


@pytest.fixture(autouse=True)
async def stored(api: httpx.AsyncClient) -> None:
    await store_node(api)
    await store_task(api, attempt(1))


async def test_a_viewer_reads_pods_of_his_namespace_and_changes_nothing(server: RunningServer, api: httpx.AsyncClient) -> None:
    async with person(server, api, "vera", ("view", "default")) as vera:
        assert len((await vera.get(PODS)).json()["items"]) == 1
        assert (await vera.get("/apis/metrics.k8s.io/v1beta1/namespaces/default/pods")).status_code == 200
        assert (await vera.get("/apis/apps/v1/namespaces/default/deployments")).json()["items"] == []
        for refused in (
            await vera.get("/api/v1/pods"), await vera.get("/api/v1/namespaces/kube-system/pods"), await vera.get("/api/v1/nodes"),
            await vera.delete(f"{PODS}/lint-1"), await vera.delete(PODS), await vera.post(f"{PODS}/lint-1/eviction", json=EVICTION),
            await vera.get(f"{PODS}/lint-1/exec?command=sh"), await vera.post(f"{PODS}/lint-1/exec?command=sh"),
            await vera.patch(NODE, json={"spec": {"unschedulable": True}}, headers=MERGE),
        ):  # fmt: skip
            assert refused.status_code == 403, refused.request.url


async def test_an_editor_ends_attempts_and_cordons_nothing(server: RunningServer, api: httpx.AsyncClient) -> None:
    async with person(server, api, "ed", ("edit", "default")) as ed:
        assert (await ed.patch(NODE, json={"spec": {"unschedulable": True}}, headers=MERGE)).status_code == 403
        assert (await ed.post(f"{PODS}/lint-1/eviction?dryRun=All", json=EVICTION)).status_code == 201
        assert (await ed.delete(f"{PODS}/lint-1")).status_code == 200


@pytest.mark.slow
async def test_an_admin_of_everything_cordons_and_deletes_no_node(server: RunningServer, api: httpx.AsyncClient) -> None:
    async with person(server, api, "ada", ("admin", "")) as ada:
        assert (await ada.patch(NODE, json={"spec": {"unschedulable": True}}, headers=MERGE)).status_code == 200
        assert (await ada.delete(NODE)).status_code == 403
        owner = {"apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmQueue", "name": "x", "uid": "x"}
        gone = await ada.patch(NODE, json={"metadata": {"ownerReferences": [owner]}}, headers=MERGE)
        assert gone.status_code == 403, "an owner that does not exist would have the node removed"
    async with person(server, api, "bob", ("admin", "default")) as bob:
        assert (await bob.patch(NODE, json={"spec": {"unschedulable": True}}, headers=MERGE)).status_code == 403


async def test_who_may_only_delete_pods_can_do_nothing_else_to_their_tasks(server: RunningServer, api: httpx.AsyncClient) -> None:
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["delete"]}]
    made = await api.post(f"{RBAC}/namespaces/default/roles", json={"metadata": {"name": "ender"}, "rules": rules})
    assert made.status_code == 201
    await bind(api, "eve", "ender", "default", kind="Role")
    async with person(server, api, "eve") as eve:
        assert (await eve.delete(f"{PODS}/lint-1")).status_code == 200
        for path in (PODS, f"{PODS}/lint-1", "/apis/swarmtask.io/v1alpha1/namespaces/default/swarmtasks/lint"):
            assert (await eve.get(path)).status_code == 403


async def test_an_agent_reads_no_pods(server: RunningServer, api: httpx.AsyncClient) -> None:
    async with person(server, api, "system:node:laptop-1", groups=("system:nodes",)) as agent:
        for path in (PODS, f"{PODS}/lint-1", NODE, "/api/v1/nodes"):
            assert (await agent.get(path)).status_code == 403, path
