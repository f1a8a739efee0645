"""Laptops whose lid is closed, on a real Docker Swarm with a real agent on every node: short and long, by every policy."""

from __future__ import annotations

import pytest

from tests.e2e.product import wait_until
from tests.e2e.stage import Stage

pytestmark = [pytest.mark.docker, pytest.mark.lab, pytest.mark.kubectl, pytest.mark.slow]

SHORT_S = 8
"""Less than the fence, and less than Swarm needs to call a node Down."""


def test_a_lid_closed_for_a_moment_costs_nothing(stage: Stage) -> None:
    """Ten tasks; the node is Unreachable meanwhile, and goes on with all of them under their numbers."""
    victim = stage.lab.nodes[1]
    stage.product.apply(*[stage.task(f"work-{i}", victim) for i in range(10)])
    stage.product.wait_all("Running", 10)
    asleep = stage.sleep(victim)
    stage.product.wait_all("Unknown", 10, timeout_s=SHORT_S)
    stage.until(asleep + SHORT_S)
    stage.wake(victim)
    stage.product.wait_all("Running", 10, timeout_s=20)
    for name, status in stage.statuses().items():
        assert [attempt["node"] for attempt in status["attempts"]] == [victim], status
        assert stage.overlap_s(status) == 0, name
    reasons = stage.product.event_reasons("work-0")
    assert reasons[-2:] == ["NodeUnreachable", "NodeBack"], reasons
    wait_until("its Events", lambda: stage.events_of_node(victim)[-2:] == ["NodeUnreachable", "NodeBack"], 10)
    stage.clear()
    stage.recorder.assert_ok()
