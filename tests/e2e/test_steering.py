"""What people and other programs do around tasks, on a real Swarm: limits, queues, wishes, namespaces, foreign services, logs."""

from __future__ import annotations

import docker.types
import pytest

from tests.e2e.leftovers import assert_nothing_is_left
from tests.e2e.product import Object, Product, task, wait_until
from tests.e2e.recorder import Recorder
from tests.lab.cluster import Lab
from tests.lab.images import TASK_TAG

pytestmark = [pytest.mark.docker, pytest.mark.lab, pytest.mark.kubectl, pytest.mark.slow]

SOON = {"type": "linear", "initialSeconds": 1, "maxSeconds": 1}
LONG = "sleep 600"


def _status(product: Product, name: str) -> Object:
    status: Object = (product.get("swarmtask", name) or {}).get("status", {})
    return status


def _wait_message(product: Product, name: str, words: str) -> None:
    wait_until(
        f"{name} to say {words!r}",
        lambda: words in (_status(product, name).get("message") or ""),
        15,
        lambda: str(_status(product, name)),
    )


def _merge(product: Product, kind: str, name: str, patch: str) -> None:
    product.kubectl("patch", kind, name, "--type=merge", "-p", patch)


def test_nodes_and_queues_are_closed_and_opened_by_hand(product: Product, lab: Lab, recorder: Recorder) -> None:
    here = {"placement": {"nodeName": lab.nodes[1]}, "cpu": "10m"}
    _merge(product, "sn", lab.nodes[1], '{"spec":{"unschedulable":true}}')
    product.apply(task("cordoned", "true", image=TASK_TAG, **here))
    _wait_message(product, "cordoned", "1 cordoned")
    _merge(product, "sn", lab.nodes[1], '{"spec":{"unschedulable":false,"maxTasks":0}}')
    _wait_message(product, "cordoned", "1 at its limit of 0 tasks")
    _merge(product, "sn", lab.nodes[1], '{"spec":{"maxTasks":null}}')
    product.wait_phase("cordoned", "Succeeded", timeout_s=20)

    queue = {"apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmQueue", "metadata": {"name": "night", "namespace": "default"}}
    product.apply(queue | {"spec": {"stopped": True}})
    product.apply(*[task(f"night-{i}", LONG, image=TASK_TAG, queue="night", labels={"queue": "night"}) for i in range(3)])
    _wait_message(product, "night-2", "stopped")
    assert set(product.phases("queue=night").values()) == {"Queued"}
    _merge(product, "sq", "night", '{"spec":{"stopped":false,"maxRunning":1}}')
    wait_until("one to run", lambda: sorted(product.phases("queue=night").values()) == ["Queued", "Queued", "Running"], 20)
    phases = product.phases("queue=night")
    _wait_message(product, next(name for name in phases if phases[name] == "Queued"), "maxRunning 1")
    running = next(name for name in phases if phases[name] == "Running")
    product.kubectl("delete", "st", running, "--timeout=30s", timeout_s=40)
    wait_until("the next one", lambda: sorted(product.phases("queue=night").values()) == ["Queued", "Running"], 20)
    recorder.all_deleted()
    product.kubectl("delete", "st", "--all", "--timeout=30s", timeout_s=40)
    assert_nothing_is_left(lab)
    recorder.assert_ok()


def test_a_running_task_is_suspended_resumed_limited_and_robbed(product: Product, lab: Lab, recorder: Recorder) -> None:
    polite = "trap 'exit 143' TERM; sleep 600 & wait"
    product.apply(
        task("pauses", polite, image=TASK_TAG),
        task("too-long", polite, image=TASK_TAG, activeDeadlineSeconds=2, backoffLimit=0),
        task("robbed", "sleep 600", image=TASK_TAG, backoff=SOON),
    )
    product.wait_phase("robbed", "Running")
    service = lab.manager_client().services.get(_status(product, "robbed")["attempts"][0]["id"])
    service.remove()
    product.wait_phase("pauses", "Running")
    _merge(product, "st", "pauses", '{"spec":{"suspend":true}}')
    paused = product.wait_phase("pauses", "Pending", timeout_s=20)["status"]
    assert (paused["reason"], paused["attempts"][0]["state"], paused.get("nodeName")) == ("Suspended", "Stopped", None)
    _merge(product, "st", "pauses", '{"spec":{"suspend":false}}')
    again = product.wait_phase("pauses", "Running", timeout_s=20)["status"]
    assert (again["attempt"], again.get("failures", 0)) == (2, 0)
    assert [r for r in product.event_reasons("pauses") if r not in ("Preparing", "Waiting")] == [
        "Scheduled", "Started", "Stopping", "Suspended", "Resumed", "Queued", "Scheduled", "Started"
    ], "Queued was said twice and is shown where it was said last"  # fmt: skip

    late = product.wait_phase("too-long", "Failed", timeout_s=20)["status"]
    assert (late["reason"], late["failures"]) == ("ActiveDeadline", 1)

    wait_until("another attempt", lambda: _status(product, "robbed").get("attempt") == 2, 30)
    robbed = product.wait_phase("robbed", "Running", timeout_s=20)["status"]
    assert (robbed["attempts"][0]["reason"], robbed.get("failures", 0)) == ("WorkloadLost", 0)
    product.kubectl("delete", "st", "--all", "--timeout=30s", timeout_s=40)
    assert_nothing_is_left(lab)
    recorder.assert_ok()


def test_namesakes_strangers_and_a_talkative_task(product: Product, lab: Lab) -> None:
    docker_api = lab.manager_client().api
    product.kubectl("create", "namespace", "other")
    product.apply(task("claimed", "true", image=TASK_TAG, suspend=True, backoff=SOON))
    uid = product.get("swarmtask", "claimed")["metadata"]["uid"]
    taken = f"st-{uid.replace('-', '')[:16]}-1"
    idle = docker.types.ServiceMode("replicated", 0)
    template = docker.types.TaskTemplate(docker.types.ContainerSpec(TASK_TAG, command=["true"]))
    strangers = [docker_api.create_service(template, name=name, mode=idle)["ID"] for name in ("database", taken)]
    before = {item["ID"]: item["Version"]["Index"] for item in docker_api.services()}
    assert set(before) == set(strangers)
    try:
        _merge(product, "st", "claimed", '{"spec":{"suspend":false}}')
        line = "x" * 99
        talk = f"for i in $(seq 1000); do echo {line}; done > /tmp/k; for j in $(seq 100); do cat /tmp/k; done; echo over"
        product.apply(task("namesake", "echo here; exit 0", image=TASK_TAG), task("talks", talk, image=TASK_TAG))
        there = task("namesake", "echo there; exit 3", image=TASK_TAG, backoffLimit=0)
        there["metadata"]["namespace"] = "other"
        product.apply(there)

        product.wait_phase("namesake", "Succeeded")
        product.kubectl("wait", "--for=condition=Failed", "st/namesake", "-n", "other", "--timeout=30s", timeout_s=40)
        assert product.swarmtask("logs", "namesake").stdout == "here\n"
        assert product.swarmtask("logs", "namesake", "-n", "other").stdout == "there\n"

        claimed = product.wait_phase("claimed", "Succeeded", timeout_s=30)["status"]
        assert [(a["number"], a["reason"]) for a in claimed["attempts"]] == [(1, "EngineRejected"), (2, "Completed")]
        assert taken in claimed["attempts"][0]["message"]

        product.wait_phase("talks", "Succeeded", timeout_s=60)
        said = product.swarmtask("logs", "talks", timeout_s=60).stdout
        assert len(said) > 9_000_000
        assert said.endswith(f"{line}\nover\n")
        product.kubectl("delete", "st", "--all", "--timeout=30s", timeout_s=40)
        product.kubectl("delete", "namespace", "other", "--timeout=30s", timeout_s=40)
        wait_until("ours to be gone", lambda: len(docker_api.services()) == len(before), 60)
        assert {item["ID"]: item["Version"]["Index"] for item in docker_api.services()} == before, "nobody has touched them"
    finally:
        for stranger in strangers:
            docker_api.remove_service(stranger)
    assert_nothing_is_left(lab)


def test_an_image_that_one_laptop_alone_has_is_found(product: Product, lab: Lab, recorder: Recorder) -> None:
    """No registry: the attempt fails where the image is not, and the next one goes to a node where it has not failed yet."""
    owner, tag = lab.nodes[-1], "swarmtask-test/only-here:1"
    image = lab.client(owner).images.get(TASK_TAG)
    image.tag(tag)
    try:
        product.apply(task("only-here", "true", image=tag, backoff=SOON, backoffLimit=2))
        done = product.wait_phase("only-here", "Succeeded", "Failed", timeout_s=60)["status"]
        assert done["phase"] == "Succeeded", done
        assert done["nodeName"] == owner
        assert {a["reason"] for a in done["attempts"][:-1]} == {"ImagePullFailed"}
        assert len({a["node"] for a in done["attempts"]}) == len(done["attempts"])
    finally:
        lab.client(owner).images.remove(tag)
    recorder.assert_ok()
