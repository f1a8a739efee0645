"""Every situation a task can be in, and every event that can meet it: rows and columns of the transition table."""

from __future__ import annotations

from collections.abc import Callable

from swarmtask.lifecycle.messages import (
    Bound,
    Drain,
    InvalidObject,
    MadeWith,
    NodeGone,
    NodeSilent,
    NodeTold,
    Observed,
    Preempt,
    Reason,
    Reconcile,
    SubmitRefused,
    TaskEvent,
    Twin,
    Unplaced,
    Vanished,
)
from swarmtask.lifecycle.messages import WorkloadState as W
from swarmtask.resources.node import NodeAttempt
from swarmtask.resources.task import ANNOTATION_CANCEL, Phase, attempt_id
from tests.lifecycle.story import UID, Story


def _new() -> Story:
    return Story(dedupeKey="k", backoffLimit=1, activeDeadlineSeconds=1000, startDeadlineSeconds=100, queueDeadlineSeconds=500)


def _suspended() -> Story:
    story = _new()
    story.edit(suspend=True)
    story.reconcile()
    return story


def _without_queue() -> Story:
    story = _new()
    story.reconcile(queue_exists=False)
    return story


def _deduplicated() -> Story:
    story = _new()
    story.reconcile(twin=Twin("first", "uid-of-first", Phase.RUNNING))
    return story


def _queued() -> Story:
    story = _new()
    story.reconcile()
    return story


def _bound() -> Story:
    story = _queued()
    story.bind()
    return story


def _preparing() -> Story:
    story = _bound()
    story.observe(W.PREPARING)
    return story


def _running() -> Story:
    story = _preparing()
    story.observe(W.RUNNING)
    return story


def _unknown_before_start() -> Story:
    story = _preparing()
    story.observe(W.UNKNOWN)
    return story


def _unknown() -> Story:
    story = _running()
    story.observe(W.UNKNOWN)
    return story


def _stopping(cause: str, begin: Callable[[], Story] = _running) -> Callable[[], Story]:
    def make() -> Story:
        story = begin()
        if cause == "cancel":
            story.annotate(ANNOTATION_CANCEL, "x")
        elif cause == "delete":
            story.delete()
        elif cause == "suspend":
            story.edit(suspend=True)
        elif cause == "drain":
            story.tell(Drain(story.status.attempt, "laptop-1"))
        elif cause == "preempt":
            story.tell(Preempt(story.status.attempt, ("team", "urgent")))
        else:
            story.wake()
        story.reconcile()
        return story

    return make


def _backoff() -> Story:
    story = _running()
    story.exit(1)
    return story


def _succeeded() -> Story:
    story = _running()
    story.exit(0)
    return story


def _failed() -> Story:
    story = _backoff()
    story.wake()
    story.bind()
    story.exit(1)
    return story


def _cancelled() -> Story:
    story = _queued()
    story.annotate(ANNOTATION_CANCEL, "x")
    story.reconcile()
    return story


def _expired() -> Story:
    story = _queued()
    story.wake()
    return story


SITUATIONS: dict[str, Callable[[], Story]] = {
    "new": _new,
    "suspended": _suspended,
    "without queue": _without_queue,
    "deduplicated": _deduplicated,
    "queued": _queued,
    "bound": _bound,
    "preparing": _preparing,
    "running": _running,
    "unknown before start": _unknown_before_start,
    "unknown": _unknown,
    "stopping for start deadline": _stopping("deadline", _preparing),
    "stopping for active deadline": _stopping("deadline"),
    "stopping for suspend": _stopping("suspend"),
    "stopping for preemption": _stopping("preempt"),
    "stopping for drain": _stopping("drain"),
    "stopping for cancel": _stopping("cancel"),
    "stopping for delete": _stopping("delete"),
    "stopping unseen": _stopping("cancel", _bound),
    "stopping on a silent node": _stopping("cancel", _unknown),
    "backoff": _backoff,
    "succeeded": _succeeded,
    "failed": _failed,
    "cancelled": _cancelled,
    "expired": _expired,
}

EVENTS: dict[str, Callable[[Story], TaskEvent]] = {
    "reconcile": lambda story: Reconcile(),
    "queue gone": lambda story: Reconcile(queue_exists=False),
    "twin runs": lambda story: Reconcile(twin=Twin("first", "uid-of-first", Phase.RUNNING)),
    "twin succeeded": lambda story: Reconcile(twin=Twin("first", "uid-of-first", Phase.SUCCEEDED, 0)),
    "twin failed": lambda story: Reconcile(twin=Twin("first", "uid-of-first", Phase.FAILED, 1)),
    "twin cancelled": lambda story: Reconcile(twin=Twin("first", "uid-of-first", Phase.CANCELLED)),
    "preempt": lambda story: Preempt(story.status.attempt, ("team", "urgent")),
    "drain": lambda story: Drain(story.status.attempt, "laptop-1"),
    "bound": lambda story: Bound("laptop-7", "swarm", "id-of-laptop-7"),
    "unplaced": lambda story: Unplaced(2, "NoNodeFits", "0/3 nodes fit"),
    "pending": lambda story: Observed(story.seen(W.PENDING)),
    "preparing": lambda story: Observed(story.seen(W.PREPARING)),
    "pull fails": lambda story: Observed(story.seen(W.PREPARING, reason=Reason.IMAGE_PULL_FAILED, message="no such image")),
    "running": lambda story: Observed(story.seen(W.RUNNING)),
    "unknown": lambda story: Observed(story.seen(W.UNKNOWN)),
    "exit 0": lambda story: Observed(story.seen(W.EXITED, exit_code=0)),
    "exit 1": lambda story: Observed(story.seen(W.EXITED, exit_code=1)),
    "exit lost": lambda story: Observed(story.seen(W.EXITED)),
    "oom": lambda story: Observed(story.seen(W.EXITED, exit_code=137, reason=Reason.OOM_KILLED)),
    "restarted": lambda story: Observed(story.seen(W.EXITED, exit_code=255, reason=Reason.NODE_RESTARTED)),
    "rejected": lambda story: Observed(story.seen(W.REJECTED, message="no")),
    "stopped": lambda story: Observed(story.seen(W.STOPPED)),
    "vanished": lambda story: Vanished(story.status.attempt),
    "refused": lambda story: SubmitRefused(story.status.attempt, Reason.ENGINE_REJECTED, "no"),
    "node gone": lambda story: NodeGone(story.status.attempt, "left"),
    "fenced": lambda story: MadeWith(story.status.attempt, fence=True),
    "not fenced": lambda story: MadeWith(story.status.attempt, fence=False),
    "node silent": lambda story: NodeSilent(story.status.attempt, 5.0, fenced=True),
    "node lost": lambda story: NodeSilent(story.status.attempt, 3600.0, fenced=True),
    "node told 0": lambda story: NodeTold(story.status.attempt, ended(story, 0)),
    "invalid": lambda story: InvalidObject("spec: broken"),
    "late": lambda story: Observed(story.seen(W.EXITED, story.status.attempt + 1, exit_code=0)),
}


def ended(story: Story, code: int) -> NodeAttempt:
    """What the agent of its node tells of the newest attempt."""
    return NodeAttempt(id=attempt_id(UID, max(1, story.status.attempt)), state="Exited", exit_code=code)


def outcome(story: Story) -> str:
    """Phase, reason of the phase, and state of a live attempt where the phase does not say it: "Running/Cancelled/Stopping"."""
    words = [story.phase.value, story.status.reason or ""]
    current = story.status.current
    if current is not None and current.live and current.state.value != story.phase.value:
        words.append(current.state.value)
    return "/".join(words).rstrip("/")
