"""Rules of single built-in kinds, as kube-apiserver has them; what it refuses is refused here, in words without Python in them."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest

from tests.apiserver.in_process import Caller

SECRETS = "/api/v1/namespaces/default/secrets"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/default/leases"
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
PREFIX = "kubernetes.io/"


def made(call: Caller, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    code, answer = call("POST", path, orjson.dumps({"metadata": {"generateName": "x-"}, **body}), query="dryRun=All")
    return code, answer


@pytest.mark.parametrize(
    ("kind", "texts", "field"),
    [
        ("tls", {"tls.crt": "c"}, "data[tls.key]"),
        ("tls", {}, "data[tls.crt]"),
        ("dockerconfigjson", {"other": "{}"}, "data[.dockerconfigjson]"),
        ("dockerconfigjson", {".dockerconfigjson": "{"}, "data[.dockerconfigjson]"),
        ("dockercfg", {".dockercfg": "hunter2"}, "data[.dockercfg]"),
        ("basic-auth", {"user": "a"}, "data[username]"),
        ("ssh-auth", {"ssh-privatekey": ""}, "data[ssh-privatekey]"),
        ("service-account-token", {}, "metadata.annotations[kubernetes.io/service-account.name]"),
    ],
)
def test_a_secret_holds_what_its_type_says(call: Caller, kind: str, texts: dict[str, str], field: str) -> None:
    code, answer = made(call, SECRETS, {"type": PREFIX + kind, "stringData": texts})
    assert code == 422, answer
    assert field in [cause["field"] for cause in answer["details"]["causes"]]
    shown = orjson.dumps(answer).decode()
    assert "hunter2" not in shown
    assert base64.b64encode(b"hunter2").decode() not in shown


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        ("tls", {"tls.crt": "", "tls.key": ""}), ("dockerconfigjson", {".dockerconfigjson": '{"auths":{}}'}),
        ("basic-auth", {"password": "a"}), ("ssh-auth", {"ssh-privatekey": "k"}), ("anything", {}),
    ],
)  # fmt: skip
def test_a_secret_that_is_whole_is_taken(call: Caller, kind: str, texts: dict[str, str]) -> None:
    code, answer = made(call, SECRETS, {"type": PREFIX + kind, "stringData": texts})
    assert code == 201, answer


@pytest.mark.parametrize(("field", "value"), [("leaseDurationSeconds", 0), ("leaseDurationSeconds", -5), ("leaseTransitions", -1)])
def test_a_lease_lasts(call: Caller, field: str, value: int) -> None:
    code, answer = made(call, LEASES, {"spec": {field: value}})
    assert (code, answer["details"]["causes"][0]["field"]) == (422, f"spec.{field}")
    assert made(call, LEASES, {"spec": {"leaseDurationSeconds": 1, "leaseTransitions": 0}})[0] == 201


def test_values_in_refusals_are_json(call: Caller) -> None:
    path = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles"
    code, answer = made(call, path, {"rules": [{"nonResourceURLs": ["/x"], "verbs": ["get"]}]})
    assert (code, '["/x"]' in answer["message"]) == (422, True), answer


def test_one_object_is_never_older_than_was_asked_for(call: Caller) -> None:
    code, obj = call("POST", CONFIG_MAPS, orjson.dumps({"metadata": {"name": "seen"}}))
    assert code == 201, obj
    path = f"{CONFIG_MAPS}/seen"
    for version in ("", "0", obj["metadata"]["resourceVersion"]):
        assert call("GET", path, query=f"resourceVersion={version}")[0] == 200
    code, answer = call("GET", path, query="resourceVersion=999999999")
    assert (code, answer["details"]["causes"][0]["reason"]) == (504, "ResourceVersionTooLarge")
    assert call("GET", path, query="resourceVersion=abc")[0] == 400


@pytest.mark.parametrize(
    ("path", "instead"),
    [
        ("/api/v1/namespaces/default/resourcequotas", "SwarmQueue"),
        ("/api/v1/namespaces/default/limitranges", "SwarmQueue"),
        ("/apis/scheduling.k8s.io/v1/priorityclasses", "spec.priority"),
        ("/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers", "parallelism"),
        ("/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers", "parallelism"),
        ("/apis/policy/v1beta1/namespaces/default/poddisruptionbudgets", "SwarmTask"),
    ],
)
def test_what_is_not_there_says_what_to_use_instead(call: Caller, path: str, instead: str) -> None:
    assert call("GET", path)[1]["items"] == []
    code, answer = made(call, path, {})
    assert (code, instead in answer["message"]) == (405, True), answer
