"""What exists from the start: namespaces, our definitions, the default queue.

Called once per start by the application, before the first request. Idempotent: what is there and right is left alone.
"""

from __future__ import annotations

from typing import Any

import structlog

from swarmtask.apiserver.definitions import DEFINITIONS
from swarmtask.apiserver.objects import ObjectService
from swarmtask.apiserver.records import Key
from swarmtask.apiserver.types import ResourceType
from swarmtask.apiserver.writes import WriteOptions
from swarmtask.errors import InternalError
from swarmtask.resources.crds import written_manifests
from swarmtask.resources.kinds import CUSTOM_RESOURCE_DEFINITION, NAMESPACE, OWN_KINDS, SWARM_QUEUE, Kind

log = structlog.get_logger(__name__)

INITIAL_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
DEFAULT_QUEUE = "default"


async def install(service: ObjectService) -> None:
    """Create what is missing, and bring our definitions up to date."""
    namespaces = _type(service, NAMESPACE)
    for name in INITIAL_NAMESPACES:
        if service.store.get(service.key(namespaces, "", name)) is None:
            body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
            await service.create(namespaces, "", body, WriteOptions())
    manifests = written_manifests()
    for kind in OWN_KINDS:
        await _install_definition(service, kind, manifests[kind.crd_name])
    queues = _type(service, SWARM_QUEUE)
    if service.store.get(service.key(queues, "default", DEFAULT_QUEUE)) is None:
        body = {"apiVersion": SWARM_QUEUE.api_version, "kind": SWARM_QUEUE.kind, "metadata": {"name": DEFAULT_QUEUE}, "spec": {}}
        await service.create(queues, "default", body, WriteOptions())


async def _install_definition(service: ObjectService, kind: Kind, manifest: dict[str, Any]) -> None:
    crds = _type(service, CUSTOM_RESOURCE_DEFINITION)
    record = service.store.get(Key(DEFINITIONS, "", kind.crd_name))
    if record is None:
        await service.create(crds, "", manifest, WriteOptions())
        return
    current = record.decode()
    if "deletionTimestamp" in current["metadata"]:
        log.warning("one of our own definitions is being deleted: restart once it is gone", name=kind.crd_name)
        return
    current["spec"] = manifest["spec"]
    await service.replace(crds, "", kind.crd_name, current, WriteOptions())


def _type(service: ObjectService, kind: Kind) -> ResourceType:
    found = service.registry.find(kind.group, kind.version, kind.plural)
    if found is None:
        raise InternalError(f"{kind.crd_name} is not served: another definition may have taken its names")
    return found
