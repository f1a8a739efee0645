"""Writes under a tenure (`resources.tenure`): refused once its Lease has another holder.

Called before each write with nothing awaited in between, so the Lease is as it will be when this write is stored.
"""

from __future__ import annotations

from swarmtask.apiserver import faults
from swarmtask.apiserver.records import Key
from swarmtask.apiserver.routing import Target
from swarmtask.apiserver.store import Store
from swarmtask.apiserver.wire import Request
from swarmtask.resources.kinds import LEASE
from swarmtask.resources.tenure import HEADER, Tenure

LEASES = (LEASE.group, LEASE.plural)


def check(store: Store, request: Request, target: Target) -> None:
    """Raises Conflict, BadRequest. The Lease itself can be taken by whoever may write it."""
    text = request.headers.get(HEADER)
    if text is None:
        return
    tenure = Tenure.read(text)
    key = Key(LEASES, tenure.namespace, tenure.name)
    if (
        (target.rt.group, target.rt.plural) == LEASES
        and target.namespace == tenure.namespace
        and target.name in (None, tenure.name)
    ):
        return
    record = store.head(key)
    holder = None if record is None else (record.decode().get("spec") or {}).get("holderIdentity")
    if holder != tenure.holder:
        raise faults.conflict(target.rt, target.name or "", tenure.over())
