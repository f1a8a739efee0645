"""Values of Secrets and ConfigMaps: what is taken, how it is kept, and what a refusal never says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.apiserver.server import http_client, running_api_server

SECRETS = "/api/v1/namespaces/default/secrets"
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
CANARY = "canary-4711"


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with running_api_server(tmp_path) as server, http_client(server) as client:
        yield client


@pytest.mark.parametrize("body", [
    {"data": {"a": CANARY}}, {"data": {"a": [CANARY]}}, {"data": [CANARY]}, {"data": {"a": {"b": CANARY}}}, {"data": CANARY},
    {"stringData": {"a": [CANARY]}}, {"stringData": {"a": {"b": CANARY}}}, {"stringData": {"a": 5, "b": CANARY}},
    {"stringData": CANARY}, {"stringData": [CANARY]},
])  # fmt: skip
async def test_what_is_no_value_is_refused_and_not_quoted(api: httpx.AsyncClient, body: dict[str, Any]) -> None:
    """Above all it is not left out in silence: the Secret would be there, and empty."""
    answer = await api.post(SECRETS, json={"metadata": {"name": "s"}, **body})
    assert answer.status_code in (400, 422), answer.text
    assert CANARY not in answer.text
    assert (await api.get(f"{SECRETS}/s")).status_code == 404


async def test_what_is_empty_is_an_empty_value(api: httpx.AsyncClient) -> None:
    made = await api.post(SECRETS, json={"metadata": {"name": "s"}, "stringData": {"b": "", "c": "v"}})
    assert made.status_code == 201, made.text
    assert made.json()["data"] == {"b": "", "c": "dg=="}


@pytest.mark.parametrize(("path", "field"), [(SECRETS, "data"), (CONFIG_MAPS, "binaryData")])
async def test_base64_over_several_lines(api: httpx.AsyncClient, path: str, field: str) -> None:
    made = await api.post(path, json={"metadata": {"name": "s"}, field: {"a": "Y2Fu\nYXJ5\r\n", "b": ""}})
    assert made.status_code == 201, made.text
    assert made.json()[field] == {"a": "Y2FuYXJ5", "b": ""}
    assert (await api.post(path, json={"metadata": {"name": "t"}, field: {"a": "Y2F uYX"}})).status_code == 422


@pytest.mark.parametrize("operation", [
    {"op": "add", "path": "/metadata/labels/x", "value": "y"}, {"op": "remove", "path": "/data/none"},
    {"op": "test", "path": "/data/p", "value": "y"}, {"op": "replace", "path": "/data/p/q", "value": "y"},
])  # fmt: skip
async def test_a_patch_that_does_not_fit_quotes_nothing(api: httpx.AsyncClient, operation: dict[str, Any]) -> None:
    await api.post(SECRETS, json={"metadata": {"name": "s"}, "data": {"p": "Y2FuYXJ5LTQ3MTE="}})
    headers = {"content-type": "application/json-patch+json"}
    answer = await api.patch(f"{SECRETS}/s", json=[operation], headers=headers)
    assert answer.status_code == 422, answer.text
    assert "Y2FuYXJ5" not in answer.text


@pytest.mark.slow
@pytest.mark.parametrize(("subresource", "words"), [
    ("attach", "kubectl logs -f"), ("portforward", "from its node"), ("ephemeralcontainers", "kubectl exec"),
])  # fmt: skip
async def test_what_pods_have_elsewhere_is_refused_with_what_to_do(api: httpx.AsyncClient, subresource: str, words: str) -> None:
    for method in ("GET", "POST", "PATCH"):
        answer = await api.request(method, f"/api/v1/namespaces/default/pods/x-1/{subresource}", json={})
        assert (answer.status_code, words in answer.json()["message"]) == (404, True), answer.text
        assert answer.json()["details"] == {}, "kubectl debug tells by that whether the pod or the subresource is not there"
