"""Telling people of objects that could not be read: one Warning Event each, beside the line in the log.

Called by the application once per start. The store has put the rows aside and keeps them; nothing here reads them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import structlog

from swarmtask.apiserver.loading import Quarantined
from swarmtask.apiserver.object_parts import NAMESPACES
from swarmtask.apiserver.objects import ObjectService
from swarmtask.apiserver.records import Key
from swarmtask.apiserver.writes import WriteOptions
from swarmtask.clock import format_time
from swarmtask.errors import SwarmTaskError

log = structlog.get_logger(__name__)

REASON = "Quarantined"


async def announce(service: ObjectService, quarantined: Iterable[Quarantined]) -> None:
    """Post an Event for each object that this start has put aside. One that cannot be posted is logged: the start goes on."""
    events = service.registry.find("", "v1", "events")
    for one in quarantined:
        if not one.new or events is None:
            continue
        namespace = one.key.namespace
        if service.store.get(Key(NAMESPACES, "", namespace)) is None:
            namespace = "default"
        try:
            await service.create(events, namespace, _event(service, one, namespace), WriteOptions())
        except SwarmTaskError as error:
            log.warning("an object in quarantine could not be announced", name=one.key.name, error=error.message)


def _event(service: ObjectService, one: Quarantined, namespace: str) -> dict[str, Any]:
    group, plural = one.key.collection
    rt = next((rt for rt in service.registry if rt.group == group and rt.plural == plural), None)
    now = format_time(service.clock.now())
    return {
        "apiVersion": "v1", "kind": "Event", "metadata": {"generateName": "quarantined-", "namespace": namespace},
        "involvedObject": {
            "apiVersion": rt.api_version if rt is not None else group, "kind": rt.kind if rt is not None else plural,
            "namespace": one.key.namespace, "name": one.key.name, "uid": one.uid,
        },
        "type": "Warning", "reason": REASON,
        "message": f"{plural} {one.key.name!r} cannot be read any more ({one.reason}) and is not served: apply it again, or "
        "restore a backup (docs/backup.md)",
        "source": {"component": "swarmtask-apiserver"}, "firstTimestamp": now, "lastTimestamp": now, "count": 1,
    }  # fmt: skip
