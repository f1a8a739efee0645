"""OpenAPI documents of what is served: version 2 (JSON and protobuf) and version 3 (index and one document per group version).

Called by the routes under /openapi. kubectl 1.20 reads version 2 for apply, create and explain; kubectl from 1.27 reads version 3
and looks there for the parameters and patch types of each kind. Documents are built once per revision of the registry.
Source: OpenAPI 2.0 and 3.0; the `x-kubernetes-*` extensions of the Kubernetes API documentation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

import orjson

from swarmtask.apiserver.gnostic import encode_document
from swarmtask.apiserver.patch import patch_types
from swarmtask.apiserver.shapes import DELETE_OPTIONS, OBJECT_META, schema_of
from swarmtask.apiserver.types import ResourceType, TypeRegistry

_T = TypeVar("_T")
_META: Final = "io.k8s.apimachinery.pkg.apis.meta.v1."
_TITLE: Final = {"title": "SwarmTask", "version": "v1"}
_GVK: Final = "x-kubernetes-group-version-kind"
_WRITE_PARAMETERS: Final = (
    ("dryRun", "All: the request is checked and answered, nothing is stored."),
    ("fieldManager", "Name under which the written fields are owned."),
    ("fieldValidation", "What happens to unknown fields: Ignore, Warn or Strict."),
)
_LIST_PARAMETERS: Final = (
    ("allowWatchBookmarks", "boolean", "A watch also sends bookmarks."),
    ("continue", "string", "Token of the next page."),
    ("fieldSelector", "string", "Only objects with these field values."),
    ("labelSelector", "string", "Only objects with these labels."),
    ("limit", "integer", "Objects of one page."),
    ("resourceVersion", "string", "How fresh the answer must be, or from where a watch starts."),
    ("resourceVersionMatch", "string", "How resourceVersion is meant."),
    ("sendInitialEvents", "boolean", "A watch starts with the objects that exist."),
    ("timeoutSeconds", "integer", "Length of a watch."),
    ("watch", "boolean", "Changes instead of a list."),
)

_cache: WeakKeyDictionary[TypeRegistry, tuple[int, dict[Any, Any]]] = WeakKeyDictionary()


def openapi_v2(registry: TypeRegistry) -> dict[str, Any]:
    """GET /openapi/v2 as JSON."""
    return _cached(registry, "v2", lambda: _document_v2(registry))


def openapi_v2_protobuf(registry: TypeRegistry) -> bytes:
    """GET /openapi/v2 as gnostic's protobuf Document."""
    return _cached(registry, "v2-protobuf", lambda: encode_document(openapi_v2(registry)))


def openapi_v3_index(registry: TypeRegistry) -> dict[str, Any]:
    """GET /openapi/v3: the paths of the documents, each with a hash of its content."""

    def build() -> dict[str, Any]:
        paths = {}
        for group, versions in registry.groups().items():
            for version in versions:
                path = _prefix(group, version).removeprefix("/")
                digest = hashlib.sha256(orjson.dumps(openapi_v3(registry, group, version))).hexdigest().upper()
                paths[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash={digest}"}
        return {"paths": paths}

    return _cached(registry, "v3-index", build)


def openapi_v3(registry: TypeRegistry, group: str, version: str) -> dict[str, Any] | None:
    """GET /openapi/v3/api/v1 or /openapi/v3/apis/{group}/{version}; None when nothing of it is served."""
    types = registry.in_group_version(group, version)
    if not types:
        return None
    return _cached(registry, ("v3", group, version), lambda: _document_v3(types))


def _cached(registry: TypeRegistry, key: Any, build: Callable[[], _T]) -> _T:
    revision, documents = _cache.get(registry, (-1, {}))
    if revision != registry.revision:
        documents = {}
        _cache[registry] = (registry.revision, documents)
    if key not in documents:
        documents[key] = build()
    result: _T = documents[key]
    return result


# --- names and paths -----------------------------------------------------------------------------------------------------


def _prefix(group: str, version: str) -> str:
    return f"/apis/{group}/{version}" if group else f"/api/{version}"


def _definition(rt: ResourceType, kind: str) -> str:
    if rt.custom:
        return ".".join([*reversed(rt.group.split(".")), rt.version, kind])
    return f"io.k8s.api.{rt.group.partition('.')[0] or 'core'}.{rt.version}.{kind}"


def _gvk(rt: ResourceType) -> dict[str, str]:
    return {"group": rt.group, "kind": rt.kind, "version": rt.version}


_VERB_METHODS: Final = (
    ("get", "get", "read"), ("update", "put", "replace"), ("delete", "delete", "delete"), ("patch", "patch", "patch"),
)  # fmt: skip


_APART: Final = frozenset({"token", "log", "eviction", "exec"})
"""Subresources that are no form of the object."""


def _routes(rt: ResourceType) -> Iterator[tuple[str, bool, list[tuple[str, str, str]]]]:
    """(path, whether it names one object, [(method, action, verb)])."""
    prefix = _prefix(rt.group, rt.version)
    scope = f"{prefix}/namespaces/{{namespace}}" if rt.namespaced else prefix
    collection = [
        (method, action, verb)
        for verb, method, action in (
            ("list", "get", "list"),
            ("create", "post", "create"),
            ("deletecollection", "delete", "delete"),
        )
        if verb in rt.verbs
    ]
    if rt.namespaced and "list" in rt.verbs:
        yield f"{prefix}/{rt.plural}", False, [("get", "list", "list")]
    yield f"{scope}/{rt.plural}", False, collection
    single = [(method, action, verb) for verb, method, action in _VERB_METHODS if verb in rt.verbs]
    if single:
        yield f"{scope}/{rt.plural}/{{name}}", True, single
    for name in sorted(rt.subresources):
        if name in _APART:
            continue
        methods = [("put", "replace", "update")]
        if name != "finalize":
            methods = [("get", "read", "get"), *methods, ("patch", "patch", "patch")]
        yield f"{scope}/{rt.plural}/{{name}}/{name}", True, methods


def _query_parameters(method: str, verb: str) -> list[tuple[str, str, str]]:
    if method in ("post", "put", "patch"):
        listed = [(name, "string", text) for name, text in _WRITE_PARAMETERS]
        return [*listed, ("force", "boolean", "Take fields from their owners (apply only).")] if method == "patch" else listed
    if verb in ("list", "deletecollection"):
        return list(_LIST_PARAMETERS)
    if method == "delete":
        return [
            ("dryRun", "string", _WRITE_PARAMETERS[0][1]),
            ("gracePeriodSeconds", "integer", "Seconds granted for an orderly end."),
            ("propagationPolicy", "string", "Orphan, Background or Foreground."),
        ]
    return []


def _operation_id(rt: ResourceType, path: str, action: str, verb: str) -> str:
    words = [
        word for word in path.strip("/").replace("{", "").replace("}", "").replace(".", "_").split("/") if word != "namespaces"
    ]
    return action + "".join(word[:1].upper() + word[1:] for word in words) + ("Collection" if verb == "deletecollection" else "")


# --- version 3 -----------------------------------------------------------------------------------------------------------


def _document_v3(types: list[ResourceType]) -> dict[str, Any]:
    schemas: dict[str, Any] = {
        f"{_META}ObjectMeta": without_nullable(schema_of(OBJECT_META)),
        f"{_META}ListMeta": _LIST_META,
        f"{_META}DeleteOptions": without_nullable(schema_of(DELETE_OPTIONS, ("", "v1", "DeleteOptions"))),
        f"{_META}Patch": {"description": "Content of a patch.", "type": "object"},
    }
    paths: dict[str, Any] = {}
    for rt in types:
        for name, schema in _definitions(rt, "#/components/schemas/", lambda schema: schema):
            schemas[name] = schema
        for path, single, methods in _routes(rt):
            item: dict[str, Any] = {"parameters": _path_parameters(path, v3=True)}
            for method, action, verb in methods:
                item[method] = _operation_v3(rt, path, method, action, verb, single=single)
            paths[path] = item
    return {"openapi": "3.0.0", "info": _TITLE, "paths": paths, "components": {"schemas": schemas}}


def _path_parameters(path: str, *, v3: bool) -> list[dict[str, Any]]:
    texts = {"namespace": "Namespace of the object.", "name": "Name of the object."}
    shape: dict[str, Any] = {"schema": {"type": "string"}} if v3 else {"type": "string"}
    return [
        {"name": name, "in": "path", "required": True, "description": text, "uniqueItems": True, **shape}
        if not v3
        else {"name": name, "in": "path", "required": True, "description": text, **shape}
        for name, text in texts.items()
        if f"{{{name}}}" in path
    ]


def _operation_v3(rt: ResourceType, path: str, method: str, action: str, verb: str, *, single: bool) -> dict[str, Any]:
    scale = path.endswith("/scale")
    name = f"{_definition(rt, rt.list_kind)}" if verb in ("list",) else _definition(rt, rt.kind)
    reference: dict[str, Any] = {"type": "object"} if scale else {"$ref": f"#/components/schemas/{name}"}
    operation: dict[str, Any] = {
        "description": f"{action} {rt.kind}",
        "operationId": _operation_id(rt, path, action, verb),
        "parameters": [
            {"name": key, "in": "query", "description": text, "schema": {"type": kind}}
            for key, kind, text in _query_parameters(method, verb)
        ],
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": reference}}}},
        "x-kubernetes-action": verb if single or verb != "create" else "post",
        _GVK: {"group": "autoscaling", "kind": "Scale", "version": "v1"} if scale else _gvk(rt),
    }
    if method in ("post", "put"):
        operation["requestBody"] = {"required": True, "content": {"*/*": {"schema": reference}}}
    elif method == "patch":
        body = {"schema": {"$ref": f"#/components/schemas/{_META}Patch"}}
        operation["requestBody"] = {"required": True, "content": dict.fromkeys(patch_types(rt), body)}
    elif method == "delete":
        operation["requestBody"] = {"content": {"*/*": {"schema": {"$ref": f"#/components/schemas/{_META}DeleteOptions"}}}}
    return operation


_LIST_META: Final[Mapping[str, Any]] = {
    "description": "Metadata of a list.",
    "type": "object",
    "properties": {
        "continue": {"description": "Token of the next page.", "type": "string"},
        "remainingItemCount": {"description": "Objects after this page.", "type": "integer", "format": "int64"},
        "resourceVersion": {"description": "State of the store that the list shows.", "type": "string"},
        "selfLink": {"description": "No longer filled.", "type": "string"},
    },
}


def _definitions(
    rt: ResourceType, prefix: str, convert: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The definitions of a kind and of its list."""
    source = rt.schema or {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    schema = dict(convert(source if rt.custom else without_nullable(source)))
    properties = {
        "apiVersion": {"type": "string", "description": "Group and version of this representation."},
        "kind": {"type": "string", "description": "What the object is, in CamelCase."},
        **{
            name: child
            for name, child in (schema.get("properties") or {}).items()
            if name not in ("apiVersion", "kind", "metadata")
        },
    }
    properties["metadata"] = {"description": "Standard metadata.", **_reference(prefix, "ObjectMeta")}
    schema["properties"] = dict(sorted(properties.items()))
    if rt.custom:
        for name, text in (
            ("apiVersion", "Group and version of this representation."),
            ("kind", "What the object is, in CamelCase."),
        ):
            schema["properties"][name] = {"type": "string", "description": text}
    schema[_GVK] = [_gvk(rt)]
    yield _definition(rt, rt.kind), schema
    if "list" in rt.verbs:
        yield (
            _definition(rt, rt.list_kind),
            {
                "description": f"List of {rt.kind}.",
                "type": "object",
                "required": ["items"],
                "properties": {
                    "apiVersion": {"type": "string", "description": "Group and version of this representation."},
                    "items": {"type": "array", "description": "The objects.", "items": {"$ref": prefix + _definition(rt, rt.kind)}},
                    "kind": {"type": "string", "description": "What the object is, in CamelCase."},
                    "metadata": {"description": "Metadata of the list.", **_reference(prefix, "ListMeta")},
                },
                _GVK: [{**_gvk(rt), "kind": rt.list_kind}],
            },
        )


def without_nullable(schema: Any) -> Any:
    """A schema of ours as it is published: built-in kinds take null for "not set" everywhere, and their documents do not say so."""
    if isinstance(schema, Mapping):
        return {key: without_nullable(value) for key, value in schema.items() if key != "nullable" or not isinstance(value, bool)}
    return schema


def _reference(prefix: str, name: str) -> dict[str, Any]:
    reference = {"$ref": f"{prefix}{_META}{name}"}
    return {"allOf": [reference]} if prefix.startswith("#/components") else reference


# --- version 2 -----------------------------------------------------------------------------------------------------------


def _document_v2(registry: TypeRegistry) -> dict[str, Any]:
    definitions: dict[str, Any] = {
        f"{_META}ObjectMeta": _to_v2(without_nullable(schema_of(OBJECT_META))),
        f"{_META}ListMeta": _LIST_META,
        f"{_META}DeleteOptions": _to_v2(without_nullable(schema_of(DELETE_OPTIONS, ("", "v1", "DeleteOptions")))),
        f"{_META}Patch": {"description": "Content of a patch.", "type": "object"},
    }
    paths: dict[str, Any] = {}
    for rt in registry:
        for name, schema in _definitions(rt, "#/definitions/", _to_v2):
            definitions[name] = schema
        for path, single, methods in _routes(rt):
            item: dict[str, Any] = {"parameters": _path_parameters(path, v3=False)} if "{" in path else {}
            for method, action, verb in methods:
                item[method] = _operation_v2(rt, path, method, action, verb, single=single)
            paths[path] = item
    return {"swagger": "2.0", "info": _TITLE, "paths": paths, "definitions": definitions}


_V2_DROPPED: Final = frozenset({
    "nullable", "oneOf", "anyOf", "allOf", "not", "x-kubernetes-embedded-resource", "x-kubernetes-map-type", "default",
})  # fmt: skip


def _to_v2(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What version 2 cannot say is left out, so that clients accept more rather than less than the server."""
    result = {key: value for key, value in schema.items() if key not in _V2_DROPPED}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": "string", "format": "int-or-string", **_described(schema)}
    if schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("nullable"):
        return {
            key: value
            for key, value in result.items()
            if key == "description" or (key.startswith("x-kubernetes-") and "list" not in key)
        }
    if isinstance(result.get("properties"), Mapping):
        result["properties"] = {name: _to_v2(child) for name, child in result["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(result.get(key), Mapping):
            result[key] = _to_v2(result[key])
        elif result.get(key) is True:
            result[key] = {}
    return result


def _described(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": schema["description"]} if "description" in schema else {}


def _operation_v2(rt: ResourceType, path: str, method: str, action: str, verb: str, *, single: bool) -> dict[str, Any]:
    scale = path.endswith("/scale")
    name = _definition(rt, rt.list_kind) if verb == "list" else _definition(rt, rt.kind)
    schema: dict[str, Any] = {"type": "object"} if scale else {"$ref": f"#/definitions/{name}"}
    parameters: list[dict[str, Any]] = []
    if method in ("post", "put"):
        parameters.append({"name": "body", "in": "body", "required": True, "schema": schema})
    elif method == "patch":
        parameters.append({"name": "body", "in": "body", "required": True, "schema": {"$ref": f"#/definitions/{_META}Patch"}})
    elif method == "delete":
        parameters.append({"name": "body", "in": "body", "schema": {"$ref": f"#/definitions/{_META}DeleteOptions"}})
    parameters += [
        {"name": key, "in": "query", "type": kind, "description": text, "uniqueItems": True}
        for key, kind, text in _query_parameters(method, verb)
    ]
    return {
        "description": f"{action} {rt.kind}",
        "operationId": _operation_id(rt, path, action, verb),
        "consumes": list(patch_types(rt)) if method == "patch" else ["*/*"],
        "produces": ["application/json", "application/yaml"],
        "parameters": parameters,
        "responses": {"200": {"description": "OK", "schema": schema}},
        "x-kubernetes-action": verb if single or verb != "create" else "post",
        _GVK: {"group": "autoscaling", "kind": "Scale", "version": "v1"} if scale else _gvk(rt),
    }
