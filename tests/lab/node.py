"""One laboratory node: a container of the node image that is a "laptop" with its own dockerd, address and advertised size.

Called by `cluster.Lab` alone. What a node is can be read back from its container's labels, so a later process can take over a
laboratory that it did not start. A node knows nothing of Swarm: joining and leaving is the cluster's part.
"""

import contextlib
import dataclasses
import http.client
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

import docker
import docker.errors
import requests
from docker.models.containers import Container

from tests.lab.images import LABEL

GIB = 1024**3
BRIDGE = "stlab"  # laboratory bridges on this machine are named by it
LABEL_NODE = f"{LABEL}.node"
LABEL_CPUS = f"{LABEL}.cpus"
LABEL_MEMORY = f"{LABEL}.memory-bytes"
LABEL_ADDRESS = f"{LABEL}.address"
LABEL_FOLDER = f"{LABEL}.folder"
LABEL_KEEP = f"{LABEL}.keep"

Cut = Literal["both", "in", "out", "unplugged"]
Signal = Literal["KILL", "TERM"]
T = TypeVar("T")

# `--privileged` needs rights that sandboxes do not have; these are the ones that an inner dockerd uses.
_CAPABILITIES = [
    *("SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "SYS_MODULE", "NET_RAW", "IPC_LOCK", "MKNOD", "SYS_CHROOT", "SYS_NICE"),
    *("DAC_READ_SEARCH", "LINUX_IMMUTABLE", "SYSLOG"),
]
_CGROUPS = Path("/sys/fs/cgroup")
UNREACHABLE = (docker.errors.DockerException, requests.exceptions.RequestException, http.client.HTTPException, OSError)
_CALL_S = 30
_RULES = {"in": ("PREROUTING", "-i"), "out": ("POSTROUTING", "-o")}


class LabError(Exception):
    """The laboratory did not do what was asked; the message says what it did instead."""


def poll(what: str, timeout_s: float, probe: Callable[[], T | None], *, ignore: tuple[type[Exception], ...] = ()) -> T:
    """Ask until `probe` returns something true, and return it.

    Raises:
        LabError: not within `timeout_s`; names `what` was waited for and the last error among `ignore`.
    """
    deadline = time.monotonic() + timeout_s
    pause_s, last = 0.02, ""
    while True:
        try:
            if found := probe():
                return found
        except ignore as error:
            last = f"; last answer: {error}"
        if time.monotonic() > deadline:
            raise LabError(f"waited {timeout_s:.0f} s in vain for {what}{last}")
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.25)


@dataclasses.dataclass(frozen=True)
class NodeSize:
    """What a node says of itself. More `cpus` than the machine has cores are cut to its cores: dockerd counts real ones."""

    name: str
    cpus: int
    memory_bytes: int


@dataclasses.dataclass(frozen=True)
class InnerContainer:
    """One container inside a node, as its own dockerd lists it. `state` is Docker's word: created, running, exited, ..."""

    id: str
    name: str
    image: str
    state: str
    labels: dict[str, str]


def meminfo(memory_bytes: int) -> str:
    """A /proc/meminfo of an almost idle machine of that size; dockerd and psutil read their totals from it."""
    total = memory_bytes // 1024
    rows = {"MemTotal": total, "MemFree": total * 8 // 10, "MemAvailable": total * 9 // 10, "Buffers": 0, "Cached": total // 10}
    rows |= {"SwapCached": 0, "Active": total // 20, "Inactive": total // 20, "SwapTotal": 0, "SwapFree": 0, "Shmem": 0, "Slab": 0}
    rows |= {"SReclaimable": 0, "SUnreclaim": 0}
    return "".join(f"{name + ':':<16}{kib:>8} kB\n" for name, kib in rows.items())


def cpuset(cpus: int, offset: int) -> str:
    """`cpus` of this machine's usable cores as a cpuset, started at `offset` so that small nodes share them evenly."""
    cores = sorted(os.sched_getaffinity(0))
    return ",".join(str(core) for core in sorted(cores[(offset + i) % len(cores)] for i in range(min(cpus, len(cores)))))


class LabNode:
    """A node made by `create`, or found again from its container."""

    def __init__(self, outer: docker.DockerClient, network: str, container: Container) -> None:
        self._outer = outer
        self._network = network
        self._client: docker.DockerClient | None = None
        self.container = container
        labels = container.labels
        self.name = labels[LABEL_NODE]
        self.size = NodeSize(self.name, int(labels[LABEL_CPUS]), int(labels[LABEL_MEMORY]))
        self.address = labels[LABEL_ADDRESS]
        self.folder = Path(labels[LABEL_FOLDER]) / self.name
        self.swarm_id = ""

    @classmethod
    def create(
        cls,
        outer: docker.DockerClient,
        size: NodeSize,
        *,
        docker_url: str,
        image: str,
        network: str,
        address: str,
        labels: dict[str, str],
    ) -> "LabNode":
        """Start a node's container; its dockerd does not answer yet. `labels` are the laboratory's own, LABEL_FOLDER among them."""
        from testcontainers.core.config import testcontainers_config
        from testcontainers.core.container import DockerContainer

        testcontainers_config.ryuk_disabled = True  # its image would have to be pulled; left-overs are found by label instead
        lab = Path(labels[LABEL_FOLDER])
        folder = lab / size.name
        folder.mkdir()
        (folder / "meminfo").write_text(meminfo(size.memory_bytes))
        (folder / "shared").mkdir()
        name = f"{lab.name}-{size.name}"
        outer.volumes.create(name, labels=labels)
        cores = cpuset(size.cpus, int(address.rpartition(".")[2]))
        own = {
            LABEL_NODE: size.name,
            LABEL_CPUS: str(cores.count(",") + 1),
            LABEL_MEMORY: str(size.memory_bytes),
            LABEL_ADDRESS: address,
        }
        volumes = [
            (str(folder / "shared"), "/lab", "rw"),
            (str(folder / "meminfo"), "/proc/meminfo", "ro"),
            (str(lab / "resolv.conf"), "/etc/resolv.conf", "ro"),
            (str(lab / "node.sh"), "/node.sh", "ro"),
            (name, "/var/lib/docker", "rw"),
        ]
        if outer.info().get("CgroupVersion", "1") == "1":
            volumes.append(("/sys/fs/cgroup", "/sys/fs/cgroup", "rw"))
        started = (
            DockerContainer(image, docker_client_kw={"environment": {"DOCKER_HOST": docker_url}}, name=name, volumes=volumes)
            .with_tmpfs_mount("/run")  # a power cut leaves no pid file or socket behind
            .with_command(["sh", "/node.sh", "--group", str(os.getgid())])
            .with_kwargs(
                hostname=size.name,
                labels={**labels, **own},
                cap_add=_CAPABILITIES,
                security_opt=["seccomp=unconfined", "apparmor=unconfined"],
                device_cgroup_rules=["a *:* rwm"],
                cpuset_cpus=cores,
                network=network,
                networking_config={network: outer.api.create_endpoint_config(ipv4_address=address)},
            )
            .start()
        )
        started.get_docker_client().client.close()
        return cls(outer, network, outer.containers.get(started.get_container_id()))

    @property
    def socket(self) -> Path:
        return self.folder / "shared" / "docker.sock"

    @property
    def docker_host(self) -> str:
        return f"unix://{self.socket}"

    @property
    def status(self) -> str:
        """Docker's word for the node's container: running, paused, exited, ..."""
        self.container.reload()
        return str(self.container.status)

    @property
    def pid(self) -> int:
        """Of the node's first process, as this machine counts. Raises LabError when the node is off."""
        self.container.reload()
        if not (pid := int(self.container.attrs["State"]["Pid"])):
            raise LabError(f"{self.name} is off: it has no processes")
        return pid

    @property
    def proc(self) -> Path:
        """The node's own /proc as this machine sees it; another path after each power-on."""
        return Path(f"/proc/{self.pid}/root/proc")

    def cgroups(self) -> dict[str, Path]:
        """Where the node's first process is, by controller; the hierarchy of version 2 has the name ''. A process that is put into
        all of them is frozen, bound and killed with the node."""
        found: dict[str, Path] = {}
        for line in Path(f"/proc/{self.pid}/cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            for name in names.removeprefix("name=").split(","):
                homes = (_CGROUPS / names.removeprefix("name="), _CGROUPS / name, _CGROUPS / "unified", _CGROUPS)
                home = next((home for home in homes if (home / path.lstrip("/") / "cgroup.procs").exists()), None)
                if home is not None:
                    found[name] = home / path.lstrip("/")
        return found

    def client(self) -> docker.DockerClient:
        """A client of the inner dockerd, kept for the node's life.

        Raises:
            LabError: the node is paused or off.
        """
        if (status := self.status) != "running":
            raise LabError(f"{self.name} is {status}: its dockerd cannot answer")
        if self._client is None:
            self._client = docker.DockerClient(base_url=self.docker_host, timeout=_CALL_S)
        return self._client

    def wait_api(self, timeout_s: float = 30) -> None:
        """Until the inner dockerd answers."""
        try:
            poll(f"dockerd of {self.name}", timeout_s, lambda: self.client().ping(), ignore=(*UNREACHABLE, LabError))
        except LabError as error:
            raise LabError(f"{error}\nIts last words:\n{self.log(40)}") from error

    def log(self, lines: int) -> str:
        """The last lines that the node's dockerd wrote."""
        return bytes(self.container.logs(tail=lines, stream=False)).decode(errors="replace")

    def run(self, command: list[str]) -> str:
        """Run a program inside the node.

        Raises:
            LabError: it did not end with 0.
        """
        code, output = self.container.exec_run(command)
        text = output.decode(errors="replace") if output else ""
        if code != 0:
            raise LabError(f"{' '.join(command)} on {self.name} ended with {code}: {text}")
        return text

    def pause(self) -> None:
        """A closed lid: every process of the node stops, its network stays."""
        if self.status == "running":
            self.container.pause()

    def unpause(self) -> None:
        if self.status == "paused":
            self.container.unpause()

    def freeze(self) -> None:
        """A closed lid of which the outer Docker knows nothing: the kernel's freezer. Ask nothing of the node until `thaw`."""
        self._set_frozen(frozen=True)

    def thaw(self) -> None:
        self._set_frozen(frozen=False)

    def _set_frozen(self, *, frozen: bool) -> None:
        homes = self.cgroups()
        if "freezer" in homes:
            state, word = homes["freezer"] / "freezer.state", "FROZEN" if frozen else "THAWED"
        else:  # the first process is in a group below the node's own
            state, word = homes[""].parent / "cgroup.freeze", str(int(frozen))
        state.write_text(word)
        poll(f"{self.name} to be {'frozen' if frozen else 'thawed'}", 10, lambda: state.read_text().strip() == word)

    def kill(self) -> None:
        """A power cut: nothing is told, nothing is flushed."""
        self.unpause()
        if self.status == "running":
            self.container.kill("KILL")
            poll(f"{self.name} to be off", 20, lambda: self.status == "exited")

    def start(self) -> None:
        """Power on again, with the disk and address as they were."""
        if self.status not in {"running", "paused"}:
            self.container.start()
        self.wait_api()

    def _daemon_pid(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "shared" / "dockerd.pid").read_text().strip()
        return ""

    def restart_dockerd(self, signal: Signal = "KILL") -> None:
        """End the inner dockerd alone; its supervisor starts another, which has answered when this returns."""
        before = poll(f"dockerd of {self.name} to run", 30, self._daemon_pid)
        self.run(["kill", f"-{signal}", before])
        poll(f"another dockerd on {self.name}", 60, lambda: self._daemon_pid() not in {"", before})
        self.wait_api()

    def stop_dockerd(self, signal: Signal = "TERM") -> None:
        """End the inner dockerd and keep it down until `start_dockerd`."""
        (self.folder / "shared" / "hold").touch()
        if pid := self._daemon_pid():
            self.run(["kill", f"-{signal}", pid])
        poll(f"dockerd of {self.name} to end", 60, lambda: self._daemon_pid() == "")

    def signal_dockerd(self, signal: Literal["STOP", "CONT"]) -> None:
        """Any signal to the inner dockerd: `STOP` freezes it, `CONT` lets it go on."""
        self.run(["kill", f"-{signal}", poll(f"dockerd of {self.name} to run", 30, self._daemon_pid)])

    def start_dockerd(self) -> None:
        (self.folder / "shared" / "hold").unlink(missing_ok=True)
        self.wait_api()

    def partition(self, cut: Cut = "both") -> None:
        """Cut the node off: both ways, only what comes in, only what goes out, or by pulling the plug (its interface goes too)."""
        self.heal()
        if cut == "unplugged":
            self._outer.networks.get(self._network).disconnect(self.container, force=True)
            return
        for chain, side in _RULES.values() if cut == "both" else [_RULES[cut]]:
            self.run(["iptables", "-w", "-t", "mangle", "-I", chain, side, "eth+", "-j", "DROP"])

    def heal(self) -> None:
        """Undo `partition`, whichever it was."""
        self.container.reload()
        if self._network not in self.container.attrs["NetworkSettings"]["Networks"]:
            self._outer.networks.get(self._network).connect(self.container, ipv4_address=self.address)
        if self.status == "running":
            self.run(["sh", "-c", "ip route del default 2>/dev/null || true"])  # plugging in has made one
            each = "while iptables -w -t mangle -D {} {} eth+ -j DROP 2>/dev/null; do :; done"
            self.run(["sh", "-c", "; ".join(each.format(chain, side) for chain, side in _RULES.values())])

    def restore(self) -> None:
        """Power, lid, dockerd and network as on the first day."""
        self.unpause()
        if self.status == "running":
            self.thaw()
        (self.folder / "shared" / "hold").unlink(missing_ok=True)
        self.start()
        self.heal()

    def containers(self) -> list[InnerContainer]:
        """All containers of the inner dockerd, those that have ended too."""
        return [
            InnerContainer(row["Id"], row["Names"][0].lstrip("/"), row["Image"], row["State"], dict(row["Labels"] or {}))
            for row in self.client().api.containers(all=True)
        ]

    def close(self) -> None:
        """Let go of the connection to the inner dockerd; the node stays as it is."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def remove(self) -> None:
        """The node, its disk and its folder. Doing it again changes nothing."""
        self.close()
        remove_container(self.container)
        with contextlib.suppress(docker.errors.NotFound):
            self._outer.volumes.get(f"{self.folder.parent.name}-{self.name}").remove(force=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def remove_container(container: Container) -> None:
    """Remove a node's container and the cgroups that its inner containers may have left. Doing it again changes nothing."""
    with contextlib.suppress(docker.errors.NotFound):
        container.reload()
        if container.status == "paused":
            container.unpause()  # some kernels do not end a frozen process
        for state in _CGROUPS.glob(f"freezer/**/{container.id}/freezer.state"):
            state.write_text("THAWED")
        container.remove(force=True, v=True)
    for leftover in _cgroups_of(str(container.id)):
        with contextlib.suppress(OSError):  # a process that is still ending holds it; the next sweep finds it
            leftover.rmdir()


def _cgroups_of(container_id: str) -> Iterator[Path]:
    """Folders of a container in every cgroup hierarchy, the deepest first."""
    for home in Path("/sys/fs/cgroup").glob(f"*/docker/{container_id}"):
        yield from sorted((path for path in home.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts))
        yield home
