"""One compiled expression: what it may name, what it may cost, and its value.

Called by `cel_rules.py` (CRDs) and `cel_evaluation.py` (objects). The language is the library's; what Kubernetes adds is in
`cel_functions.py`. Evaluation holds the interpreter and cannot be interrupted: the cost of an expression is bounded from its text
and the size of the value *before* it runs.

The library is loaded with the first expression: it takes 11 MB and a twentieth of a second, and most servers never see a rule.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from swarmtask.apiserver.cel_scan import Scan, Scope, scan
from swarmtask.apiserver.cel_values import Meter, Shape

if TYPE_CHECKING:
    import cel

MAX_RULE_CHARS: Final = 5_000
"""The library's parser and interpreter recurse: some 20,000 operators would overflow the stack of a thread."""
MAX_MESSAGE_CHARS: Final = 2_048
MAX_DEPTH: Final = 6
BUDGET: Final = 5_000_000
"""Steps for all rules of one write; a step is one token evaluated once, about 0.1 microseconds."""
MAX_JOINED_CHARS: Final = 16_000_000
BASE_STEPS: Final = 100
"""What the smallest evaluation costs."""
STEPS_PER_VALUE: Final = 3
"""What handing one value of an object to the library costs."""

WIDENING: Final = frozenset({"split", "findAll"})
"""Functions whose lists may be as long as a string."""

_FIELD: Final = re.compile(r"\.([A-Za-z_][A-Za-z0-9_-]*)|\['((?:[^'\\]|\\.)+)'\]")
FAILURES: Final = (RuntimeError, TypeError, ValueError, LookupError, ArithmeticError)
"""What the library raises for an expression that has no value."""

logging.getLogger("cel").setLevel(logging.CRITICAL)  # it would warn of every function that raises, on a user's word


class Budget:
    """The steps that are left for one write."""

    __slots__ = ("left",)

    def __init__(self, steps: int = BUDGET) -> None:
        self.left = steps

    def take(self, steps: int) -> bool:
        """Whether they were left."""
        if steps > self.left:
            return False
        self.left -= steps
        return True


@dataclass(frozen=True, slots=True)
class Expression:
    """A compiled expression and what it needs."""

    program: cel.Program
    scan: Scan
    functions: Mapping[str, Callable[..., Any]]

    def steps(self, meter: Meter) -> int:
        """An upper bound of what an evaluation costs; BUDGET + 1 where strings could outgrow the memory."""
        seen = self.scan
        width = max(meter.width, seen.literals + 1, meter.text if WIDENING & seen.functions else 1)
        if meter.text * (seen.joins + 1) ** (seen.depth + 1) > MAX_JOINED_CHARS:
            return BUDGET + 1
        reading = meter.text // 100  # functions of strings walk over them
        if seen.loose:
            width *= (seen.joins + 1) ** seen.depth
        return BASE_STEPS + meter.values * STEPS_PER_VALUE + (seen.tokens + reading) * int(width**seen.depth)

    def value(self, variables: Mapping[str, Any]) -> Any:
        """Raises one of `FAILURES`."""
        import cel  # noqa: PLC0415 - see the module

        return self.program.execute(cel.Context(dict(variables), dict(self.functions)))


def compile_expression(text: str, scope: Scope) -> Expression:
    """Raises ValueError: the expression cannot be read, or uses what is not here."""
    if len(text) > MAX_RULE_CHARS:
        raise ValueError(f"an expression has at most {MAX_RULE_CHARS} characters, this one {len(text)}")
    import cel  # noqa: PLC0415 - see the module

    from swarmtask.apiserver.cel_functions import FUNCTIONS, NATIVE  # noqa: PLC0415 - it loads the library

    seen = scan(text, scope)
    try:
        program = cel.compile(seen.text)
    except ValueError as error:
        raise ValueError(f"compilation failed: {first_lines(str(error))}") from None
    unknown = sorted(seen.functions - NATIVE - FUNCTIONS.keys())
    problems = [f"the function {name}() is not known to this server" for name in unknown] + seen.problems
    if seen.depth > MAX_DEPTH:
        problems.append(f"comprehensions may be nested {MAX_DEPTH} deep")
    if problems:
        raise ValueError(f"compilation failed: {'; '.join(dict.fromkeys(problems))}")
    called = {name: FUNCTIONS[name] for name in seen.functions & FUNCTIONS.keys()}
    if "size" in seen.functions:
        called["size_of"] = FUNCTIONS["size_of"]
    return Expression(program, seen, called)


def some(value: Any) -> Any:
    """An optional value that is there, as expressions see it."""
    import cel  # noqa: PLC0415 - see the module

    return cel.OptionalValue.of(value)


def none() -> Any:
    """An optional value that is not there."""
    import cel  # noqa: PLC0415 - see the module

    return cel.OptionalValue.none()


def first_lines(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("|")]
    return " ".join(lines)[:400]


def scope_of(shape: Shape, optional: bool) -> dict[str, Shape | None]:
    old = replace(shape, optional=optional)
    return {"self": shape, "oldSelf": old}


def field_path_of(text: str, schema: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names in a JSON path below a node; None where it is unreadable or names no field."""
    names, position = [], 0
    node: Any = schema
    while position < len(text):
        match = _FIELD.match(text, position)
        if match is None or not isinstance(node, Mapping):
            return None
        name = match[1] or match[2].replace("\\'", "'").replace("\\\\", "\\")
        properties, extra = node.get("properties"), node.get("additionalProperties")
        node = properties.get(name) if isinstance(properties, Mapping) else extra if isinstance(extra, Mapping) else None
        if node is None:
            return None
        names.append(name)
        position = match.end()
    return tuple(names) or None
