"""Evicted: a node runs out of memory, its agent asks, and one attempt there ends; the task pays nothing of its own."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmtask.lifecycle.eviction import Occupant, choose
from swarmtask.lifecycle.messages import Evict, NodeGone, Stop
from swarmtask.lifecycle.messages import WorkloadState as W
from swarmtask.lifecycle.task import Policy
from swarmtask.resources.task import ANNOTATION_CANCEL, Attempt, AttemptState, Phase
from tests.lifecycle.story import START, Story


def occupant(name: str, priority: int = 0, *, state: AttemptState = AttemptState.RUNNING, age_s: int = 0) -> Occupant:
    started = START - timedelta(seconds=age_s)
    return Occupant(Attempt(number=1, id=name, node="n1", engine="swarm", state=state, started_at=started), priority)


def chosen(wanted: str, *occupants: Occupant) -> str | None:
    found = choose(wanted, occupants)
    return None if found is None else found.attempt.id


def test_among_equals_the_agent_s_word_counts() -> None:
    assert chosen("hog", occupant("a"), occupant("hog", age_s=900), occupant("b")) == "hog"


def test_whose_priority_is_lower_by_now_goes_before_it_and_the_youngest_of_these() -> None:
    """It was edited, or its container still carries an older one."""
    low = [occupant("old", -5, age_s=60), occupant("young", -5, age_s=1)]
    assert chosen("hog", occupant("hog"), *low) == "young"


def test_nobody_goes_while_another_one_is_ending() -> None:
    assert chosen("hog", occupant("hog"), occupant("b", state=AttemptState.STOPPING)) is None


def test_an_old_wish_ends_nobody() -> None:
    assert chosen("gone", occupant("a")) is None
    assert chosen("gone") is None


def test_what_does_not_run_yet_is_no_room() -> None:
    assert chosen("starting", occupant("starting", -1, state=AttemptState.STARTING), occupant("runs")) == "runs"
    assert chosen("starting", occupant("starting", state=AttemptState.STARTING)) is None
    assert chosen("unseen", occupant("unseen", state=AttemptState.UNKNOWN)) is None


@given(st.lists(st.tuples(st.integers(-2, 2), st.sampled_from(AttemptState), st.integers(0, 3)), max_size=5), st.integers(0, 5))
def test_nobody_goes_before_a_running_one_of_lower_priority(drawn: list[tuple[int, AttemptState, int]], wanted: int) -> None:
    there = [occupant(f"a{index}", priority, state=state, age_s=age) for index, (priority, state, age) in enumerate(drawn)]
    found = choose(f"a{wanted}", there)
    if found is not None:
        running = [one for one in there if one.attempt.state is AttemptState.RUNNING]
        assert found in running
        assert found.priority == min(one.priority for one in running)
    assert found == choose(f"a{wanted}", list(reversed(there)))


# --- what follows for the task ---


def evicted(**spec: object) -> Story:
    story = Story(**{"backoffLimit": 0, "terminationGracePeriodSeconds": 5, **spec})
    story.run()
    story.wait(60)
    story.tell(Evict(1, "laptop-1", "100 MiB of 8192 MiB were left"))
    return story


def test_it_is_stopped_with_its_grace_and_tried_again_at_nobodys_cost() -> None:
    story = evicted()
    assert (story.phase, story.current.state, story.current.stop_reason) == (Phase.RUNNING, AttemptState.STOPPING, "Evicted")
    assert story.status.message == ("stopping attempt 1 on laptop-1: laptop-1 runs out of memory: 100 MiB of 8192 MiB were left")
    assert Stop(story.current, 5) in story.commands()
    story.exit(143)
    attempt = story.current
    assert (attempt.state, attempt.reason, attempt.exit_code) == (AttemptState.FAILED, "Evicted", 143)
    assert (story.phase, story.status.failures, story.status.infrastructure_losses) == (Phase.BACKOFF, 0, 1)
    story.wake()
    story.run("laptop-2")
    story.exit(0)
    assert story.phase is Phase.SUCCEEDED


def test_its_own_bound_holds() -> None:
    story = Story(Policy(infrastructure_loss_limit=1))
    for number in (1, 2):
        story.run()
        story.tell(Evict(number, "laptop-1"))
        story.exit(0)
        if number == 1:
            story.wake()
    assert (story.phase, story.status.reason) == (Phase.FAILED, "Evicted")


def test_a_polite_end_is_no_success_and_work_that_was_done_before_is() -> None:
    story = evicted()
    story.exit(0)
    assert (story.phase, story.current.reason) == (Phase.BACKOFF, "Evicted")
    story = evicted()
    story.exit(0, finished_at=story.now - timedelta(seconds=30))
    assert (story.phase, story.current.reason) == (Phase.SUCCEEDED, "Completed")


def test_a_cancel_wins() -> None:
    story = evicted()
    story.annotate(ANNOTATION_CANCEL, "enough")
    story.reconcile()
    story.exit(143)
    assert story.phase is Phase.CANCELLED


def test_a_node_that_goes_meanwhile_has_evicted_it_all_the_same() -> None:
    story = evicted()
    story.tell(NodeGone(1, "laptop-1 left the swarm"))
    assert (story.phase, story.current.reason) == (Phase.BACKOFF, "Evicted")


@pytest.mark.parametrize("state", [W.UNKNOWN])
def test_one_that_nobody_can_see_is_left_to_its_node(state: W) -> None:
    story = Story()
    story.run()
    story.observe(state)
    assert not story.tell(Evict(1, "laptop-1")).changed


def test_old_news_changes_nothing() -> None:
    story = evicted()
    assert not story.tell(Evict(1, "laptop-1")).changed
    assert not story.tell(Evict(2, "laptop-1")).changed
    story.exit(143)
    assert not story.tell(Evict(1, "laptop-1")).changed
