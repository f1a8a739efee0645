"""Whatever a client sends, the answer is a Status of the 4xx class or the object: never a 500, never a hang."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarmtask.apiserver.app import Application
from swarmtask.apiserver.auth import Authenticator, digest
from swarmtask.clock import SystemClock
from swarmtask.settings import ApiServerSettings

TOKEN = "t"
PATHS = {
    "configmaps": "/api/v1/namespaces/default/configmaps",
    "secrets": "/api/v1/namespaces/default/secrets",
    "namespaces": "/api/v1/namespaces",
    "events": "/api/v1/namespaces/default/events",
    "newevents": "/apis/events.k8s.io/v1/namespaces/default/events",
    "leases": "/apis/coordination.k8s.io/v1/namespaces/default/leases",
    "crds": "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "tasks": "/apis/swarmtask.io/v1alpha1/namespaces/default/swarmtasks",
    "access": "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
    "tokens": "/apis/authentication.k8s.io/v1/tokenreviews",
}
EXAMPLES: dict[str, dict[str, Any]] = {
    "configmaps": {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"a": "b"},
                   "binaryData": {"c": "eA=="}},
    "secrets": {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}, "data": {"a": "eA=="}, "stringData": {"b": "c"}},
    "namespaces": {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}, "spec": {"finalizers": ["kubernetes"]}},
    "events": {
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "x"}, "involvedObject": {"kind": "SwarmTask", "name": "t"},
        "reason": "R", "message": "m", "type": "Normal", "series": {"count": 1, "lastObservedTime": "2024-01-01T00:00:00Z"},
    },
    "newevents": {
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "x"}, "regarding": {"kind": "SwarmTask"},
        "reason": "R", "note": "m", "type": "Normal", "eventTime": "2024-01-01T00:00:00.000000Z",
    },
    "leases": {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "x"},
               "spec": {"leaseDurationSeconds": 5}},
    "crds": {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "ws.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "ws", "kind": "W", "shortNames": ["w"]},
            "versions": [{
                "name": "v1", "served": True, "storage": True,
                "additionalPrinterColumns": [{"name": "A", "type": "string", "jsonPath": ".a"}],
                "schema": {"openAPIV3Schema": {
                    "type": "object", "properties": {"a": {"type": "string", "pattern": "a+", "default": "a"}}}},
            }],
        },
    },
    "tasks": {
        "apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmTask",
        "metadata": {
            "name": "x", "labels": {"a": "b"}, "finalizers": ["a.b/c"],
            "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "u"}],
        },
        "spec": {"container": {"image": "x", "env": [{"name": "A", "value": "1"}], "resources": {"limits": {"cpu": "2"}}}},
        "status": {"phase": "Queued", "attempts": [{"number": 1, "id": "i", "node": "n", "engine": "e"}]},
    },
    "access": {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
               "spec": {"resourceAttributes": {"verb": "get"}}},
    "tokens": {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": "x"}},
}  # fmt: skip
ODD = st.sampled_from(
    [None, True, 0, -1, 2**63, 1e308, "", "x", "\u0000", "{{.}}", "a" * 300, "9" * 50, "\U0001f600",
     [], {}, [None], [{}], {"": None},
     {"x": {"y": []}}]
)  # fmt: skip
MERGE, JSON_PATCH = "application/merge-patch+json", "application/json-patch+json"
APPLY, STRATEGIC = "application/apply-patch+yaml", "application/strategic-merge-patch+json"


class Caller:
    """An application and a way to call it without a socket."""

    def __init__(self, path: Path) -> None:
        self.runner = asyncio.Runner()
        opening = Application.open(path, ApiServerSettings(), Authenticator([digest(TOKEN)]), SystemClock())
        self.app = self.runner.run(opening)

    def close(self) -> None:
        self.runner.run(self.app.close())
        self.runner.close()

    def __call__(self, method: str, path: str, body: bytes = b"", content_type: str = "application/json", query: str = "") -> Any:
        return self.runner.run(asyncio.wait_for(self._call(method, path, body, content_type, query), 20))

    async def _call(self, method: str, path: str, body: bytes, content_type: str, query: str) -> Any:
        messages: list[Any] = []
        requests = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Any:
            return next(requests, {"type": "http.disconnect"})

        async def send(message: Any) -> None:
            messages.append(message)

        headers = [(b"authorization", f"Bearer {TOKEN}".encode()), (b"content-type", content_type.encode())]
        scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": headers}
        await self.app(scope, receive, send)
        code = messages[0]["status"]
        content = b"".join(message.get("body", b"") for message in messages[1:])
        return code, orjson.loads(content)


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    # The default log prints every variable of a traceback, which takes seconds.
    structlog.configure(processors=[structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)])
    caller = Caller(tmp_path_factory.mktemp("hostile") / "x.db")
    yield caller
    caller.close()
    structlog.reset_defaults()


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
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


def check(code: int, answer: Any) -> None:
    assert code < 500, answer
    if code >= 400:
        assert (answer["kind"], answer["status"], answer["code"]) == ("Status", "Failure", code)
        assert answer["message"]


@pytest.mark.parametrize("kind", sorted(EXAMPLES))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_odd_values_anywhere(call: Caller, kind: str, data: st.DataObject) -> None:
    example = EXAMPLES[kind]
    body = mutate(example, data.draw(st.sampled_from(places(example))), data.draw(ODD), beside=data.draw(st.booleans()))
    content = orjson.dumps(body)
    path = PATHS[kind]
    mode = data.draw(st.sampled_from(["", "fieldValidation=Strict", "dryRun=All", "fieldValidation=Warn&fieldManager=m"]))
    check(*call("POST", path, content, query=mode))
    check(*call("POST", path, orjson.dumps(example)))
    name = f"{path}/{example.get('metadata', {}).get('name', 'x')}"
    check(*call("PUT", name, content, query=mode))
    for content_type in (MERGE, STRATEGIC):
        check(*call("PATCH", name, content, content_type, mode))
        check(*call("PATCH", f"{name}/status", content, content_type, mode))
    check(*call("PATCH", name, content, APPLY, "fieldManager=m&force=true"))
    pointer = "/" + "/".join(str(part) for part in data.draw(st.sampled_from(places(example))))
    operation = {"op": "add", "path": pointer, "value": data.draw(ODD)}
    check(*call("PATCH", name, orjson.dumps([operation]), JSON_PATCH))
    check(*call("GET", path))
    check(*call("DELETE", name, orjson.dumps({"preconditions": {"uid": data.draw(ODD)}})))
    check(*call("PATCH", name, b'{"metadata":{"finalizers":null}}', MERGE))
    check(*call("DELETE", name))


QUERIES = (
    "limit=1&continue=%00", "labelSelector=%ff", "fieldSelector=%5C", "resourceVersion=1&resourceVersionMatch=Exact",
    "limit=99999999999", "dryRun=x", "propagationPolicy=x", "gracePeriodSeconds=x", "fieldManager=%00", "fieldValidation=x",
)  # fmt: skip
TYPES = ("", "application/json", MERGE, JSON_PATCH, APPLY, "application/yaml", "application/vnd.kubernetes.protobuf")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_odd_requests(call: Caller, data: st.DataObject) -> None:
    path = data.draw(
        st.sampled_from(sorted(PATHS.values())) | st.text(max_size=40) | st.text(max_size=40).map(lambda text: f"/api/v1/{text}")
    )
    query = data.draw(st.sampled_from(QUERIES) | st.text(st.characters(max_codepoint=126), max_size=60))
    method = data.draw(st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "TRACE"]))
    if "watch" not in query:
        check(*call(method, path, data.draw(st.binary(max_size=60)), data.draw(st.sampled_from(TYPES)), query))
