"""Single GPUs: which of them match a wish, how many are left on each node, and which of them a task gets.

Called by `columns`, which keeps one row of counts per wish, and through it by the cycle when it places a task. Never decides which
node.

A node that does not list its GPUs has as many as its engine says, with the indices 0, 1, 2, ... and nothing known of any of them:
they match only a wish that asks for nothing. An attempt whose GPUs are not recorded, or are not listed any more, may hold any of
them: it counts against every wish, and the lowest indices, where programs begin, are the last to be given away.

GPUs of AMD and Intel without memory of their own are parts of the processor, mostly. Who asks for any GPU means another one: they
match only a wish that names their vendor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from swarmtask.scheduler.model import GpuInfo, GpuWish, NodeInfo

ANY_GPU = GpuWish()
Kind = tuple[str, str, int]
"""Vendor and model, both in small letters, and bytes of memory: GPUs of one kind match the same wishes."""


def shares_memory(gpu: GpuInfo) -> bool:
    """It has no memory of its own, as far as is known, and is not NVIDIA's: those run CUDA all the same."""
    return gpu.memory_bytes <= 0 and gpu.vendor.lower() not in {"", "nvidia"}


def matches(gpu: GpuInfo, wish: GpuWish) -> bool:
    """Is it one of the GPUs that count? What is not known of a GPU matches only what is not asked for."""
    return (
        wish.vendor.lower() in ({gpu.vendor.lower()} if shares_memory(gpu) else {"", gpu.vendor.lower()})
        and wish.model.lower() in gpu.model.lower()
        and gpu.memory_bytes >= wish.memory_bytes
    )


def row_of(rows: Mapping[GpuWish, int], wish: GpuWish) -> int | None:
    """The row of `GpuCounts` that counts for a wish; None: the node's total counts."""
    return rows.get(wish) if wish == ANY_GPU else rows[wish]


def listed(node: NodeInfo) -> Sequence[GpuInfo]:
    """The GPUs that a node lists, by index, and no more than it offers."""
    return sorted(node.gpus, key=lambda gpu: gpu.index)[: max(0, node.allocatable.gpus)]


def offered(node: NodeInfo) -> int:
    """How many GPUs a node offers: those that it lists, where it lists any."""
    return min(node.allocatable.gpus, len(node.gpus)) if node.gpus else node.allocatable.gpus


def held(node: NodeInfo) -> int:
    """How many GPUs of a node are held, as far as it matters to those that it offers."""
    return max(node.requested.gpus, sum(gpu.held for gpu in listed(node))) if node.gpus else node.requested.gpus


def choose(free: Sequence[GpuInfo], unknown: int, wish: GpuWish, count: int) -> tuple[GpuInfo, ...]:
    """Which GPUs a task gets: those with the least memory first, so that the large ones stay free, then the lowest index.

    Args:
        free: not known to be held.
        unknown: how many of them are held nevertheless, nobody knows which.
        count: at most as many as match, less `unknown`.
    """
    candidates = sorted((gpu for gpu in free if matches(gpu, wish)), key=lambda gpu: gpu.index)[unknown:]
    candidates.sort(key=lambda gpu: (gpu.memory_bytes, gpu.vendor, gpu.model, gpu.index))
    return tuple(candidates[:count])


@dataclass(slots=True)
class _Pool:
    """What is left of the GPUs that a node lists. `unknown`: see `choose`."""

    free: list[GpuInfo]
    unknown: int


@dataclass(frozen=True, slots=True)
class GpuCounts:
    """The GPUs of all nodes, by wish.

    Attributes:
        rows: the row of each wish in the two tables. Wishes that match the same kinds share one; a wish for any GPU has none where
            it matches all that there are: for it the node's total counts.
        offered: int64[rows, N], how many of a node's GPUs match, held or not.
        left: int64[rows, N], how many matching ones can still be given away; not above 0: none.
    """

    rows: Mapping[GpuWish, int]
    offered: NDArray[np.int64]
    left: NDArray[np.int64]
    _rows_of_kind: Mapping[Kind, NDArray[np.intp]] = field(repr=False)
    _pools: Mapping[int, _Pool] = field(repr=False)
    _next: dict[int, int] = field(repr=False)

    @classmethod
    def of(cls, nodes: Sequence[NodeInfo], wishes: Collection[GpuWish]) -> GpuCounts:
        """Count the GPUs of `nodes` for each of the wishes of tasks that ask for GPUs; without wishes nothing is counted."""
        singles = {number: listed(node) for number, node in enumerate(nodes) if node.gpus} if wishes else {}
        kinds = sorted({_kind(gpu) for gpus in singles.values() for gpu in gpus})
        samples = [GpuInfo(0, *kind) for kind in kinds]
        any_counts = not any(map(shares_memory, samples))
        row_of_kinds: dict[tuple[bool, tuple[int, ...]], int] = {}
        rows: dict[GpuWish, int] = {}
        for wish in wishes:
            if wish != ANY_GPU or not any_counts:
                matching = tuple(number for number, sample in enumerate(samples) if matches(sample, wish))
                # What nodes do not list matches a wish for any GPU alone.
                rows[wish] = row_of_kinds.setdefault((wish == ANY_GPU, matching), len(row_of_kinds))
        members: dict[Kind, list[int]] = {kind: [] for kind in kinds}
        for (_, matching), row in row_of_kinds.items():
            for number in matching:
                members[kinds[number]].append(row)
        rows_of_kind = {kind: np.array(row, dtype=np.intp) for kind, row in members.items()}
        found = np.zeros((len(row_of_kinds), len(nodes)), dtype=np.int64)
        left = np.zeros_like(found)
        pools: dict[int, _Pool] = {}
        for number, gpus in singles.items():
            free = [gpu for gpu in gpus if not gpu.held]
            pool = pools[number] = _Pool(free, held(nodes[number]) - (len(gpus) - len(free)))
            left[:, number] = -pool.unknown
            for gpu in gpus:
                found[rows_of_kind[_kind(gpu)], number] += 1
            for gpu in free:
                left[rows_of_kind[_kind(gpu)], number] += 1
        indices = {number: node.requested.gpus for number, node in enumerate(nodes) if not node.gpus} if wishes else {}
        if ANY_GPU in rows:
            for number in indices:
                found[rows[ANY_GPU], number] = nodes[number].allocatable.gpus
                left[rows[ANY_GPU], number] = nodes[number].allocatable.gpus - nodes[number].requested.gpus
        return cls(rows, found, left, rows_of_kind, pools, indices)

    def take(self, node: int, wish: GpuWish, count: int) -> tuple[int, ...]:
        """Give some of a node's GPUs to a task, and return their indices, rising. The caller has made sure that they are there."""
        pool = self._pools.get(node)
        if pool is None:
            first = self._next[node]
            self._next[node] = first + count
            if ANY_GPU in self.rows:
                self.left[self.rows[ANY_GPU], node] -= count
            return tuple(range(first, first + count))
        chosen = choose(pool.free, pool.unknown, wish, count)
        pool.free = [gpu for gpu in pool.free if gpu not in chosen]
        for kind, taken in Counter(map(_kind, chosen)).items():
            self.left[self._rows_of_kind[kind], node] -= taken
        return tuple(sorted(gpu.index for gpu in chosen))


def _kind(gpu: GpuInfo) -> Kind:
    return gpu.vendor.lower(), gpu.model.lower(), gpu.memory_bytes
