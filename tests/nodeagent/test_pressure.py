"""Pressure as the kernel measures it, and as it is derived where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmtask.nodeagent.pressure import SWAP_BYTES_PER_S, Load, derive, read_psi
from swarmtask.nodeagent.reading import Pressure

GIB = 2**30


def _psi(proc: Path, name: str, text: str) -> None:
    (proc / "pressure").mkdir(exist_ok=True)
    (proc / "pressure" / name).write_text(text)


def test_psi_is_believed(tmp_path: Path) -> None:
    _psi(tmp_path, "memory", "some avg10=12.50 avg60=3.00 avg300=0.10 total=1\nfull avg10=9.00 avg60=0.00 avg300=0.00 total=1\n")
    _psi(tmp_path, "cpu", "some avg10=100.00 avg60=0.00 avg300=0.00 total=3\n")
    assert read_psi(tmp_path) == Pressure(0.125, 1.0, "psi")


@pytest.mark.parametrize("text", ["", "full avg10=1.00 total=1\n", "some avg10=much total=1\n"])
def test_a_kernel_that_measures_nothing(tmp_path: Path, text: str) -> None:
    assert read_psi(tmp_path) is None
    _psi(tmp_path, "cpu", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
    _psi(tmp_path, "memory", text)
    assert read_psi(tmp_path) is None


@pytest.mark.parametrize(
    ("load", "memory", "cpu"),
    [
        (Load(4, 2.0, 8 * GIB, 4 * GIB, 0), 0.0, 0.0),
        (Load(4, 6.0, 8 * GIB, 4 * GIB, 0), 0.0, 0.5),
        (Load(4, 400.0, 100, 5, 0), 0.5, 1.0),
        (Load(4, 0.0, 8 * GIB, 0, 0), 1.0, 0.0),
        (Load(4, 0.0, 8 * GIB, 4 * GIB, SWAP_BYTES_PER_S / 4), 0.25, 0.0),
        (Load(4, 0.0, 8 * GIB, 4 * GIB, 100 * SWAP_BYTES_PER_S), 1.0, 0.0),
        (Load(0, 0.0, 0, 0, 0), 0.0, 0.0),
    ],
)
def test_pressure_is_derived_between_0_and_1(load: Load, memory: float, cpu: float) -> None:
    assert derive(load) == Pressure(memory, cpu, "derived")
