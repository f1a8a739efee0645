"""The probe on this machine, and on what other machines lack."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from swarmtask.nodeagent.eviction import Strain
from swarmtask.nodeagent.gpus import Gpus
from swarmtask.nodeagent.pressure import SWAP_BYTES_PER_S
from swarmtask.nodeagent.probe import Probe, detected
from swarmtask.nodeagent.reading import GpuReading


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without battery and sensors."""
    monkeypatch.setattr(psutil, "sensors_battery", lambda: None, raising=False)
    monkeypatch.setattr(psutil, "sensors_temperatures", dict, raising=False)


def _probe(tmp_path: Path, clock: Hands | None = None, **kwargs: object) -> Probe:
    kwargs = {"supplies": tmp_path / "supplies"} | kwargs
    return Probe(clock or Hands(), Gpus(None, tmp_path / "drm"), disk=tmp_path, **kwargs)  # type: ignore[arg-type]


def test_this_machine_tells_what_every_machine_has(tmp_path: Path) -> None:
    reading = _probe(tmp_path, capabilities=["coding"]).read()
    facts = reading.facts
    assert facts.cpus >= 1
    assert facts.memory_bytes == psutil.virtual_memory().total
    assert 0 < reading.memory_available_bytes <= facts.memory_bytes
    assert 0 < reading.disk_free_bytes <= facts.disk_bytes
    assert facts.boot_id
    assert facts.boot_id == _probe(tmp_path).read().facts.boot_id
    assert "coding" in facts.capabilities
    assert 0 <= reading.cpu_busy <= 1
    assert 0 <= reading.pressure.memory <= 1


@pytest.mark.usefixtures("bare")
def test_a_machine_without_proc_sensors_and_battery(tmp_path: Path) -> None:
    reading = _probe(tmp_path, proc=tmp_path).read()
    assert reading.facts.boot_id == f"boot-{int(psutil.boot_time())}"
    assert reading.pressure.source == "derived"
    assert (reading.temperature_c, reading.on_battery, reading.battery_percent) == (None, False, None)


@pytest.mark.parametrize(("plugged", "on_battery"), [(False, True), (True, False), (None, False)])
def test_batteries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugged: bool | None, on_battery: bool) -> None:
    battery = SimpleNamespace(percent=99.6, secsleft=-1, power_plugged=plugged)
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    reading = _probe(tmp_path).read()
    assert (reading.on_battery, reading.battery_percent) == (on_battery, 100)


def test_a_linux_without_power_supplies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil lists a directory that is not there."""

    def fails() -> None:
        raise FileNotFoundError("/sys/class/power_supply")

    monkeypatch.setattr(psutil, "sensors_battery", fails, raising=False)
    reading = _probe(tmp_path).read()
    assert (reading.on_battery, reading.battery_percent) == (False, None)


def test_the_kernel_s_own_word_about_batteries_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mouse = tmp_path / "supplies" / "hidpp_battery_0"
    mouse.mkdir(parents=True)
    for file, text in (("type", "Battery"), ("scope", "Device"), ("status", "Discharging"), ("capacity", "5")):
        (mouse / file).write_text(f"{text}\n")
    monkeypatch.setattr(psutil, "sensors_battery", lambda: SimpleNamespace(percent=5, power_plugged=False), raising=False)
    reading = _probe(tmp_path).read()
    assert (reading.on_battery, reading.battery_percent) == (False, None)


def test_the_best_sensor_of_the_processor_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sensors = {
        "nvme": [SimpleNamespace(current=99.0)],
        "acpitz": [SimpleNamespace(current=20.0)],
        "k10temp": [SimpleNamespace(current=70.5), SimpleNamespace(current=None), SimpleNamespace(current=81.0)],
    }
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: sensors, raising=False)
    assert _probe(tmp_path).read().temperature_c == 81.0


def test_swapping_counts_as_pressure_where_the_kernel_measures_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swapped = [0]
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(total=2**30, used=1, sin=swapped[0]))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=2**33, available=2**32))
    clock = Hands()
    probe = _probe(tmp_path, clock, proc=tmp_path)
    assert probe.read().pressure.memory == 0.0, "the first look knows no rate"
    clock.at, swapped[0] = 2.0, SWAP_BYTES_PER_S
    assert probe.read().pressure.memory == 0.5
    clock.at, swapped[0] = 4.0, 0
    assert probe.read().pressure.memory == 0.0, "a counter that began anew is no negative rate"


def test_a_disk_that_is_not_there_yet_is_the_root(tmp_path: Path) -> None:
    assert Probe(Hands(), Gpus(None, tmp_path), disk=tmp_path / "none").read().facts.disk_bytes > 0


def test_what_the_machine_has_it_offers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    misc = tmp_path / "misc"
    assert detected((), dev=tmp_path, run=tmp_path, misc=misc) == frozenset()
    (misc / "kvm").mkdir(parents=True)
    assert detected((), dev=tmp_path, run=tmp_path, misc=misc) == {"kvm"}, "as an agent in a container sees it"
    (misc / "kvm").rmdir()
    (tmp_path / "kvm").touch()
    (tmp_path / "docker.sock").touch()
    (tmp_path / "firefox").touch(mode=0o755)
    part_of_a_processor = GpuReading(64, "intel", "intel 9a49")
    assert detected((part_of_a_processor,), dev=tmp_path, run=tmp_path, misc=misc) == {"kvm", "docker", "browser"}
    assert "gpu" in detected((part_of_a_processor, GpuReading(0, "nvidia", "Orin")), dev=tmp_path, run=tmp_path, misc=misc)
    gpu = GpuReading(64, "amd", "x", memory_bytes=2**30)
    assert detected((gpu,), dev=tmp_path, run=tmp_path, misc=misc) == {"kvm", "docker", "browser", "gpu"}


# --- memory alone, for who must make room ---


def test_strain_is_the_kernel_s_own_where_it_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=8000, available=100))
    (tmp_path / "pressure").mkdir()
    for name, share in (("memory", "37.50"), ("cpu", "0.00")):
        (tmp_path / "pressure" / name).write_text(f"some avg10={share} avg60=0.00 avg300=0.00 total=0\n")
    assert _probe(tmp_path, proc=tmp_path).strain() == Strain(100, 8000, 0.375)


def test_strain_without_psi_grows_with_want_and_with_swapping_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its rate is its own: `read` looks at other moments."""
    clock, swapped = Hands(), SimpleNamespace(sin=0, used=0, total=0)
    memory = SimpleNamespace(total=8000, available=200)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(psutil, "swap_memory", lambda: swapped)
    probe = _probe(tmp_path, clock, proc=tmp_path / "none")
    assert probe.strain().pressure == 0.75
    memory.available = 8000
    assert probe.strain().pressure == 0.0
    clock.at, swapped.sin = 1.0, SWAP_BYTES_PER_S // 2
    probe.read()
    assert probe.strain().pressure == 0.5
