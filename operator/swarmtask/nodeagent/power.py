"""Where this machine's power comes from, and how much charge is left: from sysfs.

Called by `probe`. psutil looks at one battery, also where that is a wireless mouse's: a desktop would count as a laptop that is
nearly empty, and a laptop with two batteries as what the first of them says. Reads only, decides nothing.
Source: Linux, Documentation/ABI/testing/sysfs-class-power.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SUPPLIES = Path("/sys/class/power_supply")
_STORES = frozenset({"Battery", "UPS"})
_FED = frozenset({"Charging", "Full", "Not charging"})


@dataclass(frozen=True, slots=True)
class _Battery:
    """`amount`: (unit, what is left, what it holds at most) where the driver tells; `percent` likewise."""

    status: str
    amount: tuple[str, int, int] | None
    percent: int | None


def read_power(supplies: Path = SUPPLIES) -> tuple[bool, int | None] | None:
    """(on battery, percent of the charge of all batteries together); (False, None) without a battery; None: no sysfs tells.

    What does not say whether it is charged counts as on mains, and so does what is charged too slowly to last.
    """
    try:
        entries = sorted(supplies.iterdir())
    except OSError:
        return None
    # Of a peripheral's battery, the machine does not live.
    found = [(entry, _text(entry / "type")) for entry in entries if _text(entry / "scope") != "Device"]
    batteries = [_battery(entry) for entry, kind in found if kind in _STORES and _text(entry / "present") != "0"]
    sources = [_number(entry / "online") for entry, kind in found if kind and kind not in _STORES]
    if not batteries:
        return False, None
    states = {battery.status for battery in batteries}
    plugged_in = any(sources) or not ("Discharging" in states or (sources and not states & _FED))
    return not plugged_in, _percent(batteries)


def _battery(entry: Path) -> _Battery:
    amount = None
    for unit in ("energy", "charge"):
        now, full = _number(entry / f"{unit}_now"), _number(entry / f"{unit}_full")
        if now is not None and full:
            amount = (unit, now, full)
            break
    return _Battery(_text(entry / "status"), amount, _number(entry / "capacity"))


def _percent(batteries: Sequence[_Battery]) -> int | None:
    amounts = [battery.amount for battery in batteries if battery.amount is not None]
    if len(amounts) == len(batteries) and len({unit for unit, _, _ in amounts}) == 1:
        share = 100 * sum(now for _, now, _ in amounts) / sum(full for _, _, full in amounts)
    else:
        known = [battery.percent for battery in batteries if battery.percent is not None]
        if not known:
            return None
        share = sum(known) / len(known)
    return min(max(round(share), 0), 100)


def _text(path: Path) -> str:
    """The only line of a file; empty where there is none, or its driver cannot say now."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isascii() and text.isdigit() else None
