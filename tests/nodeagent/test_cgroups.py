"""Where a container's cgroup is and what its files say, for both versions, from recorded trees."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from swarmtask.nodeagent.cgroups import Cgroup, Cgroups, Usage
from tests.nodeagent.fakes import CgroupTree, container_id

NAME = container_id(0xABC)


@pytest.fixture(params=[1, 2])
def tree(tmp_path: Path, request: pytest.FixtureRequest) -> CgroupTree:
    return CgroupTree(tmp_path, request.param)


def test_figures_of_both_versions_mean_the_same(tree: CgroupTree) -> None:
    tree.begin(NAME, 77)
    tree.use(NAME, memory=5000, peak=9000, cpu_s=1.5, kills=2, hits=7)
    found = Cgroups(tree.root, tree.proc).find(77, NAME)
    assert found is not None
    assert found.version == tree.version
    assert found.read() == Usage(2, 7, 5000, 9000, 1.5, own_ooms=2 if tree.version == 2 else None)
    tree.end(NAME)
    assert found.read() is None


@pytest.mark.parametrize("parent", ["docker/outer", "system.slice"])
def test_nested_and_systemd_s_names_are_found_without_the_process(tree: CgroupTree, parent: str) -> None:
    tree.begin(NAME, 77, parent)
    for line in ("0::/../../docker/x\n", "garbage\n", "0::/user.slice/other\n4:memory:/user.slice/other\n"):
        (tree.proc / "77" / "cgroup").write_text(line)
        found = Cgroups(tree.root, tree.proc).find(77, NAME)
        assert found is not None
        assert found.memory.name == NAME
    assert Cgroups(tree.root, tree.proc).find(0, NAME) is not None


def test_others_are_found_beside_the_last_and_wherever_else_they_are(tree: CgroupTree) -> None:
    cgroups = Cgroups(tree.root, tree.proc)
    names = [container_id(number) for number in range(0xB1, 0xB5)]
    for name, parent in zip(names, ("docker", "docker", "other", "docker"), strict=True):
        tree.begin(name, 77, parent)
        found = cgroups.find(0, name)
        assert found is not None
        assert found.memory.parent.name == parent
        assert found.memory.name == name
    tree.end(names[-1])
    assert cgroups.find(0, names[-1]) is None


def test_a_number_that_now_is_another_process_s_leads_nowhere(tree: CgroupTree) -> None:
    """Else the fence's last resort could kill the wrong one."""
    tree.begin(container_id(1), 77)
    assert Cgroups(tree.root, tree.proc).find(77, NAME) is None


def test_without_the_host_s_files_nothing_is_found(tmp_path: Path) -> None:
    assert Cgroups(tmp_path / "none", tmp_path / "none").find(77, NAME) is None
    assert Cgroups(tmp_path, tmp_path).find(77, "../etc") is None


def test_kernels_that_count_less(tmp_path: Path) -> None:
    """No memory.peak before 5.19, no oom_kill before 4.13."""
    new, old = CgroupTree(tmp_path / "2", 2), CgroupTree(tmp_path / "1", 1)
    for tree in (new, old):
        tree.begin(NAME, 77)
        tree.use(NAME, memory=5000)
    (new.root / "docker" / NAME / "memory.peak").unlink()
    (old.root / "memory" / "docker" / NAME / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\n")
    (old.root / "cpu,cpuacct" / "docker" / NAME / "cpuacct.usage").write_text("nonsense\n")
    first, second = (Cgroups(tree.root, tree.proc).find(77, NAME) for tree in (new, old))
    assert first is not None
    assert second is not None
    assert first.read() == Usage(0, 0, 5000, 5000, 0.5, own_ooms=0)
    assert second.read() == Usage(None, 0, 5000, 2**20, None)


def test_the_last_resort_kills_the_processes(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        (tmp_path / "cgroup.procs").write_text(f"0\n1\n{os.getpid()}\n")
        (tmp_path / "made-by-itself").mkdir()
        (tmp_path / "made-by-itself" / "cgroup.procs").write_text(f"{process.pid}\n")
        assert not Cgroup(tmp_path, None, 1).kill(), "they were there a moment ago: look again"
        assert process.wait(20) == -9
    finally:
        process.kill()
        process.wait(20)
    (tmp_path / "cgroup.procs").write_text("")
    (tmp_path / "made-by-itself" / "cgroup.procs").write_text("")
    assert Cgroup(tmp_path, None, 1).kill()
    assert Cgroup(tmp_path / "gone", None, 1).kill()


def test_the_last_resort_of_version_2_is_one_write(tmp_path: Path) -> None:
    (tmp_path / "cgroup.kill").write_text("")
    Cgroup(tmp_path, None, 2).kill()
    assert (tmp_path / "cgroup.kill").read_text() == "1"


@pytest.mark.skipif(not Path("/proc/self/cgroup").exists(), reason="[missing: linux] no cgroups here")
def test_this_machine_s_own_files_can_be_read() -> None:
    """Whatever the kernel here has, nothing raises."""
    assert Cgroups().find(os.getpid(), NAME) is None
