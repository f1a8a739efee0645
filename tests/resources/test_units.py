from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmtask.resources import units


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("500m", "0.5"),
        ("2", "2"),
        ("1.5Gi", str(3 * 2**29)),
        ("1e3", "1000"),
        ("1E", str(10**18)),
        ("+3k", "3000"),
        (".5", "0.5"),
        (7, "7"),
    ],
)
def test_quantities_are_read_exactly(text: str | int, value: str) -> None:
    assert units.parse_quantity(text) == Decimal(value)


@pytest.mark.parametrize(
    "text", ["", "-1", "1.5.2", "Gi", "1 Gi", "1gi", "0x10", "1e", "NaN", "infinity", "١", "9" * 20, True, "1\n"]
)
def test_what_is_no_quantity_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="quantity"):
        units.parse_quantity(text)  # type: ignore[arg-type]


@given(st.integers(min_value=0, max_value=2**62))
def test_memory_survives_a_round_trip(count: int) -> None:
    assert units.memory_bytes(units.format_memory(count)) == count


@given(st.integers(min_value=0, max_value=10**9))
def test_cpu_survives_a_round_trip(milli: int) -> None:
    assert units.cpu_milli(units.format_cpu(milli)) == milli


def test_fractions_are_rounded_up() -> None:
    assert units.cpu_milli("0.0001") == 1
    assert units.memory_bytes("0.1") == 1
