"""What Swarm's answers mean, without a Swarm: the records are shaped as a real one was seen to give them."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from swarmtask.engines.base import (
    LABEL_ATTEMPT,
    LABEL_FENCE,
    LABEL_TASK_NAME,
    LABEL_TASK_NAMESPACE,
    LABEL_TASK_UID,
    NodeState,
    WorkloadState,
)
from swarmtask.engines.swarm.observe import Observer, engine_node, moment
from swarmtask.engines.swarm.spec import LABEL_IMAGE, LABEL_STOPPED
from swarmtask.lifecycle.messages import Reason

T0 = datetime(2026, 1, 1, 12, tzinfo=UTC)


def stamp(after_s: float) -> str:
    return (T0 + timedelta(seconds=after_s)).strftime("%Y-%m-%dT%H:%M:%S.%f") + "123Z"


def service(**labels: str) -> dict[str, Any]:
    owner = {LABEL_TASK_UID: "u", LABEL_TASK_NAMESPACE: "ns", LABEL_TASK_NAME: "lint", LABEL_ATTEMPT: "2"}
    template = {"ContainerSpec": {"Labels": {LABEL_IMAGE: "acme/lint:1"}}}
    return {"ID": "s1", "Spec": {"Name": "st-1", "Labels": owner | labels, "TaskTemplate": template}}


_versions = itertools.count(100)


def task(state: str, at_s: float = 10, *, node: str = "n1", error: str = "", code: int | None = None, created_s: float = 1) -> Any:
    status: dict[str, Any] = {"State": state, "Timestamp": stamp(at_s), "Message": state}
    if error:
        status["Err"] = error
    if code is not None:
        status["ContainerStatus"] = {"ContainerID": "c" * 64, "PID": 0, "ExitCode": code}
    return {
        "ID": f"t-{created_s}", "ServiceID": "s1", "NodeID": node, "Version": {"Index": next(_versions)},
        "CreatedAt": stamp(created_s), "Status": status, "DesiredState": "running",
    }  # fmt: skip


def node(state: str = "ready", *, updated_s: float = -1000, version: int = 1, **labels: str) -> dict[str, Any]:
    return {
        "ID": "n1", "Version": {"Index": version}, "UpdatedAt": stamp(updated_s), "Status": {"State": state, "Addr": "10.0.0.7"},
        "Spec": {"Labels": labels, "Role": "worker", "Availability": "active"}, "Description": {"Hostname": "laptop"},
    }  # fmt: skip


def see(tasks: list[Any], nodes: list[Any] | None = None, observer: Observer | None = None, **labels: str):
    (seen,) = (observer or Observer()).observe([service(**labels)], tasks, [node()] if nodes is None else nodes)
    return seen


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("new", WorkloadState.PENDING), ("allocated", WorkloadState.PENDING), ("pending", WorkloadState.PENDING),
        ("assigned", WorkloadState.PENDING), ("accepted", WorkloadState.PENDING), ("preparing", WorkloadState.PREPARING),
        ("ready", WorkloadState.PREPARING), ("starting", WorkloadState.PREPARING), ("running", WorkloadState.RUNNING),
    ],
)  # fmt: skip
def test_states_on_a_healthy_and_on_a_lost_node(state: str, expected: WorkloadState) -> None:
    assert see([task(state)]).state is expected
    for lost in ("down", "unknown", "disconnected"):
        assert see([task(state)], [node(lost)]).state is WorkloadState.UNKNOWN
    assert see([task(state)], []).state is WorkloadState.UNKNOWN


def test_owner_and_empty_service() -> None:
    seen = see([])
    assert (seen.name, seen.task_uid, seen.namespace, seen.task_name, seen.attempt) == ("st-1", "u", "ns", "lint", 2)
    assert seen.state is WorkloadState.PENDING


@pytest.mark.parametrize(("label", "fence"), [("true", True), ("false", False), ("", False), (None, False)])
def test_what_stands_on_its_containers_is_told_whatever_became_of_them(label: str | None, fence: bool) -> None:
    """As the agent reads it: what has no such label is not stopped by it."""
    made = service()
    if label is not None:
        made["Spec"]["TaskTemplate"]["ContainerSpec"]["Labels"][LABEL_FENCE] = label
    shown = [([], [node()]), ([task("pending", node="")], [node()])]
    shown += [([task(state)], nodes) for state in ("running", "complete") for nodes in ([node()], [node("down")], [])]
    for tasks, nodes in shown:
        (seen,) = Observer().observe([made], tasks, nodes)
        assert seen.fence is fence


def test_of_a_service_without_containers_nothing_is_told() -> None:
    made = service()
    made["Spec"]["TaskTemplate"] = {}
    (seen,) = Observer().observe([made], [task("running")], [node()])
    assert seen.fence is None


@pytest.mark.parametrize(
    ("ended", "state", "code", "reason"),
    [
        (task("complete", code=0), WorkloadState.EXITED, 0, None),
        (task("failed", error="task: non-zero exit (3)", code=3), WorkloadState.EXITED, 3, None),
        (task("failed", error="task: non-zero exit (255)", code=255), WorkloadState.EXITED, 255, None),
        (task("failed", error="task: non-zero exit (137)", code=137), WorkloadState.EXITED, 137, None),
        (task("rejected", error="No such image: x:1"), WorkloadState.REJECTED, None, Reason.IMAGE_PULL_FAILED),
        (task("rejected", error="pull access denied for x"), WorkloadState.REJECTED, None, Reason.IMAGE_PULL_FAILED),
        (task("rejected", error="invalid mount"), WorkloadState.REJECTED, None, Reason.ENGINE_REJECTED),
        (
            task("failed", error="starting container failed: no such file", code=127),
            WorkloadState.REJECTED,
            None,
            Reason.ENGINE_REJECTED,
        ),
        (task("failed", error="No such container: st-1.1.x", code=0), WorkloadState.EXITED, None, Reason.NODE_RESTARTED),
        (task("shutdown"), WorkloadState.STOPPED, None, Reason.NODE_LOST),
        (task("shutdown", code=137), WorkloadState.EXITED, 137, Reason.NODE_LOST),
        (task("orphaned"), WorkloadState.UNKNOWN, None, None),
    ],
)
def test_ends(ended: Any, state: WorkloadState, code: int | None, reason: Reason | None) -> None:
    seen = see([ended])
    assert (seen.state, seen.exit_code, seen.reason) == (state, code, reason)


def test_an_end_counts_whatever_became_of_the_node() -> None:
    assert see([task("complete", code=0)], [node("down")]).state is WorkloadState.EXITED
    assert see([task("complete", code=0)], []).state is WorkloadState.EXITED


def test_a_stop_is_no_loss_and_its_replacement_is_no_attempt() -> None:
    pending = task("pending", 21, node="", created_s=20)
    for first, expected in [
        (task("running", code=-1), WorkloadState.RUNNING),
        (task("shutdown", 21, code=143), WorkloadState.EXITED),
        (task("shutdown", 21), WorkloadState.STOPPED),
        (task("pending", node=""), WorkloadState.STOPPED),
    ]:
        seen = see([pending, first], **{LABEL_STOPPED: "true"})
        assert (seen.state, seen.reason) == (expected, None)
    assert see([], **{LABEL_STOPPED: "true"}).state is WorkloadState.STOPPED
    assert see([pending], **{LABEL_STOPPED: "true"}).state is WorkloadState.STOPPED


def test_started_is_remembered_and_an_end_is_judged_once() -> None:
    observer = Observer()
    assert see([task("running", 5)], observer=observer).started_at == moment(stamp(5))
    ended = see([task("failed", 20, code=137)], observer=observer)
    assert ended.started_at == moment(stamp(5))
    # a later restart of the node's Docker stamps old ends anew (measured): the judgement stands
    again = see([task("failed", 500, code=137)], [node(updated_s=500, version=9)], observer=observer)
    assert again == ended


def test_an_end_at_the_registration_of_its_node_is_the_nodes_doing() -> None:
    observer = Observer()
    see([task("running", 5)], [node(version=1)], observer)
    seen = see([task("failed", 59.9, code=255)], [node(version=2, updated_s=60)], observer)
    assert (seen.exit_code, seen.reason) == (255, Reason.NODE_RESTARTED)


def test_a_stop_that_reached_a_lost_node_when_it_came_back_is_a_stop() -> None:
    observer = Observer()
    see([task("running", 5)], [node(version=1)], observer)
    seen = see([task("shutdown", 61, code=143)], [node(version=2, updated_s=60)], observer, **{LABEL_STOPPED: "true"})
    assert (seen.exit_code, seen.reason) == (143, None)


@pytest.mark.parametrize(
    ("nodes", "ended_s"),
    [
        ([node(version=1), node(version=2, updated_s=60)], 50),  # long before it
        ([node(version=1), node(version=2, updated_s=60)], 70),  # long after it
        ([node(version=1), node(version=2, updated_s=60, gpu="1")], 60),  # somebody set a label at that time
        ([node(version=1), node("down", version=2, updated_s=60)], 60),  # it was lost at that time, not back
        ([node(version=1), node(version=1)], 60),
    ],
)
def test_the_same_code_at_any_other_time_is_the_programs_own(nodes: list[Any], ended_s: float) -> None:
    observer = Observer()
    see([task("running", 5)], nodes[:1], observer)
    seen = see([task("failed", ended_s, code=255)], nodes[1:], observer)
    assert (seen.state, seen.exit_code, seen.reason) == (WorkloadState.EXITED, 255, None)


def test_what_began_after_the_registration_is_not_excused_by_it() -> None:
    observer = Observer()
    see([], [node(version=1)], observer)
    see([task("running", 61, created_s=60.5)], [node(version=2, updated_s=60)], observer)
    assert see([task("failed", 62, code=255, created_s=60.5)], [node(version=2, updated_s=60)], observer).reason is None


def test_memory_is_bounded_by_what_is_there() -> None:
    observer = Observer()
    for number in range(100):
        see([task("failed", 20, code=1, created_s=number)], [node(version=number, updated_s=number * 100)], observer)
    assert (len(observer._judged), len(observer._registered["n1"])) == (1, 32)
    observer.observe([], [], [])
    assert not (observer._judged or observer._registered or observer._nodes or observer._started)


@pytest.mark.parametrize(
    ("generic", "gpus"),
    [
        (None, 0),
        ([{"DiscreteResourceSpec": {"Kind": "GPU", "Value": 2}}], 2),
        ([{"NamedResourceSpec": {"Kind": "nvidia-gpu", "Value": f"u{n}"}} for n in range(3)], 3),
        ([{"DiscreteResourceSpec": {"Kind": "apple", "Value": 2}}], 0),
    ],
)
def test_nodes(generic: Any, gpus: int) -> None:
    record = node()
    record["Description"] = {
        "Hostname": "laptop", "Resources": {"NanoCPUs": 1_500_000_000, "MemoryBytes": 5, "GenericResources": generic},
        "Platform": {"OS": "linux", "Architecture": "x86_64"}, "Engine": {"EngineVersion": "20.10.24"},
    }  # fmt: skip
    seen = engine_node(record)
    assert (seen.cpu_milli, seen.memory_bytes, seen.gpus, seen.engine_version) == (1500, 5, gpus, "20.10.24")
    assert (seen.state, seen.address, seen.is_manager, seen.available) == (NodeState.READY, "10.0.0.7", False, True)
    assert engine_node({"ID": "x"}).state is NodeState.UNKNOWN
    assert seen.gpu_vendors == ("nvidia",), "a service is given no devices"


def test_times_of_docker() -> None:
    assert moment("2026-11-21T08:24:15.009123456Z") == datetime(2026, 11, 21, 8, 24, 15, 9123, tzinfo=UTC)
    assert moment("2026-11-21T08:24:15Z") == datetime(2026, 11, 21, 8, 24, 15, tzinfo=UTC)
    assert moment("0001-01-01T00:00:00Z") is None
    assert moment(None) is None
