"""Which GPUs an attempt may see, as environment variables of its container or process.

Called by the engines when they build a workload. The variables are how NVIDIA's container runtime, CUDA, ROCm and oneAPI are told;
they keep apart programs that mean well, and lock nobody in. Sources: NVIDIA Container Toolkit, "Environment variables" (the runtime
shows a container only the GPUs that NVIDIA_VISIBLE_DEVICES lists, by UUID or index, and there they count from 0 again; an image may
set it itself, and some without it are shown all GPUs); CUDA C++ Programming Guide, "CUDA Environment Variables"; ROCm, "GPU
isolation techniques"; oneAPI Level Zero, "Environment Variables".
"""

from __future__ import annotations

import re
from collections.abc import Collection

from swarmtask.engines.base import GpuDevice, Workload

_OTHER_VENDORS = {"amd": "ROCR_VISIBLE_DEVICES", "intel": "ZE_AFFINITY_MASK"}
_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z/-]+")
"""What CUDA and the runtime take for one GPU. Anything else, for example `all`, would be more than that."""


def gpu_environment(workload: Workload, *, isolated: bool) -> dict[str, str]:
    """Variables that the workload gets beside its own, and instead of its own and its image's of the same name.

    Who was given no GPU of NVIDIA's is told so, whatever is known of its node: an image that asks for all of them would see those
    that others hold.

    Args:
        isolated: it runs in a container of its own. Otherwise it is a process that sees everything that its machine has.

    Returns:
        Nothing for an attempt whose GPUs are not recorded.
    """
    if workload.gpus and not workload.gpu_devices:
        return {}
    variables: dict[str, str] = {}
    for vendor, name in _OTHER_VENDORS.items():
        theirs = [device for device in workload.gpu_devices if device.vendor == vendor]
        if theirs:
            variables[name] = ",".join(str(device.number) for device in theirs)
    return variables | _nvidia([device for device in workload.gpu_devices if device.vendor not in _OTHER_VENDORS], isolated)


def _nvidia(devices: Collection[GpuDevice], isolated: bool) -> dict[str, str]:
    if not devices:
        return {"NVIDIA_VISIBLE_DEVICES": "void"} | ({} if isolated else {"CUDA_VISIBLE_DEVICES": ""})
    named = all(_UUID.fullmatch(device.uuid) for device in devices)  # CUDA takes no mixture
    names = ",".join(device.uuid if named else str(device.number) for device in devices)
    if isolated:
        # Numbers, because the container has no others, and not all programs take UUIDs here.
        return {"NVIDIA_VISIBLE_DEVICES": names, "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(len(devices))))}
    # By itself CUDA counts the fastest GPU first; drivers and their tools count by the slot.
    return {"NVIDIA_VISIBLE_DEVICES": names, "CUDA_VISIBLE_DEVICES": names, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
