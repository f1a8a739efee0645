"""Backup and restore: consistent while it is written to, whole or nothing, and a cluster that never goes back in time."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from swarmtask.apiserver import backup as backup_module
from swarmtask.apiserver import keys_file
from swarmtask.apiserver.access.vault import Vault
from swarmtask.apiserver.backup import make, read
from swarmtask.apiserver.layout import SCHEMA_VERSION
from swarmtask.apiserver.places import locked
from swarmtask.apiserver.private_files import write_private
from swarmtask.apiserver.records import Key
from swarmtask.apiserver.restore import VERSION_GAP, restore
from swarmtask.apiserver.store import Store
from swarmtask.errors import ConfigurationError, InsufficientStorage
from swarmtask.resources.restored import ANNOTATION_RESTORED
from tests.apiserver.server import RunningServer, http_client, running_api_server
from tests.apiserver.streams import names, watching

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
SECRETS = "/api/v1/namespaces/default/secrets"
TASKS = "/apis/swarmtask.io/v1alpha1/namespaces/default/swarmtasks"
BACKUP = "/swarmtask/backup"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


async def create(api: httpx.AsyncClient, name: str, **data: str) -> dict[str, Any]:
    response = await api.post(CONFIG_MAPS, json={"metadata": {"name": name}, "data": data})
    assert response.status_code == 201, response.text
    created: dict[str, Any] = response.json()
    return created


async def download(api: httpx.AsyncClient, target: Path) -> Path:
    response = await api.post(BACKUP)
    assert response.status_code == 200, response.text
    target.write_bytes(response.content)  # noqa: ASYNC240
    return target


async def stored(path: Path) -> Path:
    """A small database without a server."""
    store = await Store.open(path, event_log_rows=100, vault=Vault(path.with_name("key")))
    for number in range(20):
        key = Key(("", "configmaps"), "default", f"n{number}")
        await store.put(key, {"apiVersion": "v1", "metadata": {"name": key.name, "uid": f"u{number}"}}, replacing=None)
    await store.close()
    return path


def change(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as db:
        db.execute(statement)
    db.close()


# --- the backup ---


async def test_it_is_one_moment_of_a_store_that_is_written_to(tmp_path: Path) -> None:
    """Each writer makes `a` before `b` and removes `b` before `a`: a backup with a `b` and without its `a` is of no moment."""
    async with running_api_server(tmp_path) as server, http_client(server) as api:
        stop = asyncio.Event()

        async def write(writer: int) -> None:
            number = 0
            while not stop.is_set():
                pair = f"w{writer}-{number % 5}"
                await create(api, f"{pair}.a")
                await create(api, f"{pair}.b")
                await api.delete(f"{CONFIG_MAPS}/{pair}.b")
                await api.delete(f"{CONFIG_MAPS}/{pair}.a")
                number += 1

        writers = [asyncio.create_task(write(number)) for number in range(4)]
        seen = []
        for number in range(5):
            before = (await api.get(CONFIG_MAPS)).json()["metadata"]["resourceVersion"]
            path = await download(api, tmp_path / f"{number}.backup")
            facts = read(path)
            assert facts.resource_version >= int(before)
            with sqlite3.connect(path) as db:
                found = {name for (name,) in db.execute("SELECT name FROM objects WHERE plural = 'configmaps'")}
            db.close()
            assert not [name for name in found if name.endswith(".b") and f"{name[:-1]}a" not in found]
            seen.append(facts.resource_version)
        stop.set()
        await asyncio.gather(*writers)
        assert seen == sorted(seen)
        assert not list(server.kubeconfig.parent.glob(".backup-*")), "nothing is left beside the database"


async def test_only_who_may_do_everything_gets_one_and_it_is_written_down(tmp_path: Path) -> None:
    async with running_api_server(tmp_path) as server, http_client(server) as api:
        assert (await api.post(BACKUP, headers={"authorization": "Bearer x"})).status_code == 401
        refused = await api.post(BACKUP, headers={"impersonate-user": "anna"})
        assert refused.status_code == 403, refused.text
        assert (await api.get(BACKUP)).status_code == 405
        assert (await api.post(BACKUP)).status_code == 200
        audit = (server.kubeconfig.parent / "audit" / "audit.log").read_text()
        assert audit.count(f'"path":"{BACKUP}"') == 3


async def test_secrets_are_sealed_in_it_and_no_key_is(tmp_path: Path) -> None:
    async with running_api_server(tmp_path) as server, http_client(server) as api:
        await api.post(SECRETS, json={"metadata": {"name": "s"}, "stringData": {"p": "canary-0815"}})
        await create(api, "gone", text="canary-4711")
        await api.delete(f"{CONFIG_MAPS}/gone")
        content = (await download(api, tmp_path / "b")).read_bytes()
        folder = server.kubeconfig.parent
        assert b"canary-0815" not in content
        assert b"Y2FuYXJ5LTA4MTU" not in content
        assert b"canary-4711" not in content, "what was deleted is not in it"
        for path in (folder / "admin.token", folder / "operator.token"):
            assert path.read_bytes().strip() not in content
        assert (folder / "pki" / "ca.key").read_bytes() not in content
        assert len(read(tmp_path / "b").keys) == 1


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (f"PRAGMA user_version = {SCHEMA_VERSION + 1}", "newer SwarmTask"),
        ("PRAGMA application_id = 7", "not made by"),
        ("DROP TABLE backup", "not made by"),
        ("UPDATE revisions SET body = x'7b7d' WHERE rv = 5", "damaged"),
        ("DELETE FROM objects WHERE name = 'n7'", "damaged"),
        ("UPDATE backup SET value = '2020-01-01T00:00:00Z' WHERE name = 'created'", "damaged"),
    ],
)
async def test_one_that_was_changed_is_refused(tmp_path: Path, statement: str, words: str) -> None:
    path = tmp_path / "backup"
    make(await stored(tmp_path / "x.db"), path, NOW)
    assert read(path).objects == 20
    change(path, statement)
    with pytest.raises(ConfigurationError, match=words):
        read(path)


@pytest.mark.parametrize("size", [0, 10, 4096, 9000])
async def test_one_that_was_cut_off_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "backup"
    make(await stored(tmp_path / "x.db"), path, NOW)
    os.truncate(path, size)
    with pytest.raises(ConfigurationError):
        read(path)
    assert sorted(one.name for one in tmp_path.glob("backup*")) == ["backup"], "reading leaves nothing beside it"  # noqa: ASYNC240


async def test_damage_on_the_servers_disk_is_named(tmp_path: Path) -> None:
    path = await stored(tmp_path / "x.db")
    change(path, "UPDATE revisions SET body = x'00' WHERE rv = 4")
    make(path, tmp_path / "backup", NOW)
    assert read(tmp_path / "backup").damaged == ("/configmaps default/n2",)


async def test_without_room_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup_module, "SPARE_BYTES", 2**62)
    async with running_api_server(tmp_path) as server, http_client(server) as api:
        response = await api.post(BACKUP)
        assert (response.status_code, response.headers["retry-after"]) == (507, "60")
        assert "MB" in response.json()["message"]
        assert not list(server.kubeconfig.parent.glob(".backup-*"))
        monkeypatch.undo()
        assert (await api.post(BACKUP)).status_code == 200


# --- the restore ---


async def test_the_cluster_goes_on_and_nobody_goes_back_in_time(tmp_path: Path) -> None:
    async with running_api_server(tmp_path) as server, http_client(server) as api:
        folder = server.kubeconfig.parent
        kept = await create(api, "kept", n="1")
        await api.post(SECRETS, json={"metadata": {"name": "s"}, "stringData": {"p": "v"}})
        path = await download(api, tmp_path / "backup")
        newer = (await api.put(f"{CONFIG_MAPS}/kept", json={**kept, "data": {"n": "2"}})).json()
        late = await create(api, "late")
    done = restore(path, folder, None, label="now")
    assert done.resource_version > int(late["metadata"]["resourceVersion"]) + VERSION_GAP
    assert (done.new_authority, done.facts.damaged) == (False, ())
    async with running_api_server(tmp_path) as again, http_client(again) as api:
        assert again.ca.read_bytes() == (folder / "before-restore-now" / "pki" / "ca.crt").read_bytes()
        assert again.token == server.token, "kubeconfigs of before go on working"
        found = (await api.get(f"{CONFIG_MAPS}/kept")).json()
        assert found["data"] == {"n": "1"}
        assert int(found["metadata"]["resourceVersion"]) > int(newer["metadata"]["resourceVersion"])
        assert found["metadata"]["uid"] == kept["metadata"]["uid"]
        assert (await api.get(f"{CONFIG_MAPS}/late")).status_code == 404
        assert (await api.get(f"{SECRETS}/s")).json()["data"] == {"p": "dg=="}
        for seen in (kept, newer, late):
            version = seen["metadata"]["resourceVersion"]
            async with watching(api, CONFIG_MAPS, resourceVersion=version) as stream:
                (event,) = await stream.rest()
            assert (event["type"], event["object"]["code"]) == ("ERROR", 410), "who watched lists again"
            stale = await api.put(
                f"{CONFIG_MAPS}/kept", json={**found, "metadata": {**found["metadata"], "resourceVersion": version}}
            )
            assert stale.status_code == 409, "what was decided before does not go through"
        listed = (await api.get(CONFIG_MAPS)).json()["metadata"]["resourceVersion"]
        async with watching(api, CONFIG_MAPS, resourceVersion=listed) as stream:
            await create(api, "next")
            assert names([await stream.next()]) == [("ADDED", "next")]


async def test_tasks_accepted_since_are_kept_for_a_person(tmp_path: Path) -> None:
    task = {"spec": {"container": {"image": "x"}}, "apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmTask"}
    async with running_api_server(tmp_path) as server, http_client(server) as api:
        folder = server.kubeconfig.parent
        await api.post(TASKS, json={**task, "metadata": {"name": "before"}})
        path = await download(api, tmp_path / "backup")
        await api.post(TASKS, json={**task, "metadata": {"name": "since", "labels": {"a": "b"}}})
        await api.post(TASKS, json={**task, "metadata": {"name": "ended"}})
        ended = await api.patch(
            f"{TASKS}/ended/status",
            json={"status": {"phase": "Succeeded"}},
            headers={"content-type": "application/merge-patch+json"},
        )
        assert ended.status_code == 200, ended.text
    done = restore(path, folder, None, label="now")
    assert done.unfinished == 1
    assert done.aside is not None
    async with running_api_server(tmp_path) as server, http_client(server) as api:
        (kept,) = (await api.get(TASKS)).json()["items"]
        assert kept["metadata"]["name"] == "before"
        assert kept["metadata"]["annotations"][ANNOTATION_RESTORED] == done.facts.created, "engines are asked about it first"
        document = httpx.Response(200, content=(done.aside / "unfinished-tasks.json").read_bytes()).json()
        (item,) = document["items"]
        assert (item["metadata"]["name"], item["metadata"]["labels"]) == ("since", {"a": "b"})
        assert (await api.post(TASKS, json=item)).status_code == 201


async def made(tmp_path: Path) -> tuple[RunningServer, Path, Path]:
    """A stopped server's directory, a backup with a Secret, and its keys."""
    async with running_api_server(tmp_path / "one") as server, http_client(server) as api:
        await api.post(SECRETS, json={"metadata": {"name": "s"}, "stringData": {"p": "v"}})
        path = await download(api, tmp_path / "backup")
    keys = tmp_path / "backup.keys"
    write_private(keys, keys_file.pack(server.kubeconfig.parent))
    return server, path, keys


async def test_a_new_machine_becomes_the_same_cluster(tmp_path: Path) -> None:
    before, path, keys = await made(tmp_path)
    with pytest.raises(ConfigurationError, match="--keys"):
        restore(path, tmp_path / "two" / "apiserver", None, label="now")
    done = restore(path, tmp_path / "two" / "apiserver", keys_file.unpack(keys), label="now")
    assert (done.aside, done.unfinished, done.new_authority) == (None, None, False)
    async with running_api_server(tmp_path / "two") as server, http_client(server) as api:
        assert server.token == before.token
        assert server.ca.read_bytes() == before.ca.read_bytes()
        assert (await api.get(f"{SECRETS}/s")).json()["data"] == {"p": "dg=="}
    files = [path for path in (tmp_path / "two").rglob("*") if path.is_file()]
    assert not [path for path in files if path.stat().st_mode & 0o077 and path.suffix != ".crt"]


async def test_it_refuses_while_a_server_runs_and_changes_nothing(tmp_path: Path) -> None:
    server, path, keys = await made(tmp_path)
    folder = server.kubeconfig.parent
    before = {one: one.read_bytes() for one in folder.rglob("*") if one.is_file()}
    with locked(folder), pytest.raises(ConfigurationError, match="stop it first"):
        restore(path, folder, keys_file.unpack(keys), label="now")
    change(path, f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(ConfigurationError, match="newer"):
        restore(path, folder, keys_file.unpack(keys), label="now")
    assert {one: one.read_bytes() for one in folder.rglob("*") if one.is_file()} == before


@pytest.mark.parametrize("point", ["_renumber", "_set_aside", "write_private", "_put_in_place"])
async def test_one_that_is_cut_off_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    server, path, keys = await made(tmp_path)
    folder = server.kubeconfig.parent
    database = (folder / "swarmtask.db").read_bytes()

    def break_off(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"swarmtask.apiserver.restore.{point}", break_off)
    with pytest.raises(InsufficientStorage):
        restore(path, folder, keys_file.unpack(keys), label="now")
    assert (folder / "swarmtask.db").read_bytes() == database
    assert not list(folder.glob(".restore-*"))
    monkeypatch.undo()
    restore(path, folder, keys_file.unpack(keys), label="now")
    async with running_api_server(tmp_path / "one") as again, http_client(again) as api:
        assert (await api.get(f"{SECRETS}/s")).status_code == 200


async def test_a_database_that_cannot_be_read_is_kept_as_it_is(tmp_path: Path) -> None:
    server, path, _ = await made(tmp_path)
    folder = server.kubeconfig.parent
    (folder / "swarmtask.db").write_bytes(b"\xa5" * 50_000)
    done = restore(path, folder, None, label="now")
    assert done.unfinished is None
    assert done.aside is not None
    assert (done.aside / "swarmtask.db").read_bytes() == b"\xa5" * 50_000
    async with running_api_server(tmp_path / "one") as again, http_client(again) as api:
        assert (await api.get(f"{SECRETS}/s")).status_code == 200


# --- the keys ---


async def test_a_keys_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    _, _, keys = await made(tmp_path)
    content = keys.read_bytes()
    assert set(keys_file.unpack(keys)) >= {"secrets.key", "pki/ca.key", "pki/ca.crt", "pki/accounts.key", "admin.token"}
    for broken in (
        b"",
        b"{}",
        content[:-20],
        content.replace(b'"files"', b'"fires"'),
        content.replace(b"admin.token", b"../up.token"),
    ):
        keys.write_bytes(broken)
        with pytest.raises(ConfigurationError):
            keys_file.unpack(keys)
