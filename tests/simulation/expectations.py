"""What a run in which nothing goes wrong must come to: the dead letters that were planned, tasks in time, shares by weight.

Used by `story` after a calm run has come to rest. Reads what is stored, decides nothing, and knows the programs of the births
better than the operator can.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from swarmtask.lifecycle.intervals import parse
from swarmtask.lifecycle.messages import Reason
from swarmtask.resources import units
from swarmtask.resources.fields import AUTO
from swarmtask.resources.task import AttemptState, Phase, SwarmTask
from tests.fakes.engine import Outcome
from tests.simulation.workload import Birth
from tests.simulation.world import START, World

LONG_ENOUGH_S = 15.0
"""Shares are judged over a time of at least this length, in which all queues of a cohort wait."""
SETTLE_S = 15.0
"""What started before all of them waited has mostly ended by then; nothing is stopped to make shares right."""


def broken(world: World) -> Iterator[str]:
    """Each expectation that does not hold, in words."""
    tasks = {task.metadata.name: task for task in world.tasks()}
    births = {birth.name: birth for birth in world.births}
    yield from _dead_letters(births, tasks, [call.name for call in world.engine.called("submit")])
    yield from _ladders(world, births, tasks)
    yield from _sized(world, births, tasks)
    yield from _starts(world, births, tasks)
    if world.workload.expect.shares is not None:
        yield from _shares(world, tasks, world.workload.expect.shares)


# --- dead letters ---


def _dead_letters(births: dict[str, Birth], tasks: dict[str, SwarmTask], submitted: Sequence[str]) -> Iterator[str]:
    for name, birth in sorted(births.items()):
        task = tasks.get(name)
        if task is None or _hungry(birth):
            continue
        status, does = task.status, name
        if status.reason == "Deduplicated" and status.outcome_of in births:
            does = status.outcome_of
        cut = None if does not in tasks else cut_short(tasks[does], submitted)
        planned = None if cut is None else doomed(births[does], cut)
        if planned is not None and (status.phase is Phase.FAILED) != planned:
            yield f"{name} is {status.phase.value} ({status.reason}), planned as a dead letter: {planned}"
        if task.is_array and task.finished and status.array is not None:
            dead = {index for index, outcomes in enumerate(birth.members) if _dies(outcomes, birth.spec["backoffLimit"])}
            told = set(parse(status.array.failed_indexes))
            if told != dead:
                yield f"{name} names {sorted(told)} as failed, planned are {sorted(dead)}"


def cut_short(task: SwarmTask, submitted: Sequence[str]) -> frozenset[int] | None:
    """Which of its programs' turns, counted from 0, were stopped to make room, so that they do not count however they would have
    ended; None when that is not known, because the oldest attempts are not recorded any more.

    Args:
        submitted: the attempts that reached the engine, in that order, with repetitions. Only these have taken a turn.
    """
    attempts = {attempt.id: attempt for attempt in task.status.attempts}
    if len(attempts) < task.status.attempt:
        return None
    turns = [attempts[name] for name in dict.fromkeys(submitted) if name in attempts]
    return frozenset(
        turn for turn, one in enumerate(turns) if one.state is AttemptState.STOPPED and one.stop_reason == Reason.PREEMPTED
    )


def doomed(birth: Birth, cut: Collection[int] = ()) -> bool:
    """Its program fails more often than the task may, apart from the turns that were cut short; of an array, that of any index."""
    return any(_dies(outcomes, birth.spec["backoffLimit"], cut) for outcomes in birth.members or (birth.outcomes,))


def _dies(outcomes: Sequence[Outcome], limit: int, cut: Collection[int] = ()) -> bool:
    """The last outcome is that of every further turn."""
    failures = 0
    for turn in itertools.count():
        if turn in cut:
            continue
        if not _fails(outcomes[min(turn, len(outcomes) - 1)]):
            return False
        failures += 1
        if failures > limit:
            return True
    raise AssertionError("turns have no end")


def _fails(outcome: Outcome) -> bool:
    never_ends = outcome.duration_s is None or outcome.prepare_s == float("inf")
    return outcome.exit_code != 0 or outcome.oom or never_ends or bool(outcome.pull_error or outcome.refused)


# --- memory ---


def _hungry(birth: Birth) -> bool:
    """What it comes to depends on how much memory it is given."""
    return any(outcome.peak_bytes is not None for outcome in birth.outcomes)


def _ladders(world: World, births: dict[str, Birth], tasks: dict[str, SwarmTask]) -> Iterator[str]:
    """Each climbs to the first step that holds, by as many attempts as that takes, and no further than nodes are large."""
    largest = max(node.memory_gib for node in world.workload.nodes) * 2**30
    for name, birth in sorted(births.items()):
        request = birth.spec["container"]["resources"]["requests"]["memory"]
        if name not in tasks or not _hungry(birth) or request == AUTO:
            continue
        factor = next((rule.get("memoryFactor", 1) for rule in birth.spec.get("failurePolicy", ())), 1)
        amount, attempts, dead = units.memory_bytes(request), 1, False
        while (birth.outcomes[0].peak_bytes or 0) > amount and not dead:
            dead = attempts > birth.spec["backoffLimit"] or amount * factor > largest
            if not dead:
                amount, attempts = amount * factor, attempts + 1
        status = tasks[name].status
        asked = None if status.current is None else units.memory_bytes(status.current.requested.memory)
        if (status.phase is Phase.FAILED, status.attempt, asked) != (dead, attempts, amount):
            yield (
                f"{name} is {status.phase.value} after {status.attempt} attempts, the last with {asked} bytes; planned: "
                f"{'Failed' if dead else 'Succeeded'} after {attempts} with {amount}"
            )
        if dead and status.reason != Reason.OOM_KILLED:
            yield f"{name} was killed for its memory, and says {status.reason}"


def _sized(world: World, births: dict[str, Birth], tasks: dict[str, SwarmTask]) -> Iterator[str]:
    for name, birth in sorted(births.items()):
        most = world.workload.expect.sized.get(birth.group)
        if most is None or name not in tasks:
            continue
        status = tasks[name].status
        asked = "0" if status.current is None else status.current.requested.memory
        if (status.phase, status.attempt) != (Phase.SUCCEEDED, 1) or units.memory_bytes(asked) > units.memory_bytes(most):
            yield f"{name} is {status.phase.value} after {status.attempt} attempts with {asked}, though its like was known"


# --- starts ---


def _starts(world: World, births: dict[str, Birth], tasks: dict[str, SwarmTask]) -> Iterator[str]:
    for name, birth in sorted(births.items()):
        bound_s = world.workload.expect.start_s.get(birth.group)
        if bound_s is None or name not in tasks:
            continue
        started = tasks[name].status.start_time
        latest = START + timedelta(seconds=birth.at_s + bound_s)
        if started is None or started > latest:
            yield f"{name} started at {started}, not within {bound_s:g} s of its birth at {birth.at_s:.1f} s"


# --- shares ---


@dataclass(frozen=True)
class _Hold:
    """One attempt: so much of the cluster for so long."""

    queue: str
    begin: datetime
    end: datetime
    cpu_milli: int


def _shares(world: World, tasks: dict[str, SwarmTask], tolerance: float) -> Iterator[str]:
    """CPU is what these workloads are short of; memory must not be the dominant resource of any of their tasks."""
    cohorts: dict[str, dict[str, int]] = defaultdict(dict)
    for name, spec in world.workload.queues.items():
        if spec.get("cohort"):
            cohorts[spec["cohort"]][name] = spec.get("weight", 1)
    holds = [hold for task in tasks.values() for hold in _holds(task)]
    for cohort, weights in sorted(cohorts.items()):
        # All wait from the moment when the last of them has tasks until the first of them has started its last.
        begin = START + timedelta(
            seconds=max(min(b.at_s for b in world.births if b.spec["queue"] == name) for name in weights) + SETTLE_S
        )
        end = min(max(hold.begin for hold in holds if hold.queue == name) for name in weights)
        if (end - begin).total_seconds() < LONG_ENOUGH_S:
            yield f"the queues of {cohort} all wait for {(end - begin).total_seconds():.0f} s only: give them more tasks"
            continue
        held = {name: sum(_within(hold, begin, end) for hold in holds if hold.queue == name) for name in weights}
        for name, weight in weights.items():
            due = weight / sum(weights.values())
            share = held[name] / sum(held.values())
            if abs(share - due) > tolerance * due:
                yield f"queue {name} held {share:.3f} of its cohort {cohort}, due are {due:.3f}"


def _holds(task: SwarmTask) -> Iterator[_Hold]:
    for attempt in task.status.attempts:
        if attempt.bound_at is not None and attempt.finished_at is not None:
            cpu_milli = units.cpu_milli(attempt.requested.cpu)
            yield _Hold(attempt.requested.queue, attempt.bound_at, attempt.finished_at, cpu_milli)


def _within(hold: _Hold, begin: datetime, end: datetime) -> float:
    """CPU-seconds of one attempt between two moments."""
    return max(0.0, (min(hold.end, end) - max(hold.begin, begin)).total_seconds()) * hold.cpu_milli
