"""The audit log: one line per request that may have changed something, and what never stands in it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from swarmtask.apiserver.access.audit import GROUP_BYTES, REFUSED, REFUSED_USERS, AuditLog, Row
from swarmtask.apiserver.access.rules import Attributes
from swarmtask.apiserver.access.users import ADMINISTRATOR, User
from swarmtask.clock import ManualClock, SystemClock
from tests.apiserver.access.people import TASKS, client, new_token, person, task
from tests.apiserver.in_process import Caller
from tests.apiserver.server import RunningServer
from tests.resources.bad_tasks import good_task

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


@pytest.mark.parametrize(("user", "code", "told"), [
    (None, 401, "strangersLeftOut"), (User("vera"), 403, "refusedLeftOut"), (User("vera"), 429, "refusedLeftOut"),
])  # fmt: skip
def test_who_is_refused_does_not_push_the_others_out(tmp_path: Path, user: User | None, code: int, told: str) -> None:
    clock = ManualClock()
    log = AuditLog(tmp_path / "audit.log", clock)
    for _ in range(1000):
        log.write(Row(user, None, WANTED, code))
    log.write(Row(User("emil"), None, WANTED, 403))
    log.write(Row(User("emil"), None, WANTED, 201))
    clock.advance(1)
    log.write(Row(user, None, WANTED, code))
    log.write(Row(user, None, WANTED, code))
    clock.advance(1)
    log.write(Row(user, None, WANTED, code))
    log.close()
    found = rows(tmp_path)
    assert [row["code"] for row in found] == [code] * REFUSED.burst + [403, 201, code, code]
    assert [row.get(told) for row in found[-4:]] == [None, None, 1000 - REFUSED.burst, 1]


def test_what_may_have_changed_something_is_never_left_out(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.log", ManualClock())
    vera = User("vera")
    for _ in range(200):
        log.write(Row(vera, None, WANTED, 403))
    log.write(Row(vera, None, WANTED, 201))
    for _ in range(200):
        log.write(Row(vera, None, WANTED, 500))
        log.write(Row(ADMINISTRATOR, None, WANTED, 403))
        log.write(Row(User("anna"), ADMINISTRATOR, WANTED, 403))
    log.close()
    found = rows(tmp_path)[REFUSED.burst :]
    assert len(found) == 601
    assert [row.get("refusedLeftOut") for row in found[:2]] == [200 - REFUSED.burst, None], "the next row of any kind tells"


@pytest.mark.slow
def test_who_acts_for_many_has_one_pace_and_many_users_take_little_memory(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.log", ManualClock())
    for number in range(200):
        log.write(Row(User(f"u{number}"), User("deputy"), WANTED, 403))
    assert len(rows(tmp_path)) == REFUSED.burst
    for number in range(REFUSED_USERS + 1):
        for _ in range(REFUSED.burst + 1):
            log.write(Row(User(f"v{number}"), None, WANTED, 403))
    log.write(Row(User("emil"), None, WANTED, 201))
    log.close()
    assert sum(row.get("othersLeftOut", 0) for row in rows(tmp_path)) == 200 - REFUSED.burst + 1


def test_no_row_is_long(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.log", ManualClock())
    strange = "\x01" * 5000
    log.write(Row(None, None, Attributes("create", strange, strange, strange, strange, strange), 401, agent=strange))
    log.write(Row(None, None, Attributes("create", "", "", "", "", "", path='"' * 5000), 401, agent="\U0001f600" * 5000))
    log.close()
    assert max(map(len, (tmp_path / "audit.log").read_bytes().splitlines())) < 2000
    assert len(rows(tmp_path)) == 2


class FailingOpen:
    """`os.open` that fails for the audit log, as on a disk without inodes or in a process without files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failures = 0
        self._open, self._fails = os.open, True
        monkeypatch.setattr(os, "open", self)

    def __call__(self, path: Any, *rest: Any, **more: Any) -> int:
        if self._fails and "audit.log" in str(path):
            self.failures += 1
            raise OSError(errno.EMFILE, "Too many open files")
        return self._open(path, *rest, **more)

    def recover(self) -> None:
        self._fails = False


def kept(folder: Path) -> list[str]:
    """Users of all rows, oldest first."""
    files = sorted(folder.iterdir(), key=lambda path: int(path.suffix[1:]) if path.suffix != ".log" else 0, reverse=True)
    return [row["user"] for path in files for row in rows(folder, path.name)]


def test_a_rotation_that_fails_loses_nothing_and_closes_nobodys_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(tmp_path / "audit" / "audit.log", ManualClock(), file_bytes=2000, files=4)
    folder, number = tmp_path / "audit", 0

    def write() -> None:
        nonlocal number
        log.write(Row(User(f"u{number}"), None, WANTED, 201))
        number += 1

    for _ in range(60):
        write()
    before = kept(folder)
    opened = FailingOpen(monkeypatch)
    while not opened.failures:
        write()
    others = [os.dup(0) for _ in range(8)]  # they would get the number of a file that was closed
    try:
        for _ in range(5):
            write()
        assert kept(folder) == before + [f"u{at}" for at in range(60, number)], "it goes on in the file that there is"
        for _ in range(100):
            write()
        assert (folder / "audit.log").stat().st_size <= 4000
        opened.recover()
        write()
        write()
        for other in others:
            os.fstat(other)
    finally:
        for other in others:
            os.close(other)
        log.close()
    assert [path.name for path in sorted(folder.iterdir())] == ["audit.log", "audit.log.1", "audit.log.2", "audit.log.3"]
    found = rows(folder)
    assert [row["user"] for row in found] == [f"u{number - 2}", f"u{number - 1}"]
    written = kept(folder)
    assert found[0]["lostBefore"] == number - int(written[0][1:]) - len(written), "what the full file could not take is counted"


@pytest.mark.parametrize("failing", range(1, 5))
def test_a_rotation_that_stops_halfway_goes_on_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    log = AuditLog(tmp_path / "audit" / "audit.log", ManualClock(), file_bytes=1000, files=4)
    number, replace, calls = 0, Path.replace, 0

    def write() -> None:
        nonlocal number
        log.write(Row(User(f"u{number}"), None, WANTED, 201))
        number += 1

    while not (tmp_path / "audit" / "audit.log.3").exists():
        write()
    while (tmp_path / "audit" / "audit.log").stat().st_size < 800:
        write()
    before = kept(tmp_path / "audit")
    oldest = len(rows(tmp_path / "audit", "audit.log.3"))

    def fails(path: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls >= failing:
            raise OSError(errno.EIO, "Input/output error")
        return replace(path, target)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "replace", fails)
        for _ in range(3):
            write()
        assert calls >= failing
    for _ in range(2):
        write()
    log.close()
    written = kept(tmp_path / "audit")
    assert written == (before + [f"u{at}" for at in range(int(before[-1][1:]) + 1, number)])[oldest:], "one file went, no more"


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


def test_requests_that_are_answered_together_are_written_down_at_once_and_before_their_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    creates, lines = 30, "audit.log"
    answered: list[tuple[str, set[str]]] = []
    pieces: list[bytes] = []
    write = os.write

    def noted(descriptor: int, data: bytes) -> int:
        pieces.append(data)
        return write(descriptor, data)

    def look(body: bytes) -> None:
        answered.append((json.loads(body)["metadata"]["name"], {row["name"] for row in rows(tmp_path, lines)}))

    with contextlib.closing(AuditLog(tmp_path / lines, SystemClock())) as audit:
        caller = Caller(tmp_path / "x.db", audit=audit, on_head=look)
        try:
            monkeypatch.setattr(os, "write", noted)
            path = TASKS.format("default")
            requests = [("POST", path, json.dumps(good_task(f"t-{n}")).encode(), "application/json") for n in range(creates)]
            assert {answer.code for answer in caller.together(requests)} == {201}
            monkeypatch.undo()
        finally:
            caller.close()
    assert [name for name, written in answered if name not in written] == []
    assert len(answered) == len(rows(tmp_path, lines)) == creates
    assert len([piece for piece in pieces if piece.startswith(b'{"time"')]) == 1


def test_of_lines_that_cannot_be_written_together_as_many_are_as_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(tmp_path / "audit.log", ManualClock())
    for name in ("one", "two", "three"):
        log.note(Row(User(name), None, WANTED, 201))
    assert rows(tmp_path) == []
    write, room = os.write, 0

    def full(descriptor: int, data: bytes) -> int:
        nonlocal room
        taken = write(descriptor, data[:room])
        if taken == len(data):
            room -= taken
        return taken

    log.write(Row(User("size"), None, WANTED, 201))
    one = len((tmp_path / "audit.log").read_bytes()) // 4
    for name in ("four", "five", "six"):
        log.note(Row(User(name), None, WANTED, 201))
    room = one + 10
    with monkeypatch.context() as disk:
        disk.setattr(os, "write", full)
        log.flush()
    log.note(Row(User("seven"), None, WANTED, 201))
    log.note(Row(User("eight"), None, WANTED, 201))
    log.close()
    found = [(row["user"], row.get("lostBefore")) for row in rows(tmp_path)]
    assert found == [("one", None), ("two", None), ("three", None), ("size", None), ("four", None), ("seven", 2), ("eight", None)]


def test_what_waits_to_be_written_is_bounded(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.log", ManualClock(), file_bytes=GROUP_BYTES, files=3)
    for number in range(2_000):
        log.note(Row(User(f"u{number}"), None, WANTED, 201))
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) == 3
    assert max(sizes) <= GROUP_BYTES + 1_000
    log.close()
