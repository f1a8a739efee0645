"""`swarmtask explain`: every node, every filter's verdict, every score's share."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from swarmtask.cli import terminal
from swarmtask.resources.kinds import SWARM_NODE
from tests.cli.conftest import Swarmtask
from tests.cli.tasks import add_queue, add_task
from tests.fakes.kube import FakeKube


def add_ready_node(kube: FakeKube, name: str, cpu: str = "4", facts: dict[str, Any] | None = None, **spec: Any) -> None:
    """`facts`: further fields of the status."""
    resources = {"cpu": cpu, "memory": "8Gi", "gpu": len((facts or {}).get("gpus", ()))}
    kube.add(
        SWARM_NODE,
        {"metadata": {"name": name}, "spec": spec},
        status={
            "phase": "Ready", "capacity": resources, "allocatable": resources, "engines": [{"name": "local", "id": f"id-{name}"}],
        } | (facts or {}),
    )  # fmt: skip


def test_the_chosen_node_comes_first_and_the_refused_say_why(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_ready_node(kube, "attic", unschedulable=True)
    add_ready_node(kube, "desk", cpu="16")
    add_ready_node(kube, "bed")
    add_queue(kube)
    add_task(kube, "lint")
    result = swarmtask("explain", "lint")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "Task: default/lint (Queued, queue default)"
    assert lines[1] == "Outcome: starts on desk (engine local)"
    rows = {line[:12].strip(): line[12:].split() for line in lines[3:]}
    assert list(rows) == [
        "NODE", "VERDICT", "TOTAL", "capability", "latency", "cost", "load", "fewTasks", "REFUSED BY", "ready", "cordoned",
        "drained", "quietHours", "charge", "engine", "taints", "pressure", "maxTasks", "memory", "cpu",
    ]  # fmt: skip
    assert rows["NODE"] == ["desk", "bed", "attic"]
    assert rows["VERDICT"] == ["chosen", "fits", "refused"]
    assert rows["REFUSED BY"] == ["-", "-", "cordoned"]
    assert rows["cordoned"] == ["yes", "yes", "NO"]
    assert all(rows[name] == ["yes"] * 3 for name in ("ready", "engine", "taints", "maxTasks", "memory", "cpu"))
    assert float(rows["TOTAL"][0]) > float(rows["TOTAL"][1])


THREE_NODES = """\
Task: default/train (Queued, queue default)
Outcome: starts on workstation (engine local, GPU 1)

NODE           workstation   laptop-kitchen     desktop
VERDICT        chosen        fits               refused
LAST RESORT    -             battery, regions   regions
TOTAL          0.6091        6e-37              6e-13
  capability   0.2664        4e-37              4e-13
  latency      0.1918        1e-37              1e-13
  cost         0.0000        1e-37              1e-13
  load         0.1499        0.0000             0.0000
  fewTasks     0.0010        1e-39              1e-15
REFUSED BY     -             -                  taints
  ready        yes           yes                yes
  cordoned     yes           yes                yes
  drained      yes           yes                yes
  quietHours   yes           yes                yes
  charge       yes           yes                yes
  engine       yes           yes                yes
  regions      yes           yes                yes
  taints       yes           yes                NO
  cost         yes           yes                yes
  pressure     yes           yes                yes
  gpu          yes           yes                NO
  maxTasks     yes           yes                yes
  memory       yes           yes                yes
  cpu          yes           yes                yes
"""


def test_three_nodes_with_everything_fit_into_80_columns(
    swarmtask: Swarmtask, kube: FakeKube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "width", lambda: 80)
    gpus = [{"index": 0, "vendor": "nvidia", "model": "A100", "memory": "40Gi"}]
    gpus.append({"index": 1, "vendor": "nvidia", "model": "GTX 1650", "memory": "4Gi"})
    add_ready_node(kube, "workstation", region="lab", facts={"gpus": gpus, "latencyMilliseconds": 20}, costPerHour="12")
    add_ready_node(kube, "laptop-kitchen", region="home", facts={"gpus": gpus[:1], "power": {"onBattery": True, "percent": 80}})
    add_ready_node(kube, "desktop", region="home", taints=[{"key": "owner", "value": "anna", "effect": "NoSchedule"}])
    add_queue(kube)
    requests = {"cpu": "1", "memory": "1Gi", "gpu": 1}
    placement = {
        "gpu": {"vendor": "nvidia", "memory": "2Gi"}, "regions": ["home", "lab"], "preferredRegions": ["lab"],
        "maxCostPerHour": "20",
    }  # fmt: skip
    spec = {"container": {"image": "acme/train:1", "resources": {"requests": requests}}, "placement": placement}
    add_task(kube, "train", spec=spec)
    output = swarmtask("explain", "train").stdout
    assert output == THREE_NODES
    assert max(map(len, output.splitlines())) <= 80
    document = json.loads(swarmtask("explain", "train", "-o", "json").stdout)
    assert document["outcome"]["gpuIndices"] == [1]
    assert [node["lastResort"] for node in document["nodes"]] == [[], ["battery", "regions"], ["regions"]]


def test_more_nodes_than_fit_into_a_line_come_below(swarmtask: Swarmtask, kube: FakeKube, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        add_ready_node(kube, f"a-node-with-a-long-name-{number}")
    add_task(kube, "lint")
    for width, groups in ((80, 3), (10, 5), (200, 1)):
        monkeypatch.setattr(terminal, "width", lambda width=width: width)
        lines = swarmtask("explain", "lint").stdout.splitlines()
        assert sum(line.startswith("NODE") for line in lines) == groups
        assert sorted(name for line in lines if line.startswith("NODE") for name in line.split()[1:]) == [
            f"a-node-with-a-long-name-{number}" for number in range(5)
        ]


def test_auto_says_how_much_and_from_what(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_ready_node(kube, "desk")
    add_queue(kube)
    spec = {"container": {"image": "acme/train:1", "resources": {"requests": {"memory": "auto"}}}}
    add_task(kube, "first", spec=spec)
    lines = swarmtask("explain", "first").stdout.splitlines()
    assert "Memory: 512Mi (auto: no attempt of its template was seen yet)" in lines
    attempt = {
        "number": 1, "id": "st-x-1", "node": "desk", "engine": "local", "state": "Succeeded", "reason": "Completed",
        "finishedAt": "2026-01-01T00:00:00Z", "peakMemory": "1000Mi",
    }  # fmt: skip
    for number in range(12):
        add_task(kube, f"ended{number}", "Succeeded", spec=spec, attempt=1, attempts=[attempt])
    add_task(kube, "next", spec=spec)
    assert "Memory: 1.2Gi (auto: p95 of 12 attempts + 20 %)" in swarmtask("explain", "next").stdout.splitlines()
    document = json.loads(swarmtask("explain", "next", "-o", "json").stdout)
    assert (document["memory"]["request"], document["memory"]["samples"]) == ("1200Mi", 12)
    add_task(kube, "fixed")
    assert json.loads(swarmtask("explain", "fixed", "-o", "json").stdout)["memory"] is None


def test_a_task_that_waits_says_why_and_where(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_ready_node(kube, "desk", unschedulable=True)
    add_task(kube, "lint")
    lines = swarmtask("explain", "lint").stdout.splitlines()
    assert lines[1:3] == ["Outcome: waits, NoNodeFits: 0/1 node fits: 1 cordoned", "Position: 1"]


@pytest.mark.parametrize("phase", ["Succeeded", "Pending", "Backoff"])
def test_a_task_that_does_not_wait_is_explained_as_if_it_did(swarmtask: Swarmtask, kube: FakeKube, phase: str) -> None:
    add_ready_node(kube, "desk")
    add_task(kube, "lint", phase)
    lines = swarmtask("explain", "lint").stdout.splitlines()
    assert lines[1:3] == [
        "Assuming: that it were queued now, and that it held nothing",
        "Outcome: starts on desk (engine local)",
    ]


def test_json_and_yaml_say_the_same(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_ready_node(kube, "desk")
    add_task(kube, "lint")
    document = json.loads(swarmtask("explain", "lint", "-o", "json").stdout)
    assert document["outcome"]["node"] == "desk"
    (node,) = document["nodes"]
    assert node["refusedBy"] is None
    assert sum(node["scores"].values()) == pytest.approx(node["score"])
    assert all(node["filters"].values())
    assert yaml.safe_load(swarmtask("explain", "lint", "-o", "yaml").stdout) == document


def test_no_nodes_and_no_task(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_task(kube, "lint")
    assert "no nodes have joined yet" in swarmtask("explain", "lint").stdout
    result = swarmtask("explain", "other")
    assert result.exit_code == 3
    assert "other" in result.stderr


def test_a_namespace_is_its_own(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_ready_node(kube, "desk")
    add_task(kube, "lint", namespace="elsewhere")
    assert swarmtask("explain", "lint").exit_code == 3
    assert "elsewhere/lint" in swarmtask("explain", "lint", "-n", "elsewhere").stdout


def test_the_terminal_cannot_be_steered(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_ready_node(kube, "de\x1b[31msk")
    add_task(kube, "lint")
    assert "\x1b" not in swarmtask("explain", "lint").stdout
    assert "\x1b" not in swarmtask("explain", "lint", "-o", "json").stdout


def test_what_keeps_a_task_from_waiting_is_said_before_what_would_happen(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_ready_node(kube, "desk")
    add_task(kube, "lint", "Pending", message="there is no SwarmQueue night in this namespace: create it", queue="night")
    lines = swarmtask("explain", "lint").stdout.splitlines()
    assert lines[:3] == [
        "Task: default/lint (Pending, queue night)",
        "Now: there is no SwarmQueue night in this namespace: create it",
        "Assuming: that it were queued now, and that it held nothing",
    ]
