"""Bad SwarmTasks: one entry per way in which a person or a program gets a field wrong.

Used by the model's tests, by the API server's tests and by the end-to-end tests with kubectl: the same list must be refused at
every door, with a message that names the field.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True)
class BadTask:
    """A manifest that must be refused.

    Attributes:
        names: one of these must stand in the refusal.
        model: the pydantic model alone can see it (names of objects and unknown fields are the API server's business).
    """

    id: str
    manifest: Object
    names: tuple[str, ...]
    model: bool = True


def good_task(name: str = "good") -> Object:
    return {
        "apiVersion": "swarmtask.io/v1alpha1",
        "kind": "SwarmTask",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "container": {
                "image": "swarmtask-test/busybox:1",
                "command": ["sh", "-c"],
                "args": ["true"],
                "env": [{"name": "LEVEL", "value": "3"}],
                "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
            }
        },
    }


def _set(path: str, value: Any) -> Callable[[Object], None]:
    def change(obj: Object) -> None:
        *parents, last = path.split(".")
        target: Any = obj
        for part in parents:
            target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
        if isinstance(target, list):
            target[int(last)] = value
        else:
            target[last] = value

    return change


def _drop(path: str) -> Callable[[Object], None]:
    def change(obj: Object) -> None:
        *parents, last = path.split(".")
        target: Any = obj
        for part in parents:
            target = target[part]
        del target[last]

    return change


_C = "spec.container"


def _array(env: dict[str, str] | None = None, **spec: Any) -> Object:
    variables = [{"name": name, "value": value} for name, value in (env or {}).items()]
    return {"completions": 3, "container": {"image": "busybox", "env": variables}, **spec}


def _oom(**rule: Any) -> Object:
    return {"onReasons": ["OOMKilled"], "action": "Retry", **rule}


_CASES: list[tuple[str, Callable[[Object], None], tuple[str, ...], bool]] = [
    # wrong types
    ("spec-is-a-list", _set("spec", []), ("spec",), True),
    ("spec-missing", _drop("spec"), ("spec",), True),
    ("container-missing", _drop("spec.container"), ("spec.container",), True),
    ("container-is-text", _set(_C, "busybox"), ("spec.container",), True),
    ("image-missing", _drop(f"{_C}.image"), ("spec.container.image",), True),
    ("image-null", _set(f"{_C}.image", None), ("spec.container.image",), True),
    ("image-number", _set(f"{_C}.image", 7), ("spec.container.image",), True),
    ("command-is-text", _set(f"{_C}.command", "sh -c true"), ("spec.container.command",), True),
    ("args-with-number", _set(f"{_C}.args", ["a", 1]), ("spec.container.args[1]", "spec.container.args"), True),
    ("args-null-item", _set(f"{_C}.args", [None]), ("spec.container.args[0]", "spec.container.args"), True),
    ("env-is-a-map", _set(f"{_C}.env", {"A": "b"}), ("spec.container.env",), True),
    ("env-value-number", _set(f"{_C}.env", [{"name": "A", "value": 3}]), ("spec.container.env[0].value",), True),
    ("suspend-is-text", _set("spec.suspend", "no"), ("spec.suspend",), True),
    ("priority-is-text", _set("spec.priority", "10"), ("spec.priority",), True),
    ("backoff-limit-fraction", _set("spec.backoffLimit", 1.5), ("spec.backoffLimit",), True),
    ("capabilities-is-text", _set("spec.placement.capabilities", "gpu"), ("spec.placement.capabilities",), True),
    ("selector-value-number", _set("spec.placement.nodeSelector", {"a": 1}), ("spec.placement.nodeSelector",), True),
    # quantities
    ("cpu-negative", _set(f"{_C}.resources.requests.cpu", "-1"), ("requests.cpu",), True),
    ("cpu-words", _set(f"{_C}.resources.requests.cpu", "two"), ("requests.cpu",), True),
    ("cpu-absurd", _set(f"{_C}.resources.requests.cpu", "9" * 30), ("requests.cpu",), True),
    ("cpu-bool", _set(f"{_C}.resources.requests.cpu", True), ("requests.cpu",), True),
    ("memory-negative", _set(f"{_C}.resources.requests.memory", "-5Mi"), ("requests.memory",), True),
    ("memory-bad-unit", _set(f"{_C}.resources.requests.memory", "5 gigs"), ("requests.memory",), True),
    ("memory-list", _set(f"{_C}.resources.requests.memory", ["1Gi"]), ("requests.memory",), True),
    ("memory-auto-upper-case", _set(f"{_C}.resources.requests.memory", "Auto"), ("requests.memory",), True),
    ("memory-automatic", _set(f"{_C}.resources.requests.memory", "automatic"), ("requests.memory",), True),
    ("memory-limit-auto", _set(f"{_C}.resources.limits.memory", "auto"), ("limits.memory",), True),
    ("cpu-auto", _set(f"{_C}.resources.requests.cpu", "auto"), ("requests.cpu",), True),
    ("memory-factor-shrinks", _set("spec.failurePolicy", [_oom(memoryFactor=0.5)]), ("spec.failurePolicy[0].memoryFactor",), True),
    ("memory-factor-huge", _set("spec.failurePolicy", [_oom(memoryFactor=17)]), ("spec.failurePolicy[0].memoryFactor",), True),
    ("memory-factor-text", _set("spec.failurePolicy", [_oom(memoryFactor="2")]), ("spec.failurePolicy[0].memoryFactor",), True),
    ("memory-factor-bool", _set("spec.failurePolicy", [_oom(memoryFactor=True)]), ("spec.failurePolicy[0].memoryFactor",), True),
    ("memory-factor-and-fail", _set("spec.failurePolicy", [_oom(memoryFactor=2, action="Fail")]), ("spec.failurePolicy[0]",), True),
    ("max-memory-alone", _set("spec.failurePolicy", [_oom(maxMemory="8Gi")]), ("spec.failurePolicy[0]",), True),
    ("max-memory-auto", _set("spec.failurePolicy", [_oom(memoryFactor=2, maxMemory="auto")]), ("spec.failurePolicy[0].maxMemory",), True),  # noqa: E501
    ("gpu-negative", _set(f"{_C}.resources.requests.gpu", -1), ("requests.gpu",), True),
    ("gpu-fraction", _set(f"{_C}.resources.requests.gpu", 0.5), ("requests.gpu",), True),
    ("gpu-absurd", _set(f"{_C}.resources.requests.gpu", 10**9), ("requests.gpu",), True),
    ("memory-limit-below-request", _set(f"{_C}.resources.limits", {"memory": "1Mi"}), ("limits.memory",), True),
    ("cpu-limit-below-request", _set(f"{_C}.resources.limits", {"cpu": "1m"}), ("limits.cpu",), True),
    # ranges
    ("priority-absurd", _set("spec.priority", 10**12), ("spec.priority",), True),
    ("backoff-limit-negative", _set("spec.backoffLimit", -1), ("spec.backoffLimit",), True),
    ("backoff-factor-zero", _set("spec.backoff", {"factor": 0}), ("spec.backoff.factor",), True),
    ("backoff-initial-negative", _set("spec.backoff", {"initialSeconds": -3}), ("spec.backoff.initialSeconds",), True),
    ("start-deadline-zero", _set("spec.startDeadlineSeconds", 0), ("spec.startDeadlineSeconds",), True),
    ("active-deadline-negative", _set("spec.activeDeadlineSeconds", -1), ("spec.activeDeadlineSeconds",), True),
    ("queue-deadline-absurd", _set("spec.queueDeadlineSeconds", 10**15), ("spec.queueDeadlineSeconds",), True),
    ("grace-negative", _set("spec.terminationGracePeriodSeconds", -1), ("spec.terminationGracePeriodSeconds",), True),
    ("ttl-negative", _set("spec.ttlSecondsAfterFinished", -1), ("spec.ttlSecondsAfterFinished",), True),
    ("limit-zero", _set("spec.limits", {"model/x": 0}), ("spec.limits",), True),
    ("limit-text", _set("spec.limits", {"model/x": "1"}), ("spec.limits",), True),
    ("limit-name-spaces", _set("spec.limits", {"model x": 1}), ("spec.limits",), True),
    ("limit-name-empty", _set("spec.limits", {"": 1}), ("spec.limits",), True),
    ("limit-too-many", _set("spec.limits", {f"l{number}": 1 for number in range(17)}), ("spec.limits",), True),
    # words that are not on the list
    ("engine-unknown", _set("spec.engine", "mesos"), ("spec.engine",), True),
    ("strategy-unknown", _set("spec.placement.strategy", "random"), ("spec.placement.strategy",), True),
    ("priority-class-unknown", _set("spec.priorityClass", "urgent"), ("spec.priorityClass",), True),
    ("backoff-type-unknown", _set("spec.backoff", {"type": "random"}), ("spec.backoff.type",), True),
    ("both-priorities", lambda o: o["spec"].update(priority=1, priorityClass="high"), ("spec",), True),
    # grammars
    ("image-empty", _set(f"{_C}.image", ""), ("spec.container.image",), True),
    ("image-spaces", _set(f"{_C}.image", "my image"), ("spec.container.image",), True),
    ("image-upper-case", _set(f"{_C}.image", "Acme/Lint:1"), ("spec.container.image",), True),
    ("image-newline", _set(f"{_C}.image", "busybox\n"), ("spec.container.image",), True),
    ("image-template", _set(f"{_C}.image", "busybox:{{.Node.ID}}"), ("spec.container.image",), True),
    ("queue-upper-case", _set("spec.queue", "Team_A"), ("spec.queue",), True),
    ("queue-empty", _set("spec.queue", ""), ("spec.queue",), True),
    ("node-name-path", _set("spec.placement.nodeName", "../manager"), ("spec.placement.nodeName",), True),
    ("capability-empty", _set("spec.placement.capabilities", [""]), ("spec.placement.capabilities",), True),
    ("working-dir-relative", _set(f"{_C}.workingDir", "src"), ("spec.container.workingDir",), True),
    ("working-dir-nul", _set(f"{_C}.workingDir", "/a\x00b"), ("spec.container.workingDir",), True),
    ("command-template", _set(f"{_C}.command", ["{{.Service.Name}}"]), ("spec.container.command",), True),
    ("args-template", _set(f"{_C}.args", ["--node={{.Node.Hostname}}"]), ("spec.container.args",), True),
    ("args-nul", _set(f"{_C}.args", ["a\x00b"]), ("spec.container.args",), True),
    ("env-template", _set(f"{_C}.env", [{"name": "A", "value": "{{.Node.ID}}"}]), ("spec.container.env",), True),
    ("env-nul", _set(f"{_C}.env", [{"name": "A", "value": "x\x00"}]), ("spec.container.env",), True),
    ("env-name-missing", _set(f"{_C}.env", [{"value": "x"}]), ("spec.container.env[0].name",), True),
    ("env-name-spaces", _set(f"{_C}.env", [{"name": "MY VAR", "value": "x"}]), ("spec.container.env[0].name",), True),
    ("env-name-equals", _set(f"{_C}.env", [{"name": "A=B", "value": "x"}]), ("spec.container.env[0].name",), True),
    ("env-twice", _set(f"{_C}.env", [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]), ("spec.container.env", "spec.container"), True),  # noqa: E501
    (
        "env-two-sources",
        _set(f"{_C}.env", [{"name": "A", "value": "1", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]),
        ("spec.container.env[0]",),
        True,
    ),
    ("secret-key-missing", _set(f"{_C}.env", [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s"}}}]), ("secretKeyRef.key",), True),  # noqa: E501
    (
        "secret-name-path",
        _set(f"{_C}.env", [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "../s", "key": "k"}}}]),
        ("secretKeyRef.name",),
        True,
    ),
    # sizes
    ("env-value-huge", _set(f"{_C}.env", [{"name": "A", "value": "x" * 40_000}]), ("spec.container.env[0].value",), True),
    ("env-too-many", _set(f"{_C}.env", [{"name": f"A{i}", "value": "x"} for i in range(600)]), ("spec.container.env",), True),
    ("args-too-many", _set(f"{_C}.args", ["x"] * 2000), ("spec.container.args",), True),
    ("image-too-long", _set(f"{_C}.image", "a" * 600), ("spec.container.image",), True),
    ("selector-value-too-long", _set("spec.placement.nodeSelector", {"a": "x" * 64}), ("spec.placement.nodeSelector",), True),
    # arrays
    ("completions-zero", _set("spec.completions", 0), ("spec.completions",), True),
    ("completions-huge", _set("spec.completions", 100_001), ("spec.completions",), True),
    ("parallelism-alone", _set("spec.parallelism", 3), ("spec",), True),
    ("max-failed-alone", _set("spec.maxFailedIndexes", 3), ("spec",), True),
    ("array-dedupe", _set("spec", _array(dedupeKey="x")), ("spec",), True),
    ("array-env-index", _set("spec", _array({"SWARMTASK_INDEX": "7"})), ("spec",), True),
    ("array-env-completions", _set("spec", _array({"SWARMTASK_COMPLETIONS": "7"})), ("spec",), True),
    ("array-env-too-many", _set("spec", _array({f"A{i}": "x" for i in range(511)})), ("spec",), True),
    # what only the API server sees
    ("unknown-field", _set("spec.imagePullPolicy", "Always"), ("spec.imagePullPolicy",), False),
    ("unknown-nested-field", _set(f"{_C}.imge", "x"), ("spec.container.imge",), False),
    ("unknown-deep-field", _set(f"{_C}.resources.requests.disk", "1Gi"), ("spec.container.resources.requests.disk",), False),
    ("name-too-long", _set("metadata.name", "a" * 254), ("metadata.name",), False),
    ("name-upper-case", _set("metadata.name", "Lint_Repo"), ("metadata.name",), False),
    ("name-missing", _drop("metadata.name"), ("name",), False),
    ("name-number", _set("metadata.name", 12), ("metadata", "name"), False),
    ("label-value-bad", _set("metadata.labels", {"team": "a b"}), ("metadata.labels",), False),
    ("label-key-bad", _set("metadata.labels", {"/team": "a"}), ("metadata.labels",), False),
    ("label-value-number", _set("metadata.labels", {"team": 5}), ("metadata.labels", "labels"), False),
    ("annotations-huge", _set("metadata.annotations", {"a": "x" * 300_000}), ("metadata.annotations",), False),
]  # fmt: skip


def bad_tasks() -> list[BadTask]:
    """Fresh manifests; every one differs from `good_task` in one thing."""
    result = []
    for index, (id_, change, names, model) in enumerate(_CASES):
        manifest = copy.deepcopy(good_task(f"bad-{index}"))
        change(manifest)
        result.append(BadTask(id_, manifest, names, model))
    return result
