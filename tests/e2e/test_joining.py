"""Laptops join and leave by Docker's own commands; the rest comes by itself: the agent, its token, labels, images.

The laptops fetch the agent's image themselves (`deployed`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import docker.errors
import pytest

from tests.e2e.deployed import AGENT_S, PORT, Scene, note, opened
from tests.e2e.product import task
from tests.lab import images
from tests.lab.images import TASK_TAG
from tests.lab.node import GIB, NodeSize
from tests.lab.outer import OuterDocker

pytestmark = [pytest.mark.docker, pytest.mark.lab, pytest.mark.kubectl, pytest.mark.slow]

NODES = (NodeSize("desktop", 2, 8 * GIB), NodeSize("laptop-1", 1, 4 * GIB), NodeSize("laptop-2", 1, 4 * GIB))
JOINED_S = 30.0
"""The promise: from the join to a Ready SwarmNode with labels."""


@pytest.fixture
def scene(outer_docker: OuterDocker, tmp_path: Path) -> Iterator[Scene]:
    with opened(NODES, outer_docker.url, tmp_path / "data") as scene:
        yield scene


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
    work = "until [ -e /go ]; do sleep 0.2; done; echo done"
    product.apply(task("steady", work, image=TASK_TAG, placement={"nodeName": "laptop-2"}))
    product.wait_phase("steady", "Running")

    # One leaves, by the plain command; while Swarm still waits for it, another one comes.
    tokens = {token["metadata"]["name"] for token in scene.tokens("laptop-1")}
    assert tokens
    lab.leave("laptop-1")
    lab.add_node(NodeSize("laptop-9", 1, 4 * GIB))
    scene.stand_in_for_the_mesh("laptop-9")
    new_id = lab.swarm_node_id("laptop-9")
    took = scene.together(
        {
            "from a first join to Ready with labels": lambda: scene.ready_with_labels("laptop-9"),
            "from `docker swarm leave` to Gone": lambda: product.node("laptop-1")["status"]["phase"] == "Gone",
            "from a first join until the agent of a fresh laptop speaks": lambda: scene.agent_speaks("laptop-9", new_id),
        },
        AGENT_S,
    )
    for what, took_s in took.items():
        note(what, took_s)
    assert took["from a first join to Ready with labels"] < JOINED_S
    assert took["from `docker swarm leave` to Gone"] < 90

    # An image of the desktop, on a laptop that had none: by the name that is printed, for each kind of machine its own.
    lab.manager_client().images.get(TASK_TAG).tag("acme/lint", "1.4")
    lab.manager_client().images.load(images.stranger_archive(f"acme/lint:1.4-{images.other_kind()}"))
    name = product.swarmtask("image", "push", "acme/lint:1.4", timeout_s=120).stdout.strip()
    assert re.fullmatch(rf"127\.0\.0\.1:{PORT}/acme/lint@sha256:[0-9a-f]{{64}}", name)
    for number, image in enumerate((name, f"127.0.0.1:{PORT}/acme/lint:1.4")):
        product.apply(task(f"pushed-{number}", "echo from the desktop", image=image, placement={"nodeName": "laptop-9"}))

    carried = lab.client("laptop-2").images.pull(f"127.0.0.1:{PORT}/acme/lint", tag="1.4", platform=f"linux/{images.other_kind()}")
    assert carried.attrs["Architecture"] == images.other_kind()

    # Not so by the desktop's own address: why images come through 127.0.0.1 (docs/adr/0008).
    manager = lab.node(lab.manager).address
    with pytest.raises(docker.errors.APIError, match="HTTP response to HTTPS client"):
        lab.client("laptop-2").images.pull(f"{manager}:{PORT}/acme/lint", tag="1.4")

    # The first one comes back, under another ID.
    scene.stand_in_for_the_mesh("laptop-1")
    began = time.monotonic()
    new_id = lab.rejoin("laptop-1")
    assert new_id != ids["laptop-1"]
    took = scene.together(
        {
            "from the second join to Ready with labels": lambda: scene.ready_with_labels("laptop-1"),
            "from the second join until its agent speaks": lambda: scene.agent_speaks("laptop-1", new_id),
            "its tokens of before are revoked": lambda: (
                not tokens & {item["metadata"]["name"] for item in scene.tokens("laptop-1")}
            ),
        },
        AGENT_S,
    )
    for what, took_s in took.items():
        note(what, took_s)
    assert time.monotonic() - began < AGENT_S
    assert took["from the second join to Ready with labels"] < JOINED_S
    spec = product.node("laptop-1")["spec"]
    assert (spec["maxTasks"], spec["capabilities"]) == (2, ["coding"]), "its settings are kept"
    assert {item["metadata"]["name"] for item in product.get("swarmnodes")} == {*ids, "laptop-9"}, "and it is no other node"
    product.apply(task("back", "echo here", image=TASK_TAG, placement={"nodeName": "laptop-1"}))
    for name in ("back", "pushed-0", "pushed-1"):
        assert product.wait_phase(name, "Succeeded", timeout_s=120)["status"]["attempt"] == 1
    assert product.swarmtask("logs", "pushed-0").stdout == "from the desktop\n"

    # The other one is taken away.
    lab.remove_node("laptop-9")
    scene.wait("laptop-9 is Gone", lambda: product.node("laptop-9")["status"]["phase"] == "Gone", 60)
    (container,) = lab.client("laptop-2").containers.list(filters={"label": "swarmtask.io/task-name=steady"})
    assert container.exec_run(["touch", "/go"]).exit_code == 0
    assert product.wait_phase("steady", "Succeeded", timeout_s=60)["status"]["attempt"] == 1, "work went on"
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


def started(scene: Scene, name: str) -> str:
    """When the agent's container there was started; empty while there is none."""
    found = scene.lab.client(name).containers.list(filters={"label": "swarmtask.io/part=node-agent"})
    return str(found[0].attrs["State"]["StartedAt"]) if found else ""
