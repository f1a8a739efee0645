"""An object whose row is damaged is put aside and named; everything else is served, and nobody believes that it was deleted."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import httpx
import pytest

from swarmtask.apiserver.layout import STEPS, checksum
from swarmtask.apiserver.store import Store
from swarmtask.errors import ConfigurationError
from tests.apiserver.server import http_client, running_api_server
from tests.apiserver.streams import watching
from tests.apiserver.test_store import THINGS, key, obj, open_store, put

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
DAMAGE = {
    "a flipped bit": "UPDATE revisions SET body = replace(body, '\"a\"', '\"A\"') WHERE rv = :rv",
    "no JSON": "UPDATE revisions SET body = x'7b7b', crc = :crc WHERE rv = :rv",
    "text where bytes were": "UPDATE revisions SET body = 'text' WHERE rv = :rv",
    "no checksum": "UPDATE revisions SET crc = NULL WHERE rv = :rv",
    "no revision": "DELETE FROM revisions WHERE rv = :rv",
    "another name": "UPDATE objects SET name = 'other' WHERE rv = :rv",
    "a name that is no text": "UPDATE objects SET name = CAST(x'ff41' AS TEXT) WHERE rv = :rv",
}


def damage(path: Path, how: str, rv: int) -> None:
    with sqlite3.connect(path) as db:
        done = db.execute(DAMAGE[how], {"rv": rv, "crc": checksum(b"{{")} if ":crc" in DAMAGE[how] else {"rv": rv})
        assert done.rowcount == 1
    db.close()


@pytest.mark.parametrize("how", sorted(DAMAGE))
async def test_a_damaged_row_is_put_aside_and_the_others_are_served(tmp_path: Path, how: str) -> None:
    store = await open_store(tmp_path)
    before = [await put(store, name) for name in ("a", "b", "c")]
    await store.close()
    damage(tmp_path / "x.db", how, before[0])
    store = await open_store(tmp_path)
    assert [record.key.name for record in store.index] == ["b", "c"]
    (one,) = store.quarantined
    assert (one.uid, one.rv, one.new) == ("u-a", before[0], True)
    assert one.reason
    assert store.resource_version > before[-1]
    assert store.floor == store.resource_version, "whoever watches must list again: no event tells that it has gone"
    assert await put(store, "a", n=2) > store.floor, "it can be applied again"
    await store.close()
    store = await open_store(tmp_path)
    assert sorted(record.key.name for record in store.index) == ["a", "b", "c"]
    assert [(one.uid, one.new) for one in store.quarantined] == [("u-a", False)]
    await store.close()


async def test_damaged_history_is_told_as_compacted(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    first = await put(store, "a")
    await put(store, "a", n=2)
    with sqlite3.connect(tmp_path / "x.db") as db:
        db.execute("UPDATE revisions SET body = x'00' WHERE rv = ?", (first,))
    db.close()
    with pytest.raises(Exception, match="too old resource version"):
        await store.records_at(first, THINGS)
    await store.close()


async def test_the_clusters_own_namespace_is_not_made_anew(tmp_path: Path) -> None:
    async with running_api_server(tmp_path) as server, http_client(server) as api:
        folder = server.kubeconfig.parent
        rv = int((await api.get("/api/v1/namespaces/kube-system")).json()["metadata"]["resourceVersion"])
    damage(folder / "swarmtask.db", "no JSON", rv)
    with pytest.raises(ConfigurationError, match=r"kube-system.*backup"):
        async with running_api_server(tmp_path):
            pass


async def test_it_is_named_watchers_list_again_and_dependents_stay(tmp_path: Path) -> None:
    async with running_api_server(tmp_path) as server, http_client(server) as api:
        folder = server.kubeconfig.parent
        owner = (await api.post(CONFIG_MAPS, json={"metadata": {"name": "owner"}})).json()["metadata"]
        reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["uid"]}
        await api.post(CONFIG_MAPS, json={"metadata": {"name": "dependent", "ownerReferences": [reference]}})
        since = (await api.get(CONFIG_MAPS)).json()["metadata"]["resourceVersion"]
    damage(folder / "swarmtask.db", "no checksum", int(owner["resourceVersion"]))
    async with running_api_server(tmp_path) as server, http_client(server) as api:
        assert (await api.get(f"{CONFIG_MAPS}/owner")).status_code == 404
        async with watching(api, CONFIG_MAPS, resourceVersion=since) as stream:
            (event,) = await stream.rest()
        assert (event["type"], event["object"]["code"]) == ("ERROR", 410)
        told = (await api.get("/api/v1/namespaces/default/events")).json()["items"]
        assert [(event["reason"], event["involvedObject"]["kind"], event["involvedObject"]["name"]) for event in told] == [
            ("Quarantined", "ConfigMap", "owner")
        ]
        assert "checksum" in told[0]["message"]
        await collected(api)
        assert (await api.get(f"{CONFIG_MAPS}/dependent")).status_code == 200


async def collected(api: httpx.AsyncClient) -> None:
    """The collector has worked off what it knew when this was called: it takes one thing after another."""
    await api.post(CONFIG_MAPS, json={"metadata": {"name": "last-owner"}})
    uid = (await api.get(f"{CONFIG_MAPS}/last-owner")).json()["metadata"]["uid"]
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "last-owner", "uid": uid}
    await api.post(CONFIG_MAPS, json={"metadata": {"name": "last", "ownerReferences": [reference]}})
    since = (await api.get(CONFIG_MAPS)).json()["metadata"]["resourceVersion"]
    async with watching(api, CONFIG_MAPS, resourceVersion=since, fieldSelector="metadata.name=last") as stream:
        await api.delete(f"{CONFIG_MAPS}/last-owner")
        assert (await stream.next())["type"] == "DELETED"


async def test_an_older_layout_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with sqlite3.connect(path, isolation_level=None) as db:
        STEPS[0](db)
        db.execute("PRAGMA user_version = 1")
        for rv in (2, 3):
            body = f'{{"apiVersion":"v1","metadata":{{"name":"n{rv}","namespace":"ns","uid":"u{rv}"}}}}'.encode()
            db.execute("INSERT INTO revisions VALUES (?, ?)", (rv, body))
            db.execute("INSERT INTO objects VALUES (?, ?, 'ns', ?, ?, ?)", (*THINGS, f"n{rv}", f"u{rv}", rv))
        db.execute("UPDATE meta SET value = 3 WHERE name = 'resource_version'")
    db.close()
    store = await open_store(tmp_path)
    assert [record.key.name for record in store.index] == ["n2", "n3"]
    assert store.quarantined == ()
    assert await put(store, "n4") == 4
    await store.close()


async def test_a_layout_is_changed_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.db"
    with sqlite3.connect(path, isolation_level=None) as db:
        STEPS[0](db)
        db.execute("PRAGMA user_version = 1")
        before = db.execute("SELECT sql FROM sqlite_master").fetchall()
    db.close()

    def break_off(db: sqlite3.Connection) -> None:
        STEPS[1](db)
        raise sqlite3.OperationalError("the power went")

    monkeypatch.setattr("swarmtask.apiserver.layout.STEPS", (STEPS[0], break_off))
    with pytest.raises(Exception, match="the power went"):
        await Store.open(path, event_log_rows=100)
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT sql FROM sqlite_master").fetchall() == before
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
    db.close()
    monkeypatch.undo()
    store = await open_store(tmp_path)
    assert (await store.put(key("a"), obj("a"), replacing=None)).rv == 2
    await store.close()
