"""The exception tree of SwarmTask.

Lives here: every error that crosses a module border. Each carries a Kubernetes `Status` reason and an HTTP code, so that the
API server, the client and the CLI say the same thing about the same fault. Foreign errors (sqlite3, docker, httpx, pydantic) are
mapped to these once, in the adapter that meets them.

`Transient` means "the same call may succeed later, nothing has to change"; `Permanent` means "somebody has to change something".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Cause:
    """One `StatusCause` of a Kubernetes Status.

    Attributes:
        field: path of the offending field, for example `spec.container.env[0].name`.
        reason: `FieldValueInvalid`, `FieldValueRequired`, `FieldValueNotSupported`, `FieldManagerConflict`, ...
        message: what is wrong, for a person.
    """

    field: str
    reason: str
    message: str


class SwarmTaskError(Exception):
    """Root of all errors raised on purpose.

    Args:
        message: what happened and, where there is something to do, what to do; for a person.
        details: `details` of a Kubernetes Status (name, group, kind, uid); never secrets.
        causes: one entry per offending field.
        retry_after_s: seconds after which trying again makes sense, if known.
    """

    reason: ClassVar[str] = "InternalError"
    code: ClassVar[int] = 500

    def __init__(
        self,
        message: str,
        *,
        details: dict[str, Any] | None = None,
        causes: Sequence[Cause] = (),
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = dict(details or {})
        self.causes = tuple(causes)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message


class Transient(SwarmTaskError):
    """The same call may succeed later."""

    reason = "ServiceUnavailable"
    code = 503


class Permanent(SwarmTaskError):
    """Somebody has to change something first."""


# --- what the Kubernetes API answers -------------------------------------------------------------------------------------


class BadRequest(Permanent):
    reason, code = "BadRequest", 400


class Unauthorized(Permanent):
    reason, code = "Unauthorized", 401


class Forbidden(Permanent):
    reason, code = "Forbidden", 403


class NotFound(Permanent):
    reason, code = "NotFound", 404


class MethodNotAllowed(Permanent):
    reason, code = "MethodNotAllowed", 405


class NotAcceptable(Permanent):
    reason, code = "NotAcceptable", 406


class AlreadyExists(Permanent):
    reason, code = "AlreadyExists", 409


class Conflict(Transient):
    """The object changed since it was read: read again, decide again."""

    reason, code = "Conflict", 409


class Expired(Transient):
    """The resourceVersion or continue token is too old: list again."""

    reason, code = "Expired", 410


class RequestEntityTooLarge(Permanent):
    reason, code = "RequestEntityTooLarge", 413


class UnsupportedMediaType(Permanent):
    reason, code = "UnsupportedMediaType", 415


class Invalid(Permanent):
    """The object is understood but not valid; `causes` name the fields."""

    reason, code = "Invalid", 422


class TooManyRequests(Transient):
    reason, code = "TooManyRequests", 429


class InternalError(Transient):
    reason, code = "InternalError", 500


class ServiceUnavailable(Transient):
    reason, code = "ServiceUnavailable", 503


class Timeout(Transient):
    reason, code = "Timeout", 504


class InsufficientStorage(Transient):
    """The disk of the store is full; reads go on, writes are refused until there is room."""

    reason, code = "InsufficientStorage", 507


# --- engines -------------------------------------------------------------------------------------------------------------


class EngineUnavailable(Transient):
    """The engine did not answer in time or is not reachable."""

    reason, code = "EngineUnavailable", 503


class EngineRejected(Permanent):
    """The engine refused the workload; trying the same thing again gives the same answer."""

    reason, code = "EngineRejected", 422


class WorkloadNotFound(Permanent):
    """The engine has no workload of that name."""

    reason, code = "NotFound", 404


# --- settings and environment --------------------------------------------------------------------------------------------


class ConfigurationError(Permanent):
    """The settings or the machine do not allow what was asked; the message says what to change."""

    reason, code = "Configuration", 400


BY_REASON: dict[str, type[SwarmTaskError]] = {
    cls.reason: cls
    for cls in (
        BadRequest, Unauthorized, Forbidden, NotFound, MethodNotAllowed, NotAcceptable, AlreadyExists, Conflict, Expired,
        RequestEntityTooLarge, UnsupportedMediaType, Invalid, TooManyRequests, InternalError, ServiceUnavailable, Timeout,
        InsufficientStorage,
    )
}  # fmt: skip
"""Kubernetes Status reason -> class; the client turns answers into errors with it."""
