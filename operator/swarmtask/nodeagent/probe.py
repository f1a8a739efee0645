"""Looks at this machine: psutil, /proc and /sys become one `Reading`.

Called by the agent's loop every few seconds, and cheap enough for that. Reads only; a figure that a machine does not have is left
out. In a container it looks at the host's /proc when psutil is told so (`psutil.PROCFS_PATH`).
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from swarmtask.nodeagent.eviction import Strain
from swarmtask.nodeagent.gpus import Gpus
from swarmtask.nodeagent.power import SUPPLIES, read_power
from swarmtask.nodeagent.pressure import Load, derive, read_psi
from swarmtask.nodeagent.reading import Facts, GpuReading, Pressure, Reading

PROCESSOR_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "acpitz")
"""Chips that measure the processor, the more exact first."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "firefox", "firefox-esr")


class Probe:
    """See the module.

    Args:
        clock: seconds, monotonic; rates are measured between two looks.
        disk: a path on the disk whose room counts.
        capabilities: what a person says the machine offers; what is detected is added.
        proc, supplies: where the kernel's figures are, and its batteries.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        gpus: Gpus,
        *,
        disk: Path,
        capabilities: Iterable[str] = (),
        proc: Path = Path("/proc"),
        supplies: Path = SUPPLIES,
    ) -> None:
        self._clock, self._gpus, self._disk, self._proc, self._supplies = clock, gpus, disk, proc, supplies
        self._offered = frozenset(capabilities)
        self._swapped: tuple[float, int] | None = None
        self._strain_swapped: tuple[float, int] | None = None

    def read(self) -> Reading:
        """One look. Never raises for what a machine lacks."""
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        disk = shutil.disk_usage(self._disk if self._disk.exists() else Path("/"))
        gpus = self._gpus.read()
        load1 = os.getloadavg()[0]
        cpus = psutil.cpu_count() or 1
        on_battery, percent = read_power(self._supplies) or _power_by_psutil()
        swapped_in, self._swapped = self._swap_rate(self._swapped, swap.sin)
        return Reading(
            facts=Facts(
                hostname=socket.gethostname(),
                boot_id=self._boot_id(),
                arch=platform.machine(),
                os=platform.system().lower(),
                kernel=platform.release(),
                cpus=cpus,
                memory_bytes=memory.total,
                swap_bytes=swap.total,
                disk_bytes=disk.total,
                capabilities=self._offered | detected(gpus),
            ),
            cpu_busy=round(psutil.cpu_percent(interval=None) / 100, 3),
            load1=round(load1, 2),
            memory_available_bytes=memory.available,
            swap_used_bytes=swap.used,
            disk_free_bytes=disk.free,
            pressure=self._pressure(Load(cpus, load1, memory.total, memory.available, swapped_in)),
            temperature_c=_temperature(),
            on_battery=on_battery,
            battery_percent=percent,
            gpus=gpus,
        )

    def strain(self) -> Strain:
        """How short memory is, and nothing else: cheap enough for every second. From one thread, which need not be `read`'s."""
        memory = psutil.virtual_memory()
        pressure = read_psi(self._proc)
        if pressure is None:
            swapped_in, self._strain_swapped = self._swap_rate(self._strain_swapped, psutil.swap_memory().sin)
            pressure = derive(Load(psutil.cpu_count() or 1, os.getloadavg()[0], memory.total, memory.available, swapped_in))
        return Strain(memory.available, memory.total, pressure.memory)

    @property
    def boot_id(self) -> str:
        """Of this boot of the machine."""
        return self._boot_id()

    def _boot_id(self) -> str:
        try:
            return (self._proc / "sys/kernel/random/boot_id").read_text().strip()
        except OSError:  # no Linux: the moment of the start is as good, whole seconds do not drift
            return f"boot-{int(psutil.boot_time())}"

    def _pressure(self, load: Load) -> Pressure:
        return read_psi(self._proc) or derive(load)

    def _swap_rate(self, before: tuple[float, int] | None, swapped_in: int) -> tuple[float, tuple[float, int]]:
        """(bytes per second since `before`, what to compare the next look with)."""
        now = self._clock()
        rate = 0.0 if before is None or now <= before[0] else max(0, swapped_in - before[1]) / (now - before[0])
        return rate, (now, swapped_in)


def detected(
    gpus: tuple[GpuReading, ...], dev: Path = Path("/dev"), run: Path = Path("/var/run"), misc: Path = Path("/sys/class/misc")
) -> frozenset[str]:
    """What the machine offers by having it: docker, browser, kvm, gpu. A container has no /dev of its machine, but its sysfs; and
    programs only of its own image. Parts of a processor are no GPU to somebody who does not ask for just them."""
    found = set()
    if (run / "docker.sock").exists():
        found.add("docker")
    if any(shutil.which(name) for name in BROWSERS):
        found.add("browser")
    if (dev / "kvm").exists() or (misc / "kvm").exists():
        found.add("kvm")
    if any(gpu.vendor == "nvidia" or gpu.memory_bytes for gpu in gpus):
        found.add("gpu")
    return frozenset(found)


def _temperature() -> float | None:
    """The hottest of the best sensors of the processor; None where there is none."""
    read = getattr(psutil, "sensors_temperatures", None)
    chips = read() if read is not None else {}
    for name in PROCESSOR_SENSORS:
        degrees = [entry.current for entry in chips.get(name, ()) if entry.current is not None]
        if degrees:
            return float(max(degrees))
    return None


def _power_by_psutil() -> tuple[bool, int | None]:
    """(on battery, percent), where there is no sysfs. A battery that does not say whether it is charged counts as on mains."""
    read = getattr(psutil, "sensors_battery", None)
    try:
        battery = read() if read is not None else None
    except OSError:  # a Linux without power supplies
        battery = None
    if battery is None:
        return False, None
    return battery.power_plugged is False, min(max(round(battery.percent), 0), 100)
