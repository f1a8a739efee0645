"""Taking the tenure: the newest operator decides, and what older ones had sent is refused from then on.

Run by the operator before it reads anything. The Lease is taken by its version, so that the taking of a dead operator cannot undo
that of its successor. It is not renewed: whoever starts is the one that was started to work, and waits for nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from swarmtask.clock import Clock, format_micro_time
from swarmtask.controllers.crashpoints import write_point
from swarmtask.errors import AlreadyExists, Conflict, NotFound
from swarmtask.kube import Object, ObjectApi
from swarmtask.resources.kinds import LEASE
from swarmtask.resources.tenure import Tenure

logger = logging.getLogger(__name__)

LOOK_S = 10.0


class TenureKeeper:
    """See the module.

    Args:
        superseded: called once another operator has taken over.

    Attributes:
        begun: from here on no write of an operator before can arrive.
    """

    def __init__(self, api: ObjectApi, clock: Clock, superseded: Callable[[], None]) -> None:
        self._api, self._clock, self._superseded = api, clock, superseded
        self.begun = asyncio.Event()
        if api.tenure is None:
            self.begun.set()

    async def run(self) -> None:
        """Until cancelled, or superseded."""
        tenure = self._api.tenure
        while tenure is not None:
            lease = await self._lease(tenure)
            holder = "" if lease is None else str((lease.get("spec") or {}).get("holderIdentity") or "")
            if holder != tenure.holder:
                if self.begun.is_set() and holder:
                    logger.error("another operator works on this API and has taken over; this one ends")
                    self._superseded()
                    await asyncio.Event().wait()
                if not await self._take(tenure, lease):
                    continue
            self.begun.set()
            await self._clock.sleep(LOOK_S)

    async def _lease(self, tenure: Tenure) -> Object | None:
        try:
            return await self._api.get(LEASE, tenure.name, tenure.namespace)
        except NotFound:
            return None

    async def _take(self, tenure: Tenure, lease: Object | None) -> bool:
        """False when somebody was faster."""
        now = format_micro_time(self._clock.now())
        taken = ((lease or {}).get("spec") or {}).get("leaseTransitions")
        spec = {
            "holderIdentity": tenure.holder, "acquireTime": now, "renewTime": now,
            "leaseTransitions": taken + 1 if isinstance(taken, int) else 0,
        }  # fmt: skip
        try:
            with write_point("take-tenure"):
                if lease is None:
                    body = {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": {"name": tenure.name}, "spec": spec}
                    await self._api.create(LEASE, body, tenure.namespace)
                else:
                    version = {"resourceVersion": lease["metadata"]["resourceVersion"]}
                    await self._api.patch(LEASE, tenure.name, {"metadata": version, "spec": spec}, tenure.namespace)
        except (AlreadyExists, Conflict, NotFound):
            return False
        return True
