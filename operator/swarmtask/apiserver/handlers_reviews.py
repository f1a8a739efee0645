"""Kinds that are answered without being stored: who am I, may I, whose token is this.

Called by the application. Today everybody who has the token is the administrator; scopes come with the issue on access control.
"""

from __future__ import annotations

from typing import Any

from swarmtask.apiserver import admission, faults
from swarmtask.apiserver.auth import Authenticator, User
from swarmtask.apiserver.routing import Target
from swarmtask.apiserver.wire import Request, Response, decode_body, negotiate, respond
from swarmtask.errors import BadRequest, Invalid


def review(request: Request, target: Target, user: User, authenticator: Authenticator) -> Response:
    """Answer a POST of a review. Raises MethodNotAllowed, BadRequest, Invalid."""
    if request.method != "POST" or target.name is not None:
        raise faults.method_not_allowed()
    accepted = negotiate(request)
    rt = target.rt
    body = admission.check_header(rt, decode_body(request))
    admission.tidy(rt, body)
    spec = body.get("spec") or {}
    if not isinstance(spec, dict):
        raise BadRequest("spec must be an object")
    answer: dict[str, Any] = {"kind": rt.kind, "apiVersion": rt.api_version, "metadata": body.get("metadata") or {}, "spec": spec}
    match rt.kind:
        case "SelfSubjectReview":
            del answer["spec"]
            answer["status"] = {"userInfo": user.as_info()}
        case "TokenReview":
            answer["status"] = _token_status(spec, authenticator)
        case "SelfSubjectRulesReview":
            everything = {"verbs": ["*"], "resources": ["*"], "apiGroups": ["*"]}
            answer["status"] = {
                "resourceRules": [everything],
                "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
                "incomplete": False,
            }
        case "SelfSubjectAccessReview":
            answer["status"] = {"allowed": True, "reason": "the only role there is may do everything"}
        case "SubjectAccessReview":
            answer["status"] = _subject_status(spec)
        case _:
            raise faults.no_such_path()
    return respond(answer, accepted, status=201)


def _token_status(spec: dict[str, Any], authenticator: Authenticator) -> dict[str, Any]:
    token = spec.get("token")
    if not isinstance(token, str) or not token:
        causes = [faults.required("spec.token")]
        raise Invalid('TokenReview.authentication.k8s.io "" is invalid: spec.token: Required value', causes=causes)
    found = authenticator.user_of(token)
    spec.pop("token")
    if found is None:
        return {"authenticated": False, "error": "the token is not known", "user": {}}
    return {"authenticated": True, "user": found.as_info()}


def _subject_status(spec: dict[str, Any]) -> dict[str, Any]:
    groups = spec.get("groups") or []
    allowed = isinstance(groups, list) and "system:masters" in groups
    return {"allowed": allowed, "reason": "" if allowed else "only the administrators' group may do anything"}
