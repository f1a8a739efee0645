"""Attempts of SwarmTasks as Pods.

Called by the handlers and the watch hub through `PodView`. `pods_of` is pure: a stored task goes in, its pods come out. A pod says
nothing that the task does not say; what nobody has told (an address, an exit code) is left out and never made up.

Names: attempt 3 of task `lint` is the pod `lint-3`; its UID follows from the task's UID and the number. A pod shows the image and
the command that the task has now: attempts do not record theirs. An attempt that a person has ended (`swarmtask.io/end-attempts`)
is Terminating while it is live, and has no pod any more when it is over; all pods of a task that is being deleted are Terminating.

Source of the fields: Kubernetes API reference, Pod.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import Any

from swarmtask.apiserver.projections.views import projected
from swarmtask.apiserver.records import Collection, Key, Record
from swarmtask.apiserver.selectors import Selection
from swarmtask.clock import format_time
from swarmtask.resources.ended import ended
from swarmtask.resources.kinds import SWARM_TASK
from swarmtask.resources.task import PRIORITY_CLASSES

PODS: Collection = ("", "pods")
TASKS: Collection = (SWARM_TASK.group, SWARM_TASK.plural)
CONTAINER = "main"
GPU_RESOURCE = "swarmtask.io/gpu"
LABEL_TASK = "swarmtask.io/task-name"
LABEL_ATTEMPT = "swarmtask.io/attempt"
ANNOTATION_ID = "swarmtask.io/attempt-id"
ANNOTATION_ENGINE = "swarmtask.io/engine"
_LABEL_LIMIT = 63
_NAME = re.compile(r"(.+)-([1-9][0-9]{0,8})\Z", re.DOTALL)
_LIVE = frozenset({"Starting", "Running", "Stopping", "Unknown"})
_PHASES = {
    "Starting": "Pending", "Running": "Running", "Stopping": "Running", "Unknown": "Unknown", "Succeeded": "Succeeded",
    "Failed": "Failed", "Stopped": "Failed",
}  # fmt: skip
"""State of an attempt -> phase of its pod."""


def pod_name(task: str, number: int) -> str:
    return f"{task}-{number}"


def attempt_of(name: str) -> tuple[str, int] | None:
    """(task, attempt number) of a pod's name; None: no pod can have that name."""
    match = _NAME.match(name)
    return (match.group(1), int(match.group(2))) if match is not None else None


def pod_uid(task_uid: str, number: int) -> str:
    """The same for the same attempt whenever it is asked for."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"swarmtask.io/attempt/{task_uid}/{number}"))


def pods_of(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pods of a stored SwarmTask, oldest attempt first; without resourceVersion."""
    marks = ended(task["metadata"].get("annotations") or {})
    found = []
    for attempt in (task.get("status") or {}).get("attempts") or ():
        marked = attempt["number"] in marks
        if marked and attempt.get("state") not in _LIVE:
            continue
        pod = _pod(task, attempt)
        going = task["metadata"].get("deletionTimestamp")
        if going is not None:
            pod["metadata"] |= {"deletionTimestamp": going, "deletionGracePeriodSeconds": 0}
        elif marked:
            asked = marks[attempt["number"]]
            pod["metadata"]["deletionTimestamp"] = (
                attempt.get("stopRequestedAt") or pod["metadata"]["creationTimestamp"] if asked is None else format_time(asked)
            )
            pod["metadata"]["deletionGracePeriodSeconds"] = pod["spec"]["terminationGracePeriodSeconds"]
        found.append(pod)
    return found


def is_live(pod: Mapping[str, Any]) -> bool:
    """It holds resources on its node."""
    return pod["status"]["phase"] in ("Pending", "Running", "Unknown")


def _pod(task: Mapping[str, Any], attempt: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": "Pod", "apiVersion": "v1", "metadata": _metadata(task, attempt), "spec": _spec(task, attempt),
            "status": _status(task, attempt)}  # fmt: skip


def _metadata(task: Mapping[str, Any], attempt: Mapping[str, Any]) -> dict[str, Any]:
    owner, number = task["metadata"], attempt["number"]
    labels = {**(owner.get("labels") or {}), LABEL_ATTEMPT: str(number)}
    if len(owner["name"]) <= _LABEL_LIMIT:
        labels[LABEL_TASK] = owner["name"]
    return {
        "name": pod_name(owner["name"], number),
        "namespace": owner.get("namespace", ""),
        "uid": pod_uid(owner.get("uid", ""), number),
        "creationTimestamp": attempt.get("boundAt") or owner.get("creationTimestamp"),
        "labels": labels,
        "annotations": {ANNOTATION_ID: attempt.get("id", ""), ANNOTATION_ENGINE: attempt.get("engine", "")},
        "ownerReferences": [
            {"apiVersion": task.get("apiVersion") or SWARM_TASK.api_version, "kind": SWARM_TASK.kind, "name": owner["name"],
             "uid": owner.get("uid", ""), "controller": True, "blockOwnerDeletion": True}
        ],
    }  # fmt: skip


# --- spec ----------------------------------------------------------------------------------------------------------------


def _spec(task: Mapping[str, Any], attempt: Mapping[str, Any]) -> dict[str, Any]:
    wish = task.get("spec") or {}
    placement = wish.get("placement") or {}
    spec: dict[str, Any] = {
        "containers": [_container(wish.get("container") or {}, attempt.get("requested") or {})],
        "nodeName": attempt.get("node", ""),
        "restartPolicy": "Never",
        "schedulerName": "swarmtask",
        "securityContext": {},  # kubectl debug looks into it without asking whether it is there
        "terminationGracePeriodSeconds": wish.get("terminationGracePeriodSeconds", 10),
        "priority": _priority(wish),
    }
    for name, value in (
        ("priorityClassName", wish.get("priorityClass")),
        ("activeDeadlineSeconds", wish.get("activeDeadlineSeconds")),
        ("nodeSelector", placement.get("nodeSelector")),
        ("tolerations", [_toleration(item) for item in placement.get("tolerations") or ()]),
    ):
        if value:
            spec[name] = value
    return spec


def _priority(spec: Mapping[str, Any]) -> int:
    given = spec.get("priority")
    return int(given) if given is not None else PRIORITY_CLASSES.get(spec.get("priorityClass") or "normal", 0)


def _toleration(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in ("key", "operator", "value", "effect") if given.get(name)}


def _container(wish: Mapping[str, Any], requested: Mapping[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = {"name": CONTAINER, "image": wish.get("image", ""), "imagePullPolicy": "IfNotPresent"}
    for name in ("command", "args", "workingDir", "env"):
        if wish.get(name):
            container[name] = wish[name]
    cpu_limit = ((wish.get("resources") or {}).get("limits") or {}).get("cpu")
    requests, limits = (
        _amounts(requested.get("cpu"), requested.get("memory")),
        _amounts(cpu_limit, requested.get("memoryLimit") or requested.get("memory")),
    )
    if requested.get("gpu"):
        requests[GPU_RESOURCE] = limits[GPU_RESOURCE] = str(requested["gpu"])
    container["resources"] = {name: value for name, value in (("requests", requests), ("limits", limits)) if value}
    return container


def _amounts(cpu: Any, memory: Any) -> dict[str, str]:
    return {name: str(value) for name, value in (("cpu", cpu), ("memory", memory)) if value not in (None, "", "0", 0)}


# --- status --------------------------------------------------------------------------------------------------------------


def _status(task: Mapping[str, Any], attempt: Mapping[str, Any]) -> dict[str, Any]:
    state = attempt.get("state", "")
    phase = _PHASES.get(state, "Unknown")
    status: dict[str, Any] = {"phase": phase, "conditions": _conditions(attempt, phase), "qosClass": "Burstable"}
    if attempt.get("boundAt"):
        status["startTime"] = attempt["boundAt"]
    reason, message = _why(task, attempt, state)
    if message:
        status["message"] = message
    shown = _container_state(attempt, state, reason, message)
    if shown is None:
        if reason:  # nobody saw how it ended: a container that has "terminated" would need an exit code
            status["reason"] = reason
        return status
    engine, name = attempt.get("engine", ""), attempt.get("id", "")
    status["containerStatuses"] = [
        {
            "name": CONTAINER,
            "state": shown,
            "lastState": {},
            "ready": phase == "Running",
            "started": "running" in shown,
            "restartCount": 0,
            "image": ((task.get("spec") or {}).get("container") or {}).get("image", ""),
            "imageID": "",
            **({"containerID": f"{engine}://{name}"} if attempt.get("startedAt") else {}),
        }
    ]
    return status


def _why(task: Mapping[str, Any], attempt: Mapping[str, Any], state: str) -> tuple[str, str]:
    """(typed reason, words) of what the attempt is or how it ended."""
    status = task.get("status") or {}
    if state in _LIVE:
        current = status.get("attempt") == attempt["number"]
        return attempt.get("reason") or "", attempt.get("message") or (status.get("message") or "" if current else "")
    return attempt.get("reason") or "", attempt.get("message") or ""


def _container_state(attempt: Mapping[str, Any], state: str, reason: str, message: str) -> dict[str, Any] | None:
    """`state` of the container; None where nothing true can be said."""
    started = attempt.get("startedAt")
    if state in _LIVE:
        if started:
            return {"running": {"startedAt": started}}
        words = {"message": message} if message else {}
        return {"waiting": {"reason": reason or "ContainerCreating", **words}} if state == "Starting" else None
    if attempt.get("exitCode") is None:
        return None
    terminated: dict[str, Any] = {"exitCode": attempt["exitCode"], "reason": reason or "Error"}
    for name, value in (
        ("message", message), ("startedAt", started), ("finishedAt", attempt.get("finishedAt")),
        ("containerID", f"{attempt.get('engine', '')}://{attempt.get('id', '')}"),
    ):  # fmt: skip
        if value:
            terminated[name] = value
    return {"terminated": terminated}


def _conditions(attempt: Mapping[str, Any], phase: str) -> list[dict[str, Any]]:
    bound = attempt.get("boundAt")
    ready_since = attempt.get("finishedAt") or attempt.get("startedAt") or bound
    runs = "Unknown" if phase == "Unknown" else str(phase == "Running")
    why = {"Succeeded": "PodCompleted", "Failed": "PodFailed", "Pending": "ContainersNotReady"}.get(phase)
    conditions = []
    for name, status, since, reason in (
        ("PodScheduled", "True", bound, None),
        ("Initialized", "True", bound, None),
        ("ContainersReady", runs, ready_since, why),
        ("Ready", runs, ready_since, why),
    ):
        condition = {"type": name, "status": status, "lastProbeTime": None, "lastTransitionTime": since}
        conditions.append(condition | ({"reason": reason} if reason else {}))
    return conditions


# --- the view ------------------------------------------------------------------------------------------------------------


class PodView:
    """See `views.View`."""

    source = TASKS

    def project(self, record: Record) -> list[Record]:
        if b'"attempts":[{' not in record.body:  # nine of ten tasks of a full queue: not worth decoding
            return []
        namespace = record.key.namespace
        return [projected(Key(PODS, namespace, pod["metadata"]["name"]), record.rv, pod) for pod in pods_of(record.decode())]

    def origin(self, key: Key) -> Key | None:
        found = attempt_of(key.name)
        return Key(TASKS, key.namespace, found[0]) if found is not None else None

    def may_show(self, record: Record, selection: Selection) -> bool:
        node = selection.fields.value("spec.nodeName")
        return node is None or node.encode() in record.body
