"""The demo's scripts on real sources, and the tar from which its image is made."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from swarmtask.cli.demo import image
from swarmtask.cli.demo.workload import SCRIPTS, TASKS, Place, find_sources, manifests
from swarmtask.resources.task import SwarmTask


def run_script(name: str, source: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", str(SCRIPTS / name), str(source)], capture_output=True, text=True, timeout=60, env=env, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_script_analyses_these_sources(task) -> None:
    result = run_script(task.script, find_sources(), SIGNING_KEY="k")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    assert result.stderr == ""


def test_scripts_count_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "a.py").write_text("# comment\n\nimport pkg.b\n\ndef long():\n    x = 1\n    return x\n")
    (tmp_path / "pkg" / "b.py").write_text("def short(): pass\n# TO" + "DO later\n")
    assert "     5 lines in   2 files altogether, 2 comment lines" in run_script("count_lines.py", tmp_path).stdout
    assert "   3 lines  pkg/a.py:5 long" in run_script("longest_functions.py", tmp_path).stdout
    assert "2 modules, 1 imports, 2 layers deep, no cycle" in run_script("import_graph.py", tmp_path).stdout
    assert "1 open notes" in run_script("find_duplicates.py", tmp_path).stdout
    assert "later 1" in run_script("word_frequencies.py", tmp_path).stdout


def test_a_cycle_of_imports_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("import b\n")
    (tmp_path / "b.py").write_text("import a\n")
    assert "a cycle: " in run_script("import_graph.py", tmp_path).stdout


def test_the_signing_script_fails_without_its_key_and_is_reproducible(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    failed = run_script("sign_sources.py", tmp_path)
    assert failed.returncode == 1
    assert "Secret does not exist" in failed.stderr
    first, second = (run_script("sign_sources.py", tmp_path, SIGNING_KEY="k").stdout for _ in range(2))
    assert first == second
    assert run_script("sign_sources.py", tmp_path, SIGNING_KEY="other").stdout != first


def test_the_manifests_are_valid_tasks() -> None:
    place = Place("swarm", "sha256:" + "a" * 64, "/usr/bin/python3", "/demo/scripts", "/demo/sources", "desk")
    tasks = [SwarmTask.model_validate(manifest) for manifest in manifests(place)]
    assert len({task.metadata.name for task in tasks}) == len(TASKS)
    assert len({task.spec.effective_priority for task in tasks}) == 3
    assert sum(task.spec.container.env != [] for task in tasks) == 1
    assert all(task.spec.placement.node_name == "desk" for task in tasks)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the image is made of Linux libraries")
@pytest.mark.slow
def test_the_image_holds_an_interpreter_that_finds_its_library() -> None:
    buffer = io.BytesIO()
    image._write_tar(buffer, find_sources())
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as tar:
        members = {f"/{member.name}": member for member in tar.getmembers()}
    python = image.python_in_image()
    assert members[python].isfile() and members[python].mode & 0o111
    assert any(name.endswith("/encodings/utf_8.py") for name in members)
    assert any("ld-linux" in name or "ld-musl" in name for name in members)
    assert f"{image.SOURCES_IN_IMAGE}/errors.py" in members
    assert f"{image.SCRIPTS_IN_IMAGE}/count_lines.py" in members
    assert not any("site-packages" in name or "/test/" in name for name in members)
    assert all(member.uid == 0 and member.mode & 0o444 == 0o444 for member in members.values() if member.isfile())
