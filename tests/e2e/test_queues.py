"""Queues on a real Docker Swarm of three nodes: shares, limits, priorities, places, deadlines, dead letters, arrays."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.e2e.leftovers import assert_nothing_is_left
from tests.e2e.product import Object, Product, task, wait_until
from tests.e2e.recorder import Recorder
from tests.lab.cluster import Lab
from tests.lab.images import TASK_TAG

pytestmark = [pytest.mark.docker, pytest.mark.lab, pytest.mark.kubectl, pytest.mark.slow]

SOON = {"type": "linear", "initialSeconds": 1, "maxSeconds": 1}
POLITE = "trap 'exit 143' TERM; sleep 600 & wait"


def _queue(name: str, **spec: Any) -> Object:
    return {
        "apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmQueue", "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    }  # fmt: skip


def _slots(product: Product, lab: Lab, *counts: int | None) -> None:
    """How many tasks each node may run."""
    for node, count in zip(lab.nodes, counts, strict=True):
        product.kubectl("patch", "sn", node, "--type=merge", "-p", json.dumps({"spec": {"maxTasks": count}}))


def _status(product: Product, name: str) -> Object:
    status: Object = (product.get("swarmtask", name) or {}).get("status", {})
    return status


@contextmanager
def _watched(product: Product, *args: str) -> Iterator[list[str]]:
    """The lines that `kubectl get ... -w` shows meanwhile; complete after the block."""
    lines: list[str] = []
    command = [str(product.kubectl_path), "get", *args, "-w", "--no-headers"]
    watcher = subprocess.Popen(command, env=product.env, stdout=subprocess.PIPE, text=True)
    try:
        yield lines
    finally:
        watcher.terminate()
        seen, _ = watcher.communicate(timeout=10)
        lines += seen.splitlines()


def test_two_queues_share_three_to_one(product: Product, lab: Lab, recorder: Recorder) -> None:
    product.apply(_queue("large", cohort="lab", weight=3), _queue("small", cohort="lab", weight=1))
    _slots(product, lab, 0, 0, 0)
    for queue in ("large", "small"):
        product.apply(
            *[task(f"{queue}-stays-{i}", POLITE, image=TASK_TAG, queue=queue, labels={"stays": queue}) for i in range(8)],
        )
    for queue in ("large", "small"):
        waiting = product.wait_all("Queued", 8, f"stays={queue}")
        assert len(waiting) == 8
    _slots(product, lab, 3, 3, 2)

    def shares() -> dict[str, int]:
        return {queue: list(product.phases(f"stays={queue}").values()).count("Running") for queue in ("large", "small")}

    wait_until("eight to run", lambda: sum(shares().values()) == 8, 60, lambda: str(shares()))
    assert shares() == {"large": 6, "small": 2}

    # What one does not use is lent, and comes back when it is asked for again.
    recorder.all_deleted()
    product.kubectl("delete", "st", "-l", "stays=large", "--timeout=40s", timeout_s=50)
    wait_until("all to be lent", lambda: shares() == {"large": 0, "small": 8}, 60, lambda: str(shares()))
    product.kubectl("delete", "st", "-l", "stays=small", "--timeout=40s", timeout_s=50)

    # Over a long run: who starts, counted while both wait.
    _slots(product, lab, 0, 0, 0)
    for queue in ("large", "small"):
        product.apply(*[task(f"{queue}-{i:02}", "sleep 1", image=TASK_TAG, queue=queue, labels={"run": queue}) for i in range(24)])
        product.wait_all("Queued", 24, f"run={queue}")
    with _watched(product, "st", "-l", "run") as lines:
        _slots(product, lab, 3, 3, 2)
        done = lambda: list(product.phases("run=large").values()).count("Succeeded") >= 22  # noqa: E731 - two words
        wait_until("nearly all of the large one's", done, 90, product.logs_of_the_control_plane)
    started = list(dict.fromkeys(line.split()[0] for line in lines if re.search(r"\bStarting\b", line)))[:24]
    assert len(started) == 24
    assert 17 <= sum(name.startswith("large") for name in started) <= 19, started
    _slots(product, lab, None, None, None)
    recorder.all_deleted()
    product.kubectl("delete", "st", "--all", "--timeout=60s", timeout_s=70)
    assert_nothing_is_left(lab)
    recorder.assert_ok()


def test_a_limit_of_two_is_never_exceeded_by_thirty(product: Product, lab: Lab, recorder: Recorder) -> None:
    product.apply(_queue("models", limits={"model/x": 2}), _queue("others"))
    with _watched(product, "sq", "models", "-o", r"jsonpath={.status.limitsHeld.model/x}{'\n'}") as held:
        queues = ["models", "others"] * 15  # a limit is one for tasks of all queues
        product.apply(
            *[task(f"asks-{i:02}", "true", image=TASK_TAG, queue=queue, limits={"model/x": 1}) for i, queue in enumerate(queues)]
        )
        wait_until("somebody to be told", lambda: "model/x" in (_status(product, "asks-29").get("message") or ""), 30)
        assert _status(product, "asks-29")["reason"] == "LimitReached"
        product.wait_all("Succeeded", 30, timeout_s=150)
    assert {line for line in held if line} <= {"0", "1", "2"}, held
    assert "2" in held, held
    attempts = [(item["status"]["attempts"][0]["boundAt"], 1) for item in product.get("swarmtasks")]
    assert len(attempts) == 30
    recorder.assert_ok()  # I9: the checker has counted the slots after every change of every task


def test_a_high_priority_preempts_one_and_no_more(product: Product, lab: Lab, recorder: Recorder) -> None:
    product.apply(_queue("urgent", preemption="LowerPriority", defaults={"priorityClass": "high"}))
    _slots(product, lab, 1, 1, 1)
    product.apply(*[task(f"low-{i}", "sleep 9; echo whole", image=TASK_TAG, priorityClass="low") for i in range(3)])
    product.wait_all("Running", 3)
    product.apply(task("urgent", "echo now", image=TASK_TAG, queue="urgent"))
    product.wait_phase("urgent", "Succeeded", timeout_s=40)
    assert product.get("swarmtask", "urgent")["spec"]["priorityClass"] == "high", "the queue's default"
    done = product.wait_all("Succeeded", 4, timeout_s=60)
    assert set(done) == {"low-0", "low-1", "low-2", "urgent"}
    attempts = {name: _status(product, name)["attempts"] for name in done}
    robbed = [name for name, records in attempts.items() if len(records) > 1]
    assert len(robbed) == 1, attempts
    assert [record["reason"] for record in attempts[robbed[0]]] == ["Preempted", "Completed"]
    assert _status(product, robbed[0]).get("failures", 0) == 0, "it does not use up the user's retries"
    assert "Preempted" in product.event_reasons(robbed[0])
    assert attempts["urgent"][0]["node"] == attempts[robbed[0]][0]["node"]
    recorder.assert_ok()


def test_places_count_down_and_deadlines_pass(product: Product, lab: Lab, recorder: Recorder) -> None:
    product.apply(_queue("narrow", maxRunning=1), _queue("closed", stopped=True))
    product.swarmtask("queue", "hold", "narrow")
    product.apply(task("late", "true", image=TASK_TAG, queue="closed", queueDeadlineSeconds=2))
    product.apply(*[task(f"place-{i}", "sleep 1", image=TASK_TAG, queue="narrow", labels={"narrow": "yes"}) for i in range(4)])
    wait_until("the last place", lambda: _status(product, "place-3").get("queuePosition") == 4, 20)
    said = product.swarmtask("queue", "position", "place-3").stdout
    assert "4 of 4" in said, said
    with _watched(product, "st", "place-3", "-o", r"jsonpath={.status.queuePosition}{'\n'}") as places:
        product.swarmtask("queue", "release", "narrow")
        product.wait_all("Succeeded", 4, "narrow=yes")
    counted = [int(place) for place in places if place]
    assert list(dict.fromkeys(counted)) == [4, 3, 2, 1], places
    expired = product.wait_phase("late", "Expired", timeout_s=20)
    assert expired["status"]["reason"] == "QueueDeadline"
    assert "Expired" in product.event_reasons("late")
    table = product.swarmtask("queue", "list").stdout
    assert re.search(r"^narrow\b", table, re.MULTILINE), table
    assert re.search(r"^closed\b.*\bheld\b", table, re.MULTILINE | re.IGNORECASE), table
    recorder.assert_ok()


def test_dead_letters_are_retried_after_their_cause_was_mended(product: Product, lab: Lab, recorder: Recorder) -> None:
    product.apply(_queue("forge"))
    manifests = []
    for i in range(3):
        manifest = task(f"needs-{i}", 'test -n "$TOKEN"', image=TASK_TAG, queue="forge", backoff=SOON, backoffLimit=1)
        manifest["spec"]["container"]["env"] = [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "forge", "key": "token"}}}]
        manifests.append(manifest)
    policy = [{"onExitCodes": [4], "action": "Fail"}]
    product.apply(*manifests, task("hopeless", "exit 4", image=TASK_TAG, failurePolicy=policy))
    product.wait_all("Failed", 4)
    assert len(_status(product, "hopeless")["attempts"]) == 1, "the policy leaves it no retry"
    failed = _status(product, "needs-0")
    assert [record["reason"] for record in failed["attempts"]] == ["SecretNotFound", "SecretNotFound"]
    evidence = next(c["message"] for c in failed["conditions"] if c["type"] == "Failed")
    assert "attempt 1" in evidence, evidence
    assert "attempt 2" in evidence, evidence
    product.kubectl("create", "secret", "generic", "forge", "--from-literal=token=abc")
    product.swarmtask("retry", "--all-dead", "--queue", "forge")
    for i in range(3):
        product.wait_phase(f"needs-{i}", "Succeeded")
    assert product.phases()["hopeless"] == "Failed", "of another queue"
    recorder.assert_ok()


def test_an_array_of_two_hundred(product: Product, lab: Lab, recorder: Recorder) -> None:
    product.apply(
        task(
            "many", 'test "$SWARMTASK_INDEX" != 13', image=TASK_TAG, cpu="20m", memory="16Mi", completions=200, parallelism=60,
            backoffLimit=0,
        )
    )  # fmt: skip
    done = product.wait_phase("many", "Failed", timeout_s=180)["status"]
    array = done["array"]
    assert (array["succeeded"], array["failed"], array.get("active", 0)) == (199, 1, 0)
    assert (array["completedIndexes"], array["failedIndexes"]) == ("0-12,14-199", "13")
    assert "13" in array["failures"][0]
    recorder.all_deleted()
    product.kubectl("delete", "st", "--all", "--timeout=60s", timeout_s=70)
    assert product.get("swarmtasks") == []
    assert_nothing_is_left(lab)
    recorder.assert_ok()
