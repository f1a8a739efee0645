"""Custom kinds as definitions describe them: values, lists, rules in CEL and field selectors, by real kubectl programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conformance.conftest import Kubectl
from tests.conformance.fleet import DEFINITION, GROUP, SPEC, names, ship, text

pytestmark = pytest.mark.kubectl


@pytest.fixture
def fleet(kubectl: Kubectl) -> Iterator[Kubectl]:
    """A kubectl on a server that knows ships."""
    kubectl("apply", "-f", "-", stdin=text(DEFINITION))
    yield kubectl


def stored(fleet: Kubectl, name: str) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(fleet("get", "ship", name, "-o", "json"))["spec"]
    return spec


def refusal(fleet: Kubectl, **spec: Any) -> str:
    return fleet.fails("create", "--validate=false", "-f", "-", stdin=text(ship("bad", **spec)))


def test_defaults_nulls_unknown_and_open_fields(fleet: Kubectl) -> None:
    given = ship("a", note=None, size=None, free={"x": {"y": 1}}, port="http", unknown=1, holds=[{"name": "h"}])
    fleet("create", "--validate=false", "-f", "-", stdin=text(given))
    assert stored(fleet, "a") == {
        "color": "red", "crew": 0, "note": None, "free": {"x": {"y": 1}}, "port": "http", "holds": [{"name": "h", "tons": 1}],
    }  # fmt: skip


def test_values_are_checked_and_all_faults_are_named(fleet: Kubectl) -> None:
    said = refusal(fleet, size=0, color="pink", port=1.5, tags=["a", "a"], holds=[{"name": "x"}, {"name": "x"}], inner={"a": 1})
    for part in (
        "spec.size", "should be greater than or equal to 1", 'spec.color: Unsupported value: "pink"', "spec.port",
        'spec.tags[1]: Duplicate value: "a"', "spec.holds[1]: Duplicate value", "spec.inner.kind: Required value",
    ):  # fmt: skip
        assert part in said


def test_a_rule_names_the_field_and_computes_its_message(fleet: Kubectl) -> None:
    assert "spec.crew: Forbidden: 5 people do not fit into 3" in refusal(fleet, size=3, crew=5)
    fleet("create", "-f", "-", stdin=text(ship("a", size=3, crew=3)))
    assert "spec.crew: Forbidden: 4 people" in fleet.fails("patch", "ship", "a", "--type=merge", "-p", '{"spec":{"crew":4}}')
    assert "spec.crew" in fleet.fails("scale", "ship", "a", "--replicas=9")
    fleet("scale", "ship", "a", "--replicas=1")
    assert stored(fleet, "a")["crew"] == 1
    shown = json.loads(fleet("get", "--raw", f"/apis/{GROUP}/v1/namespaces/{fleet.namespace}/ships/a"))
    owners = [entry.get("subresource") for entry in shown["metadata"]["managedFields"] if "f:crew" in str(entry["fieldsV1"])]
    assert owners == ["scale"]


def test_a_transition_rule_holds_on_every_way_to_change(fleet: Kubectl) -> None:
    fleet("apply", "-f", "-", stdin=text(ship("a", color="red")))
    blue = text(ship("a", color="blue"))
    said = 'spec.color: Invalid value: "blue": the color cannot change'
    assert said in fleet.fails("apply", "-f", "-", stdin=blue)
    assert said in fleet.fails("replace", "-f", "-", stdin=blue)
    assert said in fleet.fails("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=blue)
    assert said in fleet.fails("apply", "--dry-run=server", "-f", "-", stdin=blue)


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("self.sise > 1", "undefined field 'sise'"), ("self.color.frobnicate()", "undeclared reference to 'frobnicate'"),
        ("self.size > 'a'", "compilation failed"), ("self.size", "must evaluate to a bool"), ("self.size >", "Syntax error"),
    ],
)  # fmt: skip
def test_a_definition_with_a_rule_that_cannot_work_is_refused(fleet: Kubectl, rule: str, why: str) -> None:
    bad = json.loads(json.dumps(DEFINITION))
    bad["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["x-kubernetes-validations"] = [{"rule": rule}]
    said = fleet.fails("apply", "--dry-run=server", "-f", "-", stdin=text(bad))
    assert "properties[spec].x-kubernetes-validations[0].rule" in said
    assert why in said


def test_a_rule_that_comes_later_spares_what_is_stored(fleet: Kubectl) -> None:
    definition = json.loads(json.dumps(DEFINITION).replace("ships", "rafts").replace("Ship", "Raft").replace('"sh"', '"ra"'))
    fleet("apply", "-f", "-", stdin=text(definition))
    raft = {**ship("a", size=9), "kind": "Raft"}
    fleet("apply", "-f", "-", stdin=text(raft))
    spec = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["properties"]["size"]["x-kubernetes-validations"] = [{"rule": "self < 5", "message": "too large"}]
    fleet("apply", "-f", "-", stdin=text(definition))
    fleet("patch", "raft", "a", "--type=merge", "-p", '{"spec":{"crew":2}}')
    assert "too large" in fleet.fails("patch", "raft", "a", "--type=merge", "-p", '{"spec":{"size":8}}')
    fleet("delete", "crd", f"rafts.{GROUP}")


def test_field_selectors_of_a_custom_kind(fleet: Kubectl) -> None:
    fleet("create", "-f", "-", stdin=text(ship("a", size=1), ship("b", color="blue", size=1), ship("c", color="blue")))
    assert names(fleet, "ships", "--field-selector=spec.color=blue") == {"b", "c"}
    assert names(fleet, "ships", "--field-selector=spec.color=blue,spec.size=1") == {"b"}
    assert names(fleet, "ships", "--field-selector=spec.color!=blue") == {"a"}
    assert names(fleet, "ships", "--field-selector=spec.size=") == {"c"}
    said = fleet.fails("get", "ships", "--field-selector=spec.crew=1")
    assert said.count("field label not supported: spec.crew") == 1
    fleet("delete", "ships", "--field-selector=spec.color=blue")
    assert names(fleet, "ships") == {"a"}


def test_a_watch_by_field_sees_objects_come_and_go(fleet: Kubectl) -> None:
    fleet("create", "-f", "-", stdin=text(ship("a", size=1), ship("b", size=2)))
    watching = fleet.follow("get", "ships", "--field-selector=spec.size=2", "-w", "--output-watch-events")
    watching.until(lambda line: line.split()[:2] == ["ADDED", "b"])
    fleet("patch", "ship", "a", "--type=merge", "-p", '{"spec":{"size":2}}')
    watching.until(lambda line: line.split()[:2] == ["ADDED", "a"])
    fleet("patch", "ship", "b", "--type=merge", "-p", '{"spec":{"size":3}}')
    watching.until(lambda line: line.split()[:2] == ["DELETED", "b"])


def test_lists_and_maps_merge_as_the_schema_says(fleet: Kubectl) -> None:
    def apply(manager: str, **spec: Any) -> None:
        obj = text(ship("a", **spec))
        fleet("apply", "--server-side", f"--field-manager={manager}", "-f", "-", stdin=obj)

    apply("one", tags=["x"], holds=[{"name": "h1", "tons": 5}])
    apply("two", tags=["y"], holds=[{"name": "h2"}])
    spec = stored(fleet, "a")
    assert sorted(spec["tags"]) == ["x", "y"]
    assert {hold["name"]: hold["tons"] for hold in spec["holds"]} == {"h1": 5, "h2": 1}
    apply("one", tags=[], holds=[])
    spec = stored(fleet, "a")
    assert (spec["tags"], spec["holds"]) == (["y"], [{"name": "h2", "tons": 1}])
    apply("one", limits={"a": "1"}, order=["p"])
    for field, value in (("limits", {"b": "2"}), ("order", ["q"])):
        said = fleet.fails(
            "apply", "--server-side", "--field-manager=three", "-f", "-", stdin=text(ship("a", **{field: value}))
        )  # fmt: skip
        assert f'conflict with "one": .spec.{field}' in said


def test_the_schema_is_published_with_its_rules(fleet: Kubectl) -> None:
    assert "tons" in fleet("explain", "ship.spec.holds")
    document = json.loads(fleet("get", "--raw", f"/openapi/v3/apis/{GROUP}/v1"))
    published = document["components"]["schemas"]["com.example.fleet.v1.Ship"]["properties"]["spec"]
    assert published["x-kubernetes-validations"] == SPEC["x-kubernetes-validations"]
    assert published["properties"]["holds"]["x-kubernetes-list-map-keys"] == ["name"]
