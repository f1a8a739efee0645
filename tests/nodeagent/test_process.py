"""`swarmtask node-agent` as people and engines start it, against the embedded API."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from pydantic import TypeAdapter

from swarmtask.cli.nodeagent import CAPABILITY, node_agent
from swarmtask.clock import SystemClock, parse_time
from swarmtask.errors import NotFound
from swarmtask.kube import KubeClient, Object
from swarmtask.nodeagent.heartbeat import beat
from swarmtask.nodeagent.link import LEASE_NAMESPACE
from swarmtask.nodeagent.records import Records
from swarmtask.resources.fields import Capability
from swarmtask.resources.kinds import LEASE, SWARM_NODE
from swarmtask.settings import CapabilityName
from tests.kube.real import real_api_server
from tests.nodeagent.fakes import FakeDocker, attempt, until
from tests.nodeagent.processes import agents

HEAVY = ("pydantic", "rich", "typer", "httpx2", "lightkube", "docker", "numpy", "structlog", "swarmtask.kube", "swarmtask.settings")


def _apart(path: Path) -> tuple[str, ...]:
    """Options that keep the agent away from this machine's own Docker and its state."""
    return "--docker", str(path / "docker.sock"), "--state", str(path / "state")


def _renewed_long_ago(state: Path, clock: SystemClock) -> None:
    state.mkdir()
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    Records(state).put_lease(boot_id, clock.boot_time() - 60)


@pytest.mark.parametrize(
    ("names", "words"), [(["coding", "has space"], "'has space' is no name"), ([f"c{number}" for number in range(61)], "too many")]
)
def test_what_is_no_capability_is_refused_before_the_api_does_so(tmp_path: Path, names: list[str], words: str) -> None:
    """The API refuses a whole status for one wrong word in it."""
    with pytest.raises(typer.BadParameter, match=words):
        node_agent(kubeconfig=tmp_path / "none", node="desk", capability=names)


def test_a_capability_is_the_same_to_tasks_settings_and_the_agent() -> None:
    pattern = TypeAdapter(Capability).json_schema()
    assert TypeAdapter(CapabilityName).json_schema() == pattern
    for name in ("coding", "a", "x.y-z_1", "", "-a", "a-", "a b", "a" * 63, "a" * 64):
        fits = re.fullmatch(pattern["pattern"], name) is not None and len(name) <= pattern["maxLength"]
        assert (CAPABILITY.fullmatch(name) is not None) == fits, name


async def _until_told(client: KubeClient) -> tuple[Object, Object]:
    """The SwarmNode's status and the Lease, once both were written."""
    async with asyncio.timeout(60):
        while True:
            try:
                lease = await client.get(LEASE, "desk", LEASE_NAMESPACE)
            except NotFound:
                lease = None
            status = (await client.get(SWARM_NODE, "desk")).get("status") or {}
            if lease is not None and "latencyMilliseconds" in status:
                return status, lease["spec"]
            await asyncio.sleep(0.1)


async def _until_attempts(client: KubeClient, states: dict[str, str]) -> dict[str, Object]:
    """`status.attempts` by ID, once it shows these states."""
    async with asyncio.timeout(60):
        while True:
            status = (await client.get(SWARM_NODE, "desk")).get("status") or {}
            told = {item["id"]: item for item in status.get("attempts") or ()}
            if {name: item["state"] for name, item in told.items()} == states:
                return told
            await asyncio.sleep(0.1)


def _port(kubeconfig: Path) -> int:
    found = re.search(r"https://[^\s:]+:(\d+)", kubeconfig.read_text())
    assert found is not None
    return int(found.group(1))


@pytest.mark.slow
@pytest.mark.parametrize("who", [("--node", "desk"), ("--engine-node", "swarm/n1")])
async def test_it_reports_until_it_is_stopped(tmp_path: Path, who: tuple[str, str]) -> None:
    async with real_api_server(tmp_path) as kubeconfig, KubeClient.from_kubeconfig(kubeconfig) as client:
        await client.create(SWARM_NODE, {"apiVersion": SWARM_NODE.api_version, "kind": "SwarmNode", "metadata": {"name": "desk"}})
        engines = {"engines": [{"name": "swarm", "id": "n1"}]}
        await client.patch(SWARM_NODE, "desk", {"status": engines}, subresource="status")
        agent = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "swarmtask", "node-agent", "--kubeconfig", str(kubeconfig), *who, *_apart(tmp_path),
            "--capability", "coding", stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            status, lease = await _until_told(client)
        finally:
            agent.send_signal(signal.SIGTERM)
            _, said = await asyncio.wait_for(agent.communicate(), 20)
        assert agent.returncode == 0, said
        assert b"this machine is SwarmNode desk" in said
        assert lease["holderIdentity"] == status["bootID"]
        assert status["engines"] == engines["engines"], "the operator's part is left alone"
        assert "coding" in status["capabilities"]
        assert {item["type"] for item in status["conditions"]} >= {"MemoryPressure", "DiskPressure", "OnBattery", "Hot"}


@pytest.mark.slow
async def test_it_stops_what_is_fenced_before_it_calls_the_api(tmp_path: Path) -> None:
    """Its last renewal is long ago, as after a night with the lid closed."""
    clock = SystemClock()
    docker = FakeDocker(tmp_path / "docker.sock", clock)
    docker.start()
    fenced, free = docker.run(1), docker.run(2, fence=False)
    _renewed_long_ago(tmp_path / "state", clock)
    async with real_api_server(tmp_path) as kubeconfig, KubeClient.from_kubeconfig(kubeconfig) as client:
        await client.create(SWARM_NODE, {"apiVersion": SWARM_NODE.api_version, "kind": "SwarmNode", "metadata": {"name": "desk"}})
        agent = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "swarmtask", "node-agent", "--kubeconfig", str(kubeconfig), "--node", "desk", *_apart(tmp_path),
            stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            status, lease = await _until_told(client)
            async with asyncio.timeout(60):
                while len(status.get("attempts", ())) < 2 or status["attempts"][0]["state"] == status["attempts"][1]["state"]:
                    await asyncio.sleep(0.1)
                    status = (await client.get(SWARM_NODE, "desk"))["status"]
        finally:
            agent.send_signal(signal.SIGTERM)
            _, said = await asyncio.wait_for(agent.communicate(), 20)
            docker.stop()
    assert agent.returncode == 0, said
    assert docker.alive() == {free}
    assert docker.unexpected == []
    # On a busy machine Docker's answer may come too late, and the signal is sent again.
    sent = {(name, how) for name, how, _ in docker.signals}
    assert sent == {(fenced, "SIGKILL")}, "its replacement may run already: there is no grace left"
    stopped_at = docker.signals[0][2]
    renewed = parse_time(lease["renewTime"])
    assert renewed.timestamp() > clock.now().timestamp() - (clock.boot_time() - stopped_at)
    told = {item["id"]: item for item in status["attempts"]}
    assert (told[attempt(1)]["reason"], told[attempt(1)]["exitCode"], told[attempt(2)]["state"]) == ("Fenced", 137, "Running")


@pytest.mark.slow
async def test_an_api_that_is_away_for_as_long_as_a_fence_and_an_agent_that_is_killed_meanwhile(tmp_path: Path) -> None:
    """The whole process on real clocks: what is fenced stops, and is told when the API is back, by the agent's successor."""
    clock = SystemClock()
    docker = FakeDocker(tmp_path / "docker.sock", clock)
    docker.start()
    fenced, free = docker.run(1), docker.run(2, fence=False)
    done = docker.run(3)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(docker.stop)
        running = await stack.enter_async_context(agents(*_apart(tmp_path), "--fence-seconds", "10"))
        async with real_api_server(tmp_path) as kubeconfig, KubeClient.from_kubeconfig(kubeconfig) as client:
            port = _port(kubeconfig)
            await client.create(
                SWARM_NODE, {"apiVersion": SWARM_NODE.api_version, "kind": "SwarmNode", "metadata": {"name": "desk"}}
            )
            await running.start(kubeconfig)
            await _until_attempts(client, {attempt(1): "Running", attempt(2): "Running", attempt(3): "Running"})
            assert docker.signals == []
        away_since = clock.boot_time()
        docker.end(done, 0)
        await running.kill()
        await running.start(kubeconfig)
        await asyncio.to_thread(until, lambda: fenced not in docker.alive(), 60)
        assert clock.boot_time() - away_since > 4, (
            "not at once: the fence counts from the last renewal, two seconds apart, four late"
        )
        async with real_api_server(tmp_path, port) as kubeconfig, KubeClient.from_kubeconfig(kubeconfig) as client:
            told = await _until_attempts(client, {attempt(1): "Exited", attempt(2): "Running", attempt(3): "Exited"})
    assert docker.alive() == {free}
    assert (told[attempt(1)]["reason"], told[attempt(3)]["reason"], told[attempt(3)]["exitCode"]) == ("Fenced", "", 0)


def test_a_thread_that_fails_ends_the_process() -> None:
    """A fence that has stopped looking protects nobody."""
    program = (
        "import threading, time\nfrom swarmtask.nodeagent import __main__\nthreading.excepthook = __main__._give_up\n"
        "threading.Thread(target=lambda: 1 / 0, name='fence').start()\ntime.sleep(60)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 70
    assert "ZeroDivisionError" in done.stderr


def test_the_small_process_loads_nothing_heavy() -> None:
    program = f"import sys, swarmtask.nodeagent.__main__\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--kubeconfig"),
        (["--kubeconfig", "/none"], "either --node NAME or --engine-node"),
        (["--kubeconfig", "/none", "--node", "a", "--engine-node", "swarm/b"], "either --node NAME or --engine-node"),
        (["--kubeconfig", "/none", "--engine-node", "swarm"], "either --node NAME or --engine-node"),
        (["--kubeconfig", "/none", "--bootstrap", "--node", "a"], "goes with --engine-node"),
        (["--kubeconfig", "/none", "--node", "a"], "cannot read the kubeconfig /none"),
    ],
)
def test_what_is_missing_is_said(options: list[str], words: str) -> None:
    command = [sys.executable, "-m", "swarmtask", "node-agent", *options]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}
    )
    assert done.returncode == 2, done.stderr
    assert words in done.stderr.replace("\n", " ")


@pytest.mark.slow
def test_a_check_needs_no_api(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "swarmtask", "node-agent", "--check", "--state", str(tmp_path)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 1
    beat(tmp_path, time.monotonic())
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
