"""Parts that tasks have in common are held once, and reading a task says the same as ever."""

from __future__ import annotations

import gc
from copy import deepcopy
from typing import Any

import pytest

from swarmtask.controllers import sharing
from swarmtask.controllers.reading import LAST_APPLIED, read_task
from swarmtask.kube import Object
from swarmtask.resources.meta import set_condition
from swarmtask.resources.task import SwarmTask
from tests.resources.bad_tasks import bad_tasks, good_task

NOW = "2026-01-01T00:00:00Z"


def stored(name: str, **spec: Any) -> Object:
    task = good_task(name)
    task["metadata"] |= {"namespace": "default", "uid": f"u-{name}", "resourceVersion": "1"}
    task["spec"] |= {"placement": {"nodeSelector": {"disk": "ssd"}}} | spec
    condition = {"type": "Admitted", "status": "True", "reason": "Queued", "lastTransitionTime": NOW}
    task["status"] = {"phase": "Queued", "conditions": [condition]}
    return task


def test_tasks_that_are_alike_share_their_spec_and_their_conditions() -> None:
    one, two = read_task(stored("a")).task, read_task(stored("b")).task
    assert one.spec is two.spec
    assert one.status.conditions[0] is two.status.conditions[0]
    assert (one.metadata.name, two.metadata.name) == ("a", "b")


def test_tasks_that_differ_share_the_rest() -> None:
    one, two = read_task(stored("a", backoffLimit=1)).task, read_task(stored("b", backoffLimit=2)).task
    assert (one.spec.backoff_limit, two.spec.backoff_limit) == (1, 2)
    assert one.spec.container is two.spec.container
    assert one.spec.placement is two.spec.placement


@pytest.mark.parametrize("left_out", ["", "backoff", "placement", "nodeLoss"])
def test_a_task_reads_as_it_does_by_itself(left_out: str) -> None:
    task = stored("a")
    task["spec"].pop(left_out, None)
    read = read_task(deepcopy(task))
    assert read.invalid is None
    assert read.task == SwarmTask.model_validate(task)
    assert read.task.to_dict() == SwarmTask.model_validate(task).to_dict()


def test_what_cannot_be_read_is_named_by_its_place_in_the_task() -> None:
    seen = 0
    for bad in bad_tasks():
        spec = bad.manifest.get("spec")
        if not isinstance(spec, dict):
            continue
        task = stored("a") | {"spec": spec}
        try:
            SwarmTask.model_validate(task)
        except ValueError:
            seen += 1
            invalid = read_task(task).invalid
            assert invalid is not None
            assert "spec" in invalid
        else:
            assert read_task(task).invalid is None
    assert seen > 10


def test_parts_that_nobody_holds_go() -> None:
    read = read_task(stored("a", dedupeKey="held-by-this-test"))
    assert any(getattr(part, "dedupe_key", "") == "held-by-this-test" for part in sharing._KNOWN.values())
    del read
    gc.collect()
    assert not any(getattr(part, "dedupe_key", "") == "held-by-this-test" for part in sharing._KNOWN.values())


def test_a_decision_about_one_task_leaves_the_others_alone() -> None:
    one, two = read_task(stored("a")).task, read_task(stored("b")).task
    moment = one.status.conditions[0].last_transition_time
    decided = one.status.model_copy(
        update={"conditions": set_condition(one.status.conditions, "Admitted", False, reason="Other", now=moment)}
    )
    assert decided.conditions[0].reason == "Other"
    assert two.status.conditions[0].reason == "Queued"
    changed = one.model_copy(update={"status": decided})
    assert changed != one


def test_what_is_not_from_the_wire_is_read_all_the_same() -> None:
    task = stored("a")
    task["spec"]["container"]["env"] = ({"name": "A", "value": "1"},)
    task["status"]["conditions"] = tuple(task["status"]["conditions"])
    assert read_task(task).task.spec.container.env[0].name == "A"


def test_the_copy_that_kubectl_keeps_is_not_remembered() -> None:
    task = stored("a")
    task["metadata"]["annotations"] = {LAST_APPLIED: "{}", "mine": "stays"}
    before = deepcopy(task)
    assert read_task(task).task.metadata.annotations == {"mine": "stays"}
    assert task == before, "the object itself is the caller's"
