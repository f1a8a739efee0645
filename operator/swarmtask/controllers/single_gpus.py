"""The single GPUs of a SwarmNode: what a cycle sees of them, and what is recorded of those that an attempt is given. Pure.

Called by `snapshots`, by `scheduling` when it binds, and by `submission` for attempts of which an older operator recorded indices
alone. A GPU is known by its UUID, and by its index where it tells none: a driver may number its GPUs anew under live attempts.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from swarmtask.controllers.entries import HeldGpu
from swarmtask.resources import units
from swarmtask.resources.node import SwarmNode, usable_gpus
from swarmtask.resources.placement import GivenGpu, Gpu
from swarmtask.scheduler.model import GpuInfo

MOST_GPUS = 1024
"""Of one node; what SwarmNode can list."""


def offered_gpus(node: SwarmNode) -> int:
    """How many the node offers at most. A list is believed also before the capacity that is made from it has been written."""
    status = node.status
    return 0 if status.gpus and not usable_gpus(status.gpus, status.engines) else status.capacity.gpu


def single_gpus(node: SwarmNode, held: frozenset[HeldGpu]) -> tuple[GpuInfo, ...]:
    """Those that the node lists and its engines can give away; without any, where some are held, as many as its engine says."""
    listed = {gpu.index: gpu for gpu in usable_gpus(node.status.gpus, node.status.engines)}
    if listed:
        return tuple(_info(index, gpu.vendor, gpu.model, gpu.memory, _is_held(gpu, held)) for index, gpu in listed.items())
    if not held:
        return ()
    indices = {index for index, _ in held}
    return tuple(_info(index, "", "", "0", index in indices) for index in range(min(node.status.capacity.gpu, MOST_GPUS)))


def _is_held(gpu: Gpu, held: frozenset[HeldGpu]) -> bool:
    return any(gpu.uuid == uuid if gpu.uuid and uuid else gpu.index == index for index, uuid in held)


def given(node: SwarmNode, indices: Iterable[int]) -> tuple[GivenGpu, ...]:
    """What is known of the GPUs of these indices, in their order."""
    listed = {gpu.index: gpu for gpu in usable_gpus(node.status.gpus, node.status.engines)}
    return tuple(_given(index, listed.get(index), node.status.gpus) for index in indices)


def _given(index: int, gpu: Gpu | None, listed: Iterable[Gpu]) -> GivenGpu:
    """NVIDIA counts its GPUs as the node does; ROCm and Level Zero each count their own from 0."""
    if gpu is None:
        return GivenGpu(index=index, number=index)
    vendor, number = gpu.vendor.lower(), index
    if vendor in ("amd", "intel"):
        number = sum(1 for other in listed if other.vendor.lower() == vendor and other.index < index)
    return GivenGpu(index=index, vendor=vendor, uuid=gpu.uuid, number=number)


@lru_cache(maxsize=16_384)
def _info(index: int, vendor: str, model: str, memory: str, held: bool) -> GpuInfo:
    return GpuInfo(index, vendor, model, units.memory_bytes(memory), held)
