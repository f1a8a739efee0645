"""Silence of nodes, by a clock that stands still while nothing can be heard."""

from __future__ import annotations

from swarmtask.controllers.hearing import Ears
from swarmtask.kube import Object
from swarmtask.lifecycle.loss import Hearing


class Room:
    """Leases of some nodes, and somebody who listens. Times are seconds."""

    def __init__(self, *names: str, vouched: bool = False) -> None:
        self.ears = Ears(4.5, 20.0, lambda name: vouched)
        self.version, self.now = 0, 0.0
        self.leases: dict[str, Object] = {}
        for name in names:
            self.renew(name)
        self.listen()

    def renew(self, name: str, boot_id: str = "b1", *, holder: str = "", seen: bool = False) -> None:
        self.version += 1
        self.leases[name] = {
            "metadata": {"name": name, "resourceVersion": str(self.version)},
            "spec": {"holderIdentity": holder or boot_id, "renewTime": f"{self.version}"},
        }
        if seen:
            self.ears.read(self.leases[name], self.now)

    def listen(self, *, answered: bool = True) -> None:
        if answered:
            self.ears.listed(list(self.leases.values()), self.now)

    def go(self, seconds: float, *renewing: str, answered: bool = True) -> None:
        for _ in range(round(seconds * 2)):
            self.now += 0.5
            for name in renewing:
                self.renew(name)
            self.listen(answered=answered)

    def hearing(self, name: str) -> Hearing:
        return self.ears.word(name, self.now).hearing

    def since_s(self, name: str) -> float:
        return self.ears.word(name, self.now).since_s


def test_for_how_long_an_agent_says_that_it_holds_its_lease() -> None:
    room = Room("a")
    for told, holds_s in ((30, 30.0), (10**9, 3600.0), ("soon", 0.0), (None, 0.0)):
        room.renew("a")
        room.leases["a"]["spec"]["leaseDurationSeconds"] = told
        room.go(5)
        word = room.ears.word("a", room.now)
        assert (word.hearing, word.holds_s) == (Hearing.SILENT, holds_s)
        assert word.silent_beyond_s(20.0) == max(0.0, word.since_s - max(0.0, holds_s - 20))


def test_a_node_is_new_then_heard_then_silent_then_heard() -> None:
    room = Room("a")
    assert room.hearing("a") is Hearing.NEW
    room.go(1, "a")
    assert room.hearing("a") is Hearing.HEARD
    room.go(4.0)
    assert room.hearing("a") is Hearing.HEARD
    room.go(0.5)
    assert (room.hearing("a"), room.since_s("a")) == (Hearing.SILENT, 4.5)
    room.go(30)
    assert room.since_s("a") == 34.5
    room.renew("a", seen=True)
    assert (room.hearing("a"), room.since_s("a")) == (Hearing.HEARD, 0.0)


def test_a_node_without_a_lease_has_no_agent() -> None:
    room = Room("a")
    assert room.hearing("b") is Hearing.NONE
    del room.leases["a"]
    room.go(1)
    assert room.hearing("a") is Hearing.NONE and not room.ears


def test_that_a_node_has_no_agent_is_known_only_as_of_the_last_read() -> None:
    """One that has come since has held its Lease for too short a time to stop anything; later it may have."""
    room = Room()
    room.go(4, answered=False)
    assert room.ears.fresh(room.now)
    room.go(0.5, answered=False)
    assert not room.ears.fresh(room.now)
    room.go(0.5)
    assert room.ears.fresh(room.now)
    room.now += 5
    room.ears.opened(room.now)
    assert room.ears.fresh(room.now)


def test_one_that_was_never_heard_is_lost_without_a_known_beginning() -> None:
    room = Room("a")
    room.go(5)
    word = room.ears.word("a", room.now)
    assert (word.hearing, word.exact) == (Hearing.SILENT, False)


def test_one_that_falls_silent_again_soon_has_not_told_all_of_the_silence_before() -> None:
    room = Room("a")
    room.go(1, "a")
    room.go(15)
    for heard_s, told in ((1, False), (25, True)):
        for _ in range(heard_s + 1):
            room.go(1, "a")
        room.go(5)
        word = room.ears.word("a", room.now)
        assert (word.hearing, word.exact, word.told_all) == (Hearing.SILENT, True, told)
        assert heard_s - 1 <= word.heard_s <= heard_s + 1


def test_nothing_is_concluded_from_silence_that_could_not_be_heard() -> None:
    room = Room("a", "b")
    room.go(2, "a", "b")
    room.go(60, answered=False)
    assert room.hearing("a") is Hearing.NEW
    room.go(4)
    assert room.hearing("a") is Hearing.NEW
    room.go(1)
    assert room.hearing("a") is Hearing.SILENT
    room.renew("b", seen=True)
    assert room.hearing("b") is Hearing.HEARD


def test_silence_of_a_lost_node_stands_still_meanwhile() -> None:
    room = Room("a")
    room.go(1, "a")
    room.go(10)
    room.go(60, answered=False)
    assert (room.hearing("a"), room.since_s("a")) == (Hearing.SILENT, 10.0)
    room.go(5)
    assert 14.0 <= room.since_s("a") <= 15.0


def test_news_that_came_late_or_twice_is_no_sign_of_life() -> None:
    room = Room("a")
    room.go(1, "a")
    old = room.leases["a"]
    room.go(1, "a")
    room.go(5)
    assert not room.ears.read(old, room.now) and not room.ears.read(room.leases["a"], room.now)
    assert room.hearing("a") is Hearing.SILENT


def test_a_change_that_renews_nothing_is_no_sign_of_life() -> None:
    room = Room("a")
    room.go(1, "a")
    room.version += 1
    room.leases["a"] = {**room.leases["a"], "metadata": {"name": "a", "resourceVersion": str(room.version)}}
    room.go(5)
    assert room.hearing("a") is Hearing.SILENT


def test_a_kubelets_lease_says_nothing() -> None:
    room = Room()
    room.renew("a", holder="a")
    room.go(5)
    assert room.hearing("a") is Hearing.NONE


def test_an_engine_vouches_for_a_node_only_when_it_would_have_noticed() -> None:
    room = Room("a")
    room.go(1, "a")
    room.go(19.5)
    assert not room.ears.vouch("a")
    room.go(0.5)
    assert room.ears.vouch("a") and room.hearing("a") is Hearing.VOUCHED
    room.go(4)
    assert room.ears.vouch("a") and room.since_s("a") == 24.0
    room.go(4.5)  # its engine does not vouch any more: silence counts from when it last did
    assert (room.hearing("a"), room.since_s("a")) == (Hearing.SILENT, 4.5)
    assert not room.ears.vouch("a")


def test_a_node_that_was_known_to_have_lost_its_agent_is_vouched_for_from_the_start() -> None:
    room = Room("a", vouched=True)
    assert room.ears.vouch("a") and room.hearing("a") is Hearing.VOUCHED
    room.renew("a", seen=True)
    assert room.hearing("a") is Hearing.HEARD


def test_the_next_read_comes_when_a_node_may_be_lost() -> None:
    room = Room("a")
    room.renew("a", seen=True)
    room.now = 4.2
    assert abs(room.ears.next_look_s(room.now, 1.0) - 0.3) < 1e-9
    room.now = 1.0
    assert room.ears.next_look_s(room.now, 1.0) == 1.0
