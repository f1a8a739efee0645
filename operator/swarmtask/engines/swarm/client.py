"""Talking to a Docker daemon without ever letting it hold up the event loop or its callers.

Called by `engine`. Every call runs in a bounded thread pool with a time-out on the socket and one on the caller: a daemon that
hangs costs a thread for `timeout_s` at most, and a caller that waits for a free thread gives up after the same time. Streams
(events, logs) have a thread of their own. The SDK's and the transport's errors are mapped here, nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import docker
import requests
import urllib3
from docker.errors import APIError, DockerException
from docker.types import CancellableStream
from docker.utils import kwargs_from_env

from swarmtask.errors import EngineRejected, EngineUnavailable, SwarmTaskError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Api = Any
"""A docker.APIClient; its type stubs are incomplete."""
TRANSPORT_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)
SYSTEM_ERROR_FRAME = 3
QUEUE_LENGTH = 256


class AlreadyThere(EngineRejected):
    """409: an object of that name exists, or it is in the way of what was asked."""


class Missing(EngineRejected):
    """404."""


class OutOfDate(EngineRejected):
    """The object changed between read and update: read again."""


def words(error: APIError) -> str:
    """The daemon's own words, without the SDK's and gRPC's wrapping."""
    text = str(error.explanation or error)
    return text.rpartition("desc = ")[2].strip() or str(error)


def mapped(error: Exception, endpoint: str) -> SwarmTaskError:
    """A foreign error in our words."""
    if isinstance(error, APIError):
        said = words(error)
        if "update out of sequence" in said:
            return OutOfDate(said)
        match error.status_code:
            case 404:
                return Missing(said)
            case 409:
                return AlreadyThere(said)
            case 400 | 403 | 406:
                return EngineRejected(f"Docker refused: {said}")
            case _:
                return EngineUnavailable(f"Docker at {endpoint} cannot do it now: {said}")
    if isinstance(error, (requests.Timeout, TimeoutError)):
        return EngineUnavailable(f"Docker at {endpoint} did not answer in time")
    return EngineUnavailable(f"Docker at {endpoint} does not answer: {error}")


@dataclass(frozen=True)
class Source(Generic[T_co]):
    """A stream that is open: what comes, and how another thread ends it."""

    items: Iterator[T_co]
    close: Callable[[], None]


class DockerClient:
    """One daemon.

    Args:
        endpoint: `unix://...`, `tcp://...`; None takes DOCKER_HOST and its companions from the environment, like Docker's client.
    """

    def __init__(self, endpoint: str | None, *, timeout_s: float, threads: int) -> None:
        self._wanted = endpoint
        self._found = ""
        self._timeout_s = timeout_s
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="docker")
        self._threads = threads
        self._api: Api | None = None
        self._lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return self._wanted or self._found or "DOCKER_HOST or the local socket"

    async def call(self, function: Callable[[Api], T]) -> T:
        """Run `function` in a thread.

        Raises:
            EngineUnavailable, EngineRejected and its kinds above.
        """
        loop = asyncio.get_running_loop()
        try:
            # a second more than the socket's own time-out, whose message is the better one
            async with asyncio.timeout(self._timeout_s + 1):
                return await loop.run_in_executor(self._pool, self._run, function)
        except TimeoutError as error:
            raise EngineUnavailable(f"Docker at {self.endpoint} did not answer within {self._timeout_s:g} s") from error
        except RuntimeError as error:  # the pool is shut down
            raise EngineUnavailable("the Swarm engine is closed") from error

    def _run(self, function: Callable[[Api], T]) -> T:
        try:
            return function(self._connected())
        except SwarmTaskError:
            raise
        except (DockerException, *TRANSPORT_ERRORS) as error:
            raise mapped(error, self.endpoint) from error

    def _connected(self) -> Api:
        """The SDK's client; making it asks the daemon for its version, so it is made in a thread and again after a failure."""
        if self._api is not None:
            return self._api
        if not self._lock.acquire(timeout=self._timeout_s):  # another thread is trying, in vain so far
            raise EngineUnavailable(f"Docker at {self.endpoint} did not answer within {self._timeout_s:g} s")
        try:
            if self._api is None:
                options: dict[str, Any] = {"version": "auto", "timeout": self._timeout_s, "max_pool_size": self._threads + 4}
                if self._wanted is not None:
                    self._api = docker.APIClient(base_url=self._wanted, **options)
                else:
                    environment = kwargs_from_env()
                    self._found = environment.get("base_url") or "the local socket"
                    self._api = docker.APIClient(**environment, **options)
            return self._api
        finally:
            self._lock.release()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._api is not None:
            self._api.close()

    # --- streams ----------------------------------------------------------------------------------------------------------

    async def stream(self, open_source: Callable[[Api], Source[T]], *, idle_s: float) -> AsyncGenerator[T | None, None]:
        """Items of a stream as they come; None after every `idle_s` seconds without one. The end of the stream ends it.

        The thread that reads waits when nobody takes the items. Leaving the iteration closes the stream.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[str, Any]] = asyncio.Queue(QUEUE_LENGTH)
        closed = threading.Event()
        sources: list[Source[T]] = []

        def deliver(kind: str, value: Any) -> None:
            if closed.is_set():
                return
            coroutine = queue.put((kind, value))
            try:
                asyncio.run_coroutine_threadsafe(coroutine, loop).result()
            except (RuntimeError, asyncio.CancelledError, TimeoutError):  # the loop is gone or going
                coroutine.close()
                closed.set()

        def read() -> None:
            try:
                source = open_source(self._connected())
                sources.append(source)
                if closed.is_set():
                    source.close()
                for item in source.items:
                    deliver("item", item)
                    if closed.is_set():
                        return
                deliver("end", None)
            except SwarmTaskError as error:
                deliver("error", error)
            except (DockerException, *TRANSPORT_ERRORS, ValueError, AttributeError) as error:
                # ValueError, AttributeError: what the transport raises when another thread closes it during a read
                deliver("error", mapped(error, self.endpoint))
            finally:
                for source in sources:
                    with contextlib.suppress(DockerException, OSError, AttributeError, ValueError):
                        source.close()

        threading.Thread(target=read, name="docker-stream", daemon=True).start()
        try:
            while True:
                try:
                    async with asyncio.timeout(idle_s):
                        kind, value = await queue.get()
                except TimeoutError:
                    yield None
                    continue
                if kind == "item":
                    yield value
                elif kind == "end":
                    return
                else:
                    raise value
        finally:
            closed.set()
            while not queue.empty():  # lets a waiting reader go on, and see that nobody listens
                queue.get_nowait()
            for source in sources:
                with contextlib.suppress(DockerException, OSError, AttributeError, ValueError):
                    source.close()


def open_events(api: Api, kinds: list[str]) -> Source[dict[str, Any]]:
    stream = api.events(filters={"type": kinds}, decode=True)
    return Source(iter(stream), stream.close)


def open_task_logs(api: Api, task_id: str, *, follow: bool, tail: int | None, timestamps: bool, timeout_s: float) -> Source[bytes]:
    """`GET /tasks/{id}/logs`, which the SDK has no method for; the service's logs would wait for its replacement task too."""
    url = api._url("/tasks/{0}/logs", task_id)
    params = {"stdout": True, "stderr": True, "follow": follow, "timestamps": timestamps, "tail": "all" if tail is None else tail}
    response = api._get(url, params=params, stream=True, timeout=(timeout_s, None if follow else timeout_s))
    api._raise_for_status(response)
    return Source(frames(response.raw), CancellableStream(iter(()), response).close)


def frames(raw: Any) -> Iterator[bytes]:
    """Decode the multiplexed stream: 1 byte stream, 3 bytes nothing, 4 bytes length, then the text.

    Raises:
        EngineUnavailable: a frame of Docker's own, which tells what it could not read.
    """
    while len(header := raw.read(8)) == 8:
        kind, length = struct.unpack(">BxxxL", header)
        text = raw.read(length)
        if kind == SYSTEM_ERROR_FRAME:
            raise EngineUnavailable(f"the logs cannot be read now: {text.decode(errors='replace').strip()}")
        yield text
