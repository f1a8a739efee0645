"""Events: what kube-apiserver lets in as core/v1 and what as events.k8s.io/v1."""

from __future__ import annotations

import itertools
from typing import Any

import orjson
import pytest

from tests.apiserver.in_process import Caller

CORE = "/api/v1/namespaces/default/events"
NEW = "/apis/events.k8s.io/v1/namespaces/default/events"
SOME_TIME = "2026-01-31T12:00:00.000000Z"
MERGE = "application/merge-patch+json"
_numbers = itertools.count(1)


def new(**changes: Any) -> dict[str, Any]:
    """A valid Event of events.k8s.io/v1, with these fields instead; None leaves one out."""
    event = {
        "metadata": {"name": f"new-{next(_numbers)}"}, "eventTime": SOME_TIME, "reportingController": "example.com/controller",
        "reportingInstance": "one", "action": "Starting", "reason": "Started", "type": "Normal", "note": "hello",
        "regarding": {"kind": "SwarmTask", "name": "t", "namespace": "default"},
    }  # fmt: skip
    return {name: value for name, value in {**event, **changes}.items() if value is not None}


def core(**changes: Any) -> dict[str, Any]:
    """A valid Event of core/v1 in its old form."""
    about = {"kind": "SwarmTask", "name": "t", "namespace": "default"}
    return {"metadata": {"name": f"core-{next(_numbers)}"}, "involvedObject": about, "reason": "R", **changes}


def refusals(call: Caller, path: str, event: dict[str, Any]) -> dict[str, str]:
    """Field -> what is wrong with it; empty: it was created."""
    code, answer = call("POST", path, orjson.dumps(event))
    if code == 201:
        return {}
    assert code == 422, answer
    return {cause["field"]: cause["message"] for cause in answer["details"]["causes"]}


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"eventTime": None}, "eventTime", "Required value"),
        ({"eventTime": "0001-01-01T00:00:00.000000Z"}, "eventTime", "Required value"),
        ({"type": None}, "type", "has invalid value: "),
        ({"type": "Odd"}, "type", "has invalid value: Odd"),
        ({"deprecatedCount": 1}, "deprecatedCount", "needs to be unset"),
        ({"deprecatedSource": {"component": "c"}}, "deprecatedSource", "needs to be unset"),
        ({"deprecatedFirstTimestamp": "2026-01-31T12:00:00Z"}, "deprecatedFirstTimestamp", "needs to be unset"),
        ({"deprecatedLastTimestamp": "2026-01-31T12:00:00Z"}, "deprecatedLastTimestamp", "needs to be unset"),
        ({"series": {"count": 1, "lastObservedTime": SOME_TIME}}, "series.count", "should be at least 2"),
        ({"series": {"count": 2}}, "series.lastObservedTime", "Required value"),
        ({"reportingController": None}, "reportingController", "Required value"),
        ({"reportingController": "a b"}, "reportingController", "Invalid value"),
        ({"reportingInstance": None}, "reportingInstance", "Required value"),
        ({"action": None}, "action", "Required value"),
        ({"action": "x" * 129}, "action", "at most 128"),
        ({"reason": None}, "reason", "Required value"),
        ({"note": "x" * 1025}, "note", "at most 1024"),
        ({"regarding": {"kind": "SwarmTask", "namespace": "other"}, "eventTime": None}, "regarding.namespace", "does not match"),
    ],
)
def test_what_an_event_of_the_new_form_must_not_be(call: Caller, changes: dict[str, Any], field: str, message: str) -> None:
    found = refusals(call, NEW, new(**changes))
    assert message in found.get(field, ""), found


def test_what_an_event_of_the_new_form_may_be(call: Caller) -> None:
    assert refusals(call, NEW, new()) == {}
    assert refusals(call, NEW, new(regarding=None, note=None)) == {}, "about the cluster, in default"
    assert refusals(call, NEW, new(series={"count": 2, "lastObservedTime": SOME_TIME})) == {}
    assert refusals(call, NEW, new(deprecatedSource={}, deprecatedCount=0, note="x" * 1024)) == {}
    elsewhere = "/apis/events.k8s.io/v1/namespaces/kube-public/events"
    assert "regarding.namespace" in refusals(call, elsewhere, new(regarding={"kind": "SwarmNode", "name": "n"}))


def test_only_the_series_of_the_new_form_changes(call: Caller) -> None:
    code, made = call("POST", NEW, orjson.dumps(new()))
    assert code == 201, made
    path = f"{NEW}/{made['metadata']['name']}"
    repeated = {"series": {"count": 2, "lastObservedTime": SOME_TIME}, "metadata": {"labels": {"a": "b"}}}
    assert call("PATCH", path, orjson.dumps(repeated), MERGE)[0] == 200
    same_time = {"eventTime": "2026-01-31T13:00:00+01:00"}
    assert call("PATCH", path, orjson.dumps(same_time), MERGE)[0] == 200
    once = {"series": {"count": 1, "lastObservedTime": SOME_TIME}}
    assert call("PATCH", path, orjson.dumps(once), MERGE)[0] == 422
    for changes in ({"note": "x"}, {"type": "Warning"}, {"eventTime": "2026-02-01T12:00:00.000000Z"}, {"action": None}):
        code, answer = call("PATCH", path, orjson.dumps(changes), MERGE)
        assert (code, "field is immutable" in answer["message"]) == (422, True), answer


def test_an_event_of_the_old_form_is_repeated_through_the_new_version_too(call: Caller) -> None:
    code, made = call("POST", CORE, orjson.dumps(core(count=1, source={"component": "c"})))
    assert code == 201, made
    labelled = orjson.dumps({"metadata": {"labels": {"a": "b"}}})
    assert call("PATCH", f"{NEW}/{made['metadata']['name']}", labelled, MERGE)[0] == 200
    counted = orjson.dumps({"count": 2, "message": "again"})
    assert call("PATCH", f"{CORE}/{made['metadata']['name']}", counted, MERGE)[0] == 200


def test_core_events_stay_as_lax_as_they_were(call: Caller) -> None:
    assert refusals(call, CORE, core()) == {}
    assert refusals(call, CORE, core(eventTime=None, series={"count": 1})) == {}
    assert refusals(call, CORE, core(involvedObject={"kind": "SwarmNode", "name": "n"})) == {}, "no namespace is default"
    misplaced = core(involvedObject={"kind": "SwarmNode", "name": "n"})
    assert list(refusals(call, "/api/v1/namespaces/kube-public/events", misplaced)) == ["involvedObject.namespace"]
    assert list(refusals(call, CORE, core(involvedObject={"namespace": "other"}))) == ["involvedObject.namespace"]
    assert set(refusals(call, CORE, core(eventTime=SOME_TIME))) == {"reportingComponent", "reportingInstance", "action"}
