"""The Docker that the laboratory runs on: which one is taken, why one is refused, and that our own leaves nothing behind."""

import contextlib
import os
import shutil
from pathlib import Path

import pytest

from tests.lab import images, outer, setup, tools
from tests.lab.cluster import Lab
from tests.lab.node import BRIDGE, GIB, NodeSize, poll

pytestmark = pytest.mark.e2e  # our own dockerd opens and closes the firewall for all laboratories of this machine


@pytest.mark.parametrize(
    ("url", "info", "words"),
    [
        ("unix:///x", {"OSType": "linux"}, ""),
        ("ssh://desk", {"OSType": "linux"}, "another machine"),
        ("unix:///x", {"OSType": "windows"}, "not a native Linux"),
        ("unix:///x", {"OSType": "linux", "OperatingSystem": "Docker Desktop"}, "not a native Linux"),
        ("unix:///x", {"OSType": "linux", "SecurityOptions": ["name=seccomp", "name=rootless"]}, "rootless"),
    ],
)
def test_a_docker_that_cannot_carry_nodes_is_told_apart(url, info, words):
    assert words in outer._unfit(url, info)
    assert bool(outer._unfit(url, info)) == bool(words)


def test_without_root_and_docker_it_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    with pytest.raises(
        tools.Missing, match=r"\[missing: docker\] no Docker answers .*Start Docker, or run the tests as root"
    ) as caught:
        outer.connect()
    assert caught.value.tool == "docker"


def test_without_root_setup_names_what_to_install(monkeypatch):
    monkeypatch.setattr(setup, "_needed", lambda: {"debootstrap": "debootstrap", "dockerd": "docker.io"})
    monkeypatch.setattr(shutil, "which", lambda *_, **__: "/usr/bin/apt-get")
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    with pytest.raises(tools.Missing, match=r"Run `apt-get install debootstrap docker\.io` as root"):
        setup.install_packages()


def test_setup_goes_on_after_a_step_that_cannot_be_done(monkeypatch, capsys):
    def lacking(*_: object) -> None:
        raise tools.Missing("moon", "it is not up", "Wait.")

    done = []
    monkeypatch.setattr(setup, "install_packages", lacking)
    monkeypatch.setattr(setup, "_fetched", lambda: True)
    monkeypatch.setattr(tools, "fetch_kubectl_debian", lambda: done.append("debian"))
    monkeypatch.setattr(tools, "fetch_kubectl_current", lambda: done.append("current"))
    monkeypatch.setattr(images, "image_tar", done.append)
    monkeypatch.setattr(setup, "_laboratory_image", lambda: done.append("node"))
    assert setup.main() == 0
    assert done == ["debian", "current", images.TASK_TAG, images.PYTHON_TAG, "node"]
    assert "packages: [missing: moon] it is not up. Wait." in capsys.readouterr().err


@pytest.fixture
def own_docker(monkeypatch, tmp_path):
    """Our own dockerd, on folders of this test alone."""
    if os.getuid() != 0 or shutil.which("dockerd") is None:
        pytest.skip(str(tools.Missing("dockerd", "only root can start one", "Run the tests as root with docker.io installed.")))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    monkeypatch.setattr(outer, "_DATA", tmp_path / "lab" / "docker")
    monkeypatch.setattr(outer, "_RUN", Path(f"/tmp/stdocker-test-{os.getpid()}"))
    monkeypatch.setattr(tools, "machine_lock", lambda _: contextlib.nullcontext())
    yield outer
    outer.stop_own()
    shutil.rmtree(outer._RUN, ignore_errors=True)


def traces() -> list[str]:
    """What of our own dockerd can still be found."""
    names = (str(outer._RUN), str(outer._DATA))
    found = [f"process {process.pid}" for process in outer._processes()]
    found += [f"mount {point}" for point in outer._mounted() if point.startswith(names)]
    found += [str(path) for path in (outer._RUN / "docker.sock", outer._RUN / "pid", outer._RUN / "exec") if path.exists()]
    rules = tools.run(["iptables", "-w", "-S", "FORWARD"]).splitlines()
    return found + [rule for rule in rules if f"{BRIDGE}+" in rule]


@pytest.mark.docker
@pytest.mark.slow
def test_our_own_dockerd_runs_containers_and_leaves_nothing(own_docker):
    with contextlib.closing(own_docker.connect()) as found:
        assert found.ours
        with contextlib.closing(found.client()) as client:
            images.task_image(client)
            assert images.run_once(client, images.TASK_TAG, ["echo", "here"]) == "here\n"
            client.containers.run(images.TASK_TAG, ["sleep", "600"], detach=True)
        assert traces()
    assert traces() == []


@pytest.mark.docker
@pytest.mark.slow
def test_our_own_dockerd_ends_with_its_last_user_and_survives_none(own_docker):
    first = own_docker.connect()
    second = own_docker.connect()
    assert first.url == second.url
    first.close()
    assert own_docker._answers(second.url)
    second.close()
    second.close()
    assert traces() == []


@pytest.mark.docker
@pytest.mark.slow
def test_our_own_dockerd_leaves_the_bridges_of_another_alone(own_docker, outer_docker):
    with contextlib.closing(outer_docker.client()) as machine:
        before = {network.name for network in machine.networks.list()}
    bridges = {path.name for path in Path("/sys/class/net").iterdir() if (path / "bridge").is_dir()}
    own_docker.connect().close()
    assert {path.name for path in Path("/sys/class/net").iterdir() if (path / "bridge").is_dir()} == bridges
    with contextlib.closing(outer_docker.client()) as machine:
        assert {network.name for network in machine.networks.list()} == before


@pytest.mark.docker
@pytest.mark.slow
def test_what_a_power_cut_of_our_own_dockerd_leaves_is_cleaned_by_the_next_start(own_docker):
    first = own_docker.connect()
    with contextlib.closing(first.client()) as client:
        images.task_image(client)
        client.containers.run(images.TASK_TAG, ["sleep", "600"], detach=True)
    for process in own_docker._processes():
        if process.name() == "dockerd":
            process.kill()
    poll("dockerd to be gone", 20, lambda: not own_docker._answers(first.url))
    second = own_docker.connect()
    assert own_docker._answers(second.url)
    first.close()
    second.close()
    assert traces() == []


@pytest.mark.lab
@pytest.mark.docker
@pytest.mark.slow
def test_a_laboratory_runs_on_our_own_dockerd(own_docker, outer_docker):
    with contextlib.closing(outer_docker.client()) as machine:
        image = images.node_image(machine)
        archive = images.image_tar(image, machine)
    with contextlib.closing(own_docker.connect()) as found:
        with contextlib.closing(found.client(120)) as client:
            images.load(client, archive)
        with Lab([NodeSize("one", 1, GIB), NodeSize("two", 1, 2 * GIB)], docker_url=found.url) as lab:
            lab.load_image(images.TASK_TAG)
            assert images.run_once(lab.client("two"), images.TASK_TAG, ["echo", "here"]) == "here\n"
    assert traces() == []
