"""People and programs that come too late, by real kubectl programs: a history that was compacted, an edit that somebody else
overtook, a wait that is already over."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.apiserver.server import RunningServer
from tests.conformance.conftest import HISTORY_ROWS, Kubectl
from tests.conformance.fleet import config, created, let_go, text

pytestmark = pytest.mark.kubectl
MAPS = "/api/v1/namespaces/{}/configmaps"
SEVERAL = 8
"""Changes in one call of kubectl."""


@pytest.fixture
def forgetful(kubectl: Kubectl, forgetful_server: RunningServer) -> Iterator[Kubectl]:
    """The same kubectl on a server with a short history, in a namespace of its own."""
    other = dataclasses.replace(kubectl, server=forgetful_server, _following=[])
    other("create", "namespace", other.namespace)
    yield other
    other.close()


def churn(kubectl: Kubectl) -> None:
    """More changes than the server remembers."""
    made = [config(f"churn-{number}") for number in range(HISTORY_ROWS)]
    kubectl("create", "-f", "-", stdin=text(*made))
    kubectl("delete", "cm", "-l", "!keep", "--wait=false")


@pytest.mark.embedded
def test_a_watch_from_a_compacted_version_is_told_410_inside_of_the_stream(forgetful: Kubectl) -> None:
    path = MAPS.format(forgetful.namespace)
    version = created(forgetful, config("a", labels={"keep": "1"}))["metadata"]["resourceVersion"]
    churn(forgetful)
    (event,) = [json.loads(line) for line in forgetful("get", "--raw", f"{path}?watch=1&resourceVersion={version}").splitlines()]
    assert (event["type"], event["object"]["code"], event["object"]["reason"]) == ("ERROR", 410, "Expired")
    assert "too old resource version" in event["object"]["message"]
    for query in (f"resourceVersion={version}&resourceVersionMatch=Exact", f"limit=1&continue={token_of(forgetful, version)}"):
        assert "Gone" in (said := forgetful.fails("get", "--raw", f"{path}?{query}")) or "Expired" in said or "too old" in said
    assert [item["metadata"]["name"] for item in json.loads(forgetful("get", "--raw", path))["items"]] == ["a"]


def token_of(kubectl: Kubectl, version: str) -> str:
    """A continue token as the server gave it at that version: the same list, begun before the history was compacted."""
    content = json.dumps([int(version), "", "configmaps", kubectl.namespace, "a"], separators=(",", ":"))
    return base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")


@pytest.mark.embedded
def test_who_keeps_watching_misses_nothing_of_a_compacted_history(forgetful: Kubectl) -> None:
    created(forgetful, config("a", labels={"keep": "1"}))
    watching = forgetful.follow("get", "cm", "-w", "-o", "custom-columns=N:.metadata.name,V:.data.k", "-l", "keep")
    watching.until(lambda line: line.split()[:1] == ["a"])
    churn(forgetful)
    for number in range(SEVERAL):
        forgetful("patch", "cm", "a", "--type=merge", "-p", json.dumps({"data": {"k": str(number)}}))
    watching.until(lambda line: line.split() == ["a", str(SEVERAL - 1)])
    values = [line.split()[1] for line in watching.seen if line.split()[0] == "a" and line.split()[1] != "<none>"]
    assert values == [str(number) for number in range(SEVERAL)]


@pytest.mark.embedded
def test_a_list_in_pages_outlives_changes_but_not_its_history(forgetful: Kubectl) -> None:
    created(forgetful, config("a", labels={"keep": "1"}))
    created(forgetful, config("b", labels={"keep": "1"}))
    path = MAPS.format(forgetful.namespace)
    first = json.loads(forgetful("get", "--raw", f"{path}?limit=1"))
    created(forgetful, config("aa", labels={"keep": "1"}))
    rest = json.loads(forgetful("get", "--raw", f"{path}?limit=9&continue={first['metadata']['continue']}"))
    assert [item["metadata"]["name"] for item in rest["items"]] == ["b"], "aa came after the list began"
    churn(forgetful)
    said = forgetful.fails("get", "--raw", f"{path}?limit=9&continue={first['metadata']['continue']}")
    assert "too old resource version" in said
    assert len(forgetful("get", "cm", "--chunk-size=1", "--no-headers").splitlines()) == 3, "kubectl begins anew by itself"


def test_an_edit_that_somebody_overtakes_merges_what_does_not_collide(kubectl: Kubectl, tmp_path: Path) -> None:
    """kubectl sends what was edited as a patch: another's field stays, the edited one is set."""
    created(kubectl, config("a", {"mine": "1", "theirs": "1"}))
    binary, server = kubectl.binary, kubectl.server.kubeconfig
    editor = tmp_path / "editor.sh"
    editor.write_text(
        f"#!/bin/sh\n{binary} --kubeconfig {server} -n {kubectl.namespace} patch cm a --type=merge "
        '-p \'{"data":{"theirs":"2"}}\' >/dev/null\nsed -i "s/mine: \\"1\\"/mine: \\"2\\"/" "$1"\n'
    )
    editor.chmod(0o755)
    assert "edited" in kubectl("edit", "cm/a", env={"EDITOR": str(editor)})
    assert json.loads(kubectl("get", "cm", "a", "-o", "json"))["data"] == {"mine": "2", "theirs": "2"}


def test_an_edit_of_what_was_deleted_meanwhile(kubectl: Kubectl, tmp_path: Path) -> None:
    created(kubectl, config("a", {"k": "1"}))
    editor = tmp_path / "editor.sh"
    editor.write_text(
        f"#!/bin/sh\n{kubectl.binary} --kubeconfig {kubectl.server.kubeconfig} -n {kubectl.namespace} delete cm a >/dev/null\n"
        'sed -i "s/k: \\"1\\"/k: \\"2\\"/" "$1"\n'
    )
    editor.chmod(0o755)
    failed = kubectl.run("edit", "cm/a", env={"EDITOR": str(editor)})
    assert failed.code != 0
    assert "not found" in failed.err.lower()
    assert kubectl("get", "cm", "a", "--ignore-not-found") == "", "an edit must not bring it back"


def test_an_edit_that_changes_nothing_writes_nothing(kubectl: Kubectl) -> None:
    before = created(kubectl, config("a", {"k": "1"}))["metadata"]["resourceVersion"]
    kubectl.run("edit", "cm/a", env={"EDITOR": "true"})
    assert json.loads(kubectl("get", "cm", "a", "-o", "json"))["metadata"]["resourceVersion"] == before


def test_replace_and_patch_with_a_stale_version(kubectl: Kubectl) -> None:
    stale = created(kubectl, config("a", {"k": "1"}))
    kubectl("patch", "cm", "a", "--type=merge", "-p", '{"data":{"k":"2"}}')
    said = kubectl.fails("replace", "-f", "-", stdin=json.dumps({**stale, "data": {"k": "3"}}))
    assert "Error from server (Conflict)" in said
    assert "the object has been modified" in said
    patch = json.dumps({"metadata": {"resourceVersion": stale["metadata"]["resourceVersion"]}, "data": {"k": "4"}})
    for kind in ("merge", "strategic"):
        assert "Conflict" in kubectl.fails("patch", "cm", "a", f"--type={kind}", "-p", patch)
    guarded = [{"op": "test", "path": "/data/k", "value": "1"}, {"op": "replace", "path": "/data/k", "value": "5"}]
    kubectl.fails("patch", "cm", "a", "--type=json", "-p", json.dumps(guarded))
    assert json.loads(kubectl("get", "cm", "a", "-o", "json"))["data"] == {"k": "2"}
    without = {**stale, "data": {"k": "6"}, "metadata": {"name": "a"}}
    assert "replaced" in kubectl("replace", "-f", "-", stdin=json.dumps(without)), "without a version the last one wins"


def task(name: str) -> dict[str, Any]:
    return {"apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmTask", "metadata": {"name": name, "labels": {"w": "1"}},
            "spec": {"container": {"image": "acme/t:1"}, "suspend": True}}  # fmt: skip


def test_wait_in_every_form(kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", stdin=text(task("one"), task("two")))
    status = "/apis/swarmtask.io/v1alpha1/namespaces/{}/swarmtasks/{}/status"

    def set_condition(name: str, value: str) -> None:
        obj = json.loads(kubectl("get", "st", name, "-o", "json"))
        done = {"type": "Checked", "status": value, "reason": "Test", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        obj["status"] = {**obj.get("status", {}), "conditions": [done]}
        kubectl("replace", "--raw", status.format(kubectl.namespace, name), "-f", "-", stdin=json.dumps(obj))

    assert "timed out" in kubectl.fails("wait", "st/one", "--for=condition=Checked", "--timeout=1s")
    set_condition("one", "True")
    assert "condition met" in kubectl("wait", "st/one", "--for=condition=Checked", "--timeout=30s"), "it is already so"
    assert "condition met" in kubectl("wait", "st/one", "--for=condition=checked=true", "--timeout=30s")
    both = kubectl.follow("wait", "st", "-l", "w=1", "--for=condition=Checked", "--timeout=30s")
    set_condition("two", "True")
    assert both.wait() == 0, both.seen
    set_condition("two", "False")
    assert "condition met" in kubectl("wait", "st/two", "--for=condition=Checked=False", "--timeout=30s")
    assert "not found" in kubectl.fails("wait", "st/none", "--for=condition=Checked", "--timeout=1s").lower()
    going = kubectl.follow("wait", "st", "--all", "--for=delete", "--timeout=30s", "-v=6")
    going.until(lambda line: "/swarmtasks" in line)
    kubectl("delete", "st", "--all", "--wait=false")
    assert going.wait() == 0, going.seen


def test_wait_for_a_deletion_that_hangs_on_a_finalizer(kubectl: Kubectl) -> None:
    created(kubectl, config("a", finalizers=["test.io/hold"]))
    kubectl("delete", "cm", "a", "--wait=false")
    assert "timed out" in kubectl.fails("wait", "cm/a", "--for=delete", "--timeout=1s")
    going = kubectl.follow("wait", "cm/a", "--for=delete", "--timeout=30s", "-v=6")
    going.until(lambda line: "/configmaps" in line)
    let_go(kubectl, "cm/a")
    assert going.wait() == 0, going.seen
