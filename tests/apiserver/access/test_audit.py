"""The audit log: one line per request that may have changed something, and what never stands in it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from swarmtask.apiserver.access.audit import STRANGERS_PER_S, AuditLog, Row
from swarmtask.apiserver.access.rules import Attributes
from swarmtask.apiserver.access.users import User
from swarmtask.clock import ManualClock
from tests.apiserver.access.people import TASKS, client, new_token, person, task
from tests.apiserver.server import RunningServer

MERGE = {"content-type": "application/merge-patch+json"}
WANTED = Attributes("create", "g", "things", "", "n", "x")


def rows(folder: Path, name: str = "audit.log") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_bytes().splitlines()]


async def test_each_mutating_request_leaves_exactly_one_line(server: RunningServer, api: httpx.AsyncClient) -> None:
    folder = server.kubeconfig.parent / "audit"
    path = TASKS.format("default")
    async with person(server, api, "emil", ("edit", "default")) as emil:
        before = len(rows(folder))
        for response, code in (
            (await emil.post(path, json=task("t")), 201),
            (await emil.post(path, json=task("t")), 409),
            (await emil.put(f"{path}/t", json=task("t")), 422),
            (await emil.patch(f"{path}/t", content=b'{"spec":{"backoffLimit":2}}', headers=MERGE), 200),
            (await emil.patch(f"{path}/t/status", content=b"{}", headers=MERGE), 403),
            (await emil.patch(f"{path}/t/scale", content=b"{}", headers=MERGE), 404),
            (await emil.delete(f"{path}/t?dryRun=All"), 200),
            (await emil.delete(f"{path}/t"), 200),
            (await emil.delete(path), 200),
            (await emil.post("/api/v1/namespaces/default/serviceaccounts", json={"metadata": {"name": "b"}}), 201),
            (await emil.post("/api/v1/namespaces/default/serviceaccounts/b/token", json={}), 201),
            (await emil.post("/nonsense", json={}), 403),
            (await emil.get(path), 200),
            (await emil.post("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", json={"spec": {"namespace": "a"}}), 201),
        ):
            assert response.status_code == code, response.text
    found = rows(folder)[before:]
    assert [(row["verb"], row.get("resource"), row["code"]) for row in found] == [
        ("create", "swarmtasks", 201), ("create", "swarmtasks", 409), ("update", "swarmtasks", 422), ("patch", "swarmtasks", 200),
        ("patch", "swarmtasks/status", 403), ("patch", "swarmtasks/scale", 404), ("delete", "swarmtasks", 200),
        ("delete", "swarmtasks", 200), ("deletecollection", "swarmtasks", 200), ("create", "serviceaccounts", 201),
        ("create", "serviceaccounts/token", 201), ("post", None, 403),
    ]  # fmt: skip
    assert {row["user"] for row in found} == {"emil"}
    assert [row.get("name") for row in found] == ["t", "t", "t", "t", "t", "t", "t", "t", "", "b", "b", None]
    assert [row.get("dryRun", False) for row in found].count(True) == 1
    assert (found[1]["reason"], found[1]["namespace"], found[-1]["path"]) == ("AlreadyExists", "default", "/nonsense")
    assert found[0]["source"] == "127.0.0.1"
    assert found[0]["extra"] == {"access.swarmtask.io/token": ["emil"]}


async def test_a_create_names_its_object_whatever_came_of_it(server: RunningServer, api: httpx.AsyncClient) -> None:
    folder, path = server.kubeconfig.parent / "audit", "/api/v1/namespaces/default/configmaps"
    for metadata, code in (
        ({"name": "a"}, 201), ({"name": "a"}, 409), ({"name": "BAD" * 200}, 422), ({"name": 7}, 400), ({}, 422),
        ({"generateName": "g-"}, 201), ([], 400),
    ):  # fmt: skip
        assert (await api.post(path, json={"metadata": metadata})).status_code == code
    names = [row["name"] for row in rows(folder)[-7:]]
    assert names[:5] == ["a", "a", ("BAD" * 200)[:256], "", ""]
    assert names[5].startswith("g-")
    assert len(names[5]) == len("g-") + 5
    assert names[6] == ""


async def test_nobody_chooses_the_source_that_is_recorded(server: RunningServer, api: httpx.AsyncClient) -> None:
    folder = server.kubeconfig.parent / "audit"
    await api.post(TASKS.format("default"), json=task("t"), headers={"x-forwarded-for": "10.9.8.7", "x-forwarded-proto": "http"})
    assert rows(folder)[-1]["source"] == "127.0.0.1"


async def test_who_acts_for_whom_and_who_was_not_let_in(server: RunningServer, api: httpx.AsyncClient) -> None:
    folder = server.kubeconfig.parent / "audit"
    await api.post(TASKS.format("default"), json=task("t"), headers={"impersonate-user": "vera"})
    last = rows(folder)[-1]
    assert (last["user"], last["impersonatedBy"], last["code"]) == ("vera", "swarmtask-admin", 403)
    async with client(server, "wrong") as stranger:
        await stranger.delete("/api/v1/namespaces/default")
    last = rows(folder)[-1]
    assert (last["user"], last["code"], last["name"]) == ("system:anonymous", 401, "default")


async def test_heartbeats_are_left_out(server: RunningServer, api: httpx.AsyncClient) -> None:
    folder = server.kubeconfig.parent / "audit"
    leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
    async with client(server, await new_token(api, "system:node:n1", ("system:nodes",))) as agent:
        before = len(rows(folder))
        assert (await agent.post(leases, json={"metadata": {"name": "n1"}, "spec": {}})).status_code == 201
        assert (await agent.patch(f"{leases}/n1", content=b'{"spec":{"holderIdentity":"b"}}', headers=MERGE)).status_code == 200
        assert (await agent.patch(f"{leases}/n2", content=b"{}", headers=MERGE)).status_code == 403
    assert [(row["verb"], row["code"]) for row in rows(folder)[before:]] == [("create", 201), ("patch", 403)]


async def test_no_values_and_no_control_characters(server: RunningServer, api: httpx.AsyncClient) -> None:
    folder = server.kubeconfig.parent / "audit"
    token = await new_token(api, "vera")
    secret = {"metadata": {"name": "s"}, "stringData": {"p": "canary-value"}}
    assert (await api.post("/api/v1/namespaces/default/secrets?x=canary-query", json=secret)).status_code == 201
    forged = "/api/v1/namespaces/default/secrets/a%0A%7B%22user%22:%22root%22%7D"
    assert (await api.delete(forged, headers={"user-agent": "x" * 5000})).status_code == 404
    text = (folder / "audit.log").read_text()
    for canary in ("canary-value", "canary-query", token, server.token):
        assert canary not in text
    last = rows(folder)[-1]
    assert last["name"] == 'a\n{"user":"root"}', "one line, whatever the name is"
    assert len(last["agent"]) == 256


def test_it_is_rotated_and_bounded(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit" / "audit.log", ManualClock(), file_bytes=2000, files=3)
    for number in range(100):
        log.write(Row(User(f"u{number}"), None, WANTED, 201))
    log.close()
    files = sorted((tmp_path / "audit").iterdir())
    assert [path.name for path in files] == ["audit.log", "audit.log.1", "audit.log.2"]
    assert all(path.stat().st_size <= 2000 and path.stat().st_mode & 0o777 == 0o600 for path in files)
    kept = [row["user"] for path in reversed(files) for row in rows(tmp_path / "audit", path.name)]
    assert kept == [f"u{number}" for number in range(100 - len(kept), 100)], "the newest, in order, none twice"
    again = AuditLog(tmp_path / "audit" / "audit.log", ManualClock(), file_bytes=2000, files=3)
    again.write(Row(User("after"), None, WANTED, 201))
    again.close()
    assert rows(tmp_path / "audit")[-1]["user"] == "after"


def test_strangers_do_not_push_the_others_out(tmp_path: Path) -> None:
    clock = ManualClock()
    clock.advance(10)
    log = AuditLog(tmp_path / "audit.log", clock)
    for _ in range(1000):
        log.write(Row(None, None, WANTED, 401))
    log.write(Row(User("u"), None, WANTED, 201))
    clock.advance(1)
    log.write(Row(None, None, WANTED, 401))
    log.close()
    found = rows(tmp_path)
    assert len(found) == STRANGERS_PER_S + 2
    assert found[-1]["strangersLeftOut"] == 1000 - STRANGERS_PER_S


def test_a_full_disk_stops_no_request_and_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(tmp_path / "audit.log", ManualClock())
    log.write(Row(User("one"), None, WANTED, 201))
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:10]))
        log.write(Row(User("two"), None, WANTED, 201))
    log.write(Row(User("three"), None, WANTED, 201))
    log.close()
    assert [(row["user"], row.get("lostBefore")) for row in rows(tmp_path)] == [("one", None), ("three", 1)]
