"""Whatever a client sends to whichever route, the answer is a Status of the 4xx class or the object: never a 500, never a hang,
never half a write.

The routes are the application's own list, so a new one is tried here without being named. SWARMTASK_FUZZ=100 in the environment
tries a hundred times as much, differently each time.
"""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmtask.apiserver.routing import Route
from tests.apiserver import strange
from tests.apiserver.examples import EXAMPLES, NAMESPACE, PATHS, TOKEN_REQUEST
from tests.apiserver.in_process import Answer, Caller, check
from tests.apiserver.strange import APPLY, JSON_PATCH, MERGE, ODD_VALUES, STRATEGIC, thorough

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "get", "FLY")
ODD = st.sampled_from(ODD_VALUES)
OWN = "fieldSelector=metadata.name=x"
"""Keeps a delete of a whole collection from what the server itself put there: the first value of an option counts."""


@pytest.fixture(scope="module")
def listed(call: Caller) -> dict[str, Route]:
    """The routes at the start: definitions come and go while the tests run."""
    return {route.path: route for route in call.app.routes()}


def example_of(route: Route) -> dict[str, Any]:
    """A sound object for a route; of a kind without an example the barest one."""
    if route.path.endswith("/token"):
        return TOKEN_REQUEST
    if route.rt is None:
        return {}
    if route.path.endswith("/scale"):
        return {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "x"}, "spec": {"replicas": 2}}
    for example in EXAMPLES.values():
        if (example["apiVersion"], example["kind"]) == (route.rt.api_version, route.rt.kind):
            return example
    return {"apiVersion": route.rt.api_version, "kind": route.rt.kind, "metadata": {"name": "x"}}


def usual_name(route: Route) -> str:
    name: str = example_of(route).get("metadata", {}).get("name", "x")
    return name


def there(call: Caller, route: Route) -> None:
    """See to it that the route's own object exists, if the kind is stored and its example is sound."""
    if route.rt is not None and route.rt.stored and "{name}" in route.path:
        collection = route.path.partition("/{name}")[0].replace("{namespace}", NAMESPACE)
        example = example_of(route)
        if (example["apiVersion"], example["kind"]) == (route.rt.api_version, route.rt.kind):
            check(call.send("POST", collection, orjson.dumps(example)))


def let_go(call: Caller, path: str) -> None:
    """Remove what an attack left, as far as it can be named."""
    check(call.send("PATCH", path, b'{"metadata":{"finalizers":null}}', MERGE))
    check(call.send("DELETE", path))


def is_dry(query: str) -> bool:
    return "dryRun=All" in query.split("&")


def sound(method: str, route: Route, answer: Answer, query: str) -> None:
    """What holds of every answer, and of what was written."""
    check(answer)
    if method not in ("POST", "PUT", "PATCH", "DELETE") or is_dry(query):
        assert answer.written == [], f"{method} {query} wrote {answer.written}"
    if method in ("POST", "PUT", "PATCH") and route.rt is not None and "deletionTimestamp" not in answer.content.decode():
        assert len(answer.written) <= 1, f"one request wrote {answer.written}"


# --- every route ---------------------------------------------------------------------------------------------------------

NESTED = b'{"a":' * 130 + b"1" + b"}" * 130
ATTACKS: tuple[tuple[bytes, str, str], ...] = (
    (b"", "application/json", ""), (b"{", "application/json", ""), (b"null", "application/json", "dryRun=x"),
    (b"[" * 3000, "application/json", ""), (b'{"metadata":{"name":"\\u0000"}}', "application/json", "fieldManager=%00"),
    (b"\xff\xfe", "application/yaml", ""), (b"a: &a [*a, *a]", "application/yaml", "fieldValidation=Strict"),
    (b"k8s\x00\x0a\x04", strange.PROTOBUF, ""), (b'[{"op":"add","path":"","value":null}]', JSON_PATCH, ""),
    (b'[{"op":"remove","path":"/metadata"}]', JSON_PATCH, ""), (NESTED, MERGE, ""),
    (b'{"metadata":null,"$patch":"x"}', STRATEGIC, ""),
    (b'{"metadata":{"managedFields":[{}]}}', APPLY, "fieldManager=m&force=1"), (b"{}", "a/b", "watch=1&timeoutSeconds=x"),
    (b"{}", "application/json", "limit=-1&continue=%00&labelSelector=((&fieldSelector=%5C"),
)  # fmt: skip


@pytest.mark.slow
def test_no_route_falls_to_a_malformed_request(call: Caller, listed: dict[str, Route]) -> None:
    tried = 0
    for route in listed.values():
        there(call, route)
        path = route.path.replace("{namespace}", NAMESPACE).replace("{name}", usual_name(route))
        for method in METHODS[:5]:
            for body, content_type, query in ATTACKS:
                asked = f"{OWN}&dryRun=All&{query}" if method == "DELETE" else query
                sound(method, route, call.send(method, path, body, content_type, query=asked), asked)
                tried += 1
    assert tried > 1000, "the application lists no routes"


@thorough(250)
@given(data=st.data())
def test_any_request_to_any_route(call: Caller, listed: dict[str, Route], data: st.DataObject) -> None:
    route = listed[data.draw(st.sampled_from(sorted(listed)), "route")]
    example, rt, path = example_of(route), route.rt, route.path
    method = data.draw(st.sampled_from((*sorted(route.methods), *METHODS)), "method")
    for part, usual in (("namespace", NAMESPACE), ("name", usual_name(route)), ("group", "swarmtask.io"), ("version", "v1")):
        path = path.replace(f"{{{part}}}", data.draw(strange.names(usual)))
    path = data.draw(st.sampled_from((path,) * 8 + (path + "/", path + "//x", path.upper(), path + "?", path + "/" + "a" * 3000)))
    query = data.draw(strange.queries(rt.group if rt else "", rt.plural if rt else ""), "query")
    body, content_type = data.draw(strange.bodies(example), "body")
    headers = data.draw(strange.headers(), "headers")
    if method == "DELETE" and "{name}" not in route.path:
        query = f"{OWN}&{query}"
    there(call, route)
    sound(method, route, call.send(method, path, body, content_type, query=query, headers=headers), query)
    if rt is not None and rt.stored:
        scope = f"/namespaces/{NAMESPACE}" if rt.namespaced else ""
        collection = f"/apis/{rt.group}/{rt.version}{scope}/{rt.plural}" if rt.group else f"/api/{rt.version}{scope}/{rt.plural}"
        for accept in ("application/json", "application/json;as=Table;g=meta.k8s.io;v=v1", "application/yaml"):
            assert call.send("GET", collection, headers={"accept": accept}).code == 200, "what was let in must be shown"
        let_go(call, f"{collection}/{usual_name(route)}")


# --- the life of an object -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(EXAMPLES))
@thorough(15)
@given(data=st.data())
def test_odd_values_anywhere(call: Caller, kind: str, data: st.DataObject) -> None:
    example, path = EXAMPLES[kind], PATHS[kind]
    content = orjson.dumps(data.draw(strange.damaged(example), "object"))
    mode = data.draw(st.sampled_from(["", "fieldValidation=Strict", "dryRun=All", "fieldValidation=Warn&fieldManager=m"]))
    name = f"{path}/{example.get('metadata', {}).get('name', 'x')}"
    check(call.send("POST", path, content, query=mode))
    check(call.send("POST", path, orjson.dumps(example)))
    check(call.send("PUT", name, content, query=mode))
    for content_type in (MERGE, STRATEGIC):
        check(call.send("PATCH", name, content, content_type, query=mode))
        check(call.send("PATCH", f"{name}/status", content, content_type, query=mode))
    check(call.send("PATCH", name, content, APPLY, query="fieldManager=m&force=true"))
    check(call.send("PATCH", name, orjson.dumps(example), APPLY, query="fieldManager=other"))
    pointer = "/" + "/".join(str(part) for part in data.draw(st.sampled_from(strange.places(example))))
    check(call.send("PATCH", name, orjson.dumps([{"op": "add", "path": pointer, "value": data.draw(ODD)}]), JSON_PATCH))
    check(call.send("GET", path, headers={"accept": "application/json;as=Table;g=meta.k8s.io;v=v1"}))
    check(call.send("DELETE", name, orjson.dumps({"preconditions": {"uid": data.draw(ODD)}})))
    let_go(call, name)


NEARLY_TRUE = [{
    "manager": "m", "operation": "Apply", "apiVersion": "fleet.example.com/v1", "fieldsV1": {"f:spec": {
        "f:holds": {'k:{"name":"h"}': {".": {}, "f:tons": {}}, 'k:{"name":null}': {}}, "f:tags": {'v:"a"': {}}}},
}]  # fmt: skip


@pytest.mark.slow
@thorough(60)
@given(data=st.data())
def test_server_side_apply_to_fields_that_lie(call: Caller, data: st.DataObject) -> None:
    """managedFields are a client's word too: whatever they say, appliers come to an end, and the values stay right."""
    path, example = f"{PATHS['ships']}/x", EXAMPLES["ships"]
    check(call.send("POST", PATHS["ships"], orjson.dumps(example)))
    lies = data.draw(st.sampled_from((*strange.BROKEN_FIELDS, NEARLY_TRUE)), "lies")
    check(call.send("PATCH", path, orjson.dumps({"metadata": {"managedFields": lies}}), MERGE))
    wish = data.draw(strange.damaged({**example, "spec": {"crew": 2, "tags": ["c"], "holds": [{"name": "h", "tons": 9}]}}), "wish")
    for manager in ("m", "n"):
        answer = call.send("PATCH", path, orjson.dumps(wish), APPLY, query=f"fieldManager={manager}&force=true")
        check(answer)
        if answer.code == 200 and wish.get("spec") == {"crew": 2, "tags": ["c"], "holds": [{"name": "h", "tons": 9}]}:
            assert answer.json()["spec"]["crew"] == 2
            assert {"name": "h", "tons": 9} in answer.json()["spec"]["holds"]
    check(call.send("PATCH", path, orjson.dumps({"metadata": {"labels": {"a": "b"}}}), MERGE))
    let_go(call, path)


# --- single dangers ------------------------------------------------------------------------------------------------------


def test_deep_json_inside_of_protobuf(call: Caller) -> None:
    for depth in (100, 127, 200, 990, 5000):
        inside = b'{"metadata":{"name":"deep"},"data":' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"
        body = strange.envelope("v1", "ConfigMap", inside, f4="application/json")
        answer = call.send("POST", PATHS["configmaps"], body, strange.PROTOBUF)
        check(answer)
        assert answer.code == 400, (depth, answer.content)
        entry = strange.message(f1="m", f2="Update", f3="v1", f7=strange.message(f1=b'{"f:a":' * depth + b"{}" + b"}" * depth))
        body = strange.envelope("v1", "ConfigMap", strange.message(f1=strange.message(f1="deep", f17=[entry])))
        check(call.send("POST", PATHS["configmaps"], body, strange.PROTOBUF))
    check(call.send("DELETE", f"{PATHS['configmaps']}/deep"))


def test_a_continue_token_cannot_name_a_version_to_come(call: Caller) -> None:
    for version in (call.app.store.resource_version + 1, 2**53, 2**63 - 1):
        parts = orjson.dumps([version, "", "configmaps", "default", ""])
        token = base64.urlsafe_b64encode(parts).decode().rstrip("=")
        answer = call.send("GET", PATHS["configmaps"], query=f"limit=1&continue={token}")
        assert (answer.code, answer.json()["reason"]) == (410, "Expired")


def test_many_at_once_are_written_whole_or_not_at_all(call: Caller) -> None:
    """One commit takes good and bad writes of one moment: each object is there as it was acknowledged, or not at all."""
    before = call.send("GET", PATHS["configmaps"]).json()["metadata"]["resourceVersion"]
    bodies = [
        orjson.dumps({"metadata": {"name": f"many-{n // 2}"}, "data": {"n": str(n)} if n % 5 else {"n": n}}) for n in range(200)
    ]  # fmt: skip
    answers = call.together([("POST", PATHS["configmaps"], body, "application/json") for body in bodies])
    made = {answer.json()["metadata"]["name"]: answer.json() for answer in answers if answer.code == 201}
    assert {answer.code for answer in answers} == {201, 400, 409}
    after = call.send("GET", PATHS["configmaps"], query="fieldSelector=metadata.name!=kube-root-ca.crt").json()
    found = {item["metadata"]["name"]: item for item in after["items"] if item["metadata"]["name"].startswith("many-")}
    assert {name: {**item, "apiVersion": "v1", "kind": "ConfigMap"} for name, item in found.items()} == made
    assert int(after["metadata"]["resourceVersion"]) - int(before) == len(made)
    versions = [item["metadata"]["resourceVersion"] for item in made.values()]
    assert len(set(versions)) == len(versions)
    for name in made:
        check(call.send("DELETE", f"{PATHS['configmaps']}/{name}"))


def test_a_collection_of_namespaces_cannot_be_deleted(call: Caller) -> None:
    """It would stop at the first one that must stay, when others are gone already."""
    answer = call.send("DELETE", "/api/v1/namespaces")
    assert (answer.code, answer.written) == (405, [])
