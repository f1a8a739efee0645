"""A custom kind that uses what definitions can say, and the trees of objects that deletions are tried on."""

from __future__ import annotations

import json
from typing import Any

from tests.conformance.conftest import Kubectl

GROUP = "fleet.example.com"
CREW = "!has(self.size) || self.crew <= self.size"
SPEC: dict[str, Any] = {
    "type": "object",
    "x-kubernetes-validations": [
        {"rule": CREW, "messageExpression": "'%d people do not fit into %d'.format([self.crew, self.size])", "fieldPath": ".crew",
         "reason": "FieldValueForbidden"},
    ],
    "properties": {
        "color": {"type": "string", "default": "red", "enum": ["red", "blue"],
                  "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "the color cannot change"}]},
        "size": {"type": "integer", "minimum": 1}, "crew": {"type": "integer", "default": 0},
        "port": {"x-kubernetes-int-or-string": True}, "note": {"type": "string", "nullable": True},
        "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "holds": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": {
            "type": "object", "required": ["name"], "properties": {
                "name": {"type": "string"}, "tons": {"type": "integer", "default": 1}}}},
        "limits": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": {"type": "string"}},
        "order": {"type": "array", "x-kubernetes-list-type": "atomic", "items": {"type": "string"}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "inner": {"type": "object", "x-kubernetes-embedded-resource": True, "x-kubernetes-preserve-unknown-fields": True},
    },
}  # fmt: skip
DEFINITION: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": f"ships.{GROUP}"},
    "spec": {
        "group": GROUP, "scope": "Namespaced", "names": {"plural": "ships", "kind": "Ship", "shortNames": ["sh"]},
        "versions": [{
            "name": "v1", "served": True, "storage": True,
            "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.crew", "statusReplicasPath": ".status.crew"}},
            "selectableFields": [{"jsonPath": ".spec.color"}, {"jsonPath": ".spec.size"}],
            "additionalPrinterColumns": [
                {"name": "Color", "type": "string", "jsonPath": ".spec.color"},
                {"name": "Size", "type": "integer", "jsonPath": ".spec.size", "priority": 1},
            ],
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": SPEC, "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}}},
        }],
    },
}  # fmt: skip


def text(*objects: dict[str, Any]) -> str:
    """A manifest for `-f -`; in JSON, because Python's YAML leaves `y` without quotes, which Go reads as true."""
    return "".join(f"---\n{json.dumps(obj)}\n" for obj in objects)


def ship(name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": f"{GROUP}/v1", "kind": "Ship", "metadata": {"name": name}, "spec": spec}


def config(name: str, data: dict[str, str] | None = None, **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, **metadata}, "data": data or {}}


def owned(owner: dict[str, Any]) -> dict[str, Any]:
    """Metadata of something that goes with its owner."""
    reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "blockOwnerDeletion": True}
    return {"ownerReferences": [{**reference, "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"]}]}


def created(kubectl: Kubectl, obj: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(kubectl("create", "-o", "json", "-f", "-", stdin=text(obj)))
    return result


def three_levels(kubectl: Kubectl, *, held: bool) -> None:
    """ConfigMaps top, mid and leaf, each owned by the one before; `held`: the leaf has a finalizer."""
    top = created(kubectl, config("top"))
    mid = created(kubectl, config("mid", **owned(top)))
    created(kubectl, config("leaf", **owned(mid), **({"finalizers": ["test.io/hold"]} if held else {})))


def let_go(kubectl: Kubectl, name: str) -> None:
    """Take the finalizers away."""
    kubectl("patch", name, "--type=json", "-p", '[{"op":"remove","path":"/metadata/finalizers"}]')


def items(kubectl: Kubectl, *arguments: str) -> list[dict[str, Any]]:
    """What is listed, without what a cluster puts into every namespace by itself."""
    found: list[dict[str, Any]] = json.loads(kubectl("get", *arguments, "-o", "json"))["items"]
    return [item for item in found if item["metadata"]["name"] != "kube-root-ca.crt"]


def names(kubectl: Kubectl, *arguments: str) -> set[str]:
    return {item["metadata"]["name"] for item in items(kubectl, *arguments)}


def gone(kubectl: Kubectl, name: str) -> None:
    """Wait until it is deleted; the old kubectl fails when it already is."""
    result = kubectl.run("wait", "--for=delete", name, "--timeout=30s")
    assert result.code == 0 or "no matching resources found" in result.err or "NotFound" in result.err, result.err
