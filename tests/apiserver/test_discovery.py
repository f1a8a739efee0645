"""Discovery documents."""

from __future__ import annotations

import pytest

from swarmtask.apiserver import discovery
from swarmtask.apiserver.builtins import builtin_types
from swarmtask.apiserver.types import ResourceType, TypeRegistry


def registry() -> TypeRegistry:
    result = TypeRegistry(builtin_types())
    for version in ("v1alpha1", "v1", "v1beta2", "v2", "v1beta10", "wild"):
        result.add(ResourceType(
            "a.io", version, "Thing", "things", "thing", namespaced=True, custom=True, short_names=("th",), categories=("all",),
            subresources=frozenset({"status", "scale"}),
        ))  # fmt: skip
    return result


def test_versions_come_in_kubernetes_order() -> None:
    group = discovery.group(registry(), "a.io")
    assert group is not None
    assert [item["version"] for item in group["versions"]] == ["v2", "v1", "v1beta10", "v1beta2", "v1alpha1", "wild"]
    assert group["preferredVersion"] == {"groupVersion": "a.io/v2", "version": "v2"}
    assert discovery.group(registry(), "b.io") is None
    assert discovery.group(registry(), "") is None


def test_the_group_list_leaves_the_core_group_out() -> None:
    document = discovery.group_list(registry())
    names = [item["name"] for item in document["groups"]]
    assert "" not in names
    assert {"a.io", "events.k8s.io", "coordination.k8s.io", "apiextensions.k8s.io"} <= set(names)
    assert discovery.api_versions("127.0.0.1:1")["versions"] == ["v1"]


def test_resources_and_their_subresources() -> None:
    document = discovery.resource_list(registry(), "a.io", "v1")
    assert document is not None
    assert document["groupVersion"] == "a.io/v1"
    assert [item["name"] for item in document["resources"]] == ["things", "things/scale", "things/status"]
    things, scale, status = document["resources"]
    assert (things["shortNames"], things["categories"], things["singularName"]) == (["th"], ["all"], "thing")
    assert (scale["kind"], scale["group"], scale["version"]) == ("Scale", "autoscaling", "v1")
    assert (status["kind"], status["verbs"]) == ("Thing", ["get", "patch", "update"])
    core = discovery.resource_list(registry(), "", "v1")
    assert core is not None
    assert core["groupVersion"] == "v1"
    assert "namespaces/finalize" in [item["name"] for item in core["resources"]]
    assert discovery.resource_list(registry(), "a.io", "v9") is None


@pytest.mark.parametrize("version", ["v2", "v2beta1"])
def test_the_aggregated_form_says_the_same(version: str) -> None:
    types = registry()
    core = discovery.aggregated(types, core=True, version=version)  # type: ignore[arg-type]
    rest = discovery.aggregated(types, core=False, version=version)  # type: ignore[arg-type]
    assert core["apiVersion"] == f"apidiscovery.k8s.io/{version}"
    assert [item["metadata"]["name"] for item in core["items"]] == [""]
    for group in [*core["items"], *rest["items"]]:
        for served in group["versions"]:
            plain = discovery.resource_list(types, group["metadata"]["name"], served["version"])
            assert plain is not None
            names = []
            for item in served["resources"]:
                names += [item["resource"], *(f"{item['resource']}/{sub['subresource']}" for sub in item.get("subresources", ()))]
            assert names == [item["name"] for item in plain["resources"]]
    things = next(item for item in rest["items"] if item["metadata"]["name"] == "a.io")["versions"][0]["resources"][0]
    assert things["responseKind"] == {"group": "a.io", "version": "v2", "kind": "Thing"}
    assert things["scope"] == "Namespaced"
