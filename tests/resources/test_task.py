from __future__ import annotations

import re

import pytest
from pydantic import ValidationError

from swarmtask.resources.task import SwarmTask, attempt_id
from tests.resources.bad_tasks import BadTask, bad_tasks, good_task


def _path(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")


def test_a_good_task_is_read_with_its_defaults() -> None:
    task = SwarmTask.model_validate(good_task())
    assert task.spec.queue == "default"
    assert task.spec.effective_priority == 0
    assert task.spec.backoff_limit == 3
    assert task.spec.container.resources.requests.gpu == 0


@pytest.mark.parametrize("bad", [bad for bad in bad_tasks() if bad.model], ids=lambda bad: bad.id)
def test_a_bad_task_is_refused_with_its_field(bad: BadTask) -> None:
    with pytest.raises(ValidationError) as failure:
        SwarmTask.model_validate(bad.manifest)
    said = " ".join(_path(error["loc"]) + " " + error["msg"] for error in failure.value.errors())
    assert any(name in said for name in bad.names), said


def test_there_are_enough_ways_to_be_wrong() -> None:
    assert len(bad_tasks()) >= 40
    assert len({bad.id for bad in bad_tasks()}) == len(bad_tasks())


@pytest.mark.parametrize(
    ("change", "priority"),
    [({}, 0), ({"priorityClass": "high"}, 1000), ({"priorityClass": "low"}, -1000), ({"priority": 7}, 7), ({"priority": 0}, 0)],
)
def test_priority_is_a_class_or_a_number(change: dict[str, object], priority: int) -> None:
    manifest = good_task()
    manifest["spec"].update(change)
    assert SwarmTask.model_validate(manifest).spec.effective_priority == priority


@pytest.mark.parametrize(
    "image",
    [
        "busybox",
        "acme/lint:1.4",
        "ghcr.io/acme/lint:1.4",
        "localhost:5000/a/b_c",
        "Reg.example.com:80/x@sha256:" + "a" * 64,
        "a.b/c--d:v_1",
    ],
)
def test_images_that_docker_understands_are_accepted(image: str) -> None:
    manifest = good_task()
    manifest["spec"]["container"]["image"] = image
    assert SwarmTask.model_validate(manifest).spec.container.image == image


@pytest.mark.parametrize("limits", [{}, {"memory": "1Mi"}])
def test_auto_is_a_request_for_memory(limits: dict[str, str]) -> None:
    manifest = good_task()
    manifest["spec"]["container"]["resources"] = {"requests": {"memory": "auto"}, "limits": limits}
    assert SwarmTask.model_validate(manifest).spec.container.resources.requests.memory == "auto"


@pytest.mark.parametrize("text", ["{", "}}", "{ {", "a{b}c", '{"json": {"nested": true}}', "${HOME}", "}{", "üñí", "a\nb\tc"])
def test_text_that_is_no_template_is_accepted(text: str) -> None:
    manifest = good_task()
    manifest["spec"]["container"]["args"] = [text]
    assert SwarmTask.model_validate(manifest).spec.container.args == [text]


def test_attempt_ids_are_a_function_of_uid_and_number() -> None:
    uid = "8a4c9f7e-1b2d-4c3e-9f00-112233445566"
    assert attempt_id(uid, 3) == "st-8a4c9f7e1b2d4c3e-3"
    assert re.fullmatch(r"[a-z0-9-]{1,63}", attempt_id(uid, 10**9))
