"""`swarmtask explain`: every node, every filter's verdict, every score's share."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from swarmtask.resources.kinds import SWARM_NODE
from tests.cli.conftest import Swarmtask
from tests.cli.tasks import add_queue, add_task
from tests.fakes.kube import FakeKube


def add_ready_node(kube: FakeKube, name: str, cpu: str = "4", **spec: Any) -> None:
    resources = {"cpu": cpu, "memory": "8Gi", "gpu": 0}
    kube.add(
        SWARM_NODE,
        {"metadata": {"name": name}, "spec": spec},
        status={
            "phase": "Ready", "capacity": resources, "allocatable": resources, "engines": [{"name": "local", "id": f"id-{name}"}],
        },
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
    heading, *rows = lines[3:]
    assert heading.split() == [
        "NODE", "VERDICT", "TOTAL", "BALANCE", "FEWTASKS", "READY", "CORDONED", "ENGINE", "MAXTASKS", "MEMORY", "CPU",
    ]  # fmt: skip
    assert [row.split()[0] for row in rows] == ["desk", "bed", "attic"]
    assert [row[heading.index("VERDICT") :].split("  ")[0] for row in rows] == ["chosen", "fits", "refused by cordoned"]
    assert rows[0].split()[5:] == ["yes"] * 6
    assert rows[2][heading.index("CORDONED") :].startswith("NO")


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
