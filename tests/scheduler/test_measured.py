"""Memory that others than tasks use: how it is told from what tasks use, what it takes from an offer, and that it does not flap."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from swarmtask.scheduler.cycle import run_cycle
from swarmtask.scheduler.measured import Attempted, Foreign, foreign_memory, held_bytes, taken_from_offer
from swarmtask.scheduler.model import Amounts, QueueInfo
from tests.scheduler.builders import DEFAULT, GIB, node, shape, snapshot, task

QUEUE = QueueInfo(DEFAULT)


def test_what_tasks_may_use_is_theirs_and_the_rest_is_foreign() -> None:
    attempts = [Attempted(2 * GIB, GIB), Attempted(GIB), Attempted(4 * GIB, started=False), Attempted(GIB, 3 * GIB)]
    assert held_bytes(attempts) == GIB + GIB + 0 + GIB
    assert foreign_memory(5 * GIB, 3 * GIB, 8 * GIB) == Foreign(2 * GIB, 2 * GIB)
    assert foreign_memory(GIB, 3 * GIB, 8 * GIB) == Foreign(0, 0)


def test_the_owners_reserve_is_used_up_first() -> None:
    assert taken_from_offer(GIB, 8 * GIB, 6 * GIB) == 0
    assert taken_from_offer(3 * GIB, 8 * GIB, 6 * GIB) == GIB
    assert taken_from_offer(30 * GIB, 8 * GIB, 6 * GIB) == 6 * GIB
    assert taken_from_offer(GIB, 0, 0) == 0


def test_a_rise_and_a_large_fall_count_at_once_and_a_small_fall_when_it_is_confirmed() -> None:
    first = foreign_memory(4000, 0, 10_000)
    second = foreign_memory(3800, 0, 10_000, first)
    assert second == Foreign(4000, 3800)
    assert foreign_memory(3700, 0, 10_000, second) == Foreign(3800, 3700)
    assert foreign_memory(3900, 0, 10_000, second) == Foreign(3900, 3900)
    assert foreign_memory(3400, 0, 10_000, second) == Foreign(3400, 3400)
    assert foreign_memory(4100, 0, 10_000, second) == Foreign(4100, 4100)


@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=20), st.integers(0, 12_000), st.integers(0, 10_000))
def test_it_is_never_less_than_measured_and_forgets_after_two_measurements(usages: list[int], held: int, capacity: int) -> None:
    before: Foreign | None = None
    seen = []
    for usage in usages:
        before = foreign_memory(usage, held, capacity, before)
        seen.append(before)
        assert before.bytes >= before.measured == max(0, usage - held)
    for old, new in pairwise(seen):
        assert new.bytes <= max(old.measured, new.measured, 0) or new.bytes == old.bytes
    settled = foreign_memory(usages[-1], held, capacity, foreign_memory(usages[-1], held, capacity, before))
    assert settled.bytes == settled.measured


@given(
    st.integers(0, 16),
    st.lists(st.tuples(st.integers(0, 8), st.one_of(st.none(), st.integers(0, 8)), st.booleans()), max_size=6),
    st.integers(0, 20), st.integers(0, 16),
)  # fmt: skip
def test_nothing_is_given_away_that_is_not_there(
    capacity: int, attempts: list[tuple[int, int | None, bool]], usage: int, reserved: int
) -> None:
    """What is free never exceeds what requests leave, nor what was measured as available less what was bound since."""
    allocatable = max(0, capacity - reserved)
    requested = sum(request for request, _, _ in attempts)
    foreign = foreign_memory(usage, held_bytes(Attempted(*one) for one in attempts), capacity)
    free = allocatable - requested - taken_from_offer(foreign.bytes, capacity, allocatable)
    since = sum(request for request, peak, started in attempts if peak is None and not started)
    assert free <= allocatable - requested
    assert free <= max(capacity - usage - since, 0) or free < 0 or usage > capacity


def test_a_task_waits_for_what_others_use_and_starts_when_they_are_gone() -> None:
    wants = task(wants=shape(memory=6 * GIB))
    (refusal,) = run_cycle(snapshot([node(memory=8 * GIB, foreign_bytes=4 * GIB)], [wants], QUEUE)).refusals
    assert refusal.message == (
        "0/1 node fits: 1 too little memory (needs 6Gi, largest free 4Gi; 1 would fit but for at least 4Gi that others than "
        "tasks use)"
    )
    (binding,) = run_cycle(snapshot([node(memory=8 * GIB, foreign_bytes=2 * GIB)], [wants], QUEUE)).bindings
    assert binding.node == "laptop"


def test_a_node_is_kept_for_the_head_beside_what_others_use() -> None:
    """The head needs what runs there; smaller ones that would take it are held back, though requests alone would let them in."""
    busy = node("a", memory=16 * GIB, requested=Amounts(0, 8 * GIB), tasks=1, foreign_bytes=4 * GIB)
    head = task("head", shape(memory=10 * GIB), at=1.0)
    small = task("small", shape(memory=3 * GIB), at=2.0)
    result = run_cycle(snapshot([busy], [head, small], QUEUE))
    assert [refusal.task.key[1] for refusal in result.refusals] == ["head", "small"]
    assert result.refusals[1].reason == "Reserved"


def test_a_node_is_not_kept_empty_for_its_owner() -> None:
    """While the head fits nowhere beside what the owner uses, others run; when she leaves, the head comes first."""
    head, small = task("head", shape(memory=10 * GIB), at=1.0), task("small", shape(memory=3 * GIB), at=2.0)
    result = run_cycle(snapshot([node("a", memory=16 * GIB, foreign_bytes=8 * GIB)], [head, small], QUEUE))
    assert [binding.task.key[1] for binding in result.bindings] == ["small"]
    result = run_cycle(snapshot([node("a", memory=16 * GIB)], [head, small], QUEUE))
    assert [binding.task.key[1] for binding in result.bindings] == ["head", "small"]
