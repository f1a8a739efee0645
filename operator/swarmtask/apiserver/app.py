"""The API server without its socket: everything behind the ASGI interface.

Called by `server.py`, which gives it a socket, and by tests, which may call it in process. Builds the rooms, opens and closes them
in order, and answers each request: authenticate, authorise, route, handle, map errors to Status objects, write down who wrote.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import structlog

from swarmtask.apiserver import faults
from swarmtask.apiserver.access import duplicates, roles
from swarmtask.apiserver.access.accounts import AccountTokens
from swarmtask.apiserver.access.audit import AuditLog
from swarmtask.apiserver.access.room import CUT_OFF, AccessRoom, Visit
from swarmtask.apiserver.access.users import User
from swarmtask.apiserver.access.vault import Vault
from swarmtask.apiserver.attempt_logs import AttemptLogs
from swarmtask.apiserver.auth import Authenticator
from swarmtask.apiserver.bootstrap import install
from swarmtask.apiserver.builtins import builtin_types
from swarmtask.apiserver.collector import Collector
from swarmtask.apiserver.corked import corked
from swarmtask.apiserver.definitions import DefinitionTypes
from swarmtask.apiserver.door import Door
from swarmtask.apiserver.downloads import BACKUP_PATH, BackupDownloads
from swarmtask.apiserver.guests import NoRoom, files_allowed
from swarmtask.apiserver.handlers_discovery import ROUTES, DiscoveryHandlers
from swarmtask.apiserver.handlers_logs import COLLECTIONS as LOG_COLLECTIONS
from swarmtask.apiserver.handlers_logs import LogHandlers, StoredTasks
from swarmtask.apiserver.handlers_objects import ObjectHandlers
from swarmtask.apiserver.handlers_reviews import ReviewHandlers
from swarmtask.apiserver.intake import Intake
from swarmtask.apiserver.log_files import Limits
from swarmtask.apiserver.log_text import LogTexts
from swarmtask.apiserver.objects import ObjectService
from swarmtask.apiserver.pacing import RequestPace, is_exempt
from swarmtask.apiserver.places import ATTEMPT_LOGS
from swarmtask.apiserver.projections.exec import PodCommands, Shells
from swarmtask.apiserver.projections.handlers import ProjectionHandlers
from swarmtask.apiserver.projections.sockets import CommandSockets
from swarmtask.apiserver.quarantine import announce
from swarmtask.apiserver.routing import Route, group_version, path_segments, resolve, routes, takes
from swarmtask.apiserver.store import Store
from swarmtask.apiserver.types import TypeRegistry
from swarmtask.apiserver.watch import WatchHub
from swarmtask.apiserver.wire import WRITTEN_IN_YAML, Request, Response, error_response, headers_of, parse_query, read_yaml
from swarmtask.clock import Clock
from swarmtask.errors import BadRequest, InternalError, SwarmTaskError, Timeout
from swarmtask.settings import ApiServerSettings

log = structlog.get_logger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

READING = frozenset({"GET", "HEAD"})
HEALTH_PATHS = frozenset({"/healthz", "/readyz", "/livez"})
BODY_TIMEOUT_S = 60.0
"""A body must be complete by then; the limit of requests in Kubernetes' own server."""
SEND_TIMEOUT_S = 60.0
"""A client that takes nothing for this long is cut off."""


class Application:
    """An ASGI application. Make one with `open`, end it with `close`."""

    def __init__(
        self,
        store: Store,
        settings: ApiServerSettings,
        authenticator: Authenticator,
        clock: Clock,
        *,
        directory: Path,
        signing_pem: bytes | None = None,
        audit: AuditLog | None = None,
        shells: Shells | None = None,
    ) -> None:
        self.store = store
        self.attempt_logs = AttemptLogs(
            directory / ATTEMPT_LOGS, StoredTasks(store), clock,
            limits=Limits.of(settings.attempt_log_bytes), total_bytes=settings.attempt_logs_bytes,
        )  # fmt: skip
        self.registry = TypeRegistry(builtin_types())
        self.service = ObjectService(store, self.registry, clock)
        self.hub = WatchHub(store, clock, bookmark_interval_s=settings.bookmark_interval_s, client_limit=settings.client_watches)
        self.door = Door(per_client=settings.client_connections, files=files_allowed())
        self._pace = RequestPace(clock, settings.client_requests_per_second)
        self.collector = Collector(self.service, clock, event_ttl_s=settings.event_ttl_s)
        self.discovery = DiscoveryHandlers(self.registry, f"{settings.host}:{settings.port}")
        self._objects = ObjectHandlers(store, self.service, self.hub, clock)
        self._commands = PodCommands(shells)
        texts = LogTexts(self.attempt_logs)
        self._projections = ProjectionHandlers(store, self.service, self._objects, clock, self._commands, logs=texts)
        self._definitions = DefinitionTypes(store, self.registry, self.hub.end_collection)
        accounts = AccountTokens(signing_pem, store.index, clock) if signing_pem is not None else None
        self.access = AccessRoom(store, self.registry, authenticator, clock, accounts=accounts, audit=audit)
        self._sockets = CommandSockets(
            self.access, self.registry, self._projections, self._commands, door=self.door, pace=self._pace
        )
        self._reviews = ReviewHandlers(store, self.registry, self.access.identities, self.access.authorizer, accounts)
        self._backups = BackupDownloads(store.path, clock)
        self._logs = LogHandlers(store, self.attempt_logs, texts, clock)
        self._intake = Intake(settings.max_body_bytes)
        self.body_timeout_s = BODY_TIMEOUT_S
        self._collecting: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._keeping_logs: asyncio.Task[None] | None = None
        self.ready = False

    @classmethod
    async def open(
        cls,
        path: Path,
        settings: ApiServerSettings,
        authenticator: Authenticator,
        clock: Clock,
        *,
        vault: Vault | None = None,
        signing_pem: bytes | None = None,
        audit: AuditLog | None = None,
        shells: Shells | None = None,
    ) -> Application:
        """Open the store at `path`, install what exists from the start, begin to collect.

        Args:
            vault: encrypts Secrets on disk. signing_pem: the key of ServiceAccount tokens; None: there are none.
            audit: where every request that may change something is written down.
            shells: runs commands in containers of this machine; None: nothing does.

        Raises:
            ConfigurationError, InsufficientStorage: from the store.
        """
        store = await Store.open(path, event_log_rows=settings.event_log_rows, vault=vault)
        app = cls(store, settings, authenticator, clock, directory=path.parent, signing_pem=signing_pem, audit=audit, shells=shells)
        try:
            app._definitions.load()
            store.subscribe(app._definitions.on_commit)
            store.subscribe(app.hub.on_commit)
            store.subscribe(app.collector.on_commit)
            store.subscribe(app.attempt_logs.on_commit)
            await install(app.service)
            await roles.install(app.service)
            await duplicates.retire(app.service, app.access.tokens)
            await announce(app.service, store.quarantined)
            app._backups.sweep()
            await app.attempt_logs.open()
        except BaseException:
            await store.close()
            raise
        app.collector.start()
        app._collecting = asyncio.create_task(app.collector.run(), name="collector")
        app._collecting.add_done_callback(app._collector_ended)
        app._watching = asyncio.create_task(app.access.streams.run(), name="open streams")
        app._keeping_logs = asyncio.create_task(app.attempt_logs.run(), name="attempt logs")
        app.ready = True
        return app

    async def close(self) -> None:
        """Stop collecting, commit what is queued, close the store. Watches must have ended (`end_watches`)."""
        self.ready = False
        self.end_watches()
        tasks = [task for task in (self._collecting, self._watching, self._keeping_logs) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.attempt_logs.close()
        await self.store.close()

    def _collector_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self.ready = False
            log.critical("the collector failed: deletions do not go on, restart the server", exc_info=task.exception())

    def routes(self) -> Iterator[Route]:
        """Every path that is answered now, with its methods; custom types included."""
        for path in sorted(HEALTH_PATHS):
            yield Route(path, frozenset({"GET"}))
        for path in ROUTES:
            yield Route(path, frozenset({"GET"}))
        yield from routes(self.registry)

    def end_watches(self) -> None:
        """End every stream, so that the server can stop."""
        self.hub.end_all()
        self.attempt_logs.end_reads()
        self._commands.end_all()

    # --- ASGI ------------------------------------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection's request."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await self._sockets.serve(scope, receive, send)
            return
        visits: list[Visit] = []
        try:
            await self._converse(scope, receive, send, visits)
        except asyncio.CancelledError:  # cut off at the end of the server; what it has asked for may be on its way to the disk
            for visit in visits:
                self.access.record(visit, InternalError.code, CUT_OFF)
            self.access.flush()
            raise

    async def _converse(self, scope: Scope, receive: Receive, send: Send, visits: list[Visit]) -> None:
        """Answer a request; what is known of it is left in `visits`, however it ends."""
        reason = ""
        try:
            response = await self._answer(scope, receive, visits)
        except SwarmTaskError as error:
            if scope["method"] not in READING:
                # What was refused was decided on writes that may not be on disk yet; a read after the refusal must agree with it.
                await self.store.settled()
            response, reason = error_response(error), error.reason
            if isinstance(error, (Timeout, NoRoom)):  # the rest of the body may still come; or there is no room for another request
                response.headers.append(("connection", "close"))
        except (Exception, RecursionError) as error:
            log.exception("request failed", method=scope["method"], path=scope["path"])
            response = error_response(InternalError(f"the server failed ({type(error).__name__}): see its log"))
            reason = InternalError.reason
        for visit in visits:
            if self.access.note(visit, response.status, reason):
                await asyncio.sleep(0)  # those who are answered together are written down together, and each before his answer
                self.access.flush()
        await _send(response, scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, visits: list[Visit]) -> Response:
        """Answer, and leave in `visits` what is known of the request, however it ends."""
        path: str = scope["path"]
        if path in HEALTH_PATHS or path.startswith(("/healthz/", "/readyz/", "/livez/")):
            return Response(200 if self.ready else 503, b"ok" if self.ready else b"not ready", "text/plain; charset=utf-8")
        method: str = scope["method"]
        segments = path_segments(scope)
        headers = headers_of(scope["headers"])
        query = parse_query(scope.get("query_string", b""))
        source = (scope.get("client") or ("",))[0]
        visit = self.access.arrive(method, path, segments, query, source)
        visits.append(visit)
        try:
            user = self.access.enter(visit, headers)
        finally:
            if visit.login is not None:
                self.door.known(scope.get("client"), visit.login.user)
            self._pace.admit(visit.login.user if visit.login is not None else None, source)
        request = Request(method, path, query, headers, client=user.name, guard=self.access.guard(user), exempt=is_exempt(user))
        visit.request = request
        try:
            if method not in READING:
                request.body = await self._intake.read(receive, visit, self.body_timeout_s)
                if request.content_type in WRITTEN_IN_YAML:
                    await read_yaml(request)
            answer = self._route(request, segments, user)
            response = answer if isinstance(answer, Response) else await answer
        finally:
            if visit.held_bytes:
                self._intake.release(visit)
        if response.stream is not None:
            self.access.watch_over(visit, response)
        return response

    def _route(self, request: Request, segments: list[str], user: User) -> Response | Awaitable[Response]:
        if request.path == BACKUP_PATH:
            return self._backups.download(request)
        described = self.discovery.handle(request, segments)
        if described is not None:
            return described
        found = group_version(segments)
        if found is None:
            raise faults.no_such_path()
        target = resolve(self.registry, *found)
        if request.method == "DELETE" and request.path.endswith("/"):
            # A client whose variable for the name was empty must not delete the whole collection, or the parent.
            raise BadRequest("the path of a DELETE must not end with a slash: is the name missing?")
        if self._projections.serves(target.rt):
            return self._projections.handle(request, target)
        if not takes(target, request.method):
            raise faults.method_not_allowed()
        if not target.rt.stored:
            return self._reviews.review(request, target, user)
        if target.subresource == "token":
            return self._reviews.request_token(request, target, user)
        if target.subresource == "log" and target.rt.storage_key in LOG_COLLECTIONS:
            return self._logs.handle(request, target, user)
        return self._objects.handle(request, target)


async def _send(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    headers = [(b"content-type", response.content_type.encode())]
    headers += [(name.encode(), value.encode()) for name, value in response.headers]
    headers.append((b"cache-control", b"no-cache, private"))
    if response.stream is None:
        headers.append((b"content-length", str(len(response.body)).encode()))
        with corked(scope):
            await send({"type": "http.response.start", "status": response.status, "headers": headers})
            await send({"type": "http.response.body", "body": response.body})
        return
    listener = asyncio.create_task(_until_gone(receive, response.on_close))
    try:
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        async for chunk in response.stream:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    except TimeoutError:
        log.warning("a client that does not read was cut off")
    finally:
        listener.cancel()
        if response.on_close is not None:
            response.on_close()
        await response.stream.aclose()


async def _until_gone(receive: Receive, then: Callable[[], None] | None) -> None:
    """Wait until the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
    if then is not None:
        then()
