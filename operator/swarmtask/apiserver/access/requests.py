"""What a request wants to do, who it is made for, and the words of a refusal.

Called by the application before it looks at anything else of a request. Pure. Source: Kubernetes documentation, "Authorization
Overview" (request attributes, verbs) and "Authenticating" (user impersonation).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from swarmtask.apiserver.access.authorizer import Authorizer
from swarmtask.apiserver.access.rules import Attributes
from swarmtask.apiserver.access.users import AUTHENTICATED, User, service_account, service_account_of
from swarmtask.errors import BadRequest, Forbidden

_VERBS = {"GET": "get", "HEAD": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_NAME_TERM = re.compile(r"metadata\.name==?([-.:A-Za-z0-9]+)")
_NAMESPACE_SUBRESOURCES = frozenset({"status", "finalize"})
EXTRA_HEADER = "impersonate-extra-"


def attributes_of(method: str, path: str, segments: list[str], query: Mapping[str, str]) -> Attributes:
    """What a request of this method and path wants to do, whether such a thing is served or not."""
    rest: list[str] = []
    group = ""
    if len(segments) >= 3 and segments[0] == "api":
        rest = segments[2:]
    elif len(segments) >= 4 and segments[0] == "apis":
        group, rest = segments[1], segments[3:]
    if not rest:
        return Attributes(method.lower(), path=path)
    namespace = ""
    if rest[0] == "namespaces" and len(rest) >= 2:
        # Whoever has a role in a namespace has it for the namespace itself, where the role speaks of namespaces.
        namespace = rest[1]
        if len(rest) > 2 and not (group == "" and len(rest) == 3 and rest[2] in _NAMESPACE_SUBRESOURCES):
            rest = rest[2:]
    resource, name = rest[0], rest[1] if len(rest) > 1 else ""
    subresource = rest[2] if len(rest) > 2 else ""
    verb = _VERBS.get(method, method.lower())
    if verb == "get" and not name and _flag(query, "watch"):
        verb = "watch"
    elif not name:
        verb = {"get": "list", "delete": "deletecollection"}.get(verb, verb)
    if not name and verb in ("list", "watch", "deletecollection"):
        name = _selected_name(query.get("fieldSelector", ""))
    return Attributes(verb, group, resource, subresource, namespace, name)


def _flag(query: Mapping[str, str], name: str) -> bool:
    value = query.get(name)
    return value is not None and value.lower() not in ("false", "0")


def _selected_name(selector: str) -> str:
    """The one name to which a field selector restricts the answer: whoever may read one object may list and watch that one.

    A selector with escaped characters is not taken apart: its commas need not separate terms.
    """
    if "\\" in selector:
        return ""
    return next((match.group(1) for term in selector.split(",") if (match := _NAME_TERM.fullmatch(term))), "")


def forbidden(user: User, wanted: Attributes) -> Forbidden:
    """403 in Kubernetes' words."""
    if wanted.path:
        return Forbidden(f'forbidden: User "{user.name}" cannot {wanted.verb} path "{wanted.path}"')
    qualified = f"{wanted.resource}.{wanted.group}" if wanted.group else wanted.resource
    what = f'{qualified} "{wanted.name}"' if wanted.name else qualified
    where = f'in the namespace "{wanted.namespace}"' if wanted.namespace else "at the cluster scope"
    return Forbidden(
        f'{what} is forbidden: User "{user.name}" cannot {wanted.verb} resource "{wanted.full_resource}" '
        f'in API group "{wanted.group}" {where}',
        details={"name": wanted.name, "group": wanted.group, "kind": wanted.resource},
    )


def impersonated(authorizer: Authorizer, user: User, headers: Mapping[str, str]) -> User:
    """Who the request is made for: whom the `Impersonate-*` headers name, if `user` may act for him.

    Raises:
        Forbidden: he may not. BadRequest: groups or more are named, but no user.
    """
    if "\nimpersonate-" not in "\n" + "\n".join(headers):  # nearly always; one search costs less than one for each header
        return user
    name = headers.get("impersonate-user", "")
    named = [group for group in headers.get("impersonate-group", "").split(",") if group.strip()]
    others = [key for key in headers if key.startswith(EXTRA_HEADER) or key == "impersonate-uid"]
    if not name:
        if named or others:
            raise BadRequest("requested to impersonate groups, a UID or more, without a user: send Impersonate-User")
        return user
    if others:
        raise BadRequest(f"{others[0]} is not supported: users and groups can be impersonated")
    wanted_groups = tuple(dict.fromkeys(group.strip() for group in named))
    account = service_account_of(name)
    asked = [Attributes("impersonate", resource="groups", name=group) for group in wanted_groups]
    if account is not None:
        asked.insert(0, Attributes("impersonate", resource="serviceaccounts", namespace=account[0], name=account[1]))
    else:
        asked.insert(0, Attributes("impersonate", resource="users", name=name))
    for wanted in asked:
        if not authorizer.allows(user, wanted):
            raise forbidden(user, wanted)
    if account is not None and not wanted_groups:
        return service_account(*account, "")
    return User(name, tuple(dict.fromkeys((*wanted_groups, AUTHENTICATED))))
