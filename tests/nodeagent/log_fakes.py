"""Containers that write: in memory, and behind a Docker socket as recorded from real ones. And an API that keeps output."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from swarmtask.apiserver.attempt_logs import AttemptLogs
from swarmtask.clock import SystemClock
from swarmtask.errors import Conflict, EngineUnavailable, ServiceUnavailable, SwarmTaskError
from swarmtask.nodeagent.containers import Details, Owner, attempt_id
from swarmtask.nodeagent.log_follower import Bucket, Habits, Means
from swarmtask.nodeagent.log_positions import Positions
from swarmtask.nodeagent.log_sender import LogSender, Refused, Taken
from swarmtask.nodeagent.log_source import NoOutput
from swarmtask.resources.log_records import LogRecord, Part, decode, lines, pack, unpack
from tests.nodeagent.fakes import UID, FakeDocker, HandClock

SECOND = 10**9
NODE = "desk"
BEGIN = 1_700_000_000 * SECOND


def stamp(nanoseconds: int) -> bytes:
    """As Docker writes times: always nine digits."""
    moment = datetime.fromtimestamp(nanoseconds // SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return b"%s.%09dZ" % (moment.encode(), nanoseconds % SECOND)


def frame(nanoseconds: int, text: bytes, stream: int = 1) -> bytes:
    """One message of a container without a terminal; `text` with its line feed, where it has one."""
    content = stamp(nanoseconds) + b" " + text
    return bytes([stream, 0, 0, 0]) + len(content).to_bytes(4) + content


def owner(number: int = 1) -> Owner:
    uid = UID.format(number)
    return Owner(f"st-{uid.replace('-', '')[:16]}-{number}", "default", f"task-{number}", uid, number)


@dataclass
class Container:
    """What one container has written, and what becomes of it.

    Attributes:
        written: (nanoseconds, stream, text with its line feed).
        breaks: after so many bytes of a reading it breaks off, one number for each reading.
        stalls: after so many bytes of a reading that follows nothing comes any more, one number for each of them.
        pauses: how often a reader has left what comes where it is.
    """

    written: list[tuple[int, int, bytes]] = field(default_factory=list)
    alive: bool = True
    gone: bool = False
    tty: bool = False
    chunk: int = 4096
    breaks: list[int] = field(default_factory=list)
    stalls: list[int] = field(default_factory=list)
    compared: int = 0
    pauses: int = 0
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    opened: list[tuple[int, bool]] = field(default_factory=list)

    def write(self, text: bytes, stream: int = 1, *, at: int | None = None) -> None:
        """By default a millisecond after what was written before."""
        now = at if at is not None else (self.written[-1][0] + 10**6 if self.written else BEGIN)
        self.written.append((now, stream, text))
        self.wake.set()

    def end(self) -> None:
        self.alive = False
        self.wake.set()

    def bytes_from(self, index: int, since: int) -> bytes:
        kept = [one for one in self.written[index:] if one[0] >= since]
        return b"".join(stamp(at) + b" " + text if self.tty else frame(at, text, stream) for at, stream, text in kept)


class MemoryDocker:
    """Satisfies `Source`, and `inspect`."""

    def __init__(self) -> None:
        self.containers: dict[str, Container] = {}

    async def inspect(self, container_id: str) -> Details | None:
        one = self.containers[container_id]
        if one.gone:
            return None
        return replace(Details(one.alive, 1, 0, oom_killed=False, started_at=None, finished_at=None), tty=one.tty)

    @contextlib.asynccontextmanager
    async def open(self, container_id: str, *, since: int, follow: bool, newest: bool = False) -> AsyncIterator[MemoryOutput]:
        one = self.containers[container_id]
        if one.gone:
            raise NoOutput("the container is gone", gone=True)
        if newest:
            one.compared += 1
            yield MemoryOutput(replace(one, written=one.written[-1:], breaks=[], stalls=[]), since, follow=False)
            return
        one.opened.append((since, follow))
        yield MemoryOutput(one, since, follow=follow)


class MemoryOutput:
    def __init__(self, container: Container, since: int, *, follow: bool) -> None:
        self._container, self._since, self._follow = container, since, follow
        self._index, self._left, self._cut = 0, b"", False
        self._breaks = container.breaks.pop(0) if container.breaks else -1
        self._stalls = container.stalls.pop(0) if follow and container.stalls else -1

    def pause(self) -> None:
        self._container.pauses += 1

    def resume(self) -> None:
        return

    def cut(self) -> None:
        self._cut = True
        self._container.wake.set()

    async def read(self) -> bytes:
        one = self._container
        while self._stalls == 0 and not self._cut:
            one.wake.clear()
            await one.wake.wait()
        while not self._left:
            if self._cut:
                raise EngineUnavailable("cut")
            if self._index < len(one.written):
                self._left, self._index = one.bytes_from(self._index, self._since), len(one.written)
            elif not (self._follow and one.alive):
                return b""
            else:
                one.wake.clear()
                await one.wake.wait()
        size = min(one.chunk, len(self._left))
        if self._breaks >= 0:
            size = min(size, self._breaks)
            self._breaks -= size
            if not size:
                raise EngineUnavailable("it broke off")
        if self._stalls > 0:
            size = min(size, self._stalls)
            self._stalls -= size
        chunk, self._left = self._left[:size], self._left[size:]
        return chunk


@dataclass
class MemoryApi:
    """Satisfies `LogApi` with the rules of the real store (`swarmtask.apiserver.log_files.take`; `StoreApi` is the real one).

    Attributes:
        faults: of the parts to come: lost: it is done and the answer does not come; down: nothing is done; an error is the answer.
        forget: so many records of the end are lost before the next call, as by a power cut.
    """

    records: dict[str, list[LogRecord]] = field(default_factory=dict)
    faults: list[str | SwarmTaskError] = field(default_factory=list)
    forget: int = 0
    calls: list[tuple[str, int, int]] = field(default_factory=list)
    requests: int = 0

    async def append_logs(self, node: str, parts: Sequence[Part]) -> list[Taken | SwarmTaskError]:
        await asyncio.sleep(0)
        assert node == NODE
        assert unpack(pack(parts)) == list(parts)
        self.requests += 1
        return [self._append(part) for part in parts]

    def _append(self, part: Part) -> Taken | SwarmTaskError:
        attempt, position, body = attempt_id(part.uid, str(part.attempt)), part.position, part.body
        kept = self.records.setdefault(attempt, [])
        if self.forget:
            del kept[max(0, len(kept) - self.forget) :]
            self.forget = 0
        fault = self.faults.pop(0) if self.faults else ""
        if isinstance(fault, SwarmTaskError):
            return fault
        if fault == "down":
            raise ServiceUnavailable("it is away")
        new = [record for line in lines(body) if (record := decode(line)) is not None]
        assert len(new) == body.count(b"\n"), "only whole records are sent"
        self.calls.append((attempt, position, len(new)))
        complete = bool(kept) and kept[-1].kind == "z"
        if position > len(kept) or (complete and position + len(new) > len(kept)):
            return Refused("another position", self._taken(kept))
        kept += new[len(kept) - position :]
        if fault == "lost":
            raise ServiceUnavailable("the answer was lost")
        return self._taken(kept)

    @staticmethod
    def _taken(kept: list[LogRecord]) -> Taken:
        return Taken(len(kept), kept[-1].nanoseconds if kept else 0, bool(kept) and kept[-1].kind == "z")

    def texts(self, number: int = 1) -> list[bytes]:
        """Lines; notes in brackets; the end as `END`."""
        shown = {"n": b"[%s]", "z": b"END%s", "o": b"%s", "e": b"%s"}
        return [shown[one.kind] % one.text for one in self.records.get(owner(number).attempt, [])]


class StoreApi:
    """Satisfies `LogApi` with the API server's own store."""

    def __init__(self, logs: AttemptLogs) -> None:
        self.logs = logs

    async def append_logs(self, node: str, parts: Sequence[Part]) -> list[Taken | SwarmTaskError]:
        return [await self._append(part) for part in parts]

    async def _append(self, part: Part) -> Taken | SwarmTaskError:
        try:
            taken = await self.logs.append(part.uid, part.attempt, part.position, part.body)
        except Conflict as error:
            details = error.details
            return Refused(error.message, Taken(details["position"], details["lastNanoseconds"], details["complete"]))
        except SwarmTaskError as error:
            return error
        return Taken(taken.position, taken.last_nanoseconds, taken.complete)


class TurnClock(HandClock):
    """A pause takes no time, but others get their turn."""

    async def sleep(self, delay_s: float) -> None:
        self.elapsed_s += delay_s
        await asyncio.sleep(0)


def means(
    docker: MemoryDocker, api: Any, folder: Path, *, permit: Callable[[], float | None] = lambda: 0.0, **habits: Any
) -> Means:
    """Everything a follower needs; pauses take no time but a turn of the loop."""
    clock = TurnClock()
    sender = LogSender(api, permit, node=lambda: NODE, clock=clock, rng=random.Random(1))
    quick = Habits(**({"batch_s": 0.01, "announce_s": 0.02, "over_s": 0.02, "keep_s": 0.0} | habits))
    return Means(docker, sender, Positions(folder), docker.inspect, Bucket(clock.monotonic), clock.sleep, quick)


class TalkingDocker(FakeDocker):
    """`FakeDocker` that also gives what containers write."""

    def __init__(self, path: Path, clock: HandClock | SystemClock) -> None:
        super().__init__(path, clock)
        self.output: dict[str, list[tuple[int, int, bytes]]] = {}
        self.spoken = threading.Condition()
        self.unreadable: set[str] = set()

    def say(self, name: str, *texts: bytes, stream: int = 1) -> None:
        """The container writes these lines."""
        with self.spoken:
            kept = self.output.setdefault(name, [])
            for text in texts:
                now = round(self.clock.now().timestamp() * 10**6) * 1000
                kept.append((max(now, kept[-1][0] + 1 if kept else 0), stream, text + b"\n"))
            self.spoken.notify_all()

    def end(self, name: str, code: int = 0, *, oom: bool = False) -> None:
        super().end(name, code, oom=oom)
        with self.spoken:
            self.spoken.notify_all()

    def _serve(self, handler: BaseHTTPRequestHandler, method: str) -> None:
        url = urlsplit(handler.path)
        parts = url.path.strip("/").split("/")
        if method == "GET" and len(parts) == 3 and parts[0] == "containers" and parts[2] == "logs":
            self.asked.append(f"GET {url.path}")
            return self._logs(handler, parts[1], {key: values[0] for key, values in parse_qs(url.query).items()})
        return super()._serve(handler, method)

    def _logs(self, handler: BaseHTTPRequestHandler, name: str, query: dict[str, str]) -> None:
        assert query["timestamps"] == query["stdout"] == query["stderr"] == "1"
        if name not in self.containers:
            return self._answer(handler, 404, {"message": "No such container"})
        if name in self.unreadable:
            return self._answer(handler, 501, {"message": "configured logging driver does not support reading"})
        whole, _, fraction = query.get("since", "0").partition(".")
        since = int(whole) * SECOND + int(fraction or 0)
        handler.send_response(200)
        handler.send_header("Content-Type", "application/vnd.docker.raw-stream")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        index = max(0, len(self.output.get(name, [])) - int(query.get("tail", "1000000")))
        try:
            while True:
                with self.spoken:
                    alive = self.containers.get(name, {}).get("State", {}).get("Running", False)
                    new = self.output.get(name, [])[index:]
                    index += len(new)
                    if not new and query.get("follow") == "1" and alive:
                        self.spoken.wait(0.5)
                        handler.wfile.flush()
                        continue
                if not new:
                    break
                content = b"".join(frame(at, text, stream) for at, stream, text in new if at >= since)
                for start in range(0, len(content), 1000):
                    piece = content[start : start + 1000]
                    handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                handler.wfile.flush()
            handler.wfile.write(b"0\r\n\r\n")
        except OSError:  # who read has gone
            pass
        handler.close_connection = True
        return None
