"""The application's list of routes is whole and true: every path in it takes the methods it says and no others, and the documents
that clients read (discovery, OpenAPI) name the same."""

from __future__ import annotations

from tests.apiserver.in_process import Caller

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def filled(path: str) -> str:
    named = path.replace("{namespace}", "default").replace("{name}", "nobody")
    return named.replace("{group}", "swarmtask.io").replace("{version}", "v1" if "/api/" in path else "v1alpha1")


def test_every_route_takes_its_methods_and_no_others(call: Caller) -> None:
    for route in call.app.routes():
        if "health" in route.path or route.path.endswith("z"):
            continue  # whoever asks is told, whatever the method
        for method in METHODS:
            answer = call.send(method, filled(route.path), query="dryRun=All")
            assert (answer.code != 405) == (method in route.methods), (method, route.path, answer.content[:200])
            assert method not in route.methods or "could not find the requested resource" not in answer.content.decode()


def test_openapi_names_every_route_of_objects(call: Caller) -> None:
    _, index = call("GET", "/openapi/v3")
    described: dict[str, set[str]] = {}
    for entry in index["paths"].values():
        path, _, query = entry["serverRelativeURL"].partition("?")
        _, document = call("GET", path, query=query)
        for name, item in document["paths"].items():
            described[name] = {method.upper() for method in item if method != "parameters"}
    listed = {route.path: set(route.methods) for route in call.app.routes() if route.rt is not None}
    # Answered with another kind or with no object at all, and described nowhere.
    apart = {path for path in listed if path.endswith(("/token", "/log", "/eviction", "/exec"))}
    assert described == {path: methods for path, methods in listed.items() if path not in apart}


def test_discovery_names_every_route_of_objects(call: Caller) -> None:
    _, core = call("GET", "/api/v1")
    documents = [("/api/v1", core)]
    _, groups = call("GET", "/apis")
    for group in groups["groups"]:
        for version in group["versions"]:
            documents.append((f"/apis/{version['groupVersion']}", call("GET", f"/apis/{version['groupVersion']}")[1]))
    found = {f"{prefix}/{resource['name']}" for prefix, document in documents for resource in document["resources"]}
    listed = set()
    for route in call.app.routes():
        if route.rt is not None:
            prefix = f"/apis/{route.rt.group}/{route.rt.version}" if route.rt.group else f"/api/{route.rt.version}"
            below = route.path.partition("{name}")[2]
            listed.add(f"{prefix}/{route.rt.plural}{below}")
    assert found == listed
