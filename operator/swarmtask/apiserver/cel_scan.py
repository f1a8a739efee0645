"""Looks at the text of an expression before it runs: which functions, variables and fields it names, and how costly it can become.

Called by `cel_rules.py` when a CRD is written. The grammar is the library's business: this reads tokens only, follows the chains of
fields that begin at a known variable, and accepts what it cannot follow. Evaluates nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from swarmtask.apiserver.cel_values import TEXT, Shape

MACROS: Final = frozenset({"all", "exists", "exists_one", "existsOne", "map", "filter"})
TYPE_NAMES: Final = frozenset({"int", "uint", "double", "bool", "string", "bytes", "list", "map", "type", "null_type"})
_WORDS: Final = frozenset({"true", "false", "null", "in"})
RENAMED: Final[Mapping[str, str]] = {"size": "size_of"}
"""Functions of the library that count a string's bytes where CEL says characters: ours are called instead."""
_TOKEN: Final = re.compile(
    r"""(?P<space>\s+|//[^\n]*)
    |(?P<text>[bB]?[rR][bB]?(?:\"\"\".*?\"\"\"|'''.*?'''|"[^"\n]*"|'[^'\n]*')
        |[bB]?(?:\"\"\"(?:\\.|[^\\])*?\"\"\"|'''(?:\\.|[^\\])*?'''|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))
    |(?P<number>0[xX][0-9a-fA-F]+[uU]?|(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?[uU]?)
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<mark>&&|\|\||[<>=!]=|.)""",
    re.VERBOSE | re.DOTALL,
)
_OPEN, _SELECT, _COMMA, _DOT = "(", "[", ",", "."
Scope = Mapping[str, Shape | None]


@dataclass(slots=True)
class Scan:
    """What an expression says.

    Attributes:
        text: the expression with the functions of `RENAMED` renamed.
        problems: why it must be refused; sentences.
        names: variables of the scope that it uses.
        functions: functions and methods that it calls, with their name space.
        dynamic: it uses a value whose type is known only when there is one.
        depth: how deep comprehensions are nested.
        tokens: its length in tokens.
        joins: additions that may join lists or strings.
        loose: a comprehension goes over a list that the expression itself makes, so that joins may make it longer.
        literals: commas, so at most one less than the items of the longest list that is written out.
    """

    text: str = ""
    problems: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    functions: set[str] = field(default_factory=set)
    dynamic: bool = False
    depth: int = 0
    tokens: int = 0
    joins: int = 0
    loose: bool = False
    literals: int = 0


def scan(text: str, scope: Scope) -> Scan:
    """Look at an expression over the variables of `scope` (None: of a type that is not known)."""
    walker = _Walker(text)
    while walker.more():
        walker.sequence(scope, 0)
        walker.take()  # a closing bracket without an opening one: the library will say so
    return walker.result


class _Walker:
    """A cursor over the tokens."""

    def __init__(self, text: str) -> None:
        self.result = Scan()
        self._tokens: list[tuple[str, str]] = []
        out: list[str] = []
        for match in _TOKEN.finditer(text):
            kind, token = str(match.lastgroup), match[0]
            out.append(token)
            if kind != "space":
                self._tokens.append((kind, token))
                if token == _OPEN and len(self._tokens) > 1 and self._tokens[-2][1] in RENAMED:
                    position = len(out) - 2
                    while out[position] not in RENAMED:
                        position -= 1
                    out[position] = RENAMED[out[position]]
        self._at = 0
        self.result.text = "".join(out)
        self.result.tokens = len(self._tokens)
        self.result.literals = sum(token == _COMMA for _, token in self._tokens)
        self.result.joins = sum(self._joins(index) for index in range(len(self._tokens)))

    def _joins(self, index: int) -> bool:
        if self._tokens[index][1] != "+" or not 0 < index < len(self._tokens) - 1:
            return False
        return not {self._tokens[index - 1][0], self._tokens[index + 1][0]} & {"text", "number"}

    def more(self) -> bool:
        return self._at < len(self._tokens)

    def take(self) -> str:
        token = self._peek()
        self._at += 1
        return token

    def _peek(self, ahead: int = 0) -> str:
        index = self._at + ahead
        return self._tokens[index][1] if index < len(self._tokens) else ""

    def _is_name(self, ahead: int = 0) -> bool:
        index = self._at + ahead
        return index < len(self._tokens) and self._tokens[index][0] == "name"

    def sequence(self, scope: Scope, depth: int) -> None:
        """Everything up to the closing bracket, which is left."""
        node: Shape | None = None
        value = False  # whether the token before ended a value, so that "[" selects from it
        while self.more():
            token = self._peek()
            if token in (")", "]", "}"):
                return
            if self._is_name():
                node, value = self._noted(self._begin(scope, depth)), token not in _WORDS
            elif token == _DOT and value:
                self.take()
                node = self._noted(self._member(node, scope, depth))
            elif token in (_OPEN, _SELECT, "{"):
                self.take()
                self.sequence(scope, depth)
                self.take()
                node = self._noted(node.element) if token == _SELECT and value and node is not None else None
                value = True
            else:
                value = self._tokens[self._at][0] in ("text", "number")
                node = None
                self.take()

    def _noted(self, node: Shape | None) -> Shape | None:
        if node is not None and node.kind == "dyn":
            self.result.dynamic = True
        return node

    def _begin(self, scope: Scope, depth: int) -> Shape | None:
        """A chain that begins with a name."""
        name = self.take()
        if name in _WORDS:
            return None
        if name in scope:
            self.result.names.add(name)
            return scope[name]
        if self._peek() == "(":
            self._call(name, scope, depth)
            return None
        if self._peek() == "." and self._is_name(1):
            if self._peek(2) == "(":
                self.take()
                self._call(f"{name}.{self.take()}", scope, depth)
                return None
            self.result.problems.append(f"undeclared reference to '{name}'")
            return None
        if name not in TYPE_NAMES:
            self.result.problems.append(f"undeclared reference to '{name}'")
        return None

    def _call(self, name: str, scope: Scope, depth: int) -> None:
        self.result.functions.add(name)
        self.take()
        self.sequence(scope, depth)
        self.take()

    def _member(self, node: Shape | None, scope: Scope, depth: int) -> Shape | None:
        if not self._is_name():
            return None
        name = self.take()
        if self._peek() != "(":
            return self._field(node, name)
        if name in MACROS:
            return self._macro(name, node, scope, depth)
        self._call(name, scope, depth)
        if node is not None and node.optional and name in ("value", "orValue"):
            return replace(node, optional=False)
        return None

    def _field(self, node: Shape | None, name: str) -> Shape | None:
        if node is None or node.kind == "dyn":
            return None
        if node.optional:
            self.result.problems.append(f"'{name}' is asked of an optional value: call value() or orValue() first")
            return None
        if node.kind == "map":
            return node.element
        if node.kind != "object":
            self.result.problems.append(f"type '{node.kind}' does not support field selection, here of '{name}'")
            return None
        found = node.fields.get(name)
        if found is None:
            self.result.problems.append(f"undefined field '{name}'")
            return None
        return found[1]

    def _macro(self, name: str, node: Shape | None, scope: Scope, depth: int) -> Shape | None:
        """`list.all(item, ...)`: the variable is known inside of the brackets."""
        self.take()
        self.result.loose |= node is None
        if node is not None and node.kind not in ("list", "map", "dyn"):
            self.result.problems.append(f"a value of type '{node.kind}' cannot be the range of {name}()")
        variable = self.take() if self._is_name() else ""
        if self._peek() == "," and self._is_name(1) and self._peek(2) == "," and name != "map":
            self.result.problems.append(f"{name}() over two variables is not known here: write it over one")
            scope = {**scope, self._peek(1): None}
        element = None
        if node is not None:
            element = TEXT if node.kind == "map" else node.element
        self.result.depth = max(self.result.depth, depth + 1)
        self.sequence({**scope, variable: element} if variable else scope, depth + 1)
        self.take()
        return node if name == "filter" else None
