"""The guard on a real Docker and the kernel's real cgroups: what the fake and the recorded trees say is what is."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from swarmtask.clock import SystemClock
from swarmtask.nodeagent.eviction import Strain
from swarmtask.nodeagent.fence import Terms
from swarmtask.nodeagent.guard import Guard, Places
from tests.nodeagent.fakes import GIB, UID, attempt
from tests.nodeagent.processes import real_docker

if TYPE_CHECKING:
    from tests.lab.outer import OuterDocker

MIB = 2**20
CLUSTER = "test-real-docker"


class Boot:
    """The real clock, which can be put forward as a sleep would."""

    def __init__(self) -> None:
        self._real, self.slept_s = SystemClock(), 0.0
        self.now, self.monotonic, self.sleep = self._real.now, self._real.monotonic, self._real.sleep

    def boot_time(self) -> float:
        return self._real.boot_time() + self.slept_s


class Node:
    def __init__(self, url: str, client: Any, image: str, state: Path) -> None:
        self.client, self.image, self.clock = client, image, Boot()
        places = Places(Path(url.removeprefix("unix://")), state, cluster=CLUSTER)
        self.guard = Guard(
            places, "boot", lambda: Strain(GIB, GIB, 0.0), clock=self.clock, wait=time.sleep, rng=random.Random(1),
            terms=Terms(fence_s=600, grace_s=5),
        )  # fmt: skip

    def run(self, number: int, command: str, *, fence: bool = False) -> Any:
        labels = {
            "swarmtask.io/managed": "true", "swarmtask.io/cluster": CLUSTER, "swarmtask.io/task-uid": UID.format(number),
            "swarmtask.io/attempt": str(number), "swarmtask.io/fence": str(fence).lower(),
        }  # fmt: skip
        limits = {"mem_limit": 32 * MIB, "memswap_limit": 32 * MIB}
        return self.client.containers.run(
            self.image, ["sh", "-c", command], detach=True, labels=labels, network_mode="none", **limits
        )

    def told(self, number: int) -> dict[str, Any]:
        return next((item for item in self.guard.told() if item["id"] == attempt(number)), {})

    def until(self, number: int, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + 90
        while not holds(self.told(number)):
            assert time.monotonic() < deadline, f"it never came: {self.told(number)}"
            threading.Event().wait(0.1)
        return self.told(number)


@pytest.fixture
def node(outer_docker: OuterDocker, tmp_path: Path) -> Iterator[Node]:
    with real_docker(outer_docker, CLUSTER) as (client, image):
        node = Node(outer_docker.url, client, image, tmp_path / "state")
        with node.guard:
            yield node


def ended(item: dict[str, Any]) -> bool:
    return item.get("state") == "Exited"


def test_figures_and_ends_are_those_of_the_kernel(node: Node) -> None:
    work = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"
    node.run(1, f"head -c 8388608 /dev/zero | tail -c 8388608 > /dev/null; {work}; sleep 3; exit 7")
    # Not at once: Docker's shim begins to listen a moment after the start, and what is killed before that is not told by anybody.
    node.run(2, "sleep 1; exec tail /dev/zero")
    node.run(3, "tail /dev/zero; echo went on; sleep 3; exit 0")
    first = node.until(1, ended)
    assert (first["exitCode"], first["reason"]) == (7, "")
    assert int(first["peakMemory"]) > 2 * MIB
    assert first["cpuSeconds"] > 0
    for number in range(4, 9):  # gone before anybody has looked at Docker's list
        node.run(number, "head -c 8388608 /dev/zero | tail -c 8388608 > /dev/null; sleep 0.3")
    for number in range(4, 9):
        short = node.until(number, ended)
        assert int(short["peakMemory"]) > 2 * MIB
        assert short["cpuSeconds"] > 0
    second, third = node.until(2, ended), node.until(3, ended)
    assert (second["exitCode"], second["reason"]) == (137, "OOMKilled"), second
    assert "memory limit of 32 MiB" in second["message"]
    assert (third["exitCode"], third["reason"]) == (0, "")


def test_a_long_sleep_ends_what_is_fenced_and_nothing_else(node: Node) -> None:
    node.run(1, "trap '' TERM; while true; do sleep 1; done", fence=True)
    free = node.run(2, "sleep 600")
    for number in (1, 2):
        node.until(number, lambda item: item.get("state") == "Running")
    asked_at = node.guard.fence.ask()
    assert asked_at is not None
    node.guard.fence.claim(asked_at)  # a machine that never asked for a Lease fences nothing
    node.clock.slept_s = 3600
    assert node.guard.fence.ask() is None
    fenced = node.until(1, ended)
    assert (fenced["exitCode"], fenced["reason"]) == (137, "Fenced")
    free.reload()
    assert free.status == "running"
