"""Nodes that fall silent, come back, or are gone: nothing of it is the task's fault."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from swarmtask.lifecycle.loss import NO_AGENT, Hearing, NodeWord, replace_after_s, weigh
from swarmtask.lifecycle.messages import (
    Drain,
    NodeGone,
    NodeSilent,
    NodeTold,
    Observation,
    Reason,
    Remove,
    Stop,
    Vanished,
)
from swarmtask.lifecycle.messages import WorkloadState as W
from swarmtask.lifecycle.task import Policy
from swarmtask.resources.node import NodeAttempt
from swarmtask.resources.task import ANNOTATION_CANCEL, ANNOTATION_RETRY, Attempt, AttemptState, Phase, attempt_id
from tests.lifecycle.story import START, UID, Story, make_task


def test_an_unreachable_node_is_announced_once_and_the_run_goes_on() -> None:
    story = Story()
    story.run()
    for _ in range(3):
        story.observe(W.UNKNOWN)
    assert (story.phase, story.current.state) == (Phase.UNKNOWN, AttemptState.UNKNOWN)
    assert story.condition("Running") == ("Unknown", "NodeUnreachable")
    for _ in range(3):
        story.observe(W.RUNNING)
    assert (story.phase, story.current.state) == (Phase.RUNNING, AttemptState.RUNNING)
    assert [reason for reason in story.reasons() if reason.startswith("Node")] == ["NodeUnreachable", "NodeBack"]


def test_an_attempt_that_was_starting_is_starting_again() -> None:
    story = Story()
    story.reconcile()
    story.bind()
    story.observe(W.PREPARING)
    story.observe(W.UNKNOWN)
    assert story.phase is Phase.UNKNOWN
    story.observe(W.PREPARING)
    assert (story.phase, story.current.state) == (Phase.STARTING, AttemptState.STARTING)


def test_work_that_finished_while_the_node_was_away_is_accepted() -> None:
    story = Story()
    story.run()
    story.observe(W.UNKNOWN)
    story.wait(3600)
    story.exit(0, finished_at=START + timedelta(seconds=100))
    assert (story.phase, story.current.finished_at) == (Phase.SUCCEEDED, START + timedelta(seconds=100))


def test_a_lost_node_costs_nothing_of_the_budget() -> None:
    story = Story(backoffLimit=0)
    story.run("laptop-1")
    story.observe(W.UNKNOWN)
    story.tell(NodeGone(1, "laptop-1 left the swarm"))
    assert (story.phase, story.status.failures, story.status.infrastructure_losses) == (Phase.BACKOFF, 0, 1)
    story.wake()
    story.run("laptop-2")
    story.exit(255, reason=Reason.NODE_RESTARTED)
    story.wake()
    story.run("laptop-3")
    story.tell(Vanished(3))
    assert (story.status.failures, story.status.infrastructure_losses) == (0, 3)
    story.wake()
    story.run("laptop-1")
    story.exit(0)
    assert story.phase is Phase.SUCCEEDED


def test_infrastructure_losses_have_their_own_bound() -> None:
    story = Story(Policy(infrastructure_loss_limit=2), backoffLimit=0)
    for number in (1, 2, 3):
        story.run()
        story.tell(Vanished(number))
        if number < 3:
            story.wake()
    assert (story.phase, story.status.reason, story.status.failures) == (Phase.FAILED, "WorkloadLost", 0)
    assert "limit 2" in story.status.message


def test_a_start_that_nobody_could_see_is_not_the_tasks_fault() -> None:
    story = Story(startDeadlineSeconds=60, terminationGracePeriodSeconds=5, backoffLimit=0)
    story.reconcile()
    story.bind()
    story.wake()
    assert story.current.stop_reason == "StartDeadline"
    story.wait(3600)
    assert not story.reconcile().changed, "its answer may have been lost: the engine's list says whether it runs"
    story.tell(Vanished(1))
    assert (story.phase, story.current.reason, story.status.failures) == (Phase.BACKOFF, "WorkloadLost", 0)
    assert story.current.message == "swarm never had the workload"


# --- nodes with an agent ---


def record(number: int = 1, **told: Any) -> NodeAttempt:
    return NodeAttempt(**{"id": attempt_id(UID, number), "state": "Exited", **told})


@pytest.mark.parametrize(
    ("node_loss", "fenced", "due_s"),
    [
        ({}, True, 20 + 7 + 10),
        ({}, False, None),
        ({"replace": "afterLost", "graceSeconds": 3}, True, 4.5 + 3),
        ({"replace": "afterLost", "graceSeconds": 3}, False, 3),
        ({"replace": "never"}, True, None),
    ],
)
def test_when_a_lost_attempt_may_be_replaced(node_loss: dict[str, Any], fenced: bool, due_s: float | None) -> None:
    spec = make_task(nodeLoss=node_loss, terminationGracePeriodSeconds=7).spec
    attempt = Attempt(number=1, id="a", node="n1", engine="swarm", fence=spec.node_loss.replace == "afterFence")
    assert replace_after_s(spec, attempt, Policy(), fenced=fenced) == due_s


def test_the_grace_that_counts_is_the_one_that_the_container_was_made_with() -> None:
    story = Story(terminationGracePeriodSeconds=60)
    story.run(boot_id="b1")
    story.edit(terminationGracePeriodSeconds=0)
    story.tell(NodeSilent(1, 89.9, fenced=True))
    assert story.phase is Phase.UNKNOWN
    story.tell(NodeSilent(1, 90.0, fenced=True))
    assert story.current.reason == "NodeLost"


def test_silence_is_unknown_first_and_lost_when_the_fence_is_over() -> None:
    story = Story(backoffLimit=0, terminationGracePeriodSeconds=10)
    story.run(boot_id="b1")
    story.tell(NodeSilent(1, 5.0, fenced=True))
    assert (story.phase, story.current.state) == (Phase.UNKNOWN, AttemptState.UNKNOWN)
    assert not story.tell(NodeSilent(1, 39.9, fenced=True)).changed
    story.tell(NodeSilent(1, 40.0, fenced=True))
    assert (story.phase, story.current.reason, story.status.failures, story.status.infrastructure_losses) == (
        Phase.BACKOFF, "NodeLost", 0, 1,
    )  # fmt: skip
    assert not story.tell(NodeSilent(1, 41.0, fenced=True)).changed


@pytest.mark.parametrize(("replace", "words"), [("afterFence", "its agent must have stopped"), ("afterLost", "may still run")])
def test_a_loss_says_whether_the_old_attempt_can_still_run(replace: str, words: str) -> None:
    story = Story(nodeLoss={"replace": replace})
    story.run(boot_id="b1")
    story.tell(NodeSilent(1, 3600.0, fenced=True))
    assert words in (story.status.attempts[0].message or "")


@pytest.mark.parametrize(
    ("exit_code", "reached", "stopping", "reason"),
    [
        (137, False, False, "NodeLost"),
        (143, False, False, "NodeLost"),
        (143, True, False, "Error"),
        (1, False, False, "Error"),
        (143, False, True, "Cancelled"),
    ],
)
def test_a_signal_on_a_node_that_leaves_its_engine_is_not_the_tasks_fault(
    exit_code: int, reached: bool, stopping: bool, reason: str
) -> None:
    """As `docker swarm leave` and the shutdown of a laptop end containers."""
    story = Story(backoffLimit=0)
    story.run(boot_id="b1")
    if stopping:
        story.annotate(ANNOTATION_CANCEL, "x")
        story.reconcile()
    story.tell(NodeTold(1, record(exit_code=exit_code), "b1", reached))
    assert story.status.attempts[0].reason == reason
    assert story.status.failures == (reason == "Error")


def test_work_that_finished_away_is_accepted_until_something_has_followed_it() -> None:
    for bound in (False, True):
        story = Story()
        story.run(boot_id="b1")
        story.tell(NodeSilent(1, 100, fenced=True))
        story.wake()
        if bound:
            story.bind("laptop-2")
        story.tell(NodeTold(1, record(exit_code=0, peak_memory="100Mi", cpu_seconds=2.5), "b1"))
        first = story.status.attempts[0]
        assert (first.peak_memory, first.cpu_seconds) == ("100Mi", 2.5)
        assert (story.phase, first.reason) == ((Phase.STARTING, "NodeLost") if bound else (Phase.SUCCEEDED, "Completed"))


@pytest.mark.parametrize("told_to_end", [None, True, False])
@pytest.mark.parametrize("stop", ["", "suspend", "drain"])
def test_whether_it_was_told_to_end_decides_what_a_late_success_is_worth(stop: str, told_to_end: bool | None) -> None:
    """Of a plain loss no signal is known; of one that was to stop it must be known that there was none."""
    story = Story()
    story.run(boot_id="b1")
    if stop == "suspend":
        story.edit(suspend=True)
        story.reconcile()
    elif stop == "drain":
        story.tell(Drain(1, "laptop-1"))
    story.wait(60)
    story.tell(NodeSilent(1, 100, fenced=True))
    assert story.phase in (Phase.BACKOFF, Phase.PENDING, Phase.QUEUED)
    story.tell(NodeTold(1, record(exit_code=0, told_to_end=told_to_end), "b1"))
    accepted = told_to_end is False if stop else told_to_end is not True
    assert (story.phase is Phase.SUCCEEDED) == accepted


@pytest.mark.parametrize(("told_to_end", "phase"), [(None, Phase.PENDING), (True, Phase.PENDING), (False, Phase.SUCCEEDED)])
def test_what_ended_by_itself_before_the_stop_arrived_is_finished(told_to_end: bool | None, phase: Phase) -> None:
    story = Story()
    story.run(boot_id="b1")
    story.edit(suspend=True)
    story.reconcile()
    story.observe(W.UNKNOWN)
    story.tell(NodeTold(1, record(exit_code=0, told_to_end=told_to_end), "b1"))
    assert story.phase is phase


@pytest.mark.parametrize(("told_to_end", "phase"), [(None, Phase.SUCCEEDED), (True, Phase.PENDING), (False, Phase.SUCCEEDED)])
def test_what_the_agent_knows_of_a_stop_counts_more_than_times(told_to_end: bool | None, phase: Phase) -> None:
    """The node's clock is a minute slow: by it, a polite end on the stop came long before the stop was asked for."""
    story = Story()
    story.run(boot_id="b1")
    story.wait(100)
    story.edit(suspend=True)
    story.reconcile()
    story.observe(W.UNKNOWN)
    early = story.now - timedelta(seconds=60)
    story.tell(NodeTold(1, record(exit_code=0, told_to_end=told_to_end, finished_at=early), "b1"))
    assert story.phase is phase


@pytest.mark.parametrize("told", [{"exit_code": 1}, {"exit_code": 0, "reason": "Fenced"}, {"state": "Running"}])
def test_what_did_not_finish_away_stays_lost(told: dict[str, Any]) -> None:
    story = Story()
    story.run()
    story.tell(NodeSilent(1, 100, fenced=True))
    assert not story.tell(NodeTold(1, record(**told))).changed


def test_a_dead_letter_is_not_left_by_late_news() -> None:
    story = Story(Policy(infrastructure_loss_limit=0))
    story.run()
    story.tell(NodeSilent(1, 100, fenced=True))
    assert story.phase is Phase.FAILED
    assert not story.tell(NodeTold(1, record(exit_code=0))).changed


@pytest.mark.parametrize(
    ("told", "phase", "reason", "failures"),
    [
        ({"exit_code": 0}, Phase.SUCCEEDED, "Completed", 0),
        ({"exit_code": 3}, Phase.BACKOFF, "Error", 1),
        ({"exit_code": 137, "reason": "OOMKilled"}, Phase.BACKOFF, "OOMKilled", 1),
        ({"exit_code": 143, "reason": "Evicted"}, Phase.BACKOFF, "Evicted", 0),
        ({"exit_code": 0, "reason": "Fenced"}, Phase.BACKOFF, "NodeLost", 0),
        ({"exit_code": None}, Phase.BACKOFF, "WorkloadLost", 0),
    ],
)
def test_the_agent_alone_tells_an_end(told: dict[str, Any], phase: Phase, reason: str, failures: int) -> None:
    story = Story()
    story.run(boot_id="b1")
    story.observe(W.UNKNOWN)
    story.tell(NodeTold(1, record(**told), "b1"))
    assert (story.phase, story.current.reason, story.status.failures) == (phase, reason, failures)


def test_what_the_agent_proved_ended_stays_on_the_engine_for_its_output() -> None:
    story = Story()
    story.run()
    story.observe(W.UNKNOWN)
    story.tell(NodeTold(1, record(exit_code=1)))
    assert not [command for command in story.commands([story.seen(W.UNKNOWN)]) if isinstance(command, Remove)]
    assert [command for command in story.commands([story.seen(W.RUNNING)]) if isinstance(command, Stop)]


def test_a_stop_that_a_fence_will_end_is_not_believed_before() -> None:
    story = Story(terminationGracePeriodSeconds=1)
    story.run(boot_id="b1")
    story.edit(suspend=True)
    story.tell(NodeSilent(1, 5, fenced=True))
    story.wait(3600)
    story.reconcile()
    assert (story.phase, story.current.state) == (Phase.UNKNOWN, AttemptState.STOPPING)
    story.tell(NodeSilent(1, 40, fenced=True))
    assert (story.phase, story.current.state) == (Phase.PENDING, AttemptState.STOPPED)


def weighed(
    story: Story,
    seen: Observation,
    word: NodeWord,
    told: NodeAttempt | None = None,
    *,
    waited_s: float = 0.0,
    unknown: bool = False,
) -> Reason | str | None:
    """The reason as it is believed; "held": it is not believed yet."""
    believed = weigh(seen, story.current, story.task.spec, story.policy, word, record=told, unknown=unknown, waited_s=waited_s)
    return "held" if believed is None else believed.reason


HEARD, BACK = NodeWord(Hearing.HEARD, 300.0, boot_id="b1"), NodeWord(Hearing.HEARD, 3.0, boot_id="b1")


def test_only_ends_are_believed_of_a_silent_node() -> None:
    story = Story()
    story.run(boot_id="b1")
    silent = NodeWord(Hearing.SILENT, 6.0)
    assert weighed(story, story.seen(W.RUNNING), silent) == "held"
    assert weighed(story, story.seen(W.EXITED, exit_code=0), silent) is None
    assert weighed(story, story.seen(W.RUNNING), NodeWord(Hearing.NEW), unknown=True) == "held"
    assert weighed(story, story.seen(W.RUNNING), NodeWord(Hearing.NEW)) is None
    assert weighed(story, story.seen(W.EXITED, exit_code=1), NO_AGENT) is None


@pytest.mark.parametrize(
    ("word", "code", "waited_s", "held"),
    [
        (HEARD, 0, 0, False), (HEARD, 1, 0, True), (HEARD, 1, 5.0, False),
        (BACK, 0, 0, True), (BACK, 1, 60, True),
        (NodeWord(Hearing.NEW), 0, 0, True),
        (NodeWord(Hearing.SILENT, 10.0), 0, 0, False),
        (NodeWord(Hearing.SILENT, 25.0), 0, 1.0, True),
        (NodeWord(Hearing.SILENT, 25.0), 0, 12.0, False),
        (NodeWord(Hearing.SILENT, 25.0, exact=False), 0, 12.0, True),
        (NodeWord(Hearing.SILENT, 5.0, heard_s=0.9), 0, 5.0, True),
        (NodeWord(Hearing.VOUCHED, 25.0), 0, 1.0, True),
        (NodeWord(Hearing.VOUCHED, 300.0), 0, 1.0, False),
    ],
)  # fmt: skip
def test_an_end_is_held_back_while_the_agent_may_explain_it(word: NodeWord, code: int, waited_s: float, held: bool) -> None:
    story = Story()
    story.run(boot_id="b1")
    believed = weighed(story, story.seen(W.EXITED, exit_code=code), word, waited_s=waited_s)
    assert (believed == "held") == held


def test_an_end_within_the_fence_that_nobody_explains_is_a_loss() -> None:
    story = Story()
    story.run(boot_id="b1")
    seen = story.seen(W.EXITED, exit_code=0)
    assert weighed(story, seen, NodeWord(Hearing.VOUCHED, 50.0), waited_s=25.0) is Reason.NODE_LOST
    assert weighed(story, seen, NodeWord(Hearing.VOUCHED, 50.0), waited_s=45.0) is None
    assert weighed(story, seen, NodeWord(Hearing.VOUCHED, 50.0, exact=False), waited_s=45.0) is Reason.NODE_LOST
    assert weighed(story, seen, NodeWord(Hearing.VOUCHED, 50.0, heard_s=0.9), waited_s=50.0) is Reason.NODE_LOST


def test_what_was_unknown_until_its_engine_came_back_with_its_end_has_ended_at_any_time_since() -> None:
    """The node was away for longer than a fence takes, and its agent is dead by now: nobody saw when the program ended."""
    story = Story()
    story.run(boot_id="b1")
    seen = story.seen(W.EXITED, exit_code=0)
    late = NodeWord(Hearing.VOUCHED, 300.0, exact=False)
    assert weighed(story, seen, late, waited_s=1.0, unknown=True) is Reason.NODE_LOST
    assert weighed(story, seen, NodeWord(Hearing.VOUCHED, 300.0), waited_s=1.0, unknown=True) is Reason.NODE_LOST
    assert weighed(story, seen, late, waited_s=1.0) is None, "its engine has shown it running since"


def test_what_begins_to_run_on_a_node_that_has_not_renewed_its_lease_is_stopped_by_its_agent_however_late() -> None:
    """Its Docker is back and starts what was on its way; its agent stops it before it has reached the API."""
    story = Story()
    story.reconcile()
    story.bind(boot_id="b1")
    assert story.current.started_at is None
    seen = story.seen(W.EXITED, exit_code=0)
    assert weighed(story, seen, NodeWord(Hearing.SILENT, 300.0)) == "held"
    assert weighed(story, seen, NodeWord(Hearing.VOUCHED, 300.0)) is Reason.NODE_LOST
    assert weighed(story, seen, HEARD) is None


@pytest.mark.parametrize(
    ("reason", "typed"), [("OOMKilled", Reason.OOM_KILLED), ("Evicted", Reason.EVICTED), ("Fenced", Reason.NODE_LOST)]
)
def test_the_agents_reason_goes_before_the_exit_code(reason: str, typed: Reason) -> None:
    story = Story()
    story.run(boot_id="b1")
    for state in ("Exited", "Running"):  # it says so while it stops it, too
        told = record(reason=reason, exit_code=137 if state == "Exited" else None, state=state)
        assert weighed(story, story.seen(W.EXITED, exit_code=137), HEARD, told) is typed


def test_another_boot_explains_every_exit_code_but_a_recorded_zero() -> None:
    story = Story()
    story.run(boot_id="b0")
    assert weighed(story, story.seen(W.EXITED, exit_code=255), BACK) is Reason.NODE_RESTARTED
    assert weighed(story, story.seen(W.EXITED, exit_code=1), BACK, record(exit_code=1)) is Reason.NODE_RESTARTED
    assert weighed(story, story.seen(W.EXITED, exit_code=0), BACK) is Reason.NODE_RESTARTED
    assert weighed(story, story.seen(W.EXITED, exit_code=0), BACK, record(exit_code=0)) is None


def test_the_task_shows_the_peak_of_the_newest_attempt_of_which_one_is_known() -> None:
    story = Story(backoffLimit=3)
    story.run(boot_id="b1")
    story.exit(1)
    assert story.status.peak_memory is None
    story.tell(NodeTold(1, record(exit_code=1, peak_memory=str(100 * 2**20 + 1), cpu_seconds=2.5), "b1"))
    assert story.status.peak_memory == "101Mi"
    assert (story.current.peak_memory, story.current.cpu_seconds) == (str(100 * 2**20 + 1), 2.5)
    story.wake()
    story.run(boot_id="b1")
    story.exit(0)
    story.tell(NodeTold(2, record(2, exit_code=0, peak_memory="64Mi", cpu_seconds=1.0), "b1"))
    story.tell(NodeTold(1, record(1, exit_code=1, peak_memory="200Mi", cpu_seconds=2.5), "b1"))
    assert story.status.peak_memory == "64Mi", "what is told late of an older one changes that one's record only"
    assert story.status.attempts[0].peak_memory == "200Mi"


def test_a_retry_by_a_person_forgets_the_peak() -> None:
    story = Story(backoffLimit=0)
    story.run(boot_id="b1")
    story.exit(1)
    story.tell(NodeTold(1, record(exit_code=1, peak_memory="64Mi"), "b1"))
    story.annotate(ANNOTATION_RETRY, "1")
    story.reconcile()
    assert (story.phase, story.status.peak_memory) == (Phase.QUEUED, None)


@pytest.mark.parametrize("suspend", [True, False])
def test_a_stop_on_an_engine_that_nobody_asks_ends_by_the_clock(suspend: bool) -> None:
    story = Story(Policy(engines=frozenset({"local"})))
    story.reconcile()
    story.bind()
    if suspend:
        story.edit(suspend=True)
        story.reconcile()
    else:
        story.wake()
    assert story.current.state == "Stopping"
    story.wake()
    assert story.phase is (Phase.PENDING if suspend else Phase.BACKOFF)
    assert story.current.message == "counted as stopped without proof: this operator does not drive swarm"
