"""Field tables of the built-in kinds: names, wire numbers and types.

One table per message serves two readers: `schema_of` turns it into an OpenAPI v3 schema (explain, patches, server-side apply) and
`protobuf.py` decodes requests with it. Called by the `builtin_*` modules, `schema.py` (metadata) and `protobuf.py`. Holds facts, no
behaviour. Source: the field lists of the Kubernetes API reference; descriptions are our own words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Scalar = Literal["string", "int32", "int64", "bool", "bytes", "Time", "MicroTime", "FieldsV1", "any"]


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message.

    Attributes:
        name: on the wire, camelCase.
        number: of the protobuf encoding; 0 for fields that have none here.
        type: a scalar, or another message.
        many: `one` value, a `list`, or a `map` from strings.
        pointer: an explicitly set zero value is kept (`*int32` in Kubernetes' words).
        required: must be given.
        merge_key, list_type, list_keys: how strategic merge and server-side apply treat a list.
        atomic: a map or struct that has one owner as a whole.
    """

    name: str
    number: int
    type: Scalar | Message
    description: str = ""
    many: Literal["one", "list", "map"] = "one"
    pointer: bool = False
    required: bool = False
    merge_key: str = ""
    list_type: Literal["", "atomic", "set", "map"] = ""
    list_keys: tuple[str, ...] = ()
    atomic: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    """A named group of fields. `list_wrapper`: encoded as a message, written in JSON as the bare list of its only field."""

    name: str
    description: str
    fields: tuple[Field, ...] = field(repr=False)
    list_wrapper: bool = False

    def __hash__(self) -> int:
        return hash(self.name)


_SCALARS: Final[Mapping[str, Mapping[str, Any]]] = {
    "string": {"type": "string"},
    "int32": {"type": "integer", "format": "int32"},
    "int64": {"type": "integer", "format": "int64"},
    "bool": {"type": "boolean"},
    "bytes": {"type": "string", "format": "byte"},
    "Time": {"type": "string", "format": "date-time"},
    "MicroTime": {"type": "string", "format": "date-time"},
    "FieldsV1": {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "x-kubernetes-map-type": "atomic"},
    "any": {"x-kubernetes-preserve-unknown-fields": True},
}


def schema_of(message: Message, gvk: tuple[str, str, str] | None = None) -> dict[str, Any]:
    """The OpenAPI v3 schema of a message. `gvk` adds apiVersion and kind, as the root of a kind has them."""
    properties: dict[str, Any] = {}
    if gvk is not None:
        properties["apiVersion"] = {"type": "string", "description": "Group and version of this representation."}
        properties["kind"] = {"type": "string", "description": "What the object is, in CamelCase."}
    required = []
    for item in message.fields:
        properties[item.name] = _field_schema(item)
        if item.required:
            required.append(item.name)
    schema: dict[str, Any] = {"description": message.description, "type": "object", "properties": properties}
    if required:
        schema["required"] = required
    return schema


def _field_schema(item: Field) -> dict[str, Any]:
    inner: dict[str, Any]
    if isinstance(item.type, Message):
        inner = schema_of(item.type)
        if item.type.list_wrapper:
            inner = inner["properties"][item.type.fields[0].name]
    else:
        inner = dict(_SCALARS[item.type])
    if item.many == "one":
        result = inner
        if item.pointer or item.type in ("Time", "MicroTime"):
            result["nullable"] = True
    elif item.many == "map":
        result = {"type": "object", "additionalProperties": inner}
    else:
        result = {"type": "array", "items": inner, "x-kubernetes-list-type": item.list_type or "atomic"}
        if item.list_keys:
            result["x-kubernetes-list-map-keys"] = list(item.list_keys)
        if item.merge_key:
            result["x-kubernetes-patch-strategy"] = "merge"
            if item.merge_key != ".":
                result["x-kubernetes-patch-merge-key"] = item.merge_key
    if item.atomic:
        result["x-kubernetes-map-type"] = "atomic"
    if item.description:
        result["description"] = item.description
    return result


def _strings(name: str, number: int, description: str = "", **more: Any) -> Field:
    return Field(name, number, "string", description, many="list", **more)


OWNER_REFERENCE = Message("OwnerReference", "Names the object that this one belongs to.", (
    Field("apiVersion", 5, "string", "API version of the owner.", required=True),
    Field("kind", 1, "string", "Kind of the owner.", required=True),
    Field("name", 3, "string", "Name of the owner.", required=True),
    Field("uid", 4, "string", "UID of the owner.", required=True),
    Field("controller", 6, "bool", "True for the one owner that manages this object.", pointer=True),
    Field("blockOwnerDeletion", 7, "bool", "The owner cannot go in foreground deletion while this object exists.", pointer=True),
))  # fmt: skip
MANAGED_FIELDS_ENTRY = Message("ManagedFieldsEntry", "Which fields one manager owns.", (
    Field("manager", 1, "string", "Name of the writer."),
    Field("operation", 2, "string", "Apply or Update."),
    Field("apiVersion", 3, "string", "Version in which the fields are named."),
    Field("time", 4, "Time", "Last change of the entry."),
    Field("fieldsType", 6, "string", "Always FieldsV1."),
    Field("fieldsV1", 7, "FieldsV1", "The set of owned fields.", pointer=True),
    Field("subresource", 8, "string", "Subresource through which the fields were written."),
))  # fmt: skip
OBJECT_META = Message("ObjectMeta", "Name, labels and bookkeeping that every stored object has.", (
    Field("name", 1, "string", "Unique among the objects of its kind in a namespace; cannot change."),
    Field("generateName", 2, "string", "Prefix from which the server makes a unique name when name is empty."),
    Field("namespace", 3, "string", "Space in which the name is unique; empty for cluster-scoped kinds."),
    Field("selfLink", 4, "string", "No longer filled."),
    Field("uid", 5, "string", "Unique in time and space; set by the server."),
    Field("resourceVersion", 6, "string", "Changes with every write; opaque to clients."),
    Field("generation", 7, "int64", "Counts the changes of the wished state."),
    Field("creationTimestamp", 8, "Time", "When the server stored the object first."),
    Field("deletionTimestamp", 9, "Time", "When deletion was asked for; set by the server."),
    Field("deletionGracePeriodSeconds", 10, "int64", "Seconds granted for an orderly end.", pointer=True),
    Field("labels", 11, "string", "Keys and values by which objects are selected.", many="map"),
    Field("annotations", 12, "string", "Keys and values that are kept for tools and people.", many="map"),
    Field("ownerReferences", 13, OWNER_REFERENCE, "Objects that this one belongs to.", many="list", merge_key="uid",
          list_type="map", list_keys=("uid",)),
    _strings("finalizers", 14, "The object stays until this list is empty.", merge_key=".", list_type="set"),
    Field("managedFields", 17, MANAGED_FIELDS_ENTRY, "Which writer owns which field.", many="list"),
))  # fmt: skip
METADATA = Field("metadata", 1, OBJECT_META, "Standard metadata.")

OBJECT_REFERENCE = Message("ObjectReference", "Points to another object.", (
    Field("kind", 1, "string", "Kind."),
    Field("namespace", 2, "string", "Namespace."),
    Field("name", 3, "string", "Name."),
    Field("uid", 4, "string", "UID."),
    Field("apiVersion", 5, "string", "API version."),
    Field("resourceVersion", 6, "string", "The exact version that is meant."),
    Field("fieldPath", 7, "string", "The part of the object that is meant."),
))  # fmt: skip
LOCAL_OBJECT_REFERENCE = Message("LocalObjectReference", "Points to an object of the same namespace.", (
    Field("name", 1, "string", "Name."),
))  # fmt: skip
PRECONDITIONS = Message("Preconditions", "What must hold for a deletion to happen.", (
    Field("uid", 1, "string", "Expected UID.", pointer=True),
    Field("resourceVersion", 2, "string", "Expected resourceVersion.", pointer=True),
))  # fmt: skip
DELETE_OPTIONS = Message("DeleteOptions", "How to delete.", (
    Field("gracePeriodSeconds", 1, "int64", "Seconds granted for an orderly end.", pointer=True),
    Field("preconditions", 2, PRECONDITIONS, "What must hold.", pointer=True),
    Field("orphanDependents", 3, "bool", "Old form of propagationPolicy.", pointer=True),
    Field("propagationPolicy", 4, "string", "Orphan, Background or Foreground.", pointer=True),
    _strings("dryRun", 5, "All: nothing is stored."),
    Field("ignoreStoreReadErrorWithClusterBreakingPotential", 6, "bool", "Delete what cannot be read.", pointer=True),
))  # fmt: skip


def walk(messages: Sequence[Message]) -> list[Message]:
    """The messages and all that they reach, each once, in the order in which they are met."""
    seen: dict[str, Message] = {}
    todo = list(messages)
    while todo:
        message = todo.pop(0)
        if message.name not in seen:
            seen[message.name] = message
            todo.extend(item.type for item in message.fields if isinstance(item.type, Message))
    return list(seen.values())
