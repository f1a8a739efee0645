"""WebSockets: let in, or refused in Kubernetes' words, and handed to whoever runs the command.

Called by the application. There is one kind of them: `pods/NAME/exec`. A request is authenticated and authorised as any other, with
the verb `create` on `pods/exec` (whoever may start a command changes something), and written into the audit log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog

from swarmtask.apiserver import faults
from swarmtask.apiserver.access.room import CUT_OFF, AccessRoom, Visit
from swarmtask.apiserver.door import Door
from swarmtask.apiserver.pacing import RequestPace
from swarmtask.apiserver.projections.exec import V4, V5, PodCommands, Receive, Send, Shell, Wish, wish_of
from swarmtask.apiserver.projections.handlers import ProjectionHandlers
from swarmtask.apiserver.projections.pods import PODS
from swarmtask.apiserver.routing import group_version, path_segments, resolve
from swarmtask.apiserver.types import TypeRegistry
from swarmtask.apiserver.wire import Response, error_response, headers_of, parse_query
from swarmtask.errors import BadRequest, InternalError, SwarmTaskError

log = structlog.get_logger(__name__)

SWITCHING = 101


class CommandSockets:
    """See the module."""

    def __init__(
        self,
        access: AccessRoom,
        registry: TypeRegistry,
        projections: ProjectionHandlers,
        commands: PodCommands,
        *,
        door: Door,
        pace: RequestPace,
    ) -> None:
        self._access, self._registry, self._projections, self._commands = access, registry, projections, commands
        self._door, self._pace = door, pace

    async def serve(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """One WebSocket, from its handshake to its end."""
        await receive()  # websocket.connect
        visits: list[Visit] = []
        try:
            protocol, wish, shell = await self._start(scope, visits)
        except asyncio.CancelledError:  # cut off at the end of the server; the command may have begun
            self._record(visits, InternalError.code, CUT_OFF)
            raise
        except SwarmTaskError as error:
            self._record(visits, error.code, error.reason)
            await _refuse(send, error)
            return
        except (Exception, RecursionError) as error:
            log.exception("request failed", method="WebSocket", path=scope["path"])
            self._record(visits, InternalError.code, InternalError.reason)
            await _refuse(send, InternalError(f"the server failed ({type(error).__name__}): see its log"))
            return
        self._record(visits, SWITCHING, "")
        end = asyncio.Event()
        watched = Response(SWITCHING, on_close=end.set)
        self._access.watch_over(visits[0], watched)
        try:
            await send({"type": "websocket.accept", "subprotocol": protocol})
            await self._commands.run(shell, wish, receive, send, end=end)
        finally:
            if watched.on_close is not None:
                watched.on_close()

    async def _start(self, scope: Mapping[str, Any], visits: list[Visit]) -> tuple[str, Wish, Shell]:
        """(subprotocol, what is asked for, the command that runs). What is known of the request is left in `visits`."""
        segments, headers, raw_query = path_segments(scope), headers_of(scope["headers"]), scope.get("query_string", b"")
        source = (scope.get("client") or ("",))[0]
        visit = self._access.arrive("POST", scope["path"], segments, parse_query(raw_query), source)
        visits.append(visit)
        try:
            self._access.enter(visit, headers)
        finally:
            if visit.login is not None:
                self._door.known(scope.get("client"), visit.login.user)
            self._pace.admit(visit.login.user if visit.login is not None else None, source)
        found = group_version(segments)
        if found is None:
            raise faults.no_such_path()
        target = resolve(self._registry, *found)
        if target.rt.storage_key != PODS or target.subresource != "exec":
            raise BadRequest("only pods/NAME/exec is served over WebSockets")
        offered = scope.get("subprotocols") or ()
        protocol = next((one for one in (V5, V4) if one in offered), None)
        if protocol is None:
            raise BadRequest(f"the subprotocols {V5} and {V4} are spoken here, none of which was offered")
        wish = wish_of(raw_query)
        return protocol, wish, await self._commands.start(self._projections.pod(target), wish)

    def _record(self, visits: list[Visit], code: int, reason: str) -> None:
        for visit in visits:
            self._access.record(visit, code, reason)


async def _refuse(send: Send, error: SwarmTaskError) -> None:
    """Answer the handshake with a Status instead."""
    response = error_response(error)
    headers = [(b"content-type", response.content_type.encode()), (b"content-length", str(len(response.body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in response.headers]
    await send({"type": "websocket.http.response.start", "status": response.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": response.body})
