"""Discovery documents: which groups, versions and resources are served, in the plain and in the aggregated form.

Called by the routes under /api and /apis. Reads the registry, changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal

from swarmtask.apiserver.types import ResourceType, TypeRegistry

_STATUS_VERBS = ("get", "patch", "update")
_SUBRESOURCE_VERBS = {
    "finalize": ("update",), "token": ("create",), "log": ("get",), "eviction": ("create",), "exec": ("create", "get"),
}  # fmt: skip
_FOREIGN_KINDS = {
    "scale": ("autoscaling", "v1", "Scale"), "token": ("authentication.k8s.io", "v1", "TokenRequest"),
    "eviction": ("policy", "v1", "Eviction"),
}  # fmt: skip
"""Subresources that are read and written as an object of another kind."""
_VERSION = re.compile(r"v([1-9][0-9]*)(?:(alpha|beta)([1-9][0-9]*))?\Z")


def version_priority(version: str) -> tuple[int, int, int, str]:
    """Sort key that puts v2 before v1 before v1beta2 before v1alpha1 before what is no Kubernetes version.

    Source: Kubernetes documentation, "Version priority" of custom resource definitions.
    """
    match = _VERSION.match(version)
    if match is None:
        return (1, 0, 0, version)
    major, stage, minor = match.groups()
    rank = {None: 0, "beta": 1, "alpha": 2}[stage]
    return (0, rank, -int(major) * 10**9 - int(minor or 0), version)


def api_versions(address: str) -> dict[str, Any]:
    """GET /api. `address` is host:port as clients reach it."""
    return {
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    }


def group_list(registry: TypeRegistry) -> dict[str, Any]:
    """GET /apis in the plain form."""
    groups = [_group(name, versions) for name, versions in registry.groups().items() if name]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def group(registry: TypeRegistry, name: str) -> dict[str, Any] | None:
    """GET /apis/{group}; None when nothing of that group is served."""
    versions = registry.groups().get(name)
    if not name or versions is None:
        return None
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(name, versions)}


def _group(name: str, versions: Iterable[str]) -> dict[str, Any]:
    entries = [{"groupVersion": f"{name}/{item}", "version": item} for item in sorted(versions, key=version_priority)]
    return {"name": name, "versions": entries, "preferredVersion": entries[0]}


def resource_list(registry: TypeRegistry, group: str, version: str) -> dict[str, Any] | None:
    """GET of a group version (`group` empty for /api/v1); None when it is not served."""
    types = registry.in_group_version(group, version)
    if not types:
        return None
    resources = []
    for item in types:
        entry: dict[str, Any] = {
            "name": item.plural,
            "singularName": item.singular,
            "namespaced": item.namespaced,
            "kind": item.kind,
            "verbs": list(item.verbs),
        }
        if item.short_names:
            entry["shortNames"] = list(item.short_names)
        if item.categories:
            entry["categories"] = list(item.categories)
        resources.append(entry)
        for name in sorted(item.subresources):
            response = _subresource_kind(item, name)
            sub: dict[str, Any] = {
                "name": f"{item.plural}/{name}",
                "singularName": "",
                "namespaced": item.namespaced,
                "kind": response["kind"],
                "verbs": list(subresource_verbs(item, name)),
            }
            if name in _FOREIGN_KINDS:
                sub |= {"group": response["group"], "version": response["version"]}
            resources.append(sub)
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{group}/{version}" if group else version,
        "resources": resources,
    }


def subresource_verbs(item: ResourceType, name: str) -> tuple[str, ...]:
    """What can be done with a type's subresource of this name."""
    if name == "log" and item.stored:
        # Node agents append to the output of a task, and of all tasks on their node; what a pod shows of it is read only.
        return ("create", "get") if item.namespaced else ("create",)
    return _SUBRESOURCE_VERBS.get(name, _STATUS_VERBS)


def _subresource_kind(item: ResourceType, name: str) -> dict[str, str]:
    if name == "exec":
        return {"group": "", "version": "v1", "kind": "PodExecOptions"}
    if name in _FOREIGN_KINDS:
        group, version, kind = _FOREIGN_KINDS[name]
        return {"group": group, "version": version, "kind": kind}
    return {"group": item.group, "version": item.version, "kind": item.kind}


def aggregated(registry: TypeRegistry, *, core: bool, version: Literal["v2", "v2beta1"]) -> dict[str, Any]:
    """GET /api (`core`) or /apis with `as=APIGroupDiscoveryList`."""
    items = []
    for name, versions in registry.groups().items():
        if (name == "") is core:
            items.append(
                {
                    "metadata": {"name": name, "creationTimestamp": None},
                    "versions": [
                        {
                            "version": served,
                            "resources": [_discovered(item) for item in registry.in_group_version(name, served)],
                            "freshness": "Current",
                        }
                        for served in sorted(versions, key=version_priority)
                    ],
                }
            )
    return {
        "kind": "APIGroupDiscoveryList",
        "apiVersion": f"apidiscovery.k8s.io/{version}",
        "metadata": {},
        "items": items,
    }


def _discovered(item: ResourceType) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "resource": item.plural,
        "responseKind": {"group": item.group, "version": item.version, "kind": item.kind},
        "scope": "Namespaced" if item.namespaced else "Cluster",
        "singularResource": item.singular,
        "verbs": list(item.verbs),
    }
    if item.short_names:
        entry["shortNames"] = list(item.short_names)
    if item.categories:
        entry["categories"] = list(item.categories)
    if item.subresources:
        entry["subresources"] = [
            {"subresource": name, "responseKind": _subresource_kind(item, name), "verbs": list(subresource_verbs(item, name))}
            for name in sorted(item.subresources)
        ]
    return entry
