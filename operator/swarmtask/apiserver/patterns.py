"""Regular expressions of schemas, on an engine that needs linear time whatever the pattern.

Called when a schema is compiled. Kubernetes reads patterns as RE2 syntax; the engine inside pydantic-core (Rust's regex) differs
from it in a few places, which are rewritten here: perl classes are ASCII, and a bracket or brace that means itself is escaped.
Source: https://github.com/google/re2/wiki/Syntax and the syntax chapter of Rust's regex crate.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from pydantic_core import SchemaError, SchemaValidator, core_schema

MAX_PATTERN_CHARS: Final = 10_000

_CLASSES: Final = {
    "d": "[0-9]", "D": "[^0-9]", "w": "[0-9A-Za-z_]", "W": "[^0-9A-Za-z_]", "s": r"[\t\n\f\r ]", "S": r"[^\t\n\f\r ]",
}  # fmt: skip
_REPETITION = re.compile(r"\{[0-9]+(,[0-9]*)?\}")
_POSIX = re.compile(r"\[:\^?[a-z]+:\]")


@lru_cache(maxsize=4096)
def compile_pattern(pattern: str) -> Callable[[str], bool]:
    """A function that tells whether a text contains a match.

    Raises:
        ValueError: the pattern cannot be read, or is larger than the engine allows.
    """
    if len(pattern) > MAX_PATTERN_CHARS:
        raise ValueError(f"a pattern has at most {MAX_PATTERN_CHARS} characters, this one {len(pattern)}")
    try:
        validator = SchemaValidator(core_schema.str_schema(pattern=_rewrite(pattern), regex_engine="rust-regex", strict=True))
    except SchemaError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(f"the pattern {pattern!r} cannot be compiled: {' '.join(lines[-2:])}") from None
    return validator.isinstance_python


def _rewrite(pattern: str) -> str:
    out: list[str] = []
    position, in_class = 0, False
    while position < len(pattern):
        char = pattern[position]
        if char == "\\" and position + 1 < len(pattern):
            follower = pattern[position + 1]
            out.append(_CLASSES.get(follower, char + follower))
            position += 2
            continue
        if in_class:
            posix = _POSIX.match(pattern, position)
            if posix:
                out.append(posix[0])
                position = posix.end()
                continue
            if char == "]":
                in_class = False
            out.append("\\" + char if char in "[&~" else char)
        elif char == "[":
            in_class = True
            out.append(char)
            if pattern.startswith("^", position + 1):
                out.append("^")
                position += 1
            if pattern.startswith("]", position + 1):
                out.append("\\]")
                position += 1
        elif char == "{" and not _REPETITION.match(pattern, position):
            out.append("\\{")
        elif char == "}" and not _closes_repetition(pattern, position):
            out.append("\\}")
        else:
            out.append(char)
        position += 1
    return "".join(out)


def _closes_repetition(pattern: str, position: int) -> bool:
    """Also true inside \\x{10FFFF} and \\p{Greek}, where the brace belongs to the escape."""
    start = pattern.rfind("{", 0, position)
    if start < 0:
        return False
    return bool(_REPETITION.fullmatch(pattern[start : position + 1])) or pattern[max(0, start - 2) : start] in ("\\x", "\\p", "\\P")
