"""Figures of containers that live for less than the watch's second, on a cgroup tree of either version."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from swarmtask.nodeagent import early_figures
from swarmtask.nodeagent.cgroups import Cgroups
from swarmtask.nodeagent.early_figures import MOST, OLD_S, SOONEST_S, EarlyFigures
from tests.nodeagent.fakes import CgroupTree, HandClock, container_id

ONE = container_id(1)


class Place:
    def __init__(self, path: Path, version: int) -> None:
        self.tree, self.clock = CgroupTree(path, version), HandClock()
        self.figures = EarlyFigures(Cgroups(self.tree.root, self.tree.proc), self.clock.monotonic)

    def begin(self, number: int = 1) -> None:
        self.tree.begin(container_id(number), 1000 + number)
        self.figures.begun(container_id(number))

    def seen(self, name: str = ONE) -> tuple[int, float | None]:
        usage = self.figures.usage(name)
        assert usage is not None
        return usage.peak_bytes, usage.cpu_s

    def looks(self) -> list[float]:
        """When it is looked at, in seconds from now, until nobody looks any more."""
        began, moments = self.clock.elapsed_s, []
        while (pause_s := self.figures.step()) is not None:
            self.clock.elapsed_s += pause_s
            moments.append(self.clock.elapsed_s - began)
        return moments


@pytest.fixture(params=[1, 2])
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Place:
    return Place(tmp_path, request.param)


def test_what_was_used_is_known_after_an_end_that_no_look_each_second_could_see(place: Place) -> None:
    place.begin()
    assert place.seen() == (2**20, 0.5), "seen at the start"
    place.tree.use(ONE, memory=2**22, peak=2**23, cpu_s=0.75)
    place.clock.elapsed_s += SOONEST_S
    assert place.figures.step() == pytest.approx(SOONEST_S)
    place.tree.end(ONE)
    place.clock.elapsed_s += SOONEST_S
    assert place.figures.step() is None, "it has ended"
    assert place.seen() == (2**23, 0.75)


def test_looks_become_rare_as_it_grows_old_and_end_when_others_see_enough(place: Place) -> None:
    place.begin()
    moments = place.looks()
    pauses = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert pauses == sorted(pauses)
    assert all(pause <= max(SOONEST_S, 0.2 * at) + 1e-9 for at, pause in zip(moments, pauses, strict=False))
    assert OLD_S <= moments[-1] <= OLD_S + 1
    assert len(moments) < 40, "what it costs"


def test_the_highest_peak_stays_where_the_kernel_keeps_none(place: Place) -> None:
    place.begin()
    place.tree.use(ONE, memory=2**24, peak=2**24, cpu_s=1)
    place.clock.elapsed_s += SOONEST_S
    place.figures.step()
    place.tree.use(ONE, memory=2**21, peak=2**21, cpu_s=2)
    place.clock.elapsed_s += SOONEST_S
    place.figures.step()
    assert place.seen() == (2**24, 2)


def test_many_that_begin_at_once_are_bounded_and_so_is_what_is_kept(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_figures, "KEPT", 3)
    for number in range(1, MOST + 3):
        place.begin(number)
    assert [place.figures.usage(container_id(number)) is not None for number in (1, MOST - 2, MOST, MOST + 1)] == [
        False, True, True, False,
    ]  # fmt: skip
    for number in range(1, MOST + 3):
        place.tree.end(container_id(number))
    place.clock.elapsed_s += SOONEST_S
    assert place.figures.step() is None
    place.begin(MOST + 5)
    assert place.seen(container_id(MOST + 5)) == (2**20, 0.5), "there is room again"


def test_a_container_whose_files_are_not_here_leaves_nothing(place: Place) -> None:
    place.figures.begun(ONE)
    place.figures.begun("../etc")
    assert place.figures.usage(ONE) is None
    assert place.figures.step() is None
