"""Definitions as other people's operators bring them, installed and used: by real kubectl programs, and, where
SWARMTASK_FOREIGN_CRDS names a folder of manifests, the real ones of others."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conformance.conftest import Kubectl
from tests.conformance.fleet import names, text
from tests.conformance.foreign_definitions import FLOW_GROUP, FLOWS, SEAL_GROUP, SEALS, flow, pod_template, seal

pytestmark = pytest.mark.kubectl
FOLDER = os.environ.get("SWARMTASK_FOREIGN_CRDS", "")


def get(kubectl: Kubectl, *arguments: str) -> dict[str, Any]:
    obj: dict[str, Any] = json.loads(kubectl("get", *arguments, "-o", "json"))
    return obj


@pytest.fixture
def seals(kubectl: Kubectl) -> Kubectl:
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text(SEALS))
    kubectl("wait", "--for=condition=Established", f"crd/seals.{SEAL_GROUP}", "--timeout=30s")
    return kubectl


@pytest.fixture
def flows(kubectl: Kubectl) -> Kubectl:
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text(FLOWS))
    kubectl("wait", "--for=condition=Established", f"crd/flows.{FLOW_GROUP}", "--timeout=30s")
    return kubectl


# --- like a certificate --------------------------------------------------------------------------------------------------


def test_a_seal_has_its_defaults_and_is_the_same_in_every_version(seals: Kubectl) -> None:
    seals("apply", "-f", "-", stdin=text(seal("a", formats=[{}], renewBefore="30%", subject=None)))
    stored = get(seals, f"seals.v1.{SEAL_GROUP}", "a")
    assert stored["spec"]["lifetime"] == "2160h"
    assert stored["spec"]["key"] == {"algorithm": "RSA"}
    assert stored["spec"]["formats"] == [{"type": "PEM"}]
    assert (stored["spec"]["renewBefore"], stored["spec"]["issuerRef"]) == ("30%", {"name": "ca", "kind": "Issuer"})
    for version in ("v1alpha1", "v1beta1"):
        other = get(seals, f"seals.{version}.{SEAL_GROUP}", "a")
        assert other["apiVersion"] == f"{SEAL_GROUP}/{version}"
        assert other["spec"] == stored["spec"]
        assert other["metadata"]["uid"] == stored["metadata"]["uid"]
    for said in ("created", "unchanged"):
        assert said in seals("apply", "-f", "-", stdin=text(seal("b", version="v1beta1", renewBefore=5)))
    assert get(seals, "seal", "b")["spec"]["renewBefore"] == 5


def test_what_a_seal_must_not_be(seals: Kubectl) -> None:
    wrong = seal(
        "bad", hosts=["a", "a"], key={"algorithm": "DSA"}, usages=["dance"], lifetime="soon", solvers=[{}], formats=[{}, {}]
    )
    said = seals.fails("create", "--validate=false", "-f", "-", stdin=text(wrong))
    for part in ('spec.hosts[1]: Duplicate value: "a"', "spec.key.algorithm: Unsupported value",
                 "spec.usages[0]: Unsupported value", "spec.lifetime",
                 "spec.solvers[0]", "spec.formats[1]: Duplicate value"):  # fmt: skip
        assert part in said
    assert "spec.key.size: Invalid value" in seals.fails("create", "-f", "-", stdin=text(seal("bad", key={"size": 1000})))
    assert "hosts or a subject" in seals.fails("create", "-f", "-", stdin=text(seal("bad", hosts=[])))
    both = [{"web": {"x": 1}}, {"web": {}, "names": {}}]
    assert "spec.solvers[1]" in seals.fails("create", "-f", "-", stdin=text(seal("bad", solvers=both)))
    seals("create", "-f", "-", stdin=text(seal("a")))
    moved = '{"spec":{"secretName":"other"}}'
    assert "spec.secretName: Forbidden" in seals.fails("patch", "seal", "a", "--type=merge", "-p", moved)


def test_an_operator_keeps_the_status_of_a_seal(seals: Kubectl) -> None:
    seals(
        "create",
        "-f",
        "-",
        stdin=text(
            seal("a"),
        ),
    )
    ready = {"type": "Ready", "status": "False", "reason": "Pending", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    path = f"/apis/{SEAL_GROUP}/v1/namespaces/{seals.namespace}/seals/a/status"
    before = get(seals, "seal", "a")
    replace_status(
        seals, path, {**before, "spec": {**before["spec"], "hosts": []}, "status": {"conditions": [ready], "revision": 1}}
    )
    now = get(seals, "seal", "a")
    assert (now["spec"], now["metadata"]["generation"]) == (before["spec"], 1)
    waiting = seals.follow("wait", "--for=condition=Ready", "seal/a", "--timeout=30s", "-v=6")
    waiting.until(lambda line: "watch=true" in line)
    replace_status(seals, path, {**now, "status": {**now["status"], "conditions": [{**ready, "status": "True"}]}})
    assert waiting.wait() == 0, waiting.seen
    assert seals("get", "seal", "a", "--no-headers").split()[:3] == ["a", "True", "a"]
    assert seals("get", "crypto", "-o", "wide", "--no-headers").split()[:4] == ["a", "True", "a", "ca"]
    now = get(seals, "seal", "a")
    twice = seals.run("replace", "--raw", path, "-f", "-", stdin=json.dumps({**now, "status": {"conditions": [ready, ready]}}))
    assert "Duplicate value" in twice.err
    assert get(seals, "seal", "a") == now
    assert names(seals, "seals", "--field-selector=spec.secretName=a") == {"a"}


def replace_status(kubectl: Kubectl, path: str, obj: dict[str, Any]) -> None:
    kubectl("replace", "--raw", path, "-f", "-", stdin=json.dumps(obj))


def test_two_appliers_share_a_seal(seals: Kubectl) -> None:
    apply = ("apply", "--server-side", "-f", "-")
    whole = {"name": "ca", "kind": "Issuer"}  # it is owned as one value, with the default that would come into it
    one, two = seal("a", issuerRef=whole), seal("a", issuerRef=whole, hosts=["b.example.com"], formats=[{"type": "DER"}])
    seals(*apply, "--field-manager=one", stdin=text({**one, "spec": {**one["spec"], "formats": [{"type": "PEM", "alias": "x"}]}}))
    seals(*apply, "--field-manager=two", stdin=text(two))
    spec = get(seals, "seal", "a")["spec"]
    assert spec["hosts"] == ["a.example.com", "b.example.com"]
    assert [item["type"] for item in spec["formats"]] == ["PEM", "DER"]
    other = {**two, "spec": {**two["spec"], "issuerRef": {**whole, "name": "other"}}}
    said = seals.fails(*apply, "--field-manager=two", stdin=text(other))
    assert ".spec.issuerRef" in said
    assert 'conflict with "one"' in said
    seals(*apply, "--field-manager=one", stdin=text(one))
    assert [item["type"] for item in get(seals, "seal", "a")["spec"]["formats"]] == ["DER"]


def test_an_old_version_warns(seals: Kubectl) -> None:
    result = seals.run("get", f"seals.v1alpha1.{SEAL_GROUP}")
    assert "v1alpha1 goes away: use v1" in result.err
    assert "Warning" not in seals.run("get", f"seals.v1.{SEAL_GROUP}").err


# --- like a workflow -----------------------------------------------------------------------------------------------------


def test_a_deep_template_is_kept_pruned_and_defaulted(flows: Kubectl) -> None:
    deep = pod_template(
        "work", "acme/w:1", ports=[{"containerPort": 80}, {"containerPort": 80, "protocol": "UDP"}], strange=1,
        env=[{"name": "A", "valueFrom": {"secretKeyRef": {"key": "k", "odd": 2}}}],
        resources={"limits": {"cpu": 2, "memory": "1Gi"}},
    )  # fmt: skip
    plugin = {"name": "free", "plugin": {"anything": [1, {"deep": None}]}, "inputs": {"a": [1], "b": "x"}}
    flows("create", "--validate=false", "-f", "-", stdin=text(flow("f", deep, plugin)))
    work, free = get(flows, "flow", "f")["spec"]["templates"]
    (container,) = work["pod"]["spec"]["containers"]
    assert container == {
        "name": "main", "image": "acme/w:1", "resources": {"limits": {"cpu": 2, "memory": "1Gi"}},
        "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"key": "k", "name": ""}}}],
        "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "UDP"}],
    }  # fmt: skip
    assert work["pod"]["spec"]["restartPolicy"] == "Never"
    assert free == plugin
    if flows.version == "current":
        assert 'unknown field "spec.templates[0].pod.spec.containers[0].strange"' in flows.fails(
            "create", "-f", "-", stdin=text(flow("g", deep))
        )
    assert "containerPort" in flows("explain", "flow.spec.templates.pod.spec.containers.ports")


def test_what_a_flow_must_not_be(flows: Kubectl) -> None:
    doubled = pod_template("w", "x", ports=[{"containerPort": 1}, {"containerPort": 1, "protocol": "TCP"}])
    mixed = {**pod_template("m", "x"), "plugin": {}}
    sized = pod_template("s", "x", resources={"limits": {"cpu": "much"}})
    where = "spec.templates[0].pod.spec.containers[0]"
    for template, part in ((doubled, f"{where}.ports[1]: Duplicate value"), (mixed, "a template is a pod, steps or a plugin"),
                           (sized, f"{where}.resources.limits.cpu")):  # fmt: skip
        assert part in flows.fails("create", "--validate=false", "-f", "-", stdin=text(flow("bad", template)))
    assert "spec.schedules[0]" in flows.fails("create", "-f", "-", stdin=text(flow("bad", schedules=["sometimes"])))


def test_containers_merge_by_name_and_flows_scale(flows: Kubectl) -> None:
    apply = ("apply", "--server-side", "-f", "-")
    flows(*apply, "--field-manager=one", stdin=text(flow("f", pod_template("w", "a:1", env=[{"name": "A", "value": "1"}]))))
    side = flow("f", {"name": "w", "pod": {"spec": {"containers": [
        {"name": "main", "env": [{"name": "B", "value": "2"}]}, {"name": "side", "image": "b:1"}]}}})  # fmt: skip
    flows(*apply, "--field-manager=two", stdin=text(side))
    (template,) = get(flows, "flow", "f")["spec"]["templates"]
    main, other = template["pod"]["spec"]["containers"]
    assert (main["image"], [item["name"] for item in main["env"]], other["name"]) == ("a:1", ["A", "B"], "side")
    flows("scale", "flow/f", "--replicas=4")
    assert get(flows, "flow", "f")["spec"]["workers"] == 4
    flows("delete", "flow", "f")


# --- the real ones -------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """As Kubernetes reads it: a lone `=` is a string."""


_Loader.add_constructor("tag:yaml.org,2002:value", lambda loader, node: node.value)


def real_definitions() -> list[dict[str, Any]]:
    found = []
    for path in sorted(Path(FOLDER).rglob("*.y*ml")) if FOLDER else ():
        found += [doc for doc in yaml.load_all(path.read_text(), Loader=_Loader)
                  if isinstance(doc, dict) and doc.get("kind") == "CustomResourceDefinition"]  # fmt: skip
    return found


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER, reason="SWARMTASK_FOREIGN_CRDS names no folder of definitions")
def test_real_definitions_of_other_projects(kubectl: Kubectl, tmp_path: Path) -> None:
    """Each is applied as its authors say, is served, lists nothing, explains itself, and goes again."""
    refused: dict[str, str] = {}
    wanted = real_definitions()
    assert wanted, f"{FOLDER} holds no definitions"
    for definition in wanted:
        name = definition["metadata"]["name"]
        file = tmp_path / "definition.json"
        file.write_text(json.dumps(definition))
        result = kubectl.run("apply", "--server-side", "-f", str(file))
        if result.code:
            refused[name] = result.err[:1000]
            continue
        kubectl("wait", "--for=condition=Established", f"crd/{name}", "--timeout=30s")
        assert "serverside-applied" in kubectl("apply", "--server-side", "-f", str(file))
        assert names(kubectl, name) == set()
        assert definition["spec"]["names"]["kind"] in kubectl("explain", name)
        kubectl("delete", "crd", name)
    assert refused == {}
