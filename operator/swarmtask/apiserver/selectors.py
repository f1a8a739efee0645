"""Label and field selectors: parsing and matching.

Called by the list, watch and collection-delete handlers. Source of the grammar: Kubernetes documentation, "Labels and Selectors"
and "Field Selectors".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from swarmtask.apiserver.names import label_value_problem, qualified_name_problem
from swarmtask.apiserver.records import Record
from swarmtask.apiserver.types import ResourceType
from swarmtask.apiserver.versions import decode as decode_as
from swarmtask.errors import BadRequest

Operator = Literal["=", "!=", "in", "notin", "exists", "absent", ">", "<"]
_TOKEN = re.compile(r"\s*(==|!=|=|!|,|\(|\)|<|>|[^\s=!,()<>]+)")
_TEXT = re.compile(r"[^=!,()<>]")


TERMS_LIMIT = 1_000
"""Requirements of one selector. A watch holds its own against every write."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One comma-separated part of a label selector."""

    key: str
    operator: Operator
    values: frozenset[str] = frozenset()


class _Rule:
    """All that a selector requires of one label.

    Attributes:
        one_of: values of which it must have one; None: any.
        none_of: values that it may not have.
        above, below: bounds of the whole number that it must be; None: it may be anything.
    """

    __slots__ = ("above", "below", "none_of", "one_of", "present")

    def __init__(self) -> None:
        self.present: bool | None = None
        self.one_of: frozenset[str] | None = None
        self.none_of: set[str] = set()
        self.above: int | None = None
        self.below: int | None = None

    def add(self, requirement: Requirement) -> bool:
        """Take one more in; False: no object can meet it together with those before."""
        operator, values = requirement.operator, requirement.values
        if operator in ("!=", "notin"):
            self.none_of |= values
            return True
        present = operator != "absent"
        if self.present not in (None, present):
            return False
        self.present = present
        if operator in ("=", "in"):
            self.one_of = values if self.one_of is None else self.one_of & values
        elif operator in (">", "<"):
            bound = int(next(iter(values)))
            if operator == ">":
                self.above = bound if self.above is None else max(self.above, bound)
            else:
                self.below = bound if self.below is None else min(self.below, bound)
        return True

    def accepts(self, value: str) -> bool:
        """The label is there and has this value."""
        if self.present is False or value in self.none_of or (self.one_of is not None and value not in self.one_of):
            return False
        if self.above is None and self.below is None:
            return True
        if not _is_integer(value):
            return False
        number = int(value)
        return (self.above is None or number > self.above) and (self.below is None or number < self.below)


class LabelSelector:
    """A conjunction of requirements; the empty one matches everything.

    An object is looked at as long as it has labels or the selector names some, whichever are fewer: how many requirements there are
    for one label does not matter.

    Raises:
        BadRequest: the text is no selector, or has more than `TERMS_LIMIT` requirements.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.requirements = _parse_labels(text)
        self._possible = True
        self._rules: dict[str, _Rule] = {}
        for requirement in self.requirements:
            self._possible &= self._rules.setdefault(requirement.key, _Rule()).add(requirement)
        self._needed = tuple(key for key, rule in self._rules.items() if rule.present)

    def matches(self, labels: Mapping[str, str]) -> bool:
        rules = self._rules
        if not rules:
            return True
        if not self._possible or len(self._needed) > len(labels):
            return False
        for key in self._needed:
            if key not in labels:
                return False
        if len(rules) <= len(labels):
            return all(rule.accepts(labels[key]) for key, rule in rules.items() if key in labels)
        return all(rules[key].accepts(value) for key, value in labels.items() if key in rules)

    def __bool__(self) -> bool:
        return bool(self.requirements)


def _is_integer(text: str) -> bool:
    return re.fullmatch(r"[+-]?[0-9]{1,18}", text) is not None


def _parse_labels(text: str) -> tuple[Requirement, ...]:
    tokens = _tokens(text)
    requirements: list[Requirement] = []
    position = 0
    while position < len(tokens):
        requirement, position = _requirement(text, tokens, position)
        requirements.append(requirement)
        _check_count(len(requirements))
        if position < len(tokens):
            if tokens[position] != "," or position + 1 == len(tokens):
                raise _unparsable(text, f"found {tokens[position]!r}, expected ',' and another requirement")
            position += 1
    return tuple(requirements)


def _check_count(count: int) -> None:
    if count > TERMS_LIMIT:
        raise BadRequest(f"the selector has more than {TERMS_LIMIT} requirements: ask for less, or more than once")


def _tokens(text: str) -> list[str]:
    tokens, position, stripped = [], 0, text.rstrip()
    while position < len(stripped):
        match = _TOKEN.match(stripped, position)
        if match is None:  # pragma: no cover - the last alternative takes whatever the others leave
            raise _unparsable(text, "unreadable")
        tokens.append(match.group(1))
        position = match.end()
    return tokens


def _requirement(text: str, tokens: list[str], position: int) -> tuple[Requirement, int]:
    def take(index: int) -> str:
        return tokens[index] if index < len(tokens) else ""

    if take(position) == "!":
        return Requirement(_key(text, take(position + 1)), "absent"), position + 2
    key = _key(text, take(position))
    operator = take(position + 1)
    if operator in ("", ","):
        return Requirement(key, "exists"), position + 1
    if operator in ("=", "==", "!="):
        value = take(position + 2)
        after = position + 3
        if value in ("", ","):
            value, after = "", position + 2
        return Requirement(key, "!=" if operator == "!=" else "=", frozenset({_value(text, value)})), after
    if operator in ("<", ">"):
        bound = take(position + 2)
        if not _is_integer(bound):
            raise _unparsable(text, f"for '<' and '>' the value must be an integer, not {bound!r}")
        return Requirement(key, ">" if operator == ">" else "<", frozenset({bound})), position + 3
    if operator in ("in", "notin"):
        values, after = _value_list(text, tokens, position + 2)
        return Requirement(key, "in" if operator == "in" else "notin", values), after
    raise _unparsable(text, f"found {operator!r}, expected one of: in, notin, =, ==, !=, <, >")


def _value_list(text: str, tokens: list[str], position: int) -> tuple[frozenset[str], int]:
    if position >= len(tokens) or tokens[position] != "(":
        raise _unparsable(text, "expected '(' after in or notin")
    values: set[str] = set()
    pending = ""
    for index in range(position + 1, len(tokens)):
        token = tokens[index]
        if token in (",", ")"):
            values.add(_value(text, pending))
            pending = ""
            if token == ")":  # noqa: S105 - punctuation
                return frozenset(values), index + 1
        elif pending or not _TEXT.match(token):
            raise _unparsable(text, f"found {token!r} in a list of values")
        else:
            pending = token
    raise _unparsable(text, "the list of values is not closed with ')'")


def _key(text: str, key: str) -> str:
    problem = qualified_name_problem(key)
    if problem:
        raise _unparsable(text, f"<nil>: Invalid value: {key!r}: {problem}")
    return key


def _value(text: str, value: str) -> str:
    problem = label_value_problem(value)
    if problem:
        raise _unparsable(text, f"values: Invalid value: {value!r}: {problem}")
    return value


def _unparsable(text: str, why: str) -> BadRequest:
    return BadRequest(f"unable to parse requirement {text!r}: {why}")


class FieldSelector:
    """`metadata.name=x,status.phase!=y` for the fields that a kind allows.

    Raises:
        BadRequest: the text is no selector, names a field that the kind cannot be selected by, or has more than `TERMS_LIMIT`
            requirements.
    """

    def __init__(self, text: str, rt: ResourceType) -> None:
        self.text = text
        self.rt = rt
        self._terms = tuple(dict.fromkeys(self._parse(text, rt)))
        self.needs_object = any(path not in ("metadata.name", "metadata.namespace") for path, _, _ in self._terms)
        self._rules = [(path, *self._values(path)) for path in dict.fromkeys(path for path, _, _ in self._terms)]

    def _values(self, path: str) -> tuple[frozenset[str], frozenset[str]]:
        """What the field must be (more than one value: nothing can be), and what it may not be."""
        of_it = [(equal, value) for term, equal, value in self._terms if term == path]
        return frozenset(value for equal, value in of_it if equal), frozenset(value for equal, value in of_it if not equal)

    @staticmethod
    def _parse(text: str, rt: ResourceType) -> list[tuple[str, bool, str]]:
        terms = []
        for part in filter(None, _split_unescaped(text)):
            match = re.fullmatch(r"([^=!]+?)(==|!=|=)(.*)", part, re.DOTALL)
            if match is None:
                raise BadRequest(f"invalid field selector: {part!r}: write field=value or field!=value")
            path, operator, value = match.group(1).strip(), match.group(2), match.group(3)
            if path not in ("metadata.name", "metadata.namespace") and path not in rt.field_selectors:
                raise BadRequest(f"field label not supported: {path}")  # kubectl says itself what was looked for
            terms.append((path, operator != "!=", re.sub(r"\\(.)", r"\1", value)))
            _check_count(len(terms))
        return terms

    def __bool__(self) -> bool:
        return bool(self._terms)

    @property
    def name(self) -> str | None:
        """The one name that can match, if the selector says so."""
        return self.value("metadata.name")

    def value(self, path: str) -> str | None:
        """The one value that the field can have, if the selector says so."""
        return next((value for term, equal, value in self._terms if equal and term == path), None)

    def matches(self, record: Record, decode: Callable[[], Mapping[str, Any]]) -> bool:
        """`decode` gives the object; it is called only for fields that are not part of the key."""
        for path, wanted, refused in self._rules:
            if path == "metadata.name":
                actual = record.key.name
            elif path == "metadata.namespace":
                actual = record.key.namespace
            else:
                actual = _field(decode(), path)
            if actual in refused or len(wanted) > 1 or (wanted and actual not in wanted):
                return False
        return True


def _split_unescaped(text: str) -> list[str]:
    parts, current, escaped = [], "", False
    for character in text:
        if character == "," and not escaped:
            parts.append(current)
            current = ""
        else:
            current += character
        escaped = character == "\\" and not escaped
    return [*parts, current]


def _field(obj: Mapping[str, Any], path: str) -> str:
    value: Any = obj
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


@dataclass(frozen=True, slots=True)
class Selection:
    """Both selectors of one request."""

    labels: LabelSelector
    fields: FieldSelector

    def matches(self, record: Record) -> bool:
        if self.labels and not self.labels.matches(record.labels):
            return False
        return not self.fields or self.fields.matches(record, lambda: decode_as(self.fields.rt, record))

    def __bool__(self) -> bool:
        return bool(self.labels) or bool(self.fields)
