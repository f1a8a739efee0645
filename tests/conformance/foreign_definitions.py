"""Definitions of the size and kind that other people's operators bring, in words of our own, with objects that use them.

`SEALS` is like a certificate: three versions without conversion, many validations, CEL rules, conditions in its columns. `FLOWS` is
like a scheduled workflow: a pod template deep inside of keyed lists and maps, with scale. Learnt from the shape of public projects;
no text is theirs.
"""

from __future__ import annotations

from typing import Any

SEAL_GROUP, FLOW_GROUP = "seals.example.com", "flows.example.com"
TEXT: dict[str, Any] = {"type": "string"}
TEXTS: dict[str, Any] = {"type": "array", "items": TEXT, "x-kubernetes-list-type": "atomic"}
WORDS: dict[str, Any] = {"type": "object", "additionalProperties": TEXT}
ANYTHING: dict[str, Any] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
QUANTITY: dict[str, Any] = {
    "anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": True,
    "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?[0-9]+))?$",
}  # fmt: skip
CONDITIONS: dict[str, Any] = {
    "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"], "items": {
        "type": "object", "required": ["type", "status"], "properties": {
            "type": {"type": "string", "maxLength": 316}, "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "reason": {"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"}, "message": TEXT,
            "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
            "lastTransitionTime": {"type": "string", "format": "date-time"}}},
}  # fmt: skip


def thing(properties: dict[str, Any], *required: str, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, **({"required": list(required)} if required else {}), **more}


def keyed(items: dict[str, Any], *keys: str, **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys), **more}


# --- seals ---------------------------------------------------------------------------------------------------------------

SEAL_SPEC = thing(
    {
        "hosts": {"type": "array", "items": {"type": "string", "minLength": 1}, "x-kubernetes-list-type": "set", "maxItems": 100},
        "lifetime": {"type": "string", "format": "duration", "default": "2160h"},
        "renewBefore": {"x-kubernetes-int-or-string": True},
        "secretName": {"type": "string", "minLength": 1, "maxLength": 253},
        "key": thing({
            "algorithm": {"type": "string", "enum": ["RSA", "ECDSA", "Ed25519"], "default": "RSA"},
            "size": {"type": "integer", "format": "int32"}, "rotation": {"type": "string", "enum": ["Never", "Always"]},
        }, default={}, **{"x-kubernetes-validations": [
            {"rule": "!has(self.size) || self.algorithm != 'RSA' || self.size in [2048, 3072, 4096]",
             "message": "no size of RSA keys", "fieldPath": ".size", "reason": "FieldValueInvalid"}]}),
        "issuerRef": thing({"name": TEXT, "kind": {"type": "string", "default": "Issuer"}, "group": TEXT}, "name",
                           **{"x-kubernetes-map-type": "atomic"}),
        "subject": thing({"countries": TEXTS, "serialNumber": TEXT}, nullable=True),
        "usages": {"type": "array", "x-kubernetes-list-type": "set", "items": {
            "type": "string", "enum": ["server", "client", "sign"]}},
        "stores": thing({"pkcs12": thing({"create": {"type": "boolean"}, "passwordRef": thing({"name": TEXT, "key": TEXT}, "name")},
                                         "create", "passwordRef")}),
        "solvers": {"type": "array", "x-kubernetes-list-type": "atomic", "items": thing({
            "web": ANYTHING,
            "names": thing({"webhook": thing({"solver": TEXT, "config": {"x-kubernetes-preserve-unknown-fields": True}})}),
        }, oneOf=[{"required": ["web"]}, {"required": ["names"]}])},
        "formats": keyed(thing({"type": {"type": "string", "enum": ["DER", "PEM"], "default": "PEM"}, "alias": TEXT}), "type"),
    },
    "secretName", "issuerRef",
    **{"x-kubernetes-validations": [
        {"rule": "size(self.hosts) > 0 || has(self.subject)", "message": "hosts or a subject must be named"},
        {"rule": "self.secretName == oldSelf.secretName", "message": "secretName cannot change",
         "reason": "FieldValueForbidden", "fieldPath": ".secretName"},
        {"rule": "!has(self.solvers) || self.solvers.all(s, has(s.web) != has(s.names))",
         "messageExpression": "'%d solvers, each of one kind'.format([size(self.solvers)])"},
    ]},
)  # fmt: skip
SEAL_STATUS = thing({
    "conditions": CONDITIONS, "notAfter": {"type": "string", "format": "date-time"}, "revision": {"type": "integer", "minimum": 1},
    "attempts": {"type": "integer", "format": "int32", "nullable": True},
})  # fmt: skip
SEAL_SPEC["properties"]["hosts"]["default"] = []


def _seal_version(name: str, **more: Any) -> dict[str, Any]:
    ready = '.status.conditions[?(@.type=="Ready")].status'
    return {
        "name": name, "served": True, "storage": name == "v1", "subresources": {"status": {}},
        "selectableFields": [{"jsonPath": ".spec.secretName"}],
        "additionalPrinterColumns": [
            {"name": "Ready", "type": "string", "jsonPath": ready},
            {"name": "Secret", "type": "string", "jsonPath": ".spec.secretName"},
            {"name": "Issuer", "type": "string", "jsonPath": ".spec.issuerRef.name", "priority": 1},
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        ],
        "schema": {"openAPIV3Schema": thing({"apiVersion": TEXT, "kind": TEXT, "metadata": {"type": "object"},
                                             "spec": SEAL_SPEC, "status": SEAL_STATUS}, "spec")},
        **more,
    }  # fmt: skip


def _definition(group: str, names: dict[str, Any], versions: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names['plural']}.{group}", "annotations": {"generator.example.com/version": "(unknown)"}},
        "spec": {"group": group, "scope": "Namespaced", "names": names, "conversion": {"strategy": "None"}, "versions": versions},
    }  # fmt: skip


SEALS = _definition(
    SEAL_GROUP,
    {"plural": "seals", "singular": "seal", "kind": "Seal", "listKind": "SealList", "shortNames": ["sl"], "categories": ["crypto"]},
    [_seal_version("v1alpha1", deprecated=True, deprecationWarning="seals.example.com/v1alpha1 goes away: use v1"),
     _seal_version("v1beta1"), _seal_version("v1")],
)  # fmt: skip


def seal(name: str, *, version: str = "v1", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": f"{SEAL_GROUP}/{version}", "kind": "Seal", "metadata": {"name": name},
        "spec": {"hosts": [f"{name}.example.com"], "secretName": name, "issuerRef": {"name": "ca"}, **spec},
    }  # fmt: skip


# --- flows ---------------------------------------------------------------------------------------------------------------

_RESOURCES = thing({"limits": {"type": "object", "additionalProperties": QUANTITY},
                    "requests": {"type": "object", "additionalProperties": QUANTITY}})  # fmt: skip
_PROBE = thing({
    "httpGet": thing({"path": TEXT, "port": {"x-kubernetes-int-or-string": True}, "httpHeaders": {
        "type": "array", "items": thing({"name": TEXT, "value": TEXT}, "name", "value")}}, "port"),
    "exec": thing({"command": TEXTS}), "periodSeconds": {"type": "integer", "format": "int32"},
})  # fmt: skip
_CONTAINER = thing({
    "name": TEXT, "image": TEXT, "command": TEXTS, "args": TEXTS, "resources": _RESOURCES, "livenessProbe": _PROBE,
    "env": keyed(thing({"name": TEXT, "value": TEXT, "valueFrom": thing({
        "secretKeyRef": thing({"name": {"type": "string", "default": ""}, "key": TEXT}, "key",
                              **{"x-kubernetes-map-type": "atomic"}),
    })}, "name"), "name"),
    "ports": keyed(thing({"containerPort": {"type": "integer", "format": "int32"}, "name": TEXT,
                          "protocol": {"type": "string", "default": "TCP"}}, "containerPort"), "containerPort", "protocol"),
    "volumeMounts": keyed(thing({"mountPath": TEXT, "name": TEXT, "readOnly": {"type": "boolean"}}, "mountPath", "name"),
                          "mountPath"),
}, "name")  # fmt: skip
_POD = thing({
    "containers": keyed(_CONTAINER, "name"), "initContainers": keyed(_CONTAINER, "name"), "nodeSelector": WORDS,
    "affinity": thing({"nodeAffinity": thing({"required": thing({"nodeSelectorTerms": {"type": "array", "items": thing({
        "matchExpressions": {"type": "array", "items": thing({"key": TEXT, "operator": TEXT, "values": TEXTS}, "key", "operator")},
    }, **{"x-kubernetes-map-type": "atomic"})}}, "nodeSelectorTerms")})}),
    "volumes": keyed(thing({
        "name": TEXT, "emptyDir": thing({"medium": TEXT, "sizeLimit": QUANTITY}), "configMap": thing({
            "name": TEXT, "items": {"type": "array", "items": thing({"key": TEXT, "path": TEXT}, "key", "path")}}),
        "hostPath": thing({"path": TEXT}, "path"),
    }, "name"), "name"),
    "restartPolicy": {"type": "string", "enum": ["Always", "OnFailure", "Never"], "default": "Never"},
}, "containers")  # fmt: skip
_TEMPLATE = thing({
    "name": {"type": "string", "maxLength": 128}, "plugin": ANYTHING, "pod": thing({"metadata": ANYTHING, "spec": _POD}),
    "steps": {"type": "array", "items": {"type": "array", "items": thing({"name": TEXT, "template": TEXT, "when": TEXT})}},
    "retry": thing({"limit": {"x-kubernetes-int-or-string": True}, "backoff": thing({"factor": {"type": "number"}})}),
    "inputs": {"type": "object", "additionalProperties": {"x-kubernetes-preserve-unknown-fields": True}},
}, "name")  # fmt: skip
FLOWS = _definition(
    FLOW_GROUP,
    {"plural": "flows", "singular": "flow", "kind": "Flow", "listKind": "FlowList", "shortNames": ["fl"]},
    [{
        "name": "v1alpha1", "served": True, "storage": True,
        "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.workers", "statusReplicasPath": ".status.workers",
                                                 "labelSelectorPath": ".status.selector"}},
        "schema": {"openAPIV3Schema": thing({
            "spec": thing({
                "schedules": {"type": "array", "items": {"type": "string", "pattern": r"^(@\w+|(\S+ ){4}\S+)$"}, "minItems": 1,
                              "x-kubernetes-list-type": "atomic"},
                "workers": {"type": "integer", "format": "int32", "default": 1, "minimum": 0}, "entrypoint": TEXT,
                "suspend": {"type": "boolean"}, "concurrency": {"type": "string", "enum": ["", "Allow", "Forbid", "Replace"]},
                "templates": keyed(_TEMPLATE, "name", **{"maxItems": 200, "x-kubernetes-validations": [
                    {"rule": "self.all(t, (has(t.pod) ? 1 : 0) + (has(t.steps) ? 1 : 0) + (has(t.plugin) ? 1 : 0) <= 1)",
                     "message": "a template is a pod, steps or a plugin"}]}),
                "metadata": thing({"labels": WORDS, "annotations": WORDS}),
            }, "schedules", "templates"),
            "status": thing({"workers": {"type": "integer"}, "selector": TEXT, "conditions": CONDITIONS,
                             "nodes": {"type": "object", "additionalProperties": thing({"phase": TEXT, "children": TEXTS})}}),
        }, "spec")},
    }],
)  # fmt: skip


def flow(name: str, *templates: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": f"{FLOW_GROUP}/v1alpha1", "kind": "Flow", "metadata": {"name": name},
        "spec": {"schedules": ["*/5 * * * *"], "entrypoint": "main", "templates": list(templates), **spec},
    }  # fmt: skip


def pod_template(name: str, image: str, **container: Any) -> dict[str, Any]:
    return {"name": name, "pod": {"metadata": {"labels": {"app": name}}, "spec": {
        "containers": [{"name": "main", "image": image, **container}]}}}  # fmt: skip
