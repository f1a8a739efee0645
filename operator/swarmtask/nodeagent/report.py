"""From readings to what the SwarmNode shows, and which change is worth a write. Pure.

Called by the agent's loop. It takes values and returns values; it knows no clock and no API.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swarmtask.nodeagent.reading import GpuReading, Reading

GIB = 2**30
LOW_DISK = 0.05
"""DiskPressure: less than this share of the disk is free, and less than LOW_DISK_BYTES."""
LOW_DISK_BYTES = 10 * GIB
MEMORY_PRESSURE = 0.4
"""MemoryPressure: tasks waited for memory for this share of the time, or less than LOW_MEMORY of it is available."""
LOW_MEMORY = 0.05
RELIEF = 0.5
"""A condition that holds goes on until its cause has fallen to this part of what began it: no flapping at the edge."""
HOT_C = 90.0
COOL_C = 80.0

MOVED_SHARE = 0.05
"""Memory, swap, disk: a move by this share of the whole is news."""
MOVED_CPU = 0.2
MOVED_PRESSURE = 0.1
MOVED_PERCENT = 5
MOVED_C = 5.0
MOVED_LATENCY = 0.5
"""Latency: a move by half, and by at least MOVED_LATENCY_MS."""
MOVED_LATENCY_MS = 5


Outline = frozenset[tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class Sight:
    """A reading, with how far the API is away. `latency_ms` is None while the API does not answer."""

    reading: Reading
    latency_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of the node, as it is now."""

    holds: bool
    reason: str
    message: str


def conditions(reading: Reading, before: Mapping[str, bool]) -> dict[str, Condition]:
    """MemoryPressure, DiskPressure, OnBattery and Hot.

    Args:
        before: which of them held at the last look; those that do not appear did not.
    """
    facts = reading.facts
    waited, left = reading.pressure.memory, reading.memory_available_bytes / max(facts.memory_bytes, 1)
    was = before.get("MemoryPressure", False)
    tight = waited >= MEMORY_PRESSURE * (RELIEF if was else 1) or left < LOW_MEMORY / (RELIEF if was else 1)
    was = before.get("DiskPressure", False)
    most = min(LOW_DISK * facts.disk_bytes, LOW_DISK_BYTES) / (RELIEF if was else 1)
    full = reading.disk_free_bytes < most
    degrees = reading.temperature_c
    hot = degrees is not None and degrees >= (COOL_C if before.get("Hot", False) else HOT_C)
    charge = "" if reading.battery_percent is None else f", {reading.battery_percent} % left"
    available = f"{reading.memory_available_bytes / GIB:.1f} GiB available, tasks waited for memory {waited:.0%} of the time"
    return {
        "MemoryPressure": _condition(tight, ("MemoryIsShort", "MemorySuffices"), available),
        "DiskPressure": _condition(full, ("DiskIsFull", "DiskSuffices"), f"{reading.disk_free_bytes / GIB:.1f} GiB free"),
        "OnBattery": _condition(
            reading.on_battery, ("Battery", "Mains"), f"on battery{charge}" if reading.on_battery else "on mains"
        ),
        "Hot": _condition(
            hot, ("TooHot", "Cool"), "no sensor tells a temperature" if degrees is None else f"processor at {degrees:.0f} C"
        ),
    }


def _condition(holds: bool, reasons: tuple[str, str], message: str) -> Condition:
    return Condition(holds, reasons[0] if holds else reasons[1], message)


def status(sight: Sight, version: str) -> dict[str, Any]:
    """The agent's part of a SwarmNode's status, without its conditions; JSON-ready."""
    reading, facts = sight.reading, sight.reading.facts
    return {
        "kernel": facts.kernel,
        "bootID": facts.boot_id,
        "agentVersion": version,
        "capabilities": sorted(facts.capabilities),
        "gpus": [_gpu(gpu) for gpu in reading.gpus],
        "power": {
            "onBattery": reading.on_battery,
            **({} if reading.battery_percent is None else {"percent": reading.battery_percent}),
        },
        **({} if sight.latency_ms is None else {"latencyMilliseconds": sight.latency_ms}),
        "usage": {
            "cpu": f"{round(reading.cpu_busy * facts.cpus * 1000)}m",
            "memory": _mebibytes(facts.memory_bytes - reading.memory_available_bytes),
            "swap": _mebibytes(reading.swap_used_bytes),
            "diskFree": _mebibytes(reading.disk_free_bytes),
            "load1": f"{round(reading.load1 * 1000)}m",
            **({} if reading.temperature_c is None else {"temperatureCelsius": round(reading.temperature_c)}),
            "pressure": {"memory": round(100 * reading.pressure.memory), "cpu": round(100 * reading.pressure.cpu)},
        },
    }


def _gpu(gpu: GpuReading) -> dict[str, Any]:
    return {
        "index": gpu.index, "vendor": gpu.vendor, "model": gpu.model[:128], "uuid": gpu.uuid[:128],
        "memory": _mebibytes(gpu.memory_bytes),
        "usage": {
            **({} if gpu.used_bytes is None else {"memory": _mebibytes(gpu.used_bytes)}),
            **({} if gpu.busy is None else {"percent": min(max(round(100 * gpu.busy), 0), 100)}),
        },
    }  # fmt: skip


def _mebibytes(amount: int) -> str:
    return f"{max(0, amount) // 2**20}Mi"


def is_news(told: Sight, now: Sight, told_conditions: Mapping[str, Condition], now_conditions: Mapping[str, Condition]) -> bool:
    """Whether something that matters to placement or to a person has changed since it was told last."""
    old, new = told.reading, now.reading
    if old.facts != new.facts or old.on_battery != new.on_battery or _kinds(old) != _kinds(new):
        return True
    if any(
        told_conditions.get(name) is None or told_conditions[name].holds != now_conditions[name].holds for name in now_conditions
    ):
        return True
    whole = max(new.facts.memory_bytes, 1)
    return (
        abs(old.memory_available_bytes - new.memory_available_bytes) > MOVED_SHARE * whole
        or abs(old.swap_used_bytes - new.swap_used_bytes) > MOVED_SHARE * whole
        or abs(old.disk_free_bytes - new.disk_free_bytes) > MOVED_SHARE * max(new.facts.disk_bytes, 1)
        or abs(old.cpu_busy - new.cpu_busy) > MOVED_CPU
        or abs(old.pressure.memory - new.pressure.memory) > MOVED_PRESSURE
        or abs(old.pressure.cpu - new.pressure.cpu) > MOVED_PRESSURE
        or _apart(old.battery_percent, new.battery_percent, MOVED_PERCENT)
        or _apart(old.temperature_c, new.temperature_c, MOVED_C)
        or _farther(told.latency_ms, now.latency_ms)
        or any(map(_moved, old.gpus, new.gpus))
    )


def outline(attempts: Sequence[Mapping[str, Any]]) -> Outline:
    """Of `status.attempts`, what is told at once when it changes: which there are, and how they ended. What they use is not."""
    return frozenset(
        (item["id"], item["state"], item.get("reason"), item.get("exitCode"), item.get("startedAt")) for item in attempts
    )


def _kinds(reading: Reading) -> list[tuple[int, str, str, str, int]]:
    return [(gpu.index, gpu.vendor, gpu.model, gpu.uuid, gpu.memory_bytes) for gpu in reading.gpus]


def _moved(old: GpuReading, new: GpuReading) -> bool:
    share = MOVED_SHARE * max(new.memory_bytes, 1)
    return _apart(old.busy, new.busy, MOVED_CPU) or _apart(old.used_bytes, new.used_bytes, share)


def _apart(old: float | None, new: float | None, by: float) -> bool:
    if old is None or new is None:
        return old is not new
    return abs(old - new) >= by


def _farther(old: int | None, new: int | None) -> bool:
    if new is None:
        return False  # it cannot be told anyway
    return old is None or abs(old - new) > max(MOVED_LATENCY_MS, MOVED_LATENCY * old)
