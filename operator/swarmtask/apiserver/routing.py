"""URL paths of objects: which type, namespace, name and subresource they name, and which of them there are.

Called by the application. Knows the grammar of Kubernetes' paths and the registry, and answers nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from swarmtask.apiserver import faults
from swarmtask.apiserver.discovery import subresource_verbs
from swarmtask.apiserver.types import ResourceType, TypeRegistry
from swarmtask.errors import NotFound

SERVED_SUBRESOURCES = frozenset({"status", "finalize", "scale", "token", "log", "eviction", "exec"})


_NOT_OF_PODS = {
    "attach": "show output with `kubectl logs -f`, run a command beside the attempt's own with `kubectl exec`",
    "portforward": "an attempt's ports are not forwarded; reach it from its node, which `kubectl get pod -o wide` names",
    "proxy": "an attempt's ports are not forwarded; reach it from its node, which `kubectl get pod -o wide` names",
    "ephemeralcontainers": "an attempt has one container; run a command in it with `kubectl exec`",
    "resize": "what an attempt holds is settled when it is placed; change the SwarmTask, and the next attempt has it",
    "binding": "SwarmTask's own scheduler places attempts; spec.placement of a SwarmTask says where it may run",
}
"""Subresources that kubectl asks for, and what to do instead."""
_METHODS = {
    "list": "GET", "watch": "GET", "get": "GET", "create": "POST", "deletecollection": "DELETE", "delete": "DELETE",
    "update": "PUT", "patch": "PATCH",
}  # fmt: skip
_OF_COLLECTIONS = frozenset({"list", "watch", "create", "deletecollection"})


@dataclass(frozen=True, slots=True)
class Route:
    """A path that is served, with `{namespace}`, `{name}` and the like for what is free, and the methods it takes.

    Attributes:
        rt: the type whose objects the path names; None for documents.
    """

    path: str
    methods: frozenset[str]
    rt: ResourceType | None = None


class Target(NamedTuple):
    """What a path names.

    Attributes:
        namespace: None for cluster-scoped kinds and for "all namespaces".
        name: None for a collection.
    """

    rt: ResourceType
    namespace: str | None = None
    name: str | None = None
    subresource: str | None = None


def path_segments(scope: Mapping[str, Any]) -> list[str]:
    """The path's parts, each decoded by itself: an escaped slash is part of a name and separates nothing.

    Raises:
        NotFound: such a name; nothing can have it.
    """
    raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    segments = raw.decode("latin-1").partition("?")[0].strip("/").split("/")
    if b"%" not in raw:
        return segments
    segments = [unquote(part) for part in segments]
    if any("/" in segment for segment in segments):
        raise faults.no_such_path()
    return segments


def group_version(segments: list[str]) -> tuple[str, str, list[str]] | None:
    """(group, version, the rest) of `/api/v1/...` and `/apis/{group}/{version}/...`; None for other paths."""
    if len(segments) >= 2 and segments[0] == "api":
        return "", segments[1], segments[2:]
    if len(segments) >= 3 and segments[0] == "apis":
        return segments[1], segments[2], segments[3:]
    return None


def resolve(registry: TypeRegistry, group: str, version: str, rest: list[str]) -> Target:
    """The target of the segments after the version.

    Raises:
        NotFound: nothing of that path is served.
    """
    if not rest or "" in rest or len(rest) > 5:
        raise faults.no_such_path()
    namespace: str | None = None
    parts = rest
    if rest[0] == "namespaces" and len(rest) >= 3 and not _is_namespace_subresource(group, rest):
        namespace, parts = rest[1], rest[2:]
    rt = registry.find(group, version, parts[0])
    if rt is None or len(parts) > 3 or (namespace is not None and not rt.namespaced):
        raise faults.no_such_path()
    name = parts[1] if len(parts) > 1 else None
    subresource = parts[2] if len(parts) > 2 else None
    if name is not None and rt.namespaced and namespace is None:
        raise faults.no_such_path()
    if subresource is not None and subresource not in rt.subresources & SERVED_SUBRESOURCES:
        why = _NOT_OF_PODS.get(subresource) if (group, rt.plural) == ("", "pods") else None
        raise faults.no_such_path() if why is None else NotFound(f"pods/{subresource} is not served: {why}")
    return Target(rt, namespace, name, subresource)


def methods_of(target: Target) -> frozenset[str]:
    """What may be done with what a path names."""
    rt = target.rt
    if target.subresource is not None:
        verbs = subresource_verbs(rt, target.subresource)
        return frozenset("POST" if verb == "create" else _METHODS[verb] for verb in verbs)
    if target.name is not None:
        return frozenset(_METHODS[verb] for verb in rt.verbs if verb not in _OF_COLLECTIONS)
    reading_only = rt.namespaced and target.namespace is None
    methods = {_METHODS[verb] for verb in rt.verbs if verb in _OF_COLLECTIONS}
    return frozenset(methods & {"GET"} if reading_only else methods)


def takes(target: Target, method: str) -> bool:
    """Whether `method` is one of `methods_of(target)`; creating, which is done most, is found without a look at the others."""
    if method == "POST" and target.name is None and (target.namespace is not None or not target.rt.namespaced):
        return "create" in target.rt.verbs
    return method in methods_of(target)


def routes(registry: TypeRegistry) -> Iterator[Route]:
    """Every path of objects that `resolve` takes, from the same registry."""
    for rt in registry:
        prefix = f"/apis/{rt.group}/{rt.version}" if rt.group else f"/api/{rt.version}"
        targets = [Target(rt), Target(rt, "{namespace}")] if rt.namespaced else [Target(rt)]
        whole = targets[-1]
        targets.append(whole._replace(name="{name}"))
        targets += [whole._replace(name="{name}", subresource=name) for name in sorted(rt.subresources & SERVED_SUBRESOURCES)]
        for target in targets:
            scope = f"{prefix}/namespaces/{target.namespace}" if target.namespace else prefix
            path = "/".join(part for part in (scope, rt.plural, target.name, target.subresource) if part)
            if methods_of(target):
                yield Route(path, methods_of(target), rt)


def _is_namespace_subresource(group: str, rest: list[str]) -> bool:
    return group == "" and len(rest) == 3 and rest[2] in ("status", "finalize")
