"""What the engines show of one task, and what a person is told where an engine shows nothing.

Asked by the executor before it begins what is outstanding. Reads the lanes' newest lists and never waits for an engine; decides
nothing about a task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from swarmtask.controllers.lane import EngineLane
from swarmtask.controllers.surroundings import Surroundings
from swarmtask.engines.base import Observation
from swarmtask.lifecycle.commands import in_doubt
from swarmtask.lifecycle.messages import Announcement
from swarmtask.resources.kinds import SWARM_TASK
from swarmtask.resources.task import AttemptState, SwarmTask
from swarmtask.scheduler.model import TaskKey

SILENT_S = 30.0
"""A task that waits for an engine says so when that has not listed its workloads for so long."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is listed of a task.

    Attributes:
        listed: by the engines that answer.
        silent: engines whose list does not say all that there may be: they do not answer, have not since the newest submit ended,
            or an earlier attempt that they have never shown could still turn up.
    """

    listed: tuple[Observation, ...]
    silent: frozenset[str]


class Sight:
    """See the module.

    Args:
        lanes: engine name -> its lane.
        look: called when a task is to be looked at again.
    """

    def __init__(self, around: Surroundings, lanes: Mapping[str, EngineLane], look: Callable[[TaskKey], None]) -> None:
        self._clock, self._announcer, self._delays = around.clock, around.announcer, around.delays
        self._lanes, self._look = lanes, look
        self._said: set[tuple[str, str, str]] = set()
        """UID or attempt, engine and reason of what was told in this process."""

    def of(self, task: SwarmTask) -> Seen:
        """What all engines list of the task."""
        listed: list[Observation] = []
        silent: set[str] = set()
        for lane in self._lanes.values():
            present = lane.present(task.metadata.uid)
            listed += present or ()
            if present is None or _incomplete(lane, task):
                silent.add(lane.name)
        return Seen(tuple(listed), frozenset(silent))

    def missing(self, task: SwarmTask, engine: str) -> None:
        """Nothing can be done there: this operator does not drive it."""
        self._say(
            task, task.metadata.uid, engine, "EngineMissing",
            f"this operator does not drive the engine {engine}: start it with that engine to go on with this task",
        )  # fmt: skip

    def not_looked_for(self, task: SwarmTask, engines: Iterable[str]) -> None:
        """An attempt starts although nobody can look whether an earlier one still runs on an engine that is not driven."""
        for engine in sorted(engines):
            self._say(
                task, task.metadata.uid, engine, "EngineMissing",
                f"this operator does not drive the engine {engine}: an earlier attempt may still run there beside the next one; "
                "start the operator with that engine to have it looked for",
            )  # fmt: skip

    def tell_waits(self, key: TaskKey, task: SwarmTask) -> None:
        """Which silent engine keeps its attempt from starting or from ending, now or when it has been silent for long enough."""
        live = task.status.current
        if live is None or not live.live or (live.observed and live.state is not AttemptState.STOPPING):
            self.forget(key)
            return
        waits = {live.engine} | (in_doubt(task) if live.state is AttemptState.STARTING else frozenset())
        again_s = float("inf")
        for engine in sorted(waits & self._lanes.keys()):
            left_s = SILENT_S - self._lanes[engine].silence_s()
            if left_s > 0:
                again_s = min(again_s, left_s)
                continue
            does = "stops" if live.state is AttemptState.STOPPING else "starts"
            self._say(
                task, live.id, engine, "EngineSilent",
                f"the engine {engine} does not list its workloads: attempt {live.number} {does} when it does; see that it runs and "
                "that the operator can reach it",
            )  # fmt: skip
        if again_s < float("inf"):
            self._delays.after(("silence", key), again_s, lambda: self._look(key))
        else:
            self.forget(key)

    def forget(self, key: TaskKey) -> None:
        """It waits for no engine, or is gone."""
        self._delays.cancel(("silence", key))

    def _say(self, task: SwarmTask, subject: str, engine: str, reason: str, message: str) -> None:
        """Once in this process."""
        if (subject, engine, reason) not in self._said:
            self._said.add((subject, engine, reason))
            self._announcer.tell(SWARM_TASK, task.metadata, Announcement("Warning", reason, message))


def _incomplete(lane: EngineLane, task: SwarmTask) -> bool:
    """The list is older than something that it may lack."""
    listing, submissions = lane.listing, lane.submissions
    if listing is not None and any(
        submissions.may_still_land(attempt.id, listing.taken_at)
        for attempt in task.status.attempts
        if not attempt.live and attempt.engine == lane.name and not attempt.observed
    ):
        return True
    current = task.status.current
    if current is None or current.engine != lane.name:
        return False
    if submissions.under_way(current.id):
        return True
    submitted = submissions.submitted_at(task.metadata.uid, current.id)
    return submitted is not None and not lane.listed_after(submitted)
