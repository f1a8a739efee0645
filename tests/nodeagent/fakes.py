"""A Docker daemon on a unix socket and a machine's cgroup tree, both as recorded from real ones; a boot clock moved by hand."""

from __future__ import annotations

import json
import queue
import socketserver
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from swarmtask.clock import SystemClock

START = datetime(2026, 1, 1, tzinfo=UTC)
UID = "11111111-2222-4333-8444-{:012d}"
GIB = 2**30
MOST_TOLD = 256
"""Docker remembers so many events, for those who ask `since`."""


class HandClock:
    """All clocks in one; `wait` moves it, so nothing in a test waits."""

    def __init__(self) -> None:
        self.elapsed_s = 1000.0
        self.on_wait: list[Callable[[], None]] = []

    def now(self) -> datetime:
        return START + timedelta(seconds=self.elapsed_s)

    def monotonic(self) -> float:
        return self.elapsed_s

    boot_time = monotonic

    async def sleep(self, delay_s: float) -> None:
        self.elapsed_s += delay_s

    def wait(self, delay_s: float) -> None:
        self.elapsed_s += delay_s
        for act in self.on_wait:
            act()


def container_id(number: int) -> str:
    return f"{number:064x}"


def attempt(number: int) -> str:
    return f"st-{UID.format(number).replace('-', '')[:16]}-{number}"


def until(holds: Callable[[], bool], within_s: float = 20) -> None:
    """Threads or processes are at work: give them so much real time to bring a state about."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        threading.Event().wait(0.02)


class FakeDocker:
    """Answers what Docker 20.10 and 28 answer to list, inspect, kill and events; anything else is a failure of the test.

    Attributes:
        containers: by ID, as `inspect` shows them, with `Labels` beside.
        deaf: containers that SIGTERM does not end; undead: that SIGKILL does not.
        broken: every answer is 500. hung: none comes.
    """

    def __init__(self, path: Path, clock: HandClock | SystemClock) -> None:
        self.path, self.clock = path, clock
        self.containers: dict[str, dict[str, Any]] = {}
        self.deaf: set[str] = set()
        self.undead: set[str] = set()
        self.broken = self.hung = False
        self._let_go = threading.Event()
        self.signals: list[tuple[str, str, float]] = []
        self.asked: list[str] = []
        self.unexpected: list[str] = []
        self.told: list[dict[str, Any]] = []
        self.streams: list[queue.Queue[dict[str, Any] | None]] = []
        self.listening = threading.Event()
        self.lock = threading.RLock()
        self._server: socketserver.ThreadingUnixStreamServer | None = None

    def start(self) -> None:
        docker = self

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 128

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def address_string(self) -> str:
                return "unix"

            def log_message(self, *_: object) -> None:
                return

            def do_GET(self) -> None:
                docker._serve(self, "GET")

            def do_POST(self) -> None:
                docker._serve(self, "POST")

        self._server = Server(str(self.path), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """As `kill -9`: the socket's file stays, nobody answers."""
        self._let_go.set()
        if self._server is not None:
            self.break_streams()
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def run(
        self, number: int, *, fence: bool = True, priority: int | None = 0, memory: int = GIB, pid: int = 0, **labels: str
    ) -> str:
        """A container begins."""
        name = container_id(number)
        own = {
            "swarmtask.io/managed": "true", "swarmtask.io/cluster": "c1", "swarmtask.io/task-uid": UID.format(number),
            "swarmtask.io/attempt": str(number), "swarmtask.io/fence": str(fence).lower(),
        }  # fmt: skip
        if priority is not None:
            own["swarmtask.io/priority"] = str(priority)
        state = {
            "Status": "running", "Running": True, "Paused": False, "Pid": pid or 1000 + number, "ExitCode": 0, "OOMKilled": False,
            "StartedAt": self._time(), "FinishedAt": "0001-01-01T00:00:00Z",
        }  # fmt: skip
        with self.lock:
            self.containers[name] = {
                "Id": name, "State": state, "HostConfig": {"Memory": memory, "MemoryReservation": 0}, "Config": {},
                "Labels": own | labels,
            }  # fmt: skip
        self.emit("start", name)
        return name

    def end(self, name: str, code: int = 0, *, oom: bool = False) -> None:
        """Its main process ends."""
        with self.lock:
            state = self.containers[name]["State"]
            if not state["Running"]:
                return
            state.update(Status="exited", Running=False, Pid=0, ExitCode=code, OOMKilled=oom, FinishedAt=self._time())
        self.emit("die", name, exitCode=str(code))

    def remove(self, name: str) -> None:
        with self.lock:
            del self.containers[name]
        self.emit("destroy", name)

    def emit(self, action: str, name: str, **attributes: str) -> None:
        nanos = round((self.clock.now() - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1e9)
        event = {"Type": "container", "Action": action, "Actor": {"ID": name, "Attributes": attributes}, "timeNano": nanos}
        with self.lock:
            self.told = [*self.told, event][-MOST_TOLD:]
            for stream in self.streams:
                stream.put(event)

    def break_streams(self) -> None:
        with self.lock:
            self.listening.clear()
            for stream in self.streams:
                stream.put(None)
            self.streams.clear()

    def alive(self) -> set[str]:
        with self.lock:
            return {name for name, one in self.containers.items() if one["State"]["Running"]}

    def _time(self) -> str:
        return self.clock.now().isoformat(timespec="microseconds").replace("+00:00", "") + "123Z"  # Docker gives nanoseconds

    def _serve(self, handler: BaseHTTPRequestHandler, method: str) -> None:
        url = urlsplit(handler.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        parts = url.path.strip("/").split("/")
        self.asked.append(f"{method} {url.path}")
        if self.hung:
            self._let_go.wait(60)
            return None
        if self.broken:
            return self._answer(handler, 500, {"message": "it is broken"})
        match (method, parts):
            case ("GET", ["containers", "json"]):
                return self._answer(handler, 200, self._list(query))
            case ("GET", ["containers", name, "json"]):
                with self.lock:
                    found = self.containers.get(name)
                    return self._answer(handler, 200 if found else 404, dict(found or {"message": "No such container"}))
            case ("POST", ["containers", name, "kill"]):
                return self._kill(handler, name, query["signal"])
            case ("GET", ["events"]):
                return self._events(handler, query)
        self.unexpected.append(handler.path)
        return self._answer(handler, 400, {"message": "nobody asks for this"})

    def _list(self, query: dict[str, str]) -> list[dict[str, Any]]:
        assert query["all"] == "1"
        wanted = dict(label.split("=", 1) for label in json.loads(query["filters"])["label"])
        with self.lock:
            return [
                {"Id": one["Id"], "Labels": one["Labels"], "State": one["State"]["Status"]}
                for one in reversed(self.containers.values())
                if wanted.items() <= one["Labels"].items()
            ]

    def _kill(self, handler: BaseHTTPRequestHandler, name: str, signal: str) -> None:
        with self.lock:
            one = self.containers.get(name)
            self.signals.append((name, signal, self.clock.boot_time()))
            if one is None or not one["State"]["Running"]:
                return self._answer(handler, 404 if one is None else 409, {"message": "is not running"})
        if signal == "SIGKILL":
            if name not in self.undead:
                self.end(name, 137)
        elif name not in self.deaf:
            self.end(name, 143)
        return self._answer(handler, 204, None)

    def _events(self, handler: BaseHTTPRequestHandler, query: dict[str, str]) -> None:
        assert json.loads(query["filters"])["type"] == ["container"]
        stream: queue.Queue[dict[str, Any] | None] = queue.Queue()
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.flush()
        seconds, _, nanos = query.get("since", "").partition(".")
        with self.lock:
            if seconds:
                since_nanos = int(seconds) * 10**9 + int(nanos.ljust(9, "0"))
                for told in self.told:
                    if told["timeNano"] >= since_nanos:
                        stream.put(told)
            self.streams.append(stream)
            self.listening.set()
        while (event := stream.get()) is not None:
            line = json.dumps(event).encode() + b"\n"
            try:
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                handler.wfile.flush()
            except OSError:
                break
        handler.close_connection = True

    @staticmethod
    def _answer(handler: BaseHTTPRequestHandler, code: int, body: object) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        try:
            handler.send_response(code)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content)
        except OSError:  # who asked has not waited
            handler.close_connection = True


class CgroupTree:
    """A host's /proc and /sys/fs/cgroup, version 1 or 2, with files as real kernels write them."""

    def __init__(self, root: Path, version: int) -> None:
        self.root, self.proc, self.version = root / "cgroup", root / "proc", version
        self.proc.mkdir(parents=True)
        self.root.mkdir()
        if version == 2:
            (self.root / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
        else:
            for name in ("memory", "cpu,cpuacct"):
                (self.root / name).mkdir()

    def begin(self, name: str, pid: int, parent: str = "docker") -> None:
        path = f"/{parent}/{name}"
        process = self.proc / str(pid)
        process.mkdir(exist_ok=True)
        lines = f"0::{path}\n" if self.version == 2 else f"5:cpu,cpuacct:{path}\n4:memory:{path}\n0::/\n"
        (process / "cgroup").write_text(lines)
        for directory in self._directories(path):
            directory.mkdir(parents=True)
            (directory / "cgroup.procs").write_text("")
        self.use(name, parent=parent)

    def use(
        self, name: str, *, memory: int = 2**20, peak: int = 2**20, cpu_s: float = 0.5, kills: int = 0, hits: int = 0,
        own: int | None = None, parent: str = "docker",
    ) -> None:  # fmt: skip
        """`own`: how often the kernel found no memory within its own limit; as often as it killed unless said."""
        directories, own = self._directories(f"/{parent}/{name}"), kills if own is None else own
        if self.version == 2:
            files = {
                "memory.current": f"{memory}\n", "memory.peak": f"{peak}\n",
                "memory.events": f"low 0\nhigh 0\nmax {hits}\noom {own}\noom_kill {kills}\noom_group_kill 0\n",
                "cpu.stat": f"usage_usec {round(cpu_s * 1e6)}\nuser_usec 1\nsystem_usec 1\n",
            }  # fmt: skip
        else:
            (directories[1] / "cpuacct.usage").write_text(f"{round(cpu_s * 1e9)}\n")
            files = {
                "memory.usage_in_bytes": f"{memory}\n", "memory.max_usage_in_bytes": f"{peak}\n", "memory.failcnt": f"{hits}\n",
                "memory.oom_control": f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n",
            }  # fmt: skip
        for file, text in files.items():
            (directories[0] / file).write_text(text)

    def around(self, *, ooms: int, kills: int, parent: str = "docker") -> None:
        """What version 2 counts in the cgroup above the containers: of all of them, also of those that have ended."""
        assert self.version == 2
        text = f"low 0\nhigh 0\nmax 0\noom {ooms}\noom_kill {kills}\noom_group_kill 0\n"
        (self.root / parent / "memory.events").write_text(text)

    def end(self, name: str, parent: str = "docker") -> None:
        for directory in self._directories(f"/{parent}/{name}"):
            for file in directory.iterdir():
                file.unlink()
            directory.rmdir()

    def _directories(self, path: str) -> list[Path]:
        mounts = [self.root] if self.version == 2 else [self.root / "memory", self.root / "cpu,cpuacct"]
        return [mount / path.lstrip("/") for mount in mounts]
