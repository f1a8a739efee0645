"""Routes that describe the API: version, health, discovery, OpenAPI.

Called by the application. Documents are made from the registry, encoded once per registry revision and kept.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any, Literal

import orjson

from swarmtask import __version__
from swarmtask.apiserver import discovery, faults, openapi
from swarmtask.apiserver.types import TypeRegistry
from swarmtask.apiserver.wire import Request, Response, clauses, negotiate, respond

KUBERNETES_VERSION = "v1.34.0"
"""What clients are told, so that they choose the behaviour that is implemented here; kubectl 1.33 to 1.35 stays quiet."""
GNOSTIC = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
_GNOSTIC_WANTED = frozenset({GNOSTIC, "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"})
DiscoveryVersion = Literal["v2", "v2beta1"]
ROUTES = (
    "/version", "/api", "/api/{version}", "/apis", "/apis/{group}", "/apis/{group}/{version}",
    "/openapi/v2", "/openapi/v3", "/openapi/v3/api/{version}", "/openapi/v3/apis/{group}/{version}",
)  # fmt: skip
"""The paths that are answered here, as `DiscoveryHandlers` reads them; all of them with GET."""


_BY_LENGTH: dict[int, list[tuple[list[str], str]]] = {}
for _item in ROUTES:
    _parts = _item[1:].split("/")
    _BY_LENGTH.setdefault(len(_parts), []).append((_parts, _item))


def _route_of(segments: list[str]) -> str | None:
    """The one of `ROUTES` that a path takes."""
    for parts, route in _BY_LENGTH.get(len(segments), ()):
        if all(part == segment or part[0] == "{" for part, segment in zip(parts, segments, strict=True)):
            return route
    return None


def version_document() -> dict[str, str]:
    """GET /version."""
    return {
        "major": "1", "minor": "34", "gitVersion": f"{KUBERNETES_VERSION}+swarmtask-{__version__}", "gitCommit": "",
        "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": f"python{platform.python_version()}",
        "compiler": platform.python_implementation(), "platform": f"linux/{platform.machine()}",
    }  # fmt: skip


class DiscoveryHandlers:
    """All routes without objects. `address` is host:port as clients reach the server."""

    def __init__(self, registry: TypeRegistry, address: str) -> None:
        self._registry = registry
        self.address = address
        self._revision = -1
        self._documents: dict[tuple[str, str], bytes | None] = {}

    def handle(self, request: Request, segments: list[str]) -> Response | None:
        """None: not one of these routes."""
        route = self._route(request, segments)
        if route is None:
            return None
        if request.method != "GET":
            raise faults.method_not_allowed()
        return route()

    def _route(self, request: Request, segments: list[str]) -> Callable[[], Response] | None:
        route = _route_of(segments)
        if route is None:
            return None
        plain, group, version = "/".join(segments), segments[-2] if len(segments) > 1 else "", segments[-1]
        if route.startswith("/openapi/"):
            return lambda: self._openapi(request, route, group, version)
        match route:
            case "/version":
                return lambda: respond(version_document())
            case "/api" | "/apis":
                return lambda: self._root(request, core=route == "/api")
            case "/apis/{group}":
                return lambda: self._document("plain", plain, lambda: discovery.group(self._registry, segments[1]))
            case "/api/{version}":
                return lambda: self._resources(segments, "", version)
            case _:
                return lambda: self._resources(segments, group, version)

    def _resources(self, segments: list[str], group: str, version: str) -> Response:
        return self._document("plain", "/".join(segments), lambda: discovery.resource_list(self._registry, group, version))

    def _root(self, request: Request, *, core: bool) -> Response:
        name = "api" if core else "apis"
        version = _aggregated_version(request)
        if version is not None:
            media = f"application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"
            return self._document(
                media, name, lambda: discovery.aggregated(self._registry, core=core, version=version), media=media
            )
        negotiate(request, shapes=False)
        if core:
            return self._document("plain", name, lambda: discovery.api_versions(self.address))
        return self._document("plain", name, lambda: discovery.group_list(self._registry))

    def _openapi(self, request: Request, route: str, group: str, version: str) -> Response:
        match route:
            case "/openapi/v2":
                if any(media in _GNOSTIC_WANTED for media, _ in clauses(request.headers.get("accept", ""))[:1]):
                    return self._bytes("gnostic", "openapi/v2", lambda: openapi.openapi_v2_protobuf(self._registry), GNOSTIC)
                return self._document("plain", "openapi/v2", lambda: openapi.openapi_v2(self._registry))
            case "/openapi/v3":
                return self._document("plain", "openapi/v3", lambda: openapi.openapi_v3_index(self._registry))
        core = route == "/openapi/v3/api/{version}"
        name = f"openapi/v3/api/{version}" if core else f"openapi/v3/apis/{group}/{version}"
        return self._document("plain", name, lambda: openapi.openapi_v3(self._registry, "" if core else group, version))

    def _document(self, form: str, name: str, make: Callable[[], Any], *, media: str = "application/json") -> Response:
        def encode() -> bytes | None:
            value = make()
            return None if value is None else orjson.dumps(value) + b"\n"

        return self._bytes(form, name, encode, media)

    def _bytes(self, form: str, name: str, make: Callable[[], bytes | None], media: str) -> Response:
        if self._revision != self._registry.revision:
            self._documents.clear()
            self._revision = self._registry.revision
        key = (form, name)
        body = self._documents.get(key)
        if body is None:
            body = make()
            if body is None:
                raise faults.no_such_path()
            self._documents[key] = body
        return Response(200, body, media, [("vary", "Accept")])


def _aggregated_version(request: Request) -> DiscoveryVersion | None:
    """The aggregated form that the client prefers, unless it asks for the plain form before it."""
    for media, parameters in clauses(request.headers.get("accept", "")):
        if media in ("application/json", "*/*") and "as" not in parameters:
            return None
        if parameters.get("as") == "APIGroupDiscoveryList" and parameters.get("g") == "apidiscovery.k8s.io":
            if parameters.get("v") == "v2":
                return "v2"
            if parameters.get("v") == "v2beta1":
                return "v2beta1"
    return None
