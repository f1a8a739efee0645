"""Output outlives its node: one laptop leaves by Docker's own command, another loses power, and neither comes back."""

from __future__ import annotations

import itertools
import re

import pytest

from tests.e2e.product import wait_until
from tests.e2e.pulses import PULSE
from tests.e2e.stage import Stage
from tests.lab.images import TASK_TAG
from tests.lab.node import GIB, NodeSize

pytestmark = [pytest.mark.docker, pytest.mark.lab, pytest.mark.kubectl, pytest.mark.slow]

MORE_SETTINGS = {"SWARMTASK_APISERVER__ATTEMPT_LOG_BYTES": str(64 * 2**20)}
"""More than the flood: then only the agent drops lines of it, and they can be counted."""
LINES, WIDE = 24_000, 1000
FLOOD = f'awk \'BEGIN {{ x = sprintf("%{WIDE}s", ""); gsub(/ /, "x", x); for (i = 0; i < {LINES}; i++) print "flood", i, x }}\''
SCRIPT = f"echo begun; {FLOOD}; sleep 3; echo flooded; {PULSE}"
"""A flood is over when its writer was quiet for a second."""
LOST_FOR_GOOD = [{"onReasons": ["NodeLost"], "action": "Fail"}]
DOCKER = ["docker", "-H", "unix:///lab/docker.sock"]

FLOODED = "[swarmtask: more than 1048576 bytes a second: lines are dropped from here]"
UNFINISHED = "[swarmtask: the end of this output has not come: its node has not sent it]"
_DROPPED = re.compile(r"\[swarmtask: (\d+) lines? dropped\]")


def test_output_can_be_read_when_its_node_is_no_more(stage: Stage) -> None:
    """A flood, cut with a mark that says how much is missing; a program that goes on; one that was done: of each, everything that
    could be read before the nodes went can be read after, by both programs."""
    left, dark = nodes = [stage.lab.add_node(NodeSize(f"laptop-{name}", 1, 4 * GIB), [TASK_TAG]) for name in ("left", "dark")]
    for node in nodes:
        stage.watch(node)
        stage.product.apply(
            stage.task(f"done-{node}", node, script="echo whole; sleep 1; echo whole too >&2"),
            stage.task(f"floods-{node}", node, script=SCRIPT, memory="32Mi", failurePolicy=LOST_FOR_GOOD),
            stage.task(f"moves-{node}", node),
        )
    names = [f"{what}-{node}" for node in nodes for what in ("done", "floods", "moves")]
    wait_until("all of it to be written", lambda: all(_told(stage, name) for name in names), 120, stage.details)
    before = {name: _logs(stage, name, 1) for name in names}

    stage.lab.node(left).run([*DOCKER, "swarm", "leave"])
    stage.lab.kill(dark)
    manager = stage.lab.node(stage.lab.manager)
    for node in nodes:
        manager.run([*DOCKER, "node", "rm", "--force", stage.lab.swarm_node_id(node)])
    for node in nodes:
        stage.agents.kill(node)
        stage.recorder.node_destroyed(node)
        stage.lab.remove_node(node)
    wait_until("both to be Gone", lambda: {stage.phase_of_node(node) for node in nodes} == {"Gone"}, 40, stage.details)
    moved = [f"moves-{node}" for node in nodes]
    for node in nodes:
        stage.product.wait_phase(f"floods-{node}", "Failed", timeout_s=90)
    wait_until("what moves to run elsewhere", lambda: all(_runs_again(stage, name) for name in moved), 90, stage.details)

    for name in names:
        shown = _logs(stage, name, 1)
        assert shown[: len(before[name])] == before[name], f"{name}: what was there is there"
        assert _by_kubectl(stage, f"{name}-1") == shown, name
        if name.startswith("done"):
            assert shown == before[name] == ["whole", "whole too"]
        elif name.endswith(dark):
            assert shown[-1] == UNFINISHED, shown[-3:]
            assert shown.count(UNFINISHED) == 1
        if name.startswith("floods"):
            _check_flood(shown)
    for name in moved:
        assert _by_kubectl(stage, f"{name}-2")[0].startswith("pulse "), "the newest attempt has output of its own"
    stage.clear()
    stage.recorder.assert_ok()


def _check_flood(shown: list[str]) -> None:
    """Every line of the flood is there in its order, or counted by a mark in its place."""
    assert shown[0] == "begun"
    end = shown.index("flooded")
    assert FLOODED in shown[:end], "there was a flood to cut"
    expected = 0
    for line, following in itertools.pairwise(shown[1 : end + 1]):
        if line == FLOODED:
            assert _DROPPED.fullmatch(following), following
        elif dropped := _DROPPED.fullmatch(line):
            expected += int(dropped[1])
        else:
            assert line.split(" ")[:2] == ["flood", str(expected)], (line[:40], expected)
            assert len(line) > WIDE
            expected += 1
    assert expected == LINES
    assert len([line for line in shown[end:] if line.startswith("pulse ")]) >= 3


def _told(stage: Stage, name: str) -> bool:
    """The API has of it what the test waits for."""
    shown = stage.product.swarmtask("logs", name, "--attempt", "1", "--tail", "4", check=False).stdout.splitlines()
    if name.startswith("done"):
        return shown == ["whole", "whole too"] and stage.status(name)["phase"] == "Succeeded"
    return len(shown) == 4 and all(line.startswith("pulse ") for line in shown)


def _runs_again(stage: Stage, name: str) -> bool:
    status = stage.status(name)
    shown = stage.product.swarmtask("logs", name, check=False).stdout if status["attempt"] == 2 else ""
    return status["phase"] == "Running" and shown.startswith("pulse ")


def _logs(stage: Stage, name: str, attempt: int) -> list[str]:
    return stage.product.swarmtask("logs", name, "--attempt", str(attempt)).stdout.splitlines()


def _by_kubectl(stage: Stage, pod: str) -> list[str]:
    return stage.product.kubectl("logs", pod).stdout.splitlines()
