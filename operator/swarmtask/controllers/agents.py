"""Keeps a node agent on every node: what agents need is wished of their host, and their credentials are looked after.

One loop, started by the operator where the settings ask for it. It makes the credential that all agents share (an AccessToken of
which only the engine's secret holds the token), renews it before it ends, and takes away tokens of nodes that have left. How agents
are put on nodes is the host's affair (`engines.base.AgentHost`). It never sees the tokens that agents make for themselves.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from swarmtask.clock import Clock, format_time, parse_time
from swarmtask.engines.base import AgentHost, AgentWish
from swarmtask.errors import NotFound, SwarmTaskError
from swarmtask.kube import Object, ObjectApi
from swarmtask.resources.enrolment import (
    BOOTSTRAP_GROUP,
    BOOTSTRAP_USER,
    LABEL_BOOTSTRAP,
    LABEL_ENGINE_NODE,
    NODE_USER_PREFIX,
    engine_node,
)
from swarmtask.resources.kinds import ACCESS_TOKEN, SWARM_NODE
from swarmtask.resources.node import NodePhase

logger = logging.getLogger(__name__)

LOOK_S = 15.0
"""Between looks: as long a node that has left may keep its token, and a service that somebody changed its changes."""
TOKEN_BYTES = 32
CREDENTIAL_LIFE = timedelta(days=90)
RENEW_BEFORE = timedelta(days=30)
"""The shared credential is made anew, which starts all agents anew, when no more than this is left of it."""
KEPT_TOKENS = 8
"""Of one node: an agent that cannot keep its own on its disk makes one at each start, and must not run out of them."""

Wish = Callable[[], Awaitable[AgentWish]]


class Agents:
    """See the module.

    Args:
        wish: what the agents shall be like now. Raises SwarmTaskError: that cannot be said now.
    """

    def __init__(self, api: ObjectApi, host: AgentHost, wish: Wish, clock: Clock) -> None:
        self._api, self._host, self._wish, self._clock = api, host, wish, clock
        self._failure = ""

    async def run(self) -> None:
        """Look again and again, until cancelled. The first failure of a row is told."""
        while True:
            try:
                await self.look()
                self._failure = ""
            except SwarmTaskError as error:
                if error.message != self._failure:
                    logger.warning("the node agents are not as they shall be: %s; it is tried again", error.message)
                self._failure = error.message
            await self._clock.sleep(LOOK_S)

    async def look(self) -> None:
        """Bring everything up to date once.

        Raises:
            SwarmTaskError: something could not be done; the rest may have been.
        """
        tokens = (await self._api.list(ACCESS_TOKEN)).items
        nodes = (await self._api.list(SWARM_NODE)).items
        for surplus in surplus_tokens(tokens, nodes, self._clock.now()):
            await self._revoke(surplus, "its node has left, or it has expired")
        held = await self._host.tokens()
        wish = await self._wish()
        good = set(digests_that_last(tokens, self._clock.now() + RENEW_BEFORE))
        token = None if held and held[0] in good else await self._new_credential()
        if done := await self._host.ensure(wish, token):
            logger.info("%s (%s, image %s)", done, wish.server, wish.image)
        await self._forget_unknown(tokens)

    async def _new_credential(self) -> str:
        """The API first: a credential that nobody hands out is harmless, one that the API does not know is good for nothing."""
        token = secrets.token_urlsafe(TOKEN_BYTES)
        body: Object = {
            "apiVersion": ACCESS_TOKEN.api_version, "kind": ACCESS_TOKEN.kind,
            "metadata": {"generateName": "node-bootstrap-", "labels": {LABEL_BOOTSTRAP: "true"}},
            "spec": {
                "user": BOOTSTRAP_USER, "groups": [BOOTSTRAP_GROUP], "digest": hashlib.sha256(token.encode()).hexdigest(),
                "description": "shared by node agents, to make their own",
                "expirationTimestamp": format_time(self._clock.now() + CREDENTIAL_LIFE),
            },
        }  # fmt: skip
        await self._api.create(ACCESS_TOKEN, body)
        return token

    async def _forget_unknown(self, before: Iterable[Object]) -> None:
        """Revoke shared credentials that were there before this look and that no secret holds (any more)."""
        held = await self._host.tokens()
        for token in before:
            if is_shared(token) and token["spec"].get("digest") not in held:
                await self._revoke(token, "it is handed out no more")

    async def _revoke(self, token: Object, why: str) -> None:
        name = str(token["metadata"]["name"])
        try:
            await self._api.delete(ACCESS_TOKEN, name, uid=str(token["metadata"]["uid"]))
        except NotFound:
            return
        logger.info("token %s of %s was revoked: %s", name, token["spec"].get("user"), why)


def is_shared(token: Mapping[str, Any]) -> bool:
    """It is a credential that all agents share, made here."""
    return (token["metadata"].get("labels") or {}).get(LABEL_BOOTSTRAP) == "true" and token["spec"].get("user") == BOOTSTRAP_USER


def digests_that_last(tokens: Iterable[Mapping[str, Any]], until: datetime) -> list[str]:
    """SHA-256 of the shared credentials that are good until then."""
    found = []
    for token in tokens:
        ends = _ends(token)
        if is_shared(token) and "deletionTimestamp" not in token["metadata"] and (ends is None or ends > until):
            found.append(str(token["spec"]["digest"]))
    return found


def surplus_tokens(tokens: Iterable[Object], nodes: Iterable[Mapping[str, Any]], now: datetime) -> list[Object]:
    """Tokens that agents have made for themselves and that must end: expired, or their SwarmNode is gone, or its engine knows it as
    another node by now, or there are KEPT_TOKENS newer ones. Tokens that people have made are left alone."""
    present = {
        (str(node["metadata"]["name"]), engine_node(str(item.get("name")), str(item.get("id"))))
        for node in nodes
        if (node.get("status") or {}).get("phase") != NodePhase.GONE
        for item in (node.get("status") or {}).get("engines") or ()
    }
    found, kept = [], Counter[str]()
    for token in sorted(tokens, key=lambda token: str(token["metadata"].get("creationTimestamp")), reverse=True):
        bound_to = (token["metadata"].get("labels") or {}).get(LABEL_ENGINE_NODE)
        if bound_to is None:
            continue
        node = str(token["spec"].get("user", "")).removeprefix(NODE_USER_PREFIX)
        ends = _ends(token)
        if (node, bound_to) not in present or (ends is not None and ends <= now) or kept[node] >= KEPT_TOKENS:
            found.append(token)
        else:
            kept[node] += 1
    return found


def _ends(token: Mapping[str, Any]) -> datetime | None:
    expires = token["spec"].get("expirationTimestamp")
    return parse_time(str(expires)) if expires else None
