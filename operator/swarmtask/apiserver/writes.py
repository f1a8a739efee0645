"""Writes as values: what comes with one, what it comes to, and who may look at it.

Made by the handlers, and by whatever in the server writes; taken and returned by the object service. Nothing is done here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from swarmtask.apiserver.object_parts import Propagation
from swarmtask.apiserver.types import ResourceType


class WriteGuard(Protocol):
    """Looks at what somebody writes: may he. `access.guard` is one. Each raises Forbidden."""

    def may_create(self, rt: ResourceType, namespace: str, name: str) -> None:
        """A server-side apply, or a PUT, is about to create."""
        ...

    def admit(self, rt: ResourceType, new: Mapping[str, Any], old: Mapping[str, Any] | None, subresource: str | None) -> None:
        """A valid object is about to be written. `old` None: created."""
        ...


@dataclass(slots=True)
class WriteOptions:
    """What came with a write.

    Attributes:
        manager: who writes, for managedFields.
        client: authenticated name of who sent it; empty for what the server itself writes.
        operator: it is the operator, for whom there is room beyond the bound of an object's size.
        guard: looks at what is written; None for the server itself and for masters.
        validation: Strict, Warn or Ignore.
        duplicates: paths that the body gave twice.
        warnings: filled by the service; for the answer's headers.
    """

    manager: str = "swarmtask-apiserver"
    dry_run: bool = False
    validation: str = "Ignore"
    duplicates: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    client: str = ""
    operator: bool = False
    guard: WriteGuard | None = None


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """What a DELETE asks for; `propagation` None means Background unless the object already waits for something else."""

    uid: str = ""
    resource_version: str = ""
    propagation: Propagation | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Written:
    """The outcome of a write: the object as JSON, in the version of the request.

    Attributes:
        created: it did not exist before.
        removed: it does not exist any more.
    """

    body: bytes
    created: bool = False
    removed: bool = False
