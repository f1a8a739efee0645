"""The count behind maxQueued, held against a plain recount: any writes, in any order, failed commits among them."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarmtask.apiserver.records import Key
from swarmtask.apiserver.store import Store
from swarmtask.apiserver.waiting import TASKS, waits_in
from swarmtask.errors import InsufficientStorage

ARRAY_MEMBER = {
    "labels": {"swarmtask.io/array": "a"},
    "ownerReferences": [{"apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmTask", "name": "a", "uid": "u", "controller": True}],
}
PHASES = [None, "Pending", "Queued", "Starting", "Running", "Unknown", "Backoff", "Succeeded", "Failed", "Cancelled", "Expired"]
WAITING = {None, "Pending", "Queued", "Backoff"}
write = st.tuples(
    st.sampled_from(["put", "remove", "pause"]),
    st.sampled_from([Key(TASKS, namespace, name) for namespace in ("n", "m") for name in ("a", "b")]),
    st.sampled_from(PHASES),
    st.sampled_from(["q", "r"]),
    st.sampled_from([{}, {"deletionTimestamp": "2026-01-01T00:00:00Z"}, ARRAY_MEMBER]),
)


def stored(key: Key, phase: str | None, queue: str, more: dict[str, Any]) -> dict[str, Any]:
    status = {"status": {"phase": phase}} if phase else {}
    return {"apiVersion": "swarmtask.io/v1alpha1", "metadata": {"name": key.name, **more}, "spec": {"queue": queue}, **status}


def recount(store: Store) -> Counter[tuple[str, str]]:
    """By the plain rule, from the bodies."""
    counts: Counter[tuple[str, str]] = Counter()
    for record in store.heads(TASKS):
        body = record.decode()
        members = "ownerReferences" in body["metadata"]
        if (body.get("status") or {}).get("phase") in WAITING and "deletionTimestamp" not in body["metadata"] and not members:
            counts[record.key.namespace, body["spec"]["queue"]] += 1
    return counts


def counted(store: Store) -> dict[tuple[str, str], int]:
    places = [(namespace, queue) for namespace in ("n", "m") for queue in ("q", "r")]
    return {place: count for place in places if (count := store.waiting.of(*place))}


@pytest.mark.slow
@given(writes=st.lists(write, max_size=25), full_after=st.integers(0, 25))
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_the_count_agrees_with_a_recount(writes: list[Any], full_after: int) -> None:
    async def play(folder: Path) -> None:
        store = await Store.open(folder / "x.db", event_log_rows=100)
        try:
            await play_writes(store, writes, full_after)
            assert counted(store) == recount(store)
        finally:
            await store.close()
        reopened = await Store.open(folder / "x.db", event_log_rows=100)
        try:
            assert counted(reopened) == recount(reopened)
        finally:
            await reopened.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(Path(folder)))


async def play_writes(store: Store, writes: list[Any], full_after: int) -> None:
    """Several writes are under way at a time; after `full_after` of them the disk is full, and what is under way fails."""
    pending: list[Any] = []
    for position, (action, key, phase, queue, more) in enumerate(writes):
        if position == full_after:
            await asyncio.gather(*pending, return_exceptions=True)
            pending = []
            limit_pages(store, 0)
        head = store.head(key)
        if action == "put":
            pending.append(store.put(key, stored(key, phase, queue, more) | {"data": "x" * 9000}, replacing=head))
        elif action == "remove" and head is not None:
            pending.append(store.remove(key, head.decode(), replacing=head))
        elif action == "pause":
            await asyncio.gather(*pending, return_exceptions=True)
            pending = []
        assert counted(store) == recount(store), (position, action)
    await asyncio.gather(*pending, return_exceptions=True)


def limit_pages(store: Store, more: int) -> None:
    pages = store._disk.db.execute("PRAGMA page_count").fetchone()[0]
    store._disk.db.execute(f"PRAGMA max_page_count = {pages + more}")


async def test_writes_that_fail_give_their_places_back(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "x.db", event_log_rows=100)
    key = Key(TASKS, "n", "a")
    await store.put(key, stored(key, "Queued", "q", {}), replacing=None)
    limit_pages(store, 1)
    big = {"data": "x" * 50_000}
    started = store.put(key, stored(key, "Running", "q", {}) | big, replacing=store.head(key))
    moved = store.put(key, stored(key, "Backoff", "r", {}), replacing=store.head(key))
    other = Key(TASKS, "n", "b")
    created = store.put(other, stored(other, None, "q", {}) | big, replacing=None)
    assert counted(store) == {("n", "q"): 1, ("n", "r"): 1}
    for pending in (started, moved, created):
        with pytest.raises(InsufficientStorage):
            await pending
    assert counted(store) == {("n", "q"): 1}
    await store.close()


@pytest.mark.parametrize(
    ("obj", "queue"),
    [
        ({"metadata": {}}, "default"),
        ({"metadata": {}, "spec": None, "status": None}, "default"),
        ({"metadata": {"labels": None, "ownerReferences": None}, "spec": {"queue": None}, "status": {}}, "default"),
        ({"metadata": {}, "spec": ["queue"], "status": {"phase": ["Running"]}}, "default"),
        ({"metadata": {}, "spec": {"queue": {"q": 1}}, "status": "Running"}, "default"),
        ({"metadata": {}, "spec": {"queue": "q"}, "status": {"phase": "Queued"}}, "q"),
        ({"metadata": {}, "spec": {"queue": "q"}, "status": {"phase": "Running"}}, ""),
        ({"metadata": ARRAY_MEMBER, "spec": {"queue": "q"}}, ""),
        ({"metadata": {**ARRAY_MEMBER, "labels": {}}, "spec": {"queue": "q"}}, "q"),
        ({"metadata": {"labels": ARRAY_MEMBER["labels"]}, "spec": {"queue": "q"}}, "q"),
    ],
)
def test_what_waits_where(obj: dict[str, Any], queue: str) -> None:
    assert waits_in(Key(TASKS, "n", "a"), obj) == queue
    assert waits_in(Key(("", "configmaps"), "n", "a"), obj) == ""
