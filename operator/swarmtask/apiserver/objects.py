"""Create, update, patch, apply and delete one object: the steps between a decoded body and the store.

Called by the handlers, the collector and the start-up code. Each public method decides without awaiting (so that writers are
serialised against the store's head) and then waits for the commit. A create takes turns with others before it decides (`turns`).
HTTP, selectors and answers' shapes are not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
import structlog

from swarmtask.apiserver import admission, definitions, faults, schemas_since, versions
from swarmtask.apiserver import metadata as meta
from swarmtask.apiserver.access.tokens import TOKENS, check_unused
from swarmtask.apiserver.apply import record_update, server_side_apply
from swarmtask.apiserver.object_parts import (
    NAMESPACES,
    Propagation,
    changed_parts,
    holds_content,
    is_finished,
    is_same,
    keep_other_side,
    set_policy_finalizers,
    without_fields,
)
from swarmtask.apiserver.patch import apply_patch
from swarmtask.apiserver.queue_admission import QueueAdmission
from swarmtask.apiserver.records import Key, Record
from swarmtask.apiserver.scale import drop_unknown, scale_of, with_scale
from swarmtask.apiserver.sizes import check_size
from swarmtask.apiserver.store import Store
from swarmtask.apiserver.types import ResourceType, TypeRegistry
from swarmtask.apiserver.writes import DeleteOptions, WriteOptions, Written
from swarmtask.clock import Clock, format_time
from swarmtask.errors import BadRequest, Cause, Conflict, Forbidden, Invalid, NotFound, ServiceUnavailable, SwarmTaskError

log = structlog.get_logger(__name__)

PROTECTED_NAMESPACES = frozenset({"default", "kube-system", "kube-public", "kube-node-lease"})
"""Kubernetes makes the last one anew when it is deleted; here every agent would lose its Lease."""
NAME_ATTEMPTS = 8


@dataclass(slots=True)
class _Birth:
    """An object that is being made ready to be created, step by step; no step decides anything.

    Attributes:
        filled: fields of its spec that its queue filled in.
        accepted: the schema accepts it.
    """

    rt: ResourceType
    namespace: str
    obj: dict[str, Any]
    options: WriteOptions
    now: datetime
    filled: Collection[str]
    accepted: bool

    def fill(self, *, tracked: bool) -> None:
        """Defaults, and who owns what. `tracked`: managedFields are already right (server-side apply)."""
        rt, obj = self.rt, self.obj
        admission.default(rt, obj)
        if not tracked:
            said = without_fields(obj, self.filled)
            record_update(rt, None, said, manager=self.options.manager, now=self.now, subresource="", valid=self.accepted)

    def check(self) -> None:
        """Raises Invalid."""
        admission.validate(self.rt, self.obj, None, spec_changed=True, accepted=self.accepted)


class DefinitionChanged(ServiceUnavailable):
    """The definition of a kind changed while an object of it was being checked. Nothing was written: begin again."""


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

    async def _settled(self, rt: ResourceType) -> ResourceType:
        """The type as it is served now, with nothing of its definition on the way to the disk: what is decided next, without
        awaiting, gets a later version than the schemas that accept it (`ResourceType.schemas_since`).

        Raises:
            NotFound: not served any more.
        """
        if not rt.custom:
            return rt
        await self._definition_settled(rt.storage_key)
        found = self.registry.find(rt.group, rt.version, rt.plural)
        if found is None:
            raise faults.no_such_path()
        return found

    async def _definition_settled(self, collection: tuple[str, str]) -> None:
        key = definitions.key_of(collection)
        while self.store.is_pending(key):
            await self.store.durable(key)

    # --- create ----------------------------------------------------------------------------------------------------------

    async def create(self, rt: ResourceType, namespace: str, body: Any, options: WriteOptions) -> Written:
        """Raises AlreadyExists, BadRequest, Invalid, Forbidden, NotFound (namespace), TooManyRequests, InsufficientStorage,
        RequestEntityTooLarge; DefinitionChanged: the type is not what it was, and the body may have been changed in place."""
        rt = await self._settled(rt)
        obj = admission.check_header(rt, body)
        metadata = meta.check_types(rt, obj)
        if metadata.get("resourceVersion"):
            raise BadRequest("resourceVersion should not be set on objects to be created")
        self._check_namespace_field(rt, metadata, namespace)
        metadata.pop("managedFields", None)
        await self.store.turns.next()
        accepted = admission.accepts(rt, obj)
        self._tidy(rt, obj, options, accepted=accepted)
        birth = self._begin(rt, namespace, obj, options, accepted=accepted)
        await self.store.turns.next()
        birth.fill(tracked=False)
        await self.store.turns.next()
        birth.check()
        await self.store.turns.next()
        return await self._insert(birth)

    def _begin(
        self, rt: ResourceType, namespace: str, obj: dict[str, Any], options: WriteOptions, *, accepted: bool = False
    ) -> _Birth:
        """A new object from a checked body. `accepted`: the schema accepts the body as it came."""
        now = self.clock.now()
        metadata = obj["metadata"]
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = self._free_name(rt, namespace, metadata["generateName"])
            accepted = False  # a schema may restrict names
        self._admit_birth(rt, namespace, metadata.get("name", ""))
        meta.begin(rt, metadata, namespace=namespace, now=now)
        if "status" in rt.subresources and "status" in obj:
            del obj["status"]
            accepted = False
        self._kind_birth(rt, obj)
        filled = self.queues.fill_defaults(rt, namespace, obj)
        return _Birth(rt, namespace, obj, options, now, filled, accepted=not filled and accepted)

    async def _insert(self, birth: _Birth) -> Written:
        """Decide on a new, valid object, and wait until it is stored. What was true when it began may not be true any more."""
        rt, namespace, obj, options = birth.rt, birth.namespace, birth.obj, birth.options
        name = obj["metadata"]["name"]
        self._admit_birth(rt, namespace, name)
        if rt.custom and (
            self.store.is_pending(definitions.key_of(rt.storage_key))
            or self.registry.find(rt.group, rt.version, rt.plural) is not rt
        ):
            raise DefinitionChanged(f"the definition of {rt.qualified_plural} has just changed: send it again", retry_after_s=1)
        if options.guard is not None:
            options.guard.admit(rt, obj, None, None)
        if rt.plural == "customresourcedefinitions":
            definitions.admit(self.store, rt, obj, None, birth.now)
        key = self.key(rt, namespace, name)
        if self.store.head(key) is not None:
            raise faults.already_exists(rt, name)
        if rt.plural == "accesstokens" and rt.storage_key == TOKENS:
            check_unused(self.store, rt, obj)
        token = self.queues.admit(rt, namespace, obj, client=options.client, dry_run=options.dry_run)

        def fits(size: int) -> None:
            check_size(rt, obj, None, size=size, subresource=None, reserved=options.operator)

        if options.dry_run:
            body = orjson.dumps(obj)
            fits(len(body))
            return Written(body, created=True)
        try:
            record = await self.store.put(key, versions.to_storage(rt, obj), replacing=None, fits=fits)
        except SwarmTaskError:
            self.queues.give_back(token)
            raise
        return Written(versions.encoded(rt, record), created=True)

    def _admit_birth(self, rt: ResourceType, namespace: str, name: str) -> None:
        """Where it is to be, something may be created."""
        self._admit_into_namespace(rt, namespace, name)
        if rt.custom and definitions.is_terminating(self.store, rt):
            raise faults.forbidden(rt, name, "create not allowed while custom resource definition is terminating")

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
        """What the server itself puts into new objects of some kinds, or takes out of them."""
        if rt.storage_key == definitions.DEFINITIONS:
            schemas_since.carry(obj, None)
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
        """PUT; of some kinds it creates what does not exist. Raises NotFound, Conflict, BadRequest, Invalid, Forbidden,
        TooManyRequests, InsufficientStorage, RequestEntityTooLarge."""
        rt = await self._settled(rt)
        new = admission.check_header(rt, body)
        metadata = meta.check_types(rt, new)
        self._check_identity(rt, metadata, namespace, name)
        if rt.created_by_put and subresource is None and self.store.head(self.key(rt, namespace, name)) is None:
            return await self._create_by_put(rt, namespace, name, new, options)
        record = self._existing(rt, namespace, name)
        if (uid := metadata.get("uid")) and uid != record.uid:
            raise faults.precondition(rt, name, uid, record.uid)
        if not metadata.get("resourceVersion") and rt.custom:
            causes = [faults.bad_value("metadata.resourceVersion", 0, "must be specified for an update")]
            raise faults.invalid(rt, name, causes)
        self._tidy(rt, new, options)
        return await self._update(rt, record, new, options, subresource, tracked=False)

    async def _create_by_put(
        self, rt: ResourceType, namespace: str, name: str, new: dict[str, Any], options: WriteOptions
    ) -> Written:
        if options.guard is not None:
            options.guard.may_create(rt, namespace, name)
        if uid := new["metadata"].get("uid"):
            raise faults.conflict(rt, name, f"Precondition failed: UID in precondition: {uid}, and there is no object of that name")
        new["metadata"].pop("resourceVersion", None)  # Kubernetes does not ask which version of nothing was meant
        return await self.create(rt, namespace, new, options)

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
        rt = await self._settled(rt)
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
        rt = await self._settled(rt)
        record = self._existing(rt, namespace, name)
        obj = versions.decode(rt, record)
        wished = change(scale_of(rt, obj))
        options.warnings += admission.report(rt, drop_unknown(wished), options.duplicates, options.validation)
        return await self._update(rt, record, with_scale(rt, obj, wished), options, None, tracked=False, through="scale")

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
        rt = await self._settled(rt)
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
        if record is None and (uid := metadata.get("uid")):
            why = f"uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            raise faults.conflict(rt, name, why)
        if record is None and metadata.get("resourceVersion"):
            raise faults.conflict(rt, name, "it does not exist, but the applied object carries a resourceVersion")
        if record is not None:
            _check_applied_to(rt, record, metadata)
        live = versions.decode(rt, record) if record is not None else None
        now = self.clock.now()
        merged = server_side_apply(rt, live, applied, manager=options.manager, force=force, now=now, subresource=subresource or "")
        if record is None:
            birth = self._begin(rt, namespace, merged, options)
            birth.fill(tracked=True)
            birth.check()
            return await self._insert(birth)
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
        through: str = "",
    ) -> Written:
        """Store `new` over `record`.

        Args:
            tracked: managedFields are already right (server-side apply).
            through: the subresource that managedFields are to name, where the write reaches what the object itself holds.
        """
        now = self.clock.now()
        old = versions.decode(rt, record)
        metadata = new["metadata"]
        name = record.key.name
        wanted = metadata.get("resourceVersion")
        if wanted and wanted != str(record.rv):
            raise faults.conflict(rt, name)
        meta.carry_over(rt, old["metadata"], metadata)
        metadata["resourceVersion"] = str(record.rv)
        if rt.storage_key == definitions.DEFINITIONS:
            schemas_since.carry(new, old)
        if subresource is None:
            new = keep_other_side(rt, old, new, subresource)
            self.queues.give_way(rt, old, new)
            admission.default(rt, new)
        else:
            admission.default(rt, new)  # only what was sent: the other side is as it is stored
            new = keep_other_side(rt, old, new, subresource)
        changed = changed_parts(old, new)
        spec_changed = bool(changed - {"metadata", "status"})
        if rt.has_generation and spec_changed:
            new["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1
        if not tracked:
            record_update(rt, old, new, manager=options.manager, now=now, subresource=subresource or through)
        self._validate_changed(rt, new, old, changed, spec_changed)
        if options.guard is not None:
            options.guard.admit(rt, new, old, subresource)
        if rt.plural == "customresourcedefinitions":
            definitions.admit(self.store, rt, new, old, now)
        if is_finished(rt, new):
            return await self._remove(rt, record, new, options.dry_run)
        check_size(rt, new, old, size=len(orjson.dumps(new)), subresource=subresource, reserved=options.operator)
        if subresource is None:
            self.queues.admit_edit(rt, record, new)
        if options.dry_run:
            return Written(orjson.dumps(new))
        if is_same(old, new) and not versions.is_outdated(rt, record):
            await self.store.durable(record.key)
            return Written(versions.encoded(rt, record))
        if rt.storage_key == definitions.DEFINITIONS:
            schemas_since.note(new, old)
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
        rt = await self._settled(rt)
        record = self._existing(rt, namespace, name)
        check_preconditions(rt, record, options)
        if (rt.group, rt.plural) == NAMESPACES and name in PROTECTED_NAMESPACES:
            raise faults.forbidden(rt, name, "this namespace may not be deleted")
        old = versions.decode(rt, record)
        obj = versions.decode(rt, record)
        metadata = obj["metadata"]
        set_policy_finalizers(metadata, options.propagation)
        if not metadata.get("finalizers") and not holds_content(rt, obj):
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
        if is_same(old, obj):
            await self.store.durable(record.key)
            return Written(versions.encoded(rt, record))
        record = await self.store.put(record.key, versions.to_storage(rt, obj), replacing=record)
        return Written(versions.encoded(rt, record))

    # --- for the server's own controllers --------------------------------------------------------------------------------

    async def rewrite(self, key: Key, change: Callable[[dict[str, Any]], None]) -> None:
        """Change a stored object in place, without admission; removes it when nothing holds it any more. Missing: nothing.

        `change` may be called with any state of the object and must not assume that it is the one the caller saw.
        """
        await self._definition_settled(key.collection)
        record = self.store.head(key)
        if record is None:
            return
        rt = self.type_of(record)
        shown = versions.current(rt, record) if rt is not None else record.body
        obj: dict[str, Any] = orjson.loads(shown)
        change(obj)
        metadata = obj["metadata"]
        holds = key.collection == NAMESPACES and bool((obj.get("spec") or {}).get("finalizers"))
        if not metadata.get("finalizers"):
            metadata.pop("finalizers", None)
        if "deletionTimestamp" in metadata and "finalizers" not in metadata and not holds:
            await self.store.remove(key, obj, replacing=record)
        elif not is_same(orjson.loads(shown), obj):
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
        """Delete what a controller found; gone or replaced meanwhile is fine, and what may not be deleted stays."""
        rt = self.type_of(record)
        if rt is None:
            await self._delete_unserved(record, propagation)
            return
        try:
            await self.delete(rt, record.key.namespace, record.key.name, DeleteOptions(uid=record.uid, propagation=propagation))
        except (NotFound, Conflict):
            return
        except Forbidden as error:
            log.warning("not deleted", key=record.key, error=error.message)

    async def _delete_unserved(self, record: Record, propagation: Propagation | None) -> None:
        """As `delete`, for an object of a kind that is not served: nobody else could, and what it is in would wait for ever."""

        def mark(obj: dict[str, Any]) -> None:
            metadata = obj["metadata"]
            if metadata["uid"] != record.uid:
                return
            set_policy_finalizers(metadata, propagation)
            if "deletionTimestamp" not in metadata:
                metadata["deletionTimestamp"] = format_time(self.clock.now())
                metadata["deletionGracePeriodSeconds"] = 0
                metadata["generation"] = metadata.get("generation", 0) + 1

        await self.rewrite(record.key, mark)


def check_preconditions(rt: ResourceType, record: Record, options: DeleteOptions) -> None:
    """A DELETE may name the object, and the version, that it means. Raises Conflict: it is another one."""
    name, version = record.key.name, str(record.rv)
    if options.uid and options.uid != record.uid:
        raise faults.delete_precondition(rt, name, "UID", options.uid, record.uid)
    if options.resource_version and options.resource_version != version:
        raise faults.delete_precondition(rt, name, "ResourceVersion", options.resource_version, version)


def _check_applied_to(rt: ResourceType, record: Record, metadata: dict[str, Any]) -> None:
    """Who applies what he has read names the object, and the version, that he means. Raises Conflict, Invalid: another one."""
    version = metadata.get("resourceVersion")
    if version and version != str(record.rv):
        raise faults.conflict(rt, record.key.name)
    meta.check_uid(rt, record.key.name, record.uid, metadata)
