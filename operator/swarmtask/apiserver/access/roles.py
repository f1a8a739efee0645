"""The roles that exist from the start, and who has them: ClusterRoles and ClusterRoleBindings, by name.

Called once per start by `install`, which brings them up to date: what a person has changed in one of them is set right again, so
that nobody locks himself out; own roles belong beside them.
"""

from __future__ import annotations

from typing import Any

from swarmtask.apiserver.access.bindings import RBAC
from swarmtask.apiserver.access.rules import READ, WRITE
from swarmtask.apiserver.access.users import AUTHENTICATED, MASTERS, NODES, OPERATORS
from swarmtask.apiserver.objects import ObjectService
from swarmtask.apiserver.writes import WriteOptions
from swarmtask.errors import InternalError
from swarmtask.resources.enrolment import BOOTSTRAP_GROUP, BOOTSTRAP_USER
from swarmtask.resources.meta import GROUP

ROLE_OF: dict[str, str] = {"cluster-admin": "cluster-admin", "admin": "admin", "editor": "edit", "viewer": "view"}
"""What the command line calls a role -> the ClusterRole."""
BOOTSTRAPPING = "swarmtask.io/bootstrapping"
ACCESS_GROUP = "access.swarmtask.io"
_ALL = ["*"]
_READ, _WRITE = list(READ), list(WRITE)
_AGGREGATE = "rbac.authorization.k8s.io/aggregate-to-"


def _rule(groups: list[str], resources: list[str], verbs: list[str]) -> dict[str, Any]:
    return {"apiGroups": groups, "resources": resources, "verbs": verbs}


_NOTHING_THERE = [
    _rule(
        [""], ["endpoints", "limitranges", "persistentvolumeclaims", "replicationcontrollers", "resourcequotas", "services"], _READ
    ),
    _rule(["apps"], ["daemonsets", "deployments", "replicasets", "statefulsets"], _READ),
    _rule(["autoscaling"], ["horizontalpodautoscalers"], _READ),
    _rule(["batch"], ["cronjobs", "jobs"], _READ),
    _rule(["extensions", "networking.k8s.io"], ["ingresses"], _READ),
    _rule(["policy"], ["poddisruptionbudgets"], _READ),
]
"""Kinds that are always empty here; `kubectl apply --prune` lists them (`projections.kinds`)."""
_VIEW = [
    _rule([GROUP], ["swarmtasks", "swarmtasks/status", "swarmtasks/scale", "swarmqueues", "swarmqueues/status"], _READ),
    _rule([GROUP], ["swarmtasks/log"], ["get"]),
    _rule(["", "events.k8s.io"], ["events"], _READ),
    _rule([""], ["configmaps", "serviceaccounts", "namespaces", "namespaces/status"], _READ),
    _rule([""], ["pods", "pods/status", "pods/log"], _READ),
    _rule(["metrics.k8s.io"], ["pods"], _READ),
    _rule(["coordination.k8s.io"], ["leases"], _READ),
    *_NOTHING_THERE,
]
_EDIT = [
    _rule([GROUP], ["swarmtasks", "swarmtasks/scale"], _WRITE),
    _rule([""], ["configmaps", "serviceaccounts"], _WRITE),
    _rule([""], ["secrets"], [*_READ, *_WRITE]),
    _rule([""], ["serviceaccounts/token"], ["create"]),
    _rule(["", "events.k8s.io"], ["events"], ["create", "update", "patch"]),
    _rule([""], ["pods"], ["delete", "deletecollection"]),
    _rule([""], ["pods/eviction"], ["create"]),
    _rule([""], ["pods/exec", "pods/attach"], ["get", "create"]),
    _rule(["coordination.k8s.io"], ["leases"], _WRITE),
]
_ADMIN = [
    _rule([GROUP], ["swarmqueues", "swarmqueues/scale"], _WRITE),
    _rule([GROUP], ["swarmnodes"], ["update", "patch"]),
    _rule([""], ["nodes"], ["update", "patch"]),
    _rule([RBAC], ["roles", "rolebindings"], [*_READ, *_WRITE]),
    _rule(["authorization.k8s.io"], ["localsubjectaccessreviews"], ["create"]),
]
_OPERATOR = [
    _rule([GROUP], _ALL, _ALL),
    _rule([""], ["namespaces", "configmaps", "secrets", "serviceaccounts"], _READ),
    _rule([""], ["configmaps"], _WRITE),
    _rule([""], ["nodes", "pods"], [*_READ, "patch", "update", "delete"]),
    _rule(["", "events.k8s.io"], ["events"], [*_READ, "create", "update", "patch"]),
    _rule(["coordination.k8s.io"], ["leases"], [*_READ, *_WRITE]),
    _rule(["apiextensions.k8s.io"], ["customresourcedefinitions"], _READ),
    _rule([""], ["serviceaccounts"], ["create", "impersonate"]),
    _rule([""], ["serviceaccounts/token"], ["create"]),
    _rule([ACCESS_GROUP], ["accesstokens"], [*_READ, *_WRITE]),
    {"apiGroups": [""], "resources": ["groups"], "resourceNames": [NODES, BOOTSTRAP_GROUP], "verbs": ["impersonate"]},
    {"apiGroups": [""], "resources": ["users"], "resourceNames": [BOOTSTRAP_USER], "verbs": ["impersonate"]},
    _rule(["authentication.k8s.io"], ["tokenreviews"], ["create"]),
    _rule(["authorization.k8s.io"], ["subjectaccessreviews"], ["create"]),
]
_DISCOVERY_PATHS = [
    "/api",
    "/api/*",
    "/apis",
    "/apis/*",
    "/openapi",
    "/openapi/*",
    "/version",
    "/version/",
    "/healthz",
    "/livez",
    "/readyz",
]

CLUSTER_ROLES: dict[str, list[dict[str, Any]]] = {
    "cluster-admin": [_rule(_ALL, _ALL, _ALL), {"nonResourceURLs": _ALL, "verbs": _ALL}],
    "admin": [*_VIEW, *_EDIT, *_ADMIN],
    "edit": [*_VIEW, *_EDIT],
    "view": _VIEW,
    "system:discovery": [{"nonResourceURLs": _DISCOVERY_PATHS, "verbs": ["get"]}],
    "system:basic-user": [
        _rule(["authorization.k8s.io"], ["selfsubjectaccessreviews", "selfsubjectrulesreviews"], ["create"]),
        _rule(["authentication.k8s.io"], ["selfsubjectreviews"], ["create"]),
    ],
    "system:auth-delegator": [
        _rule(["authentication.k8s.io"], ["tokenreviews"], ["create"]),
        _rule(["authorization.k8s.io"], ["subjectaccessreviews"], ["create"]),
    ],
    "system:swarmtask:node-viewer": [
        _rule([GROUP], ["swarmnodes", "swarmnodes/status"], _READ),
        _rule(["", "metrics.k8s.io"], ["nodes"], _READ),
        _rule([""], ["namespaces"], _READ),
    ],
    "system:swarmtask:node-bootstrapper": [
        _rule([GROUP], ["swarmnodes"], _READ),
        _rule([ACCESS_GROUP], ["accesstokens"], ["create"]),
        {"apiGroups": [""], "resources": ["groups"], "resourceNames": [NODES], "verbs": ["impersonate"]},
    ],
    "system:swarmtask:operator": _OPERATOR,
}  # fmt: skip
_AGGREGATED = {"admin": "admin", "edit": "edit", "view": "view"}
"""A ClusterRole labelled `rbac.authorization.k8s.io/aggregate-to-edit: "true"` adds its rules to `edit` (and so on)."""

CLUSTER_ROLE_BINDINGS: dict[str, tuple[str, str]] = {
    "cluster-admin": ("cluster-admin", MASTERS),
    "system:discovery": ("system:discovery", AUTHENTICATED),
    "system:basic-user": ("system:basic-user", AUTHENTICATED),
    "system:swarmtask:operator": ("system:swarmtask:operator", OPERATORS),
    "system:swarmtask:node-bootstrapper": ("system:swarmtask:node-bootstrapper", BOOTSTRAP_GROUP),
}
"""Name -> (ClusterRole, group)."""


def role_object(name: str) -> dict[str, Any]:
    """A default ClusterRole as it is stored."""
    role: dict[str, Any] = {
        "apiVersion": f"{RBAC}/v1", "kind": "ClusterRole",
        "metadata": {"name": name, "labels": {BOOTSTRAPPING: "rbac-defaults"}}, "rules": CLUSTER_ROLES[name],
    }  # fmt: skip
    target = _AGGREGATED.get(name)
    if target is not None:
        role["aggregationRule"] = {"clusterRoleSelectors": [{"matchLabels": {_AGGREGATE + target: "true"}}]}
    return role


def binding_object(name: str) -> dict[str, Any]:
    """A default ClusterRoleBinding as it is stored."""
    role, group = CLUSTER_ROLE_BINDINGS[name]
    return {
        "apiVersion": f"{RBAC}/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": name, "labels": {BOOTSTRAPPING: "rbac-defaults"}},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": RBAC, "kind": "Group", "name": group}],
    }  # fmt: skip


async def install(service: ObjectService) -> None:
    """Create what is missing and set right what differs."""
    for name in CLUSTER_ROLES:
        await _ensure(service, "clusterroles", role_object(name), ("rules", "aggregationRule"))
    for name in CLUSTER_ROLE_BINDINGS:
        await _ensure(service, "clusterrolebindings", binding_object(name), ("subjects",))


async def _ensure(service: ObjectService, plural: str, wanted: dict[str, Any], fields: tuple[str, ...]) -> None:
    rt = service.registry.find(RBAC, "v1", plural)
    if rt is None:
        raise InternalError(f"{plural}.{RBAC} is not served: another definition may have taken its names")
    name = wanted["metadata"]["name"]
    record = service.store.get(service.key(rt, "", name))
    if record is None:
        await service.create(rt, "", wanted, WriteOptions())
        return
    present = record.decode()
    if any(present.get(field) != wanted.get(field) for field in fields):
        for field in fields:
            present.pop(field, None)
            if field in wanted:
                present[field] = wanted[field]
        await service.replace(rt, "", name, present, WriteOptions())
