"""Which variables tell a container or a process its GPUs, and that they reach Swarm."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swarmtask.engines.base import GpuDevice, Workload
from swarmtask.engines.devices import gpu_environment
from swarmtask.engines.swarm.spec import task_template

PLAIN = Workload("st-1", "uid", "default", "train", 1, "node", "acme/train:1")
FIRST, SECOND = GpuDevice(1, "nvidia", "GPU-b1"), GpuDevice(3, "nvidia", "GPU-d3")
TWO = replace(PLAIN, gpus=2, gpu_devices=(FIRST, SECOND))
NONE = {"NVIDIA_VISIBLE_DEVICES": "void"}
NONE_AT_ALL = NONE | {"CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize(
    ("workload", "isolated", "expected"),
    [
        (PLAIN, True, NONE),
        (PLAIN, False, NONE_AT_ALL),
        (replace(PLAIN, gpus=1), True, {}),
        (TWO, True, {"NVIDIA_VISIBLE_DEVICES": "GPU-b1,GPU-d3", "CUDA_VISIBLE_DEVICES": "0,1"}),
        (
            TWO,
            False,
            {
                "NVIDIA_VISIBLE_DEVICES": "GPU-b1,GPU-d3", "CUDA_VISIBLE_DEVICES": "GPU-b1,GPU-d3",
                "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            },
        ),
        (
            replace(TWO, gpu_devices=(GpuDevice(2), GpuDevice(0))),
            True,
            {"NVIDIA_VISIBLE_DEVICES": "2,0", "CUDA_VISIBLE_DEVICES": "0,1"},
        ),
        (
            replace(TWO, gpu_devices=(FIRST, GpuDevice(3, "nvidia"))),
            True,
            {"NVIDIA_VISIBLE_DEVICES": "1,3", "CUDA_VISIBLE_DEVICES": "0,1"},
        ),
        (replace(TWO, gpu_devices=(GpuDevice(0, "amd"), GpuDevice(5, "amd"))), True, NONE | {"ROCR_VISIBLE_DEVICES": "0,5"}),
        (replace(TWO, gpus=1, gpu_devices=(GpuDevice(4, "intel"),)), False, NONE_AT_ALL | {"ZE_AFFINITY_MASK": "4"}),
        (
            replace(TWO, gpu_devices=(GpuDevice(0, "amd"), FIRST)),
            True,
            {"ROCR_VISIBLE_DEVICES": "0", "NVIDIA_VISIBLE_DEVICES": "GPU-b1", "CUDA_VISIBLE_DEVICES": "0"},
        ),
    ],
)  # fmt: skip
def test_variables(workload: Workload, isolated: bool, expected: dict[str, str]) -> None:
    assert gpu_environment(workload, isolated=isolated) == expected


def test_swarm_is_given_them_instead_of_the_tasks_own() -> None:
    own = (("NVIDIA_VISIBLE_DEVICES", "all"), ("LEVEL", "{{x}}"))
    template = task_template(replace(TWO, env=own), "cluster", "acme/train:1", pids_limit=10)
    assert template["ContainerSpec"]["Env"] == [
        "NVIDIA_VISIBLE_DEVICES=GPU-b1,GPU-d3",
        'LEVEL={{"{{"}}x}}',
        "CUDA_VISIBLE_DEVICES=0,1",
    ]


def test_neither_a_task_nor_its_image_sees_gpus_that_it_did_not_ask_for() -> None:
    for env in ((), (("NVIDIA_VISIBLE_DEVICES", "all"),)):
        template = task_template(replace(PLAIN, env=env), "cluster", "acme/train:1", pids_limit=10)
        assert template["ContainerSpec"]["Env"] == ["NVIDIA_VISIBLE_DEVICES=void"]


@pytest.mark.parametrize("uuid", ["all", "", "GPU-1,GPU-2", "GPU-", "void", "GPU-{{.Node.ID}}"])
def test_what_is_no_uuid_of_one_gpu_is_not_passed_on(uuid: str) -> None:
    work = replace(TWO, gpus=1, gpu_devices=(GpuDevice(1, "nvidia", uuid),))
    assert gpu_environment(work, isolated=True)["NVIDIA_VISIBLE_DEVICES"] == "1"


def test_what_is_learned_of_gpus_does_not_make_an_attempt_another_one() -> None:
    """A submit may be repeated by an operator that knows more than the one before."""
    assert replace(TWO, gpu_devices=()).spec_hash == TWO.spec_hash
