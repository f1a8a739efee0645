"""A laptop that left its swarm and came back under another ID, or was seen to leave."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from swarmtask.controllers.node_facts import Listed, NodeFacts, known_apart, match, phase_of, without_former_selves
from swarmtask.engines.base import EngineNode, NodeState
from swarmtask.resources.node import NodePhase, SwarmNode

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def machine(node_id: str, hostname: str, state: NodeState = NodeState.READY, *, day: int | None = 0, **more: Any) -> EngineNode:
    joined = None if day is None else BEGAN + timedelta(days=day)
    return EngineNode(node_id, hostname, state, joined_at=joined, **more)


def ids(*nodes: EngineNode) -> list[str]:
    return [node.id for node in without_former_selves(nodes)]


def test_the_lost_entry_of_a_machine_that_joined_again_is_left_out() -> None:
    old, new = machine("old", "laptop", NodeState.DOWN), machine("new", "laptop", day=3)
    assert ids(old, new, machine("x", "other")) == ["new", "x"]
    assert ids(new, old) == ["new"]


def test_two_machines_of_one_name_stay_two_while_nothing_says_otherwise() -> None:
    assert ids(machine("a", "ubuntu"), machine("b", "ubuntu", day=3)) == ["a", "b"], "both work"
    assert ids(machine("a", "ubuntu"), machine("b", "ubuntu", NodeState.DOWN, day=3)) == ["a", "b"], "the later one is lost"
    assert ids(machine("a", "ubuntu", NodeState.DOWN), machine("b", "ubuntu", NodeState.DOWN, day=3)) == ["a", "b"], "both are"
    assert ids(machine("a", "ubuntu", NodeState.DOWN, day=None), machine("b", "ubuntu")) == ["a", "b"], "nobody knows since when"
    assert ids(machine("a", "ubuntu", NodeState.UNKNOWN), machine("b", "ubuntu", day=3)) == ["a", "b"], "it is just joining"


def known(name: str, engine_id: str, boot_id: str | None = None) -> SwarmNode:
    return SwarmNode.model_validate(
        {
            "metadata": {"name": name}, "spec": {"maxTasks": 3},
            "status": {"phase": "Gone", "engines": [{"name": "swarm", "id": engine_id}], "bootID": boot_id},
        }
    )  # fmt: skip


def left_in(nodes: list[EngineNode], *swarm_nodes: SwarmNode) -> list[str]:
    apart = known_apart("swarm", {node.metadata.name: node for node in swarm_nodes})
    return [node.id for node in without_former_selves(nodes, apart)]


def test_two_that_have_worked_at_once_stay_two_whichever_of_them_sleeps() -> None:
    earlier, later = machine("a", "ubuntu", NodeState.DOWN), machine("b", "ubuntu", day=3)
    assert left_in([earlier, later], known("ubuntu", "a", "boot-a"), known("ubuntu-b", "b", "boot-b")) == ["a", "b"]
    assert left_in([earlier, later], known("ubuntu", "a"), known("ubuntu-b", "b")) == ["a", "b"], "nobody tells a boot"
    assert left_in([earlier, later], known("ubuntu", "a")) == ["b"], "the later one is new"
    assert left_in([earlier, later], known("ubuntu", "b")) == ["b"], "it is the SwarmNode that the lost entry was"


def test_one_that_joined_again_before_it_was_missed_is_one_by_its_boot() -> None:
    earlier, later = machine("a", "ubuntu", NodeState.DOWN), machine("b", "ubuntu", day=3)
    assert left_in([earlier, later], known("ubuntu", "a", "boot"), known("ubuntu-b", "b", "boot")) == ["b"]


def test_one_of_two_that_joins_again_is_a_former_self_all_the_same() -> None:
    nodes = [machine("a", "ubuntu", NodeState.DOWN), machine("b", "ubuntu", day=3), machine("c", "ubuntu", day=4)]
    assert left_in(nodes, known("ubuntu", "a"), known("ubuntu-b", "b")) == ["b", "c"]


def test_it_goes_on_as_the_swarmnode_that_it_was() -> None:
    listed = without_former_selves([machine("old", "laptop", NodeState.DOWN), machine("new", "laptop", day=1)])
    found = match({"swarm": (listed, True)}, {"laptop": known("laptop", "old")})
    assert {name: [item.node.id for item in facts.listed] for name, facts in found.items()} == {"laptop": ["new"]}


def test_and_so_does_one_that_the_engine_has_forgotten() -> None:
    found = match({"swarm": ([machine("new", "laptop", day=1)], True)}, {"laptop": known("laptop", "old")})
    assert [item.node.id for item in found["laptop"].listed] == ["new"]


def facts(*, left: bool = True, heard: bool = True, **more: Any) -> NodeFacts:
    return NodeFacts((Listed("swarm", machine("n", "laptop", NodeState.DOWN, left=left), heard),), **more)


def test_a_machine_that_says_that_it_left_is_gone() -> None:
    phase, reason, words = phase_of(facts(lost=True))
    assert (phase, reason) == (NodePhase.GONE, "LeftEngine")
    assert "docker node rm n" in words
    assert phase_of(facts())[0] is NodePhase.GONE, "also one that never had an agent"


def test_it_is_not_while_its_agent_speaks_or_nobody_asked_it_lately() -> None:
    assert phase_of(facts(speaks=True))[0] is NodePhase.UNREACHABLE
    assert phase_of(facts(left=False, lost=True))[0] is NodePhase.UNREACHABLE
    assert phase_of(facts(heard=False))[0] is NodePhase.NOT_READY
