"""Which GPUs an attempt may see, as environment variables of its container or process.

Called by the engines when they build a workload. The variables are how NVIDIA's container runtime, CUDA, ROCm and oneAPI are told;
they keep apart programs that mean well, and lock nobody in. Sources: NVIDIA Container Toolkit, "Environment variables" (the runtime
shows a container only the GPUs that NVIDIA_VISIBLE_DEVICES lists, and there they count from 0 again); CUDA C++ Programming Guide,
"CUDA Environment Variables"; ROCm, "GPU isolation techniques"; oneAPI Level Zero, "Environment Variables".
"""

from __future__ import annotations

from collections.abc import Collection

from swarmtask.engines.base import GpuDevice, Workload

_OTHER_VENDORS = {"amd": "ROCR_VISIBLE_DEVICES", "intel": "ZE_AFFINITY_MASK"}


def gpu_environment(workload: Workload, *, isolated: bool) -> dict[str, str]:
    """Variables that the workload gets beside its own, and instead of its own of the same name.

    Args:
        isolated: it runs in a container of its own. Otherwise it is a process that sees everything that its machine has.

    Returns:
        Nothing for an attempt whose GPUs are not recorded, and on nodes without GPUs.
    """
    if not workload.gpus:
        if not workload.node_has_gpus:
            return {}
        return {"NVIDIA_VISIBLE_DEVICES": "void"} | ({} if isolated else {"CUDA_VISIBLE_DEVICES": ""})
    variables: dict[str, str] = {}
    for vendor, name in _OTHER_VENDORS.items():
        theirs = [device for device in workload.gpu_devices if device.vendor == vendor]
        if theirs:
            variables[name] = _indices(theirs)
    nvidia = [device for device in workload.gpu_devices if device.vendor not in _OTHER_VENDORS]
    if nvidia:
        variables["NVIDIA_VISIBLE_DEVICES"] = _indices(nvidia)
        if isolated:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(len(nvidia))))
        else:
            # By itself CUDA counts the fastest GPU first; drivers and their tools count by the slot.
            variables |= {"CUDA_VISIBLE_DEVICES": _indices(nvidia), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    return variables


def _indices(devices: Collection[GpuDevice]) -> str:
    return ",".join(str(device.index) for device in devices)
