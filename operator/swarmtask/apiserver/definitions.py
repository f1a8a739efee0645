"""The life of CustomResourceDefinitions: conditions, accepted names, stored versions, and the types they bring.

Called by the object service (`admit`, `mark_terminating`, `is_terminating`) before a definition is stored, and by the store after
commits (`DefinitionTypes.on_commit`), which keeps the registry equal to what is on disk. Names are accepted and the definition is
Established in the same write that creates it: what `kubectl apply` has acknowledged is served.

Source: Kubernetes documentation, "CustomResourceDefinition"; apiextensions.k8s.io/v1 reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from typing import Any

import structlog

from swarmtask.apiserver import schemas_since
from swarmtask.apiserver.builtins import builtin_types, types_of_crd, validate_crd
from swarmtask.apiserver.faults import bad_value, invalid
from swarmtask.apiserver.records import Change, Collection, Key, Record
from swarmtask.apiserver.store import Store
from swarmtask.apiserver.types import ResourceType, TypeRegistry
from swarmtask.clock import format_time
from swarmtask.errors import Cause

log = structlog.get_logger(__name__)

DEFINITIONS = ("apiextensions.k8s.io", "customresourcedefinitions")
KEYS_KEPT = 1024
"""Of definitions; every write of an object asks for its own several times."""
CLEANUP_FINALIZER = "customresourcecleanup.apiextensions.k8s.io"
_VERDICT = ("conditions", "acceptedNames")
_NAME_FIELDS = ("plural", "singular", "shortNames", "kind", "listKind")


def admit(store: Store, rt: ResourceType, crd: dict[str, Any], old: Mapping[str, Any] | None, now: datetime) -> None:
    """Validate a definition and bring its status up to date, in place.

    Raises:
        Invalid: with every cause.
    """
    terminating = "deletionTimestamp" in crd["metadata"]
    if old is None or not terminating or old["spec"] != crd["spec"]:  # one that goes away can always lose its finalizers
        causes = list(validate_crd(crd))
        if old is not None:
            causes += _immutable_causes(old, crd)
        if causes:
            raise invalid(rt, crd["metadata"].get("name", ""), causes)
    if old is None:
        finalizers = crd["metadata"].setdefault("finalizers", [])
        if CLEANUP_FINALIZER not in finalizers:
            finalizers.append(CLEANUP_FINALIZER)
    _keep_verdict(crd, old)
    _bring_status(store, crd, now)
    if terminating:
        mark_terminating(crd, now)


@lru_cache(maxsize=KEYS_KEPT)
def key_of(collection: Collection) -> Key:
    """Of the definition of a custom kind that is stored there."""
    group, plural = collection
    return Key(DEFINITIONS, "", f"{plural}.{group}")


def collection_of(record: Record) -> Collection:
    """Where the objects of a definition are stored. From its name, which is PLURAL.GROUP and cannot change."""
    plural, _, group = record.key.name.partition(".")
    return group, plural


def _immutable_causes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Cause]:
    causes = []
    for path in ("group", "scope"):
        if old["spec"].get(path) != new["spec"].get(path):
            causes.append(bad_value(f"spec.{path}", new["spec"].get(path), "field is immutable"))
    for path in ("plural", "kind"):
        if old["spec"]["names"].get(path) != new["spec"]["names"].get(path):
            causes.append(bad_value(f"spec.names.{path}", new["spec"]["names"].get(path), "field is immutable"))
    if old["spec"] == new["spec"]:  # whoever may write the status can say what he likes there, and mend it
        return causes
    present = {version["name"] for version in new["spec"]["versions"]}
    for position, name in enumerate((old.get("status") or {}).get("storedVersions", ())):
        if name not in present:
            why = "must appear in spec.versions: objects may still be stored in it"
            causes.append(bad_value(f"status.storedVersions[{position}]", name, why))
    return causes


def _keep_verdict(crd: dict[str, Any], old: Mapping[str, Any] | None) -> None:
    """Whether its names are accepted, and it is served, is for the server to say, not for who may write the status."""
    before = (old or {}).get("status") or {}
    status = {name: value for name, value in (crd.get("status") or {}).items() if name not in _VERDICT}
    crd["status"] = status | {name: before[name] for name in _VERDICT if name in before}


def _bring_status(store: Store, crd: dict[str, Any], now: datetime) -> None:
    spec = crd["spec"]
    status = crd["status"] = dict(crd.get("status") or {})
    reason, message = _name_conflict(store, crd)
    moment = format_time(now)
    if not reason:
        status["acceptedNames"] = {name: spec["names"][name] for name in (*_NAME_FIELDS, "categories") if spec["names"].get(name)}
        _set_condition(status, "NamesAccepted", "True", "NoConflicts", message="no conflicts found", moment=moment)
        _set_condition(
            status, "Established", "True", "InitialNamesAccepted", message="the initial names have been accepted", moment=moment
        )
    else:
        status.setdefault("acceptedNames", {"plural": "", "kind": ""})
        _set_condition(status, "NamesAccepted", "False", reason, message=message, moment=moment)
        if not is_established(crd):
            _set_condition(status, "Established", "False", "NotAccepted", message="not all names are accepted", moment=moment)
    stored = list(status.get("storedVersions", ()))
    storage = next(version["name"] for version in spec["versions"] if version.get("storage"))
    if storage not in stored:
        stored.append(storage)
    status["storedVersions"] = stored


def _set_condition(status: dict[str, Any], type_: str, value: str, reason: str, *, message: str, moment: str) -> None:
    conditions = [dict(condition) for condition in status.get("conditions", ())]
    condition = next((one for one in conditions if one.get("type") == type_), None)
    if condition is None:
        condition = {"type": type_}
        conditions.append(condition)
    if condition.get("status") != value:
        condition["lastTransitionTime"] = moment
    condition.update(status=value, reason=reason, message=message)
    status["conditions"] = conditions


def _name_conflict(store: Store, crd: Mapping[str, Any]) -> tuple[str, str]:
    """(reason, message) of the first name that another type of the group has; two empty strings when there is none."""
    group, names = crd["spec"]["group"], crd["spec"]["names"]
    taken_resources: set[str] = set()
    taken_kinds: set[str] = set()
    for other in _accepted_names(store, group, crd["metadata"]["name"]):
        taken_resources |= {other.get("plural", ""), other.get("singular", ""), *other.get("shortNames", ())}
        taken_kinds |= {other.get("kind", ""), other.get("listKind", "")}
    checks: list[tuple[str, str, set[str]]] = [
        ("Plural", names["plural"], taken_resources),
        ("Singular", names.get("singular", ""), taken_resources),
        *(("ShortNames", name, taken_resources) for name in names.get("shortNames", ())),
        ("Kind", names["kind"], taken_kinds),
        ("ListKind", names.get("listKind", ""), taken_kinds),
    ]
    for what, name, taken in checks:
        if name and name in taken:
            return f"{what}Conflict", f'"{name}" is already in use'
    return "", ""


def _accepted_names(store: Store, group: str, but: str) -> Iterator[Mapping[str, Any]]:
    """Names that are in use in a group: of built-in types and of the definitions that came first."""
    for rt in builtin_types():
        if rt.group == group:
            yield {
                "plural": rt.plural,
                "singular": rt.singular,
                "shortNames": rt.short_names,
                "kind": rt.kind,
                "listKind": rt.list_kind,
            }
    for record in heads(store):
        if record.key.name != but:
            other = record.decode()
            if other["spec"]["group"] == group and is_established(other):
                yield other["status"].get("acceptedNames", {})


def heads(store: Store) -> list[Record]:
    """All definitions as the next write finds them."""
    return store.heads(DEFINITIONS)


def is_established(crd: Mapping[str, Any]) -> bool:
    """Its types are served."""
    return any(
        condition.get("type") == "Established" and condition.get("status") == "True"
        for condition in (crd.get("status") or {}).get("conditions", ())
    )


def mark_terminating(crd: dict[str, Any], now: datetime) -> None:
    """Say in the status that its objects are being deleted."""
    status = crd.setdefault("status", {})
    _set_condition(
        status,
        "Terminating",
        "True",
        "InstanceDeletionPending",
        message="CustomResourceDefinition marked for deletion",
        moment=format_time(now),
    )


def is_terminating(store: Store, rt: ResourceType) -> bool:
    """The definition of a custom type is being deleted: nothing new may be created."""
    record = store.head(key_of(rt.storage_key))
    return record is None or record.deleting


def retry_refused(store: Store, crd: dict[str, Any], now: datetime) -> None:
    """Try again to accept the names of a definition, because another one has gone. In place."""
    if "deletionTimestamp" not in crd["metadata"]:
        _bring_status(store, crd, now)


class DefinitionTypes:
    """Keeps the registry equal to the committed definitions.

    Args:
        changed: called with the collection of a type that is served otherwise than before, or not any more.
    """

    def __init__(self, store: Store, registry: TypeRegistry, changed: Callable[[Collection], None]) -> None:
        self._store = store
        self._registry = registry
        self._changed = changed

    def load(self) -> None:
        """Serve what is stored; once, at start."""
        for record in self._store.index.records(DEFINITIONS):
            self._serve(record)

    def on_commit(self, changes: Sequence[Change]) -> None:
        """A store listener."""
        for change in changes:
            if change.key.collection != DEFINITIONS:
                continue
            if change.type == "DELETED":
                self._stop_serving(change.record)
            elif change.previous is None or _matters(change.previous.decode(), change.record.decode()):
                self._serve(change.record)

    def _serve(self, record: Record) -> None:
        crd = record.decode()
        if not is_established(crd):
            return
        types = types_of_crd(crd)
        served = {rt.version for rt in types}
        collection = collection_of(record)
        before = [rt for rt in self._registry if rt.custom and rt.storage_key == collection]
        if any(rt.version not in served for rt in before):
            self._registry.remove(*collection)
        since = schemas_since.since(crd)
        for rt in types:
            self._registry.add(_with_schemas(rt, since, before))
        if before:
            self._changed(collection)
        log.info("custom type served", name=record.key.name, versions=sorted(served))

    def _stop_serving(self, record: Record) -> None:
        if is_established(record.decode()):
            self._registry.remove(*collection_of(record))
            self._changed(collection_of(record))
            log.info("custom type no longer served", name=record.key.name)


def _with_schemas(rt: ResourceType, since: int, before: Sequence[ResourceType]) -> ResourceType:
    """The type with the schemas that are served already, where they have not changed: objects that they accepted stay accepted."""
    same = next((old for old in before if old.schemas == rt.schemas), None)
    if same is None:
        return replace(rt, schemas_since=since)
    return replace(rt, schemas_since=same.schemas_since, schemas=same.schemas, schema=same.schemas[rt.api_version])


def _matters(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return bool(old["spec"] != new["spec"]) or is_established(old) != is_established(new)
