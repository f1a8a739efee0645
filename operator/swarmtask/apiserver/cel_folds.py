"""`all` and `exists` as Kubernetes evaluates them: an item that has no answer does not matter where another one decides.

Called by `cel_evaluation.py` for an expression that failed, and for no other: the library ends `list.exists(item, item.v == 1)`
with the first item that lacks `v`. An expression that has a value there has the same value here, so that most never pay for this.
The other comprehensions (`exists_one`, `map`, `filter`) have no value with such an item in Kubernetes either.
Source: the language definition of CEL, "Macros"; `&&` and `||` do the same in the library itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from swarmtask.apiserver.cel_scan import Fold

if TYPE_CHECKING:
    import cel

FAILURES: Final = (RuntimeError, TypeError, ValueError, LookupError, ArithmeticError)
"""What the library raises for an expression that has no value."""


class Folds:
    """The programs of one expression, compiled when they are first needed.

    Args:
        text: the expression, in which `fold_0`, `fold_1`, ... stand for `folds`.
    """

    __slots__ = ("_bodies", "_folds", "_program", "_text")

    def __init__(self, text: str, folds: list[Fold]) -> None:
        self._text, self._folds = text, folds
        self._program: cel.Program | None = None
        self._bodies: list[cel.Program] = []

    def value(self, variables: Mapping[str, Any], functions: Mapping[str, Callable[..., Any]]) -> Any:
        """Raises one of `FAILURES`: no item decides, or something else has no value."""
        import cel  # noqa: PLC0415 - it is loaded with the first expression

        if self._program is None:
            self._bodies = [cel.compile(fold.body) for fold in self._folds]
            self._program = cel.compile(self._text)
        known = dict(functions)
        for index, (fold, body) in enumerate(zip(self._folds, self._bodies, strict=True)):
            known[f"fold_{index}"] = _folded(fold, body, variables, known)
        return self._program.execute(cel.Context(dict(variables), known))


def _folded(
    fold: Fold, body: cel.Program, variables: Mapping[str, Any], functions: Mapping[str, Callable[..., Any]]
) -> Callable[..., bool]:
    contexts: list[cel.Context] = []  # at most one: to hand `self` over is what costs, and no fold stands inside of itself

    def call(items: Any, *captured: Any) -> bool:
        import cel  # noqa: PLC0415 - it is loaded with the first expression

        if not isinstance(items, list | dict):
            raise TypeError(f"no such overload: {fold.name} of {type(items).__name__}")
        if not contexts:
            contexts.append(cel.Context(dict(variables), dict(functions)))
        context, failure = contexts[0], None
        for name, value in zip(fold.captured, captured, strict=True):
            context.add_variable(name, value)
        for item in items:
            context.add_variable(fold.variable, item)
            try:
                result = body.execute(context)
            except FAILURES as error:
                failure = failure or error
                continue
            if not isinstance(result, bool):
                failure = failure or TypeError(f"no such overload: {fold.name} over something else than bool")
            elif result is (fold.name == "exists"):
                return result
        if failure is not None:
            raise failure
        return fold.name == "all"

    return call
