"""The store: order, durability, group commit, snapshots, compaction, full disks, damaged files."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarmtask.apiserver.layout import SCHEMA_VERSION
from swarmtask.apiserver.records import Change, Key
from swarmtask.apiserver.store import Store
from swarmtask.errors import ConfigurationError, Expired, InsufficientStorage, ServiceUnavailable

THINGS = ("", "things")


def key(name: str, namespace: str = "ns") -> Key:
    return Key(THINGS, namespace, name)


def obj(name: str, **more: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Thing", "metadata": {"name": name, "namespace": "ns", "uid": f"u-{name}"}, **more}


async def open_store(tmp_path: Path, rows: int = 1000) -> Store:
    return await Store.open(tmp_path / "x.db", event_log_rows=rows)


async def put(store: Store, name: str, **more: Any) -> int:
    record = await store.put(key(name), obj(name, **more), replacing=store.head(key(name)))
    return record.rv


async def drop(store: Store, name: str) -> int:
    record = store.head(key(name))
    assert record is not None
    return (await store.remove(key(name), record.decode(), replacing=record)).rv


async def test_versions_grow_and_survive(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    first, second = await put(store, "a"), await put(store, "b")
    gone = await drop(store, "b")
    assert first < second < gone == store.resource_version
    await store.close()
    store = await open_store(tmp_path)
    assert store.resource_version == gone
    assert [record.key.name for record in store.index] == ["a"]
    assert await put(store, "c") > gone
    await store.close()


async def test_writers_decide_on_the_head_and_readers_see_what_is_on_disk(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    pending = store.put(key("a"), obj("a"), replacing=None)
    assert store.get(key("a")) is None
    head = store.head(key("a"))
    assert head is not None
    with pytest.raises(RuntimeError):
        store.put(key("a"), obj("a"), replacing=None)
    second = store.put(key("a"), obj("a", n=2), replacing=head)
    await pending
    await second
    found = store.get(key("a"))
    assert found is not None
    assert found.decode()["n"] == 2
    await store.close()


async def test_concurrent_writers_share_commits(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    batches: list[int] = []
    store.subscribe(lambda changes: batches.append(len(changes)))
    await asyncio.gather(*(put(store, f"n{number}") for number in range(200)))
    assert sum(batches) == 200
    assert len(batches) < 20
    await store.close()


async def test_listeners_hear_before_writers_and_in_order(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    heard: list[Change] = []
    store.subscribe(heard.extend)
    rv = await put(store, "a")
    assert [change.rv for change in heard] == [rv]
    await asyncio.gather(*(put(store, f"n{number}") for number in range(50)))
    await drop(store, "a")
    assert [change.rv for change in heard] == sorted(change.rv for change in heard)
    assert heard[-1].type == "DELETED"
    assert heard[-1].previous is not None
    assert orjson.loads(heard[-1].record.body)["metadata"]["resourceVersion"] == str(heard[-1].rv)
    await store.close()


@pytest.mark.slow
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=40))
def test_every_retained_version_can_be_read(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, bool]]) -> None:
    async def check() -> None:
        tmp_path = tmp_path_factory.mktemp("store")
        store = await open_store(tmp_path)
        state: dict[str, int] = {}
        states = {store.resource_version: dict(state)}
        for number, (name, delete) in enumerate(steps):
            if delete and name in state:
                await drop(store, name)
                del state[name]
            elif not delete:
                await put(store, name, n=number)
                state[name] = number
            states[store.resource_version] = dict(state)
        for again in range(2):
            for version, expected in states.items():
                records = await store.records_at(version, THINGS)
                assert {record.key.name: record.decode()["n"] for record in records} == expected
                assert [record.key for record in records] == sorted(record.key for record in records)
            if not again:
                await store.close()
                store = await open_store(tmp_path)
        await store.close()

    asyncio.run(check())


async def test_compaction_keeps_what_the_floor_promises(tmp_path: Path) -> None:
    store = await open_store(tmp_path, rows=100)
    await put(store, "still")
    versions = [await put(store, f"n{number % 7}", n=number) for number in range(300)]
    assert store.floor > versions[0]
    with pytest.raises(Expired):
        store.history(store.floor - 1, THINGS)
    assert len(store.history(store.floor, THINGS)) == 100
    records = await store.records_at(store.floor, THINGS)
    assert len(records) == 8
    with sqlite3.connect(tmp_path / "x.db") as db:
        assert db.execute("SELECT count(*) FROM log").fetchone() == (100,)
        # What is left: the present objects, and what the retained log rows replaced or were.
        assert db.execute("SELECT count(*) FROM revisions").fetchone()[0] <= 100 + 8 + 8
    floor = store.floor
    await store.close()
    store = await open_store(tmp_path, rows=100)
    assert store.floor == floor
    assert {record.key.name for record in await store.records_at(floor, THINGS)} == {record.key.name for record in records}
    await store.close()


@pytest.mark.slow
async def test_shrinking_the_log_is_done_in_small_steps(tmp_path: Path) -> None:
    store = await open_store(tmp_path, rows=5000)
    await asyncio.gather(*(put(store, f"n{number}") for number in range(2000)))
    await store.close()
    store = await open_store(tmp_path, rows=100)
    before = store.floor
    await put(store, "x")
    assert 0 < store.floor - before <= 400
    for number in range(20):
        await put(store, f"y{number}")
    assert len(store.history(store.floor, THINGS)) == 100
    await store.close()


async def test_a_full_disk_refuses_and_recovers(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    await put(store, "a", n=1)
    pages = store._disk.db.execute("PRAGMA page_count").fetchone()[0]
    store._disk.db.execute(f"PRAGMA max_page_count = {pages + 4}")
    results = await asyncio.gather(*(put(store, f"big{number}", data="x" * 50_000) for number in range(5)), return_exceptions=True)
    assert all(isinstance(result, InsufficientStorage) for result in results)
    assert store.head(key("big0")) is None
    assert store.get(key("a")) is not None
    store._disk.db.execute("PRAGMA max_page_count = 1000000")
    rv = await put(store, "a", n=2)
    await store.close()
    store = await open_store(tmp_path)
    assert store.resource_version == rv
    assert [record.key.name for record in store.index] == ["a"]
    await store.close()


async def test_writes_decided_on_a_failed_write_fail_too(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    pages = store._disk.db.execute("PRAGMA page_count").fetchone()[0]
    store._disk.db.execute(f"PRAGMA max_page_count = {pages + 1}")
    first = store.put(key("a"), obj("a", data="x" * 50_000), replacing=None)
    second = store.put(key("a"), obj("a"), replacing=store.head(key("a")))
    for pending in (first, second):
        with pytest.raises(InsufficientStorage):
            await pending
    assert store.head(key("a")) is None
    await store.close()


async def test_close_commits_what_is_queued_and_refuses_the_rest(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    pending = store.put(key("a"), obj("a"), replacing=None)
    await store.close()
    assert (await pending).key == key("a")
    with pytest.raises(ServiceUnavailable):
        store.put(key("b"), obj("b"), replacing=None)


async def test_a_newer_layout_is_refused(tmp_path: Path) -> None:
    await (await open_store(tmp_path)).close()
    with sqlite3.connect(tmp_path / "x.db") as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(ConfigurationError, match="newer SwarmTask"):
        await open_store(tmp_path)


async def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "x.db") as db:
        db.execute("CREATE TABLE theirs (x)")
    with pytest.raises(ConfigurationError, match="another program"):
        await open_store(tmp_path)


@pytest.mark.parametrize("offset", [0, 4096, 8192])
async def test_a_damaged_file_is_refused(tmp_path: Path, offset: int) -> None:
    store = await open_store(tmp_path)
    await asyncio.gather(*(put(store, f"n{number}", data="x" * 3000) for number in range(50)))
    await store.close()
    path = tmp_path / "x.db"
    content = bytearray(path.read_bytes())
    content[offset : offset + 4096] = b"\xa5" * 4096
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="damaged"):
        await open_store(tmp_path)


async def test_the_file_is_private(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    await put(store, "a")
    for path in list(tmp_path.iterdir()):  # noqa: ASYNC240 - three files
        assert path.stat().st_mode & 0o077 == 0, path
    await store.close()


async def test_refusals_do_not_wait_for_later_writes(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    stop = asyncio.Event()

    async def keep_writing(name: str) -> None:
        while not stop.is_set():
            await put(store, name)

    writers = [asyncio.create_task(keep_writing(f"w{number}")) for number in range(4)]
    async with asyncio.timeout(20):
        for _ in range(20):
            await store.settled()
            await asyncio.sleep(0)
    stop.set()
    await asyncio.gather(*writers)
    await store.close()


async def test_waiting_for_a_write_hears_of_its_failure(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    pages = store._disk.db.execute("PRAGMA page_count").fetchone()[0]
    store._disk.db.execute(f"PRAGMA max_page_count = {pages + 1}")
    pending = store.put(key("a"), obj("a", data="x" * 50_000), replacing=None)
    with pytest.raises(InsufficientStorage):
        await store.durable(key("a"))
    with pytest.raises(InsufficientStorage):
        await pending
    await store.durable(key("a"))
    await store.close()


async def test_a_body_takes_no_more_memory_than_it_has_bytes(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    names = [f"n-{number}" for number in range(100)]
    tracemalloc.start()
    try:
        writes = [store.put(key(name), obj(name, data={"k" * 9: "v" * 1_500}), replacing=None) for name in names]
        bodies = [record.body for record in await asyncio.gather(*writes)]
        taken = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/apiserver/records.py")])
    finally:
        tracemalloc.stop()
        await store.close()
    needed = sum(map(sys.getsizeof, bodies))
    assert needed <= max(line.size for line in taken.statistics("lineno")) < 1.2 * needed


async def test_an_object_that_does_not_fit_is_not_written_and_takes_no_version(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    before = await put(store, "a")
    asked: list[int] = []

    def refuse(size: int) -> None:
        asked.append(size)
        raise InsufficientStorage("too large")

    with pytest.raises(InsufficientStorage):
        store.put(key("b"), obj("b"), replacing=None, fits=refuse)
    assert store.head(key("b")) is None
    record = await store.put(key("b"), obj("b"), replacing=None, fits=asked.append)
    assert record.rv == before + 1
    assert asked == [len(record.body)] * 2
    await store.close()
