"""A schema that became stricter: what was stored before is not held against who changes something else."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from swarmtask.apiserver.schema import Structural
from swarmtask.apiserver.schema_checks import MAX_CAUSES
from tests.apiserver.test_definitions import CRDS, MERGE, WIDGETS, create, definition, widget

UP_TO_5: dict[str, Any] = {"type": "integer", "maximum": 5}
ITEM: dict[str, Any] = {"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}, "v": UP_TO_5}}
KEYED: dict[str, Any] = {"type": "array", "items": ITEM, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"]}


def left(field: dict[str, Any], old: Any, new: Any, **spec: Any) -> list[str]:
    """The fields that are refused when `spec.f` becomes `new`, and `spec.other` changes."""
    schema = {"type": "object", "properties": {"f": field, "other": {"type": "string"}}, **spec}
    structural = Structural({"type": "object", "properties": {"spec": schema}})
    before, after = {"spec": {"f": old, "other": "x"}}, {"spec": {"f": new, "other": "y"}}
    assert structural.validate(before) != [] or structural.evaluate(before, None) != [], "it was stored before the schema"
    causes = structural.validate(after, before) or structural.evaluate(after, before)
    return [cause.field for cause in causes]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (UP_TO_5, 9), ({"type": "string", "pattern": "^a$"}, "b"), ({"type": "string", "maxLength": 1}, "bb"),
        ({"type": "string", "enum": ["a"]}, "b"), ({"type": "string", "format": "date"}, "b"), ({"type": "string"}, 9),
        ({"type": "array", "maxItems": 1, "items": UP_TO_5}, [1, 9]), ({"type": "object", "minProperties": 1}, {}),
        ({"type": "object", "additionalProperties": UP_TO_5}, {"a.b": 9}), (KEYED, [{"k": "a", "v": 9}]),
    ],
)  # fmt: skip
def test_a_value_that_stays_as_it_was_is_let_pass(field: dict[str, Any], value: Any) -> None:
    assert left(field, value, json.loads(json.dumps(value))) == []


@pytest.mark.parametrize(
    ("field", "old", "new", "refused"),
    [
        (UP_TO_5, 9, 8, [""]), (UP_TO_5, 9, "9", [""]),
        ({"type": "object", "additionalProperties": UP_TO_5}, {"a": 9}, {"a": 9, "b": 8}, [".b"]),
        ({"type": "object", "maxProperties": 1}, {"a": 9, "b": 8}, {"a": 9, "b": 7}, [""]),
        # Items of a list are found by their keys, wherever they are.
        (KEYED, [{"k": "a", "v": 9}], [{"k": "b", "v": 1}, {"k": "a", "v": 9}], []),
        (KEYED, [{"k": "a", "v": 9}], [{"k": "b", "v": 9}, {"k": "a", "v": 9}], ["[0].v"]),
        (KEYED, [{"k": "a", "v": 9}], [{"k": "a", "v": 8}], ["[0].v"]),
        # Items of other lists have no old value.
        ({"type": "array", "items": UP_TO_5}, [9], [9, 1], ["[0]"]),
        ({"type": "array", "items": UP_TO_5, "x-kubernetes-list-type": "set"}, [9], [9, 1], ["[0]"]),
        ({"type": "array", "items": ITEM}, [{"k": "a", "v": 9}], [{"k": "a", "v": 9}, {"k": "b"}], ["[0].v"]),
    ],
)  # fmt: skip
def test_a_value_that_is_new_is_not(field: dict[str, Any], old: Any, new: Any, refused: list[str]) -> None:
    assert left(field, old, new) == [f"spec.f{path}" for path in refused]


@pytest.mark.parametrize(
    ("field", "value", "refused"),
    [
        ({"type": "object", "required": ["a"]}, {}, ["spec.f.a"]),
        ({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"}, ["a", "a"], ["spec.f[1]"]),
        (KEYED, [{"k": "a"}, {"k": "a"}], ["spec.f[1]"]),
        ({"type": "object", "additionalProperties": False}, {"a": 1}, ["spec.f.a"]),
        ({"type": "integer", "anyOf": [{"maximum": 5}, {"minimum": 10}]}, 9, ["spec.f", "spec.f"]),
        ({"type": "integer", "not": {"minimum": 6}}, 9, ["spec.f"]),
        ({"type": "integer", "oneOf": [{"maximum": 5}]}, 9, ["spec.f"] * 2),
        ({"type": "integer", "allOf": [{"maximum": 5}]}, 9, ["spec.f", "spec.f"]),
    ],
)  # fmt: skip
def test_what_kubernetes_holds_against_everybody_stays(field: dict[str, Any], value: Any, refused: list[str]) -> None:
    assert left(field, value, value) == refused


@pytest.mark.parametrize(
    ("rule", "refused"),
    [
        ({"rule": "self <= 5"}, []), ({"rule": "self <= 5 && oldSelf <= 10"}, ["spec.f"]),
        ({"rule": "self <= 5 || oldSelf.hasValue()", "optionalOldSelf": True}, []),
        ({"rule": "self <= 5 || !oldSelf.hasValue()", "optionalOldSelf": True}, ["spec.f"]),
    ],
)  # fmt: skip
def test_rules_that_are_not_about_a_change_are_let_pass_too(rule: dict[str, Any], refused: list[str]) -> None:
    field = {"type": "integer", "maximum": 5, "x-kubernetes-validations": [rule]}
    assert left(field, 9, 9) == refused


def test_a_rule_of_the_object_around_is_asked_with_the_value_that_was_let_pass() -> None:
    rules = [{"rule": "self.f <= 5"}]
    assert left(UP_TO_5, 9, 9, **{"x-kubernetes-validations": rules}) == ["spec"]


TIME: dict[str, Any] = {"type": "string", "format": "date-time"}


@pytest.mark.parametrize(
    ("format_", "value"),
    [
        ("date-time", "nonsense"),
        ("date", "2020-02-30"),
        ("duration", "nonsense"),
        ("duration", "3 parsecs"),
        ("byte", "%%%"),
        ("byte", "ä"),
    ],
)
def test_a_stored_value_that_cannot_be_read_fails_only_the_rules_that_use_it(format_: str, value: str) -> None:
    field = {"type": "string", "format": format_}

    def asked(rule: str) -> list[str]:
        return left(field, value, value, **{"x-kubernetes-validations": [{"rule": rule}]})

    assert asked("self.other != 'bad' && has(self.f)") == []
    assert asked("self.other != 'bad' && self.other != oldSelf.other && self.f == oldSelf.f") == []
    used = {"byte": "self.f + b'a' != b''", "duration": "self.f < duration('1h')"}.get(format_, "self.f.getFullYear() == 2020")
    assert asked(used) == asked(f"{used} || oldSelf.other == ''") == ["spec"]


@pytest.mark.parametrize("repaired", [{"f": "2020-01-01T00:00:00Z"}, {}])
def test_a_stored_value_that_cannot_be_read_can_be_repaired(repaired: dict[str, Any]) -> None:
    """Also under a rule about a change, which is shown the old value."""
    rules = [{"rule": "self.other != oldSelf.other"}, {"rule": "!has(self.f) || self.f > timestamp('2000-01-01T00:00:00Z')"}]
    spec = {"type": "object", "properties": {"f": TIME, "other": {"type": "string"}}, "x-kubernetes-validations": rules}
    structural = Structural({"type": "object", "properties": {"spec": spec}})
    old, new = {"spec": {"f": "nonsense", "other": "x"}}, {"spec": {"other": "y", **repaired}}
    assert structural.validate(new, old) + structural.evaluate(new, old) == []
    (cause,) = structural.evaluate({"spec": {"f": "nonsense", "other": "y"}}, old)
    assert '"nonsense" cannot be read as a timestamp' in cause.message


@pytest.mark.parametrize("above", [0, 1, 12])
def test_two_values_whose_paths_are_cut_to_the_same_text_are_not_taken_for_each_other(above: int) -> None:
    """With many long names above them the whole path is cut, too."""
    field: dict[str, Any] = {"type": "object", "additionalProperties": UP_TO_5}
    stored, new = "k" * 256 + "...", "k" * 256 + "zzz"
    before: Any = {stored: 9}
    after: Any = {stored: 9, new: 9}
    for _ in range(above):
        field = {"type": "object", "additionalProperties": field}
        before, after = {"n" * 250: before}, {"n" * 250: after}
    assert left(field, before, json.loads(json.dumps(before))) == [], "what has not changed is let pass nevertheless"
    assert len(left(field, before, after)) >= 1


def test_a_path_that_may_mean_two_values_is_not_let_pass() -> None:
    field = {"type": "object", "additionalProperties": {"type": "object", "additionalProperties": UP_TO_5}}
    structural = Structural({"type": "object", "properties": {"spec": field}})
    assert [cause.field for cause in structural.validate({"spec": {"a.b": {"c": 9}}}, {"spec": {"a.b": {"c": 9}}})] == []
    wide = {"type": "object", "additionalProperties": {"type": "object", "properties": {"b.c": UP_TO_5, "b": {
        "type": "object", "properties": {"c": UP_TO_5}}}}}  # fmt: skip
    structural = Structural({"type": "object", "properties": {"spec": wide}})
    old, new = {"spec": {"a": {"b.c": 9, "b": {"c": 1}}}}, {"spec": {"a": {"b.c": 9, "b": {"c": 8}}}}
    assert {cause.field for cause in structural.validate(new, old)} == {"spec.a.b.c"}


def test_more_faults_than_are_looked_for_are_not_let_pass() -> None:
    field = {"type": "object", "additionalProperties": UP_TO_5}
    old = {f"k{number}": 9 for number in range(MAX_CAUSES + 2)}
    assert len(left(field, old, {**old, "z": 8})) > MAX_CAUSES


async def test_a_field_can_be_changed_beside_one_that_is_refused_by_now(api: httpx.AsyncClient) -> None:
    crd = definition()
    versions = crd["spec"]["versions"]
    fields = versions[0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    fields["note"] = {"type": "string"}
    await create(api, CRDS, crd)
    await create(api, WIDGETS, widget(size=9))
    fields["size"]["maximum"] = 5
    changed = await api.patch(f"{CRDS}/widgets.example.com", json={"spec": {"versions": versions}}, headers=MERGE)
    assert changed.status_code == 200, changed.text
    beside = await api.patch(f"{WIDGETS}/w", json={"spec": {"note": "x"}}, headers=MERGE)
    assert beside.status_code == 200, beside.text
    assert beside.json()["spec"] == {"size": 9, "note": "x"}
    put = await api.put(f"{WIDGETS}/w", json={**beside.json(), "spec": {"size": 9, "note": "y"}})
    assert put.status_code == 200, put.text
    refused = await api.patch(f"{WIDGETS}/w", json={"spec": {"size": 8}}, headers=MERGE)
    assert refused.status_code == 422
    assert "spec.size" in refused.json()["message"]
    assert (await api.post(WIDGETS, json=widget("v", size=9))).status_code == 422
