"""README's laptop guide, word by word: two machines with Docker that know nothing of each other, and the commands as written.

Every command line of the section is run in its order, in one shell on the desktop, or on the laptop where README says so; whoever
adds a line there has to add it here. What stands in for the reader: `make image` is the same build on a base of Debian's packages;
kernels of sandboxes lack IPVS, so the agent's image is carried to the laptop as docs/joining.md says for such kernels.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.product import wait_until
from tests.lab import worker
from tests.lab.cluster import Lab
from tests.lab.images import TASK_TAG
from tests.lab.node import GIB, NodeSize
from tests.lab.outer import OuterDocker
from tests.lab.tools import ROOT, any_kubectl, or_skip

pytestmark = [pytest.mark.docker, pytest.mark.lab, pytest.mark.kubectl, pytest.mark.slow]

NODES = (NodeSize("desktop", 2, 8 * GIB), NodeSize("laptop-2", 1, 4 * GIB))
LAPTOP = "laptop-2"
PROMISED_S = 30.0
ADDRESS_OF_README = "192.168.1.10"


def section() -> str:
    """README's text about laptops."""
    return (ROOT / "README.md").read_text().partition("\n## Add a laptop\n")[2].partition("\n## ")[0]


def commands() -> list[str]:
    """Its command lines in their order, without their comments."""
    lines = [line.strip() for line in section().splitlines() if line.startswith("    ")]
    return [re.split(r"\s{2,}#", line)[0].strip() for line in lines]


class Desktop:
    """A shell on the desktop: in its network and under its name, with the programs of this tree.

    Args:
        folder: its home.
    """

    def __init__(self, lab: Lab, folder: Path, kubectl: Path) -> None:
        self._lab, self.home = lab, folder
        programs = folder / "bin"
        programs.mkdir(parents=True)
        (programs / "kubectl").symlink_to(kubectl)
        (programs / "swarmtask").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m swarmtask "$@"\n')
        (programs / "swarmtask").chmod(0o755)
        self.env = {
            "PATH": f"{programs}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(folder),
            "LANG": "C.UTF-8", "TERM": "dumb", "PYTHONPATH": str(ROOT / "operator"), "PYTHONUNBUFFERED": "1",
            "DOCKER_HOST": lab.docker_host(lab.manager),
            "SWARMTASK_AGENTS__IMAGES_PORT": "0",  # what docs/joining.md says for kernels without IPVS
        }  # fmt: skip

    def within(self, command: str) -> list[str]:
        pid = self._lab.node(self._lab.manager).pid
        return ["nsenter", f"--target={pid}", "--net", "--uts", "--", "sh", "-c", command]

    def start(self, command: str, log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            return subprocess.Popen(
                self.within(f"exec {command}"), env=self.env, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip

    def run(self, command: str, timeout_s: float = 120) -> str:
        """What it says on stdout. Raises AssertionError: it did not end with 0."""
        done = subprocess.run(self.within(command), env=self.env, capture_output=True, text=True, timeout=timeout_s, check=False)
        assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def json(self, command: str) -> Any:
        return json.loads(self.run(f"{command} -o json"))

    def node(self, name: str) -> dict[str, Any]:
        """The SwarmNode; empty while there is none."""
        nodes = {item["metadata"]["name"]: item for item in self.json("kubectl get swarmnodes")["items"]}
        return nodes.get(name, {})

    def phase(self, name: str) -> str:
        return str(self.node(name).get("status", {}).get("phase", ""))


@pytest.fixture
def lab_of_strangers(outer_docker: OuterDocker) -> Iterator[Lab]:
    """Two machines that are in no swarm; the desktop has the worker image, the laptop got it by hand."""
    with Lab(NODES, docker_url=outer_docker.url) as lab:
        with or_skip():
            image = worker.archive(lab.manager_client())
        lab.load_image(TASK_TAG)
        for name in lab.nodes:
            with image.open("rb") as file:
                lab.client(name).images.load(file)
        for name in reversed(lab.nodes):
            lab.client(name).swarm.leave(force=True)
        yield lab


@pytest.fixture
def desktop(lab_of_strangers: Lab, tmp_path: Path) -> Desktop:
    with or_skip():
        return Desktop(lab_of_strangers, tmp_path / "home", any_kubectl())


def test_readme_has_the_commands_that_are_followed_here() -> None:
    assert commands() == [
        "make image",
        f"swarmtask up --advertise-addr {ADDRESS_OF_README}",
        "swarmtask join",
        "swarmtask get nodes",
        "swarmtask cordon laptop-2",
        "swarmtask drain laptop-2 --wait",
        "swarmtask uncordon laptop-2",
        """kubectl patch swarmnode laptop-2 --type merge -p '{"spec":{"quietHours":"22:00-07:00"}}'""",
        """kubectl patch swarmnode laptop-2 --type merge -p '{"spec":{"maxTasks":2}}'""",
    ]


@pytest.mark.timeout(900)
def test_whoever_follows_the_guide_gets_a_cluster(desktop: Desktop, lab_of_strangers: Lab, tmp_path: Path) -> None:
    lab, steps = lab_of_strangers, iter(commands())
    assert next(steps) == "make image"  # the fixture has built it, from the same Dockerfile
    log = tmp_path / "up.log"
    up = desktop.start(next(steps).replace(ADDRESS_OF_README, lab.node("desktop").address), log)
    try:
        wait_until("up", lambda: "SwarmTask is up." in log.read_text() or up.poll() is not None, 90, log.read_text)
        said = log.read_text()
        assert up.poll() is None, said
        assert f"laptops reach it at {lab.node('desktop').address}" in said
        assert "No node agents" not in said
        (export,) = (line.split("   ")[0].strip() for line in said.splitlines() if "export KUBECONFIG=" in line)
        desktop.env["KUBECONFIG"] = shlex.split(export)[1].partition("=")[2]
        _join_and_leave(desktop, lab, next(steps), next(steps))
        for command in steps:
            desktop.run(command)
            _has_its_effect(desktop, command)
    except BaseException:
        print(log.read_text()[-4000:])
        raise
    finally:
        up.terminate()
        assert up.wait(60) == 0, log.read_text()


def _join_and_leave(desktop: Desktop, lab: Lab, join: str, get_nodes: str) -> None:
    """What `swarmtask join` prints is run on the laptop as it is; then that is there, has its agent, and gets work."""
    (line,) = desktop.run(join).splitlines()
    assert re.fullmatch(r"docker swarm join --token SWMTKN-\S+ [\d.]+:2377", line)
    began = time.monotonic()
    lab.node(LAPTOP).run(["sh", "-c", line])
    wait_until("the laptop to be Ready", lambda: desktop.phase(LAPTOP) == "Ready", PROMISED_S)
    _note("from `docker swarm join` to Ready, s", time.monotonic() - began)
    listed = desktop.run(get_nodes)
    assert all(re.search(rf"^{name}\s.*Ready", listed, re.MULTILINE) for name in lab.nodes), listed
    spoke = lambda: all(desktop.node(name)["status"].get("agentVersion") for name in lab.nodes)  # noqa: E731
    wait_until("the agent of each to speak", spoke, 120)
    _note("until both agents speak, s", time.monotonic() - began)
    desktop.run(f"swarmtask run {TASK_TAG} --name first --node {LAPTOP} --wait -- echo it works")
    assert desktop.run("swarmtask logs first") == "it works\n"

    # "`docker swarm leave` takes the laptop out again; when it comes back it keeps its settings."
    desktop.run(f"""kubectl patch swarmnode {LAPTOP} --type merge -p '{{"spec":{{"maxTasks":3}}}}'""")
    lab.node(LAPTOP).run(["docker", "swarm", "leave"])
    wait_until("the laptop to be Gone", lambda: desktop.phase(LAPTOP) == "Gone", 60, lambda: _what_is_left(desktop, lab))
    lab.node(LAPTOP).run(["sh", "-c", line])
    wait_until("the laptop to be Ready again", lambda: desktop.phase(LAPTOP) == "Ready", PROMISED_S)
    assert desktop.node(LAPTOP)["spec"]["maxTasks"] == 3


def _what_is_left(desktop: Desktop, lab: Lab) -> str:
    """Why a laptop that has left is not Gone: how Swarm lists it, whether it still listens for others, what runs there."""
    listed = [(node.attrs["ID"], node.attrs["Status"]) for node in lab.manager_client().nodes.list()]
    knock = subprocess.run(
        desktop.within(f"exec python3 -c 'import socket; socket.create_connection((\"{lab.node(LAPTOP).address}\", 7946), 2)'"),
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    return "\n".join(
        (f"Swarm lists {listed}", f"port 7946: {knock.stderr[-200:] or 'open'}", f"runs there: {lab.containers(LAPTOP)}",
         f"its Docker: {lab.node(LAPTOP).log(40)}", f"the SwarmNode: {desktop.node(LAPTOP)}")
    )  # fmt: skip


def _has_its_effect(desktop: Desktop, command: str) -> None:
    """Of the commands about the laptop: what the comment beside each promises."""
    spec, status = (desktop.node(LAPTOP)[part] for part in ("spec", "status"))
    match command.split()[1]:
        case "cordon":
            assert spec["unschedulable"]
        case "drain":
            assert spec["drain"]
            assert any(one["type"] == "Drained" and one["status"] == "True" for one in status["conditions"]), status
        case "uncordon":
            assert not spec["unschedulable"]
            assert not spec["drain"]
        case _:
            ((field, value),) = json.loads(shlex.split(command)[-1])["spec"].items()
            assert spec[field] == value


def _note(what: str, value: float) -> None:
    print(f"measured: {what}: {value:.1f}", flush=True)
