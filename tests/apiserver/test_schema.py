"""Prune, default and validate: rules of structural schemas and Kubernetes' words for what is wrong."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmtask.apiserver.builtins import builtin_types, types_of_crd
from swarmtask.apiserver.formats import FORMATS
from swarmtask.apiserver.patterns import compile_pattern
from swarmtask.apiserver.schema import Structural, invalid, structural_of
from swarmtask.apiserver.types import ResourceType

CRDS = Path(__file__).parents[2] / "manifests" / "crds"


def spec(**properties: Any) -> Structural:
    return Structural({"type": "object", "properties": {"spec": {"type": "object", "properties": properties}}})


def only_cause(structural: Structural, obj: dict[str, Any]) -> tuple[str, str, str]:
    (cause,) = structural.validate(obj)
    return cause.field, cause.reason, cause.message


def swarm_task() -> ResourceType:
    (rt,) = types_of_crd(yaml.safe_load((CRDS / "swarmtasks.swarmtask.io.yaml").read_text()))
    return rt


TEXT, INTEGER = {"type": "string"}, {"type": "integer"}


def test_unknown_fields_are_removed_and_named() -> None:
    structural = spec(container={"type": "object", "properties": {"image": TEXT}}, env={"type": "array", "items": {
        "type": "object", "properties": {"name": TEXT}}})  # fmt: skip
    obj = {
        "apiVersion": "a/v1", "kind": "K", "metadata": {"name": "n", "nonsense": 1, "labels": {"a": "b"}}, "extra": 1,
        "spec": {"container": {"imge": "x", "image": "y"}, "env": [{"name": "a"}, {"name": "b", "valeu": "c"}]},
    }  # fmt: skip
    assert structural.prune(obj) == ["extra", "metadata.nonsense", "spec.container.imge", "spec.env[1].valeu"]
    assert obj == {
        "apiVersion": "a/v1", "kind": "K", "metadata": {"name": "n", "labels": {"a": "b"}},
        "spec": {"container": {"image": "y"}, "env": [{"name": "a"}, {"name": "b"}]},
    }  # fmt: skip
    assert structural.prune(obj) == []


def test_preserved_unknown_fields_stay_but_named_ones_below_are_pruned() -> None:
    structural = spec(
        open={"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": {
            "closed": {"type": "object", "properties": {"a": TEXT}}}},
        free={"x-kubernetes-preserve-unknown-fields": True},
        labels={"type": "object", "additionalProperties": {"type": "object", "properties": {"a": TEXT}}},
        anything={"type": "object", "additionalProperties": True},
    )  # fmt: skip
    obj = {"spec": {
        "open": {"x": {"y": 1}, "closed": {"a": "1", "b": "2"}}, "free": [{"x": 1}],
        "labels": {"k": {"a": "1", "b": "2"}}, "anything": {"x": {"y": 1}},
    }}  # fmt: skip
    assert structural.prune(obj) == ["spec.labels.k.b", "spec.open.closed.b"]
    assert obj["spec"]["free"] == [{"x": 1}]
    assert obj["spec"]["anything"] == {"x": {"y": 1}}


def test_an_embedded_resource_keeps_its_metadata_and_needs_a_kind() -> None:
    structural = spec(template={"type": "object", "x-kubernetes-embedded-resource": True,
                                "properties": {"spec": {"type": "object", "properties": {"a": TEXT}}}})  # fmt: skip
    obj = {
        "spec": {"template": {"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"a": "b"}}, "spec": {"a": "x", "b": 1}}}
    }
    assert structural.prune(obj) == ["spec.template.spec.b"]
    assert structural.validate(obj) == []
    del obj["spec"]["template"]["kind"]
    assert only_cause(structural, obj)[:2] == ("spec.template.kind", "FieldValueRequired")


def test_defaults_reach_into_defaults_items_and_maps() -> None:
    port = {"type": "object", "properties": {"number": INTEGER, "protocol": {"type": "string", "default": "TCP"}}}
    structural = spec(
        replicas={"type": "integer", "default": 1},
        strategy={"type": "object", "default": {}, "properties": {"type": {"type": "string", "default": "Rolling"}}},
        ports={"type": "array", "items": port},
        named={"type": "object", "additionalProperties": port},
    )
    obj: dict[str, Any] = {"spec": {"ports": [{"number": 1}], "named": {"a": {}}}}
    structural.default(obj)
    assert obj["spec"] == {
        "replicas": 1, "strategy": {"type": "Rolling"}, "ports": [{"number": 1, "protocol": "TCP"}],
         "named": {"a": {"protocol": "TCP"}},
    }  # fmt: skip


def test_defaults_are_not_shared_between_objects() -> None:
    structural = spec(tags={"type": "array", "items": TEXT, "default": ["a"]})
    first: dict[str, Any] = {"spec": {}}
    second: dict[str, Any] = {"spec": {}}
    structural.default(first)
    first["spec"]["tags"].append("b")
    structural.default(second)
    assert second["spec"]["tags"] == ["a"]


def test_null_counts_as_missing_unless_null_is_allowed() -> None:
    structural = spec(
        plain=TEXT, filled={"type": "string", "default": "x"}, nullable={"type": "string", "nullable": True},
        both={"type": "string", "nullable": True, "default": "x"}, items={"type": "array", "items": {"type": "string",
         "default": "y"}},
    )  # fmt: skip
    obj = {"spec": {"plain": None, "filled": None, "nullable": None, "both": None, "items": [None, "z"]}}
    structural.default(obj)
    assert obj["spec"] == {"filled": "x", "nullable": None, "both": None, "items": ["y", "z"]}
    assert structural.validate(obj) == []


@pytest.mark.parametrize(
    ("schema", "value", "reason", "message"),
    [
        (INTEGER, "3", "FieldValueTypeInvalid", 'Invalid value: "string": spec.f in body must be of type integer: "string"'),
        (INTEGER, True, "FieldValueTypeInvalid", 'Invalid value: "boolean": spec.f in body must be of type integer: "boolean"'),
        (INTEGER, 1.5, "FieldValueTypeInvalid", 'Invalid value: "number": spec.f in body must be of type integer: "number"'),
        (INTEGER, None, "FieldValueTypeInvalid", 'Invalid value: "null": spec.f in body must be of type integer: "null"'),
        (INTEGER, 2**63, "FieldValueInvalid",
         'Invalid value: 9223372036854775808: spec.f in body must be of type int64: "9223372036854775808"'),
        ({"type": "integer", "format": "int32"}, 2**31, "FieldValueInvalid",
         'Invalid value: 2147483648: spec.f in body must be of type int32: "2147483648"'),
        (TEXT, 3, "FieldValueTypeInvalid", 'Invalid value: "integer": spec.f in body must be of type string: "integer"'),
        ({"type": "boolean"}, 1, "FieldValueTypeInvalid",
         'Invalid value: "integer": spec.f in body must be of type boolean: "integer"'),
        ({"type": "object"}, [], "FieldValueTypeInvalid", 'Invalid value: "array": spec.f in body must be of type object: "array"'),
        ({"type": "array", "items": TEXT}, {}, "FieldValueTypeInvalid",
         'Invalid value: "object": spec.f in body must be of type array: "object"'),
        ({"type": "string", "enum": ["a", "b"]}, "x", "FieldValueNotSupported",
         'Unsupported value: "x": supported values: "a", "b"'),
        ({"type": "string", "maxLength": 2}, "abc", "FieldValueTooLong", "Too long: may not be more than 2 bytes"),
        ({"type": "string", "minLength": 1}, "", "FieldValueInvalid",
         'Invalid value: "": spec.f in body should be at least 1 chars long'),
        ({"type": "string", "pattern": "^[a-z]+$"}, "A", "FieldValueInvalid",
         "Invalid value: \"A\": spec.f in body should match '^[a-z]+$'"),
        ({"type": "string", "pattern": "^[a-z]+$"}, "a\n", "FieldValueInvalid",
         "Invalid value: \"a\\n\": spec.f in body should match '^[a-z]+$'"),
        ({"type": "integer", "minimum": 0}, -1, "FieldValueInvalid",
         "Invalid value: -1: spec.f in body should be greater than or equal to 0"),
        ({"type": "integer", "minimum": 0, "exclusiveMinimum": True}, 0, "FieldValueInvalid",
         "Invalid value: 0: spec.f in body should be greater than 0"),
        ({"type": "number", "maximum": 1.5}, 2, "FieldValueInvalid",
         "Invalid value: 2: spec.f in body should be less than or equal to 1.5"),
        ({"type": "number", "maximum": 2, "exclusiveMaximum": True}, 2, "FieldValueInvalid",
         "Invalid value: 2: spec.f in body should be less than 2"),
        ({"type": "number", "multipleOf": 0.1}, 0.25, "FieldValueInvalid",
         "Invalid value: 0.25: spec.f in body should be a multiple of 0.1"),
        ({"type": "array", "items": TEXT, "maxItems": 1}, ["a", "b"], "FieldValueTooMany",
         "Too many: 2: must have at most 1 items"),
        ({"type": "array", "items": TEXT, "minItems": 1}, [], "FieldValueInvalid",
         "Invalid value: 0: spec.f in body should have at least 1 items"),
        ({"type": "object", "additionalProperties": TEXT, "maxProperties": 1}, {"a": "", "b": ""}, "FieldValueTooMany",
         "Too many: 2: must have at most 1 items"),
        ({"type": "object", "additionalProperties": TEXT, "minProperties": 1}, {}, "FieldValueInvalid",
         "Invalid value: 0: spec.f in body should have at least 1 properties"),
        ({"x-kubernetes-int-or-string": True}, 1.5, "FieldValueTypeInvalid",
         'Invalid value: "number": spec.f in body must be of type integer,string: "number"'),
        ({"type": "string", "format": "date-time"}, "yesterday", "FieldValueInvalid",
         'Invalid value: "yesterday": spec.f in body must be of type date-time: "yesterday"'),
        ({"type": "string", "not": {"enum": ["root"]}}, "root", "FieldValueInvalid",
         'Invalid value: "root": "spec.f" must not validate the schema (not)'),
        ({"type": "string", "allOf": [{"minLength": 1}, {"maxLength": 3}], "anyOf": [{"pattern": "^a"}, {"pattern": "z$"}]},
         "bz", "", ""),
    ],
)  # fmt: skip
def test_each_rule_says_what_is_wrong(schema: dict[str, Any], value: Any, reason: str, message: str) -> None:
    structural = spec(f=schema)
    if not reason:
        assert structural.validate({"spec": {"f": value}}) == []
    else:
        assert only_cause(structural, {"spec": {"f": value}}) == ("spec.f", reason, message)


def test_one_of_counts_its_alternatives() -> None:
    schema = {"type": "object", "properties": {"a": TEXT, "b": TEXT}, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}
    structural = spec(f=schema)
    assert structural.validate({"spec": {"f": {"a": "1"}}}) == []
    both = structural.validate({"spec": {"f": {"a": "1", "b": "2"}}})
    assert [cause.message for cause in both] == [
        'Invalid value: {"a":"1","b":"2"}: "spec.f" must validate one and only one schema (oneOf). Found 2 valid alternatives'
    ]
    none = structural.validate({"spec": {"f": {}}})
    assert [cause.field for cause in none] == ["spec.f", "spec.f.a"]
    assert none[1].reason == "FieldValueRequired"


def test_required_fields_and_paths_through_lists_and_maps() -> None:
    item = {"type": "object", "required": ["name"], "properties": {"name": TEXT}}
    structural = spec(env={"type": "array", "items": item}, by={"type": "object", "additionalProperties": item})
    causes = structural.validate({"spec": {"env": [{"name": "a"}, {}], "by": {"k.io/x": {}}}})
    assert [(cause.field, cause.reason, cause.message) for cause in causes] == [
        ("spec.env[1].name", "FieldValueRequired", "Required value"),
        ("spec.by.k.io/x.name", "FieldValueRequired", "Required value"),
    ]


def test_sets_and_keyed_lists_hold_each_item_once() -> None:
    structural = spec(
        tags={"type": "array", "items": TEXT, "x-kubernetes-list-type": "set"},
        ports={"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port", "protocol"],
               "items": {"type": "object", "properties": {"port": INTEGER, "protocol": {"type": "string", "default": "TCP"}}}},
    )  # fmt: skip
    causes = structural.validate({"spec": {"tags": ["a", "b", "a"], "ports": [{"port": 1}, {"port": 1, "protocol": "TCP"}]}})
    assert [(cause.field, cause.reason, cause.message) for cause in causes] == [
        ("spec.tags[2]", "FieldValueDuplicate", 'Duplicate value: "a"'),
        ("spec.ports[1]", "FieldValueDuplicate", 'Duplicate value: {"port":1,"protocol":"TCP"}'),
    ]
    numbers = spec(set={"type": "array", "items": {"x-kubernetes-preserve-unknown-fields": True}, "x-kubernetes-list-type": "set"})
    assert numbers.validate({"spec": {"set": [1, True, "1", None, {"a": 1}]}}) == []
    assert only_cause(numbers, {"spec": {"set": [{"a": 1}, {"a": 1.0}]}})[0] == "spec.set[1]"


def test_metadata_is_checked_whatever_the_schema_says_of_it() -> None:
    structural = spec()
    assert only_cause(structural, {"metadata": {"labels": {"a": 1}}})[0] == "metadata.labels.a"
    assert only_cause(structural, {"metadata": {"finalizers": "x"}})[0] == "metadata.finalizers"
    assert structural.validate({"metadata": {"creationTimestamp": None, "managedFields": [{}], "finalizers": ["a.io/b"]}}) == []


def test_names_may_be_restricted_further_by_the_schema() -> None:
    structural = Structural({"type": "object", "properties": {
        "metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 3}}}}})  # fmt: skip
    assert only_cause(structural, {"metadata": {"name": "long"}})[:2] == ("metadata.name", "FieldValueTooLong")


def test_a_flood_of_faults_is_cut() -> None:
    structural = spec(f={"type": "array", "items": INTEGER})
    assert 100 < len(structural.validate({"spec": {"f": ["x"] * 100_000}})) < 110


@pytest.mark.parametrize("pattern", [r"^(a+)+$", r"^(a|a)*$", r"(x+x+)+y"])
@pytest.mark.timeout(5)
def test_hostile_patterns_take_linear_time(pattern: str) -> None:
    matches = compile_pattern(pattern)
    assert not matches("a" * 50_000 + "!")


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"^\d+$", "123", "١٢"),
        (r"^[\w.-]+$", "a_b-c.d", "é"),
        (r"^\S+$", "a\u00a0b", "a b"),
        (r"^[[:alpha:]]+$", "abc", "a1"),
        (r"^[[&~]+$", "[&~", "a"),
        (r"^[]a]$", "]", "b"),
        (r"^a{2,3}$", "aa", "aaaa"),
        (r"^{a}$", "{a}", "a"),
        (r"^\{\{", "{{", "{"),
        (r"^\x{61}\p{Greek}$", "aα", "ab"),
        (r"^[\x{61}\p{Greek}\]]$", "]", "b"),
        (r"^[^{\x00]*$", "abc", "a{"),
        (r"a|b$", "xb", "b\n"),
        (r"^\Qa.b\E$", "a.b", "acb"),
        (r"^\Q[a]{2}&&-\d\E+x$", r"[a]{2}&&-\dddx", "aa"),
        (r"^\Qa+\\E", "a+\\", "aa"),
        (r"^\Q(a", "(a", "a"),
    ],
)
def test_patterns_are_read_as_re2_reads_them(pattern: str, good: str, bad: str) -> None:
    assert compile_pattern(pattern)(good)
    assert not compile_pattern(pattern)(bad)


@pytest.mark.parametrize(
    "pattern", ["(", "[a", "a{2,1}", r"(?=a)", r"\1", r"[\Qa\E]", r"a\E", "x" * 10_001, "(a{1000}){1000}{1000}"]
)
def test_patterns_that_cannot_be_compiled_are_a_value_error(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        compile_pattern(pattern)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("date-time", ["2026-01-01T00:00:00Z", "2026-01-01T00:00:00.123456789+02:00", "2024-02-29t00:00:00z"],
         ["2026-01-01", "2026-13-01T00:00:00Z", "2026-01-01T00:00:00", "2026-01-01T25:00:00Z", "2026-01-01T00:00:00Z\n", ""]),
        ("date", ["2024-02-29"], ["2023-02-29", "2024-2-29", "20240229", ""]),
        ("duration", ["1h30m", "-1.5s", "0", "300ms", "2 days"], ["1", "h", "1x", "", "1h\n"]),
        ("byte", ["", "YQ==", "YWI="], ["YQ=", "a", "*"]),
        ("uuid", ["123e4567-e89b-12d3-a456-426614174000"], ["123", "123e4567-e89b-12d3-a456-42661417400g", ""]),
        ("uuid4", ["16fd2706-8baf-433b-82eb-8c7fada847da"], ["123e4567-e89b-12d3-a456-426614174000"]),
        ("email", ["a@b.io"], ["a", "@b", "a b@c.io", ""]),
        ("ipv4", ["10.0.0.1"], ["10.0.0", "::1", "10.0.0.1\n", "010.0.0.1"]),
        ("ipv6", ["::1", "fe80::1"], ["10.0.0.1", "fe80::1%eth0", ":::"]),
        ("cidr", ["10.0.0.0/8", "fd00::/8"], ["10.0.0.0", "10.0.0.0/33"]),
        ("uri", ["https://a.io/x?y", "/path", "urn:a"], ["", "a b", "http://[::1", "x"]),
        ("hostname", ["a.example.com"], ["-a", "a..b", "x" * 64, ""]),
        ("mac", ["00:11:22:aa:bb:cc"], ["00:11:22:aa:bb", ""]),
        ("hexcolor", ["#fff", "00ff00"], ["#ff", "ggg"]),
        ("ip", ["::1", "1.2.3.4"], ["x"]),
    ],
)  # fmt: skip
def test_formats(name: str, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not FORMATS[name](text)] == []
    assert [text for text in bad if FORMATS[name](text)] == []


def test_the_answer_reads_as_kubectl_prints_it() -> None:
    rt = swarm_task()
    structural = structural_of(rt)
    assert structural is not None
    obj = {"metadata": {"name": "a"}, "spec": {"container": {}, "backoffLimit": "x"}}
    error = invalid(rt, "a", structural.validate(obj))
    assert str(error) == (
        'SwarmTask.swarmtask.io "a" is invalid: [spec.container.image: Required value, '
        'spec.backoffLimit: Invalid value: "string": spec.backoffLimit in body must be of type integer: "string"]'
    )
    assert error.details == {"name": "a", "group": "swarmtask.io", "kind": "SwarmTask"}
    assert len(error.causes) == 2


def test_a_schema_is_compiled_once() -> None:
    rt = swarm_task()
    assert structural_of(rt) is structural_of(rt)
    assert structural_of(swarm_task()) is not structural_of(rt)


def test_built_in_kinds_accept_what_clients_send() -> None:
    types = {(rt.api_version, rt.kind): structural_of(rt) for rt in builtin_types()}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "creationTimestamp": None}, "data": {"a": "YQ=="}}
    event = {
        "metadata": {"name": "e"},
        "involvedObject": {"kind": "SwarmTask"},
        "firstTimestamp": None,
        "eventTime": None,
        "series": None,
    }
    for key, obj in ((("v1", "Secret"), secret), (("v1", "Event"), event)):
        structural = types[key]
        assert structural is not None
        before = copy.deepcopy(obj)
        assert structural.prune(obj) == []
        assert structural.validate(obj) == []
        assert obj == before
    secrets = types["v1", "Secret"]
    assert secrets is not None
    assert only_cause(secrets, {"data": {"a": "not base64"}})[0] == "data.a"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "b", "name", "spec", "items"]), inner, max_size=4)
    ),
    max_leaves=20,
)


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    leaf = st.sampled_from([
        {"type": "string"}, {"type": "string", "default": "d"}, {"type": "integer"}, {"type": "integer", "default": 1},
        {"type": "boolean"}, {"type": "number", "nullable": True}, {"x-kubernetes-preserve-unknown-fields": True},
        {"x-kubernetes-int-or-string": True}, {"type": "string", "enum": ["a", "b"]},
    ])  # fmt: skip
    return st.recursive(
        leaf,
        lambda inner: (
            st.builds(
                lambda properties: {"type": "object", "properties": properties},
                st.dictionaries(st.sampled_from(["a", "b", "name"]), inner, max_size=3),
            )
            | st.builds(lambda items: {"type": "array", "items": items}, inner)
            | st.builds(lambda extra: {"type": "object", "additionalProperties": extra}, inner)
        ),
        max_leaves=8,
    )


@pytest.mark.slow
@settings(max_examples=300)
@given(schemas(), json_values)
def test_prune_and_default_are_idempotent_and_nothing_raises(schema: dict[str, Any], value: Any) -> None:
    structural = spec(f=schema)
    obj = {"spec": {"f": value}}
    structural.prune(obj)
    pruned = copy.deepcopy(obj)
    assert structural.prune(obj) == []
    assert obj == pruned
    structural.default(obj)
    filled = copy.deepcopy(obj)
    structural.default(obj)
    assert obj == filled
    structural.validate(obj)
    assert obj == filled
