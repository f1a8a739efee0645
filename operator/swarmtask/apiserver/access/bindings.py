"""Which rules a user has: roles and bindings, compiled, and what was decided from them.

Called by the authorizer, which builds a new `Policy` when a role or a binding has changed; a policy itself never changes. Pure: it
takes the decoded objects and returns values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from swarmtask.apiserver.access.rules import Attributes, Rule
from swarmtask.apiserver.access.users import User, service_account_name

RBAC = "rbac.authorization.k8s.io"
GRANTS_LIMIT = 10_000
"""(user, namespace) pairs kept; then all are forgotten and made again as they are asked for."""
DECISIONS_LIMIT = 2_000

RoleKey = tuple[str, str]
"""(namespace, name) of a role; the namespace is empty for ClusterRoles."""
_Subject = tuple[str, str]
"""("User" | "Group", name)."""


@dataclass(frozen=True, slots=True)
class Granted:
    """One rule that somebody has, and where from.

    Attributes:
        source: for the reason of an answer, in Kubernetes' words.
    """

    rule: Rule
    source: str = field(compare=False)


@dataclass(frozen=True, slots=True)
class _Binding:
    namespace: str
    role: RoleKey
    source: str


class Grants:
    """Everything that one user may do in one namespace (or, for the empty one, in the cluster as a whole)."""

    def __init__(self, granted: tuple[Granted, ...]) -> None:
        self.granted = granted
        self._decided: dict[tuple[str, str, str], tuple[Granted, ...]] = {}

    @property
    def rules(self) -> tuple[Rule, ...]:
        return tuple(dict.fromkeys(item.rule for item in self.granted))

    def source_of(self, wanted: Attributes) -> str | None:
        """Why the request is allowed; None: it is not."""
        if wanted.path:
            return next((item.source for item in self.granted if item.rule.allows(wanted)), None)
        key = (wanted.verb, wanted.group, wanted.full_resource)
        candidates = self._decided.get(key)
        if candidates is None:
            if len(self._decided) >= DECISIONS_LIMIT:
                self._decided.clear()
            candidates = self._decided[key] = tuple(item for item in self.granted if item.rule.concerns(wanted))
        for item in candidates:
            if not item.rule.names or wanted.name in item.rule.names:
                return item.source
        return None


class Policy:
    """All roles and bindings of one moment."""

    def __init__(
        self,
        roles: Iterable[Mapping[str, Any]] = (),
        cluster_roles: Iterable[Mapping[str, Any]] = (),
        role_bindings: Iterable[Mapping[str, Any]] = (),
        cluster_role_bindings: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        self._rules: dict[RoleKey, tuple[Rule, ...]] = {}
        for role in roles:
            metadata = role["metadata"]
            self._rules[(metadata["namespace"], metadata["name"])] = _rules_of(role)
        known = list(cluster_roles)
        for role in known:
            self._rules[("", role["metadata"]["name"])] = _aggregated(role, known)
        self._bindings: dict[_Subject, dict[str, list[_Binding]]] = {}
        for binding in (*role_bindings, *cluster_role_bindings):
            self._add(binding)
        self._grants: dict[tuple[User, str], Grants] = {}

    def _add(self, obj: Mapping[str, Any]) -> None:
        metadata, reference = obj["metadata"], obj.get("roleRef") or {}
        namespace, name = metadata.get("namespace", ""), metadata["name"]
        role = (namespace if reference.get("kind") == "Role" else "", reference.get("name", ""))
        what = f'RoleBinding "{name}/{namespace}"' if namespace else f'ClusterRoleBinding "{name}"'
        for subject in obj.get("subjects") or ():
            kind, who = subject.get("kind", ""), subject.get("name", "")
            shown = f'{kind} "{who}"'
            if kind == "ServiceAccount":
                where = subject.get("namespace") or namespace
                shown = f'{kind} "{who}/{where}"'
                kind, who = "User", service_account_name(where, who)
            source = f'RBAC: allowed by {what} of {reference.get("kind")} "{role[1]}" to {shown}'
            self._bindings.setdefault((kind, who), {}).setdefault(namespace, []).append(_Binding(namespace, role, source))

    def rules_of(self, role: RoleKey) -> tuple[Rule, ...] | None:
        """The rules of a role, those that it aggregates included; None: there is no such role."""
        return self._rules.get(role)

    def grants(self, user: User, namespace: str = "") -> Grants:
        """What a user may do in a namespace: by bindings of the cluster and of the namespace."""
        key = (user, namespace)
        found = self._grants.get(key)
        if found is None:
            if len(self._grants) >= GRANTS_LIMIT:
                self._grants.clear()
            found = self._grants[key] = Grants(tuple(self._granted(user, namespace)))
        return found

    def _granted(self, user: User, namespace: str) -> Iterable[Granted]:
        subjects = [("User", user.name), *(("Group", group) for group in user.groups)]
        for scope in dict.fromkeys(("", namespace)):
            for subject in subjects:
                for binding in self._bindings.get(subject, {}).get(scope, ()):
                    for rule in self._rules.get(binding.role, ()):
                        if not scope or not rule.urls:
                            yield Granted(rule, binding.source)

    def namespaces_of(self, user: User) -> list[str]:
        """The namespaces in which the user has bindings."""
        subjects = [("User", user.name), *(("Group", group) for group in user.groups)]
        return sorted({scope for subject in subjects for scope in self._bindings.get(subject, {}) if scope})


def _rules_of(role: Mapping[str, Any]) -> tuple[Rule, ...]:
    return tuple(Rule.of(rule) for rule in role.get("rules") or ())


def _aggregated(role: Mapping[str, Any], known: list[Mapping[str, Any]]) -> tuple[Rule, ...]:
    """A role's own rules, and those of the ClusterRoles that its aggregationRule selects."""
    selectors = (role.get("aggregationRule") or {}).get("clusterRoleSelectors") or ()
    rules = list(_rules_of(role))
    for selector in selectors:
        for other in known:
            if other is not role and _selects(selector, other["metadata"].get("labels") or {}):
                rules += _rules_of(other)
    return tuple(dict.fromkeys(rules))


def _selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(_term_holds(term, labels) for term in selector.get("matchExpressions") or ())


def _term_holds(term: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value, values = labels.get(term.get("key", "")), term.get("values") or ()
    match term.get("operator"):
        case "In":
            return value is not None and value in values
        case "NotIn":
            return value is None or value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    return False
