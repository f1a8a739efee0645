"""OpenAPI documents: what kubectl looks for in them, and that the two encodings of version 2 say the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from swarmtask.apiserver import openapi
from swarmtask.apiserver.builtins import builtin_types, types_of_crd
from swarmtask.apiserver.types import ResourceType, TypeRegistry

CRDS = Path(__file__).parents[2] / "manifests" / "crds"
GVK = "x-kubernetes-group-version-kind"
TASK_GVK = {"group": "swarmtask.io", "kind": "SwarmTask", "version": "v1alpha1"}


@pytest.fixture
def registry() -> TypeRegistry:
    types = builtin_types()
    for path in sorted(CRDS.glob("*.yaml")):
        types += types_of_crd(yaml.safe_load(path.read_text()))
    types.append(ResourceType("a.io", "v1", "Open", "opens", "open", namespaced=False, custom=True, list_kind="OpenList",
                              subresources=frozenset({"scale"})))  # fmt: skip
    return TypeRegistry(types)


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for child in value.values():
            yield from references(child)
    elif isinstance(value, list):
        for child in value:
            yield from references(child)


def test_every_document_of_the_index_exists_and_is_sound(registry: TypeRegistry) -> None:
    index = openapi.openapi_v3_index(registry)["paths"]
    assert "api/v1" in index
    assert "apis/swarmtask.io/v1alpha1" in index
    ids: list[str] = []
    for path, entry in index.items():
        assert re.fullmatch(rf"/openapi/v3/{re.escape(path)}\?hash=[0-9A-F]{{64}}", entry["serverRelativeURL"])
        *_, group, version = ["", *path.split("/")[1:]] if path.startswith("api/") else path.split("/")
        document = openapi.openapi_v3(registry, group, version)
        assert document is not None
        for reference in references(document):
            assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"]
        for name, item in document["paths"].items():
            wanted = set(re.findall(r"\{(\w+)\}", name))
            assert {parameter["name"] for parameter in item["parameters"]} == wanted
            ids += [operation["operationId"] for method, operation in item.items() if method != "parameters"]
        orjson.dumps(document)
    assert len(ids) == len(set(ids)), "operation ids must be unique"


def test_what_kubectl_needs_of_version_3(registry: TypeRegistry) -> None:
    document = openapi.openapi_v3(registry, "swarmtask.io", "v1alpha1")
    assert document is not None
    path = "/apis/swarmtask.io/v1alpha1/namespaces/{namespace}/swarmtasks"
    for item, method in ((path, "post"), (f"{path}/{{name}}", "put"), (f"{path}/{{name}}", "patch")):
        operation = document["paths"][item][method]
        assert operation[GVK] == TASK_GVK
        assert {"dryRun", "fieldManager", "fieldValidation"} <= {parameter["name"] for parameter in operation["parameters"]}
    assert set(document["paths"][f"{path}/{{name}}"]["patch"]["requestBody"]["content"]) == {
        "application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"}  # fmt: skip
    core = openapi.openapi_v3(registry, "", "v1")
    assert core is not None
    config_map = core["paths"]["/api/v1/namespaces/{namespace}/configmaps/{name}"]["patch"]
    assert "application/strategic-merge-patch+json" in config_map["requestBody"]["content"]
    schemas = document["components"]["schemas"]
    (task,) = [schema for schema in schemas.values() if TASK_GVK in schema.get(GVK, [])]
    assert task["properties"]["spec"]["properties"]["container"]["required"] == ["image"]
    assert task["properties"]["metadata"]["allOf"] == [
        {"$ref": "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
    ]
    assert openapi.openapi_v3(registry, "swarmtask.io", "v9") is None


def test_reviews_can_only_be_created(registry: TypeRegistry) -> None:
    document = openapi.openapi_v3(registry, "authorization.k8s.io", "v1")
    assert document is not None
    item = document["paths"]["/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"]
    assert set(item) == {"parameters", "post"}


def test_version_2_leaves_out_what_it_cannot_say(registry: TypeRegistry) -> None:
    document = openapi.openapi_v2(registry)
    for reference in references(document):
        assert reference.removeprefix("#/definitions/") in document["definitions"]
    text = orjson.dumps(document["definitions"]).decode()
    for word in ('"nullable"', '"anyOf"', '"oneOf"', '"allOf"', '"not"'):
        assert word not in text
    task = document["definitions"]["io.swarmtask.v1alpha1.SwarmTask"]
    cpu = task["properties"]["spec"]["properties"]["container"]["properties"]["resources"]["properties"]["requests"]["properties"][
        "cpu"
    ]
    assert (cpu["type"], cpu["format"]) == ("string", "int-or-string")
    conditions = document["definitions"]["io.k8s.api.core.v1.Namespace"]["properties"]["status"]["properties"]["conditions"]
    assert conditions["x-kubernetes-patch-merge-key"] == "type"
    assert document["definitions"]["io.k8s.api.core.v1.Secret"]["properties"]["immutable"]["type"] == "boolean"
    assert "type" not in document["definitions"]["io.a.v1.Open"]


# --- the protobuf form, read back ----------------------------------------------------------------------------------------

TEXT, NUMBER, DOUBLE = "text", "number", "double"
MESSAGES: dict[str, dict[int, tuple[str, str]]] = {
    "Document": {1: ("swagger", TEXT), 2: ("info", "Info"), 8: ("paths", "Paths"), 9: ("definitions", "Definitions")},
    "Info": {1: ("title", TEXT), 2: ("version", TEXT)},
    "Paths": {2: ("path", "NamedPathItem")},
    "NamedPathItem": {1: ("name", TEXT), 2: ("value", "PathItem")},
    "PathItem": {2: ("get", "Operation"), 3: ("put", "Operation"), 4: ("post", "Operation"), 5: ("delete", "Operation"),
                 8: ("patch", "Operation"), 9: ("parameters", "ParametersItem")},
    "Operation": {3: ("description", TEXT), 5: ("operationId", TEXT), 6: ("produces", TEXT), 7: ("consumes", TEXT),
                  8: ("parameters", "ParametersItem"), 9: ("responses", "Responses"), 13: ("extension", "NamedAny")},
    "ParametersItem": {1: ("parameter", "Parameter")},
    "Parameter": {1: ("body", "BodyParameter"), 2: ("other", "NonBodyParameter")},
    "BodyParameter": {1: ("description", TEXT), 2: ("name", TEXT), 3: ("in", TEXT), 4: ("required", NUMBER), 5: ("schema",
     "Schema")},
    "NonBodyParameter": {3: ("query", "Query"), 4: ("path", "Path")},
    "Query": {1: ("required", NUMBER), 2: ("in", TEXT), 3: ("description", TEXT), 4: ("name", TEXT), 6: ("type", TEXT)},
    "Path": {1: ("required", NUMBER), 2: ("in", TEXT), 3: ("description", TEXT), 4: ("name", TEXT), 5: ("type", TEXT)},
    "Responses": {1: ("code", "NamedResponse")},
    "NamedResponse": {1: ("name", TEXT), 2: ("value", "ResponseValue")},
    "ResponseValue": {1: ("response", "Response")},
    "Response": {1: ("description", TEXT), 2: ("schema", "SchemaItem")},
    "SchemaItem": {1: ("schema", "Schema")},
    "NamedAny": {1: ("name", TEXT), 2: ("value", "Any")},
    "Any": {2: ("yaml", TEXT)},
    "Definitions": {1: ("schema", "NamedSchema")},
    "Properties": {1: ("schema", "NamedSchema")},
    "NamedSchema": {1: ("name", TEXT), 2: ("value", "Schema")},
    "AdditionalPropertiesItem": {1: ("schema", "Schema")},
    "TypeItem": {1: ("value", TEXT)},
    "ItemsItem": {1: ("schema", "Schema")},
    "Schema": {
        1: ("$ref", TEXT), 2: ("format", TEXT), 4: ("description", TEXT), 6: ("multipleOf", DOUBLE), 7: ("maximum", DOUBLE),
        8: ("exclusiveMaximum", NUMBER), 9: ("minimum", DOUBLE), 10: ("exclusiveMinimum", NUMBER), 11: ("maxLength", NUMBER),
        12: ("minLength", NUMBER), 13: ("pattern", TEXT), 14: ("maxItems", NUMBER), 15: ("minItems", NUMBER),
        17: ("maxProperties", NUMBER), 18: ("minProperties", NUMBER), 19: ("required", TEXT), 20: ("enum", "Any"),
        21: ("additionalProperties", "AdditionalPropertiesItem"), 22: ("type", "TypeItem"), 23: ("items", "ItemsItem"),
        25: ("properties", "Properties"), 31: ("extension", "NamedAny"),
    },
}  # fmt: skip


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position, value, shift = position + 1, value | (byte & 127) << shift, shift + 7
        if byte < 128:
            return value, position


def read(data: bytes, name: str) -> dict[str, list[Any]]:
    """A message as lists of values; a field that is not in the table, or of another wire type, is an error."""
    result: dict[str, list[Any]] = {}
    position = 0
    while position < len(data):
        tag, position = read_varint(data, position)
        field, kind = MESSAGES[name][tag >> 3]
        value: Any
        if kind == NUMBER:
            assert tag & 7 == 0
            value, position = read_varint(data, position)
        elif kind == DOUBLE:
            assert tag & 7 == 1
            value, position = data[position : position + 8], position + 8
        else:
            assert tag & 7 == 2
            length, position = read_varint(data, position)
            chunk, position = data[position : position + length], position + length
            assert len(chunk) == length
            value = chunk.decode() if kind == TEXT else read(chunk, kind)
        result.setdefault(field, []).append(value)
    return result


def same_schema(proto: dict[str, list[Any]], schema: dict[str, Any]) -> None:
    for key in ("$ref", "format", "description", "pattern", "maxLength", "minLength", "maxItems", "minItems"):
        assert proto.get(key) == ([schema[key]] if schema.get(key) not in (None, "") else None), key
    assert proto.get("required", []) == schema.get("required", [])
    assert [item["value"][0] for item in proto.get("type", [])] == ([[schema["type"]][0]] if "type" in schema else [])
    assert [orjson.loads(item["yaml"][0]) for item in proto.get("enum", [])] == schema.get("enum", [])
    extensions = {item["name"][0]: orjson.loads(item["value"][0]["yaml"][0]) for item in proto.get("extension", [])}
    assert extensions == {key: value for key, value in schema.items() if key.startswith("x-")}
    children = {item["name"][0]: item["value"][0] for item in proto["properties"][0]["schema"]} if "properties" in proto else {}
    assert set(children) == set(schema.get("properties", {}))
    for name, child in children.items():
        same_schema(child, schema["properties"][name])
    if "items" in schema:
        same_schema(proto["items"][0]["schema"][0], schema["items"])
    if "additionalProperties" in schema:
        same_schema(proto["additionalProperties"][0]["schema"][0], schema["additionalProperties"])


@pytest.mark.slow
def test_the_protobuf_form_says_what_the_json_says(registry: TypeRegistry) -> None:
    document, proto = openapi.openapi_v2(registry), read(openapi.openapi_v2_protobuf(registry), "Document")
    assert proto["swagger"] == ["2.0"]
    definitions = {item["name"][0]: item["value"][0] for item in proto["definitions"][0]["schema"]}
    assert set(definitions) == set(document["definitions"])
    for name, schema in definitions.items():
        same_schema(schema, document["definitions"][name])
    paths = {item["name"][0]: item["value"][0] for item in proto["paths"][0]["path"]}
    assert set(paths) == set(document["paths"])
    for name, item in paths.items():
        assert set(item) == set(document["paths"][name])
    (patch,) = paths["/apis/swarmtask.io/v1alpha1/namespaces/{namespace}/swarmtasks/{name}"]["patch"]
    extensions = {item["name"][0]: orjson.loads(item["value"][0]["yaml"][0]) for item in patch["extension"]}
    assert extensions[GVK] == TASK_GVK
    names = [
        query["name"][0]
        for item in patch["parameters"]
        for other in item["parameter"][0].get("other", [])
        for query in other["query"]
    ]
    assert "dryRun" in names


def test_documents_are_built_once_per_revision(registry: TypeRegistry) -> None:
    first, index = openapi.openapi_v2(registry), openapi.openapi_v3_index(registry)
    assert openapi.openapi_v2(registry) is first
    assert openapi.openapi_v3(registry, "", "v1") is openapi.openapi_v3(registry, "", "v1")
    registry.add(ResourceType("b.io", "v1", "New", "news", "new", namespaced=True, custom=True, list_kind="NewList"))
    assert "io.b.v1.New" in openapi.openapi_v2(registry)["definitions"]
    later = openapi.openapi_v3_index(registry)
    assert "apis/b.io/v1" in later["paths"]
    assert later["paths"]["api/v1"] == index["paths"]["api/v1"], "an unchanged document keeps its hash"
    registry.remove("b.io", "news")
    assert "io.b.v1.New" not in openapi.openapi_v2(registry)["definitions"]
