"""The worker image as `worker-image/Dockerfile` makes it, on what Debian ships: no image registry is asked.

Called by the tests that run the node agent as nodes run it. The wheels of requirements.lock come from pip's own index once and are
kept; the base is `images.WORKER_BASE_TAG`; the build itself is Docker's, in the dockerd that is given, without a network.
"""

import contextlib
import hashlib
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import docker
import docker.errors

from tests.lab import images, tools

TAG = "swarmtask/worker:latest"
ARM64_TAG = "swarmtask-test/worker-arm64:1"
_BUILD_S = 900
_SOURCES = ("operator/swarmtask", "worker-image", "pyproject.toml", "requirements.lock", "README.md", "LICENSE", ".dockerignore")


@dataclass(frozen=True)
class Kind:
    """A kind of machine to build for.

    Attributes:
        wheels: pip's options that choose what fits it.
        platform: as Docker says it; empty: this machine's.
    """

    base: str
    wheels: tuple[str, ...] = ()
    platform: str = ""


HERE = Kind(images.WORKER_BASE_TAG)
_GLIBC = ("manylinux2014", "manylinux_2_26", "manylinux_2_27", "manylinux_2_28")
"""Which of the C library's versions wheels may be made for: older ones than Debian 12's. pip takes each by its name alone."""
ARM64 = Kind(
    images.WORKER_BASE_ARM64_TAG,
    ("--python-version", "3.11", *(word for glibc in _GLIBC for word in ("--platform", f"{glibc}_aarch64"))),
    "linux/arm64",
)


def build(client: docker.DockerClient) -> str:
    """Build the image in this dockerd, with `docker build`; its ID.

    Raises:
        Missing: the wheels, or the base image, cannot be had here.
        docker.errors.BuildError: the Dockerfile is wrong.
    """
    return _built(client, HERE, TAG)[0]


@contextlib.contextmanager
def built(client: docker.DockerClient, kind: Kind, tag: str) -> Iterator[str]:
    """The image for another kind of machine, which must be emulated meanwhile; its ID. At the end this dockerd has nothing of it.

    Raises: as `build`.
    """
    steps: list[str] = []
    try:
        made, steps = _built(client, kind, tag)
        yield made
    finally:
        _remove(client, [tag, *reversed(steps), kind.base])


def _remove(client: docker.DockerClient, names: list[str]) -> None:
    """Remove images; one that others are built on goes after them, whatever their order here.

    Raises:
        docker.errors.APIError: somebody else uses one.
    """
    while names:
        left, refused = [], None
        for name in names:
            try:
                client.images.remove(name, force=True)
            except docker.errors.ImageNotFound:
                continue
            except docker.errors.APIError as error:
                if error.status_code != HTTPStatus.CONFLICT:
                    raise
                left, refused = [*left, name], error
        if refused is not None and len(left) == len(names):
            raise refused
        names = left


def _built(client: docker.DockerClient, kind: Kind, tag: str) -> tuple[str, list[str]]:
    """(ID of the image, IDs of what its steps left), in this order."""
    images.load(client, images.image_tar(kind.base))
    with _context(kind) as folder, _patient(client):
        image, said = client.images.build(
            path=str(folder), dockerfile="worker-image/Dockerfile", tag=tag, network_mode="none", rm=True, forcerm=True,
            platform=kind.platform or None, buildargs={"BASE": kind.base, "VERSION": "0.0.0+test", "REVISION": "test"},
        )  # fmt: skip
    return str(image.id), re.findall(r"^ ---> ([0-9a-f]{12})$", "".join(line.get("stream", "") for line in said), re.MULTILINE)


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
def _context(kind: Kind) -> Iterator[Path]:
    """The sources as Docker is given them, with the wheels where `make image-wheels` puts them."""
    with tempfile.TemporaryDirectory(prefix="swarmtask-context-") as name:
        folder = Path(name)
        for file in _files():
            target = folder / file.relative_to(tools.ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, target)
        wheels = folder / "worker-image" / "wheels"
        shutil.copytree(_wheels(kind), wheels)
        own = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(folder)]
        tools.run(own, tool="worker image")
        yield folder


def _wheels(kind: Kind) -> Path:
    """What requirements.lock names, for this machine's Python, which must be that of Debian's image, or for the other kind's."""
    lock = tools.ROOT / "requirements.lock"
    digest = hashlib.sha256(lock.read_bytes() + " ".join(kind.wheels).encode()).hexdigest()
    kept = tools.CACHE / "lab" / f"wheels-{digest[:16]}"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".wheels-", dir=kept.parent))
        try:
            options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", *kind.wheels]
            tools.run(
                [sys.executable, "-m", "pip", "download", "-q", *options, "-r", str(lock), "-d", str(draft)], tool="worker image"
            )
            draft.rename(kept)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return kept
