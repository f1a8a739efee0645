"""What the node agent takes in its container, as the operator deploys it: memory, and CPU time while attempts run and write.

A measurement, for whoever runs it by itself with -s: `pytest -s -m long tests/e2e/test_agent_footprint.py` on an idle machine.
docs/performance.md, "The node agent in its container", has what it told. Memory has a bound here; CPU time is only shown.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.deployed import AGENT_S, Scene, opened
from tests.e2e.product import task
from tests.lab.images import TASK_TAG
from tests.lab.node import GIB, NodeSize
from tests.lab.outer import OuterDocker

pytestmark = [pytest.mark.docker, pytest.mark.lab, pytest.mark.kubectl, pytest.mark.slow, pytest.mark.long]

NODE = "desktop"
MOST_BYTES = 40_000_000
WATCHED_S, SETTLE_S = 60.0, 10.0
LINE = "a step of many is done, and the next one begins; these are eighty bytes or so"
QUIET, WRITING = "sleep 3600", f"while :; do echo '{LINE}'; sleep 1; done"


def figures(scene: Scene) -> tuple[float, int, int]:
    """(% of a core, bytes resident, bytes of the container without page cache) of the agent over some time from now."""
    container = scene.agent(NODE)
    before, began = _stats(container), time.monotonic()
    time.sleep(WATCHED_S)
    after, took_s = _stats(container), time.monotonic() - began
    used = after["cpu_stats"]["cpu_usage"]["total_usage"] - before["cpu_stats"]["cpu_usage"]["total_usage"]
    memory = after["memory_stats"]
    cache = memory["stats"].get("total_cache", memory["stats"].get("file", 0))
    shown = container.top(ps_args="-o pid,rss,args")
    resident = max(int(row[1]) for row in shown["Processes"])
    return used / took_s / 1e7, 1024 * resident, memory["usage"] - cache


def _stats(container: Any) -> dict[str, Any]:
    read: dict[str, Any] = container.stats(stream=False)
    return read


@pytest.mark.timeout(1200)
def test_the_agent_of_a_busy_node_stays_small(outer_docker: OuterDocker, tmp_path: Path) -> None:
    with opened((NodeSize(NODE, 2, 8 * GIB),), outer_docker.url, tmp_path / "data") as scene:
        engine_id = scene.lab.swarm_node_id(NODE)
        scene.wait("the agent speaks", lambda: scene.agent_speaks(NODE, engine_id), AGENT_S)
        names: list[str] = []
        for what, command, count in (
            ("nothing runs", "", 0), ("ten attempts that write nothing", QUIET, 10),
            ("the same and ten that write a line a second", WRITING, 10),
        ):  # fmt: skip
            for _ in range(count):
                name = f"talker-{len(names)}"
                names.append(name)
                scene.product.apply(task(name, command, image=TASK_TAG, cpu="10m", memory="16Mi"))
            for name in names:
                scene.product.wait_phase(name, "Running", timeout_s=120)
            time.sleep(SETTLE_S)
            percent, resident, private = figures(scene)
            print(f"{what}: {percent:.2f} % of a core, {resident / 1e6:.1f} MB resident, {private / 1e6:.1f} MB in all", flush=True)
            assert resident < MOST_BYTES
