"""Random lives of a task: repeated, late, foreign and contradictory events, edits, wishes of people, and a clock that jumps.

`Story.tell` checks every step (purity, wire round trip, repetition, and the checker's I2 to I5 and I8); the machine adds what must
hold of the whole life.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from swarmtask.lifecycle.messages import (
    Drain,
    InvalidObject,
    MadeWith,
    NodeGone,
    NodeSilent,
    NodeTold,
    Observation,
    Observed,
    Preempt,
    Reason,
    ReleaseFinalizer,
    Submit,
    SubmitRefused,
    TaskEvent,
    Twin,
    Unplaced,
    Vanished,
    WakeAt,
    WorkloadState,
)
from swarmtask.lifecycle.task import Policy
from swarmtask.resources.failures import FailureRule
from swarmtask.resources.node import NodeAttempt
from swarmtask.resources.task import (
    ANNOTATION_CANCEL,
    ANNOTATION_RETRY,
    BOUND_PHASES,
    LABEL_DEAD_LETTER,
    MAX_ATTEMPT_RECORDS,
    TERMINAL_PHASES,
    Attempt,
    Phase,
    attempt_id,
)
from tests.lifecycle.story import START, UID, Story
from tests.lifecycle.structural import problems, task_schema

SCHEMA = task_schema()
ENGINE_REASONS = st.sampled_from([None, None, None, Reason.IMAGE_PULL_FAILED, Reason.NODE_RESTARTED, Reason.OOM_KILLED])
WORDS = st.sampled_from(["", "task: non-zero exit", "ü" * 5000, "\x00"])
MOMENTS = st.none() | st.integers(-100_000, 100_000).map(lambda seconds: START + timedelta(seconds=seconds, microseconds=7))
TWINS = st.none() | st.builds(
    Twin, st.sampled_from(["first", "second"]), st.just("another"), st.sampled_from(Phase), st.sampled_from([None, 0, 1]), WORDS
)
RULES_GIVEN = st.lists(
    st.builds(
        FailureRule, on_reasons=st.just(["Error", "NodeLost", "Preempted", "StartDeadline"]), on_exit_codes=st.just([]),
        action=st.sampled_from(["Retry", "Ignore", "Fail"]),
    )
    | st.builds(FailureRule, on_exit_codes=st.just([1, 137]), action=st.sampled_from(["Retry", "Ignore", "Fail"])),
    max_size=2,
)  # fmt: skip
WHICH = st.sampled_from([0, 0, 0, 0, -1, -2, 1])
"""Offset from the current attempt number: mostly the current one."""


def _without_usage(attempts: list[Attempt]) -> list[Attempt]:
    """A node may tell what an attempt used when that is long over."""
    return [attempt.model_copy(update={"peak_memory": None, "cpu_seconds": None}) for attempt in attempts]


class TaskLife(RuleBasedStateMachine):
    story: Story
    past: list[TaskEvent]

    @initialize(
        backoff_limit=st.integers(0, 3), initial=st.sampled_from([0, 5]), active=st.sampled_from([None, 30]),
        queue=st.sampled_from([None, 60]), limit=st.integers(0, 3), key=st.sampled_from(["", "k"]),
        jitter=st.sampled_from([0, 100]),
    )  # fmt: skip
    def begin(self, backoff_limit: int, limit: int, **drawn: Any) -> None:
        active, queue = drawn["active"], drawn["queue"]
        deadlines = {"activeDeadlineSeconds": active, "queueDeadlineSeconds": queue, "startDeadlineSeconds": 20}
        self.story = Story(
            Policy(infrastructure_loss_limit=limit, stop_margin_s=3), backoffLimit=backoff_limit,
            backoff={"initialSeconds": drawn["initial"], "maxSeconds": 60, "jitterPercent": drawn["jitter"]},
            dedupeKey=drawn["key"], **{name: value for name, value in deadlines.items() if value},
        )  # fmt: skip
        self.past = []

    def send(self, event: TaskEvent) -> None:
        before, asked = self.story.task, self._new_retry()
        transition = self.story.tell(event)
        self.past.append(event)
        if before.status.phase in TERMINAL_PHASES and not asked:
            assert transition.status.phase is before.status.phase
            assert _without_usage(transition.status.attempts) == _without_usage(before.status.attempts)
        if transition.status.attempt > before.status.attempt:
            assert before.status.phase is Phase.QUEUED
            assert transition.status.phase is Phase.STARTING

    def _new_retry(self) -> bool:
        text = self.story.task.metadata.annotations.get(ANNOTATION_RETRY)
        return text is not None and text != self.story.status.observed_retry

    # --- the operator ----------------------------------------------------------------------------------------------------

    @rule(queue_exists=st.sampled_from([True, True, True, False]))
    def reconcile(self, queue_exists: bool) -> None:
        self.story.reconcile(queue_exists=queue_exists)

    @rule(twin=TWINS)
    def find_twin(self, twin: Twin | None) -> None:
        begun, asked = self.story.status.start_time is not None, self._new_retry()
        self.story.reconcile(twin=twin)
        status = self.story.status
        if status.reason == "Deduplicated":
            assert self.story.task.spec.dedupe_key
            assert not begun or asked, "a task that has run is never deduplicated"

    @rule(which=WHICH)
    def preempt(self, which: int) -> None:
        self.send(Preempt(self.story.status.attempt + which, ("team", "urgent")))

    @rule(which=WHICH)
    def drain(self, which: int) -> None:
        before = self.story.status
        self.send(Drain(self.story.status.attempt + which, "laptop-1"))
        if before.phase is Phase.UNKNOWN and not self._new_retry():
            assert "Drained" not in (self.story.status.reason or "") or before.reason == "Drained"

    @rule(node=st.sampled_from(["laptop-1", "laptop-2"]), boot_id=st.sampled_from(["", "first boot", "second boot"]))
    def bind(self, node: str, boot_id: str) -> None:
        self.story.reconcile()
        self.story.bind(node, boot_id)

    @rule(which=WHICH, fence=st.booleans())
    def show_what_it_was_made_with(self, which: int, fence: bool) -> None:
        self.send(MadeWith(self.story.status.attempt + which, fence))

    @rule(which=WHICH, silent_s=st.sampled_from([5.0, 40.0, 4000.0]), fenced=st.booleans())
    def miss_its_node(self, which: int, silent_s: float, fenced: bool) -> None:
        self.send(NodeSilent(self.story.status.attempt + which, silent_s, fenced))

    @rule(
        which=WHICH, code=st.sampled_from([None, 0, 1, 137]), reason=st.sampled_from(["", "OOMKilled", "Evicted", "Fenced"]),
        state=st.sampled_from(["Running", "Exited"]), moment=MOMENTS, boot_id=st.sampled_from(["", "first boot", "second boot"]),
        peak=st.sampled_from([None, "64Mi"]), words=st.sampled_from(["", "\x00", "ü" * 1024]),
    )  # fmt: skip
    def hear_of_its_end(self, which: int, code: int | None, boot_id: str, **told: Any) -> None:
        number = max(1, self.story.status.attempt + which)
        record = NodeAttempt(
            id=attempt_id(UID, number), state=told["state"], exit_code=code, reason=told["reason"], started_at=told["moment"],
            finished_at=told["moment"], peak_memory=told["peak"], message=told["words"],
        )  # fmt: skip
        self.send(NodeTold(number, record, boot_id))

    @rule()
    def leave_in_queue(self) -> None:
        self.send(Unplaced(3, "NoNodeFits", "0/2 nodes fit"))

    @rule()
    def wake(self) -> None:
        wakes = [command for command in self.story.commands() if isinstance(command, WakeAt)]
        if wakes:
            self.story.wake()

    # --- the engine ------------------------------------------------------------------------------------------------------

    @rule(
        which=WHICH, state=st.sampled_from(WorkloadState), code=st.sampled_from([None, 0, 1, 137]), reason=ENGINE_REASONS,
        words=WORDS, started=MOMENTS, finished=MOMENTS,
    )  # fmt: skip
    def observe(self, which: int, state: WorkloadState, code: int | None, reason: Reason | None, words: str, **times: Any) -> None:
        number = max(1, self.story.status.attempt + which)
        self.send(
            Observed(
                self.story.seen(
                    state, number, exit_code=code, reason=reason, message=words, started_at=times["started"],
                    finished_at=times["finished"],
                )
            )
        )  # fmt: skip

    @rule()
    def run(self) -> None:
        self.send(Observed(self.story.seen(WorkloadState.RUNNING)))

    @rule(uid=st.sampled_from(["", "another"]), state=st.sampled_from(WorkloadState))
    def observe_foreign(self, uid: str, state: WorkloadState) -> None:
        number = max(1, self.story.status.attempt)
        seen = Observation(attempt_id(UID, number), "swarm", uid, "team", "lint", number, state, exit_code=0)
        before = self.story.status
        self.send(Observed(seen))
        assert self.story.status == before

    @rule(which=WHICH)
    def vanish(self, which: int) -> None:
        self.send(Vanished(self.story.status.attempt + which))

    @rule(which=WHICH, reason=st.sampled_from([Reason.ENGINE_REJECTED, Reason.SECRET_NOT_FOUND]))
    def refuse(self, which: int, reason: Reason) -> None:
        self.send(SubmitRefused(self.story.status.attempt + which, reason, "no"))

    @rule(which=WHICH)
    def lose_node(self, which: int) -> None:
        self.send(NodeGone(self.story.status.attempt + which, "left the swarm"))

    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        if self.past:
            self.send(data.draw(st.sampled_from(self.past)))

    # --- people and time -------------------------------------------------------------------------------------------------

    @rule()
    def break_object(self) -> None:
        self.send(InvalidObject("spec: broken"))

    @rule(key=st.sampled_from([ANNOTATION_CANCEL, ANNOTATION_RETRY]), text=st.sampled_from([None, "", "a", "b"]))
    def annotate(self, key: str, text: str | None) -> None:
        self.story.annotate(key, text)

    @rule(on=st.booleans())
    def suspend(self, on: bool) -> None:
        self.story.edit(suspend=on)

    @rule(limit=st.integers(0, 3), rules=RULES_GIVEN)
    def edit(self, limit: int, rules: list[FailureRule]) -> None:
        self.story.edit(backoff_limit=limit, failure_policy=rules)

    @rule(seconds=st.sampled_from([-100_000, -10, -0.5, 0.3, 1, 10, 100, 100_000]))
    def jump(self, seconds: float) -> None:
        self.story.wait(seconds)

    # --- what holds at all times -----------------------------------------------------------------------------------------

    @invariant()
    def status_is_whole(self) -> None:
        story, status = self.story, self.story.status
        assert problems(story.task.to_dict(), SCHEMA) == []
        assert len(status.attempts) <= MAX_ATTEMPT_RECORDS
        live = [attempt for attempt in status.attempts if attempt.live]
        assert len(live) == (1 if status.phase in BOUND_PHASES else 0)
        assert (status.node_name is None) <= (status.phase not in BOUND_PHASES)
        assert (status.completion_time is not None) == (status.phase in TERMINAL_PHASES)
        assert (LABEL_DEAD_LETTER in story.task.metadata.labels) == (status.phase is Phase.FAILED)
        assert (status.outcome_of is not None) == (status.reason == "Deduplicated")
        for attempt in status.attempts:
            if attempt.finished_at is not None and attempt.started_at is not None:
                assert attempt.started_at <= attempt.finished_at
            assert attempt.live == (attempt.finished_at is None)

    @invariant()
    def conditions_are_true(self) -> None:
        if not self.story.status.conditions:
            return
        phase = self.story.status.phase
        assert self.story.condition("Complete")[0] == ("True" if phase is Phase.SUCCEEDED else "False")
        failed = phase in TERMINAL_PHASES and phase is not Phase.SUCCEEDED
        assert self.story.condition("Failed")[0] == ("True" if failed else "False")
        assert self.story.condition("Running")[0] == {Phase.RUNNING: "True", Phase.UNKNOWN: "Unknown"}.get(phase, "False")
        if phase in BOUND_PHASES:
            assert self.story.condition("Scheduled")[0] == "True"
        if phase in (Phase.QUEUED, Phase.PENDING, Phase.BACKOFF):
            assert self.story.condition("Scheduled")[0] == "False"

    @invariant()
    def submits_only_what_lives(self) -> None:
        for command in self.story.commands([]):
            if isinstance(command, Submit):
                assert command.attempt == self.story.current
                assert command.attempt.live
                assert not command.attempt.observed

    def teardown(self) -> None:
        """Whatever came before: a deleted task is let go as soon as its attempt has ended."""
        if not hasattr(self, "story"):
            return
        self.story.delete()
        self.story.reconcile()
        if self.story.status.attempts and self.story.current.live:
            self.story.exit(143)
        assert ReleaseFinalizer() in self.story.commands([])


TestTaskLife = TaskLife.TestCase
TestTaskLife.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
