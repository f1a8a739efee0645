"""Quiet hours: weekly windows of wall time, written as `22:00-07:00, Mon-Fri 09:00-17:30 Europe/Berlin`.

Called by the model of SwarmNode (is the text right?) and by the operator (is it quiet now, and until when?). Pure: no clock is
read, the time zone of windows that name none is an argument; only the zones themselves come from the IANA database.

Days without hours are all day. Directly before days with hours they are refused: in `Mon, Wed, Fri 09:00-17:00` everybody means the
same hours, in `Sat-Sun, Mon-Fri 22:00-07:00` all day. What names a time zone, or no days, is no part of such a list.

A window belongs to the day on which it begins, and may end on the next. Where clocks change, it is rather quiet than not: it begins
at the first moment at which the wall clock shows its beginning or, where that is skipped, anything later; it ends when the wall
clock has shown its end for the last time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
EVERY_DAY = frozenset(range(7))
MINUTES = 24 * 60
HORIZON_DAYS = 8
"""So far ahead the next change is looked for; windows come back every week."""
EXAMPLE = "write for example 22:00-07:00, Mon-Fri 09:00-17:30 or Sat-Sun, each with a time zone behind it if need be: Europe/Berlin"

_WINDOW = re.compile(
    r"(?P<days>[A-Za-z]+(?:-[A-Za-z]+)?(?=\s|$))?\s*(?:(?P<start>\d{1,2}:\d{2})\s*-\s*(?P<end>\d{1,2}:\d{2}))?\s*(?P<zone>\S+)?"
)


@dataclass(frozen=True, slots=True)
class Window:
    """Some hours of some days.

    Attributes:
        days: on which it begins; 0 is Monday.
        start, end: minutes after midnight; an end that is not later than the start is on the next day.
        zone: None: the zone of whoever reads it.
    """

    days: frozenset[int]
    start: int
    end: int
    zone: tzinfo | None = None

    def between(self, first: date, last: date, zone: tzinfo) -> Iterator[tuple[datetime, datetime]]:
        """(begin, end), aware and UTC, of those that begin on these days of its own calendar; empty ones left out."""
        for number in range((last - first).days + 1):
            day = first + timedelta(days=number)
            if day.weekday() not in self.days:
                continue
            begin = _moment(day, self.start, self.zone or zone, last_time=False)
            end = _moment(day, self.end + (MINUTES if self.end <= self.start else 0), self.zone or zone, last_time=True)
            if begin < end:
                yield begin, end


@dataclass(frozen=True, slots=True)
class Stand:
    """How it stands at one moment.

    Attributes:
        quiet: whether it is.
        until: the first moment at which that is otherwise; None: it stays so for more than a week.
        words: that moment as the wall clock of its window shows it: "Sun 07:00 CET"; empty where there is none.
    """

    quiet: bool
    until: datetime | None = None
    words: str = ""


@dataclass(frozen=True, slots=True)
class QuietHours:
    """Windows of which any makes it quiet; none: it never is."""

    windows: tuple[Window, ...] = ()

    def at(self, moment: datetime, zone: tzinfo) -> Stand:
        """How it stands.

        Args:
            moment: aware.
            zone: of windows that name none.
        """
        now = moment.astimezone(UTC)
        found = sorted(self._around(now, zone), key=lambda one: one[0])
        end: datetime | None = None
        shown = zone
        for begin, over, where in found:
            if end is None:
                if begin <= now < over:
                    end, shown = over, where
                elif begin > now:
                    return Stand(quiet=False, until=begin, words=_words(begin, where))
            elif begin <= end < over:
                end, shown = over, where
        if end is None:
            return Stand(quiet=False)
        if end - now > timedelta(days=HORIZON_DAYS - 1):
            return Stand(quiet=True)
        return Stand(quiet=True, until=end, words=_words(end, shown))

    def _around(self, now: datetime, zone: tzinfo) -> Iterator[tuple[datetime, datetime, tzinfo]]:
        for window in self.windows:
            today = now.astimezone(window.zone or zone).date()
            for begin, end in window.between(today - timedelta(days=2), today + timedelta(days=HORIZON_DAYS), zone):
                if end > now:
                    yield begin, end, window.zone or zone


@lru_cache(maxsize=1024)
def parse(text: str) -> QuietHours:
    """Read quiet hours; an empty text is never quiet.

    Raises:
        ValueError: for a person: which part is wrong, and how it is written.
    """
    if not text.strip():
        return QuietHours()
    parts = [part.strip() for part in text.split(",")]
    windows = tuple(map(_window, parts))
    _refuse_two_ways(parts)
    return QuietHours(windows)


def zone_named(name: str) -> tzinfo:
    """A time zone of the IANA database: the system's, else that of the package tzdata. UTC needs none.

    Raises:
        ValueError: there is none of that name, or no database; for a person.
    """
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # OSError: a name that is a directory of the database, such as Europe
        if name == "UTC":
            return UTC
    try:
        ZoneInfo("Etc/GMT")
    except ZoneInfoNotFoundError:
        words = "there is no database of time zones here: install the Python package tzdata or the system's, or write UTC"
        raise ValueError(f"the time zone {name!r} cannot be looked up: {words}") from None
    raise ValueError(f"there is no time zone {name!r} here: write for example Europe/Berlin or UTC")


def _window(text: str) -> Window:
    found = _WINDOW.fullmatch(text)
    if not text or found is None:
        raise ValueError(f"{text!r} are no quiet hours: {EXAMPLE}")
    days, start, end, zone = found.group("days", "start", "end", "zone")
    if start is None and (days is None or (zone is None and not _is_days(days))):
        raise ValueError(f"{text!r} are no quiet hours: {EXAMPLE}")
    begin, over = (0, MINUTES) if start is None else (_minutes(start), _minutes(end))
    if begin == over:
        raise ValueError(f"{start}-{end} is no time at all: for whole days write 00:00-24:00")
    if begin == MINUTES:
        raise ValueError(f"{start}-{end}: a day begins at 00:00, and 24:00 is its end")
    return Window(EVERY_DAY if days is None else _days(days), begin, over, None if zone is None else zone_named(zone))


def _refuse_two_ways(parts: Sequence[str]) -> None:
    """Days alone are all day. Before days with hours they may as well be meant as a list of days for these: nobody can tell."""
    alone: list[str] = []
    for part in parts:
        found = _WINDOW.fullmatch(part)
        days, start, zone = found.group("days", "start", "zone") if found else (None, None, None)
        if alone and days and start:
            hours = " ".join(part.split()[1:])
            same, whole = (", ".join([*(f"{one} {when}" for one in alone), f"{days} {hours}"]) for when in (hours, "00:00-24:00"))
            both = ", ".join([*alone, part])
            raise ValueError(f"{both!r} can be read in two ways: for the same hours write {same}, for all day {whole}")
        alone = [*alone, days] if days and not (start or zone) else []


def _is_days(text: str) -> bool:
    return all(part in DAYS for part in text.split("-"))


def _days(text: str) -> frozenset[int]:
    if not _is_days(text):
        raise ValueError(f"{text!r} are no days: write {', '.join(DAYS)}, or from one to another as in Mon-Fri")
    first, _, last = text.partition("-")
    begin, end = DAYS.index(first), DAYS.index(last or first)
    return frozenset((begin + number) % 7 for number in range((end - begin) % 7 + 1))


def _minutes(text: str) -> int:
    hours, minutes = map(int, text.split(":"))
    if minutes > 59 or hours > 24 or (hours == 24 and minutes):
        raise ValueError(f"{text} is no time of a day: write 00:00 to 24:00")
    return 60 * hours + minutes


def _moment(day: date, minutes: int, zone: tzinfo, *, last_time: bool) -> datetime:
    """When the wall clock shows so many minutes after a day's midnight, in UTC; where it shows that twice, the first time or the
    last; where it skips that, when it does."""
    wall = datetime.combine(day, time()) + timedelta(minutes=minutes)
    earlier, later = (wall.replace(tzinfo=zone, fold=fold) for fold in (0, 1))
    moments = sorted((earlier.astimezone(UTC), later.astimezone(UTC)))
    if moments[0] == moments[1] or moments[0].astimezone(zone).replace(tzinfo=None) == wall:
        return moments[1 if last_time else 0]
    # Skipped: between these two moments the clock was set forward, at a whole second.
    before, after = (int(moment.timestamp()) for moment in moments)
    while after - before > 1:
        middle = (before + after) // 2
        if datetime.fromtimestamp(middle, UTC).astimezone(zone).replace(tzinfo=None) < wall:
            before = middle
        else:
            after = middle
    return datetime.fromtimestamp(after, UTC)


def _words(moment: datetime, zone: tzinfo) -> str:
    local = moment.astimezone(zone)
    return f"{DAYS[local.weekday()]} {local:%H:%M} {local.tzname() or 'UTC'}"
