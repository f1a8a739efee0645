"""How hard tasks wait for memory and CPU: as the kernel measures it, else derived.

Called by `probe`. Source: Linux, Documentation/accounting/psi.rst. Without PSI, memory pressure is derived from how fast pages are
swapped in and how little is available, CPU pressure from the load beyond the number of cores; both are coarser, and marked so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from swarmtask.nodeagent.reading import Pressure

_SOME = re.compile(r"^some avg10=([0-9]+(?:\.[0-9]+)?)\b", re.MULTILINE)

SCARCE = 0.10
"""Below so much available memory, some of it counts as pressure; without any, all does."""
SWAP_BYTES_PER_S = 50 * 2**20
"""Reading so much from swap in a second counts as full pressure: a disk does hardly more."""


@dataclass(frozen=True, slots=True)
class Load:
    """What pressure is derived from. `swapped_in_bytes_per_s` since the last look."""

    cpus: int
    load1: float
    memory_bytes: int
    available_bytes: int
    swapped_in_bytes_per_s: float


def read_psi(proc: Path) -> Pressure | None:
    """What /proc/pressure says; None where the kernel measures nothing."""
    shares = []
    for name in ("memory", "cpu"):
        try:
            found = _SOME.search((proc / "pressure" / name).read_text())
        except OSError:  # not there, or switched off (psi=0: reading fails with EOPNOTSUPP)
            return None
        if found is None:
            return None
        shares.append(min(float(found.group(1)) / 100, 1.0))
    return Pressure(shares[0], shares[1], "psi")


def derive(load: Load) -> Pressure:
    """The same from other figures."""
    left = load.available_bytes / load.memory_bytes if load.memory_bytes > 0 else 1.0
    scarce = max(0.0, (SCARCE - left) / SCARCE)
    swapping = load.swapped_in_bytes_per_s / SWAP_BYTES_PER_S
    crowd = load.load1 / load.cpus - 1 if load.cpus > 0 else 0.0
    return Pressure(_share(max(scarce, swapping)), _share(crowd), "derived")


def _share(value: float) -> float:
    return round(min(max(value, 0.0), 1.0), 4)
