"""The index of tasks with the same dedupeKey: the same answers as a look at all tasks, and nobody is forgotten."""

from __future__ import annotations

from collections import deque
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmtask.controllers.twins import Twins
from swarmtask.lifecycle.messages import Bound, Observed, Reconcile, TaskEvent
from swarmtask.lifecycle.messages import WorkloadState as W
from swarmtask.lifecycle.task import Policy, handle
from swarmtask.lifecycle.twins import Precedence, Standing, did_the_work, following, has_outcome, precedence, standing
from swarmtask.resources.task import ANNOTATION_CANCEL, ANNOTATION_RETRY, Phase, SwarmTask, attempt_id
from swarmtask.scheduler.model import TaskKey
from tests.lifecycle.story import START, Story, make_task

POLICY = Policy()
OPERATIONS = [
    "create",
    "create",
    "bind",
    "bind",
    "run",
    "succeed",
    "fail",
    "cancel",
    "suspend",
    "resume",
    "retry",
    "delete",
    "key",
    "queue",
    "stop",
]
OPS = st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 5), st.sampled_from(["a", "a", "b", ""])), max_size=40)


class Crowd:
    """Tasks that are looked at when they change or are stirred, as the executor does, one look after another."""

    def __init__(self) -> None:
        self.twins = Twins()
        self.tasks: dict[TaskKey, SwarmTask] = {}
        self.now: datetime = START
        self.looks = 0
        self.created = 0
        self.edited: set[TaskKey] = set()
        """Tasks that were given another key when they had begun: they go on, whoever else has that key."""
        self.missing: set[TaskKey] = set()
        """Tasks whose queue does not exist."""
        self.stopped: set[str] = set()
        """Queues that start nothing. Of the six tasks half are in each of two."""
        self._queue: deque[TaskKey] = deque()
        self.twins.stir = self._queue.append

    def store(self, key: TaskKey, task: SwarmTask | None) -> None:
        if task is None:
            self.tasks.pop(key, None)
        else:
            self.tasks[key] = task
        self.twins.put(key, task)
        self._queue.append(key)

    def create(self, name: str, key: str, **spec: Any) -> SwarmTask:
        self.created += 1
        task = make_task(dedupeKey=key, backoffLimit=0, **spec)
        # Created in the same second as its neighbours, with UIDs in no order.
        changes = {"name": name, "uid": f"{self.created * 7 % 16:x}{self.created:07d}-0000", "creation_timestamp": self.now}
        task = task.model_copy(update={"metadata": task.metadata.model_copy(update=changes)})
        self.store(task.key, task)
        return task

    def tell(self, key: TaskKey, event: TaskEvent) -> None:
        task = self.tasks[key]
        transition = handle(task, event, self.now, POLICY)
        if transition.changed:
            self.store(key, task.model_copy(update={"status": transition.status}))

    def settle(self) -> None:
        """Until nobody has to be looked at."""
        while self._queue:
            key = self._queue.popleft()
            task = self.tasks.get(key)
            if task is not None:
                self.looks += 1
                assert self.looks < 20_000, "they stir each other for ever"
                self.tell(key, Reconcile(key not in self.missing, self.twins.of(task, self.now)))

    def change(self, key: TaskKey, *, annotation: str = "", **spec: Any) -> None:
        task = self.tasks[key]
        metadata = task.metadata
        if annotation:
            metadata = metadata.model_copy(update={"annotations": {**metadata.annotations, annotation: str(self.looks)}})
        self.store(key, task.model_copy(update={"spec": task.spec.model_copy(update=spec), "metadata": metadata}))

    def observe(self, key: TaskKey, state: W, code: int | None = None) -> None:
        task = self.tasks[key]
        number = max(1, task.status.attempt)
        seen = Story().seen(state, number, name=attempt_id(task.metadata.uid, number), task_uid=task.metadata.uid, exit_code=code)
        self.tell(key, Observed(seen))

    def perform(self, op: str, number: int, word: str) -> None:
        key = ("team", f"t{number}")
        if op == "create":
            if key not in self.tasks:
                self.create(key[1], word, queue=f"q{number % 2}")
        elif op == "bind" and self.is_stopped(self.tasks.get(key)):
            pass
        elif op == "stop":
            self.stopped ^= {f"q{number % 2}"}
            self.twins.put_queue(("team", f"q{number % 2}"), stopped=f"q{number % 2}" in self.stopped)
        elif key in self.tasks:
            match op:
                case "bind":
                    self.tell(key, Reconcile(key not in self.missing, self.twins.of(self.tasks[key], self.now)))
                    self.tell(key, Bound("n1", "swarm", "id"))
                case "run":
                    self.observe(key, W.RUNNING)
                case "succeed" | "fail":
                    self.observe(key, W.EXITED, 0 if op == "succeed" else 1)
                case "cancel":
                    self.change(key, annotation=ANNOTATION_CANCEL)
                case "retry":
                    self.change(key, annotation=ANNOTATION_RETRY)
                case "suspend" | "resume":
                    self.change(key, suspend=op == "suspend")
                case "key":
                    if standing(self.tasks[key]) is Standing.BEGUN:
                        self.edited.add(key)
                    self.change(key, dedupe_key=word)
                case "queue":
                    self.missing ^= {key}
                    self._queue.append(key)
                case _:
                    self.store(key, None)
                    self.missing.discard(key)
                    self.edited.discard(key)

    def is_stopped(self, task: SwarmTask | None) -> bool:
        return task is not None and task.spec.queue in self.stopped

    def stands(self, task: SwarmTask) -> Standing:
        return standing(task, stopped=self.is_stopped(task))

    # --- by looking at all of them ---

    def expected(self, task: SwarmTask) -> str | None:
        """Name of the twin, found the slow way."""
        if not task.spec.dedupe_key or standing(task) is Standing.BEGUN:
            return None
        same = [other for other in self.tasks.values() if other.spec.dedupe_key == task.spec.dedupe_key]
        for other in same:
            if other.metadata.name == following(task.status) and has_outcome(other.status):
                return other.metadata.name
        window = timedelta(seconds=task.spec.dedupe_window_seconds)
        done = [other for other in same if did_the_work(other.status) and other is not task]
        done = [other for other in done if other.status.completion_time and self.now - other.status.completion_time < window]
        if done:
            return max(done, key=lambda other: (other.status.completion_time, _inverted(other.metadata.uid))).metadata.name
        ready = [other for other in same if self.stands(other) < Standing.HELD]

        def rank(one: SwarmTask) -> Precedence:
            return precedence(one, stopped=self.is_stopped(one))

        first = min(ready, key=rank, default=None)
        return first.metadata.name if first is not None and first is not task and rank(first) < rank(task) else None

    def check(self) -> None:
        for task in self.tasks.values():
            found = self.twins.of(task, self.now)
            assert (None if found is None else found.name) == self.expected(task), task.metadata.name
            assert not self.twins.awaited(task.key)
            world = Reconcile(task.key not in self.missing, found)
            assert not handle(task, world, self.now, POLICY).changed, f"{task.metadata.name} was forgotten"
            followed = self.tasks.get(("team", following(task.status) or ""))
            if following(task.status) is not None:
                assert followed is not None
                assert following(followed.status) is None, "whoever is waited for must not wait itself"
        at_work = [task for task in self.tasks.values() if self.stands(task) <= Standing.ADMITTED and task.spec.dedupe_key]
        keys = [task.spec.dedupe_key for task in at_work if task.key not in self.edited]
        assert len(keys) == len(set(keys)), "two of one key are at work"


def _inverted(uid: str) -> tuple[int, ...]:
    return tuple(-ord(letter) for letter in uid)


@pytest.mark.slow
@settings(max_examples=150)
@given(OPS)
def test_after_every_change_everybody_who_has_to_know_has_looked(ops: list[tuple[str, int, str]]) -> None:
    crowd = Crowd()
    for op, number, word in ops:
        crowd.perform(op, number, word)
        crowd.settle()
        crowd.check()
        crowd.now += timedelta(seconds=0.4)


@pytest.mark.slow
@settings(max_examples=600)
@given(st.lists(OPS, max_size=8))
def test_after_many_changes_at_once_too(batches: list[list[tuple[str, int, str]]]) -> None:
    crowd = Crowd()
    for batch in batches:
        for op in batch[:8]:
            crowd.perform(*op)
        crowd.settle()
        crowd.check()


@pytest.mark.slow
def test_three_thousand_of_one_key_cost_a_few_looks_each() -> None:
    crowd = Crowd()
    for number in range(3000):
        crowd.create(f"t{number}", "k")
        crowd.settle()
    assert crowd.looks < 10 * 3000
    first = next(key for key, task in crowd.tasks.items() if task.status.phase is Phase.QUEUED)
    crowd.tell(first, Bound("n1", "swarm", "id"))
    crowd.observe(first, W.RUNNING)
    crowd.settle()
    before = crowd.looks
    crowd.observe(first, W.EXITED, 1)
    crowd.settle()
    assert {task.status.phase for task in crowd.tasks.values()} == {Phase.FAILED}
    assert crowd.looks - before < 6 * 3000


def test_what_is_being_written_counts_until_the_write_has_ended() -> None:
    crowd = Crowd()
    older, younger = crowd.create("older", "k"), crowd.create("younger", "k")
    younger = younger.model_copy(update={"metadata": younger.metadata.model_copy(update={"uid": "ffff"})})
    crowd.store(younger.key, younger)
    assert crowd.twins.of(older, START) is None
    queued = handle(younger, Reconcile(), START, POLICY).status
    crowd.twins.assume(younger.key, younger.model_copy(update={"status": queued}))
    twin = crowd.twins.of(older, START)
    assert twin is not None
    assert twin.name == "younger"
    crowd.twins.drop_assumption(younger.key)
    assert crowd.twins.of(older, START) is None
    crowd.twins.assume(("team", "unknown"), older)
    crowd.twins.drop_assumption(("team", "unknown"))


def test_one_without_a_queue_waits_for_another_one_too() -> None:
    crowd = Crowd()
    for op, number in (("create", 0), ("queue", 0), ("create", 1)):
        crowd.perform(op, number, "k")
    crowd.settle()
    crowd.perform("create", 2, "k")
    crowd.settle()
    crowd.check()
    statuses = [crowd.tasks["team", f"t{number}"].status for number in range(3)]
    assert [(status.phase, status.outcome_of) for status in statuses] == [("Pending", "t1"), ("Queued", None), ("Pending", "t1")]


def test_a_task_that_leaves_takes_its_assumption_along() -> None:
    crowd = Crowd()
    task = crowd.create("one", "k")
    crowd.twins.assume(task.key, task)
    crowd.store(task.key, None)
    crowd.twins.drop_assumption(task.key)
    other = crowd.create("two", "k")
    assert crowd.twins.of(other, START) is None
