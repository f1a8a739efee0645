"""Figures for `kubectl top`: only what agents have told."""

from __future__ import annotations

from typing import Any

from swarmtask.apiserver.projections.metrics import figures_of, node_metrics, pod_metrics
from swarmtask.apiserver.projections.pods import pods_of
from tests.apiserver.projections.swarm import attempt, node, task


def with_attempt(**facts: Any) -> dict[str, Any]:
    told = node()
    one = {"id": "st-x-1", "state": "Running", "reason": "", "startedAt": "2026-03-01T12:00:00Z", "cpuSeconds": 300.0,
           "peakMemory": "1048576"}  # fmt: skip
    told["status"]["attempts"] = [{name: value for name, value in {**one, **facts}.items() if value is not None}]
    return told


def test_a_node_uses_what_its_agent_measured() -> None:
    found = node_metrics(node())
    assert found is not None
    assert found["usage"] == {"cpu": "1200m", "memory": "2048Mi"}
    assert found["timestamp"] == "2026-03-01T12:10:00Z", "when it was told"


def test_nothing_is_known_of_a_node_without_an_agent_or_that_is_silent() -> None:
    bare = node()
    del bare["status"]["usage"]
    assert node_metrics(bare) is None
    assert node_metrics(node(ready="Unknown")) is None
    unwritten = node()
    del unwritten["metadata"]["managedFields"]
    assert node_metrics(unwritten) is None


def test_a_pod_uses_its_average_and_its_peak_since_the_start() -> None:
    (found,) = pod_metrics(pods_of(task(attempt(1))), figures_of([with_attempt()]))
    assert found["containers"] == [{"name": "main", "usage": {"cpu": "500m", "memory": "1048576"}}], "300 s of CPU in 600 s"
    assert (found["window"], found["metadata"]["name"], found["metadata"]["labels"]["team"]) == ("600s", "lint-1", "a")


def test_nothing_is_made_up_for_a_pod() -> None:
    pods = pods_of(task(attempt(1)))
    for told in (
        with_attempt(cpuSeconds=None), with_attempt(peakMemory=None), with_attempt(state="Exited"), with_attempt(id="st-y-1"),
        with_attempt(startedAt=None), with_attempt(startedAt="2026-03-01T12:10:00Z"),
        with_attempt(startedAt="2027-01-01T00:00:00Z"),
    ):  # fmt: skip
        assert list(pod_metrics(pods, figures_of([told]))) == []
    silent = with_attempt()
    silent["status"]["conditions"][0]["status"] = "Unknown"
    assert figures_of([silent]) == {}
    assert list(pod_metrics(pods_of(task(attempt(1, "Succeeded"))), figures_of([with_attempt()]))) == []
