"""Sends the output of one container, from where it was sent before until its end.

Called by `log_shipper`, one task for each container. Reads Docker's stream, cuts it into records (`log_cutter`) and sends them in
batches; while a batch is on its way nothing is read, so that memory holds one batch at most. What was acknowledged comes to the
disk (`log_positions`); after any doubt the stream is opened again from there.

Waking this process costs more than what it then does. So lines that come one by one are left where they are until a stretch of time
ends, and all followers take theirs in the same moment.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from swarmtask.errors import EngineUnavailable, InternalError, SwarmTaskError
from swarmtask.nodeagent.containers import Details, Owner
from swarmtask.nodeagent.log_cutter import Cutter, Mark, PositionLost, Rate
from swarmtask.nodeagent.log_positions import Positions, Sent
from swarmtask.nodeagent.log_sender import LogSender, Refused, Taken
from swarmtask.nodeagent.log_source import NoOutput
from swarmtask.nodeagent.log_stream import parser
from swarmtask.resources.log_records import LogRecord, encode

logger = logging.getLogger(__name__)

UNMATCHED = "output before this line could not be matched with what was sent: lines may be missing or be here twice"
LITTLE_BYTES = 8 * 1024
"""Where less came in this stretch of time, and in the one before, what follows is left until it ends."""
RESTS = 2
"""So many; the second one waits for those who write once in a stretch of time, and not always in each."""
TAKE_S = 0.01
MOST_TAKE_S = 0.05
"""After a rest reads go on until one has waited the first of these, or all of them have taken the second."""
GONE = "the container was removed before all of its output was read: lines may be missing"


@dataclass(frozen=True, slots=True)
class Habits:
    """How output is sent; seconds and bytes.

    Attributes:
        batch_s: lines are sent at the end of each such stretch of time, the same for all attempts, so that they share a request.
        many: where more attempts than that send at a time, stretches are `many_batch_s` long.
        announce_s: an attempt that writes nothing is made known after so long.
        keep_s: what was acknowledged comes to the disk so often; an agent that is started anew sends what came since then again.
        over_s: Docker has so long to end the stream of a container that has ended.
        recheck_bytes: a stream that has stalled is read again, and compared with what was sent, if it gave no more than this.
        doubt_s: after so long a silence, and then ever more rarely up to `most_doubt_s`, a stream is compared with what Docker has.
        refused_s: before an API that does not want it is asked again; refusals: how often, once the container has ended.
    """

    rate: Rate = field(default_factory=Rate)
    batch_bytes: int = 64 * 1024
    batch_s: float = 1.0
    many: int = 2
    many_batch_s: float = 2.0
    announce_s: float = 1.0
    over_s: float = 3.0
    retry_s: float = 1.0
    keep_s: float = 10.0
    doubt_s: float = 5.0
    most_doubt_s: float = 60.0
    recheck_bytes: int = 24 * 2**20
    refused_s: float = 30.0
    refusals: int = 3


class Bucket:
    """So many bytes a second, and so many at once: what one node reads. Docker keeps what is not read yet.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float], *, bytes_per_s: float = 4 * 2**20, burst_bytes: float = 16 * 2**20) -> None:
        self._rate, self._burst, self._clock = bytes_per_s, burst_bytes, clock
        self._level, self._at = burst_bytes, clock()

    def take(self, size: int) -> float:
        """Take them, and wait for so many seconds."""
        now = self._clock()
        self._level = min(self._burst, self._level + (now - self._at) * self._rate) - size
        self._at = now
        return max(0.0, -self._level / self._rate)


class Doubt:
    """When to ask whether a stream that is silent has lost its file.

    Docker's does, for ever, when a log is rotated while the stream is a file or more behind (seen on 20.10.24; before, it repeats
    lines and leaves out others): what the container writes from then on would be sent after its end, and not at all if its node is
    lost before.

    Args:
        now: as in all that follows, seconds of one clock.
    """

    def __init__(self, first_s: float, most_s: float, now: float) -> None:
        self._first_s, self._most_s = first_s, most_s
        self.heard(now)

    def heard(self, now: float) -> None:
        """Something came."""
        self._pause_s = self._first_s
        self._at = now + self._pause_s

    def was_well(self, now: float) -> None:
        """Docker has nothing newer."""
        self._pause_s = min(self._most_s, 2 * self._pause_s)
        self._at = now + self._pause_s

    def left_s(self, now: float) -> float:
        """Until it should be asked; 0: now."""
        return max(0.0, self._at - now)


class Output(Protocol):
    """A container's output as it comes; `swarmtask.nodeagent.log_source.Chunks`."""

    async def read(self) -> bytes: ...
    def cut(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


class Source(Protocol):
    """Where it comes from; `swarmtask.nodeagent.log_source.LogSource`."""

    def open(self, container_id: str, *, since: int, follow: bool, newest: bool = False) -> AbstractAsyncContextManager[Output]: ...


@dataclass(frozen=True, slots=True)
class Means:
    """What a follower works with. `bucket` and `sender` are shared by all.

    Attributes:
        inspect: what Docker says of a container; None: it is gone. Raises EngineUnavailable.
    """

    source: Source
    sender: LogSender
    positions: Positions
    inspect: Callable[[str], Awaitable[Details | None]]
    bucket: Bucket
    sleep: Callable[[float], Awaitable[None]]
    habits: Habits


class Follower:
    """See the module. `run` is its task.

    Args:
        sent: what was sent before; None: nobody knows.
    """

    def __init__(self, owner: Owner, container_id: str, means: Means, sent: Sent | None = None) -> None:
        self.owner, self.container_id, self._means = owner, container_id, means
        same = sent is not None and sent.container_id == container_id
        self._mark = self._kept = sent.mark if sent is not None and same else Mark()
        self.done = sent is not None and same and sent.done
        self._known: Taken | None = None
        self._batch: list[bytes] = []
        self._size, self._first, self._next = 0, 0, 0
        self._flush_at, self._keep_at = 0.0, 0.0
        self._rests, self._taken = 0, -1
        """Rests to come; bytes that were taken since one has ended, -1 once nothing more was there."""
        self._take_until = 0.0
        self._stretch, self._came, self._came_before = 0.0, 0, 0
        self._hurries = False
        """The container has ended: no more rests."""
        self._resting: asyncio.Future[None] | None = None
        self._chunks: Output | None = None
        self._doubt: Doubt | None = None
        self._opened_at, self._carried = self._mark, 0
        self._refusals = 0
        self._lost = self._unmatched = self._ended_well = False

    async def run(self) -> None:
        """Until all is sent, or nobody wants it."""
        while not self.done:
            try:
                await self._pass()
            except EngineUnavailable as error:
                logger.debug("output of %s: %s", self.owner.attempt, error.message)
                await self._means.sleep(self._means.habits.retry_s)
            except PositionLost:
                self._lost = True
            except Refused as refused:
                self._catch_up(refused.taken)
                await self._means.sleep(self._means.habits.batch_s)
            except InternalError as error:
                logger.warning("output of %s cannot be stored: %s; it is tried again", self.owner.attempt, error)
                await self._means.sleep(self._means.habits.retry_s)
            except SwarmTaskError as error:
                await self._unwanted(error)

    def container_ended(self) -> None:
        """Docker should end the stream now; if it does not, it is opened anew."""
        chunks = self._chunks
        self._hurries = True
        if self._resting is not None:
            _wake(self._resting)
        if chunks is not None:
            asyncio.get_running_loop().call_later(self._means.habits.over_s, chunks.cut)

    # --- one pass over the container's log -------------------------------------------------------------------------------

    async def _pass(self) -> None:
        details = await self._means.inspect(self.container_id)
        if details is None:
            await self._finish_gone()
            return
        if self._lost:
            await self._go_on_by_time()
        cutter = self._begin(self._mark)
        pieces = parser(tty=details.tty)
        try:
            async with self._means.source.open(self.container_id, since=self._mark.since, follow=details.alive) as chunks:
                self._chunks = chunks if details.alive else None
                self._doubt = self._new_doubt() if details.alive else None
                self._opened_at, self._carried = self._mark, 0
                while (chunk := await self._read(chunks)) != b"":
                    for message in pieces.feed(chunk) if chunk else ():
                        self._put(cutter.take(message))
                    if chunk is None or self._due():
                        await self._flush(cutter)
                    if chunk is None:
                        await self._ask_docker(cutter, tty=details.tty)
        except NoOutput as error:
            if error.gone or details.alive:
                raise  # the next pass sees what has become of it
            self._put([cutter.note(error.message)])
            await self._end(cutter)
            return
        finally:
            self._chunks = None
        if details.alive:
            await self._flush(cutter)
            self._ended_well = not cutter.pending
            await self._means.sleep(self._means.habits.batch_s)  # a Docker that ends streams at once is not asked without a pause
            return
        for message in pieces.close():
            self._put(cutter.take(message))
        self._put(cutter.finish())
        if self._known is not None and self._next < self._known.position:
            raise PositionLost("a container's log is shorter than what was sent of it")
        await self._end(cutter)

    def _begin(self, mark: Mark) -> Cutter:
        cutter = Cutter(mark, self._means.habits.rate)
        self._batch, self._size = [], 0
        self._rests, self._taken = 0, -1
        self._first = self._next = mark.position
        if self._unmatched:
            self._put([cutter.note(UNMATCHED)])
        return cutter

    async def _read(self, chunks: Output) -> bytes | None:
        """None: what is there has waited long enough."""
        habits, clock = self._means.habits, asyncio.get_running_loop().time
        if self._hurries:
            self._rests, self._taken = 0, -1
        if self._rests and self._taken < 0:
            await self._rest(chunks)
            self._taken, self._take_until = 0, clock() + MOST_TAKE_S
        now = clock()
        patience = [] if self._doubt is None else [self._doubt.left_s(now)]
        if self._taken >= 0:
            patience.append(min(TAKE_S, self._take_until - now))
        elif self._batch:
            patience.append(max(0.0, self._flush_at - now))
        elif self._known is None:
            patience.append(habits.announce_s)
        try:
            async with asyncio.timeout(min(patience, default=None)):
                if self._taken >= 0 and now >= self._take_until:
                    raise TimeoutError
                chunk = await chunks.read()
        except TimeoutError:
            self._rests, self._taken = RESTS if self._taken > 0 else max(0, self._rests - 1), -1
            return None
        self._carried += len(chunk)
        self._note_pace(len(chunk))
        if self._doubt is not None:
            self._doubt.heard(clock())
        if (pause_s := self._means.bucket.take(len(chunk))) > 0:
            await self._means.sleep(pause_s)
        return chunk

    def _note_pace(self, size: int) -> None:
        """Rest where little comes. Of a flood single reads may be small, too: what counts is what came in a stretch of time."""
        stretch = asyncio.get_running_loop().time() // self._means.habits.batch_s
        if stretch != self._stretch:
            self._came_before = self._came if stretch == self._stretch + 1 else 0
            self._stretch, self._came = stretch, 0
        self._came += size
        trickles = self._doubt is not None and max(self._came, self._came_before) < LITTLE_BYTES
        if self._taken < 0 or not trickles:
            self._rests, self._taken = RESTS if size and trickles else 0, -1
        else:
            self._taken += size

    async def _rest(self, chunks: Output) -> None:
        """Until the stretch of time ends, or the container."""
        loop = asyncio.get_running_loop()
        self._resting = loop.create_future()
        ends = loop.call_at(self._stretch_end(), _wake, self._resting)
        chunks.pause()
        try:
            await self._resting
        finally:
            ends.cancel()
            self._resting = None
            chunks.resume()

    def _stretch_end(self) -> float:
        """The stretches are the same for all followers."""
        habits, now = self._means.habits, asyncio.get_running_loop().time()
        stretch_s = habits.many_batch_s if self._means.sender.at_once > habits.many else habits.batch_s
        return (now // stretch_s + 1) * stretch_s

    def _new_doubt(self) -> Doubt:
        return Doubt(self._means.habits.doubt_s, self._means.habits.most_doubt_s, asyncio.get_running_loop().time())

    async def _ask_docker(self, cutter: Cutter, *, tty: bool) -> None:
        """Compare a stream that is silent with what Docker has, if it is time to. Raises EngineUnavailable: it has stalled."""
        now = asyncio.get_running_loop().time()
        if self._doubt is None or self._doubt.left_s(now) > 0:
            return
        self._doubt.was_well(now)
        if await self._newest(tty=tty) > cutter.newest:
            if self._carried <= self._means.habits.recheck_bytes:
                self._mark = self._opened_at  # records that the API has are compared, not sent
            raise EngineUnavailable("the stream has stalled; it is opened anew")

    async def _newest(self, *, tty: bool) -> int:
        """When the container wrote last, as Docker has it (nanoseconds); 0: never, or Docker cannot say now."""
        pieces, newest = parser(tty=tty), 0
        try:
            async with self._means.source.open(self.container_id, since=0, follow=False, newest=True) as chunks:
                while chunk := await chunks.read():
                    newest = max([newest, *(message.nanoseconds for message in pieces.feed(chunk))])
            return max([newest, *(message.nanoseconds for message in pieces.close())])
        except EngineUnavailable:
            return 0

    def _due(self) -> bool:
        habits, now = self._means.habits, asyncio.get_running_loop().time()
        return self._size >= habits.batch_bytes or bool(self._batch and self._taken < 0 and now >= self._flush_at)

    def _put(self, records: list[LogRecord]) -> None:
        """Into the batch, but for those that the API is known to have."""
        for record in records:
            self._next += 1
            if self._known is not None and self._next <= self._known.position:
                self._first = self._next
                if self._next == self._known.position and record.nanoseconds != self._known.last:
                    raise PositionLost("a container's log is not the one that was sent")
                continue
            line = encode(record)
            if not self._batch:
                self._flush_at = self._stretch_end()
            self._batch.append(line)
            self._size += len(line)

    async def _flush(self, cutter: Cutter) -> None:
        if self._known is not None and not self._batch:
            return
        body, end = b"".join(self._batch), self._next
        taken = await self._means.sender.send(self.owner, self._first, body)
        self._known = taken
        self._refusals, self._unmatched = 0, False
        if taken.complete or taken.position < end:
            raise Refused("the end was sent before, or the API has less than was sent", taken)
        self._batch, self._size, self._first = [], 0, end
        self._keep(cutter.mark)

    async def _end(self, cutter: Cutter) -> None:
        """The rest, and the end mark."""
        if self._size >= self._means.habits.batch_bytes:
            await self._flush(cutter)
        self._put([cutter.note("", "z")])
        body = b"".join(self._batch)
        taken = await self._means.sender.send(self.owner, self._first, body)
        if not taken.complete:
            raise Refused("the end was not taken", taken)
        self._mark = cutter.mark
        self._finish()

    def _keep(self, mark: Mark) -> None:
        self._mark = mark
        if mark != self._kept and (now := asyncio.get_running_loop().time()) >= self._keep_at:
            self._kept, self._keep_at = mark, now + self._means.habits.keep_s
            self._means.positions.put(Sent(self.owner, self.container_id, mark))

    def _finish(self) -> None:
        self.done = True
        self._means.positions.put(Sent(self.owner, self.container_id, self._mark, done=True))

    # --- what may go wrong -----------------------------------------------------------------------------------------------

    def _catch_up(self, taken: Taken) -> None:
        """The API expects another position than we thought: read the log again, from its beginning where that is earlier."""
        if taken.complete:
            self._finish()
            return
        self._known = taken
        self._mark = Mark()

    async def _go_on_by_time(self) -> None:
        """Nobody can tell any more which lines were sent: all after the newest that was, and a note before them."""
        known = await self._ask()
        self._mark = Mark(position=known.position, since=known.last + 1)
        self._lost, self._unmatched = False, True

    async def _finish_gone(self) -> None:
        """There is no container any more."""
        known = await self._ask()
        cutter = self._begin(self._mark._replace(position=known.position, skip=0))
        if not self._ended_well:
            self._put([cutter.note(GONE)])
        await self._end(cutter)

    async def _ask(self) -> Taken:
        """What the API has. Raises Refused: the end."""
        if self._known is None:
            try:
                self._known = await self._means.sender.send(self.owner, self._mark.position, b"")
            except Refused as refused:
                self._known = refused.taken
        if self._known.complete:
            raise Refused("the end was sent before", self._known)
        return self._known

    async def _unwanted(self, error: SwarmTaskError) -> None:
        """The task was removed, or this API keeps no output."""
        (logger.warning if not self._refusals else logger.debug)("output of %s is not taken: %s", self.owner.attempt, error)
        self._refusals += 1
        details = await self._inspect_quietly()
        if self._refusals >= self._means.habits.refusals and (details is None or not details.alive):
            self._finish()
        else:
            await self._means.sleep(self._means.habits.refused_s)

    async def _inspect_quietly(self) -> Details | None:
        try:
            return await self._means.inspect(self.container_id)
        except EngineUnavailable:
            return Details(alive=True, pid=0, exit_code=0, oom_killed=False, started_at=None, finished_at=None)


def _wake(resting: asyncio.Future[None]) -> None:
    if not resting.done():
        resting.set_result(None)
