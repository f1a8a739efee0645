"""Looks at the text of an expression before it runs: which functions, variables and fields it names, and how costly it can become.

Called by `cel_rules.py` when a CRD is written. The grammar is the library's business: this reads tokens only, follows the chains of
fields that begin at a known variable, and accepts what it cannot follow. Evaluates nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from swarmtask.apiserver.cel_values import TEXT, Shape

MACROS: Final = frozenset({"all", "exists", "exists_one", "existsOne", "map", "filter"})
TYPE_NAMES: Final = frozenset({"int", "uint", "double", "bool", "string", "bytes", "list", "map", "type", "null_type"})
_WORDS: Final = frozenset({"true", "false", "null", "in"})
RENAMED: Final[Mapping[str, str]] = {"size": "size_of", "matches": "matches_of"}
"""Functions of the library that count a string's bytes where CEL says characters, or take `\\d` for any digit of Unicode where RE2
takes it for 0 to 9: ours are called instead."""
_TOKEN: Final = re.compile(
    r"""(?P<space>\s+|//[^\n]*)
    |(?P<text>[bB]?[rR][bB]?(?:\"\"\".*?\"\"\"|'''.*?'''|"[^"\n]*"|'[^'\n]*')
        |[bB]?(?:\"\"\"(?:\\.|[^\\])*?\"\"\"|'''(?:\\.|[^\\])*?'''|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))
    |(?P<number>0[xX][0-9a-fA-F]+[uU]?|(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?[uU]?)
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<mark>&&|\|\||[<>=!]=|.)""",
    re.VERBOSE | re.DOTALL,
)
WALKING: Final = frozenset({
    "indexOf", "lastIndexOf", "join", "format", "isSorted", "sum", "min", "max",
    "sets.contains", "sets.equivalent", "sets.intersects",
})  # fmt: skip
"""Functions that look at each item of a list."""
_RELATIONS: Final = frozenset({"==", "!=", "<", "<=", ">", ">=", "in"})
_BINARY: Final = frozenset({"+", "-", "*", "/", "%"}) | _RELATIONS
_BOUNDARIES: Final = frozenset({"&&", "||", "?", ":", ","})
_OPEN, _SELECT, _COMMA, _DOT, _IN = "(", "[", ",", ".", "in"
Scope = Mapping[str, Shape | None]


@dataclass(frozen=True, slots=True)
class Fold:
    """`list.all(variable, body)` or `exists`.

    Attributes:
        body: its text, with the folds in it as calls of `fold_0`, `fold_1`, ...
        captured: variables of the comprehensions around it that the body may use: the arguments of its call, after the list.
    """

    name: str
    variable: str
    body: str
    captured: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Operand:
    """Tokens from `begin` to before `end`, and what is known of their value."""

    begin: int
    end: int
    node: Shape | None


_Parts = list[str | _Operand]


@dataclass(frozen=True, slots=True)
class _Span:
    """Where a fold stands, in tokens: `name ( variable , body... )`."""

    name: str
    variable: str
    begin: int
    end: int
    bound: tuple[str, ...]


@dataclass(slots=True)
class Scan:
    """What an expression says.

    Attributes:
        text: the expression with the functions of `RENAMED` renamed, and functions for `+` and `==` of sets and keyed lists.
        problems: why it must be refused; sentences.
        names: variables of the scope that it uses.
        functions: functions and methods that it calls, with their name space.
        dynamic: it uses a value whose type is known only when there is one.
        depth: how deep comprehensions are nested.
        tokens: its length in tokens.
        joins: additions that may join lists or strings.
        loose: a comprehension goes over a list that the expression itself makes, so that joins may make it longer.
        walks: how often functions walk over a list, by how deep in comprehensions.
        compares: the same for the language's own `in`, and `==` of lists and maps, which are much faster.
        builds: how often `map` and `filter` make a list, by how deep in comprehensions; the library copies it for each item.
        unreplaced: the text without these functions, if there are any: what must be readable.
        operators: `united` or `same`, and the shape of the left side: the functions `united_0`, `same_1`, ... of `text`.
        folds: its `all` and `exists`.
        folded: the expression with calls of `fold_0`, `fold_1`, ... in their place.
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
    walks: Counter[int] = field(default_factory=Counter)
    compares: Counter[int] = field(default_factory=Counter)
    builds: Counter[int] = field(default_factory=Counter)
    literals: int = 0
    unreplaced: str = ""
    operators: list[tuple[str, Shape]] = field(default_factory=list)
    folds: list[Fold] = field(default_factory=list)
    folded: str = ""


def scan(text: str, scope: Scope) -> Scan:
    """Look at an expression over the variables of `scope` (None: of a type that is not known)."""
    walker = _Walker(text)
    while walker.more():
        walker.sequence(scope, 0)
        walker.take()  # a closing bracket without an opening one: the library will say so
    walker.rewrite()
    return walker.result


class _Walker:
    """A cursor over the tokens."""

    def __init__(self, text: str) -> None:
        self.result = Scan()
        self._tokens: list[tuple[str, str]] = []
        self._spans: dict[int, _Span] = {}
        self._replaced: dict[int, tuple[int, _Parts]] = {}
        self._bound: list[str] = []
        out: list[str] = []
        places: list[int] = []
        for match in _TOKEN.finditer(text):
            kind, token = str(match.lastgroup), match[0]
            out.append(token)
            if kind != "space":
                self._tokens.append((kind, token))
                places.append(len(out) - 1)
                if token == _OPEN and len(self._tokens) > 1 and self._tokens[-2][1] in RENAMED:
                    out[places[-2]] = RENAMED[out[places[-2]]]
        self._at = 0
        self._texts = [out[place] for place in places]
        self.result.text = "".join(out)
        self.result.tokens = len(self._tokens)
        self.result.literals = sum(token == _COMMA for _, token in self._tokens)
        self.result.joins = sum(self._joins(index) for index in range(len(self._tokens)))

    def _joins(self, index: int) -> bool:
        if self._tokens[index][1] != "+" or not 0 < index < len(self._tokens) - 1:
            return False
        return not {self._tokens[index - 1][0], self._tokens[index + 1][0]} & {"text", "number"}

    def rewrite(self) -> None:
        """Write down the texts with what was found of operators, and of `all` and `exists`."""
        if self._replaced:
            self.result.unreplaced = self.result.text
            self.result.text = self._written(0, len(self._tokens), folds=False)
        if self._spans:
            self.result.folded = self._written(0, len(self._tokens), folds=True)

    def _written(self, begin: int, end: int, *, folds: bool, inside: bool = False) -> str:
        """`inside`: of what is replaced at `begin`."""
        out, end = [], min(end, len(self._texts))  # a bracket may lack its end
        while begin < end:
            span, replaced = self._spans.get(begin) if folds else None, None if inside else self._replaced.get(begin)
            inside = False
            if span is not None:
                out.append(self._fold(span))
                begin = span.end + 1
            elif replaced is not None:
                begin, parts = replaced
                for part in parts:
                    written = part if isinstance(part, str) else self._written(part.begin, part.end, folds=folds, inside=True)
                    out.append(written)
            else:
                out.append(self._texts[begin])
                begin += 1
        return " ".join(out)

    def _fold(self, span: _Span) -> str:
        used = {text for _, text in self._tokens[span.begin : span.end]}
        captured = tuple(dict.fromkeys(name for name in span.bound if name in used))
        fold = Fold(span.name, span.variable, self._written(span.begin, span.end, folds=True), captured)
        self.result.folds.append(fold)
        return f"fold_{len(self.result.folds) - 1}({', '.join(captured)})"

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

    def sequence(self, scope: Scope, depth: int) -> Shape | None:
        """Everything up to the closing bracket, which is left; returns the shape of its value if that is a set or keyed list."""
        begin, operands, operators = self._at, list[_Operand](), list[str]()
        start, single = begin, True
        node: Shape | None = None
        value = False  # whether the token before ended a value, so that "[" selects from it
        while self.more():
            token = self._peek()
            if token in (")", "]", "}"):
                break
            if token in _BOUNDARIES or (token in _BINARY and self._at > start):
                operands.append(_Operand(start, self._at, node))
                self.take()
                if token == _IN or (token in ("==", "!=") and node is not None and node.kind in ("list", "map")):
                    self.result.compares[depth] += 1
                if token in _BOUNDARIES:
                    self._operation(begin, operands, operators)
                    begin, operands, operators, single = self._at, [], [], False
                else:
                    operators.append(token)
                start, node, value = self._at, None, False
            elif self._is_name():
                node, value = self._noted(self._begin(scope, depth)), token not in _WORDS
            elif token == _DOT and value:
                self.take()
                node = self._noted(self._member(node, scope, depth))
            elif token in (_OPEN, _SELECT, "{"):
                self.take()
                inner = self.sequence(scope, depth)
                self.take()
                if token == _SELECT and value and node is not None:
                    node = self._noted(node.element)
                else:
                    node = inner if token == _OPEN else None
                value = True
            else:
                value = self._tokens[self._at][0] in ("text", "number")
                node = None
                self.take()
        operands.append(_Operand(start, self._at, node))
        known = self._operation(begin, operands, operators)
        return known if single else None

    def _operation(self, begin: int, operands: list[_Operand], operators: list[str]) -> Shape | None:
        """Sums and relations between two boundaries; returns what is known of the value if that is a set or keyed list."""
        sums, relations = [[operands[0]]], []
        for operator, operand in zip(operators, operands[1:], strict=True):
            if operator in _RELATIONS:
                relations.append(operator)
                sums.append([operand])
            elif operator == "+":
                sums[-1].append(operand)
            else:
                return None  # numbers
        found = len(self.result.operators)
        written = [self._sum(items) for items in sums]
        parts, node = written[0]
        for index, (operator, (right, _)) in enumerate(zip(relations, written[1:], strict=True)):
            if operator in ("==", "!=") and node is not None and node.holds_keys() and not self._mirrored(sums[index : index + 2]):
                parts = [("!" if operator == "!=" else "") + self._function("same", node), "(", *parts, ",", *right, ")"]
            else:
                parts = [*parts, operator, *right]
            node = None
        if len(self.result.operators) > found:
            self._replaced[begin] = (operands[-1].end, parts)
        return node if node is not None and node.keys and not node.optional else None

    def _sum(self, operands: list[_Operand]) -> tuple[_Parts, Shape | None]:
        """The parts of `X + Y + ...`, and what is known of the value."""
        parts: _Parts = [operands[0]]
        node = operands[0].node
        for operand in operands[1:]:
            if node is not None and node.keys and not node.optional:
                parts = [self._function("united", node), "(", *parts, ",", operand, ")"]
                self.result.loose = True
            else:
                parts, node = [*parts, "+", operand], None
        return parts, node

    def _function(self, name: str, node: Shape) -> str:
        self.result.operators.append((name, node))
        return f"{name}_{len(self.result.operators) - 1}"

    def _mirrored(self, sides: list[list[_Operand]]) -> bool:
        """`self.a == oldSelf.a`: the old value is in the order of the new one already (`aligned`)."""
        if any(len(side) > 1 for side in sides):
            return False
        one, other = ([text for _, text in self._tokens[side[0].begin : side[0].end]] for side in sides)
        return {one[0], *other[:1]} == {"self", "oldSelf"} and one[1:] == other[1:]

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
        if name in WALKING:
            self.result.walks[depth] += 1
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
        start = self._at - 1
        self.take()
        if name in ("map", "filter"):
            self.result.builds[depth] += 1
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
        begin, bound = self._at + 1, tuple(self._bound)
        self._bound.append(variable)
        self.sequence({**scope, variable: element} if variable else scope, depth + 1)
        self._bound.pop()
        if name in ("all", "exists") and variable:
            self._spans[start] = _Span(name, variable, begin, self._at, bound)
        self.take()
        return replace(node, keys=()) if name == "filter" and node is not None else None
