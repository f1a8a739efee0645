"""A new image of the node agent on real nodes: it is there before agents stop, fenced work lives on, and no node that sleeps or
cannot fetch it keeps it from the others.

In what order things happened is read from what each dockerd says itself (its events), not from what the test happened to see.
"""

from __future__ import annotations

import functools
import io
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.deployed import AGENT_S, PORT, Scene, note, opened
from tests.e2e.product import Process, task
from tests.lab import worker
from tests.lab.images import TASK_TAG
from tests.lab.node import GIB, NodeSize
from tests.lab.outer import OuterDocker

pytestmark = [pytest.mark.docker, pytest.mark.lab, pytest.mark.kubectl, pytest.mark.slow]

NODES = (NodeSize("desktop", 2, 8 * GIB), NodeSize("laptop-1", 1, 4 * GIB), NodeSize("laptop-2", 1, 4 * GIB))
AGENT, FETCHING = "swarmtask.io/part=node-agent", "swarmtask.io/part=node-agent-image"
WORK = "until [ -e /go ]; do sleep 0.2; done"
PATIENCE_S = 120.0

_IN_A_HURRY = """
import sys
from swarmtask.controllers import agents
from swarmtask.engines.swarm import fetching
agents.LOOK_S, fetching.FETCH_S = {look_s}, {fetch_s}
sys.argv = ["swarmtask", *sys.argv[sys.argv.index("swarmtask") + 1:]]
from swarmtask.cli.start import start
start()
"""


def in_a_hurry(name: str, args: Iterable[str], log: Path, env: Mapping[str, str], *, fetch_s: float = 900) -> Process:
    """An operator that looks after agents every other second; `fetch_s`: for how long it waits for nodes to fetch."""
    program = _IN_A_HURRY.format(look_s=2, fetch_s=fetch_s)
    return Process(name, args, log, env, within=[sys.executable, "-c", program])


class Upgrade:
    """What Docker says of the agents, and of what fetches their image."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.lab, self.api = scene, scene.lab, scene.lab.manager_client().api
        self._names = {scene.lab.swarm_node_id(name): name for name in scene.lab.nodes}
        self._began = time.time()

    def new_image(self, label: str) -> str:
        """The agent's image with one label more, under the same name on the manager; its ID."""
        text = f"FROM {worker.TAG}\nLABEL upgrade={label}\n"
        made, _ = self.lab.manager_client().images.build(fileobj=io.BytesIO(text.encode()), tag=worker.TAG, network_mode="none")
        self._began = time.time()
        return str(made.id)

    def way_to_images(self, name: str, *, shut: bool) -> None:
        """Whether that node can fetch images, by a firewall of the manager's."""
        rule = ["-s", self.lab.node(name).address, "-p", "tcp", "--dport", str(PORT), "-j", "REJECT", "--reject-with", "tcp-reset"]
        for chain in ("INPUT", "FORWARD"):
            self.lab.node(self.lab.manager).run(["iptables", "-w", "-I" if shut else "-D", chain, *rule])

    def service(self) -> dict[str, Any]:
        found: dict[str, Any] = self.api.inspect_service(self.scene.service)
        return found

    def fetching(self) -> list[dict[str, Any]]:
        """Services by which nodes fetch."""
        return list(self.api.services(filters={"label": FETCHING}))

    def fetched(self) -> dict[str, list[str]]:
        """States of the tasks by which nodes fetch, by node, the newest last."""
        found: dict[str, list[str]] = {name: [] for name in self._names.values()}
        for service in self.fetching():
            for item in sorted(self.api.tasks({"service": service["ID"]}), key=lambda item: str(item["CreatedAt"])):
                found[self._names[item["NodeID"]]].append(item["Status"]["State"])
        return found

    def agents(self, *names: str) -> dict[str, tuple[str, str]]:
        """(ID of the container, ID of its image) of agents that run, by node."""
        return {
            name: (str(found[0].id), str(found[0].attrs["Image"]))
            for name in names
            if (found := self.lab.client(name).containers.list(filters={"label": AGENT}))
        }

    def run_image(self, image: str, *names: str) -> bool:
        return {name: now for name, (_, now) in self.agents(*names).items()} == dict.fromkeys(names, image)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Of a node, since the last new image."""
        found = self.lab.client(name).api.events(since=int(self._began), until=int(time.time()) + 1, decode=True)
        return sorted(found, key=lambda event: int(event["timeNano"]))

    def moment(self, name: str, kind: str, action: str, about: str) -> int:
        """When this happened there first since the last new image: nanoseconds. `about`: an ID or a name."""
        for event in self.events(name):
            actor = event["Actor"]
            if (event["Type"], event["Action"]) == (kind, action) and about in (actor["ID"], actor["Attributes"].get("name", "")):
                return int(event["timeNano"])
        raise AssertionError(f"no {kind} {action} of {about} on {name}\n{self.story()}")

    def story(self) -> str:
        """What happened on nodes that are awake since the last new image."""
        lines = [
            f"{int(event['timeNano']) / 1e9 - self._began:8.2f} {name} {event['Type']} {event['Action']} "
            f"{event['Actor']['Attributes'].get('name') or event['Actor']['ID']} {event['Actor']['Attributes']}"[:250]
            for name in self.lab.nodes
            if self.lab.node(name).status == "running"
            for event in self.events(name)
            if event["Type"] in {"container", "service", "node", "image"} and not event["Action"].startswith("exec_")
        ]
        return "\n".join(sorted(lines))


@pytest.fixture
def scene(outer_docker: OuterDocker, tmp_path: Path) -> Iterator[Scene]:
    with opened(NODES, outer_docker.url, tmp_path / "data", in_a_hurry) as scene:
        yield scene


@pytest.mark.timeout(900)
def test_a_new_image_reaches_all_nodes_and_nobody_waits_for_one_that_sleeps_or_cannot_fetch_it(scene: Scene) -> None:
    lab, product, upgrade = scene.lab, scene.product, Upgrade(scene)

    def wait(what: str, probe: Callable[[], Any], timeout_s: float = PATIENCE_S) -> None:
        note(what, scene.wait(what, probe, timeout_s))

    ids = {name: lab.swarm_node_id(name) for name in lab.nodes}
    wait("agents on all nodes", lambda: all(scene.agent_speaks(name, one) for name, one in ids.items()), AGENT_S)
    product.apply(*(task(f"on-{name}", WORK, image=TASK_TAG, placement={"nodeName": name}) for name in lab.nodes))
    product.wait_all("Running", len(lab.nodes))
    works = {name: attempt(scene, name) for name in lab.nodes}
    before = upgrade.agents(*lab.nodes)

    # One cannot fetch it: until it can, all agents go on. (Swarm has not checked their health yet: it calls them `starting`.)
    upgrade.way_to_images("laptop-2", shut=True)
    new = upgrade.new_image("second")

    def only_one_has_not() -> bool:
        """Swarm has tried twice there, and tries again."""
        states = upgrade.fetched()
        have = all("complete" in states[name] for name in ("desktop", "laptop-1"))
        return have and states["laptop-2"].count("rejected") > 1 and "complete" not in states["laptop-2"]

    wait("the image is on two nodes", only_one_has_not)
    assert upgrade.agents(*lab.nodes) == before, "no agent stops"
    upgrade.way_to_images("laptop-2", shut=False)

    # One falls asleep while its own agent is replaced: it does not hold up the other.
    def replaced() -> list[str]:
        return [name for name in ("laptop-1", "laptop-2") if upgrade.run_image(new, name)]

    wait("the first laptop's agent is replaced", replaced)
    (sleeper,) = replaced()
    lab.pause(sleeper)
    (other,) = {"laptop-1", "laptop-2"} - {sleeper}
    assert upgrade.agents(other)[other] == before[other], f"one after the other\n{upgrade.story()}"
    wait("the others' agents are replaced", lambda: upgrade.run_image(new, "desktop", other))
    assert lab.swarm_state(sleeper) == "down", f"nobody is updated beside it\n{upgrade.story()}"
    assert not upgrade.fetching(), "what fetched is gone"
    told = upgrade.moment("desktop", "service", "update", scene.service)
    for name in ("desktop", other):
        fetched = upgrade.moment(name, "image", "pull", f"127.0.0.1:{PORT}/swarmtask/worker")
        assert fetched < told < upgrade.moment(name, "container", "kill", before[name][0]), name
        assert attempt(scene, name) == works[name], "what is fenced there went on"
        (only,) = product.wait_phase(f"on-{name}", "Running")["status"]["attempts"]  # Unknown while its node's agent starts
        assert only["fence"]

    # While it sleeps, the other cannot fetch the next image for longer than is waited: that is told of this one alone, and Swarm is
    # told to wait for it beside the rest.
    upgrade.way_to_images(other, shut=True)
    newer = upgrade.new_image("third")
    wait("the desktop has the next image", lambda: "complete" in upgrade.fetched()["desktop"])
    assert product.operator is not None
    product.operator.stop()
    product.new_operator = functools.partial(in_a_hurry, fetch_s=1)
    product.start_operator()
    product.operator.await_line(rf"updated the node agents, though {other} could not fetch the image")
    assert upgrade.service()["Spec"]["UpdateConfig"]["Parallelism"] == 2
    wait("the rest has the next image", lambda: upgrade.run_image(newer, "desktop"))
    assert not upgrade.run_image(newer, other)

    # Both come by it when they can.
    lab.unpause(sleeper)
    upgrade.way_to_images(other, shut=False)
    wait("all have the next image", lambda: upgrade.run_image(newer, *lab.nodes))
    assert attempt(scene, "desktop") == works["desktop"]


def attempt(scene: Scene, name: str) -> tuple[str, str]:
    """(ID, start) of the container of the task on that node."""
    (found,) = scene.lab.client(name).containers.list(filters={"label": f"swarmtask.io/task-name=on-{name}"})
    return str(found.id), str(found.attrs["State"]["StartedAt"])
