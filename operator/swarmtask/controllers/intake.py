"""News from the API: what comes in, by which way.

An intake promises: for each of our kinds first one complete list (`replaced`), then every change (`changed`), and after any doubt a
complete list again. It knows nothing of what is done with the news. There are two, of one surface:

- `KopfIntake` is what runs in production. kopf watches; its handlers only pass events on, and it is given nothing else to do: no
  annotations, finalizers or timers of its own. It runs on an event loop in a thread of its own, because an embedded kopf takes the
  process's signal handlers where it runs in the main thread, and at its end cancels every task of its loop that is younger than
  itself (kopf's own source says so); here it may fail and be started again without touching the control loops. kopf does not
  report what was deleted while it was disconnected, so complete lists are read beside it, at intervals.
- `ListWatchIntake` lists and watches through `ObjectApi`. With the in-memory API it makes the whole operator run on an injected
  clock without a server: tests and the simulator use it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, Protocol

from swarmtask.clock import Clock
from swarmtask.controllers.waiting import supervise
from swarmtask.errors import Expired, ServiceUnavailable
from swarmtask.kube import Connection, KubeClient, Object, ObjectApi, ObjectList
from swarmtask.optional import trusting_nobody, without
from swarmtask.resources.kinds import OWN_KINDS, Kind

# It would load these clients for their types and their log-in: 10 MB, and ours logs in itself, with its own TLS contexts.
with without("kubernetes", "kubernetes_asyncio", "pykube"), trusting_nobody():
    import kopf

logger = logging.getLogger(__name__)

RELIST_S = 300.0
MAIL_AT_ONCE = 32


class Sink(Protocol):
    """Where news goes. Called on the operator's event loop; must not wait."""

    def replaced(self, kind: Kind, objects: ObjectList) -> None: ...

    def changed(self, kind: Kind, obj: Object, *, gone: bool) -> None: ...


class Intake(Protocol):
    async def run(self, sink: Sink) -> None:
        """Deliver news until cancelled; raises when it cannot go on."""
        ...


def default_intake(api: ObjectApi, clock: Clock, rng: random.Random) -> Intake:
    """kopf where there is a server that it can log in to, else list and watch."""
    if isinstance(api, KubeClient):
        return KopfIntake(api, api.connection, clock, rng)
    return ListWatchIntake(api, clock, rng)


class ListWatchIntake:
    """List, then watch, one loop per kind."""

    def __init__(self, api: ObjectApi, clock: Clock, rng: random.Random) -> None:
        self._api, self._clock, self._rng = api, clock, rng

    async def run(self, sink: Sink) -> None:
        async with asyncio.TaskGroup() as group:
            for kind in OWN_KINDS:
                group.create_task(supervise(f"intake of {kind.plural}", self._follower(kind, sink), self._clock, self._rng))

    def _follower(self, kind: Kind, sink: Sink) -> Callable[[], Coroutine[Any, Any, None]]:
        async def follow() -> None:
            while True:
                listed = await self._api.list(kind)
                sink.replaced(kind, listed)
                try:
                    async with aclosing(self._api.watch(kind, resource_version=listed.resource_version)) as events:
                        async for event in events:
                            if event.type != "BOOKMARK":
                                sink.changed(kind, event.object, gone=event.type == "DELETED")
                except Expired:
                    logger.info("the watch of %s expired: listing again", kind.plural)

        return follow


class KopfIntake:
    """kopf in a thread of its own, and complete lists beside it."""

    def __init__(self, api: ObjectApi, connection: Connection, clock: Clock, rng: random.Random) -> None:
        self._api, self._connection, self._clock, self._rng = api, connection, clock, rng

    async def run(self, sink: Sink) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(supervise("complete lists", lambda: self._relist(sink), self._clock, self._rng))
            group.create_task(supervise("kopf", lambda: self._kopf(sink), self._clock, self._rng))

    async def _relist(self, sink: Sink) -> None:
        while True:
            for kind in OWN_KINDS:
                sink.replaced(kind, await self._api.list(kind))
            await self._clock.sleep(RELIST_S * self._rng.uniform(0.8, 1.2))

    async def _kopf(self, sink: Sink) -> None:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        thread = _KopfThread(self._connection, sink, loop, ended)
        thread.start()
        try:
            await asyncio.shield(ended)
        finally:
            thread.stop()
            await asyncio.to_thread(thread.join, 15.0)
        raise ServiceUnavailable("kopf has ended by itself")


class Mail:
    """News on its way from kopf's thread to the operator's loop: of each object only the newest, however many came meanwhile, so
    that what waits is bounded when the loop has much to do. Each object's news arrive in their order; those of two may not."""

    def __init__(self, sink: Sink, home: asyncio.AbstractEventLoop) -> None:
        self._sink, self._home = sink, home
        self._lock = threading.Lock()
        self._waiting: OrderedDict[tuple[str, str], tuple[Kind, Object, bool]] = OrderedDict()

    def post(self, kind: Kind, obj: Object, gone: bool) -> None:
        """In kopf's thread."""
        slot = (kind.plural, obj["metadata"]["uid"])
        with self._lock:
            idle = not self._waiting
            self._waiting[slot] = (kind, obj, gone)
        if idle:
            self._wake()

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the operator's loop has ended: nobody is left to be told
            self._home.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        """On the operator's loop: a few, and then whoever else has something to do there."""
        try:
            for _ in range(MAIL_AT_ONCE):
                with self._lock:
                    if not self._waiting:
                        return
                    _, (kind, obj, gone) = self._waiting.popitem(last=False)
                self._sink.changed(kind, obj, gone=gone)
        finally:
            with self._lock:
                more = bool(self._waiting)
            if more:
                self._wake()


class _KopfThread:
    """kopf on an event loop and in a thread of its own. `home`: the operator's loop, where news goes."""

    def __init__(self, connection: Connection, sink: Sink, home: asyncio.AbstractEventLoop, ended: asyncio.Future[None]) -> None:
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)
        self._connection, self._home, self._ended = connection, home, ended
        self._mail = Mail(sink, home)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_flag: asyncio.Event | None = None
        self._stopped = threading.Event()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """From the operator's thread: let kopf end."""
        self._stopped.set()
        if self._loop is not None and self._stop_flag is not None:
            with suppress(RuntimeError):  # its loop has just been closed: it has ended already
                self._loop.call_soon_threadsafe(self._stop_flag.set)

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            logger.warning("kopf has not ended within %s s; its thread is left behind", timeout_s)

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            asyncio.run(self._operate())
        except Exception as caught:  # noqa: BLE001 - whatever it is, it ends this thread and is raised in the loop that waits for it
            error = caught
        self._send(lambda: self._report(error))

    def _report(self, error: BaseException | None) -> None:
        if self._ended.done():
            return
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(ServiceUnavailable(f"kopf failed: {type(error).__name__}: {error}"))
            self._ended.exception()  # seen, also when nobody waits any more

    async def _operate(self) -> None:
        self._stop_flag, self._loop = asyncio.Event(), asyncio.get_running_loop()
        if self._stopped.is_set():
            return
        await kopf.operator(
            registry=kopf_registry(self._connection, self._mail.post),
            settings=kopf_settings(),
            standalone=True,
            clusterwide=True,
            stop_flag=self._stop_flag,
        )

    def _send(self, call: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the operator's loop has ended: nobody is left to be told
            self._home.call_soon_threadsafe(call)


def kopf_registry(connection: Connection, pass_on: Callable[[Kind, Object, bool], None]) -> kopf.OperatorRegistry:
    """Handlers that do nothing but pass events on. Of `on.event` alone kopf writes nothing to the objects."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def login(**_: Any) -> kopf.ConnectionInfo:
        return connection_info(connection)

    def watch(kind: Kind) -> None:
        # A coroutine, because kopf would give a plain function a thread of a pool for each event.
        @kopf.on.event(kind.group, kind.version, kind.plural, registry=registry)
        async def news(event: kopf.RawEvent, **_: Any) -> None:
            obj: Object = dict(event["object"])
            obj["metadata"] = {name: value for name, value in obj["metadata"].items() if name != "managedFields"}
            pass_on(kind, obj, event["type"] == "DELETED")

    for kind in OWN_KINDS:
        watch(kind)
    return registry


class NothingHandled(kopf.DiffBaseStorage):
    """What kopf remembers of objects to tell what has changed: nothing, because no handler of ours asks. Its own would copy every
    object that comes by."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        """Nothing is handled."""


def connection_info(connection: Connection) -> kopf.ConnectionInfo:
    """The same API and the same identity as the client's."""
    certificate, key = connection.client_certificate
    certificate_data, key_data = connection.client_certificate_data
    return kopf.ConnectionInfo(
        server=connection.server,
        ca_path=connection.ca_path,
        ca_data=connection.ca_data,
        insecure=False,
        token=connection.token,
        certificate_path=certificate,
        private_key_path=key,
        certificate_data=certificate_data,
        private_key_data=key_data,
        default_namespace=connection.namespace,
    )


def kopf_settings() -> kopf.OperatorSettings:
    """Quiet, quick to come back, and without writes."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.inactivity_timeout = 150
    settings.watching.connect_timeout = 5
    settings.watching.reconnect_backoff = 0.1
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.networking.error_backoffs = (0.1, 0.3, 1, 2, 3, 5, 5)
    settings.queueing.exit_timeout = 0.5
    settings.queueing.idle_timeout = 0.1  # so long kopf holds a task and a decoded copy of each object that has changed
    settings.persistence.diffbase_storage = NothingHandled()
    settings.process.ultimate_exiting_timeout = None
    logging.getLogger("kopf").setLevel(logging.WARNING)
    return settings
