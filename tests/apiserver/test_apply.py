"""Server-side apply and the ownership of fields."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmtask.apiserver.apply import ANCIENT_CHANGES, LAST_APPLIED, record_update, server_side_apply
from swarmtask.apiserver.builtins import builtin_types
from swarmtask.apiserver.fieldset import difference, fields_of, from_fields_v1, node_of, path_text, to_fields_v1
from swarmtask.apiserver.types import ResourceType
from swarmtask.errors import BadRequest, Conflict

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
CONFIG_MAP = next(rt for rt in builtin_types() if rt.kind == "ConfigMap")
TEXT = {"type": "string"}
THING = ResourceType(
    "a.io", "v1", "Thing", "things", "thing", namespaced=True, custom=True, subresources=frozenset({"status"}),
    schema={"type": "object", "properties": {
        "spec": {"type": "object", "properties": {
            "replicas": {"type": "integer"},
            "image": TEXT,
            "tags": {"type": "array", "items": TEXT, "x-kubernetes-list-type": "set"},
            "args": {"type": "array", "items": TEXT},
            "env": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": {
                "type": "object", "properties": {"name": TEXT, "value": TEXT, "note": TEXT}}},
            "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port", "protocol"],
             "items": {
                "type": "object", "properties": {
                    "port": {"type": "integer"}, "protocol": {"type": "string", "default": "TCP"}, "name": TEXT}}},
            "selector": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": TEXT},
            "labels": {"type": "object", "additionalProperties": TEXT},
            "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        }},
        "status": {"type": "object", "properties": {"phase": TEXT}},
    }},
)  # fmt: skip


def thing(spec: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    obj: dict[str, Any] = {"apiVersion": "a.io/v1", "kind": "Thing", "metadata": {"name": "t"}, **more}
    return obj if spec is None else {**obj, "spec": spec}


def apply(
    live: dict[str, Any] | None, spec: Any, manager: str = "one", *, force: bool = False, now: datetime = NOW
) -> dict[str, Any]:
    applied = spec if isinstance(spec, dict) and "kind" in spec else thing(spec)
    before = copy.deepcopy((live, applied))
    result = server_side_apply(THING, live, applied, manager=manager, force=force, now=now, subresource="")
    assert (live, applied) == before, "an argument was changed in place"
    return result


def update(
    old: dict[str, Any] | None, new: dict[str, Any], manager: str = "up", *, now: datetime = NOW, subresource: str = ""
) -> dict[str, Any]:
    result = copy.deepcopy(new)
    record_update(THING, old, result, manager=manager, now=now, subresource=subresource)
    return result


def owned(obj: dict[str, Any], manager: str, operation: str = "") -> list[str]:
    paths: set[tuple[str, ...]] = set()
    for entry in obj["metadata"].get("managedFields", []):
        if entry["manager"] == manager and operation in ("", entry["operation"]):
            paths |= from_fields_v1(entry["fieldsV1"])
    return sorted(path_text(path) for path in paths)


def test_the_first_apply_owns_what_it_names() -> None:
    spec = {"replicas": 1, "tags": ["a"], "args": ["x"], "env": [{"name": "A", "value": "1"}], "selector": {"a": "b"},
            "labels": {"k": "v"}, "open": {"x": {"y": [1]}}}  # fmt: skip
    result = apply(None, thing(spec, status={"phase": "lost"}))
    (entry,) = result["metadata"]["managedFields"]
    assert entry == {
        "manager": "one", "operation": "Apply", "apiVersion": "a.io/v1", "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1",
        "fieldsV1": {"f:spec": {
            "f:args": {}, "f:env": {'k:{"name":"A"}': {".": {}, "f:name": {}, "f:value": {}}}, "f:labels": {"f:k": {}},
            "f:open": {"f:x": {".": {}, "f:y": {}}}, "f:replicas": {}, "f:selector": {}, "f:tags": {'v:"a"': {}},
        }},
    }  # fmt: skip
    assert "status" not in result
    assert result["spec"] == spec


def test_the_same_apply_again_is_the_stored_object_itself() -> None:
    live = apply(None, {"replicas": 1, "env": [{"name": "A"}]})
    assert apply(live, {"replicas": 1, "env": [{"name": "A"}]}, now=LATER) is live


def test_fields_left_out_go_unless_somebody_else_owns_them() -> None:
    live = apply(None, {"replicas": 1, "image": "x", "labels": {"a": "1", "b": "2"}})
    live = apply(live, {"image": "x", "labels": {"b": "2"}}, "two")
    after = apply(live, {"replicas": 2}, now=LATER)
    assert after["spec"] == {"replicas": 2, "image": "x", "labels": {"b": "2"}}
    assert owned(after, "one") == [".spec.replicas"]
    assert owned(after, "two") == [".spec.image", ".spec.labels.b"]
    assert apply(after, {}, "two")["spec"] == {"replicas": 2}


def test_fields_that_nobody_owns_stay() -> None:
    live = apply(None, {"replicas": 1})
    live["spec"]["image"] = "default"
    after = apply(live, {"labels": {"a": "1"}})
    assert after["spec"] == {"image": "default", "labels": {"a": "1"}}


def test_a_struct_that_nobody_owns_any_more_goes_with_its_defaults() -> None:
    live = apply(None, thing({"replicas": 1}))
    live["spec"]["image"] = "default"
    assert "spec" not in apply(live, thing())


def test_one_conflict_is_told_as_kubectl_prints_it() -> None:
    old = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"key": "a"}}
    record_update(CONFIG_MAP, None, old, manager="kubectl-client-side-apply", now=NOW, subresource="")
    new = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"key": "b"}}
    with pytest.raises(Conflict) as error:
        server_side_apply(CONFIG_MAP, old, new, manager="kubectl", force=False, now=NOW, subresource="")
    assert str(error.value) == 'Apply failed with 1 conflict: conflict with "kubectl-client-side-apply" using v1: .data.key'
    (cause,) = error.value.causes
    assert (cause.field, cause.reason) == (".data.key", "FieldManagerConflict")
    assert cause.message == 'conflict with "kubectl-client-side-apply" using v1'
    forced = server_side_apply(CONFIG_MAP, old, new, manager="kubectl", force=True, now=NOW, subresource="")
    assert forced["data"] == {"key": "b"}
    assert owned(forced, "kubectl-client-side-apply") == [".data"]


def test_several_conflicts_are_listed_by_manager() -> None:
    live = apply(None, {"replicas": 1, "env": [{"name": "A", "value": "1"}]}, "two")
    live = apply(live, {"image": "x"}, "three")
    with pytest.raises(Conflict) as error:
        apply(live, {"replicas": 2, "image": "y", "env": [{"name": "A", "value": "2"}]})
    assert str(error.value) == (
        'Apply failed with 3 conflicts: conflicts with "three":\n- .spec.image\nconflicts with "two":\n'
        '- .spec.env[name="A"].value\n- .spec.replicas'
    )
    assert {cause.field for cause in error.value.causes} == {".spec.image", ".spec.replicas", '.spec.env[name="A"].value'}


def test_force_moves_ownership() -> None:
    live = apply(None, {"replicas": 1, "image": "x"}, "two")
    after = apply(live, {"replicas": 5}, force=True)
    assert after["spec"] == {"replicas": 5, "image": "x"}
    assert owned(after, "one") == [".spec.replicas"]
    assert owned(after, "two") == [".spec.image"]


def test_the_same_value_is_shared() -> None:
    live = apply(apply(None, {"replicas": 1}), {"replicas": 1}, "two")
    assert owned(live, "one") == owned(live, "two") == [".spec.replicas"]
    left = apply(live, {}, "two")
    assert left["spec"] == {"replicas": 1}
    with pytest.raises(Conflict):
        apply(live, {"replicas": 2})


def test_an_item_of_a_keyed_list_goes_before_its_fields_are_looked_at() -> None:
    live = apply(None, {"env": [{"name": "A", "value": "1"}, {"name": "B"}, {"name": "C"}]})
    after = apply(live, {"env": [{"name": "C"}, {"name": "A"}]})
    assert after["spec"]["env"] == [{"name": "C"}, {"name": "A"}]


def test_items_of_others_keep_their_place() -> None:
    live = apply(None, {"env": [{"name": "A"}, {"name": "X"}, {"name": "B"}], "tags": ["a", "x"]}, "two")
    after = apply(live, {"env": [{"name": "A", "value": "1"}, {"name": "N"}, {"name": "B"}], "tags": ["n", "a"]})
    assert [item["name"] for item in after["spec"]["env"]] == ["A", "X", "N", "B"]
    assert sorted(after["spec"]["tags"]) == ["a", "n", "x"]
    assert apply(after, {})["spec"] == live["spec"]


def test_keys_with_defaults_are_completed() -> None:
    live = apply(None, {"ports": [{"port": 80, "name": "a"}]})
    live["spec"]["ports"][0]["protocol"] = "TCP"
    after = apply(live, {"ports": [{"port": 80, "protocol": "TCP", "name": "b"}, {"port": 80, "protocol": "UDP"}]})
    assert after["spec"]["ports"] == [{"port": 80, "protocol": "TCP", "name": "b"}, {"port": 80, "protocol": "UDP"}]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"env": [{"name": "A"}, {"name": "A"}]}, r'\.spec\.env: duplicate entries for key \[name="A"\]'),
        ({"env": [{"value": "A"}]}, 'omits key field "name"'),
        ({"env": ["A"]}, "must be an object with name"),
        ({"tags": ["a", "a"]}, "duplicate"),
    ],
)
def test_ambiguous_lists_are_refused(spec: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        apply(None, spec)


def test_managed_fields_may_not_be_applied_and_depth_is_bounded() -> None:
    with pytest.raises(BadRequest, match="managedFields must be nil"):
        apply(None, {"apiVersion": "a.io/v1", "kind": "Thing", "metadata": {"name": "t", "managedFields": []}})
    deep: Any = 1
    for _ in range(500):
        deep = {"a": deep}
    with pytest.raises(BadRequest, match="nested deeper"):
        server_side_apply(THING, None, thing({"open": deep}), manager="one", force=False, now=NOW, subresource="")


def test_lists_without_a_type_and_atomic_maps_have_one_owner() -> None:
    live = apply(None, {"args": ["a", "b"], "selector": {"a": "1"}}, "two")
    for spec in ({"args": ["a"]}, {"selector": {"b": "2"}}):
        with pytest.raises(Conflict):
            apply(live, spec)
    forced = apply(live, {"args": ["a"], "selector": {"b": "2"}}, force=True)
    assert forced["spec"] == {"args": ["a"], "selector": {"b": "2"}}
    assert owned(forced, "two") == []


def test_an_object_without_owners_gets_one_at_the_first_apply() -> None:
    live = thing({"replicas": 1, "image": "x"})
    with pytest.raises(Conflict, match="before-first-apply"):
        apply(live, {"replicas": 2})
    after = apply(live, {"replicas": 1})
    assert owned(after, "before-first-apply") == [".spec", ".spec.image", ".spec.replicas"]


def test_the_server_s_own_metadata_is_kept_and_owned_by_nobody() -> None:
    live = apply(
        None,
        thing(
            {},
        ),
    )
    live["metadata"] |= {"uid": "u", "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z", "generation": 3}
    applied = thing({"replicas": 1})
    applied["metadata"] |= {"labels": {"a": "b"}, "resourceVersion": "7", "uid": "u"}
    after = apply(live, applied)
    assert {key: after["metadata"][key] for key in ("uid", "resourceVersion", "generation", "labels")} == {
        "uid": "u", "resourceVersion": "7", "generation": 3, "labels": {"a": "b"}}  # fmt: skip
    assert owned(after, "one") == [".metadata.labels.a", ".spec.replicas"]
    assert "labels" not in apply(after, {"replicas": 1})["metadata"]


def test_the_status_subresource_owns_the_status_and_nothing_else() -> None:
    live = apply(None, {"replicas": 1})
    applied = thing({"replicas": 9}, status={"phase": "Running"})
    after = server_side_apply(THING, live, applied, manager="one", force=False, now=NOW, subresource="status")
    assert after["spec"] == {"replicas": 1}
    assert after["status"] == {"phase": "Running"}
    assert [(entry.get("subresource"), entry["fieldsV1"]) for entry in after["metadata"]["managedFields"]] == [
        (None, {"f:spec": {"f:replicas": {}}}), ("status", {"f:status": {"f:phase": {}}})]  # fmt: skip
    again = apply(after, thing({"replicas": 1}, status={"phase": "Forged"}))
    assert again is after


def test_times_change_only_with_a_change() -> None:
    live = apply(None, {"replicas": 1})
    moved = apply(live, {"replicas": 2}, now=LATER)
    assert moved["metadata"]["managedFields"][0]["time"] == "2026-01-01T01:00:00Z"
    other = apply(moved, {"image": "x"}, "two", now=LATER + timedelta(hours=1))
    assert [entry["time"] for entry in other["metadata"]["managedFields"]] == ["2026-01-01T01:00:00Z", "2026-01-01T02:00:00Z"]


def test_updates_own_what_they_change_and_lose_what_they_remove() -> None:
    first = update(None, thing({"replicas": 1, "image": "x"}), "creator")
    assert owned(first, "creator") == [".spec", ".spec.image", ".spec.replicas"]
    changed = copy.deepcopy(first)
    changed["spec"] = {"replicas": 2, "labels": {"a": "1"}}
    second = update(first, changed, "editor", now=LATER)
    assert owned(second, "creator") == [".spec"]
    assert owned(second, "editor") == [".spec.labels", ".spec.labels.a", ".spec.replicas"]
    third = copy.deepcopy(second)
    third["spec"] = {}
    assert owned(update(second, third, "editor"), "editor") == []


def test_an_update_that_changes_nothing_changes_no_owner() -> None:
    first = update(None, thing({"replicas": 1}), "creator")
    same = update(first, {**first, "metadata": {"name": "t", "resourceVersion": "9"}}, "editor", now=LATER)
    assert same["metadata"]["managedFields"] == first["metadata"]["managedFields"]


def test_status_updates_have_an_entry_of_their_own() -> None:
    first = update(None, thing({"replicas": 1}), "operator")
    second = update(first, {**first, "status": {"phase": "Running"}}, "operator", now=LATER, subresource="status")
    assert [(entry["time"], entry.get("subresource")) for entry in second["metadata"]["managedFields"]] == [
        ("2026-01-01T00:00:00Z", None), ("2026-01-01T01:00:00Z", "status")]  # fmt: skip


def test_an_applier_conflicts_with_an_updater_until_forced() -> None:
    live = apply(None, {"replicas": 1})
    scaled = copy.deepcopy(live)
    scaled["spec"]["replicas"] = 5
    scaled = update(live, scaled, "scaler")
    assert owned(scaled, "one") == []
    with pytest.raises(Conflict, match=r'conflict with "scaler" using a\.io/v1: \.spec\.replicas'):
        apply(scaled, {"replicas": 1})
    assert owned(apply(scaled, {"replicas": 1}, force=True), "scaler") == []


def test_an_empty_entry_ends_the_tracking_and_an_empty_list_does_not() -> None:
    first = update(None, thing({"replicas": 1}), "creator")
    kept = update(first, {**first, "metadata": {"name": "t", "managedFields": []}})
    assert kept["metadata"]["managedFields"] == first["metadata"]["managedFields"]
    reset = update(first, {**first, "metadata": {"name": "t", "managedFields": [{}]}})
    assert "managedFields" not in reset["metadata"]
    untracked = update(reset, thing({"replicas": 2}), "editor")
    assert "managedFields" not in untracked["metadata"]


@pytest.mark.parametrize(
    "submitted",
    ["x", [1], [{"manager": "m"}], [{"manager": "m", "operation": "Apply", "fieldsV1": {"spec": {}}}],
     [{"manager": 1, "operation": "Apply", "fieldsV1": {}}], [{"manager": "m", "operation": "Apply", "fieldsV1": {"f:a": 1}}]],
)  # fmt: skip
def test_malformed_managed_fields_are_ignored(submitted: Any) -> None:
    first = update(None, thing({"replicas": 1}), "creator")
    second = update(first, {**first, "metadata": {"name": "t", "managedFields": submitted}})
    assert second["metadata"]["managedFields"] == first["metadata"]["managedFields"]


def test_a_client_may_move_ownership_by_writing_managed_fields() -> None:
    """As kubectl does when an object goes from client-side to server-side apply."""
    first = update(None, thing({"replicas": 1}), "kubectl-client-side-apply")
    migrated = copy.deepcopy(first)
    entry = migrated["metadata"]["managedFields"][0]
    entry["manager"], entry["operation"] = "kubectl", "Apply"
    second = update(first, migrated, "kubectl")
    assert owned(second, "kubectl", "Apply") == [".spec", ".spec.replicas"]
    assert owned(second, "kubectl-client-side-apply") == []
    through_status = update(first, migrated, "kubectl", subresource="status")
    assert through_status["metadata"]["managedFields"] == first["metadata"]["managedFields"]


def test_kubectl_takes_over_what_it_applied_from_the_client_side() -> None:
    spec = {"replicas": 1, "image": "x"}
    obj = thing(spec)
    obj["metadata"]["annotations"] = {LAST_APPLIED: orjson.dumps(thing(spec)).decode()}
    live = update(None, obj, "kubectl-client-side-apply")
    after = apply(live, {"replicas": 2, "image": "x"}, "kubectl")
    assert after["spec"]["replicas"] == 2
    assert orjson.loads(after["metadata"]["annotations"][LAST_APPLIED])["spec"]["replicas"] == 2
    edited = copy.deepcopy(live)
    edited["spec"]["replicas"] = 7
    edited = update(live, edited, "editor")
    with pytest.raises(Conflict, match='conflict with "editor"'):
        apply(edited, {"replicas": 2, "image": "x"}, "kubectl")


def test_old_updaters_are_joined() -> None:
    obj = update(None, thing({"labels": {}}), "m00")
    for index in range(1, 20):
        new = copy.deepcopy(obj)
        new["spec"]["labels"][f"k{index}"] = "v"
        obj = update(obj, new, f"m{index:02}", now=NOW + timedelta(minutes=index))
    entries = obj["metadata"]["managedFields"]
    assert len(entries) == 10
    assert [entry["manager"] for entry in entries][:2] == [ANCIENT_CHANGES, "m11"]
    assert ".spec.labels.k1" in owned(obj, ANCIENT_CHANGES)


def test_true_is_not_one() -> None:
    live = apply(None, {"open": {"a": 1, "l": [1]}}, "two")
    with pytest.raises(Conflict):
        apply(live, {"open": {"a": True}})
    with pytest.raises(Conflict):
        apply(live, {"open": {"l": [True]}})


names = st.sampled_from("abc")
specs = st.fixed_dictionaries({}, optional={
    "replicas": st.integers(0, 2),
    "tags": st.lists(names, unique=True, max_size=3),
    "args": st.lists(names, max_size=2),
    "env": st.lists(st.fixed_dictionaries({"name": names}, optional={"value": names, "note": names}),
     unique_by=lambda item: item["name"], max_size=3),
    "labels": st.dictionaries(names, names, max_size=2),
    "selector": st.dictionaries(names, names, max_size=2),
    "open": st.dictionaries(names, st.dictionaries(names, names, max_size=2) | names, max_size=2),
})  # fmt: skip


def holds(obj: Any, wish: Any) -> bool:
    """Whether an object has everything that somebody wished."""
    root = node_of(THING.schema)
    change = difference({"spec": wish}, {"spec": obj.get("spec")}, root)
    return not change.removed and not {path for path in change.modified if path != ("f:spec",)}


@pytest.mark.slow
@settings(max_examples=200)
@given(specs, specs, specs)
def test_properties_of_apply(first: dict[str, Any], second: dict[str, Any], third: dict[str, Any]) -> None:
    live = apply(None, first, "one")
    assert apply(live, first, "one", now=LATER) is live
    both = apply(live, second, "two", force=True)
    assert holds(both, second)
    assert apply(both, second, "two", now=LATER) is both
    gone = apply(both, {}, "two")
    assert set(owned(gone, "two")) <= {".spec"}
    moved = apply(both, third, "two", force=True)
    assert holds(moved, third)
    one = {
        path
        for entry in moved["metadata"].get("managedFields", [])
        if entry["manager"] == "one"
        for path in from_fields_v1(entry["fieldsV1"])
    }
    present = difference({}, {"spec": moved.get("spec", {})}, node_of(THING.schema)).added
    leaves = {path for path in one if path in fields_of({"spec": first}, node_of(THING.schema))}
    assert leaves <= present, "a value that only the first manager owns was lost"


@pytest.mark.slow
@settings(max_examples=200)
@given(specs, specs, specs)
def test_updates_and_applies_never_lose_what_another_owns_alone(
    first: dict[str, Any], wish: dict[str, Any], other: dict[str, Any]
) -> None:
    live = update(None, thing(first), "creator")
    live = apply(live, wish, "applier", force=True)
    before = (
        {
            path
            for entry in live["metadata"]["managedFields"]
            if entry["manager"] == "creator"
            for path in from_fields_v1(entry["fieldsV1"])
        }
        if "managedFields" in live["metadata"]
        else set()
    )
    after = apply(live, other, "applier", force=True)
    written = difference({"spec": live.get("spec", {})}, {"spec": after.get("spec", {})}, node_of(THING.schema))
    assert not (written.removed & before) or all(_inside_item(path) for path in written.removed & before)


def _inside_item(path: tuple[str, ...]) -> bool:
    """A field inside an item that its owner dropped goes with the item, as in Kubernetes."""
    return any(part.startswith("k:") for part in path) or "f:open" in path


@given(specs)
def test_fields_v1_round_trip(spec: dict[str, Any]) -> None:
    paths = fields_of({"spec": spec}, node_of(THING.schema))
    assert from_fields_v1(to_fields_v1(paths)) == paths
    assert from_fields_v1(orjson.loads(orjson.dumps(to_fields_v1(paths)))) == paths
