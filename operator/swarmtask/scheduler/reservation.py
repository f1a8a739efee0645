"""Nodes that are kept for tasks that fit on none yet, so that smaller ones cannot keep them waiting for ever.

Called by `headroom`, which says who gets a reservation, and through it by `cycle`, which asks whom they hold back. Nothing is
remembered from one cycle to the next: docs/scheduler.md says why a task cannot be starved all the same. The idea is that of EASY
backfilling (Lifka, JSSPP 1995).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from swarmtask.resources.units import format_cpu, human_duration, humanize_memory
from swarmtask.scheduler.columns import CPU, DIMENSIONS, GPUS, MEMORY, SLOTS, Columns, Floats, Ints, Mask, NodeShare, TaskClass
from swarmtask.scheduler.filters import ROOM_FILTERS, STATIC_FILTERS
from swarmtask.scheduler.gpus import row_of
from swarmtask.scheduler.model import PendingTask
from swarmtask.scheduler.occupancy import Indices, Occupancy, first_that_suffices, needed
from swarmtask.scheduler.ordering import Line
from swarmtask.scheduler.preferences import factors

PATIENCE_S = 4 * 3600.0
"""A task that has waited longer is no longer held up by tasks that are merely expected to end in time: expectations can be wrong
again and again, and waiting must end."""


@dataclass(slots=True, eq=False)
class Reservation:
    """A node that is kept for a task.

    Attributes:
        node: index in the columns.
        moment: when the task is expected to fit there, in seconds since the epoch; None where nobody who ends sooner may be let in,
            because that is not known or near.
        spare: what will be left then beside the task, by dimension. spare_share: the same for tasks of its queue.
    """

    node: int
    task: PendingTask
    task_class: TaskClass
    moment: float | None
    spare: list[int]
    spare_share: int

    def outlives(self, ends_at: float | None) -> bool:
        """What ends by then has gone when the task comes."""
        return self.moment is not None and ends_at is not None and ends_at <= self.moment

    def leaves(self, task_class: TaskClass) -> bool:
        """Both fit beside each other."""
        if self.shares_with(task_class) and self.spare_share < 1:
            return False
        return all(not need or need <= spare for need, spare in zip(task_class.amounts.tolist(), self.spare, strict=True))

    def shares_with(self, task_class: TaskClass) -> bool:
        return task_class.share is not None and task_class.share is self.task_class.share

    def take(self, task_class: TaskClass) -> None:
        """A task that does not end in time starts beside it."""
        self.spare = [spare - need for need, spare in zip(task_class.amounts.tolist(), self.spare, strict=True)]
        if self.shares_with(task_class):
            self.spare_share -= 1


@dataclass(frozen=True, slots=True)
class Prospect:
    """A node that a task may hope for.

    Attributes:
        moment: when it is expected to fit, in seconds since the epoch; -inf when what is free and about to come free suffices, inf
            while not known.
        last: place in `Occupancy.by_end` of the last task that must end; None where the moment is not finite.
        lacks: by dimension, what is missing still; never negative.
    """

    node: int
    moment: float
    last: int | None
    lacks: list[int]


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a task finds on every node when what is being stopped has ended and what is kept for others is gone.

    Attributes:
        eligible: bool[N], it would fit there if nothing else ran.
        free: int64[DIMENSIONS, N]. free_share: int64[N], how many more tasks of its queue each node may run.
        short, short_share: what it lacks; at most 0 where it lacks nothing. Of dimensions that it does not ask for: 0.
        coming: bool[R], running tasks whose room is counted as free.
    """

    eligible: Mask
    coming: Mask
    free: Ints
    free_share: Ints
    short: Ints
    short_share: Ints

    @property
    def fits(self) -> Mask:
        """bool[N]: nodes where it lacks nothing."""
        mask: Mask = self.eligible & np.all(self.short <= 0, axis=0) & (self.short_share <= 0)
        return mask


class Reservations:
    """The reservations of one cycle, and what they hold back."""

    def __init__(self, columns: Columns, now: float) -> None:
        self._columns, self._now = columns, now
        self.made: list[Reservation] = []
        self._kept: Ints = np.zeros((DIMENSIONS, len(columns)), dtype=np.int64)
        self._kept_share: dict[NodeShare, Ints] = {}
        self._closed: dict[Line, tuple[int, ...]] = {}
        self._hopeless: dict[TaskClass, bool] = {}

    # --- whom they hold back ---

    def closed_to(self, line: Line) -> tuple[int, ...]:
        """Nodes that the line's tasks may not take although they might fit there now."""
        closed = self._closed.get(line)
        if closed is None:
            ends_at = self._end_of(line)
            closed = tuple(
                sorted({
                    one.node for one in self.made if not one.outlives(ends_at) and not one.leaves(line.task_class)
                })
            )  # fmt: skip
            self._closed[line] = closed
        return closed

    def keepers(self, node: int, line: Line) -> list[Reservation]:
        """Those that hold the line's tasks back on the node."""
        ends_at = self._end_of(line)
        return [one for one in self.made if one.node == node and not one.outlives(ends_at) and not one.leaves(line.task_class)]

    def note(self, node: int, line: Line) -> None:
        """A task of the line has started on the node."""
        ends_at = self._end_of(line)
        for one in self.made:
            if one.node == node and not one.outlives(ends_at):
                one.take(line.task_class)
                self._closed.clear()

    def _end_of(self, line: Line) -> float | None:
        return None if line.duration_s is None else self._now + line.duration_s

    # --- making them ---

    def eligible(self, task_class: TaskClass) -> Mask:
        """bool[N]: where the class would fit if nothing ran but the tasks that nodes are kept for. What others than tasks use now
        counts as if it stayed: a node is not kept empty for its owner's sake, and when she leaves, this is asked again."""
        share_kept = 0 if task_class.share is None else self._share_kept(task_class)
        return self._where_it_fits(task_class, self._kept, share_kept)

    def hopeless(self, task_class: TaskClass) -> bool:
        """Whether the class would fit nowhere even if nothing ran and nothing was kept. Does not change during a cycle."""
        known = self._hopeless.get(task_class)
        if known is None:
            known = self._hopeless[task_class] = not self._where_it_fits(task_class, np.zeros_like(self._kept), 0).any()
        return known

    def _where_it_fits(self, task_class: TaskClass, kept: Ints, share_kept: Ints | int) -> Mask:
        """bool[N]: where there is room for the class beside this alone."""
        mask = self._columns.all_nodes()
        for static_filter in STATIC_FILTERS:
            if static_filter.enabled(task_class):
                mask &= static_filter.mask(self._columns, task_class)
        share_left = self._columns.share_left.copy()
        if task_class.share is not None:
            share_left[task_class.share.row] = task_class.share.most - share_kept
        free = self._columns.allocatable - kept
        free[MEMORY] -= self._columns.foreign
        gpus = self._columns.gpus.offered - kept[GPUS]
        empty = replace(self._columns.room, free=tuple(free), share_left=tuple(share_left), gpu_left=tuple(gpus))
        for room_filter in ROOM_FILTERS:
            if room_filter.enabled(task_class):
                mask &= room_filter.mask(empty, task_class)
        return mask

    def outlook(self, task_class: TaskClass, eligible: Mask, coming: Mask, occupancy: Occupancy) -> Outlook:
        """`coming`: bool[R], running tasks that end without anybody's doing."""
        room, shares = occupancy.room_of(coming, task_class)
        now: Ints = self._columns.free.copy()
        row = row_of(self._columns.gpus.rows, task_class.shape.gpu) if task_class.shape.request.gpus > 0 else None
        if row is not None:
            now[GPUS] = self._columns.gpus.left[row]
        free: Ints = now + room - self._kept
        asked = task_class.amounts[:, None] > 0
        short = np.where(asked, np.minimum(task_class.amounts[:, None] - np.maximum(free, -(2**61)), 2**62), 0)
        free_share, short_share = np.zeros_like(free[0]), np.zeros_like(free[0])
        if task_class.share is not None:
            row = task_class.share.row
            free_share = self._columns.share_left[row] + shares[row] - self._share_kept(task_class)
            short_share = 1 - free_share
        return Outlook(eligible, coming, free, free_share, short, short_share)

    def best(self, task_class: TaskClass, outlook: Outlook, occupancy: Occupancy) -> Prospect | None:
        """Where the class is expected to fit first; where that is not known, where least of its request is missing. The smaller
        name decides between equals. None where it fits nowhere, whatever ends."""
        nodes = np.flatnonzero(outlook.eligible)
        if not len(nodes):
            return None
        avoided = last_resorts(self._columns, task_class)
        if avoided is not None and not avoided[nodes].all():
            nodes = nodes[~avoided[nodes]]
        moments: Floats = np.where(outlook.fits, -np.inf, np.inf)
        order = occupancy.by_end()
        order = order[~outlook.coming[order]]
        reached, last = first_that_suffices(occupancy, order, task_class, outlook.short, outlook.short_share)
        place = np.full(len(self._columns), -1, dtype=np.intp)
        place[reached] = last
        later = reached[~np.isneginf(moments[reached])]
        moments[later] = occupancy.ends_at[order[place[later]]]
        missing = self._missing(task_class, outlook)
        node = int(nodes[np.lexsort((nodes, missing[nodes], moments[nodes]))[0]])
        moment = float(moments[node])
        lacks = [max(0, short) for short in outlook.short[:, node].tolist()]
        return Prospect(node, moment, int(order[place[node]]) if np.isfinite(moment) else None, lacks)

    def reserve(
        self, task: PendingTask, task_class: TaskClass, prospect: Prospect, outlook: Outlook, occupancy: Occupancy
    ) -> Reservation:
        """Keep the node of `prospect` for the task."""
        node = prospect.node
        then, then_share = outlook.free[:, node].copy(), int(outlook.free_share[node])
        if prospect.last is not None:
            gone = self._gone_by(prospect.last, node, outlook, occupancy)
            then += occupancy.given_back(task_class)[:, gone].sum(axis=1)
            if task_class.share is not None:
                then_share += int((occupancy.share[gone] == task_class.share.row).sum())
        spare = [max(0, free) for free in (then - task_class.amounts).tolist()]
        patient = self._now - task.queued_at <= PATIENCE_S
        moment = prospect.moment if prospect.last is not None and patient and prospect.moment > self._now else None
        one = Reservation(node, task, task_class, moment, spare, max(0, then_share - 1))
        self.made.append(one)
        self._closed.clear()
        self._kept[:, node] += task_class.amounts
        if task_class.share is not None:
            self._share_kept(task_class)[node] += 1
        return one

    def unpaid(self, task_class: TaskClass, outlook: Outlook) -> Mask:
        """bool[N]: nodes that are kept for tasks whose room has not come free; what is freed there goes to them first."""
        kept: Mask = np.any((self._kept > 0) & (outlook.free < 0), axis=0)
        if task_class.share is not None:
            kept |= (self._share_kept(task_class) > 0) & (outlook.free_share < 0)
        return kept

    def _share_kept(self, task_class: TaskClass) -> Ints:
        assert task_class.share is not None  # noqa: S101 - only asked for classes that have one
        return self._kept_share.setdefault(task_class.share, np.zeros(len(self._columns), dtype=np.int64))

    @staticmethod
    def _gone_by(last: int, node: int, outlook: Outlook, occupancy: Occupancy) -> Indices:
        """The running tasks of the node that end up to and with this one."""
        order = occupancy.by_end()
        here = order[(occupancy.node[order] == node) & ~outlook.coming[order]]
        gone: Indices = here[: int(np.flatnonzero(here == last)[0]) + 1]
        return gone

    @staticmethod
    def _missing(task_class: TaskClass, outlook: Outlook) -> Floats:
        """float64[N]: the largest missing part of what the class asks for."""
        missing = np.maximum(outlook.short_share, 0).astype(np.float64)
        for dimension in needed(task_class):
            part = np.maximum(outlook.short[dimension], 0) / float(task_class.amounts[dimension])
            np.maximum(missing, part, out=missing)
        return missing


def last_resorts(columns: Columns, task_class: TaskClass) -> Mask | None:
    """bool[N]: nodes that break some preference; None where there is no such node."""
    factor = factors(columns, task_class)
    return None if factor is None else factor < 1.0


def when(prospect: Prospect, now: float) -> str:
    """Until when the node of a prospect is kept, for a person."""
    if prospect.moment == -np.inf:
        return "until what is being stopped there has ended"
    if prospect.last is not None:
        left_s = prospect.moment - now
        return f"expected free in {human_duration(left_s)}" if left_s > 0 else "expected free by now"
    cpu, memory, gpus, slots = (prospect.lacks[dimension] for dimension in (CPU, MEMORY, GPUS, SLOTS))
    words = [f"{gpus} GPU{'s' if gpus > 1 else ''}"] if gpus else []
    words += [f"{humanize_memory(memory)} memory"] if memory else []
    words += [f"{format_cpu(cpu)} CPU"] if cpu else []
    words += [f"the place{f's of {slots} tasks' if slots > 1 else ' of a task'}"] if slots else []
    if not words:
        return "until a task of its queue has ended there"
    return f"until {' and '.join(words)} {'comes' if len(words) == 1 and slots == 1 else 'come'} free there"
