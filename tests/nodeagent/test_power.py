"""Batteries and plugs as Linux shows them, recorded from its documentation of /sys/class/power_supply."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmtask.nodeagent.power import read_power


def supply(folder: Path, name: str, **files: str | int) -> None:
    (folder / name).mkdir()
    for file, text in files.items():
        (folder / name / file).write_text(f"{text}\n")


def laptop(folder: Path, *, online: int, status: str = "Discharging", **files: str | int) -> None:
    supply(folder, "ADP1", type="Mains", online=online)
    supply(folder, "BAT0", type="Battery", present=1, status=status, **files)


def test_machines_without_a_battery(tmp_path: Path) -> None:
    assert read_power(tmp_path / "none") is None, "a kernel without power supplies"
    assert read_power(tmp_path) == (False, None)
    supply(tmp_path, "AC", type="Mains", online=0)
    assert read_power(tmp_path) == (False, None), "what has no battery does not run on one"


@pytest.mark.parametrize(
    ("online", "status", "on_battery"),
    [
        (0, "Discharging", True), (1, "Discharging", False), (1, "Charging", False), (1, "Not charging", False),
        (0, "Unknown", True), (0, "Full", False),
    ],
    ids=["away", "a weak charger", "charged", "kept below full", "a driver that says little", "a plug that lies"],
)  # fmt: skip
def test_a_laptop(tmp_path: Path, online: int, status: str, on_battery: bool) -> None:
    laptop(tmp_path, online=online, status=status, capacity=40)
    assert read_power(tmp_path) == (on_battery, 40)


@pytest.mark.parametrize(("status", "on_battery"), [("Discharging", True), ("Full", False), ("Unknown", False)])
def test_a_battery_alone(tmp_path: Path, status: str, on_battery: bool) -> None:
    supply(tmp_path, "battery", type="Battery", status=status, capacity=7)
    assert read_power(tmp_path) == (on_battery, 7)


def test_a_wireless_mouse_makes_no_laptop_of_a_desktop(tmp_path: Path) -> None:
    supply(tmp_path, "hidpp_battery_0", type="Battery", scope="Device", status="Discharging", capacity=5, online=1)
    assert read_power(tmp_path) == (False, None)


def test_two_batteries_are_one(tmp_path: Path) -> None:
    """Laptops empty one after the other: the first says next to nothing."""
    laptop(tmp_path, online=0, energy_now=1_000_000, energy_full=20_000_000, capacity=5)
    supply(
        tmp_path, "BAT1", type="Battery", present=1, status="Unknown", energy_now=59_000_000, energy_full=60_000_000, capacity=98
    )
    supply(tmp_path, "BAT2", type="Battery", present=0, status="Unknown")
    assert read_power(tmp_path) == (True, 75)
    (tmp_path / "BAT1" / "energy_full").write_text("0\n")
    assert read_power(tmp_path) == (True, 52), "units that do not go together"


def test_a_usb_plug_is_a_plug(tmp_path: Path) -> None:
    laptop(tmp_path, online=0, capacity=50)
    supply(tmp_path, "ucsi-source-psy-1", type="USB", scope="System", online=1)
    assert read_power(tmp_path) == (False, 50)


def test_drivers_that_tell_nothing(tmp_path: Path) -> None:
    laptop(tmp_path, online=0, capacity="")
    (tmp_path / "BAT0" / "energy_now").mkdir()
    assert read_power(tmp_path) == (True, None)
    (tmp_path / "BAT0" / "capacity").write_text("255\n")
    assert read_power(tmp_path) == (True, 100)
