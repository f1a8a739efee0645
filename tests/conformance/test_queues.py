"""What a person sees of a queue's bounds and defaults with kubectl. kubectl waits ten times for Retry-After before it speaks."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from tests.conformance.conftest import Kubectl

pytestmark = [pytest.mark.kubectl, pytest.mark.embedded]


def queue(name: str, **spec: Any) -> str:
    body = {"apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmQueue", "metadata": {"name": name}, "spec": spec}
    return yaml.safe_dump(body)


def task(name: str, queue_name: str, **spec: Any) -> str:
    return yaml.safe_dump({
        "apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmTask", "metadata": {"name": name},
        "spec": {"container": {"image": "x"}, "queue": queue_name, **spec},
    })  # fmt: skip


@pytest.mark.slow
def test_a_full_queue_says_so_after_kubectls_own_retries(kubectl: Kubectl, tmp_path: Any) -> None:
    """Every way at once: each takes kubectl ten seconds."""
    kubectl("create", "-f", "-", stdin=queue("small", maxQueued=1))
    kubectl("create", "-f", "-", stdin=task("first", "small"))
    kubectl("create", "-f", "-", stdin=task("elsewhere", "default"))
    manifest = tmp_path / "task.yaml"
    manifest.write_text(task("second", "small"))
    refused = [
        kubectl.follow("create", "-f", str(manifest)),
        kubectl.follow("apply", "-f", str(manifest)),
        kubectl.follow("apply", "--server-side", "-f", str(manifest)),
        kubectl.follow("create", "--dry-run=server", "-f", str(manifest)),
        kubectl.follow("patch", "swarmtask", "elsewhere", "--type=merge", "-p", '{"spec":{"queue":"small"}}'),
    ]
    for program in refused:
        assert program.wait() == 1
        said = " ".join(program.seen)
        assert "Error from server (TooManyRequests)" in said
        assert "the queue small is full: 1 of at most 1 tasks" in said
        assert "edit swarmqueue small" in said
    assert kubectl("get", "swarmtasks", "-o", "name").split() == [
        "swarmtask.swarmtask.io/elsewhere",
        "swarmtask.swarmtask.io/first",
    ]


def test_a_patched_queue_lets_a_waiting_kubectl_through(kubectl: Kubectl, tmp_path: Any) -> None:
    kubectl("create", "-f", "-", stdin=queue("small", maxQueued=0))
    manifest = tmp_path / "task.yaml"
    manifest.write_text(task("a", "small"))
    waiting = kubectl.follow("create", "-v=6", "-f", str(manifest))
    waiting.until(lambda line: "429" in line or "Retry-After" in line)
    kubectl("patch", "swarmqueue", "small", "--type=merge", "-p", '{"spec":{"maxQueued":1}}')
    assert waiting.wait() == 0
    assert "swarmtask.swarmtask.io/a created" in waiting.seen


def test_a_client_that_is_too_fast_is_slowed_down(kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", stdin=queue("slow", clientRateLimit={"perMinute": 60, "burst": 1}))
    tasks = "---\n".join(task(name, "slow") for name in ("a", "b", "c"))
    assert len(kubectl("create", "-f", "-", stdin=tasks).splitlines()) == 3, "kubectl waits as long as it is told"


def test_defaults_of_the_queue(kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", stdin=queue("d", defaults={"backoffLimit": 7, "priorityClass": "low"}))

    def chosen(text: str) -> list[Any]:
        spec = json.loads(text)["spec"]
        return [spec["backoffLimit"], spec.get("priorityClass"), spec.get("priority")]

    show = ("-o", "json", "-f", "-")
    assert chosen(kubectl("create", "--dry-run=server", *show, stdin=task("a", "d"))) == [7, "low", None]
    assert chosen(kubectl("apply", "--dry-run=server", *show, stdin=task("a", "d"))) == [7, "low", None]
    assert chosen(kubectl("apply", *show, stdin=task("a", "d", priority=5))) == [7, None, 5]
    assert chosen(kubectl("apply", "--server-side", *show, stdin=task("b", "d", backoffLimit=1))) == [1, "low", None]
    kubectl("patch", "swarmqueue", "d", "--type=merge", "-p", '{"spec":{"defaults":{"backoffLimit":8}}}')
    assert kubectl("apply", "-f", "-", stdin=task("a", "d", priority=5)).strip() == "swarmtask.swarmtask.io/a unchanged"
    assert chosen(kubectl("get", "swarmtask", "a", "-o", "json")) == [7, None, 5]
    assert chosen(kubectl("create", *show, stdin=task("c", "d"))) == [8, "low", None]
