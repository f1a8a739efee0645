"""`swarmtask cordon`, `uncordon`, `drain`, `undrain`: what they write, what they show, and when they stop waiting."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from swarmtask.kube import Object
from swarmtask.resources.kinds import SWARM_NODE
from tests.cli.conftest import Swarmtask
from tests.cli.tasks import add_node
from tests.fakes.kube import FakeKube


def spec(kube: FakeKube, name: str = "desk") -> Object:
    found = kube.peek(SWARM_NODE, name)
    assert found is not None
    return dict(found["spec"])


def on_watch(kube: FakeKube, *steps: Callable[[], object]) -> None:
    """Take a step each time a watch begins; the last one again and again."""
    original, left = kube.watch, list(steps)

    def watch(*arguments: Any, **options: Any) -> Any:
        (left.pop(0) if len(left) > 1 else left[0])()
        return original(*arguments, **options)

    kube.watch = watch  # type: ignore[method-assign]


def operator_says(kube: FakeKube, empty: bool, name: str = "desk", *, behind: int = 0) -> None:
    """The operator has written the node's status; `behind`: as it was so many generations ago."""
    found = kube.peek(SWARM_NODE, name)
    assert found is not None
    words = "nothing of SwarmTask runs here" if empty else "2 attempts left"
    drained = {
        "type": "Drained", "status": str(empty), "reason": "x", "message": words,
        "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": found["metadata"]["generation"] - behind,
    }  # fmt: skip
    kube.edit(SWARM_NODE, name, None, {"status": {"conditions": [drained]}}, status=True)


def test_cordon_and_uncordon(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_node(kube)
    assert swarmtask("cordon", "desk").stdout == "swarmnode.swarmtask.io/desk cordoned\n"
    assert spec(kube)["unschedulable"] is True
    assert swarmtask("cordon", "node/desk").stdout == "swarmnode.swarmtask.io/desk was cordoned already\n"
    assert swarmtask("uncordon", "desk").stdout == "swarmnode.swarmtask.io/desk uncordoned\n"
    assert spec(kube)["unschedulable"] is False
    assert "was uncordoned already" in swarmtask("uncordon", "desk").stdout


def test_drain_asks_and_does_not_wait(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_node(kube)
    add_node(kube, "bed")
    result = swarmtask("drain", "desk", "bed", "desk")
    assert (result.exit_code, result.stdout) == (0, "swarmnode.swarmtask.io/desk draining\nswarmnode.swarmtask.io/bed draining\n")
    assert spec(kube) == {"unschedulable": False, "drain": True}


def test_undrain_leaves_a_cordon_and_uncordon_takes_both_back(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_node(kube)
    for command in ("cordon", "drain", "undrain"):
        assert swarmtask(command, "desk").exit_code == 0
    assert spec(kube) == {"unschedulable": True, "drain": False}
    swarmtask("drain", "desk")
    assert swarmtask("uncordon", "desk").exit_code == 0
    assert spec(kube) == {"unschedulable": False, "drain": False}


@pytest.mark.parametrize("command", ["cordon", "uncordon", "drain", "undrain"])
def test_one_node_that_is_not_there_does_not_keep_the_others_from_it(swarmtask: Swarmtask, kube: FakeKube, command: str) -> None:
    add_node(kube)
    result = swarmtask(command, "nowhere", "desk")
    assert result.exit_code == 3
    assert "there is no node nowhere: `swarmtask get nodes` shows all there are" in result.stderr
    assert result.stdout.startswith("swarmnode.swarmtask.io/desk ")
    assert swarmtask(command, "st/desk").exit_code != 0


def test_drain_waits_until_the_operator_says_that_it_is_empty(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_node(kube)

    def go_on() -> None:
        operator_says(kube, empty=True, behind=1)  # an older drain
        operator_says(kube, empty=False)
        operator_says(kube, empty=True)

    on_watch(kube, go_on)
    result = swarmtask("drain", "desk", "--wait")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "swarmnode.swarmtask.io/desk draining\nswarmnode.swarmtask.io/desk drained\n"
    assert "desk: 2 attempts left." in result.stderr


def test_drain_of_an_empty_node_is_done_at_once(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_node(kube)
    swarmtask("drain", "desk")
    operator_says(kube, empty=True)
    result = swarmtask("drain", "desk", "--wait")
    assert (result.exit_code, result.stdout.splitlines()[1]) == (0, "swarmnode.swarmtask.io/desk drained")


def test_drain_gives_up_after_its_timeout_and_says_what_stays(swarmtask: Swarmtask, kube: FakeKube) -> None:
    for name in ("desk", "bed", "fast"):
        add_node(kube, name)

    def go_on() -> None:
        operator_says(kube, empty=False)
        operator_says(kube, empty=True, name="fast")

    on_watch(kube, go_on)
    result = swarmtask("drain", "desk", "bed", "fast", "--wait", "--timeout", "0.3")
    assert result.exit_code == 1
    words = " ".join(result.stderr.split())
    assert "node desk is not empty after 0.3s: 2 attempts left. It stays drained: `swarmtask undrain desk` opens it again." in words
    assert "node bed is not empty after 0.3s: the operator has not seen the drain yet." in words
    assert "node fast is not" not in words
    assert spec(kube)["drain"] is True


def test_ctrl_c_leaves_the_node_drained_and_says_so(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_node(kube)
    on_watch(kube, lambda: signal.raise_signal(signal.SIGINT))
    result = swarmtask("drain", "desk", "--wait")
    assert result.exit_code == 130
    assert "It stays drained" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("act", "code", "words"),
    [
        (lambda kube: kube.edit(SWARM_NODE, "desk", None, {"spec": {"drain": None}}), 4, "was undrained meanwhile"),
        (lambda kube: kube.remove(SWARM_NODE, "desk"), 3, "node desk was deleted"),
    ],
)
def test_somebody_who_comes_between_ends_the_wait(
    swarmtask: Swarmtask, kube: FakeKube, act: Callable[[FakeKube], object], code: int, words: str
) -> None:
    add_node(kube)
    on_watch(kube, lambda: act(kube))
    result = swarmtask("drain", "desk", "--wait")
    assert result.exit_code == code
    assert words in result.stderr


def test_an_api_that_goes_away_is_said(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_node(kube)
    kube.fail("watch")
    assert swarmtask("drain", "desk", "--wait").exit_code == 5


def test_a_timeout_without_a_wait_is_refused(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_node(kube)
    result = swarmtask("drain", "desk", "--timeout", "5")
    assert result.exit_code == 2
    assert "drain" not in spec(kube)


def test_the_terminal_cannot_be_steered(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_node(kube)
    evil = {"type": "Drained", "status": "False", "reason": "x", "message": "evil\x1b[2J", "observedGeneration": 10**6}
    on_watch(kube, lambda: kube.edit(SWARM_NODE, "desk", None, {"status": {"conditions": [evil]}}, status=True))
    assert "\x1b" not in swarmtask("drain", "desk", "--wait", "--timeout", "0.2").stderr
