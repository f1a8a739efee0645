"""What a stored object asks for, whatever happened before it was stored."""

from __future__ import annotations

from datetime import timedelta

import pytest

from swarmtask.lifecycle.commands import outstanding
from swarmtask.lifecycle.deadlines import Policy
from swarmtask.lifecycle.messages import Bound, Command, DeleteTask, ReleaseFinalizer, Remove, Stop, Submit, Vanished, WakeAt
from swarmtask.lifecycle.messages import WorkloadState as W
from swarmtask.resources.task import AttemptState
from tests.lifecycle.situations import SITUATIONS
from tests.lifecycle.story import START, Story

KINDS: dict[str, tuple[type[Command], ...]] = {
    "new": (),
    "suspended": (),
    "without queue": (WakeAt,),
    "deduplicated": (),
    "queued": (WakeAt,),
    "bound": (Submit, WakeAt),
    "preparing": (WakeAt,),
    "running": (WakeAt,),
    "unknown before start": (WakeAt,),
    "unknown": (WakeAt,),
    "stopping for start deadline": (Stop,),
    "stopping for active deadline": (Stop,),
    "stopping for suspend": (Stop,),
    "stopping for preemption": (Stop,),
    "stopping for drain": (Stop,),
    "stopping for cancel": (Stop,),
    "stopping for delete": (Stop,),
    "stopping unseen": (Stop, WakeAt),
    "stopping on a silent node": (Stop, WakeAt),
    "backoff": (WakeAt,),
    "succeeded": (WakeAt,),
    "failed": (WakeAt,),
    "cancelled": (WakeAt,),
    "expired": (WakeAt,),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_commands_of_every_situation(situation: str) -> None:
    story = SITUATIONS[situation]()
    assert tuple(type(command) for command in story.commands()) == KINDS[situation]


@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_wake_up_changes_something_when_it_comes(situation: str) -> None:
    story = SITUATIONS[situation]()
    for command in story.commands():
        if isinstance(command, WakeAt):
            assert command.when > story.now, "a deadline in the past would spin"
            story.now = command.when
            deletes = any(isinstance(later, DeleteTask) for later in story.commands())
            assert deletes or story.reconcile().changed


def test_a_workload_that_the_engine_lists_is_not_submitted_again() -> None:
    story = SITUATIONS["bound"]()
    assert [type(command) for command in story.commands([])] == [Submit, WakeAt]
    assert [type(command) for command in story.commands([story.seen(W.PENDING)])] == [WakeAt]


def test_workloads_of_others_are_never_touched() -> None:
    story = SITUATIONS["failed"]()
    story.delete()
    foreign = story.seen(W.RUNNING, 1, task_uid="somebody-else")
    assert story.commands([foreign]) == (ReleaseFinalizer(),)


def test_an_older_attempt_that_is_back_is_stopped_and_the_current_one_is_not() -> None:
    story = SITUATIONS["backoff"]()
    story.wake()
    story.run("laptop-2")
    back, current = story.seen(W.RUNNING, 1), story.seen(W.RUNNING, 2)
    stopped = [
        (command.attempt.number, command.grace_s) for command in story.commands([current, back]) if isinstance(command, Stop)
    ]
    assert stopped == [(1, 10)]
    assert not [command for command in story.commands([current, back]) if isinstance(command, Remove)]


def test_the_next_attempt_waits_until_an_older_one_that_is_back_has_ended() -> None:
    story = SITUATIONS["backoff"]()
    story.wake()
    story.bind("laptop-2")
    back = story.seen(W.RUNNING, 1)
    assert [type(command) for command in story.commands([back])] == [Stop, WakeAt]
    ended = story.seen(W.EXITED, 1, exit_code=137)
    assert [type(command) for command in story.commands([ended])] == [Submit, WakeAt]
    assert [type(command) for command in story.commands([])] == [Submit, WakeAt]


def test_nothing_is_submitted_blindly_after_an_attempt_that_may_still_act() -> None:
    story = SITUATIONS["backoff"]()  # its first attempt told an exit code
    story.wake()
    story.bind("laptop-2")
    assert Submit in [type(command) for command in story.commands(None)]
    lost = Story()
    lost.run()
    lost.tell(Vanished(1))
    lost.wake()
    lost.bind("laptop-2")
    assert [type(command) for command in lost.commands(None)] == [WakeAt]
    assert [type(command) for command in lost.commands([])] == [Submit, WakeAt]


def test_a_finished_workload_stays_for_its_logs_until_the_task_is_deleted() -> None:
    story = SITUATIONS["backoff"]()
    ended = story.seen(W.EXITED, 1, exit_code=1)
    assert not [command for command in story.commands([ended]) if isinstance(command, Remove)]
    story.delete()
    story.reconcile()
    assert [type(command) for command in story.commands([ended])] == [Remove]


def test_an_object_older_than_the_engines_list_removes_nothing_new() -> None:
    story = SITUATIONS["backoff"]()
    newer = story.seen(W.RUNNING, 2)
    assert not [command for command in story.commands([newer]) if isinstance(command, Remove | Stop)]


def test_an_attempt_that_dropped_out_of_the_records_is_still_stopped() -> None:
    story = Story(backoffLimit=50, backoff={"initialSeconds": 0})
    for _ in range(12):
        story.run()
        story.exit(1)
    (command,) = story.commands([story.seen(W.RUNNING, 1)])
    assert isinstance(command, Stop)
    assert (command.attempt.number, command.attempt.engine, command.attempt.state) == (1, "swarm", AttemptState.STOPPED)


def test_time_to_live() -> None:
    story = Story(ttlSecondsAfterFinished=60)
    story.run()
    story.exit(0)
    assert story.commands() == (WakeAt(START + timedelta(seconds=60)),)
    story.wait(60)
    assert story.commands() == (DeleteTask(),)
    story.delete()
    assert story.commands([]) == (ReleaseFinalizer(),)


def test_a_finalizer_that_is_not_ours_is_not_released() -> None:
    story = SITUATIONS["succeeded"]()
    story.delete()
    story.task.metadata.finalizers[:] = ["example.com/keep"]
    assert story.commands([]) == ()


@pytest.mark.parametrize("situation", SITUATIONS)
def test_nothing_is_submitted_for_a_task_that_is_being_deleted(situation: str) -> None:
    story = SITUATIONS[situation]()
    story.delete()
    assert not [command for command in story.commands([]) if isinstance(command, Submit)]
    story.reconcile()
    assert not [command for command in story.commands([]) if isinstance(command, Submit)]


@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_deleted_task_is_let_go_in_the_end(situation: str) -> None:
    story = SITUATIONS[situation]()
    story.delete()
    story.reconcile()
    if story.status.current is not None and story.current.live:
        assert ReleaseFinalizer() not in story.commands([])
        story.exit(143)
    assert ReleaseFinalizer() in story.commands([])


# --- several engines ---


def lost_and_bound_elsewhere() -> Story:
    """The first attempt was lost on the engine `swarm`; the second one starts on `local`."""
    story = Story()
    story.run()
    story.tell(Vanished(1))
    story.wake()
    story.tell(Bound("laptop-2", "local", "id"))
    return story


def kinds(story: Story, silent: set[str], engines: set[str]) -> list[type[Command]]:
    policy = Policy(engines=frozenset(engines))
    return [type(command) for command in outstanding(story.task, story.now, policy, [], silent)]


def test_only_the_engines_of_attempts_in_doubt_are_asked_before_the_next_one_starts() -> None:
    story = lost_and_bound_elsewhere()
    assert kinds(story, {"other"}, {"swarm", "local", "other"}) == [Submit, WakeAt]
    assert kinds(story, {"local"}, {"swarm", "local"}) == [Submit, WakeAt]
    assert kinds(story, {"swarm"}, {"swarm", "local"}) == [WakeAt]


def test_an_engine_that_is_not_driven_keeps_no_attempt_from_starting() -> None:
    assert kinds(lost_and_bound_elsewhere(), set(), {"local"}) == [Submit, WakeAt]


def test_what_one_engine_shows_is_ended_first_while_another_one_is_silent() -> None:
    story = lost_and_bound_elsewhere()
    back = story.seen(W.RUNNING, 1)
    policy = Policy(engines=frozenset({"swarm", "local", "other"}))
    commands = outstanding(story.task, story.now, policy, [back], {"other"})
    assert [type(command) for command in commands] == [Stop, WakeAt]


def test_a_task_is_released_when_every_engine_has_spoken() -> None:
    story = lost_and_bound_elsewhere()
    story.delete()
    story.reconcile()
    story.tell(Vanished(2))
    assert ReleaseFinalizer not in kinds(story, {"other"}, {"swarm", "local", "other"})
    assert ReleaseFinalizer not in kinds(story, set(), {"local"}), "something may be left on the engine that is not driven"
    assert ReleaseFinalizer in kinds(story, set(), {"swarm", "local"})
