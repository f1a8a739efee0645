"""JSON patch, merge patch and strategic merge patch."""

from __future__ import annotations

import copy
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmtask.apiserver.builtins import builtin_types
from swarmtask.apiserver.patch import JSON_PATCH, MERGE_PATCH, STRATEGIC_MERGE_PATCH, apply_patch, merge
from swarmtask.apiserver.types import ResourceType
from swarmtask.errors import BadRequest, Invalid, RequestEntityTooLarge, UnsupportedMediaType

TYPES = {(rt.api_version, rt.kind): rt for rt in builtin_types()}
NAMESPACE, SERVICE_ACCOUNT, CONFIG_MAP = TYPES["v1", "Namespace"], TYPES["v1", "ServiceAccount"], TYPES["v1", "ConfigMap"]
CUSTOM = ResourceType("a.io", "v1", "Thing", "things", "thing", namespaced=True, custom=True)


def patched(current: dict[str, Any], content_type: str, patch: Any, rt: ResourceType = CONFIG_MAP) -> dict[str, Any]:
    before = copy.deepcopy(current)
    result = apply_patch(rt, current, content_type, orjson.dumps(patch))
    assert current == before, "the stored object was changed in place"
    return result


def test_json_patch_changes_a_copy() -> None:
    current = {"data": {"a": "1", "b/c": "2"}, "list": [1, 2]}
    operations = [
        {"op": "test", "path": "/data/a", "value": "1"},
        {"op": "replace", "path": "/data/a", "value": "9"},
        {"op": "add", "path": "/list/-", "value": 3},
        {"op": "remove", "path": "/data/b~1c"},
        {"op": "copy", "from": "/list", "path": "/copy"},
        {"op": "move", "from": "/list", "path": "/moved"},
    ]
    assert patched(current, JSON_PATCH, operations) == {"data": {"a": "9"}, "copy": [1, 2, 3], "moved": [1, 2, 3]}


@pytest.mark.parametrize(
    ("found", "expected", "equal"),
    [
        (True, 1, False), (1, True, False), (False, 0, False), (0, None, False), ("1", 1, False), (1, 1.0, True), (1.5, 1.5, True),
        ([True], [1], False), ({"a": 0}, {"a": False}, False), ({"a": 1, "b": 2}, {"b": 2.0, "a": 1}, True), ({}, [], False),
        (None, None, True), ("a", "a", True), (2**63, float(2**63), True),
    ],
)  # fmt: skip
def test_a_test_tells_the_types_of_json_apart(found: Any, expected: Any, equal: bool) -> None:
    """RFC 6902, 4.6: numbers are equal by their value."""
    operations = [{"op": "test", "path": "/list/0", "value": expected}, {"op": "add", "path": "/won", "value": True}]
    if equal:
        assert patched({"list": [found]}, JSON_PATCH, operations)["won"] is True
    else:
        with pytest.raises(Invalid, match="testing value failed"):
            patched({"list": [found]}, JSON_PATCH, operations)


@pytest.mark.parametrize("path", ["/name/0", "/list/-", "/list/1", "/list/01", "/list/-1", "/none", "name"])
def test_a_path_names_values_and_no_characters(path: str) -> None:
    for operation in ({"op": "test", "path": path, "value": None}, {"op": "copy", "from": path, "path": "/x"}):
        with pytest.raises(Invalid, match="does not exist"):
            patched({"name": "w", "list": [None]}, JSON_PATCH, [operation])


@pytest.mark.parametrize(
    ("operation", "says"),
    [
        ({"op": "test", "path": "/metadata/resourceVersion", "value": "1"}, "testing value failed"),
        ({"op": "test", "path": "/nothing/here", "value": "1"}, "/nothing/here"),
        ({"op": "remove", "path": "/nothing"}, "/nothing"),
        ({"op": "replace", "path": "/data/none", "value": 1}, "/data/none"),
        ({"op": "add", "path": "/list/9", "value": 1}, "/list/9"),
        ({"op": "add", "path": "/list/x", "value": 1}, "/list/x"),
        ({"op": "add", "path": "/data/a/b", "value": 1}, "/data/a/b"),
        ({"op": "copy", "from": "/none", "path": "/x"}, "copy /x"),
        ({"op": "replace", "path": "", "value": 3}, "leaves no object"),
        ({"op": "remove", "path": ""}, "operation 0"),
    ],
)
def test_a_json_patch_that_does_not_fit_is_invalid(operation: dict[str, Any], says: str) -> None:
    current = {"metadata": {"resourceVersion": "2"}, "data": {"a": "1"}, "list": [1]}
    with pytest.raises(Invalid) as error:
        patched(current, JSON_PATCH, [operation])
    assert says in str(error.value)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"{}", b"[1]", b'"x"', b"null", b'[{"op":"jump","path":"/a"}]', b'[{"op":"add","path":"/a"}]']
)
def test_a_json_patch_that_cannot_be_read_is_a_bad_request(body: bytes) -> None:
    with pytest.raises((BadRequest, Invalid)) as error:
        apply_patch(CONFIG_MAP, {"a": 1}, JSON_PATCH, body)
    assert error.value.code in (400, 422)


def test_json_patches_are_bounded() -> None:
    with pytest.raises(RequestEntityTooLarge, match="10000"):
        patched({}, JSON_PATCH, [{"op": "add", "path": "/a", "value": 1}] * 10_001)
    doubling = [{"op": "copy", "from": "/a", "path": f"/a/{index}"} for index in range(60)]
    with pytest.raises(RequestEntityTooLarge, match="copies"):
        patched({"a": {"x": "y"}}, JSON_PATCH, doubling)


@pytest.mark.parametrize("content_type", [JSON_PATCH, MERGE_PATCH, STRATEGIC_MERGE_PATCH])
def test_deep_bodies_are_refused(content_type: str) -> None:
    body = b'{"a":' * 900 + b"1" + b"}" * 900
    with pytest.raises(BadRequest, match="nested deeper"):
        apply_patch(CONFIG_MAP, {}, content_type, b"[" + body + b"]" if content_type == JSON_PATCH else body)


def test_a_json_patch_may_not_pile_up_depth() -> None:
    step: dict[str, Any] = {}
    for _ in range(100):
        step = {"a": step}
    piled = [{"op": "add", "path": "/a" * (100 * index + 1), "value": step} for index in range(30)]
    with pytest.raises((BadRequest, Invalid), match="nested"):
        patched({}, JSON_PATCH, piled)


@pytest.mark.timeout(20)
def test_many_operations_are_carried_out() -> None:
    operations = [{"op": "add", "path": "/data/k", "value": str(index)} for index in range(10_000)]
    assert patched({"data": {}}, JSON_PATCH, operations) == {"data": {"k": "9999"}}


def test_custom_resources_take_no_strategic_merge() -> None:
    with pytest.raises(UnsupportedMediaType) as error:
        patched({}, STRATEGIC_MERGE_PATCH, {}, CUSTOM)
    assert str(error.value) == (
        "the body of the request was in an unknown format - accepted media types include: "
        "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
    )
    with pytest.raises(UnsupportedMediaType, match="strategic"):
        patched({}, "application/json", {})


def test_merge_patch_with_a_charset() -> None:
    assert patched({"a": {"b": 1, "c": 2}}, MERGE_PATCH + "; charset=utf-8", {"a": {"b": None, "d": [None]}}) == {
        "a": {"c": 2, "d": [None]}
    }


values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)


def rfc_7396(target: Any, patch: Any) -> Any:
    """The pseudo code of the RFC, word for word, on copies."""
    if not isinstance(patch, dict):
        return patch
    result = copy.deepcopy(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            if name in result:
                del result[name]
        else:
            result[name] = rfc_7396(result.get(name), value)
    return result


@given(values, values)
def test_merge_patch_equals_rfc_7396(target: Any, patch: Any) -> None:
    before = copy.deepcopy(target)
    assert merge(target, patch) == rfc_7396(target, patch)
    assert target == before


CONDITIONS = [{"type": "A", "status": "True"}, {"type": "B", "status": "True", "reason": "x"}]


@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        ([{"type": "B", "status": "False"}], [CONDITIONS[0], {"type": "B", "status": "False", "reason": "x"}]),
        ([{"type": "B", "reason": None}], [CONDITIONS[0], {"type": "B", "status": "True"}]),
        ([{"type": "C", "status": "True", "message": None}], [*CONDITIONS, {"type": "C", "status": "True"}]),
        ([{"type": "A", "$patch": "delete"}], [CONDITIONS[1]]),
        ([{"type": "Z", "$patch": "delete"}], CONDITIONS),
        ([{"type": "Q"}, {"$patch": "replace"}], [{"type": "Q"}]),
        ([], CONDITIONS),
    ],
)
def test_strategic_merge_of_a_keyed_list(patch: list[Any], expected: list[Any]) -> None:
    current = {"status": {"phase": "Active", "conditions": CONDITIONS}}
    result = patched(current, STRATEGIC_MERGE_PATCH, {"status": {"conditions": patch}}, NAMESPACE)
    assert result == {"status": {"phase": "Active", "conditions": expected}}


def test_strategic_merge_directives() -> None:
    current = {
        "metadata": {"labels": {"a": "1", "b": "2"}, "finalizers": ["x.io/a", "x.io/b"]},
        "secrets": [{"name": "a"}, {"name": "b"}, {"name": "c"}], "imagePullSecrets": [{"name": "p"}],
    }  # fmt: skip
    patch = {
        "metadata": {
            "labels": {"$retainKeys": ["b", "c"], "c": "3"},
            "finalizers": ["x.io/c"], "$deleteFromPrimitiveList/finalizers": ["x.io/a"],
            "annotations": {"$patch": "replace", "k": "v", "n": None},
        },
        "$setElementOrder/secrets": [{"name": "c"}, {"name": "d"}, {"name": "a"}],
        "secrets": [{"name": "d"}], "imagePullSecrets": [{"name": "q"}],
    }  # fmt: skip
    assert patched(current, STRATEGIC_MERGE_PATCH, patch, SERVICE_ACCOUNT) == {
        "metadata": {"labels": {"b": "2", "c": "3"}, "finalizers": ["x.io/b", "x.io/c"], "annotations": {"k": "v"}},
        "secrets": [{"name": "b"}, {"name": "c"}, {"name": "d"}, {"name": "a"}],
        "imagePullSecrets": [{"name": "q"}],
    }


@pytest.mark.parametrize(
    ("patch", "says"),
    [
        ({"data": {"$patch": "shuffle"}}, "shuffle"),
        ({"data": {"$retainKeys": "a"}}, "retainKeys"),
        ({"data": {"$retainKeys": ["a"], "b": "1"}}, "does not name b"),
        ({"metadata": {"ownerReferences": [{"name": "x"}]}}, "merge key uid"),
        ({"metadata": {"$deleteFromPrimitiveList/finalizers": "x"}}, "list of values"),
        ({"metadata": {"$setElementOrder/finalizers": "x"}}, "is a list"),
    ],
)
def test_strategic_merge_refuses_what_it_does_not_understand(patch: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        patched({"data": {"a": "1"}}, STRATEGIC_MERGE_PATCH, patch)


@given(
    st.dictionaries(st.sampled_from("abc"), st.text(max_size=2) | st.none(), max_size=3),
    st.dictionaries(st.sampled_from("abc"), st.text(max_size=2)),
)
def test_without_lists_and_directives_strategic_merge_is_merge_patch(patch: dict[str, Any], data: dict[str, Any]) -> None:
    body, current = orjson.dumps({"data": patch}), {"data": data}
    assert apply_patch(CONFIG_MAP, current, STRATEGIC_MERGE_PATCH, body) == apply_patch(CONFIG_MAP, current, MERGE_PATCH, body)
