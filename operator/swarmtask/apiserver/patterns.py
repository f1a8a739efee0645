"""Regular expressions of schemas, on an engine that needs linear time whatever the pattern.

Called when a schema is compiled. Kubernetes reads patterns as RE2 syntax; the engine inside pydantic-core (Rust's regex) differs
from it in a few places, which are rewritten here: perl classes are ASCII, a bracket or brace that means itself is escaped, and so
is what stands between `\\Q` and `\\E`.
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
    r"\d": "[0-9]", r"\D": "[^0-9]", r"\w": "[0-9A-Za-z_]", r"\W": "[^0-9A-Za-z_]", r"\s": r"[\t\n\f\r ]", r"\S": r"[^\t\n\f\r ]",
}  # fmt: skip
_WHOLE = re.compile(r"\\[xpP]\{[^}]*\}|\\.|\{[0-9]+(?:,[0-9]*)?\}", re.DOTALL)
"""An escape, or a repetition: taken over as a whole."""
_QUOTED = re.compile(r"\\Q(.*?)(?:\\E|\Z)", re.DOTALL)
"""Everything in it means itself; without an end it goes to the end of the pattern."""
_POSIX = re.compile(r"\[:\^?[a-z]+:\]")
_OPENING = re.compile(r"\[\^?\]?")


@lru_cache(maxsize=4096)
def compile_pattern(pattern: str) -> Callable[[str], bool]:
    """A function that tells whether a text contains a match.

    Raises:
        ValueError: the pattern cannot be read, or is larger than the engine allows.
    """
    if len(pattern) > MAX_PATTERN_CHARS:
        raise ValueError(f"a pattern has at most {MAX_PATTERN_CHARS} characters, this one {len(pattern)}")
    try:
        validator = SchemaValidator(core_schema.str_schema(pattern=rewritten(pattern), regex_engine="rust-regex", strict=True))
    except SchemaError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(f"the pattern {pattern!r} cannot be compiled: {' '.join(lines[-2:])}") from None
    return validator.isinstance_python


def rewritten(pattern: str) -> str:
    """The same pattern in the syntax of the engine."""
    out: list[str] = []
    position, in_class = 0, False
    while position < len(pattern):
        char = pattern[position]
        quoted = _QUOTED.match(pattern, position) if char == "\\" and not in_class else None
        if quoted:
            out.append(re.escape(quoted[1]))
            position = quoted.end()
            continue
        whole = _WHOLE.match(pattern, position) if char == "\\" or not in_class else _POSIX.match(pattern, position)
        if whole:
            out.append(_CLASSES.get(whole[0], whole[0]))
            position = whole.end()
            continue
        if in_class:
            if char == "]":
                in_class = False
            out.append("\\" + char if char in "[&~" else char)
        elif char == "[":
            in_class = True
            opening = _OPENING.match(pattern, position)
            out.append(opening[0].replace("]", "\\]") if opening else char)
            position += len(opening[0]) - 1 if opening else 0
        else:
            out.append("\\" + char if char in "{}" else char)
        position += 1
    return "".join(out)
