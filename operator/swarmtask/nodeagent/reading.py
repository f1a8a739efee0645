"""One look at the machine, as a value.

Made by `probe`, told by `report`. Amounts are bytes, shares are 0..1, temperatures degrees Celsius. What a machine does not have or
does not tell is None or empty, never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU.

    Attributes:
        index: unique on its machine, and the same at each look: see `gpus`.
        used_bytes, busy: of its memory and its time; None where the driver does not say.
    """

    index: int
    vendor: str
    model: str
    uuid: str = ""
    memory_bytes: int = 0
    used_bytes: int | None = None
    busy: float | None = None


@dataclass(frozen=True, slots=True)
class Pressure:
    """How much of the last ten seconds somebody waited for memory or CPU.

    Attributes:
        source: psi as the kernel measures it; derived from other figures where the kernel does not.
    """

    memory: float
    cpu: float
    source: Literal["psi", "derived"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What stays the same until the machine restarts or is taken apart.

    Attributes:
        boot_id: another one means that the machine has restarted.
        arch: as the kernel says it (x86_64).
    """

    hostname: str
    boot_id: str
    arch: str
    os: str
    kernel: str
    cpus: int
    memory_bytes: int
    swap_bytes: int
    disk_bytes: int
    capabilities: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Reading:
    """One look.

    Attributes:
        cpu_busy: share of all cores since the last look; 0 at the first.
        load1: processes that ran or wanted to, over the last minute.
        disk_free_bytes: where engines keep images and containers.
        temperature_c: of the hottest sensor of the processor.
        battery_percent: None without a battery.
    """

    facts: Facts
    cpu_busy: float
    load1: float
    memory_available_bytes: int
    swap_used_bytes: int
    disk_free_bytes: int
    pressure: Pressure
    temperature_c: float | None = None
    on_battery: bool = False
    battery_percent: int | None = None
    gpus: tuple[GpuReading, ...] = ()
