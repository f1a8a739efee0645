"""What several attempts have to send at a moment, in one request, each with its own answer."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from swarmtask.errors import Forbidden, InsufficientStorage, NotFound, ServiceUnavailable, SwarmTaskError
from swarmtask.nodeagent.log_sender import LogSender, Refused, Taken
from swarmtask.resources.log_records import MOST_BODY_BYTES, MOST_PARTS, Part, pack, unpack
from tests.apiserver.logs import body, until
from tests.nodeagent.log_fakes import TurnClock, owner

Answer = Taken | SwarmTaskError
TAKEN = Taken(1, 2, complete=False)


@dataclass
class Api:
    """Satisfies `LogApi`. `answers` says what becomes of each part; of everything else it is TAKEN.

    Attributes:
        hold: no request is answered while it is set.
    """

    answers: Callable[[Part], Answer] = lambda part: TAKEN
    failures: list[SwarmTaskError] = field(default_factory=list)
    requests: list[tuple[str, list[int]]] = field(default_factory=list)
    hold: asyncio.Event | None = None

    async def append_logs(self, node: str, parts: Sequence[Part]) -> list[Answer]:
        self.requests.append((node, [part.attempt for part in parts]))
        if self.hold is not None:
            await self.hold.wait()
        if self.failures:
            raise self.failures.pop(0)
        return [self.answers(part) for part in parts]


def sender(api: Api, permit: Callable[[], float | None] = lambda: 0.0, node: Callable[[], str] = lambda: "desk") -> LogSender:
    return LogSender(api, permit, node=node, clock=TurnClock(), rng=random.Random(1))


async def sent(used: LogSender, *numbers: int, content: bytes = b"") -> list[Answer | BaseException]:
    return await asyncio.gather(*(used.send(owner(number), 0, content) for number in numbers), return_exceptions=True)


async def test_those_that_come_within_a_moment_share_a_request_and_each_has_its_answer() -> None:
    other = {2: Refused("another position", TAKEN), 3: NotFound("gone"), 4: Taken(7, 8, complete=True)}
    api = Api(lambda part: other.get(part.attempt, TAKEN))
    assert await sent(sender(api), 1, 2, 3, 4) == [TAKEN, other[2], other[3], other[4]]
    assert api.requests == [("desk", [1, 2, 3, 4])]


@pytest.mark.parametrize(("count", "content", "requests"), [(MOST_PARTS + 1, b"", 2), (5, b"x" * (MOST_BODY_BYTES // 2), 3)])
async def test_a_request_carries_no_more_than_it_may(count: int, content: bytes, requests: int) -> None:
    api = Api()
    assert await sent(sender(api), *range(1, count + 1), content=content) == [TAKEN] * count
    assert len(api.requests) == requests
    assert [number for _, numbers in api.requests for number in numbers] == list(range(1, count + 1))


async def test_one_that_is_larger_than_that_goes_alone() -> None:
    api = Api()
    assert await sent(sender(api), 1, 2, content=b"x" * (MOST_BODY_BYTES + 1)) == [TAKEN, TAKEN]
    assert [numbers for _, numbers in api.requests] == [[1], [2]]


async def test_a_full_disk_is_waited_for_by_those_it_concerns() -> None:
    left = {2: 3}

    def answer(part: Part) -> Answer:
        left[part.attempt] = left.get(part.attempt, 0) - 1
        return InsufficientStorage("full") if left[part.attempt] >= 0 else TAKEN

    api = Api(answer)
    assert await sent(sender(api), 1, 2, 3) == [TAKEN] * 3
    assert [numbers for _, numbers in api.requests] == [[1, 2, 3], [2], [2], [2]]


async def test_an_api_that_is_away_is_waited_for_and_one_that_refuses_is_not() -> None:
    api = Api(failures=[ServiceUnavailable("away"), ServiceUnavailable("away"), Forbidden("who?")])
    first = await sent(sender(api), 1, 2)
    assert [type(one) for one in first] == [Forbidden, Forbidden]
    assert len(api.requests) == 3


async def test_whose_turn_it_was_may_go_and_the_others_are_sent_all_the_same() -> None:
    api = Api(hold=asyncio.Event())
    used = sender(api)
    sending = [asyncio.create_task(used.send(owner(number), 0, b"")) for number in (1, 2, 3)]
    await until(lambda: len(api.requests) == 1)
    late = asyncio.create_task(used.send(owner(4), 0, b""))
    sending[0].cancel()
    sending[1].cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await sending[0]
    assert api.hold is not None
    api.hold.set()
    assert await asyncio.gather(sending[2], late) == [TAKEN, TAKEN]
    assert [numbers for _, numbers in api.requests] == [[1, 2, 3], [3, 4]], "nobody waits for an answer to the others"


async def test_nothing_is_sent_while_the_fence_forbids_it_or_nobody_knows_which_node_this_is() -> None:
    permits, nodes = [None, None, 0.0, 0.0], ["", "desk"]
    api = Api()
    used = sender(
        api, lambda: permits.pop(0) if len(permits) > 1 else permits[0], lambda: nodes.pop(0) if len(nodes) > 1 else nodes[0]
    )
    assert await sent(used, 1) == [TAKEN]
    assert api.requests == [("desk", [1])]
    assert permits == [0.0]


def test_parts_come_out_as_they_went_in() -> None:
    parts = [Part("default", f"task.{number}", f"uid-{number}", number, number * 7, body(0, number)) for number in range(1, 20)]
    assert unpack(pack(parts)) == parts
    assert unpack(b"") == []


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_parts_that_are_cut_off_are_none(cut: int) -> None:
    whole = pack([Part("default", "a", "uid", 1, 0, body(0, 2))])
    with pytest.raises(ValueError, match="byte 0"):
        unpack(whole[:-cut])
    with pytest.raises(ValueError, match=f"byte {len(whole)}"):
        unpack(whole + whole[:-cut])
