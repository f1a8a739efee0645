"""What goes with what: cascades on three levels, preconditions, finalizers, namespaces, definitions; real kubectl programs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conformance.conftest import Kubectl
from tests.conformance.fleet import DEFINITION, GROUP, config, created, gone, items, let_go, names, ship, text, three_levels

pytestmark = pytest.mark.kubectl


def test_in_the_background_the_owner_goes_first(kubectl: Kubectl) -> None:
    three_levels(kubectl, held=True)
    kubectl("delete", "cm", "top", "--cascade=background")
    gone(kubectl, "cm/mid")
    (leaf,) = items(kubectl, "cm")
    assert leaf["metadata"]["name"] == "leaf"
    assert "deletionTimestamp" in leaf["metadata"]
    let_go(kubectl, "cm/leaf")
    gone(kubectl, "cm/leaf")


def test_in_the_foreground_the_owner_goes_last(kubectl: Kubectl) -> None:
    three_levels(kubectl, held=True)
    kubectl("delete", "cm", "top", "--cascade=foreground", "--wait=false")
    left = {item["metadata"]["name"]: item["metadata"] for item in items(kubectl, "cm")}
    assert set(left) == {"top", "mid", "leaf"}
    assert left["top"]["finalizers"] == ["foregroundDeletion"]
    waiting = kubectl.follow("wait", "-v=6", "--for=delete", "cm/top", "--timeout=30s")
    waiting.until(lambda line: "/configmaps" in line)  # it has seen the object, which must not be gone before
    let_go(kubectl, "cm/leaf")
    assert waiting.wait() == 0, waiting.seen
    assert names(kubectl, "cm") == set()


def test_orphans_stay_and_forget_their_owner(kubectl: Kubectl) -> None:
    three_levels(kubectl, held=False)
    kubectl("delete", "cm", "top", "--cascade=orphan")
    left = {item["metadata"]["name"]: item["metadata"] for item in items(kubectl, "cm")}
    assert set(left) == {"mid", "leaf"}
    assert "ownerReferences" not in left["mid"]
    assert left["leaf"]["ownerReferences"][0]["name"] == "mid"


def test_a_child_of_two_owners_stays_with_the_other(kubectl: Kubectl) -> None:
    first, second = created(kubectl, config("first")), created(kubectl, config("second"))
    references = [
        {"apiVersion": "v1", "kind": "ConfigMap", "name": one["metadata"]["name"], "uid": one["metadata"]["uid"]}
        for one in (first, second)
    ]
    created(kubectl, config("child", ownerReferences=references))
    kubectl("delete", "cm", "first", "--cascade=foreground")
    (child,) = [item for item in items(kubectl, "cm") if item["metadata"]["name"] == "child"]
    assert [one["name"] for one in child["metadata"]["ownerReferences"]] == ["second"]


@pytest.mark.parametrize(("condition", "called"), [("uid", "UID"), ("resourceVersion", "ResourceVersion")])
def test_a_delete_may_name_what_it_means(kubectl: Kubectl, condition: str, called: str) -> None:
    metadata = created(kubectl, config("c"))["metadata"]
    path = f"/api/v1/namespaces/{kubectl.namespace}/configmaps/c"

    def options(value: str) -> str:
        return json.dumps({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {condition: value}})

    refused = kubectl.fails("delete", "--raw", path, "-f", "-", stdin=options("1"))
    why = f"the {called} in the precondition (1) does not match the {called} in record ({metadata[condition]})"
    assert f'on ConfigMap "c": {why}' in refused
    kubectl("delete", "--raw", path, "-f", "-", stdin=options(metadata[condition]))
    assert names(kubectl, "cm") == set()


def test_a_finalizer_cannot_be_added_to_what_is_going(kubectl: Kubectl) -> None:
    created(kubectl, config("c", finalizers=["test.io/hold"]))
    kubectl("delete", "cm", "c", "--wait=false")
    more = '{"metadata":{"finalizers":["test.io/hold","test.io/more"]}}'
    assert "no new finalizers can be added" in kubectl.fails("patch", "cm", "c", "--type=merge", "-p", more)
    let_go(kubectl, "cm/c")


def test_a_namespace_that_cannot_go_says_why(kubectl: Kubectl) -> None:
    created(kubectl, config("held", finalizers=["test.io/hold"]))
    kubectl("delete", "namespace", kubectl.namespace, "--wait=false")
    kubectl("wait", "--for=condition=NamespaceFinalizersRemaining", f"ns/{kubectl.namespace}", "--timeout=30s")
    namespace: dict[str, Any] = json.loads(kubectl("get", "ns", kubectl.namespace, "-o", "json"))
    assert namespace["status"]["phase"] == "Terminating"
    assert "test.io/hold in 1 resource instances" in json.dumps(namespace["status"]["conditions"])
    assert "because it is being terminated" in kubectl.fails("create", "configmap", "late")
    waiting = kubectl.follow("wait", "-v=6", "--for=delete", f"ns/{kubectl.namespace}", "--timeout=30s")
    waiting.until(lambda line: "/namespaces" in line)  # it has seen the object, which must not be gone before
    let_go(kubectl, "cm/held")
    assert waiting.wait() == 0, waiting.seen


def test_the_first_namespaces_stay(kubectl: Kubectl) -> None:
    assert "may not be deleted" in kubectl.fails("delete", "namespace", "default")


def test_a_definition_takes_its_objects_along(kubectl: Kubectl) -> None:
    definition = json.loads(json.dumps(DEFINITION).replace("ships", "boats").replace("Ship", "Boat").replace('"sh"', '"bo"'))
    kubectl("apply", "-f", "-", stdin=text(definition))
    boat = {**ship("held"), "kind": "Boat"}
    kubectl("create", "-f", "-", stdin=text({**boat, "metadata": {"name": "held", "finalizers": ["test.io/hold"]}}))
    kubectl("delete", "crd", f"boats.{GROUP}", "--wait=false")
    kubectl("wait", "--for=condition=Terminating", f"crd/boats.{GROUP}", "--timeout=30s")
    late = kubectl.fails("create", "-f", "-", stdin=text({**boat, "metadata": {"name": "late"}}))
    assert "custom resource definition is terminating" in late
    waiting = kubectl.follow("wait", "-v=6", "--for=delete", f"crd/boats.{GROUP}", "--timeout=30s")
    waiting.until(lambda line: "/customresourcedefinitions" in line)  # it has seen the object, which must not be gone before
    let_go(kubectl, "boat/held")
    assert waiting.wait() == 0, waiting.seen
    kubectl.fails("get", "boats")


def test_delete_by_file_selector_and_all(kubectl: Kubectl) -> None:
    maps = [config(name, labels={"tier": name[0]}) for name in ("a1", "a2", "b1", "c1")]
    kubectl("create", "-f", "-", stdin=text(*maps))
    assert len(kubectl("delete", "cm", "-l", "tier in (a)").splitlines()) == 2
    assert '"b1" deleted' in kubectl("delete", "-f", "-", stdin=text(maps[2]))
    assert "NotFound" in kubectl.fails("delete", "-f", "-", stdin=text(maps[2]))
    assert kubectl("delete", "-f", "-", "--ignore-not-found", stdin=text(maps[2])) == ""
    assert '"c1" deleted' in kubectl("delete", "cm", "--all")
