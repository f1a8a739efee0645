"""Everything that writes: apply with prune and kustomize, diff, dry runs, validation, owners of fields; real kubectl programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conformance.conftest import Kubectl
from tests.conformance.fleet import config, created, names, text

pytestmark = pytest.mark.kubectl

TASK: dict[str, Any] = {
    "apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmTask", "metadata": {"name": "t"},
    "spec": {"container": {"image": "acme/t:1"}},
}  # fmt: skip


def data(kubectl: Kubectl, name: str) -> dict[str, str]:
    obj: dict[str, Any] = json.loads(kubectl("get", "cm", name, "-o", "json"))
    return obj.get("data", {})


def test_apply_prunes_what_left_the_files(kubectl: Kubectl) -> None:
    kinds = "--prune-allowlist" if kubectl.version == "current" else "--prune-whitelist"
    first, second = config("p1", labels={"set": "p"}), config("p2", labels={"set": "p"})
    other = config("other")
    kubectl("apply", "-f", "-", stdin=text(first, second, other))
    said = kubectl("apply", "--prune", "-l", "set=p", f"{kinds}=core/v1/ConfigMap", "-f", "-", stdin=text(first))
    assert "configmap/p2 pruned" in said
    assert names(kubectl, "cm") == {"p1", "other"}


@pytest.mark.parametrize("kubectl", ["current"], indirect=True)  # kubectl 1.20 has no apply sets
def test_an_apply_set_prunes_by_itself(kubectl: Kubectl) -> None:
    on = {"KUBECTL_APPLYSET": "true"}
    apply = ("apply", "--prune", "--applyset=mine", "-f", "-")
    kubectl(*apply, stdin=text(config("p1"), TASK), env=on)
    assert "configmap/p1 pruned" in kubectl(*apply, stdin=text(TASK), env=on)
    assert kubectl("get", "st", "-o", "name").strip() == "swarmtask.swarmtask.io/t"


def test_kustomize(kubectl: Kubectl, tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(TASK))
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({
        "namespace": kubectl.namespace, "namePrefix": "dev-", "resources": ["task.yaml"],
        "configMapGenerator": [{"name": "conf", "literals": ["k=v"]}],
    }))  # fmt: skip
    assert "swarmtask.swarmtask.io/dev-t created" in kubectl("apply", "-k", str(tmp_path))
    assert "swarmtask.swarmtask.io/dev-t unchanged" in kubectl("apply", "-k", str(tmp_path))
    assert kubectl.run("diff", "-k", str(tmp_path)).code == 0
    kubectl("delete", "-k", str(tmp_path))
    assert names(kubectl, "st,cm") == set()


def test_diff_of_new_changed_and_server_side(kubectl: Kubectl) -> None:
    fresh = kubectl.run("diff", "-f", "-", stdin=text(config("a", {"k": "1"})))
    assert (fresh.code, "+  k:" in fresh.out) == (1, True)
    kubectl("apply", "--server-side", "-f", "-", stdin=text(config("a", {"k": "1"})))
    changed = kubectl.run("diff", "--server-side", "-f", "-", stdin=text(config("a", {"k": "2"})))
    assert changed.code == 1
    assert '-  k: "1"' in changed.out
    assert data(kubectl, "a") == {"k": "1"}


def test_every_writing_verb_has_a_dry_run(kubectl: Kubectl) -> None:
    created(kubectl, config("a", {"k": "1"}))
    before = json.loads(kubectl("get", "cm", "a", "-o", "json"))
    dry = "--dry-run=server"
    kubectl("patch", "cm", "a", dry, "--type=merge", "-p", '{"data":{"k":"2"}}')  # not every program says that these were dry
    kubectl("label", "cm", "a", dry, "x=y")
    said = [
        kubectl("annotate", "cm", "a", dry, "x=y"), kubectl("delete", "cm", "a", dry),
        kubectl("replace", dry, "-f", "-", stdin=text(config("a", {"k": "3"}))), kubectl("create", "cm", "b", dry),
        kubectl("apply", "--server-side", dry, "-f", "-", stdin=text(config("c"))),
    ]  # fmt: skip
    assert all("server dry run" in one for one in said), said
    assert names(kubectl, "cm") == {"a"}
    assert json.loads(kubectl("get", "cm", "a", "-o", "json")) == before


def test_unknown_fields_by_mode_of_validation(kubectl: Kubectl) -> None:
    def task(name: str) -> str:
        return text({**TASK, "metadata": {"name": name}, "spec": {**TASK["spec"], "imge": "x"}})

    assert "imge" in kubectl.fails("apply", "--validate=true", "-f", "-", stdin=task("strict"))
    if kubectl.version == "current":
        warned = kubectl.run("apply", "--validate=warn", "-f", "-", stdin=task("warn"))
        assert warned.code == 0
        assert 'Warning: unknown field "spec.imge"' in warned.err
        ignored = kubectl.run("apply", "--validate=ignore", "-f", "-", stdin=task("ignore"))
        assert (ignored.code, ignored.err) == (0, "")
    assert names(kubectl, "st") == ({"warn", "ignore"} if kubectl.version == "current" else set())


def test_fields_have_owners_until_they_are_given_up(kubectl: Kubectl) -> None:
    def apply(manager: str, *more: str) -> tuple[str, ...]:
        return ("apply", "--server-side", f"--field-manager={manager}", *more, "-f", "-")

    one, two = apply("one"), apply("two")
    kubectl(*one, stdin=text(config("a", {"x": "1", "y": "1"})))
    said = kubectl.fails(*two, stdin=text(config("a", {"x": "2"})))
    assert 'conflict with "one"' in said
    assert ".data.x" in said
    kubectl(*two, stdin=text(config("a", {"x": "1"})))
    kubectl(*one, stdin=text(config("a", {"y": "1"})))
    assert data(kubectl, "a") == {"x": "1", "y": "1"}, "x is still owned by the other"
    kubectl(*two, stdin=text(config("a", {})))
    assert data(kubectl, "a") == {"y": "1"}, "x is owned by nobody"
    kubectl(*apply("two", "--force-conflicts"), stdin=text(config("a", {"y": "9"})))
    managed = json.loads(kubectl("get", "--raw", f"/api/v1/namespaces/{kubectl.namespace}/configmaps/a"))["metadata"][
        "managedFields"
    ]
    owners = {entry["manager"]: entry["fieldsV1"] for entry in managed if "f:y" in json.dumps(entry["fieldsV1"])}
    assert set(owners) == {"two"}


def test_replace_by_force_makes_a_new_object(kubectl: Kubectl) -> None:
    before = created(kubectl, config("a", {"k": "1"}))["metadata"]["uid"]
    assert "replaced" in kubectl("replace", "--force", "-f", "-", stdin=text(config("a", {"k": "2"})))
    after = json.loads(kubectl("get", "cm", "a", "-o", "json"))
    assert (after["data"], after["metadata"]["uid"] == before) == ({"k": "2"}, False)


def test_a_replace_creates_some_kinds_and_not_others(kubectl: Kubectl) -> None:
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}, "spec": {"holderIdentity": "me"}}
    assert "replaced" in kubectl("replace", "-f", "-", stdin=text(lease))
    assert kubectl("get", "lease", "l", "-o", "jsonpath={.spec.holderIdentity}") == "me"
    assert "not found" in kubectl.fails("replace", "-f", "-", stdin=text(config("none", {"k": "1"})))


def test_edit_of_a_stale_object_and_of_a_bad_one(kubectl: Kubectl, tmp_path: Path) -> None:
    kubectl("create", "-f", "-", stdin=text(TASK))
    editor = tmp_path / "editor.sh"
    editor.write_text(
        '#!/bin/sh\ngrep -q "^# " "$1" && [ -e "$0.again" ] && exit 1\ntouch "$0.again"\nsed -i s/acme.t:1/\\"\\"/ "$1"\n'
    )
    editor.chmod(0o755)
    failed = kubectl.run("edit", "st/t", env={"EDITOR": str(editor)})
    assert failed.code != 0
    assert json.loads(kubectl("get", "st", "t", "-o", "json"))["spec"]["container"]["image"] == "acme/t:1"


def test_many_at_once(kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", stdin=text(*(config(f"c{index}") for index in range(5))))
    assert kubectl("label", "cm", "--all", "x=1").count("configmap/c") == 5
    kubectl.run("label", "cm", "kube-root-ca.crt", "x-")  # where a cluster puts one into every namespace
    assert len(kubectl("annotate", "cm", "-l", "x=1", "note=hi").splitlines()) == 5
    assert "already has a value" in kubectl.fails("label", "cm", "c0", "x=2")
    kubectl("label", "cm", "c0", "x=2", "--overwrite")
    assert "configmap/c1" in kubectl("label", "cm", "-l", "x=1", "x-")
    assert names(kubectl, "cm", "-l", "x") == {"c0"}


def test_immutable_values_and_secrets(kubectl: Kubectl) -> None:
    kubectl("create", "secret", "generic", "s", "--from-literal=k=v")
    kubectl("patch", "secret", "s", "-p", '{"immutable":true}')
    assert "immutable" in kubectl.fails("patch", "secret", "s", "-p", '{"stringData":{"k":"w"}}')
    assert kubectl("get", "secret", "s", "-o", "jsonpath={.data.k}") == "dg=="
    assert "k:" in kubectl("describe", "secret", "s")


def test_names_labels_and_namespaces_are_checked(kubectl: Kubectl) -> None:
    assert "metadata.name" in kubectl.fails("create", "-f", "-", stdin=text(config("Not_A_Name")))
    assert "metadata.labels" in kubectl.fails("create", "--validate=false", "-f", "-", stdin=text(config("a", labels={"a": "b c"})))
    elsewhere = {**config("a"), "metadata": {"name": "a", "namespace": "none-such"}}
    assert "does not match" in kubectl.fails("create", "-f", "-", stdin=text(elsewhere))
    assert "not found" in kubectl.fails("-n", "none-such", "create", "cm", "a")
    generated = kubectl("create", "-o", "name", "-f", "-", stdin=text({**config("x"), "metadata": {"generateName": "gen-"}}))
    assert generated.startswith("configmap/gen-")
