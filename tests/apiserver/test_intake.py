"""Bodies on their way into memory: how much of them there may be at once, and what is said where it is too much."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from swarmtask.apiserver import intake as room
from swarmtask.apiserver.access.room import Visit
from swarmtask.apiserver.access.rules import Attributes
from swarmtask.apiserver.access.tokens import Login
from swarmtask.apiserver.access.users import ADMINISTRATOR, OPERATOR, User
from swarmtask.apiserver.app import Application
from swarmtask.apiserver.auth import Authenticator, digest
from swarmtask.apiserver.intake import SHARES, SMALL_BYTES, Intake
from swarmtask.clock import SystemClock
from swarmtask.errors import RequestEntityTooLarge, TooManyRequests
from swarmtask.settings import ApiServerSettings

MIB = 2**20
LARGEST = 3 * MIB
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
TIMEOUT_S = 20


class Wire:
    """A body that comes in pieces, as the test lets it."""

    def __init__(self, pieces: Iterable[bytes] = ()) -> None:
        self.pieces = list(pieces)
        self.queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._given = False
        for at, piece in enumerate(self.pieces):
            self.send(piece, more=at + 1 < len(self.pieces))

    def send(self, piece: bytes, *, more: bool) -> None:
        self.queue.put_nowait({"type": "http.request", "body": piece, "more_body": more})

    async def receive(self) -> dict[str, Any]:
        if self._given:
            self.queue.task_done()  # who asks for more has dealt with what he got
        message = await self.queue.get()
        self._given = True
        return message

    async def dealt_with(self) -> None:
        """All that was sent so far, but for a last piece."""
        async with asyncio.timeout(TIMEOUT_S):
            await self.queue.join()


def visit_of(user: User) -> Visit:
    return Visit("POST", Attributes("create"), 0.0, login=Login(user))


async def begun(intake: Intake, user: User, size: int) -> tuple[Visit, Wire, asyncio.Task[bytes]]:
    """A body of which so much has come, and nothing more comes by itself."""
    visit, wire = visit_of(user), Wire()
    wire.send(b"x" * size, more=True)
    reading = asyncio.create_task(intake.read(wire.receive, visit, TIMEOUT_S))
    await wire.dealt_with()
    return visit, wire, reading


async def test_a_small_body_counts_nothing() -> None:
    intake, visit = Intake(LARGEST), visit_of(User("vera"))
    assert await intake.read(Wire([b"{", b"}"]).receive, visit, TIMEOUT_S) == b"{}"
    assert await intake.read(Wire([b"x" * SMALL_BYTES]).receive, visit, TIMEOUT_S) == b"x" * SMALL_BYTES
    assert (visit.held_bytes, intake.held_bytes) == (0, 0)


async def test_a_large_one_counts_until_its_request_is_over() -> None:
    intake, visit = Intake(LARGEST), visit_of(User("vera"))
    assert len(await intake.read(Wire([b"x" * MIB, b"y" * MIB]).receive, visit, TIMEOUT_S)) == 2 * MIB
    assert (visit.held_bytes, intake.held_bytes) == (2 * MIB, 2 * MIB)
    intake.release(visit)
    intake.release(visit)
    assert (visit.held_bytes, intake.held_bytes) == (0, 0)


async def test_one_user_holds_no_more_than_his_share_and_the_others_are_served() -> None:
    intake, vera = Intake(LARGEST), User("vera")
    held = [await begun(intake, vera, LARGEST - MIB) for _ in range(8)]
    assert intake.held_bytes == room.SHARE_BYTES
    _, wire, late = await begun(intake, vera, MIB)
    assert not late.done(), "what has been refused is still read, so that its sender reads the refusal"
    wire.send(b"x" * MIB, more=False)
    with pytest.raises(TooManyRequests) as refusal:
        await late
    assert refusal.value.retry_after_s == room.RETRY_AFTER_S
    assert intake.held_bytes == room.SHARE_BYTES
    small = Wire([b"x" * SMALL_BYTES])
    assert len(await intake.read(small.receive, visit_of(vera), TIMEOUT_S)) == SMALL_BYTES
    for other in (User("emil"), ADMINISTRATOR, OPERATOR):
        assert len(await intake.read(Wire([b"x" * MIB] * 3).receive, visit_of(other), TIMEOUT_S)) == LARGEST
    first, wire, reading = held[0]
    wire.send(b"", more=False)
    assert len(await reading) == LARGEST - MIB
    intake.release(first)
    assert len(await intake.read(Wire([b"x" * MIB]).receive, visit_of(vera), TIMEOUT_S)) == MIB
    for _, _, task in held:
        task.cancel()


async def test_all_users_together_hold_so_much_and_no_more() -> None:
    intake = Intake(LARGEST)
    tasks = []
    for number in range(SHARES + 1):
        for _ in range(5):
            _, wire, task = await begun(intake, User(f"u{number}"), LARGEST)
            tasks.append((wire, task))
    assert intake.held_bytes <= SHARES * room.SHARE_BYTES
    refused = 0
    for wire, task in tasks:
        wire.send(b"", more=False)
        try:
            await task
        except TooManyRequests:
            refused += 1
    assert refused == 5 * (SHARES + 1) - SHARES * room.SHARE_BYTES // LARGEST


@pytest.mark.slow
async def test_the_largest_body_that_the_settings_allow_has_room() -> None:
    intake = Intake(200 * MIB)
    assert len(await intake.read(Wire([b"x" * 100 * MIB] * 2).receive, visit_of(User("vera")), TIMEOUT_S)) == 200 * MIB


@pytest.mark.parametrize("most", [1024, LARGEST])
async def test_one_that_is_too_large_is_thrown_away_as_it_comes(most: int) -> None:
    intake, visit = Intake(most), visit_of(User("vera"))
    with pytest.raises(RequestEntityTooLarge):
        await intake.read(Wire([b"x" * most, b"x", b"x" * most]).receive, visit, TIMEOUT_S)
    assert intake.held_bytes == 0


async def test_whatever_becomes_of_a_request_its_body_counts_no_more(tmp_path: Path) -> None:
    vera = User("vera", ("system:authenticated",))
    tokens = Authenticator([digest("t")], {digest("v"): vera})
    app = await Application.open(tmp_path / "x.db", ApiServerSettings(), tokens, SystemClock())
    intake: Intake = app._intake

    async def answer(wire: Wire) -> int:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"authorization", b"Bearer v"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": REVIEWS, "query_string": b"", "headers": headers}
        await app(scope, wire.receive, send)
        return int(sent[0]["status"])

    review = b'{"spec":{"nonResourceAttributes":{"path":"/","verb":"get"}}}'
    try:
        assert await answer(Wire([review + b" " * MIB, b" "])) == 201
        assert await answer(Wire([b"x" * MIB, b" "])) == 400
        assert await answer(Wire([b"x" * MIB] * 4)) == 413
        gone = Wire()
        gone.send(b"x" * MIB, more=True)
        gone.queue.put_nowait({"type": "http.disconnect"})
        assert await answer(gone) == 400
        app.body_timeout_s = 0.05
        waiting = Wire()
        waiting.send(b"x" * MIB, more=True)
        assert await answer(waiting) == 504
        app.body_timeout_s = 3600
        silent = [Wire() for _ in range(40)]
        for wire in silent:
            wire.send(b"x" * (LARGEST - 1), more=True)
        asking = [asyncio.create_task(answer(wire)) for wire in silent]
        for wire in silent:
            await wire.dealt_with()
        assert 0 < intake.held_bytes <= room.SHARE_BYTES
        for wire in silent[20:]:
            wire.send(b"x", more=False)
        assert set(await asyncio.gather(*asking[20:])) == {429}
        for task in asking[:20]:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        assert intake.held_bytes == 0
    finally:
        await app.close()
