"""Owners as ownerReferences name them: whether one exists, and where a reference can never lead to one.

Called by the collector. Reads the committed objects and the types; writes nothing.

An owner is found by its kind and name, in the namespace of the dependent where it is of a kind that has namespaces, and is the one
that is meant if it has the UID. A dependent without a namespace cannot have an owner in one: such a reference is never resolved, so
that its dependent is never collected. Nor is one of a kind that is shown and not stored (Pods, metrics): nothing tells when such an
owner goes. Source: Kubernetes documentation, "Owners and Dependents", "Garbage Collection".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swarmtask.apiserver.projections.kinds import EMPTY
from swarmtask.apiserver.projections.nodes import SWARM_NODES
from swarmtask.apiserver.records import Collection, Key, Record
from swarmtask.apiserver.store import Store
from swarmtask.apiserver.types import TypeRegistry
from swarmtask.apiserver.versions import collection_of

Reference = Mapping[str, Any]
_SHOWN_FROM: Mapping[Collection, Collection] = {("", "nodes"): SWARM_NODES}
"""Kinds that are other ones in another form, with their names and UIDs."""
_TEXT_LIMIT = 253
"""Characters of a name or UID in a message; those of references can be of any length."""


class Owners:
    """What references lead to, now.

    Args:
        unreadable: UIDs of objects that are damaged on the disk: they have not been deleted.
    """

    def __init__(self, store: Store, registry: TypeRegistry, unreadable: frozenset[str]) -> None:
        self._store, self._registry, self._unreadable = store, registry, unreadable

    def is_absent(self, reference: Reference, dependent: Record, gone: tuple[Key, str] | None = None) -> bool:
        """The owner certainly does not exist.

        Args:
            gone: key and UID of an object that has just gone. Its definition may have gone with it, and then its kind is unknown.
        """
        uid = reference["uid"]
        if uid in self._unreadable:
            return False
        rt = self._registry.find_kind(reference["apiVersion"], reference["kind"])
        shown_from = _SHOWN_FROM.get(rt.storage_key) if rt is not None else None
        if (
            rt is None or "get" not in rt.verbs or not (rt.stored or shown_from or rt.storage_key in EMPTY)
        ):  # not to be looked up; it may come back with its definition
            group = reference["apiVersion"].rpartition("/")[0]
            return gone is not None and uid == gone[1] and (group, reference["name"]) == (gone[0].collection[0], gone[0].name)
        if rt.namespaced and not dependent.key.namespace:
            return False
        collection = shown_from or collection_of(rt)
        owner = self._store.get(Key(collection, dependent.key.namespace if rt.namespaced else "", reference["name"]))
        return owner is None or owner.uid != uid

    def depends(self, dependent: Record, owner: Record, *, blocking: bool = False) -> bool:
        """A reference of the dependent leads to this owner. `blocking`: one that holds up its deletion in the foreground."""
        return any(
            reference["uid"] == owner.uid
            and not (blocking and reference.get("blockOwnerDeletion") is not True)
            and self._leads_to(reference, dependent, owner)
            for reference in dependent.decode()["metadata"].get("ownerReferences", ())
        )

    def _leads_to(self, reference: Reference, dependent: Record, owner: Record) -> bool:
        return owner.key.namespace in ("", dependent.key.namespace) and not self.is_absent(reference, dependent)

    def misplaced(self, reference: Reference, dependent: Record) -> str:
        """What is wrong with where a reference leads, for people; empty: nothing."""
        rt = self._registry.find_kind(reference["apiVersion"], reference["kind"])
        if rt is None or not rt.namespaced:
            return ""
        owner = self._store.index.by_uid(reference["uid"])
        if not dependent.key.namespace:
            outcome = "an object without a namespace cannot be owned by one in a namespace: it is never collected"
        elif owner is not None and owner.key.namespace not in ("", dependent.key.namespace):
            outcome = f"there is none in namespace {dependent.key.namespace}: it counts as gone"
        else:
            return ""
        name, uid = str(reference["name"])[:_TEXT_LIMIT], str(reference["uid"])[:_TEXT_LIMIT]
        return f"ownerReference to {rt.kind} {name} (uid {uid}): {outcome}"
