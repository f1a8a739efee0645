"""Connections of those who have a token: nobody keeps so many that there is no room for others."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from swarmtask.apiserver import guests
from swarmtask.apiserver.guests import ALL_CLIENTS, KEEPERS, MOST_FILES, shares
from tests.apiserver.access.people import bind, client, new_token
from tests.apiserver.server import RunningServer, http_client, running_api_server
from tests.apiserver.streams import watching
from tests.apiserver.test_door import CONFIG_MAPS, TIMEOUT_S, over, stranger
from tests.apiserver.waiting import until

UPGRADE = {
    "connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}  # fmt: skip


class Wire:
    """One connection, used by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str) -> None:
        self.reader, self._writer, self.token = reader, writer, token

    async def ask(self, path: str = CONFIG_MAPS, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body); nothing is retried. Status 0: the connection has been closed."""
        lines = [f"GET {path} HTTP/1.1", "host: x", f"authorization: Bearer {self.token}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        async with asyncio.timeout(TIMEOUT_S):
            try:
                self._writer.write("\r\n".join([*lines, "", ""]).encode())
                head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            except (OSError, asyncio.IncompleteReadError):
                return 0, {}, b""
            first, *rest = head.strip().split("\r\n")
            answered = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
            body = await self.reader.readexactly(int(answered.get("content-length", "0")))
        return int(first.split()[1]), answered, body

    async def ask_only(self, path: str = CONFIG_MAPS) -> tuple[str, int]:
        """Ask, and leave the answer's body unread: (head, length of the body)."""
        async with asyncio.timeout(TIMEOUT_S):
            self._writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {self.token}\r\n\r\n".encode())
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        return head, int(head.lower().split("content-length: ")[1].split()[0])

    async def is_closed(self) -> bool:
        return await over(self.reader) == b""


@contextlib.asynccontextmanager
async def wire(server: RunningServer, token: str) -> AsyncIterator[Wire]:
    async with stranger(server, shakes=True) as (reader, writer):
        yield Wire(reader, writer, token)


async def someone(api: httpx.AsyncClient, name: str) -> str:
    await bind(api, name, "view", "default")
    return await new_token(api, name)


async def test_who_keeps_too_many_loses_those_that_are_idle_for_longest(tmp_path: Path) -> None:
    async with (
        running_api_server(tmp_path, client_connections=3) as server,
        http_client(server) as api,
        contextlib.AsyncExitStack() as open_,
    ):
        anna, bert = await someone(api, "anna"), await someone(api, "bert")
        of_bert = await open_.enter_async_context(wire(server, bert))
        assert (await of_bert.ask())[0] == 200
        first, second, third, fourth, fifth = [await open_.enter_async_context(wire(server, anna)) for _ in range(5)]
        for one in (first, second, third, first):
            assert (await one.ask())[0] == 200
        assert (await fourth.ask())[0] == 200
        assert await second.is_closed(), "the first has been used since"
        assert (await fifth.ask())[0] == 200
        assert await third.is_closed()
        for one in (first, fourth, fifth, of_bert):
            assert (await one.ask())[0] == 200


async def test_when_all_are_in_use_one_more_is_refused(tmp_path: Path) -> None:
    async with (
        running_api_server(tmp_path, client_connections=2) as server,
        http_client(server) as api,
        contextlib.AsyncExitStack() as open_,
    ):
        anna = await someone(api, "anna")
        async with client(server, anna) as of_anna:
            async with watching(of_anna, CONFIG_MAPS) as stream, watching(of_anna, CONFIG_MAPS):
                one_more = await open_.enter_async_context(wire(server, anna))
                status, headers, body = await one_more.ask()
                assert (status, headers["retry-after"], headers["connection"]) == (429, "5", "close")
                assert b"anna may not have more than 2 connections open" in body
                assert await one_more.is_closed()
                for _ in range(3):
                    administrator = await open_.enter_async_context(wire(server, server.token))
                    assert (await administrator.ask())[0] == 200, "who keeps the cluster going is not held up"
                made = await api.post(CONFIG_MAPS, json={"metadata": {"name": "a"}})
                assert made.status_code == 201
                assert (await stream.next())["type"] == "ADDED", "what is in use stays"

            async def free_again() -> bool:
                return (await of_anna.get(CONFIG_MAPS)).status_code == 200

            await until(free_again, what="a connection that has ended counts no more")


@pytest.mark.slow
async def test_an_answer_that_is_still_being_read_is_not_cut_off(tmp_path: Path) -> None:
    async with (
        running_api_server(tmp_path, client_connections=1) as server,
        http_client(server) as api,
        contextlib.AsyncExitStack() as open_,
    ):
        anna = await someone(api, "anna")
        for number in range(24):  # more than the sockets between them take
            made = await api.post(CONFIG_MAPS, json={"metadata": {"name": f"n{number}"}, "data": {"x": "x" * 900_000}})
            assert made.status_code == 201
        slow, another = [await open_.enter_async_context(wire(server, anna)) for _ in range(2)]
        head, length = await slow.ask_only()
        assert head.startswith("HTTP/1.1 200")
        assert (await another.ask("/version"))[0] == 200
        async with asyncio.timeout(TIMEOUT_S):
            assert len(await slow.reader.readexactly(length)) == length
        assert await slow.is_closed()


@pytest.mark.slow
async def test_who_takes_no_answer_does_not_stay_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "LEAVING", 1)
    async with (
        running_api_server(tmp_path, client_connections=1) as server,
        http_client(server) as api,
        contextlib.AsyncExitStack() as open_,
    ):
        anna = await someone(api, "anna")
        for number in range(24):
            await api.post(CONFIG_MAPS, json={"metadata": {"name": f"n{number}"}, "data": {"x": "x" * 900_000}})
        wires = [await open_.enter_async_context(wire(server, anna)) for _ in range(4)]
        lengths = [(await one.ask_only())[1] for one in wires]
        for one, length in zip(wires[:2], lengths, strict=False):
            assert len(await over(one.reader)) < length, "cut off"
        async with asyncio.timeout(TIMEOUT_S):
            for one, length in zip(wires[2:], lengths[2:], strict=True):
                assert len(await one.reader.readexactly(length)) == length


async def test_all_together_have_a_bound_and_who_has_most_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "ALL_CLIENTS", 4)
    async with (
        running_api_server(tmp_path) as server,
        http_client(server) as api,
        contextlib.AsyncExitStack() as open_,
    ):
        anna, bert = await someone(api, "anna"), await someone(api, "bert")
        of_bert = await open_.enter_async_context(wire(server, bert))
        assert (await of_bert.ask())[0] == 200
        of_anna = [await open_.enter_async_context(wire(server, anna)) for _ in range(3)]
        for one in of_anna:
            assert (await one.ask())[0] == 200
        another = await open_.enter_async_context(wire(server, bert))
        assert (await another.ask())[0] == 200
        assert await of_anna[0].is_closed()
        assert (await of_bert.ask())[0] == 200
        assert (await api.get(CONFIG_MAPS)).status_code == 200
        for last in (of_anna[1], of_anna[2], of_bert, another):
            assert (await last.ask(f"{CONFIG_MAPS}?watch=1"))[0] == 200
        late = await open_.enter_async_context(wire(server, bert))
        status, headers, body = await late.ask()
        assert (status, headers["retry-after"]) == (429, "5")
        assert b"4 connections are open" in body


async def test_a_connection_counts_until_it_ends_and_for_whom_uses_it(tmp_path: Path) -> None:
    async with running_api_server(tmp_path, client_connections=1) as server, http_client(server) as api:
        anna, bert = await someone(api, "anna"), await someone(api, "bert")
        for _ in range(3):
            async with wire(server, anna) as one:
                assert (await one.ask("/api/v1/namespaces/default/pods/x/exec", **UPGRADE))[0] in (400, 403)
        async with wire(server, anna) as shared, wire(server, bert) as of_bert:
            assert (await shared.ask())[0] == 200
            assert (await of_bert.ask())[0] == 200
            shared.token = bert
            assert (await shared.ask())[0] == 200, "it is his now, and his other one makes room"
            assert await of_bert.is_closed()
            async with wire(server, anna) as of_anna:
                assert (await of_anna.ask())[0] == 200


@pytest.mark.parametrize("files", [64, 1024, 4096, MOST_FILES])
def test_there_are_files_left_for_the_server_itself(files: int) -> None:
    clients, keepers, strangers = shares(files)
    assert min(clients, keepers, strangers) > 0
    assert clients + keepers + strangers <= files * 7 // 8
    assert (clients <= ALL_CLIENTS, keepers <= KEEPERS) == (True, True)


def test_as_many_as_are_promised_where_the_system_allows() -> None:
    assert shares(MOST_FILES) == (ALL_CLIENTS, KEEPERS, KEEPERS)
