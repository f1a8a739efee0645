"""Laptops whose lid is closed, on a real Docker Swarm with a real agent on every node: short and long, by every policy."""

from __future__ import annotations

import time

import pytest

from tests.e2e.product import wait_until
from tests.e2e.stage import LATE_S, LOST_GRACE_S, POLICIES, REPLACED_S, UNREACHABLE_S, WAKING, Stage, uptime_s

pytestmark = [pytest.mark.docker, pytest.mark.lab, pytest.mark.kubectl, pytest.mark.slow]

SHORT_S = 10
"""Less than the fence. Swarm calls a node Down 10 to 15 s after its last word, and then ends what ran there; but not where it is as
patient as docs/nodes.md tells those who close lids often."""
PATIENT_S = 10
CAME_BACK = ["NodeUnreachable", "NodeBack"]
LONG = [pytest.param(seconds, marks=[pytest.mark.long, pytest.mark.timeout(seconds + 300)]) for seconds in (60, 600)]


def _close_for_a_moment(stage: Stage, paused: str, frozen: str) -> None:
    """Ten tasks under each policy run on the two nodes in turn when their lids are closed, and open again after SHORT_S."""
    grace = {"graceSeconds": 2 * SHORT_S}
    stage.product.apply(
        *[
            stage.task(f"{policy.lower()}-{i}", (paused, frozen)[i % 2], policy, nodeLoss={"replace": policy} | grace)
            for policy in POLICIES
            for i in range(10)
        ]
    )
    stage.product.wait_all("Running", 30)
    asleep = stage.sleep(paused)
    stage.sleep(frozen, by_freezer=True)
    stage.product.wait_all("Unknown", 30, timeout_s=SHORT_S)
    stage.until(asleep + SHORT_S)
    stage.wake(paused, frozen)


def test_a_lid_closed_for_a_moment_costs_nothing(stage: Stage) -> None:
    """The nodes are Unreachable meanwhile, and go on with all their tasks under their numbers."""
    victims = stage.lab.nodes[1:]
    with stage.lab.heartbeats(PATIENT_S):
        _close_for_a_moment(stage, *victims)
        stage.product.wait_all("Running", 30, timeout_s=20)
        for name, status in stage.statuses().items():
            assert [attempt["node"] for attempt in status["attempts"]] == [victims[int(name[-1]) % 2]], status
        for policy in POLICIES:
            assert stage.product.event_reasons(f"{policy.lower()}-0")[-2:] == CAME_BACK
        wait_until("their Events", lambda: all(stage.events_of_node(node)[-2:] == CAME_BACK for node in victims), 10)
        stage.clear()
    stage.recorder.assert_ok()


def test_a_lid_closed_for_a_moment_with_a_swarm_as_it_comes(stage: Stage) -> None:
    """Whether Swarm ends what ran there hangs on when it heard of the node last; no policy lets anything run twice."""
    victims = stage.lab.nodes[1:]
    _close_for_a_moment(stage, *victims)

    def settled() -> bool:
        found = stage.statuses()
        for i in range(len(victims)):
            mine = [status for name, status in found.items() if int(name[-1]) % 2 == i]
            if {status["phase"] for status in mine} != {"Running"} or len({len(status["attempts"]) for status in mine}) != 1:
                return False
        return True

    wait_until("all of a node to go on, or all to run anew", settled, 60, stage.details)
    for name, status in stage.statuses().items():
        *before, last = status["attempts"]
        assert [attempt["reason"] for attempt in before] in ([], ["NodeLost"]), (name, status)
        assert (last["state"], status.get("failures", 0), stage.overlap_s(status)) == ("Running", 0, 0), (name, status)
    stage.clear()
    stage.recorder.assert_ok()


@pytest.mark.parametrize("asleep_s", [REPLACED_S + LATE_S, *LONG])
def test_a_lid_closed_for_long_by_every_policy(stage: Stage, asleep_s: float) -> None:
    """Thirty tasks, ten under each policy, on two nodes: one is paused, the other frozen by the kernel's own freezer."""
    paused, frozen = stage.lab.nodes[1:]
    short = [stage.task(f"done-{node}", node, script="echo whole", labels={"policy": "done"}) for node in (paused, frozen)]
    long = [stage.task(f"{policy.lower()}-{i}", (paused, frozen)[i % 2], policy) for policy in POLICIES for i in range(10)]
    stage.product.apply(*short, *long)
    stage.product.wait_all("Succeeded", 2, "policy=done")
    stage.product.wait_all("Running", 30, "policy!=done")

    asleep = stage.sleep(paused)
    stage.sleep(frozen, by_freezer=True)
    for policy, due_s in (("afterLost", UNREACHABLE_S + LOST_GRACE_S), ("afterFence", REPLACED_S)):
        stage.wait_second_attempts(policy, 10, asleep, due_s + LATE_S)
    assert time.monotonic() - asleep < asleep_s, "they were replaced while the lids were closed"
    stage.until(asleep + asleep_s)
    before = stage.statuses()
    assert {before[f"never-{i}"]["phase"] for i in range(10)} == {"Unknown"}
    woke = uptime_s()
    stage.wake(paused, frozen)
    # Swarm ends what still runs on a node that was Down, so attempts that were waited for end now, and are tried again.
    stage.wait_second_attempts("never", 10, time.monotonic(), 60)
    stage.product.wait_all("Running", 30, "policy!=done", timeout_s=60)
    after = stage.statuses()
    for name, status in after.items():
        first, last = status["attempts"][0], status["attempts"][-1]
        if name.startswith("done"):
            assert (status["phase"], len(status["attempts"])) == ("Succeeded", 1), "finished work is not run again"
            continue
        assert (len(status["attempts"]), first["reason"], status.get("failures", 0)) == (2, "NodeLost", 0), (name, status)
        assert last["state"] == "Running"
        asleep_together = stage.pulses.overlap_s([first["id"], last["id"]], until=woke)
        assert asleep_together == 0, (name, asleep_together)
        if name.startswith("never"):
            assert stage.overlap_s(status) == 0, name
        if not name.startswith("afterlost"):
            stage.note("acting together after waking, s", stage.overlap_s(status))
    assert stage.worst("acting together after waking, s") < WAKING.total_seconds()
    stage.clear()
    stage.recorder.assert_ok(doubled=[name for name in after if name.startswith("afterlost")])
