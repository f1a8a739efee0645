"""Where nodes are lost for show: a control plane with node agents on the laboratory's nodes, and everything that watches them.

Used by `test_sleeping_nodes.py` and its neighbours through the fixtures `house` (one per module) and `stage` (one per test). Times
are the product's own, made shorter by settings; Swarm's, which cannot be, stay as they are: a node is Down after 10 to 15 s.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.e2e.agents import Agents
from tests.e2e.product import Object, Product, task, wait_until
from tests.e2e.pulses import PULSE, Pulses
from tests.e2e.recorder import Recorder
from tests.lab.cluster import Lab
from tests.lab.images import TASK_TAG

FENCE_S, FENCE_GRACE_S, MARGIN_S, UNREACHABLE_S = 15, 2, 14, 4.5
LOST_GRACE_S = 5
"""`nodeLoss.graceSeconds` of `Stage.task`."""
GRACE_S = 2
"""`terminationGracePeriodSeconds` of `task`."""
REPLACED_S = FENCE_S + GRACE_S + MARGIN_S
"""When a lost attempt is replaced that says `afterFence`."""
LATE_S = 10.0
"""So much later than promised is still in time on a machine that is busy with other things."""
WAKING = timedelta(seconds=3)
"""A machine that wakes up wakes everything up, the agent that stops it among them: that moment is measured, not forbidden."""
SOON = {"type": "linear", "initialSeconds": 1, "maxSeconds": 1}
POLICIES = ("afterFence", "afterLost", "never")
POLITE = f"trap 'exit 143' TERM; {PULSE}"
INFRASTRUCTURE = {"NodeLost", "NodeRestarted", "WorkloadLost", "Evicted"}
SETTINGS = {
    "SWARMTASK_OPERATOR__FENCE_S": str(FENCE_S),
    "SWARMTASK_OPERATOR__FENCE_MARGIN_S": str(MARGIN_S),
    "SWARMTASK_OPERATOR__UNREACHABLE_S": str(UNREACHABLE_S),
}


def uptime_s() -> float:
    """The clock of pulses, now."""
    return float(Path("/proc/uptime").read_text().split()[0])


class House:
    """A control plane and an agent on every node; outlives the tests of a module."""

    def __init__(self, lab: Lab, data_dir: Path, kubectl: Path, settings: dict[str, str], *, fence_s: int) -> None:
        self.lab = lab
        self.product = Product(
            data_dir, engine="swarm", kubectl=kubectl, docker_host=lab.docker_host(lab.manager), address=lab.gateway,
            settings=settings,
        )  # fmt: skip
        self._fence_s = fence_s
        self.agents: Agents | None = None

    def start(self) -> None:
        self.product.start()
        self.agents = Agents(self.lab, self.product, fence_s=self._fence_s, grace_s=FENCE_GRACE_S)

    def stop(self) -> None:
        if self.agents is not None:
            self.agents.stop()
        self.product.stop()


class Stage:
    """One test's view of the house."""

    def __init__(self, house: House, recorder: Recorder, pulses: Pulses) -> None:
        assert house.agents is not None
        self.lab, self.product, self.agents = house.lab, house.product, house.agents
        self.recorder, self.pulses = recorder, pulses
        self.figures: dict[str, list[float]] = defaultdict(list)

    def note(self, what: str, value: float) -> None:
        """A measured figure; the worst of each is printed at the end (`pytest -s`, or `-rP`)."""
        self.figures[what].append(value)

    def worst(self, what: str) -> float:
        return max(self.figures[what])

    # --- tasks ---

    def task(self, name: str, node: str, replace: str = "afterFence", script: str = POLITE, **spec: Any) -> Object:
        """A small task that begins on `node` and may go on anywhere."""
        spec = {"cpu": "20m", "memory": "16Mi", "backoff": SOON, "labels": {"policy": replace, "began": node}} | spec
        spec.setdefault("nodeLoss", {"replace": replace, "graceSeconds": LOST_GRACE_S})
        spec.setdefault("placement", {"preferredRegions": [node]})
        return task(name, script, image=TASK_TAG, **spec)

    def status(self, name: str) -> Object:
        found: Object = (self.product.get("swarmtask", name) or {}).get("status", {})
        return found

    def statuses(self) -> dict[str, Object]:
        return {item["metadata"]["name"]: item["status"] for item in self.product.get("swarmtasks")}

    def wait_second_attempts(self, policy: str, count: int, since: float, within_s: float) -> None:
        """Until so many tasks of a policy run as attempt 2, within that time since a moment of `time.monotonic`."""

        def probe() -> bool:
            found = self.product.get("swarmtasks", selector=f"policy={policy}")
            return sum(item["status"].get("attempt") == 2 and item["status"]["phase"] == "Running" for item in found) == count

        left_s = max(0.0, since + within_s - time.monotonic())
        wait_until(f"{count} replacements by {policy}", probe, left_s, self.details)
        self.note(f"{policy}: until all run again, s", time.monotonic() - since)

    def overlap_s(self, status: Object) -> float:
        """For how long two attempts of a task acted at once, by their own pulses."""
        return self.pulses.overlap_s([attempt["id"] for attempt in status["attempts"]])

    def events_of_node(self, name: str) -> list[str]:
        """Reasons of a SwarmNode's Events, oldest first."""
        done = self.product.get("events")
        mine = [item for item in done if item["involvedObject"]["kind"] == "SwarmNode" and item["involvedObject"]["name"] == name]
        return [item["reason"] for item in sorted(mine, key=lambda item: int(item["metadata"]["resourceVersion"]))]

    def phase_of_node(self, name: str) -> str:
        return str(self.product.get("swarmnode", name)["status"].get("phase", ""))

    # --- time ---

    @staticmethod
    def until(moment: float) -> None:
        """Let time pass until that moment of `time.monotonic`: how long a fault lasts is what is being tried."""
        time.sleep(max(0.0, moment - time.monotonic()))

    # --- faults that the recorder must know of ---

    def sleep(self, *nodes: str, by_freezer: bool = False) -> float:
        """Close lids; the moment after, of `time.monotonic`."""
        for name in nodes:
            if by_freezer:
                self.lab.node(name).freeze()
            else:
                self.lab.pause(name)
            self.recorder.asleep(name)
        return time.monotonic()

    def wake(self, *nodes: str) -> None:
        for name in nodes:
            self.recorder.awake(name, after=WAKING)
            self.lab.unpause(name)
            self.lab.node(name).thaw()

    # --- nodes that join ---

    def watch(self, name: str) -> None:
        """A node that has joined: listen to it, give it an agent, and wait until both are known."""
        self.recorder.add_node(name)
        self.pulses.follow(name)
        self._give_region(name)
        self.agents.start(name)
        wait_until(f"{name} to be Ready with an agent", lambda: self._ready(name), 40, self.details)

    def _give_region(self, name: str) -> None:
        """A region of its own, so that tasks can prefer the node."""
        wait_until(f"the SwarmNode {name}", lambda: self.product.get("swarmnode", name), 30, self.details)
        self.product.kubectl("patch", "sn", name, "--type=merge", "-p", json.dumps({"spec": {"region": name}}))

    # --- between tests ---

    def settle(self) -> None:
        """Everything that a test broke is whole again, and nothing is left of its work."""
        self.lab.restore()
        if self.product.operator is None or not self.product.operator.alive:
            self.product.start_operator()
        for name in self.lab.nodes:
            self._give_region(name)
        self.agents.start(*self.lab.nodes)
        wait_until("all nodes to be Ready, each with an agent", lambda: self._ready(*self.lab.nodes), 60, self.details)

    def _ready(self, *names: str) -> bool:
        nodes = {item["metadata"]["name"]: item["status"] for item in self.product.get("swarmnodes")}
        there = [nodes.get(name, {}) for name in names]
        return all(status.get("phase") == "Ready" and status.get("agentVersion") for status in there)

    def clear(self) -> None:
        """No tasks any more."""
        self.recorder.all_deleted()
        self.product.kubectl("delete", "st", "--all", "--wait=false")
        wait_until("all tasks to be gone", lambda: not self.product.phases(), 60, self.details)

    def details(self) -> str:
        lines = [f"Swarm: {[(item['Description']['Hostname'], item['Status']) for item in self.lab.manager_client().api.nodes()]}"]
        for node in self.product.get("swarmnodes"):
            ready = [item for item in node["status"].get("conditions", ()) if item["type"] == "Ready"]
            lines.append(f"node {node['metadata']['name']}: {node['status'].get('phase')} {ready}")
            lines.append(f"  its Events: {self.events_of_node(node['metadata']['name'])}")
        for name, status in self.statuses().items():
            lines.append(f"task {name}: {status.get('phase')}")
            lines += [f"  {json.dumps(attempt)}" for attempt in status.get("attempts", ())]
        return "\n".join((*lines, self.product.logs_of_the_control_plane(), self.agents.tails()))


@contextlib.contextmanager
def opened(house: House) -> Iterator[Stage]:
    """A stage on which nothing has happened yet, watched by recorder and pulses."""
    with Recorder(house.product.kubeconfig, house.lab) as recorder, Pulses(house.lab) as pulses:
        stage = Stage(house, recorder, pulses)
        stage.settle()
        try:
            yield stage
        finally:
            for what, values in stage.figures.items():
                print(f"measured: {what}: worst {max(values):.2f}, of {len(values)}")
            for name in house.lab.nodes:
                house.lab.unpause(name)
            stage.settle()
            stage.clear()
