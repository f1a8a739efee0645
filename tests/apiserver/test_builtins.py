"""Built-in types and the rules for CustomResourceDefinitions."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmtask.apiserver.builtin_kinds import MESSAGES
from swarmtask.apiserver.builtins import builtin_types, types_of_crd, validate_crd
from swarmtask.apiserver.projections.kinds import projected_types
from swarmtask.apiserver.projections.messages import PROJECTED_MESSAGES, RECEIVED_MESSAGES
from swarmtask.apiserver.schema import Structural, structural_of
from swarmtask.apiserver.shapes import DELETE_OPTIONS, walk
from swarmtask.apiserver.types import TypeRegistry

CRDS = Path(__file__).parents[2] / "manifests" / "crds"
TEXT, INTEGER = {"type": "string"}, {"type": "integer"}

# Shaped like the definitions of other operators: a certificate issuer with alternatives, a database with keyed lists and embedded
# templates, a workflow engine with free-form parts.
ISSUER = {"type": "object", "required": ["spec"], "properties": {
    "apiVersion": TEXT, "kind": TEXT, "metadata": {"type": "object"},
    "spec": {"type": "object", "oneOf": [{"required": ["acme"]}, {"required": ["selfSigned"]}], "properties": {
        "acme": {"type": "object", "required": ["server"], "properties": {
            "server": {"type": "string", "format": "uri", "pattern": "^https://.+"},
            "solvers": {"type": "array", "items": {"type": "object", "properties": {
                "selector": {"type": "object", "properties": {"matchLabels": {"type": "object", "additionalProperties": TEXT}}},
                "port": {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}}}}}},
        "selfSigned": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}},
    "status": {"type": "object", "properties": {"conditions": {
        "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"], "items": {
            "type": "object", "required": ["type", "status"], "properties": {
                "type": TEXT, "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
                "lastTransitionTime": {"type": "string", "format": "date-time"}}}}}},
}}  # fmt: skip
DATABASE = {"type": "object", "properties": {
    "spec": {"type": "object", "required": ["instances"], "properties": {
        "instances": {"type": "integer", "format": "int32", "minimum": 1, "maximum": 9, "default": 1},
        "storage": {"type": "object", "default": {"size": "1Gi"}, "required": ["size"], "properties": {
            "size": {"type": "string", "pattern": "^[1-9][0-9]*(Mi|Gi|Ti)$"}, "class": {"type": "string", "nullable": True}}},
        "template": {"type": "object", "x-kubernetes-embedded-resource": True, "x-kubernetes-preserve-unknown-fields": True},
        "users": {"type": "array", "maxItems": 10, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name", "host"],
                  "items": {"type": "object", "required": ["name"], "properties": {
                      "name": TEXT, "host": {"type": "string", "default": "%"},
                      "roles": {"type": "array", "x-kubernetes-list-type": "set", "items": TEXT}}}},
        "backup": {"type": "object", "properties": {"mode": TEXT, "target": TEXT},
                   "anyOf": [{"properties": {"mode": {"enum": ["none"]}}}, {"required": ["target"]}]}}},
}}  # fmt: skip
WORKFLOW = {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": {
    "spec": {"type": "object", "x-kubernetes-map-type": "granular", "properties": {
        "steps": {"type": "array", "x-kubernetes-list-type": "atomic", "items": {"type": "object", "additionalProperties": {
            "x-kubernetes-preserve-unknown-fields": True}}},
        "selector": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": TEXT},
        "limit": {"type": "integer", "allOf": [{"minimum": 1}, {"maximum": 5}], "not": {"enum": [3]}}}},
}}  # fmt: skip


def crd(schema: Any = None, **version: Any) -> dict[str, Any]:
    return {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList", "shortNames": ["th"]},
            "versions": [{"name": "v1", "served": True, "storage": True,
                          "schema": {"openAPIV3Schema": {"type": "object"} if schema is None else schema}, **version}],
        },
    }  # fmt: skip


def fields(definition: dict[str, Any]) -> list[str]:
    return [cause.field.removeprefix("spec.versions[0].schema.openAPIV3Schema.") for cause in validate_crd(definition)]


def test_our_own_definitions_and_those_of_others_are_accepted() -> None:
    for path in sorted(CRDS.glob("*.yaml")):
        assert validate_crd(yaml.safe_load(path.read_text())) == []
    for schema in (ISSUER, DATABASE, WORKFLOW):
        assert validate_crd(crd(schema)) == []


def test_types_of_a_definition() -> None:
    definition = crd(
        ISSUER,
        subresources={"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
        additionalPrinterColumns=[{"name": "Server", "type": "string", "jsonPath": ".spec.acme.server", "priority": 1}],
        selectableFields=[{"jsonPath": ".spec.acme.server"}],
    )
    definition["spec"]["versions"] += [
        {"name": "v1beta1", "served": True, "storage": False, "schema": {"openAPIV3Schema": {"type": "object"}}},
        {"name": "v1alpha1", "served": False, "storage": False, "schema": {"openAPIV3Schema": {"type": "object"}}},
    ]
    del definition["spec"]["names"]["singular"], definition["spec"]["names"]["listKind"]
    assert validate_crd(definition) == []
    first, second = types_of_crd(definition)
    assert (first.version, first.singular, first.list_kind, first.short_names) == ("v1", "thing", "ThingList", ("th",))
    assert first.subresources == {"status", "scale"}
    assert first.field_selectors == ("spec.acme.server",)
    assert [column.name for column in first.columns] == ["Server"]
    assert first.custom
    assert first.has_generation
    assert (second.version, second.subresources, [column.name for column in second.columns]) == ("v1beta1", frozenset(), ["Age"])


def test_the_database_shape_at_work() -> None:
    structural = Structural(DATABASE)
    obj: dict[str, Any] = {"spec": {"users": [{"name": "a"}, {"name": "a", "host": "h"}], "backup": {"mode": "full"}, "bogus": 1,
                                    "template": {"apiVersion": "v1", "kind": "Pod", "spec": {"free": 1}}}}  # fmt: skip
    assert structural.prune(obj) == ["spec.bogus"]
    structural.default(obj)
    assert obj["spec"]["instances"] == 1
    assert obj["spec"]["storage"] == {"size": "1Gi"}
    assert obj["spec"]["users"] == [{"name": "a", "host": "%"}, {"name": "a", "host": "h"}]
    assert [cause.field for cause in structural.validate(obj)] == ["spec.backup", "spec.backup.mode"]
    obj["spec"]["backup"]["target"] = "s3"
    assert structural.validate(obj) == []


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        (lambda d: d["metadata"].update(name="wrong"), "metadata.name", "things.example.com"),
        (lambda d: d["spec"].update(group="example"), "spec.group", "dot"),
        (lambda d: d["spec"].update(group="Exa mple.com"), "spec.group", "DNS"),
        (lambda d: d["spec"].update(group="x.k8s.io"), "metadata.annotations[api-approved.kubernetes.io]", "approval"),
        (lambda d: d["spec"].update(scope="Global"), "spec.scope", "Namespaced"),
        (lambda d: d["spec"]["names"].update(plural="Things"), "spec.names.plural", "letters"),
        (lambda d: d["spec"]["names"].update(kind="Th ing"), "spec.names.kind", "letters"),
        (lambda d: d["spec"]["names"].pop("kind"), "spec.names.kind", "Required"),
        (lambda d: d["spec"]["names"].update(listKind="Thing"), "spec.names.listKind", "same"),
        (lambda d: d["spec"]["names"].update(shortNames=["t", "T"]), "spec.names.shortNames[1]", "lower case"),
        (lambda d: d["spec"].update(preserveUnknownFields=True), "spec.preserveUnknownFields", "false"),
        (lambda d: d["spec"].update(conversion={"strategy": "Webhook"}), "spec.conversion.strategy", "None"),
        (lambda d: d["spec"].update(conversion={"strategy": "None", "webhook": {}}), "spec.conversion.webhook", "webhooks"),
        (lambda d: d["spec"].update(versions=[]), "spec.versions", "at least one"),
        (lambda d: d["spec"]["versions"][0].update(storage=False), "spec.versions", "exactly one"),
        (lambda d: d["spec"]["versions"].append({**d["spec"]["versions"][0], "storage": False}), "spec.versions[1].name",
         "Duplicate"),
        (lambda d: d["spec"]["versions"][0].update(name="V1"), "spec.versions[0].name", "lower case"),
        (lambda d: d["spec"]["versions"][0].pop("served"), "spec.versions[0].served", "Required"),
        (lambda d: d["spec"]["versions"][0].pop("schema"), "spec.versions[0].schema.openAPIV3Schema", "schemas are required"),
        (lambda d: d["spec"]["versions"][0].update(additionalPrinterColumns=[{"name": "A", "type": "string", "jsonPath": "x"}]),
         "spec.versions[0].additionalPrinterColumns[0].jsonPath", "dot"),
        (lambda d: d["spec"]["versions"][0].update(additionalPrinterColumns=[{"name": "A", "type": "text", "jsonPath": ".x"}]),
         "spec.versions[0].additionalPrinterColumns[0].type", "integer"),
        (lambda d: d["spec"]["versions"][0].update(selectableFields=[{"jsonPath": ".spec.nothing"}]),
         "spec.versions[0].selectableFields[0].jsonPath", "schema names"),
        (lambda d: d["spec"]["versions"][0].update(subresources={"scale": {"specReplicasPath": ".status.x",
         "statusReplicasPath": ".status.y"}}),
         "spec.versions[0].subresources.scale.specReplicasPath", ".spec"),
    ],
)  # fmt: skip
def test_rules_for_definitions(change: Any, field: str, says: str) -> None:
    definition = crd()
    change(definition)
    causes = {cause.field: cause.message for cause in validate_crd(definition)}
    assert says in causes[field]


@pytest.mark.parametrize(
    ("schema", "field"),
    [
        ({"type": "array", "items": TEXT}, "type"),
        ({"type": "object", "nullable": True}, "nullable"),
        ({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}},
         "properties[metadata]"),
        ({"type": "object", "x-kubernetes-map-type": "atomic"}, "x-kubernetes-map-type"),
        ("text", "spec.versions[0].schema.openAPIV3Schema"),
    ],
)  # fmt: skip
def test_rules_for_the_root_of_a_schema(schema: Any, field: str) -> None:
    assert field in fields(crd(schema))


@pytest.mark.parametrize(
    ("node", "field"),
    [
        ({}, "type"),
        ({"type": "null"}, "type"),
        ({"type": "string", "x-kubernetes-int-or-string": True}, "type"),
        ({"type": "string", "x-kubernetes-embedded-resource": True}, "type"),
        ({"type": "string", "x-kubernetes-preserve-unknown-fields": True}, "x-kubernetes-preserve-unknown-fields"),
        ({"type": "object", "x-kubernetes-preserve-unknown-fields": False}, "x-kubernetes-preserve-unknown-fields"),
        ({"type": "object", "x-kubernetes-validations": [{"rule": "self.a > 1"}]}, "x-kubernetes-validations[0].rule"),
        ({"$ref": "#/x", "type": "object"}, "$ref"),
        ({"type": "object", "patternProperties": {}}, "patternProperties"),
        ({"type": "string", "const": "x"}, "const"),
        ({"type": "array"}, "items"),
        ({"type": "array", "items": TEXT, "uniqueItems": True}, "uniqueItems"),
        ({"type": "array", "items": [TEXT]}, "items"),
        ({"type": "object", "additionalProperties": False}, "additionalProperties"),
        ({"type": "object", "additionalProperties": TEXT, "properties": {"a": TEXT}}, "additionalProperties"),
        ({"type": "object", "x-kubernetes-map-type": "loose"}, "x-kubernetes-map-type"),
        ({"type": "string", "pattern": "("}, "pattern"),
        ({"type": "string", "pattern": "(?=a)"}, "pattern"),
        ({"type": "string", "maxLength": -1}, "maxLength"),
        ({"type": "string", "enum": []}, "enum"),
        ({"type": "integer", "multipleOf": 0}, "multipleOf"),
        ({"type": "integer", "minimum": "1"}, "minimum"),
        ({"type": "object", "required": "a"}, "required"),
        ({"type": "string", "nullable": "yes"}, "nullable"),
        ({"type": "array", "items": TEXT, "x-kubernetes-list-type": "bag"}, "x-kubernetes-list-type"),
        ({"type": "array", "items": TEXT, "x-kubernetes-list-map-keys": ["a"]}, "x-kubernetes-list-map-keys"),
        ({"type": "array", "items": TEXT, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a"]}, "items.type"),
        ({"type": "array", "items": {"type": "object", "properties": {"a": TEXT}}, "x-kubernetes-list-type": "map",
          "x-kubernetes-list-map-keys": ["a"]}, "items.properties[a].default"),
        ({"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a"]},
         "x-kubernetes-list-map-keys[0]"),
        ({"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "map"}, "x-kubernetes-list-map-keys"),
        ({"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "set"}, "items.x-kubernetes-map-type"),
        ({"type": "string", "default": 1}, "default"),
        ({"type": "object", "properties": {"a": TEXT}, "default": {"b": "x"}}, "default"),
        ({"type": "object", "properties": {"a": INTEGER}, "default": {"a": "x"}}, "default.a"),
        ({"type": "object", "anyOf": [{"properties": {"a": {"minLength": 1}}}]}, "anyOf[0].properties[a]"),
        ({"type": "string", "oneOf": [{"type": "string"}]}, "oneOf[0].type"),
        ({"type": "string", "not": {"default": "x"}}, "not.default"),
        ({"type": "string", "allOf": "x"}, "allOf"),
        ("text", ""),
    ],
)  # fmt: skip
def test_rules_for_the_nodes_of_a_schema(node: Any, field: str) -> None:
    path = "properties[spec]" + (f".{field}" if field else "")
    assert path in fields(crd({"type": "object", "properties": {"spec": node}}))


@pytest.mark.slow
@pytest.mark.timeout(20)
def test_deep_and_wide_schemas_are_bounded() -> None:
    deep: dict[str, Any] = {"type": "string", "default": "x"}
    for _ in range(60):
        deep = {"type": "object", "default": {}, "properties": {"a": deep}}
    assert fields(crd({"type": "object", "properties": {"spec": deep}})) == []
    for _ in range(40):
        deep = {"type": "object", "properties": {"a": deep}}
    assert any("64 levels" in cause.message for cause in validate_crd(crd({"type": "object", "properties": {"spec": deep}})))
    many = {"type": "object", "properties": {f"a{index}": {} for index in range(1000)}}
    assert len(fields(crd(many))) == 50


leaves = (
    st.none() | st.booleans() | st.integers(-2, 2) | st.text(max_size=3) | st.just([]) | st.just({}) | st.just([[]]) | st.just([1])
)


@pytest.mark.slow
@settings(max_examples=300)
@given(st.data())
def test_no_definition_raises_and_what_is_accepted_compiles(data: st.DataObject) -> None:
    """One or two places of a sound definition are replaced by something else."""
    definition = copy.deepcopy(crd(data.draw(st.sampled_from([ISSUER, DATABASE, WORKFLOW])), additionalPrinterColumns=[
        {"name": "A", "type": "string", "jsonPath": ".spec.a"}], selectableFields=[{"jsonPath": ".spec.a"}],
         subresources={"status": {}}))  # fmt: skip
    for _ in range(data.draw(st.integers(1, 2))):
        node: Any = definition
        while True:
            if not isinstance(node, (dict, list)) or not node:
                break
            key: Any = (
                data.draw(st.sampled_from(sorted(node))) if isinstance(node, dict) else data.draw(st.integers(0, len(node) - 1))
            )
            if data.draw(st.integers(0, 3)) == 0 or not isinstance(node[key], (dict, list)):
                node[key] = copy.deepcopy(data.draw(leaves))
                break
            node = node[key]
    if not validate_crd(definition):
        for rt in types_of_crd(definition):
            structural = structural_of(rt)
            assert structural is not None
            structural.validate({"metadata": {"name": "a"}, "spec": {}})


def test_built_in_types_are_complete() -> None:
    registry = TypeRegistry(builtin_types())
    views = {(rt.api_version, rt.kind) for rt in projected_types()}
    types = [rt for rt in builtin_types() if (rt.api_version, rt.kind) not in views]
    definition, request = ("apiextensions.k8s.io/v1", "CustomResourceDefinition"), ("authentication.k8s.io/v1", "TokenRequest")
    subresources = {request, *RECEIVED_MESSAGES}
    assert {(rt.api_version, rt.kind) for rt in types} == {*MESSAGES, definition} - subresources, "TokenRequest, Eviction"
    for rt in types:
        assert rt.schema is not None
        assert {"apiVersion", "kind", "metadata"} <= set(rt.schema["properties"])
        assert rt.list_kind == f"{rt.kind}List"
        assert not rt.custom
        json.dumps(rt.schema)
    assert {rt.plural for rt in types if not rt.stored} == {
        "selfsubjectaccessreviews", "selfsubjectrulesreviews", "subjectaccessreviews", "localsubjectaccessreviews",
        "selfsubjectreviews", "tokenreviews", "secretskeyrotations"}  # fmt: skip
    events = registry.find("", "v1", "events")
    assert events is not None
    assert {"involvedObject.name", "involvedObject.uid", "reason", "type", "source"} <= set(events.field_selectors)
    namespaces = registry.find("", "v1", "namespaces")
    assert namespaces is not None
    assert namespaces.subresources == {"status", "finalize"}


def test_projected_types_are_never_stored_and_can_be_read() -> None:
    for rt in projected_types():
        assert not rt.stored
        assert {"get", "list"} <= set(rt.verbs)
        assert "create" not in rt.verbs
        assert rt.list_kind == f"{rt.kind}List"
        json.dumps(rt.schema)
    for message in walk(list(PROJECTED_MESSAGES.values())):
        names = [item.name for item in message.fields]
        assert len(set(names)) == len(names), message.name


def test_field_tables_have_no_clashes() -> None:
    messages = walk([*MESSAGES.values(), DELETE_OPTIONS])
    for message in messages:
        numbers, names = [item.number for item in message.fields], [item.name for item in message.fields]
        assert len(set(names)) == len(names), message.name
        assert len(set(numbers)) == len(numbers), message.name
        assert all(number > 0 for number in numbers), message.name
        for item in message.fields:
            assert not item.list_keys or item.list_type == "map", (message.name, item.name)


def test_a_definition_is_checked_by_its_own_schema_too() -> None:
    rt = next(item for item in builtin_types() if item.kind == "CustomResourceDefinition")
    structural = structural_of(rt)
    assert structural is not None
    definition = crd(ISSUER)
    definition["spec"]["nonsense"] = 1
    assert structural.prune(definition) == ["spec.nonsense"]
    assert structural.validate(definition) == []
    definition["spec"]["versions"][0]["served"] = "yes"
    assert [cause.field for cause in structural.validate(definition)] == ["spec.versions[0].served"]
