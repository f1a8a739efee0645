"""Fair share: which queue of a cohort gives the next task.

Called by `ordering`. A cohort is a name that queues share. Among equal priorities its queues take turns so that what each of them
holds of the cluster stays in proportion to its weight: the queue with the smallest dominant share for its weight comes next
(dominant resource fairness: Ghodsi et al., NSDI 2011). Whatever a queue does not ask for is lent to the others, and comes back as
their tasks end; nothing is preempted here. Never looks at single nodes.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import TYPE_CHECKING

from swarmtask.scheduler.model import Amounts, NodeInfo, QueueInfo

if TYPE_CHECKING:
    from swarmtask.scheduler.ordering import Line


def offered(nodes: Iterable[NodeInfo]) -> Amounts:
    """What all nodes offer together, those that sleep too: a lid that is closed moves nobody's share."""
    amounts = [node.allocatable for node in nodes if not node.gone]
    return Amounts(
        sum(amount.cpu_milli for amount in amounts),
        sum(amount.memory_bytes for amount in amounts),
        sum(amount.gpus for amount in amounts),
    )


def weighted_share(held: Amounts, total: Amounts, weight: int) -> float:
    """The largest of the shares of CPU, memory and GPUs, divided by the weight. Of a resource that nobody offers nobody has a
    share."""
    pairs = ((held.cpu_milli, total.cpu_milli), (held.memory_bytes, total.memory_bytes), (held.gpus, total.gpus))
    return max(amount / whole if whole > 0 else 0.0 for amount, whole in pairs) / weight


class Claim:
    """What one queue of a cohort holds, as the cycle goes on."""

    def __init__(self, queue: QueueInfo, total: Amounts) -> None:
        self._held, self._total, self._weight = queue.requested, total, queue.weight
        self.share = weighted_share(self._held, total, queue.weight)

    def take(self, request: Amounts) -> None:
        self._held += request
        self.share = weighted_share(self._held, self._total, self._weight)


class _Member:
    """The lines of one queue at one level of priority, the one with the oldest head first."""

    def __init__(self, claim: Claim, lines: Iterable[Line]) -> None:
        self.claim = claim
        self._heap = [(line.ranks[0], line) for line in lines]
        heapq.heapify(self._heap)

    def head(self) -> tuple[int, Line] | None:
        """The oldest task that is left, and its line. Lines move and leave elsewhere, and are brought up to date here."""
        while self._heap:
            rank, line = self._heap[0]
            head = line.head
            if head is None:
                heapq.heappop(self._heap)
            elif head != rank:
                heapq.heapreplace(self._heap, (head, line))
            else:
                return rank, line
        return None


class Cohort:
    """Queues that share by weight: for each level of priority a heap of its queues."""

    def __init__(self) -> None:
        self._levels: dict[int, list[tuple[float, int, _Member]]] = {}

    def join(self, level: int, claim: Claim, lines: Iterable[Line]) -> None:
        """A queue waits with these lines at this level of priority; none of them has moved yet."""
        member = _Member(claim, lines)
        head = member.head()
        if head is not None:
            heapq.heappush(self._levels.setdefault(level, []), (claim.share, head[0], member))

    def next(self, level: int) -> tuple[int, Line]:
        """The oldest task of the queue with the smallest share for its weight; of equal ones, of the one with the older task.

        Some queue has a task left at this level of priority. Shares and ranks only grow during a cycle, so an entry whose figures
        are out of date can only have to move back.
        """
        heap = self._levels[level]
        while True:
            share, rank, member = heap[0]
            head = member.head()
            if head is None:
                heapq.heappop(heap)
            elif (member.claim.share, head[0]) != (share, rank):
                heapq.heapreplace(heap, (member.claim.share, head[0], member))
            else:
                return head
