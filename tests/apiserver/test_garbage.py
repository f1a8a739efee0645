"""Requests leave nothing that only the garbage collector could free: it may look seldom (`server.spare_collections`)."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tests.apiserver.in_process import Caller
from tests.resources.bad_tasks import bad_tasks, good_task

TASKS = "/apis/swarmtask.io/v1alpha1/namespaces/default/swarmtasks"
REQUESTS = 20
Asked = tuple[str, str, bytes, str]
JSON, MERGE = "application/json", "application/merge-patch+json"
OF_ONE: dict[str, Asked] = {
    "taken name": ("POST", TASKS, orjson.dumps(good_task("a")), JSON),
    "invalid": ("POST", TASKS, orjson.dumps(bad_tasks()[0].manifest), JSON),
    "no JSON": ("POST", TASKS, b"{" * 300, JSON),
    "no YAML": ("POST", TASKS, b"a: [", "application/yaml"),
    "not there": ("GET", f"{TASKS}/none", b"", JSON),
    "list": ("GET", TASKS, b"", JSON),
    "patch": ("PATCH", f"{TASKS}/a", b'{"metadata":{"labels":{"a":"b"}}}', MERGE),
    "bad patch": ("PATCH", f"{TASKS}/a", b'[{"op":"x"}]', "application/json-patch+json"),
    "apply": ("PATCH", f"{TASKS}/a", orjson.dumps(good_task("a")), "application/apply-patch+yaml"),
}


@pytest.fixture
def caller(tmp_path: Path) -> Iterator[Caller]:
    caller = Caller(tmp_path / "x.db")
    try:
        caller("POST", TASKS, orjson.dumps(good_task("a")))
        yield caller
    finally:
        caller.close()


@pytest.fixture
def _no_collections() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.slow
@pytest.mark.usefixtures("_no_collections")
def test_requests_leave_no_cycles(caller: Caller) -> None:
    for asked in (*OF_ONE.values(), ("POST", TASKS, orjson.dumps(good_task("warm")), JSON)):
        caller.send(*asked)
    for what, asked in OF_ONE.items():
        gc.collect()
        for _ in range(REQUESTS):
            caller.send(*asked)
        assert gc.collect() < REQUESTS, what
    gc.collect()
    for number in range(REQUESTS):
        caller.send("POST", TASKS, orjson.dumps(good_task(f"b-{number}")), JSON)
    assert gc.collect() < REQUESTS, "create"
