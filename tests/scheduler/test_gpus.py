"""Single GPUs: which of them a task gets, and that nobody gets one twice."""

from __future__ import annotations

import pytest

from swarmtask.scheduler.cycle import run_cycle
from swarmtask.scheduler.model import Amounts, Binding, GpuInfo, GpuWish, NodeInfo, TaskShape
from tests.scheduler.builders import GIB, node, shape, snapshot, task

INTEGRATED = ("intel", "intel 9a49", 0)
SMALL, LARGE = ("nvidia", "GeForce GTX 1650", 4 * GIB), ("nvidia", "NVIDIA A100", 40 * GIB)


def machine(*kinds: tuple[str, str, int], held: frozenset[int] = frozenset(), name: str = "gpus", **facts: object) -> NodeInfo:
    gpus = tuple(GpuInfo(index, *kind, held=index in held) for index, kind in enumerate(kinds))
    facts = {"requested": Amounts(gpus=len(held)), **facts}
    return node(name, gpus=len(gpus), gpus_listed=gpus, **facts)


def bindings(nodes: list[NodeInfo], *wishes: TaskShape) -> list[Binding]:
    pending = [task(f"t{number}", wants, at=float(number)) for number, wants in enumerate(wishes)]
    return list(run_cycle(snapshot(nodes, pending)).bindings)


def given(candidate: NodeInfo, *wishes: TaskShape) -> list[tuple[int, ...]]:
    return [binding.gpus for binding in bindings([candidate], *wishes)]


def test_those_with_the_least_memory_go_first_then_the_lowest_index() -> None:
    mixed = machine(LARGE, SMALL, LARGE, SMALL)
    assert given(mixed, *[shape(gpus=1)] * 5) == [(1,), (3,), (0,), (2,)]
    assert given(mixed, shape(gpus=3)) == [(0, 1, 3)]


def test_a_wish_is_met_by_what_matches_and_leaves_the_rest_to_others() -> None:
    mixed = machine(SMALL, LARGE, LARGE)
    large = shape(gpus=1, gpu=GpuWish("nvidia", "a100"))
    assert given(mixed, large, shape(gpus=1), large, large, shape(gpus=1)) == [(1,), (0,), (2,)]


def test_what_one_wish_takes_is_missing_for_every_other_that_matches_it() -> None:
    wishes = [shape(gpus=1, gpu=GpuWish("nvidia")), shape(gpus=1, gpu=GpuWish("", "a100")), shape(gpus=2, gpu=GpuWish("nvidia"))]
    assert given(machine(SMALL, LARGE), *wishes) == [(0,), (1,)]


def test_held_ones_are_left_alone() -> None:
    assert given(machine(SMALL, SMALL, SMALL, held=frozenset({0, 2})), shape(gpus=1), shape(gpus=1)) == [(1,)]


def test_a_node_that_does_not_list_its_gpus_has_as_many_as_its_engine_says() -> None:
    counted = node(gpus=4, requested=Amounts(gpus=1))
    assert given(counted, shape(gpus=1), shape(gpus=2), shape(gpus=1)) == [(1,), (2, 3)]
    assert given(counted, shape(gpus=1, gpu=GpuWish("nvidia"))) == []
    assert given(counted, shape(gpus=1, gpu=GpuWish(memory_bytes=1))) == []


def test_an_attempt_whose_gpus_are_not_known_counts_against_every_wish() -> None:
    old = machine(SMALL, LARGE, LARGE, requested=Amounts(gpus=1))
    large = shape(gpus=1, gpu=GpuWish("", "a100"))
    assert given(old, large, large) == [(2,)], "it may hold either of the large ones"
    assert given(old, shape(gpus=1), shape(gpus=1), shape(gpus=1)) == [(1,), (2,)], (
        "programs begin at 0: it is left for the old one"
    )
    assert given(old, shape(gpus=3)) == []


def test_a_list_that_grew_shrank_or_was_numbered_anew_gives_nothing_twice() -> None:
    # Two attempts hold 1 and 3; the node lists only 0 and 1 now.
    shrunk = node(gpus=2, requested=Amounts(gpus=2), gpus_listed=(GpuInfo(0, *SMALL), GpuInfo(1, *SMALL, held=True)))
    assert given(shrunk, shape(gpus=1)) == []
    # The list is longer than what the node is known to offer: the count follows later.
    grown = node(gpus=1, gpus_listed=(GpuInfo(0, *SMALL), GpuInfo(1, *SMALL)))
    assert given(grown, shape(gpus=1), shape(gpus=1)) == [(0,)]
    # It is shorter: what is not listed cannot be told apart, and is not given away.
    partial = node(gpus=3, gpus_listed=(GpuInfo(2, *SMALL),))
    assert given(partial, shape(gpus=1), shape(gpus=1)) == [(2,)]


@pytest.mark.parametrize("wants", [shape(), shape(gpu=GpuWish("amd", "none such", 2**60))])
def test_who_asks_for_no_gpu_gets_none_whatever_the_wish_says(wants: TaskShape) -> None:
    assert given(machine(SMALL), wants) == [()]


def test_a_part_of_the_processor_is_for_those_alone_who_name_its_vendor() -> None:
    laptop = machine(SMALL, INTEGRATED)
    intel = shape(gpus=1, gpu=GpuWish("intel"))
    assert given(laptop, shape(gpus=1), intel, shape(gpus=1), intel) == [(0,), (1,)]
    assert given(laptop, shape(gpus=2)) == []
    assert given(laptop, shape(gpus=1, gpu=GpuWish("", "9a49"))) == []
    assert given(machine(INTEGRATED), shape(gpus=1)) == []
    assert given(machine(("nvidia", "Orin", 0), ("", "", 0)), shape(gpus=2)) == [(0, 1)]


def test_beside_parts_of_processors_nodes_that_only_count_still_count() -> None:
    nodes = [machine(INTEGRATED, SMALL, name="a", held=frozenset({1})), node("b", gpus=3, requested=Amounts(gpus=1))]
    intel, nvidia = (shape(gpus=1, gpu=GpuWish(vendor)) for vendor in ("intel", "nvidia"))
    found = bindings(nodes, shape(gpus=1), intel, nvidia, shape(gpus=1), shape(gpus=1))
    assert [(one.node, one.gpus) for one in found] == [("b", (1,)), ("a", (0,)), ("b", (2,))]
    refusals = run_cycle(snapshot(nodes, [task("t", shape(gpus=3), at=0.0)])).refusals
    assert "2 too few GPUs (needs 3, most free 2)" in refusals[0].message


def test_wishes_in_any_case() -> None:
    assert given(machine(LARGE), shape(gpus=1, gpu=GpuWish("nvidia", "NVIDIA a100"))) == [(0,)]


def test_many_wishes_for_the_same_kinds_share_their_counts() -> None:
    wishes = [shape(gpus=1, gpu=GpuWish("nvidia", "", bytes_)) for bytes_ in range(1, 6)]
    nodes = [machine(LARGE, LARGE, name="a"), machine(SMALL, LARGE, name="b")]
    found = bindings(nodes, *wishes)
    assert sorted((binding.node, binding.gpus) for binding in found) == [("a", (0,)), ("a", (1,)), ("b", (0,)), ("b", (1,))]
