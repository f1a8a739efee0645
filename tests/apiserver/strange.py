"""Input that no sane client sends, as strategies: damaged objects, bodies, patches, queries, headers and paths.

Called by the fuzzing tests. Everything is drawn before anything is sent, so a failure can be drawn again.
"""

from __future__ import annotations

import base64
import copy
import os
from collections.abc import Callable, Mapping
from typing import Any

import orjson
import yaml
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.apiserver.test_protobuf import envelope, message

MERGE, JSON_PATCH = "application/merge-patch+json", "application/json-patch+json"
APPLY, STRATEGIC = "application/apply-patch+yaml", "application/strategic-merge-patch+json"
JSON, YAML, PROTOBUF = "application/json", "application/yaml", "application/vnd.kubernetes.protobuf"
TYPES = (
    "", JSON, YAML, PROTOBUF, MERGE, JSON_PATCH, APPLY, STRATEGIC, "text/json", "application/json;charset=latin-1", "a/b", ";",
    "application/apply-patch+cbor", "\u00e9", "x" * 9000,
)  # fmt: skip
FACTOR = int(os.environ.get("SWARMTASK_FUZZ", "0"))

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 2**31, 2**63, 2**64 - 1, -(2**63), 0.5, -0.0, 1e308, "", " ", "x", "0", "\u0000", "\u202e", "\ufeff",
    "\ud7ff\ue000", "\U0001f600", "a" * 300, "9" * 50, "../..", "%2f", "{{.}}", "$(x)", "k:{}", "v:1", [], {}, [None], [[]], [{}],
    {"": None}, {"x": {"y": []}}, {"$patch": "replace"}, {"a/b~c": 1}, ["a", "a"], [1, "1", 1.0, True], {"name": {"name": "x"}},
)  # fmt: skip
BROKEN_FIELDS: tuple[Any, ...] = (
    [], [{}], [None], {}, "x", [{"manager": "m"}], [{"manager": 5, "operation": "Apply", "fieldsV1": {}}],
    [{"manager": "m", "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {"f:data": 5}}],
    [{"manager": "m", "operation": "Update", "apiVersion": "v9", "fieldsType": "FieldsV2", "fieldsV1": {"f:data": {"f:a": {}}}}],
    [{"manager": "m", "operation": "Update", "apiVersion": "v1", "time": "no", "fieldsV1": {"k:{": {}, "v:nan": {}, "q:": {}}}],
    [{"manager": "m", "operation": "Update", "apiVersion": "v1", "fieldsV1": {"f:data": {'k:[1]': {".": {}}, "f:a": {".": {}}}}}],
    [{"manager": "\u0000", "operation": "Update", "apiVersion": "", "fieldsV1": {".": {}, "f:": {}, "i:0": {}, "": {"": {}}}}],
    [{"manager": f"m{n}", "operation": "Update", "apiVersion": "v1", "fieldsV1": {"f:data": {f"f:{n}": {}}}} for n in range(30)],
)  # fmt: skip


def deep_fields(levels: int) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for _ in range(levels):
        tree = {"f:a": tree}
    return tree


def thorough(examples: int) -> Callable[[Any], Any]:
    """`examples` of them, always the same; with SWARMTASK_FUZZ=n in the environment n times as many, different ones each time."""
    return settings(
        max_examples=examples * max(1, FACTOR), derandomize=not FACTOR, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), print_blob=True,
    )  # fmt: skip


# --- values --------------------------------------------------------------------------------------------------------------


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be put in another thing's place."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*path, key))
    return found


def mutate(obj: dict[str, Any], where: tuple[Any, ...], value: Any, *, beside: bool) -> dict[str, Any]:
    """A copy with another value at a place, or with a strange field beside it."""
    result = copy.deepcopy(obj)
    target: Any = result
    for key in where[:-1]:
        target = target[key]
    if beside and isinstance(target, dict):
        target["strange"] = value
    else:
        target[where[-1]] = value
    return result


@st.composite
def damaged(draw: st.DrawFn, example: Mapping[str, Any]) -> dict[str, Any]:
    """The object with up to three odd values, or with odd managedFields."""
    result = copy.deepcopy(dict(example))
    for _ in range(draw(st.integers(0, 3))):
        known = places(result)
        if known:
            value = draw(st.sampled_from(ODD_VALUES))
            result = mutate(result, draw(st.sampled_from(known)), value, beside=draw(st.booleans()))
    if draw(st.integers(0, 4)) == 0 and isinstance(result.get("metadata"), dict):
        entry = {"manager": "d", "operation": "Update", "apiVersion": "v1", "fieldsV1": deep_fields(draw(st.integers(90, 115)))}
        result["metadata"]["managedFields"] = draw(st.sampled_from((*BROKEN_FIELDS, [entry])))
    return result


# --- bodies --------------------------------------------------------------------------------------------------------------

_SPLINTERS = (
    b"\x00", b"\xff", b"\xed\xa0\x80", b"\xc0\xaf", b"NaN", b"-Infinity", b"1e999", b"-", b"9" * 400, b'"\\ud800"', b"[" * 300,
    b'{"a":' * 300, b"\xef\xbb\xbf", b"}", b",", b"'", b"&a ", b"*a", b"<<: ", b"!!binary ", b"? ", b"\r", b"\t", b"---\n", b"%",
)  # fmt: skip
_WHOLE_BODIES = (
    b"", b" ", b"null", b"0", b'""', b"[]", b"{}", b"[{}]", b"{}{}", b"\xff\xfe{\x00}\x00", b"[" * 5000, b'{"a":' * 5000,
    b'{"a":' * 150 + b"1" + b"}" * 150, b"&a [*a]", b"a: &a {b: *a}", b"? {a: b}\n: c", b"<<: {a: b}", b"!!python/object:os {}",
    b"--- {}\n--- {}", b"- " * 5000, b"k8s\x00", b"k8s\x00\x0a\xff\xff\xff\xff\x0f", b"k8s\x00" + b"\x12\x02" * 50,
    b'{"metadata":{"name":"x","name":"y"},"metadata":{}}', b'{"kind":"List","apiVersion":"v1","items":[]}',
    b'{"kind":"DeleteOptions","apiVersion":"v1","preconditions":{"uid":"no"}}',
    b'{"kind":"DeleteOptions","gracePeriodSeconds":-1,"propagationPolicy":"Sideways","orphanDependents":true}',
)  # fmt: skip


@st.composite
def splintered(draw: st.DrawFn, body: bytes) -> bytes:
    """Bytes with something cut off, turned round or driven in."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(body)))
        match draw(st.sampled_from(("cut", "flip", "drive"))):
            case "cut":
                body = body[:at]
            case "flip" if at < len(body):
                body = body[:at] + bytes([body[at] ^ 1 << draw(st.integers(0, 7))]) + body[at + 1 :]
            case _:
                body = body[:at] + draw(st.sampled_from(_SPLINTERS)) + body[at:]
    return body


def _in_yaml(value: Any) -> bytes:
    return yaml.dump(value, Dumper=yaml.CSafeDumper, allow_unicode=True).encode("utf-8", "replace")


@st.composite
def _protobuf(draw: st.DrawFn, example: Mapping[str, Any]) -> bytes:
    """An envelope of the example's kind with JSON inside, or with fields of any number and type."""
    version, kind = str(example.get("apiVersion", "v1")), str(example.get("kind", ""))
    if draw(st.booleans()):
        inside = orjson.dumps(draw(damaged(example)))
        depth = draw(st.sampled_from((0, 0, 120, 900)))
        if depth:
            inside = inside[:-1] + b',"deep":' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"
        body = envelope(version, kind, inside, f4="application/json")
    else:
        inner = message(f1="x", f11=[message(f1="k", f2="v")], f17=[message(f1="m", f2="Update", f7=message(f1=b'{"f:a":'))])
        values = st.sampled_from((0, 1, 2**63, b"", b"\xff", "x", inner, message(f1=inner, f2=inner), message(f1=2**62, f2=2**31)))
        fields = draw(st.dictionaries(st.integers(1, 20), values, max_size=5))
        body = envelope(version, kind, message(f1=inner, **{f"f{number}": value for number, value in fields.items() if number > 1}))
    return draw(splintered(body)) if draw(st.integers(0, 3)) == 0 else body


@st.composite
def _operations(draw: st.DrawFn, example: Mapping[str, Any]) -> Any:
    """A JSON patch, or something that looks a little like one."""
    known = ["/" + "/".join(str(part).replace("~", "~0").replace("/", "~1") for part in place) for place in places(example)]
    pointers = st.sampled_from(
        (*known, "", "/", "x", "/metadata", "/metadata/labels/-", "/spec/-", "/a~2b", "/" + "9" * 5000, 5, None)
    )
    names = st.sampled_from(("add", "remove", "replace", "move", "copy", "test", "", "fly", None, {}))
    operation = st.fixed_dictionaries(
        {"op": names}, optional={"path": pointers, "from": pointers, "value": st.sampled_from(ODD_VALUES)}
    )
    operations: Any = draw(st.lists(operation, max_size=4))
    return draw(st.sampled_from((operations, operations, operations, {"op": "add"}, [operations], [None])))


_DIRECTIVES: tuple[tuple[str, Any], ...] = (
    ("$patch", "replace"), ("$patch", "delete"), ("$patch", "explode"), ("$patch", {}), ("$retainKeys", ["a"]), ("$retainKeys", 5),
    ("$setElementOrder/finalizers", ["a"]), ("$setElementOrder/finalizers", {}), ("$deleteFromPrimitiveList/finalizers", ["a.b/c"]),
    ("$deleteFromPrimitiveList/data", {}), ("$setElementOrder/", [{}]), ("$", 1),
)  # fmt: skip


@st.composite
def _merge(draw: st.DrawFn, example: Mapping[str, Any]) -> dict[str, Any]:
    result = draw(damaged(example))
    for _ in range(draw(st.integers(0, 2))):
        name, value = draw(st.sampled_from(_DIRECTIVES))
        holder = result.get("metadata") if draw(st.booleans()) else result
        if isinstance(holder, dict):
            holder[name] = value
    return result


@st.composite
def bodies(draw: st.DrawFn, example: Mapping[str, Any]) -> tuple[bytes, str]:
    """(body, content type) for a request about such an object."""
    form = draw(st.sampled_from(("json", "json", "yaml", "protobuf", "operations", "merge", "strategic", "apply", "apply", "any")))
    if form == "any":
        return draw(st.sampled_from(_WHOLE_BODIES) | st.binary(max_size=60)), draw(st.sampled_from(TYPES))
    if form == "protobuf":
        return draw(_protobuf(example)), PROTOBUF
    if form == "operations":
        return orjson.dumps(draw(_operations(example))), JSON_PATCH
    value = draw(_merge(example)) if form in ("merge", "strategic") else draw(damaged(example))
    in_yaml = form == "yaml" or (form == "apply" and draw(st.booleans()))
    body = _in_yaml(value) if in_yaml else orjson.dumps(value)
    if draw(st.integers(0, 3)) == 0:
        body = draw(splintered(body))
    return body, {"json": JSON, "yaml": YAML, "merge": MERGE, "strategic": STRATEGIC, "apply": APPLY}[form]


# --- around the body -----------------------------------------------------------------------------------------------------

_ODD_TEXTS = (
    "", "0", "1", "-1", "true", "false", "x", "%00", "%ff", "%", "%zz", "%ed%a0%80", "9" * 30, "1e9", " ", "%F0%9F%98%80", "All",
    "a=b,a!=b", "a in (", "a in (b,c),!d", "!", ",", "=", "a>1", "a<x", "metadata.name=x", "metadata.name!=x,", "spec.color=red",
    "a%5C", "%5C,%5C=", "((((((", "status.phase=Active", "Exact", "NotOlderThan", "Strict", "Warn", "Ignore", "Orphan",
    "Foreground", "Sideways", "None", "Object", "Metadata", "m", "a" * 200,
)  # fmt: skip
_OPTIONS = (
    "limit", "continue", "labelSelector", "fieldSelector", "resourceVersion", "resourceVersionMatch", "watch", "timeoutSeconds",
    "allowWatchBookmarks", "sendInitialEvents", "dryRun", "fieldManager", "fieldValidation", "force", "gracePeriodSeconds",
    "propagationPolicy", "orphanDependents", "includeObject", "pretty", "hash", "unknown",
)  # fmt: skip


@st.composite
def tokens(draw: st.DrawFn, group: str, plural: str) -> str:
    """A continue token: nearly one of ours."""
    parts = [draw(st.sampled_from((1, 2, 0, -1, True, None, 2**53, 2**63, 1.5, "1"))), group, plural, "default", "x"]
    for _ in range(draw(st.integers(0, 2))):
        parts[draw(st.integers(0, 4))] = draw(st.sampled_from((None, 5, "", "\u0000", "secrets", [], {}, "\U0001f600")))
    parts = parts[: draw(st.integers(3, 5))] if draw(st.integers(0, 3)) == 0 else parts
    token = base64.urlsafe_b64encode(orjson.dumps(parts))
    token = draw(splintered(token)) if draw(st.integers(0, 3)) == 0 else token
    return token.decode("latin-1").replace("=", "").replace("&", "").replace("#", "")


@st.composite
def queries(draw: st.DrawFn, group: str = "", plural: str = "") -> str:
    """Options with values that belong to other options, or to none."""
    if draw(st.integers(0, 7)) == 0:
        return draw(st.text(st.characters(max_codepoint=126), max_size=40))
    values = st.sampled_from(_ODD_TEXTS)
    pairs = draw(st.lists(st.tuples(st.sampled_from(_OPTIONS), values), max_size=4))
    if draw(st.integers(0, 5)) == 0:
        pairs.append(("continue", draw(tokens(group, plural))))
    return "&".join(f"{name}={value}" for name, value in pairs)


_HEADERS: tuple[tuple[str, str], ...] = (
    ("accept", "application/json;as=Table;g=meta.k8s.io;v=v1"),
    ("accept", "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"),
    ("accept", "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1beta1"), ("accept", "application/yaml"),
    ("accept", "application/json;as=Chair"), ("accept", ",,;;q=nan"), ("accept", "*/*;q=inf"), ("accept", "text/html"),
    ("accept", "application/vnd.kubernetes.protobuf"), ("accept", "application/json;" * 500), ("accept", "\u00e9"),
    ("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"),
    ("accept", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"), ("user-agent", ""), ("user-agent", "\u00e9/\u0001"),
    ("user-agent", "x" * 5000), ("impersonate-user", "u"), ("impersonate-group", "g"),
    ("impersonate-user", "system:serviceaccount:"),
    ("impersonate-extra-x", "y"), ("impersonate-uid", "z"), ("content-encoding", "gzip"), ("accept-encoding", "gzip;q=x"),
    ("if-match", '"1"'), ("if-none-match", "*"), ("x-http-method-override", "DELETE"), ("transfer-encoding", "chunked"),
    ("authorization", "Bearer"), ("authorization", "Basic eDp5"), ("authorization", "Bearer \u00e9"),
    ("authorization", "Bearer a.b.c"),
    ("authorization", "Bearer " + "a" * 9000), ("expect", "100-continue"), ("upgrade", "websocket"), ("range", "bytes=0-1"),
)  # fmt: skip


def headers() -> st.SearchStrategy[dict[str, str]]:
    """Mostly none; otherwise a few that lie."""
    return st.one_of(st.just({}), st.just({}), st.lists(st.sampled_from(_HEADERS), max_size=3).map(dict))


_SEGMENTS = (
    "x", "X", "%00", "%2f", "..", ".", "%2e%2e", "%ff", "%ed%a0%80", "%zz", "%", "a" * 300, "x;y", "x,y", "x:y", "*", "%20", "%0a",
    "%F0%9F%98%80", "status", "namespaces", "default", "-", "~", "system:x", "{name}", "\u00e9",
)  # fmt: skip


@st.composite
def names(draw: st.DrawFn, usual: str) -> str:
    """The usual name, or sometimes one that nothing can have."""
    return usual if draw(st.integers(0, 4)) else draw(st.sampled_from(_SEGMENTS))
