"""The kernel's own count of what a container uses and of what was killed in it: cgroup v1, v2 and both at once.

Called by `attempts` while a container runs: the files are gone the moment it has ended. Sources: Linux, Documentation/
admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst. Reads only, except `kill`, the fence's last resort when Docker is dead.
"""

from __future__ import annotations

import logging
import os
import re
import signal
from dataclasses import dataclass, field
from pathlib import Path

from swarmtask.clock import NANOS_PER_S

logger = logging.getLogger(__name__)

DEEPEST = 8
MOST_DIRECTORIES = 4096
"""Where a container's path cannot be read from /proc, its directory is searched by name: so deep, and so many."""
MOST_FILE_BYTES = 16 * 1024
_CPU_MOUNTS = ("cpuacct", "cpu,cpuacct", "cpuacct,cpu")
_ID = re.compile(r"[0-9a-f]{12,64}")
MICROS_PER_S = 1_000_000


@dataclass(frozen=True, slots=True)
class Above:
    """The cgroup (v2) around a container's as it was at one look. It counts what happens in all that are in it, and stays.

    Attributes:
        ooms, kills: `oom` and `oom_kill` of its memory.events.
    """

    directory: Path
    ooms: int
    kills: int

    def met_limit(self) -> bool | None:
        """Of the kills in it since then: was one of them at the limit of who was killed? None: nobody can say, because there was
        none, or because its counts are its own alone (mount option memory_localevents)."""
        now = _above(self.directory)
        return None if now is None or now.kills <= self.kills else now.ooms > self.ooms


@dataclass(frozen=True, slots=True)
class Usage:
    """One look at a container that runs.

    Attributes:
        oom_kills: processes of it that the kernel has killed for memory so far; None where the kernel does not count them.
        limit_hits: how often it ran against its limit; page cache alone does that, too.
        peak_bytes: the most it used at once; what it uses now where the kernel keeps no peak.
        cpu_s: CPU time so far; None where it is not counted.
        own_ooms: how often it had no memory left within its own limit; None where the kernel does not count that apart from kills
            (cgroup v1).
        above: the cgroup around it at the same moment.
    """

    oom_kills: int | None
    limit_hits: int
    memory_bytes: int
    peak_bytes: int
    cpu_s: float | None
    own_ooms: int | None = None
    above: Above | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Cgroup:
    """Where one container's figures are. `version`: of the memory controller."""

    memory: Path
    cpu: Path | None
    version: int

    def read(self) -> Usage | None:
        """None: the container has ended."""
        try:
            return self._read_v2() if self.version == 2 else self._read_v1()
        except (OSError, ValueError):  # removed between two files; a figure that is none
            return None

    def kill(self) -> bool:
        """Kill every process in it without Docker's help. True: none is left that could be seen."""
        whole = self.memory / "cgroup.kill"
        try:
            if whole.exists():
                whole.write_text("1")
                return True
            # A process of another PID namespace shows as 0: nothing can be sent to it from here.
            pids = [int(line) for path in self._procs() for line in path.read_text().split()]
        except FileNotFoundError:
            return True
        except (OSError, ValueError) as error:
            logger.warning("cannot kill what is in %s: %s", self.memory, error)
            return False
        for pid in pids:
            if pid > 1 and pid != os.getpid():
                _kill(pid)
        return not pids

    def _procs(self) -> list[Path]:
        """Of the container's own cgroup, which must be there, and of those that it made for itself."""
        top = self.memory / "cgroup.procs"
        return [top, *(path for path in self.memory.rglob("cgroup.procs") if path != top)]

    def _read_v2(self) -> Usage:
        events = _counts(self.memory, "memory.events")
        now = int(_content(self.memory, "memory.current"))
        return Usage(
            oom_kills=events.get("oom_kill"),
            limit_hits=events.get("max", 0),
            memory_bytes=now,
            peak_bytes=max(now, _number(self.memory, "memory.peak") or 0),
            cpu_s=_cpu_v2(self.memory),
            own_ooms=events.get("oom"),
            above=_above(self.memory.parent),
        )

    def _read_v1(self) -> Usage:
        now = int(_content(self.memory, "memory.usage_in_bytes"))
        return Usage(
            oom_kills=_counts(self.memory, "memory.oom_control").get("oom_kill"),
            limit_hits=_number(self.memory, "memory.failcnt") or 0,
            memory_bytes=now,
            peak_bytes=max(now, _number(self.memory, "memory.max_usage_in_bytes") or 0),
            cpu_s=None if self.cpu is None else _cpu_v1(self.cpu),
        )


class Cgroups:
    """Finds a container's cgroup.

    Args:
        root, proc: where the host's /sys/fs/cgroup and /proc are seen from here.
    """

    def __init__(self, root: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")) -> None:
        self._root, self._proc = root, proc
        self._last: dict[Path, tuple[Path, str]] = {}

    def find(self, pid: int, container_id: str) -> Cgroup | None:
        """Of a container that runs; None when it cannot be found (it has just ended, or the host's files are not here)."""
        try:
            paths = _paths((self._proc / str(pid) / "cgroup").read_text()) if pid > 0 else {}
        except OSError:
            paths = {}
        memory = self._directory(("memory",), paths.get("memory"), container_id)
        if memory is not None and (memory / "memory.usage_in_bytes").exists():
            cpu = self._directory(_CPU_MOUNTS, paths.get("cpuacct"), container_id) or self._unified(paths.get(""), container_id)
            return Cgroup(memory, cpu, 1)
        unified = self._unified(paths.get(""), container_id)
        return Cgroup(unified, None, 2) if unified is not None and (unified / "memory.current").exists() else None

    def _unified(self, path: str | None, container_id: str) -> Path | None:
        for mount in (self._root / "unified", self._root):
            if (mount / "cgroup.controllers").exists():
                return self._within(mount, path, container_id)
        return None

    def _directory(self, names: tuple[str, ...], path: str | None, container_id: str) -> Path | None:
        mount = next((self._root / name for name in names if (self._root / name).is_dir()), None)
        return None if mount is None else self._within(mount, path, container_id)

    def _within(self, mount: Path, path: str | None, container_id: str) -> Path | None:
        """The path that /proc tells is right where this process sees the host's tree from its top. From within a cgroup namespace
        it begins with `..`, and under a mount of a part it leads nowhere: then the directory named after the container is. A path
        that does not name the container is that of another process, which has got the number of one that ended."""
        if path is not None and container_id in path and ".." not in path.split("/"):
            found = mount / path.lstrip("/")
            if found.is_dir():
                return found
        return self._beside_the_last(mount, container_id)

    def _beside_the_last(self, mount: Path, container_id: str) -> Path | None:
        """Containers of one Docker lie side by side: the tree is searched for the first, and whenever that is no help."""
        if not _ID.fullmatch(container_id):
            return None
        if mount in self._last:
            last, its_id = self._last[mount]
            sibling = last.with_name(last.name.replace(its_id, container_id))
            if sibling.is_dir():
                return sibling
        found = _search(mount, container_id)
        if found is not None:
            self._last[mount] = (found, container_id)
        return found


def _paths(text: str) -> dict[str, str]:
    """Path by controller from /proc/PID/cgroup; the unified hierarchy's name is empty."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            found.update(dict.fromkeys(parts[1].split(","), parts[2]))
    return found


def _search(mount: Path, container_id: str) -> Path | None:
    for looked, (directory, names, _) in enumerate(os.walk(mount), start=1):
        here = Path(directory)
        for name in names:
            if container_id in name:  # docker/ID, and systemd's docker-ID.scope
                return here / name
        if looked > MOST_DIRECTORIES:
            return None
        if len(here.relative_to(mount).parts) >= DEEPEST:
            names.clear()
    return None


def _cpu_v2(directory: Path) -> float | None:
    used = _counts(directory, "cpu.stat").get("usage_usec")
    return None if used is None else used / MICROS_PER_S


def _cpu_v1(directory: Path) -> float | None:
    """Memory may be counted by v1 and CPU by v2 on one machine."""
    used = _number(directory, "cpuacct.usage")
    return used / NANOS_PER_S if used is not None else _cpu_v2(directory)


def _above(directory: Path) -> Above | None:
    """None where nothing is counted: the root."""
    try:
        events = _counts(directory, "memory.events")
    except (OSError, ValueError):
        return None
    return Above(directory, events["oom"], events["oom_kill"]) if events.keys() >= {"oom", "oom_kill"} else None


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError as error:  # it has just ended, or is not ours to end; the next look tells
        logger.debug("cannot kill process %d: %s", pid, error)


def _content(directory: Path, name: str) -> bytes:
    """Of a small file. Every second of every container: `read_text` would take more than twice as long."""
    descriptor = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, MOST_FILE_BYTES)
    finally:
        os.close(descriptor)


def _counts(directory: Path, name: str) -> dict[str, int]:
    """`name number` by line; empty where there is no such file."""
    try:
        text = _content(directory, name).decode()
    except FileNotFoundError:
        return {}
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


def _number(directory: Path, name: str) -> int | None:
    try:
        return int(_content(directory, name))
    except (OSError, ValueError):  # an older kernel has no such file
        return None
