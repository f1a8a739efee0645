"""What runs, as columns: what comes back to which node, and when.

Called by `reservation` and `preemption`, and made only in a cycle that refuses something. Amounts are int64 as in `columns`; cut so
that no sum overflows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from swarmtask.scheduler.columns import DIMENSIONS, GPUS, LIMIT, SLOTS, Columns, Floats, Ints, Mask, NodeShare, TaskClass
from swarmtask.scheduler.gpus import matches, row_of
from swarmtask.scheduler.model import GpuWish, Snapshot, TaskKey
from swarmtask.scheduler.standing import level_of

Indices = NDArray[np.intp]


class Occupancy:
    """The running tasks of one cycle.

    Attributes:
        tasks: those on nodes that the cycle knows, sorted by name.
        node: index of each one's node, intp[R].
        amounts: what each gives back, int64[DIMENSIONS, R]; to a class of tasks: `given_back`.
        share: row of its queue's share, intp[R]; -1 where the queue has none.
        priority: int64[R]. level: what would order it if it were queued again now, int64[R].
        bound_at: float64[R]. ends_at: float64[R], inf while not known.
        leaving: bool[R], it is being stopped, or this cycle has decided that.
        beneficiary: the tasks whose key some of those that are being stopped make room for.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        columns: Columns,
        shares: Sequence[NodeShare],
    ) -> None:
        running, queues, now = snapshot.running, snapshot.queues, snapshot.now
        self.tasks = sorted((task for task in running if task.node in columns.index), key=lambda task: (task.key, task.uid))
        count = len(self.tasks)
        most = LIMIT // max(1, count)
        rows = {share.queue: share.row for share in shares}
        self.node: Indices = np.array([columns.index[task.node] for task in self.tasks], dtype=np.intp)
        self.amounts: Ints = np.empty((DIMENSIONS, count), dtype=np.int64)
        for row, name in enumerate(("cpu_milli", "memory_bytes", "gpus")):
            self.amounts[row] = [min(max(0, getattr(task.amounts, name)), most) for task in self.tasks]
        self.amounts[SLOTS] = 1
        self.share: Indices = np.array([rows.get(task.queue, -1) for task in self.tasks], dtype=np.intp)
        self.priority: Ints = np.array([task.priority for task in self.tasks], dtype=np.int64)
        self.level: Ints = np.array(
            [
                task.priority if task.queued_at is None else level_of(task.priority, task.queued_at, queues.get(task.queue), now)
                for task in self.tasks
            ],
            dtype=np.int64,
        )
        self.bound_at: Floats = np.array([task.bound_at for task in self.tasks], dtype=np.float64)
        ends = [np.inf if task.ends_at is None else task.ends_at for task in self.tasks]
        self.ends_at: Floats = np.array(ends, dtype=np.float64)
        self.leaving: Mask = np.array([task.stopping for task in self.tasks], dtype=np.bool_)
        self.beneficiary: list[TaskKey | None] = [task.makes_room_for if task.stopping else None for task in self.tasks]
        self._nodes, self._shares = len(columns), len(shares)
        self._by_end: Indices | None = None
        self._single = {node.name: {gpu.index: gpu for gpu in node.gpus} for node in snapshot.nodes if node.gpus}
        self._gpu_rows = columns.gpus.rows
        self._given_back: dict[GpuWish, Ints] = {}

    def given_back(self, task_class: TaskClass) -> Ints:
        """What each gives back to a class: int64[DIMENSIONS, R]. Where the class does not take just any GPU, those that match
        count, and all of an attempt of which it is not known which it holds."""
        wish = task_class.shape.gpu
        if task_class.shape.request.gpus <= 0 or row_of(self._gpu_rows, wish) is None:
            return self.amounts
        found = self._given_back.get(wish)
        if found is None:
            found = self._given_back[wish] = self.amounts.copy()
            for number, task in enumerate(self.tasks):
                single = self._single.get(task.node, {})
                known = [single[index] for index in task.gpus if index in single]
                if known:
                    found[GPUS, number] -= sum(not matches(gpu, wish) for gpu in known)
        return found

    def awaited(self) -> set[TaskKey]:
        """Tasks that room is being made for."""
        return {key for key in self.beneficiary if key is not None}

    def leave(self, chosen: Collection[int], beneficiary: TaskKey) -> None:
        """This cycle stops these, for that task."""
        for number in chosen:
            self.leaving[number] = True
            self.beneficiary[number] = beneficiary

    def coming(self, beneficiary: TaskKey, waiting: Collection[TaskKey]) -> Mask:
        """bool[R]: being stopped, and not for the sake of another task that still waits."""
        mask = self.leaving.copy()
        for number in np.flatnonzero(mask).tolist():
            other = self.beneficiary[number]
            if other is not None and other != beneficiary and other in waiting:
                mask[number] = False
        return mask

    def room_of(self, chosen: Mask, task_class: TaskClass) -> tuple[Ints, Ints]:
        """What these give back to a class on each node, int64[DIMENSIONS, N]; how many tasks of each share, int64[shares, N]."""
        room: Ints = np.zeros((DIMENSIONS, self._nodes), dtype=np.int64)
        tasks: Ints = np.zeros((self._shares, self._nodes), dtype=np.int64)
        for dimension in range(DIMENSIONS):
            np.add.at(room[dimension], self.node[chosen], self.given_back(task_class)[dimension][chosen])
        shared = chosen & (self.share >= 0)
        np.add.at(tasks, (self.share[shared], self.node[shared]), 1)
        return room, tasks

    def by_end(self) -> Indices:
        """Those whose end is known, by node, soonest end first."""
        if self._by_end is None:
            known = np.flatnonzero(np.isfinite(self.ends_at))
            self._by_end = known[np.lexsort((self.ends_at[known], self.node[known]))]
        return self._by_end


def first_that_suffices(
    occupancy: Occupancy, order: Indices, task_class: TaskClass, short: Ints, short_share: Ints
) -> tuple[Indices, Indices]:
    """Which running tasks must end, one after another, until a task fits on their node.

    Args:
        order: running tasks sorted by node; those of one node in the order in which they end.
        short: int64[DIMENSIONS, N], what the class lacks on each node; at most 0 where it lacks nothing.
        short_share: int64[N], the same for tasks of its queue.

    Returns:
        Nodes where all of `order` together suffice, and for each the place in `order` of the last one that is needed.
    """
    if not len(order):
        return order, order
    node = occupancy.node[order]
    starts = np.flatnonzero(np.r_[True, node[1:] != node[:-1]])
    sizes = np.diff(np.r_[starts, len(node)])
    suffices: Mask = np.ones(len(order), dtype=np.bool_)
    amounts = occupancy.given_back(task_class)
    rows = [(amounts[dimension][order], short[dimension]) for dimension in needed(task_class)]
    if task_class.share is not None:
        rows.append(((occupancy.share[order] == task_class.share.row).astype(np.int64), short_share))
    for gives, lacks in rows:
        total = np.cumsum(gives)
        before = np.repeat(total[starts] - gives[starts], sizes)
        suffices &= total - before >= lacks[node]
    places = np.flatnonzero(suffices)
    nodes, first = np.unique(node[places], return_index=True)
    return nodes, places[first]


def needed(task_class: TaskClass) -> list[int]:
    """The dimensions that a class asks for; others are not checked."""
    return np.flatnonzero(task_class.amounts > 0).tolist()
