"""Quiet hours: how they are written, when it is quiet, and what clocks that change do to them."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from swarmtask.resources import quiet_hours
from swarmtask.resources.node import NodeSpec
from swarmtask.resources.quiet_hours import DAYS, EVERY_DAY, QuietHours, Stand, Window, parse, zone_named

BERLIN = ZoneInfo("Europe/Berlin")
NEW_YORK = ZoneInfo("America/New_York")
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Apia", "America/Sao_Paulo")


def at(text: str, moment: datetime, zone: tzinfo = UTC) -> Stand:
    return parse(text).at(moment, zone)


def local(month: int, day: int, hour: int) -> datetime:
    """In Berlin, in 2026."""
    return datetime(2026, month, day, hour, tzinfo=BERLIN)


# --- grammar ---


def test_what_is_written_is_what_is_read() -> None:
    assert parse("") == parse("  ") == QuietHours()
    assert parse("22:00-07:00").windows == (Window(EVERY_DAY, 22 * 60, 7 * 60),)
    assert parse(" 9:05 - 24:00 ").windows == (Window(EVERY_DAY, 9 * 60 + 5, 24 * 60),)
    assert parse("Mon-Fri 09:00-17:30 Europe/Berlin").windows == (Window(frozenset(range(5)), 540, 1050, BERLIN),)
    assert parse("Sat-Sun").windows == (Window(frozenset({5, 6}), 0, 1440),)
    assert parse("Sun UTC").windows == (Window(frozenset({6}), 0, 1440, ZoneInfo("UTC")),)
    assert parse("Fri-Mon 20:00-23:00").windows[0].days == {4, 5, 6, 0}
    assert parse("Wed-Wed 20:00-23:00").windows[0].days == {2}
    assert parse("22:00-07:00,Mon 12:00-13:00 UTC , Sat-Sun").windows == (
        Window(EVERY_DAY, 1320, 420),
        Window(frozenset({0}), 720, 780, ZoneInfo("UTC")),
        Window(frozenset({5, 6}), 0, 1440),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nights", "'nights' are no quiet hours: write for example 22:00-07:00"),
        ("Europe/Berlin", "'Europe/Berlin' are no quiet hours"),
        ("22:00", "are no quiet hours"),
        ("22:00-", "are no quiet hours"),
        ("22.00-07.00", "are no quiet hours"),
        ("22:00-07:00,", "'' are no quiet hours"),
        ("22:00-07:00 Mon", "there is no time zone 'Mon' here"),
        ("mon-fri 09:00-17:00", "'mon-fri' are no days: write Mon, Tue"),
        ("Mon-Fry 09:00-17:00", "'Mon-Fry' are no days"),
        ("25:00-07:00", "25:00 is no time of a day"),
        ("22:00-24:01", "24:01 is no time of a day"),
        ("22:60-23:00", "22:60 is no time of a day"),
        ("07:00-07:00", "07:00-07:00 is no time at all: for whole days write 00:00-24:00"),
        ("24:00-07:00", "24:00 is its end"),
        ("22:00-07:00 Mars/Base", "there is no time zone 'Mars/Base' here: write for example Europe/Berlin or UTC"),
        ("22:00-07:00 Europe", "there is no time zone 'Europe'"),
        ("22:00-07:00 ../../etc/passwd", "there is no time zone"),
        ("22:00-07:00 /etc/localtime", "there is no time zone"),
    ],
)
def test_what_is_wrong_is_said(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "Mon,Wed,Fri 09:00-17:00",
            "'Mon, Wed, Fri 09:00-17:00' can be read in two ways: for the same hours write Mon 09:00-17:00, Wed 09:00-17:00, "
            "Fri 09:00-17:00, for all day Mon 00:00-24:00, Wed 00:00-24:00, Fri 09:00-17:00",
        ),
        (
            "Sat-Sun, Mon-Fri 22:00-07:00",
            "for the same hours write Sat-Sun 22:00-07:00, Mon-Fri 22:00-07:00, for all day Sat-Sun 00",
        ),
        ("Sat, Sun  9:00 - 17:00  Europe/Berlin", "write Sat 9:00 - 17:00 Europe/Berlin, Sun 9:00 - 17:00 Europe/Berlin, for all"),
        ("22:00-07:00, Sun, Mon 09:00-17:00", "'Sun, Mon 09:00-17:00' can be read in two ways"),
    ],
)
def test_days_before_days_with_hours_are_not_guessed_at(text: str, words: str) -> None:
    """Everybody means the same hours by the first of these, and all day by the second."""
    with pytest.raises(ValueError, match=re.escape(words)):
        parse(text)


parts = st.tuples(
    st.sampled_from(("", "Mon", "Sat-Sun", "Fri-Mon")),
    st.sampled_from(("", "09:00-17:30", "22:00-07:00")),
    st.sampled_from(("", "UTC")),
).filter(lambda part: bool(part[0] or part[1]))


@given(st.lists(parts, min_size=1, max_size=5), st.sampled_from((",", ", ", " , ")))
def test_windows_stand_beside_each_other_or_are_refused_for_what_is_between_them(
    drawn: list[tuple[str, str, str]], comma: str
) -> None:
    text = comma.join(" ".join(filter(None, part)) for part in drawn)
    doubtful = any(
        not (hours or zone) and days and next_days and next_hours
        for (days, hours, zone), (next_days, next_hours, _) in itertools.pairwise(drawn)
    )
    if doubtful:
        with pytest.raises(ValueError, match="can be read in two ways"):
            parse(text)
    else:
        assert parse(text).windows == tuple(parse(" ".join(filter(None, part))).windows[0] for part in drawn)


def test_the_model_says_the_same() -> None:
    assert NodeSpec.model_validate({"quietHours": "22:00-07:00"}).quiet_hours == "22:00-07:00"
    with pytest.raises(ValidationError, match=r"quietHours[\s\S]*25:00 is no time of a day"):
        NodeSpec.model_validate({"quietHours": "25:00-07:00"})
    with pytest.raises(ValidationError, match="quietHours"):
        NodeSpec.model_validate({"quietHours": "22:00-07:00\n"})


@given(st.text(max_size=40) | st.text("MonTueFriSat-:,0123456789 UTC/", max_size=40))
def test_no_text_does_anything_but_be_read_or_refused(text: str) -> None:
    try:
        hours = parse(text)
    except ValueError as error:
        assert str(error)
    else:
        hours.at(datetime(2026, 3, 1, tzinfo=UTC), BERLIN)


def test_a_zone_that_is_not_there_is_said() -> None:
    assert zone_named("Europe/Berlin") is BERLIN
    with pytest.raises(ValueError, match="no time zone"):
        zone_named("")


def test_without_the_system_s_database_the_package_s_counts() -> None:
    """As in a small container image."""
    pytest.importorskip("tzdata")
    look = "from swarmtask.resources.quiet_hours import zone_named; print(zone_named('Europe/Berlin'))"
    done = subprocess.run(
        [sys.executable, "-c", look],
        env={**os.environ, "PYTHONTZPATH": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.stdout, done.returncode) == ("Europe/Berlin\n", 0), done.stderr


def test_without_any_database_the_node_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_there(name: str) -> ZoneInfo:
        raise ZoneInfoNotFoundError(name)

    monkeypatch.setattr(quiet_hours, "ZoneInfo", none_there)
    parse.cache_clear()
    with pytest.raises(ValueError, match=r"'Europe/Berlin' cannot be looked up: .* install the Python package tzdata"):
        NodeSpec.model_validate({"quietHours": "22:00-07:00 Europe/Berlin"})
    assert zone_named("UTC") is UTC
    assert NodeSpec.model_validate({"quietHours": "22:00-07:00 UTC, Sat-Sun"}).quiet_hours


# --- when ---


def test_a_night_belongs_to_the_day_on_which_it_begins() -> None:
    fridays = "Fri 22:00-07:00 Europe/Berlin"
    friday, saturday = local(1, 2, 22), local(1, 3, 7)
    assert not at(fridays, friday - timedelta(microseconds=1)).quiet
    assert at(fridays, friday) == Stand(quiet=True, until=saturday.astimezone(UTC), words="Sat 07:00 CET")
    assert at(fridays, saturday - timedelta(microseconds=1)).quiet
    assert at(fridays, saturday) == Stand(quiet=False, until=local(1, 9, 22).astimezone(UTC), words="Fri 22:00 CET")
    assert not at(fridays, local(1, 2, 3)).quiet, "that night began on Thursday"


def test_without_a_zone_it_is_the_readers() -> None:
    noon = datetime(2026, 7, 1, 21, 30, tzinfo=UTC)
    assert not at("22:00-07:00", noon, UTC).quiet
    assert at("22:00-07:00", noon, BERLIN).words == "Thu 07:00 CEST"
    assert not at("22:00-07:00", noon, NEW_YORK).quiet


def test_windows_that_meet_are_one() -> None:
    text = "Fri 22:00-24:00, Sat 00:00-06:00, Sat 05:00-09:00, Sat 07:00-08:00"
    assert at(text, datetime(2026, 1, 2, 23, tzinfo=UTC)).words == "Sat 09:00 UTC"
    assert at("Sat-Sun, 22:00-07:00", datetime(2026, 1, 3, 12, tzinfo=UTC)).words == "Mon 07:00 UTC"


def test_windows_of_several_zones() -> None:
    text = "09:00-10:00 Europe/Berlin, 04:00-05:00 America/New_York"  # 08:00-09:00 and 09:00-10:00 UTC, in winter
    assert at(text, datetime(2026, 1, 2, 8, 30, tzinfo=UTC)) == Stand(
        quiet=True, until=datetime(2026, 1, 2, 10, tzinfo=UTC), words="Fri 05:00 EST"
    )


@pytest.mark.parametrize("text", ["00:00-24:00", "Mon-Sun", "00:00-12:00, 12:00-24:00", "Mon-Fri, Sat-Sun"])
def test_always_has_no_end(text: str) -> None:
    assert at(text, datetime(2026, 1, 2, 8, 30, tzinfo=UTC), BERLIN) == Stand(quiet=True)


def test_never_has_no_beginning() -> None:
    assert at("", datetime(2026, 1, 2, tzinfo=UTC)) == Stand(quiet=False)


def test_a_zone_without_a_name_of_its_own_has_words_too() -> None:
    zone = timezone(timedelta(hours=5, minutes=30))
    assert at("22:00-07:00", datetime(2026, 1, 2, tzinfo=UTC), zone).words == "Fri 07:00 UTC+05:30"


# --- clocks that change; Berlin: 2026-03-29 02:00 -> 03:00, 2026-10-25 03:00 -> 02:00 ---


def hours(text: str, day: date, zone: tzinfo) -> list[tuple[datetime, datetime]]:
    return [(begin, end) for window in parse(text).windows for begin, end in window.between(day, day, zone)]


@pytest.mark.parametrize(
    ("text", "begin", "end"),
    [
        ("00:00-06:00", "2026-03-28T23:00", "2026-03-29T04:00"),  # an hour shorter
        ("02:30-06:00", "2026-03-29T01:00", "2026-03-29T04:00"),  # its beginning is skipped: as soon as it is later
        ("00:00-02:30", "2026-03-28T23:00", "2026-03-29T01:00"),  # its end is skipped
        ("01:59-03:00", "2026-03-29T00:59", "2026-03-29T01:00"),
    ],
)
def test_an_hour_that_is_skipped(text: str, begin: str, end: str) -> None:
    assert hours(text, date(2026, 3, 29), BERLIN) == [
        (datetime.fromisoformat(f"{begin}:00+00:00"), datetime.fromisoformat(f"{end}:00+00:00"))
    ]


def test_a_window_that_is_skipped_altogether_does_not_happen() -> None:
    assert hours("02:10-02:50", date(2026, 3, 29), BERLIN) == []
    assert len(hours("02:10-02:50", date(2026, 3, 30), BERLIN)) == 1


@pytest.mark.parametrize(
    ("text", "begin", "end"),
    [
        ("00:00-06:00", "2026-10-24T22:00", "2026-10-25T05:00"),  # an hour longer
        ("02:30-06:00", "2026-10-25T00:30", "2026-10-25T05:00"),  # from the first 02:30 on
        ("00:00-02:30", "2026-10-24T22:00", "2026-10-25T01:30"),  # to the last 02:30
        ("02:10-02:50", "2026-10-25T00:10", "2026-10-25T01:50"),  # without a gap
    ],
)
def test_an_hour_that_comes_twice(text: str, begin: str, end: str) -> None:
    assert hours(text, date(2026, 10, 25), BERLIN) == [
        (datetime.fromisoformat(f"{begin}:00+00:00"), datetime.fromisoformat(f"{end}:00+00:00"))
    ]


def test_a_day_that_a_country_leaves_out() -> None:
    assert hours("10:00-12:00", date(2011, 12, 30), ZoneInfo("Pacific/Apia")) == []


# --- against a plain reading of the wall clock ---

times = st.integers(0, 24 * 60 - 1)
moments = st.integers(0, 2 * 366 * 86_400).map(lambda seconds: datetime(2025, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds))


@st.composite
def windows(draw: st.DrawFn) -> Window:
    start, end = draw(times), draw(st.integers(1, 24 * 60))
    zone = draw(st.none() | st.sampled_from(ZONES).map(ZoneInfo))
    days = draw(st.frozensets(st.integers(0, 6), min_size=1))
    return Window(days, start, end if end != start else end + 1, zone)


def shows(window: Window, moment: datetime, zone: tzinfo) -> bool:
    """Whether the wall clock shows a time within the window."""
    wall = moment.astimezone(window.zone or zone)
    minute, day = wall.hour * 60 + wall.minute, wall.weekday()
    if window.start < window.end:
        return day in window.days and window.start <= minute < window.end
    return (day in window.days and minute >= window.start) or ((day - 1) % 7 in window.days and minute < window.end)


def steady(moment: datetime, zone: tzinfo) -> bool:
    """No clock is changed around this moment."""
    return len({(moment + timedelta(hours=hour)).astimezone(zone).utcoffset() for hour in range(-50, 51, 2)}) == 1


@given(st.lists(windows(), min_size=1, max_size=3), moments, st.sampled_from(ZONES).map(ZoneInfo))
@example([Window(EVERY_DAY, 1320, 420)], datetime(2026, 3, 29, 1, tzinfo=UTC), BERLIN)
def test_it_is_quiet_when_the_wall_clock_says_so_and_until_the_moment_that_is_named(
    drawn: list[Window], moment: datetime, zone: tzinfo
) -> None:
    quiet = QuietHours(tuple(drawn))
    stand = quiet.at(moment, zone)
    if all(steady(moment, window.zone or zone) for window in drawn):
        assert stand.quiet == any(shows(window, moment, zone) for window in drawn)
    if stand.until is None:
        assert stand.words == ""
        far = [quiet.at(moment + timedelta(hours=hour), zone).quiet for hour in range(0, 168, 5)]
        assert set(far) == {stand.quiet}
        return
    assert stand.until > moment
    assert quiet.at(stand.until, zone).quiet is not stand.quiet
    between = moment + (stand.until - moment) / 2
    for inside in (between, stand.until - timedelta(microseconds=1)):
        if inside >= moment:
            assert quiet.at(inside, zone) == stand, "nothing changes before"
    assert stand.words.split()[0] in DAYS
