"""Images that the laboratory and the engine tests run, made on this machine: no image registry is ever asked.

`task_image()` is what tests run as tasks: a static busybox. Its archive is built byte for byte here, so it has one image ID on
every node and loads into any dockerd. `python_image()` adds Debian's own Python for work that needs more than a shell.
`node_image()` is a "laptop": Debian with dockerd, made by debootstrap (root; about a minute once, then cached by Docker).
Called by `cluster.py`, `setup.py`, fixtures and the demo's tests; never pulls, never pushes.
"""

import hashlib
import io
import json
import os
import platform
import re
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import docker
import docker.errors

from tests.lab import tools

TASK_TAG = "swarmtask-test/busybox:1"
PYTHON_TAG = "swarmtask-test/python:1"
WORKER_BASE_TAG = "swarmtask-test/worker-base:1"
WORKER_BASE_ARM64_TAG = "swarmtask-test/worker-base-arm64:1"
_NODE_REPOSITORY = "swarmtask-lab/node"
_SUITE = "bookworm"
_NODE_PACKAGES = ("docker.io", "iptables", "iproute2", "procps", "ca-certificates")
_NODE_RECIPE = 1  # raise it when the way the image is made changes
LABEL = "io.swarmtask.lab"  # on everything that the laboratory makes in Docker
_EPOCH = "1970-01-01T00:00:00Z"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class _Layer:
    """A layer as a tar in memory in which nothing depends on time, user or the order in which a disk lists its files."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.TarFile(fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT)

    def _add(self, name: str, kind: bytes, mode: int, *, link: str = "", content: bytes | None = None) -> None:
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode, entry.linkname = kind, mode, link
        if content is None:
            self._tar.addfile(entry)
        else:
            entry.size = len(content)
            self._tar.addfile(entry, io.BytesIO(content))

    def folder(self, name: str, mode: int = 0o755) -> None:
        self._add(name, tarfile.DIRTYPE, mode)

    def link(self, name: str, target: str) -> None:
        self._add(name, tarfile.SYMTYPE, 0o777, link=target)

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        self._add(name, tarfile.REGTYPE, mode, content=content)

    def tree(self, root: Path) -> None:
        """Everything below `root`, sorted by name."""
        for path in sorted(root.rglob("*"), key=str):
            name = str(path.relative_to(root))
            if path.is_symlink():
                self.link(name, str(path.readlink()))
            elif path.is_dir():
                self.folder(name)
            elif path.is_file():
                self.file(name, path.read_bytes(), stat.S_IMODE(path.stat().st_mode))

    def done(self) -> bytes:
        self._tar.close()
        return self._buffer.getvalue()


def _archive(tag: str, layer: bytes, config: dict[str, Any], architecture: str = "") -> bytes:
    """A `docker load` archive of one layer. The image ID is the hash of its configuration, hence the same wherever it is loaded."""
    document = {
        "architecture": architecture or _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "created": _EPOCH,
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        "history": [{"created": _EPOCH, "created_by": "swarmtask tests"}],
    }
    encoded = json.dumps(document, sort_keys=True).encode()
    config_name = f"{hashlib.sha256(encoded).hexdigest()}.json"
    layer_name = f"{hashlib.sha256(layer).hexdigest()}/layer.tar"
    manifest = [{"Config": config_name, "RepoTags": [tag], "Layers": [layer_name]}]
    outer = _Layer()
    outer.file(config_name, encoded)
    outer.folder(layer_name.partition("/")[0])
    outer.file(layer_name, layer)
    outer.file("manifest.json", json.dumps(manifest).encode())
    return outer.done()


def other_kind() -> str:
    """A kind of machine that this one is not, in Go's name."""
    return "amd64" if _ARCHITECTURES.get(platform.machine()) == "arm64" else "arm64"


def stranger_archive(tag: str) -> bytes:
    """A `docker load` archive for machines of `other_kind`: to be carried about, not to be run."""
    layer = _Layer()
    layer.file("kind", other_kind().encode())
    return _archive(tag, layer.done(), {"Cmd": ["/kind"]}, other_kind())


def archive_id(archive: Path) -> str:
    """The image ID (`sha256:...`) that an archive made here gets wherever it is loaded."""
    with tarfile.open(archive) as outer:
        manifest = outer.extractfile("manifest.json")
        assert manifest is not None
        return f"sha256:{json.load(manifest)[0]['Config'].removesuffix('.json')}"


def _base(layer: _Layer, busybox: Path, *, skip: Iterable[str] = ()) -> None:
    """A shell, its tools, and the few files that programs expect of any system.

    Args:
        busybox: of whatever architecture; what it can do is asked of this machine's own, which is of the same release.
    """
    command = [str(tools.busybox()), "--list"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split()
    layer.file("bin/busybox", busybox.read_bytes(), 0o755)
    for applet in sorted(set(listed) - {"busybox", *skip}):
        layer.link(f"bin/{applet}", "busybox")
    layer.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")
    layer.file("etc/group", b"root:x:0:\nnogroup:x:65534:\n")
    layer.folder("root", 0o700)
    layer.folder("work", 0o777)
    layer.folder("tmp", 0o1777)


def _kept(name: str, make: Any) -> Path:
    """The archive `name` in the cache, made by `make() -> bytes` when it is not there yet."""
    path = tools.CACHE / "lab" / "images" / name
    if not path.exists():
        content = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_bytes(content)
        draft.rename(path)
    return path


def _recipe(*parts: object) -> str:
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()[:12]


def build_task_archive() -> bytes:
    """The busybox image as a `docker load` archive: about 2 MB, `/bin/sh` and the usual tools, user root, command `sh`."""
    layer = _Layer()
    layer.folder("bin")
    layer.folder("etc")
    _base(layer, tools.busybox())
    return _archive(TASK_TAG, layer.done(), {"Cmd": ["sh"], "Env": ["PATH=/bin"], "WorkingDir": "/"})


def _python_packages(apt: Sequence[str]) -> tuple[str, list[str]]:
    """`python3.11` and the packages that hold it and the libraries it links to, as this machine's Debian or Ubuntu names them."""
    shown = tools.run(["apt-cache", *apt, "show", "--no-all-versions", "python3-minimal"], tool="python image")
    wanted = re.search(r"\b(python3\.\d+)-minimal\b", shown)
    if wanted is None:
        raise tools.Missing("python image", "apt knows no python3-minimal", "Run `apt-get update` as root.")
    version = wanted[1]
    names = [f"{version}-minimal", f"lib{version}-stdlib"]
    hard_only = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]
    closure = tools.run(["apt-cache", *apt, "depends", "--recurse", *hard_only, *names], tool="python image")
    libraries = {line for line in closure.splitlines() if re.fullmatch(r"(lib|zlib)[a-z0-9.+-]+", line)}
    return version, sorted({*names, *(name for name in libraries if not name.startswith(("libperl", "libgdbm", "libdebconf")))})


_WORKER_BASE = (
    *("python3-pip", "python3-distutils", "python3-lib2to3", "docker-registry", "ca-certificates"),
    *("libc6", "libstdc++6", "libgcc-s1"),  # Debian's images have them, and wheels count on them
)


def build_worker_base_archive() -> bytes:
    """What `worker-image/Dockerfile` takes as BASE where no Debian image can be had: the Python image, pip, and the registry."""
    return _python_archive(WORKER_BASE_TAG, _WORKER_BASE)


def build_worker_base_arm64_archive() -> bytes:
    """The same of Debian's arm64 packages, whatever this machine is: they are unpacked, and nothing of them runs."""
    with tools.apt_of("arm64", tool="arm64 packages") as apt, tempfile.TemporaryDirectory(prefix="swarmtask-busybox-") as folder:
        tools.unpack_debs(["busybox-static"], Path(folder), tool="arm64 packages", apt=apt)
        busybox = next(path for path in (Path(folder, "bin/busybox"), Path(folder, "usr/bin/busybox")) if path.exists())
        return _python_archive(WORKER_BASE_ARM64_TAG, _WORKER_BASE, busybox=busybox, architecture="arm64", apt=apt)


def build_python_archive() -> bytes:
    """The busybox image plus Debian's minimal Python and its standard library, as a `docker load` archive of about 50 MB."""
    return _python_archive(PYTHON_TAG)


def _python_archive(
    tag: str, extra: Iterable[str] = (), *, busybox: Path | None = None, architecture: str = "", apt: Sequence[str] = ()
) -> bytes:
    """`busybox`, `architecture` and `apt` go together: of another kind of machine than this."""
    with tempfile.TemporaryDirectory(prefix="swarmtask-python-") as folder:
        root = Path(folder)
        version, packages = _python_packages(apt)
        tools.unpack_debs(sorted({*packages, *extra}), root, tool="python image", apt=apt)
        for waste in ("usr/share/doc", "usr/share/man", "usr/share/lintian", "usr/share/locale"):
            shutil.rmtree(root / waste, ignore_errors=True)
        for name in ("lib", "lib64"):  # newer releases ship everything under /usr and expect these links of the base system
            if not (root / name).exists():
                (root / name).symlink_to(f"usr/{name}")
        (root / "usr/bin/python3").symlink_to(version)
        layer = _Layer()
        layer.tree(root)
        _base(layer, busybox or tools.busybox())
        environment = ["PATH=/usr/bin:/bin", "PYTHONUNBUFFERED=1", "LANG=C.UTF-8"]
        config = {"Cmd": ["python3"], "Env": environment, "WorkingDir": "/work"}
        return _archive(tag, layer.done(), config, architecture)


_BUILDERS = {
    TASK_TAG: build_task_archive,
    PYTHON_TAG: build_python_archive,
    WORKER_BASE_TAG: build_worker_base_archive,
    WORKER_BASE_ARM64_TAG: build_worker_base_arm64_archive,
}


def image_tar(tag: str = TASK_TAG, client: docker.DockerClient | None = None) -> Path:
    """A `docker load` archive of `tag`, kept in the cache: made here for the images of this module, else saved from `client`.

    Raises:
        Missing: what the image is made of cannot be had here.
        docker.errors.ImageNotFound: not one of ours, and `client` does not have it.
        ValueError: not one of ours and no `client` was given.
    """
    builder = _BUILDERS.get(tag)
    if builder is not None:
        recipe = _recipe(tag, Path(__file__).read_text(), tools.busybox().stat().st_size)
        return _kept(f"{tag.replace('/', '-').replace(':', '-')}-{recipe}.tar", builder)
    if client is None:
        raise ValueError(f"{tag} is not made here: give the client of a dockerd that has it")
    image = client.images.get(tag)
    identity = str(image.id).partition(":")[2][:16]
    return _kept(f"saved-{_recipe(tag)}-{identity}.tar", lambda: b"".join(image.save(named=tag)))


def load(client: docker.DockerClient, archive: Path) -> None:
    """Give a dockerd the image of an archive. Doing it again changes nothing."""
    with archive.open("rb") as handle:
        client.images.load(handle)


def _present(client: docker.DockerClient, tag: str) -> str:
    archive = image_tar(tag)
    try:
        if client.images.get(tag).id == archive_id(archive):
            return tag
    except docker.errors.ImageNotFound:
        pass
    load(client, archive)
    return tag


def task_image(client: docker.DockerClient) -> str:
    """Give `client`'s dockerd the busybox image; returns its tag, `swarmtask-test/busybox:1`. Raises Missing."""
    return _present(client, TASK_TAG)


def python_image(client: docker.DockerClient) -> str:
    """Give `client`'s dockerd the Python image; returns its tag, `swarmtask-test/python:1`. Raises Missing."""
    return _present(client, PYTHON_TAG)


def run_once(client: docker.DockerClient, tag: str, command: list[str], timeout_s: float = 60) -> str:
    """Run a command in a new container, to its end, and return what it wrote. The SDK's `run` follows the log of a container while
    it runs, and dockerd can end that stream before the last lines; here the log is read once it is whole.

    Raises:
        docker.errors.ContainerError: it did not end with 0.
    """
    container = client.containers.run(tag, command, detach=True)
    try:
        code = container.wait(timeout=timeout_s)["StatusCode"]
        output = bytes(container.logs(stream=False))
        if code != 0:
            raise docker.errors.ContainerError(container, code, command, tag, output)
        return output.decode(errors="replace")
    finally:
        container.remove(force=True, v=True)


def node_tag() -> str:
    """The node image's tag: a hash of all that it is made of, so a changed recipe is a new image."""
    return f"{_NODE_REPOSITORY}:{_recipe(_SUITE, *_NODE_PACKAGES, _NODE_RECIPE, platform.machine())}"


def node_image(client: docker.DockerClient) -> str:
    """The tag of the node image in `client`'s dockerd, made there first if need be (about a minute, root and debootstrap).

    Raises:
        Missing: it is not there and cannot be made here.
    """
    tag = node_tag()
    with tools.machine_lock("node-image"):
        try:
            client.images.get(tag)
        except docker.errors.ImageNotFound:
            _make_node_image(client, tag)
    return tag


def _make_node_image(client: docker.DockerClient, tag: str) -> None:
    if os.getuid() != 0:
        raise tools.Missing("node image", "only root can run debootstrap", "Run `python -m tests.lab.setup` once as root.")
    if shutil.which("debootstrap") is None:
        raise tools.Missing("debootstrap", "it is not installed", "Run `apt-get install debootstrap` (or `make test`) as root.")
    # Not under /tmp, which many machines mount without device files; debootstrap needs them.
    work = tools.CACHE / "lab" / "build"
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="node-", dir=work) as folder:
        root = Path(folder) / "root"
        include = ",".join(_NODE_PACKAGES)
        command = ["debootstrap", "--variant=minbase", f"--include={include}", _SUITE, str(root)]
        tools.run(command, timeout_s=900, tool="node image")
        for waste in ("var/lib/apt/lists", "var/cache/apt", "usr/share/doc", "usr/share/man", "usr/share/locale", "var/log"):
            shutil.rmtree(root / waste, ignore_errors=True)
        (root / "var/log").mkdir(parents=True)
        _import(client, root, tag)


def _import(client: docker.DockerClient, root: Path, tag: str) -> None:
    """`docker import` of a root file system: one layer, no history, the tag set only once it is whole."""
    archive = root.with_suffix(".tar")
    tools.run(["tar", "--numeric-owner", "--one-file-system", "-C", str(root), "-cf", str(archive), "."], timeout_s=300)
    repository, _, version = tag.partition(":")
    answer = client.api.import_image_from_file(str(archive), repository=repository, tag=version, changes=[f"LABEL {LABEL}=image"])
    if "error" in str(answer):
        raise tools.Missing("node image", f"docker import failed: {answer}", "Look at the disk space of Docker's folder.")
