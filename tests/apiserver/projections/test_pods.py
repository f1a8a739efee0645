"""Attempts as Pods, as a function of the stored task."""

from __future__ import annotations

import copy
import uuid
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from swarmtask.apiserver.builtins import builtin_types
from swarmtask.apiserver.projections.pods import TASKS, PodView, attempt_of, pod_name, pod_uid, pods_of
from swarmtask.apiserver.projections.views import changes
from swarmtask.apiserver.records import Change, Key, Record
from swarmtask.apiserver.tables import table
from tests.apiserver.projections.swarm import UID, attempt, task

POD = next(rt for rt in builtin_types() if (rt.api_version, rt.kind) == ("v1", "Pod"))


def row(pod: dict[str, Any]) -> list[Any]:
    """READY, STATUS, RESTARTS as kubectl shows them."""
    (shown,) = table(POD, [pod], include="None", now=datetime(2026, 3, 1, 13, tzinfo=UTC))["rows"]
    return list(shown["cells"][1:4])


def record(obj: dict[str, Any], rv: int) -> Record:
    obj = copy.deepcopy(obj)
    obj["metadata"]["resourceVersion"] = str(rv)
    key = Key(TASKS, obj["metadata"]["namespace"], obj["metadata"]["name"])
    return Record.of(key, rv, obj, orjson.dumps(obj))


def test_one_pod_for_each_attempt_with_an_owner_and_a_uid_of_its_own() -> None:
    first, second = pods_of(task(attempt(1, "Failed"), attempt(2)))
    assert [pod["metadata"]["name"] for pod in (first, second)] == ["lint-1", "lint-2"]
    (owner,) = second["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"], owner["controller"]) == ("SwarmTask", "lint", UID, True)
    assert first["metadata"]["uid"] != second["metadata"]["uid"]
    assert second["metadata"]["uid"] == pods_of(task(attempt(2)))[0]["metadata"]["uid"], "the same whenever it is asked for"
    assert uuid.UUID(second["metadata"]["uid"]).version == 5
    assert second["metadata"]["labels"] == {"team": "a", "swarmtask.io/attempt": "2", "swarmtask.io/task-name": "lint"}
    assert second["metadata"]["creationTimestamp"] == "2026-03-01T12:02:00Z"


def test_annotations_of_the_task_are_not_the_pods() -> None:
    """`kubectl apply --prune` would take a pod with the last-applied annotation for something that a person has applied."""
    (pod,) = pods_of(task(attempt(1), annotations={"kubectl.kubernetes.io/last-applied-configuration": "{}"}))
    assert set(pod["metadata"]["annotations"]) == {"swarmtask.io/attempt-id", "swarmtask.io/engine"}


def test_a_task_without_attempts_has_no_pods() -> None:
    assert pods_of(task()) == []
    assert pods_of({"metadata": {"name": "new"}, "spec": {}}) == []


@pytest.mark.parametrize(
    ("record", "phase", "state", "shown"),
    [
        (attempt(1, "Starting"), "Pending", "waiting", ["0/1", "ContainerCreating", 0]),
        (attempt(1, "Starting", reason="ImagePullFailed"), "Pending", "waiting", ["0/1", "ImagePullFailed", 0]),
        (attempt(1, "Running"), "Running", "running", ["1/1", "Running", 0]),
        (attempt(1, "Stopping"), "Running", "running", ["1/1", "Running", 0]),
        (attempt(1, "Unknown"), "Unknown", "running", ["0/1", "Unknown", 0]),
        (attempt(1, "Succeeded"), "Succeeded", "terminated", ["0/1", "Completed", 0]),
        (attempt(1, "Failed"), "Failed", "terminated", ["0/1", "Error", 0]),
        (attempt(1, "Failed", reason="OOMKilled", exitCode=137), "Failed", "terminated", ["0/1", "OOMKilled", 0]),
        (attempt(1, "Stopped", reason="Drained", exitCode=143), "Failed", "terminated", ["0/1", "Drained", 0]),
    ],
)  # fmt: skip
def test_where_an_attempt_is(record: dict[str, Any], phase: str, state: str, shown: list[Any]) -> None:
    (pod,) = pods_of(task(record))
    assert pod["status"]["phase"] == phase
    (container,) = pod["status"]["containerStatuses"]
    assert list(container["state"]) == [state]
    assert row(pod) == shown


def test_how_it_ended_is_told_with_exit_code_and_times() -> None:
    (pod,) = pods_of(task(attempt(1, "Failed", message="boom")))
    assert pod["status"]["containerStatuses"][0]["state"]["terminated"] == {
        "exitCode": 3, "reason": "Error", "message": "boom", "startedAt": "2026-03-01T12:01:05Z",
        "finishedAt": "2026-03-01T12:01:30Z", "containerID": "swarm://st-x-1",
    }  # fmt: skip


def test_no_exit_code_is_made_up() -> None:
    (pod,) = pods_of(task(attempt(1, "Failed", exitCode=None, reason="NodeLost", message="gone")))
    assert "containerStatuses" not in pod["status"]
    assert (pod["status"]["reason"], pod["status"]["message"]) == ("NodeLost", "gone")
    assert row(pod) == ["0/1", "NodeLost", 0]


def test_what_runs_and_what_it_holds() -> None:
    held = {"cpu": "2", "memory": "1Gi", "gpu": 1, "memoryLimit": "2Gi"}
    (pod,) = pods_of(task(attempt(1, requested=held), priorityClass="high", terminationGracePeriodSeconds=5))
    spec = pod["spec"]
    (container,) = spec["containers"]
    assert (container["image"], container["command"], container["args"]) == ("acme/lint:1", ["lint"], ["--all"])
    assert container["resources"] == {
        "requests": {"cpu": "2", "memory": "1Gi", "swarmtask.io/gpu": "1"},
        "limits": {"memory": "2Gi", "swarmtask.io/gpu": "1"},
    }
    assert (spec["nodeName"], spec["priority"], spec["restartPolicy"]) == ("laptop-1", 1000, "Never")
    assert spec["terminationGracePeriodSeconds"] == 5


def test_an_attempt_that_a_person_ended_is_terminating_and_then_gone() -> None:
    marks = {"swarmtask.io/end-attempts": "1@2026-03-01T12:30:00Z,2@2026-03-01T12:31:00Z"}
    (pod,) = pods_of(task(attempt(1, "Failed"), attempt(2), annotations=marks))
    assert (pod["metadata"]["name"], pod["metadata"]["deletionTimestamp"]) == ("lint-2", "2026-03-01T12:31:00Z")
    assert row(pod)[1] == "Terminating"
    assert pods_of(task(attempt(1, "Failed"), attempt(2, "Stopped"), annotations=marks)) == []
    by_hand = task(attempt(2, "Stopping", stopRequestedAt="2026-03-01T12:40:00Z"), annotations={"swarmtask.io/end-attempts": "2"})
    assert pods_of(by_hand)[0]["metadata"]["deletionTimestamp"] == "2026-03-01T12:40:00Z"


@pytest.mark.parametrize("name", ["", "lint", "lint-", "lint-0", "lint-01", "lint-x", "-1", "lint-1-", "lint-99999999999"])
def test_names_that_no_pod_has(name: str) -> None:
    assert attempt_of(name) is None


@pytest.mark.parametrize(("name", "number"), [("lint", 1), ("lint-1", 2), ("a.b-3", 10)])
def test_names_lead_back(name: str, number: int) -> None:
    assert attempt_of(pod_name(name, number)) == (name, number)
    assert pod_uid("a", 12) != pod_uid("a1", 2)


# --- changes as a watcher of pods sees them ---


def seen(before: dict[str, Any] | None, after: dict[str, Any] | None) -> list[tuple[str, str, int]]:
    old = record(before, 10) if before is not None else None
    if after is None:
        assert before is not None
        change = Change("DELETED", record(before, 11), old)
    else:
        change = Change("MODIFIED" if old else "ADDED", record(after, 11), old)
    return [(one.type, one.key.name, one.rv) for one in changes(PodView(), change)]


def test_a_new_attempt_is_added_and_what_looks_the_same_has_not_changed() -> None:
    assert seen(task(), task(attempt(1, "Starting"))) == [("ADDED", "lint-1", 11)]
    ended = attempt(1, "Failed")
    assert seen(task(ended, attempt(2, "Starting")), task(ended, attempt(2))) == [("MODIFIED", "lint-2", 11)]
    quiet = task(attempt(1))
    quiet["status"]["observedGeneration"] = 3
    assert seen(task(attempt(1)), quiet) == []


def test_a_record_that_drops_out_of_the_newest_ten_is_deleted() -> None:
    assert seen(task(attempt(1, "Failed"), attempt(2)), task(attempt(2))) == [("DELETED", "lint-1", 11)]


def test_all_but_the_last_event_of_one_change_can_be_replayed() -> None:
    """Who has read one of two events and lost the connection goes on after its version, and must not miss the other."""
    assert seen(task(attempt(1, "Failed"), attempt(2)), None) == [("DELETED", "lint-1", 10), ("DELETED", "lint-2", 11)]
    assert seen(None, task(attempt(1, "Failed"), attempt(2))) == [("ADDED", "lint-1", 10), ("ADDED", "lint-2", 11)]
