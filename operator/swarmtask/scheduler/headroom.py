"""What is kept for tasks that cannot start yet, and who is stopped for them.

Called by `cycle`: for every line that stands still (`refused`), and for every placement while something is kept (`closed_to`,
`note`). Says who gets a reservation and who preempts; where and whom is said by `reservation` and `preemption`. Costs nothing in a
cycle that refuses nothing, and never looks at the tasks behind the head of a line unless they preempt, too.
"""

from __future__ import annotations

import heapq
from dataclasses import replace
from functools import cached_property

import numpy as np

from swarmtask.scheduler.columns import SLOTS, Columns, Mask, TaskClass
from swarmtask.scheduler.explain import counted
from swarmtask.scheduler.model import PendingTask, Preemption, QueueKey, Snapshot, TaskKey
from swarmtask.scheduler.occupancy import Occupancy, needed
from swarmtask.scheduler.ordering import (
    HOLDERS_NAMED,
    LIMIT_REACHED,
    NO_NODE_FITS,
    PREEMPTING,
    QUEUE_STOPPED,
    QUEUE_UNKNOWN,
    RESERVED,
    Gate,
    Line,
    Order,
    Standstill,
)
from swarmtask.scheduler.preemption import candidates, given_to, make_room, make_slots, without_the_needless
from swarmtask.scheduler.reservation import Outlook, Prospect, Reservations, last_resorts, when

MOST_RESERVATIONS = 8
"""Nodes that are kept in one cycle for tasks that wait for others to end by themselves. One for each queue or cohort; more of them
would keep a small cluster idle, and each costs a look at every node. Whoever gets none has better ones before it, and gets one when
they have started."""
MOST_PREEMPTORS = 32
"""Tasks for which room is being made at the same time."""
MOST_PLANS = 64
"""Plans that are tried in one cycle."""


class Headroom:
    """See the module.

    Attributes:
        words: what single tasks are told, by rank, instead of what their line is told.
        preemptions: who is to be stopped.
    """

    def __init__(self, snapshot: Snapshot, order: Order, columns: Columns) -> None:
        self._snapshot, self._order, self._columns = snapshot, order, columns
        self._reservations = Reservations(columns, snapshot.now)
        self._served: set[str | QueueKey] = set()
        self._preemptors = self._plans = 0
        self._hopeless: dict[tuple[Gate, TaskClass], tuple[int, int]] = {}
        self._blocked: dict[tuple[TaskClass, tuple[int, ...]], Standstill] = {}
        self._later: list[tuple[int, Line, int, Standstill]] = []
        """Tasks behind the head of a line that preempts, by rank, with their place in it: they may do so when it is their turn."""
        self.words: dict[int, Standstill] = {}
        self.preemptions: list[Preemption] = []

    # --- whom it holds back ---

    @property
    def keeps(self) -> bool:
        """Whether any node is kept for somebody."""
        return bool(self._reservations.made)

    def closed_to(self, line: Line) -> tuple[int, ...]:
        """Nodes that the line's tasks may not take although they might fit there now."""
        return self._reservations.closed_to(line)

    def note(self, node: int, line: Line) -> None:
        """A task of the line has started on the node."""
        self._reservations.note(node, line)

    def blocked(self, line: Line) -> Standstill:
        """Why the line stands still although some node has room: all such nodes are kept for others."""
        closed = self.closed_to(line)
        standstill = self._blocked.get((line.task_class, closed))
        if standstill is None:
            standstill = self._blocked[line.task_class, closed] = self._blocked_words(line, closed)
        return standstill

    def _blocked_words(self, line: Line, closed: tuple[int, ...]) -> Standstill:
        allowed = self._columns.all_nodes()
        allowed[list(closed)] = False
        counts, phrases, passing = counted(self._columns, line.task_class)
        kept = np.flatnonzero(passing & ~allowed).tolist()
        names = [self._columns.names[node] for node in kept[:HOLDERS_NAMED]]
        rest = len(kept) - len(names)
        keeper = self._reservations.keepers(kept[0], line)[0].task.key
        words = f"fits on {', '.join(names)}{f' and {rest} more' if rest else ''}, which "
        words += f"is kept for {'/'.join(keeper)}" if len(kept) == 1 else f"are kept for {'/'.join(keeper)} and others"
        if phrases:
            words += f"; elsewhere: {', '.join(phrases)}"
        return Standstill(RESERVED, words, counts | {"reserved": len(kept)})

    def hopeless(self, task_class: TaskClass) -> bool:
        """Whether the class would fit on no node even if nothing ran: then nothing else is why it waits."""
        return self._reservations.hopeless(task_class)

    # --- who gets something ---

    def refused(self, line: Line, standstill: Standstill) -> None:
        """The line stands still for the rest of the cycle: keep what its head needs, or make room for it."""
        if standstill.reason in (QUEUE_STOPPED, QUEUE_UNKNOWN):
            return
        if line.gate.queue.preempts and self._preempt(line, line.next, standstill):
            return
        if standstill.reason == NO_NODE_FITS:
            self._reserve(line, standstill)
        elif standstill.reason == LIMIT_REACHED:
            self._keep_slots(line)

    def _keep_slots(self, line: Line) -> None:
        """Whoever comes behind it leaves it the slots that come free, unless it can never have enough. One that no node could take
        does not come here: it is told that no node fits."""
        gate, task = line.gate, self._order.tasks[line.ranks[line.next]]
        if all(name not in gate.slots or slots <= gate.slots[name].most for name, slots in task.shape.limits):
            gate.keep(task)

    def _reserve(self, line: Line, standstill: Standstill) -> None:
        group = line.gate.queue.cohort or line.gate.queue.key
        if group in self._served or len(self._served) >= MOST_RESERVATIONS:
            return
        rank = line.ranks[line.next]
        task, task_class = self._order.tasks[rank], line.task_class
        eligible = self._reservations.eligible(task_class)
        if not eligible.any():
            return
        outlook = self._outlook(task, task_class, eligible)
        prospect = self._reservations.best(task_class, outlook, self._occupancy)
        if prospect is None:
            return
        self._served.add(group)
        self._keep(line.gate, task, task_class, prospect, outlook)
        node = self._columns.names[prospect.node]
        told = f"{standstill.message}; node {node} is kept for it ({when(prospect, self._snapshot.now)})"
        self.words[rank] = Standstill(standstill.reason, told, standstill.counts)

    def _keep(self, gate: Gate, task: PendingTask, task_class: TaskClass, prospect: Prospect, outlook: Outlook) -> None:
        """The node, and what the task takes of its queue: otherwise it could have one only while it has not the other."""
        self._reservations.reserve(task, task_class, prospect, outlook, self._occupancy)
        gate.keep(task)
        gate.keep_place(task)
        self._awaiting.discard(task.key)

    # --- preemption ---

    def catch_up(self, rank: float) -> None:
        """It is the turn of this rank: make room for those before it whose lines preempt and stand still already."""
        while self._later and self._later[0][0] < rank:
            _, line, place, standstill = heapq.heappop(self._later)
            self._preempt(line, place, standstill)

    def _preempt(self, line: Line, place: int, standstill: Standstill) -> bool:
        """Make room for the task at this place of the line, and for the next one when it is its turn. True when there is (or will
        be) room for it."""
        rank = line.ranks[place]
        if not self._worth_trying(line, rank) or not self._make_room(line, rank, standstill):
            return False
        if place + 1 < len(line.ranks):
            heapq.heappush(self._later, (line.ranks[place + 1], line, place + 1, standstill))
        return True

    def _worth_trying(self, line: Line, rank: int) -> bool:
        if self._preemptors >= MOST_PREEMPTORS or self._plans >= MOST_PLANS:
            return False
        priority, level = self._order.tasks[rank].priority, line.level
        known = self._hopeless.get((line.gate, line.task_class))
        if known is not None and priority <= known[0] and level <= known[1]:
            return False
        priorities = self._occupancy.priority
        return len(priorities) > 0 and int(priorities.min()) < priority

    def _make_room(self, line: Line, rank: int, standstill: Standstill) -> bool:
        task, task_class = self._order.tasks[rank], line.task_class
        occupancy, reservations = self._occupancy, self._reservations
        self._plans += 1
        missing = self._missing(line.gate, task, occupancy.coming(task.key, self._awaiting))
        eligible = reservations.eligible(task_class)
        if missing is None or not eligible.any():
            return self._give_up(line, task)
        outlook = self._outlook(task, task_class, eligible)
        victims: tuple[int, ...] = ()
        if missing or not outlook.fits.any():
            found = self._victims(line, task, outlook, missing)
            if found is None:
                return self._give_up(line, task)
            victims = found
            occupancy.leave(victims, task.key)
            self.preemptions += [Preemption(occupancy.tasks[number], task) for number in victims]
            outlook = self._outlook(task, task_class, eligible)
        prospect = reservations.best(task_class, replace(outlook, eligible=outlook.fits), occupancy)
        assert prospect is not None  # noqa: S101 - it fits where the victims leave
        self._keep(line.gate, task, task_class, prospect, outlook)
        self._preemptors += 1
        self.words[rank] = self._preempting(task, prospect.node, standstill)
        return True

    def _give_up(self, line: Line, task: PendingTask) -> bool:
        """Nobody of this queue and class whose priority is not higher need try again in this cycle."""
        self._hopeless[line.gate, line.task_class] = (task.priority, line.level)
        return False

    def _victims(self, line: Line, task: PendingTask, outlook: Outlook, missing: dict[str, int]) -> tuple[int, ...] | None:
        """Whom to stop: first for what the queue and its limits lack, then for what the node lacks, and nobody in vain."""
        occupancy, task_class, gate = self._occupancy, line.task_class, line.gate
        candidate = candidates(occupancy, self._columns, task, line.level)
        for_queue = make_slots(occupancy, gate, candidate, missing)
        if for_queue is None:
            return None
        allowed = outlook.eligible & ~self._reservations.unpaid(task_class, outlook)
        # A bound that was lowered below what runs stops nobody: preempting makes place for one task, and does not enforce bounds.
        allowed &= (outlook.free_share >= 0) & (outlook.free[SLOTS] >= 0)
        avoided = last_resorts(self._columns, task_class)
        plan = None
        for nodes in [allowed] if avoided is None else [allowed & ~avoided, allowed & avoided]:
            plan = plan or make_room(
                occupancy, task_class, outlook, allowed=nodes, candidate=candidate, gone=for_queue, now=self._snapshot.now
            )
        if plan is None:
            return None
        node = plan.node

        def suffice(victims: list[int]) -> bool:
            given = [given_to(gate, occupancy, number) for number in victims]
            if any(sum(one.get(name, 0) for one in given) < amount for name, amount in missing.items()):
                return False
            here = [number for number in victims if occupancy.node[number] == node]
            back = occupancy.given_back(task_class)[:, here].sum(axis=1)
            if any(back[dimension] < outlook.short[dimension, node] for dimension in needed(task_class)):
                return False
            share = task_class.share
            return share is None or int((occupancy.share[here] == share.row).sum()) >= outlook.short_share[node]

        return without_the_needless(occupancy, {*for_queue, *plan.victims}, suffice)

    def _missing(self, gate: Gate, task: PendingTask, coming: Mask) -> dict[str, int] | None:
        """What the queue lacks for the task when what is being stopped has ended: slots by limit, places by "". None where that
        would go to others first, or where more runs than the queue allows: lowering a bound stops nobody."""
        wanted = {name: (slots, gate.slots[name]) for name, slots in task.shape.limits if name in gate.slots}
        back: dict[str, int] = {}
        if wanted or gate.left is not None:
            # What is being stopped on a node that does not answer is held until the node answers, or is given up.
            for number in np.flatnonzero(coming & self._columns.ready[self._occupancy.node]).tolist():
                for name, slots in given_to(gate, self._occupancy, number).items():
                    back[name] = back.get(name, 0) + slots
        missing: dict[str, int] = {}
        if gate.left is not None:
            running, most = gate.queue.running + self._started(gate), gate.queue.max_running or 0
            free = most - running - gate.kept + back.get("", 0)
            if most < 1 or free < 0:
                return None
            missing |= {"": 1 - free} if free < 1 else {}
        for name, (slots, limit) in wanted.items():
            free = limit.most - limit.held - limit.kept + back.get(name, 0)
            if slots > limit.most or free < 0:
                return None
            missing |= {name: slots - free} if free < slots else {}
        return missing

    @staticmethod
    def _started(gate: Gate) -> int:
        """Tasks of the queue that started in this cycle."""
        before = max(0, (gate.queue.max_running or 0) - gate.queue.running)
        return before - (gate.left or 0)

    def _preempting(self, task: PendingTask, node: int, standstill: Standstill) -> Standstill:
        occupancy = self._occupancy
        names = [
            "/".join(running.key)
            for running, by, leaving in zip(occupancy.tasks, occupancy.beneficiary, occupancy.leaving.tolist(), strict=True)
            if leaving and by == task.key
        ]
        kept = f"node {self._columns.names[node]} is kept for it until"
        if not names:
            return Standstill(standstill.reason, f"{standstill.message}; {kept} what is being stopped has ended", standstill.counts)
        rest = len(names) - HOLDERS_NAMED
        named = ", ".join(names[:HOLDERS_NAMED]) + (f" and {rest} more" if rest > 0 else "")
        has = "has" if len(names) == 1 else "have"
        return Standstill(PREEMPTING, f"{kept} {named}, of lower priority, {has} been stopped", standstill.counts)

    # --- what it looks at, made when first needed ---

    @cached_property
    def _occupancy(self) -> Occupancy:
        return Occupancy(self._snapshot, self._columns, self._order.shares)

    @cached_property
    def _awaiting(self) -> set[TaskKey]:
        """Tasks that room is being made for and whose turn in this cycle is still to come: it is not there for others."""
        awaited = self._occupancy.awaited()
        return {task.key for task in self._order.tasks if task.key in awaited} if awaited else awaited

    def _outlook(self, task: PendingTask, task_class: TaskClass, eligible: Mask) -> Outlook:
        coming = self._occupancy.coming(task.key, self._awaiting)
        return self._reservations.outlook(task_class, eligible, coming, self._occupancy)
