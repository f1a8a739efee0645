"""The GPUs of this machine: NVIDIA's by NVML, AMD's and Intel's from sysfs.

Called by `probe`. A driver that is not there is quiet; one that fails is told once, and its GPUs are then unknown: the machine goes
on without them. Never runs a program and never reads its text.

Sources: NVML API reference; Linux, Documentation/gpu/amdgpu/thermal.rst and driver-misc.rst, and drivers/gpu/drm/i915 and xe.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from swarmtask.nodeagent.reading import GpuReading

logger = logging.getLogger(__name__)

OTHERS_FROM = 64
"""NVIDIA's GPUs have NVML's indices, others this and the number of their card: neither moves when the other's driver fails."""
MOST = 1024
_AMD, _INTEL = "0x1002", "0x8086"
_DISPLAY_CLASSES = ("0x0300", "0x0302", "0x0380")
"""PCI classes of VGA, 3D and other display controllers."""


class Nvml(Protocol):
    """The part of the `pynvml` module that is used. Its calls raise `NVMLError`."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> None: ...  # noqa: N802 - NVML's name
    def nvmlDeviceGetCount(self) -> int: ...  # noqa: N802
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...  # noqa: N802
    def nvmlDeviceGetName(self, handle: Any) -> str | bytes: ...  # noqa: N802
    def nvmlDeviceGetUUID(self, handle: Any) -> str | bytes: ...  # noqa: N802
    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any: ...  # noqa: N802
    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any: ...  # noqa: N802


class Gpus:
    """Finds GPUs again at each look, so that one that falls off its bus is gone in the next.

    Args:
        nvml: the module pynvml, or None where it is not there yet.
        drm: /sys/class/drm, or a recorded copy.
        find: asked for the module until it is there: a driver may be loaded long after the agent.
    """

    def __init__(
        self, nvml: Nvml | None, drm: Path = Path("/sys/class/drm"), *, find: Callable[[], Nvml | None] = lambda: None
    ) -> None:
        self._nvml, self._drm, self._find = nvml, drm, find
        self._ready = False
        self._complained: set[str] = set()

    def read(self) -> tuple[GpuReading, ...]:
        """NVIDIA's first, with NVML's own indices; the others behind them, by the numbers of their cards."""
        return (*self._read_nvidia(), *(_read_card(device, index) for index, device in self._cards()))

    # --- NVIDIA ---

    def _read_nvidia(self) -> tuple[GpuReading, ...]:
        nvml = self._nvml = self._nvml or self._find()
        if nvml is None:
            return ()
        try:
            if not self._ready:
                nvml.nvmlInit()
                self._ready = True
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as error:
            self._ready = False
            self._complain("NVML", error)
            return ()
        found = []
        for index in range(count):
            try:
                found.append(_read_nvidia_gpu(nvml, index))
            except nvml.NVMLError as error:
                self._complain(f"GPU {index}", error)
        return tuple(found)

    def _complain(self, what: str, error: Exception) -> None:
        # A machine without NVIDIA's driver is no fault: NVML then says that its library is not there.
        if what not in self._complained:
            self._complained.add(what)
            logger.info("%s tells nothing of GPUs: %s", what, error)

    # --- AMD and Intel ---

    def _cards(self) -> Iterator[tuple[int, Path]]:
        """The devices behind card0, card1, ... that are display controllers of AMD or Intel, each with its index."""
        if not self._drm.is_dir():
            return
        numbers = [int(path.name[4:]) for path in self._drm.iterdir() if re.fullmatch(r"card\d{1,4}", path.name)]
        for number in sorted(number for number in numbers if OTHERS_FROM + number < MOST):
            device = self._drm / f"card{number}" / "device"
            if _text(device / "vendor") in (_AMD, _INTEL) and (_text(device / "class") or "")[:6] in _DISPLAY_CLASSES:
                yield OTHERS_FROM + number, device


def _read_nvidia_gpu(nvml: Nvml, index: int) -> GpuReading:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        total, used = int(memory.total), int(memory.used)
    except nvml.NVMLError:
        total, used = 0, None  # a GPU that shares the machine's memory has none of its own
    try:
        busy = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
    except nvml.NVMLError:
        busy = None
    name, uuid = _words(nvml.nvmlDeviceGetName(handle)), _words(nvml.nvmlDeviceGetUUID(handle))
    return GpuReading(index, "nvidia", name, uuid, total, used, busy)


def _read_card(device: Path, index: int) -> GpuReading:
    vendor = "amd" if _text(device / "vendor") == _AMD else "intel"
    model = _text(device / "product_name") or f"{vendor} {(_text(device / 'device') or '')[2:]}".strip()
    busy = _number(device / "gpu_busy_percent")
    return GpuReading(
        index,
        vendor,
        model,
        _text(device / "unique_id") or "",
        # amdgpu; Intel's discrete GPUs on the xe driver tell theirs in debugfs alone: not known then
        _number(device / "mem_info_vram_total") or 0,
        _number(device / "mem_info_vram_used"),
        None if busy is None else min(busy, 100) / 100,
    )


def _words(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _text(path: Path) -> str | None:
    """The only line of a file of sysfs; None where there is none, or it cannot be read."""
    try:
        return path.read_text(errors="replace").strip() or None
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.isdigit() else None
