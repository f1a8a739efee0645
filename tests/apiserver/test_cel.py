"""Rules in CEL: refused when the CRD is written where they cannot work, evaluated on every write of an object."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmtask.apiserver.cel_expression import BUDGET, MAX_RULE_CHARS
from swarmtask.apiserver.cel_functions import FUNCTIONS, NATIVE
from swarmtask.apiserver.cel_scan import scan
from swarmtask.apiserver.cel_values import duration, escape, sample, shape_of, timestamp
from swarmtask.apiserver.schema import Structural
from swarmtask.apiserver.schema_rules import schema_causes

TEXT, WHOLE = {"type": "string"}, {"type": "integer"}
SPEC: dict[str, Any] = {
    "type": "object",
    "properties": {
        "a": WHOLE, "b": WHOLE, "s": TEXT, "ratio": {"type": "number"}, "flag": {"type": "boolean"},
        "port": {"x-kubernetes-int-or-string": True}, "since": {"type": "string", "format": "date-time"},
        "grace": {"type": "string", "format": "duration"}, "raw": {"type": "string", "format": "byte"},
        "foo-bar": WHOLE, "namespace": TEXT, "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": TEXT},
        "list": {"type": "array", "items": {"type": "object", "properties": {"n": WHOLE, "name": TEXT}}},
        "keyed": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": {
            "type": "object", "required": ["name"], "properties": {"n": WHOLE, "name": TEXT}}},
        "map": {"type": "object", "additionalProperties": WHOLE}, "none": {"type": "string", "nullable": True},
    },
}  # fmt: skip


def with_rule(rule: str, *, at: tuple[str, ...] = ("spec",), **more: Any) -> dict[str, Any]:
    """A schema of a whole object with one rule at a node; `items` and `additionalProperties` are steps too."""
    schema = {"type": "object", "properties": {"spec": json.loads(json.dumps(SPEC))}}
    node: Any = schema
    for step in at:
        node = node[step] if step in ("items", "additionalProperties") else node["properties"][step]
    node["x-kubernetes-validations"] = [{"rule": rule, **more}]
    return schema


def refusal(rule: str, **more: Any) -> str:
    causes = schema_causes(with_rule(rule, **more), "schema")
    return " ".join(f"{cause.field}: {cause.message}" for cause in causes)


def broken(rule: str, spec: dict[str, Any], old: dict[str, Any] | None = None, **more: Any) -> list[tuple[str, str, str]]:
    schema = with_rule(rule, **more)
    assert schema_causes(schema, "schema") == []
    obj = {"apiVersion": "e.io/v1", "kind": "K", "metadata": {"name": "n", "labels": {"a": "b"}}, "spec": spec}
    before = None if old is None else {**obj, "spec": old}
    return [(cause.field, cause.reason, cause.message) for cause in Structural(schema).evaluate(obj, before)]


def holds(rule: str, spec: dict[str, Any], old: dict[str, Any] | None = None, **more: Any) -> bool:
    return broken(rule, spec, old, **more) == []


# --- the life of a rule --------------------------------------------------------------------------------------------------


def test_a_broken_rule_names_the_node_and_the_message() -> None:
    rule = "self.a <= self.b"
    assert holds(rule, {"a": 1, "b": 1})
    assert broken(rule, {"a": 2, "b": 1}) == [("spec", "FieldValueInvalid", f"Invalid value: failed rule: {rule}")]
    assert broken(rule, {"a": 2, "b": 1}, message="a first") == [("spec", "FieldValueInvalid", "Invalid value: a first")]


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("FieldValueForbidden", "Forbidden: no"), ("FieldValueRequired", "Required value: no"),
        ("FieldValueDuplicate", "Duplicate value: no"), ("FieldValueInvalid", "Invalid value: no"),
    ],
)  # fmt: skip
def test_reason_and_field_path(reason: str, said: str) -> None:
    assert broken("false", {}, message="no", reason=reason, fieldPath=".foo-bar") == [("spec.foo-bar", reason, said)]


def test_a_value_that_fits_into_a_line_is_shown() -> None:
    at = ("spec", "map", "additionalProperties")
    assert broken("self > 0", {"map": {"x": -1}}, at=at, message="no")[0][2] == "Invalid value: -1: no"
    assert broken("false", {"s": "blue"}, at=("spec", "s"), message="no")[0][2] == 'Invalid value: "blue": no'
    assert broken("false", {"list": []}, at=("spec", "list"), message="no")[0][2] == "Invalid value: no"


def test_the_message_may_be_computed() -> None:
    by = {"message": "plain", "messageExpression": "'%d is above %d'.format([self.a, self.b])"}
    assert broken("self.a <= self.b", {"a": 2, "b": 1}, **by)[0][2].endswith("2 is above 1")
    assert broken("self.a <= 1", {"a": 2}, **by)[0][2].endswith("plain"), "b is missing: the message has no value"


def test_an_error_of_the_rule_is_a_refusal() -> None:
    assert "no such key: b" in broken("self.a <= self.b", {"a": 1})[0][2]
    assert "rule evaluation error" in broken("1 / self.a == 1", {"a": 0})[0][2]
    assert holds("!has(self.b) || self.a <= self.b", {"a": 1})


def test_rules_of_items_and_values_are_asked_one_by_one() -> None:
    found = broken("self.n > 0", {"list": [{"n": 1}, {"n": 0}, {"n": -1}]}, at=("spec", "list", "items"))
    assert [field for field, _, _ in found] == ["spec.list[1]", "spec.list[2]"]
    assert broken("self > 0", {"map": {"x": 0}}, at=("spec", "map", "additionalProperties"))[0][0] == "spec.map.x"
    assert holds("self == ''", {"none": None}, at=("spec", "none")), "a rule is not asked about null"


def test_the_root_sees_name_and_nothing_else_of_metadata() -> None:
    assert holds("self.metadata.name == 'n' && self.kind == 'K'", {}, at=())
    assert "undefined field 'labels'" in refusal("self.metadata.labels.a == 'b'", at=())


def test_an_open_object_is_there_but_what_is_in_it_has_no_name() -> None:
    assert holds("has(self.open)", {"open": {"x": 1}})
    assert holds("!has(self.open)", {})
    assert "undefined field 'x'" in refusal("self.open.x == 1")
    one, two = {"open": {"x": [1, {"y": None}]}}, {"open": {"x": [1, {"y": 2}]}}
    assert holds("self == oldSelf", one, one, at=("spec", "open"))
    assert not holds("self == oldSelf", two, one, at=("spec", "open"))
    assert holds("has(self.open) ? self.open == oldSelf.open : true", {"open": {"x": 1}, "a": 1}, {"open": {"x": 1}})


# --- old values ----------------------------------------------------------------------------------------------------------


def test_a_transition_rule_is_asked_only_on_an_update() -> None:
    rule = "self.a >= oldSelf.a"
    assert holds(rule, {"a": 1})
    assert holds(rule, {"a": 2}, {"a": 1})
    assert not holds(rule, {"a": 1}, {"a": 2})
    assert holds("self == oldSelf", {"a": 1}, {"b": 1}, at=("spec", "a")), "a field that was not there before has no old value"


def test_an_optional_old_value_is_there_at_create() -> None:
    rule = "oldSelf.hasValue() ? self.a >= oldSelf.value().a : self.a == 0"
    assert holds(rule, {"a": 0}, optionalOldSelf=True)
    assert not holds(rule, {"a": 1}, optionalOldSelf=True)
    assert holds(rule, {"a": 3}, {"a": 2}, optionalOldSelf=True)
    assert not holds(rule, {"a": 1}, {"a": 2}, optionalOldSelf=True)


def test_what_stays_as_it_was_stored_is_not_held_against_a_writer() -> None:
    assert holds("self > 5", {"a": 1, "b": 2}, {"a": 1}, at=("spec", "a"))
    assert not holds("self > 5", {"a": 2}, {"a": 1}, at=("spec", "a"))


def test_items_of_a_keyed_list_find_their_old_value() -> None:
    old = {"keyed": [{"name": "x", "n": 5}, {"name": "y", "n": 1}]}
    new = {"keyed": [{"name": "y", "n": 2}, {"name": "x", "n": 4}, {"name": "z", "n": 0}]}
    assert [field for field, _, _ in broken("self.n >= oldSelf.n", new, old, at=("spec", "keyed", "items"))] == ["spec.keyed[1]"]


@pytest.mark.parametrize("at", [("spec", "list", "items"), ("spec", "set", "items")])
def test_items_of_other_lists_have_no_old_value(at: tuple[str, ...]) -> None:
    assert "oldSelf cannot be used here" in refusal("self == oldSelf", at=at)


def test_the_order_of_a_set_and_of_a_keyed_list_is_no_change() -> None:
    rule = "self.set == oldSelf.set && self.keyed == oldSelf.keyed"
    old = {"a": 1, "set": ["x", "y"], "keyed": [{"name": "x", "n": 1}, {"name": "y", "n": 2}]}
    assert holds(rule, {"set": ["y", "x"], "keyed": [{"name": "y", "n": 2}, {"name": "x", "n": 1}]}, old)
    assert not holds(rule, {"set": ["x"], "keyed": old["keyed"]}, old)
    assert not holds("self.list == oldSelf.list", {"list": [{"n": 1}, {"n": 2}]}, {"list": [{"n": 2}, {"n": 1}]})


# --- types and names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "spec"),
    [
        ("self.ratio < 1.5 && self.ratio + 0.5 == 1.5", {"ratio": 1}), ("type(self.a) == int", {"a": 1}),
        ("type(self.a) == int && self.a + 1 == 2", {"a": 1.0}),
        ("self.since < timestamp('2021-01-01T00:00:00Z') && self.since.getFullYear() == 2020", {"since": "2020-02-29T12:00:00Z"}),
        ("self.grace > duration('59s')", {"grace": "1m0.5s"}), ("self.raw == b'abc'", {"raw": "YWJj"}),
        ("type(self.port) == int ? self.port > 0 : self.port.startsWith('h')", {"port": "http"}),
        ("type(self.port) == int ? self.port > 0 : self.port.startsWith('h')", {"port": 80}),
        ("self.foo__dash__bar == 1 && self.__namespace__ == 'n'", {"foo-bar": 1, "namespace": "n"}),
        ("self.map.all(key, key.matches('^[a-z-]+$') && self.map[key] > 0)", {"map": {"a-b": 1}}),
        ("self.none == null", {"none": None}), ("size(self.s) == 2 && self.s.size() == 2", {"s": "é😀"}),
        ("self.list.filter(i, i.n > 1).map(i, i.name) == ['y']", {"list": [{"n": 1, "name": "x"}, {"n": 2, "name": "y"}]}),
        ("self.list.exists_one(i, i.n == 1) && self.list[0].n == 1", {"list": [{"n": 1}, {"n": 2}]}),
    ],
)  # fmt: skip
def test_types_follow_the_schema(rule: str, spec: dict[str, Any]) -> None:
    assert broken(rule, spec) == []


@pytest.mark.parametrize(
    "rule",
    [
        "['a', 'b'].isSorted() && ![2, 1].isSorted()", "[1, 2, 3].sum() == 6 && [].sum() == 0", "[3, 1, 2].min() == 1",
        "[duration('1s'), duration('2s')].sum() == duration('3s')", "['b', 'c'].max() == 'c'",
        "[1, 2, 1].indexOf(1) == 0 && [1, 2, 1].lastIndexOf(1) == 2 && 'abcb'.indexOf('b') == 1 && [1].indexOf(2) == -1",
        "'abc 12 de 345'.find('[0-9]+') == '12' && 'abc 12 de 345'.findAll('[0-9]+') == ['12', '345']",
        "'abc'.find('x') == '' && 'a1b2'.findAll('[0-9]', 1) == ['1']",
        "'a,b'.split(',').join('-') == 'a-b' && 'AbC'.lowerAscii() == 'abc' && ' a '.trim() == 'a'",
        "'hello'.replace('l', 'L', 1) == 'heLlo' && 'hello'.substring(1, 3) == 'el' && 'hello'.charAt(0) == 'h'",
        "strings.quote('a\"b') == '\"a\\\\\"b\"'", "'%s|%d|%.2f|%x'.format(['a', 5, 1.5, 255]) == 'a|5|1.50|ff'",
        "sets.contains([1, 2, 3], [1]) && sets.equivalent([1, 2], [2, 1, 1]) && !sets.intersects([1], [2])",
        "quantity('1Gi').isGreaterThan(quantity('1G')) && quantity('1k') == quantity('1000') && !isQuantity('1Gx')",
        "quantity('500m').add(quantity('500m')).asInteger() == 1 && quantity('-1').sign() == -1 && !quantity('1m').isInteger()",
        "quantity('2').sub(1) == quantity('1') && quantity('1').compareTo(quantity('2')) == -1",
        "quantity('1500m').asApproximateFloat() == 1.5",
        "isIP('::1') && !isIP('1.2.3') && ip('127.0.0.1').isLoopback() && ip('::1').family() == 6 && ip.isCanonical('::1')",
        "ip('fe80::1').isLinkLocalUnicast() && ip('8.8.8.8').isGlobalUnicast() && ip('0.0.0.0').isUnspecified()",
        "cidr('10.0.0.0/8').containsIP('10.1.1.1') && cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16')",
        "cidr('10.1.2.3/8').masked() == cidr('10.0.0.0/8') && cidr('10.1.2.3/8').ip() == ip('10.1.2.3')",
        "cidr('10.0.0.0/8').prefixLength() == 8 && !isCIDR('10.0.0.0/33') && !isCIDR('10.0.0.0')",
        "isURL('https://a.example:8080/x?k=v') && !isURL('not a url')",
        "url('https://a.example:8080/x').getHost() == 'a.example:8080'",
        "url('https://[::1]:80/ab').getPort() == '80' && !isURL('https://a/b c')",
        "url('https://a/x%20y?k=v&k=w').getQuery()['k'] == ['v', 'w'] && url('https://a/x%20y').getEscapedPath() == '/x%20y'",
        "url('https://u@a.example/').getHostname() == 'a.example' && url('/path').getScheme() == ''",
    ],
)  # fmt: skip
def test_functions_that_kubernetes_adds(rule: str) -> None:
    assert broken(rule, {}) == []


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("self.zz == 1", "undefined field 'zz'"), ("has(self.a) || has(self.zz)", "undefined field 'zz'"),
        ("true || self.list.all(i, i.q > 0)", "undefined field 'q'"),
        ("true ? true : self.list.filter(i, i.n > 0).all(j, j.x > 0)", "undefined field 'x'"),
        ("self.list[0].z == 1", "undefined field 'z'"), ("self.open.x == 1", "undefined field 'x'"),
        ("self.s.a == 'x'", "does not support field selection"), ("self.a.all(x, x > 0)", "cannot be the range"),
        ("self.s.foo()", "undeclared reference to 'foo'"), ("math.abs(self.a) == 1", "undeclared reference to 'math.abs'"),
        ("self.list.all(i, v, v.n > 0)", "two variables"), ("other == 1", "undeclared reference to 'other'"),
        ("self.?a.hasValue()", "unsupported syntax"), ("self.a +", "Syntax error"), ("'unclosed", "compilation failed"),
        ("self.a", "must evaluate to a bool"), ("self.a + self.s == 'x'", "compilation failed"),
        ("self.a < 'x'", "compilation failed"), ("self.s.matches('(')", "pattern cannot be read"),
        ("matches_of(self.s, 'a')", "undeclared reference"), ("self.a.sum() == 1", "overload"),
        ("  ", "Required value"), ("self.a == 1\n|| self.a == 2", "needs a message"), (")", "compilation failed"),
        ("1" + " + 1" * MAX_RULE_CHARS + " > 0", "characters"), ("[" * 400 + "]" * 400 + " == []", "compilation failed"),
        ("".join(f"[1].all(x{depth}, " for depth in range(7)) + "true" + ")" * 7, "nested 6 deep"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_with_its_path(rule: str, why: str) -> None:
    said = refusal(rule)
    assert "schema.properties[spec].x-kubernetes-validations[0]" in said
    assert why in said


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"mesage": "x"}, "not known here"), ({"message": ""}, "non-empty"), ({"message": "a\nb"}, "line breaks"),
        ({"message": "x" * 3000}, "Too long"), ({"reason": "Sad"}, "supported values"), ({"fieldPath": ".nope"}, "fieldPath"),
        ({"fieldPath": "a"}, "fieldPath"), ({"fieldPath": ".list[0]"}, "fieldPath"), ({"messageExpression": "1"}, "a string"),
        ({"messageExpression": "self.zz"}, "undefined field"), ({"optionalOldSelf": True}, "only where the rule uses oldSelf"),
        ({"optionalOldSelf": "yes"}, "wrong type"), ({"message": 1}, "wrong type"),
    ],
)  # fmt: skip
def test_what_stands_beside_a_rule_is_checked(more: dict[str, Any], why: str) -> None:
    assert why in refusal("true", **more)


@pytest.mark.parametrize("value", ["x", [1], [{"message": "x"}], None, {"rule": "true"}])
def test_malformed_rules_are_refused(value: Any) -> None:
    schema = with_rule("true")
    schema["properties"]["spec"]["x-kubernetes-validations"] = value
    assert schema_causes(schema, "schema") != []


def test_a_rule_inside_of_a_combination_is_refused() -> None:
    schema = {"type": "object", "anyOf": [{"x-kubernetes-validations": [{"rule": "true"}]}]}
    assert "anyOf[0].x-kubernetes-validations" in schema_causes(schema, "s")[0].field


# --- rules as Kubernetes' documentation writes them ----------------------------------------------------------------------

DOCUMENTED: dict[str, Any] = {"type": "object", "properties": {
    "minReplicas": WHOLE, "replicas": WHOLE, "maxReplicas": WHOLE, "counts": {"type": "object", "additionalProperties": WHOLE},
    "list1": {"type": "array", "items": TEXT}, "list2": {"type": "array", "items": TEXT},
    "map1": {"type": "object", "additionalProperties": TEXT}, "health": TEXT, "primary": TEXT,
    "envars": {"type": "array", "items": {"type": "object", "properties": {"name": TEXT, "value": TEXT}}},
    "created": {"type": "string", "format": "date-time"}, "expired": {"type": "string", "format": "date-time"},
    "ttl": {"type": "string", "format": "duration"}, "amount": {"x-kubernetes-int-or-string": True},
    "widgets": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["key"], "items": {
        "type": "object", "required": ["key"], "properties": {"key": TEXT, "foo": WHOLE}}},
    "set1": {"type": "array", "x-kubernetes-list-type": "set", "items": TEXT},
    "set2": {"type": "array", "x-kubernetes-list-type": "set", "items": TEXT},
}}  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        ("self.minReplicas <= self.replicas && self.replicas <= self.maxReplicas",
         {"minReplicas": 1, "replicas": 2, "maxReplicas": 3}, {"minReplicas": 1, "replicas": 4, "maxReplicas": 3}),
        ("'Available' in self.counts", {"counts": {"Available": 0}}, {"counts": {}}),
        ("(size(self.list1) == 0) != (size(self.list2) == 0)", {"list1": [], "list2": ["x"]}, {"list1": [], "list2": []}),
        ("!('KEY' in self.map1) || self.map1['KEY'].matches('^[a-zA-Z]*$')", {"map1": {"KEY": "a"}}, {"map1": {"KEY": "1"}}),
        ("self.envars.filter(e, e.name == 'A').all(e, e.value.matches('^[a-zA-Z]*$'))",
         {"envars": [{"name": "A", "value": "a"}, {"name": "B", "value": "1"}]}, {"envars": [{"name": "A", "value": "1"}]}),
        ("has(self.expired) && self.created + self.ttl < self.expired",
         {"created": "2026-01-01T00:00:00Z", "ttl": "1h", "expired": "2026-01-01T02:00:00Z"},
         {"created": "2026-01-01T00:00:00Z", "ttl": "1h", "expired": "2026-01-01T00:30:00Z"}),
        ("self.health.startsWith('ok')", {"health": "okay"}, {"health": "no"}),
        ("self.widgets.exists(w, w.key == 'x' && w.foo < 10)",
         {"widgets": [{"key": "w"}, {"key": "x", "foo": 1}]}, {"widgets": [{"key": "x", "foo": 10}]}),
        ("type(self.amount) == string ? self.amount == '99%' : self.amount == 42", {"amount": "99%"}, {"amount": 41}),
        ("self.set1.all(e, !(e in self.set2))", {"set1": ["a"], "set2": ["b"]}, {"set1": ["a"], "set2": ["b", "a"]}),
        ("size(self.widgets.filter(w, w.key == self.primary)) == 1",
         {"widgets": [{"key": "x"}], "primary": "x"}, {"widgets": [{"key": "x"}], "primary": "y"}),
        ("size(self.set1 + self.set2) == 2", {"set1": ["a", "b"], "set2": ["b"]}, {"set1": ["a", "b"], "set2": ["c"]}),
        ("self.set1 == self.set2", {"set1": ["a", "b"], "set2": ["b", "a"]}, {"set1": ["a"], "set2": ["b"]}),
    ],
)  # fmt: skip
def test_rules_of_the_documentation(rule: str, good: dict[str, Any], bad: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"spec": {**DOCUMENTED, "x-kubernetes-validations": [{"rule": rule}]}}}
    assert schema_causes(schema, "schema") == []
    assert Structural(schema).evaluate({"spec": good}, None) == []
    assert [cause.field for cause in Structural(schema).evaluate({"spec": bad}, None)] == ["spec"]


# --- sets and lists with keys --------------------------------------------------------------------------------------------

LISTS: dict[str, Any] = {
    "a": 1, "set": ["x", "y"], "map": {"x": 1}, "list": [{"n": 1}, {"n": 2}],
    "keyed": [{"name": "x", "n": 1}, {"name": "y", "n": 2}],
}  # fmt: skip


@pytest.mark.parametrize(
    "rule",
    [
        # + of a set: those of the left side stay where they are, new ones follow.
        "(self.set + ['x']).size() == 2", "(self.set + ['z', 'y', 'w']).map(i, i) == ['x', 'y', 'z', 'w']",
        "(self.set + oldSelf.set).size() == 3", "size(self.set + ['x'] + ['z', 'x']) == 3", "(self.set + ['z', 'z']).size() == 3",
        "self.set + ['z'] == ['z', 'y', 'x'] && (self.set + ['z']) == ['z', 'x', 'y']", "(((self.set)) + ['x'])[1] == 'y'",
        "self.a == 1 ? self.set + ['x'] == self.set : false", "['x'] + self.set == ['x', 'x', 'y']", "'x' in self.set + ['z']",
        "self.set.all(i, (self.set + [i]).size() == 2)", "self.list.exists(i, i.n == 2 && (self.set + ['x']).size() == 2)",
        "self.set.filter(i, true) + ['x'] == ['x', 'y', 'x']", "self.set.map(i, i) + ['x'] == ['x', 'y', 'x']",
        # + of a list with keys: the right side wins, in the place of the left.
        "(self.keyed + [{'name': 'x', 'n': 9}]).map(i, i.n) == [9, 2]", "(self.keyed + [{'name': 'z', 'n': 9}]).size() == 3",
        "(self.keyed + oldSelf.keyed).map(i, i.name) == ['x', 'y', 'w']", "(self.list + [{'n': 1}]).size() == 3",
        # == heeds no order.
        "self.set == ['y', 'x'] && self.set != ['y'] && self.set != ['x', 'z']", "['y', 'x'] != self.set",
        "self.keyed == [{'name': 'y', 'n': 2}, {'n': 1, 'name': 'x'}]",
        "self.keyed != [{'name': 'y', 'n': 3}, {'n': 1, 'name': 'x'}]",
        "!(self.keyed == [{'name': 'y', 'n': 2}])", "self.set == self.set.map(i, i)", "self.list != [{'n': 2}, {'n': 1}]",
        "self == self && self != oldSelf", "(self.set == ['y', 'x']) == true", "self.set == ['x', 'y'] || self.set[0] == 'none'",
        "self.set != ['x', 'x']", "[[1], [2]] + [[1]] == [[1], [2], [1]] && 1 + self.a * 2 - 1 == 2 && -self.a + 1 == 0",
    ],
)  # fmt: skip
def test_the_order_of_sets_and_keyed_lists_has_no_meaning(rule: str) -> None:
    old = {**LISTS, "a": 2, "set": ["y", "w"], "keyed": [{"name": "w", "n": 1}, {"name": "y", "n": 7}]}
    old["keyed"].reverse()
    assert broken(rule, LISTS, old) == []
    assert broken(f"!({rule})", LISTS, old) != []


def test_whole_values_that_hold_sets_are_compared_without_their_order() -> None:
    one, other = {"items": [{"set": ["a", "b"]}, {"set": ["b", "a"]}, {"set": ["a", "c"]}]}, "items[0] == self.items[1]"
    inner = {"type": "object", "properties": {"set": {"type": "array", "x-kubernetes-list-type": "set", "items": TEXT}}}
    for rule, expected in (
        (f"self.{other}", True),
        ("self.items[0] != self.items[2]", True),
        ("self.items[0] == self.items[2]", False),
    ):
        node = {"type": "object", "properties": {"items": {"type": "array", "items": inner}}}
        schema = {"type": "object", "properties": {"spec": {**node, "x-kubernetes-validations": [{"rule": rule}]}}}
        assert schema_causes(schema, "schema") == []
        assert (Structural(schema).evaluate({"spec": one}, None) == []) is expected


@pytest.mark.parametrize(
    "rule", ["self.set == ", "self.set + ", "self.set == (", "united_0(self.set, [])", "same_0(self.set, [])", "fold_0(self.set)",
             "self.set + 1 == ['x']", "self.set == ['x'],"],
)  # fmt: skip
def test_operators_that_cannot_be_read_are_refused(rule: str) -> None:
    assert "compilation failed" in refusal(rule)


def test_unions_that_grow_are_stopped() -> None:
    rule = "[self.set + self.set].all(a, (self.set + a).all(b, (self.set + a).all(c, (self.set + a).all(d, b + c + d != ''))))"
    assert "may cost too much" in broken(rule, {"set": [str(number) for number in range(100)]})[0][2]


# --- items without an answer ---------------------------------------------------------------------------------------------

PARTLY: dict[str, Any] = {
    "a": 1, "list": [{"name": "x"}, {"name": "y", "n": 1}, {"name": "z"}], "map": {"x": 0, "y": 1}, "s": "y",
    "keyed": [{"name": "x"}, {"name": "y", "n": 2}],
}  # fmt: skip
"""Items of the lists lack `n`, which the rules below ask for."""


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("self.list.exists(i, i.n == 1)", True), ("self.list.exists(i, i.n == 2)", None),
        ("!self.list.all(i, i.n == 2)", True), ("self.list.all(i, i.n == 1)", None), ("!self.list.exists(i, i.n == 1)", False),
        ("self.list.exists(i, i.n == 1) && self.list.exists(i, i.name == 'z')", True),
        ("self.list.exists(i, self.keyed.exists(k, k.n == i.n + self.a))", True),
        ("self.list.exists(i, self.keyed.exists(i, i.n == 2) && i.n == 1)", True),
        ("self.list.exists(self, self.n == 1)", True),
        ("self.list.exists(i, !self.keyed.all(k, i.n < 2 && k.n != 2))", True),
        ("self.list.filter(i, self.keyed.exists(k, k.n == 2 && i.name == 'y')).size() == 1", True),
        ("self.list.map(i, self.keyed.exists(k, k.n == 2)).all(b, b)", True),
        ("self.map.exists(k, 1 / self.map[k] == 1)", True), ("!self.map.all(k, 1 / self.map[k] == 2)", True),
        ("self.list.exists(i, i.n == 1 ? size(i.name) == 1 && i.name.matches('y') : false) // why", True),
        ("self.list.exists(i, oldSelf.list.exists(o, o.n == i.n))", True),
        ("[[0, 1], [2]].exists(l, l.exists(i, 1 / i == 1) && l.exists(i, 1 / i == 1 && size(l) == 2))", True),
        # The others have no value with such an item.
        ("self.list.exists_one(i, i.n == 1)", None), ("self.list.filter(i, i.n == 1).size() == 1", None),
        ("self.list.map(i, i.n) == [1]", None), ("self.list.map(i, i.n).exists(n, n == 1)", None),
        # || and && are decided by either side.
        ("self.list[0].n == 1 || true", True), ("true || self.list[0].n == 1", True), ("self.list[0].n == 1 || self.a == 1", True),
        ("!(self.list[0].n == 1 && false)", True), ("self.list[0].n == 1 || false", None), ("self.list[0].n == 1 && true", None),
        ("(self.list.exists(i, i.n == 2) && false) || self.list.exists(i, i.n == 1)", True),
        ("self.list.exists(i, i.n == 1) ? self.list[0].n == 1 : true", None),
    ],
)  # fmt: skip
def test_an_item_without_an_answer_does_not_matter_where_another_decides(rule: str, expected: bool | None) -> None:
    found = [message for _, _, message in broken(rule, PARTLY, {**PARTLY, "a": 2}, message="no")]
    assert found == [] if expected else len(found) == 1
    assert expected is not None or "rule evaluation error: " in found[0]
    assert expected is not False or found[0].endswith(": no")


def test_the_message_too_may_be_decided_by_another_item() -> None:
    by = {"message": "plain", "messageExpression": "self.list.exists(i, i.n == 1) ? 'there' : 'not there'"}
    assert broken("false", PARTLY, **by)[0][2].endswith(": there")


def test_what_other_items_decide_has_its_price_too() -> None:
    rule = "self.list.exists(a, self.list.exists(b, a.n == 1 && b.n == 0))"
    assert holds(rule, {"list": [*[{"n": 0}] * 20, {}, {"n": 1}]})
    said = broken(rule, {"list": [{}] * 300})[0][2]
    assert "no such key: n" in said
    assert "may cost too much" in said
    heavy = {"list": [{}, *[{"n": number} for number in range(100)]]}
    begun = time.perf_counter()
    assert broken("self.list.exists(a, self.list.exists(b, a.n + b.n == 1000))", heavy)
    assert time.perf_counter() - begun < 5


# --- cost ----------------------------------------------------------------------------------------------------------------


def test_a_rule_that_would_cost_too_much_fails_before_it_runs() -> None:
    rule = "self.list.all(a, self.list.all(b, self.list.all(c, a.n + b.n + c.n >= 0)))"
    assert holds(rule, {"list": [{"n": 1}] * 20})
    begun = time.perf_counter()
    said = broken(rule, {"list": [{"n": 1}] * 1000})[0][2]
    assert "may cost too much" in said
    assert time.perf_counter() - begun < 5, "a billion steps were walked"


@pytest.mark.parametrize(
    "rule",
    [
        "self.list.all(x, x in self.list)", "self.list.all(x, self.list.indexOf(x) < 0)", "self.list.all(x, self.list == [x])",
        "self.list.all(x, sets.intersects(self.list, [x]))", "self.list.all(x, [self.list].all(y, y.lastIndexOf(x) < 0))",
        "size(self.list.map(x, x.n)) > 0", "self.list.filter(x, x.n >= 0) != []",
    ],
)  # fmt: skip
def test_a_walk_over_a_list_for_each_item_has_a_price(rule: str) -> None:
    schema = with_rule(rule)
    few, many = ({"list": [{"n": number} for number in range(count)]} for count in (100, 20_000))
    assert "may cost too much" not in str(Structural(schema).evaluate({"spec": few}, None))
    assert "may cost too much" in str(Structural(schema).evaluate({"spec": many}, None))


@pytest.mark.slow
def test_sets_are_compared_by_what_is_in_them() -> None:
    grown = {"list": [{"n": number} for number in range(20_000)]}
    assert holds("sets.contains(self.list, self.list) && sets.equivalent(self.list, self.list)", grown)
    assert holds("!sets.intersects(self.list, [[1], {'n': -1}])", grown)
    assert holds("sets.contains([1, 'a', [2]], [1.0, [2]]) && !sets.contains([1], [true])", {})


def test_a_schema_has_a_bounded_number_of_rules() -> None:
    schema = with_rule("true")
    schema["properties"]["spec"]["x-kubernetes-validations"] *= 1001
    assert "at most 1000 rules" in schema_causes(schema, "schema")[0].message
    heavy = "[" + ", ".join("1" for _ in range(400)) + "]"
    assert refusal(f"{heavy}.all(a, {heavy}.all(b, {heavy}.all(c, a + b + c > 0)))") == "", "it is not tried, and is bounded later"


@pytest.mark.slow
def test_handing_over_a_large_value_has_a_price() -> None:
    schema = with_rule("true")
    schema["properties"]["spec"]["x-kubernetes-validations"] *= 100
    found = Structural(schema).evaluate({"spec": {"list": [{"n": 1}] * 20_000}}, None)
    assert found
    assert all("may cost too much" in cause.message for cause in found)


def test_long_rules_are_bounded_together() -> None:
    schema = with_rule("true || " * 600 + "true")
    schema["properties"]["spec"]["x-kubernetes-validations"] *= 50
    assert "characters in all" in schema_causes(schema, "schema")[0].message


def test_strings_that_double_are_stopped() -> None:
    rule = "[self.s+self.s].all(a, [a+a+a+a].all(b, [b+b+b+b].all(c, [c+c+c+c].all(d, size(d+d+d+d) > 0))))"
    assert "may cost too much" in broken(rule, {"s": "x" * 100_000})[0][2]
    assert "more than" in broken("self.s.replace('x', self.s) != ''", {"s": "x" * 5_000})[0][2]


def test_the_budget_is_one_for_the_whole_object() -> None:
    rule = "self.list.all(a, self.list.exists(b, a.n == b.n))"
    many = {"list": [{"n": number} for number in range(150)]}
    assert holds(rule, many)
    schema = with_rule(rule)
    schema["properties"]["spec"]["x-kubernetes-validations"] *= 60
    found = Structural(schema).evaluate({"spec": many}, None)
    assert found
    assert all("may cost too much" in cause.message for cause in found)
    assert BUDGET < 10_000_000


def test_patterns_are_read_as_re2_reads_them() -> None:
    for wide, pattern in (("٣", "\\d"), ("é", "\\w"), ("\u2003", "\\s")):
        literal = "'^" + pattern.replace("\\", "\\\\") + "$'"
        assert not holds(f"self.s.matches({literal})", {"s": wide})
        assert holds(f"matches(self.s, r'^{pattern.upper()}$')", {"s": wide})
        assert holds(f"self.s.find({literal}) == ''", {"s": wide})
    assert holds(r"self.s.matches(r'^\Qa.b\E$') && self.s.matches(r'^[[:alpha:]].\pL\z')", {"s": "a.b"})
    assert "rule evaluation error" in broken("self.s.matches(self.s)", {"s": "("})[0][2]


def test_patterns_take_linear_time() -> None:
    assert holds("!self.s.matches('^(a+)+$') && self.s.find('^(a+)+$') == ''", {"s": "a" * 20_000 + "b"})


# --- the parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "escaped"),
    [("a", "a"), ("a-b", "a__dash__b"), ("a.b/c", "a__dot__b__slash__c"), ("a__b", "a__underscores__b"), ("in", "__in__"),
     ("1a", None), ("a b", None), ("", None)],
)  # fmt: skip
def test_names_are_escaped(name: str, escaped: str | None) -> None:
    assert escape(name) == escaped


def test_times() -> None:
    assert timestamp("2020-01-01").isoformat() == "2020-01-01T00:00:00+00:00"
    assert timestamp("2020-01-01t00:00:60.123456789z").second == 59
    assert duration("-1h2m3.5s").total_seconds() == -3723.5
    assert duration("3 days").days == 3
    with pytest.raises(ValueError, match="too long"):
        duration("99999999999999h")


def test_every_function_is_either_the_librarys_or_ours() -> None:
    assert not NATIVE & FUNCTIONS.keys()
    for name in NATIVE - {"optional.of", "optional.none"}:
        assert scan(f"{name}(x)", {"x": None}).functions == {name}


def test_a_scan_leaves_strings_and_comments_alone() -> None:
    seen = scan("'size(zz)' == \"a\" // size(zz)\n && size ('a') == r'\\'", {})
    assert seen.functions == {"size"}
    assert seen.problems == []
    assert seen.text.count("size_of") == 1


_SHAPE = shape_of(SPEC)
_WORDS = st.sampled_from(
    ["self", "oldSelf", "x", "a", "list", "size", "all", "map", "(", ")", "[", "]", "{", "}", ".", ",", "?", ":", "+", "-", "!",
     "&&", "==", "<", "in", "1", "1.5", "'t'", "\"", "true", "null", "//", "\n", "é", "`", "\\", "0x", "b'"]
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(_WORDS, max_size=25).map(" ".join))
def test_any_text_is_a_rule_or_a_refusal(text: str) -> None:
    for cause in schema_causes(with_rule(text, message="m"), "schema"):
        assert "x-kubernetes-validations" in cause.field


def test_a_sample_has_every_field() -> None:
    assert _SHAPE is not None
    assert set(sample(_SHAPE)) == {escape(name) for name in SPEC["properties"]}
