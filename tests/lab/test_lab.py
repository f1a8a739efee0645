"""The laboratory is what it claims: real nodes of different size that form a Swarm, break as asked, heal, and leave nothing."""

import contextlib
import functools
import http.server
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import docker
import psutil
import pytest
from docker.types import RestartPolicy

from tests.lab import images, tools
from tests.lab.cluster import DEFAULT_NODES, Lab, sweep
from tests.lab.images import LABEL
from tests.lab.node import GIB, LabError, LabNode, NodeSize, poll

pytestmark = [pytest.mark.lab, pytest.mark.slow]
CORES = len(os.sched_getaffinity(0))


def run_on(lab: Lab, node: str, *, name: str, command: list[str]) -> str:
    """A service of one task pinned to a node, as the Swarm engine makes them."""
    return (
        lab.manager_client()
        .services.create(
            images.TASK_TAG,
            command,
            name=name,
            constraints=[f"node.id=={lab.swarm_node_id(node)}"],
            container_labels={"test": name},
            restart_policy=RestartPolicy("none"),
        )
        .id
    )


def wait_container(lab: Lab, node: str, name: str, state: str) -> None:
    poll(
        f"{name} to be {state} on {node}",
        30,
        lambda: any(found.labels.get("test") == name and found.state == state for found in lab.containers(node)),
    )


def wait_task(lab: Lab, service: str, state: str, timeout_s: float = 60) -> dict:
    def found():
        tasks = lab.manager_client().api.tasks({"service": service})
        return next((task for task in tasks if task["Status"]["State"] == state), None)

    return poll(f"a task of {service} to be {state}", timeout_s, found)


def leftovers(url: str, lab: Lab, container_ids: list[str]) -> list[str]:
    """Everything of a laboratory that can still be found on this machine."""
    found = []
    with contextlib.closing(docker.DockerClient(base_url=url)) as outer:
        mine = {"label": f"{LABEL}={lab.id}"}
        found += [f"container {item.name}" for item in outer.containers.list(all=True, filters=mine)]
        found += [f"volume {item.name}" for item in outer.volumes.list(filters=mine)]
        found += [f"network {item.name}" for item in outer.networks.list(filters=mine)]
    mounts = Path("/proc/self/mountinfo").read_text()
    for mark in (str(lab.folder), *container_ids):
        found += [f"mount {mark}"] if mark in mounts else []
    for process in psutil.process_iter():
        try:
            groups = Path(f"/proc/{process.pid}/cgroup").read_text()
        except OSError:
            continue
        found += [f"process {process.pid} {process.name()}" for mark in container_ids if mark in groups]
    found += [f"cgroup {path}" for mark in container_ids for path in Path("/sys/fs/cgroup").glob(f"*/docker/{mark}")]
    found += [f"folder {lab.folder}"] if lab.folder.exists() else []
    return found


def test_swarm_reports_three_ready_nodes_of_the_sizes_asked_for(clean_lab):
    reported = {node["Description"]["Hostname"]: node for node in clean_lab.manager_client().api.nodes()}
    assert {node["Status"]["State"] for node in reported.values()} == {"ready"}
    sizes = {
        name: (node["Description"]["Resources"]["NanoCPUs"] // 10**9, node["Description"]["Resources"]["MemoryBytes"])
        for name, node in reported.items()
    }
    assert sizes == {size.name: (min(size.cpus, CORES), size.memory_bytes) for size in DEFAULT_NODES}
    assert len({node["Status"]["Addr"] for node in reported.values()}) == 3
    assert [reported[name]["Spec"]["Role"] for name in clean_lab.nodes] == ["manager", "worker", "worker"]


def test_a_pinned_service_runs_on_its_node_and_nowhere_else(clean_lab):
    for node in clean_lab.nodes:
        run_on(clean_lab, node, name=f"pinned-{node}", command=["sleep", "600"])
    for node in clean_lab.nodes:
        wait_container(clean_lab, node, f"pinned-{node}", "running")
        assert [found.labels["test"] for found in clean_lab.containers(node)] == [f"pinned-{node}"]


def test_inner_containers_are_bound_by_the_cores_of_their_node(clean_lab):
    assert images.run_once(clean_lab.client("laptop-2"), images.TASK_TAG, ["nproc"]) == "1\n"


def test_a_loaded_image_is_the_same_on_every_node_and_other_images_are_refused_at_once(clean_lab):
    clean_lab.load_image(images.TASK_TAG)
    identities = {clean_lab.client(node).images.get(images.TASK_TAG).id for node in clean_lab.nodes}
    assert identities == {images.archive_id(images.image_tar(images.TASK_TAG))}
    service = clean_lab.manager_client().services.create("example/absent:1", name="absent", restart_policy=RestartPolicy("none"))
    assert "No such image" in wait_task(clean_lab, service.id, "rejected", timeout_s=10)["Status"]["Err"]


def test_this_machine_is_all_that_a_container_on_a_node_can_reach(clean_lab, tmp_path):
    (tmp_path / "greeting").write_text("from the machine")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer((clean_lab.gateway, 0), functools.partial(Quiet, directory=tmp_path)) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            url = f"http://{clean_lab.gateway}:{server.server_port}/greeting"
            assert images.run_once(clean_lab.client("laptop-1"), images.TASK_TAG, ["wget", "-qO-", url]) == "from the machine"
        finally:
            server.shutdown()
            serving.join(10)
    assert "default" not in clean_lab.node("laptop-1").run(["ip", "route"])


def test_python_image_runs_on_a_node(clean_lab):
    with tools.or_skip():
        clean_lab.load_image(images.PYTHON_TAG, ["laptop-1"])
    program = "import hashlib, json, sqlite3, ssl; print(json.dumps({'ok': True}))"
    assert images.run_once(clean_lab.client("laptop-1"), images.PYTHON_TAG, ["python3", "-c", program]) == '{"ok": true}\n'


def test_a_closed_lid_is_seen_and_the_work_goes_on_after_it(clean_lab):
    service = run_on(clean_lab, "laptop-1", name="lid", command=["sleep", "600"])
    wait_container(clean_lab, "laptop-1", "lid", "running")
    before = clean_lab.containers("laptop-1")
    clean_lab.pause("laptop-1")
    clean_lab.pause("laptop-1")
    with pytest.raises(LabError, match="laptop-1 is paused"):
        clean_lab.containers("laptop-1")
    clean_lab.wait_state("laptop-1", "down", timeout_s=20)
    clean_lab.unpause("laptop-1")
    clean_lab.wait_state("laptop-1", "ready", timeout_s=20)
    assert clean_lab.containers("laptop-1") == before
    assert wait_task(clean_lab, service, "running")["NodeID"] == clean_lab.swarm_node_id("laptop-1")


def test_a_power_cut_ends_the_work_and_the_node_comes_back_as_it_was(clean_lab):
    service = run_on(clean_lab, "laptop-2", name="power", command=["sleep", "600"])
    wait_container(clean_lab, "laptop-2", "power", "running")
    swarm_id = clean_lab.swarm_node_id("laptop-2")
    clean_lab.kill("laptop-2")
    clean_lab.kill("laptop-2")
    clean_lab.wait_state("laptop-2", "down", timeout_s=30)
    clean_lab.start_node("laptop-2")
    clean_lab.wait_state("laptop-2", "ready", timeout_s=30)
    assert clean_lab.client("laptop-2").info()["Swarm"]["NodeID"] == swarm_id
    wait_task(clean_lab, service, "failed")


@pytest.mark.parametrize("cut", ["both", "in", "out", "unplugged"])
def test_a_partition_lets_the_work_end_and_tell_of_it_after_healing(clean_lab, cut):
    service = run_on(clean_lab, "laptop-1", name="cut", command=["sh", "-c", "until [ -e /tmp/go ]; do sleep 0.1; done"])
    wait_container(clean_lab, "laptop-1", "cut", "running")
    clean_lab.partition("laptop-1", cut)
    clean_lab.wait_state("laptop-1", "down", timeout_s=45)
    (inner,) = clean_lab.containers("laptop-1")
    clean_lab.client("laptop-1").containers.get(inner.id).exec_run(["touch", "/tmp/go"])
    wait_container(clean_lab, "laptop-1", "cut", "exited")
    clean_lab.heal("laptop-1")
    clean_lab.heal("laptop-1")
    clean_lab.wait_state("laptop-1", "ready", timeout_s=30)
    wait_task(clean_lab, service, "complete")
    assert "default" not in clean_lab.node("laptop-1").run(["ip", "route"])


@pytest.mark.parametrize("how", ["KILL", "TERM"])
def test_dockerd_restarts_alone_and_the_node_is_ready_again(clean_lab, how):
    # It goes when it is asked to: a dockerd that waits for it would be away for so long that Swarm may call the node down.
    polite = ["sh", "-c", "trap 'exit 3' TERM; sleep 600 & wait"]
    service = run_on(clean_lab, "laptop-1", name="restart", command=polite)
    wait_container(clean_lab, "laptop-1", "restart", "running")
    clean_lab.restart_dockerd("laptop-1", how)
    clean_lab.wait_ready()
    wait_task(clean_lab, service, "failed")
    assert clean_lab.node("laptop-1").status == "running"


def test_the_manager_survives_the_loss_of_its_dockerd(clean_lab):
    before = {name: clean_lab.swarm_node_id(name) for name in clean_lab.nodes}
    clean_lab.restart_dockerd(clean_lab.manager, "KILL")
    clean_lab.wait_ready()
    assert {node["ID"] for node in clean_lab.manager_client().api.nodes()} == set(before.values())


def test_dockerd_can_be_kept_down(clean_lab):
    clean_lab.stop_dockerd("laptop-1")
    clean_lab.stop_dockerd("laptop-1")
    clean_lab.wait_state("laptop-1", "down", timeout_s=30)
    clean_lab.start_dockerd("laptop-1")
    clean_lab.wait_state("laptop-1", "ready", timeout_s=30)


def test_a_laptop_joins_works_and_leaves(clean_lab):
    clean_lab.add_node(NodeSize("guest", 1, 2 * GIB))
    with pytest.raises(LabError, match="a node guest already"):
        clean_lab.add_node(NodeSize("guest", 1, 2 * GIB))
    clean_lab.load_image(images.TASK_TAG, ["guest"])
    run_on(clean_lab, "guest", name="guest", command=["sleep", "600"])
    wait_container(clean_lab, "guest", "guest", "running")
    clean_lab.remove_node("guest")
    clean_lab.remove_node("guest")
    assert len(clean_lab.manager_client().api.nodes()) == 3
    with pytest.raises(LabError, match="no node guest: there are desktop, laptop-1, laptop-2"):
        clean_lab.client("guest")
    with pytest.raises(LabError, match="the manager cannot be removed"):
        clean_lab.remove_node(clean_lab.manager)


def test_restore_mends_whatever_a_test_did(clean_lab):
    manager = clean_lab.manager_client()
    run_on(clean_lab, "laptop-1", name="left", command=["sleep", "600"])
    manager.secrets.create(name="left", data=b"x")
    node = manager.nodes.get(clean_lab.swarm_node_id("laptop-2"))
    node.update({**node.attrs["Spec"], "Labels": {"left": "1"}, "Availability": "drain"})
    clean_lab.client("desktop").containers.run(images.TASK_TAG, ["sleep", "600"], detach=True)
    clean_lab.add_node(NodeSize("guest", 1, GIB))
    clean_lab.stop_dockerd("laptop-1", "KILL")
    clean_lab.partition("laptop-2", "unplugged")
    clean_lab.restore()
    assert clean_lab.nodes == ("desktop", "laptop-1", "laptop-2")
    assert [clean_lab.containers(name) for name in clean_lab.nodes] == [[], [], []]
    assert manager.services.list() == manager.secrets.list() == []
    specs = {entry["Spec"]["Availability"]: entry["Spec"]["Labels"] for entry in manager.api.nodes()}
    assert specs == {"active": {}}


def test_teardown_leaves_nothing(outer_docker):
    with Lab([NodeSize("alone", 1, GIB)], docker_url=outer_docker.url) as lab:
        lab.load_image(images.TASK_TAG)
        run_on(lab, "alone", name="work", command=["sleep", "600"])
        wait_container(lab, "alone", "work", "running")
        ids = [str(lab.node("alone").container.id)]
        assert leftovers(outer_docker.url, lab, ids), "the search itself finds nothing"
        assert lab.id not in sweep(outer_docker.url), "a laboratory in use is not swept"
        lab.pause("alone")
    assert leftovers(outer_docker.url, lab, ids) == []
    lab.teardown()


def test_what_a_killed_run_leaves_is_swept(outer_docker):
    program = (
        "import sys, time; from tests.lab.cluster import Lab; from tests.lab.node import NodeSize\n"
        f"lab = Lab([NodeSize('alone', 1, 2**30)], docker_url={outer_docker.url!r}).start()\n"
        "print(lab.id, lab.node('alone').container.id, flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=tools.ROOT, stdout=subprocess.PIPE, text=True)
    try:
        lab_id, container_id = process.stdout.readline().split()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        process.stdout.close()
    assert lab_id in sweep(outer_docker.url)
    ghost = Lab((), docker_url=outer_docker.url)
    ghost.id, ghost.folder = lab_id, Path(tempfile.gettempdir()) / f"stlab-{lab_id}"
    assert leftovers(outer_docker.url, ghost, [container_id]) == []


def test_a_start_that_fails_leaves_nothing(outer_docker, monkeypatch):
    def refuse(self: LabNode, timeout_s: float = 30) -> None:
        raise LabError("it does not come up")

    monkeypatch.setattr(LabNode, "wait_api", refuse)
    lab = Lab([NodeSize("alone", 1, GIB)], docker_url=outer_docker.url)
    with pytest.raises(LabError, match="it does not come up"):
        lab.start()
    assert leftovers(outer_docker.url, lab, []) == []


@pytest.mark.parametrize(("nodes", "words"), [([], "at least one"), ([NodeSize("a", 1, GIB)] * 2, "same name")])
def test_an_impossible_laboratory_is_refused(outer_docker, nodes, words):
    with pytest.raises(ValueError, match=words):
        Lab(nodes, docker_url=outer_docker.url).start()
