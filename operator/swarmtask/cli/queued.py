"""What waits in a queue and may be cancelled without touching what runs.

Called by `queues` for `drain --cancel-queued`. Pure: looks at tasks as they were listed, and changes none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swarmtask.cli.bulk import phase_of
from swarmtask.cli.steer import UNFINISHED, array_of
from swarmtask.cli.tables import value_at
from swarmtask.kube import Object
from swarmtask.lifecycle.intervals import Intervals, parse
from swarmtask.lifecycle.members import index_of
from swarmtask.lifecycle.messages import Reason
from swarmtask.resources.task import BOUND_PHASES, TERMINAL_PHASES

_WAITING = UNFINISHED - BOUND_PHASES


@dataclass(frozen=True, slots=True)
class Queued:
    """What waits in one queue.

    A run of an unfinished array is never among `tasks`: cancelled by itself it would be a failure of the array, which would put
    the next run into its place. The array itself may be cancelled, while none of its runs runs: those would be stopped with it.

    Attributes:
        tasks: tasks that wait. arrays: unfinished arrays of which nothing runs and something is left to run.
        begun: unfinished array -> how many of its runs run.
        strays: array of another queue -> how many of its runs wait in this one.
    """

    tasks: tuple[Object, ...]
    arrays: tuple[Object, ...]
    begun: dict[str, int]
    strays: dict[str, int]


def queued(tasks: Sequence[Object], queue: str) -> Queued:
    """Of all tasks of a namespace what waits in this queue of it."""
    unfinished = {_name(task): task for task in tasks if is_array(task) and phase_of(task) in UNFINISHED}
    runs: dict[str, list[Object]] = {name: [] for name in unfinished}
    alone: list[Object] = []
    for task in tasks:
        array = array_of(task)
        if array is not None and array in runs:
            runs[array].append(task)
        elif not is_array(task) and _waits_in(task, queue):
            alone.append(task)
    ours = {name: array for name, array in unfinished.items() if _is_of(array, queue)}
    running = {name: sum(phase_of(run) in BOUND_PHASES for run in runs[name]) for name in ours}
    strays = {name: sum(_waits_in(run, queue) for run in runs[name]) for name in runs.keys() - ours.keys()}
    return Queued(
        tasks=tuple(alone),
        arrays=tuple(array for name, array in ours.items() if not running[name] and not _has_run(array, runs[name])),
        begun={name: count for name, count in running.items() if count},
        strays={name: count for name, count in sorted(strays.items()) if count},
    )


def is_array(task: Object) -> bool:
    return value_at(task, ".spec.completions") is not None or value_at(task, ".status.array") is not None


def _has_run(array: Object, runs: Sequence[Object]) -> bool:
    """Every index has ended: the array ends by itself, as it should, once it has recorded the last of them."""
    total, name = value_at(array, ".spec.completions"), _name(array)
    try:
        recorded = [parse(str(value_at(array, f".status.array.{of}") or "")) for of in ("completedIndexes", "failedIndexes")]
    except ValueError:
        return False  # nobody knows what is left of it
    ended = [run for run in runs if phase_of(run) in TERMINAL_PHASES and value_at(run, ".status.reason") != Reason.DELETED]
    indices = (index_of(name, _name(run)) for run in ended)
    done = recorded[0] | recorded[1] | Intervals.of(index for index in indices if index is not None)
    return isinstance(total, int) and done.below(total) >= total


def _waits_in(task: Object, queue: str) -> bool:
    return phase_of(task) in _WAITING and _is_of(task, queue)


def _is_of(task: Object, queue: str) -> bool:
    return bool(value_at(task, ".spec.queue") == queue)


def _name(task: Object) -> str:
    return str(task["metadata"]["name"])
