"""The state machine of an array on its own: what is recorded, what follows, what is asked for."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmtask.lifecycle.array import (
    Around,
    ArrayCommand,
    CancelMember,
    CreateMember,
    DeleteMember,
    SuspendMember,
    advance,
    outstanding,
)
from swarmtask.lifecycle.intervals import parse
from swarmtask.lifecycle.members import (
    Member,
    array_label,
    index_of,
    is_recorded,
    member_name,
    member_object,
    member_of,
)
from swarmtask.lifecycle.messages import DeleteTask, WakeAt
from swarmtask.resources import units
from swarmtask.resources.task import (
    ANNOTATION_CANCEL,
    ANNOTATION_RETRY,
    LIVE_ATTEMPT_STATES,
    ArrayStatus,
    Phase,
    SwarmTask,
    TaskStatus,
)
from tests.lifecycle.structural import problems, task_schema

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
HERE = Around()
SCHEMA = task_schema()["properties"]["status"]


def array(completions: int | None = 5, *, status: TaskStatus | None = None, name: str = "many", **spec: Any) -> SwarmTask:
    metadata = {"name": name, "namespace": "team", "uid": "u-1", "generation": 1, "annotations": spec.pop("annotations", {})}
    metadata |= spec.pop("metadata", {})
    body = {"metadata": metadata, "spec": {"container": {"image": "busybox"}, "completions": completions} | spec}
    task = SwarmTask.model_validate(body)
    return task.model_copy(update={"status": status or TaskStatus(array=ArrayStatus(), phase=Phase.QUEUED)})


def stored(task: SwarmTask, status: TaskStatus) -> SwarmTask:
    assert not problems(status.to_dict(), SCHEMA), "a real cluster would refuse it"
    return task.model_copy(update={"status": status})


def run(index: int, phase: Phase = Phase.QUEUED, **fields: Any) -> Member:
    fields.setdefault("started", phase not in (Phase.PENDING, Phase.QUEUED, Phase.EXPIRED))
    return Member(index, f"many-{index}", f"uid-{index}", phase, **fields)


def runs(*members: Member) -> dict[int, Member]:
    return {member.index: member for member in members}


def of(kind: type[Any], commands: tuple[ArrayCommand, ...]) -> list[int]:
    return [item.index if isinstance(item, CreateMember) else item.member.index for item in commands if isinstance(item, kind)]


def recorded(completed: str = "", failed: str = "", phase: Phase = Phase.RUNNING, **fields: Any) -> TaskStatus:
    done, lost = parse(completed), parse(failed)
    record = ArrayStatus(
        succeeded=len(done), failed=len(lost), completed_indexes=completed, failed_indexes=failed,
        failures=fields.pop("failures", [f"{index}: why" for index in lost][:10]),
    )  # fmt: skip
    return TaskStatus(phase=phase, array=record, **fields)


# --- recording ---


def test_nothing_is_created_before_it_is_stored_as_an_array() -> None:
    fresh = array(status=TaskStatus())
    assert outstanding(fresh, {}, NOW, HERE) == ()
    assert advance(fresh, {}, NOW, HERE).status.phase is Phase.QUEUED


def test_what_has_ended_is_recorded_and_only_then_deleted() -> None:
    task, members = array(), runs(run(0, Phase.SUCCEEDED), run(1, Phase.RUNNING))
    assert of(DeleteMember, outstanding(task, members, NOW, Around(keep_succeeded=0))) == []
    task = stored(task, advance(task, members, NOW, HERE).status)
    assert task.status.array is not None and task.status.array.completed_indexes == "0"
    assert of(DeleteMember, outstanding(task, members, NOW, Around(keep_succeeded=0))) == [0]


def test_a_record_is_made_once() -> None:
    task, members = array(), runs(run(0, Phase.SUCCEEDED), run(1, Phase.FAILED, why="exit code 3"))
    first = advance(task, members, NOW, HERE)
    again = advance(stored(task, first.status), members, NOW + timedelta(seconds=9), HERE)
    assert not again.changed and not again.announcements


def test_a_run_that_was_deleted_before_it_had_ended_is_not_recorded() -> None:
    gone = run(0, Phase.CANCELLED, reason="Deleted", deleting=True)
    task = array()
    assert advance(task, runs(gone), NOW, HERE).status.array == ArrayStatus(progress="0/5")
    assert 0 not in of(CreateMember, outstanding(task, runs(gone), NOW, HERE)), "its name is still taken"
    assert 0 in of(CreateMember, outstanding(task, {}, NOW, HERE))


def test_only_the_first_ten_failures_are_told_and_kept() -> None:
    members = runs(*(run(index, Phase.FAILED, why="x" * 5000) for index in range(30)))
    task = array(30)
    task = stored(task, advance(task, members, NOW, HERE).status)
    assert task.status.array is not None and task.status.phase is Phase.FAILED
    assert len(task.status.array.failures) == 10 and max(map(len, task.status.array.failures)) <= 200
    assert of(DeleteMember, outstanding(task, members, NOW, HERE)) == list(range(10, 30))


@pytest.mark.parametrize(("completed", "failed"), [("1", ""), ("", "1")])
@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.CANCELLED])
def test_a_run_that_is_created_again_after_it_was_recorded_is_not_kept(completed: str, failed: str, phase: Phase) -> None:
    task = array(status=recorded(completed, failed, phase, completion_time=None if phase is Phase.RUNNING else NOW))
    assert of(DeleteMember, outstanding(task, runs(run(1)), NOW, HERE)) == [1], "a create that came late"
    assert of(DeleteMember, outstanding(task, runs(run(1, retry="again")), NOW, HERE)) == [], "a person has asked for it"


def test_the_newest_that_succeeded_are_kept() -> None:
    members = runs(*(run(index, Phase.SUCCEEDED, finished_at=NOW + timedelta(seconds=-index)) for index in range(5)))
    task = array(9, status=recorded("0-4"))
    assert of(DeleteMember, outstanding(task, members, NOW, Around(keep_succeeded=2))) == [2, 3, 4]


# --- the window ---


@pytest.mark.parametrize(
    ("completions", "parallelism", "wanted"), [(5, None, 5), (5, 2, 2), (5, 50, 5), (100_000, None, 1000), (1, None, 1)]
)
def test_as_many_as_parallelism_allows(completions: int, parallelism: int | None, wanted: int) -> None:
    task = array(completions, parallelism=parallelism)
    assert of(CreateMember, outstanding(task, {}, NOW, HERE)) == list(range(wanted))


def test_what_has_ended_makes_room_before_it_is_recorded() -> None:
    members = runs(run(0, Phase.SUCCEEDED), run(1, Phase.RUNNING))
    assert of(CreateMember, outstanding(array(5, parallelism=2), members, NOW, HERE)) == [2]


def test_a_surplus_that_waits_goes_highest_first_and_what_runs_stays() -> None:
    members = runs(run(0), run(1, Phase.RUNNING, live=True), run(2), run(3, Phase.RUNNING, live=True), run(4))
    commands = outstanding(array(9, parallelism=3), members, NOW, HERE)
    assert (of(DeleteMember, commands), of(CreateMember, commands)) == ([2, 4], [])


def test_a_lowered_number_ends_what_is_not_wanted_any_more() -> None:
    members = runs(run(0), run(1, Phase.RUNNING, live=True), run(2), run(3, Phase.SUCCEEDED))
    commands = outstanding(array(1), members, NOW, HERE)
    assert of(DeleteMember, commands) == [1, 2], "what has ended is recorded first"
    done = advance(array(1), runs(run(0, Phase.SUCCEEDED, started_at=NOW), run(1, Phase.RUNNING, deleting=True)), NOW, HERE)
    assert done.status.phase is Phase.RUNNING, "it ends when nothing of it runs any more"


@pytest.mark.parametrize(
    ("completed", "failed", "phase", "message", "progress"),
    [
        ("0-4", "7", Phase.SUCCEEDED, "5 of 5 succeeded", "5/5"),
        ("0-4,8-9", "", Phase.SUCCEEDED, "5 of 5 succeeded", "5/5"),
        ("0-3,5-9", "4", Phase.FAILED, "4 of 5 succeeded; failed: 4", "5/5"),
        ("0-3", "7", Phase.QUEUED, "4 of 5 succeeded", "4/5"),
    ],
)
def test_what_is_recorded_beyond_a_lowered_number_does_not_count(
    completed: str, failed: str, phase: Phase, message: str, progress: str
) -> None:
    task = array(5, status=recorded(completed, failed), maxFailedIndexes=None)
    status = advance(task, {}, NOW, HERE).status
    assert status.array is not None
    assert (status.phase, status.message, status.array.progress) == (phase, message, progress)
    assert (status.array.completed_indexes, status.array.failed_indexes) == (completed, failed), "raised again, they have run"
    assert status.array.failures == [f"{index}: why" for index in parse(failed) if index < 5]


def test_failures_beyond_a_lowered_number_are_not_too_many() -> None:
    task = array(5, status=recorded("0", "6-8"), maxFailedIndexes=2)
    assert advance(task, {}, NOW, HERE).status.phase is Phase.QUEUED
    assert of(CreateMember, outstanding(task, {}, NOW, HERE)) == [1, 2, 3, 4]


def test_a_number_that_is_changed_after_the_end_changes_nothing() -> None:
    task = array(5, status=recorded("0-4"))
    ended = advance(task, {}, NOW, HERE).status
    for number in (3, 9):
        assert advance(stored(array(number), ended), {}, NOW, HERE).status.array == ended.array


def test_blocked_indices_are_passed_over() -> None:
    commands = outstanding(array(5, parallelism=2), {}, NOW, Around(blocked=[0]))
    assert of(CreateMember, commands) == [1, 2]
    assert outstanding(array(5), {}, NOW, Around(may_create=False)) == ()


# --- ends ---


@pytest.mark.parametrize(
    ("status", "spec", "annotations", "phase", "reason", "message"),
    [
        (recorded("0-4"), {}, {}, Phase.SUCCEEDED, "Completed", "5 of 5 succeeded"),
        (recorded("0,2-4", "1"), {}, {}, Phase.FAILED, "FailedIndexes", "4 of 5 succeeded; failed: 1"),
        (recorded("0", "1-2"), {"maxFailedIndexes": 1}, {}, Phase.FAILED, "MaxFailedIndexesExceeded",
         "2 runs failed (maxFailedIndexes 1); 1 of 5 succeeded; failed: 1-2"),
        (recorded("0"), {}, {ANNOTATION_CANCEL: "no"}, Phase.CANCELLED, "Cancelled", "cancelled: no; 1 of 5 succeeded"),
        (recorded("0-4"), {}, {ANNOTATION_CANCEL: "late"}, Phase.SUCCEEDED, "Completed", "5 of 5 succeeded"),
        (recorded("0,2-4", "1"), {}, {ANNOTATION_CANCEL: ""}, Phase.CANCELLED, "Cancelled",
         "cancelled; 4 of 5 succeeded; failed: 1"),
    ],
)  # fmt: skip
def test_how_it_ends(
    *, status: TaskStatus, spec: dict[str, Any], annotations: dict[str, str], phase: Phase, reason: str, message: str
) -> None:
    task = array(status=status, annotations=annotations, **spec)
    ended = advance(task, {}, NOW, HERE)
    assert (ended.status.phase, ended.status.reason, ended.status.message) == (phase, reason, message)
    assert ended.status.completion_time == NOW
    words = {condition.type: condition.status for condition in ended.status.conditions}
    assert words["Complete"] == str(phase is Phase.SUCCEEDED) and words["Failed"] == str(phase is not Phase.SUCCEEDED)
    assert ended.labels == ({"swarmtask.io/dead-letter": "true"} if phase is Phase.FAILED else {})
    again = stored(task, ended.status)
    assert not advance(again, {}, NOW + timedelta(hours=1), HERE).changed
    assert outstanding(again, {}, NOW, HERE) == (WakeAt(NOW + timedelta(seconds=604_800)),)
    assert outstanding(again, {}, NOW + timedelta(days=7), HERE) == (DeleteTask(),)


def test_an_end_deletes_what_waits_and_cancels_what_runs() -> None:
    members = runs(
        run(0), run(1, Phase.RUNNING, live=True), run(2, Phase.RUNNING, live=True, cancelling=True), run(3, deleting=True)
    )
    task = array(9, annotations={ANNOTATION_CANCEL: "no"})
    commands = outstanding(task, members, NOW, HERE)
    assert (of(DeleteMember, commands), of(CancelMember, commands), of(CreateMember, commands)) == ([0], [1], [])
    waits = advance(task, members, NOW, HERE).status
    assert waits.phase is Phase.RUNNING and waits.message == "cancelled: no; 0 of 9 succeeded, 4 wait or run"


@pytest.mark.parametrize(
    ("annotation", "observed", "stop_reason", "cancelling"),
    [
        (None, None, None, False),
        ("no", None, None, True),
        ("no", "no", "Cancelled", True),
        ("no", "no", None, False),
        ("no", "no", "Suspended", False),
        ("once more", "no", None, True),
    ],
)
def test_a_cancel_from_before_a_retry_is_none(
    annotation: str | None, observed: str | None, stop_reason: str | None, *, cancelling: bool
) -> None:
    attempt = {"number": 2, "id": "st-1-2", "node": "n1", "engine": "swarm", "state": "Stopping" if stop_reason else "Running"}
    body = {
        "metadata": {"name": "many-0", "namespace": "team", "annotations": {ANNOTATION_CANCEL: annotation} if annotation else {}},
        "spec": {"container": {"image": "busybox"}},
        "status": {
            "phase": "Running", "attempt": 2, "attempts": [attempt | {"stopReason": stop_reason}], "observedCancel": observed,
            "observedRetry": "1",
        },
    }  # fmt: skip
    member = member_of(SwarmTask.model_validate(body), 0)
    assert (member.cancelling, member.retry) == (cancelling, "1")
    task = array(9, annotations={ANNOTATION_CANCEL: "no"})
    words = [item.why for item in outstanding(task, {0: member}, NOW, HERE) if isinstance(item, CancelMember)]
    assert words == ([] if cancelling else ["the array ends: cancelled: no (after its retry 1)"])


def test_a_cancel_that_was_acted_on_does_not_cancel_what_a_retry_began() -> None:
    annotations = {ANNOTATION_CANCEL: "no", ANNOTATION_RETRY: "1"}
    task = array(status=recorded("0", "1", Phase.CANCELLED, observed_cancel="no"), annotations=annotations)
    begun = advance(task, {}, NOW, HERE).status
    assert begun.phase is Phase.QUEUED and begun.observed_retry == "1" and begun.observed_cancel == "no"
    assert begun.array is not None
    assert (begun.array.completed_indexes, begun.array.failed_indexes, begun.array.failures) == ("0", "", [])
    assert of(CreateMember, outstanding(stored(task, begun), {}, NOW, HERE)) == [1, 2, 3, 4]


def test_one_that_is_cancelled_as_soon_as_it_was_retried_says_what_holds_for_the_second_time() -> None:
    annotations = {ANNOTATION_CANCEL: "again", ANNOTATION_RETRY: "1"}
    task = array(status=recorded("0", "1", Phase.CANCELLED, observed_cancel="no"), annotations=annotations)
    ended = advance(task, {}, NOW, HERE).status
    assert (ended.phase, ended.observed_retry, ended.observed_cancel) == (Phase.CANCELLED, "1", "again")
    assert ended.array is not None
    assert (ended.array.completed_indexes, ended.array.failed_indexes, ended.array.failures) == ("0", "", [])
    assert ended.message == "cancelled: again; 1 of 5 succeeded"
    assert {one.type: one.status for one in ended.conditions}["Failed"] == "True"


def test_a_retry_waits_until_every_old_run_is_gone() -> None:
    task = array(status=recorded("0,2-4", "1", Phase.FAILED), annotations={ANNOTATION_RETRY: "1"})
    left = runs(run(1, Phase.FAILED), run(2, Phase.CANCELLED, deleting=True))
    assert not advance(task, left, NOW, HERE).changed
    assert of(DeleteMember, outstanding(task, left, NOW, HERE)) == [1]


def test_a_retry_leaves_what_is_kept_for_its_output() -> None:
    task = array(3, status=recorded("0-1", "2", Phase.FAILED), annotations={ANNOTATION_RETRY: "1"})
    kept = runs(*(run(index, Phase.SUCCEEDED, started_at=NOW - timedelta(hours=1)) for index in range(2)))
    assert of(DeleteMember, outstanding(task, {**kept, 2: run(2, Phase.FAILED)}, NOW, HERE)) == [2]
    begun = advance(task, kept, NOW, HERE).status
    assert (begun.phase, begun.start_time) == (Phase.QUEUED, None), "they do not count for the new budget"
    assert of(DeleteMember, outstanding(stored(task, begun), kept, NOW, HERE)) == []
    assert of(CreateMember, outstanding(stored(task, begun), kept, NOW, HERE)) == [2]


@pytest.mark.parametrize("phase", [Phase.SUCCEEDED, Phase.RUNNING])
def test_a_retry_that_comes_too_early_or_too_late_does_nothing(phase: Phase) -> None:
    task = array(status=recorded("0-4", "", phase), annotations={ANNOTATION_RETRY: "1"})
    noted = advance(task, {}, NOW, HERE)
    assert noted.status.observed_retry == "1" and noted.status.phase is Phase.SUCCEEDED


def test_suspended_it_creates_nothing_and_suspends_what_there_is() -> None:
    members = runs(
        run(0), run(1, Phase.RUNNING, live=True, started_at=NOW), run(2, suspended=True), run(3, deleting=True)
    )  # fmt: skip
    task = array(9, suspend=True)
    commands = outstanding(task, members, NOW, HERE)
    assert (of(SuspendMember, commands), of(CreateMember, commands)) == ([0, 1], [])
    assert advance(task, members, NOW, HERE).status.phase is Phase.RUNNING
    held = advance(task, runs(run(0, Phase.PENDING, suspended=True)), NOW, HERE).status
    assert (held.phase, held.reason) == (Phase.PENDING, "Suspended")
    resumed = outstanding(array(9), runs(run(2, suspended=True)), NOW, HERE)
    assert SuspendMember(run(2, suspended=True), False) in resumed


def test_without_its_queue_it_waits() -> None:
    around = Around(queue_exists=False)
    waits = advance(array(), {}, NOW, around).status
    assert (waits.phase, waits.reason) == (Phase.PENDING, "QueueNotFound")
    assert outstanding(array(), {}, NOW, around) == ()


def test_a_spec_that_cannot_be_read_begins_and_ends_nothing_but_loses_nothing() -> None:
    members = runs(run(0, Phase.SUCCEEDED), run(1, Phase.RUNNING, live=True))
    around = Around(invalid="spec.container: missing", keep_succeeded=0)
    task = array(None, status=recorded("", "", Phase.RUNNING))
    status = advance(task, members, NOW, around).status
    assert status.phase is Phase.RUNNING and status.array is not None and status.array.completed_indexes == "0"
    assert (status.message or "").endswith("spec.container: missing")
    assert advance(stored(task, status), members, NOW, around).changed is False
    commands = outstanding(stored(task, status), members, NOW, around)
    assert commands == (DeleteMember(members[0]),)


def test_being_deleted_it_asks_for_nothing() -> None:
    task = array(metadata={"deletionTimestamp": "2026-03-01T11:00:00Z"})
    assert outstanding(task, runs(run(0), run(1, Phase.SUCCEEDED)), NOW, HERE) == ()


def test_an_index_list_that_nobody_can_read_is_refused() -> None:
    task = array(status=TaskStatus(array=ArrayStatus(completed_indexes="all")))
    for ask in (advance, outstanding):
        with pytest.raises(ValueError, match="all"):
            ask(task, {}, NOW, HERE)


# --- any order of anything ---

PHASES = st.sampled_from(
    [Phase.QUEUED, Phase.RUNNING, Phase.BACKOFF, Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED, Phase.EXPIRED]
)


@given(
    there=st.dictionaries(st.integers(0, 11), st.tuples(PHASES, st.booleans(), st.sampled_from([None, "Deleted"])), max_size=12),
    done=st.sets(st.integers(0, 11)),
    completions=st.integers(1, 12),
    parallelism=st.integers(1, 12),
    suspend=st.booleans(),
    most_failed=st.sampled_from([None, 0, 3]),
    cancel=st.booleans(),
)
def test_what_must_hold_whatever_is_there(
    *,
    there: dict[int, tuple[Phase, bool, str | None]],
    done: set[int],
    completions: int,
    parallelism: int,
    suspend: bool,
    most_failed: int | None,
    cancel: bool,
) -> None:
    members = runs(*(
        run(index, phase, deleting=deleting, reason=reason if phase is Phase.CANCELLED else None)
        for index, (phase, deleting, reason) in there.items()
    ))  # fmt: skip
    text = ",".join(str(index) for index in sorted(done))
    task = array(
        completions, parallelism=parallelism, suspend=suspend, maxFailedIndexes=most_failed, status=recorded(text),
        annotations={ANNOTATION_CANCEL: "no"} if cancel else {},
    )  # fmt: skip
    transition = advance(task, members, NOW, HERE)
    after = transition.status.array
    assert after is not None and not problems(transition.status.to_dict(), SCHEMA)
    completed, failed = set(parse(after.completed_indexes)), set(parse(after.failed_indexes))
    assert done <= completed and not completed & failed, "a record only grows"
    assert all(members[index].phase is Phase.SUCCEEDED for index in completed - done)
    assert all(members[index].ended and members[index].phase is not Phase.SUCCEEDED for index in failed)
    assert (after.succeeded, after.failed) == tuple(sum(index < completions for index in of) for of in (completed, failed))
    commands = outstanding(task, members, NOW, HERE)
    begun = of(CreateMember, commands)
    assert not set(begun) & (done | members.keys()) and all(index < completions for index in begun)
    unfinished = [member for index, member in members.items() if member.unfinished and index not in done]
    assert len(begun) <= max(0, parallelism - len(unfinished))
    for index in of(DeleteMember, commands):
        beyond = index >= completions and members[index].unfinished
        assert index in done or beyond or not members[index].started, "an outcome that is not recorded is never deleted"
    if transition.status.phase is Phase.SUCCEEDED:
        assert set(range(completions)) <= completed
    settled = stored(task, transition.status)
    assert not advance(settled, members, NOW, HERE).changed, "one look is enough"


# --- members ---


@given(st.text("ab-.9", min_size=1, max_size=253), st.integers(0, 99_999))
def test_names_say_their_index_and_fit(name: str, index: int) -> None:
    run_name = member_name(name, index)
    assert len(run_name) <= 253 and index_of(name, run_name) == index
    assert len(array_label(name)) <= 63


def test_long_names_stay_apart_and_valid() -> None:
    long, longer = "a" * 252, "a" * 253
    assert member_name(long, 7) != member_name(longer, 7) and array_label(long) != array_label(longer)
    for text in (member_name(longer, 99_999), member_name("a" * 240 + "-.-" + "b" * 10, 0)):
        assert re.fullmatch(units.DNS_SUBDOMAIN_PATTERN, text)
    assert re.fullmatch(units.LABEL_VALUE_PATTERN, array_label("a" * 51 + "-." + "b" * 100))


@pytest.mark.parametrize("name", ["many", "many-", "many-x", "many-07", "other-7", "many-7-7", "many--7", "many-٣", "many-9999999"])
def test_other_names_are_no_run_of_it(name: str) -> None:
    assert index_of("many", name) is None


def test_a_run_is_the_array_without_what_makes_it_one() -> None:
    spec = {"parallelism": 2, "maxFailedIndexes": 1, "suspend": True, "queue": "night", "priority": 7, "ttlSecondsAfterFinished": 0}
    env = [{"name": "LEVEL", "value": "3"}]
    labels = {"team": "red", "swarmtask.io/dead-letter": "true"}
    task = array(9, container={"image": "lint:1", "env": env}, backoffLimit=1, metadata={"labels": labels}, **spec)
    made = SwarmTask.model_validate(member_object(task, 7))
    assert not made.is_array and not made.spec.suspend and made.spec.completions is None
    assert (made.metadata.name, made.key[0], made.spec.queue, made.spec.priority) == ("many-7", "team", "night", 7)
    assert [(item.name, item.value) for item in made.spec.container.env] == [
        ("LEVEL", "3"), ("SWARMTASK_INDEX", "7"), ("SWARMTASK_COMPLETIONS", "9"),
    ]  # fmt: skip
    assert made.spec.ttl_seconds_after_finished == 31_536_000, "it must outlive its record"
    assert made.metadata.labels == {"team": "red", "swarmtask.io/array": "many", "swarmtask.io/index": "7"}
    owner = made.array_owner
    assert owner is not None and (owner.uid, owner.block_owner_deletion) == ("u-1", True)
    assert not problems(member_object(task, 7), task_schema())


def test_a_summary_of_a_fresh_run() -> None:
    fresh = SwarmTask.model_validate(member_object(array(), 3))
    assert member_of(fresh, 3) == Member(3, "many-3", "", Phase.PENDING)
    assert LIVE_ATTEMPT_STATES and not member_of(fresh, 3).live


def test_is_recorded() -> None:
    task = array(status=recorded("0-2", "4"))
    assert [index for index in range(6) if is_recorded(task, f"many-{index}")] == [0, 1, 2, 4]
    assert not is_recorded(task, "other-0") and not is_recorded(array(status=TaskStatus()), "many-0")
    assert not is_recorded(array(status=TaskStatus(array=ArrayStatus(failed_indexes="?"))), "many-0")


def test_an_array_stays_one_and_a_task_that_has_run_stays_a_task() -> None:
    assert array().is_array and array(None).is_array, "its status says so"
    assert not array(None, status=TaskStatus()).is_array
    assert not array(5, status=TaskStatus(attempt=1)).is_array
