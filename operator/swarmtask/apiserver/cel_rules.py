"""Validation rules in the Common Expression Language: refused at CRD creation where they cannot work, evaluated on every write.

Called by `schema_rules.py` (`rule_causes`) when a CRD is written and by `schema.py` (`compile_rules`) for its objects. The language
is the library's; what Kubernetes adds is in `cel_functions.py`. Evaluation happens on the event loop, holds it, and cannot be
interrupted: so the cost of a rule is bounded from its text and the size of the value *before* it runs, and what would be too costly
fails. Sources: Kubernetes documentation, "Validation rules", "CEL ratcheting"; messages as kubectl prints them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import cel

from swarmtask.apiserver.cel_functions import FUNCTIONS, NATIVE, WIDENING
from swarmtask.apiserver.cel_scan import Scan, Scope, scan
from swarmtask.apiserver.cel_values import Meter, Shape, aligned, sample, shape_of, to_cel
from swarmtask.apiserver.schema_checks import MAX_CAUSES, Path, path_text, shown
from swarmtask.errors import Cause

MAX_RULE_CHARS: Final = 5_000
"""The library's parser and interpreter recurse: some 20,000 operators would overflow the stack of a thread."""
MAX_MESSAGE_CHARS: Final = 2_048
MAX_DEPTH: Final = 6
BUDGET: Final = 5_000_000
"""Steps for all rules of one write; a step is one token evaluated once, about 0.1 microseconds."""
TRIAL_STEPS: Final = 20_000
"""An expression that costs more even on the smallest value is not tried when a CRD is written."""
MAX_JOINED_CHARS: Final = 16_000_000
BASE_STEPS: Final = 100
"""What the smallest evaluation costs."""

Rules = Callable[[Any, Any, Path, "Budget", list[Cause]], None]
MISSING: Final[Any] = object()
"""In place of an old value: there is none, or none that corresponds."""

_KEYS: Final = frozenset({"rule", "message", "messageExpression", "reason", "fieldPath", "optionalOldSelf"})
_REASONS: Final = ("FieldValueInvalid", "FieldValueForbidden", "FieldValueRequired", "FieldValueDuplicate")
_FIELD: Final = re.compile(r"\.([A-Za-z_][A-Za-z0-9_-]*)|\['((?:[^'\\]|\\.)+)'\]")
_FAILURES: Final = (RuntimeError, TypeError, ValueError, LookupError, ArithmeticError)
"""What the library raises for an expression that has no value."""
_WRONG_TEXT: Final = ("regex parse error", "Undefined variable or function", "feature not enabled", "TypeError: no such overload")

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
class _Expression:
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
        return BASE_STEPS + (seen.tokens + reading) * int(width**seen.depth)

    def value(self, variables: Mapping[str, Any]) -> Any:
        """Raises one of `_FAILURES`."""
        return self.program.execute(cel.Context(dict(variables), dict(self.functions)))


def _compile(text: str, scope: Scope) -> _Expression:
    """Raises ValueError: the expression cannot be read, or uses what is not here."""
    if len(text) > MAX_RULE_CHARS:
        raise ValueError(f"an expression has at most {MAX_RULE_CHARS} characters, this one {len(text)}")
    seen = scan(text, scope)
    try:
        program = cel.compile(seen.text)
    except ValueError as error:
        raise ValueError(f"compilation failed: {_first_lines(str(error))}") from None
    unknown = sorted(seen.functions - NATIVE - FUNCTIONS.keys())
    problems = [f"the function {name}() is not known to this server" for name in unknown] + seen.problems
    if seen.depth > MAX_DEPTH:
        problems.append(f"comprehensions may be nested {MAX_DEPTH} deep")
    if problems:
        raise ValueError(f"compilation failed: {'; '.join(dict.fromkeys(problems))}")
    called = {name: FUNCTIONS[name] for name in seen.functions & FUNCTIONS.keys()}
    if "size" in seen.functions:
        called["size_of"] = FUNCTIONS["size_of"]
    return _Expression(program, seen, called)


def _first_lines(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("|")]
    return " ".join(lines)[:400]


# --- when a CRD is written -----------------------------------------------------------------------------------------------


def rule_causes(schema: Mapping[str, Any], path: str, *, root: bool, correlatable: bool) -> Iterator[Cause]:
    """What is wrong with the `x-kubernetes-validations` of one structural node.

    Args:
        path: of the node's schema in the CRD.
        correlatable: the old value of the node can be found on an update; without it `oldSelf` has no meaning.
    """
    rules, where = schema.get("x-kubernetes-validations"), f"{path}.x-kubernetes-validations"
    if not isinstance(rules, list):
        yield _refused(where, rules, "must be a list of rules")
        return
    shape = shape_of(schema, root=root)
    if shape is None:
        yield Cause(where, "FieldValueForbidden", "Forbidden: expressions cannot see a node without a type or declared items")
        return
    for index, rule in enumerate(rules):
        yield from _one_rule(rule, f"{where}[{index}]", schema, shape, correlatable)


def _refused(path: str, value: Any, why: str) -> Cause:
    return Cause(path, "FieldValueInvalid", f"Invalid value: {shown(value)}: {why}")


def _one_rule(rule: Any, where: str, schema: Mapping[str, Any], shape: Shape, correlatable: bool) -> Iterator[Cause]:
    if not isinstance(rule, Mapping):
        yield _refused(where, rule, "must be an object with a rule")
        return
    for key in rule:
        if key not in _KEYS:
            yield Cause(f"{where}.{key}", "FieldValueForbidden", "Forbidden: this keyword is not known here, and would be ignored")
    wrong_type = [
        key for key in _KEYS & rule.keys() if not isinstance(rule[key], bool if key == "optionalOldSelf" else str)
    ]  # fmt: skip
    if wrong_type:
        yield from (_refused(f"{where}.{key}", rule[key], "has the wrong type") for key in wrong_type)
        return
    text = rule.get("rule", "")
    if not text.strip():
        yield Cause(f"{where}.rule", "FieldValueRequired", "Required value: a rule is an expression")
        return
    yield from _message_causes(rule, where)
    if rule.get("reason") not in (None, *_REASONS):
        listed = ", ".join(f'"{item}"' for item in _REASONS)
        why = f"Unsupported value: {shown(rule['reason'])}: supported values: {listed}"
        yield Cause(f"{where}.reason", "FieldValueNotSupported", why)
    if "fieldPath" in rule and _field_path(rule["fieldPath"], schema) is None:
        why = "must be a path such as .spec.color to a field that the schema names"
        yield _refused(f"{where}.fieldPath", rule["fieldPath"], why)
    site = _Site(shape, bool(rule.get("optionalOldSelf")), correlatable)
    for key, wanted in (("rule", bool), ("messageExpression", str)):
        if rule.get(key):
            yield from _expression_causes(rule[key], f"{where}.{key}", site, wanted)


def _message_causes(rule: Mapping[str, Any], where: str) -> Iterator[Cause]:
    message = rule.get("message")
    if message is None:
        if "\n" in rule["rule"].strip() and not rule.get("messageExpression"):
            yield Cause(f"{where}.message", "FieldValueRequired", "Required value: a rule of several lines needs a message")
    elif not message.strip():
        yield _refused(f"{where}.message", message, "must be non-empty if specified")
    elif "\n" in message.strip():
        yield _refused(f"{where}.message", message, "must not contain line breaks")
    elif len(message) > MAX_MESSAGE_CHARS:
        why = f"Too long: may not be more than {MAX_MESSAGE_CHARS} bytes"
        yield Cause(f"{where}.message", "FieldValueTooLong", why)


@dataclass(frozen=True, slots=True)
class _Site:
    """Where an expression stands: what `self` and `oldSelf` are."""

    shape: Shape
    optional: bool
    correlatable: bool


def _expression_causes(text: str, where: str, site: _Site, wanted: type) -> Iterator[Cause]:
    try:
        expression = _compile(text, _scope(site.shape, site.optional))
    except ValueError as error:
        yield _refused(where, text, str(error))
        return
    uses_old = "oldSelf" in expression.scan.names
    if uses_old and not site.correlatable:
        why = "oldSelf cannot be used here: the items of a list that is no map, and what is below them, have no old value"
        yield _refused(where, text, why)
        return
    if site.optional and not uses_old and wanted is bool:
        yield _refused(where, text, "optionalOldSelf may be set only where the rule uses oldSelf")
        return
    problem = _trial(expression, site, wanted)
    if problem:
        yield _refused(where, text, problem)


def _scope(shape: Shape, optional: bool) -> dict[str, Shape | None]:
    old = replace(shape, optional=optional)
    return {"self": shape, "oldSelf": old}


def _trial(expression: _Expression, site: _Site, wanted: type) -> str:
    """Evaluate on made-up values: what can never work says so before the first object. Empty when nothing is found."""
    value = sample(site.shape)
    if expression.steps(Meter()) > TRIAL_STEPS:
        return ""
    try:
        result = expression.value({"self": value, "oldSelf": cel.OptionalValue.of(value) if site.optional else value})
    except TypeError as error:
        return "" if expression.scan.dynamic else f"compilation failed: {_first_lines(str(error))}"
    except _FAILURES as error:
        text = str(error)
        broken = any(words in text for words in _WRONG_TEXT) and not expression.scan.dynamic
        return f"compilation failed: {_first_lines(text)}" if broken else ""
    if isinstance(result, wanted):
        return ""
    return f"must evaluate to a {'bool' if wanted is bool else 'string'}"


def _field_path(text: str, schema: Mapping[str, Any]) -> tuple[str, ...] | None:
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


# --- when an object is written -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Rule:
    """One rule of a CRD that was accepted."""

    text: str
    expression: _Expression
    message: str
    message_expression: _Expression | None
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
            _Evaluation(known, kind, path, budget, out).run(due, new, old)

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
    expression = _compile(item["rule"], _scope(shape, optional))
    by_message = item.get("messageExpression")
    text = item["rule"].strip()
    return _Rule(
        text, expression, (item.get("message") or "").strip() or f"failed rule: {text}",
        _compile(by_message, _scope(shape, optional)) if by_message else None,
        item.get("reason") or "FieldValueInvalid", _field_path(item.get("fieldPath") or "", schema) or (), optional,
        "oldSelf" in expression.scan.names,
    )  # fmt: skip


@dataclass(slots=True)
class _Evaluation:
    """The rules of one node, asked about one value."""

    shape: Shape
    kind: str
    path: Path
    budget: Budget
    out: list[Cause]
    meter: Meter = field(default_factory=Meter)

    def run(self, rules: list[_Rule], new: Any, old: Any) -> None:
        before: Any = None
        try:
            variables = {"self": to_cel(self.shape, new, self.meter)}
            if old is not MISSING and any(rule.uses_old for rule in rules):
                before = to_cel(self.shape, aligned(self.shape, new, old), self.meter)
        except ValueError as error:
            self._refuse(str(error))
            return
        for rule in rules:
            if rule.optional_old:
                variables["oldSelf"] = cel.OptionalValue.none() if old is MISSING else cel.OptionalValue.of(before)
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
            result = rule.expression.value(variables)
        except _FAILURES as error:
            self._refuse(f"rule evaluation error: {_reason_of(error)}, in the rule: {rule.text}")
            return
        if result is True:
            return
        where: Path = self.path
        for name in rule.field_path:
            where = (where, name)
        message = self._message(rule, variables)
        texts = {
            "FieldValueForbidden": f"Forbidden: {message}", "FieldValueRequired": f"Required value: {message}",
            "FieldValueDuplicate": f'Duplicate value: "{self.kind}": {message}',
        }  # fmt: skip
        self.out.append(Cause(path_text(where), rule.reason, texts.get(rule.reason, f'Invalid value: "{self.kind}": {message}')))

    def _message(self, rule: _Rule, variables: Mapping[str, Any]) -> str:
        """The message of a broken rule; the fixed one where the expression gives no single line."""
        expression = rule.message_expression
        if expression is None or not self.budget.take(expression.steps(self.meter)):
            return rule.message
        try:
            text = expression.value(variables)
        except _FAILURES:
            return rule.message
        if not isinstance(text, str) or not text.strip() or "\n" in text.strip():
            return rule.message
        return text.strip()[:MAX_MESSAGE_CHARS]


def _reason_of(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"no such key: {error.args[0] if error.args else ''}"
    return _first_lines(str(error))


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
    return tuple(item.get(key) for key in keys)
