"""Why a class of tasks fits nowhere, in counts and in words.

Called by `cycle`, once per class that does not fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import MappingProxyType

import numpy as np

from swarmtask.scheduler.columns import Columns, Mask, TaskClass
from swarmtask.scheduler.filters import ROOM_FILTERS, STATIC_FILTERS, Filter, RoomFilter, StaticFilter
from swarmtask.scheduler.ordering import NO_NODE_FITS, Standstill


def verdicts(
    columns: Columns,
    task_class: TaskClass,
    static_filters: Sequence[StaticFilter] = STATIC_FILTERS,
    room_filters: Sequence[RoomFilter] = ROOM_FILTERS,
) -> Iterator[tuple[Filter, Mask]]:
    """Every enabled filter with its mask (bool[N], True passes), in the order in which refusals are counted."""
    for static_filter in static_filters:
        if static_filter.enabled(task_class):
            yield static_filter, static_filter.mask(columns, task_class)
    for room_filter in room_filters:
        if room_filter.enabled(task_class):
            yield room_filter, room_filter.mask(columns.room, task_class)


def counted(columns: Columns, task_class: TaskClass) -> tuple[dict[str, int], list[str], Mask]:
    """How many nodes each filter refuses (each node counted at the first that does); the same in words, the most frequent obstacle
    first and among equals the one that came closest to fitting; and the nodes that pass, bool[N]."""
    passing = columns.all_nodes()
    counts: dict[str, int] = {}
    phrases: list[tuple[int, str]] = []
    for filter_, mask in verdicts(columns, task_class):
        refused = passing & ~mask
        count = int(np.count_nonzero(refused))
        if count:
            counts[filter_.name] = count
            phrases.append((count, filter_.explain(refused, columns, task_class)))
            passing &= mask
    phrases.reverse()
    phrases.sort(key=lambda phrase: -phrase[0])
    return counts, [text for _, text in phrases], passing


def no_node_fits(columns: Columns, task_class: TaskClass) -> Standstill:
    """Counts and words for a class that no node takes now: "0/3 nodes fit: 2 too little memory (needs 16Gi, largest free 7.4Gi),
    1 cordoned"."""
    if not len(columns):
        return Standstill(NO_NODE_FITS, "no nodes have joined yet")
    counts, phrases, passing = counted(columns, task_class)
    fit = "node fits" if len(columns) == 1 else "nodes fit"
    message = f"{np.count_nonzero(passing)}/{len(columns)} {fit}: {', '.join(phrases)}"
    return Standstill(NO_NODE_FITS, message, MappingProxyType(counts))
