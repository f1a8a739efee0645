"""Kinds that are answered without being stored: who am I, may I, whose token is this, give me a token.

Called by the application. Decides nothing itself: `access` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from swarmtask.apiserver import admission, faults
from swarmtask.apiserver.access.accounts import AUDIENCE, AccountTokens, Bound
from swarmtask.apiserver.access.authorizer import Authorizer
from swarmtask.apiserver.access.guard import check_account_token
from swarmtask.apiserver.access.identities import Identities
from swarmtask.apiserver.access.rules import Attributes
from swarmtask.apiserver.access.users import User, service_account
from swarmtask.apiserver.records import Key
from swarmtask.apiserver.routing import Target
from swarmtask.apiserver.store import Store
from swarmtask.apiserver.types import ResourceType, TypeRegistry
from swarmtask.apiserver.versions import collection_of
from swarmtask.apiserver.wire import Request, Response, decode_body, negotiate, respond
from swarmtask.clock import format_time
from swarmtask.errors import BadRequest, Cause, Invalid, ServiceUnavailable

SHORTEST_TOKEN_S = 600
LONGEST_TOKEN_S = 90 * 86_400
USUAL_TOKEN_S = 3600
AUDIENCES_LIMIT = 16


@dataclass(slots=True)
class ReviewHandlers:
    """All routes of reviews and token requests."""

    store: Store
    registry: TypeRegistry
    identities: Identities
    authorizer: Authorizer
    accounts: AccountTokens | None

    async def review(self, request: Request, target: Target, user: User) -> Response:
        """Answer a POST of a review. Raises MethodNotAllowed, BadRequest, Invalid."""
        if request.method != "POST" or target.name is not None or (target.rt.namespaced and target.namespace is None):
            raise faults.method_not_allowed()
        accepted = negotiate(request)
        rt = target.rt
        body = admission.check_header(rt, decode_body(request))
        admission.tidy(rt, body)
        spec = body.get("spec") or {}
        if not isinstance(spec, dict):
            raise BadRequest("spec must be an object")
        header = {"kind": rt.kind, "apiVersion": rt.api_version, "metadata": body.get("metadata") or {}}
        answer: dict[str, Any] = {**header, "spec": spec}
        match rt.kind:
            case "SelfSubjectReview":
                del answer["spec"]
                answer["status"] = {"userInfo": user.as_info()}
            case "TokenReview":
                answer["status"] = self._token_status(spec)
            case "SelfSubjectRulesReview":
                answer["status"] = self._rules_status(spec, user)
            case "SelfSubjectAccessReview":
                answer["status"] = self._access_status(rt, spec, user)
            case "SubjectAccessReview":
                answer["status"] = self._access_status(rt, spec, _subject(rt, spec))
            case "LocalSubjectAccessReview":
                _check_local(rt, spec, target.namespace or "")
                answer["status"] = self._access_status(rt, spec, _subject(rt, spec))
            case "SecretsKeyRotation":
                del answer["spec"]
                answer["status"] = await self._rotate(request)
            case _:
                raise faults.no_such_path()
        return respond(answer, accepted, status=201)

    async def _rotate(self, request: Request) -> dict[str, Any]:
        if request.dry_run:
            return {}
        key_id, revisions = await self.store.rotate_key()
        return {"keyID": key_id, "revisions": revisions}

    def _token_status(self, spec: dict[str, Any]) -> dict[str, Any]:
        token, audiences = spec.pop("token", None), spec.get("audiences") or []
        if not isinstance(token, str) or not token:
            causes = [faults.required("spec.token")]
            raise Invalid('TokenReview.authentication.k8s.io "" is invalid: spec.token: Required value', causes=causes)
        if not isinstance(audiences, list) or not all(isinstance(item, str) for item in audiences):
            raise BadRequest("spec.audiences must be a list of strings")
        found = self.identities.review(token, tuple(audiences))
        if found is None:
            return {"authenticated": False, "error": "the token is not known, has ended, or is meant for others", "user": {}}
        login, meant = found
        return {"authenticated": True, "user": login.user.as_info(), "audiences": meant}

    def _rules_status(self, spec: Mapping[str, Any], user: User) -> dict[str, Any]:
        namespace = spec.get("namespace")
        if not isinstance(namespace, str) or not namespace:
            raise BadRequest("no namespace on request: set spec.namespace")
        rules = self.authorizer.rules(user, namespace)
        return {
            "resourceRules": [rule.as_dict() for rule in rules if not rule.urls],
            "nonResourceRules": [rule.as_dict() for rule in rules if rule.urls],
            "incomplete": bool(user.node),
            **({"evaluationError": "which tasks a node may read depends on their attempts"} if user.node else {}),
        }

    def _access_status(self, rt: ResourceType, spec: Mapping[str, Any], user: User) -> dict[str, Any]:
        decision = self.authorizer.decide(user, _wanted(rt, spec))
        return {"allowed": decision.allowed, **({"reason": decision.reason} if decision.reason else {})}

    # --- tokens of ServiceAccounts ---------------------------------------------------------------------------------------

    def request_token(self, request: Request, target: Target, user: User) -> Response:
        """POST .../serviceaccounts/NAME/token. Raises NotFound, BadRequest, Invalid, Forbidden."""
        if request.method != "POST":
            raise faults.method_not_allowed()
        if self.accounts is None:
            raise ServiceUnavailable("this server signs no tokens")
        accepted = negotiate(request)
        namespace, name = target.namespace or "", target.name or ""
        record = self.store.get(Key(collection_of(target.rt), namespace, name))
        if record is None:
            raise faults.not_found(target.rt, name)
        rt = self.registry.find_kind("authentication.k8s.io/v1", "TokenRequest") or _TOKEN_REQUEST
        body = admission.check_header(rt, decode_body(request))
        spec = body.get("spec") or {}
        audiences, seconds, reference = _token_spec(rt, name, spec)
        account = service_account(namespace, name, record.uid)
        if not user.is_master:
            check_account_token(self.authorizer, user, account)
        bound = self._bound(namespace, reference) if reference is not None else None
        spec = {**spec, "audiences": audiences, "expirationSeconds": seconds}
        answer = {
            "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "metadata": {"name": name, "namespace": namespace},
            "spec": spec,
        }  # fmt: skip
        if not request.dry_run:
            token, ends = self.accounts.issue((namespace, name, record.uid), audiences, timedelta(seconds=seconds), bound)
            answer["status"] = {"token": token, "expirationTimestamp": format_time(ends)}
        return respond(answer, accepted, status=201)

    def _bound(self, namespace: str, reference: Mapping[str, Any]) -> Bound:
        rt = self.registry.find_kind(str(reference.get("apiVersion", "")), str(reference.get("kind", "")))
        if rt is None or not rt.stored or not rt.namespaced:
            raise BadRequest(f"cannot bind a token to kind {reference.get('kind')!r}: name a stored kind that has a namespace")
        name, uid = str(reference.get("name", "")), str(reference.get("uid", ""))
        record = self.store.get(Key(collection_of(rt), namespace, name))
        if record is None or record.deleting:
            raise faults.not_found(rt, name)
        if uid and uid != record.uid:
            raise faults.conflict(rt, name, f"the UID in the bound object reference ({uid}) does not match the UID in record")
        return Bound(collection_of(rt), rt.kind, name, record.uid)


_TOKEN_REQUEST = ResourceType(
    "authentication.k8s.io", "v1", "TokenRequest", "tokenrequests", "tokenrequest", namespaced=True, stored=False, verbs=("create",)
)


def _token_spec(rt: ResourceType, name: str, spec: Any) -> tuple[list[str], int, Mapping[str, Any] | None]:
    """(audiences, seconds, bound object)."""
    if not isinstance(spec, dict):
        raise faults.unreadable(rt, "spec must be an object")
    audiences, seconds, reference = spec.get("audiences") or [AUDIENCE], spec.get("expirationSeconds"), spec.get("boundObjectRef")
    if not isinstance(audiences, list) or not all(isinstance(item, str) and item for item in audiences):
        raise faults.unreadable(rt, "spec.audiences must be a list of strings")
    if reference is not None and not isinstance(reference, dict):
        raise faults.unreadable(rt, "spec.boundObjectRef must be an object")
    seconds = USUAL_TOKEN_S if seconds is None else seconds
    if not isinstance(seconds, int) or isinstance(seconds, bool):
        raise faults.unreadable(rt, "spec.expirationSeconds must be a whole number")
    causes: list[Cause] = []
    if seconds < SHORTEST_TOKEN_S:
        causes.append(faults.bad_value("spec.expirationSeconds", seconds, "may not specify a duration less than 10 minutes"))
    elif seconds > LONGEST_TOKEN_S:
        causes.append(faults.bad_value("spec.expirationSeconds", seconds, "may not specify a duration longer than 90 days"))
    if len(audiences) > AUDIENCES_LIMIT or any(len(item) > 256 for item in audiences):
        causes.append(faults.bad_value("spec.audiences", "", f"at most {AUDIENCES_LIMIT}, each of at most 256 characters"))
    if causes:
        raise faults.invalid(rt, name, causes)
    return list(dict.fromkeys(audiences)), seconds, reference or None


def _wanted(rt: ResourceType, spec: Mapping[str, Any]) -> Attributes:
    """The request that a review asks about."""
    resource, path = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
    if (resource is None) == (path is None):
        causes = [
            faults.bad_value(
                "spec.resourceAttributes", "", "exactly one of nonResourceAttributes or resourceAttributes must be specified"
            )
        ]
        raise faults.invalid(rt, "", causes)
    given = resource if resource is not None else path
    if not isinstance(given, dict) or not all(isinstance(value, str | dict) for value in given.values()):
        raise BadRequest("the attributes of a review must be an object of strings")
    if path is not None:
        return Attributes(_text(path, "verb"), path=_text(path, "path") or "/")
    namespace = _text(given, "namespace")
    return Attributes(
        _text(given, "verb"), _text(given, "group"), _text(given, "resource"), _text(given, "subresource"), namespace,
        _text(given, "name"),
    )  # fmt: skip


def _text(attributes: Mapping[str, Any], name: str) -> str:
    value = attributes.get(name) or ""
    return value if isinstance(value, str) else ""


def _subject(rt: ResourceType, spec: Mapping[str, Any]) -> User:
    name, groups = spec.get("user") or "", spec.get("groups") or []
    if not isinstance(name, str) or not isinstance(groups, list) or not all(isinstance(group, str) for group in groups):
        raise BadRequest("spec.user must be a string, spec.groups a list of strings")
    if not name and not groups:
        causes = [faults.bad_value("spec.user", "", "at least one of user or group must be specified")]
        raise faults.invalid(rt, "", causes)
    return User(name, tuple(groups))


def _check_local(rt: ResourceType, spec: Mapping[str, Any], namespace: str) -> None:
    attributes = spec.get("resourceAttributes")
    if not isinstance(attributes, dict) or attributes.get("namespace") != namespace:
        causes = [faults.bad_value("spec.resourceAttributes.namespace", "", f"must match metadata.namespace: {namespace}")]
        raise faults.invalid(rt, "", causes)
