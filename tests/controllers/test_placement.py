"""What people and nodes say of nodes reaches the scheduler, and the GPUs that it gives away reach the engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from swarmtask.engines.base import EngineNode, GpuDevice, NodeState, Workload
from swarmtask.errors import Conflict, EngineUnavailable, ServiceUnavailable, SwarmTaskError
from swarmtask.kube import Object
from swarmtask.resources.kinds import SWARM_NODE, SWARM_TASK
from swarmtask.resources.task import attempt_id
from tests.controllers.world import World, running
from tests.fakes.engine import GIB, Outcome

ENDLESS = Outcome(duration_s=None)


def machine(name: str, gpus: int = 0) -> EngineNode:
    return EngineNode(
        id=name, hostname=name, state=NodeState.READY, cpu_milli=8000, memory_bytes=32 * GIB, gpus=gpus, arch="x86_64", os="linux"
    )


def add(world: World, name: str, gpus: int = 1, **spec: Any) -> None:
    world.engine.script(name, ENDLESS)
    resources = {"requests": {"cpu": "1", "memory": "1Gi", "gpu": gpus}}
    world.add_task(name, container={"resources": resources}, **spec)


def indices(world: World, name: str) -> list[int]:
    current = world.task(name).status.current
    assert current is not None
    return current.requested.gpu_indices


def a_card(index: int, model: str = "GTX 1650", memory: str = "4Gi", vendor: str = "nvidia") -> Object:
    return {"index": index, "vendor": vendor, "model": model, "memory": memory}


async def test_gpus_that_an_engine_only_counts_are_given_away_by_number() -> None:
    async with running(World(machine("n1", gpus=2))) as world:
        for name in ("a", "b", "c"):
            add(world, name)
        await world.until(lambda: sorted(world.phases().values()) == ["Queued", "Running", "Running"])
        waiting = next(name for name, phase in world.phases().items() if phase == "Queued")
        first, second = (name for name in "abc" if name != waiting)
        assert sorted(indices(world, first) + indices(world, second)) == [0, 1]
        stored = world.kube.peek(SWARM_TASK, first, "default")
        assert stored is not None
        assert stored["status"]["attempts"][0]["requested"]["gpuIndices"] == indices(world, first)
        await world.until(lambda: "too few GPUs (needs 1, most free 0)" in (world.task(waiting).status.message or ""))
        freed = indices(world, first)
        world.engine.finish(world.task(first).status.attempts[0].id)
        await world.until(lambda: world.phase(waiting) == "Running")
        assert indices(world, waiting) == freed
        work = world.engine.workload(world.task(waiting).status.attempts[0].id)
        assert (work.gpus, work.gpu_devices) == (1, (GpuDevice(freed[0]),))


async def test_what_a_node_reports_is_kept_and_counts() -> None:
    async with running(World(machine("n1", gpus=1))) as world:
        cards = [a_card(0), a_card(1, "NVIDIA A100", "40Gi"), a_card(2, "MI300X", "192Gi", "amd")]
        report = {"gpus": cards, "power": {"onBattery": True, "percent": 55}, "latencyMilliseconds": 12}
        await world.until(
            lambda: world.kube.peek(SWARM_NODE, "n1") and world.node("n1")["status"].get("capacity", {}).get("gpu") == 1
        )
        world.kube.edit(SWARM_NODE, "n1", None, {"status": report}, status=True)
        await world.until(lambda: world.node("n1")["status"]["allocatable"]["gpu"] == 3)
        add(world, "large", placement={"gpu": {"vendor": "nvidia", "memory": "16Gi"}})
        add(world, "amd", placement={"gpu": {"vendor": "amd"}})
        await world.until(lambda: set(world.phases().values()) == {"Running"})
        assert (indices(world, "large"), indices(world, "amd")) == ([1], [2])
        assert world.engine.workload(world.task("amd").status.attempts[0].id).gpu_devices == (GpuDevice(0, "amd"),)
        add(world, "quiet", gpus=0, placement={"onBattery": "never", "maxLatencyMilliseconds": 10})
        words = "1 not known to be within 10 ms (nearest 12 ms)"
        await world.until(lambda: words in (world.task("quiet").status.message or ""))
        # The operator has written the node's status many times by now.
        await world.until(lambda: world.node("n1")["status"].get("tasks") == 2)
        status = world.node("n1")["status"]
        assert {name: status[name] for name in ("power", "latencyMilliseconds")} == {
            name: report[name] for name in ("power", "latencyMilliseconds")
        }
        assert [gpu["model"] for gpu in status["gpus"]] == ["GTX 1650", "NVIDIA A100", "MI300X"]


async def test_a_list_that_changes_under_live_attempts_gives_no_gpu_twice() -> None:
    async with running(World(machine("n1"))) as world:
        await world.until(lambda: world.kube.peek(SWARM_NODE, "n1") and world.node("n1")["status"].get("phase") == "Ready")
        world.kube.edit(SWARM_NODE, "n1", None, {"status": {"gpus": [a_card(index) for index in range(4)]}}, status=True)
        for name in ("a", "b", "c"):
            add(world, name)
        await world.until(lambda: set(world.phases().values()) == {"Running"})
        assert sorted(indices(world, name)[0] for name in "abc") == [0, 1, 2]
        holder = next(name for name in "abc" if indices(world, name) == [0])
        # Two cards are gone: 0 and 1 are left, and three attempts hold 0, 1 and 2.
        world.kube.edit(SWARM_NODE, "n1", None, {"status": {"gpus": [a_card(0), a_card(1)]}}, status=True)
        await world.until(lambda: world.node("n1")["status"]["allocatable"]["gpu"] == 2)
        add(world, "next")
        await world.until(lambda: "too few GPUs" in (world.task("next").status.message or ""))
        world.engine.finish(world.task(holder).status.attempts[0].id)
        await world.until(lambda: world.phase(holder) == "Succeeded")
        await world.pass_time(3)
        assert world.phase("next") == "Queued", "one free card, and one attempt of which nobody knows what it holds now"
        other = next(name for name in "abc" if indices(world, name) == [2])
        world.engine.finish(world.task(other).status.attempts[0].id)
        await world.until(lambda: world.phase("next") == "Running")
        assert indices(world, "next") == [0]


RTX, INTEGRATED = a_card(0, "RTX 3060", "6Gi") | {"uuid": "GPU-a"}, a_card(64, "intel 9a49", "0", "intel")


async def listed(world: World, cards: list[Object], count: int) -> None:
    """The agent of n1 lists these cards, and the operator has counted them."""
    await world.until(lambda: world.kube.peek(SWARM_NODE, "n1") and world.node("n1")["status"].get("phase") == "Ready")
    world.kube.edit(SWARM_NODE, "n1", None, {"status": {"gpus": cards, "capabilities": ["gpu"] if cards else []}}, status=True)
    await world.until(lambda: world.node("n1")["status"]["allocatable"]["gpu"] == count)


async def test_gpus_that_the_engine_cannot_give_are_seen_and_do_not_count() -> None:
    """A laptop in a swarm: a service is given no devices, so that of its two GPUs only NVIDIA's can be used."""
    async with running(World(replace(machine("n1"), gpu_vendors=("nvidia",)))) as world:
        await listed(world, [RTX, INTEGRATED], 1)
        assert [gpu["vendor"] for gpu in world.node("n1")["status"]["gpus"]] == ["nvidia", "intel"]
        assert world.node("n1")["status"]["engines"][0]["gpuVendors"] == ["nvidia"]
        add(world, "any", placement={"capabilities": ["gpu"]})
        add(world, "intel", placement={"gpu": {"vendor": "intel"}})
        await world.until(lambda: world.phase("any") == "Running")
        assert indices(world, "any") == [0]
        assert world.engine.workload(world.task("any").status.attempts[0].id).gpu_devices == (GpuDevice(0, "nvidia", "GPU-a"),)
        words = "too few GPUs (needs 1 intel, most free 0; never fits: it offers 0)"
        await world.until(lambda: words in (world.task("intel").status.message or ""))
        await world.until(lambda: world.node("n1")["metadata"]["labels"].get("swarmtask.io/gpu-model") == "RTX-3060")
        assert world.node("n1")["metadata"]["labels"]["swarmtask.io/gpu"] == "1"


async def test_nothing_is_given_away_by_a_count_that_the_list_has_overtaken() -> None:
    async with running(World(replace(machine("n1"), gpu_vendors=("nvidia",)))) as world:
        await listed(world, [RTX, INTEGRATED], 1)
        world.kube.edit(SWARM_NODE, "n1", None, {"status": {"gpus": [INTEGRATED]}}, status=True)
        add(world, "any")
        await world.until(lambda: "too few GPUs (needs 1, most free 0; never fits" in (world.task("any").status.message or ""))
        await world.until(lambda: world.node("n1")["status"]["allocatable"]["gpu"] == 0)
        await listed(world, [RTX, INTEGRATED], 1)
        await world.until(lambda: world.phase("any") == "Running")


async def test_a_gpu_is_known_by_its_uuid_whatever_its_number_becomes() -> None:
    """The first of three falls off its bus, and the driver counts the others anew: who holds the second holds number 0 now."""
    cards = [a_card(index) | {"uuid": f"GPU-{index}"} for index in range(3)]
    async with running(World(machine("n1"))) as world:
        await listed(world, cards, 3)
        for name in ("a", "b"):
            add(world, name)
        await world.until(lambda: set(world.phases().values()) == {"Running"})
        first = next(name for name in "ab" if indices(world, name) == [0])
        world.engine.finish(world.task(first).status.attempts[0].id)
        await world.until(lambda: world.phase(first) == "Succeeded")
        await listed(world, [a_card(0) | {"uuid": "GPU-1"}, a_card(1) | {"uuid": "GPU-2"}], 2)
        await world.crash()
        await world.start()
        add(world, "next")
        await world.until(lambda: world.phase("next") == "Running")
        current = world.task("next").status.current
        assert current is not None
        assert [gpu.to_dict() for gpu in current.requested.gpu_devices] == [
            {"index": 1, "vendor": "nvidia", "uuid": "GPU-2", "number": 1}
        ]


async def test_what_an_attempt_was_given_stays_what_its_container_is_told() -> None:
    """It is submitted later, when another driver has come up and the list looks different."""
    async with running(World(machine("n1"))) as world:
        await listed(world, [a_card(64, vendor="amd"), a_card(65, vendor="amd")], 2)
        world.engine.fail("submit", EngineUnavailable("busy"), times=3)
        add(world, "both", gpus=2)
        await world.until(lambda: world.phase("both") == "Starting")
        await listed(world, [RTX, a_card(65, vendor="amd")], 2)
        await world.until(lambda: world.phase("both") == "Running")
        work = world.engine.workload(world.task("both").status.attempts[0].id)
        assert work.gpu_devices == (GpuDevice(0, "amd"), GpuDevice(1, "amd"))


async def test_an_attempt_of_an_older_operator_holds_its_number_of_gpus() -> None:
    async with running(World(machine("n1", gpus=2)), start=False) as world:
        world.add_queue("default")
        add(world, "old")
        uid = world.task("old").metadata.uid
        held = {"cpu": "1", "memory": "1Gi", "gpu": 1, "queue": "default"}
        attempt = {
            "number": 1, "id": attempt_id(uid, 1), "node": "n1", "engine": "swarm", "engineNodeId": "n1", "state": "Running",
            "observed": True, "requested": held, "startedAt": "2026-01-01T00:00:00Z",
        }  # fmt: skip
        status = {"phase": "Running", "nodeName": "n1", "engine": "swarm", "attempt": 1, "attempts": [attempt]}
        world.kube.edit(SWARM_TASK, "old", "default", {"status": status}, status=True)
        world.engine.adopt(Workload(attempt_id(uid, 1), uid, "default", "old", 1, "n1", "busybox", gpus=1), ENDLESS)
        await world.start()
        add(world, "new")
        add(world, "late")
        await world.until(lambda: sorted(world.phases().values()) == ["Queued", "Running", "Running"])
        running_one = next(name for name in ("new", "late") if world.phase(name) == "Running")
        assert indices(world, running_one) == [1]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("error", [Conflict, ServiceUnavailable])
async def test_a_write_that_is_lost_gives_the_same_gpu_to_nobody_else(error: type[SwarmTaskError], after: bool) -> None:
    async with running(World(machine("n1", gpus=3))) as world:
        for name in ("a", "b", "c"):
            add(world, name)
        # The first status that is written says Queued, the second one binds.
        world.kube.fail("patch", lambda: error("lost"), kind=SWARM_TASK, subresource="status", skip=3, times=2, after=after)
        await world.until(lambda: set(world.phases().values()) == {"Running"})
        assert sorted(indices(world, name)[0] for name in "abc") == [0, 1, 2]


async def test_a_restart_remembers_who_holds_which_gpu() -> None:
    async with running(World(machine("n1", gpus=3))) as world:
        for name in ("a", "b"):
            add(world, name)
        await world.until(lambda: set(world.phases().values()) == {"Running"})
        world.engine.finish(world.task("a").status.attempts[0].id)
        await world.until(lambda: world.phase("a") == "Succeeded")
        await world.crash()
        await world.start()
        add(world, "both", gpus=2)
        await world.until(lambda: world.phase("both") == "Running")
        assert sorted(indices(world, "b") + indices(world, "both")) == [0, 1, 2]


async def test_a_taint_keeps_away_until_it_is_tolerated_or_gone() -> None:
    async with running(World("n1")) as world:
        await world.until(lambda: world.kube.peek(SWARM_NODE, "n1"))
        taint = {"key": "owner", "value": "anna", "effect": "NoExecute"}
        world.kube.edit(SWARM_NODE, "n1", None, {"spec": {"taints": [taint], "region": "home", "costPerHour": "0.5"}})
        tolerant = {"tolerations": [{"key": "owner", "operator": "Exists"}], "regions": ["home"], "maxCostPerHour": "500m"}
        add(world, "annas", gpus=0, placement=tolerant)
        add(world, "others", gpus=0)
        add(world, "cheap", gpus=0, placement=tolerant | {"maxCostPerHour": "0.1", "regions": []})
        add(world, "away", gpus=0, placement=tolerant | {"regions": ["lab"]})
        await world.until(lambda: world.phase("annas") == "Running")

        def message(name: str) -> str:
            return world.task(name).status.message or ""

        await world.until(lambda: message("others") == "0/1 node fits: 1 has taint owner=anna:NoExecute that is not tolerated")
        await world.until(lambda: message("cheap") == "0/1 node fits: 1 costs more than $0.1 an hour (cheapest $0.5)")
        await world.until(lambda: message("away") == "0/1 node fits: 1 not in region lab")
        world.kube.edit(SWARM_NODE, "n1", None, {"spec": {"taints": [], "costPerHour": 0, "region": "lab"}})
        await world.until(lambda: {world.phase(name) for name in ("annas", "others", "cheap", "away")} == {"Running"})


async def test_what_an_agent_finds_and_what_labels_say_is_offered() -> None:
    """Besides what a person writes into the spec. A laptop that turns out to have what a task waits for gets it at once."""
    labelled = replace(machine("n2"), labels={"swarmtask.io/capability.coding": "true"})
    async with running(World(machine("n1"), labelled)) as world:
        add(world, "virtual", gpus=0, placement={"capabilities": ["kvm"]})
        add(world, "codes", gpus=0, placement={"capabilities": ["coding"]})
        await world.until(lambda: world.phase("codes") == "Running")
        assert world.task("codes").status.node_name == "n2"
        await world.until(lambda: "2 lack capability kvm" in (world.task("virtual").status.message or ""))
        world.kube.edit(SWARM_NODE, "n1", None, {"status": {"capabilities": ["docker", "kvm"]}}, status=True)
        await world.until(lambda: world.phase("virtual") == "Running")
        assert world.task("virtual").status.node_name == "n1"


async def test_a_queue_weighs_what_it_wants() -> None:
    async with running(World("far", "near")) as world:
        await world.until(lambda: all(world.kube.peek(SWARM_NODE, name) for name in ("far", "near")))
        world.kube.edit(SWARM_NODE, "far", None, {"status": {"latencyMilliseconds": 400}}, status=True)
        world.kube.edit(SWARM_NODE, "near", None, {"status": {"latencyMilliseconds": 1}, "spec": {}}, status=True)
        world.kube.edit(SWARM_NODE, "near", None, {"spec": {"costPerHour": "9"}})
        world.add_queue("thrifty", weights={"capability": 0, "load": 0, "latency": 0, "cost": 1})
        world.add_queue("hasty", weights={"capability": 0, "load": 0, "latency": 1, "cost": 0})
        await world.pass_time(1)
        add(world, "saves", gpus=0, queue="thrifty")
        add(world, "hurries", gpus=0, queue="hasty")
        await world.until(lambda: set(world.phases().values()) == {"Running"})
        assert world.task("saves").status.node_name == "far"
        assert world.task("hurries").status.node_name == "near"
