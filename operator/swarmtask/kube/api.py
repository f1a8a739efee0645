"""What the operator and the CLI need of a Kubernetes API.

Called by everyone who reads or writes objects; implemented by `KubeClient` and, for tests and the simulator, in memory. Objects are
plain dicts, as they are on the wire. Every failed call raises one of `swarmtask.errors`. Nothing here does anything.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from swarmtask.resources.kinds import Kind
from swarmtask.resources.tenure import Tenure

Object = dict[str, Any]
PatchType = Literal["merge", "json", "strategic", "apply"]


@dataclass(frozen=True, slots=True)
class ObjectList:
    """A list and the resourceVersion at which it was taken: watch from there."""

    items: Sequence[Object]
    resource_version: str


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One event of a watch. BOOKMARK objects carry only a resourceVersion."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    object: Object


class ObjectApi(Protocol):
    """What the operator and the CLI need of a Kubernetes API. `namespace` None means all namespaces, or a cluster-scoped kind."""

    @property
    def tenure(self) -> Tenure | None:
        """Writes are Conflicts unless its Lease has this holder, where the server knows of tenures; the Lease itself may be
        written."""
        ...

    async def get(self, kind: Kind, name: str, namespace: str | None = None) -> Object:
        """Raises NotFound."""
        ...

    async def list(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
    ) -> ObjectList:
        """All of them; pages of 500 are fetched and joined."""
        ...

    def watch(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        resource_version: str,
        label_selector: str = "",
        field_selector: str = "",
    ) -> AsyncGenerator[WatchEvent, None]:
        """Events after `resource_version`, reconnecting by itself from the last one seen. Raises Expired when the server has
        compacted that version: list again."""
        ...

    def text(
        self, kind: Kind, name: str, namespace: str | None, subresource: str, params: Mapping[str, str]
    ) -> AsyncGenerator[bytes, None]:
        """A subresource that is text and no object, as it comes: `log`. Raises NotFound, ServiceUnavailable when it breaks off."""
        ...

    async def create(self, kind: Kind, obj: Object, namespace: str | None = None, *, dry_run: bool = False) -> Object:
        """Raises AlreadyExists, Invalid, Forbidden."""
        ...

    async def replace(self, kind: Kind, obj: Object, *, subresource: str | None = None) -> Object:
        """PUT with the object's own resourceVersion. Raises Conflict, NotFound, Invalid."""
        ...

    async def patch(
        self,
        kind: Kind,
        name: str,
        patch: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        namespace: str | None = None,
        *,
        type_: PatchType = "merge",
        subresource: str | None = None,
        field_manager: str | None = None,
        force: bool = False,
        dry_run: bool = False,
    ) -> Object:
        """A `metadata.resourceVersion` inside a merge patch is a precondition: Conflict when it is not the stored one."""
        ...

    async def delete(
        self,
        kind: Kind,
        name: str,
        namespace: str | None = None,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        propagation: Literal["Background", "Foreground", "Orphan"] | None = None,
    ) -> None:
        """Raises NotFound; Conflict when `uid` or `resource_version` is given and differs."""
        ...

    async def version(self) -> Mapping[str, Any]:
        """GET /version."""
        ...

    async def aclose(self) -> None: ...
