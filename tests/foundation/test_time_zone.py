"""Which time zone counts where nobody names one: the setting, else TZ, else the machine's, else UTC."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import TZPATH, ZoneInfo

import pytest

from swarmtask import clock
from swarmtask.clock import machine_zone
from swarmtask.errors import ConfigurationError
from swarmtask.settings import OperatorSettings, load_settings


@pytest.mark.parametrize(
    ("tz", "zone"),
    [
        ("Europe/Berlin", "Europe/Berlin"),
        (":America/New_York", "America/New_York"),
        ("<+03>-3", ""),
        ("", ""),
        ("/etc/localtime", ""),
    ],
)
def test_tz_counts_where_it_names_a_zone(monkeypatch: pytest.MonkeyPatch, tz: str, zone: str) -> None:
    monkeypatch.setenv("TZ", tz)
    assert OperatorSettings().time_zone == zone


def test_the_setting_comes_first_and_must_be_a_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    monkeypatch.setenv("SWARMTASK_OPERATOR__TIME_ZONE", "Asia/Kathmandu")
    assert load_settings().operator.time_zone == "Asia/Kathmandu"
    monkeypatch.setenv("SWARMTASK_OPERATOR__TIME_ZONE", "Mars/Base")
    with pytest.raises(ConfigurationError, match="there is no time zone 'Mars/Base' here: write for example Europe/Berlin"):
        load_settings()


def test_the_machines_zone_changes_its_clock_as_the_machine_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    berlin = ZoneInfo("Europe/Berlin")
    source = next(folder / "Europe" / "Berlin" for folder in map(Path, TZPATH) if (folder / "Europe").is_dir())
    monkeypatch.setattr(clock, "MACHINE_ZONE", source)
    for month in (1, 7):
        moment = datetime(2026, month, 1, tzinfo=UTC)
        assert moment.astimezone(machine_zone()).utcoffset() == moment.astimezone(berlin).utcoffset()
    monkeypatch.setattr(clock, "MACHINE_ZONE", tmp_path / "missing")
    assert machine_zone() is UTC
    (tmp_path / "broken").write_bytes(b"no zone at all")
    monkeypatch.setattr(clock, "MACHINE_ZONE", tmp_path / "broken")
    assert machine_zone() is UTC
