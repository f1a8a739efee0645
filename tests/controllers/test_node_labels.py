"""What nodes have, as labels on their engines: which, when they are written, and what is never touched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmtask.controllers.node_labels import FACTS, MARK, PREFIX, facts_of, label_changes
from swarmtask.engines.base import EngineNode, NodeState
from swarmtask.errors import EngineUnavailable
from swarmtask.resources.kinds import SWARM_NODE
from swarmtask.resources.node import SwarmNode
from tests.controllers.world import World, running
from tests.fakes.engine import GIB


def node(**status: Any) -> SwarmNode:
    return SwarmNode.model_validate({"metadata": {"name": "n1"}, "spec": {}, "status": {"phase": "Ready", **status}})


def card(index: int, model: str, memory: str) -> dict[str, Any]:
    return {"index": index, "vendor": "nvidia", "model": model, "memory": memory}


def applied(labels: dict[str, str], changes: dict[str, str | None]) -> dict[str, str]:
    return {key: value for key, value in {**labels, **changes}.items() if value is not None}


# --- facts ---


def test_facts_are_what_is_known() -> None:
    assert facts_of(node()) == {}
    assert facts_of(node(capacity={"cpu": "7500m", "memory": "15.4Gi", "gpu": 0}, arch="arm64")) == {
        "arch": "arm64", "cpu": "7", "memory-gib": "15",
    }  # fmt: skip
    assert facts_of(node(capacity={"cpu": "500m", "memory": "15.6Gi", "gpu": 2})) == {"memory-gib": "16", "gpu": "2"}


def test_of_several_models_the_one_with_the_most_memory_counts() -> None:
    cards = [card(0, "GTX 1650", "4Gi"), card(1, "NVIDIA GeForce RTX 3060 / Laptop!", "12Gi"), card(2, "other", "12Gi")]
    found = facts_of(node(gpus=cards))
    assert (found["gpu"], found["gpu-model"]) == ("3", "NVIDIA-GeForce-RTX-3060-Laptop")
    assert len(facts_of(node(gpus=[card(0, "x" * 128, "1Gi")]))["gpu-model"]) == 63
    assert "gpu-model" not in facts_of(node(gpus=[card(0, "(???)", "1Gi")]))


def test_gpus_that_its_engine_cannot_give_away_are_no_facts() -> None:
    engines = [{"name": "swarm", "id": "n1", "gpuVendors": ["nvidia"]}]
    amd = card(64, "MI300X", "192Gi") | {"vendor": "amd"}
    assert "gpu" not in facts_of(node(gpus=[amd], engines=engines))
    found = facts_of(node(gpus=[amd, card(0, "GTX 1650", "4Gi")], engines=engines))
    assert (found["gpu"], found["gpu-model"]) == ("1", "GTX-1650")


# --- changes ---

ONE = {"cpu": "4", "arch": "amd64"}


def test_first_write_second_nothing_then_only_what_has_changed() -> None:
    labels = {"rack": "attic"}
    labels = applied(labels, label_changes(labels, ONE))
    assert labels == {"rack": "attic", "swarmtask.io/cpu": "4", "swarmtask.io/arch": "amd64", MARK: "arch,cpu"}
    assert label_changes(labels, ONE) == {}
    assert label_changes(labels, ONE | {"cpu": "8"}) == {"swarmtask.io/cpu": "8"}
    assert label_changes(labels, {"arch": "amd64"}) == {"swarmtask.io/cpu": None, MARK: "arch"}
    assert label_changes(labels, {}) == {"swarmtask.io/cpu": None, "swarmtask.io/arch": None, MARK: None}


def test_a_persons_own_label_stays_with_its_value_and_when_the_fact_goes() -> None:
    labels = {"swarmtask.io/gpu-model": "mine", "swarmtask.io/zone": "attic"}
    labels = applied(labels, label_changes(labels, ONE | {"gpu-model": "GTX"}))
    assert labels["swarmtask.io/gpu-model"] == "mine"
    labels = applied(labels, label_changes(labels, {}))
    assert labels == {"swarmtask.io/gpu-model": "mine", "swarmtask.io/zone": "attic"}


def test_what_somebody_has_taken_away_or_changed_is_made_good() -> None:
    labels = applied({}, label_changes({}, ONE))
    del labels["swarmtask.io/cpu"]
    labels["swarmtask.io/arch"] = "abacus"
    assert label_changes(labels, ONE) == {"swarmtask.io/cpu": "4", "swarmtask.io/arch": "amd64"}


facts = st.dictionaries(st.sampled_from(FACTS), st.sampled_from(["1", "2", "x"]))


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from([*(PREFIX + fact for fact in FACTS), "other"]), st.sampled_from(["1", "own"])), facts, facts)
def test_whatever_happens_others_labels_stay_and_ours_come_and_go(
    before: dict[str, str], first: dict[str, str], second: dict[str, str]
) -> None:
    once = applied(before, label_changes(before, first))
    assert label_changes(once, first) == {}
    twice = applied(once, label_changes(once, second))
    gone = applied(twice, label_changes(twice, {}))
    for key, value in before.items():
        if first.get(key.removeprefix(PREFIX)) != value and second.get(key.removeprefix(PREFIX)) != value:
            assert once[key] == twice[key] == gone[key] == value
    assert gone.keys() <= before.keys()
    assert MARK not in gone
    for fact, value in second.items():
        assert twice[PREFIX + fact] == value or PREFIX + fact in before


# --- with an engine ---


def machine(memory_gib: int = 16, **more: Any) -> EngineNode:
    return EngineNode(
        id="id-1", hostname="n1", state=NodeState.READY, cpu_milli=8000, memory_bytes=memory_gib * GIB, arch="x86_64", os="linux",
        **more,
    )  # fmt: skip


def on_engine(world: World) -> dict[str, str]:
    return dict(world.engine._node("id-1").info.labels)


WRITTEN = {"swarmtask.io/cpu": "8", "swarmtask.io/memory-gib": "16", "swarmtask.io/arch": "amd64", MARK: "arch,cpu,memory-gib"}


async def test_labels_are_written_once_and_reach_the_node_object() -> None:
    async with running(World(machine(labels={"rack": "attic"}))) as world:
        await world.until(lambda: on_engine(world) == WRITTEN | {"rack": "attic"})
        await world.until(lambda: world.node("n1")["metadata"]["labels"].get("swarmtask.io/memory-gib") == "16")
        assert MARK not in world.node("n1")["metadata"]["labels"]
        for number in range(5):
            world.add_task(f"t{number}")
        usage = {"usage": {"cpu": "7", "memory": "12Gi"}, "power": {"onBattery": True}}
        world.kube.edit(SWARM_NODE, "n1", None, {"status": usage}, status=True)
        await world.until(lambda: set(world.phases().values()) == {"Succeeded"})
        await world.pass_time(60)
        assert len(world.engine.called("label_node")) == 1, "load and power are not labels, and nothing is written twice"
        world.add_task("chooses", placement={"nodeSelector": {"swarmtask.io/memory-gib": "16"}})
        await world.until(lambda: world.phase("chooses") == "Succeeded")


async def test_a_fact_that_comes_changes_and_goes() -> None:
    async with running(World(machine())) as world:
        await world.until(lambda: on_engine(world) == WRITTEN)
        world.kube.edit(SWARM_NODE, "n1", None, {"status": {"gpus": [card(0, "GTX 1650", "4Gi")]}}, status=True)
        with_gpu = {"swarmtask.io/gpu": "1", "swarmtask.io/gpu-model": "GTX-1650", MARK: "arch,cpu,gpu,gpu-model,memory-gib"}
        await world.until(lambda: on_engine(world) == WRITTEN | with_gpu)
        world.kube.edit(SWARM_NODE, "n1", None, {"status": {"gpus": []}}, status=True)
        await world.until(lambda: on_engine(world) == WRITTEN)
        await world.until(lambda: "swarmtask.io/gpu" not in world.node("n1")["metadata"]["labels"])
        stored = world.engine._node("id-1")
        stored.info = replace(stored.info, memory_bytes=32 * GIB)
        await world.until(lambda: on_engine(world)["swarmtask.io/memory-gib"] == "32")


async def test_an_engine_that_refuses_is_asked_again_and_holds_up_nothing(caplog: pytest.LogCaptureFixture) -> None:
    world = World(machine())
    world.engine.fail("label_node", EngineUnavailable("busy"), times=2)
    async with running(world):
        world.add_task("works")
        await world.until(lambda: world.phase("works") == "Succeeded", 20)
        await world.until(lambda: on_engine(world) == WRITTEN, 120)
    assert sum("could not be labelled" in record.getMessage() for record in caplog.records) == 1


async def test_who_does_not_want_labels_gets_none() -> None:
    async with running(World(machine(), label_nodes=False)) as world:
        world.add_task("works")
        await world.until(lambda: world.phase("works") == "Succeeded")
        await world.pass_time(10)
        assert on_engine(world) == {}
        assert world.engine.called("label_node") == []
