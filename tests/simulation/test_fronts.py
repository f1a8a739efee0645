"""Who may not be placed while somebody waits whom a person has moved to the front."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from swarmtask.resources.task import ANNOTATION_FRONT, SwarmTask
from swarmtask.scheduler.model import Amounts
from tests.simulation.fronts import Fronts

START = datetime(2026, 1, 1, tzinfo=UTC)
GIB = 2**30


class Scene:
    """One node of 4 cores; what is wrong with a version is what `fronts` says of it."""

    def __init__(self) -> None:
        self.fronts = Fronts(lambda: {"n1": Amounts(4000, 8 * GIB)})

    def tell(
        self, now_s: float, name: str, phase: str, *, cpu: str = "1", moved_s: float | None = None, queue: str = "q"
    ) -> str | None:
        """`phase` as stored: Queued, or Starting on n1, or Succeeded there."""
        moved = {} if moved_s is None else {ANNOTATION_FRONT: (START + timedelta(seconds=moved_s)).isoformat()}
        requests = {"cpu": cpu, "memory": "1Gi"}
        status: dict[str, Any] = {"phase": phase}
        if phase != "Queued":
            bound_at = (START + timedelta(seconds=now_s)).isoformat()
            attempt = {"number": 1, "id": f"st-{name}", "node": "n1", "engine": "e", "requested": requests, "boundAt": bound_at}
            status |= {"attempt": 1, "attempts": [attempt | {"state": phase}]}
        task = {
            "metadata": {"name": name, "uid": name, "annotations": moved},
            "spec": {"queue": queue, "container": {"image": "busybox", "resources": {"requests": requests}}},
            "status": status,
        }
        return self.fronts.seen(SwarmTask.model_validate(task), now_s)


def test_who_is_overtaken_though_he_fits_is_told_when_he_is_placed() -> None:
    scene = Scene()
    assert scene.tell(1, "moved", "Queued", moved_s=1) is None
    assert scene.tell(2, "other", "Starting") is None
    wrong = scene.tell(3, "moved", "Starting", moved_s=1)
    assert wrong is not None
    assert "other was placed at 2.0 s" in wrong


@pytest.mark.parametrize(
    ("other", "placed_s"),
    [
        ({"queue": "else"}, 3.0),
        ({"moved_s": 1.5}, 3.0),  # who is moved last comes first
        ({}, 2.0),  # together
    ],
    ids=["of another queue", "moved later", "placed together"],
)
def test_others_may_go_ahead(other: dict[str, Any], placed_s: float) -> None:
    scene = Scene()
    scene.tell(1, "moved", "Queued", moved_s=1)
    scene.tell(1.5, "other", "Queued", **other)
    scene.tell(2, "other", "Starting", **other)
    assert scene.tell(placed_s, "moved", "Starting", moved_s=1) is None


@pytest.mark.parametrize(("rightful_cpu", "wrong"), [("1", True), ("2", False)])
def test_who_takes_what_a_rightful_one_of_the_same_cycle_has_left_overtakes_nobody(rightful_cpu: str, wrong: bool) -> None:
    scene = Scene()
    scene.tell(1, "moved", "Queued", cpu="3", moved_s=1)
    scene.tell(1.5, "later", "Queued", cpu=rightful_cpu, moved_s=1.5)
    scene.tell(2, "other", "Starting")
    scene.tell(2, "later", "Starting", cpu=rightful_cpu, moved_s=1.5)
    assert (scene.tell(3, "moved", "Starting", cpu="3", moved_s=1) is not None) is wrong


def test_a_move_is_spent_by_a_placement_whose_moment_was_cut_off() -> None:
    scene = Scene()
    scene.tell(1.2, "moved", "Queued", moved_s=1.2)
    scene.tell(1, "moved", "Starting", moved_s=1.2)
    scene.tell(2, "moved", "Failed", moved_s=1.2)
    again = {"name": "moved", "uid": "moved", "annotations": {ANNOTATION_FRONT: (START + timedelta(seconds=1.2)).isoformat()}}
    attempt = {"number": 1, "id": "st-moved", "node": "n1", "engine": "e", "boundAt": (START + timedelta(seconds=1)).isoformat()}
    requests = {"cpu": "1", "memory": "1Gi"}
    status = {"phase": "Queued", "attempt": 1, "attempts": [attempt | {"state": "Failed", "requested": requests}]}
    spec = {"queue": "q", "container": {"image": "busybox", "resources": {"requests": requests}}}
    queued = SwarmTask.model_validate({"metadata": again, "spec": spec, "status": status})
    scene.fronts.seen(queued, 3)
    scene.tell(4, "other", "Starting")
    assert scene.tell(5, "moved", "Starting", moved_s=1.2) is None


def test_small_ones_may_take_what_is_too_little_for_him() -> None:
    scene = Scene()
    scene.tell(0, "there", "Starting", cpu="2")
    scene.tell(1, "moved", "Queued", cpu="3", moved_s=1)
    scene.tell(2, "small", "Starting")
    assert scene.tell(3, "moved", "Starting", cpu="3", moved_s=1) is None


def test_what_became_free_in_the_same_moment_was_not_to_be_had() -> None:
    for freed_s, wrong in ((2.0, False), (1.9, True)):
        scene = Scene()
        scene.tell(0, "there", "Starting", cpu="2")
        scene.tell(1, "moved", "Queued", cpu="3", moved_s=1)
        scene.tell(freed_s, "there", "Succeeded", cpu="2")
        scene.tell(2, "small", "Starting")
        assert (scene.tell(3, "moved", "Starting", cpu="3", moved_s=1) is not None) is wrong


def test_a_move_that_was_not_heard_of_yet_does_not_count() -> None:
    scene = Scene()
    scene.tell(1, "moved", "Queued", moved_s=1)
    scene.tell(1.1, "other", "Starting")
    assert scene.tell(2, "moved", "Starting", moved_s=1) is None
