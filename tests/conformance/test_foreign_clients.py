"""Foreign client libraries on a SwarmTask and on a kind that somebody else's definition brought: everything that they are used for.

Each demand is made through every library of `foreign_clients`; what only one of them can do has a test of its own below.
"""

from __future__ import annotations

import itertools
import queue
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

kubernetes = pytest.importorskip(
    "kubernetes", reason="[missing: kubernetes] the official Python client is a development dependency"
)

from tests.apiserver.server import RunningServer  # noqa: E402
from tests.conformance.conftest import BINARIES, HISTORY_ROWS, RUN  # noqa: E402
from tests.conformance.foreign_clients import Client, Kind, Lightkube, Official  # noqa: E402
from tests.conformance.foreign_definitions import SEAL_GROUP, SEALS, seal  # noqa: E402

TIMEOUT_S = 60
TASK_KIND = Kind("swarmtask.io", "v1alpha1", "swarmtasks", "SwarmTask")
SEAL_KIND = Kind(SEAL_GROUP, "v1", "seals", "Seal")
CONDITION = {"type": "Ready", "status": "True", "reason": "Done", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
_numbers = itertools.count(1)


def task(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmTask", "metadata": {"name": name, "labels": {"made": "here"}},
        "spec": {"container": {"image": "acme/t:1"}, "suspend": True, **spec},
    }  # fmt: skip


def whole_seal(name: str, **spec: Any) -> dict[str, Any]:
    """Its reference has one owner as a whole, so appliers must say the default in it too."""
    return seal(name, issuerRef={"name": "ca", "kind": "Issuer"}, **spec)


MAKERS: dict[Kind, Callable[..., dict[str, Any]]] = {TASK_KIND: task, SEAL_KIND: whole_seal}
CHANGES: dict[Kind, dict[str, Any]] = {TASK_KIND: {"priority": 7}, SEAL_KIND: {"lifetime": "24h"}}
WRONG: dict[Kind, tuple[dict[str, Any], str]] = {
    TASK_KIND: ({"backoffLimit": -1}, "spec.backoffLimit"), SEAL_KIND: ({"key": {"size": 1}}, "spec.key.size"),
}  # fmt: skip


def administer(server: RunningServer) -> kubernetes.client.ApiClient:
    return kubernetes.config.new_client_from_config(str(server.kubeconfig))


def namespace_of(server: RunningServer) -> str:
    """A fresh namespace, and the foreign definition."""
    name = f"{RUN}-client-{next(_numbers)}"
    with administer(server) as client:
        kubernetes.client.CoreV1Api(client).create_namespace({"metadata": {"name": name}})
        definitions = kubernetes.client.CustomObjectsApi(client)
        definitions.patch_cluster_custom_object(
            "apiextensions.k8s.io", "v1", "customresourcedefinitions", SEALS["metadata"]["name"], SEALS,
            field_manager="tests", force=True, _content_type="application/apply-patch+yaml",
        )  # fmt: skip
    return name


@pytest.fixture(params=[Official, Lightkube], ids=["official", "lightkube"])
def library(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=[TASK_KIND, SEAL_KIND], ids=["task", "foreign"])
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture
def client(library: Any, kind: Kind, conformance_server: RunningServer) -> Iterator[Client]:
    made: Client = library(conformance_server.kubeconfig, namespace_of(conformance_server), kind)
    yield made
    made.close()


@pytest.mark.slow
def test_create_get_patch_replace_delete(client: Client, kind: Kind) -> None:
    made = client.create(MAKERS[kind]("a"))
    assert (made["metadata"]["generation"], made["kind"]) == (1, kind.kind)
    assert made["metadata"]["managedFields"][0]["manager"] in ("official", "lightkube")
    changed = client.merge("a", {"spec": CHANGES[kind]})
    assert CHANGES[kind].items() <= changed["spec"].items()
    assert changed["metadata"]["generation"] == 2
    assert client.get("a") == changed
    whole = {**changed, "metadata": {**changed["metadata"], "labels": {"x": "y"}}}
    whole["metadata"].pop("managedFields")
    assert client.replace(whole)["metadata"]["labels"] == {"x": "y"}
    with_status = client.merge("a", {"status": {"conditions": [CONDITION]}, "spec": {"x": 1}}, status=True)
    assert with_status["status"]["conditions"][0]["type"] == "Ready"
    assert with_status["metadata"]["generation"] == 2
    client.delete("a")
    assert client.refused(lambda: client.get("a")).code == 404


@pytest.mark.slow
def test_errors_come_as_the_library_has_them(client: Client, kind: Kind) -> None:
    missing = client.refused(lambda: client.get("nobody"))
    assert (missing.code, missing.reason) == (404, "NotFound")
    assert f'{kind.plural}.{kind.group} "nobody" not found' in missing.message
    client.create(MAKERS[kind]("a"))
    twice = client.refused(lambda: client.create(MAKERS[kind]("a")))
    assert (twice.code, twice.reason) == (409, "AlreadyExists")
    wrong, field = WRONG[kind]
    invalid = client.refused(lambda: client.create(MAKERS[kind]("b", **wrong)))
    assert (invalid.code, invalid.reason) == (422, "Invalid")
    assert field in invalid.message
    stale = client.get("a")
    client.merge("a", {"metadata": {"labels": {"x": "y"}}})
    conflict = client.refused(lambda: client.replace(stale))
    assert (conflict.code, conflict.reason) == (409, "Conflict")
    assert client.refused(lambda: client.delete("nobody")).code == 404


def test_a_list_in_pages(client: Client, kind: Kind) -> None:
    for number in range(7):
        client.create(MAKERS[kind](f"o{number}"))
    assert client.pages(3) == [f"o{number}" for number in range(7)]


def test_a_watch_goes_on_where_the_list_ended(client: Client, kind: Kind) -> None:
    client.create(MAKERS[kind]("before"))
    since = client.version()
    client.create(MAKERS[kind]("a"))
    client.merge("a", {"metadata": {"labels": {"x": "1"}}})
    client.delete("before")
    seen = []
    for event, obj in client.watch(since):
        seen.append((event, obj["metadata"]["name"]))
        if event == "DELETED":
            break
    assert seen == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "before")]
    resumed = client.watch(obj["metadata"]["resourceVersion"])
    client.merge("a", {"metadata": {"labels": {"x": "2"}}})
    event, obj = next(resumed)
    assert (event, obj["metadata"]["labels"]["x"]) == ("MODIFIED", "2")


def test_wait_for_a_condition(client: Client, kind: Kind) -> None:
    client.create(MAKERS[kind]("a"))
    client.merge("a", {"status": {"conditions": [{**CONDITION, "status": "False"}]}}, status=True)
    results: queue.Queue[dict[str, Any]] = queue.Queue()
    waiting = threading.Thread(target=lambda: results.put(client.wait("a", "Ready")))
    waiting.start()
    client.merge("a", {"status": {"conditions": [CONDITION]}}, status=True)
    assert results.get(timeout=TIMEOUT_S)["status"]["conditions"][0]["status"] == "True"
    waiting.join(TIMEOUT_S)


def test_server_side_apply(client: Client, kind: Kind) -> None:
    wish = MAKERS[kind]("a")
    client.apply({**wish, "spec": {**wish["spec"], **CHANGES[kind]}}, "one")
    ((field, value),) = CHANGES[kind].items()
    other = {**wish, "spec": {**wish["spec"], field: 9 if value == 7 else "48h"}}
    conflict = client.refused(lambda: client.apply(other, "two"))
    assert (conflict.code, conflict.reason) == (409, "Conflict")
    assert f'conflict with "one": .spec.{field}' in conflict.message
    taken = client.apply(other, "two", force=True)
    assert taken["spec"][field] == other["spec"][field]
    owners = {entry["manager"] for entry in taken["metadata"]["managedFields"] if entry["operation"] == "Apply"}
    assert owners == {"one", "two"}
    again = client.apply(other, "two")
    assert again["metadata"]["resourceVersion"] == taken["metadata"]["resourceVersion"], (
        "an apply that changes nothing writes nothing"
    )


# --- who comes too late --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.embedded
def test_a_client_that_was_away_too_long_is_told_410(library: Any, kind: Kind, forgetful_server: RunningServer) -> None:
    client: Client = library(forgetful_server.kubeconfig, namespace_of(forgetful_server), kind)
    try:
        client.create(MAKERS[kind]("a"))
        since = client.version()
        for number in range(2 * HISTORY_ROWS):
            client.merge("a", {"metadata": {"labels": {"n": str(number)}}})
        with pytest.raises(Exception, match="too old resource version") as late:
            list(client.watch(since))
        assert 410 in (getattr(late.value, "status", None), getattr(getattr(late.value, "status", None), "code", None))
        again = client.watch(client.version())
        client.merge("a", {"metadata": {"labels": {"n": "last"}}})
        assert next(again)[1]["metadata"]["labels"]["n"] == "last"
    finally:
        client.close()


@pytest.mark.slow
@pytest.mark.embedded
def test_the_informer_of_the_official_client_lists_again(forgetful_server: RunningServer) -> None:
    from kubernetes.informer import SharedInformer

    namespace, events = namespace_of(forgetful_server), queue.Queue()
    with administer(forgetful_server) as client:
        api = kubernetes.client.CoreV1Api(client)
        informer = SharedInformer(api.list_namespaced_config_map, namespace=namespace)
        for name in ("ADDED", "MODIFIED", "DELETED"):
            informer.add_event_handler(name, lambda obj, name=name: events.put((name, obj.metadata.name)))
        for name in ("gone", "stays"):
            api.create_namespaced_config_map(namespace, {"metadata": {"name": name}, "data": {"n": "0"}})
        informer.start()
        try:
            assert {events.get(timeout=TIMEOUT_S) for _ in range(2)} == {("ADDED", "gone"), ("ADDED", "stays")}
            end(informer, lambda: api.delete_namespaced_config_map("gone", namespace))
            for number in range(2 * HISTORY_ROWS):
                api.patch_namespaced_config_map("stays", namespace, {"data": {"n": str(number)}})
            informer.start()
            assert {events.get(timeout=TIMEOUT_S) for _ in range(2)} == {("DELETED", "gone"), ("MODIFIED", "stays")}
            assert informer.cache.get_by_key(f"{namespace}/stays").data["n"] == str(2 * HISTORY_ROWS - 1)
            api.create_namespaced_config_map(namespace, {"metadata": {"name": "new"}})
            assert events.get(timeout=TIMEOUT_S) == ("ADDED", "new")
        finally:
            end(informer, lambda: api.patch_namespaced_config_map("stays", namespace, {"data": {"n": "end"}}))


def end(informer: Any, stir: Callable[[], Any]) -> None:
    """Its watch has no time-out: it only notices that it is to stop when something happens."""
    informer._stop_event.set()
    stir()
    informer.stop()


# --- what only one of them has -------------------------------------------------------------------------------------------


def test_the_typed_and_the_dynamic_api_of_the_official_client(conformance_server: RunningServer) -> None:
    """Its models check every answer strictly; its dynamic client lives on discovery and on the OpenAPI document."""
    namespace = namespace_of(conformance_server)
    with administer(conformance_server) as client:
        core, dynamic = kubernetes.client.CoreV1Api(client), kubernetes.dynamic.DynamicClient(client)
        core.create_namespaced_secret(namespace, {"metadata": {"name": "s"}, "stringData": {"k": "v"}})
        assert core.read_namespaced_secret("s", namespace).data == {"k": "dg=="}
        assert namespace in {item.metadata.name for item in core.list_namespace().items}
        assert (
            kubernetes.client.ApiextensionsV1Api(client)
            .read_custom_resource_definition(SEALS["metadata"]["name"])
            .status.conditions
        )
        review = kubernetes.client.AuthorizationV1Api(client).create_self_subject_access_review(
            {"spec": {"resourceAttributes": {"verb": "list", "resource": "secrets", "namespace": namespace}}}
        )
        assert review.status.allowed
        seals = dynamic.resources.get(api_version=f"{SEAL_GROUP}/v1", kind="Seal")
        assert seals.namespaced
        assert {"get", "list", "watch", "create", "patch", "delete"} <= set(seals.verbs)
        dynamic.server_side_apply(seals, body=seal("a"), name="a", namespace=namespace, field_manager="dynamic")
        assert dynamic.get(seals, name="a", namespace=namespace).spec.secretName == "a"
        seals.delete(namespace=namespace, label_selector="none=here")
        assert [item.metadata.name for item in seals.get(namespace=namespace).items] == ["a"]
        seals.delete(name="a", namespace=namespace)


@pytest.mark.kubectl
def test_a_script_of_kubectl_sees_what_libraries_made(conformance_server: RunningServer) -> None:
    if not BINARIES:
        pytest.skip("[missing: kubectl] `python -m tests.lab.setup` fetches it")
    namespace = namespace_of(conformance_server)
    client = Official(conformance_server.kubeconfig, namespace, TASK_KIND)
    client.create(task("a"))
    command = [str(next(iter(BINARIES.values()))), "--kubeconfig", str(conformance_server.kubeconfig), "-n", namespace]
    done = subprocess.run([*command, "get", "st", "-o", "name"], capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    assert done.stdout == "swarmtask.swarmtask.io/a\n"
    client.close()
