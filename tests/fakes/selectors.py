"""Label and field selectors for the in-memory API: the grammar of Kubernetes' documentation, equality and sets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_SET = re.compile(r"^\s*(?P<key>\S+)\s+(?P<op>in|notin)\s+\((?P<values>[^)]*)\)\s*$")
_TERMS = re.compile(r",(?![^(]*\))")


def matches_labels(selector: str, labels: Mapping[str, str]) -> bool:
    """Does an object with these labels match, for example `app=x,tier in (a, b),!old`?"""
    return all(_label_term(term, labels) for term in _TERMS.split(selector) if term.strip())


def _label_term(term: str, labels: Mapping[str, str]) -> bool:
    in_set = _SET.match(term)
    if in_set is not None:
        values = {value.strip() for value in in_set["values"].split(",")}
        return (labels.get(in_set["key"]) in values) == (in_set["op"] == "in")
    if "!=" in term:
        key, _, value = term.partition("!=")
        return labels.get(key.strip()) != value.strip()
    if "=" in term:
        key, _, value = term.replace("==", "=").partition("=")
        return labels.get(key.strip()) == value.strip()
    key = term.strip()
    return key[1:].strip() not in labels if key.startswith("!") else key in labels


def matches_fields(selector: str, obj: Mapping[str, Any]) -> bool:
    """Does the object match, for example `metadata.name=x,involvedObject.uid=y`?"""
    for term in selector.split(","):
        if not term.strip():
            continue
        negated = "!=" in term
        path, _, wanted = term.replace("!=", "=").replace("==", "=").partition("=")
        value: Any = obj
        for part in path.strip().split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if (str(value if value is not None else "") == wanted.strip()) == negated:
            return False
    return True
