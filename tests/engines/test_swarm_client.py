"""The client of the Docker daemon against daemons that hang, break off, lie or die; and the specs that it sends."""

from __future__ import annotations

import asyncio
import io
import json
import re
import struct
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmtask.clock import SystemClock
from swarmtask.engines.base import LABEL_ATTEMPT, LABEL_CLUSTER, LABEL_MANAGED, LABEL_TASK_UID, EngineNode, Workload
from swarmtask.engines.swarm import SwarmEngine
from swarmtask.engines.swarm import spec as specs
from swarmtask.engines.swarm.client import frames
from swarmtask.engines.swarm.images import same_repository
from swarmtask.errors import ConfigurationError, EngineRejected, EngineUnavailable
from swarmtask.settings import SwarmSettings


class Daemon:
    """A daemon that answers what it is told to; None never answers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, tuple[int, object] | None] = {}
        self.asked: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
                await reader.readexactly(int(length.group(1)) if length else 0)
                path = re.sub(r"^/v[\d.]+", "", head.split()[1].decode()).partition("?")[0]
                self.asked.append(path)
                answer = self.answers.get(path, (404, {"message": "page not found"}))
                if answer is None:
                    await asyncio.sleep(3600)
                    return
                status, body = answer
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                lead = f"HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
                writer.write(lead.encode() + data)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


ACTIVE = {"Swarm": {"LocalNodeState": "active", "ControlAvailable": True, "NodeID": "n1"}}


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    daemon = Daemon(tmp_path / "d.sock")
    daemon.answers = {"/version": (200, {"ApiVersion": "1.41"}), "/info": (200, ACTIVE)}
    await daemon.start()
    yield daemon
    await daemon.stop()


def engine_of(daemon: Daemon, **settings) -> SwarmEngine:
    return SwarmEngine(SwarmSettings(docker_host=f"unix://{daemon.path}", **settings), "c1", SystemClock())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"/info": (200, {"Swarm": {"LocalNodeState": "inactive"}})}, "docker swarm init"),
        ({"/info": (200, {"Swarm": {"LocalNodeState": "error", "Error": "bad certificate"}})}, "bad certificate"),
        ({"/info": (200, {"Swarm": {"LocalNodeState": "active", "ControlAvailable": False}})}, "docker node promote"),
        ({"/version": (200, {"ApiVersion": "1.40"})}, "20.10"),
    ],
)
async def test_start_refuses_what_it_cannot_use(daemon: Daemon, changes: dict, words: str) -> None:
    daemon.answers |= changes
    with pytest.raises(ConfigurationError, match=words):
        await engine_of(daemon).start()


async def _nodes_at_last(engine: SwarmEngine) -> Sequence[EngineNode]:
    """The nodes once the threads that hang have reached their own time-outs."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await engine.nodes()
            except EngineUnavailable:
                continue


@pytest.mark.slow
async def test_more_callers_than_threads_on_a_daemon_that_never_answers(daemon: Daemon) -> None:
    engine = engine_of(daemon, timeout_s=0.5, threads=2)
    await engine.start()
    daemon.answers["/nodes"] = None
    begun = time.monotonic()
    answers = await asyncio.gather(*(engine.nodes() for _ in range(10)), return_exceptions=True)
    assert all(isinstance(answer, EngineUnavailable) for answer in answers), answers
    assert time.monotonic() - begun < 4
    daemon.answers["/nodes"] = (200, [])
    assert await _nodes_at_last(engine) == ()
    await engine.aclose()


@pytest.mark.slow
async def test_a_daemon_that_hangs_at_the_first_contact(daemon: Daemon) -> None:
    daemon.answers["/version"] = None
    engine = engine_of(daemon, timeout_s=0.5, threads=3)
    begun = time.monotonic()
    answers = await asyncio.gather(*(engine.nodes() for _ in range(6)), return_exceptions=True)
    assert all(isinstance(answer, EngineUnavailable) for answer in answers), answers
    assert time.monotonic() - begun < 4
    daemon.answers |= {"/version": (200, {"ApiVersion": "1.41"}), "/nodes": (200, [])}
    assert await _nodes_at_last(engine) == ()
    await engine.aclose()


async def test_a_daemon_that_was_away_at_start_is_found_later(daemon: Daemon) -> None:
    daemon.answers["/version"] = (503, {"message": "swarm manager is starting"})
    engine = engine_of(daemon)
    with pytest.raises(EngineUnavailable):
        await engine.start()
    daemon.answers["/version"] = (200, {"ApiVersion": "1.41"})
    await engine.start()
    await engine.aclose()


@pytest.mark.parametrize("body", [b"not json", b'{"half": '])
async def test_nonsense_is_unavailable_and_no_crash(daemon: Daemon, body: bytes) -> None:
    daemon.answers["/nodes"] = (200, body)
    engine = engine_of(daemon)
    with pytest.raises(EngineUnavailable):
        await engine.nodes()
    await engine.aclose()


WORK = Workload(
    name="st-1", task_uid="u", namespace="ns", task_name="t", attempt=1, node_id="n1", image="acme/x:1", command=("a",),
    args=("b",), env=(("A", "{{x}}"),), memory_limit_bytes=5, grace_s=7,
)  # fmt: skip


async def test_errors_of_a_submit(daemon: Daemon) -> None:
    engine = engine_of(daemon)
    refused = "rpc error: code = InvalidArgument desc = ContainerSpec: bad"
    daemon.answers["/services/create"] = (400, {"message": refused})
    with pytest.raises(EngineRejected, match="Docker refused: ContainerSpec: bad"):
        await engine.submit(WORK)
    daemon.answers["/services/create"] = (500, {"message": "rpc error: code = Unknown desc = raft"})
    with pytest.raises(EngineUnavailable, match="raft"):
        await engine.submit(WORK)
    await engine.aclose()


async def test_a_name_that_exists_is_compared(daemon: Daemon) -> None:
    engine = engine_of(daemon)
    daemon.answers["/services/create"] = (409, {"message": "name conflicts with an existing object"})
    labels = specs.owner_labels(WORK, "c1")

    def there(**changes: str) -> None:
        spec = {"Name": "st-1", "Labels": labels | changes, "TaskTemplate": {"ContainerSpec": {}}}
        daemon.answers["/services/st-1"] = (200, {"ID": "s", "Version": {"Index": 1}, "Spec": spec})

    for changes in ({}, {"swarmtask.io/spec-hash": "before an edit"}):
        there(**changes)
        await engine.submit(WORK)
    for changes in ({LABEL_TASK_UID: "other"}, {LABEL_ATTEMPT: "7"}, {LABEL_CLUSTER: "c2"}, {LABEL_MANAGED: "no"}):
        there(**changes)
        with pytest.raises(EngineRejected, match="exists already"):
            await engine.submit(WORK)
    await engine.aclose()


async def test_somebody_elses_service_is_left_alone(daemon: Daemon) -> None:
    engine = engine_of(daemon)
    spec = {"Name": "st-1", "Labels": {}, "TaskTemplate": {"ContainerSpec": {}}}
    daemon.answers["/services/st-1"] = (200, {"ID": "s", "Version": {"Index": 1}, "Spec": spec})
    await engine.stop("st-1", 1)
    await engine.remove("st-1")
    await engine.remove("../nodes/n1")
    assert set(daemon.asked) == {"/version", "/services/st-1"}
    await engine.aclose()


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ((404, {"message": "no such image"}), "acme/x:1"),
        ((200, {"Id": "sha256:" + "a" * 64, "RepoDigests": []}), "sha256:" + "a" * 64),
        ((200, {"Id": "sha256:" + "a" * 64, "RepoDigests": ["b/y@sha256:1", "acme/x@sha256:2"]}), "acme/x@sha256:2"),
        ((200, {"Id": "sha256:" + "a" * 64, "RepoDigests": ["b/y@sha256:1"]}), "acme/x:1"),
    ],
)
async def test_images_are_pinned_and_asked_for_once(daemon: Daemon, found: tuple, expected: str) -> None:
    daemon.answers["/images/acme/x:1/json"] = found
    engine = engine_of(daemon)
    assert [await engine._pinned("acme/x:1") for _ in range(3)] == [expected] * 3
    assert daemon.asked.count("/images/acme/x:1/json") == 1
    assert await engine._pinned("a@sha256:3") == "a@sha256:3"
    await engine.aclose()


def test_repositories() -> None:
    assert same_repository("busybox@sha256:1", "docker.io/library/busybox:1.36")
    assert same_repository("reg:5000/a@sha256:1", "reg:5000/a")
    assert not same_repository("evil/a@sha256:1", "a:1")


def frame(kind: int, text: bytes) -> bytes:
    return struct.pack(">BxxxL", kind, len(text)) + text


def test_log_frames() -> None:
    assert list(frames(io.BytesIO(frame(1, b"a\n") + frame(2, b"") + frame(2, b"b")))) == [b"a\n", b"", b"b"]
    assert list(frames(io.BytesIO(b"\1\0\0"))) == []
    with pytest.raises(EngineUnavailable, match="node x is not available"):
        list(frames(io.BytesIO(frame(1, b"a") + frame(3, b"node x is not available"))))


@given(st.text(alphabet=st.sampled_from(["{", "}", '"', "`", "x", " ", "\n"]), max_size=40))
def test_escaped_text_expands_to_itself(text: str) -> None:
    """Go's template reads from the left: text up to `{{`, then an action up to its end. Ours is the only action there may be."""
    out, rest = "", specs.escape(text)
    while "{{" in rest:
        plain, _, rest = rest.partition("{{")
        assert rest.startswith('"{{"}}'), "an action that is not ours"
        out, rest = out + plain + "{{", rest.removeprefix('"{{"}}')
    assert out + rest == text


def test_only_what_is_allowed_is_in_the_spec() -> None:
    template = specs.task_template(WORK, "c1", "img", pids_limit=100, capability_add=["CHOWN"])
    assert set(template) == {"ContainerSpec", "Resources", "RestartPolicy", "Placement", "LogDriver", "Networks"}
    container = template["ContainerSpec"]
    assert set(container) == {
        "Image", "Labels", "StopGracePeriod", "CapabilityDrop", "CapabilityAdd", "Privileges", "Command", "Args", "Env",
    }  # fmt: skip
    assert container["Privileges"] == {"NoNewPrivileges": True}
    assert container["StopGracePeriod"] == 7_000_000_000
    assert template["Resources"] == {"Limits": {"Pids": 100, "MemoryBytes": 5}}
    assert specs.lost_hardening(template) == []
    assert specs.lost_hardening({"ContainerSpec": {"CapabilityDrop": ["ALL"], "Privileges": {}}, "Resources": {}}) == [
        "NoNewPrivileges", "Pids",
    ]  # fmt: skip
