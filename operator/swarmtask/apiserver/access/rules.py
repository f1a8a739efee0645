"""Rules of roles and the requests that they are held against. Pure values: no store, no clock, no HTTP.

Called by `bindings` (which rules has a user), `nodes`, `guard` (does a user hold what he grants) and the reviews.
Source of the matching: Kubernetes documentation, "Using RBAC Authorization".
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

GRANT_LIMIT = 5_000
"""More combinations of verb, group, resource and name than this are not taken apart for one grant: that would hold up others."""
READ = ("get", "list", "watch")
WRITE = ("create", "update", "patch", "delete", "deletecollection")


class Attributes(NamedTuple):
    """What a request wants to do.

    Attributes:
        verb: get, list, watch, create, update, patch, delete, deletecollection, or one of the verbs that only roles know (bind,
            escalate, impersonate); for other paths the HTTP method in lower case.
        namespace: empty for cluster-scoped kinds and for "all namespaces".
        name: empty where no single object is meant.
        path: of a request that is for no resource; everything but `verb` is empty then.
    """

    verb: str
    group: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""

    @property
    def full_resource(self) -> str:
        """`pods`, `pods/log`: as rules name it."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


@dataclass(frozen=True, slots=True)
class Rule:
    """A `PolicyRule`."""

    verbs: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()

    @classmethod
    def of(cls, obj: Mapping[str, Any]) -> Rule:
        """From a stored PolicyRule."""
        return cls(
            tuple(obj.get("verbs") or ()), tuple(obj.get("apiGroups") or ()), tuple(obj.get("resources") or ()),
            tuple(obj.get("resourceNames") or ()), tuple(obj.get("nonResourceURLs") or ()),
        )  # fmt: skip

    def as_dict(self) -> dict[str, list[str]]:
        """As it is stored; what is empty is left out."""
        fields = {
            "verbs": self.verbs, "apiGroups": self.groups, "resources": self.resources, "resourceNames": self.names,
            "nonResourceURLs": self.urls,
        }  # fmt: skip
        return {name: list(values) for name, values in fields.items() if values}

    def concerns(self, wanted: Attributes) -> bool:
        """It allows the request, if it allows the name (`names`)."""
        if wanted.verb not in self.verbs and "*" not in self.verbs:
            return False
        if wanted.path:
            return any(_url_matches(url, wanted.path) for url in self.urls)
        if wanted.group not in self.groups and "*" not in self.groups:
            return False
        return _has_resource(self.resources, wanted.resource, wanted.subresource)

    def allows(self, wanted: Attributes) -> bool:
        """It allows the request."""
        return self.concerns(wanted) and (not self.names or wanted.name in self.names)

    def describe(self) -> str:
        """In the form in which Kubernetes prints rules."""
        fields = {
            "APIGroups": self.groups, "Resources": self.resources, "ResourceNames": self.names, "NonResourceURLs": self.urls,
            "Verbs": self.verbs,
        }  # fmt: skip
        shown = (f"{name}:[{', '.join(_quoted(value) for value in values)}]" for name, values in fields.items() if values)
        return "{" + ", ".join(shown) + "}"


EVERYTHING = (Rule(("*",), ("*",), ("*",)), Rule(("*",), urls=("*",)))


def _quoted(text: str) -> str:
    return f'"{text}"'


def _url_matches(url: str, path: str) -> bool:
    return url in ("*", path) or (url.endswith("*") and path.startswith(url[:-1]))


def _has_resource(resources: tuple[str, ...], resource: str, subresource: str) -> bool:
    if "*" in resources:
        return True
    if subresource:
        return f"{resource}/{subresource}" in resources or f"*/{subresource}" in resources
    return resource in resources


def missing(held: Iterable[Rule], granted: Iterable[Rule]) -> list[Rule]:
    """The rules, or the parts of them, that `held` does not cover: somebody who grants them would give what he does not have.

    Rules that have too many combinations to be looked at count as not covered, unless one single rule covers them.
    """
    held, left = tuple(held), GRANT_LIMIT
    found: list[Rule] = []
    for rule in granted:
        if any(_covers(own, rule) for own in held):
            continue
        lists = (rule.verbs, rule.urls) if rule.urls else (rule.verbs, rule.groups, rule.resources, rule.names or ("",))
        left -= prod(len(values) for values in lists)
        if left < 0:
            found.append(rule)
            continue
        parts = [_single(rule, combination) for combination in itertools.product(*lists)]
        found += [part for part in parts if not any(_covers(own, part) for own in held)]
    return found


def _single(rule: Rule, combination: tuple[str, ...]) -> Rule:
    if rule.urls:
        return Rule((combination[0],), urls=(combination[1],))
    verb, group, resource, name = combination
    return Rule((verb,), (group,), (resource,), (name,) if rule.names else ())


def _covers(own: Rule, other: Rule) -> bool:
    """`own` alone allows everything that `other` allows."""
    if not ("*" in own.verbs or set(other.verbs) <= set(own.verbs)):
        return False
    if other.urls:
        return all(any(_url_covers(mine, url) for mine in own.urls) for url in other.urls)
    if not ("*" in own.groups or set(other.groups) <= set(own.groups)):
        return False
    if not all(_resource_covers(own.resources, resource) for resource in other.resources):
        return False
    return not own.names or (bool(other.names) and set(other.names) <= set(own.names))


def _url_covers(mine: str, url: str) -> bool:
    return mine in ("*", url) or (mine.endswith("*") and url.startswith(mine[:-1]))


def _resource_covers(mine: tuple[str, ...], resource: str) -> bool:
    if "*" in mine or resource in mine:
        return True
    _, slash, subresource = resource.partition("/")
    return bool(slash) and f"*/{subresource}" in mine
