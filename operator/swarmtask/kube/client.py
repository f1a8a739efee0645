"""`KubeClient`: the API over HTTPS, for the embedded server and any cluster alike.

Called through `ObjectApi`. Nothing here knows which server it speaks to. It repeats reads that failed on the way and watches that
were interrupted; it never repeats a write.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote

import httpx2
import orjson
from lightkube.core.exceptions import ConfigError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, stop_after_delay
from tenacity.wait import wait_random_exponential

from swarmtask.errors import (
    BadRequest,
    ConfigurationError,
    Expired,
    InternalError,
    ServiceUnavailable,
    SwarmTaskError,
    Timeout,
    TooManyRequests,
    Transient,
)
from swarmtask.kube.answers import error_from_response, json_object, watch_event
from swarmtask.kube.api import Object, ObjectList, PatchType, WatchEvent
from swarmtask.kube.connection import Connection
from swarmtask.kube.pages import Pages, lean
from swarmtask.kube.transport import CONNECT_S, READ_S, http_client, network_error
from swarmtask.resources.kinds import Kind
from swarmtask.resources.meta import FIELD_MANAGER
from swarmtask.resources.tenure import HEADER, Tenure

logger = logging.getLogger(__name__)

READ_ATTEMPTS = 4
PAGE_SIZE = 500
WATCH_S = 300
"""A watch is asked to end after about this many seconds; silence of `READ_S` beyond that counts as a dead connection."""
WATCH_BACKOFF_CAP_S = 5.0
_Answers = list[bytes]
PATCH_CONTENT_TYPES = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",
}


class KubeClient:
    """`ObjectApi` over HTTPS.

    lightkube reads the kubeconfig and gives the authenticated, TLS-verifying transport; the requests are built here, because
    lightkube's own calls turn objects into typed models and do not reconnect a watch whose server went away (docs/kube-client.md).

    Args:
        connection: where and as whom.
        field_manager: name under which writes are recorded in managedFields.
        field_validation: what a write with unknown or repeated fields meets; None leaves it to the server (Warn).
        transport: replaces the network, for tests.
        tenure: for whoever decides alone: see `resources.tenure`.
        rng: source of the jitter.
        sparing: what is read comes without managedFields, and long lists are decoded while somebody goes through them. For a
            process that stays, and never writes back whole objects.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        field_manager: str = FIELD_MANAGER,
        field_validation: Literal["Strict", "Warn", "Ignore"] | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
        tenure: Tenure | None = None,
        rng: random.Random | None = None,
        sparing: bool = False,
    ) -> None:
        self.connection = connection
        self.tenure = tenure
        self._sparing = sparing
        self._field_manager = field_manager
        self._field_validation = field_validation
        self._rng = rng or random.Random()
        self._http = http_client(connection, transport)

    @classmethod
    def from_kubeconfig(cls, path: Path | None = None, context: str | None = None) -> KubeClient:
        """A client for a context of a kubeconfig; see `Connection.from_kubeconfig`."""
        return cls(Connection.from_kubeconfig(path, context))

    @classmethod
    def from_service_account(cls) -> KubeClient:
        """A client for the cluster whose pod this process runs in."""
        return cls(Connection.from_service_account())

    @classmethod
    def from_environment(cls) -> KubeClient:
        """In a pod its service account, elsewhere $KUBECONFIG or ~/.kube/config."""
        if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
            return cls.from_service_account()
        return cls.from_kubeconfig()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def version(self) -> Mapping[str, Any]:
        return await self._read("/version", {})

    async def get(self, kind: Kind, name: str, namespace: str | None = None) -> Object:
        return await self._read(_path(kind, namespace, name), {})

    async def list(
        self, kind: Kind, namespace: str | None = None, *, label_selector: str = "", field_selector: str = ""
    ) -> ObjectList:
        path, params = _path(kind, namespace), _selectors(label_selector, field_selector)
        try:
            return await self._pages(kind, path, params | {"limit": str(PAGE_SIZE)})
        except Expired:
            # The snapshot behind the continue token was compacted between two pages: read everything in one answer.
            return await self._pages(kind, path, params)

    async def _pages(self, kind: Kind, path: str, params: dict[str, str]) -> ObjectList:
        def finish(item: Object) -> Object:
            # Kubernetes leaves these two out of the items of a typed list.
            item.setdefault("apiVersion", kind.api_version)
            item.setdefault("kind", kind.kind)
            return lean(item) if self._sparing else item

        items: list[Object] = []
        raw: _Answers | None = [] if self._sparing else None
        count = 0
        params = dict(params)
        while True:
            page = await self._read(path, params, raw)
            if raw is None:
                items += map(finish, page.get("items") or ())
            else:
                count += len(page.get("items") or ())
            metadata = page.get("metadata") or {}
            token = metadata.get("continue")
            if not token:
                version = str(metadata.get("resourceVersion", ""))
                return ObjectList(items if raw is None else Pages(raw, count, finish), version)
            params["continue"] = token

    async def create(self, kind: Kind, obj: Object, namespace: str | None = None, *, dry_run: bool = False) -> Object:
        if kind.namespaced and namespace is None:
            namespace = (obj.get("metadata") or {}).get("namespace") or self.connection.namespace
        return await self._send("POST", _path(kind, namespace), self._write_params(dry_run=dry_run), obj)

    async def replace(self, kind: Kind, obj: Object, *, subresource: str | None = None) -> Object:
        metadata = obj["metadata"]
        path = _path(kind, metadata.get("namespace"), metadata["name"], subresource)
        return await self._send("PUT", path, self._write_params(), obj)

    async def patch(
        self,
        kind: Kind,
        name: str,
        patch: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        namespace: str | None = None,
        *,
        type_: PatchType = "merge",
        subresource: str | None = None,
        field_manager: str | None = None,
        force: bool = False,
        dry_run: bool = False,
    ) -> Object:
        params = self._write_params(field_manager, dry_run=dry_run)
        if force:
            params["force"] = "true"
        path = _path(kind, namespace, name, subresource)
        return await self._send("PATCH", path, params, patch, content_type=PATCH_CONTENT_TYPES[type_])

    async def delete(
        self,
        kind: Kind,
        name: str,
        namespace: str | None = None,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        propagation: Literal["Background", "Foreground", "Orphan"] | None = None,
    ) -> None:
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
        conditions = {"uid": uid, "resourceVersion": resource_version}
        if any(conditions.values()):
            options["preconditions"] = {name: value for name, value in conditions.items() if value is not None}
        if propagation is not None:
            options["propagationPolicy"] = propagation
        await self._send("DELETE", _path(kind, namespace, name), {}, options)

    async def watch(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        resource_version: str,
        label_selector: str = "",
        field_selector: str = "",
    ) -> AsyncGenerator[WatchEvent, None]:
        path, base = _path(kind, namespace), _selectors(label_selector, field_selector)
        version, failures = resource_version, 0
        while True:
            params = base | {
                "watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version,
                "timeoutSeconds": str(self._rng.randint(WATCH_S - 30, WATCH_S)),
            }  # fmt: skip
            progressed = False
            try:
                async with aclosing(self._watch_once(path, params)) as events:
                    async for event in events:
                        version = event.object.get("metadata", {}).get("resourceVersion") or version
                        progressed, failures = True, 0
                        yield event
            except Transient as error:
                if isinstance(error, Expired):
                    raise
                logger.warning("watch of %s was interrupted: %s; reconnecting from %s", kind.plural, error, version)
            # A watch that ends by itself is normal; one that ends at once, again and again, must not become a busy loop.
            failures = 0 if progressed else failures + 1
            await asyncio.sleep(self._rng.uniform(0, min(WATCH_BACKOFF_CAP_S, 0.1 * 2 ** min(failures, 10))))

    async def _watch_once(self, path: str, params: Mapping[str, str]) -> AsyncGenerator[WatchEvent, None]:
        timeout = httpx2.Timeout(READ_S, connect=CONNECT_S, read=WATCH_S + READ_S)
        try:
            async with self._http.stream("GET", path, params=params, timeout=timeout) as response:
                if response.status_code >= 400:
                    await response.aread()
                    raise error_from_response(response, self.connection)
                async for line in response.aiter_lines():
                    if line.strip():
                        yield watch_event(line, self.connection)
        except httpx2.HTTPError as error:
            raise network_error(error, self.connection) from error
        except ConfigError as error:
            raise ConfigurationError(f"cannot log in with {self.connection.source}: {error}") from error

    async def text(
        self, kind: Kind, name: str, namespace: str | None, subresource: str, params: Mapping[str, str]
    ) -> AsyncGenerator[bytes, None]:
        timeout = httpx2.Timeout(READ_S, connect=CONNECT_S, read=None)  # who follows waits; a dead peer is noticed by keep-alives
        path = _path(kind, namespace, name, subresource)
        try:
            async with self._http.stream("GET", path, params=dict(params), timeout=timeout) as response:
                if response.status_code >= 400:
                    await response.aread()
                    raise error_from_response(response, self.connection)
                async for chunk in response.aiter_bytes():
                    yield chunk
        except httpx2.HTTPError as error:
            raise network_error(error, self.connection) from error
        except ConfigError as error:
            raise ConfigurationError(f"cannot log in with {self.connection.source}: {error}") from error

    def _write_params(self, field_manager: str | None = None, *, dry_run: bool = False) -> dict[str, str]:
        params = {"fieldManager": field_manager or self._field_manager}
        if self._field_validation:
            params["fieldValidation"] = self._field_validation
        if dry_run:
            params["dryRun"] = "All"
        return params

    async def _read(self, path: str, params: Mapping[str, str], raw: _Answers | None = None) -> Object:
        """GET with retries: reading twice does no harm. Writes are never repeated here; their callers know whether they may. What
        was answered is added to `raw` as it came."""
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type((ServiceUnavailable, Timeout, TooManyRequests, InternalError)),
            stop=stop_after_attempt(READ_ATTEMPTS) | stop_after_delay(READ_S),
            wait=_wait_before_retry,
            reraise=True,
        ):
            with attempt:
                return await self._send("GET", path, params, raw=raw)
        raise AssertionError("tenacity returns or raises")  # pragma: no cover

    async def _send(
        self,
        method: str,
        path: str,
        params: Mapping[str, str],
        body: object = None,
        *,
        content_type: str = "application/json",
        raw: _Answers | None = None,
    ) -> Object:
        headers = {"Content-Type": content_type} if body is not None else {}
        if self.tenure is not None and method != "GET":
            headers[HEADER] = str(self.tenure)
        content = orjson.dumps(body) if body is not None else None
        try:
            response = await self._http.request(method, path, params=params, content=content, headers=headers)
        except httpx2.HTTPError as error:
            raise network_error(error, self.connection) from error
        except ConfigError as error:  # the token file vanished, or an exec plugin failed
            raise ConfigurationError(f"cannot log in with {self.connection.source}: {error}") from error
        if response.status_code >= 400:
            raise error_from_response(response, self.connection)
        answer = json_object(response.content, self.connection)
        if raw is not None:
            raw.append(response.content)
        return lean(answer) if self._sparing else answer


def _path(kind: Kind, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
    """`Kind.path` with every part from outside quoted, so that a name cannot leave its place in the URL."""
    if name is not None and not name.strip("."):
        raise BadRequest(f"{name!r} is not a name of a {kind.kind}")
    return kind.path(
        quote(namespace, safe="") if namespace else None, quote(name, safe="") if name is not None else None, subresource
    )


def _selectors(label_selector: str, field_selector: str) -> dict[str, str]:
    params = {}
    if label_selector:
        params["labelSelector"] = label_selector
    if field_selector:
        params["fieldSelector"] = field_selector
    return params


def _wait_before_retry(state: RetryCallState) -> float:
    """Full jitter, and never less than what the server asked for (within reason)."""
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.retry_after_s if isinstance(error, SwarmTaskError) and error.retry_after_s else 0
    return min(asked, 10) + float(_FULL_JITTER(state))


_FULL_JITTER = wait_random_exponential(multiplier=0.1, max=2)
