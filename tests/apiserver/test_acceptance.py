"""The short ways of a write: whatever they let through, the long ways would have let through with the same outcome."""

from __future__ import annotations

import copy
import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from hypothesis import event, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from swarmtask.apiserver import admission, apply, bodies, wire
from swarmtask.apiserver import metadata as meta
from swarmtask.apiserver.builtins import builtin_types, types_of_crd
from swarmtask.apiserver.fieldset import Node, difference, node_of, to_fields_v1
from swarmtask.apiserver.model_rules import model_causes
from swarmtask.apiserver.model_silence import silence_of
from swarmtask.apiserver.routing import Target, methods_of, takes
from swarmtask.apiserver.schema import Structural, structural_of
from swarmtask.apiserver.schema_checks import compile_check
from swarmtask.apiserver.types import ResourceType
from swarmtask.apiserver.whole_fields import whole_fields
from swarmtask.errors import Cause, Invalid
from swarmtask.resources.kinds import OWN_KINDS
from swarmtask.resources.task import TaskSpec
from tests.apiserver import schemas
from tests.apiserver.in_process import Caller
from tests.resources.bad_tasks import bad_tasks, good_task

CRDS = Path(__file__).parents[2] / "manifests" / "crds"


@lru_cache
def own_type(plural: str) -> ResourceType:
    (rt,) = types_of_crd(yaml.safe_load((CRDS / f"{plural}.swarmtask.io.yaml").read_text()))
    return rt


def whole(schema: schemas.Schema) -> schemas.Schema:
    return {"type": "object", "properties": {"spec": schema}}


def causes_of(schema: schemas.Schema, value: Any) -> list[Cause]:
    """By the closures that find the words."""
    causes: list[Cause] = []
    compile_check(schema)(value, None, causes)
    return causes


def text(value: Any) -> bytes:
    """Every byte counts: the order of keys, 1 and 1.0. Integers beyond 64 bits have no other form here."""
    return orjson.dumps(value, default=str) if not _has_large(value) else repr(value).encode()


def _has_large(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_large, value.values()))
    if isinstance(value, list):
        return any(map(_has_large, value))
    return type(value) is int and not -(2**63) <= value < 2**63


@pytest.mark.slow
@settings(max_examples=400)
@given(st.data())
def test_pruning_and_defaults_are_what_the_schema_says(data: st.DataObject) -> None:
    schema = data.draw(schemas.schemas())
    obj = {"spec": data.draw(schemas.values(schema))}
    structural, expected = Structural(whole(schema)), copy.deepcopy(obj)
    assert structural.prune(obj) == sorted(schemas.prune(whole(schema), expected))
    assert text(obj) == text(expected)
    structural.default(obj)
    schemas.fill(whole(schema), expected)
    assert obj == expected
    assert text(obj) == text(expected)
    structural.default(obj)
    assert text(obj) == text(expected)


@pytest.mark.slow
@settings(max_examples=1000)
@given(st.data())
def test_what_is_accepted_loses_nothing_and_is_valid_with_its_defaults(data: st.DataObject) -> None:
    schema = data.draw(schemas.schemas())
    obj = {"spec": data.draw(schemas.values(schema))}
    structural, before = Structural(whole(schema)), copy.deepcopy(obj)
    accepted = structural.accepts(obj)
    assert text(obj) == text(before), "to look at an object changes nothing"
    gone = schemas.prune(whole(schema), obj)
    schemas.fill(whole(schema), obj)
    wrong = causes_of(whole(schema), obj)
    event(f"accepted: {accepted}, faultless: {not gone and not wrong}")
    if accepted:
        assert gone == []
        assert wrong == []
    assert structural.validate(obj) == wrong


FITTING: list[tuple[schemas.Schema, Any]] = [
    ({"type": "string", "minLength": 1, "maxLength": 3, "pattern": "^a"}, "ab"),
    ({"type": "string", "enum": ["x", "y"]}, "y"),
    ({"type": "string", "format": "date-time"}, "2026-01-31T12:00:00Z"),
    ({"type": "string", "nullable": True}, None),
    ({"type": "integer", "minimum": 0, "maximum": 5, "exclusiveMaximum": True}, 4),
    ({"type": "integer", "format": "int32"}, 2**31 - 1),
    ({"type": "number"}, 1),
    ({"type": "number", "minimum": 0.5}, 0.75),
    ({"type": "boolean"}, False),
    ({"x-kubernetes-int-or-string": True, "anyOf": schemas.PLAIN, "pattern": "^[0-9]+m?$", "maxLength": 5}, "500m"),
    ({"x-kubernetes-int-or-string": True, "anyOf": schemas.PLAIN, "pattern": "^[0-9]+m?$", "maxLength": 5}, 2),
    ({"type": "array", "items": {"type": "string"}, "maxItems": 2, "x-kubernetes-list-type": "set"}, ["a", "b"]),
    ({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
      "items": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}},
     [{"name": "a"}, {"name": "b"}]),
    ({"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": 1}, {"k": "v"}),
    ({"type": "object", "x-kubernetes-preserve-unknown-fields": True}, {"a": [1, {"b": None}]}),
    ({"type": "object", "properties": {"a": {"type": "string", "default": "d"}}, "required": ["a"]}, {}),
    ({"type": "object", "properties": {"a": {"type": "string"}}, "x-kubernetes-preserve-unknown-fields": True}, {"a": "", "b": 1}),
    ({"type": "object", "properties": {"a": {"type": "string", "default": "d"}}, "maxProperties": 1}, {}),
    ({"type": "string", "oneOf": [{"minLength": 3}, {"maxLength": 1}]}, "a"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "value"), FITTING, ids=[str(schema)[:60] for schema, _ in FITTING])
def test_good_values_take_the_short_way(schema: schemas.Schema, value: Any) -> None:
    assert Structural(whole(schema)).accepts({"spec": value})


UNFIT: list[tuple[schemas.Schema, Any]] = [
    ({"type": "object", "properties": {"a": {"type": "integer", "default": "no"}}}, {}),
    ({"type": "object", "properties": {"a": {"type": "string", "default": "d"}}, "maxProperties": 1}, {"b": 1}),
    ({"type": "object", "properties": {"a": {"type": "string", "default": "d"}, "b": {"type": "string"}}, "maxProperties": 1},
     {"b": ""}),
    ({"type": "object", "properties": {"a": {"x-kubernetes-preserve-unknown-fields": True}}, "required": ["a"]}, {"a": None}),
    ({"type": "array", "x-kubernetes-list-type": "set", "items": {
        "type": "object", "properties": {"a": {"type": "integer", "default": 1}}}}, [{}, {"a": 1}]),
    ({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a"], "items": {
        "type": "object", "properties": {"a": {"type": "integer", "default": 1}}}}, [{}, {"a": 1}]),
    ({"type": "integer"}, True),
    ({"type": "boolean"}, 1),
    ({"type": "integer"}, 2**63),
    ({"type": "number", "maximum": 2**53}, 2**53 + 1),
    ({"type": "string", "maxLength": 1}, "éé"),
    ({"type": "object"}, {"a": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "value"), UNFIT, ids=[str(schema)[:60] for schema, _ in UNFIT])
def test_what_only_seems_to_fit_takes_the_long_way(schema: schemas.Schema, value: Any) -> None:
    obj = {"spec": value}
    assert not Structural(whole(schema)).accepts(obj)
    gone = schemas.prune(whole(schema), obj)
    schemas.fill(whole(schema), obj)
    assert gone or causes_of(whole(schema), obj)


def test_a_schema_that_is_too_large_is_left_to_the_closures() -> None:
    fields = {f"f{number}": {"type": "string"} for number in range(6_000)}
    structural = Structural(whole({"type": "object", "properties": fields}))
    assert not structural.accepts({"spec": {"f1": "x"}})
    assert structural.validate({"spec": {"f1": "x"}}) == []
    assert [cause.field for cause in structural.validate({"spec": {"f1": 1}})] == ["spec.f1"]


# --- our own kinds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plural", [kind.plural for kind in OWN_KINDS if kind.model is not None])
def test_our_own_kinds_take_the_short_way(plural: str) -> None:
    rt = own_type(plural)
    obj = good_task() if plural == "swarmtasks" else {"apiVersion": rt.api_version, "kind": rt.kind, "metadata": {"name": "x"}}
    obj.setdefault("spec", {})
    structural = structural_of(rt)
    assert structural is not None
    assert structural.accepts(obj)
    structural.default(obj)
    assert structural.accepts(obj)


@pytest.mark.parametrize("bad", bad_tasks(), ids=lambda bad: bad.id)
def test_no_bad_task_takes_the_short_way_unseen(bad: Any) -> None:
    """What the schema has nothing against, the model must refuse, for metadata left out as well as given."""
    rt, obj = own_type("swarmtasks"), copy.deepcopy(bad.manifest)
    if not bad.model or not admission.accepts(rt, obj):
        return
    admission.default(rt, obj)
    with pytest.raises(Invalid) as refused:
        admission.validate(rt, obj, None, spec_changed=True, accepted=True)
    assert any(name in refused.value.message for name in bad.names)


# --- ownership -----------------------------------------------------------------------------------------------------------


def by_difference(part: dict[str, Any], schema: schemas.Schema) -> dict[str, Any]:
    """As updates find it: the difference to nothing."""
    return to_fields_v1(difference({}, part, node_of(schema)).added - {("f:metadata",)})


METADATA = st.fixed_dictionaries({}, optional={
    "labels": st.dictionaries(st.text("ab", max_size=2), st.text("ab", max_size=1), max_size=2),
    "annotations": st.dictionaries(st.text("ab", max_size=2), st.text("ab", max_size=1), max_size=2),
    "finalizers": st.lists(st.sampled_from(["a.b/c", "d.e/f"]), max_size=3),
    "ownerReferences": st.lists(st.fixed_dictionaries({"uid": st.sampled_from("uv"), "name": st.just("n")}), max_size=3),
})  # fmt: skip


@pytest.mark.slow
@settings(max_examples=600)
@given(st.data(), METADATA)
def test_all_fields_of_an_object_are_the_difference_to_nothing(data: st.DataObject, metadata: dict[str, Any]) -> None:
    schema = data.draw(schemas.schemas())
    part = {"spec": data.draw(schemas.values(schema))}
    if metadata:
        part["metadata"] = metadata
    if _has_large(part):
        return  # no body has them
    root = node_of(whole(schema))
    assert text(whole_fields(part, root)) == text(by_difference(part, whole(schema)))
    structural = Structural(whole(schema))
    structural.default(part)
    if structural.accepts({"spec": part.get("spec"), "metadata": metadata}):
        for _ in range(2):  # the second time by what was kept of the first
            assert text(whole_fields(part, root, valid=True)) == text(by_difference(part, whole(schema)))


# --- keys given twice ----------------------------------------------------------------------------------------------------

KEYS = st.text(':"\\au0é', max_size=2)
TREES = st.recursive(
    st.text(':"\\aé\x00', max_size=3) | st.integers(-5, 5) | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(KEYS, inner), max_size=3).map(tuple),
    max_leaves=8,
)


def written(tree: Any, rest: st.DataObject) -> str:
    """A JSON text in which objects, given as tuples of pairs, keep every pair; colons in strings are escaped now and then."""
    if isinstance(tree, tuple):
        gap = rest.draw(st.sampled_from(["", " ", "\n\t"]))
        pairs = (f"{written(key, rest)}{gap}:{gap}{written(value, rest)}" for key, value in tree)
        return "{" + ",".join(pairs) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(written(item, rest) for item in tree) + "]"
    plain = orjson.dumps(tree).decode()
    if isinstance(tree, str) and rest.draw(st.booleans()):
        plain = plain.replace(":", rest.draw(st.sampled_from(["\\u003a", "\\u003A"])))
    return plain


@pytest.mark.slow
@settings(max_examples=600)
@given(TREES, st.data())
def test_a_key_given_twice_is_always_found(tree: Any, data: st.DataObject) -> None:
    body = written((("x", tree),), data).encode()

    def twice(node: Any) -> bool:
        if isinstance(node, tuple):
            return len({key for key, _ in node}) != len(node) or any(twice(value) for _, value in node)
        return isinstance(node, list) and any(map(twice, node))

    found = wire.duplicate_fields(wire.Request("POST", "/", {}, {}, body))
    assert bool(found) == twice(tree)


# --- models --------------------------------------------------------------------------------------------------------------

PLURALS = [kind.plural for kind in OWN_KINDS if kind.model is not None]


def _say_more(data: st.DataObject, schema: schemas.Schema, value: dict[str, Any]) -> None:
    """Give some fields a value, in place; most of the value stays as it is."""
    for name in data.draw(st.lists(st.sampled_from(sorted(schema["properties"])), min_size=1, max_size=2)):
        below = schema["properties"][name]
        if "properties" in below and isinstance(value.setdefault(name, {}), dict) and data.draw(st.booleans()):
            _say_more(data, below, value[name])
        else:
            value[name] = data.draw(schemas.values(below))


@pytest.mark.slow
@settings(max_examples=600)
@given(st.data(), st.sampled_from(PLURALS))
def test_asking_the_model_of_less_comes_to_the_same(data: st.DataObject, plural: str) -> None:
    """Parts made before are taken as they are, and of a spec that says nothing of what a rule asks about no model is made."""
    rt = own_type(plural)
    kind = next(kind for kind in OWN_KINDS if kind.plural == plural)
    structural = structural_of(rt)
    assert kind.model is not None
    assert rt.schema is not None
    assert structural is not None
    obj = {"apiVersion": rt.api_version, "kind": rt.kind, "metadata": {"name": "x"}}
    obj["spec"] = copy.deepcopy(good_task()["spec"]) if plural == "swarmtasks" else {}
    _say_more(data, rt.schema["properties"]["spec"], obj["spec"])
    admission.default(rt, obj)
    if _has_large(obj) or structural.validate(obj):
        event("the schema refuses it")
        return
    before = text(obj)
    try:
        kind.model.model_validate(obj)
        valid = True
    except ValidationError:
        valid = False
    silent = silence_of(kind.model.model_fields["spec"].annotation)(obj["spec"])  # type: ignore[arg-type]
    event(f"valid: {valid}, silent: {silent}")
    assert valid or not silent
    for _ in range(2):  # the second time with the parts of the first
        assert (model_causes(rt, obj) == []) == valid
    assert text(obj) == before


def test_what_most_tasks_say_asks_for_no_model() -> None:
    silent, task = silence_of(TaskSpec), good_task()
    admission.default(own_type("swarmtasks"), task)
    assert silent(task["spec"])
    for path, value in {
        ("placement", "tolerations"): [{"key": "a"}], ("limits",): {"model/x": 1}, ("completions",): 3, ("priority",): 1,
        ("failurePolicy",): [{"onReasons": ["Error"]}], ("container", "resources", "limits", "memory"): "1Gi",
        ("container", "env"): [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
        ("container", "resources", "requests", "cpu"): 1, ("placement", "maxCostPerHour"): 1, ("placement", "gpu", "memory"): 1,
    }.items():  # fmt: skip
        said = copy.deepcopy(task["spec"])
        part = said
        for name in path[:-1]:
            part = part.setdefault(name, {})
        part[path[-1]] = value
        assert not silent(said), path


# --- creating ------------------------------------------------------------------------------------------------------------

TASKS = "/apis/swarmtask.io/v1alpha1/namespaces/default/swarmtasks"
QUEUE = {"apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmQueue", "metadata": {"name": "q"}}


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    caller = Caller(tmp_path_factory.mktemp("short") / "x.db")
    queue = {**QUEUE, "spec": {"defaults": {"backoffLimit": 2, "priorityClass": "high"}}}
    assert caller.send("POST", TASKS.replace("swarmtasks", "swarmqueues"), orjson.dumps(queue)).code == 201
    yield caller
    caller.close()


def manifests() -> Iterator[Any]:
    yield pytest.param(good_task(), id="plain")
    full = good_task()
    full["spec"] |= {
        "placement": {"capabilities": ["a"], "nodeSelector": {"x": "y"}, "tolerations": [{"operator": "Exists"}]},
        "limits": {"model/x": 2}, "failurePolicy": [{"onExitCodes": [1], "action": "Ignore"}], "priority": 5,
    }  # fmt: skip
    full["metadata"] |= {"labels": {"a": "b"}, "finalizers": ["a.b/c"], "managedFields": [{}], "uid": "mine", "generation": 7}
    yield pytest.param(full, id="much")
    yield pytest.param(good_task() | {"metadata": {"generateName": "made-"}}, id="generated name")
    yield pytest.param(good_task() | {"status": {"phase": "Running"}}, id="status")
    queued = good_task()
    queued["spec"]["queue"] = "q"
    yield pytest.param(queued, id="defaults of a queue")
    whole_float = good_task()
    whole_float["spec"]["backoff"] = {"initialSeconds": 10.0}
    yield pytest.param(whole_float, id="a float that the schema takes and the model does not")
    unknown = good_task()
    unknown["spec"]["imge"] = 1
    yield pytest.param(unknown, id="unknown field")
    yield from (pytest.param(bad.manifest, id=bad.id) for bad in bad_tasks() if not _has_large(bad.manifest))


def comparable(content: bytes) -> bytes:
    """Without what differs from create to create."""
    plain = re.sub(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", b"UID", content)
    return re.sub(rb"made-[a-z0-9]{5}", b"made-", re.sub(rb"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", b"TIME", plain))


@pytest.mark.parametrize("manifest", list(manifests()))
def test_a_create_says_the_same_whichever_way_it_takes(
    call: Caller, monkeypatch: pytest.MonkeyPatch, manifest: dict[str, Any]
) -> None:
    def created() -> tuple[int, dict[str, str], bytes]:
        answer = call.send("POST", TASKS, orjson.dumps(manifest), query="dryRun=All&fieldManager=m")
        return answer.code, {**answer.headers, "content-length": ""}, comparable(answer.content)

    short = created()
    monkeypatch.setattr(admission, "accepts", lambda rt, obj: False)
    monkeypatch.setattr(bodies, "_keeps_every_key", lambda body, value: False)
    with monkeypatch.context() as patch:
        patch.setattr(apply, "whole_fields", by_nothing)
        assert created() == short


def by_nothing(part: dict[str, Any], root: Node, *, valid: bool) -> dict[str, Any]:
    return to_fields_v1(difference({}, part, root).added - {("f:metadata",)})


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE"])
def test_the_quick_look_at_a_method_agrees_with_the_list(method: str) -> None:
    for rt in [*builtin_types(), *map(own_type, PLURALS)]:
        for namespace in (None, "n"):
            for name in (None, "x"):
                for subresource in (None, *(rt.subresources if name else ())):
                    target = Target(rt, namespace, name, subresource)
                    assert takes(target, method) == (method in methods_of(target))


def test_uids_are_random_uuids() -> None:
    made = [begun()["uid"] for _ in range(200)]
    assert len(set(made)) == len(made)
    for text in made:
        parsed = uuid.UUID(text)
        assert (str(parsed), parsed.version, parsed.variant) == (text, 4, uuid.RFC_4122)


def begun() -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": "x"}
    meta.begin(own_type("swarmnodes"), metadata, namespace="", now=datetime(2026, 1, 1, tzinfo=UTC))
    return metadata
