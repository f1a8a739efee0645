"""GPUs as drivers tell of them. NVML's answers and the sysfs trees are recorded shapes; a real one is asked where there is one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from swarmtask.nodeagent.gpus import Gpus
from swarmtask.nodeagent.reading import GpuReading

GIB = 2**30


class RecordedNvml:
    """NVML as it answers on a machine with these GPUs: (name, uuid, memory or None, busy or None)."""

    class NVMLError(Exception):
        pass

    def __init__(self, *gpus: tuple[str, str, int | None, int | None]) -> None:
        self.gpus = gpus
        self.broken: set[int] = set()
        self.loaded = True
        self.inits = 0

    def nvmlInit(self) -> None:
        if not self.loaded:
            raise self.NVMLError("Driver Not Loaded")
        self.inits += 1

    def nvmlDeviceGetCount(self) -> int:
        if not self.loaded:
            raise self.NVMLError("Driver Not Loaded")
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index in self.broken:
            raise self.NVMLError("GPU is lost")
        return index

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return self.gpus[handle][0].encode()  # as older drivers answer

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return self.gpus[handle][1]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        total = self.gpus[handle][2]
        if total is None:
            raise self.NVMLError("Not Supported")
        return SimpleNamespace(total=total, used=total // 4, free=total - total // 4)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        busy = self.gpus[handle][3]
        if busy is None:
            raise self.NVMLError("Not Supported")
        return SimpleNamespace(gpu=busy, memory=1)


def _card(drm: Path, name: str, **files: str) -> None:
    device = drm / name / "device"
    device.mkdir(parents=True)
    for file, text in files.items():
        (device / file.replace("class_", "class")).write_text(text + "\n")


def test_nvidia_gpus_are_read_with_what_their_driver_tells(tmp_path: Path) -> None:
    nvml = RecordedNvml(("NVIDIA H200", "GPU-1", 139 * GIB, 37), ("Orin", "GPU-2", None, None))
    assert Gpus(nvml, tmp_path).read() == (
        GpuReading(0, "nvidia", "NVIDIA H200", "GPU-1", 139 * GIB, 139 * GIB // 4, 0.37),
        GpuReading(1, "nvidia", "Orin", "GPU-2", 0, None, None),
    )


def test_a_driver_that_is_loaded_after_the_agent_is_found(tmp_path: Path) -> None:
    found: list[RecordedNvml] = []
    gpus = Gpus(None, tmp_path, find=lambda: found[0] if found else None)
    assert gpus.read() == ()
    found.append(RecordedNvml(("NVIDIA H200", "GPU-1", GIB, 0)))
    assert [gpu.uuid for gpu in gpus.read()] == ["GPU-1"]


def test_a_gpu_that_falls_off_its_bus_is_left_out_and_comes_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nvml = RecordedNvml(("A", "GPU-1", GIB, 0), ("B", "GPU-2", GIB, 0))
    gpus = Gpus(nvml, tmp_path)
    nvml.broken.add(0)
    with caplog.at_level("INFO"):
        assert [gpu.index for gpu in gpus.read()] == [1]
        gpus.read()
    assert caplog.text.count("GPU is lost") == 1
    nvml.broken.clear()
    assert [gpu.index for gpu in gpus.read()] == [0, 1]


def test_a_driver_that_is_not_there_is_quiet_and_found_when_it_comes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nvml = RecordedNvml(("A", "GPU-1", GIB, 0))
    nvml.loaded = False
    gpus = Gpus(nvml, tmp_path / "no-such-folder")
    with caplog.at_level("INFO"):
        assert gpus.read() == gpus.read() == ()
    assert [record.levelname for record in caplog.records] == ["INFO"]
    nvml.loaded = True
    assert len(gpus.read()) == 1
    gpus.read()
    assert nvml.inits == 1


def test_amd_and_intel_cards_are_read_from_sysfs(tmp_path: Path) -> None:
    _card(tmp_path, "card10", vendor="0x8086", class_="0x030000", device="0x56a0")
    _card(
        tmp_path, "card1", vendor="0x1002", class_="0x030000", device="0x744c", product_name="Radeon RX 7900 XTX", unique_id="ab12",
        mem_info_vram_total=str(24 * GIB), mem_info_vram_used=str(GIB), gpu_busy_percent="50",
    )  # fmt: skip
    _card(tmp_path, "card0", vendor="0x1a03", class_="0x030000", device="0x2000")  # a server's console
    (tmp_path / "card1-DP-1").mkdir()
    (tmp_path / "renderD128").mkdir()
    nvml = RecordedNvml(("A", "GPU-1", GIB, 0))
    assert Gpus(nvml, tmp_path).read()[1:] == (
        GpuReading(65, "amd", "Radeon RX 7900 XTX", "ab12", 24 * GIB, GIB, 0.5),
        GpuReading(74, "intel", "intel 56a0", "", 0, None, None),
    )


def test_a_card_that_answers_rubbish_is_still_a_card(tmp_path: Path) -> None:
    _card(tmp_path, "card0", vendor="0x1002", class_="0x038000", mem_info_vram_total="-1", gpu_busy_percent="", device="")
    assert Gpus(None, tmp_path).read() == (GpuReading(64, "amd", "amd", "", 0, None, None),)


def test_nobody_is_numbered_anew_while_another_driver_fails(tmp_path: Path) -> None:
    _card(tmp_path, "card1", vendor="0x8086", class_="0x030000", device="0x9a49")
    _card(tmp_path, "card960", vendor="0x8086", class_="0x030000", device="0x9a49")  # no index is left for so many
    nvml = RecordedNvml(("A", "GPU-1", GIB, 0))
    gpus = Gpus(nvml, tmp_path)
    assert [(gpu.index, gpu.vendor) for gpu in gpus.read()] == [(0, "nvidia"), (65, "intel")]
    nvml.loaded = False
    assert [(gpu.index, gpu.vendor) for gpu in gpus.read()] == [(65, "intel")]
    assert Gpus(nvml, tmp_path).read()[0].index == 65, "nor by an agent that starts meanwhile"
    nvml.loaded = True
    assert [(gpu.index, gpu.vendor) for gpu in gpus.read()] == [(0, "nvidia"), (65, "intel")]
