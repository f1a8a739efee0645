"""The store of attempts' output: positions, segments, crashes, bounds, readers."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmtask.apiserver import log_files, log_reader
from swarmtask.apiserver.attempt_logs import AttemptLogs
from swarmtask.apiserver.log_files import Limits, LogFiles
from swarmtask.apiserver.records import Change, Key, Record
from swarmtask.apiserver.waiting import TASKS
from swarmtask.clock import ManualClock
from swarmtask.errors import BadRequest, Conflict, InsufficientStorage, InternalError, RequestEntityTooLarge
from swarmtask.resources.log_records import MOST_BODY_BYTES, LogRecord, decode, encode
from tests.apiserver.logs import END, UID, KnownTasks, body, in_brackets, line, records, texts, until

OTHER = UID[:-1] + "2"
SMALL = Limits(segment_bytes=200, head=1, tail=2)


@pytest.fixture
async def logs(tmp_path: Path) -> AsyncIterator[AttemptLogs]:
    opened = await store(tmp_path)
    yield opened
    await opened.close()


async def store(folder: Path, tasks: KnownTasks | None = None, *, limits: Limits | None = None, **options: Any) -> AttemptLogs:
    made = AttemptLogs(folder / "logs", tasks or KnownTasks(), ManualClock(), limits=limits, **options)
    await made.open()
    return made


def lines_of(first: int, end: int) -> list[str]:
    return [f"line {number}" for number in range(first, end)]


def deletion(uid: str) -> Change:
    return Change("DELETED", Record(Key(TASKS, "default", "a"), uid, 1, b"{}", "swarmtask.io/v1alpha1", {}), None)


class TestRecords:
    @pytest.mark.parametrize("text", [b"", b" ", b"plain", b"\x00\xff\x1b[31m\r", "grün".encode(), b"a b  c "])
    def test_any_text_comes_back_as_it_was(self, text: bytes) -> None:
        record = LogRecord(1_700_000_000_123_456_789, "e", text)
        assert decode(encode(record)) == record

    @pytest.mark.parametrize("damage", [
        b"", b"\n", b"x\n", b"00000000 1 o a\n", b"zzzzzzzz 1 o a\n", line(1)[:-2], line(1)[1:], line(1).replace(b"line", b"lime"),
        b"\x00" * 40 + b"\n", line(1).replace(b" o ", b" x "), encode(LogRecord(2**63, "o")),
        encode(LogRecord(1, "o", b"x" * 70_000)),
    ])  # fmt: skip
    def test_what_is_none_is_told(self, damage: bytes) -> None:
        assert decode(damage) is None


class TestPositions:
    async def test_a_repeat_is_success_and_a_gap_is_told(self, logs: AttemptLogs) -> None:
        assert (await logs.append(UID, 1, 0, body(0, 3))).position == 3
        for position, content in ((0, body(0, 3)), (1, body(1, 2)), (0, b""), (3, b"")):
            assert (await logs.append(UID, 1, position, content)).position == 3
        assert (await logs.append(UID, 1, 2, body(2, 5))).position == 5
        with pytest.raises(Conflict) as refused:
            await logs.append(UID, 1, 6, body(6, 7))
        assert refused.value.details == {"position": 5, "lastNanoseconds": 4 * 10**9, "complete": False}
        assert await texts(logs) == lines_of(0, 5)

    async def test_nothing_follows_the_end(self, logs: AttemptLogs) -> None:
        assert (await logs.append(UID, 1, 0, body(0, 1) + END)).complete
        assert (await logs.append(UID, 1, 0, body(0, 1) + END)).complete
        with pytest.raises(Conflict, match="end was appended"):
            await logs.append(UID, 1, 2, line(2))
        assert await texts(logs) == ["line 0"]

    @pytest.mark.parametrize("content", [b"rubbish\n", line(0)[:-1], END + line(1), line(0) + b"\n", b"\x00"])
    async def test_what_is_no_record_is_refused_and_leaves_nothing(self, logs: AttemptLogs, content: bytes) -> None:
        with pytest.raises(BadRequest):
            await logs.append(UID, 1, 0, content)
        assert (await logs.append(UID, 1, 0, b"")).position == 0

    @pytest.mark.parametrize(
        ("uid", "attempt"), [("", 1), ("../x", 1), ("a/b", 1), (".", 1), (UID, 0), (UID, 10**9), ("a" * 65, 1)]
    )
    async def test_what_names_no_attempt_reaches_no_file(self, logs: AttemptLogs, uid: str, attempt: int) -> None:
        with pytest.raises(BadRequest):
            await logs.append(uid, attempt, 0, line(0))
        with pytest.raises(KeyError):
            logs.reader("default", uid, attempt)

    async def test_too_much_at_once_is_refused(self, logs: AttemptLogs) -> None:
        with pytest.raises(RequestEntityTooLarge):
            await logs.append(UID, 1, 0, b"x" * (MOST_BODY_BYTES + 1))

    async def test_many_at_once_keep_their_order(self, logs: AttemptLogs) -> None:
        """As several agents that believe they are the only one: whoever is too early is told."""

        async def send(number: int) -> None:
            while True:
                try:
                    await logs.append(UID, 1, number, line(number))
                except Conflict:
                    await asyncio.sleep(0)
                else:
                    return

        await asyncio.gather(*(send(number) for number in reversed(range(40))))
        assert await texts(logs) == lines_of(0, 40)


class TestSegments:
    async def test_the_beginning_and_the_newest_part_stay_with_a_note_between(self, tmp_path: Path) -> None:
        logs = await store(tmp_path, limits=SMALL)
        for number in range(50):
            await logs.append(UID, 1, number, line(number))
        shown = await texts(logs)
        (place,) = [index for index, text in enumerate(shown) if text.startswith("[")]
        dropped = int(shown[place].removeprefix("[").split()[0])
        assert shown[:place] + lines_of(place, place + dropped) + shown[place + 1 :] == lines_of(0, 50)
        assert logs.used_bytes == sum(path.stat().st_size for path in (tmp_path / "logs").rglob("*.log")) <= 3 * 240
        await logs.close()
        again = await store(tmp_path, limits=SMALL)
        assert await texts(again) == shown
        assert (await again.append(UID, 1, 50, line(50))).position == 51
        assert again.used_bytes > 0

    async def test_the_last_lines(self, tmp_path: Path) -> None:
        logs = await store(tmp_path, limits=SMALL)
        for number in range(50):
            await logs.append(UID, 1, number, line(number))
        for tail in (0, 1, 5):
            assert await texts(logs, tail=tail) == lines_of(50 - tail, 50)
        everything = await texts(logs)
        assert await texts(logs, tail=1000) == everything
        await logs.append(UID, 1, 50, END)
        assert await texts(logs, tail=2) == lines_of(48, 50), "the end is no line"

    async def test_files_are_read_in_slices(self, logs: AttemptLogs, monkeypatch: pytest.MonkeyPatch) -> None:
        await logs.append(UID, 1, 0, body(0, 100))
        monkeypatch.setattr(log_reader, "read_slice", functools.partial(log_files.read_slice, most=100))
        assert await texts(logs) == lines_of(0, 100)
        for tail in (1, 3, 50):
            assert await texts(logs, tail=tail) == lines_of(100 - tail, 100)
        monkeypatch.setattr(log_reader, "read_slice", functools.partial(log_files.read_slice, most=10))
        assert await texts(logs, tail=7) == lines_of(93, 100), "a line that is longer than a slice"

    async def test_lines_since(self, logs: AttemptLogs) -> None:
        await logs.append(UID, 1, 0, body(0, 10))
        since = datetime(1970, 1, 1, 0, 0, 7, tzinfo=UTC)
        shown = [one async for one in records(logs, since=since)]
        assert [one.text.decode() for one in shown] == lines_of(7, 10)
        assert shown[0] == LogRecord(7 * 10**9, "o", b"line 7")

    async def test_a_reader_that_was_overtaken_is_told_what_it_missed(self, tmp_path: Path) -> None:
        logs = await store(tmp_path, limits=SMALL)
        for number in range(12):
            await logs.append(UID, 1, number, line(number))
        shown = records(logs)
        first = [in_brackets(await anext(shown))]
        for number in range(12, 90):
            await logs.append(UID, 1, number, line(number))
        rest = [in_brackets(one) async for one in shown]
        seen = first + rest
        numbers: list[int] = []
        for text in seen:
            numbers += (
                range(len(numbers), len(numbers) + int(text[1:].split()[0])) if text.startswith("[") else [int(text.split()[1])]
            )
        assert numbers == list(range(90))


class TestCrashes:
    @pytest.mark.parametrize("tail", [b"0", b"\x00" * 100, line(3)[:-1], line(3)[:5], b"deadbeef 1 o x\n", b"\xff\n" + line(3)])
    async def test_a_torn_end_is_cut(self, tmp_path: Path, tail: bytes) -> None:
        logs = await store(tmp_path)
        await logs.append(UID, 1, 0, body(0, 3))
        await logs.close()
        (path,) = (tmp_path / "logs").rglob("*.log")
        with path.open("ab") as file:
            file.write(tail)
        again = await store(tmp_path)
        assert await texts(again) == lines_of(0, 3)
        assert (await again.append(UID, 1, 3, line(3))).position == 4
        assert await texts(again) == lines_of(0, 4)

    async def test_a_crash_between_a_new_segment_and_its_first_record(self, tmp_path: Path) -> None:
        logs = await store(tmp_path)
        await logs.append(UID, 1, 0, body(0, 3))
        (path,) = (tmp_path / "logs").rglob("*.log")
        (path.parent / f"{3:020d}.log").touch()
        again = await store(tmp_path)
        assert (await again.append(UID, 1, 0, b"")).last_nanoseconds == 2 * 10**9
        assert (await again.append(UID, 1, 3, line(3) + END)).complete
        assert await texts(again) == lines_of(0, 4)

    async def test_a_damaged_line_costs_itself_alone(self, tmp_path: Path) -> None:
        logs = await store(tmp_path, limits=SMALL)
        for number in range(9):
            await logs.append(UID, 1, number, line(number))
        path = sorted((tmp_path / "logs").rglob("*.log"))[0]
        path.write_bytes(path.read_bytes().replace(b"line 1", b"lime 1"))
        shown = await texts(await store(tmp_path, limits=SMALL))
        assert shown == ["line 0", f"[{log_reader.DAMAGED.decode()}]", *lines_of(2, 9)]

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
    async def test_a_full_disk_takes_nothing_and_goes_on_when_there_is_room(
        self, logs: AttemptLogs, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        await logs.append(UID, 1, 0, body(0, 2))
        real = os.pwrite

        def half(handle: int, content: memoryview, offset: int) -> int:
            if offset > 40 and len(content) < 20:
                raise OSError(number, "full")
            return real(handle, content[: max(1, len(content) // 2)], offset)

        monkeypatch.setattr(log_files.os, "pwrite", half)
        with pytest.raises(InsufficientStorage, match="full"):
            await logs.append(UID, 1, 2, body(2, 4))
        monkeypatch.undo()
        assert await texts(logs) == lines_of(0, 2)
        assert (await logs.append(UID, 1, 2, body(2, 4))).position == 4
        assert await texts(logs) == lines_of(0, 4)

    async def test_what_was_appended_is_brought_to_the_disk(self, logs: AttemptLogs, monkeypatch: pytest.MonkeyPatch) -> None:
        synced: list[str] = []
        await logs.append(UID, 1, 0, body(0, 2))
        monkeypatch.setattr(log_files, "sync", lambda path: synced.append(path.name))
        await logs.keep_house()
        await logs.keep_house()
        assert synced == [f"{0:020d}.log"]

    async def test_an_end_that_was_acknowledged_outlives_a_power_cut_at_once(self, tmp_path: Path, disk: Disk) -> None:
        logs = await store(tmp_path)
        await logs.append(UID, 1, 0, body(0, 2))
        assert (await logs.append(UID, 1, 2, line(2) + END)).complete
        again = await store(disk.after_a_power_cut())
        assert await texts(again) == lines_of(0, 3)
        assert (await again.append(UID, 1, 0, b"")).complete

    async def test_so_does_one_that_a_server_which_was_killed_has_left_to_the_kernel(self, tmp_path: Path, disk: Disk) -> None:
        left = tmp_path / "logs" / UID / "1"
        left.mkdir(parents=True)
        (left / f"{0:020d}.log").write_bytes(body(0, 3) + END)
        logs = await store(tmp_path)
        assert disk.kept == {}, "as little as was there is known to be on the disk"
        assert (await logs.append(UID, 1, 0, body(0, 3) + END)).complete, "the agent is not sure, and sends it once more"
        assert await texts(await store(disk.after_a_power_cut())) == lines_of(0, 3)

    async def test_an_end_that_does_not_reach_the_disk_is_not_acknowledged(
        self, logs: AttemptLogs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await logs.append(UID, 1, 0, body(0, 2))

        def broken(handle: int) -> None:
            raise OSError(errno.EIO, "broken")

        monkeypatch.setattr(log_files.os, "fsync", broken)
        for _ in range(2):
            with pytest.raises(InternalError, match="broken"):
                await logs.append(UID, 1, 2, line(2) + END)
        monkeypatch.undo()
        assert await texts(logs) == lines_of(0, 2)
        assert (await logs.append(UID, 1, 2, line(2) + END)).complete
        assert await texts(logs) == lines_of(0, 3)


class Disk:
    """What a power cut would leave of a folder: of each file what it held when it was synced last, if its name was synced, too."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self.kept: dict[Path, bytes] = {}
        self._names: set[Path] = set()
        real = os.fsync

        def fsync(handle: int) -> None:
            real(handle)
            path = Path(f"/proc/self/fd/{handle}").readlink()
            if path.is_dir():
                self._names.update(path.iterdir())
            else:
                self.kept[path] = path.read_bytes()

        monkeypatch.setattr(log_files.os, "fsync", fsync)

    def after_a_power_cut(self) -> Path:
        """Another folder that holds what is left."""
        left = self._folder / "after"
        (left / "logs").mkdir(parents=True)
        for path, content in self.kept.items():
            place = path.relative_to(self._folder)
            on_the_way = [self._folder / parent for parent in place.parents if len(parent.parts) > 1]
            if {path, *on_the_way} <= self._names:
                (left / place).parent.mkdir(parents=True, exist_ok=True)
                (left / place).write_bytes(content)
        return left


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(tmp_path.resolve(), monkeypatch)


class TestBounds:
    async def test_finished_attempts_go_first_the_oldest_before_others(self, tmp_path: Path) -> None:
        tasks = KnownTasks({UID: "default", OTHER: "default"})
        logs = await store(tmp_path, tasks, total_bytes=2000)
        for attempt in (1, 2, 3):
            await logs.append(UID, attempt, 0, body(0, 20))
            path = tmp_path / "logs" / UID / str(attempt) / f"{0:020d}.log"
            os.utime(path, (attempt * 100, attempt * 100))
        tasks.ended |= {(UID, 2), (UID, 3)}
        await logs.append(OTHER, 1, 0, body(0, 20))
        await logs.keep_house()
        assert await texts(logs, attempt=1) == lines_of(0, 20), "it runs, though it is the oldest"
        assert (await texts(logs, attempt=3))[:20] == lines_of(0, 20)
        with pytest.raises(KeyError):
            logs.reader("default", UID, 2)
        assert logs.used_bytes <= 2000

    async def test_where_all_run_the_newest_part_and_the_position_stay(self, tmp_path: Path) -> None:
        logs = await store(tmp_path, limits=Limits(segment_bytes=200, head=2, tail=8), total_bytes=600)
        for number in range(30):
            await logs.append(UID, 1, number, line(number))
        await logs.keep_house()
        shown = await texts(logs)
        assert shown[0].endswith("lines dropped: of one attempt the beginning and the newest part are kept]")
        assert shown[-1] == "line 29"
        assert logs.used_bytes <= 600
        assert (await logs.append(UID, 1, 30, line(30))).position == 31

    async def test_output_goes_with_its_task(self, tmp_path: Path) -> None:
        tasks = KnownTasks({UID: "default", OTHER: "default"})
        logs = await store(tmp_path, tasks)
        for uid in (UID, OTHER):
            await logs.append(uid, 1, 0, body(0, 2))
        following = asyncio.create_task(anext_text(logs, follow=True, skip=2))
        await asyncio.sleep(0.05)
        del tasks.namespaces[UID]
        logs.on_commit([deletion(UID)])
        await logs.keep_house()
        assert await asyncio.wait_for(following, 10) is None, "who follows it is told that it ends"
        assert [path.name for path in (tmp_path / "logs").iterdir()] == [OTHER]
        assert not logs.knows("default", UID, 1)

    async def test_output_of_a_task_that_was_removed_while_the_server_was_down(self, tmp_path: Path) -> None:
        logs = await store(tmp_path)
        await logs.append(UID, 1, 0, body(0, 2))
        (tmp_path / "logs" / "notes.txt").write_text("somebody's own")
        again = await store(tmp_path, KnownTasks({}))
        assert [path.name for path in (tmp_path / "logs").iterdir()] == ["notes.txt"]
        assert again.used_bytes == 0

    async def test_another_namespace_sees_nothing(self, logs: AttemptLogs) -> None:
        await logs.append(UID, 1, 0, body(0, 2))
        with pytest.raises(KeyError):
            logs.reader("other", UID, 1)

    async def test_many_attempts_are_not_all_kept_in_memory(self, logs: AttemptLogs, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("swarmtask.apiserver.attempt_logs.MOST_LOADED", 4)
        for attempt in range(1, 20):
            await logs.append(UID, attempt, 0, body(0, attempt))
        await logs.keep_house()
        assert len(logs._logs) <= 4
        assert await texts(logs, attempt=7) == lines_of(0, 7)
        assert (await logs.append(UID, 3, 3, line(3))).position == 4


async def anext_text(logs: AttemptLogs, *, follow: bool, skip: int = 0) -> str | None:
    """The line after so many; None: there is none."""
    shown = records(logs, follow=follow)
    for _ in range(skip):
        await anext(shown)
    one = await anext(shown, None)
    return None if one is None else one.text.decode()


class TestFollowing:
    async def collect(self, logs: AttemptLogs, into: list[str]) -> None:
        async for one in records(logs, follow=True):
            into.append(in_brackets(one))

    async def test_it_goes_on_to_the_end_mark(self, logs: AttemptLogs) -> None:
        await logs.append(UID, 1, 0, b"")
        seen: list[str] = []
        following = asyncio.create_task(self.collect(logs, seen))
        for number in range(5):
            await logs.append(UID, 1, number, line(number))
            await until(lambda: len(seen) > number)  # noqa: B023
        await logs.append(UID, 1, 5, END)
        await asyncio.wait_for(following, 10)
        assert seen == lines_of(0, 5)

    async def test_of_an_attempt_that_is_over_it_waits_a_while_and_says_that_the_end_is_missing(self, tmp_path: Path) -> None:
        tasks = KnownTasks()
        logs = await store(tmp_path, tasks)
        await logs.append(UID, 1, 0, body(0, 1))
        seen: list[str] = []
        following = asyncio.create_task(self.collect(logs, seen))
        await until(lambda: bool(seen))
        tasks.ended.add((UID, 1))
        change = deletion(UID)
        change.type = "MODIFIED"
        logs.on_commit([change])
        clock = logs.clock
        assert isinstance(clock, ManualClock)
        await until(lambda: bool(clock._sleepers))
        await logs.append(UID, 1, 1, line(1))
        await until(lambda: len(seen) >= 2)
        assert not following.done()
        for _ in range(12):
            await asyncio.sleep(0.01)
            clock.advance(1)
        await asyncio.wait_for(following, 10)
        assert seen == ["line 0", "line 1", f"[{log_reader.UNFINISHED.decode()}]"]

    async def test_the_server_stops(self, logs: AttemptLogs) -> None:
        await logs.append(UID, 1, 0, body(0, 1))
        seen: list[str] = []
        following = asyncio.create_task(self.collect(logs, seen))
        await until(lambda: bool(seen))
        logs.end_reads()
        await asyncio.wait_for(following, 10)
        assert seen == ["line 0"]


@st.composite
def stories(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    step = st.tuples(
        st.sampled_from(["append", "append", "append", "repeat", "gap", "crash", "torn"]), st.integers(1, 9), st.integers(0, 9)
    )
    return draw(st.lists(step, max_size=40))


@pytest.mark.slow
@settings(max_examples=60)
@given(stories())
def test_whatever_happens_every_line_is_there_once_or_in_a_note(
    tmp_path_factory: pytest.TempPathFactory, story: list[tuple[str, int, int]]
) -> None:
    """Appends, repeats, gaps, crashes that tear the newest line: what is shown and what notes tell is all that was sent."""

    async def play(folder: Path) -> None:
        logs = await store(folder, limits=SMALL)
        sent = (await logs.append(UID, 1, 0, b"")).position
        for what, size, back in story:
            match what:
                case "append":
                    sent = (await logs.append(UID, 1, sent, body(sent, sent + size))).position
                case "repeat":
                    first = max(0, sent - back)
                    assert (await logs.append(UID, 1, first, body(first, sent))).position == sent
                case "gap":
                    with pytest.raises(Conflict):
                        await logs.append(UID, 1, sent + size, body(sent, sent + 1))
                case _:
                    paths = sorted((folder / "logs").rglob("*.log"))
                    if what == "torn" and paths:
                        os.truncate(paths[-1], max(0, paths[-1].stat().st_size - back - 1))
                    logs = await store(folder, limits=SMALL)
                    sent = (await logs.append(UID, 1, 0, b"")).position
        shown = await texts(logs)
        numbers: list[int] = []
        for text in shown:
            numbers += (
                range(len(numbers), len(numbers) + int(text[1:].split()[0])) if text.startswith("[") else [int(text.split()[1])]
            )
        assert numbers == list(range(sent))
        assert LogFiles.open(folder / "logs" / UID / "1", SMALL).position == sent

    folder = tmp_path_factory.mktemp("story")
    asyncio.run(play(folder))
    shutil.rmtree(folder)
