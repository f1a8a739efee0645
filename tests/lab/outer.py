"""The Docker that laboratory nodes run on: the machine's own where it is fit, else one that tests start for themselves.

Called by the fixtures of `tests/conftest.py` and by `make lab`. Our own dockerd keeps its images under `.cache/lab/docker` and its
sockets in a short folder under the temporary directory. It leaves the machine's Docker and bridges alone, adds one firewall rule,
and is stopped, with all it started, when its last user goes. One that a killed run left is used again and stopped by the next.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TextIO

import docker
import docker.errors
import psutil

from tests.lab import tools
from tests.lab.node import BRIDGE, LABEL_KEEP, UNREACHABLE, LabError, poll

_DATA = tools.CACHE / "lab" / "docker"
_RUN = Path(tempfile.gettempdir()) / f"stdocker-{hashlib.sha256(str(tools.ROOT).encode()).hexdigest()[:8]}"
_FIREWALL_RULE = ["FORWARD", "-i", f"{BRIDGE}+", "-o", f"{BRIDGE}+", "-j", "ACCEPT"]
_OWN_BRIDGE = "stdocker0"
_CGROUPS = Path("/sys/fs/cgroup")
_REMEDY = "Start Docker, or run the tests as root on Linux with docker.io installed (`make test` installs it)."


class OuterDocker:
    """A Docker to run nodes on. `url` is its DOCKER_HOST. `close()` when done: our own is stopped when nobody else uses it."""

    def __init__(self, url: str, users: TextIO | None = None) -> None:
        self.url = url
        self.ours = users is not None
        self._users = users

    def client(self, timeout_s: int = 60) -> docker.DockerClient:
        return docker.DockerClient(base_url=self.url, timeout=timeout_s)

    def close(self) -> None:
        """Let go. Our own dockerd ends unless another test run or a laboratory left by `make lab` needs it."""
        if self._users is None:
            return
        with tools.machine_lock("outer"):
            fcntl.flock(self._users, fcntl.LOCK_UN)
            self._users.close()
            self._users = None
            if not _has_users() and not _has_kept_lab():
                stop_own()


def _machine_url() -> str:
    return os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"


def answering() -> bool:
    """Does the machine's own Docker answer?"""
    return _answers(_machine_url())


def connect() -> OuterDocker:
    """The machine's Docker if it answers and nodes can run on it, else our own.

    Raises:
        Missing: neither can be had; says why and what to do.
    """
    url = _machine_url()
    try:
        client = docker.DockerClient(base_url=url, timeout=10)
    except UNREACHABLE as error:
        if os.getuid() == 0:
            return _start_own()
        if "Permission denied" in str(error):
            raise tools.Missing(
                "docker", f"{url} does not let you in", "Add yourself to the group docker, or become root."
            ) from error
        raise tools.Missing("docker", f"no Docker answers at {url}", _REMEDY) from error
    with contextlib.closing(client):
        unfit = _unfit(url, client.info())
    if unfit:
        raise tools.Missing("native docker", f"the Docker at {url} {unfit}", "Use a native Linux Docker Engine that runs as root.")
    return OuterDocker(url)


def _unfit(url: str, info: dict[str, object]) -> str:
    """Why nodes cannot run on that Docker, or ''."""
    if not url.startswith("unix://"):
        return "is on another machine; nodes share files with this one"
    if info.get("OSType") != "linux" or "Docker Desktop" in str(info.get("OperatingSystem")):
        return "is not a native Linux engine"
    if "name=rootless" in (info.get("SecurityOptions") or []):  # type: ignore[operator]
        return "is rootless; nodes need rights that it cannot give"
    return ""


def _start_own() -> OuterDocker:
    if shutil.which("dockerd") is None:
        raise tools.Missing("dockerd", "it is not installed", "Run `apt-get install docker.io` (or `make test`) as root.")
    with tools.machine_lock("outer"):
        _RUN.mkdir(mode=0o700, exist_ok=True)
        if _RUN.stat().st_uid != os.getuid():
            raise tools.Missing("dockerd", f"{_RUN} belongs to somebody else", "Remove that folder.")
        users = (_RUN / "users").open("w")
        fcntl.flock(users, fcntl.LOCK_SH)
        url = f"unix://{_RUN}/docker.sock"
        if not _answers(url):
            stop_own()  # what a crash left: mounts, a pid file, a containerd
            _mount_cgroups()
            _open_firewall()
            _launch(url)
    return OuterDocker(url, users)


def _answers(url: str) -> bool:
    try:
        with contextlib.closing(docker.DockerClient(base_url=url, timeout=5)) as client:
            return bool(client.ping())
    except UNREACHABLE:
        return False


def _launch(url: str) -> None:
    _DATA.mkdir(parents=True, exist_ok=True)
    log = _DATA.with_name("dockerd.log")
    # No firewall rules, and a bridge that nobody uses: nodes have their own closed network, and another Docker's rules stay as they
    # are. Not `--bridge=none`: with it dockerd deletes docker0 (measured on 20.10.24), under the feet of the machine's own Docker.
    _lay_bridge()
    command = ["dockerd", "-H", url, "--data-root", str(_DATA), "--exec-root", str(_RUN / "exec"), "--pidfile", str(_RUN / "pid")]
    command += [f"--bridge={_OWN_BRIDGE}", "--iptables=false", "--ip-masq=false", "--ip-forward=false"]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True, env=_environment()
        )

    def up() -> bool:
        if process.poll() is not None:
            raise tools.Missing("dockerd", f"it ended at once: {log.read_text()[-1500:]}", f"Read {log}.")
        return _answers(url)

    try:
        poll("our own dockerd", 60, up)
    except (LabError, tools.Missing) as error:
        stop_own()
        raise tools.Missing("dockerd", f"it did not come up: {error}", f"Read {log}.") from error


def _environment() -> dict[str, str]:
    """dockerd's environment, with the older iptables in front where the kernel does not speak the newer one's language."""
    environment = dict(os.environ)
    environment.pop("DOCKER_HOST", None)
    works = (
        shutil.which("iptables")
        and subprocess.run(["iptables", "-t", "nat", "-L", "-n"], capture_output=True, check=False).returncode == 0
    )
    legacy = shutil.which("iptables-legacy")
    if not works and legacy:
        shims = _RUN / "bin"
        shims.mkdir(exist_ok=True)
        for name in ("iptables", "ip6tables"):
            target = shutil.which(f"{name}-legacy")
            if target and not (shims / name).exists():
                (shims / name).symlink_to(target)
        environment["PATH"] = f"{shims}:{environment['PATH']}"
    return environment


def _open_firewall() -> None:
    """Let nodes talk to each other where the machine's firewall forwards nothing and looks into bridges. Undone by `stop_own`."""
    _close_firewall()
    subprocess.run(["iptables", "-w", "-I", *_FIREWALL_RULE], capture_output=True, check=False, env=_environment())


def _close_firewall() -> None:
    for _ in range(10):  # more than one only if a run was killed in between
        try:
            tools.run(["iptables", "-w", "-D", *_FIREWALL_RULE], timeout_s=30)
        except tools.Missing:  # it is not there, or there is no iptables
            return


def _lay_bridge() -> None:
    _take_bridge()
    tools.run(["ip", "link", "add", _OWN_BRIDGE, "type", "bridge"], timeout_s=30)


def _take_bridge() -> None:
    """Remove the bridge of our own dockerd, if there is one."""
    with contextlib.suppress(tools.Missing):
        tools.run(["ip", "link", "delete", _OWN_BRIDGE], timeout_s=30)


def _mounted() -> list[str]:
    """Mount points of this machine, in the order of mounting."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4].encode().decode("unicode_escape") for line in lines]


def _mount_cgroups() -> None:
    """A bare container or virtual machine may have no cgroups mounted; dockerd does not start without. Undone by `stop_own`."""
    if any(point.startswith(str(_CGROUPS)) for point in _mounted()) or not _CGROUPS.is_dir():
        return
    made = [str(_CGROUPS)]
    tools.run(["mount", "-t", "tmpfs", "-o", "mode=755", "cgroup", str(_CGROUPS)])
    rows = [line.split() for line in Path("/proc/cgroups").read_text().splitlines() if not line.startswith("#")]
    for name, _, _, enabled in rows:
        if enabled == "1":
            (_CGROUPS / name).mkdir()
            with contextlib.suppress(tools.Missing):  # a controller that only cgroup v2 serves
                tools.run(["mount", "-t", "cgroup", "-o", name, "cgroup", str(_CGROUPS / name)])
                made.append(str(_CGROUPS / name))
    if len(made) == 1:  # none is served the old way
        tools.run(["umount", str(_CGROUPS)])
        tools.run(["mount", "-t", "cgroup2", "cgroup2", str(_CGROUPS)])
    (_RUN / "cgroups").write_text("\n".join(made))


def _has_users() -> bool:
    with (_RUN / "users").open() as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _has_kept_lab() -> bool:
    try:
        with contextlib.closing(docker.DockerClient(base_url=f"unix://{_RUN}/docker.sock", timeout=10)) as client:
            return bool(client.api.containers(filters={"label": LABEL_KEEP}))
    except UNREACHABLE:
        return False


def _processes() -> list[psutil.Process]:
    """Our dockerd, its containerd and their shims: everything whose command line names our own run folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(str(_RUN) in word for word in process.cmdline()) and Path(process.exe()).name.startswith(
                ("dockerd", "containerd")
            ):
                found.append(process)
    return found


def stop_own() -> None:
    """End our own dockerd and all it started, unmount what it mounted; its images stay. Doing it again changes nothing."""
    processes = _processes()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() == "dockerd":
                process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs([process for process in processes if process.is_running()], timeout=20)
    for process in [*alive, *_processes()]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs([*processes, *alive], timeout=10)
    for point in reversed(_mounted()):
        if Path(point).is_relative_to(_RUN) or Path(point).is_relative_to(_DATA):
            subprocess.run(["umount", "-l", point], capture_output=True, check=False)
    _close_firewall()
    _take_bridge()
    with contextlib.suppress(FileNotFoundError):
        for point in reversed((_RUN / "cgroups").read_text().split()):
            subprocess.run(["umount", "-l", point], capture_output=True, check=False)
    for name in ("exec", "bin"):
        shutil.rmtree(_RUN / name, ignore_errors=True)
    for name in ("docker.sock", "pid", "cgroups"):
        (_RUN / name).unlink(missing_ok=True)
