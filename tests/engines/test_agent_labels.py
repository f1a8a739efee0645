"""What a container tells the agent of its node: whether it carries the fence, how important it is, what its task declares."""

from __future__ import annotations

from typing import Any

import pytest

from swarmtask.controllers.submission import build_workload
from swarmtask.engines.base import LABEL_FENCE, LABEL_GRACE, LABEL_MEMORY_REQUEST, LABEL_PRIORITY
from swarmtask.engines.swarm.spec import task_template
from swarmtask.nodeagent.containers import listed
from swarmtask.resources.task import Attempt, Requested
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


@pytest.mark.parametrize("bound_with", [None, 45])
def test_the_grace_of_its_binding_and_the_memory_that_it_was_promised_reach_the_agent(bound_with: int | None) -> None:
    """The spec was edited since: the operator counts with what the container was made with, and so does the agent."""
    attempt = Attempt(
        number=1, id="st-0f1e2d3c4b5a6978-1", node="n1", engine="swarm", engine_node_id="id",
        requested=Requested(memory="256Mi", memory_limit="1Gi"), termination_grace_period_seconds=bound_with,
    )  # fmt: skip
    workload = build_workload(make_task(terminationGracePeriodSeconds=7), attempt, ())
    template = task_template(workload, "cluster", "busybox", pids_limit=64)
    labels = template["ContainerSpec"]["Labels"]
    grace_s = 7 if bound_with is None else bound_with
    assert (labels[LABEL_GRACE], labels[LABEL_MEMORY_REQUEST]) == (str(grace_s), str(256 * 2**20))
    assert template["ContainerSpec"]["StopGracePeriod"] == grace_s * 10**9
    seen = listed({"Id": "c1", "State": "running", "Labels": labels})
    assert seen is not None
    assert (seen.grace_s, seen.memory_request_bytes) == (grace_s, 256 * 2**20)
