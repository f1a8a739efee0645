"""Memory on real nodes: the ladder after a task's own limit, what never fits, children that are killed, a hog on a small laptop."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator

import pytest

from tests.e2e.product import Object, wait_until
from tests.e2e.stage import Stage
from tests.lab.images import TASK_TAG
from tests.lab.node import LabNode, NodeSize, meminfo

pytestmark = [pytest.mark.docker, pytest.mark.lab, pytest.mark.kubectl, pytest.mark.slow]

MIB = 2**20
SMALL = NodeSize("laptop-small", 1, 640 * MIB)
SLACK_BYTES = 128 * MIB
"""The kernel's own limit of the small laptop is above the size that it tells by so much: there the agent has to be faster."""
CLIMBS = [{"onReasons": ["OOMKilled"], "action": "Retry", "memoryFactor": 2}]


class Gauge(threading.Thread):
    """Makes a laboratory node's memory real: what its processes use is missing from its /proc/meminfo, and the kernel lets it have
    no more than its size and some slack. Other nodes only say how large they are."""

    def __init__(self, node: LabNode) -> None:
        super().__init__(daemon=True)
        self._file = node.folder / "meminfo"
        self._total = node.size.memory_bytes
        node.container.update(mem_limit=self._total + SLACK_BYTES, memswap_limit=self._total + SLACK_BYTES)
        groups = node.cgroups()
        self._stat = groups.get("memory", groups.get("", node.folder).parent) / "memory.stat"
        self._ended = threading.Event()

    @property
    def used_bytes(self) -> int:
        """What cannot be given back: all processes of the node, its containers' included, without page cache."""
        rows = dict(line.split() for line in self._stat.read_text().splitlines())
        return int(rows["total_rss"] if "total_rss" in rows else rows["anon"])

    def run(self) -> None:
        while not self._ended.wait(0.25):
            left = max(MIB, self._total - self.used_bytes)  # psutil takes none at all for a mistake and counts for itself
            text = re.sub(r"(?m)^(Mem(?:Free|Available): *) [ 0-9]{8} kB$", rf"\g<1> {left // 1024:>8} kB", meminfo(self._total))
            with self._file.open("r+b") as handle:  # in place and of the same length: a reader never sees half of it
                os.pwrite(handle.fileno(), text.encode(), 0)

    def stop(self) -> None:
        self._ended.set()
        self.join(5)


@pytest.fixture
def small(stage: Stage) -> Iterator[LabNode]:
    """A laptop of 640 MiB that has joined, whose memory can really be filled."""
    name = stage.lab.add_node(SMALL, [TASK_TAG])
    gauge = Gauge(stage.lab.node(name))
    gauge.start()
    try:
        stage.watch(name)
        yield stage.lab.node(name)
    finally:
        gauge.stop()
        stage.agents.stop(name)
        stage.recorder.node_destroyed(name)
        stage.lab.remove_node(name)


def _attempts(status: Object) -> list[tuple[str, int | None]]:
    return [(attempt.get("reason", ""), attempt.get("exitCode")) for attempt in status["attempts"]]


_GROWS = "{ head -c 104857600 /dev/zero; sleep 3; cat /dev/zero; } | tail -c 4000000000"
"""Half of 200 MiB for a while, so that the agent sees a peak, and then all that there is."""
_CHILD = "dd if=/dev/zero of=/dev/null bs=100M count=1"


def _takes(mib: int) -> str:
    """A script whose main process itself takes so much, and ends."""
    return f"sleep 1; exec dd if=/dev/zero of=/dev/null bs={mib}M count=1"


def test_a_ladder_a_dead_letter_and_children_that_are_killed(stage: Stage, small: LabNode) -> None:
    """Each task meets its own limit, in three ways."""
    other = stage.lab.nodes[1]
    stage.product.apply(
        stage.task("climbs", other, script=_takes(100), memory="32Mi", backoffLimit=3, failurePolicy=CLIMBS),
        stage.task(
            "never-fits", small.name, script=_GROWS, memory="200Mi",
            backoffLimit=5, failurePolicy=[CLIMBS[0] | {"memoryFactor": 4}], placement={"nodeName": small.name},
        ),
        stage.task("goes-on", other, script=f"{_CHILD}; sleep 1; exit 0", memory="32Mi"),
        stage.task("fails", other, script=f"{_CHILD}; sleep 3; exit 3", memory="32Mi", backoffLimit=0),
    )  # fmt: skip
    climbed = stage.product.wait_phase("climbs", "Succeeded", "Failed", timeout_s=60)["status"]
    assert _attempts(climbed) == [("OOMKilled", 137), ("OOMKilled", 137), ("Completed", 0)], climbed
    assert [attempt["requested"]["memory"] for attempt in climbed["attempts"]] == ["32Mi", "64Mi", "128Mi"], climbed
    assert stage.product.event_reasons("climbs").count("MoreMemory") == 2

    failed = stage.product.wait_phase("never-fits", "Failed", timeout_s=60)
    assert _attempts(failed["status"]) == [("OOMKilled", 137)], failed
    words = next(item["message"] for item in failed["status"]["conditions"] if item["type"] == "Failed")
    assert "the next attempt needs 800Mi of memory" in words, words
    assert "peak memory" in words, words
    assert failed["metadata"]["labels"]["swarmtask.io/dead-letter"] == "true"

    assert _attempts(stage.product.wait_phase("goes-on", "Succeeded", "Failed")["status"]) == [("Completed", 0)]
    assert _attempts(stage.product.wait_phase("fails", "Succeeded", "Failed")["status"]) == [("Error", 3)]
    stage.clear()
    stage.recorder.assert_ok()


def test_a_hog_that_fills_its_laptop_goes_and_its_neighbours_stay(stage: Stage, small: LabNode) -> None:
    """It asked for little and may take more than the machine has: the agent stops it before the kernel picks one."""
    here = {"placement": {"nodeName": small.name}}
    eats = "while true; do head -c 16777216 /dev/zero; sleep 1; done | tail -c 4000000000"  # kept until it ends
    hog = stage.task("hog", small.name, script=eats, memory="64Mi", priorityClass="low", backoffLimit=0, **here)
    hog["spec"]["container"]["resources"]["limits"] = {"memory": "2Gi"}
    stage.product.apply(*[stage.task(f"neighbour-{i}", small.name, **here) for i in range(4)])
    stage.product.wait_all("Running", 4)
    stage.product.apply(hog)

    def evicted() -> Object | None:
        status = stage.status("hog")
        return status if status.get("attempts") and status["attempts"][0].get("reason") else None

    status = wait_until("the hog to go", evicted, 120, stage.details)
    first = status["attempts"][0]
    assert first["reason"] == "Evicted", first
    assert "stopped by the node" in first["message"], first
    assert status.get("failures", 0) == 0, "it was the machine's fault, not the task's"
    stage.product.swarmtask("cancel", "hog")
    stage.product.wait_phase("hog", "Cancelled", timeout_s=30)
    for i in range(4):
        neighbour = stage.status(f"neighbour-{i}")
        assert (neighbour["phase"], len(neighbour["attempts"])) == ("Running", 1), neighbour
    assert "AttemptFailed" in stage.product.event_reasons("hog")
    stage.clear()
    stage.recorder.assert_ok()
