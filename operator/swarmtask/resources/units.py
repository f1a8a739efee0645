"""Quantities, names and ages as Kubernetes writes them.

Lives here: parsing and formatting of resource quantities and the grammars of names. Called by the models and by whoever compares
resources. CPU is counted in thousandths of a core (`cpu_milli`), memory in bytes, GPUs in whole devices.

Source of the grammar: Kubernetes documentation, "Quantity" and "Object Names and IDs".
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache

QUANTITY_PATTERN = r"^\+?([0-9]{1,19}(\.[0-9]{0,9})?|\.[0-9]{1,9})(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][+-]?[0-9]{1,2})?$"
"""A quantity that is not negative. (Kubernetes' own grammar also allows a minus sign and n, u; no field here can use them.)"""

DNS_LABEL_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DNS_SUBDOMAIN_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
LABEL_KEY_PATTERN = (
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)$"
)
LABEL_VALUE_PATTERN = r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"
LIMIT_NAME_PATTERN = r"^[A-Za-z0-9]([-A-Za-z0-9_./:@]*[A-Za-z0-9])?$"
"""The name of a limit of a queue, such as `model/claude-sonnet` or `provider/y`."""
ENV_NAME_PATTERN = r"^[-._a-zA-Z][-._a-zA-Z0-9]*$"

_SUFFIXES: dict[str, Decimal] = {
    "": Decimal(1), "m": Decimal("0.001"),
    "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9),
    "T": Decimal(10**12), "P": Decimal(10**15), "E": Decimal(10**18),
    "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30),
    "Ti": Decimal(2**40), "Pi": Decimal(2**50), "Ei": Decimal(2**60),
}  # fmt: skip
_QUANTITY = re.compile(QUANTITY_PATTERN)
_SPLIT = re.compile(r"^\+?([0-9.]+)(.*)$")


@lru_cache(maxsize=4096, typed=True)  # the same few texts are read all the time; True is no 1
def parse_quantity(text: str | int | float) -> Decimal:
    """Read a Kubernetes quantity (`500m`, `2Gi`, `1e3`, `4`) as an exact decimal.

    Raises:
        ValueError: not a quantity, or negative.
    """
    if isinstance(text, bool):
        raise ValueError("a quantity is a number or a string such as 500m or 2Gi, not a boolean")
    if isinstance(text, int | float):
        text = format(Decimal(str(text)), "f")
    if not _QUANTITY.fullmatch(text):
        raise ValueError(f"{text!r} is not a quantity; write for example 500m, 2 or 1.5Gi (never negative)")
    match = _SPLIT.match(text)
    assert match is not None  # noqa: S101 - follows from the match above
    number, suffix = match.groups()
    if suffix not in _SUFFIXES:
        return Decimal(number).scaleb(int(suffix[1:]))
    return Decimal(number) * _SUFFIXES[suffix]


@lru_cache(maxsize=4096, typed=True)
def cpu_milli(text: str | int | float) -> int:
    """Thousandths of a core, rounded up as Kubernetes does: `500m` -> 500, `1.5` -> 1500."""
    return int((parse_quantity(text) * 1000).to_integral_value(ROUND_CEILING))


@lru_cache(maxsize=4096, typed=True)
def memory_bytes(text: str | int | float) -> int:
    """Bytes, rounded up: `1Gi` -> 1073741824."""
    return int(parse_quantity(text).to_integral_value(ROUND_CEILING))


def format_cpu(milli: int) -> str:
    """The shortest form: 500 -> `500m`, 2000 -> `2`."""
    return str(milli // 1000) if milli % 1000 == 0 else f"{milli}m"


def format_memory(count: int) -> str:
    """The largest binary unit that divides exactly: 1073741824 -> `1Gi`, 1000 -> `1000`."""
    if count == 0:
        return "0"
    for suffix in ("Ei", "Pi", "Ti", "Gi", "Mi", "Ki"):
        unit = int(_SUFFIXES[suffix])
        if count % unit == 0:
            return f"{count // unit}{suffix}"
    return str(count)


def humanize_memory(count: int) -> str:
    """Rounded for a sentence: 7945689497 -> `7.4Gi`. Never parsed back."""
    for suffix in ("Ti", "Gi", "Mi", "Ki"):
        unit = int(_SUFFIXES[suffix])
        if count >= unit:
            return f"{count / unit:.1f}".removesuffix(".0") + suffix
    return str(count)


def human_duration(seconds: float) -> str:
    """`45s`, `3m12s`, `5m`, `3h12m`, `12h`, `2d5h`, `9d`, `2y30d`, `11y`: the two largest units while they still matter.

    Up to two seconds into the future count as now (clocks differ); beyond that the age is `<invalid>`.
    """
    total = int(seconds)
    if seconds < -2:
        return "<invalid>"
    if total <= 0:
        return "0s"
    if total < 120:
        return f"{total}s"
    minutes, rest = divmod(total, 60)
    if minutes < 10:
        return f"{minutes}m{rest}s" if rest else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    hours, rest = divmod(minutes, 60)
    if hours < 8:
        return f"{hours}h{rest}m" if rest else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    days, rest = divmod(hours, 24)
    if days < 8:
        return f"{days}d{rest}h" if rest else f"{days}d"
    if days < 730:
        return f"{days}d"
    years, rest = divmod(days, 365)
    if years < 8:
        return f"{years}y{rest}d" if rest else f"{years}y"
    return f"{years}y"
