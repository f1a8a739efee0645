"""Laptops join and leave by Docker's own commands; the rest comes by itself: the agent, its token, labels, images.

The kernels of sandboxes lack IPVS, without which Swarm's ingress does not forward: a firewall rule on each node stands in for it
and leads 127.0.0.1:PORT to the manager, where the same registry is published. Everything else is as on laptops.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.product import Process, Product, task, wait_until
from tests.lab import worker
from tests.lab.cluster import Lab
from tests.lab.images import TASK_TAG
from tests.lab.node import GIB, NodeSize
from tests.lab.outer import OuterDocker
from tests.lab.tools import Missing, any_kubectl

pytestmark = [pytest.mark.docker, pytest.mark.lab, pytest.mark.kubectl, pytest.mark.slow]

NODES = (NodeSize("desktop", 2, 8 * GIB), NodeSize("laptop-1", 1, 4 * GIB), NodeSize("laptop-2", 1, 4 * GIB))
PORT = 5000
JOINED_S = 30.0
"""The promise: from the join to a Ready SwarmNode with labels."""
AGENT_S = 240.0
"""Until a fresh laptop has fetched and unpacked 180 MB and its agent speaks, on a machine that does much else."""


class Reachable(Product):
    """A control plane that nodes of the laboratory reach, which puts agents on them."""

    def __init__(self, data_dir: Path, lab: Lab, kubectl: Path) -> None:
        super().__init__(data_dir, engine="swarm", kubectl=kubectl, docker_host=lab.docker_host(lab.manager))
        self.host = lab.gateway
        self.env |= {
            "SWARMTASK_AGENTS__DEPLOY": "true", "SWARMTASK_AGENTS__IMAGES_PORT": str(PORT),
            "SWARMTASK_AGENTS__IMAGES_PUBLISH": "host",
        }  # fmt: skip

    def start_apiserver(self) -> None:
        args = ["apiserver", "--data-dir", str(self.data_dir), "--listen", f"{self.host}:{self.port}"]
        self.apiserver = Process("apiserver", args, self.data_dir / "apiserver.log", self.env)
        said = self.apiserver.await_line(r"The API listens on https://[\d.]+:(\d+)")
        self.port = int(said.group(1))

    def node(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get("swarmnode", name) or {"metadata": {}, "status": {}}
        return found


class Scene:
    def __init__(self, lab: Lab, product: Reachable) -> None:
        self.lab, self.product = lab, product
        self.service = f"swarmtask-node-agent-{product.get('namespace', 'kube-system')['metadata']['uid'].replace('-', '')[:12]}"

    def wait(self, what: str, probe: Callable[[], Any], timeout_s: float) -> float:
        """Seconds that it took."""
        began = time.monotonic()
        wait_until(what, probe, timeout_s, self.detail)
        return time.monotonic() - began

    def detail(self) -> str:
        api = self.lab.manager_client().api
        tasks = [
            (item["NodeID"][:6] if item.get("NodeID") else "", item["Status"]["State"], item["Status"].get("Err", ""))
            for item in sorted(api.tasks({"service": self.service}), key=lambda item: item["CreatedAt"])[-12:]
        ]
        logs = [
            f"{name}: {container.logs(tail=8).decode(errors='replace')}"
            for name in self.lab.nodes
            for container in self.lab.client(name).containers.list(filters={"label": "swarmtask.io/part=node-agent"})
        ]
        nodes = json.dumps([(item["metadata"]["name"], item["status"]) for item in self.product.get("swarmnodes")])
        return "\n".join([str(tasks), *logs, nodes[:6000], self.product.logs_of_the_control_plane()])

    def ready_with_labels(self, name: str) -> bool:
        node = self.product.node(name)
        labels = node["metadata"].get("labels") or {}
        return node["status"].get("phase") == "Ready" and {"swarmtask.io/arch", "swarmtask.io/cpu"} <= labels.keys()

    def agent_speaks(self, name: str, engine_id: str) -> bool:
        """The agent on that node of the swarm renews the Lease of this SwarmNode, with a token that was made there."""
        node, lease = self.product.node(name), self.product.kubectl("get", "lease", name, "-n", "kube-node-lease", check=False)
        known = [item["id"] for item in node["status"].get("engines") or ()]
        mine = [
            token
            for token in self.tokens(name)
            if token["metadata"]["labels"]["access.swarmtask.io/engine-node"].endswith(engine_id)
        ]
        return bool(mine) and known == [engine_id] and lease.returncode == 0 and bool(node["status"].get("agentVersion"))

    def tokens(self, name: str) -> list[dict[str, Any]]:
        return [item for item in self.product.get("accesstokens") if item["spec"]["user"] == f"system:node:{name}"]

    def agent(self, name: str) -> Any:
        """The agent's container on that node."""
        (found,) = self.lab.client(name).containers.list(filters={"label": "swarmtask.io/part=node-agent"})
        return found

    def healthy(self, name: str) -> bool:
        return bool(self.agent(name).attrs["State"]["Health"]["Status"] == "healthy")

    def version(self) -> int:
        """Of the service; it grows with every update."""
        return int(self.lab.manager_client().api.inspect_service(self.service)["Version"]["Index"])

    def shared_digest(self) -> str:
        (shared,) = (item for item in self.product.get("accesstokens") if item["spec"]["user"].endswith(":node-bootstrap"))
        return str(shared["spec"]["digest"])

    def stand_in_for_the_mesh(self, name: str) -> None:
        """127.0.0.1:PORT leads to the manager, as Swarm's ingress has it on kernels with IPVS."""
        manager = self.lab.node(self.lab.manager).address
        if name == self.lab.manager:
            return
        script = (
            "for file in /proc/sys/net/ipv4/conf/*/route_localnet; do echo 1 >$file; done; "
            f"iptables -w -t nat -I OUTPUT -p tcp -d 127.0.0.1 --dport {PORT} -j DNAT --to-destination {manager}:{PORT}; "
            f"iptables -w -t nat -I POSTROUTING -p tcp -d {manager} --dport {PORT} -j MASQUERADE"
        )
        self.lab.node(name).run(["sh", "-c", script])


@pytest.fixture
def scene(outer_docker: OuterDocker, tmp_path: Path) -> Iterator[Scene]:
    try:
        kubectl = any_kubectl()
    except Missing as missing:
        pytest.skip(str(missing))
    with Lab(NODES, docker_url=outer_docker.url) as lab:
        lab.load_image(TASK_TAG)
        image = worker.archive(lab.manager_client())
        with image.open("rb") as file:
            lab.manager_client().images.load(file)  # on the manager alone: laptops must come by it themselves
        product = Reachable(tmp_path / "data", lab, kubectl)
        try:
            product.data_dir.mkdir(mode=0o700)
            product.start_apiserver()
            scene = Scene(lab, product)
            for name in lab.nodes:
                scene.stand_in_for_the_mesh(name)
            product.start_operator()
            yield scene
        finally:
            product.stop()


@pytest.mark.timeout(1500)
def test_laptops_join_leave_and_come_back_while_work_goes_on(scene: Scene) -> None:
    lab, product = scene.lab, scene.product
    ids = {name: lab.swarm_node_id(name) for name in lab.nodes}
    took = scene.wait(
        "agents on all nodes", lambda: all(scene.agent_speaks(name, engine_id) for name, engine_id in ids.items()), AGENT_S
    )
    note("agents on three nodes", took)
    image = lab.manager_client().api.inspect_service(scene.service)["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]
    assert image.startswith(f"127.0.0.1:{PORT}/swarmtask/worker@sha256:")
    settled = scene.version()

    product.kubectl("patch", "sn", "laptop-1", "--type=merge", "-p", '{"spec":{"maxTasks":2,"capabilities":["coding"]}}')
    product.apply(task("steady", "sleep 60; echo done", image=TASK_TAG, placement={"nodeName": "laptop-2"}))

    # It leaves, by the plain command.
    lab.leave("laptop-1")
    took = scene.wait("laptop-1 is Gone", lambda: product.node("laptop-1")["status"]["phase"] == "Gone", 90)
    note("from `docker swarm leave` to Gone", took)
    scene.wait("its token is revoked", lambda: not scene.tokens("laptop-1"), 60)

    # It comes back, under another ID.
    scene.stand_in_for_the_mesh("laptop-1")
    began = time.monotonic()
    new_id = lab.rejoin("laptop-1")
    assert new_id != ids["laptop-1"]
    scene.wait("laptop-1 is Ready again", lambda: scene.ready_with_labels("laptop-1"), JOINED_S)
    note("from the second join to Ready with labels", time.monotonic() - began)
    spec = product.node("laptop-1")["spec"]
    assert (spec["maxTasks"], spec["capabilities"]) == (2, ["coding"]), "its settings are kept"
    assert {item["metadata"]["name"] for item in product.get("swarmnodes")} == set(ids), "and it is no other node"
    scene.wait("its agent speaks again", lambda: scene.agent_speaks("laptop-1", new_id), AGENT_S)
    product.apply(task("back", "echo here", image=TASK_TAG, placement={"nodeName": "laptop-1"}))
    product.wait_phase("back", "Succeeded", timeout_s=120)

    # Another one comes, and is taken away.
    began = time.monotonic()
    lab.add_node(NodeSize("laptop-9", 1, 4 * GIB))
    scene.stand_in_for_the_mesh("laptop-9")
    scene.wait("laptop-9 is Ready", lambda: scene.ready_with_labels("laptop-9"), JOINED_S)
    note("from a first join to Ready with labels", time.monotonic() - began)
    took = scene.wait("its agent speaks", lambda: scene.agent_speaks("laptop-9", lab.swarm_node_id("laptop-9")), AGENT_S)
    note("until the agent of a fresh laptop speaks, more", took)
    lab.remove_node("laptop-9")
    scene.wait("laptop-9 is Gone", lambda: product.node("laptop-9")["status"]["phase"] == "Gone", 60)

    assert product.wait_phase("steady", "Succeeded", timeout_s=120)["status"]["attempt"] == 1, "work went on"
    assert scene.version() == settled, "nothing of that touched the service"

    scene.wait("the agent is healthy for Docker, too", lambda: scene.healthy("laptop-2"), 90)

    # The shared credential is revoked by hand: all get another one.
    first_start = started(scene, "laptop-2")
    before = scene.shared_digest()
    (name,) = (item["metadata"]["name"] for item in product.get("accesstokens") if item["spec"]["digest"] == before)
    product.swarmtask("token", "revoke", name)
    scene.wait("another credential is handed out", lambda: scene.version() > settled, 60)
    assert scene.shared_digest() != before
    scene.wait("the agent was started anew", lambda: started(scene, "laptop-2") > first_start, 120)
    scene.wait("it speaks", lambda: "this machine is SwarmNode laptop-2" in scene.agent("laptop-2").logs().decode(), 60)
    said = scene.agent("laptop-2").logs().decode()
    assert "got a token" not in said, f"it has its own on its disk\n{said}"
    assert " warning " not in said, said
    listing = scene.agent("laptop-2").exec_run(["ls", "-ln", "/var/lib/swarmtask/node-agent/own-token"]).output.decode()
    assert listing.startswith("-rw-------"), listing


def note(what: str, took_s: float) -> None:
    """For whoever runs it with -s: what docs/performance.md tells."""
    print(f"{what}: {took_s:.1f} s", flush=True)


def started(scene: Scene, name: str) -> str:
    """When the agent's container there was started; empty while there is none."""
    found = scene.lab.client(name).containers.list(filters={"label": "swarmtask.io/part=node-agent"})
    return str(found[0].attrs["State"]["StartedAt"]) if found else ""
