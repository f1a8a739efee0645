"""One stored object, several versions in which it is served.

Called by the object service and by whoever answers with stored bodies. Custom kinds convert by changing `apiVersion` alone (the
strategy None of CustomResourceDefinitions); Events are stored in their core/v1 form and also served as events.k8s.io/v1, whose
fields have other names.

An object of a custom kind is shown as today's schema of the version in which it is stored has it: fields that the schema does not
name are dropped, and its defaults are filled in. Nothing is written for that; the next write of the object keeps it. Records that
were written after the last change of their definition's schemas are answered from their bytes; what others show is kept with them.
Source: Kubernetes documentation, "Extend the Kubernetes API with CustomResourceDefinitions", "Field pruning" and "Defaulting".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from swarmtask.apiserver import records
from swarmtask.apiserver.records import Collection, Record
from swarmtask.apiserver.schema import compiled
from swarmtask.apiserver.types import ResourceType

EVENTS: Collection = ("", "events")
_OTHER_EVENTS: Collection = ("events.k8s.io", "events")
_RENAMED = (
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
)
"""(core/v1, events.k8s.io/v1). Source: Kubernetes API reference, Event."""


def collection_of(rt: ResourceType) -> Collection:
    """Where objects of a type are stored."""
    return EVENTS if rt.storage_key == _OTHER_EVENTS else rt.storage_key


def to_storage(rt: ResourceType, obj: dict[str, Any]) -> dict[str, Any]:
    """The form in which an object of this type is stored; may be the same dict."""
    if rt.storage_key != _OTHER_EVENTS:
        return obj
    stored = dict(obj)
    for core, events in _RENAMED:
        if events in stored:
            stored[core] = stored.pop(events)
    stored["apiVersion"] = "v1"
    return stored


def decode(rt: ResourceType, record: Record) -> dict[str, Any]:
    """A fresh dict of the object as this type shows it."""
    obj: dict[str, Any] = orjson.loads(current(rt, record))
    if record.api_version == rt.api_version:
        return obj
    if rt.storage_key == _OTHER_EVENTS:
        for core, events in _RENAMED:
            if core in obj:
                obj[events] = obj.pop(core)
    obj["apiVersion"] = rt.api_version
    if rt.custom and rt.schema is not None:
        compiled(rt.schema).prune(obj)
    return obj


def encoded(rt: ResourceType, record: Record) -> bytes:
    """The object as this type shows it, as JSON; without a copy where the stored form is the one asked for."""
    if record.api_version == rt.api_version:
        return current(rt, record)
    return orjson.dumps(decode(rt, record))


def current(rt: ResourceType, record: Record) -> bytes:
    """The object as today's schema of the version in which it is stored has it; the record's own body where nothing differs."""
    if record.rv > rt.schemas_since:
        return record.body
    schema = rt.schemas.get(record.api_version)
    if schema is None:  # a version that the definition has no more
        return record.body
    if record.shown is None or record.shown[0] is not schema:
        record.shown = (schema, _brought_up(schema, record))
    return record.shown[1]


def is_outdated(rt: ResourceType, record: Record) -> bool:
    """What is shown is not what is stored: a write that changes nothing else still has that to write."""
    return current(rt, record) is not record.body


def _brought_up(schema: Mapping[str, Any], record: Record) -> bytes:
    obj, structural = record.decode(), compiled(schema)
    structural.prune(obj)
    structural.default(obj)
    body = records.encoded(obj)
    return record.body if body == record.body else body
