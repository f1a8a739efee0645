"""Secrets at rest: what is on the disk, the key, its rotation, and what happens when one of them is wrong."""

from __future__ import annotations

import base64
import sqlite3
from pathlib import Path

import httpx
import orjson
import pytest

from swarmtask.apiserver.access.vault import Vault, is_sealed
from swarmtask.apiserver.records import Key
from swarmtask.apiserver.store import Store
from swarmtask.errors import ConfigurationError
from tests.apiserver.server import http_client, running_api_server

CANARY = "canary-4711-canary"
SECRETS = "/api/v1/namespaces/default/secrets"
ROTATIONS = "/apis/access.swarmtask.io/v1alpha1/secretskeyrotations"
KEY = Key(("", "secrets"), "default", "s")


def spread(folder: Path) -> list[str]:
    """Files in which the canary can be read, plain or in base64."""
    needles = (CANARY.encode(), base64.b64encode(CANARY.encode()))
    return [path.name for path in folder.rglob("*") if path.is_file() and any(needle in path.read_bytes() for needle in needles)]


def bodies(path: Path) -> list[bytes]:
    """What is stored of Secrets, newest last."""
    with sqlite3.connect(path) as db:
        rows = db.execute(
            "SELECT body FROM revisions WHERE rv IN (SELECT rv FROM log WHERE plural = 'secrets') ORDER BY rv"
        ).fetchall()
    db.close()
    return [row[0] for row in rows]


async def put(api: httpx.AsyncClient, name: str = "s", text: str = CANARY) -> None:
    assert (await api.post(SECRETS, json={"metadata": {"name": name}, "stringData": {"password": text}})).status_code == 201


async def read(api: httpx.AsyncClient, name: str = "s") -> str:
    return base64.b64decode((await api.get(f"{SECRETS}/{name}")).json()["data"]["password"]).decode()


@pytest.mark.slow
async def test_nothing_of_a_secret_is_readable_on_the_disk(tmp_path: Path) -> None:
    async with running_api_server(tmp_path) as server, http_client(server) as api:
        folder = server.kubeconfig.parent
        await put(api)
        first = (await api.get("/api/v1/namespaces/default/secrets")).json()["metadata"]["resourceVersion"]
        assert await read(api) == CANARY
        assert spread(folder) == []
        assert (await api.delete(f"{SECRETS}/s")).status_code == 200
        watch = {"watch": "1", "resourceVersion": str(int(first) - 1), "timeoutSeconds": "1"}
        past = await api.get(SECRETS, params=watch)
        assert base64.b64encode(CANARY.encode()).decode() in past.text, "the past is read from the disk and opened again"
        await put(api)
    assert spread(folder) == []
    async with running_api_server(tmp_path) as server, http_client(server) as api:
        assert await read(api) == CANARY


async def test_the_key_is_rotated_while_the_server_runs(tmp_path: Path) -> None:
    async with running_api_server(tmp_path) as server, http_client(server) as api:
        folder = server.kubeconfig.parent
        await put(api)
        await put(api, "t", "other")
        before, old = bodies(folder / "swarmtask.db"), orjson.loads((folder / "secrets.key").read_bytes())["keys"]
        rotated = await api.post(ROTATIONS, json={})
        assert rotated.status_code == 201, rotated.text
        new = orjson.loads((folder / "secrets.key").read_bytes())["keys"]
        assert rotated.json()["status"] == {"keyID": new[0]["id"], "revisions": 2}
        assert len(new) == 1 and new[0]["id"] != old[0]["id"]
        after = bodies(folder / "swarmtask.db")
        assert all(is_sealed(body) for body in after)
        assert not set(before) & set(after)
        old_id = bytes.fromhex(old[0]["id"])
        assert not any(old_id in path.read_bytes() for path in folder.glob("swarmtask.db*")), (
            "no trace of the old key's ciphertexts"
        )
        assert await read(api) == CANARY
        await put(api, "u")
    async with running_api_server(tmp_path) as server, http_client(server) as api:
        assert [await read(api, name) for name in "stu"] == [CANARY, "other", CANARY]


async def test_a_rotation_that_was_cut_off_goes_on_at_the_next_start(tmp_path: Path) -> None:
    path, key = tmp_path / "x.db", tmp_path / "key"
    store = await Store.open(path, event_log_rows=100, vault=Vault(key))
    await store.put(KEY, {"apiVersion": "v1", "metadata": {"uid": "u"}, "data": {"a": CANARY}}, replacing=None)
    await store.close()
    Vault(key).begin_rotation()
    assert len(orjson.loads(key.read_bytes())["keys"]) == 2
    store = await Store.open(path, event_log_rows=100, vault=Vault(key))
    record = store.get(KEY)
    assert record is not None and CANARY.encode() in record.body
    await store.close()
    keys = orjson.loads(key.read_bytes())["keys"]
    assert len(keys) == 1
    assert all(bytes.fromhex(keys[0]["id"]) in body for body in bodies(path))


async def test_what_was_stored_plainly_before_is_sealed(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    store = await Store.open(path, event_log_rows=100)
    obj = {"apiVersion": "v1", "metadata": {"uid": "u"}, "data": {"a": CANARY}}
    first = await store.put(KEY, obj, replacing=None)
    await store.put(KEY, {**obj, "metadata": {"uid": "u", "labels": {"a": "b"}}}, replacing=first)
    await store.close()
    assert spread(tmp_path)
    store = await Store.open(path, event_log_rows=100, vault=Vault(tmp_path / "key"))
    await store.close()
    assert spread(tmp_path) == []
    with pytest.raises(ConfigurationError, match="no key to read them with"):
        await Store.open(path, event_log_rows=100)


async def test_a_lost_or_another_key_is_told_and_nothing_is_overwritten(tmp_path: Path) -> None:
    path, key = tmp_path / "x.db", tmp_path / "key"
    store = await Store.open(path, event_log_rows=100, vault=Vault(key))
    await store.put(KEY, {"apiVersion": "v1", "metadata": {"uid": "u"}, "data": {"a": CANARY}}, replacing=None)
    await store.close()
    kept, stored = key.read_bytes(), bodies(path)
    key.unlink()
    with pytest.raises(ConfigurationError, match=r"restore that file from the backup"):
        await Store.open(path, event_log_rows=100, vault=Vault(key))
    assert not key.exists()
    assert bodies(path) == stored
    key.write_bytes(kept)
    await (await Store.open(path, event_log_rows=100, vault=Vault(key))).close()


def test_a_sealed_body_belongs_to_its_revision(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "key")
    sealed = vault.seal(7, b"{}")
    assert vault.open(7, sealed) == b"{}"
    for rv, changed in ((8, sealed), (7, sealed[:-1]), (7, sealed[:-1] + bytes([sealed[-1] ^ 1])), (7, sealed[:8])):
        with pytest.raises(ConfigurationError):
            vault.open(rv, changed)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"keys": []}', b'{"keys": [{"id": "00", "key": "AAAA"}]}', b'{"keys": 7}', b"\xff"]
)
def test_a_damaged_key_file_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(ConfigurationError, match="restore it from a backup"):
        Vault(tmp_path / "key")
