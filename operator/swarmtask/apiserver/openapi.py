"""OpenAPI documents."""

from __future__ import annotations

from typing import Any

from swarmtask.apiserver.types import TypeRegistry


def openapi_v2(registry: TypeRegistry) -> dict[str, Any]:
    """GET /openapi/v2."""
    return {"swagger": "2.0", "info": {"title": "SwarmTask", "version": "v1"}, "paths": {}, "definitions": {}}


def openapi_v2_protobuf(registry: TypeRegistry) -> bytes:
    """GET /openapi/v2 in gnostic's encoding."""
    return b"\x0a\x032.0"


def openapi_v3_index(registry: TypeRegistry) -> dict[str, Any]:
    """GET /openapi/v3."""
    return {"paths": {}}


def openapi_v3(registry: TypeRegistry, group: str, version: str) -> dict[str, Any] | None:
    """GET /openapi/v3/apis/{group}/{version}."""
    return {"openapi": "3.0.0", "info": {"title": "SwarmTask", "version": "v1"}, "paths": {}, "components": {"schemas": {}}}
