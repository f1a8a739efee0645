"""Docker's stream taken apart, and lines cut into records: pure, and the same however often they are read."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmtask.errors import EngineUnavailable
from swarmtask.nodeagent.log_cutter import GOES_ON, LINE_BYTES, Cutter, Mark, PositionLost, Rate
from swarmtask.nodeagent.log_stream import PIECE_BYTES, Message, parser
from swarmtask.resources.log_records import LogRecord
from tests.nodeagent.log_fakes import BEGIN, SECOND, frame, stamp

STREAM = b"".join((
    frame(BEGIN, b"one\n"), frame(BEGIN + 1, b"two\n", 2), frame(BEGIN + 2, b"\n"), frame(BEGIN + 3, b"\xff\x00\x1b[31m\r\n"),
    frame(BEGIN + 4, b"begun, "), frame(BEGIN + 4, b"and ended\n"),
))  # fmt: skip


def message(at: int, text: bytes, stream: str = "o", *, whole: bool = True) -> Message:
    return Message(at, stream, text, whole)  # type: ignore[arg-type]


def texts(records: list[LogRecord]) -> list[bytes]:
    return [b"[%s]" % one.text if one.kind == "n" else one.text for one in records]


class TestStream:
    @pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 64, 10_000])
    def test_frames_arrive_in_pieces_of_any_size(self, size: int) -> None:
        taking = parser(tty=False)
        found = [one for at in range(0, len(STREAM), size) for one in taking.feed(STREAM[at : at + size])]
        assert taking.close() == []
        assert [(one.nanoseconds - BEGIN, one.stream, one.text, one.whole) for one in found] == [
            (0, "o", b"one", True), (1, "e", b"two", True), (2, "o", b"", True), (3, "o", b"\xff\x00\x1b[31m\r", True),
            (4, "o", b"begun, ", False), (4, "o", b"and ended", True),
        ]  # fmt: skip

    @pytest.mark.parametrize("size", [1, 31, 16_384, 16_415, 100_000])
    def test_of_a_terminal_long_lines_come_in_parts_with_the_time_before_each(self, size: int) -> None:
        long = b"".join(stamp(BEGIN) + b" " + b"x" * PIECE_BYTES for _ in range(2)) + stamp(BEGIN) + b" end\r\n"
        stream = stamp(BEGIN) + b" prompt\r\n" + long + stamp(BEGIN + 5) + b" last"
        taking = parser(tty=True)
        found = [one for at in range(0, len(stream), size) for one in taking.feed(stream[at : at + size])] + taking.close()
        assert [(one.nanoseconds - BEGIN, len(one.text), one.whole) for one in found] == [
            (0, 7, True), (0, PIECE_BYTES, False), (0, PIECE_BYTES, False), (0, 4, True), (5, 4, False),
        ]  # fmt: skip

    @pytest.mark.parametrize("rubbish", [
        b"\x07\x00\x00\x00\x00\x00\x00\x01x", b"\x01\x00\x00\x00\xff\xff\xff\xff", b"<html>no</html>....",
        b"\x01\x00\x00\x00\x00\x00\x00\x04text", frame(0, b"x\n").replace(b"1970-01-01", b"1970-99-01"),
    ])  # fmt: skip
    def test_what_is_no_stream_of_dockers_is_refused(self, rubbish: bytes) -> None:
        with pytest.raises(EngineUnavailable):
            parser(tty=False).feed(rubbish)

    def test_a_frame_that_is_cut_off_is_told(self) -> None:
        taking = parser(tty=False)
        taking.feed(STREAM[:-1])
        with pytest.raises(EngineUnavailable):
            taking.close()


class TestLines:
    def test_parts_become_lines_each_of_its_own_stream(self) -> None:
        cutter = Cutter(Mark())
        got: list[LogRecord] = []
        for one in (
            message(BEGIN, b"out ", whole=False), message(BEGIN + 1, b"err ", "e", whole=False), message(BEGIN + 2, b"and out"),
            message(BEGIN + 3, b"and err", "e"), message(BEGIN + 4, b"no end", whole=False),
        ):  # fmt: skip
            got += cutter.take(one)
        assert cutter.pending
        got += cutter.finish()
        assert got == [
            LogRecord(BEGIN, "o", b"out and out"), LogRecord(BEGIN + 1, "e", b"err and err"), LogRecord(BEGIN + 4, "o", b"no end"),
        ]  # fmt: skip
        assert (cutter.mark.position, cutter.mark.skip, cutter.mark.total) == (3, 5, 5)

    def test_very_long_lines_are_split_with_a_mark_and_memory_is_bounded(self) -> None:
        cutter = Cutter(Mark())
        got: list[LogRecord] = []
        for _ in range(9):
            got += cutter.take(message(BEGIN, b"x" * PIECE_BYTES, whole=False))
            assert sum(len(text) for _, text in cutter._parts.values()) <= LINE_BYTES
        got += cutter.take(message(BEGIN, b"end"))
        assert [len(one.text) for one in got] == [LINE_BYTES + len(GOES_ON), LINE_BYTES + len(GOES_ON), PIECE_BYTES + 3]
        assert all(one.text.endswith(GOES_ON) for one in got[:2])


class TestFloods:
    RATE = Rate(bytes_per_s=1000, burst_bytes=2000)

    def test_what_is_beyond_the_rate_is_counted_and_said(self) -> None:
        cutter = Cutter(Mark(), self.RATE)
        got: list[LogRecord] = []
        for number in range(100):  # 100 bytes each with what a line costs: 20 at once
            got += cutter.take(message(BEGIN + number, b"%036d" % number))
        assert texts(got)[:20] == [b"%036d" % number for number in range(20)]
        assert texts(got)[20:] == [b"[more than 1000 bytes a second: lines are dropped from here]"]
        later = cutter.take(message(BEGIN + SECOND // 2, b"too early")) + cutter.take(message(BEGIN + 2 * SECOND, b"again"))
        assert texts(later) == [b"[81 lines dropped]", b"again"]

    def test_a_flood_that_lasts_to_the_end_is_counted_there(self) -> None:
        cutter = Cutter(Mark(), self.RATE)
        got = [one for number in range(30) for one in cutter.take(message(BEGIN, b"%036d" % number))] + cutter.finish()
        assert texts(got)[-1] == b"[10 lines dropped]"

    def test_what_came_in_time_is_never_dropped_however_late_it_is_read(self) -> None:
        """An API that was away for an hour: the backlog is read at once, but was written slowly."""
        cutter = Cutter(Mark(), self.RATE)
        got = [one for number in range(3600) for one in cutter.take(message(BEGIN + number * SECOND, b"x" * 900))]
        assert len(got) == 3600
        assert all(one.kind == "o" for one in got)

    def test_empty_lines_are_not_free(self) -> None:
        cutter = Cutter(Mark(), self.RATE)
        got = [one for _ in range(1000) for one in cutter.take(message(BEGIN, b""))]
        assert len(got) < 40


class TestMarks:
    def test_a_log_that_is_another_one_is_noticed(self) -> None:
        cutter = Cutter(Mark())
        for number in range(5):
            cutter.take(message(BEGIN + number, b"x"))
        again = Cutter(cutter.mark)
        for number in range(4):
            again.take(message(BEGIN + number, b"x"))
        with pytest.raises(PositionLost):
            again.take(message(BEGIN + 77, b"x"))
        shorter = Cutter(cutter.mark)
        shorter.take(message(BEGIN, b"x"))
        with pytest.raises(PositionLost):
            shorter.finish()

    def test_a_mark_looks_back_two_seconds_and_not_to_the_beginning(self) -> None:
        cutter = Cutter(Mark())
        for number in range(100):
            cutter.take(message(BEGIN + number * SECOND, b"x"))
        assert cutter.mark.since == BEGIN + 97 * SECOND
        assert (cutter.mark.skip, cutter.mark.total) == (3, 100)

    @pytest.mark.parametrize("seen", [10, 11, 15, 20])
    def test_a_clock_that_was_set_back_while_the_agent_looked_hides_nothing(self, seen: int) -> None:
        times = [BEGIN + number * SECOND for number in range(10)] + [
            BEGIN - 3600 * SECOND + number * SECOND for number in range(15)
        ]
        log = [message(at, b"%d" % number) for number, at in enumerate(times)]
        cutter = Cutter(Mark())
        got = [record for one in log[: seen + 1] for record in cutter.take(one)]
        again = Cutter(cutter.mark)
        got += [record for one in log if one.nanoseconds >= cutter.mark.since for record in again.take(one)]
        assert texts(got) == [b"%d" % number for number in range(25)]


@st.composite
def logs(draw: st.DrawFn) -> list[Message]:
    """A container's log: times mostly grow, sometimes a little or much back; lines in parts; floods."""
    now, found = BEGIN, []
    for _ in range(draw(st.integers(0, 60))):
        now += draw(st.sampled_from([0, 1, 10**6, 10**8, SECOND, 5 * SECOND, -(10**6), -SECOND, -30 * SECOND]))
        text = b"%d" % len(found) + b"." * draw(st.sampled_from([0, 1, 50, 400]))
        found.append(message(now, text, draw(st.sampled_from(["o", "o", "e"])), whole=draw(st.integers(0, 4)) > 0))
    return found


@pytest.mark.slow
@settings(max_examples=200)
@given(logs(), st.data())
def test_from_any_mark_on_the_records_are_the_same(log: list[Message], data: st.DataObject) -> None:
    """Read in one go, or broken off anywhere and gone on from the last mark with what Docker gives from `since` on."""
    rate = Rate(bytes_per_s=300, burst_bytes=1500)
    whole = Cutter(Mark(), rate)
    expected = [record for one in log for record in whole.take(one)] + whole.finish()
    got: list[LogRecord] = []
    mark, first = Mark(), 0
    for stop in [*sorted(data.draw(st.lists(st.integers(0, len(log)), max_size=5))), len(log)]:
        # Docker's log holds at least what was read before; what it gives starts with the mark's `since`. Lines that were written
        # with an older time than the mark's while nobody read are not seen by anybody: that needs a clock set back meanwhile.
        if any(one.nanoseconds < mark.since for one in log[first:stop]):
            return
        cutter = Cutter(mark, rate)
        del got[mark.position :]
        for one in [one for one in log[:stop] if one.nanoseconds >= mark.since]:
            got += cutter.take(one)
        if stop == len(log):
            got += cutter.finish()
        mark, first = cutter.mark, cutter.mark.total
    assert got == expected
