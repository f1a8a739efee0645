"""Create, update, patch, apply and delete one object: the steps between a decoded body and the store.

Called by the handlers, the collector and the start-up code. Each public method decides without awaiting (so that writers are
serialised against the store's head) and then waits for the commit. HTTP, selectors and answers' shapes are not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import orjson

from swarmtask.apiserver import admission, definitions, faults, versions
from swarmtask.apiserver import metadata as meta
from swarmtask.apiserver.apply import record_update, server_side_apply
from swarmtask.apiserver.patch import apply_patch
from swarmtask.apiserver.queue_admission import QueueAdmission
from swarmtask.apiserver.records import Key, Record
from swarmtask.apiserver.scale import scale_of, with_scale
from swarmtask.apiserver.store import Store
from swarmtask.apiserver.types import ResourceType, TypeRegistry
from swarmtask.clock import Clock, format_time
from swarmtask.errors import BadRequest, Cause, Conflict, Invalid, NotFound, SwarmTaskError

NAMESPACES = ("", "namespaces")
PROTECTED_NAMESPACES = frozenset({"default", "kube-system", "kube-public", "kube-node-lease"})
"""Kubernetes makes the last one anew when it is deleted; here every agent would lose its Lease."""
NAME_ATTEMPTS = 8
Propagation = Literal["Background", "Foreground", "Orphan"]
_POLICY_FINALIZERS: Mapping[str, str] = {"Foreground": "foregroundDeletion", "Orphan": "orphan"}


class WriteGuard(Protocol):
    """Looks at what somebody writes: may he. `access.guard` is one. Each raises Forbidden."""

    def may_create(self, rt: ResourceType, namespace: str, name: str) -> None:
        """A server-side apply is about to create."""
        ...

    def admit(self, rt: ResourceType, new: Mapping[str, Any], old: Mapping[str, Any] | None, subresource: str | None) -> None:
        """A valid object is about to be written. `old` None: created."""
        ...


@dataclass(slots=True)
class WriteOptions:
    """What came with a write.

    Attributes:
        manager: who writes, for managedFields.
        client: authenticated name of who sent it; empty for what the server itself writes.
        guard: looks at what is written; None for the server itself and for masters.
        validation: Strict, Warn or Ignore.
        duplicates: paths that the body gave twice.
        warnings: filled by the service; for the answer's headers.
    """

    manager: str = "swarmtask-apiserver"
    dry_run: bool = False
    validation: str = "Ignore"
    duplicates: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    client: str = ""
    guard: WriteGuard | None = None


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """What a DELETE asks for; `propagation` None means Background unless the object already waits for something else."""

    uid: str = ""
    resource_version: str = ""
    propagation: Propagation | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Written:
    """The outcome of a write: the object as JSON, in the version of the request.

    Attributes:
        created: it did not exist before.
        removed: it does not exist any more.
    """

    body: bytes
    created: bool = False
    removed: bool = False


class ObjectService:
    """All writes. One per server."""

    def __init__(self, store: Store, registry: TypeRegistry, clock: Clock) -> None:
        self.store = store
        self.registry = registry
        self.clock = clock
        self.queues = QueueAdmission(store, clock)

    @staticmethod
    def key(rt: ResourceType, namespace: str, name: str) -> Key:
        return Key(versions.collection_of(rt), namespace if rt.namespaced else "", name)

    # --- create ----------------------------------------------------------------------------------------------------------

    async def create(self, rt: ResourceType, namespace: str, body: Any, options: WriteOptions) -> Written:
        """Raises AlreadyExists, BadRequest, Invalid, Forbidden, NotFound (namespace), TooManyRequests, InsufficientStorage."""
        obj = admission.check_header(rt, body)
        metadata = meta.check_types(rt, obj)
        if metadata.get("resourceVersion"):
            raise BadRequest("resourceVersion should not be set on objects to be created")
        self._check_namespace_field(rt, metadata, namespace)
        metadata.pop("managedFields", None)
        accepted = admission.accepts(rt, obj)
        self._tidy(rt, obj, options, accepted=accepted)
        return await self._insert(rt, namespace, obj, options, tracked=False, accepted=accepted)

    async def _insert(
        self, rt: ResourceType, namespace: str, obj: dict[str, Any], options: WriteOptions, *, tracked: bool, accepted: bool = False
    ) -> Written:
        """Create from a checked body.

        Args:
            tracked: managedFields are already right (server-side apply).
            accepted: the schema accepts the body as it came.
        """
        now = self.clock.now()
        metadata = obj["metadata"]
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = self._free_name(rt, namespace, metadata["generateName"])
            accepted = False  # a schema may restrict names
        name = metadata.get("name", "")
        self._admit_into_namespace(rt, namespace, name)
        if rt.custom and definitions.is_terminating(self.store, rt):
            raise faults.forbidden(rt, name, "create not allowed while custom resource definition is terminating")
        meta.begin(rt, metadata, namespace=namespace, now=now)
        if "status" in rt.subresources and "status" in obj:
            del obj["status"]
            accepted = False
        self._kind_birth(rt, obj)
        filled = self.queues.fill_defaults(rt, namespace, obj)
        accepted = not filled and accepted
        admission.default(rt, obj)
        if not tracked:
            record_update(rt, None, _without(obj, filled), manager=options.manager, now=now, subresource="", valid=accepted)
        admission.validate(rt, obj, None, spec_changed=True, accepted=accepted)
        if options.guard is not None:
            options.guard.admit(rt, obj, None, None)
        if rt.plural == "customresourcedefinitions":
            definitions.admit(self.store, rt, obj, None, now)
        key = self.key(rt, namespace, name)
        if self.store.head(key) is not None:
            raise faults.already_exists(rt, name)
        token = self.queues.admit(rt, namespace, obj, client=options.client, dry_run=options.dry_run)
        if options.dry_run:
            return Written(orjson.dumps(obj), created=True)
        try:
            record = await self.store.put(key, versions.to_storage(rt, obj), replacing=None)
        except SwarmTaskError:
            self.queues.give_back(token)
            raise
        return Written(versions.encoded(rt, record), created=True)

    def _free_name(self, rt: ResourceType, namespace: str, base: str) -> str:
        for _ in range(NAME_ATTEMPTS):
            name = meta.generated_name(base)
            if self.store.head(self.key(rt, namespace, name)) is None:
                return name
        raise faults.already_exists(rt, name)

    def _admit_into_namespace(self, rt: ResourceType, namespace: str, name: str) -> None:
        if not rt.namespaced:
            return
        record = self.store.head(Key(NAMESPACES, "", namespace))
        if record is None:
            raise NotFound(f'namespaces "{namespace}" not found', details={"name": namespace, "kind": "namespaces"})
        if record.deleting:
            raise faults.forbidden(
                rt, name, f"unable to create new content in namespace {namespace} because it is being terminated",
                [Cause("metadata.namespace", "NamespaceTerminating", f"namespace {namespace} is being terminated")],
            )  # fmt: skip

    @staticmethod
    def _kind_birth(rt: ResourceType, obj: dict[str, Any]) -> None:
        """What the server itself puts into new objects of some kinds."""
        if (rt.group, rt.plural) == NAMESPACES:
            spec = obj.get("spec") or {}
            finalizers = (spec.get("finalizers") or []) if isinstance(spec, dict) else spec
            if not isinstance(finalizers, list) or not all(isinstance(name, str) for name in finalizers):
                return  # validation says so
            obj["spec"] = {"finalizers": list(dict.fromkeys([*finalizers, "kubernetes"]))}
            obj["status"] = {"phase": "Active"}

    @staticmethod
    def _check_namespace_field(rt: ResourceType, metadata: dict[str, Any], namespace: str) -> None:
        given = metadata.get("namespace")
        if rt.namespaced and given and given != namespace:
            raise BadRequest("the namespace of the provided object does not match the namespace sent on the request")

    @staticmethod
    def _tidy(rt: ResourceType, obj: dict[str, Any], options: WriteOptions, *, accepted: bool = False) -> None:
        unknown = [] if accepted else admission.drop_unknown(rt, obj)
        options.warnings += admission.report(rt, unknown, options.duplicates, options.validation)

    # --- update ----------------------------------------------------------------------------------------------------------

    async def replace(
        self, rt: ResourceType, namespace: str, name: str, body: Any, options: WriteOptions, *, subresource: str | None = None
    ) -> Written:
        """PUT. Raises NotFound, Conflict, BadRequest, Invalid, TooManyRequests, InsufficientStorage."""
        new = admission.check_header(rt, body)
        metadata = meta.check_types(rt, new)
        self._check_identity(rt, metadata, namespace, name)
        record = self._existing(rt, namespace, name)
        if not metadata.get("resourceVersion") and rt.custom:
            causes = [faults.bad_value("metadata.resourceVersion", 0, "must be specified for an update")]
            raise faults.invalid(rt, name, causes)
        self._tidy(rt, new, options)
        return await self._update(rt, record, new, options, subresource, tracked=False)

    async def patch(
        self,
        rt: ResourceType,
        namespace: str,
        name: str,
        body: bytes,
        options: WriteOptions,
        *,
        content_type: str,
        subresource: str | None = None,
    ) -> Written:
        """JSON, merge and strategic patches. Raises as `replace`, and UnsupportedMediaType."""
        record = self._existing(rt, namespace, name)
        new = apply_patch(rt, versions.decode(rt, record), content_type, body)
        admission.check_header(rt, new)
        metadata = meta.check_types(rt, new)
        self._check_identity(rt, metadata, namespace, name)
        self._tidy(rt, new, options)
        return await self._update(rt, record, new, options, subresource, tracked=False)

    async def scale(
        self, rt: ResourceType, namespace: str, name: str, options: WriteOptions, change: Callable[[dict[str, Any]], Any]
    ) -> Written:
        """Change the number of replicas: `change` turns the present Scale into the wished one. Raises as `replace`."""
        record = self._existing(rt, namespace, name)
        obj = versions.decode(rt, record)
        wished = change(scale_of(rt, obj))
        return await self._update(rt, record, with_scale(rt, obj, wished), options, None, tracked=False)

    async def apply(
        self,
        rt: ResourceType,
        namespace: str,
        name: str,
        body: Any,
        options: WriteOptions,
        *,
        force: bool,
        subresource: str | None = None,
    ) -> Written:
        """Server-side apply; creates what does not exist. Raises as `replace`; Conflict names the managers in the way."""
        applied = admission.check_header(rt, body)
        metadata = meta.check_types(rt, applied)
        self._check_identity(rt, metadata, namespace, name)
        if metadata.get("managedFields"):
            raise BadRequest("metadata.managedFields must be nil")
        self._tidy(rt, applied, options)
        record = self.store.head(self.key(rt, namespace, name))
        if record is None and subresource is not None:
            raise faults.not_found(rt, name)
        if record is None and options.guard is not None:
            options.guard.may_create(rt, namespace, name)
        if record is None and (metadata.get("uid") or metadata.get("resourceVersion")):
            raise faults.conflict(rt, name, "it does not exist, but the applied object carries a uid or a resourceVersion")
        if record is not None:
            _check_applied_to(rt, record, metadata)
        live = versions.decode(rt, record) if record is not None else None
        now = self.clock.now()
        merged = server_side_apply(rt, live, applied, manager=options.manager, force=force, now=now, subresource=subresource or "")
        if record is None:
            return await self._insert(rt, namespace, merged, options, tracked=True)
        return await self._update(rt, record, merged, options, subresource, tracked=True)

    def _existing(self, rt: ResourceType, namespace: str, name: str) -> Record:
        record = self.store.head(self.key(rt, namespace, name))
        if record is None:
            raise faults.not_found(rt, name)
        return record

    def _check_identity(self, rt: ResourceType, metadata: dict[str, Any], namespace: str, name: str) -> None:
        given = metadata.setdefault("name", name)
        if given != name:
            raise BadRequest(f"the name of the object ({given}) does not match the name on the URL ({name})")
        self._check_namespace_field(rt, metadata, namespace)

    async def _update(
        self,
        rt: ResourceType,
        record: Record,
        new: dict[str, Any],
        options: WriteOptions,
        subresource: str | None,
        *,
        tracked: bool,
    ) -> Written:
        """Store `new` over `record`. `tracked`: managedFields are already right (server-side apply)."""
        now = self.clock.now()
        old = versions.decode(rt, record)
        metadata = new["metadata"]
        name = record.key.name
        wanted = metadata.get("resourceVersion")
        if wanted and wanted != str(record.rv):
            raise faults.conflict(rt, name)
        meta.carry_over(rt, old["metadata"], metadata)
        metadata["resourceVersion"] = str(record.rv)
        new = _keep_other_side(rt, old, new, subresource)
        if subresource is None:
            self.queues.give_way(rt, old, new)
        admission.default(rt, new)
        changed = _changed_parts(old, new)
        spec_changed = bool(changed - {"metadata", "status"})
        if rt.has_generation and spec_changed:
            new["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1
        if not tracked:
            record_update(rt, old, new, manager=options.manager, now=now, subresource=subresource or "")
        self._validate_changed(rt, new, old, changed, spec_changed)
        if options.guard is not None:
            options.guard.admit(rt, new, old, subresource)
        if rt.plural == "customresourcedefinitions":
            definitions.admit(self.store, rt, new, old, now)
        if _finished(rt, new):
            return await self._remove(rt, record, new, options.dry_run)
        if subresource is None:
            self.queues.admit_edit(rt, record, new)
        if options.dry_run:
            return Written(orjson.dumps(new))
        if _same(old, new):
            await self.store.durable(record.key)
            return Written(versions.encoded(rt, record))
        record = await self.store.put(record.key, versions.to_storage(rt, new), replacing=record)
        return Written(versions.encoded(rt, record))

    @staticmethod
    def _validate_changed(
        rt: ResourceType, new: dict[str, Any], old: dict[str, Any], changed: set[str], spec_changed: bool
    ) -> None:
        """Validate, but do not hold against a writer what was stored before and is not touched by this write."""
        try:
            admission.validate(rt, new, old, spec_changed=spec_changed)
        except Invalid as error:
            touched = changed | {"metadata"}
            causes = [
                cause for cause in error.causes
                if (part := cause.field.partition(".")[0].partition("[")[0]) in touched
                or (part not in old and part not in new and changed - {"metadata"})
            ]  # fmt: skip
            if causes:
                raise faults.invalid(rt, new["metadata"]["name"], causes) from error

    async def _remove(self, rt: ResourceType, record: Record, obj: dict[str, Any], dry_run: bool) -> Written:
        if dry_run:
            return Written(orjson.dumps(obj), removed=True)
        record = await self.store.remove(record.key, versions.to_storage(rt, obj), replacing=record)
        return Written(versions.encoded(rt, record), removed=True)

    # --- delete ----------------------------------------------------------------------------------------------------------

    async def delete(self, rt: ResourceType, namespace: str, name: str, options: DeleteOptions) -> Written:
        """Begin to delete; `removed` tells whether it is already gone or waits for its finalizers.

        Raises: NotFound, Conflict (preconditions), Forbidden (namespaces that must stay), InsufficientStorage.
        """
        record = self._existing(rt, namespace, name)
        if options.uid and options.uid != record.uid:
            raise faults.precondition(rt, name, "UID", options.uid, record.uid)
        if options.resource_version and options.resource_version != str(record.rv):
            raise faults.precondition(rt, name, "ResourceVersion", options.resource_version, str(record.rv))
        if (rt.group, rt.plural) == NAMESPACES and name in PROTECTED_NAMESPACES:
            raise faults.forbidden(rt, name, "this namespace may not be deleted")
        old = versions.decode(rt, record)
        obj = versions.decode(rt, record)
        metadata = obj["metadata"]
        _set_policy_finalizers(metadata, options.propagation)
        if not metadata.get("finalizers") and not _holds_content(rt, obj):
            return await self._remove(rt, record, obj, options.dry_run)
        if "deletionTimestamp" not in metadata:
            metadata["deletionTimestamp"] = format_time(self.clock.now())
            metadata["deletionGracePeriodSeconds"] = 0
            if rt.has_generation:
                metadata["generation"] = metadata.get("generation", 0) + 1
            if (rt.group, rt.plural) == NAMESPACES:
                obj.setdefault("status", {})["phase"] = "Terminating"
            if rt.plural == "customresourcedefinitions":
                definitions.mark_terminating(obj, self.clock.now())
        if options.dry_run:
            return Written(orjson.dumps(obj))
        if _same(old, obj):
            await self.store.durable(record.key)
            return Written(versions.encoded(rt, record))
        record = await self.store.put(record.key, versions.to_storage(rt, obj), replacing=record)
        return Written(versions.encoded(rt, record))

    # --- for the server's own controllers --------------------------------------------------------------------------------

    async def rewrite(self, key: Key, change: Callable[[dict[str, Any]], None]) -> None:
        """Change a stored object in place, without admission; removes it when nothing holds it any more. Missing: nothing.

        `change` may be called with any state of the object and must not assume that it is the one the caller saw.
        """
        record = self.store.head(key)
        if record is None:
            return
        obj = record.decode()
        change(obj)
        metadata = obj["metadata"]
        holds = key.collection == NAMESPACES and bool((obj.get("spec") or {}).get("finalizers"))
        if not metadata.get("finalizers"):
            metadata.pop("finalizers", None)
        if "deletionTimestamp" in metadata and "finalizers" not in metadata and not holds:
            await self.store.remove(key, obj, replacing=record)
        elif not _same(record.decode(), obj):
            await self.store.put(key, obj, replacing=record)

    def type_of(self, record: Record) -> ResourceType | None:
        """The served type that stores into the record's collection, preferably in the version it was written in."""
        group, plural = record.key.collection
        version = record.api_version.rpartition("/")[2]
        found = self.registry.find(group, version, plural)
        if found is not None:
            return found
        return next((rt for rt in self.registry if rt.stored and versions.collection_of(rt) == record.key.collection), None)

    async def delete_record(self, record: Record, propagation: Propagation | None = None) -> None:
        """Delete what a controller found; gone or replaced meanwhile is fine."""
        rt = self.type_of(record)
        if rt is None:
            return
        try:
            await self.delete(rt, record.key.namespace, record.key.name, DeleteOptions(uid=record.uid, propagation=propagation))
        except (NotFound, Conflict):
            return


def _set_policy_finalizers(metadata: dict[str, Any], propagation: Propagation | None) -> None:
    if propagation is None:
        return
    wanted = _POLICY_FINALIZERS.get(propagation)
    finalizers = [name for name in metadata.get("finalizers", ()) if name not in _POLICY_FINALIZERS.values() or name == wanted]
    if wanted is not None and wanted not in finalizers:
        finalizers.append(wanted)
    if finalizers:
        metadata["finalizers"] = finalizers
    else:
        metadata.pop("finalizers", None)


def _check_applied_to(rt: ResourceType, record: Record, metadata: dict[str, Any]) -> None:
    """Who applies what he has read names the object, and the version, that he means. Raises Conflict: it is another one."""
    uid, version = metadata.get("uid"), metadata.get("resourceVersion")
    if uid and uid != record.uid:
        raise faults.precondition(rt, record.key.name, "UID", uid, record.uid)
    if version and version != str(record.rv):
        raise faults.conflict(rt, record.key.name)


def _keep_other_side(rt: ResourceType, old: Mapping[str, Any], new: dict[str, Any], subresource: str | None) -> dict[str, Any]:
    """The split between an object and its subresources: each write changes only its own side."""
    if subresource is None:
        if "status" in rt.subresources:
            _copy_part(old, new, "status")
        if (rt.group, rt.plural) == NAMESPACES:
            _copy_part(old, new, "spec")
        return new
    result = {**old, "metadata": dict(old["metadata"])}
    managed = new["metadata"].get("managedFields")
    if managed is not None:
        result["metadata"]["managedFields"] = managed
    _copy_part(new, result, "spec" if subresource == "finalize" else subresource)
    return result


def _copy_part(source: Mapping[str, Any], target: dict[str, Any], part: str) -> None:
    if part in source:
        target[part] = source[part]
    else:
        target.pop(part, None)


def _without(obj: dict[str, Any], fields: Collection[str]) -> dict[str, Any]:
    """The object with the same metadata, and without these fields of its spec."""
    return {**obj, "spec": {name: value for name, value in obj["spec"].items() if name not in fields}} if fields else obj


def _changed_parts(old: Mapping[str, Any], new: Mapping[str, Any]) -> set[str]:
    """Top-level fields that differ; `metadata` without what the server itself keeps there is left to `_same`."""
    return {name for name in old.keys() | new.keys() if not _equal(old.get(name), new.get(name))} - {"apiVersion", "kind"}


def _equal(left: Any, right: Any) -> bool:
    """JSON equality: 1, 1.0 and true are three values."""
    if left != right:
        return False
    return orjson.dumps(left, option=orjson.OPT_SORT_KEYS) == orjson.dumps(right, option=orjson.OPT_SORT_KEYS)


def _same(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Nothing changed but, at most, the times in managedFields."""
    if _equal(old, new):
        return True
    return _equal(_without_times(old), _without_times(new))


def _without_times(obj: Mapping[str, Any]) -> dict[str, Any]:
    metadata = dict(obj["metadata"])
    metadata["managedFields"] = [
        {name: value for name, value in entry.items() if name != "time"} for entry in metadata.get("managedFields", ())
    ]
    return {**obj, "metadata": metadata}


def _holds_content(rt: ResourceType, obj: Mapping[str, Any]) -> bool:
    return (rt.group, rt.plural) == NAMESPACES and bool((obj.get("spec") or {}).get("finalizers"))


def _finished(rt: ResourceType, obj: Mapping[str, Any]) -> bool:
    """Marked for deletion, and nothing holds it any more."""
    metadata = obj["metadata"]
    return "deletionTimestamp" in metadata and not metadata.get("finalizers") and not _holds_content(rt, obj)
