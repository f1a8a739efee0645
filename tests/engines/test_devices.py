"""Which variables tell a container or a process its GPUs, and that they reach Swarm."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swarmtask.engines.base import GpuDevice, Workload
from swarmtask.engines.devices import gpu_environment
from swarmtask.engines.swarm.spec import task_template

PLAIN = Workload("st-1", "uid", "default", "train", 1, "node", "acme/train:1")
TWO = replace(PLAIN, gpus=2, gpu_devices=(GpuDevice(1, "nvidia"), GpuDevice(3, "nvidia")), node_has_gpus=True)


@pytest.mark.parametrize(
    ("workload", "isolated", "expected"),
    [
        (PLAIN, True, {}),
        (PLAIN, False, {}),
        (replace(PLAIN, gpus=1, node_has_gpus=True), True, {}),
        (replace(PLAIN, node_has_gpus=True), True, {"NVIDIA_VISIBLE_DEVICES": "void"}),
        (replace(PLAIN, node_has_gpus=True), False, {"NVIDIA_VISIBLE_DEVICES": "void", "CUDA_VISIBLE_DEVICES": ""}),
        (TWO, True, {"NVIDIA_VISIBLE_DEVICES": "1,3", "CUDA_VISIBLE_DEVICES": "0,1"}),
        (
            TWO,
            False,
            {"NVIDIA_VISIBLE_DEVICES": "1,3", "CUDA_VISIBLE_DEVICES": "1,3", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
        ),
        (
            replace(TWO, gpu_devices=(GpuDevice(2), GpuDevice(0))),
            True,
            {"NVIDIA_VISIBLE_DEVICES": "2,0", "CUDA_VISIBLE_DEVICES": "0,1"},
        ),
        (replace(TWO, gpu_devices=(GpuDevice(0, "amd"), GpuDevice(5, "amd"))), True, {"ROCR_VISIBLE_DEVICES": "0,5"}),
        (replace(TWO, gpus=1, gpu_devices=(GpuDevice(4, "intel"),)), False, {"ZE_AFFINITY_MASK": "4"}),
        (
            replace(TWO, gpu_devices=(GpuDevice(0, "amd"), GpuDevice(1, "nvidia"))),
            True,
            {"ROCR_VISIBLE_DEVICES": "0", "NVIDIA_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "0"},
        ),
    ],
)
def test_variables(workload: Workload, isolated: bool, expected: dict[str, str]) -> None:
    assert gpu_environment(workload, isolated=isolated) == expected


def test_swarm_is_given_them_instead_of_the_tasks_own() -> None:
    own = (("NVIDIA_VISIBLE_DEVICES", "all"), ("LEVEL", "{{x}}"))
    template = task_template(replace(TWO, env=own), "cluster", "acme/train:1", pids_limit=10)
    assert template["ContainerSpec"]["Env"] == ["NVIDIA_VISIBLE_DEVICES=1,3", 'LEVEL={{"{{"}}x}}', "CUDA_VISIBLE_DEVICES=0,1"]
    assert "Env" not in task_template(PLAIN, "cluster", "acme/train:1", pids_limit=10)["ContainerSpec"]


def test_what_is_learned_of_gpus_does_not_make_an_attempt_another_one() -> None:
    """A submit may be repeated by an operator that knows more than the one before."""
    assert replace(TWO, gpu_devices=(), node_has_gpus=False).spec_hash == TWO.spec_hash
