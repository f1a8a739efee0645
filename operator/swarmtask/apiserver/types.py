"""Resource types that the API server serves: built-in ones and those that CustomResourceDefinitions add.

Called by every other room of the API server. A `ResourceType` is a value: what discovery, tables, schemas, stores and handlers need
to know of one kind. `TypeRegistry` is the live set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from swarmtask.resources.kinds import Column

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True, slots=True)
class ScalePaths:
    """Where a type keeps its numbers of replicas; JSON paths without the leading dot. `selector` may be empty."""

    spec_replicas: str
    status_replicas: str
    selector: str = ""


@dataclass(frozen=True, slots=True)
class ResourceType:
    """One kind in one version, as it is served.

    Attributes:
        group: empty for the core group.
        subresources: of `status`, `scale`, for namespaces `finalize`, for ServiceAccounts `token`, and for
            SwarmTasks `log`.
        schema: OpenAPI v3 schema of the whole object (structural for custom resources); None means any object. Built-in kinds carry
            field names and types written by us.
        columns: printer columns; Name comes first by itself and Age last where no column says otherwise.
        custom: defined by a CRD; then status/spec are split, strategic merge is refused (415), and the schema is enforced.
        verbs: empty subset for virtual kinds (SelfSubjectAccessReview has only `create`).
        stored: False for kinds that are answered without being stored (reviews).
        field_selectors: JSON paths without the leading dot, beyond metadata.name and metadata.namespace.
        scale: set where `subresources` holds `scale`.
        schemas: of every version of a custom type by its apiVersion, `schema` among them; also of versions that are not served,
            since objects may be stored in them.
        schemas_since: resourceVersion of the definition that brought them. What was written after it was accepted by them.
        deprecation: what clients of this version are warned of; empty: nothing.
        has_generation: metadata.generation is kept (custom resources and built-ins with a spec).
        created_by_put: a PUT creates what is not there, which takes the right to create as well.
    """

    group: str
    version: str
    kind: str
    plural: str
    singular: str
    namespaced: bool
    list_kind: str = ""
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ALL_VERBS
    subresources: frozenset[str] = frozenset()
    schema: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)
    columns: tuple[Column, ...] = field(default=(), repr=False)
    custom: bool = False
    stored: bool = True
    field_selectors: tuple[str, ...] = ()
    has_generation: bool = False
    created_by_put: bool = False
    scale: ScalePaths | None = None
    schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False, compare=False)
    schemas_since: int = field(default=-1, compare=False)
    deprecation: str = ""
    api_version: str = field(init=False, repr=False, compare=False)
    storage_key: tuple[str, str] = field(init=False, repr=False, compare=False)
    """(group, plural): objects of all versions of one kind are stored once."""

    def __post_init__(self) -> None:
        # Asked for several times by every request.
        object.__setattr__(self, "api_version", f"{self.group}/{self.version}" if self.group else self.version)
        object.__setattr__(self, "storage_key", (self.group, self.plural))

    @property
    def qualified_plural(self) -> str:
        """`swarmtasks.swarmtask.io`, `secrets`: as errors name it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


class TypeRegistry:
    """The live set of types. Changed only by the CRD controller of the API server, on its event loop."""

    def __init__(self, types: Iterable[ResourceType]) -> None:
        self._by_path: dict[tuple[str, str, str], ResourceType] = {}
        self._by_kind: dict[tuple[str, str, str], ResourceType] = {}
        self.revision = 0
        for item in types:
            self.add(item)

    def add(self, item: ResourceType) -> None:
        """Serve a type; one of the same group, version and plural is replaced."""
        self._by_path[(item.group, item.version, item.plural)] = item
        self._by_kind[(item.group, item.version, item.kind)] = item
        self.revision += 1

    def remove(self, group: str, plural: str) -> None:
        """Stop serving every version of a custom type."""
        for path, item in list(self._by_path.items()):
            if item.custom and (item.group, item.plural) == (group, plural):
                del self._by_path[path]
                self._by_kind.pop((item.group, item.version, item.kind), None)
        self.revision += 1

    def find(self, group: str, version: str, plural: str) -> ResourceType | None:
        """By URL path."""
        return self._by_path.get((group, version, plural))

    def find_kind(self, api_version: str, kind: str) -> ResourceType | None:
        """By what an object says of itself."""
        group, _, version = api_version.rpartition("/")
        return self._by_kind.get((group, version, kind))

    def groups(self) -> Mapping[str, tuple[str, ...]]:
        """Group -> versions, in the order in which they were added. The core group is the empty string."""
        result: dict[str, list[str]] = {}
        for group, version, _ in self._by_path:
            versions = result.setdefault(group, [])
            if version not in versions:
                versions.append(version)
        return {group: tuple(versions) for group, versions in result.items()}

    def in_group_version(self, group: str, version: str) -> list[ResourceType]:
        return [item for item in self if (item.group, item.version) == (group, version)]

    def __iter__(self) -> Iterator[ResourceType]:
        return iter(list(self._by_path.values()))
