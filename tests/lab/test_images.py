"""The images that tests run are the same bytes wherever and whenever they are made, and load into a dockerd."""

import json
import re
import tarfile
import threading
from pathlib import Path
from types import SimpleNamespace

import docker.errors
import pytest
import requests

from tests.lab import images, tools, worker


@pytest.fixture(scope="module")
def task_archive() -> Path:
    with tools.or_skip():
        return images.image_tar(images.TASK_TAG)


def test_the_same_recipe_gives_the_same_bytes(task_archive):
    assert images.build_task_archive() == task_archive.read_bytes() == images.build_task_archive()


def test_an_archive_names_its_tag_and_holds_a_shell(task_archive, tmp_path):
    with tarfile.open(task_archive) as outer:
        (manifest,) = json.load(outer.extractfile("manifest.json"))
        assert manifest["RepoTags"] == ["swarmtask-test/busybox:1"]
        (layer_name,) = manifest["Layers"]
        outer.extract(layer_name, tmp_path, filter="data")
    with tarfile.open(tmp_path / layer_name) as layer:
        assert layer.getmember("bin/sh").linkname == "busybox"
        assert layer.getmember("bin/busybox").mode == 0o755
        assert {entry.mtime for entry in layer} == {0}


def test_an_image_of_others_needs_a_dockerd_to_save_it_from():
    with pytest.raises(ValueError, match="example/other:1 is not made here"):
        images.image_tar("example/other:1")


def test_a_changed_recipe_is_another_node_image(monkeypatch):
    before = images.node_tag()
    monkeypatch.setattr(images, "_NODE_PACKAGES", ("docker.io",))
    assert images.node_tag() != before


def test_kubectl_comes_out_of_the_cache_without_fetching(monkeypatch):
    monkeypatch.setattr(tools, "run", lambda *_, **__: pytest.fail("looked for kubectl by running a program"))
    for name, path in tools.kubectl_binaries().items():
        assert name in {"debian", "current"}
        assert path.exists()


def test_a_fetch_cut_short_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), tools._made_whole(tmp_path / "tool") as draft:
        (draft / "half").write_text("x")
        raise RuntimeError("power cut")
    assert list(tmp_path.iterdir()) == []


def test_a_machine_lock_is_held_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(tools.tempfile, "gettempdir", lambda: str(tmp_path))
    entered = threading.Event()

    def second() -> None:
        with tools.machine_lock("x"):
            entered.set()

    with tools.machine_lock("x"):
        rival = threading.Thread(target=second)
        rival.start()
        assert not entered.wait(0.2)
    assert entered.wait(10)
    rival.join(10)


def test_a_failing_program_is_missing_with_its_last_words():
    with pytest.raises(tools.Missing, match="ended with 3: no such thing"):
        tools.run(["sh", "-c", "echo no such thing >&2; exit 3"])
    with pytest.raises(tools.Missing, match="is not installed"):
        tools.run(["swarmtask-no-such-program"])


def test_the_worker_image_names_no_architecture():
    """Whatever Docker builds it for: nothing in it, and nothing that it depends on, is for one kind of machine."""
    home = tools.ROOT / "worker-image"
    for path in (home / "Dockerfile", *sorted(home.glob("*.*"))):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        assert not re.search(r"amd64|arm64|x86_64|aarch64|uname -m|--platform", "\n".join(lines)), path
    assert "platform_machine" not in (tools.ROOT / "requirements.lock").read_text()


class Images:
    """A dockerd's images as they are built on each other."""

    def __init__(self, parents: dict[str, str]) -> None:
        self.parents = parents
        self.removed: list[str] = []

    def remove(self, name: str, *, force: bool) -> None:
        assert force
        if name not in self.parents:
            raise docker.errors.ImageNotFound(name)
        if name in self.parents.values():
            response = requests.Response()
            response.status_code = 409
            raise docker.errors.APIError("image has dependent child images", response=response)
        del self.parents[name]
        self.removed.append(name)


def test_images_are_removed_before_what_they_are_built_on():
    kept = Images({"base": "", "step": "base", "tag": "step"})
    worker._remove(SimpleNamespace(images=kept), ["base", "gone", "step", "tag"])
    assert kept.removed == ["tag", "step", "base"]


def test_an_image_that_somebody_else_builds_on_is_an_error():
    with pytest.raises(docker.errors.APIError, match="409"):
        worker._remove(SimpleNamespace(images=Images({"base": "", "theirs": "base"})), ["base"])
