"""Three laptops join a Swarm in the middle of the work, and leave it in the middle of the work, each in a way of its own."""

from __future__ import annotations

import time

import pytest

from tests.e2e.product import wait_until
from tests.e2e.stage import INFRASTRUCTURE, Stage
from tests.lab.images import TASK_TAG
from tests.lab.node import GIB, NodeSize

pytestmark = [pytest.mark.docker, pytest.mark.lab, pytest.mark.kubectl, pytest.mark.slow]

JOINED_S = 30.0
DOCKER = ["docker", "-H", "unix:///lab/docker.sock"]


def test_three_laptops_join_and_leave_in_the_middle_of_forty_tasks(stage: Stage) -> None:
    """One is drained and leaves, one leaves without a word, one loses power: nothing is lost or done twice."""
    script = "echo begun; sleep 20; echo whole"
    names = [f"work-{i:02}" for i in range(40)]
    manifests = [stage.task(name, "nowhere", script=script, cpu="300m", startDeadlineSeconds=120) for name in names]
    stage.product.apply(*manifests)
    wait_until("some to run", lambda: list(stage.product.phases().values()).count("Running") >= 10, 60, stage.details)

    began = time.monotonic()
    polite, rude, off = new = [f"laptop-{name}" for name in ("anna", "ben", "cleo")]
    for name in new:
        stage.lab.add_node(NodeSize(name, 1, 4 * GIB), [TASK_TAG])
    for name in new:
        stage.watch(name)
    stage.note("from the first join until all three are Ready with an agent, s", time.monotonic() - began)
    assert time.monotonic() - began < JOINED_S
    wait_until("work on all three", lambda: set(new) <= _busy(stage), 40, stage.details)

    stage.lab.kill(off)
    stage.recorder.powered_off(off)
    stage.product.swarmtask("drain", polite, "--wait", "--timeout", "60", timeout_s=70)
    for name in (polite, rude):
        stage.lab.node(name).run([*DOCKER, "swarm", "leave"])
    manager = stage.lab.node(stage.lab.manager)
    for name in new:
        manager.run([*DOCKER, "node", "rm", "--force", stage.lab.swarm_node_id(name)])
    stage.product.wait_all("Succeeded", len(names), timeout_s=120)
    wait_until("all three to be Gone", lambda: {stage.phase_of_node(name) for name in new} == {"Gone"}, 30, stage.details)

    for name, status in stage.statuses().items():
        whole = [attempt["id"] for attempt in status["attempts"] if stage.pulses.said(attempt["id"], "whole")]
        # What ends in the very moment of a power cut nobody can tell: it would be done again, as it must be.
        untold = [attempt["id"] for attempt in status["attempts"][:-1] if attempt["node"] == off]
        assert [attempt for attempt in whole if attempt not in untold] == [status["attempts"][-1]["id"]], (name, whole, status)
        assert {attempt["reason"] for attempt in status["attempts"][:-1]} <= INFRASTRUCTURE | {"Drained"}, (name, status)
        assert status.get("failures", 0) == 0
    stage.clear()
    for name in new:
        stage.agents.kill(name)
        stage.recorder.node_destroyed(name)
        stage.lab.remove_node(name)
    stage.recorder.assert_ok()


def _busy(stage: Stage) -> set[str]:
    """Nodes on which an attempt runs."""
    return {status.get("nodeName", "") for status in stage.statuses().values() if status["phase"] == "Running"}
