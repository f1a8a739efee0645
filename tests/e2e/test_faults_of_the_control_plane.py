"""The operator dies at every write it makes, and the API server in the middle of a burst, with real work on a real Swarm."""

from __future__ import annotations

import json
import threading

import pytest

from swarmtask.controllers.crashpoints import EXIT_CODE, POINTS
from tests.e2e.leftovers import assert_nothing_is_left
from tests.e2e.nursery import forking
from tests.e2e.product import Product, task, wait_until
from tests.e2e.recorder import Recorder
from tests.lab.cluster import Lab
from tests.lab.images import TASK_TAG

pytestmark = [pytest.mark.docker, pytest.mark.lab, pytest.mark.kubectl, pytest.mark.slow]

SOON = {"type": "linear", "initialSeconds": 1, "maxSeconds": 1}
FAST = {
    "SWARMTASK_OPERATOR__ORPHAN_GRACE_S": "1",
    "SWARMTASK_OPERATOR__STATUS_REFRESH_S": "0.2",
    "SWARMTASK_OPERATOR__KEEP_ARRAY_MEMBERS": "0",
}


def test_the_operator_dies_at_every_write(product: Product, lab: Lab, recorder: Recorder) -> None:
    """One operator after the other: each is killed by its own crash point, and the next one finds what it left."""
    assert product.operator is not None
    product.operator.stop()
    with forking(product):
        for number, point in enumerate(POINTS):
            product.start_operator({**FAST, "SWARMTASK_OPERATOR__CRASH_POINT": point}, wait=False)
            _ask_for(point, product, lab, recorder, number)
            operator = product.operator
            wait_until(f"the operator to die {point}", lambda operator=operator: not operator.alive, 30, operator.tail)
            assert operator.returncode == EXIT_CODE, operator.tail()
    product.start_operator(FAST)
    names = [f"work-{number:02}" for number in range(len(POINTS))]

    def settled() -> bool:
        phases = product.phases()
        return all(phases.get(name, "Succeeded") == "Succeeded" for name in names) and set(phases) <= set(names)

    wait_until("every task to be finished once", settled, 60, lambda: json.dumps(product.phases()))
    for item in product.get("swarmtasks"):
        assert item["status"]["attempt"] == 1, item["status"]
    for namespace in [item["metadata"]["name"] for item in product.get("namespaces")]:
        if namespace.startswith("space-"):
            product.kubectl("delete", "namespace", namespace, "--timeout=60s", timeout_s=70)
    product.kubectl("delete", "st", "--all", "--wait=false")  # waiting for each, kubectl asks five times a second at most
    wait_until("all tasks to be gone", lambda: not product.phases(), 60)
    assert_nothing_is_left(lab)
    recorder.assert_ok(robbed=[f"goes-{number:02}" for number, point in enumerate(POINTS) if "remove-orphan" in point])


def _ask_for(point: str, product: Product, lab: Lab, recorder: Recorder, number: int) -> None:
    """Work for the operator, such that it comes to this point. Every `work-` must succeed once; all else must be gone."""
    wanted, goes = task(f"work-{number:02}", "true", image=TASK_TAG), f"goes-{number:02}"
    match point.partition(":")[2]:
        case "stop":
            product.apply(wanted, task(goes, "sleep 600", image=TASK_TAG))
            _runs_or_operator_is_dead(product, goes)
            recorder.delete_requested(product.get("swarmtask", goes)["metadata"]["uid"])
            product.kubectl("delete", "st", goes, "--wait=false")
        case "remove" | "release-finalizer" | "delete-task":
            product.apply(wanted, task(goes, "true", image=TASK_TAG, ttlSecondsAfterFinished=0))
        case "create-node":
            product.kubectl("delete", "sn", product.get("swarmnodes")[-1]["metadata"]["name"])
            product.apply(wanted)
        case "label-node":  # as `docker node update --label-rm` does
            lab.reset_swarm_node(lab.manager)
            product.apply(wanted)
        case "create-queue":
            product.kubectl("create", "namespace", f"space-{number:02}")
            elsewhere = task("elsewhere", "true", image=TASK_TAG)
            elsewhere["metadata"]["namespace"] = f"space-{number:02}"
            product.apply(elsewhere, wanted)
        case "write-array" | "create-member" | "delete-member":
            product.apply(wanted, task(goes, "true", image=TASK_TAG, completions=2, ttlSecondsAfterFinished=0))
        case "steer-member":
            product.apply(wanted, task(goes, "sleep 600", image=TASK_TAG, completions=1, ttlSecondsAfterFinished=0))
            _runs_or_operator_is_dead(product, f"{goes}-0")
            product.kubectl("annotate", "st", goes, "swarmtask.io/cancel=by the test")
        case "remove-orphan":
            # Somebody takes our finalizer away: the service has no owner any more.
            product.apply(wanted, task(goes, "sleep 600", image=TASK_TAG))
            _runs_or_operator_is_dead(product, goes)
            recorder.delete_requested(product.get("swarmtask", goes)["metadata"]["uid"])
            product.kubectl("delete", "st", goes, "--wait=false")
            product.kubectl("patch", "st", goes, "--type=merge", "-p", '{"metadata":{"finalizers":null}}', check=False)
        case _:
            product.apply(wanted)


def _runs_or_operator_is_dead(product: Product, name: str) -> None:
    """What an earlier operator left can be enough to come to the point."""

    def reached() -> bool:
        assert product.operator is not None
        return not product.operator.alive or product.phases().get(name) == "Running"

    wait_until(f"{name} to run, or the operator to die", reached, 30)


def test_the_api_server_dies_in_a_burst(product: Product, lab: Lab, recorder: Recorder) -> None:
    """A hundred and twenty tasks; kill -9 while some are being created, some run and some have ended; the same port afterwards."""
    acknowledged: list[str] = []
    stop = threading.Event()

    def create() -> None:
        for number in range(120):
            manifest = json.dumps(task(f"burst-{number:03}", "true", image=TASK_TAG, cpu="10m", memory="8Mi"))
            while not stop.is_set():
                done = product.kubectl("create", "-f", "-", stdin=manifest, check=False)
                if done.returncode == 0 or "AlreadyExists" in done.stderr:
                    acknowledged.append(f"burst-{number:03}")
                    break

    creator = threading.Thread(target=create)
    creator.start()
    try:
        for enough in (30, 70):
            wait_until("creates", lambda enough=enough: len(acknowledged) >= enough, 60)
            assert product.apiserver is not None
            product.apiserver.kill()
            product.start_apiserver()
            wait_until("all that was acknowledged", lambda: set(acknowledged) <= product.phases().keys(), 10)
        creator.join(60)
    finally:
        stop.set()
        creator.join()
    product.wait_all("Succeeded", 120, timeout_s=150)
    assert {item["status"]["attempt"] for item in product.get("swarmtasks")} == {1}, "nothing ran twice"
    assert product.operator is not None
    assert product.operator.alive
    recorder.all_deleted()
    product.kubectl("delete", "st", "--all", "--wait=false")  # waiting for each, kubectl asks five times a second at most
    wait_until("all tasks to be gone", lambda: not product.phases(), 60)
    assert_nothing_is_left(lab)
    recorder.assert_ok()
