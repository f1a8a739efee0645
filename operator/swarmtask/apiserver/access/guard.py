"""What may be in an object depends on who writes it: nobody grants what he does not have, nobody passes for somebody else.

Called by the object service between validation and writing (`WriteGuard` of `writes`), for everybody but masters and the server
itself. What may be written at all has been decided before, by the authorizer.

Source: Kubernetes documentation, "Using RBAC Authorization" (privilege escalation prevention), "Admission Controllers"
(OwnerReferencesPermissionEnforcement, here for objects and owners of swarmtask.io), "Using Node Authorization".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swarmtask.apiserver import faults
from swarmtask.apiserver.access import nodes
from swarmtask.apiserver.access.authorizer import Authorizer
from swarmtask.apiserver.access.bindings import RBAC
from swarmtask.apiserver.access.requests import forbidden
from swarmtask.apiserver.access.rules import EVERYTHING, Attributes, Rule
from swarmtask.apiserver.access.tokens import TOKENS, AccessTokens
from swarmtask.apiserver.access.users import User, service_account_of
from swarmtask.apiserver.schema_checks import identity
from swarmtask.apiserver.types import ResourceType, TypeRegistry
from swarmtask.clock import Clock
from swarmtask.errors import Forbidden, NotFound
from swarmtask.resources.enrolment import NODE_GROUP, NODE_USER_PREFIX
from swarmtask.resources.meta import GROUP

_SHOWN_RULES = 10
_ROLES = frozenset({"roles", "clusterroles"})
_BINDINGS = frozenset({"rolebindings", "clusterrolebindings"})
Object = Mapping[str, Any]


class Guard:
    """For one request of one user."""

    def __init__(self, user: User, authorizer: Authorizer, registry: TypeRegistry, tokens: AccessTokens, clock: Clock) -> None:
        self._user, self._authorizer, self._registry = user, authorizer, registry
        self._tokens, self._clock = tokens, clock

    def may_create(self, rt: ResourceType, namespace: str, name: str) -> None:
        """A patch (server-side apply) or a PUT is about to create. Raises Forbidden."""
        wanted = Attributes("create", rt.group, rt.plural, "", namespace, name)
        if not self._authorizer.allows(self._user, wanted):
            raise forbidden(self._user, wanted)

    def admit(self, rt: ResourceType, new: Object, old: Object | None, subresource: str | None) -> None:
        """Refuse what this user may not write into an object.

        Args:
            old: the stored object; None at create.

        Raises:
            Forbidden: says what, and what it would take. NotFound: a binding to a role that does not exist.
        """
        if self._user.node:
            self._check_node(rt, new, old, subresource)
        self._check_owners(rt, new, old)
        if rt.group == RBAC:
            if rt.plural in _ROLES:
                self._check_role(rt, new, old)
            elif rt.plural in _BINDINGS:
                self._check_binding(rt, new, old)
        elif rt.storage_key == TOKENS:
            self._check_token(rt, new, old)

    # --- nodes -----------------------------------------------------------------------------------------------------------

    def _check_node(self, rt: ResourceType, new: Object, old: Object | None, subresource: str | None) -> None:
        node, problem = self._user.node, ""
        if rt.storage_key == (nodes.LEASES, "leases"):
            problem = nodes.lease_problem(node, new, old)
        elif rt.storage_key == nodes.NODES and old is not None:
            problem = nodes.node_status_problem(new, old)
        if problem:
            raise faults.forbidden(rt, new["metadata"].get("name", ""), problem)

    # --- owners ----------------------------------------------------------------------------------------------------------

    def _check_owners(self, rt: ResourceType, new: Object, old: Object | None) -> None:
        """Who makes an object the controlled part of a task passes for the operator: members of arrays skip their queue's."""
        metadata = new["metadata"]
        before = ((old or {}).get("metadata") or {}).get("ownerReferences") or []
        after = metadata.get("ownerReferences") or []
        if before == after:
            return
        name, namespace = metadata.get("name", ""), metadata.get("namespace", "")
        if old is not None and rt.group == GROUP:
            # An owner that does not exist has the object removed: that is a deletion.
            wanted = Attributes("delete", rt.group, rt.plural, "", namespace, name)
            if not self._authorizer.allows(self._user, wanted):
                raise faults.forbidden(rt, name, "cannot set an ownerRef on a resource you can't delete")
        known = {identity(reference) for reference in before}
        new_ones = [one for one in after if (one.get("controller") or one.get("blockOwnerDeletion")) and identity(one) not in known]
        for reference in new_ones:
            self._check_owner(rt, name, namespace, reference)

    def _check_owner(self, rt: ResourceType, name: str, namespace: str, reference: Object) -> None:
        # Split as those do who look for members of arrays: what they take for a task, this must too.
        group, _, version = str(reference.get("apiVersion", "")).partition("/")
        if group != GROUP:
            return
        owner = self._registry.find_kind(reference["apiVersion"], str(reference.get("kind", "")))
        plural = owner.plural if owner is not None else str(reference.get("kind", "")).lower() + "s"
        scope = namespace if owner is None or owner.namespaced else ""
        wanted = Attributes("update", group, plural, "finalizers", scope, str(reference.get("name", "")))
        if not self._authorizer.allows(self._user, wanted):
            raise faults.forbidden(
                rt, name,
                "cannot set controller or blockOwnerDeletion of an ownerReference to a resource you can't set finalizers on: that "
                f"needs the verb update on {plural}/finalizers in API group {group} (version {version})",
            )  # fmt: skip

    # --- roles and bindings ----------------------------------------------------------------------------------------------

    def _check_role(self, rt: ResourceType, new: Object, old: Object | None) -> None:
        if old is not None and all(new.get(part) == old.get(part) for part in ("rules", "aggregationRule")):
            return
        metadata = new["metadata"]
        name, namespace = metadata.get("name", ""), metadata.get("namespace", "")
        if self._authorizer.allows(self._user, Attributes("escalate", RBAC, rt.plural, "", namespace, name)):
            return
        granted = [Rule.of(rule) for rule in new.get("rules") or ()]
        if new.get("aggregationRule"):
            granted += EVERYTHING  # it grows with whatever others write
        self._check_grant(rt, name, namespace, granted)

    def _check_binding(self, rt: ResourceType, new: Object, old: Object | None) -> None:
        if old is not None and all(new.get(part) == old.get(part) for part in ("subjects", "roleRef")):
            return
        metadata, reference = new["metadata"], new["roleRef"]
        name, namespace = metadata.get("name", ""), metadata.get("namespace", "")
        plural = "roles" if reference["kind"] == "Role" else "clusterroles"
        scope = namespace if reference["kind"] == "Role" else ""
        if self._authorizer.allows(self._user, Attributes("bind", RBAC, plural, "", namespace, reference["name"])):
            return
        rules = self._authorizer.policy.rules_of((scope, reference["name"]))
        if rules is None:
            raise NotFound(
                f'{plural}.{RBAC} "{reference["name"]}" not found',
                details={"name": reference["name"], "group": RBAC, "kind": plural},
            )
        self._check_grant(rt, name, namespace, [rule for rule in rules if not (namespace and rule.urls)])

    def _check_grant(self, rt: ResourceType, name: str, namespace: str, granted: list[Rule]) -> None:
        lacking = self._authorizer.missing(self._user, namespace, granted)
        if not lacking:
            return
        shown = "\n".join(rule.describe() for rule in lacking[:_SHOWN_RULES])
        more = f"\nand {len(lacking) - _SHOWN_RULES} more" if len(lacking) > _SHOWN_RULES else ""
        raise faults.forbidden(
            rt, name, f"{self._who()} is attempting to grant RBAC permissions not currently held:\n{shown}{more}"
        )

    def _who(self) -> str:
        groups = " ".join(f'"{group}"' for group in self._user.groups)
        return f'user "{self._user.name}" (groups=[{groups}])'

    # --- tokens ----------------------------------------------------------------------------------------------------------

    def _check_token(self, rt: ResourceType, new: Object, old: Object | None) -> None:
        """Who makes a token can act as its user: that takes the right to impersonate him."""
        spec = new["spec"]
        if old is not None and spec == old.get("spec"):
            return
        name, user = new["metadata"].get("name", ""), spec.get("user", "")
        if service_account_of(user) is not None:
            raise faults.forbidden(rt, name, "a ServiceAccount's tokens are made by `kubectl create token`")
        groups = spec.get("groups") or ()
        agent = user.startswith(NODE_USER_PREFIX) and tuple(groups) == (NODE_GROUP,)
        asked = [("groups", NODE_GROUP)] if agent else [("users", user), *(("groups", group) for group in groups)]
        for resource, who in asked:
            if not self._authorizer.allows(self._user, Attributes("impersonate", resource=resource, name=who)):
                raise faults.forbidden(rt, name, f"{self._who()} may not make a token that acts as {resource[:-1]} {who!r}: {_HOW}")
        if agent:
            self._check_node_token(rt, new)

    def _check_node_token(self, rt: ResourceType, new: Object) -> None:
        """A token of a node, from somebody who may make those of all but act as none: with the credential that agents share."""
        user = new["spec"]["user"]
        if self._authorizer.allows(self._user, Attributes("impersonate", resource="users", name=user)):
            return
        node, now = self._authorizer.swarm_node(user.removeprefix(NODE_USER_PREFIX)), self._clock.now()
        problem = nodes.token_problem(new, node, now, self._tokens.living(user, now))
        if problem:
            raise faults.forbidden(rt, new["metadata"].get("name", ""), f"a token of {user}: {problem}")


_HOW = "that needs the verb impersonate on it"


def check_account_token(authorizer: Authorizer, user: User, account: User) -> None:
    """A token of a ServiceAccount acts as it: who asks for one must be allowed to impersonate it, or hold all that it may do.

    Raises:
        Forbidden: he is and does not.
    """
    found = service_account_of(account.name)
    namespace, name = found or ("", "")
    wanted = Attributes("impersonate", resource="serviceaccounts", namespace=namespace, name=name)
    if authorizer.allows(user, wanted) or authorizer.covers_user(user, account):
        return
    raise Forbidden(
        f'serviceaccounts "{name}" is forbidden: user "{user.name}" may not ask for a token of a ServiceAccount that may do more '
        f'than he may: that needs the verb impersonate on serviceaccounts in the namespace "{namespace}"',
        details={"name": name, "kind": "serviceaccounts"},
    )  # fmt: skip
