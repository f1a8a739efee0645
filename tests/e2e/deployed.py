"""A control plane that nodes of the laboratory reach and that puts node agents on them by itself, image and all.

Called by the tests that join laptops and upgrade agents. The kernels of sandboxes lack IPVS, without which Swarm's ingress does not
forward: a firewall rule on each node stands in for it and leads 127.0.0.1:PORT to the manager, where that registry is published.
Everything else is as on laptops.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.e2e.product import Process, Product, wait_until
from tests.lab import worker
from tests.lab.cluster import Lab
from tests.lab.images import TASK_TAG
from tests.lab.node import NodeSize
from tests.lab.tools import any_kubectl, or_skip

NewOperator = Callable[[str, Iterable[str], Path, Mapping[str, str]], Process]
PORT = 5000
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
        return self.together({what: probe}, timeout_s)[what]

    def together(self, probes: Mapping[str, Callable[[], Any]], timeout_s: float) -> dict[str, float]:
        """Wait for all of these at once; seconds that each took."""
        began, took = time.monotonic(), dict[str, float]()

        def look() -> bool:
            for what, probe in probes.items():
                if what not in took and probe():
                    took[what] = time.monotonic() - began
            return len(took) == len(probes)

        wait_until(", ".join(probes), look, timeout_s, lambda: f"reached: {list(took)} {self.detail()}")
        return took

    def detail(self) -> str:
        api = self.lab.manager_client().api
        tasks = [
            (item["NodeID"][:6] if item.get("NodeID") else "", item["Status"]["State"], item["Status"].get("Err", ""))
            for item in sorted(api.tasks({"service": self.service}), key=lambda item: item["CreatedAt"])[-12:]
        ]
        logs = [
            f"{name}: {container.logs(tail=8).decode(errors='replace')}"
            for name in self.lab.nodes
            if self.lab.node(name).status == "running"
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


@contextlib.contextmanager
def opened(nodes: tuple[NodeSize, ...], docker_url: str, data_dir: Path, new_operator: NewOperator = Process) -> Iterator[Scene]:
    """A laboratory of its own whose operator has begun to put agents on the nodes; the task image is on all of them, the agent's on
    the manager alone. Nothing of it is left at the end."""
    with or_skip():
        kubectl = any_kubectl()
    with Lab(nodes, docker_url=docker_url) as lab:
        lab.load_image(TASK_TAG)
        image = worker.archive(lab.manager_client())
        with image.open("rb") as file:
            lab.manager_client().images.load(file)
        product = Reachable(data_dir, lab, kubectl)
        product.new_operator = new_operator
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


def note(what: str, took_s: float) -> None:
    """For whoever runs it with -s: what the documents tell."""
    print(f"{what}: {took_s:.1f} s", flush=True)
