"""Connections of strangers: they may wait neither for long nor in any number, and never in the way of those who have a token."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from swarmtask.apiserver import door
from swarmtask.apiserver.guests import MOST_FILES, use_all_files
from tests.apiserver.server import RunningServer, http_client, running_api_server, tls
from tests.apiserver.streams import watching

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
TIMEOUT_S = 60


@contextlib.asynccontextmanager
async def stranger(server: RunningServer, *, shakes: bool) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection that says nothing, or nothing after the handshake."""
    host, port = server.url.removeprefix("https://").split(":")
    context = tls(server) if shakes else None
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await writer.wait_closed()


async def over(reader: asyncio.StreamReader) -> bytes:
    """What comes until the server ends the connection."""
    async with asyncio.timeout(TIMEOUT_S):
        with contextlib.suppress(OSError, ssl.SSLError):
            return await reader.read(-1)
    return b""


@pytest.mark.slow
@pytest.mark.parametrize("shakes", [True, False])
async def test_who_says_nothing_is_sent_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, shakes: bool) -> None:
    async with running_api_server(tmp_path) as server, http_client(server) as api, watching(api, CONFIG_MAPS) as stream:
        assert (await api.get(CONFIG_MAPS)).status_code == 200  # over a second connection, which the next request finds again
        monkeypatch.setattr(door, "PATIENCE_S", 0.2)
        async with stranger(server, shakes=shakes) as (reader, _):
            assert await over(reader) == b""
        made = await api.post(CONFIG_MAPS, json={"metadata": {"name": "a"}})
        assert made.status_code == 201
        assert (await stream.next())["type"] == "ADDED", "who is known stays for as long as he likes"


@pytest.mark.slow
async def test_a_wrong_token_buys_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "PATIENCE_S", 3.0)
    async with running_api_server(tmp_path) as server, stranger(server, shakes=True) as (reader, writer):
        for path in ("/healthz", CONFIG_MAPS):
            writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer none\r\n\r\n".encode())
        answers = await over(reader)
        assert answers.startswith(b"HTTP/1.1 200")
        assert b"HTTP/1.1 401" in answers


@pytest.mark.slow
@pytest.mark.parametrize("shakes", [True, False])
async def test_of_too_many_the_newest_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, shakes: bool) -> None:
    monkeypatch.setattr(door, "STRANGERS", 3)
    monkeypatch.setattr(door, "PATIENCE_S", 3600.0)
    async with running_api_server(tmp_path) as server, contextlib.AsyncExitStack() as open_:
        readers = [(await open_.enter_async_context(stranger(server, shakes=shakes)))[0] for _ in range(8)]
        for reader in readers[:5]:
            assert await over(reader) == b""
        async with http_client(server) as api:
            assert (await api.get(CONFIG_MAPS)).status_code == 200, "there is always room for one who shows a token"
        assert not any(reader.at_eof() for reader in readers[6:])


async def test_a_server_full_of_strangers_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "PATIENCE_S", 3600.0)
    async with contextlib.AsyncExitStack() as open_, asyncio.timeout(TIMEOUT_S), running_api_server(tmp_path) as server:
        for shakes in (True, False, True, False):
            await open_.enter_async_context(stranger(server, shakes=shakes))


@pytest.mark.parametrize("piece", [b"x" * 4096, b"x: y\r\n" * 512])
async def test_a_head_without_end_is_cut_off(tmp_path: Path, piece: bytes) -> None:
    async with running_api_server(tmp_path) as server, stranger(server, shakes=True) as (reader, writer):
        writer.write(b"GET /version HTTP/1.1\r\nhost: x\r\nz: ")
        sent = 0
        with contextlib.suppress(OSError, ssl.SSLError):
            async with asyncio.timeout(TIMEOUT_S):
                while not reader.at_eof() and not writer.transport.is_closing():
                    writer.write(piece)
                    await writer.drain()
                    sent += len(piece)
                    await asyncio.sleep(0)
        assert sent < 16 * 2**20, "it was taken without end"


async def test_strangers_write_nothing_into_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running_api_server(tmp_path) as server:
        for content in (
            b"rubbish\r\n\r\n",
            b"GET /version HTTP/1.1\r\nhost: x\r\nconnection: upgrade, close\r\nupgrade: h2c\r\n\r\n",
        ):
            async with stranger(server, shakes=True) as (reader, writer):
                writer.write(content)
                async with asyncio.timeout(TIMEOUT_S):
                    assert (await reader.readline()).startswith(b"HTTP/1.1 4")
    assert [record for record in caplog.records if record.name.startswith(("uvicorn", "asyncio"))] == []


async def test_a_long_head_is_taken(tmp_path: Path) -> None:
    """As of a person with many groups, several times over one connection."""
    async with running_api_server(tmp_path) as server, http_client(server) as api:
        for _ in range(3):
            answer = await api.get(CONFIG_MAPS, headers={f"x-{number}": "y" * 1000 for number in range(30)})
            assert answer.status_code == 200


def test_all_files_that_the_system_allows_are_used() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[0]), before[1]))
        use_all_files()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert (soft, hard) == (min(before[1], MOST_FILES) if before[1] != resource.RLIM_INFINITY else MOST_FILES, before[1])
        use_all_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == soft, "never less than before"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
