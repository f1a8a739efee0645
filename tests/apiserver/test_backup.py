"""Backup and restore: consistent while it is written to, whole or nothing, and a cluster that never goes back in time."""

from __future__ import annotations

import asyncio
import errno
import os
import pickle
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from swarmtask.apiserver import backup as backup_module
from swarmtask.apiserver import keys_file, output_archive, switchover
from swarmtask.apiserver.access.vault import Vault
from swarmtask.apiserver.backup import make, read
from swarmtask.apiserver.layout import SCHEMA_VERSION
from swarmtask.apiserver.places import DATABASE, SECRETS_KEY, locked
from swarmtask.apiserver.private_files import write_private
from swarmtask.apiserver.records import Key
from swarmtask.apiserver.restore import VERSION_GAP, restore
from swarmtask.apiserver.schemas_since import ANNOTATION
from swarmtask.apiserver.store import Store
from swarmtask.errors import ConfigurationError, InsufficientStorage
from swarmtask.resources.restored import ANNOTATION_RESTORED
from tests.apiserver.server import RunningServer, http_client, running_api_server
from tests.apiserver.streams import names, watching
from tests.apiserver.test_definitions import CRDS, MERGE, WIDGETS, definition, widget
from tests.apiserver.test_definitions import create as create_object

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


@pytest.mark.slow
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


async def test_what_is_older_than_the_schemas_of_its_definition_still_is(tmp_path: Path) -> None:
    """Every object has a higher version afterwards than any that a definition can have noted."""
    async with running_api_server(tmp_path) as server, http_client(server) as api:
        await create_object(api, CRDS, definition())
        await create_object(api, WIDGETS, widget())
        crd = definition()
        fields = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
        fields["added"] = {"type": "string", "default": "x"}
        for change_ in ({"spec": {"versions": crd["spec"]["versions"]}}, {"metadata": {"labels": {"a": "b"}}}):
            response = await api.patch(f"{CRDS}/widgets.example.com", json=change_, headers=MERGE)
            assert response.status_code == 200, response.text
        assert ANNOTATION in response.json()["metadata"]["annotations"]
        path = await download(api, tmp_path / "backup")
    restore(path, server.kubeconfig.parent, None, label="now")
    async with running_api_server(tmp_path) as again, http_client(again) as api:
        assert (await api.get(f"{WIDGETS}/w")).json()["spec"]["added"] == "x"


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


def files_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "point", ["_renumber", "_set_aside", "write_private", "_stage_credentials", "output_archive.unpack", "switchover.decide"]
)
async def test_one_that_fails_changes_nothing_and_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    server, path, keys = await made(tmp_path)
    folder = server.kubeconfig.parent
    output = tmp_path / "output"
    output.write_bytes(b"".join(output_archive.pack(tmp_path / "none")))
    (folder / "admin.token").write_text("another-token-" + "x" * 40)
    before = files_in(folder)

    def break_off(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"swarmtask.apiserver.restore.{point}", break_off)
    with pytest.raises(InsufficientStorage, match="nothing was written"):
        restore(path, folder, keys_file.unpack(keys), label="now", output=output)
    assert files_in(folder) == before
    assert not list(folder.glob("*restore*"))
    monkeypatch.undo()
    restore(path, folder, keys_file.unpack(keys), label="now", output=output)
    async with running_api_server(tmp_path / "one") as again, http_client(again) as api:
        assert (await api.get(f"{SECRETS}/s")).status_code == 200
        assert again.token == server.token


async def test_one_that_could_not_be_finished_is_by_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, path, keys = await made(tmp_path)
    folder = server.kubeconfig.parent
    (folder / "admin.token").write_text("another-token-" + "x" * 40)

    def break_off(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(switchover, "_move", break_off)
        with pytest.raises(InsufficientStorage, match="goes on with it"):
            restore(path, folder, keys_file.unpack(keys), label="now")
        with pytest.raises(InsufficientStorage, match="goes on with it"):
            async with running_api_server(tmp_path / "one"):
                raise AssertionError("it serves with half of the files")
    async with running_api_server(tmp_path / "one") as again, http_client(again) as api:
        assert (await api.get(f"{SECRETS}/s")).status_code == 200
        assert again.token == server.token
    assert sorted(one.name for one in folder.glob("*restore*")) == ["before-restore-now"]


KILLER = """
import os, pickle, shutil, sys
from pathlib import Path
from swarmtask.apiserver.restore import restore

base, copies, given = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
backup, output, credentials = pickle.loads(given.read_bytes())
STEPS = {"os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree", "sqlite3.connect"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
for number in range(1, 1000):
    folder = copies / str(number)
    shutil.copytree(base, folder)
    child = os.fork()
    if not child:
        left = number

        def before(event, arguments):
            global left
            if event in STEPS or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES):
                left -= 1
                if not left:
                    os._exit(9)

        sys.addaudithook(before)
        restore(backup, folder, credentials, label="now", output=output)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 0:
        break
    assert code == 9, code
"""


@pytest.mark.slow
async def test_one_that_is_killed_leaves_all_of_the_old_or_all_of_the_new(tmp_path: Path) -> None:
    """Killed before each step that changes a file. A key, a token or output of the one beside the database of the other would be a
    control plane that does not start, or one that nobody knows."""
    base = tmp_path / "base"
    base.mkdir()
    old_files = {"admin.token": b"old token", "pki/ca.key": b"old key", "pki/ca.crt": b"old authority"}
    (base / "pki").mkdir()
    for name, content in old_files.items():
        (base / name).write_bytes(content)
    store = await Store.open(base / DATABASE, event_log_rows=100, vault=Vault(base / SECRETS_KEY))
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "default", "uid": "u"}, "data": {}}
    await store.put(Key(("", "secrets"), "default", "s"), secret, replacing=None)
    make(base / DATABASE, tmp_path / "backup", NOW)
    new_files = {name: b"restored " + name.encode() for name in old_files} | {SECRETS_KEY: (base / SECRETS_KEY).read_bytes()}
    late = Key(("", "configmaps"), "default", "late")
    await store.put(late, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "late", "uid": "v"}}, replacing=None)
    await store.rotate_key()
    await store.close()
    old_files[SECRETS_KEY] = (base / SECRETS_KEY).read_bytes()
    attempt = Path("attempt-logs") / "0a" / "1" / f"{0:020d}.log"
    (tmp_path / "saved" / attempt).parent.mkdir(parents=True)
    (tmp_path / "saved" / attempt).write_bytes(b"a line\n")
    output = tmp_path / "output"
    output.write_bytes(b"".join(output_archive.pack(tmp_path / "saved" / "attempt-logs")))
    given = tmp_path / "given"
    given.write_bytes(pickle.dumps((tmp_path / "backup", output, new_files)))
    copies = tmp_path / "copies"
    copies.mkdir()
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", KILLER, base, copies, given], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = []
    for folder in sorted(copies.iterdir(), key=lambda path: int(path.name)):
        switchover.finish(folder)
        opened = await Store.open(folder / DATABASE, event_log_rows=100, vault=Vault(folder / SECRETS_KEY))
        restored = opened.get(late) is None
        assert opened.get(Key(("", "secrets"), "default", "s")) is not None, "the key fits"
        await opened.close()
        files = {name: (folder / name).read_bytes() for name in old_files}
        assert files == (new_files if restored else old_files), folder
        assert (folder / attempt).exists() is restored, folder
        assert not [one for one in folder.iterdir() if one.name == switchover.PENDING or one.name.startswith(".restore-")]
        seen.append(restored)
    assert seen == sorted(seen)
    assert seen.count(False) > 10
    assert seen.count(True) > 5


@pytest.mark.slow
async def test_files_may_lie_on_another_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, path, keys = await made(tmp_path)
    folder = server.kubeconfig.parent
    (folder / "admin.token").write_text("another-token-" + "x" * 40)
    replace = Path.replace

    def on_another(self: Path, target: Path) -> Path:
        if switchover.PENDING in self.parts:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", on_another)
        restore(path, folder, keys_file.unpack(keys), label="now")
    assert not [one for one in folder.rglob("*") if one.name in (".restoring", switchover.PENDING)]
    async with running_api_server(tmp_path / "one") as again, http_client(again) as api:
        assert (await api.get(f"{SECRETS}/s")).status_code == 200
        assert again.token == server.token


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
