"""One digest, one AccessToken: brings to that what versions before the rule have stored (`tokens.check_unused` is the rule).

Called by the application once per start, before the first request: a token that is revoked by deleting its object must not live on
in another one.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import structlog

from swarmtask.apiserver.access.tokens import TOKENS, AccessTokens, digest_of
from swarmtask.apiserver.objects import ObjectService
from swarmtask.apiserver.records import Record
from swarmtask.errors import SwarmTaskError

log = structlog.get_logger(__name__)


async def retire(service: ObjectService, tokens: AccessTokens) -> None:
    """Remove every AccessToken whose digest another one has, finalizers or not: the first by name stays, since it is the one that
    let people in. Where one of them was revoked and waits for its finalizers, those that were not go. What cannot be removed now
    is logged: the start goes on."""
    of_digest: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(service.store.index.records(TOKENS), key=lambda record: record.key):
        of_digest[digest_of(record)].append(record)
    for records in of_digest.values():
        living = [record for record in records if not record.deleting]
        for surplus in living[1:] if len(living) == len(records) else living:
            try:
                await service.rewrite(surplus.key, _let_go)
            except SwarmTaskError as error:
                log.error("a second access token of one digest could not be removed", name=surplus.key.name, error=error.message)
            else:
                names = [record.key.name for record in records]
                log.warning("a second access token of one digest was removed", name=surplus.key.name, of=names)
    tokens.load()  # what stays lets people in again


def _let_go(obj: dict[str, Any]) -> None:
    """Nothing holds it any more."""
    obj["metadata"].pop("finalizers", None)
    obj["metadata"]["deletionTimestamp"] = obj["metadata"]["creationTimestamp"]
