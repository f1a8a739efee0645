"""The operator as in production, short of its processes: real kopf, the embedded API server, child processes as workloads."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from swarmtask.clock import SystemClock
from swarmtask.controllers.intake import KopfIntake, default_intake
from swarmtask.controllers.operator import Operator, cluster_id
from swarmtask.engines.local import LocalEngine
from swarmtask.kube import KubeClient, Object
from swarmtask.resources.kinds import EVENT, SWARM_NODE, SWARM_QUEUE, SWARM_TASK, Kind
from swarmtask.resources.meta import FIELD_MANAGER
from swarmtask.settings import LocalSettings, OperatorSettings
from tests.kube.real import real_api_server
from tests.lab.tools import kubectl_binaries

LIMIT_S = 60


def task(name: str, *command: str) -> Object:
    return {
        "apiVersion": SWARM_TASK.api_version, "kind": "SwarmTask", "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "container": {
                "image": "ignored", "command": list(command),
                "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
            },
        },
    }  # fmt: skip


async def wait_for(api: KubeClient, kind: Kind, name: str, namespace: str | None, condition: Callable[[Object], bool]) -> Object:
    """The object as soon as a watch shows it fulfilling the condition."""

    async def follow() -> Object:
        listed = await api.list(kind, namespace, field_selector=f"metadata.name={name}")
        for obj in listed.items:
            if condition(obj):
                return obj
        watch = api.watch(kind, namespace, resource_version=listed.resource_version, field_selector=f"metadata.name={name}")
        async for event in watch:
            if event.type != "BOOKMARK" and (event.type != "DELETED" or condition({})) and condition(event.object):
                return event.object
        raise AssertionError("a watch does not end")

    return await asyncio.wait_for(follow(), LIMIT_S)


def in_phase(*phases: str) -> Callable[[Object], bool]:
    return lambda obj: (obj.get("status") or {}).get("phase") in phases


@asynccontextmanager
async def operating(api: KubeClient, engine: LocalEngine) -> AsyncIterator[Operator]:
    clock, rng = SystemClock(), random.Random(1)
    assert isinstance(default_intake(api, clock, rng), KopfIntake)
    operator = Operator(api, [engine], OperatorSettings(poll_interval_s=0.2, vanish_grace_s=2.0), clock, rng)
    stop, ready = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(operator.run(stop=stop, ready=ready))
    try:
        await asyncio.wait_for(ready.wait(), LIMIT_S)
        yield operator
    finally:
        stop.set()
        await asyncio.wait_for(running, LIMIT_S)


def make_engine(directory: Path) -> LocalEngine:
    return LocalEngine(LocalSettings(), directory, SystemClock())


@pytest.mark.slow
async def test_a_task_created_through_the_api_runs_to_its_end(tmp_path: Path) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with (
        real_api_server(tmp_path / "api") as kubeconfig,
        KubeClient.from_kubeconfig(kubeconfig) as api,
        operating(api, make_engine(tmp_path / "local")),
    ):
        await api.create(SWARM_TASK, task("hello", sys.executable, "-c", "print('hello')"))
        done = await wait_for(api, SWARM_TASK, "hello", "default", in_phase("Succeeded", "Failed"))
        assert done["status"]["phase"] == "Succeeded", done["status"]
        assert await cluster_id(api)
        # kopf is only the intake: it has left nothing on the object.
        assert done["metadata"].get("annotations") in (None, {})
        assert done["metadata"]["finalizers"] == ["swarmtask.io/engine-cleanup"]
        nodes = (await api.list(SWARM_NODE)).items
        assert [node["status"]["phase"] for node in nodes] == ["Ready"]
        await wait_for_event(api, "hello", "Completed")

        await api.delete(SWARM_TASK, "hello", "default")
        await wait_until_gone(api, "hello")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers, "kopf took the signals"


@pytest.mark.slow
async def test_work_goes_on_across_a_restart_of_the_operator(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    wait = f"import pathlib, time\nwhile not pathlib.Path({str(gate)!r}).exists(): time.sleep(0.02)"
    async with real_api_server(tmp_path / "api") as kubeconfig, KubeClient.from_kubeconfig(kubeconfig) as api:
        async with operating(api, make_engine(tmp_path / "local")):
            await api.create(SWARM_TASK, task("long", sys.executable, "-c", wait))
            await wait_for(api, SWARM_TASK, "long", "default", in_phase("Running"))
        gate.touch()
        async with operating(api, make_engine(tmp_path / "local")):
            done = await wait_for(api, SWARM_TASK, "long", "default", in_phase("Succeeded", "Failed"))
            assert done["status"]["phase"] == "Succeeded", done["status"]
            assert done["status"]["attempt"] == 1


@pytest.mark.slow
async def test_the_operator_survives_a_restart_of_the_api(tmp_path: Path) -> None:
    async with real_api_server(tmp_path / "api") as kubeconfig:
        api = KubeClient.from_kubeconfig(kubeconfig)
        port = int(api.connection.server.rsplit(":", 1)[1])
        operation = operating(api, make_engine(tmp_path / "local"))
        await operation.__aenter__()
    try:
        async with real_api_server(tmp_path / "api", port=port):
            await api.create(SWARM_TASK, task("after", sys.executable, "-c", "pass"))
            done = await wait_for(api, SWARM_TASK, "after", "default", in_phase("Succeeded", "Failed"))
            assert done["status"]["phase"] == "Succeeded", done["status"]
    finally:
        await operation.__aexit__(None, None, None)
        await api.aclose()


@pytest.mark.slow
async def test_an_array_runs_to_its_end_and_is_deleted_with_its_runs(tmp_path: Path) -> None:
    count, script = 12, "import os, sys; sys.exit(3 if os.environ['SWARMTASK_INDEX'] == '7' else 0)"
    async with (
        real_api_server(tmp_path / "api") as kubeconfig,
        KubeClient.from_kubeconfig(kubeconfig) as api,
        operating(api, make_engine(tmp_path / "local")),
    ):
        many = task("many", sys.executable, "-c", script)
        many["spec"] |= {"completions": count, "parallelism": 4, "backoffLimit": 0}
        await api.create(SWARM_TASK, many)
        done = await wait_for(api, SWARM_TASK, "many", "default", in_phase("Succeeded", "Failed"))
        assert done["status"]["array"]["completedIndexes"] == "0-6,8-11", done["status"]
        assert done["status"]["message"] == "11 of 12 succeeded; failed: 7"
        labels = (await api.list(SWARM_TASK, "default", label_selector="swarmtask.io/array=many")).items
        assert "many-7" in {item["metadata"]["name"] for item in labels}
        await api.delete(SWARM_TASK, "many", "default")
        for name in [item["metadata"]["name"] for item in labels]:
            await wait_until_gone(api, name)


async def wait_for_event(api: KubeClient, name: str, reason: str) -> None:
    async def follow() -> None:
        listed = await api.list(EVENT, "default")
        if any(said(item, name, reason) for item in listed.items):
            return
        async for event in api.watch(EVENT, "default", resource_version=listed.resource_version):
            if said(event.object, name, reason):
                return

    await asyncio.wait_for(follow(), LIMIT_S)


def said(event: Object, name: str, reason: str) -> bool:
    return event.get("reason") == reason and event.get("involvedObject", {}).get("name") == name


async def wait_until_gone(api: KubeClient, name: str) -> None:
    async def follow() -> None:
        listed = await api.list(SWARM_TASK, "default")
        if all(item["metadata"]["name"] != name for item in listed.items):
            return
        async for event in api.watch(SWARM_TASK, "default", resource_version=listed.resource_version):
            if event.type == "DELETED" and event.object["metadata"]["name"] == name:
                return

    await asyncio.wait_for(follow(), LIMIT_S)


@pytest.mark.kubectl
@pytest.mark.parametrize(
    "kubectl", [*kubectl_binaries().values()] or [pytest.param(None, marks=pytest.mark.skip(reason="no kubectl here"))]
)
async def test_a_person_may_apply_a_spec_to_what_the_operator_has_made(tmp_path: Path, kubectl: Path) -> None:
    """Defaults that the server filled in belong to nobody."""

    async def apply(kind: Kind, name: str, spec: Object, kubeconfig: Path, *options: str) -> str:
        body = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"name": name}, "spec": spec}
        process = await asyncio.create_subprocess_exec(
            str(kubectl), f"--kubeconfig={kubeconfig}", f"--cache-dir={tmp_path / 'cache'}", "apply", "--server-side", *options,
            "-f", "-", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said, _ = await asyncio.wait_for(process.communicate(json.dumps(body).encode()), LIMIT_S)
        assert process.returncode == 0, said.decode()
        return said.decode()

    async with (
        real_api_server(tmp_path / "api") as kubeconfig,
        KubeClient.from_kubeconfig(kubeconfig) as api,
        operating(api, make_engine(tmp_path / "local")),
    ):
        (node,) = (await api.list(SWARM_NODE)).items
        name = node["metadata"]["name"]
        await wait_for(api, SWARM_QUEUE, "default", "default", bool)
        wish = {"unschedulable": True, "maxTasks": 3, "drain": False, "reserved": {"cpu": "1", "memory": "1Gi"}, "quietHours": ""}
        await apply(SWARM_NODE, name, wish, kubeconfig)
        await wait_for(
            api, SWARM_NODE, name, None, lambda obj: obj["status"]["allocatable"]["memory"] != obj["status"]["capacity"]["memory"]
        )
        await apply(SWARM_NODE, name, {"unschedulable": False}, kubeconfig)
        stored = await api.get(SWARM_NODE, name)
        assert (stored["spec"]["unschedulable"], stored["spec"].get("maxTasks")) == (False, None), (
            "what a person owns he can take back"
        )
        await apply(SWARM_QUEUE, "default", {"maxRunning": 2, "stopped": False, "weight": 1}, kubeconfig, "--namespace=default")
        assert (await api.get(SWARM_QUEUE, "default", "default"))["spec"]["maxRunning"] == 2
        for kind, obj in ((SWARM_NODE, stored), (SWARM_QUEUE, await api.get(SWARM_QUEUE, "default", "default"))):
            owned = [entry["fieldsV1"] for entry in obj["metadata"]["managedFields"] if entry["manager"] == FIELD_MANAGER]
            assert owned, kind.kind
            assert not any("f:spec" in fields for fields in owned)
