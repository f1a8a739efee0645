"""An in-memory `ObjectApi`: deterministic, recorded, and able to fail on demand.

Used by the controllers' tests and the simulator. It keeps the promises of a Kubernetes API that the operator relies on, and
passes the contract suite that the real client passes against the embedded server (`tests/kube/contract.py`): one growing
resourceVersion, generation, the split between spec and status, merge and JSON patches with preconditions, finalizers, watches
with history that can be compacted, dependents that go with their last owner (at once, whatever propagation was asked for). It
validates nothing: a broken object can be stored on purpose. What it does not know, it refuses loudly.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import jsonpatch
import orjson

from swarmtask.clock import Clock, ManualClock, format_time
from swarmtask.errors import (
    AlreadyExists,
    BadRequest,
    Conflict,
    Expired,
    Invalid,
    NotFound,
    ServiceUnavailable,
)
from swarmtask.kube import Object, ObjectList, PatchType, WatchEvent
from swarmtask.resources.kinds import LEASE, NAMESPACE, Kind
from swarmtask.resources.tenure import Tenure
from tests.fakes.selectors import matches_fields, matches_labels

T = TypeVar("T")
_WRITES = ("create", "replace", "patch", "delete")
Key = tuple[str, str, str, str]
"""(group, plural, namespace, name); the namespace of a cluster-scoped object is empty."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call that arrived."""

    verb: str
    kind: str
    namespace: str | None
    name: str
    subresource: str | None = None
    body: Any = None


@dataclass(frozen=True, slots=True)
class _Change:
    version: int
    key: Key
    old: Object | None
    new: Object | None


@dataclass(slots=True)
class _Fault:
    """Fails matching calls: the first `skip` pass, the next `times` fail. `after` = the write happens, its answer is lost."""

    verb: str
    error: Callable[[], Exception]
    kind: str | None
    name: str | None
    subresource: str | None
    skip: int
    times: int
    after: bool

    def strikes(self, call: Call) -> bool:
        wanted = (
            self.verb in (call.verb, "*")
            and self.kind in (None, call.kind)
            and self.name in (None, call.name)
            and self.subresource in (None, call.subresource or "")
        )
        if not wanted or self.times <= 0:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        return True


@dataclass(eq=False, slots=True)
class _Watcher:
    matches: Callable[[Key, Object], bool]
    kind: Kind
    queue: asyncio.Queue[WatchEvent | Exception] = field(default_factory=asyncio.Queue)


class FakeKube:
    """See the module.

    Args:
        clock: gives creation and deletion times.
        history: changes that a watch can start from; older ones are compacted.
        seed: makes UIDs differ between two fakes in one test.

    Attributes:
        calls: the newest 100,000 calls, in order.
        down: True makes every call fail with ServiceUnavailable, as a stopped server does.
        on_commit: told of every change at once, with whether the object is gone; for checkers. They look, and change nothing.
        texts: outputs of tasks, by name and number of the attempt; asked_texts: with which parameters they were asked for.
        latency_s: every call takes this long on the clock.
        deliver: hands an event to the queue of a watch; a simulator delays, repeats and breaks there.
    """

    tenure: Tenure | None = None

    def __init__(self, clock: Clock | None = None, *, history: int = 100_000, seed: int = 0) -> None:
        self.clock: Clock = clock or ManualClock()
        self.calls: deque[Call] = deque(maxlen=100_000)
        self.down = False
        self.texts: dict[tuple[str, str], bytes] = {}
        self.asked_texts: list[dict[str, str]] = []
        self.latency_s = 0.0
        self.on_commit: list[Callable[[Kind, Object, bool], None]] = []
        self.deliver: Callable[[asyncio.Queue[WatchEvent | Exception], WatchEvent], None] = asyncio.Queue.put_nowait
        self._objects: dict[Key, Object] = {}
        self._kinds: dict[Key, Kind] = {}
        self._uids: set[str] = set()
        self._dependents: dict[str, set[Key]] = {}
        self._history: deque[_Change] = deque(maxlen=history)
        self._version = 100
        self._compacted = 100
        self._uid = (seed << 64) + 1
        self._faults: list[_Fault] = []
        self._watchers: list[_Watcher] = []
        self._held: list[_Change] | None = None
        for name in ("default", "kube-system"):
            self.add(NAMESPACE, {"metadata": {"name": name}})

    # --- what a test does with it ---

    def under(self, tenure: Tenure) -> FakeKube:
        """This same server, as a client sees it that writes under a tenure."""
        return _Under(self, tenure)

    def add(self, kind: Kind, obj: Object, *, status: Mapping[str, Any] | None = None) -> Object:
        """Store an object at once, as some other client would have done; `status` is stored as well."""
        metadata = obj.get("metadata") or {}
        key = self._key(kind, metadata["name"], metadata.get("namespace"))
        new = self._prepared(kind, key, _copy(obj))
        if status is not None:
            new["status"] = _copy(dict(status))
        self._commit(kind, key, None, new)
        return _copy(new)

    def edit(self, kind: Kind, name: str, namespace: str | None, patch: Mapping[str, Any], *, status: bool = False) -> Object:
        """Merge-patch an object at once, as some other client would have done."""
        sent, subresource = _copy(dict(patch)), "status" if status else None
        return _copy(self._patch(kind, name, namespace, sent, "merge", subresource=subresource, dry_run=False))

    def remove(self, kind: Kind, name: str, namespace: str | None = None) -> None:
        """Delete an object at once, as some other client would have done (finalizers are honoured)."""
        self._delete(kind, name, namespace, None)

    def peek(self, kind: Kind, name: str, namespace: str | None = None) -> Object | None:
        """The stored object, without a recorded call."""
        obj = self._objects.get(self._key(kind, name, namespace))
        return None if obj is None else _copy(obj)

    def all(self, kind: Kind) -> list[Object]:
        """Every stored object of a kind, by key, without a recorded call."""
        return [_copy(obj) for obj in self.view(kind)]

    def view(self, kind: Kind) -> list[Object]:
        """The same without copying, for those who only look, often: what they get must not be changed."""
        prefix = (kind.group, kind.plural)
        return [self._objects[key] for key in sorted(key for key in self._objects if key[:2] == prefix)]

    def fail(
        self,
        verb: str,
        error: Callable[[], Exception] = lambda: ServiceUnavailable("the fake API was told to fail"),
        *,
        kind: Kind | None = None,
        name: str | None = None,
        subresource: str | None = None,
        skip: int = 0,
        times: int = 1,
        after: bool = False,
    ) -> None:
        """Fail calls of a verb (`get`, `list`, `watch`, `create`, `replace`, `patch`, `delete`, `*`).

        Args:
            subresource: "" means the object itself, None any.
            skip: this many matching calls pass first. times: this many fail then.
            after: the call takes effect and only its answer is lost.
        """
        self._faults.append(_Fault(verb, error, kind.kind if kind else None, name, subresource, skip, times, after))

    def hold_watches(self) -> None:
        """From now on changes are not shown to watches: every reader of a watch is stale."""
        if self._held is None:
            self._held = []

    def release_watches(self) -> None:
        """Show what was held back, in order."""
        held, self._held = self._held or [], None
        for change in held:
            self._notify(change)

    def expire_watches(self) -> None:
        """Forget the history: running watches fail with Expired, and older versions cannot be watched from any more."""
        self._compacted = self._version
        self._history.clear()
        for watcher in self._watchers:
            watcher.queue.put_nowait(Expired("too old resource version: the history was compacted"))

    # --- ObjectApi ---

    async def get(self, kind: Kind, name: str, namespace: str | None = None) -> Object:
        return await self._call(Call("get", kind.kind, namespace, name), lambda: self._get(kind, name, namespace))

    async def list(
        self, kind: Kind, namespace: str | None = None, *, label_selector: str = "", field_selector: str = ""
    ) -> ObjectList:
        matches = self._matcher(kind, namespace, label_selector, field_selector)

        def take() -> ObjectList:
            keys = sorted(key for key, obj in self._objects.items() if matches(key, obj))
            items = [_copy(self._objects[key]) for key in keys]
            return ObjectList(items, str(self._version))

        return await self._call(Call("list", kind.kind, namespace, ""), take)

    async def watch(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        resource_version: str,
        label_selector: str = "",
        field_selector: str = "",
    ) -> AsyncGenerator[WatchEvent, None]:
        watcher = _Watcher(self._matcher(kind, namespace, label_selector, field_selector), kind)
        await self._call(Call("watch", kind.kind, namespace, ""), lambda: self._begin(watcher, resource_version))
        try:
            while True:
                event = await watcher.queue.get()
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self._watchers.remove(watcher)

    async def text(
        self, kind: Kind, name: str, namespace: str | None, subresource: str, params: Mapping[str, str]
    ) -> AsyncGenerator[bytes, None]:
        """What a test has put into `texts`; anything else is not there."""
        assert subresource == "log"
        self._get(kind, name, namespace)
        self.asked_texts.append(dict(params))
        content = self.texts.get((name, params.get("attempt", "")))
        if content is None:
            raise NotFound(f"no output of {name} has come")
        yield content

    async def create(self, kind: Kind, obj: Object, namespace: str | None = None, *, dry_run: bool = False) -> Object:
        body = _copy(obj)
        metadata = body.setdefault("metadata", {})
        if kind.namespaced:
            inside = metadata.setdefault("namespace", namespace or "default")
            if namespace is not None and inside != namespace:
                raise BadRequest(
                    f"the namespace of the object ({inside}) does not match the namespace of the request ({namespace})"
                )
        call = Call("create", kind.kind, metadata.get("namespace"), metadata.get("name", ""), body=_copy(body))
        return await self._call(call, lambda: _copy(self._create(kind, body, dry_run=dry_run)))

    async def replace(self, kind: Kind, obj: Object, *, subresource: str | None = None) -> Object:
        metadata = obj["metadata"]
        name, namespace = metadata["name"], metadata.get("namespace")
        call = Call("replace", kind.kind, namespace, name, subresource, _copy(obj))

        def act() -> Object:
            if kind.model is not None and not metadata.get("resourceVersion"):
                raise Invalid("metadata.resourceVersion: must be specified for an update")
            return _copy(self._update(kind, name, namespace, _copy(obj), subresource, dry_run=False))

        return await self._call(call, act)

    async def patch(
        self,
        kind: Kind,
        name: str,
        patch: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        namespace: str | None = None,
        *,
        type_: PatchType = "merge",
        subresource: str | None = None,
        field_manager: str | None = None,
        force: bool = False,
        dry_run: bool = False,
    ) -> Object:
        sent = _copy(patch)
        call = Call("patch", kind.kind, namespace, name, subresource, sent)
        return await self._call(
            call, lambda: _copy(self._patch(kind, name, namespace, sent, type_, subresource=subresource, dry_run=dry_run))
        )

    async def delete(
        self,
        kind: Kind,
        name: str,
        namespace: str | None = None,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        propagation: Literal["Background", "Foreground", "Orphan"] | None = None,
    ) -> None:
        call = Call("delete", kind.kind, namespace, name)
        await self._call(call, lambda: self._delete(kind, name, namespace, uid, resource_version))

    async def version(self) -> Mapping[str, Any]:
        return await self._call(Call("version", "", None, ""), lambda: {"major": "1", "minor": "33", "gitVersion": "v1.33.0+fake"})

    async def aclose(self) -> None:
        """Nothing to let go of."""

    # --- inside ---

    async def _call(self, call: Call, act: Callable[[], T]) -> T:
        self.calls.append(call)
        await asyncio.sleep(0)  # a real call lets others run before it arrives and before its answer is seen
        if self.latency_s:
            await self.clock.sleep(self.latency_s)
        if self.down:
            raise ServiceUnavailable("cannot reach the fake API: it is down")
        fault = next((fault for fault in self._faults if fault.strikes(call)), None)
        if fault is not None and not fault.after:
            raise fault.error()
        if call.verb in _WRITES and self.tenure is not None:
            self._check_tenure(call, self.tenure)
        result = act()
        await asyncio.sleep(0)
        if fault is not None:
            raise fault.error()
        return result

    def _check_tenure(self, call: Call, tenure: Tenure) -> None:
        if (call.kind, call.namespace, call.name) == (LEASE.kind, tenure.namespace, tenure.name):
            return
        lease = self.peek(LEASE, tenure.name, tenure.namespace)
        if lease is None or (lease.get("spec") or {}).get("holderIdentity") != tenure.holder:
            raise Conflict(tenure.over())

    def _key(self, kind: Kind, name: str, namespace: str | None) -> Key:
        return (kind.group, kind.plural, (namespace or "default") if kind.namespaced else "", name)

    def _matcher(self, kind: Kind, namespace: str | None, labels: str, fields: str) -> Callable[[Key, Object], bool]:
        def matches(key: Key, obj: Object) -> bool:
            return (
                key[:2] == (kind.group, kind.plural)
                and (namespace is None or not kind.namespaced or key[2] == namespace)
                and matches_labels(labels, obj["metadata"].get("labels") or {})
                and matches_fields(fields, obj)
            )

        return matches

    def _find(self, kind: Kind, name: str, namespace: str | None) -> tuple[Key, Object]:
        key = self._key(kind, name, namespace)
        obj = self._objects.get(key)
        if obj is None:
            qualified = kind.crd_name if kind.group else kind.plural
            raise NotFound(f'{qualified} "{name}" not found', details={"name": name, "group": kind.group, "kind": kind.plural})
        return key, obj

    def _get(self, kind: Kind, name: str, namespace: str | None) -> Object:
        return _copy(self._find(kind, name, namespace)[1])

    def _prepared(self, kind: Kind, key: Key, new: Object) -> Object:
        """Fill in what a server fills in at creation."""
        metadata = new["metadata"]
        metadata["name"] = key[3]
        if kind.namespaced:
            metadata["namespace"] = key[2]
        metadata["uid"] = str(uuid.UUID(int=(self._uid * 0x9E3779B97F4A7C15F39CC0605CEDC835) % 2**128))
        self._uid += 1
        metadata["creationTimestamp"] = format_time(self.clock.now())
        metadata["generation"] = 1
        for name in ("resourceVersion", "deletionTimestamp"):
            metadata.pop(name, None)
        if kind.model is not None:
            new.pop("status", None)
            new.setdefault("spec", {})
        return {"apiVersion": kind.api_version, "kind": kind.kind} | new

    def _create(self, kind: Kind, new: Object, *, dry_run: bool) -> Object:
        metadata = new["metadata"]
        if metadata.get("resourceVersion"):
            raise BadRequest("resourceVersion should not be set on objects to be created")
        name = metadata.get("name")
        if not name:
            if not metadata.get("generateName"):
                raise Invalid("metadata.name: name or generateName is required")
            name = f"{metadata['generateName']}{self._uid:05x}"
        key = self._key(kind, name, metadata.get("namespace"))
        if kind.namespaced and self._key(NAMESPACE, key[2], None) not in self._objects:
            raise NotFound(f'namespaces "{key[2]}" not found')
        if key in self._objects:
            raise AlreadyExists(f'{kind.plural} "{name}" already exists')
        new = self._prepared(kind, key, new)
        return new if dry_run else self._commit(kind, key, None, new)

    def _update(
        self, kind: Kind, name: str, namespace: str | None, new: Object, subresource: str | None, *, dry_run: bool
    ) -> Object:
        key, old = self._find(kind, name, namespace)
        sent = new.get("metadata") or {}
        old_meta = old["metadata"]
        if sent.get("resourceVersion") and str(sent["resourceVersion"]) != old_meta["resourceVersion"]:
            raise Conflict(f'Operation cannot be fulfilled on {kind.plural} "{name}": the object has been modified')
        if sent.get("uid") and sent["uid"] != old_meta["uid"]:
            raise Conflict(f'Operation cannot be fulfilled on {kind.plural} "{name}": precondition failed: UID')
        if subresource == "status":
            result = old | ({"status": new["status"]} if "status" in new else {})
        elif subresource is None:
            fixed = ("name", "namespace", "uid", "creationTimestamp", "generation", "resourceVersion", "deletionTimestamp")
            metadata = sent | {field_: old_meta[field_] for field_ in fixed if field_ in old_meta}
            result = {"apiVersion": kind.api_version, "kind": kind.kind} | new | {"metadata": metadata}
            if kind.model is not None:
                result.pop("status", None)
                if "status" in old:
                    result["status"] = old["status"]
        else:
            raise NotFound(f"{kind.plural} has no subresource {subresource}")
        result = _tidy(result | {"metadata": dict(result["metadata"])})  # the rest is shared with the old version: neither changes
        if old_meta.get("deletionTimestamp") and set(_finalizers(result)) - set(_finalizers(old)):
            raise Invalid("metadata.finalizers: no new finalizers can be added if the object is being deleted")
        if result == old:
            return old
        if _essence(result) != _essence(old):
            result["metadata"]["generation"] = old_meta["generation"] + 1
        if dry_run:
            return result
        gone = bool(old_meta.get("deletionTimestamp")) and not _finalizers(result)
        return self._commit(kind, key, old, result, gone=gone)

    def _patch(
        self,
        kind: Kind,
        name: str,
        namespace: str | None,
        patch: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        type_: PatchType,
        *,
        subresource: str | None,
        dry_run: bool,
    ) -> Object:
        if type_ == "apply" and isinstance(patch, Mapping) and self._key(kind, name, namespace) not in self._objects:
            return self._create(kind, _copy(patch), dry_run=dry_run)
        _, old = self._find(kind, name, namespace)
        if type_ in ("merge", "apply") and isinstance(patch, Mapping):
            new = _merge(old, patch)
            if not (patch.get("metadata") or {}).get("resourceVersion"):
                new["metadata"] = {name: value for name, value in new["metadata"].items() if name != "resourceVersion"}
        elif type_ == "json" and not isinstance(patch, Mapping):
            try:
                new = jsonpatch.JsonPatch([dict(step) for step in patch]).apply(_copy(old))
            except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException) as error:
                raise Invalid(f"the server rejected our request due to an error in our request: {error}") from error
        else:
            raise AssertionError(f"the fake API does not know {type_} patches")
        return self._update(kind, name, namespace, new, subresource, dry_run=dry_run)

    def _delete(
        self, kind: Kind, name: str, namespace: str | None, uid: str | None = None, resource_version: str | None = None
    ) -> None:
        key, old = self._find(kind, name, namespace)
        for what, field_, wanted in (("UID", "uid", uid), ("ResourceVersion", "resourceVersion", resource_version)):
            there = old["metadata"][field_]
            if wanted is not None and wanted != there:
                raise Conflict(f"precondition failed: {what} in precondition: {wanted}, {what} in object: {there}")
        if not _finalizers(old):
            self._commit(kind, key, old, _copy(old), gone=True)
        elif not old["metadata"].get("deletionTimestamp"):
            new = _copy(old)
            new["metadata"]["deletionTimestamp"] = format_time(self.clock.now())
            new["metadata"]["generation"] = old["metadata"]["generation"] + 1
            self._commit(kind, key, old, new)

    def _commit(self, kind: Kind, key: Key, old: Object | None, new: Object, *, gone: bool = False) -> Object:
        self._version += 1
        new["metadata"]["resourceVersion"] = str(self._version)
        if gone:
            del self._objects[key]
        else:
            self._objects[key] = new
        if len(self._history) == self._history.maxlen:
            self._compacted = self._history[0].version
        # A watch shows the last state of what went away, so it travels as `old`, with the version of the deletion.
        before, after = (new, None) if gone else (old, new)
        change = _Change(self._version, key, before, after)
        self._history.append(change)
        for told in self.on_commit:
            told(kind, new, gone)
        if self._held is not None:
            self._held.append(change)
        else:
            self._notify(change)
        self._collect(kind, key, new, gone=gone)
        return new

    def _collect(self, kind: Kind, key: Key, obj: Object, *, gone: bool) -> None:
        """Whatever belongs to nobody any more is deleted, as by Kubernetes' garbage collector."""
        uid, owners = obj["metadata"]["uid"], _owners(obj)
        self._kinds[key] = kind
        for owner in owners:
            dependents = self._dependents.setdefault(owner, set())
            (dependents.discard if gone else dependents.add)(key)
        if not gone:
            self._uids.add(uid)
            doubtful = [key] if owners else []
        else:
            self._uids.discard(uid)
            doubtful = sorted(self._dependents.pop(uid, ()))
        for dependent in doubtful:
            other = self._objects.get(dependent)
            left = other is not None and not other["metadata"].get("deletionTimestamp") and _owners(other)
            if left and self._uids.isdisjoint(left):
                self._delete(self._kinds[dependent], dependent[3], dependent[2] or None, None)

    def _notify(self, change: _Change) -> None:
        for watcher in self._watchers:
            event = _event(watcher, change)
            if event is not None:
                self.deliver(watcher.queue, event)

    def _begin(self, watcher: _Watcher, resource_version: str) -> None:
        if resource_version in ("", "0"):
            for key, obj in sorted(self._objects.items()):
                if watcher.matches(key, obj):
                    watcher.queue.put_nowait(WatchEvent("ADDED", _copy(obj)))
        else:
            since = int(resource_version)
            if since < self._compacted or since > self._version:
                raise Expired(f"too old resource version: {since} ({self._compacted})")
            held = {change.version for change in self._held or ()}
            for change in self._history:
                if change.version > since and change.version not in held:
                    event = _event(watcher, change)
                    if event is not None:
                        watcher.queue.put_nowait(event)
        self._watchers.append(watcher)


class _Under(FakeKube):
    """All that is stored is the server's own; only the tenure is this client's."""

    __slots__ = ("tenure",)

    def __init__(self, server: FakeKube, tenure: Tenure) -> None:
        self.__dict__ = server.__dict__
        self.tenure = tenure


def _event(watcher: _Watcher, change: _Change) -> WatchEvent | None:
    """What a watch with selectors shows of a change: crossing the selector's edge is ADDED or DELETED."""
    before = change.old is not None and watcher.matches(change.key, change.old)
    after = change.new is not None and watcher.matches(change.key, change.new)
    if after:
        return WatchEvent("MODIFIED" if before else "ADDED", _copy(change.new))
    if before:
        last = _copy(change.old)
        last["metadata"]["resourceVersion"] = str(change.version)
        return WatchEvent("DELETED", last)
    return None


def _copy(value: Any) -> Any:
    return orjson.loads(orjson.dumps(value))


def _finalizers(obj: Object) -> list[str]:
    return list(obj["metadata"].get("finalizers") or [])


def _owners(obj: Object) -> list[str]:
    return [owner["uid"] for owner in obj["metadata"].get("ownerReferences") or ()]


def _essence(obj: Object) -> Object:
    return {name: value for name, value in obj.items() if name not in ("metadata", "status")}


def _tidy(obj: Object) -> Object:
    """Empty collections of the metadata vanish, as Kubernetes leaves them out."""
    metadata = obj["metadata"]
    for name in ("finalizers", "labels", "annotations", "ownerReferences"):
        if name in metadata and not metadata[name]:
            del metadata[name]
    return obj


def _merge(target: Any, patch: Any) -> Any:
    """RFC 7396. Changes neither; what the patch does not name is shared with the target."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merge(merged.get(name), value)
    return merged
