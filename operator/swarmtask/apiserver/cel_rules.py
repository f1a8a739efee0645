"""Rules in the Common Expression Language that a CRD brings: refused, with their path, where they cannot work.

Called by `schema_rules.py` when a CRD is written. A rule is looked at in its text (functions, variables and fields that are not
there) and tried on a made-up value (types that do not fit). Source: Kubernetes documentation, "Validation rules".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from swarmtask.apiserver.cel_expression import (
    MAX_MESSAGE_CHARS,
    Expression,
    compile_expression,
    field_path_of,
    first_lines,
    scope_of,
    some,
)
from swarmtask.apiserver.cel_folds import FAILURES
from swarmtask.apiserver.cel_values import Meter, Shape, sample, shape_of
from swarmtask.apiserver.schema_checks import shown
from swarmtask.errors import Cause

TRIAL_STEPS: Final = 20_000
"""An expression that costs more even on the smallest value is not tried when a CRD is written."""

_KEYS: Final = frozenset({"rule", "message", "messageExpression", "reason", "fieldPath", "optionalOldSelf"})
_REASONS: Final = ("FieldValueInvalid", "FieldValueForbidden", "FieldValueRequired", "FieldValueDuplicate")
_WRONG_TEXT: Final = (
    "the pattern cannot be read",
    "Undefined variable or function",
    "feature not enabled",
    "TypeError: no such overload",
)


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
    if "fieldPath" in rule and field_path_of(rule["fieldPath"], schema) is None:
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
        expression = compile_expression(text, scope_of(site.shape, site.optional))
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


def _trial(expression: Expression, site: _Site, wanted: type) -> str:
    """Evaluate on made-up values: what can never work says so before the first object. Empty when nothing is found."""
    value = sample(site.shape)
    if expression.steps(Meter()) > TRIAL_STEPS:
        return ""
    try:
        result = expression.value({"self": value, "oldSelf": some(value) if site.optional else value})
    except TypeError as error:
        return "" if expression.scan.dynamic else f"compilation failed: {first_lines(str(error))}"
    except FAILURES as error:
        text = str(error)
        broken = any(words in text for words in _WRONG_TEXT) and not expression.scan.dynamic
        return f"compilation failed: {first_lines(text)}" if broken else ""
    if isinstance(result, wanted):
        return ""
    return f"must evaluate to a {'bool' if wanted is bool else 'string'}"
