"""The functions that Kubernetes adds to CEL, for the library's registration.

Called by expressions through `cel_rules.py`. An IP address, a CIDR, a URL and a quantity are maps with one field of their own, so
that equality is that of their canonical form and no other function takes them for strings. Every function raises for what it is
not defined for; the library turns that into an error of the expression. What is not in `FUNCTIONS` and not in `NATIVE` is refused
when a CRD is created. Source: Kubernetes documentation, "Common Expression Language in Kubernetes", "CEL extended libraries".
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final
from urllib.parse import parse_qs, quote, urlsplit

import re2
from cel import stdlib

from swarmtask.apiserver.schema_checks import identity
from swarmtask.resources.units import parse_quantity

MAX_TEXT: Final = 1 << 20
"""Characters of a string that a function makes."""
MAX_PATTERN: Final = 10_000
MAX_EXPONENT: Final = 40
"""Decimal places of a quantity, before and after the point: what Kubernetes can store is far below."""
NATIVE: Final = frozenset({
    "has", "size", "contains", "startsWith", "endsWith", "matches", "int", "uint", "double", "string", "bytes", "timestamp",
    "duration", "dyn", "type", "getFullYear", "getMonth", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear", "getHours",
    "getMinutes", "getSeconds", "getMilliseconds", "hasValue", "value", "orValue", "optional.of", "optional.none",
})  # fmt: skip


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError(f"no such overload: a string is needed, not {type(value).__name__}")
    return value


def _bounded(size: int) -> None:
    if size > MAX_TEXT:
        raise ValueError(f"the result would have more than {MAX_TEXT} characters")


# --- strings -------------------------------------------------------------------------------------------------------------


def _size(value: Any) -> int:
    if not isinstance(value, str | bytes | list | dict):
        raise TypeError(f"no such overload: size of {type(value).__name__}")
    return len(value)


def _replace(text: str, old: str, new: str, limit: int = -1) -> str:
    hits = _text(text).count(_text(old))
    _bounded(len(text) + min(hits, limit if limit >= 0 else hits) * len(_text(new)))
    return stdlib.replace(text, old, new, limit)


def _join(items: list[Any], separator: str = "") -> str:
    _bounded(sum(len(_text(item)) + len(_text(separator)) for item in items))
    return separator.join(items)


def _split(text: str, separator: str, limit: int | None = None) -> list[str]:
    return stdlib.split(_text(text), _text(separator), limit)


def _of_text(function: Callable[..., Any]) -> Callable[..., Any]:
    """The library's own function, for strings only."""

    def call(text: str, *rest: Any) -> Any:
        return function(_text(text), *rest)

    return call


_VERB: Final = re.compile(r"%(?:%|(?:\.(\d{1,2}))?([sdfebxXo]))|%(.?)")


def _format(template: str, values: list[Any]) -> str:
    left = iter(values)

    def one(match: re.Match[str]) -> str:
        if match[0] == "%%":
            return "%"
        if match[2] is None:
            raise ValueError(f"unknown formatting verb %{match[3]}")
        try:
            value = next(left)
        except StopIteration:
            raise ValueError("fewer values than formatting verbs") from None
        return _formatted(value, match[2], match[1])

    text = _VERB.sub(one, _text(template))
    _bounded(len(text))
    return text


def _formatted(value: Any, verb: str, precision: str | None) -> str:
    if verb == "s":
        return _shown(value)
    if verb in ("f", "e"):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"%{verb} needs a number")
        return format(value, f".{precision or 6}{verb}")
    if verb == "d" and isinstance(value, float):
        return format(value, "f")
    if verb in ("x", "X") and isinstance(value, str | bytes):
        digits = (value.encode() if isinstance(value, str) else value).hex()
        return digits if verb == "x" else digits.upper()
    if isinstance(value, bool) and verb == "b":
        return "1" if value else "0"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"%{verb} needs an integer")
    return format(value, verb)


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return "[" + ", ".join(_shown(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_shown(key)}: {_shown(item)}" for key, item in sorted(value.items())) + "}"
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return f"{value.total_seconds():g}s"
    if isinstance(value, bytes):
        return value.decode()
    return str(value)


def _matches(text: str, pattern: str) -> bool:
    return _pattern(pattern).search(_text(text)) is not None


def _find(text: str, pattern: str) -> str:
    match = _pattern(pattern).search(_text(text))
    return match[0] if match else ""


def _find_all(text: str, pattern: str, limit: int = -1) -> list[str]:
    found = [match[0] for match in _pattern(pattern).finditer(_text(text))]
    return found if limit < 0 else found[:limit]


@lru_cache(maxsize=256)
def _pattern(pattern: str) -> Any:
    if len(_text(pattern)) > MAX_PATTERN:
        raise ValueError(f"a pattern has at most {MAX_PATTERN} characters")
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        raise ValueError(f"the pattern cannot be read: {error}") from None


# --- lists ---------------------------------------------------------------------------------------------------------------


def _comparable(items: Any) -> list[Any]:
    if not isinstance(items, list):
        raise TypeError("no such overload: a list is needed")
    kinds = {float if type(item) is int else type(item) for item in items}
    if len(kinds) > 1 or not kinds <= {float, str, bool, bytes, datetime, timedelta}:
        raise TypeError("no such overload: the items must be comparable with each other")
    return items


def _is_sorted(items: Any) -> bool:
    listed = _comparable(items)
    return all(left <= right for left, right in pairwise(listed))


def _sum(items: Any) -> Any:
    listed = _comparable(items)
    if listed and isinstance(listed[0], timedelta):
        return sum(listed, timedelta())
    if any(isinstance(item, bool) or not isinstance(item, int | float) for item in listed):
        raise TypeError("no such overload: sum of something else than numbers and durations")
    return sum(listed)


def _extreme(choose: Callable[[list[Any]], Any], name: str) -> Callable[[Any], Any]:
    def call(items: Any) -> Any:
        if not _comparable(items):
            raise ValueError(f"{name} called on empty list")
        return choose(items)

    return call


def _index_of(where: Any, what: Any, offset: int = 0) -> int:
    if isinstance(where, list):
        return next((index for index, item in enumerate(where) if _equal(item, what)), -1)
    return stdlib.index_of(_text(where), _text(what), offset)


def _last_index_of(where: Any, what: Any, offset: int | None = None) -> int:
    if isinstance(where, list):
        return next((index for index in range(len(where) - 1, -1, -1) if _equal(where[index], what)), -1)
    return stdlib.last_index_of(_text(where), _text(what), offset)


def _equal(left: Any, right: Any) -> bool:
    return bool(left == right) and isinstance(left, bool) == isinstance(right, bool)


def _contains_all(whole: list[Any], part: list[Any]) -> bool:
    return {identity(item) for item in part} <= {identity(item) for item in whole}


def _intersect(one: list[Any], two: list[Any]) -> bool:
    return not {identity(item) for item in one}.isdisjoint(identity(item) for item in two)


# --- quantities ----------------------------------------------------------------------------------------------------------

_QUANTITY: Final = re.compile(r"([+-]?)([0-9.]+)([nu]?)(.*)", re.DOTALL)


def _quantity(text: str) -> dict[str, str]:
    match = _QUANTITY.fullmatch(_text(text))
    if match is None or (match[3] and match[4]):
        raise ValueError(f"{text!r} is not a quantity")
    number = parse_quantity(match[2] + match[4]) * {"": Decimal(1), "u": Decimal("1e-6"), "n": Decimal("1e-9")}[match[3]]
    if number and abs(number.adjusted()) > MAX_EXPONENT:
        raise ValueError(f"{text!r} is out of range")
    return _of_decimal(-number if match[1] == "-" else number)


def _of_decimal(number: Decimal) -> dict[str, str]:
    return {"quantity": format(number.normalize() if number else Decimal(0), "f")}


def _amount(value: Any) -> Decimal:
    if not isinstance(value, dict) or set(value) != {"quantity"}:
        raise TypeError("no such overload: a quantity is needed")
    return Decimal(value["quantity"])


def _amount_or_integer(value: Any) -> Decimal:
    return Decimal(value) if type(value) is int else _amount(value)


def _is_integer(value: Any) -> bool:
    number = _amount(value)
    return number == number.to_integral_value() and -(2**63) <= number < 2**63


def _as_integer(value: Any) -> int:
    if not _is_integer(value):
        raise ValueError("the quantity is not an integer of 64 bits")
    return int(_amount(value))


def _compare(left: Any, right: Any) -> int:
    one, other = _amount(left), _amount(right)
    return (one > other) - (one < other)


# --- addresses -----------------------------------------------------------------------------------------------------------

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Interface | ipaddress.IPv6Interface


def _parse_ip(text: str) -> _Address:
    address = ipaddress.ip_address(_text(text))
    if isinstance(address, ipaddress.IPv6Address) and (address.ipv4_mapped is not None or address.scope_id):
        raise ValueError("IPv4-mapped addresses and zones are not allowed")
    return address


def _ip(value: Any) -> dict[str, str]:
    return {"ip": str(_network(value).ip if isinstance(value, dict) else _parse_ip(value))}


def _address(value: Any) -> _Address:
    if not isinstance(value, dict) or set(value) != {"ip"}:
        raise TypeError("no such overload: an IP address is needed")
    return ipaddress.ip_address(value["ip"])


def _parse_cidr(text: str) -> _Network:
    address, slash, length = _text(text).partition("/")
    if not slash or not length.isdecimal() or (len(length) > 1 and length[0] == "0"):
        raise ValueError(f"{text!r} is not a CIDR such as 10.0.0.0/8")
    _parse_ip(address)
    return ipaddress.ip_interface(text)


def _network(value: Any) -> _Network:
    if not isinstance(value, dict) or set(value) != {"cidr"}:
        raise TypeError("no such overload: a CIDR is needed")
    return ipaddress.ip_interface(value["cidr"])


def _contains_ip(value: Any, address: Any) -> bool:
    return (_address(address) if isinstance(address, dict) else _parse_ip(address)) in _network(value).network


def _contains_cidr(value: Any, other: Any) -> bool:
    outer = _network(value).network
    inner = (_network(other) if isinstance(other, dict) else _parse_cidr(other)).network
    return outer.version == inner.version and outer.prefixlen <= inner.prefixlen and inner.network_address in outer


def _is_global_unicast(value: Any) -> bool:
    address = _address(value)
    special = address.is_unspecified or address.is_loopback or address.is_multicast or address.is_link_local
    return not special and str(address) != "255.255.255.255"


# --- URLs ----------------------------------------------------------------------------------------------------------------


def _url(text: str) -> dict[str, str]:
    parts = urlsplit(_text(text))
    _ = parts.port
    if any(char <= " " or char == "\x7f" for char in text) or not (parts.scheme or text.startswith("/")):
        raise ValueError(f"{text!r} is not an absolute URL or path")
    return {"url": text}


def _part(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def call(value: Any) -> Any:
        if not isinstance(value, dict) or set(value) != {"url"}:
            raise TypeError("no such overload: a URL is needed")
        return read(urlsplit(value["url"]))

    return call


def _holds(parse: Callable[[Any], Any]) -> Callable[[Any], bool]:
    """Whether a text can be read."""

    def call(text: Any) -> bool:
        _text(text)
        try:
            parse(text)
        except ValueError:
            return False
        return True

    return call


def _host(parts: Any) -> str:
    return str(parts.netloc.rpartition("@")[2])


FUNCTIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "size_of": _size, "matches_of": _matches, "bool": stdlib.bool_,
    "charAt": _of_text(stdlib.char_at), "substring": _of_text(stdlib.substring), "trim": _of_text(stdlib.trim),
    "lowerAscii": _of_text(stdlib.lower_ascii), "upperAscii": _of_text(stdlib.upper_ascii),
    "strings.quote": _of_text(stdlib.quote), "indexOf": _index_of, "lastIndexOf": _last_index_of,
    "replace": _replace, "join": _join, "split": _split, "format": _format, "find": _find, "findAll": _find_all,
    "isSorted": _is_sorted, "sum": _sum, "min": _extreme(min, "min"), "max": _extreme(max, "max"),
    "sets.contains": _contains_all, "sets.equivalent": lambda one, two: _contains_all(one, two) and _contains_all(two, one),
    "sets.intersects": _intersect,
    "quantity": _quantity, "isQuantity": _holds(_quantity), "isInteger": _is_integer, "asInteger": _as_integer,
    "asApproximateFloat": lambda value: float(_amount(value)), "sign": lambda value: (_amount(value) > 0) - (_amount(value) < 0),
    "add": lambda one, two: _of_decimal(_amount(one) + _amount_or_integer(two)),
    "sub": lambda one, two: _of_decimal(_amount(one) - _amount_or_integer(two)),
    "compareTo": _compare, "isLessThan": lambda one, two: _compare(one, two) < 0,
    "isGreaterThan": lambda one, two: _compare(one, two) > 0,
    "ip": _ip, "isIP": _holds(_parse_ip), "ip.isCanonical": lambda text: str(_parse_ip(text)) == text,
    "family": lambda value: _address(value).version, "isUnspecified": lambda value: _address(value).is_unspecified,
    "isLoopback": lambda value: _address(value).is_loopback, "isGlobalUnicast": _is_global_unicast,
    "isLinkLocalMulticast": lambda value: _address(value) in ipaddress.ip_network(
        "224.0.0.0/24" if _address(value).version == 4 else "ff02::/16"),
    "isLinkLocalUnicast": lambda value: _address(value).is_link_local,
    "cidr": lambda text: {"cidr": str(_parse_cidr(text))}, "isCIDR": _holds(_parse_cidr), "containsIP": _contains_ip,
    "containsCIDR": _contains_cidr, "masked": lambda value: {"cidr": str(_network(value).network)},
    "prefixLength": lambda value: _network(value).network.prefixlen,
    "url": _url, "isURL": _holds(_url), "getScheme": _part(lambda parts: parts.scheme), "getHost": _part(_host),
    "getHostname": _part(lambda parts: parts.hostname or ""),
    "getPort": _part(lambda parts: "" if parts.port is None else str(parts.port)),
    "getEscapedPath": _part(lambda parts: quote(parts.path, safe="/%:@!$&'()*+,;=~-._")),
    "getQuery": _part(lambda parts: parse_qs(parts.query, keep_blank_values=True)),
}  # fmt: skip
"""Name in an expression (with its name space) -> function; the first argument of a method is what it is called on."""
