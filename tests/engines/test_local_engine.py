"""The local engine keeps the contract, and survives its operator, its supervisor and its machine."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import psutil
import pytest

from swarmtask.clock import SystemClock
from swarmtask.engines.base import Availability, Engine, GpuDevice, WorkloadState
from swarmtask.engines.local import LocalEngine, shim
from swarmtask.engines.local.output import OutputReader
from swarmtask.engines.local.record import Record
from swarmtask.errors import ConfigurationError, EngineRejected
from swarmtask.lifecycle.messages import Reason
from swarmtask.settings import LocalSettings
from tests.engines.contract import EATS_MEMORY, ENDLESS, MIB, EngineContract, Program, ProgramContract, Rig, exits

SHIM = Path(shim.__file__).read_text()


class LocalRig(Rig):
    def __init__(self, state_dir: Path, **settings: int) -> None:
        self.state_dir = state_dir
        self.settings = LocalSettings(**settings)
        super().__init__(self.fresh(), LocalEngine._hostname())

    def fresh(self) -> LocalEngine:
        """Another engine object on the same state: what a restarted operator has."""
        return LocalEngine(self.settings, self.state_dir, SystemClock())

    def directory(self, name: str) -> Path:
        return self.state_dir / "attempts" / name

    async def break_engine(self) -> None:
        shutil.move(self.state_dir / "attempts", self.state_dir / "elsewhere")
        (self.state_dir / "attempts").write_text("in the way")


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[LocalRig]:
    rig = LocalRig(tmp_path / "state")
    await rig.engine.start()
    yield rig
    shutil.rmtree(rig.state_dir / "elsewhere", ignore_errors=True)
    if (rig.state_dir / "attempts").is_dir():
        for seen in await rig.engine.workloads():
            await rig.engine.remove(seen.name)
    await rig.engine.aclose()


class TestLocalKeepsTheContract(EngineContract, ProgramContract):
    pass


def test_it_is_an_engine(tmp_path: Path) -> None:
    engine: Engine = LocalEngine(LocalSettings(), tmp_path, SystemClock())
    assert engine.name == "local"


@pytest.mark.slow
async def test_a_restarted_operator_finds_what_runs_and_what_ended_meanwhile(rig: LocalRig) -> None:
    running, ending = rig.workload(ENDLESS), rig.workload(Program("sleep 0.3; exit 9"))
    await rig.engine.submit(running)
    await rig.engine.submit(ending)
    await rig.running(running.name)
    await rig.engine.aclose()
    rig.engine = rig.fresh()
    await rig.engine.start()
    assert (await rig.running(running.name)).node_id == rig.node_id
    assert (await rig.finished(ending.name)).exit_code == 9
    await rig.engine.submit(running)
    assert len(await rig.engine.workloads()) == 2


async def test_of_an_attempt_from_before_the_fence_was_kept_nothing_is_told(rig: LocalRig) -> None:
    work = rig.workload(ENDLESS)
    await rig.engine.submit(work)
    await rig.running(work.name)
    file = rig.directory(work.name) / "spec.json"
    spec = json.loads(file.read_bytes())
    for strange in ({}, {"fence": None}, {"fence": "true"}):
        file.write_text(json.dumps({key: value for key, value in spec.items() if key != "fence"} | strange))
        assert (await rig.running(work.name)).fence is None


async def test_what_was_accepted_and_never_started_is_started_by_the_next_operator(
    rig: LocalRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = rig.workload(exits(5))
    with monkeypatch.context() as patch:
        patch.setattr(LocalEngine, "_supervise", lambda *_: None)  # the operator dies right after the rename
        await rig.engine.submit(work)
    seen = await rig.observe(work.name)
    assert seen is not None
    assert seen.state is WorkloadState.PENDING
    rig.engine = rig.fresh()
    await rig.engine.start()
    assert (await rig.finished(work.name)).exit_code == 5


async def test_stop_before_the_start(rig: LocalRig, monkeypatch: pytest.MonkeyPatch) -> None:
    work = rig.workload(ENDLESS)
    with monkeypatch.context() as patch:
        patch.setattr(LocalEngine, "_supervise", lambda *_: None)
        await rig.engine.submit(work)
    await rig.engine.stop(work.name, 5)
    seen = await rig.finished(work.name)
    assert (seen.state, seen.exit_code) == (WorkloadState.STOPPED, None)
    await rig.fresh().start()
    assert await rig.finished(work.name) == seen


async def test_two_supervisors_run_one_program(rig: LocalRig) -> None:
    work = rig.workload(Program("echo once; sleep 0.2"))
    await rig.engine.submit(work)
    for _ in range(3):
        rig.engine._supervise(rig.engine._find(work.name))
    await rig.finished(work.name)
    assert await rig.read(work.name) == b"once\n"


@pytest.mark.slow
async def test_a_killed_supervisor_takes_its_program_along(rig: LocalRig) -> None:
    work = rig.workload(ENDLESS)
    await rig.engine.submit(work)
    await rig.running(work.name)
    while not (pid := orjson.loads((rig.directory(work.name) / "started.json").read_bytes())["pid"]):
        await rig.pass_time()
    program = psutil.Process(pid)
    os.kill(program.ppid(), signal.SIGKILL)
    seen = await rig.finished(work.name)
    assert (seen.state, seen.exit_code, seen.reason) == (WorkloadState.EXITED, None, None)
    assert "supervisor was killed" in seen.message
    await asyncio.to_thread(psutil.wait_procs, [program], 5)
    assert not program.is_running() or program.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("ended", [False, True])
def test_a_supervisor_that_begins_between_two_looks_is_not_lost(tmp_path: Path, ended: bool) -> None:
    """A look at the lock just before the supervisor takes it says nothing about a program that was begun just after."""
    handles: list[int] = []

    class BeginsAfterTheLook(Record):
        def supervised(self) -> bool:
            seen = super().supervised()
            handle = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            handles.append(handle)
            begun = {"started_at": "2026-01-01T00:00:00Z", "boot_id": "this", "pid": 0, "ticks": 0}
            shim.write_json(self.directory / "started.json", begun)
            if ended:
                end = {"state": "Exited", "exit_code": 0, "reason": None, "message": "", "finished_at": "2026-01-01T00:00:01Z"}
                shim.write_json(self.directory / "exit.json", end)
            return seen

    owner = {"task_uid": "uid", "namespace": "default", "task_name": "lint", "attempt": 1, "node_id": "desk"}
    shim.write_json(tmp_path / "spec.json", owner)
    try:
        seen = BeginsAfterTheLook(tmp_path).observe("this")
    finally:
        for handle in handles:
            os.close(handle)
    assert handles
    assert seen is not None
    if ended:
        assert (seen.state, seen.exit_code, seen.message) == (WorkloadState.EXITED, 0, "")
    else:
        assert (seen.state, seen.message) == (WorkloadState.RUNNING, "")


async def test_a_restart_of_the_machine_is_told_from_an_exit(rig: LocalRig) -> None:
    work = rig.workload(ENDLESS)
    await rig.engine.submit(work)
    await rig.running(work.name)
    await rig.engine.remove(work.name)
    gone = rig.directory(work.name)
    gone.mkdir()
    spec = {"task_uid": "u", "namespace": "n", "task_name": "t", "attempt": 1, "node_id": rig.node_id}
    shim.write_json(gone / "spec.json", spec)
    shim.write_json(
        gone / "started.json", {"started_at": "2026-01-01T00:00:00Z", "boot_id": "another", "pid": os.getpid(), "ticks": 1}
    )
    seen = await rig.finished(work.name)
    assert (seen.state, seen.reason, seen.exit_code) == (WorkloadState.EXITED, Reason.NODE_RESTARTED, None)


async def test_sigterm_to_the_supervisor_is_a_shutdown(rig: LocalRig) -> None:
    work = rig.workload(ENDLESS, grace_s=5)
    await rig.engine.submit(work)
    await rig.running(work.name)
    while not (pid := orjson.loads((rig.directory(work.name) / "started.json").read_bytes())["pid"]):
        await rig.pass_time()
    os.kill(psutil.Process(pid).ppid(), signal.SIGTERM)
    seen = await rig.finished(work.name)
    assert (seen.exit_code, seen.reason) == (0, Reason.NODE_RESTARTED)


@pytest.mark.slow
@pytest.mark.parametrize("cgroup", [True, False], ids=["cgroup", "measured"])
async def test_memory_limit_with_and_without_a_cgroup(rig: LocalRig, tmp_path: Path, cgroup: bool, monkeypatch) -> None:
    if not cgroup:  # a supervisor that finds no cgroups
        text = SHIM.replace('Path("/sys/fs/cgroup")', f"Path({str(tmp_path / 'none')!r})")
        (tmp_path / "shim.py").write_text(text)
        monkeypatch.setattr(shim, "__file__", str(tmp_path / "shim.py"))
    else:
        probe = shim.MemoryGroup.make("st-probe", 64 * MIB)
        if probe is None:
            pytest.skip("this user may not make memory cgroups here")
        probe.remove()
    seen = await rig.run(EATS_MEMORY, memory_limit_bytes=32 * MIB)
    assert (seen.exit_code, seen.reason) == (137, Reason.OOM_KILLED)
    assert "memory limit of 33554432 bytes" in seen.message
    assert ("OOM kills" in seen.message) is cgroup
    modest = await rig.run(exits(0), memory_limit_bytes=32 * MIB)
    assert (modest.exit_code, modest.reason) == (0, None)


async def test_output_is_bounded_and_says_so(tmp_path: Path) -> None:
    rig = LocalRig(tmp_path / "state", max_output_bytes=8192)
    await rig.engine.start()
    work = rig.workload(Program("i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done"))
    await rig.engine.submit(work)
    await rig.finished(work.name)
    text = await rig.read(work.name)
    assert text.startswith(b"[swarmtask: earlier output was dropped")
    assert text.endswith(b"line 1998\nline 1999\n")
    assert await rig.read(work.name, tail=1) == b"line 1999\n"
    assert sum(file.stat().st_size for file in rig.directory(work.name).glob("output*")) <= 8192
    await rig.engine.remove(work.name)
    await rig.engine.aclose()


async def test_a_line_without_end_is_shown_and_long_lines_stay_whole(rig: LocalRig) -> None:
    work = rig.workload(Program("printf prompt:; head -c 100000 /dev/zero | tr '\\0' x; echo; printf end"))
    await rig.engine.submit(work)
    await rig.finished(work.name)
    assert await rig.read(work.name) == b"prompt:" + b"x" * 100_000 + b"\nend"
    assert await rig.read(work.name, tail=1) == b"end"


@pytest.mark.slow
async def test_descendants_that_left_the_group_end_with_it(rig: LocalRig) -> None:
    work = rig.workload(Program("setsid sh -c 'echo $$; sleep 300' & sleep 0.5; exit 0"))
    await rig.engine.submit(work)
    seen = await rig.finished(work.name)
    assert seen.exit_code == 0
    assert not psutil.pid_exists(int(await rig.read(work.name)))


async def test_secrets_leave_the_disk_when_the_program_has_started(rig: LocalRig) -> None:
    work = rig.workload(ENDLESS, env=(("TOKEN", "canary-5f1c"),))
    await rig.engine.submit(work)
    await rig.running(work.name)
    while (rig.directory(work.name) / "env.json").exists():
        await rig.pass_time()
    assert not [path for path in rig.state_dir.rglob("*") if path.is_file() and b"canary-5f1c" in path.read_bytes()]


async def test_the_environment_is_small_and_given_values_win(rig: LocalRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPERATOR_SECRET", "canary")
    work = rig.workload(Program("env -0"), env=(("LANG", "de_DE"), ("X", "1")))
    await rig.engine.submit(work)
    await rig.finished(work.name)
    env = dict(line.split("=", 1) for line in (await rig.read(work.name)).decode().split("\0")[:-1])
    without_gpus = {"NVIDIA_VISIBLE_DEVICES": "void", "CUDA_VISIBLE_DEVICES": ""}
    assert set(env) - {"PWD", "OLDPWD", "SHLVL", "_"} == {"PATH", "HOME", "LANG", "X", *without_gpus}
    assert env | without_gpus == env
    assert env["LANG"] == "de_DE"


async def test_a_process_sees_only_the_gpus_of_its_attempt(rig: LocalRig) -> None:
    own = (("CUDA_VISIBLE_DEVICES", "0,1,2,3"),)
    devices = (GpuDevice(1, "nvidia", "GPU-b"), GpuDevice(3, "nvidia", "GPU-d"))
    work = rig.workload(Program("env -0"), env=own, gpus=2, gpu_devices=devices)
    await rig.engine.submit(work)
    await rig.finished(work.name)
    env = dict(line.split("=", 1) for line in (await rig.read(work.name)).decode().split("\0")[:-1])
    told = (env["CUDA_VISIBLE_DEVICES"], env["CUDA_DEVICE_ORDER"], env["NVIDIA_VISIBLE_DEVICES"])
    assert told == ("GPU-b,GPU-d", "PCI_BUS_ID", "GPU-b,GPU-d")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"command": (), "args": ()}, "container.command or container.args"),
        ({"args": ("a\0b",)}, "NUL"),
        ({"node_id": "elsewhere"}, "has one node"),
        ({"name": "../../etc"}, "no workload name"),
    ],
)
async def test_refusals_say_what_to_do(rig: LocalRig, changes: dict, words: str) -> None:
    with pytest.raises(EngineRejected, match=words):
        await rig.engine.submit(rig.workload(exits(0), **changes))
    assert await rig.engine.workloads() == ()


async def test_a_working_directory_that_is_not_there(rig: LocalRig) -> None:
    seen = await rig.run(exits(0), working_dir="/no/such/dir")
    assert seen.exit_code == 127
    assert "/no/such/dir" in seen.message


async def test_a_state_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="--data-dir"):
        await LocalEngine(LocalSettings(), tmp_path / "file" / "state", SystemClock()).start()


async def test_labels_and_availability_survive_the_operator(rig: LocalRig) -> None:
    await rig.engine.label_node(rig.node_id, {"a": "1"})
    await rig.engine.set_availability(rig.node_id, Availability.DRAIN)
    (node,) = await rig.fresh().nodes()
    assert (dict(node.labels), node.available) == ({"a": "1"}, False)


async def test_a_follower_keeps_up_with_files_that_are_replaced(tmp_path: Path) -> None:
    output, reader = shim.Output(tmp_path, 65536), OutputReader(tmp_path, tail=None, timestamps=False)
    assert reader.advance() == b""
    expected, got = b"", b""
    for number in range(3000):
        line = f"line {number} {'x' * 40}\n".encode()
        output.add(line)
        expected += line
        if number % 100 == 0:
            got += reader.advance()
    got += reader.advance(ended=True)
    assert got == expected
    assert (tmp_path / "output.1.log").exists()
    reader.close()


def test_a_full_disk_costs_output_and_is_told(tmp_path: Path) -> None:
    output = shim.Output(tmp_path, 4096)
    output._file.close()
    output._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115, PTH123 - closed with the test
    output.add(b"lost\n")
    assert "No space left" in output.failed


def test_memory_groups_of_version_2_lie_beside_ours(tmp_path: Path) -> None:
    """The paths and files only: no kernel with version 2 is needed."""
    own, root = tmp_path / "own", tmp_path / "cgroup"
    (root / "app.slice" / "own.scope").mkdir(parents=True)
    own.write_text("0::/app.slice/own.scope\n")
    (root / "app.slice" / "cgroup.subtree_control").write_text("cpu memory pids")
    group = shim.MemoryGroup.make("st-1", 5, root, own)
    assert group is not None
    made = root / "app.slice" / "swarmtask-st-1"
    assert (made / "memory.max").read_text() == "5"
    (made / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    assert group.oom_kills() == 2
    (root / "app.slice" / "cgroup.subtree_control").write_text("cpu")
    assert shim.MemoryGroup.make("st-2", 5, root, own) is None
    assert shim.MemoryGroup.make("st-3", 5, root, tmp_path / "none") is None
