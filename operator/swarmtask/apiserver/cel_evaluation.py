"""Evaluates the CEL rules of a schema on every write of an object.

Called by `schema.py` once per schema (`compile_rules`) and through it by admission. The rules were accepted by `cel_rules.py`.
What is too costly, or has no value, fails: a rule is never passed over in silence.
Sources: Kubernetes documentation, "Validation rules", "CEL ratcheting"; messages as kubectl prints them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from swarmtask.apiserver.cel_expression import (
    MAX_MESSAGE_CHARS,
    Budget,
    Expression,
    compile_expression,
    field_path_of,
    first_lines,
    none,
    scope_of,
    some,
)
from swarmtask.apiserver.cel_folds import FAILURES
from swarmtask.apiserver.cel_values import Meter, Shape, aligned, shape_of, to_cel
from swarmtask.apiserver.faults import shown
from swarmtask.apiserver.schema_checks import MAX_CAUSES, Path, identity, path_text
from swarmtask.errors import Cause

Rules = Callable[[Any, Any, Path, Budget, list[Cause]], None]
MISSING: Final[Any] = object()
"""In place of an old value: there is none, or none that corresponds."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """One rule of a CRD that was accepted."""

    text: str
    expression: Expression
    message: str
    message_expression: Expression | None
    reason: str
    field_path: tuple[str, ...]
    optional_old: bool
    uses_old: bool


def compile_rules(schema: Mapping[str, Any], *, root: bool = True) -> Rules | None:
    """The evaluation of all rules of a node and below it; None where there are none.

    Called with (new value, old value or MISSING, path, budget, causes). The schema was accepted by `rule_causes`.
    """
    own = _node_rules(schema, root)
    below = _below(schema)
    if own is None:
        return below
    if below is None:
        return own
    first, second = own, below

    def both(new: Any, old: Any, path: Path, budget: Budget, out: list[Cause]) -> None:
        first(new, old, path, budget, out)
        second(new, old, path, budget, out)

    return both


def _node_rules(schema: Mapping[str, Any], root: bool) -> Rules | None:
    shape = shape_of(schema, root=root)
    if shape is None or not schema.get("x-kubernetes-validations"):
        return None
    rules = [_rule_of(item, schema, shape) for item in schema["x-kubernetes-validations"]]
    kind = "integer or string" if schema.get("x-kubernetes-int-or-string") else str(schema.get("type"))
    known = shape

    def check(new: Any, old: Any, path: Path, budget: Budget, out: list[Cause]) -> None:
        if new is None or len(out) > MAX_CAUSES:
            return
        unchanged = old is not MISSING and _equal(new, old)
        due = [rule for rule in rules if _is_due(rule, old, unchanged)]
        if due:
            _Evaluation(known, kind, new, path, budget, out).run(due, old)

    return check


def _is_due(rule: _Rule, old: Any, unchanged: bool) -> bool:
    """A rule about a change needs an old value; any other is not asked about a value that stays as it was stored."""
    if rule.uses_old:
        return rule.optional_old or (old is not MISSING and old is not None)
    return not unchanged


def _equal(new: Any, old: Any) -> bool:
    return new is old or bool(new == old)


def _rule_of(item: Mapping[str, Any], schema: Mapping[str, Any], shape: Shape) -> _Rule:
    optional = bool(item.get("optionalOldSelf"))
    expression = compile_expression(item["rule"], scope_of(shape, optional))
    by_message = item.get("messageExpression")
    text = item["rule"].strip()
    return _Rule(
        text, expression, (item.get("message") or "").strip() or f"failed rule: {text}",
        compile_expression(by_message, scope_of(shape, optional)) if by_message else None,
        item.get("reason") or "FieldValueInvalid", field_path_of(item.get("fieldPath") or "", schema) or (), optional,
        "oldSelf" in expression.scan.names,
    )  # fmt: skip


@dataclass(slots=True)
class _Evaluation:
    """The rules of one node, asked about one value. `kind`: its type, as errors have it."""

    shape: Shape
    kind: str
    value: Any
    path: Path
    budget: Budget
    out: list[Cause]
    meter: Meter = field(default_factory=Meter)

    def run(self, rules: list[_Rule], old: Any) -> None:
        before: Any = None
        variables = {"self": to_cel(self.shape, self.value, self.meter)}
        if old is not MISSING and any(rule.uses_old for rule in rules):
            before = to_cel(self.shape, aligned(self.shape, self.value, old), self.meter)
        for rule in rules:
            if rule.optional_old:
                variables["oldSelf"] = none() if old is MISSING else some(before)
            else:
                variables["oldSelf"] = before
            self._ask(rule, variables)

    def _refuse(self, why: str) -> None:
        self.out.append(Cause(path_text(self.path), "FieldValueInvalid", f'Invalid value: "{self.kind}": {why}'))

    def _ask(self, rule: _Rule, variables: Mapping[str, Any]) -> None:
        if not self.budget.take(rule.expression.steps(self.meter)):
            self._refuse(f"evaluating this rule may cost too much for a value of this size: {rule.text}")
            return
        try:
            result = self._value(rule.expression, variables)
        except FAILURES as error:
            unreadable = f" ({self.meter.unreadable})" if self.meter.unreadable else ""
            self._refuse(f"rule evaluation error: {_reason_of(error)}{unreadable}, in the rule: {rule.text}")
            return
        if result is True:
            return
        where: Path = self.path
        for name in rule.field_path:
            where = (where, name)
        message = self._message(rule, variables)
        texts = {
            "FieldValueForbidden": f"Forbidden: {message}", "FieldValueRequired": f"Required value: {message}",
            "FieldValueDuplicate": f"Duplicate value: {self._shown()}{message}",
        }  # fmt: skip
        self.out.append(Cause(path_text(where), rule.reason, texts.get(rule.reason, f"Invalid value: {self._shown()}{message}")))

    def _shown(self) -> str:
        """The value, where it is one that fits into a line."""
        return "" if isinstance(self.value, dict | list) else f"{shown(self.value)}: "

    def _value(self, expression: Expression, variables: Mapping[str, Any]) -> Any:
        """Raises one of `FAILURES`."""
        try:
            return expression.value(variables)
        except FAILURES as error:
            if expression.folds is None:
                raise
            if not self.budget.take(expression.steps_of_folds(self.meter)):
                raise ValueError(f"{_reason_of(error)}; whether another item decides may cost too much to find out") from error
            with suppress(*FAILURES):
                return expression.value_by_folds(variables)
            raise

    def _message(self, rule: _Rule, variables: Mapping[str, Any]) -> str:
        """The message of a broken rule; the fixed one where the expression gives no single line."""
        expression = rule.message_expression
        if expression is None or not self.budget.take(expression.steps(self.meter)):
            return rule.message
        try:
            text = self._value(expression, variables)
        except FAILURES:
            return rule.message
        if not isinstance(text, str) or not text.strip() or "\n" in text.strip():
            return rule.message
        return text.strip()[:MAX_MESSAGE_CHARS]


def _reason_of(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"no such key: {error.args[0] if error.args else ''}"
    return first_lines(str(error))


def _below(schema: Mapping[str, Any]) -> Rules | None:
    items, extra = schema.get("items"), schema.get("additionalProperties")
    if isinstance(items, Mapping):
        rule = compile_rules(items, root=False)
        return None if rule is None else _items(rule, schema)
    each = compile_rules(extra, root=False) if isinstance(extra, Mapping) else None
    named = {
        name: rule
        for name, child in (schema.get("properties") or {}).items()
        if isinstance(child, Mapping) and (rule := compile_rules(child, root=False)) is not None
    }
    if each is None and not named:
        return None

    def fields(new: Any, old: Any, path: Path, budget: Budget, out: list[Cause]) -> None:
        if type(new) is not dict:
            return
        before = old if type(old) is dict else {}
        for name in named.keys() & new.keys() if each is None else new:
            rule = named.get(name, each)
            if rule is not None:
                rule(new[name], before.get(name, MISSING), (path, name), budget, out)

    return fields


def _items(rule: Rules, schema: Mapping[str, Any]) -> Rules:
    keys = tuple(schema.get("x-kubernetes-list-map-keys") or ()) if schema.get("x-kubernetes-list-type") == "map" else ()

    def items(new: Any, old: Any, path: Path, budget: Budget, out: list[Cause]) -> None:
        if type(new) is not list:
            return
        before = {_key(item, keys): item for item in old if type(item) is dict} if keys and type(old) is list else {}
        for index, item in enumerate(new):
            matching = before.get(_key(item, keys), MISSING) if keys and type(item) is dict else MISSING
            rule(item, matching, (path, index), budget, out)
            if len(out) > MAX_CAUSES:
                return

    return items


def _key(item: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(identity(item.get(key)) for key in keys)
