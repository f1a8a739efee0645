"""The power fails between any two writes to the disk: everything acknowledged by then is there, and the store goes on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from swarmtask.apiserver.records import Key
from swarmtask.apiserver.store import Store
from swarmtask.errors import ConfigurationError
from tests.apiserver.powerloss import LOSSES, Recorder, recording

THINGS = ("", "things")
WRITERS, STEPS, KEYS = 4, 130, 5
BODY_BYTES = 40_000
"""So that the journal is written back into the database (after 1,000 pages of 4 kB) several times."""
LOG_ROWS = 100


@dataclass(frozen=True)
class Step:
    """One write to one key: the number that it stores, or None where it deletes. `version` is known when it is acknowledged."""

    key: Key
    count: int
    number: int | None
    version: int | None = None


async def write(store: Store, recorder: Recorder, writer: int, chance: random.Random) -> None:
    counts: dict[Key, int] = {}
    for number in range(1, STEPS + 1):
        key = Key(THINGS, "ns", f"w{writer}-{chance.randrange(KEYS)}")
        counts[key] = counts.get(key, 0) + 1
        record = store.head(key)
        delete = record is not None and chance.random() < 0.3
        step = Step(key, counts[key], None if delete else number)
        recorder.mark(step)
        if record is not None and delete:
            done = await store.remove(key, record.decode(), replacing=record)
        else:
            padding = chance.randbytes(chance.randrange(BODY_BYTES // 2)).hex()
            body = {
                "apiVersion": "v1",
                "metadata": {"name": key.name, "namespace": "ns", "uid": key.name},
                "n": number,
                "x": padding,
            }
            done = await store.put(key, body, replacing=record)
        recorder.mark(Step(key, step.count, step.number, done.rv))


async def recorded(path: Path, pragma: str = "") -> Recorder:
    """A store at work, from its making to its end."""
    with recording() as recorder:
        store = await Store.open(path, event_log_rows=LOG_ROWS)
        if pragma:
            store._disk.db.execute(pragma)
        await asyncio.gather(*(write(store, recorder, writer, random.Random(writer)) for writer in range(WRITERS)))
        await store.close()
    return recorder


def promised(recorder: Recorder, moment: int) -> tuple[dict[Key, int], dict[Key, dict[int, int | None]], set[int]]:
    """(how many writes of a key were acknowledged, what each that was begun stores, all acknowledged versions)."""
    acknowledged: dict[Key, int] = {}
    begun: dict[Key, dict[int, int | None]] = {}
    versions: set[int] = set()
    for operation in recorder.operations[:moment]:
        step = operation.mark
        if isinstance(step, Step):
            begun.setdefault(step.key, {0: None})[step.count] = step.number
            if step.version is not None:
                acknowledged[step.key] = step.count
                versions.add(step.version)
    return acknowledged, begun, versions


async def lost(recorder: Recorder, moment: int, folder: Path) -> list[str]:
    """Open what is left, and say in what it breaks the promise."""
    acknowledged, begun, versions = promised(recorder, moment)
    try:
        store = await Store.open(folder / "x.db", event_log_rows=LOG_ROWS)
    except ConfigurationError as error:
        return [f"it does not open: {error}"]
    found: list[str] = []
    try:
        for key, steps in begun.items():
            record = store.get(key)
            stored: Any = record.decode()["n"] if record is not None else None
            last = acknowledged.get(key, 0)
            if stored not in [number for count, number in steps.items() if count >= last]:
                found.append(f"{key.name} is {stored}, and {steps[last]} was acknowledged")
        newest = max(versions, default=0)
        if store.resource_version < newest:
            found.append(f"version {store.resource_version}, and {newest} was acknowledged")
        else:
            history = [entry.rv for entry in store.history(store.floor, THINGS)]
            if history != sorted(set(history)) or not {version for version in versions if version > store.floor} <= set(history):
                found.append("the history has a gap")
            await store.records_at(store.floor, THINGS)
        if store.quarantined:
            found.append(f"damaged: {store.quarantined}")
        record = await store.put(Key(THINGS, "ns", "next"), {"metadata": {"name": "next", "uid": "next"}}, replacing=None)
        if record.rv <= newest:
            found.append("a version was given twice")
    finally:
        await store.close()
    return found


async def losses(recorder: Recorder, moments: Sequence[int], tmp_path: Path) -> list[str]:
    found: list[str] = []
    for place, moment in enumerate(moments):
        loss = LOSSES[place % len(LOSSES)]
        folder = tmp_path / f"at-{moment}-{place}"
        recorder.rebuild(moment, folder, loss, random.Random(moment))
        found += [f"after {moment} operations, losing {loss}: {what}" for what in await lost(recorder, moment, folder)]
        for left in folder.iterdir():
            left.unlink()
    return found


def some_moments(recorder: Recorder, count: int) -> list[int]:
    """Half of them around syncs, half anywhere; the end among them."""
    chance, every = random.Random(1), len(recorder.operations)
    boundaries = recorder.boundaries()
    around = chance.sample(boundaries, min(count // 2, len(boundaries)))
    return [*around, *(chance.randrange(every) for _ in range(count - len(around) - 1)), every]


@pytest.mark.parametrize("count", [45, pytest.param(900, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
async def test_nothing_acknowledged_is_lost(tmp_path: Path, count: int) -> None:
    recorder = await recorded(tmp_path / "x.db")
    kinds = {operation.kind for operation in recorder.operations}
    assert kinds >= {"write", "sync", "mark"}
    written_back = [operation for operation in recorder.operations if operation.kind == "sync" and operation.file == "x.db"]
    assert len(written_back) > 3, "the journal was never written back while it was in use"
    assert await losses(recorder, some_moments(recorder, count), tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("pragma", ["PRAGMA synchronous = OFF", "PRAGMA synchronous = NORMAL"])
async def test_a_store_that_does_not_sync_is_found_out(tmp_path: Path, pragma: str) -> None:
    recorder = await recorded(tmp_path / "x.db", pragma)
    assert await losses(recorder, some_moments(recorder, 24), tmp_path), "the layer would not see a lost write"
