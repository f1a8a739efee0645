"""What a SwarmNode is told of its machine, and when."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from swarmtask.nodeagent.reading import Facts, GpuReading, Pressure, Reading
from swarmtask.nodeagent.report import GIB, Sight, conditions, is_news, status
from swarmtask.resources.node import NodeStatus

FACTS = Facts("laptop", "boot-1", "x86_64", "linux", "6.1", 4, 16 * GIB, 8 * GIB, 200 * GIB)
READING = Reading(FACTS, 0.5, 1.5, 8 * GIB, GIB, 100 * GIB, Pressure(0.1, 0.2, "psi"), 60.0, False, 80, (
    GpuReading(0, "nvidia", "H200", "GPU-1", 139 * GIB, 0, 0.0),
))  # fmt: skip


def _held(reading: Reading, **before: bool) -> set[str]:
    return {name for name, condition in conditions(reading, before).items() if condition.holds}


def test_the_status_is_one_that_the_model_reads() -> None:
    told = NodeStatus.model_validate(status(Sight(READING, 12), "1.2.3"))
    assert told.boot_id == "boot-1"
    assert told.latency_milliseconds == 12
    assert told.capabilities == []
    assert told.power.percent == 80
    assert told.usage is not None
    assert (told.usage.cpu, told.usage.memory, told.usage.load1) == ("2000m", "8192Mi", "1500m")
    assert told.usage.pressure.memory == 10
    assert [(gpu.index, gpu.model, gpu.memory) for gpu in told.gpus] == [(0, "H200", "142336Mi")]
    assert [(gpu.usage.memory, gpu.usage.percent) for gpu in told.gpus if gpu.usage is not None] == [("0Mi", 0)]


def test_what_a_driver_does_not_say_of_a_gpu_is_left_out() -> None:
    silent = replace(READING.gpus[0], used_bytes=None, busy=None)
    assert [gpu["usage"] for gpu in status(Sight(replace(READING, gpus=(silent,))), "1")["gpus"]] == [{}]


def test_what_a_machine_offers_is_told_and_is_news() -> None:
    offering = replace(READING, facts=replace(FACTS, capabilities=frozenset({"kvm", "coding"})))
    assert NodeStatus.model_validate(status(Sight(offering), "1")).capabilities == ["coding", "kvm"]
    held = conditions(READING, {})
    assert is_news(Sight(READING), Sight(offering), held, held)


def test_what_a_machine_lacks_is_left_out() -> None:
    told = status(Sight(replace(READING, temperature_c=None, battery_percent=None, gpus=())), "1")
    assert "latencyMilliseconds" not in told
    assert told["power"] == {"onBattery": False}
    assert "temperatureCelsius" not in told["usage"]
    assert told["gpus"] == []


@pytest.mark.parametrize(
    ("change", "before", "held"),
    [
        ({}, {}, set()),
        ({"pressure": Pressure(0.4, 0, "psi")}, {}, {"MemoryPressure"}),
        ({"pressure": Pressure(0.39, 0, "psi")}, {}, set()),
        ({"pressure": Pressure(0.25, 0, "psi")}, {"MemoryPressure": True}, {"MemoryPressure"}),
        ({"pressure": Pressure(0.19, 0, "psi")}, {"MemoryPressure": True}, set()),
        ({"memory_available_bytes": GIB // 2}, {}, {"MemoryPressure"}),
        ({"memory_available_bytes": GIB}, {}, set()),
        ({"memory_available_bytes": GIB}, {"MemoryPressure": True}, {"MemoryPressure"}),
        ({"disk_free_bytes": 9 * GIB}, {}, {"DiskPressure"}),
        ({"disk_free_bytes": 11 * GIB}, {}, set()),
        ({"disk_free_bytes": 19 * GIB}, {"DiskPressure": True}, {"DiskPressure"}),
        ({"disk_free_bytes": 21 * GIB}, {"DiskPressure": True}, set()),
        ({"on_battery": True}, {}, {"OnBattery"}),
        ({"temperature_c": 90.0}, {}, {"Hot"}),
        ({"temperature_c": 85.0}, {}, set()),
        ({"temperature_c": 85.0}, {"Hot": True}, {"Hot"}),
        ({"temperature_c": None}, {"Hot": True}, set()),
    ],
)
def test_conditions_begin_and_end_at_different_edges(change: dict[str, Any], before: dict[str, bool], held: set[str]) -> None:
    assert _held(replace(READING, **change), **before) == held


def test_a_small_disk_is_judged_by_its_size() -> None:
    small = replace(READING, facts=replace(FACTS, disk_bytes=20 * GIB), disk_free_bytes=2 * GIB)
    assert _held(small) == set()
    assert _held(replace(small, disk_free_bytes=GIB // 2)) == {"DiskPressure"}


@pytest.mark.parametrize(
    ("change", "news"),
    [
        ({}, False),
        ({"load1": 30.0}, False),
        ({"memory_available_bytes": 8 * GIB - GIB // 2}, False),
        ({"memory_available_bytes": 7 * GIB}, True),
        ({"swap_used_bytes": 3 * GIB}, True),
        ({"disk_free_bytes": 95 * GIB}, False),
        ({"disk_free_bytes": 80 * GIB}, True),
        ({"cpu_busy": 0.65}, False),
        ({"cpu_busy": 0.75}, True),
        ({"pressure": Pressure(0.1, 0.35, "psi")}, True),
        ({"battery_percent": 77}, False),
        ({"battery_percent": 75}, True),
        ({"battery_percent": None}, True),
        ({"on_battery": True}, True),
        ({"temperature_c": 64.0}, False),
        ({"temperature_c": 66.0}, True),
        ({"gpus": ()}, True),
        ({"gpus": (replace(READING.gpus[0], used_bytes=GIB, busy=0.05),)}, False),
        ({"gpus": (replace(READING.gpus[0], busy=1.0),)}, True),
        ({"gpus": (replace(READING.gpus[0], used_bytes=100 * GIB),)}, True),
        ({"gpus": (replace(READING.gpus[0], used_bytes=None),)}, True),
        ({"facts": replace(FACTS, boot_id="boot-2")}, True),
        ({"disk_free_bytes": 1}, True),
    ],
)
def test_only_what_matters_is_told_again(change: dict[str, Any], news: bool) -> None:
    told, now = Sight(READING, 10), Sight(replace(READING, **change), 10)
    before = conditions(READING, {})
    assert is_news(told, now, before, conditions(now.reading, {})) is news


@pytest.mark.parametrize(
    ("old", "new", "news"),
    [(10, 14, False), (10, 16, True), (1, 6, False), (1, 7, True), (None, 5, True), (5, None, False)],
)
def test_latency_is_news_when_it_moves_by_half(old: int | None, new: int | None, news: bool) -> None:
    held = conditions(READING, {})
    assert is_news(Sight(READING, old), Sight(READING, new), held, held) is news


def test_a_condition_that_was_never_told_is_news() -> None:
    assert is_news(Sight(READING), Sight(READING), {}, conditions(READING, {}))
