"""The worker image as `worker-image/Dockerfile` makes it, on what Debian ships: no image registry is asked.

Called by the tests that run the node agent as nodes run it. The wheels of requirements.lock come from pip's own index once and are
kept; the base is `images.WORKER_BASE_TAG`; the build itself is Docker's, in the dockerd that is given, without a network.
"""

import contextlib
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import docker
import docker.errors

from tests.lab import images, tools

TAG = "swarmtask/worker:latest"
_BUILD_S = 900
_SOURCES = ("operator/swarmtask", "worker-image", "pyproject.toml", "requirements.lock", "README.md", "LICENSE", ".dockerignore")


def build(client: docker.DockerClient) -> str:
    """Build the image in this dockerd, with `docker build`; its ID.

    Raises:
        Missing: the wheels, or the base image, cannot be had here.
        docker.errors.BuildError: the Dockerfile is wrong.
    """
    images.load(client, images.image_tar(images.WORKER_BASE_TAG))
    with _context() as folder, _patient(client):
        image, _ = client.images.build(
            path=str(folder), dockerfile="worker-image/Dockerfile", tag=TAG, network_mode="none", rm=True, forcerm=True,
            buildargs={"BASE": images.WORKER_BASE_TAG, "VERSION": "0.0.0+test"},
        )  # fmt: skip
    return str(image.id)


def archive(client: docker.DockerClient) -> Path:
    """The image as a `docker load` archive, kept for its sources; built by this dockerd where there is none yet. Raises Missing."""
    path = tools.CACHE / "lab" / "images" / f"worker-{_fingerprint()}.tar"
    if not path.exists():
        build(client)
        for older in path.parent.glob("worker-*.tar"):
            older.unlink()
        draft = path.with_suffix(".draft")
        with draft.open("wb") as file:
            for chunk in client.images.get(TAG).save(named=TAG):
                file.write(chunk)
        draft.rename(path)
    return path


@contextlib.contextmanager
def _patient(client: docker.DockerClient) -> Iterator[None]:
    """pip says nothing while it installs."""
    before, client.api.timeout = client.api.timeout, _BUILD_S
    try:
        yield
    finally:
        client.api.timeout = before


def _files() -> Iterator[Path]:
    for name in _SOURCES:
        path = tools.ROOT / name
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (file for file in found if file.is_file() and "__pycache__" not in file.parts and "wheels" not in file.parts)


def _fingerprint() -> str:
    digest = hashlib.sha256(Path(images.__file__).read_bytes())
    for file in _files():
        digest.update(f"{file.relative_to(tools.ROOT)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _context() -> Iterator[Path]:
    """The sources as Docker is given them, with the wheels where `make image-wheels` puts them."""
    with tempfile.TemporaryDirectory(prefix="swarmtask-context-") as name:
        folder = Path(name)
        for file in _files():
            target = folder / file.relative_to(tools.ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, target)
        wheels = folder / "worker-image" / "wheels"
        shutil.copytree(_wheels(), wheels)
        own = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(folder)]
        tools.run(own, tool="worker image")
        yield folder


def _wheels() -> Path:
    """What requirements.lock names, for this machine's Python, which must be that of Debian's image."""
    lock = tools.ROOT / "requirements.lock"
    kept = tools.CACHE / "lab" / f"wheels-{hashlib.sha256(lock.read_bytes()).hexdigest()[:16]}"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".wheels-", dir=kept.parent))
        try:
            options = ["--no-deps", "--only-binary", ":all:", "--require-hashes"]
            tools.run(
                [sys.executable, "-m", "pip", "download", "-q", *options, "-r", str(lock), "-d", str(draft)], tool="worker image"
            )
            draft.rename(kept)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return kept
