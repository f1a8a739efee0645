"""Admission of roles and bindings: defaults, and what may be wrong with them. Pure.

Called by `admission` through its tables of kinds. Source: Kubernetes documentation, "Using RBAC Authorization".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from swarmtask.apiserver.access.bindings import RBAC
from swarmtask.apiserver.faults import bad_value, not_allowed, required
from swarmtask.errors import Cause

_KINDS = ("User", "Group", "ServiceAccount")
ITEMS_LIMIT = 1_000
"""Rules of one role, subjects of one binding: all of them are looked through when something changes."""
Object = Mapping[str, Any]


def default_binding(obj: dict[str, Any]) -> None:
    """Fill in the API groups that Kubernetes knows by the kinds."""
    reference = obj.get("roleRef")
    if isinstance(reference, dict):
        reference.setdefault("apiGroup", RBAC)
    subjects = obj.get("subjects")
    for subject in subjects if isinstance(subjects, list) else ():
        if isinstance(subject, dict) and subject.get("kind") in ("User", "Group"):
            subject.setdefault("apiGroup", RBAC)


def role_causes(obj: Object, old: Object | None) -> list[Cause]:
    """A Role: no paths."""
    return _rule_causes(obj, paths=False)


def cluster_role_causes(obj: Object, old: Object | None) -> list[Cause]:
    return _rule_causes(obj, paths=True)


def _rule_causes(obj: Object, *, paths: bool) -> list[Cause]:
    causes = _size_causes("rules", obj)
    for position, rule in enumerate(obj.get("rules") or ()):
        at = f"rules[{position}]"
        if not rule.get("verbs"):
            causes.append(required(f"{at}.verbs", "verbs must contain at least one value"))
        if rule.get("nonResourceURLs"):
            if not paths:
                causes.append(
                    bad_value(
                        f"{at}.nonResourceURLs", rule["nonResourceURLs"], "namespaced rules cannot apply to non-resource URLs"
                    )
                )
            if rule.get("apiGroups") or rule.get("resources") or rule.get("resourceNames"):
                causes.append(
                    bad_value(
                        f"{at}.nonResourceURLs", rule["nonResourceURLs"],
                        "rules cannot apply to both regular resources and non-resource URLs",
                    )
                )  # fmt: skip
            continue
        if not rule.get("apiGroups"):
            causes.append(required(f"{at}.apiGroups", "resource rules must supply at least one api group"))
        if not rule.get("resources"):
            causes.append(required(f"{at}.resources", "resource rules must supply at least one resource"))
    return causes


def binding_causes(roles: tuple[str, ...]) -> Callable[[Object, Object | None], list[Cause]]:
    """The rule for bindings that may name roles of these kinds."""

    def causes(obj: Object, old: Object | None) -> list[Cause]:
        reference = obj.get("roleRef") or {}
        found = []
        if reference.get("apiGroup") != RBAC:
            found.append(_unsupported("roleRef.apiGroup", reference.get("apiGroup", ""), (RBAC,)))
        if reference.get("kind") not in roles:
            found.append(_unsupported("roleRef.kind", reference.get("kind", ""), roles))
        if not reference.get("name"):
            found.append(required("roleRef.name"))
        if old is not None and old.get("roleRef") != reference:
            found.append(bad_value("roleRef", reference, "cannot change roleRef"))
        found += _size_causes("subjects", obj)
        for position, subject in enumerate(obj.get("subjects") or ()):
            found += _subject_causes(f"subjects[{position}]", subject)
        return found

    return causes


def _size_causes(field: str, obj: Object) -> list[Cause]:
    count = len(obj.get(field) or ())
    if count <= ITEMS_LIMIT:
        return []
    return [Cause(field, "FieldValueTooMany", f"Too many: {count}: must have at most {ITEMS_LIMIT} items")]


def _subject_causes(at: str, subject: Object) -> list[Cause]:
    kind, group = subject.get("kind", ""), subject.get("apiGroup", "")
    causes = [] if subject.get("name") else [required(f"{at}.name")]
    if kind not in _KINDS:
        return [*causes, _unsupported(f"{at}.kind", kind, _KINDS)]
    wanted = "" if kind == "ServiceAccount" else RBAC
    if group != wanted:
        causes.append(_unsupported(f"{at}.apiGroup", group, (wanted,)))
    if kind == "ServiceAccount" and not subject.get("namespace"):
        causes.append(required(f"{at}.namespace"))
    if kind != "ServiceAccount" and subject.get("namespace"):
        causes.append(not_allowed(f"{at}.namespace", "only ServiceAccounts have a namespace"))
    return causes


def _unsupported(field: str, value: Any, supported: tuple[str, ...]) -> Cause:
    shown = ", ".join(f'"{item}"' for item in supported)
    return Cause(field, "FieldValueNotSupported", f'Unsupported value: "{value}": supported values: {shown}')
