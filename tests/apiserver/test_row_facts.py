"""What is kept beside rows so that a start need not decode bodies: it says what the bodies say, or it is not believed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from swarmtask.apiserver import loading
from swarmtask.apiserver.access.vault import Vault
from swarmtask.apiserver.layout import STEPS
from swarmtask.apiserver.records import Key, Record
from swarmtask.apiserver.row_facts import FORMAT
from swarmtask.apiserver.store import Store
from swarmtask.apiserver.waiting import TASKS

SECRETS = ("", "secrets")


def task(name: str, **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmTask",
        "metadata": {"name": name, "namespace": "ns", "uid": f"u-{name}", **metadata}, "spec": {"queue": "night"},
    }  # fmt: skip


EXAMPLES: Mapping[str, dict[str, Any]] = {
    "plain": task("plain"),
    "labelled": task("labelled", labels={"a": "b", "täsk": "ja"}),
    "owned": task("owned", ownerReferences=[{"apiVersion": "v1", "kind": "X", "name": "x", "uid": "u-x"}, {"uid": "u-y"}]),
    "going": task("going", deletionTimestamp="2026-01-01T00:00:00Z"),
    "running": task("running") | {"status": {"phase": "Running"}},
}


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the objects whose bodies were decoded at the start."""
    names: list[str] = []
    read = loading.Loader._read

    def spy(self: loading.Loader, key: Key, rv: int, stored: bytes | None, crc: int | None) -> Record | str:
        names.append(key.name)
        return read(self, key, rv, stored, crc)

    monkeypatch.setattr(loading.Loader, "_read", spy)
    yield names


async def open_store(folder: Path) -> Store:
    return await Store.open(folder / "x.db", event_log_rows=100, vault=Vault(folder / "key"))


async def filled(folder: Path) -> list[Record]:
    store = await open_store(folder)
    written = [await store.put(Key(TASKS, "ns", name), dict(body), replacing=None) for name, body in EXAMPLES.items()]
    await store.close()
    return written


async def content(folder: Path) -> tuple[list[Record], int]:
    """What a start finds, and how many wait in the queue of the examples."""
    store = await open_store(folder)
    found, waiting = sorted(store.index, key=lambda record: record.rv), store.waiting.of("ns", "night")
    await store.close()
    return found, waiting


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.glob("x.db*"))


def change(folder: Path, statement: str) -> int:
    with closing(sqlite3.connect(folder / "x.db")) as db, db:
        return db.execute(statement).rowcount


async def test_a_start_finds_what_was_written_without_decoding_it(tmp_path: Path, decoded: list[str]) -> None:
    written = await filled(tmp_path)
    assert await content(tmp_path) == (written, 3)
    assert decoded == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE objects SET facts = NULL",
        "UPDATE objects SET facts_crc = NULL",
        "UPDATE objects SET facts = 'text'",
        "UPDATE objects SET facts = x'00'",
        "UPDATE objects SET facts = x'7b7d'",
        "UPDATE objects SET facts = CAST(replace(facts, 'v1alpha1', 'v1alpha2') AS BLOB)",
        f"UPDATE objects SET facts = CAST(replace(facts, '[{FORMAT},', '[{FORMAT + 1},') AS BLOB)",
    ],
)
async def test_facts_that_are_not_what_was_written_are_taken_from_the_bodies_once(
    tmp_path: Path, decoded: list[str], statement: str
) -> None:
    written = await filled(tmp_path)
    assert change(tmp_path, statement) == len(EXAMPLES)
    assert await content(tmp_path) == (written, 3)
    assert sorted(decoded) == sorted(EXAMPLES)
    decoded.clear()
    assert await content(tmp_path) == (written, 3)
    assert decoded == [], "they were written down"


async def test_an_older_file_gets_its_facts_at_the_first_start(tmp_path: Path, decoded: list[str]) -> None:
    written = await filled(tmp_path)
    with closing(sqlite3.connect(tmp_path / "x.db")) as db, db:
        db.execute("ALTER TABLE objects DROP COLUMN facts")
        db.execute("ALTER TABLE objects DROP COLUMN facts_crc")
        db.execute("PRAGMA user_version = 2")
    assert len(STEPS) > 2
    assert await content(tmp_path) == (written, 3)
    decoded.clear()
    assert await content(tmp_path) == (written, 3)
    assert decoded == []


async def test_a_start_goes_on_where_they_cannot_be_written(
    tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = await filled(tmp_path)
    change(tmp_path, "UPDATE objects SET facts = NULL")
    change(tmp_path, "CREATE TRIGGER full BEFORE UPDATE ON objects BEGIN SELECT RAISE(ABORT, 'the disk is full'); END")
    assert await content(tmp_path) == (written, 3)
    assert await content(tmp_path) == (written, 3)
    assert len(decoded) == 2 * len(EXAMPLES)


async def test_labels_of_secrets_are_not_written_in_the_clear(tmp_path: Path, decoded: list[str]) -> None:
    store = await open_store(tmp_path)
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "ns", "labels": {"for": "the-vault"}}}
    record = await store.put(Key(SECRETS, "ns", "s"), secret, replacing=None)
    await store.close()
    assert await content(tmp_path) == ([record], 0)
    assert decoded == ["s"]
    assert b"the-vault" not in everything(tmp_path)
