"""Which GPU of a SwarmNode is which: for a cycle, for the record of an attempt, for its container."""

from __future__ import annotations

from typing import Any

import pytest

from swarmtask.controllers.entries import HeldGpu, Holding
from swarmtask.controllers.single_gpus import given, offered_gpus, single_gpus
from swarmtask.controllers.submission import build_workload
from swarmtask.engines.base import GpuDevice
from swarmtask.resources.node import SwarmNode
from swarmtask.resources.placement import GivenGpu
from swarmtask.resources.task import SwarmTask
from swarmtask.scheduler.model import Amounts

A, B = {"index": 0, "vendor": "nvidia", "uuid": "GPU-a"}, {"index": 1, "vendor": "nvidia", "uuid": "GPU-b"}
PART = {"index": 64, "vendor": "intel"}


def machine(*gpus: dict[str, Any], count: int = 0, vendors: list[str] | None = None) -> SwarmNode:
    engine = {"name": "swarm", "id": "n1"} | ({} if vendors is None else {"gpuVendors": vendors})
    status = {"gpus": list(gpus), "engines": [engine], "capacity": {"gpu": count or len(gpus)}}
    return SwarmNode.model_validate({"metadata": {"name": "n1"}, "status": status})


@pytest.mark.parametrize(
    ("node", "held", "expected"),
    [
        (machine(A, B), {(1, "GPU-b")}, {0: False, 1: True}),
        (machine(A, B), {(1, "")}, {0: False, 1: True}),  # recorded by an older operator
        (machine(A, B), {(1, "GPU-a")}, {0: True, 1: False}),  # numbered anew
        (machine(A, B), {(1, "GPU-gone")}, {0: False, 1: False}),
        (machine(A | {"uuid": ""}, B), {(0, "GPU-a")}, {0: True, 1: False}),  # its driver says less than it did
        (machine(A | {"uuid": ""}, B), {(1, "GPU-b")}, {0: False, 1: True}),
        (machine(count=2), {(1, "GPU-b")}, {0: False, 1: True}),  # nothing is listed any more
        (machine(count=2), set(), {}),
        (machine(A, PART, vendors=["nvidia"]), set(), {0: False}),
    ],
)
def test_a_gpu_is_held_by_its_uuid_else_by_its_index(node: SwarmNode, held: set[HeldGpu], expected: dict[int, bool]) -> None:
    assert {gpu.index: gpu.held for gpu in single_gpus(node, frozenset(held))} == expected


def test_a_list_of_which_nothing_can_be_given_is_believed_and_no_list_is_not() -> None:
    assert offered_gpus(machine(PART, count=2, vendors=["nvidia"])) == 0
    assert offered_gpus(machine(count=2, vendors=["nvidia"])) == 2
    assert offered_gpus(machine(A, PART, count=1, vendors=["nvidia"])) == 1


def test_a_holding_pairs_indices_with_the_uuids_that_are_known() -> None:
    holding = Holding("n1", ("default", "q"), Amounts(), gpus=(3, 1), gpu_uuids=("GPU-d",))
    assert holding.held_gpus == ((3, "GPU-d"), (1, ""))
    assert Holding("n1", ("default", "q"), Amounts(), gpus=(3,)).held_gpus == ((3, ""),)


def test_what_is_known_of_a_gpu_is_recorded_with_the_number_that_its_vendor_counts_by() -> None:
    node = machine(A, B, PART, PART | {"index": 66, "vendor": "AMD"}, PART | {"index": 70, "vendor": "amd", "uuid": "ab12"})
    assert given(node, (1, 70, 64, 9)) == (
        GivenGpu(index=1, vendor="nvidia", uuid="GPU-b", number=1),
        GivenGpu(index=70, vendor="amd", uuid="ab12", number=1),
        GivenGpu(index=64, vendor="intel", number=0),
        GivenGpu(index=9, number=9),
    )


@pytest.mark.parametrize(
    ("requested", "node", "expected"),
    [
        ({"gpuIndices": [1]}, machine(A, B), (GpuDevice(1, "nvidia", "GPU-b"),)),
        ({"gpuIndices": [1]}, None, (GpuDevice(1),)),
        ({}, machine(A, B), ()),
        (
            {"gpuIndices": [1], "gpuDevices": [{"index": 1, "vendor": "nvidia", "uuid": "GPU-c", "number": 1}]},
            machine(A, B),
            (GpuDevice(1, "nvidia", "GPU-c"),),
        ),
    ],
)
def test_an_attempt_of_an_older_operator_gets_what_is_at_its_indices_now(
    requested: dict[str, Any], node: SwarmNode | None, expected: tuple[GpuDevice, ...]
) -> None:
    attempt = {"number": 1, "id": "st-1-1", "node": "n1", "engine": "swarm", "requested": {"gpu": 1, **requested}}
    task = SwarmTask.model_validate(
        {"metadata": {"name": "a", "uid": "1"}, "spec": {"container": {"image": "x"}}, "status": {"attempts": [attempt]}}
    )
    assert build_workload(task, task.status.attempts[0], (), node).gpu_devices == expected
