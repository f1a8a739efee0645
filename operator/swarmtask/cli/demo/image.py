"""An image for the demo without a registry: this machine's own Python, its libraries, the scripts and the sources.

Called by `demo.command`, in a thread. The interpreter keeps its path, so that it finds its standard library as it does here.
The image is named by its ID when it is used: that is the one way in which Swarm does not ask a registry for a local image.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import docker
import requests
from docker.errors import APIError, DockerException

from swarmtask.cli.demo.workload import SCRIPTS
from swarmtask.errors import EngineUnavailable

SCRIPTS_IN_IMAGE, SOURCES_IN_IMAGE = "/demo/scripts", "/demo/sources"
_LEFT_OUT = {
    "test", "tests", "idlelib", "lib2to3", "ensurepip", "tkinter", "turtledemo", "site-packages", "dist-packages", "__pycache__",
    "pydoc_data", "distutils",
}  # fmt: skip
_EXTENSIONS_LEFT_OUT = re.compile(
    r"^(_test|_xxtest|xx|_tkinter|_curses|readline|_dbm|_gdbm|_sqlite3|_ssl|_hashlib|nis|_ctypes_test)"
)
_LIBRARY = re.compile(r"(?:=>\s*)?(/\S+)\s+\(0x[0-9a-f]+\)")
_BUILD_TIMEOUT_S = 120
_PROBE_TIMEOUT_S = 30


def build(docker_host: str | None, sources: Path) -> str:
    """Make the image and return its ID (`sha256:...`).

    Raises:
        EngineUnavailable: it cannot be made on this machine; says why.
    """
    try:
        with tempfile.NamedTemporaryFile(prefix="swarmtask-demo-", suffix=".tar") as file:
            _write_tar(file, sources)
            file.flush()
            client = _client(docker_host)
            try:
                answer = client.api.import_image_from_file(file.name, repository="swarmtask-demo", tag="latest", changes=_changes())
                identifier = re.search(r"sha256:[0-9a-f]{64}", str(answer))
                if identifier is None:
                    raise EngineUnavailable(f"Docker did not take the image: {str(answer)[:200]}")
                return identifier.group()
            finally:
                client.close()
    except (OSError, subprocess.SubprocessError, DockerException, requests.RequestException) as error:
        reason = getattr(error, "explanation", None) or error
        raise EngineUnavailable(f"no image can be made from this machine's Python: {reason}") from error


def probe(docker_host: str | None, identifier: str) -> None:
    """Run the image's Python once: a Docker that answers may still be unable to start a container.

    Raises:
        EngineUnavailable: it cannot; says why.
    """
    client = _client(docker_host)
    try:
        program = [python_in_image(), "-c", "import ast, hmac, tokenize"]
        container = client.containers.create(identifier, program, cap_drop=["ALL"])
        try:
            container.start()
            status = container.wait(timeout=_PROBE_TIMEOUT_S)["StatusCode"]
            if status:
                said = container.logs(tail=5).decode("utf-8", "replace").strip()
                raise EngineUnavailable(f"this machine's Python does not run in a container (exit status {status}): {said}")
        finally:
            container.remove(force=True)
    except (DockerException, requests.RequestException) as error:
        raise EngineUnavailable(f"Docker cannot start a container: {getattr(error, 'explanation', None) or error}") from error
    finally:
        client.close()


def remove(docker_host: str | None, identifier: str) -> bool:
    """Remove the image. Returns False when something still uses it."""
    try:
        client = _client(docker_host)
        try:
            client.images.remove(identifier, force=True)
        finally:
            client.close()
    except APIError:
        return False
    except (DockerException, requests.RequestException) as error:
        raise EngineUnavailable(f"Docker does not answer: {error}") from error
    return True


def python_in_image() -> str:
    """Path of the interpreter in the image: the same as here, with symbolic links followed."""
    return str(Path(sys.executable).resolve())


def _client(docker_host: str | None) -> docker.DockerClient:
    if docker_host:
        return docker.DockerClient(base_url=docker_host, timeout=_BUILD_TIMEOUT_S)
    return docker.from_env(timeout=_BUILD_TIMEOUT_S)


def _changes() -> list[str]:
    folders = sorted({str(path.parent) for path in _libraries()})
    return [f"ENV LD_LIBRARY_PATH={':'.join(folders)} PYTHONDONTWRITEBYTECODE=1 LANG=C.UTF-8"]


def _write_tar(file: IO[bytes], sources: Path) -> None:
    with tarfile.open(fileobj=file, mode="w") as tar:
        folder = tarfile.TarInfo("tmp")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        tar.addfile(folder)
        for path, target in _files(sources):
            tar.add(path.resolve(), target.lstrip("/"), recursive=False, filter=_readable)


def _readable(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Owned by root and readable by everybody: the container runs without the capability to read what is not its own."""
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mode = 0o755 if info.isdir() or info.mode & 0o111 else 0o644
    return info


def _files(sources: Path) -> Iterator[tuple[Path, str]]:
    """What goes into the image: path here, path there."""
    executable = Path(sys.executable).resolve()
    yield executable, str(executable)
    for library in sorted(_libraries()):
        yield library, str(library)
    standard = Path(sysconfig.get_path("stdlib"))
    for path in sorted(standard.rglob("*")):
        if path.is_file() and _wanted(path, standard):
            yield path, str(path)
    for folder, target in ((SCRIPTS, SCRIPTS_IN_IMAGE), (sources, SOURCES_IN_IMAGE)):
        for path in sorted(folder.rglob("*.py")):
            yield path, f"{target}/{path.relative_to(folder)}"


def _wanted(path: Path, standard: Path) -> bool:
    parts = path.relative_to(standard).parts
    if any(part in _LEFT_OUT or part.startswith("config-") for part in parts):
        return False
    return path.suffix == ".py" or (path.suffix == ".so" and not _EXTENSIONS_LEFT_OUT.match(path.name))


def _libraries() -> set[Path]:
    """The shared libraries that the interpreter and its extension modules need, the loader among them, as `ldd` names them."""
    standard = Path(sysconfig.get_path("stdlib"))
    programs = [Path(sys.executable).resolve(), *(path for path in standard.glob("lib-dynload/*.so") if _wanted(path, standard))]
    listing = subprocess.run(
        ["ldd", *map(str, programs)], capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S, check=False
    )  # fmt: skip
    found = {Path(match) for match in _LIBRARY.findall(listing.stdout)}
    if not found:
        raise OSError("ldd names no library: " + (listing.stderr.strip() or "a static or foreign interpreter"))
    return found
