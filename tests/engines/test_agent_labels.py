"""What a container tells the agent of its node: whether it carries the fence, and how important it is."""

from __future__ import annotations

from typing import Any

import pytest

from swarmtask.controllers.submission import build_workload
from swarmtask.engines.base import LABEL_FENCE, LABEL_MEMORY_REQUEST, LABEL_PRIORITY
from swarmtask.engines.swarm.spec import task_template
from swarmtask.resources.task import Attempt
from tests.lifecycle.story import make_task


@pytest.mark.parametrize(
    ("spec", "fence", "priority"),
    [
        ({}, "true", "0"),
        ({"nodeLoss": {"replace": "afterLost"}, "priority": -7}, "false", "-7"),
        ({"nodeLoss": {"replace": "never"}}, "false", "0"),
        ({"priorityClass": "low"}, "true", "-1000"),
    ],
)
def test_the_container_carries_them(spec: dict[str, Any], fence: str, priority: str) -> None:
    attempt = Attempt(number=1, id="st-0f1e2d3c4b5a6978-1", node="n1", engine="swarm", engine_node_id="id")
    workload = build_workload(make_task(**spec), attempt, ())
    labels = task_template(workload, "cluster", "busybox", pids_limit=64)["ContainerSpec"]["Labels"]
    assert (labels[LABEL_FENCE], labels[LABEL_PRIORITY]) == (fence, priority)


def test_what_a_task_was_promised_is_not_what_it_may_take() -> None:
    attempt = Attempt.model_validate(
        {
            "number": 1, "id": "st-0f1e2d3c4b5a6978-1", "node": "n1", "engine": "swarm", "engineNodeId": "id",
            "requested": {"memory": "64Mi", "memoryLimit": "2Gi"},
        }
    )  # fmt: skip
    workload = build_workload(make_task(), attempt, ())
    labels = task_template(workload, "cluster", "busybox", pids_limit=64)["ContainerSpec"]["Labels"]
    assert labels[LABEL_MEMORY_REQUEST] == str(64 * 2**20)
