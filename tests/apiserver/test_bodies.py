"""Bodies and paths that are made to hurt: over a real socket, because much of the damage is done before the handlers."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from swarmtask.apiserver.app import Application
from swarmtask.apiserver.auth import Authenticator, digest
from swarmtask.apiserver.bodies import YAML_NODE_LIMIT
from swarmtask.clock import SystemClock
from swarmtask.settings import ApiServerSettings
from tests.apiserver.server import RunningServer, tls

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
TASKS = "/apis/swarmtask.io/v1alpha1/namespaces/default/swarmtasks"
YAML = "application/yaml"
APPLY = "application/apply-patch+yaml"
HEADER = b"kind: ConfigMap\napiVersion: v1\nmetadata: {name: x}\ndata:"


def bomb() -> bytes:
    """Nine levels of nine aliases: 400 million values in 300 bytes."""
    lines = [b"  a: &a [x,x,x,x,x,x,x,x,x]"]
    lines += [b"  %c: &%c [%s]" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 9)) for i in range(9)]
    return HEADER + b"\n" + b"\n".join(lines)


def big(number: bytes) -> bytes:
    head = b'{"apiVersion":"swarmtask.io/v1alpha1","kind":"SwarmTask","metadata":{"name":"x"},'
    return head + b'"spec":{"container":{"image":"a"},"priority":%b}}' % number


BODIES: dict[str, bytes] = {
    "open-brackets": b"[" * 100_000,
    "brackets": b"[" * 100_000 + b"]" * 100_000,
    "braces": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "dashes": b"- " * 100_000,
    "wrapped": b'{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x"},"data":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "alias-bomb": bomb(),
    "alias-of-itself": b"&a {kind: ConfigMap, apiVersion: v1, metadata: {name: x}, data: *a}",
    "many-keys": HEADER + b"".join(b"\n  k%d: v" % i for i in range(250_000)),
    "many-lists": b"[" + b"[]," * 900_000 + b"]",
    "many-json-keys": b'{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x"},"data":{'
    + b",".join(b'"%d":""' % i for i in range(250_000))
    + b"}}",
    "not-utf-8": HEADER + b" {a: \xff}",
    "nul": HEADER + b" {a: \x00}",
    "half-a-surrogate": b'{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x"},"data":{"a":"\\ud800"}}',
    "python-tag": b'!!python/object/apply:os.system ["true"]',
    "two-documents": HEADER + b" {a: b}\n---\n" + HEADER + b" {a: b}",
    "unhashable-key": HEADER + b" {[1]: a}",
}


async def nothing_stored(api: httpx.AsyncClient, version: str) -> None:
    for path in (CONFIG_MAPS, TASKS):
        listed = (await api.get(path)).json()
        assert listed["items"] == []
        assert listed["metadata"]["resourceVersion"] == version


def refused(response: httpx.Response) -> dict[str, Any]:
    assert 400 <= response.status_code < 500, (response.status_code, response.text[:300])
    status: dict[str, Any] = response.json()
    assert (status["kind"], status["status"], status["code"]) == ("Status", "Failure", response.status_code)
    assert status["message"]
    return status


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
async def test_a_hostile_body_is_refused_soon_and_stores_nothing(api: httpx.AsyncClient, body: bytes) -> None:
    version = (await api.get(CONFIG_MAPS)).json()["metadata"]["resourceVersion"]
    for media in ("application/json", YAML):
        refused(await api.post(CONFIG_MAPS, content=body, headers={"content-type": media}))
    refused(await api.patch(f"{CONFIG_MAPS}/x?fieldManager=m", content=body, headers={"content-type": APPLY}))
    await nothing_stored(api, version)


@pytest.mark.parametrize("media", ["application/json", YAML])
@pytest.mark.parametrize(
    "number", [b"1e400", b"1" + b"0" * 400, b"NaN", b"Infinity", b".nan", b"1.0e+400", b"0x" + b"f" * 9999, b"1e-1"]
)
async def test_numbers_that_no_field_holds(api: httpx.AsyncClient, media: str, number: bytes) -> None:
    version = (await api.get(CONFIG_MAPS)).json()["metadata"]["resourceVersion"]
    refused(await api.post(TASKS, content=big(number), headers={"content-type": media}))
    await nothing_stored(api, version)


async def test_a_patch_with_too_many_values(api: httpx.AsyncClient) -> None:
    assert (await api.post(CONFIG_MAPS, json={"metadata": {"name": "x"}})).status_code == 201
    body = {"data": {str(number): "" for number in range(150_000)}}
    status = refused(await api.patch(f"{CONFIG_MAPS}/x", json=body, headers={"content-type": "application/merge-patch+json"}))
    assert "100000 values" in status["message"]


@pytest.mark.slow
async def test_other_requests_go_on_while_a_long_yaml_body_is_read(api: httpx.AsyncClient) -> None:
    body = b"\n".join(b"k%d: v" % i for i in range(YAML_NODE_LIMIT // 2 - 10))
    reading = asyncio.create_task(api.post(CONFIG_MAPS, content=body, headers={"content-type": YAML}))
    answered = 0
    while not reading.done():
        assert (await api.get("/healthz")).status_code == 200
        answered += 1
    refused(reading.result())
    assert answered >= 3


async def test_a_yaml_body_gives_the_same_object_as_json(api: httpx.AsyncClient) -> None:
    text = HEADER + b" {day: '2020-01-01', sign: =, long: '" + b"x" * 9000 + b"'}"
    response = await api.post(CONFIG_MAPS, content=text, headers={"content-type": YAML})
    assert response.status_code == 201, response.text
    assert response.json()["data"] == {"day": "2020-01-01", "sign": "=", "long": "x" * 9000}


@pytest.mark.parametrize("media", ["application/json", YAML])
async def test_a_key_given_twice_is_named(api: httpx.AsyncClient, media: str) -> None:
    body = b'{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x","name":"y"},"data":{"a":"1","a":"2"}}'
    if media == YAML:
        body = b"kind: ConfigMap\napiVersion: v1\nmetadata: {name: x, name: y}\ndata:\n  a: '1'\n  a: '2'\n"
    headers = {"content-type": media}
    status = refused(await api.post(f"{CONFIG_MAPS}?fieldValidation=Strict", content=body, headers=headers))
    assert "metadata.name" in status["message"]
    assert "data.a" in status["message"]
    assert (await api.get(CONFIG_MAPS)).json()["items"] == []
    warned = await api.post(f"{CONFIG_MAPS}?fieldValidation=Warn", content=body, headers=headers)
    assert warned.status_code == 201
    assert "metadata.name" in warned.headers["warning"]


async def test_an_applied_yaml_body_with_a_key_given_twice(api: httpx.AsyncClient) -> None:
    body = HEADER + b" {a: '1', a: '2'}"
    path = f"{CONFIG_MAPS}/x?fieldManager=m&fieldValidation=Strict"
    assert "data.a" in refused(await api.patch(path, content=body, headers={"content-type": APPLY}))["message"]


@pytest.mark.parametrize(
    "name", ["%2f", "%2F%2F", "x%2f", "%2fx", "a%2fb", "..%2f..%2fsecrets", "%00", "%2e%2e", "%ff", "", "/", "x/"]
)
async def test_no_odd_name_reaches_another_object(api: httpx.AsyncClient, name: str) -> None:
    kept = await api.post(CONFIG_MAPS, json={"metadata": {"name": "x"}})
    assert kept.status_code == 201
    url = httpx.URL(f"{api.base_url}".rstrip("/")).copy_with(raw_path=f"{CONFIG_MAPS}/{name}".encode())
    refused(await api.delete(url))
    if name not in ("", "/", "x/"):
        refused(await api.get(url))
        refused(await api.put(url, json={"metadata": {"name": "x"}}))
        refused(await api.patch(url, content=b'{"data":{"a":"b"}}', headers={"content-type": "application/merge-patch+json"}))
    listed = (await api.get(CONFIG_MAPS)).json()
    assert [item["metadata"]["resourceVersion"] for item in listed["items"]] == [kept.json()["metadata"]["resourceVersion"]]


async def test_a_body_that_never_ends_is_given_up(tmp_path: Any) -> None:
    clock = SystemClock()
    app = await Application.open(tmp_path / "x.db", ApiServerSettings(), Authenticator([digest("t")]), clock)
    app.body_timeout_s = 0.05
    messages: list[Any] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        messages.append(message)

    headers = [(b"authorization", b"Bearer t")]
    scope = {"type": "http", "method": "POST", "path": CONFIG_MAPS, "query_string": b"", "headers": headers}
    try:
        async with asyncio.timeout(20):
            await app(scope, receive, send)
    finally:
        await app.close()
    assert messages[0]["status"] == 504
    assert b"body was not complete" in messages[1]["body"]
    assert (b"connection", b"close") in messages[0]["headers"]


async def read_all(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(20):
        return await reader.read()


def head(server: RunningServer, line: str, *headers: str) -> bytes:
    return "\r\n".join([line, "Host: x", f"Authorization: Bearer {server.token}", *headers, "", ""]).encode()


async def test_requests_in_a_pipeline_are_all_answered_in_order(server: RunningServer) -> None:
    url = httpx.URL(server.url)
    reader, writer = await asyncio.open_connection(url.host, url.port, ssl=tls(server))
    paths = ["/version", f"{CONFIG_MAPS}/nothing"] * 50
    last = head(server, "GET /healthz HTTP/1.1", "Connection: close")
    writer.write(b"".join(head(server, f"GET {path} HTTP/1.1") for path in paths) + last)
    answers = (await read_all(reader)).split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200", b"404"] * 50 + [b"200"]
    writer.close()


@pytest.mark.parametrize(
    "request_line",
    ["GET /version HTTP/1.0", "HEAD /version HTTP/1.1", "OPTIONS /api HTTP/1.1", "TRACE /api HTTP/1.1", "FOO /api HTTP/1.1",
     "GET http://elsewhere/version HTTP/1.1", "GET /" + "a" * 60_000 + " HTTP/1.1", "GET /version?" + "a=1&" * 5000 + " HTTP/1.1"],
)  # fmt: skip
async def test_unusual_requests_are_answered_and_the_server_goes_on(server: RunningServer, request_line: str) -> None:
    url = httpx.URL(server.url)
    reader, writer = await asyncio.open_connection(url.host, url.port, ssl=tls(server))
    writer.write(head(server, request_line, "Connection: close"))
    answer = await read_all(reader)
    assert answer.startswith((b"HTTP/1.1 2", b"HTTP/1.1 4")), answer[:200]
    writer.close()


async def test_a_wrong_content_length_stores_nothing(server: RunningServer, api: httpx.AsyncClient) -> None:
    url = httpx.URL(server.url)
    body = b'{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x"}}'
    for length in ("10", str(len(body) + 10), "-1", "1" * 30, "x"):
        reader, writer = await asyncio.open_connection(url.host, url.port, ssl=tls(server))
        lines = head(server, f"POST {CONFIG_MAPS} HTTP/1.1", "Connection: close", f"Content-Length: {length}")
        writer.write(lines + body)
        if length != str(len(body) + 10):
            assert (await read_all(reader)).startswith(b"HTTP/1.1 4")
        writer.close()
    assert (await api.get(CONFIG_MAPS)).json()["items"] == []


@pytest.mark.slow
async def test_sixty_megabytes_are_read_and_thrown_away(api: httpx.AsyncClient) -> None:
    started = time.monotonic()
    response = await api.post(CONFIG_MAPS, content=b'{"a":"' + b"x" * 60_000_000 + b'"}')
    assert response.status_code == 413
    assert refused(response)["reason"] == "RequestEntityTooLarge"
    assert time.monotonic() - started < 60
