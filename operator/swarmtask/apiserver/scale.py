"""The scale subresource: an object's number of replicas, seen and changed as an autoscaling/v1 Scale.

Called by the handlers of objects and by the object service. A definition says where the numbers are; this module moves them between
the object and the Scale, and stores nothing.
Source: Kubernetes documentation, "Scale subresource" of custom resource definitions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swarmtask.apiserver import faults
from swarmtask.apiserver.schema import compiled
from swarmtask.apiserver.types import ResourceType, ScalePaths
from swarmtask.errors import BadRequest, NotFound

_NUMBER, _TEXT = {"type": "integer"}, {"type": "string"}
_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "spec": {"type": "object", "properties": {"replicas": _NUMBER}},
        "status": {"type": "object", "properties": {"replicas": _NUMBER, "selector": _TEXT}},
    },
}
_SHARED_METADATA = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
MAX_REPLICAS = 2**31 - 1


def scale_of(rt: ResourceType, obj: dict[str, Any]) -> dict[str, Any]:
    """The Scale of an object.

    Raises:
        NotFound: the type has none.
    """
    paths = _paths(rt)
    status: dict[str, Any] = {"replicas": _number(obj, paths.status_replicas)}
    selector = _at(obj, paths.selector) if paths.selector else None
    if isinstance(selector, str) and selector:
        status["selector"] = selector
    metadata = {name: obj["metadata"][name] for name in _SHARED_METADATA if name in obj["metadata"]}
    spec = {"replicas": _number(obj, paths.spec_replicas)}
    return {"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status}


def with_scale(rt: ResourceType, obj: dict[str, Any], scale: Any) -> dict[str, Any]:
    """`obj` with the number that the Scale wishes; changed in place. Its resourceVersion becomes the one that the Scale carries.

    Raises:
        BadRequest: not a Scale, or of another object.
        Invalid: not a number of replicas.
    """
    paths = _paths(rt)
    name = obj["metadata"]["name"]
    if not isinstance(scale, dict) or scale.get("kind", "Scale") != "Scale":
        raise BadRequest("the body must be a Scale of autoscaling/v1")
    metadata, spec = ({} if scale.get(part) is None else scale[part] for part in ("metadata", "spec"))
    if not isinstance(metadata, dict) or not isinstance(spec, dict):
        raise BadRequest("metadata and spec of a Scale must be objects")
    if metadata.get("name", name) != name:
        raise BadRequest(f"the name of the object ({metadata['name']}) does not match the name on the URL ({name})")
    replicas = spec.get("replicas", 0)
    if not isinstance(replicas, int) or isinstance(replicas, bool) or not 0 <= replicas <= MAX_REPLICAS:
        why = f"must be a whole number between 0 and {MAX_REPLICAS}"
        raise faults.invalid(rt, name, [faults.bad_value("spec.replicas", replicas, why)])
    *parents, last = paths.spec_replicas.split(".")
    target = obj
    for part in parents:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise faults.invalid(rt, name, [faults.bad_value(paths.spec_replicas, target, f"{part} must be an object")])
    target[last] = replicas
    version = metadata.get("resourceVersion") or ""
    if not isinstance(version, str):
        raise BadRequest("metadata.resourceVersion must be a string")
    obj["metadata"]["resourceVersion"] = version
    return obj


def drop_unknown(scale: Any) -> list[str]:
    """Drop, in place, what a Scale does not have; returns the paths."""
    return compiled(_SCHEMA).prune(scale) if isinstance(scale, dict) else []


def _paths(rt: ResourceType) -> ScalePaths:
    if rt.scale is None:
        raise NotFound("the server could not find the requested resource")
    return rt.scale


def _at(obj: dict[str, Any], path: str) -> Any:
    value: Any = obj
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _number(obj: dict[str, Any], path: str) -> int:
    value = _at(obj, path)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
