"""Fixtures of the API server's tests: one server per test, in this process, or one application per module, without a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import orjson
import pytest
import structlog

from tests.apiserver.examples import GADGET, PATHS
from tests.apiserver.in_process import Caller
from tests.apiserver.server import RunningServer, copy_first_start, http_client, running_api_server


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RunningServer]:
    await copy_first_start(tmp_path)
    async with running_api_server(tmp_path) as running:
        yield running


@pytest.fixture
async def api(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with http_client(server) as client:
        yield client


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    """An application that also knows a custom kind which uses most of what definitions can say."""
    # The default log prints every variable of a traceback, which takes seconds.
    structlog.configure(processors=[structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)])
    caller = Caller(tmp_path_factory.mktemp("in-process") / "x.db")
    code, answer = caller("POST", PATHS["crds"], orjson.dumps(GADGET))
    assert code == 201, answer
    yield caller
    caller.close()
    structlog.reset_defaults()
