"""Answers leave in one piece: head and body are one TLS record, whatever uvicorn writes first; streams are not held back."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from swarmtask.apiserver.corked import EXTENSION, JOINED_BYTES, Corked, corked
from tests.apiserver.server import RunningServer, running_api_server, tls

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
APPLICATION_DATA = 23
"""The type of a TLS record that holds what an application says."""
TIMEOUT_S = 20


class Noted(asyncio.Transport):
    """Notes what reaches it."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Any] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.heard.append(bytes(data))

    def write_eof(self) -> None:
        self.heard.append("eof")

    def close(self) -> None:
        self.heard.append("close")

    def abort(self) -> None:
        self.heard.append("abort")


def test_what_is_written_under_a_cork_leaves_as_one() -> None:
    transport = Noted()
    connection = Corked(transport)
    connection.write(b"1")
    with connection:
        connection.write(b"2")
        connection.writelines([b"3", bytearray(b"4")])
        assert transport.heard == [b"1"]
    connection.write(b"5")
    with connection:
        pass
    assert transport.heard == [b"1", b"234", b"5"]


def test_what_is_large_is_not_copied() -> None:
    transport = Noted()
    with (connection := Corked(transport)):
        connection.write(b"head")
        connection.write(b"x" * JOINED_BYTES)
    assert [len(piece) for piece in transport.heard] == [4, JOINED_BYTES]


def test_nothing_is_lost_when_it_closes_under_a_cork() -> None:
    transport = Noted()
    with (connection := Corked(transport)):
        connection.write(b"1")
        connection.write(b"2")
        connection.close()
        connection.write(b"3")
        connection.write_eof()
    assert transport.heard == [b"12", "close", b"3", "eof"]


def test_an_abort_drops_what_was_held_back() -> None:
    transport = Noted()
    with (connection := Corked(transport)):
        connection.write(b"1")
        connection.abort()
    assert transport.heard == ["abort"]


def test_a_failure_under_a_cork_holds_nothing_back() -> None:
    transport = Noted()
    with pytest.raises(KeyError), (connection := Corked(transport)):
        connection.write(b"1")
        raise KeyError
    connection.write(b"2")
    assert transport.heard == [b"1", b"2"]


def test_a_server_that_offers_no_cork_needs_none() -> None:
    transport = Noted()
    connection = Corked(transport)
    with corked({}):
        connection.write(b"1")
    with corked({"extensions": {"http.response.debug": {}}}):
        connection.write(b"2")
    with corked({"extensions": {EXTENSION: {"transport": connection}}}):
        connection.write(b"3")
        connection.write(b"4")
    assert transport.heard == [b"1", b"2", b"34"]


class Conversation:
    """A TLS connection whose records are counted. Blocks: for a thread."""

    def __init__(self, server: RunningServer) -> None:
        self._token = server.token
        url = urlsplit(server.url)
        self._socket = socket.create_connection((url.hostname or "", url.port or 0), timeout=TIMEOUT_S)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = tls(server).wrap_bio(self._incoming, self._outgoing, server_hostname=url.hostname)
        self._raw = b""
        self.records = 0
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
                self._receive()
        self._flush()

    def close(self) -> None:
        self._socket.close()

    def ask(self, method: str, path: str, until: bytes, body: bytes = b"", headers: str = "") -> tuple[bytes, int]:
        """What comes until it ends with `until`, and in how many records."""
        before = self.records
        headers += f"authorization: Bearer {self._token}\r\ncontent-length: {len(body)}\r\n"
        self._tls.write(f"{method} {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n".encode() + body)
        self._flush()
        answer = b""
        while not answer.endswith(until):
            try:
                answer += self._tls.read(2**20)
            except ssl.SSLWantReadError:
                self._receive()
        return answer, self.records - before

    def _flush(self) -> None:
        self._socket.sendall(self._outgoing.read())

    def _receive(self) -> None:
        data = self._socket.recv(2**16)
        assert data, "the server closed the connection"
        self._incoming.write(data)
        self._raw += data
        while len(self._raw) >= 5 and len(self._raw) >= (size := 5 + int.from_bytes(self._raw[3:5])):
            self.records += self._raw[0] == APPLICATION_DATA
            self._raw = self._raw[size:]


async def test_an_answer_is_one_record(tmp_path: Path) -> None:
    def converse(server: RunningServer) -> None:
        conversation = Conversation(server)
        try:
            conversation.ask("GET", "/readyz", b"ok")  # the tickets of TLS 1.3 come with the first
            for number in range(3):
                body = b'{"metadata":{"name":"c-%d"}}' % number
                answer, records = conversation.ask("POST", CONFIG_MAPS, b"}\n", body)
                assert answer.startswith(b"HTTP/1.1 201 ")
                assert records == 1
            answer, records = conversation.ask("GET", f"{CONFIG_MAPS}/none", b"}\n")
            assert answer.startswith(b"HTTP/1.1 404 ")
            assert records == 1
            answer, records = conversation.ask("HEAD", "/readyz", b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert b"content-length: 2\r\n" in answer
            assert records == 1
            answer, _ = conversation.ask("GET", "/readyz", b"ok", headers="connection: close\r\n")
            assert b"connection: close\r\n" in answer
        finally:
            conversation.close()

    async with running_api_server(tmp_path) as server, asyncio.timeout(TIMEOUT_S):
        await asyncio.to_thread(converse, server)


async def test_the_head_of_a_stream_does_not_wait_for_the_first_event(tmp_path: Path) -> None:
    def converse(server: RunningServer) -> None:
        conversation = Conversation(server)
        try:
            answer, _ = conversation.ask("GET", f"{CONFIG_MAPS}?watch=1&fieldSelector=metadata.name=none", b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200 ")
        finally:
            conversation.close()

    async with running_api_server(tmp_path) as server, asyncio.timeout(TIMEOUT_S):
        await asyncio.to_thread(converse, server)
