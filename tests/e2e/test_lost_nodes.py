"""Nodes that are cut off, lose power, flap, or lose a daemon, on a real Docker Swarm with a real agent on every node."""

from __future__ import annotations

import itertools
import time
from typing import Literal

import pytest

from tests.e2e.product import Object, wait_until
from tests.e2e.stage import (
    FENCE_S,
    GRACE_S,
    INFRASTRUCTURE,
    LATE_S,
    LOST_GRACE_S,
    REPLACED_S,
    UNREACHABLE_S,
    Stage,
    uptime_s,
)
from tests.lab.node import Cut

pytestmark = [pytest.mark.docker, pytest.mark.lab, pytest.mark.kubectl, pytest.mark.slow]

ON_S, OFF_S = 5.0, 5.0


def _reasons(status: Object) -> list[str]:
    return [attempt["reason"] for attempt in status["attempts"] if attempt.get("reason")]


@pytest.mark.parametrize("one_way", ["out", pytest.param("in", marks=pytest.mark.long)])
def test_nodes_that_are_cut_off_stop_what_must_not_run_twice(stage: Stage, one_way: Literal["in", "out"]) -> None:
    """One node cut off both ways, another that cannot speak, or hears nothing: both stop their fenced attempts before these are
    replaced. What finished meanwhile is kept, what is to be waited for is waited for."""
    victims: dict[str, Cut] = {stage.lab.nodes[1]: "both", stage.lab.nodes[2]: one_way}
    # A node that hears nothing may renew its Lease once more over a connection that it had: then silence begins anew.
    renewed_s = FENCE_S + 5 if one_way == "in" else 0
    for node in victims:
        stage.product.apply(
            *[stage.task(f"moves-{node}-{i}", node) for i in range(3)],
            stage.task(f"doubles-{node}", node, "afterLost"),
            stage.task(f"ends-{node}", node, "never", script="while [ ! -e /go ]; do sleep 0.2; done; echo whole"),
        )
    stage.product.wait_all("Running", 10)
    cut = time.monotonic()
    for node, way in victims.items():
        stage.lab.partition(node, way)
    stage.product.wait_all("Unknown", 10, timeout_s=UNREACHABLE_S + 5)
    stage.wait_second_attempts("afterLost", 2, cut, UNREACHABLE_S + LOST_GRACE_S + LATE_S)
    stage.wait_second_attempts("afterFence", 6, cut, renewed_s + REPLACED_S + LATE_S)
    for node in victims:
        assert stage.status(f"ends-{node}")["phase"] == "Unknown", "it is waited for"
        _let_end(stage, node, f"ends-{node}")
        stage.lab.heal(node)
    done = stage.product.wait_all("Succeeded", 2, "policy=never", timeout_s=40)
    assert sorted(done) == sorted(f"ends-{node}" for node in victims)
    settled = stage.statuses()
    for name, status in settled.items():
        if name.startswith("ends"):
            assert len(status["attempts"]) == 1, "finished work is not run again"
        else:
            assert (len(status["attempts"]), _reasons(status), status.get("failures", 0)) == (2, ["NodeLost"], 0), status
        if name.startswith("moves"):
            assert stage.overlap_s(status) == 0, name
            last = stage.pulses.of(status["attempts"][0]["id"])[-1]
            first = stage.pulses.of(status["attempts"][1]["id"])[0]
            stage.note("between the last sign of the old attempt and the first of the new, s", last - first)
    assert "FinishedWhileAway" not in stage.product.event_reasons(f"ends-{next(iter(victims))}")
    told = stage.product.event_reasons(f"moves-{next(iter(victims))}-0")
    told = [reason for reason in told if reason not in ("Preparing", "Waiting", "Queued")]
    assert told[-6:] == ["NodeUnreachable", "AttemptFailed", "BackOff", "Retrying", "Scheduled", "Started"], told
    stage.clear()
    stage.recorder.assert_ok(doubled=[name for name in settled if name.startswith("doubles")])


def _let_end(stage: Stage, node: str, name: str) -> None:
    """Let the program of a task do its last step, and wait until the node's own dockerd shows its end."""
    attempt = stage.status(name)["attempts"][-1]["id"]
    client = stage.lab.client(node)
    container = client.containers.list(filters={"label": f"com.docker.swarm.service.name={attempt}"})[0]
    assert container.exec_run(["touch", "/go"]).exit_code == 0
    assert container.wait(timeout=20)["StatusCode"] == 0


def test_a_power_cut_and_two_daemons_that_are_killed(stage: Stage) -> None:
    """kill -9 of a whole machine, of another's dockerd, and of the third one's agent, all at once."""
    agent_dies, off, docker_dies = stage.lab.nodes
    stage.product.apply(*[stage.task(f"{node}-{i}", node) for node in stage.lab.nodes for i in range(4)])
    stage.product.wait_all("Running", 12)
    boot = stage.product.get("swarmnode", off)["status"]["bootID"]

    stage.lab.kill(off)
    stage.recorder.powered_off(off)
    stage.agents.kill(agent_dies)
    stage.lab.restart_dockerd(docker_dies, "KILL")
    stage.agents.start(agent_dies)  # as systemd or Docker does
    stage.lab.start_node(off)
    stage.agents.start(off)

    def settled() -> bool:
        found = stage.statuses()
        moved = all(found[f"{node}-{i}"]["attempt"] == 2 for node in (off, docker_dies) for i in range(4))
        return moved and {status["phase"] for status in found.values()} == {"Running"}

    wait_until("what died to run again", settled, 90, stage.details)
    for name, status in stage.statuses().items():
        lost = [] if name.startswith(agent_dies) else [status["attempts"][0]["reason"]]
        assert len(status["attempts"]) == 1 + len(lost), (name, status)
        assert set(lost) <= ({"NodeRestarted"} if name.startswith(off) else INFRASTRUCTURE), (name, status)
        assert status.get("failures", 0) == 0
        assert stage.overlap_s(status) == 0, name
    assert stage.product.get("swarmnode", off)["status"]["bootID"] != boot
    assert "NodeRestarted" in stage.events_of_node(off)
    assert stage.product.event_reasons(f"{agent_dies}-0").count("Started") == 1
    stage.clear()
    stage.recorder.assert_ok()


def test_the_operator_and_then_the_manager_die_while_a_node_is_lost(stage: Stage) -> None:
    """A new operator counts the silence from its own start: the replacement comes later, never earlier."""
    victim = stage.lab.nodes[2]
    stage.product.apply(*[stage.task(f"work-{i}", victim) for i in range(6)])
    stage.product.wait_all("Running", 6)
    stage.lab.partition(victim)
    stage.product.wait_all("Unknown", 6, timeout_s=UNREACHABLE_S + 5)
    assert stage.product.operator is not None
    stage.product.operator.kill()
    stage.product.start_operator()
    restarted = time.monotonic()
    stage.lab.restart_dockerd(stage.lab.manager, "KILL")
    # Swarm needs up to 18 s after that until it knows its nodes again.
    stage.wait_second_attempts("afterFence", 6, restarted, REPLACED_S + 20 + LATE_S)
    assert time.monotonic() - restarted > FENCE_S + GRACE_S
    stage.lab.heal(victim)
    wait_until("the node to be back", lambda: stage.phase_of_node(victim) == "Ready", 60, stage.details)
    for name, status in stage.statuses().items():
        assert (len(status["attempts"]), _reasons(status), status.get("failures", 0)) == (2, ["NodeLost"], 0), (name, status)
        assert stage.overlap_s(status) == 0, name
    stage.clear()
    stage.recorder.assert_ok()


@pytest.mark.parametrize("times", [4, pytest.param(20, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
def test_a_flapping_node_costs_no_attempt(stage: Stage, times: int) -> None:
    """Away for five seconds, there for five, again and again: Unreachable each time, and never long enough to lose anything.
    Meanwhile another node loses its agent and no more: its engine reaches it, so what runs there goes on."""
    victim, silent = stage.lab.nodes[1:]
    stage.product.apply(*[stage.task(f"unwatched-{i}", silent) for i in range(2)])
    stage.product.wait_all("Running", 2)
    stage.agents.kill(silent)
    stage.product.apply(*[stage.task(f"work-{i}", victim, ("afterFence", "never")[i % 2]) for i in range(6)])
    stage.product.wait_all("Running", 6, "began=" + victim)
    began = uptime_s()
    for _ in range(times):
        cut = time.monotonic()
        stage.lab.partition(victim)
        stage.until(cut + OFF_S)
        stage.lab.heal(victim)
        stage.until(cut + OFF_S + ON_S)
    wait_until("the node without an agent", lambda: "AgentSilent" in stage.events_of_node(silent), 20, stage.details)
    stage.product.wait_all("Running", 8, timeout_s=20)
    for name, status in stage.statuses().items():
        node = silent if name.startswith("unwatched") else victim
        assert [attempt["node"] for attempt in status["attempts"]] == [node], (name, status)
        beats = [beat for beat in stage.pulses.of(status["attempts"][0]["id"]) if beat > began]
        assert max(after - before for before, after in itertools.pairwise(beats)) < OFF_S, "it acted all the time"
    told = stage.product.event_reasons("work-0")
    assert told.count("NodeUnreachable") <= times, "one Event for each loss at most"
    assert len(told) < 3 * times + 10, told
    stage.clear()
    stage.recorder.assert_ok()
