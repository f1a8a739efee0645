"""May this user do that? Masters, the node role, and the stored roles and bindings.

Called by the application for every request, by the guard, the reviews and the open streams. Reads what is committed; a change of a
role or binding counts from its commit on. Compiled roles are kept until one of them changes, so that a decision costs a few dict
look-ups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swarmtask.apiserver.access.bindings import RBAC, Grants, Policy
from swarmtask.apiserver.access.nodes import NODES, has_attempt_on, node_may, node_rules
from swarmtask.apiserver.access.rules import EVERYTHING, Attributes, Rule, missing
from swarmtask.apiserver.access.users import User
from swarmtask.apiserver.records import Change, Collection, Key
from swarmtask.apiserver.store import Store
from swarmtask.resources.meta import GROUP

ROLES: Collection = (RBAC, "roles")
CLUSTER_ROLES: Collection = (RBAC, "clusterroles")
ROLE_BINDINGS: Collection = (RBAC, "rolebindings")
CLUSTER_ROLE_BINDINGS: Collection = (RBAC, "clusterrolebindings")
_COLLECTIONS = frozenset({ROLES, CLUSTER_ROLES, ROLE_BINDINGS, CLUSTER_ROLE_BINDINGS})
_TASKS: Collection = (GROUP, "swarmtasks")


@dataclass(frozen=True, slots=True)
class Decision:
    """An answer. `reason` tells which binding allowed it; empty where nothing did."""

    allowed: bool
    reason: str = ""


_MASTER = Decision(True)
_NO = Decision(False)


class Authorizer:
    """One per server."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._policy: Policy | None = None
        self._listeners: list[Callable[[], None]] = []

    def on_commit(self, changes: Sequence[Change]) -> None:
        """A store listener: forgets what was compiled when a role or binding has changed."""
        if any(change.key.collection in _COLLECTIONS for change in changes):
            self._policy = None
            for listener in self._listeners:
                listener()

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever decisions may have changed."""
        self._listeners.append(listener)

    @property
    def policy(self) -> Policy:
        """The roles and bindings as they are committed."""
        if self._policy is None:
            self._policy = Policy(*(self._decoded(item) for item in (ROLES, CLUSTER_ROLES, ROLE_BINDINGS, CLUSTER_ROLE_BINDINGS)))
        return self._policy

    def _decoded(self, collection: Collection) -> Iterable[Mapping[str, Any]]:
        return (record.decode() for record in self._store.index.records(collection))

    def decide(self, user: User, wanted: Attributes) -> Decision:
        """May `user` do this?"""
        if user.is_master:
            return _MASTER
        node = user.node
        if node and not wanted.path and node_may(node, wanted, self._has_attempt):
            return Decision(True, "a node agent may do this for its own node")
        source = self.policy.grants(user, wanted.namespace).source_of(wanted)
        return _NO if source is None else Decision(True, source)

    def allows(self, user: User, wanted: Attributes) -> bool:
        return self.decide(user, wanted).allowed

    def rules(self, user: User, namespace: str = "") -> tuple[Rule, ...]:
        """Everything that a user may do in a namespace, as rules."""
        if user.is_master:
            return EVERYTHING
        found = self.policy.grants(user, namespace).rules
        return (*found, *node_rules(user.node)) if user.node else found

    def grants(self, user: User, namespace: str = "") -> Grants:
        return self.policy.grants(user, namespace)

    def missing(self, user: User, namespace: str, granted: Iterable[Rule]) -> list[Rule]:
        """Those of the rules that the user does not have himself in that namespace (empty: in the cluster)."""
        if user.is_master:
            return []
        return missing(self.policy.grants(user, namespace).rules, granted)

    def covers_user(self, user: User, other: User) -> bool:
        """`user` may do everything that `other` may do, wherever that is."""
        if user.is_master:
            return True
        if other.is_master or other.node:
            return False
        scopes = ("", *self.policy.namespaces_of(other))
        return not any(self.missing(user, scope, self.policy.grants(other, scope).rules) for scope in scopes)

    def swarm_node(self, name: str) -> Mapping[str, Any] | None:
        """The SwarmNode as it is stored; None: there is none, or it is being deleted."""
        record = self._store.get(Key(NODES, "", name))
        return None if record is None or record.deleting else record.decode()

    def _has_attempt(self, namespace: str, name: str, node: str) -> bool:
        record = self._store.get(Key(_TASKS, namespace, name))
        return record is not None and node.encode() in record.body and has_attempt_on(record.decode(), node)
