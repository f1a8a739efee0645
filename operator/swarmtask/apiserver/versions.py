"""One stored object, several versions in which it is served.

Called by the object service and by whoever answers with stored bodies. Custom kinds convert by changing `apiVersion` alone (the
strategy None of CustomResourceDefinitions); Events are stored in their core/v1 form and also served as events.k8s.io/v1, whose
fields have other names.
"""

from __future__ import annotations

from typing import Any

import orjson

from swarmtask.apiserver.records import Collection, Record
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
    obj = record.decode()
    if record.api_version == rt.api_version:
        return obj
    if rt.storage_key == _OTHER_EVENTS:
        for core, events in _RENAMED:
            if core in obj:
                obj[events] = obj.pop(core)
    obj["apiVersion"] = rt.api_version
    return obj


def encoded(rt: ResourceType, record: Record) -> bytes:
    """The object as this type shows it, as JSON; without a copy where the stored form is the one asked for."""
    if record.api_version == rt.api_version:
        return record.body
    return orjson.dumps(decode(rt, record))
