"""Limits of the whole cluster: never exceeded, shared by queues, held and given back, and said in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from swarmtask.scheduler.cycle import run_cycle
from swarmtask.scheduler.model import LimitInfo, PendingTask, QueueInfo, QueueKey, Refusal, TaskKey
from tests.scheduler.builders import DEFAULT, limited, node, shape, snapshot, task

NIGHT = ("home", "night")
ONE = shape(limits=(("model/x", 1),))


def refusals(pending: list[PendingTask], limits: Mapping[str, LimitInfo], *queues: QueueInfo) -> list[Refusal]:
    return list(run_cycle(snapshot([node()], pending, *queues, limits=limits)).refusals)


def test_a_limit_is_bounded_and_names_those_who_hold_it() -> None:
    pending = [task(f"t{number}", ONE, at=float(number)) for number in range(5)]
    result = run_cycle(snapshot([node()], pending, limits={"model/x": limited(3, older=1)}))
    assert [binding.task.key[1] for binding in result.bindings] == ["t0", "t1"]
    assert {(refusal.reason, refusal.message) for refusal in result.refusals} == {
        ("LimitReached", "limit model/x of queue home/default is reached (3 of 3 held, needs 1; held by older, t0, t1)")
    }
    assert [refusal.position for refusal in result.refusals] == [1, 2, 3]


def test_many_holders_are_counted_and_those_of_other_namespaces_named_with_theirs() -> None:
    (refusal,) = refusals([task(wants=ONE)], {"model/x": limited(5, **{f"h{number}": 1 for number in range(5)})})
    assert refusal.message.endswith("(5 of 5 held, needs 1; held by h0, h1, h2 and 2 more)")
    (refusal,) = refusals([task(wants=ONE)], {"model/x": LimitInfo(2, NIGHT, {("lab", "a"): 1, ("home", "z"): 1})})
    assert refusal.message == "limit model/x of queue home/night is reached (2 of 2 held, needs 1; held by z, lab/a)"


def test_a_task_that_takes_more_than_there_is_never_starts_and_is_told_so() -> None:
    greedy = shape(limits=(("model/x", 4),))
    (refusal,) = refusals([task(wants=greedy)], {"model/x": limited(3)})
    assert refusal.message.endswith("(0 of 3 held, needs 4; never starts: the limit is 3)")


def test_a_limit_that_was_lowered_below_what_is_held_starts_nothing_more() -> None:
    (refusal,) = refusals([task(wants=ONE)], {"model/x": limited(1, a=1, b=1)})
    assert refusal.message.endswith("(2 of 1 held, needs 1; held by a, b)")


def test_a_name_that_nobody_limits_is_free() -> None:
    pending = [task(f"t{number}", ONE) for number in range(5)]
    assert not refusals(pending, {"provider/y": limited(0)})
    assert not refusals(pending, {})


def test_every_limit_of_a_task_must_have_room() -> None:
    both = shape(limits=(("model/x", 1), ("provider/y", 2)))
    limits = {"model/x": limited(5), "provider/y": limited(3)}
    (refusal,) = refusals([task("a", both), task("b", both, at=1.0)], limits)
    assert refusal.message.startswith("limit provider/y of queue home/default is reached (2 of 3 held, needs 2")


def test_tasks_of_all_queues_share_a_limit() -> None:
    pending = [task(f"t{number}", ONE, at=float(number), queue=NIGHT if number % 2 else DEFAULT) for number in range(8)]
    result = run_cycle(snapshot([node()], pending, limits={"model/x": limited(4, NIGHT, older=1)}))
    assert [binding.task.key[1] for binding in result.bindings] == ["t0", "t1", "t2"]
    assert {refusal.reason for refusal in result.refusals} == {"LimitReached"}


def test_slots_that_a_task_waits_for_are_not_taken_by_a_later_one_of_any_queue() -> None:
    three = task("three", shape(limits=(("model/x", 3),)))
    later = [task("ours", ONE, at=1.0), task("theirs", ONE, at=2.0, queue=NIGHT)]
    found = refusals([three, *later], {"model/x": limited(4, holder=2)})
    words = "limit model/x of queue home/default is kept for home/three, which comes first (2 of 4 held, needs 1; held by holder)"
    assert [(one.task.key[1], one.reason) for one in found] == [
        ("three", "LimitReached"),
        ("ours", "Reserved"),
        ("theirs", "Reserved"),
    ]
    assert [one.message for one in found[1:]] == [words, words]
    before = task("before", ONE, priority=1, queue=NIGHT)
    result = run_cycle(snapshot([node()], [three, before, *later], limits={"model/x": limited(4, holder=2)}))
    assert [binding.task.key[1] for binding in result.bindings] == ["before"]


def test_a_task_that_waits_for_a_limit_holds_back_nobody_who_does_not_need_it() -> None:
    pending = [task("urgent", ONE, priority=1000), task("other")]
    result = run_cycle(snapshot([node()], pending, limits={"model/x": limited(0)}))
    assert [binding.task.key[1] for binding in result.bindings] == ["other"]


@given(
    st.lists(st.tuples(st.sampled_from([DEFAULT, NIGHT]), st.integers(0, 3), st.integers(0, 3)), max_size=25),
    st.lists(st.tuples(st.integers(3, 6), st.integers(0, 2**25 - 1)), min_size=1, max_size=6),
)
@settings(max_examples=60)
def test_over_many_cycles_no_limit_is_exceeded_and_everything_comes_to_its_turn(
    wishes: list[tuple[QueueKey, int, int]], steps: list[tuple[int, int]]
) -> None:
    """Tasks of two queues end in any order (a bit of the step says which), limits are edited while they are held. Every task takes
    at most 3, no limit goes below 3: in the end all have run."""
    waiting = {
        ("home", f"t{number}"): task(
            f"t{number}",
            shape(limits=tuple((name, slots) for name, slots in (("a", a), ("b", b)) if slots)),
            at=float(number),
            queue=queue,
        )
        for number, (queue, a, b) in enumerate(wishes)
    }
    running: dict[TaskKey, PendingTask] = {}

    def held(name: str) -> dict[TaskKey, int]:
        taken = {key: dict(one.shape.limits).get(name, 0) for key, one in running.items()}
        return {key: slots for key, slots in taken.items() if slots}

    everyone_ends = [(3, 2**25 - 1)] * (len(wishes) + 1)
    for most, ending in [*steps, *everyone_ends]:
        limits = {name: LimitInfo(most, DEFAULT, held(name)) for name in "ab"}
        before = {name: sum(limit.holders.values()) for name, limit in limits.items()}
        for binding in run_cycle(snapshot([node()], list(waiting.values()), limits=limits)).bindings:
            running[binding.task.key] = waiting.pop(binding.task.key)
        for name, slots in before.items():
            assert sum(held(name).values()) <= max(most, slots)
        for number in range(25):
            if ending >> number & 1:
                running.pop(("home", f"t{number}"), None)
    assert not waiting


def test_equal_shapes_with_other_limits_are_not_one_line() -> None:
    pending = [task("limited", ONE), task("free", replace(ONE, limits=()), at=1.0)]
    assert [refusal.task.key[1] for refusal in refusals(pending, {"model/x": limited(0)})] == ["limited"]
