"""The whole path on a real Docker Swarm of three nodes: kubectl apply -> finished containers."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import pytest

from tests.e2e.product import Product, task, wait_until
from tests.e2e.recorder import Recorder
from tests.lab.cluster import Lab
from tests.lab.images import TASK_TAG

pytestmark = [pytest.mark.docker, pytest.mark.lab, pytest.mark.kubectl, pytest.mark.slow]


def _reasons(product: Product, name: str) -> list[str]:
    """Reasons of the Events of a task, oldest first."""
    done = product.kubectl("get", "events", "--field-selector", f"involvedObject.name={name}", "-o", "json")
    items = json.loads(done.stdout)["items"]
    return [
        item["reason"]
        for item in sorted(items, key=lambda item: (item.get("firstTimestamp") or "", item["metadata"]["resourceVersion"]))
    ]


def test_thirty_tasks_of_mixed_size_finish_on_all_nodes_within_their_limits(product: Product, lab: Lab, recorder: Recorder) -> None:
    nodes = {item["metadata"]["name"]: item for item in product.get("swarmnodes")}
    assert len(nodes) == 3
    sizes = {item["status"]["allocatable"]["memory"] for item in nodes.values()}
    assert len(sizes) > 1, "the laboratory's nodes advertise sizes of their own"
    first = next(iter(nodes))
    product.kubectl("patch", "swarmnode", first, "--type=merge", "-p", '{"spec":{"maxTasks":2}}')
    watcher = subprocess.Popen(
        [str(product.kubectl_path), "get", "st", "-w", "--no-headers"], env=product.env, stdout=subprocess.PIPE, text=True
    )
    shapes = [("100m", "32Mi", 1), ("250m", "128Mi", 2), ("500m", "256Mi", 1), ("1", "512Mi", 2)]
    manifests = []
    for index in range(30):
        cpu, memory, seconds = shapes[index % len(shapes)]
        script = f"echo task {index} on $(hostname); sleep {seconds}; echo done {index}"
        manifests.append(
            task(
                f"mixed-{index:02}",
                script,
                image=TASK_TAG,
                cpu=cpu,
                memory=memory,
                priorityClass="high" if index % 5 == 0 else "low",
            )
        )
    said = product.apply(*manifests)
    assert said.count("created") == 30

    product.kubectl("wait", "--for=condition=Complete", "swarmtasks", "--all", "--timeout=150s", timeout_s=160)

    tasks = product.get("swarmtasks")
    assert {item["status"]["phase"] for item in tasks} == {"Succeeded"}
    assert {item["status"]["attempt"] for item in tasks} == {1}
    assert {item["status"]["nodeName"] for item in tasks} == set(nodes), "work is spread over all nodes"
    recorder.assert_ok()
    assert recorder.most_at_once(first) <= 2

    watcher.terminate()
    seen, _ = watcher.communicate(timeout=10)
    for phase in ("Queued", "Running", "Succeeded"):
        assert re.search(rf"^mixed-\d\d\s+{phase}\b", seen, re.MULTILINE), seen[:2000]
    described = product.kubectl("describe", "swarmtask", "mixed-07").stdout
    for reason in ("Queued", "Scheduled", "Started", "Completed"):
        assert reason in described, described
    for index in (0, 13, 29):
        logs = product.swarmtask("logs", f"mixed-{index:02}").stdout
        assert f"task {index} on " in logs
        assert f"done {index}" in logs
    wide = product.kubectl("get", "st", "-o", "wide").stdout
    assert TASK_TAG in wide
    assert re.search(r"NAME\s+PHASE\s+QUEUE\s+POSITION\s+NODE\s+ATTEMPT\s+REASON\s+AGE\s+ENGINE\s+IMAGE\s+EXIT", wide), wide


def test_what_fits_nowhere_says_why_and_starts_when_a_node_fits(product: Product, lab: Lab, recorder: Recorder) -> None:
    product.apply(
        task("needs-browser", "true", image=TASK_TAG, placement={"capabilities": ["browser"]}),
        task("needs-space", "true", image=TASK_TAG, memory="900Gi"),
        task("fits", "true", image=TASK_TAG),
    )
    product.wait_phase("fits", "Succeeded")

    def why(name: str) -> str:
        status = (product.get("swarmtask", name) or {}).get("status", {})
        scheduled = [c for c in status.get("conditions", []) if c["type"] == "Scheduled" and c["status"] == "False"]
        return f"{status.get('phase')}: {scheduled[0]['message']}" if scheduled else ""

    browser = wait_until("a reason", lambda: why("needs-browser"))
    assert browser.startswith("Queued: 0/3 nodes fit"), browser
    assert "browser" in browser
    space = wait_until("a reason", lambda: why("needs-space"))
    assert "too little memory" in space
    assert "900Gi" in space

    node = product.get("swarmnodes")[0]["metadata"]["name"]
    product.kubectl("patch", "sn", node, "--type=merge", "-p", '{"spec":{"capabilities":["browser"]}}')
    done = product.wait_phase("needs-browser", "Succeeded", timeout_s=20)
    assert done["status"]["nodeName"] == node
    assert product.phases()["needs-space"] == "Queued"
    product.swarmtask("cancel", "needs-space")
    product.wait_phase("needs-space", "Cancelled", timeout_s=10)
    recorder.assert_ok()


def test_a_high_priority_task_starts_next_behind_fifty_low_ones(product: Product, lab: Lab, recorder: Recorder) -> None:
    for item in product.get("swarmnodes"):
        product.kubectl("patch", "sn", item["metadata"]["name"], "--type=merge", "-p", '{"spec":{"maxTasks":1}}')
    # Three long ones hold the three places while the others queue up.
    product.apply(
        *[task(f"holder-{i}", "while [ ! -e /go ]; do sleep 0.2; done", image=TASK_TAG, priorityClass="high") for i in range(3)]
    )
    product.wait_all("Running", 3)
    product.apply(*[task(f"low-{i:02}", "true", image=TASK_TAG, priorityClass="low", labels={"tier": "low"}) for i in range(50)])
    product.wait_all("Queued", 50, "tier=low")
    product.apply(task("urgent", "true", image=TASK_TAG, priorityClass="high"))
    wait_until("position 1", lambda: product.get("swarmtask", "urgent")["status"].get("queuePosition") == 1, 20)
    wait_until(
        "the last one at position 51",
        lambda: max(item["status"].get("queuePosition", 0) for item in product.get("swarmtasks", selector="tier=low")) == 51,
        20,
    )
    product.swarmtask("cancel", "holder-0")
    product.wait_phase("urgent", "Succeeded", timeout_s=30)
    urgent_at = _first_bound(product.get("swarmtask", "urgent"))
    lows = [_first_bound(item) for item in product.get("swarmtasks", selector="tier=low")]
    assert all(low is None or low >= urgent_at for low in lows)
    recorder.all_deleted()
    product.kubectl("delete", "st", "--all", "--wait=true", timeout_s=90)
    recorder.assert_ok()


def _first_bound(item: dict[str, Any]) -> str | None:
    attempts = item["status"].get("attempts")
    return attempts[0]["boundAt"] if attempts else None


def test_the_operator_is_killed_while_twenty_run(product: Product, lab: Lab, recorder: Recorder) -> None:
    product.apply(*[task(f"work-{i:02}", "sleep 4; echo finished", image=TASK_TAG, cpu="50m", memory="16Mi") for i in range(20)])
    wait_until("some run", lambda: list(product.phases().values()).count("Running") >= 10, 60, product.logs_of_the_control_plane)
    assert product.operator is not None
    product.operator.kill()
    product.start_operator()
    product.wait_all("Succeeded", 20)
    assert {item["status"]["attempt"] for item in product.get("swarmtasks")} == {1}, "nothing ran twice"
    recorder.assert_ok()
    names = [item["metadata"]["name"] for item in product.get("swarmtasks")]
    product.kubectl("delete", "st", *names, timeout_s=90)
    wait_until("nothing is left on any node", lambda: not _left(lab), 60, lambda: str(_left(lab)))


def _left(lab: Lab) -> list[str]:
    """Services and containers of ours that exist anywhere."""
    services = [service.name for service in lab.manager_client().services.list()]
    return services + [container.name for node in lab.nodes for container in lab.client(node).containers.list(all=True)]


@pytest.mark.parametrize("seconds", [600])
def test_a_deleted_task_stops_within_its_grace_and_leaves_nothing(
    product: Product, lab: Lab, recorder: Recorder, seconds: int
) -> None:
    product.apply(
        task("polite", f"trap 'exit 0' TERM; sleep {seconds} & wait", image=TASK_TAG),
        task("stubborn", f"trap '' TERM; sleep {seconds}", image=TASK_TAG),
    )
    for name in ("polite", "stubborn"):
        product.wait_phase(name, "Running")
    product.kubectl("delete", "st", "polite", "stubborn", "--wait=true", "--timeout=30s", timeout_s=40)
    assert product.get("swarmtasks") == []
    wait_until("nothing is left on any node", lambda: not _left(lab), 30, lambda: str(_left(lab)))
    recorder.assert_ok()


def test_deleting_while_the_operator_is_down_is_finished_when_it_is_back(product: Product, lab: Lab, recorder: Recorder) -> None:
    product.apply(task("orphaned", "sleep 600", image=TASK_TAG))
    product.wait_phase("orphaned", "Running")
    assert product.operator is not None
    product.operator.kill()
    product.kubectl("delete", "st", "orphaned", "--wait=false")
    assert product.get("swarmtask", "orphaned")["metadata"]["deletionTimestamp"]
    product.start_operator()
    product.kubectl("wait", "--for=delete", "st/orphaned", "--timeout=40s", timeout_s=50)
    wait_until("nothing is left on any node", lambda: not _left(lab), 30, lambda: str(_left(lab)))
    recorder.assert_ok()


def test_dockerd_of_one_node_is_restarted(product: Product, lab: Lab, recorder: Recorder) -> None:
    victim = lab.nodes[-1]
    assert victim in {item["metadata"]["name"] for item in product.get("swarmnodes")}
    pinned = {"placement": {"nodeName": victim}}
    product.apply(*[task(f"pinned-{i}", "sleep 6; echo whole", image=TASK_TAG, **pinned) for i in range(3)])
    product.wait_all("Running", 3)
    lab.restart_dockerd(victim, "KILL")
    product.wait_all("Succeeded", 3, timeout_s=150)
    for item in product.get("swarmtasks"):
        attempts = item["status"]["attempts"]
        assert attempts[-1]["state"] == "Succeeded"
        assert all(a["reason"] in ("NodeRestarted", "NodeLost", "WorkloadLost") for a in attempts[:-1]), attempts
        assert item["status"].get("failures", 0) == 0, "a restarted node does not use up the user's retries"
    recorder.assert_ok()


def test_an_image_that_does_not_exist(product: Product, recorder: Recorder) -> None:
    product.apply(
        task("no-image", "true", image="registry.invalid/never/was:1", backoffLimit=1, startDeadlineSeconds=60,
             backoff={"type": "linear", "initialSeconds": 1, "maxSeconds": 1}),
    )  # fmt: skip
    failed = product.wait_phase("no-image", "Failed", timeout_s=120)
    status = failed["status"]
    assert [attempt["reason"] for attempt in status["attempts"]] == ["ImagePullFailed", "ImagePullFailed"]
    assert "registry.invalid/never/was" in status["attempts"][-1]["message"]
    assert failed["metadata"]["labels"]["swarmtask.io/dead-letter"] == "true"
    assert _reasons(product, "no-image").count("BackOff") == 1
    recorder.assert_ok()


def test_secrets_reach_the_container_and_nothing_else(product: Product, recorder: Recorder) -> None:
    product.kubectl("create", "secret", "generic", "forge", "--from-literal=token=s3cr3t-{{canary}}")
    script = 'echo "length ${#TOKEN}"; case "$TOKEN" in s3cr3t-*canary*) echo same;; esac'
    manifest = task("uses-secret", script, image=TASK_TAG)
    manifest["spec"]["container"]["env"] = [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "forge", "key": "token"}}}]
    product.apply(manifest)
    product.wait_phase("uses-secret", "Succeeded")
    logs = product.swarmtask("logs", "uses-secret").stdout
    assert f"length {len('s3cr3t-{{canary}}')}" in logs
    assert "same" in logs
    shown = product.kubectl("get", "st", "uses-secret", "-o", "yaml").stdout + product.kubectl("get", "events", "-o", "yaml").stdout
    assert "canary" not in shown.replace("*canary*", "")
    assert "s3cr3t-{{canary" not in product.logs_of_the_control_plane()
    recorder.assert_ok()


def test_a_failing_task_is_retried_and_becomes_a_dead_letter_that_a_person_retries(product: Product, recorder: Recorder) -> None:
    backoff = {"type": "exponential", "initialSeconds": 1, "factor": 2, "maxSeconds": 2}
    product.apply(task("fails", "echo no luck; exit 3", image=TASK_TAG, backoffLimit=1, backoff=backoff))
    failed = product.wait_phase("fails", "Failed")
    assert [(a["number"], a["exitCode"], a["reason"]) for a in failed["status"]["attempts"]] == [(1, 3, "Error"), (2, 3, "Error")]
    product.kubectl("patch", "st", "fails", "--type=merge", "-p", json.dumps({"spec": {"container": {"command": ["true"]}}}))
    product.swarmtask("retry", "fails")
    done = product.wait_phase("fails", "Succeeded")
    assert done["status"]["attempt"] == 3
    assert "swarmtask.io/dead-letter" not in done["metadata"].get("labels", {})
    recorder.assert_ok()
