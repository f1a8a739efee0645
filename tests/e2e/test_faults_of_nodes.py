"""What happens to nodes, on a real Docker Swarm: sleep, partition, leaving, joining, a manager whose dockerd freezes."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.e2e.leftovers import assert_nothing_is_left
from tests.e2e.product import Product, task, wait_until
from tests.e2e.recorder import Recorder
from tests.lab.cluster import Lab
from tests.lab.images import TASK_TAG
from tests.lab.node import GIB, NodeSize

pytestmark = [pytest.mark.docker, pytest.mark.lab, pytest.mark.kubectl, pytest.mark.slow]

SOON = {"type": "linear", "initialSeconds": 1, "maxSeconds": 1}
INFRASTRUCTURE = {"NodeLost", "NodeRestarted", "WorkloadLost"}


def _status(product: Product, name: str) -> dict[str, Any]:
    status: dict[str, Any] = (product.get("swarmtask", name) or {}).get("status", {})
    return status


def _node_phase(product: Product, name: str) -> str:
    return str(product.get("swarmnode", name)["status"]["phase"])


def test_a_short_sleep_costs_nothing_and_a_partition_costs_one_attempt(product: Product, lab: Lab, recorder: Recorder) -> None:
    victim = lab.nodes[-1]
    pinned = {"placement": {"nodeName": victim}, "backoff": SOON, "cpu": "50m"}
    product.apply(
        task("ends-inside", "sleep 22; echo whole", image=TASK_TAG, **pinned),
        task("goes-on", "sleep 600", image=TASK_TAG, **pinned),
    )
    product.wait_all("Running", 2)

    # Six seconds with a closed lid: Swarm does not even notice. Only what should have started meanwhile misses its deadline.
    lab.pause(victim)
    asleep = time.monotonic()
    product.apply(task("too-late", "sleep 600", image=TASK_TAG, startDeadlineSeconds=2, backoffLimit=0, **pinned))
    product.wait_phase("too-late", "Starting")
    wait_until("six seconds", lambda: time.monotonic() - asleep > 6)
    lab.unpause(victim)
    late = product.wait_phase("too-late", "Failed", timeout_s=30)
    assert [attempt["reason"] for attempt in late["status"]["attempts"]] == ["StartDeadline"]
    for name in ("ends-inside", "goes-on"):
        status = _status(product, name)
        assert (status["phase"], status["attempt"]) == ("Running", 1), status

    # A partition until Swarm calls the node Down, and back.
    lab.partition(victim)
    product.wait_phase("goes-on", "Unknown", timeout_s=40)
    assert _status(product, "goes-on")["attempts"][-1]["state"] == "Unknown"
    wait_until("the node to be called Unreachable", lambda: _node_phase(product, victim) == "Unreachable", 10)
    # `ends-inside` must end while nobody sees it.
    wait_until("the end inside", lambda: [item.state for item in lab.containers(victim)].count("running") == 1, 40)
    assert _status(product, "ends-inside")["phase"] == "Unknown"
    lab.heal(victim)

    done = product.wait_phase("ends-inside", "Succeeded", timeout_s=30)
    assert done["status"]["attempt"] == 1, "what was finished is not run again"
    wait_until("the second attempt", lambda: _status(product, "goes-on").get("attempt") == 2, 30)
    again = product.wait_phase("goes-on", "Running", timeout_s=30)
    assert again["status"]["attempts"][0]["reason"] == "NodeLost"
    assert again["status"].get("failures", 0) == 0, "a lost node does not use up the user's retries"
    reasons = product.event_reasons("goes-on")
    assert [reason for reason in reasons if reason not in ("Preparing", "Waiting", "Queued")] == [
        *("Scheduled", "Started", "NodeUnreachable", "NodeBack", "AttemptFailed"),
        *("BackOff", "Retrying", "Scheduled", "Started"),
    ]
    product.kubectl("delete", "st", "--all", "--wait=true", timeout_s=60)
    assert_nothing_is_left(lab)
    recorder.assert_ok()


def test_a_node_joins_and_takes_work_and_one_that_leaves_gives_it_back(product: Product, lab: Lab) -> None:
    new = lab.add_node(NodeSize("laptop-new", 1, 4 * GIB))
    lab.load_image(TASK_TAG, [new])
    with Recorder(product.kubeconfig, lab) as recorder:
        product.apply(task("on-the-new-one", "sleep 600", image=TASK_TAG, placement={"nodeName": new}))
        product.wait_phase("on-the-new-one", "Running", timeout_s=30)
        everywhere = {"cpu": "10m", "backoff": SOON, "placement": {"nodeSelector": {"home": "yes"}}}
        product.kubectl("label", "sn", new, "home=yes")
        product.apply(task("moves", "sleep 600", image=TASK_TAG, **everywhere))
        assert product.wait_phase("moves", "Running")["status"]["nodeName"] == new
        other = lab.nodes[1]
        product.kubectl("label", "sn", other, "home=yes")

        lab.remove_node(new)
        recorder.node_destroyed(new)

        wait_until("another attempt", lambda: _status(product, "moves").get("attempt", 0) >= 2, 60)
        moved = product.wait_phase("moves", "Running")["status"]
        assert moved["nodeName"] == other
        assert {attempt["reason"] for attempt in moved["attempts"][:-1]} <= INFRASTRUCTURE
        assert moved.get("failures", 0) == 0
        wait_until("the node to be called Gone", lambda: _node_phase(product, new) == "Gone", 20)
        waiting = product.wait_phase("on-the-new-one", "Queued", timeout_s=60)
        assert "0/4 nodes fit" in _scheduled_message(product, "on-the-new-one"), waiting
        recorder.assert_ok()


def _scheduled_message(product: Product, name: str) -> str:
    return str(
        wait_until(
            "why it waits",
            lambda: next(
                (c["message"] for c in _status(product, name)["conditions"] if c["type"] == "Scheduled" and "fit" in c["message"]),
                "",
            ),
            10,
        )
    )


def test_the_managers_dockerd_freezes_for_twenty_seconds(product: Product, lab: Lab, recorder: Recorder) -> None:
    product.apply(*[task(f"early-{i}", "sleep 4", image=TASK_TAG, cpu="50m", backoff=SOON) for i in range(8)])
    wait_until("some run", lambda: list(product.phases().values()).count("Running") >= 4)
    manager = lab.node(lab.manager)
    manager.signal_dockerd("STOP")
    frozen = time.monotonic()
    try:
        product.apply(*[task(f"late-{i}", "true", image=TASK_TAG, cpu="50m", backoff=SOON) for i in range(6)])
        slowest = 0.0
        while time.monotonic() - frozen < 20:
            began = time.monotonic()
            assert len(product.phases()) == 14
            slowest = max(slowest, time.monotonic() - began)
    finally:
        manager.signal_dockerd("CONT")
    assert slowest < 3, "a frozen engine must not slow down the API"
    product.wait_all("Succeeded", 14, timeout_s=90)
    for item in product.get("swarmtasks"):
        attempts = item["status"]["attempts"]
        assert all(a["reason"] in INFRASTRUCTURE for a in attempts[:-1]), attempts
        assert item["status"].get("failures", 0) == 0
    recorder.assert_ok()
    product.kubectl("delete", "st", "--all", "--wait=true", timeout_s=60)
    assert_nothing_is_left(lab)
