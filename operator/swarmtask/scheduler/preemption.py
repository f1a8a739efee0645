"""Whom to stop so that a task of higher priority can start.

Called by `headroom`. Pure choice: nothing here stops anybody, and nobody of equal or higher priority is ever chosen. Those are
chosen who disturb least: on the node where the most important victim is least important, then where there are fewest, then where
least work is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from swarmtask.scheduler.columns import Columns, Floats, Ints, Mask, TaskClass
from swarmtask.scheduler.model import PendingTask
from swarmtask.scheduler.occupancy import Indices, Occupancy, first_that_suffices, needed
from swarmtask.scheduler.ordering import Gate
from swarmtask.scheduler.reservation import Outlook


@dataclass(frozen=True, slots=True)
class Plan:
    """The task fits on the node when the victims have ended; no victim can be left out."""

    node: int
    victims: tuple[int, ...]


def candidates(occupancy: Occupancy, columns: Columns, task: PendingTask, level: int) -> Mask:
    """bool[R]: running tasks that may be stopped for this one.

    They have a lower priority, as declared; and they would not come before it again if they were queued now (waiting can have
    raised them above it), because then they would only take their room back. Nor did a person move them before all others of
    the same queue. Their attempt is known, and its node answers.
    """
    known = np.array([one.attempt > 0 and not (one.fronted and one.queue == task.queue) for one in occupancy.tasks], dtype=np.bool_)
    mask: Mask = known & ~occupancy.leaving & (occupancy.priority < task.priority) & (occupancy.level < level)
    if len(occupancy.tasks):
        mask &= columns.ready[occupancy.node]
    return mask


def make_room(
    occupancy: Occupancy,
    task_class: TaskClass,
    outlook: Outlook,
    *,
    allowed: Mask,
    candidate: Mask,
    gone: Iterable[int],
    now: float,
) -> Plan | None:
    """The node, and whom to stop on it; None where stopping everybody helps nowhere.

    Args:
        allowed: bool[N], nodes that may be chosen.
        candidate: bool[R], who may be stopped.
        gone: those of them whose end is decided already; they are not counted again.
    """
    already = set(gone)
    short = outlook.short.copy()
    short_share = outlook.short_share.copy()
    for number in already:
        node = occupancy.node[number]
        short[:, node] -= occupancy.given_back(task_class)[:, number]
        if task_class.share is not None and occupancy.share[number] == task_class.share.row:
            short_share[node] -= 1
    fits: Mask = allowed & np.all(short[needed(task_class)] <= 0, axis=0) & (short_share <= 0)
    if fits.any():
        return Plan(int(np.flatnonzero(fits)[0]), ())
    left = candidate & allowed[occupancy.node] if len(candidate) else candidate
    left[list(already)] = False
    numbers = np.flatnonzero(left)
    order = numbers[np.lexsort((occupancy.priority[numbers], occupancy.node[numbers]))]
    nodes, last = first_that_suffices(occupancy, order, task_class, short, short_share)
    if not len(nodes):
        return None
    bounds = occupancy.priority[order[last]]
    bound = int(bounds.min())
    gentle = np.isin(occupancy.node[numbers], nodes[bounds == bound]) & (occupancy.priority[numbers] <= bound)
    numbers = numbers[gentle]
    helps = _helps(occupancy, numbers, task_class, short, short_share)
    useful = helps > 0
    numbers, helps = numbers[useful], helps[useful]
    order = numbers[
        np.lexsort((numbers, -occupancy.bound_at[numbers], occupancy.priority[numbers], -helps, occupancy.node[numbers]))
    ]
    nodes, last = first_that_suffices(occupancy, order, task_class, short, short_share)
    return _gentlest(occupancy, order, nodes, last, now)


def _helps(occupancy: Occupancy, numbers: Indices, task_class: TaskClass, short: Ints, short_share: Ints) -> Floats:
    """float64[n]: the largest part of what is lacking on its node that each would give back."""
    node = occupancy.node[numbers]
    amounts = occupancy.given_back(task_class)
    rows = [(amounts[dimension][numbers], short[dimension][node]) for dimension in needed(task_class)]
    if task_class.share is not None:
        rows.append(((occupancy.share[numbers] == task_class.share.row).astype(np.int64), short_share[node]))
    helps = np.zeros(len(numbers))
    for gives, lacks in rows:
        part = np.divide(np.minimum(gives, lacks), lacks, out=np.zeros(len(numbers)), where=lacks > 0)
        np.maximum(helps, part, out=helps)
    return helps


def _gentlest(occupancy: Occupancy, order: Indices, nodes: Indices, last: Indices, now: float) -> Plan:
    """Of these nodes, each with its victims up to `last`, the one with fewest victims, then with least work lost."""
    starts = np.searchsorted(occupancy.node[order], nodes)
    counts = last - starts + 1
    total = np.r_[0.0, np.cumsum(np.maximum(0.0, now - occupancy.bound_at[order]))]
    lost = total[last + 1] - total[starts]
    chosen = int(np.lexsort((nodes, lost, counts))[0])
    victims = order[starts[chosen] : last[chosen] + 1]
    return Plan(int(nodes[chosen]), tuple(victims.tolist()))


def make_slots(occupancy: Occupancy, gate: Gate, candidate: Mask, missing: Mapping[str, int]) -> tuple[int, ...] | None:
    """Whom to stop so that the queue lets the task through; None where stopping everybody does not help.

    Args:
        missing: what the queue lacks: slots by the name of the limit, and places (`maxRunning`) by "".
    """
    if not missing:
        return ()
    gives = {number: given_to(gate, occupancy, number) for number in np.flatnonzero(candidate).tolist()}
    gives = {number: given for number, given in gives.items() if not missing.keys().isdisjoint(given)}
    ours = list(gives)

    def suffice(numbers: Iterable[int]) -> bool:
        held = [gives[number] for number in numbers]
        return all(sum(one.get(name, 0) for one in held) >= amount for name, amount in missing.items())

    def helps(number: int) -> float:
        return max(min(gives[number].get(name, 0), amount) / amount for name, amount in missing.items())

    bound = next((level for level in _levels(occupancy, ours) if suffice(_up_to(occupancy, ours, level))), None)
    if bound is None:
        return None
    useful = [number for number in _up_to(occupancy, ours, bound) if helps(number) > 0]
    useful.sort(key=lambda number: (-helps(number), occupancy.priority[number], -occupancy.bound_at[number], number))
    chosen: list[int] = []
    for number in useful:
        if suffice(chosen):
            break
        chosen.append(number)
    return tuple(chosen)


def given_to(gate: Gate, occupancy: Occupancy, number: int) -> dict[str, int]:
    """What a running task of any queue gives back: slots by the name of the limit, and its place by "" where it is this queue's."""
    task = occupancy.tasks[number]
    return {"": 1, **dict(task.limits)} if task.queue == gate.queue.key else dict(task.limits)


def without_the_needless(occupancy: Occupancy, victims: Iterable[int], suffice: Callable[[list[int]], bool]) -> tuple[int, ...]:
    """Leave out whoever is not needed, the most important and longest running first."""
    kept = sorted(victims, key=lambda number: (-occupancy.priority[number], occupancy.bound_at[number], number))
    for number in list(kept):
        rest = [other for other in kept if other != number]
        if suffice(rest):
            kept = rest
    return tuple(sorted(kept))


def _levels(occupancy: Occupancy, numbers: list[int]) -> list[int]:
    return sorted({int(occupancy.priority[number]) for number in numbers})


def _up_to(occupancy: Occupancy, numbers: list[int], bound: int) -> list[int]:
    return [number for number in numbers if occupancy.priority[number] <= bound]
