"""What a person does with kubectl, done by real kubectl programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.apiserver.test_scale import DEFINITION
from tests.conformance.conftest import Kubectl

pytestmark = pytest.mark.kubectl

TASK: dict[str, Any] = {
    "apiVersion": "swarmtask.io/v1alpha1",
    "kind": "SwarmTask",
    "metadata": {"name": "lint", "labels": {"team": "a"}},
    "spec": {
        "container": {"image": "acme/lint:1", "args": ["--all"], "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}
    },
}
CONFIG: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "1", "b": "2"}}
KIND = "swarmtask.swarmtask.io/lint"


def text(*objects: dict[str, Any]) -> str:
    return yaml.safe_dump_all(objects)


def changed(obj: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {**obj, "spec": {**obj["spec"], **spec}}


def get(kubectl: Kubectl, *arguments: str) -> dict[str, Any]:
    obj: dict[str, Any] = json.loads(kubectl("get", *arguments, "-o", "json"))
    return obj


def test_version_and_api_resources(kubectl: Kubectl) -> None:
    assert "v1.3" in kubectl("version", "-o", "json")
    lines = kubectl("api-resources", "--no-headers").splitlines()
    tasks = next(line.split() for line in lines if line.startswith("swarmtasks "))
    assert tasks == ["swarmtasks", "st", "swarmtask.io/v1alpha1", "true", "SwarmTask"]
    assert "swarmtask.io/v1alpha1" in kubectl("api-versions").split()
    assert "swarmtasks.swarmtask.io" in kubectl("api-resources", "--api-group=swarmtask.io", "-o", "name").split()


def test_explain(kubectl: Kubectl) -> None:
    said = kubectl("explain", "swarmtask.spec.container.env")
    assert "Environment variables." in said
    assert "-required-" in said
    assert "map[string]string" in kubectl("explain", "cm.data")
    assert "holderIdentity" in kubectl("explain", "lease", "--recursive")
    assert "does not exist" in kubectl.fails("explain", "swarmtask.spec.nonsense")


def test_apply_on_the_client_side(kubectl: Kubectl) -> None:
    assert kubectl("apply", "-f", "-", stdin=text(TASK, CONFIG)).splitlines() == [f"{KIND} created", "configmap/c created"]
    assert kubectl("apply", "-f", "-", stdin=text(TASK, CONFIG)).splitlines() == [f"{KIND} unchanged", "configmap/c unchanged"]
    before = get(kubectl, "st", "lint")["metadata"]
    task = changed(TASK, container={**TASK["spec"]["container"], "env": [{"name": "A", "value": "9"}]}, backoffLimit=7)
    config = {**CONFIG, "data": {"a": "9"}}
    assert kubectl("apply", "-f", "-", stdin=text(task, config)).splitlines() == [f"{KIND} configured", "configmap/c configured"]
    after = get(kubectl, "st", "lint")
    assert after["spec"]["container"]["env"] == [{"name": "A", "value": "9"}]
    assert after["spec"]["backoffLimit"] == 7
    assert after["metadata"]["generation"] == before["generation"] + 1
    assert get(kubectl, "cm", "c")["data"] == {"a": "9"}


def test_apply_on_the_server_side(kubectl: Kubectl) -> None:
    apply = ("apply", "--server-side", "-f", "-")
    assert kubectl(*apply, stdin=text(TASK, CONFIG)).splitlines() == [
        f"{KIND} serverside-applied",
        "configmap/c serverside-applied",
    ]
    before = get(kubectl, "cm", "c")["metadata"]["resourceVersion"]
    kubectl(*apply, stdin=text(TASK, CONFIG))
    assert get(kubectl, "cm", "c")["metadata"]["resourceVersion"] == before, "nothing changed, yet something was written"
    task = changed(TASK, container={**TASK["spec"]["container"], "env": [{"name": "B", "value": "3"}]})
    kubectl(*apply, stdin=text(task, {**CONFIG, "data": {"b": "2"}}))
    assert get(kubectl, "st", "lint")["spec"]["container"]["env"] == [{"name": "B", "value": "3"}]
    assert get(kubectl, "cm", "c")["data"] == {"b": "2"}


def test_a_conflict_on_the_server_side_names_the_field_and_the_manager(kubectl: Kubectl) -> None:
    kubectl("apply", "--server-side", "-f", "-", stdin=text(CONFIG))
    kubectl("patch", "cm", "c", "--type=merge", "-p", '{"data":{"a":"9"}}')
    error = kubectl.fails("apply", "--server-side", "-f", "-", stdin=text(CONFIG))
    assert 'conflict with "kubectl-patch" using v1: .data.a' in error
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text(CONFIG))
    assert get(kubectl, "cm", "c")["data"] == {"a": "1", "b": "2"}


def test_two_managers_share_an_object(kubectl: Kubectl) -> None:
    kubectl("apply", "--server-side", "-f", "-", stdin=text(CONFIG))
    other = {**CONFIG, "data": {"b": "2", "z": "26"}}
    kubectl("apply", "--server-side", "--field-manager=other", "-f", "-", stdin=text(other))
    assert get(kubectl, "cm", "c")["data"] == {"a": "1", "b": "2", "z": "26"}
    kubectl("apply", "--server-side", "-f", "-", stdin=text({**CONFIG, "data": {}}))
    assert get(kubectl, "cm", "c")["data"] == {"b": "2", "z": "26"}


def test_an_object_goes_from_client_side_to_server_side_apply(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=text(TASK, CONFIG))
    kubectl("apply", "--server-side", "-f", "-", stdin=text(TASK, {**CONFIG, "data": {"a": "5", "b": "2"}}))
    assert get(kubectl, "cm", "c")["data"] == {"a": "5", "b": "2"}
    kubectl("apply", "--server-side", "-f", "-", stdin=text(TASK, {**CONFIG, "data": {"a": "6", "b": "2"}}))
    assert get(kubectl, "cm", "c")["data"] == {"a": "6", "b": "2"}
    back = kubectl("apply", "-f", "-", stdin=text({**CONFIG, "data": {"a": "7"}}))
    assert "configmap/c configured" in back
    assert get(kubectl, "cm", "c")["data"]["a"] == "7"


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_dry_run_stores_nothing(kubectl: Kubectl, side: str) -> None:
    assert f"created ({'server ' if side == 'server' else ''}dry run)" in kubectl(
        "apply", f"--dry-run={side}", "-f", "-", stdin=text(TASK)
    )
    assert "NotFound" in kubectl.fails("get", "st", "lint")
    kubectl("create", "-f", "-", stdin=text(CONFIG))
    kubectl("delete", "cm", "c", f"--dry-run={side}")
    kubectl("get", "cm", "c")


def test_diff(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=text(TASK))
    assert kubectl.run("diff", "-f", "-", stdin=text(TASK)).code == 0
    different = kubectl.run("diff", "-f", "-", stdin=text(changed(TASK, backoffLimit=9)))
    assert different.code == 1
    assert "+  backoffLimit: 9" in different.out
    assert get(kubectl, "st", "lint")["spec"]["backoffLimit"] == 3


def test_create_and_refuse_the_second(kubectl: Kubectl) -> None:
    assert kubectl("create", "-f", "-", stdin=text(TASK)) == f"{KIND} created\n"
    assert "AlreadyExists" in kubectl.fails("create", "-f", "-", stdin=text(TASK))


def test_invalid_objects_are_refused_with_the_field(kubectl: Kubectl) -> None:
    error = kubectl.fails("create", "--validate=false", "-f", "-", stdin=text(changed(TASK, backoffLimit=-1, engine="x")))
    assert 'The SwarmTask "lint" is invalid' in error
    assert "spec.backoffLimit" in error
    assert 'spec.engine: Unsupported value: "x"' in error
    unknown = changed(TASK, container={"image": "a", "imge": "b"})
    assert "imge" in kubectl.fails("create", "-f", "-", stdin=text(unknown))


def test_get_as_table_yaml_and_by_selectors(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=text(TASK, {**TASK, "metadata": {"name": "other"}}))
    head, *rows = [line.split() for line in kubectl("get", "st").splitlines()]
    assert head == ["NAME", "PHASE", "QUEUE", "POSITION", "NODE", "ATTEMPT", "REASON", "AGE"]
    assert [row[:2] for row in rows] == [["lint", "default"], ["other", "default"]]
    assert "acme/lint:1" in kubectl("get", "st", "-o", "wide")
    assert yaml.safe_load(kubectl("get", "st", "lint", "-o", "yaml"))["spec"]["queue"] == "default"
    assert kubectl("get", "st", "-l", "team=a", "-o", "name") == f"{KIND}\n"
    assert kubectl("get", "st", "--field-selector=metadata.name=other", "-o", "name") == "swarmtask.swarmtask.io/other\n"
    assert "No resources found" in kubectl.run("get", "st", "-l", "team=b").err
    listed = kubectl("get", "swarm", "-o", "name").splitlines()  # the category: other tests' nodes are in it, too
    assert [line for line in listed if line.startswith("swarmtask.")] == [KIND, "swarmtask.swarmtask.io/other"]
    assert kubectl("get", "st", "-A", "--no-headers").count("acme") == 0


def test_get_watches(kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", stdin=text(TASK))
    watching = kubectl.follow("get", "st", "-w")
    assert watching.until(lambda line: line.startswith("lint ")).split()[1] == "default"
    kubectl("patch", "st", "lint", "--type=merge", "-p", '{"spec":{"queue":"night"}}')
    watching.until(lambda line: "night" in line)
    kubectl("create", "-f", "-", stdin=text({**TASK, "metadata": {"name": "late"}}))
    watching.until(lambda line: line.startswith("late "))
    assert sum(line.startswith("NAME") for line in watching.seen) == 1


def test_describe_tells_the_events(kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", stdin=text(TASK))
    uid = get(kubectl, "st", "lint")["metadata"]["uid"]
    event = {
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "lint.1"}, "type": "Normal", "reason": "Queued",
        "message": "waits in queue default", "source": {"component": "swarmtask-operator"}, "count": 1,
        "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:00Z",
        "involvedObject": {"apiVersion": TASK["apiVersion"], "kind": "SwarmTask", "name": "lint",
         "namespace": kubectl.namespace, "uid": uid},
    }  # fmt: skip
    kubectl("create", "-f", "-", stdin=text(event))
    said = kubectl("describe", "st", "lint")
    assert "acme/lint:1" in said
    assert "waits in queue default" in said
    row = kubectl("get", "events", "--no-headers").split()
    assert row[1:4] == ["Normal", "Queued", "swarmtask/lint"]


def test_every_kind_of_patch(kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", stdin=text(TASK, CONFIG))
    kubectl("patch", "cm", "c", "-p", '{"data":{"a":null,"s":"1"}}')
    kubectl("patch", "cm", "c", "--type=merge", "-p", '{"data":{"m":"2"}}')
    kubectl("patch", "cm", "c", "--type=json", "-p", '[{"op":"add","path":"/data/j","value":"3"}]')
    assert get(kubectl, "cm", "c")["data"] == {"b": "2", "s": "1", "m": "2", "j": "3"}
    assert "patched (no change)" in kubectl("patch", "cm", "c", "--type=merge", "-p", '{"data":{"m":"2"}}')
    kubectl("patch", "st", "lint", "--type=json", "-p", '[{"op":"test","path":"/spec/queue","value":"default"}]')
    failed = kubectl.fails("patch", "st", "lint", "--type=json", "-p", '[{"op":"test","path":"/spec/queue","value":"x"}]')
    assert "The request is invalid" in failed
    assert "unknown format" in kubectl.fails("patch", "st", "lint", "-p", '{"spec":{"queue":"x"}}')


@pytest.mark.embedded  # Kubernetes says only that it has rejected the patch
def test_a_patch_that_does_not_fit_says_why(kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", stdin=text(TASK))
    failed = kubectl.fails("patch", "st", "lint", "--type=json", "-p", '[{"op":"test","path":"/spec/queue","value":"x"}]')
    assert "testing value failed" in failed


def test_label_and_annotate(kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", stdin=text(TASK))
    kubectl("label", "st", "lint", "stage=test")
    kubectl("annotate", "st", "lint", "note=hello")
    metadata = get(kubectl, "st", "lint")["metadata"]
    assert metadata["labels"] == {"team": "a", "stage": "test"}
    assert metadata["annotations"]["note"] == "hello"
    assert "already has a value" in kubectl.fails("label", "st", "lint", "stage=prod")
    kubectl("label", "st", "lint", "stage-")
    assert get(kubectl, "st", "lint")["metadata"]["labels"] == {"team": "a"}
    assert "metadata.labels" in kubectl.fails("patch", "st", "lint", "--type=merge", "-p", '{"metadata":{"labels":{"a":"b c"}}}')


def test_delete_waits_for_finalizers(kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", stdin=text({**CONFIG, "metadata": {"name": "c", "finalizers": ["test.io/hold"]}}))
    assert '"c" deleted' in kubectl("delete", "cm", "c", "--wait=false")
    assert "deletionTimestamp" in get(kubectl, "cm", "c")["metadata"]
    waiting = kubectl.follow("wait", "-v=6", "--for=delete", "cm/c", "--timeout=30s")
    waiting.until(lambda line: "/configmaps" in line)  # it has seen the object, which must not be gone before
    kubectl("patch", "cm", "c", "--type=json", "-p", '[{"op":"remove","path":"/metadata/finalizers"}]')
    assert waiting.wait() == 0, waiting.seen
    assert "NotFound" in kubectl.fails("get", "cm", "c")
    assert kubectl("delete", "cm", "c", "--ignore-not-found") == ""


def test_wait_for_a_condition(kubectl: Kubectl) -> None:
    kubectl("wait", "--for=condition=Established", "crd/swarmtasks.swarmtask.io", "--timeout=30s")
    kubectl("create", "-f", "-", stdin=text(TASK))
    waiting = kubectl.follow("wait", "--for=condition=Complete", "st/lint", "--timeout=60s")
    obj = get(kubectl, "st", "lint")
    condition = {
        "type": "Complete",
        "status": "True",
        "reason": "Succeeded",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    obj["status"] = {"phase": "Succeeded", "conditions": [condition]}
    path = f"/apis/swarmtask.io/v1alpha1/namespaces/{kubectl.namespace}/swarmtasks/lint/status"
    kubectl("replace", "--raw", path, "-f", "-", stdin=json.dumps(obj))
    assert waiting.wait() == 0, waiting.seen
    assert "condition met" in waiting.seen[-1]
    timed_out = kubectl.fails("wait", "--for=condition=Failed", "st/lint", "--timeout=1s")
    assert "timed out" in timed_out


def plural(kubectl: Kubectl) -> str:
    """A plural that no other test uses: definitions belong to the whole server."""
    return "widgets" + "".join(chr(ord("a") + int(digit)) for digit in kubectl.namespace.rpartition("-")[2])


def definition_of(kubectl: Kubectl) -> dict[str, Any]:
    name = plural(kubectl)
    return {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
         "metadata": {"name": f"{name}.test.example.com"},
        "spec": {
            "group": "test.example.com", "scope": "Namespaced",
            "names": {"plural": name, "singular": name[:-1], "kind": name.capitalize(), "listKind": f"{name.capitalize()}List"},
            "versions": [{
                "name": "v1", "served": True, "storage": True, "subresources": {"status": {}},
                "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}],
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "required": ["size"], "properties": {
                        "size": {"type": "integer", "minimum": 1}, "color": {"type": "string", "default": "red"}}},
                    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                }}},
            }],
        },
    }  # fmt: skip


def test_a_definition_is_applied_used_and_deleted(kubectl: Kubectl) -> None:
    definition, name = definition_of(kubectl), plural(kubectl)
    kubectl("apply", "-f", "-", stdin=text(definition))
    kubectl("wait", "--for=condition=Established", f"crd/{name}.test.example.com", "--timeout=30s")
    assert "unchanged" in kubectl("apply", "-f", "-", stdin=text(definition))
    widget = {"apiVersion": "test.example.com/v1", "kind": name.capitalize(), "metadata": {"name": "w"}, "spec": {"size": 3}}
    kubectl("apply", "-f", "-", stdin=text(widget))
    assert get(kubectl, name, "w")["spec"] == {"size": 3, "color": "red"}
    assert kubectl("get", name).splitlines()[1].split()[:2] == ["w", "3"]
    assert "spec.size" in kubectl.fails("apply", "--validate=false", "-f", "-", stdin=text({**widget, "spec": {"size": 0}}))
    kubectl("delete", "crd", f"{name}.test.example.com")
    kubectl.fails("get", name, "w")
    bad = json.loads(json.dumps(definition))
    bad["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["x-kubernetes-validations"] = [{"rule": "self.sise > 1"}]
    assert "x-kubernetes-validations" in kubectl.fails("create", "--validate=false", "-f", "-", stdin=text(bad))


def test_replace_refuses_a_stale_object(kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", stdin=text(TASK))
    stale = get(kubectl, "st", "lint")
    kubectl("label", "st", "lint", "x=y")
    stale["spec"]["backoffLimit"] = 1
    assert "the object has been modified" in kubectl.fails("replace", "-f", "-", stdin=json.dumps(stale))
    stale["metadata"]["resourceVersion"] = get(kubectl, "st", "lint")["metadata"]["resourceVersion"]
    assert "replaced" in kubectl("replace", "-f", "-", stdin=json.dumps(stale))
    assert get(kubectl, "st", "lint")["spec"]["backoffLimit"] == 1


def test_edit(kubectl: Kubectl, tmp_path: Path) -> None:
    kubectl("create", "-f", "-", stdin=text(TASK, CONFIG))
    editor = tmp_path / "editor.sh"
    editor.write_text('#!/bin/sh\nsed -i -e "s/backoffLimit: 3/backoffLimit: 8/" -e "s/b: \\"2\\"/b: \\"8\\"/" "$1"\n')
    editor.chmod(0o755)
    for name in ("st/lint", "cm/c"):
        assert "edited" in kubectl("edit", name, env={"EDITOR": str(editor)})
    assert get(kubectl, "st", "lint")["spec"]["backoffLimit"] == 8
    assert get(kubectl, "cm", "c")["data"]["b"] == "8"


def test_create_of_built_in_kinds_by_generators(kubectl: Kubectl) -> None:
    """A current kubectl sends these as protobuf."""
    kubectl("create", "configmap", "made", "--from-literal=k=v")
    kubectl("create", "secret", "generic", "made", "--from-literal=k=v")
    kubectl("create", "serviceaccount", "made")
    kubectl("create", "namespace", f"{kubectl.namespace}-more")
    assert get(kubectl, "cm", "made")["data"] == {"k": "v"}
    secret = get(kubectl, "secret", "made")
    assert (secret["data"], secret["type"]) == ({"k": "dg=="}, "Opaque")
    assert get(kubectl, "ns", f"{kubectl.namespace}-more")["status"]["phase"] == "Active"
    assert kubectl("get", "secret", "made", "--no-headers").split()[:3] == ["made", "Opaque", "1"]
    kubectl("delete", "namespace", f"{kubectl.namespace}-more")


@pytest.mark.embedded
def test_kinds_that_never_exist_say_what_to_use(kubectl: Kubectl) -> None:
    assert "SwarmQueue" in kubectl.fails("create", "quota", "q", "--hard=pods=3")
    assert "spec.priority" in kubectl.fails("create", "priorityclass", f"{kubectl.namespace}-p", "--value=1")
    assert "SwarmTask" in kubectl.fails("create", "poddisruptionbudget", "p", "--selector=a=b", "--min-available=1")
    assert kubectl("get", "quota,limits,hpa,pdb", "-o", "name") == ""
    described = kubectl("describe", "namespace", kubectl.namespace)
    assert "No resource quota." in described
    assert "No LimitRange resource." in described


def test_may_i(kubectl: Kubectl) -> None:
    assert kubectl("auth", "can-i", "create", "swarmtasks") == "yes\n"
    assert "*.*" in kubectl("auth", "can-i", "--list")
    if kubectl.version == "current":
        assert "Username" in kubectl("auth", "whoami")


def test_a_namespace_takes_everything_with_it(kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", stdin=text(TASK, CONFIG))
    kubectl("delete", "namespace", kubectl.namespace, "--timeout=30s")
    assert "NotFound" in kubectl.fails("get", "namespace", kubectl.namespace)
    assert kubectl("get", "st,cm", "-o", "name") == ""


def test_deleting_many(kubectl: Kubectl) -> None:
    kubectl(
        "create",
        "-f",
        "-",
        stdin=text(*({**CONFIG, "metadata": {"name": f"c{index}", "labels": {"odd": str(index % 2)}}} for index in range(20))),
    )
    assert len(kubectl("delete", "cm", "-l", "odd=1").splitlines()) == 10
    assert len(kubectl("get", "cm", "-l", "odd", "--no-headers", "--chunk-size=3").splitlines()) == 10
    kubectl("delete", "cm", "--all")
    assert kubectl("get", "cm", "-l", "odd", "-o", "name") == ""


def test_the_status_is_written_through_its_own_door(kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", stdin=text(TASK))
    kubectl("patch", "st", "lint", "--type=merge", "-p", '{"status":{"phase":"Running"}}')
    assert get(kubectl, "st", "lint").get("status", {}).get("phase") != "Running"
    if kubectl.version == "current":
        kubectl(
            "patch",
            "st",
            "lint",
            "--subresource=status",
            "--type=merge",
            "-p",
            '{"status":{"phase":"Running"},"spec":{"queue":"x"}}',
        )
        obj = get(kubectl, "st", "lint")
        assert (obj["status"]["phase"], obj["spec"]["queue"], obj["metadata"]["generation"]) == ("Running", "default", 1)


def test_scale(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=text(DEFINITION))
    kubectl("wait", "--for=condition=Established", "crd/farms.example.com")
    kubectl("create", "-f", "-", stdin=text({"apiVersion": "example.com/v1", "kind": "Farm", "metadata": {"name": "f"}}))
    assert "scaled" in kubectl("scale", "farm.example.com/f", "--replicas=3")
    assert get(kubectl, "farm.example.com/f")["spec"] == {"replicas": 3}
