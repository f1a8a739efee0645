"""Everything that reads: outputs, selectors, pages, watches and waits, by real kubectl programs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.conftest import FOREIGN, Kubectl
from tests.conformance.fleet import config, created, names, text

pytestmark = pytest.mark.kubectl

MAPS = "/api/v1/namespaces/{}/configmaps"
SECRETS = "/api/v1/namespaces/{}/secrets"


def maps(kubectl: Kubectl, *which: str, **metadata: Any) -> None:
    kubectl("create", "-f", "-", stdin=text(*(config(name, {"k": name}, **metadata) for name in which)))


def lines(raw: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in raw.splitlines() if line]


def test_every_output_of_get(kubectl: Kubectl, tmp_path: Path) -> None:
    maps(kubectl, "b", "a", labels={"app": "x"})
    columns, template = tmp_path / "columns", tmp_path / "template"
    columns.write_text("NAME VALUE\n.metadata.name .data.k\n")
    template.write_text("{{range .items}}{{.metadata.name}};{{end}}")
    expected = {
        "name": "configmap/a\nconfigmap/b\n", "jsonpath={.items[*].data.k}": "a b",
        "jsonpath={range .items[?(@.data.k=='b')]}{.metadata.name}{end}": "b",
        "go-template={{range .items}}{{.data.k}},{{end}}": "a,b,", f"go-template-file={template}": "a;b;",
        "custom-columns=N:.metadata.name,V:.data.k": "N V\na a\nb b\n",
        f"custom-columns-file={columns}": "NAME VALUE\na a\nb b\n",
    }  # fmt: skip
    said = {output: re.sub(" +", " ", kubectl("get", "cm", "-l", "app=x", "-o", output)) for output in expected}
    assert said == expected
    for output in ("json", "yaml"):
        assert "app" in kubectl("get", "cm", "a", "-o", output)


def test_tables_of_get(kubectl: Kubectl) -> None:
    maps(kubectl, "b", "a", labels={"app": "x"})
    head, *rows = kubectl("get", "cm", "-l", "app=x", "--show-labels", "--sort-by=.metadata.name").splitlines()
    assert head.split() == ["NAME", "DATA", "AGE", "LABELS"]
    assert [(row.split()[0], row.split()[-1]) for row in rows] == [("a", "app=x"), ("b", "app=x")]
    assert kubectl("get", "cm", "-l", "app=x", "-L", "app").splitlines()[0].split() == ["NAME", "DATA", "AGE", "APP"]
    assert kubectl("get", "cm,secrets", "--no-headers").split()[0] == "configmap/a"
    assert kubectl("get", "cm", "-A", "--show-kind", "--no-headers", "-l", "app=x").split()[1] == "configmap/a"
    assert kubectl("get", "cm", "a", "--server-print=false").split()[:2] == ["NAME", "AGE"]
    assert kubectl("get", "cm/a", "cm/b", "-o", "name").split() == ["configmap/a", "configmap/b"]


def test_cluster_info(kubectl: Kubectl) -> None:
    assert "is running at" in kubectl("cluster-info")


def test_what_is_not_there(kubectl: Kubectl) -> None:
    assert 'configmaps "x" not found' in kubectl.fails("get", "cm", "x")
    assert kubectl("get", "cm", "x", "--ignore-not-found") == ""
    assert 'the server doesn\'t have a resource type "nonsense"' in kubectl.fails("get", "nonsense")
    assert "No resources found" in kubectl.run("get", "leases").err


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("app=x", {"a", "b"}), ("app!=x", {"c", "d"}), ("app in (x, y),tier", {"b"}), ("app notin (x)", {"c", "d"}),
        ("!app", {"d"}), ("app", {"a", "b", "c"}),
    ],
)  # fmt: skip
def test_label_selectors(kubectl: Kubectl, selector: str, found: set[str]) -> None:
    labels = {"a": {"app": "x"}, "b": {"app": "x", "tier": "1"}, "c": {"app": "y"}, "d": {}}
    kubectl("create", "-f", "-", stdin=text(*(config(name, labels=one) for name, one in labels.items())))
    assert names(kubectl, "cm", "-l", selector) == found


def test_pages_are_one_snapshot(kubectl: Kubectl) -> None:
    """Of Secrets: a cluster puts a ConfigMap into every namespace, a moment after it was made."""
    for name in "abcde":
        kubectl("create", "secret", "generic", name)
    path = SECRETS.format(kubectl.namespace)
    page = json.loads(kubectl("get", "--raw", f"{path}?limit=2"))
    assert page["metadata"]["remainingItemCount"] == 3
    kubectl("delete", "secret", "c")
    token = page["metadata"]["continue"]
    rest = json.loads(kubectl("get", "--raw", f"{path}?limit=9&continue={token}"))
    assert [item["metadata"]["name"] for item in rest["items"]] == ["c", "d", "e"], "the list of the moment it began"
    assert rest["metadata"]["resourceVersion"] == page["metadata"]["resourceVersion"]
    assert names(kubectl, "secrets", "--chunk-size=1") == {"a", "b", "d", "e"}
    assert kubectl.fails("get", "--raw", f"{path}?continue=nonsense")


@pytest.mark.embedded  # Kubernetes calls it a bad request
def test_a_continue_token_that_nobody_gave_has_expired(kubectl: Kubectl) -> None:
    assert "Expired" in kubectl.fails("get", "--raw", f"{SECRETS.format(kubectl.namespace)}?continue=nonsense")


def test_a_watch_goes_on_from_a_version(kubectl: Kubectl) -> None:
    path = MAPS.format(kubectl.namespace)
    since = json.loads(kubectl("get", "--raw", path))["metadata"]["resourceVersion"]
    created(kubectl, config("a"))
    kubectl("label", "cm", "a", "x=y")
    kubectl("delete", "cm", "a")
    seen = lines(kubectl("get", "--raw", f"{path}?watch=1&timeoutSeconds=1&resourceVersion={since}&allowWatchBookmarks=true"))
    seen = [event for event in seen if event["object"]["metadata"].get("name") in ("a", None)]
    bookmarks = [] if FOREIGN else ["BOOKMARK"]  # Kubernetes has no time for one in a second
    assert [event["type"] for event in seen] == ["ADDED", "MODIFIED", "DELETED", *bookmarks]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in seen]
    assert versions == sorted(versions)
    assert versions[-1] >= versions[-2] > int(since)


def test_a_watch_may_begin_with_what_is_there(kubectl: Kubectl) -> None:
    maps(kubectl, "a", "b")
    query = "watch=1&timeoutSeconds=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    seen = lines(kubectl("get", "--raw", f"{MAPS.format(kubectl.namespace)}?{query}"))
    seen = [event for event in seen if event["object"]["metadata"].get("name") in ("a", "b", None)]
    assert [event["type"] for event in seen][:3] == ["ADDED", "ADDED", "BOOKMARK"]
    assert seen[2]["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


@pytest.mark.embedded  # Kubernetes waits for that version; here a restored database may never reach it
def test_a_watch_from_the_future_is_told_inside_of_the_stream(kubectl: Kubectl) -> None:
    path = MAPS.format(kubectl.namespace)
    (seen,) = lines(kubectl("get", "--raw", f"{path}?watch=1&timeoutSeconds=1&resourceVersion=999999999"))
    assert (seen["type"], seen["object"]["code"], seen["object"]["reason"]) == ("ERROR", 410, "Expired")


def test_get_watches_with_the_kind_of_each_event(kubectl: Kubectl) -> None:
    watching = kubectl.follow("get", "cm", "-w", "--output-watch-events")
    created(kubectl, config("a"))
    watching.until(lambda line: line.split()[:2] == ["ADDED", "a"])
    kubectl("patch", "cm", "a", "--type=merge", "-p", '{"data":{"k":"v"}}')
    watching.until(lambda line: line.split()[:3] == ["MODIFIED", "a", "1"])
    kubectl("delete", "cm", "a")
    watching.until(lambda line: line.split()[:2] == ["DELETED", "a"])


@pytest.mark.parametrize("kubectl", ["current"], indirect=True)  # kubectl 1.20 knows conditions and deletion only
def test_wait_for_a_field(kubectl: Kubectl) -> None:
    created(kubectl, config("a", {"k": "1"}))
    kubectl("wait", "cm/a", "--for=jsonpath={.data.k}=1", "--timeout=30s")
    waiting = kubectl.follow("wait", "cm/a", "--for=jsonpath={.data.k}=2", "--timeout=30s")
    kubectl("patch", "cm", "a", "--type=merge", "-p", '{"data":{"k":"2"}}')
    assert waiting.wait() == 0, waiting.seen
    coming = kubectl.follow("wait", "cm/b", "--for=create", "--timeout=30s")
    created(kubectl, config("b"))
    assert coming.wait() == 0, coming.seen
    assert "timed out" in kubectl.fails("wait", "cm", "--all", "--for=jsonpath={.data.k}=2", "--timeout=1s")


def test_wait_for_several_to_go(kubectl: Kubectl) -> None:
    maps(kubectl, "a", "b", finalizers=["test.io/hold"])
    kubectl("delete", "cm", "a", "b", "--wait=false")
    waiting = kubectl.follow("wait", "--for=delete", "cm/a", "cm/b", "--timeout=30s", "-v=6")
    waiting.until(lambda line: "/configmaps" in line)
    for name in ("a", "b"):
        kubectl("patch", "cm", name, "--type=json", "-p", '[{"op":"remove","path":"/metadata/finalizers"}]')
    waiting.wait()
    assert names(kubectl, "cm") == set()


def event(kubectl: Kubectl, name: str, count: int, last: str) -> dict[str, Any]:
    involved = {"apiVersion": "v1", "kind": "ConfigMap", "name": "a", "namespace": kubectl.namespace}
    return {
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": name}, "type": "Warning", "reason": "Odd", "message": "it is odd",
        "involvedObject": involved, "source": {"component": "tester"}, "count": count,
        "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": last,
    }  # fmt: skip


def test_events_are_counted_sorted_and_selected(kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", stdin=text(event(kubectl, "a.1", 1, "2026-01-02T00:00:00Z")))
    kubectl("create", "-f", "-", stdin=text(event(kubectl, "a.2", 1, "2026-01-01T00:00:00Z")))
    kubectl("patch", "event", "a.1", "--type=merge", "-p", '{"count":7,"lastTimestamp":"2026-01-03T00:00:00Z"}')
    assert [line.split()[2] for line in kubectl("get", "ev", "--sort-by=.lastTimestamp", "--no-headers").splitlines()] == [
        "Odd"
    ] * 2
    assert json.loads(kubectl("get", "event", "a.1", "-o", "json"))["count"] == 7
    assert names(kubectl, "events", "--field-selector=involvedObject.name=a,type=Warning") == {"a.1", "a.2"}
    assert names(kubectl, "events", "--field-selector=reason=Fine") == set()
    assert names(kubectl, "events.v1.events.k8s.io") == {"a.1", "a.2"}, "one set of objects behind two groups"
    if kubectl.version == "current":
        assert "x7 over" in kubectl("events", "--for", "configmap/a")


def test_discovery_and_the_version_keep_clients_quiet(kubectl: Kubectl) -> None:
    said = kubectl.run("version")
    assert "Warning" not in said.out + said.err
    for path in ("/livez", "/readyz", "/healthz"):
        assert kubectl("get", "--raw", path).strip() == "ok"
    assert "configmaps" in kubectl("api-resources", "--namespaced=true", "-o", "name", "--verbs=list,watch")
    assert "ConfigMap" in kubectl("explain", "configmap")
