"""The fence on a clock that is moved by hand: when it stops containers, when the API may be called, what sleep does to it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from swarmtask.nodeagent.fence import Fence, Terms
from tests.nodeagent.fakes import HandClock


class Leaps:
    """A pause in which the clock goes to its end at once. After the last of `during`, the fence ends."""

    def __init__(self, clock: HandClock, during: list[Callable[[], None]]) -> None:
        self.clock, self.during = clock, during
        self.waited: list[float] = []
        self.fence: Fence

    def until(self, due: float) -> None:
        self.waited.append(round(due - self.clock.boot_time(), 6))
        self.during.pop(0)()
        if not self.during:
            self.fence.end()
        self.clock.elapsed_s += max(0.0, due - self.clock.boot_time())

    def wake(self) -> None: ...

    def close(self) -> None: ...


class Node:
    """A fence over containers that are only counted."""

    def __init__(self, *, renewed_at: float | None = None, claimed: bool = True) -> None:
        self.clock = HandClock()
        self.sweeps: list[tuple[float, float]] = []
        self.running, self.stubborn = 3, False
        self.remembered: list[float] = []
        self.claims: list[bool] = []
        self.fence = Fence(
            self.sweep, self.clock.boot_time, terms=Terms(fence_s=20, grace_s=10), renewed_at=renewed_at,
            remember=self.remembered.append, claimed=claimed, claim=self.claims.append,
        )  # fmt: skip

    def sweep(self, since: float) -> bool:
        self.sweeps.append((self.clock.boot_time(), since))
        if not self.stubborn:
            self.running = 0
        return self.running == 0

    def renew(self) -> bool:
        asked_at = self.fence.ask()
        if asked_at is not None:
            self.fence.renewed(asked_at)
        return asked_at is not None

    def pass_s(self, seconds: float) -> None:
        for _ in range(round(seconds * 5)):
            self.clock.elapsed_s += 0.2
            self.fence.tick()


def test_a_lease_that_is_renewed_stops_nothing() -> None:
    node = Node()
    for _ in range(60):
        assert node.renew()
        node.pass_s(2)
    assert (node.sweeps, node.running) == ([], 3)


def test_where_nobody_ever_called_for_a_lease_nothing_is_stopped() -> None:
    """An agent with a wrong address or token: the operator does not count the silence of a node that it never heard."""
    node = Node(claimed=False)
    node.pass_s(120)
    assert (node.sweeps, node.running, node.claims) == ([], 3, [])
    assert node.fence.ask() is not None


def test_from_the_first_call_that_may_have_made_the_lease_it_counts() -> None:
    """Its answer was lost: the operator may have heard the node."""
    node = Node(claimed=False)
    node.pass_s(60)
    asked_at = node.fence.ask()
    assert asked_at is not None
    node.fence.claim(asked_at)
    node.fence.claim(asked_at)
    assert node.claims == [True]
    node.pass_s(19.6)
    assert node.running == 3
    node.pass_s(0.6)
    assert node.running == 0


def test_a_first_call_that_was_refused_promises_nothing() -> None:
    node = Node(claimed=False)
    node.fence.claim(node.clock.boot_time())
    node.fence.refused()
    assert node.claims == [True, False]
    node.pass_s(60)
    assert node.running == 3


def test_a_refusal_after_a_call_without_an_answer_takes_nothing_back() -> None:
    """The first call was stored and its answer lost: there is a Lease, whatever the second one says."""
    node = Node(claimed=False)
    node.fence.claim(node.clock.boot_time())
    node.pass_s(6)
    node.fence.claim(node.clock.boot_time())
    node.fence.refused()
    assert node.claims == [True]
    node.pass_s(15)
    assert node.running == 0


def test_a_refusal_counts_for_the_call_that_it_answers_only() -> None:
    node = Node(claimed=False)
    for _ in range(2):
        node.fence.claim(node.clock.boot_time())
        node.fence.refused()
    node.fence.refused()
    assert node.claims == [True, False, True, False]
    node.fence.claim(node.clock.boot_time())
    node.fence.claim(node.clock.boot_time())
    node.fence.refused()
    assert node.claims == [True, False, True, False, True]
    node.pass_s(21)
    assert node.running == 0


@pytest.mark.parametrize("renewed", [True, False])
def test_a_refusal_of_somebody_who_holds_or_may_hold_the_lease_takes_nothing_back(renewed: bool) -> None:
    """Its token was taken away."""
    node = Node(claimed=not renewed)
    if renewed:
        assert node.renew()
    node.fence.claim(node.clock.boot_time())
    node.fence.refused()
    assert node.claims == []
    node.pass_s(21)
    assert node.running == 0


def test_without_a_renewal_it_acts_after_fence_seconds_and_graces_count_from_there() -> None:
    node = Node()
    node.renew()
    node.pass_s(19.8)
    assert node.sweeps == []
    node.pass_s(0.4)
    assert node.running == 0
    at, since = node.sweeps[0]
    assert at == pytest.approx(1020, abs=0.3)
    assert since == pytest.approx(1020)


def test_after_a_long_sleep_graces_have_passed() -> None:
    node = Node()
    node.renew()
    node.clock.elapsed_s += 600
    node.fence.tick()
    assert node.sweeps[0][1] == pytest.approx(1020)


def test_after_waking_the_api_is_not_called_before_all_has_stopped() -> None:
    """The API answers again at once; nobody may ask it."""
    node = Node()
    node.renew()
    node.clock.elapsed_s += 600
    assert not node.renew(), "the loop woke before the fence's thread"
    node.stubborn = True
    node.pass_s(10)
    assert not node.renew()
    node.stubborn = False
    node.pass_s(0.4)
    assert node.running == 0
    assert node.renew()


def test_a_call_that_slept_does_not_hold_the_lease() -> None:
    """It was sent before the sleep and answered after: nobody knows when it reached the API."""
    node = Node()
    node.renew()
    node.pass_s(19)
    asked_at = node.fence.ask()
    assert asked_at is not None
    node.clock.elapsed_s += 10
    node.fence.renewed(asked_at)
    assert node.fence.ask() is None
    node.fence.tick()
    assert node.running == 0


def test_what_began_between_the_sweep_and_the_first_renewal_is_stopped_too() -> None:
    node = Node()
    node.renew()
    node.pass_s(21)
    node.running = 1  # an order from before the loss arrives
    assert node.renew()
    node.fence.tick()
    assert node.running == 0
    node.running = 1  # the operator's answer to the renewal
    node.pass_s(10)
    assert node.running == 1


def test_while_the_api_is_away_nothing_fenced_is_left_running_and_docker_is_not_asked_all_the_time() -> None:
    node = Node()
    node.pass_s(60)
    node.running = 2
    node.pass_s(2.4)
    assert node.running == 0
    assert len(node.sweeps) < 30


def test_a_sweep_before_a_second_sleep_is_worth_nothing() -> None:
    node = Node()
    node.pass_s(21)
    assert node.running == 0
    node.running = 1
    node.clock.elapsed_s += 3600
    assert not node.renew()
    node.fence.tick()
    assert node.running == 0
    assert node.renew()


def test_lost_again_before_it_was_held_again() -> None:
    node = Node()
    node.pass_s(21)
    assert node.renew()
    node.stubborn, node.running = True, 1
    node.pass_s(30)
    assert not node.renew()
    node.stubborn = False
    node.pass_s(1)
    assert node.renew()
    node.fence.tick()
    node.running = 1
    node.pass_s(10)
    assert node.running == 1


@pytest.mark.parametrize(
    ("renewed_at", "at_once"),
    [(None, False), (995.0, False), (979.0, True), (5000.0, False)],
    ids=["unknown", "fresh", "old", "future"],
)
def test_an_agent_that_starts_goes_by_what_the_disk_knows(renewed_at: float | None, at_once: bool) -> None:
    node = Node(renewed_at=renewed_at)
    assert (node.fence.ask() is None) == at_once
    node.fence.tick()
    assert (node.running == 0) == at_once
    node.pass_s(21)
    assert node.running == 0


def test_only_a_lease_that_is_held_is_remembered() -> None:
    """Else an agent that is killed before the last sweep would leave what it had to stop."""
    node = Node()
    node.renew()
    assert node.remembered == [1000.0]
    node.pass_s(21)
    node.renew()
    assert node.remembered == [1000.0]
    node.fence.tick()
    node.renew()
    assert len(node.remembered) == 2


def test_one_sweep_at_a_time() -> None:
    clock, inside, leave = HandClock(), threading.Event(), threading.Event()
    began: list[float] = []

    def sweep(kill_at: float) -> bool:
        began.append(kill_at)
        inside.set()
        return leave.wait(20)

    fence = Fence(sweep, clock.boot_time)
    clock.elapsed_s += 30
    thread = threading.Thread(target=fence.tick)
    thread.start()
    assert inside.wait(20)
    fence.tick()
    assert fence.ask() is None
    leave.set()
    thread.join(20)
    assert len(began) == 1
    assert fence.ask() is not None


def test_its_thread_acts_by_itself_and_ends() -> None:
    clock, acted = HandClock(), threading.Event()

    def sweep(kill_at: float) -> bool:
        acted.set()
        return True

    fence = Fence(sweep, clock.boot_time, terms=Terms(tick_s=0.01))
    thread = threading.Thread(target=fence.run)
    thread.start()
    assert not acted.is_set()
    clock.elapsed_s += 21
    assert acted.wait(20)
    fence.end()
    thread.join(20)
    assert not thread.is_alive()


def test_its_thread_looks_when_the_lease_ends_and_often_only_while_it_is_expired() -> None:
    clock, swept = HandClock(), list[float]()
    began = clock.boot_time()

    def nothing() -> None: ...

    def renew() -> None:
        clock.elapsed_s += 5
        asked_at = pause.fence.ask()
        assert asked_at is not None
        pause.fence.renewed(asked_at)

    def sweep(since: float) -> bool:
        swept.append(clock.boot_time())
        return True

    pause = Leaps(clock, [renew, nothing, nothing, nothing])
    pause.fence = Fence(sweep, clock.boot_time, terms=Terms(fence_s=20, tick_s=0.2), pause=pause)
    pause.fence.run()
    # At the end of the first Lease, which had been renewed after 5 s; at the end of the second; then tick by tick.
    assert pause.waited == [20, 5, 0.2, 0.2]
    assert swept == [began + 25]


def test_where_nothing_was_promised_its_thread_looks_often() -> None:
    clock = HandClock()
    pause = Leaps(clock, [lambda: None, lambda: pause.fence.claim(clock.boot_time()), lambda: None])
    pause.fence = Fence(lambda _: True, clock.boot_time, terms=Terms(fence_s=20, tick_s=0.2), claimed=False, pause=pause)
    pause.fence.run()
    assert pause.waited == [0.2, 0.2, 19.8]
