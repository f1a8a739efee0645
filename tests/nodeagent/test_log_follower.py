"""One container's output on its way to the API: what is sent after which accident, and that no line is lost or sent twice."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmtask.apiserver.attempt_logs import AttemptLogs
from swarmtask.clock import SystemClock
from swarmtask.errors import EngineUnavailable, Forbidden, InsufficientStorage, InternalError, NotFound, Unauthorized
from swarmtask.nodeagent.log_cutter import Rate
from swarmtask.nodeagent.log_follower import GONE, TAKE_S, UNMATCHED, Bucket, Doubt, Follower
from swarmtask.nodeagent.log_positions import Positions
from swarmtask.nodeagent.log_source import NoOutput
from tests.apiserver.logs import KnownTasks, until
from tests.apiserver.logs import texts as stored_texts
from tests.nodeagent.log_fakes import BEGIN, SECOND, Container, MemoryApi, MemoryDocker, MemoryOutput, StoreApi, means, owner

LINES = [b"line %d" % number for number in range(200)]


class Scene:
    """One container, one API, and agents that come and go."""

    def __init__(self, folder: Path, **habits: Any) -> None:
        self.docker, self.api, self.folder, self.habits = MemoryDocker(), MemoryApi(), folder, habits
        self.container = self.docker.containers["c"] = Container()
        self.permitted = True

    def follower(self, *, forgotten: bool = False) -> Follower:
        """As an agent that has just started."""
        if forgotten:
            shutil.rmtree(self.folder, ignore_errors=True)
        made = means(self.docker, self.api, self.folder, permit=lambda: 0.0 if self.permitted else None, **self.habits)
        return Follower(owner(), "c", made, made.positions.load().get(owner().attempt))

    @contextlib.asynccontextmanager
    async def agent(self, *, forgotten: bool = False) -> AsyncIterator[Follower]:
        """Runs; killed at the end, wherever it is."""
        follower = self.follower(forgotten=forgotten)
        running = asyncio.create_task(follower.run())
        try:
            yield follower
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running

    def write(self, *lines: bytes) -> None:
        for line in lines:
            self.container.write(line + b"\n")

    async def to_the_end(self, *, forgotten: bool = False) -> list[bytes]:
        self.container.end()
        async with asyncio.timeout(20):
            await self.follower(forgotten=forgotten).run()
        return self.api.texts()


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "positions")


async def test_lines_are_sent_while_it_runs_and_the_end_after(scene: Scene) -> None:
    async with scene.agent() as follower:
        await until(lambda: scene.api.calls == [(owner().attempt, 0, 0)])  # it is known before it has written anything
        scene.write(*LINES[:3])
        await until(lambda: scene.api.texts() == LINES[:3])
        scene.write(*LINES[3:5])
        await until(lambda: scene.api.texts() == LINES[:5])
        scene.container.end()
        await until(lambda: follower.done)
    assert scene.api.texts() == [*LINES[:5], b"END"]


async def test_a_trickle_does_not_hold_lines_back(scene: Scene) -> None:
    async with scene.agent():
        for number in range(100):
            scene.write(LINES[number])
            await asyncio.sleep(0.004)  # always before the batch has waited long enough
            if len(scene.api.calls) > 4:
                return
    raise AssertionError("the batch waited for a silence that never came")


@pytest.mark.parametrize("forgotten", [False, True])
async def test_a_new_agent_goes_on_where_the_old_one_was(scene: Scene, forgotten: bool) -> None:
    scene.write(*LINES[:50])
    async with scene.agent():
        await until(lambda: len(scene.api.texts()) == 50)
    scene.write(*LINES[50:60])
    assert await scene.to_the_end(forgotten=forgotten) == [*LINES[:60], b"END"]


@pytest.mark.parametrize("more", [0, 2])
async def test_a_rest_ends_with_the_container(tmp_path: Path, more: int) -> None:
    """What comes line by line is left in the socket until a stretch of time ends; nobody waits for that when all is over."""
    scene = Scene(tmp_path / "positions", batch_s=3600.0)
    async with scene.agent() as follower:
        await until(lambda: scene.api.calls == [(owner().attempt, 0, 0)])
        scene.write(LINES[0])
        await until(lambda: follower._resting is not None)
        scene.write(*LINES[1 : 1 + more])
        follower.container_ended()  # Docker tells of the end before it ends the stream
        await until(lambda: follower._resting is None)
        await asyncio.sleep(2 * TAKE_S)
        scene.container.end()
        await until(lambda: follower.done)
    assert scene.api.texts() == [*LINES[: 1 + more], b"END"]


@pytest.mark.slow
async def test_a_flood_is_read_at_once_however_small_the_pieces(tmp_path: Path) -> None:
    """Docker gives it message by message; whoever rested after each small read would fall behind for ever."""
    scene = Scene(tmp_path / "positions", batch_s=0.2)
    scene.container.chunk = 700
    async with scene.agent():
        await until(lambda: len(scene.api.calls) == 1)
        for _ in range(2000):
            scene.write(b"x" * 1000)
        await until(lambda: len(scene.api.texts()) == 2000)
    assert scene.container.pauses <= 20, "of 3,000 reads only the first ones rest before"


async def test_an_answer_that_was_lost_and_an_api_that_is_away(scene: Scene) -> None:
    scene.api.faults = ["lost", "down", "lost", "down"]
    scene.write(*LINES)
    assert await scene.to_the_end() == [*LINES, b"END"]


@pytest.mark.parametrize("error", [InsufficientStorage("full"), Unauthorized("who?"), InternalError("broken")])
async def test_what_an_api_cannot_take_now_is_tried_again(scene: Scene, error: Any) -> None:
    scene.api.faults = [error] * 3
    scene.write(*LINES[:20])
    assert await scene.to_the_end() == [*LINES[:20], b"END"]


@pytest.mark.slow
@pytest.mark.parametrize("error", [NotFound("gone"), Forbidden("not yours")])
async def test_what_nobody_wants_is_given_up_once_it_has_ended(scene: Scene, error: Any) -> None:
    scene.api.faults = [error] * 50
    scene.write(*LINES[:20])
    async with scene.agent() as follower:
        await until(lambda: len(scene.api.faults) < 40)
        assert not follower.done, "it may be wanted later"
        scene.container.end()
        await until(lambda: follower.done)
    assert scene.follower().done, "and it is not tried again by the next agent"


@pytest.mark.parametrize("forget", [1, 30, 50])
async def test_an_api_that_has_lost_the_newest_lines_gets_them_again(scene: Scene, forget: int) -> None:
    scene.write(*LINES[:50])
    async with scene.agent():
        await until(lambda: len(scene.api.texts()) == 50)
        scene.api.forget = forget
        scene.write(*LINES[50:60])
        await until(lambda: len(scene.api.texts()) == 60)
    assert await scene.to_the_end() == [*LINES[:60], b"END"]


async def test_a_stream_that_breaks_anywhere_loses_and_repeats_nothing(scene: Scene) -> None:
    scene.container.breaks = [0, 1, 100, 1000, 5000]
    scene.container.chunk = 100
    scene.write(*LINES)
    assert await scene.to_the_end() == [*LINES, b"END"]


async def test_a_stream_that_docker_does_not_end_is_ended_and_a_long_last_reading_is_not(scene: Scene) -> None:
    scene.write(*LINES[:5])
    async with scene.agent() as follower:
        await until(lambda: len(scene.api.texts()) == 5)
        scene.container.alive = False  # and nobody wakes the stream
        follower.container_ended()
        await until(lambda: follower.done)
    assert scene.api.texts() == [*LINES[:5], b"END"]
    late = Scene(scene.folder / "late")
    late.write(*LINES)
    late.container.chunk, late.container.alive = 20, False
    async with late.agent() as follower:
        for _ in range(50):
            follower.container_ended()
            await asyncio.sleep(0.005)
        await until(lambda: follower.done)
    assert late.api.texts() == [*LINES, b"END"]
    assert len(late.container.opened) == 1


@pytest.mark.parametrize("tty", [False, True])
async def test_a_stream_that_has_lost_its_file_is_opened_anew_while_the_container_runs(tmp_path: Path, tty: bool) -> None:
    """As Docker's does when it is behind while a log is rotated: open and silent, in the middle of a line or behind one."""
    scene = Scene(tmp_path / "positions", doubt_s=0.02)
    scene.container.tty = tty
    scene.write(*LINES[:50])
    scene.container.stalls = [700, 1, 1000]
    async with scene.agent():
        await until(lambda: scene.api.texts() == LINES[:50])
        scene.write(*LINES[50:60])
        await until(lambda: scene.api.texts() == LINES[:60])
    assert not scene.container.stalls
    assert len(scene.container.opened) == 4
    assert await scene.to_the_end() == [*LINES[:60], b"END"]


async def test_what_a_stalled_stream_has_left_out_or_repeated_is_told_by_a_mark(tmp_path: Path) -> None:
    """Long before it stalled, where no look at the newest lines alone would find it."""
    scene = Scene(tmp_path / "positions", doubt_s=0.05)
    for number, line in enumerate(LINES[:100]):
        scene.container.write(line + b"\n", at=BEGIN + number * SECOND)
    whole, scene.container.written = scene.container.written, scene.container.written[:20] + scene.container.written[30:60]
    scene.container.stalls = [len(scene.container.bytes_from(0, 0))]
    async with scene.agent():
        await until(lambda: scene.api.texts() == LINES[:20] + LINES[30:60])
        scene.container.written = whole
        await until(lambda: scene.api.texts()[-1:] == LINES[99:100])
    assert await scene.to_the_end() == [*LINES[:20], *LINES[30:60], b"[%s]" % UNMATCHED.encode(), *LINES[60:100], b"END"]


async def test_a_stream_that_is_silent_because_nothing_was_written_stays_open(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "positions", doubt_s=0.01, most_doubt_s=0.01)
    async with scene.agent():
        await until(lambda: scene.container.compared > 2)  # it has written nothing at all
        scene.write(*LINES[:5])
        await until(lambda: scene.api.texts() == LINES[:5])
        before = scene.container.compared
        await until(lambda: scene.container.compared > before + 2)
    async with scene.agent():  # another agent, which goes on from a mark
        before = scene.container.compared
        await until(lambda: scene.container.compared > before + 2)
    assert [follow for _, follow in scene.container.opened] == [True, True]
    assert await scene.to_the_end() == [*LINES[:5], b"END"]


async def test_a_docker_that_cannot_be_compared_with_costs_no_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path / "positions", doubt_s=0.01, most_doubt_s=0.01)
    monkeypatch.setattr(MemoryOutput, "read", _busy_when_compared(MemoryOutput.read, scene))
    scene.write(*LINES[:5])
    async with scene.agent():
        await until(lambda: scene.container.compared > 3)
        scene.write(*LINES[5:9])
        await until(lambda: scene.api.texts() == LINES[:9])
    assert len(scene.container.opened) == 1


def _busy_when_compared(read: Any, scene: Scene) -> Any:
    async def busy(output: MemoryOutput) -> bytes:
        if output._container is not scene.container:
            raise EngineUnavailable("it is busy")
        found: bytes = await read(output)
        return found

    return busy


def test_doubts_come_soon_after_something_was_heard_and_ever_more_rarely_after_that() -> None:
    doubt = Doubt(5.0, 60.0, 100.0)
    assert (doubt.left_s(100.0), doubt.left_s(104.0), doubt.left_s(300.0)) == (5.0, 1.0, 0.0)
    now, pauses = 105.0, []
    for _ in range(6):
        doubt.was_well(now)
        pauses.append(doubt.left_s(now))
        now += pauses[-1]
    assert pauses == [10.0, 20.0, 40.0, 60.0, 60.0, 60.0]
    doubt.heard(now)
    assert doubt.left_s(now) == 5.0


async def test_a_terminal_and_a_line_without_an_end(scene: Scene) -> None:
    scene.container.tty = True
    scene.container.write(b"one\r\n")
    scene.container.write(b"prompt> ")
    assert await scene.to_the_end() == [b"one\r", b"prompt> ", b"END"]


async def test_while_the_fence_forbids_it_nothing_is_sent_and_nothing_is_lost(scene: Scene) -> None:
    scene.permitted = False
    scene.write(*LINES)
    async with scene.agent():
        await asyncio.sleep(0.1)
        assert scene.api.calls == []
        scene.permitted = True
        await until(lambda: len(scene.api.texts()) == 200)
    assert await scene.to_the_end() == [*LINES, b"END"]


async def test_a_container_that_was_removed_too_early_leaves_a_note(scene: Scene) -> None:
    scene.write(*LINES[:5])
    async with scene.agent():
        await until(lambda: len(scene.api.texts()) == 5)
    scene.container.gone = True
    assert await scene.to_the_end() == [*LINES[:5], b"[%s]" % GONE.encode(), b"END"]


async def test_a_container_that_is_removed_after_its_end_leaves_none(scene: Scene) -> None:
    scene.write(*LINES[:5])
    async with scene.agent() as follower:
        await until(lambda: len(scene.api.texts()) == 5)
        scene.container.gone = True
        scene.container.end()
        await until(lambda: follower.done)
    assert scene.api.texts() == [*LINES[:5], b"END"]


@pytest.mark.parametrize("forgotten", [False, True])
async def test_a_log_that_docker_has_rotated_is_gone_on_with_after_a_note(scene: Scene, forgotten: bool) -> None:
    scene.write(*LINES[:50])
    async with scene.agent():
        await until(lambda: len(scene.api.texts()) == 50)
    scene.write(*LINES[50:60])
    del scene.container.written[:30]
    assert await scene.to_the_end(forgotten=forgotten) == [*LINES[:50], b"[%s]" % UNMATCHED.encode(), *LINES[50:60], b"END"]


async def test_a_log_driver_that_keeps_nothing_is_said(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Any:
        raise NoOutput("nothing can be read", gone=False)

    monkeypatch.setattr(scene.docker, "open", refuse)
    assert await scene.to_the_end() == [b"[nothing can be read]", b"END"]


async def test_one_batch_is_in_memory_however_long_the_api_is_away(scene: Scene) -> None:
    scene.api.faults = ["down"] * 1_000_000
    for _ in range(300):
        scene.write(b"x" * 10_000)
    async with scene.agent() as follower:
        await until(lambda: len(scene.api.faults) < 999_900)
        assert follower._size < 150_000
        scene.api.faults.clear()
        await until(lambda: len(scene.api.texts()) == 300)
    assert max(count for _, _, count in scene.api.calls) * 10_000 < 150_000


async def test_a_flood_is_cut_off_and_the_same_after_a_restart(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "p", rate=Rate(bytes_per_s=1000, burst_bytes=5000))
    for number in range(400):
        scene.container.write(b"%036d\n" % number, at=BEGIN + number * SECOND // 100)
    scene.container.chunk = 50
    async with scene.agent():
        await until(lambda: len(scene.api.texts()) >= 20)
    shown = await scene.to_the_end()
    once = Scene(tmp_path / "q", rate=Rate(bytes_per_s=1000, burst_bytes=5000))
    once.container.written = scene.container.written
    assert shown == await once.to_the_end()
    dropped = sum(int(text[1:].split()[0]) for text in shown if text.endswith(b"lines dropped]"))
    assert dropped + sum(not text.startswith((b"[", b"END")) for text in shown) == 400


def test_a_bucket_lets_its_burst_through_and_then_its_rate() -> None:
    now = [0.0]
    bucket = Bucket(lambda: now[0], bytes_per_s=100, burst_bytes=1000)
    assert bucket.take(1000) == 0
    assert bucket.take(50) == 0.5
    now[0] += 1
    assert bucket.take(50) == 0
    now[0] += 1000
    assert bucket.take(1100) == 1


def test_positions_that_were_torn_count_as_none(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    follower = scene.follower()
    follower._finish()
    (path,) = tmp_path.iterdir()
    assert Positions(tmp_path).load()[owner().attempt].done
    whole = path.read_bytes()
    for content in (b"", whole[:-9], whole.replace(b"true", b"1"), b"00000000 {}\n"):
        path.write_bytes(content)
        assert Positions(tmp_path).load() == {}
        assert not path.exists()
    (tmp_path / "file").write_text("")
    Positions(tmp_path / "file").put(Positions(tmp_path / "file").load() or follower_sent(follower))


def follower_sent(follower: Follower) -> Any:
    from swarmtask.nodeagent.log_positions import Sent

    return Sent(follower.owner, follower.container_id, follower._mark)


STEPS = st.sampled_from(
    ["write", "write", "write", "flood", "long", "prompt", "back", "kill", "forget state", "lost", "down", "power cut", "break"]
)


@pytest.mark.slow
@settings(max_examples=40)
@given(st.lists(st.tuples(STEPS, st.integers(1, 12)), max_size=25), st.booleans())
def test_whatever_happens_the_log_is_complete_with_notes_where_lines_were_dropped(
    tmp_path_factory: pytest.TempPathFactory, story: list[tuple[str, int]], real: bool
) -> None:
    """Agents killed anywhere, with and without their state; answers lost; an API that forgets; streams that break; in any order.
    What the API has in the end is what one agent that nothing happened to would have sent."""
    folder = tmp_path_factory.mktemp("story")
    rate = Rate(bytes_per_s=2000, burst_bytes=6000)

    async def play() -> None:
        scene, written = Scene(folder / "p", rate=rate), 0
        opened: AttemptLogs | None = None
        if real:
            opened = AttemptLogs(folder / "logs", KnownTasks({owner().uid: "default"}), SystemClock())
            await opened.open()
            scene.api = StoreApi(opened)  # type: ignore[assignment]
        api, running = scene.api, None
        for what, size in story:
            if running is None:
                running = asyncio.create_task(scene.follower().run())
            match what:
                case "write" | "flood":
                    for _ in range(size * (10 if what == "flood" else 1)):
                        scene.container.write(b"%d\n" % written, 1 + written % 2, at=now(scene) + (10**8 if what == "write" else 0))
                        written += 1
                case "long":
                    for part in range(5):
                        scene.container.write(b"x" * 16_384 if part < 4 else b"end\n", at=now(scene))
                case "prompt":
                    scene.container.write(b"no end ", at=now(scene))
                case "back":
                    scene.container.write(b"the clock was set back\n", at=now(scene) - size * SECOND // 8)
                case "kill" | "forget state":
                    running.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await running
                    running = None
                    if what == "forget state":
                        shutil.rmtree(scene.folder, ignore_errors=True)
                case "break":
                    scene.container.breaks.append(size * 30)
                case "power cut" if not real:
                    api.forget = size
                case _ if not real:
                    api.faults.append(what)
            for _ in range(size):
                await asyncio.sleep(0.002)
        if running is not None:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
        if not real:
            api.forget = 0  # after the end was told nobody asks again
        shown = await scene.to_the_end() if not real else None
        if opened is not None:
            scene.container.end()
            await scene.follower().run()
            shown = [text.encode() for text in await stored_texts(opened, owner().uid)] + [b"END"]
            await opened.close()
        once = Scene(folder / "q", rate=rate)
        once.container.written = scene.container.written
        assert shown == await once.to_the_end()

    asyncio.run(play())
    shutil.rmtree(folder)


def now(scene: Scene) -> int:
    """The newest time in the container's log: lines that follow are not older, but by what a test wants."""
    return max((at for at, _, _ in scene.container.written), default=BEGIN)
