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

from swarmtask.apiserver.cel_folds import Folds
from swarmtask.apiserver.cel_lists import same, united
from swarmtask.apiserver.cel_scan import RENAMED, Scan, Scope, scan
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
STEPS_PER_ITEM: Final = 4
"""What one item costs a function that walks over a list; ours are written in Python."""
ITEMS_PER_STEP: Final = 20
"""Items that the library compares in a step."""
STEPS_PER_COPY: Final = 6
"""Tenths of a step that an item of a list costs each time that another is added to it: 58 ns were measured, half of the list."""

WIDENING: Final = frozenset({"split", "findAll"})
"""Functions whose lists may be as long as a string."""

_FIELD: Final = re.compile(r"\.([A-Za-z_][A-Za-z0-9_-]*)|\['((?:[^'\\]|\\.)+)'\]")

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
    folds: Folds | None

    def steps(self, meter: Meter) -> int:
        """An upper bound of what an evaluation costs; BUDGET + 1 where strings could outgrow the memory."""
        seen = self.scan
        if meter.text * (seen.joins + 1) ** (seen.depth + 1) > MAX_JOINED_CHARS:
            return BUDGET + 1
        reading = meter.text // 100  # functions of strings walk over them
        width = self._width(meter)
        walking = STEPS_PER_ITEM * _items(seen.walks, width, 1)
        comparing = _items(seen.compares, width, 1) // ITEMS_PER_STEP
        copying = _items(seen.builds, width, 2) * STEPS_PER_COPY // 10
        handing = len(seen.operators) * meter.values * 2 * STEPS_PER_VALUE
        once = seen.tokens + reading + handing
        own = BASE_STEPS + meter.values * STEPS_PER_VALUE + once * int(width**seen.depth)
        return own + walking + comparing + copying

    def _width(self, meter: Meter) -> int:
        """An upper bound of how many items a comprehension goes over."""
        seen = self.scan
        width = max(meter.width, seen.literals + 1, meter.text if WIDENING & seen.functions else 1)
        return int(width * (seen.joins + 1) ** seen.depth if seen.loose else width)

    def steps_of_folds(self, meter: Meter) -> int:
        """An upper bound of what `value_by_folds` costs: every item is handed over twice, and is an evaluation of its own."""
        width, depth = self._width(meter), self.scan.depth
        each = meter.values * 2 * STEPS_PER_VALUE + width * BASE_STEPS
        return self.steps(meter) + len(self.scan.folds) * each * int(width ** max(depth - 1, 0))

    def value_by_folds(self, variables: Mapping[str, Any]) -> Any:
        """The value of an expression for which `value` has failed: items without an answer do not matter where another decides.

        Raises one of `FAILURES`.
        """
        if self.folds is None:
            raise ValueError("nothing in this expression is decided by other items")
        return self.folds.value(variables, self.functions)

    def value(self, variables: Mapping[str, Any]) -> Any:
        """Raises one of `FAILURES`."""
        import cel  # noqa: PLC0415 - see the module

        return self.program.execute(cel.Context(dict(variables), dict(self.functions)))


def _items(counted: Mapping[int, int], width: int, levels: int) -> int:
    """How many are looked at where so often so many levels are walked, each within comprehensions of some depth."""
    return sum(count * int(width ** (depth + levels)) for depth, count in counted.items())


def compile_expression(text: str, scope: Scope) -> Expression:
    """Raises ValueError: the expression cannot be read, or uses what is not here."""
    if len(text) > MAX_RULE_CHARS:
        raise ValueError(f"an expression has at most {MAX_RULE_CHARS} characters, this one {len(text)}")
    import cel  # noqa: PLC0415 - see the module

    from swarmtask.apiserver.cel_functions import FUNCTIONS, NATIVE  # noqa: PLC0415 - it loads the library

    seen = scan(text, scope)
    try:
        if seen.unreplaced:
            cel.compile(seen.unreplaced)
        program = cel.compile(seen.text)
    except ValueError as error:
        raise ValueError(f"compilation failed: {first_lines(str(error))}") from None
    unknown = sorted(seen.functions - NATIVE - (FUNCTIONS.keys() - RENAMED.values()))
    problems = [f"undeclared reference to '{name}': this server has no function {name}()" for name in unknown] + seen.problems
    if seen.depth > MAX_DEPTH:
        problems.append(f"comprehensions may be nested {MAX_DEPTH} deep")
    if problems:
        raise ValueError(f"compilation failed: {'; '.join(dict.fromkeys(problems))}")
    called = {name: FUNCTIONS[name] for name in seen.functions & FUNCTIONS.keys()}
    called |= {ours: FUNCTIONS[ours] for name, ours in RENAMED.items() if name in seen.functions}
    makers = {"united": united, "same": same}
    called |= {f"{name}_{index}": makers[name](shape) for index, (name, shape) in enumerate(seen.operators)}
    return Expression(program, seen, called, Folds(seen.folded, seen.folds) if seen.folds else None)


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
