"""The supervisor of one local attempt: a small program of its own, one process per attempt.

Started by `engines.local.engine` as `python -I -S shim.py DIRECTORY BOOT_ID`. Imports nothing but the standard library, so that it
starts in milliseconds and keeps working while the operator is down, restarted or replaced. It runs the attempt's program, keeps its
output bounded, enforces the memory limit, stops it when `stop.json` appears, and leaves `exit.json`. Everything it says is on disk.

It never runs a program twice: `started.json` is on disk before the program is started, and whoever finds it does not start again.
A held lock on `lock` is the proof that the supervisor lives; the kernel lets go of it however the supervisor ends.

This program reads the wall clock itself (for time stamps in files): it cannot be handed a Clock.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
SAMPLE_S = 0.05
IDLE_FLUSH_S = 0.2
LONGEST_LINE = 16 * 1024
DRAIN_S = 1.0
PAGE = os.sysconf("SC_PAGE_SIZE")


def main(arguments: list[str]) -> int:
    directory, boot_id = Path(arguments[0]), arguments[1]
    if os.fork() > 0:  # the caller waits for this process only; the real one belongs to init
        os._exit(0)
    os.umask(0o077)
    lock = take_lock(directory / "lock")
    if lock is None or (directory / "started.json").exists() or (directory / "exit.json").exists():
        return 0
    Supervisor(directory, boot_id).run()
    return 0


def take_lock(path: Path) -> int | None:
    """Hold the lock for the life of this process. Short probes by the engine are waited out; another supervisor is not."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for _ in range(100):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
        else:
            return handle
    return None


def timestamp() -> str:
    seconds, nanos = divmod(time.time_ns(), 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanos // 1000:06d}Z"


def write_json(path: Path, value: dict[str, Any]) -> None:
    """All of it or nothing, and on disk before this returns."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class Output:
    """Lines with time stamps in `output.log`; half of the allowance, then it becomes `output.1.log` and a new one begins.

    One stored line is `TIME F text` for a whole line or `TIME P text` for a piece without its end.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._path, self._older = directory / "output.log", directory / "output.1.log"
        self._half = max(2048, max_bytes // 2)
        self._file: BinaryIO = self._path.open("ab", buffering=0)
        self._size = self._file.tell()
        self._rest = b""
        self.failed = ""

    @property
    def unfinished(self) -> bool:
        return bool(self._rest)

    def add(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        stamp = timestamp().encode()
        for line in lines:
            self._store(stamp + b" F ", line)
        while len(self._rest) > LONGEST_LINE:
            self._store(stamp + b" P ", self._rest[:LONGEST_LINE])
            self._rest = self._rest[LONGEST_LINE:]

    def flush(self) -> None:
        if self._rest:
            self._store(timestamp().encode() + b" P ", self._rest)
            self._rest = b""

    def _store(self, head: bytes, text: bytes) -> None:
        while len(text) > LONGEST_LINE:  # a long line that came in one chunk
            self._write(head.replace(b" F ", b" P ") + text[:LONGEST_LINE] + b"\n")
            text = text[LONGEST_LINE:]
        self._write(head + text + b"\n")

    def _write(self, record: bytes) -> None:
        try:
            if self._size + len(record) > self._half and self._size > 0:
                self._file.close()
                self._path.replace(self._older)
                self._file = self._path.open("ab", buffering=0)
                self._size = 0
            self._file.write(record)
            self._size += len(record)
        except OSError as error:  # a full disk costs output, not the attempt; the exit record says so
            self.failed = f"some output was lost: {error.strerror}"


class MemoryGroup:
    """A memory cgroup for one attempt, where this user may make one; `None` from `make` where not.

    Version 1: below our own group. Version 2: beside it, because a group that holds processes cannot have limited children.
    """

    def __init__(self, path: Path, version: int) -> None:
        self._path, self._version = path, version

    @classmethod
    def make(
        cls, name: str, limit_bytes: int, root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
    ) -> MemoryGroup | None:
        try:
            lines = [line.split(":", 2) for line in own.read_text().splitlines()]
            memory = next((path for _, controllers, path in lines if "memory" in controllers.split(",")), None)
            if memory is not None:
                group, parent = cls(root / "memory" / memory.lstrip("/") / f"swarmtask-{name}", 1), None
            else:
                unified = next(path for number, _, path in lines if number == "0")
                parent = (root / unified.lstrip("/")).parent if unified != "/" else root
                if "memory" not in (parent / "cgroup.subtree_control").read_text().split():
                    return None
                group = cls(parent / f"swarmtask-{name}", 2)
            with contextlib.suppress(FileNotFoundError):
                group._path.rmdir()  # left by a supervisor that was killed; a group that is in use refuses
            group._path.mkdir()
        except (OSError, StopIteration, ValueError):
            return None
        try:
            group._limit(limit_bytes)
        except OSError:
            group.remove()
            return None
        return group

    def _limit(self, limit_bytes: int) -> None:
        if self._version == 1:
            (self._path / "memory.limit_in_bytes").write_text(str(limit_bytes))
            with contextlib.suppress(FileNotFoundError, PermissionError):  # kernels without swap accounting
                (self._path / "memory.memsw.limit_in_bytes").write_text(str(limit_bytes))
            return
        (self._path / "memory.max").write_text(str(limit_bytes))
        with contextlib.suppress(FileNotFoundError, PermissionError):
            (self._path / "memory.swap.max").write_text("0")

    def enter(self) -> None:
        """Called in the child between fork and exec."""
        (self._path / "cgroup.procs").write_text("0")

    def oom_kills(self) -> int:
        try:
            text = (self._path / ("memory.oom_control" if self._version == 1 else "memory.events")).read_text()
        except OSError:
            return 0
        return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)

    def remove(self) -> None:
        for _ in range(50):
            try:
                self._path.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(0.02)
            else:
                return


def processes() -> dict[int, tuple[int, int]]:
    """PID -> (parent's PID, resident bytes) of all processes; from /proc, or from ps where there is none."""
    found: dict[int, tuple[int, int]] = {}
    if not Path("/proc/self/stat").exists():
        listing = subprocess.run(["ps", "-axo", "pid=,ppid=,rss="], capture_output=True, check=False, timeout=5).stdout
        for line in listing.splitlines():
            pid, parent, resident = map(int, line.split())
            found[pid] = (parent, resident * 1024)
        return found
    for entry in os.listdir("/proc"):  # noqa: PTH208 - names are enough
        if entry.isdigit():
            try:
                text = Path(f"/proc/{entry}/stat").read_bytes()
            except OSError:
                continue  # ended meanwhile
            fields = text[text.rindex(b")") + 2 :].split()
            found[int(entry)] = (int(fields[1]), int(fields[21]) * PAGE)
    return found


def descendants(of: int) -> dict[int, int]:
    """PID -> resident bytes of everything below a process."""
    everyone = processes()
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in everyone.items():
        children.setdefault(parent, []).append(pid)
    below: dict[int, int] = {}
    queue = list(children.get(of, ()))
    while queue:
        pid = queue.pop()
        if pid not in below:
            below[pid] = everyone[pid][1]
            queue += children.get(pid, ())
    return below


def start_ticks(pid: int) -> int:
    """When a process started, in ticks since boot; with the PID it names a process for ever. 0 where there is no /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    return int(text[text.rindex(b")") + 2 :].split()[19])


def prctl(option: int, value: int) -> None:
    """Linux only; elsewhere what it would guard is left to the process group."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


class Supervisor:
    """Runs one program to its end. Times are of the monotonic clock."""

    def __init__(self, directory: Path, boot_id: str) -> None:
        self._directory, self._boot_id = directory, boot_id
        self._spec: dict[str, Any] = json.loads((directory / "spec.json").read_text(encoding="utf-8"))
        self._limit_bytes: int | None = self._spec["memory_limit_bytes"]
        self._pid = 0
        self._status: int | None = None
        self._ended_at = 0.0
        self._group: MemoryGroup | None = None
        self._over_limit = 0
        self._kill_at: float | None = None
        self._shutdown = False
        self._next_sample = 0.0

    def run(self) -> None:
        if self._stop_wanted() is not None:
            self._record(None, state="Stopped", message="stopped before it ran")
            return
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK) if hasattr(os, "pipe2") else os.pipe()
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._told_to_go)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        control = self._open_control()
        started = {"started_at": timestamp(), "boot_id": self._boot_id, "pid": 0, "ticks": 0}
        write_json(self._directory / "started.json", started)
        if self._limit_bytes is not None:
            self._group = MemoryGroup.make(self._spec["name"], self._limit_bytes)
        output_read, output_write = os.pipe()
        output = Output(self._directory, self._spec["max_output_bytes"])
        try:
            child = self._spawn(output_write)
        except (OSError, ValueError) as error:
            self._cannot_start(error)
            return
        finally:
            os.close(output_write)
            (self._directory / "env.json").unlink(missing_ok=True)
        self._pid = child.pid
        write_json(self._directory / "started.json", started | {"pid": child.pid, "ticks": start_ticks(child.pid)})
        self._hint()
        self._supervise(output, output_read, control, wake_read)
        self._end(output)

    # --- beginning ----------------------------------------------------------------------------------------------------------

    def _spawn(self, output: int) -> subprocess.Popen[bytes]:
        environment: dict[str, str] = json.loads((self._directory / "env.json").read_text(encoding="utf-8"))
        group = self._group

        def in_child() -> None:
            os.umask(0o022)
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if group is not None:
                group.enter()

        return subprocess.Popen(
            self._spec["argv"], env=environment, cwd=self._spec["working_dir"], stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True, close_fds=True, preexec_fn=in_child,  # noqa: PLW1509 - one thread
        )  # fmt: skip

    def _cannot_start(self, error: OSError | ValueError) -> None:
        code, what = 126, str(error)
        if isinstance(error, OSError):
            code = 127 if isinstance(error, FileNotFoundError) else 126
            where = error.filename if error.filename is not None else self._spec["argv"][0]
            what = f"cannot start {where!r}: {error.strerror}"
        if self._group is not None:
            self._group.remove()
        self._record(code, message=what)

    def _open_control(self) -> int:
        """The engine writes a byte here after it has written `stop.json`; held open for writing too, so that it never ends."""
        path = self._directory / "control"
        with contextlib.suppress(FileExistsError):
            os.mkfifo(path, 0o600)
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def _told_to_go(self, *_: object) -> None:
        self._shutdown = True

    # --- while it runs ------------------------------------------------------------------------------------------------------

    def _supervise(self, output: Output, output_read: int, control: int, wake: int) -> None:
        selector = selectors.DefaultSelector()
        for handle in (output_read, control, wake):
            selector.register(handle, selectors.EVENT_READ)
        open_output, last_output = True, time.monotonic()
        stopping = False
        while True:
            ready = {key.fd for key, _ in selector.select(self._patience_s(output, open_output))}
            if output_read in ready:
                chunk = os.read(output_read, 65536)
                if chunk:
                    output.add(chunk)
                    last_output = time.monotonic()
                else:
                    selector.unregister(output_read)
                    open_output = False
            for handle in (control, wake):
                if handle in ready:
                    os.read(handle, 4096)
            self._reap()
            now = time.monotonic()
            if output.unfinished and now - last_output >= IDLE_FLUSH_S:
                output.flush()
            if self._status is not None and (not open_output or now - self._ended_at > DRAIN_S):
                return
            grace_s = self._stop_wanted()
            if self._status is None and grace_s is not None:
                self._kill_at = min(self._kill_at if self._kill_at is not None else now + grace_s, now + grace_s)
                if not stopping:
                    stopping = True
                    self._signal_group(signal.SIGTERM)
            if self._status is None and self._kill_at is not None and now >= self._kill_at:
                self._kill_all()
            self._measure(now)

    def _patience_s(self, output: Output, open_output: bool) -> float:
        now = time.monotonic()
        waits = [1.0]
        if output.unfinished:
            waits.append(IDLE_FLUSH_S)
        if self._kill_at is not None:
            waits.append(max(0.01, self._kill_at - now))
        if self._status is not None:
            waits.append(0.02 if open_output else 0.0)
        elif self._limit_bytes is not None and self._group is None:
            waits.append(SAMPLE_S)
        return min(waits)

    def _stop_wanted(self) -> float | None:
        """Seconds of grace; None while nobody asked. Asked again and again: of several wishes the earliest end holds."""
        try:
            wish = json.loads((self._directory / "stop.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return float(self._spec["grace_s"]) if self._shutdown else None
        return max(0.0, float(wish["grace_s"]))

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._pid:
                self._status, self._ended_at = os.waitstatus_to_exitcode(status), time.monotonic()
                self._kill_all()  # what it left behind must not act on

    def _measure(self, now: float) -> None:
        """The memory limit where there is no cgroup: resident bytes of everything below us, seen every SAMPLE_S."""
        if self._limit_bytes is None or self._group is not None or self._status is not None or now < self._next_sample:
            return
        self._next_sample = now + SAMPLE_S
        resident = sum(descendants(os.getpid()).values())
        if resident > self._limit_bytes:
            self._over_limit = resident
            self._kill_all()

    def _signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, number)

    def _kill_all(self) -> None:
        if self._status is None:
            self._signal_group(signal.SIGKILL)
        if sys.platform != "linux":
            return
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    # --- the end ------------------------------------------------------------------------------------------------------------

    def _end(self, output: Output) -> None:
        for _ in range(200):  # what appears between two looks is killed too
            self._kill_all()
            self._reap()
            if sys.platform != "linux" or not descendants(os.getpid()):
                break
            time.sleep(0.01)
        output.flush()
        status = self._status if self._status is not None else 0  # `_supervise` returns only when there is one
        code = status if status >= 0 else 128 - status
        reason, words = None, [output.failed] if output.failed else []
        oom_kills = self._group.oom_kills() if self._group is not None else 0
        if self._over_limit or (oom_kills and code != 0):
            seen = f"{self._over_limit} bytes resident" if self._over_limit else f"{oom_kills} OOM kills"
            reason = "OOMKilled"
            words.insert(0, f"it went over its memory limit of {self._limit_bytes} bytes ({seen})")
        elif self._shutdown and not (self._directory / "stop.json").exists():
            reason = "NodeRestarted"
            words.insert(0, "its supervisor was told to end (SIGTERM): the machine or its service manager was shutting down")
        if self._group is not None:
            self._group.remove()
        self._record(code, reason=reason, message="; ".join(words))

    def _record(self, exit_code: int | None, *, state: str = "Exited", reason: str | None = None, message: str = "") -> None:
        (self._directory / "env.json").unlink(missing_ok=True)
        record = {"state": state, "exit_code": exit_code, "reason": reason, "message": message, "finished_at": timestamp()}
        write_json(self._directory / "exit.json", record)
        self._hint()

    def _hint(self) -> None:
        """Wake the engine, if one listens."""
        with contextlib.suppress(OSError):
            handle = os.open(self._directory.parent.parent / "hints", os.O_WRONLY | os.O_NONBLOCK)
            try:
                os.write(handle, (self._spec["name"] + "\n").encode())
            finally:
                os.close(handle)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
