"""What the API server serves from the start, and the types that a CustomResourceDefinition adds.

Called once at start (`builtin_types`) and by the CRD controller (`types_of_crd`, `validate_crd`). Builds values; stores nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swarmtask.apiserver.access.nodes import NODES
from swarmtask.apiserver.builtin_kinds import MESSAGES
from swarmtask.apiserver.crd_rules import validate_crd
from swarmtask.apiserver.crd_shape import CRD_SCHEMA
from swarmtask.apiserver.discovery import version_priority
from swarmtask.apiserver.projections.kinds import projected_types
from swarmtask.apiserver.shapes import schema_of
from swarmtask.apiserver.types import ALL_VERBS, ResourceType, ScalePaths
from swarmtask.apiserver.waiting import TASKS
from swarmtask.resources.kinds import Column

__all__ = ["builtin_types", "types_of_crd", "validate_crd"]

_ONE_BY_ONE = tuple(verb for verb in ALL_VERBS if verb != "deletecollection")
"""Of namespaces: a delete of all would stop at the first one that must stay, with others already gone."""
AGE = Column("Age", ".metadata.creationTimestamp", "date", description="Time since the object was created.")

_EVENT_SELECTORS = (
    "involvedObject.kind", "involvedObject.namespace", "involvedObject.name", "involvedObject.uid",
    "involvedObject.apiVersion", "involvedObject.resourceVersion", "involvedObject.fieldPath",
    "reason", "reportingComponent", "source", "type",
)  # fmt: skip
_EVENTS_EVENT_SELECTORS = (
    "regarding.kind", "regarding.namespace", "regarding.name", "regarding.uid", "regarding.apiVersion",
    "regarding.resourceVersion", "regarding.fieldPath", "reason", "reportingController", "type",
)  # fmt: skip


def _type(api_version: str, kind: str, plural: str, *, namespaced: bool, **more: Any) -> ResourceType:
    group, _, version = api_version.rpartition("/")
    return ResourceType(
        group, version, kind, plural, kind.lower(), namespaced,
        list_kind=f"{kind}List", schema=schema_of(MESSAGES[api_version, kind], (group, version, kind)), **more,
    )  # fmt: skip


def builtin_types() -> list[ResourceType]:
    """Every type that is served without a CRD, in the order in which discovery names them."""
    review: dict[str, Any] = {"verbs": ("create",), "stored": False}
    authorization, authentication = "authorization.k8s.io/v1", "authentication.k8s.io/v1"
    event_columns = (
        Column("Last Seen", "@last_seen", "string", description="Time since the newest occurrence."),
        Column("Type", ".type", description="Normal or Warning."),
        Column("Reason", ".reason", description="One word for what happened."),
        Column("Object", "@event_object", description="The object that it happened to."),
        Column("Subobject", "@event_subobject", priority=1, description="The part of the object."),
        Column("Source", "@event_source", priority=1, description="Who reported it."),
        Column("Message", "@event_message", description="What happened, for people."),
        Column("First Seen", "@first_seen", priority=1, description="Time since the first occurrence."),
        Column("Count", "@event_count", "integer", 1, "Occurrences."),
        Column("Name", ".metadata.name", priority=1, description="Name of the event."),
    )
    return [
        _type("v1", "Namespace", "namespaces", namespaced=False, short_names=("ns",), has_generation=True, verbs=_ONE_BY_ONE,
              subresources=frozenset({"status", "finalize"}), field_selectors=("status.phase",),
              columns=(Column("Status", ".status.phase", description="Active or Terminating."), AGE)),
        _type("v1", "Secret", "secrets", namespaced=True, field_selectors=("type",),
              columns=(Column("Type", ".type", description="What the values are for."),
                       Column("Data", "@secret_data", "integer", description="Number of values."), AGE)),
        _type("v1", "ConfigMap", "configmaps", namespaced=True, short_names=("cm",),
              columns=(Column("Data", "@configmap_data", "integer", description="Number of values."), AGE)),
        _type("v1", "ServiceAccount", "serviceaccounts", namespaced=True, short_names=("sa",),
              subresources=frozenset({"token"}),
              columns=(Column("Secrets", "@secrets", "integer", description="Number of secrets."), AGE)),
        _type("v1", "Event", "events", namespaced=True, short_names=("ev",), field_selectors=_EVENT_SELECTORS,
              columns=event_columns, created_by_put=True),
        _type("events.k8s.io/v1", "Event", "events", namespaced=True, created_by_put=True,
              field_selectors=_EVENTS_EVENT_SELECTORS, columns=event_columns),
        _type("coordination.k8s.io/v1", "Lease", "leases", namespaced=True, created_by_put=True,
              columns=(Column("Holder", ".spec.holderIdentity", description="Who holds the lease."), AGE)),
        ResourceType(
            "apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", "customresourcedefinition",
            namespaced=False, list_kind="CustomResourceDefinitionList", short_names=("crd", "crds"),
            categories=("api-extensions",), subresources=frozenset({"status"}), schema=CRD_SCHEMA, has_generation=True,
            columns=(Column("Created At", ".metadata.creationTimestamp", "string", description="When it was created."),),
        ),
        _type(authorization, "SelfSubjectAccessReview", "selfsubjectaccessreviews", namespaced=False, **review),
        _type(authorization, "SelfSubjectRulesReview", "selfsubjectrulesreviews", namespaced=False, **review),
        _type(authorization, "SubjectAccessReview", "subjectaccessreviews", namespaced=False, **review),
        _type(authentication, "SelfSubjectReview", "selfsubjectreviews", namespaced=False, **review),
        _type(authorization, "LocalSubjectAccessReview", "localsubjectaccessreviews", namespaced=True, **review),
        _type(authentication, "TokenReview", "tokenreviews", namespaced=False, **review),
        *_access_types(review),
        *projected_types(),
    ]  # fmt: skip


def _access_types(review: Mapping[str, Any]) -> list[ResourceType]:
    """Roles, bindings and tokens."""
    rbac, access = "rbac.authorization.k8s.io/v1", "access.swarmtask.io/v1alpha1"
    created = Column("Created At", ".metadata.creationTimestamp", description="When it was created.")
    role = Column("Role", "@role_ref", description="The role that is given.")
    return [
        _type(rbac, "Role", "roles", namespaced=True, created_by_put=True, columns=(created,)),
        _type(rbac, "ClusterRole", "clusterroles", namespaced=False, created_by_put=True, columns=(created,)),
        _type(rbac, "RoleBinding", "rolebindings", namespaced=True, created_by_put=True, columns=(role, AGE)),
        _type(rbac, "ClusterRoleBinding", "clusterrolebindings", namespaced=False, created_by_put=True, columns=(role, AGE)),
        _type(access, "AccessToken", "accesstokens", namespaced=False, field_selectors=("spec.user",),
              columns=(Column("User", ".spec.user", description="Whose token it is."),
                       Column("Groups", ".spec.groups", description="Groups of the user."),
                       Column("Expires", ".spec.expirationTimestamp", description="When it ends; empty: never."), AGE)),
        _type(access, "SecretsKeyRotation", "secretskeyrotations", namespaced=False, **review),
    ]  # fmt: skip


def types_of_crd(crd: Mapping[str, Any]) -> list[ResourceType]:
    """One type per served version of a CRD that `validate_crd` accepts."""
    spec = crd["spec"]
    names = spec["names"]
    schemas = {f"{spec['group']}/{version['name']}": version["schema"]["openAPIV3Schema"] for version in spec["versions"]}
    result = []
    for version in spec["versions"]:
        if not version.get("served"):
            continue
        columns = tuple(
            Column(item["name"], item["jsonPath"], item["type"], item.get("priority", 0), item.get("description", ""))
            for item in version.get("additionalPrinterColumns") or ()
        )
        subresources = version.get("subresources") or {}
        own = ("log",) if (spec["group"], names["plural"]) in (TASKS, NODES) else ()
        result.append(ResourceType(
            spec["group"], version["name"], names["kind"], names["plural"],
            names.get("singular") or names["kind"].lower(),
            namespaced=spec["scope"] == "Namespaced",
            list_kind=names.get("listKind") or f"{names['kind']}List",
            short_names=tuple(names.get("shortNames") or ()),
            categories=tuple(names.get("categories") or ()),
            subresources=frozenset(
                (*(name for name in ("status", "scale") if subresources.get(name) is not None), *own)
            ),
            schema=schemas[f"{spec['group']}/{version['name']}"],
            schemas=schemas,
            columns=columns or (AGE,),
            custom=True,
            field_selectors=tuple(item["jsonPath"].lstrip(".") for item in version.get("selectableFields") or ()),
            has_generation=True,
            scale=_scale_paths(subresources.get("scale")),
            deprecation=_deprecation(spec, version),
        ))  # fmt: skip
    return result


def _deprecation(spec: Mapping[str, Any], version: Mapping[str, Any]) -> str:
    """The warning of a deprecated version; where the definition has none, one that names the version to use instead."""
    if not version.get("deprecated"):
        return ""
    given = version.get("deprecationWarning")
    if given:
        return str(given)
    kind, group, name = spec["names"]["kind"], spec["group"], version["name"]
    better = [
        other["name"]
        for other in spec["versions"]
        if other.get("served") and not other.get("deprecated") and version_priority(other["name"]) < version_priority(name)
    ]
    instead = f"; use {group}/{min(better, key=version_priority)} {kind}" if better else ""
    return f"{group}/{name} {kind} is deprecated{instead}"


def _scale_paths(scale: Mapping[str, Any] | None) -> ScalePaths | None:
    if scale is None:
        return None
    selector = scale.get("labelSelectorPath") or ""
    return ScalePaths(scale["specReplicasPath"].lstrip("."), scale["statusReplicasPath"].lstrip("."), selector.lstrip("."))
