"""`+` and `==` of sets and of lists with keys, whose order has no meaning in Kubernetes.

Called by expressions, in place of the library's operators where `cel_scan.py` knows the left side as such a list (for `==`: or as
something that holds one). Source: Kubernetes documentation, "Validation rules": x-kubernetes-list-type and `==`, `+`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from swarmtask.apiserver.cel_values import Shape, escape
from swarmtask.apiserver.schema_checks import identity


def united(shape: Shape) -> Callable[[Any, Any], list[Any]]:
    """`X + Y` for an X of this shape: items of Y take the place of those of X that they are equal to, or share the keys with; the
    others follow."""
    names = [escape(key) or key for key in shape.keys if key]

    def call(left: Any, right: Any) -> list[Any]:
        if not isinstance(left, list) or not isinstance(right, list):
            raise TypeError("no such overload: a list and something else cannot be joined")
        result = list(left)
        places = {_key(item, names): index for index, item in enumerate(left)}
        for item in right:
            place = places.setdefault(_key(item, names), len(result))
            if place == len(result):
                result.append(item)
            elif names:
                result[place] = item
        return result

    return call


def same(shape: Shape) -> Callable[[Any, Any], bool]:
    """`X == Y` for an X of this shape."""
    return lambda left, right: bool(_comparable(shape, left) == _comparable(shape, right))


def _key(item: Any, names: list[str]) -> Any:
    """What tells the items of a list apart; all of it where there are no names."""
    return identity([item.get(name) for name in names] if names and isinstance(item, dict) else item)


def _comparable(shape: Shape | None, value: Any) -> Any:
    """Equal for equal values."""
    if shape is not None and isinstance(value, list):
        items = [_comparable(shape.element, item) for item in value]
        return ("list", len(items), frozenset(items) if shape.keys else tuple(items))
    if shape is not None and isinstance(value, dict):
        of_field = {name: child for name, (_, child) in shape.fields.items()}
        return ("object", frozenset((name, _comparable(of_field.get(name, shape.element), item)) for name, item in value.items()))
    return identity(value)
