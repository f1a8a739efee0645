"""A task and its time, told event by event. Used by every test of the lifecycle.

Each `tell` also checks what must hold of every single step: the input is not changed, the status survives the wire, telling the
same again changes nothing, and the checker of the invariants is content.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any

from swarmtask.lifecycle.messages import (
    Announcement,
    Bound,
    Command,
    Observation,
    Observed,
    Reason,
    Reconcile,
    TaskEvent,
    Transition,
    Twin,
    WakeAt,
    WorkloadState,
)
from swarmtask.lifecycle.task import Policy, handle, outstanding
from swarmtask.resources.meta import FINALIZER, get_condition
from swarmtask.resources.task import Attempt, Phase, SwarmTask, attempt_id
from tests.checker.checker import Checker

UID = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
START = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def make_task(**spec: Any) -> SwarmTask:
    """A stored task without a status; `spec` in wire names. Its delays are exact unless it asks for jitter."""
    spec["backoff"] = {"jitterPercent": 0, **spec.get("backoff", {})}
    return SwarmTask.model_validate(
        {
            "metadata": {
                "name": "lint", "namespace": "team", "uid": UID, "generation": 1, "finalizers": [FINALIZER],
                "creationTimestamp": "2026-03-01T12:00:00Z",
            },
            "spec": {"container": {"image": "ghcr.io/acme/lint:1.4"}, **spec},
        }
    )  # fmt: skip


class Story:
    """Moves one task through events and time."""

    def __init__(self, policy: Policy | None = None, **spec: Any) -> None:
        self.task = make_task(**spec)
        self.now = START
        self.policy = policy or Policy()
        self.checker = Checker(infrastructure_loss_limit=self.policy.infrastructure_loss_limit)
        self.told: list[Announcement] = []
        self.last = Transition(self.task.status, changed=False)

    # --- events ----------------------------------------------------------------------------------------------------------

    def tell(self, event: TaskEvent) -> Transition:
        before = self.task.model_dump()
        transition = handle(self.task, event, self.now, self.policy)
        assert self.task.model_dump() == before, "handle changed its input"
        assert transition.changed == (transition.status != self.task.status)
        if not transition.changed:
            assert not transition.announcements
        labels = {key: value for key, value in {**self.task.metadata.labels, **transition.labels}.items() if value is not None}
        metadata = self.task.metadata.model_copy(update={"labels": labels})
        self.task = self.task.model_copy(update={"status": transition.status, "metadata": metadata})
        assert SwarmTask.model_validate(self.task.to_dict()) == self.task, "the status does not survive the wire"
        again = handle(self.task, event, self.now, self.policy)
        assert not again.changed, f"the second {event} changed {self.task.status} to {again.status}"
        assert not again.announcements
        assert not again.labels
        self.checker.task_seen(self.task, self.now)
        self.checker.assert_ok()
        self.told.extend(transition.announcements)
        self.last = transition
        return transition

    def reconcile(self, *, queue_exists: bool = True, twin: Twin | None = None) -> Transition:
        return self.tell(Reconcile(queue_exists=queue_exists, twin=twin))

    def bind(self, node: str = "laptop-1", boot_id: str = "") -> Transition:
        return self.tell(Bound(node, "swarm", f"id-of-{node}", boot_id=boot_id))

    def observe(self, state: WorkloadState, number: int | None = None, **facts: Any) -> Transition:
        return self.tell(Observed(self.seen(state, number, **facts)))

    def seen(self, state: WorkloadState, number: int | None = None, **facts: Any) -> Observation:
        n = self.status.attempt if number is None else number
        known = {"name": attempt_id(UID, n), "engine": "swarm", "task_uid": UID, "namespace": "team", "task_name": "lint"}
        return Observation(**{**known, "attempt": n, "state": state, **facts})

    def run(self, node: str = "laptop-1", boot_id: str = "") -> None:
        """From anywhere before the queue to Running."""
        self.reconcile()
        self.bind(node, boot_id)
        self.observe(WorkloadState.RUNNING)

    def exit(self, code: int | None, **facts: Any) -> Transition:
        return self.observe(WorkloadState.EXITED, exit_code=code, **facts)

    # --- people ----------------------------------------------------------------------------------------------------------

    def annotate(self, key: str, value: str | None) -> None:
        annotations = {**self.task.metadata.annotations}
        if value is None:
            annotations.pop(key, None)
        else:
            annotations[key] = value
        self._metadata(annotations=annotations)

    def delete(self) -> None:
        if self.task.metadata.deletion_timestamp is None:
            self._metadata(deletion_timestamp=self.now.replace(microsecond=0))

    def edit(self, **spec: Any) -> None:
        """Change fields of the spec (Python names)."""
        self.task = self.task.model_copy(update={"spec": self.task.spec.model_copy(update=spec)})
        self._metadata(generation=self.task.metadata.generation + 1)

    def _metadata(self, **changes: Any) -> None:
        self.task = self.task.model_copy(update={"metadata": self.task.metadata.model_copy(update=changes)})

    # --- time ------------------------------------------------------------------------------------------------------------

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def wake(self) -> Transition:
        """Sleep to the next deadline, as the controllers do."""
        when = next(command.when for command in self.commands() if isinstance(command, WakeAt))
        self.now = max(self.now, when)
        return self.reconcile()

    # --- reading ---------------------------------------------------------------------------------------------------------

    def commands(self, present: Collection[Observation] | None = None) -> tuple[Command, ...]:
        before = copy.deepcopy(self.task)
        answer = outstanding(self.task, self.now, self.policy, present)
        assert self.task == before
        return answer

    @property
    def status(self) -> Any:
        return self.task.status

    @property
    def phase(self) -> Phase:
        return self.task.status.phase

    @property
    def current(self) -> Attempt:
        attempt = self.task.status.current
        assert attempt is not None
        return attempt

    def reasons(self) -> list[str]:
        """Reasons of everything announced so far."""
        return [announcement.reason for announcement in self.told]

    def condition(self, type_: str) -> tuple[str, str]:
        condition = get_condition(self.task.status.conditions, type_)
        assert condition is not None, f"no condition {type_}"
        return condition.status, condition.reason


__all__ = ["START", "UID", "Reason", "Story", "WorkloadState", "make_task"]
