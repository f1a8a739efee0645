"""Rules of `metadata`: what a client may say, what the server sets, what never changes.

Called by admission for every write. Source: Kubernetes API conventions, "Metadata", and the documentation of ObjectMeta.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from swarmtask.apiserver.faults import bad_value, invalid, not_allowed, required, unreadable
from swarmtask.apiserver.names import (
    dns_label_problem,
    label_value_problem,
    path_segment_problem,
    qualified_name_problem,
    subdomain_problem,
)
from swarmtask.apiserver.types import ResourceType
from swarmtask.clock import format_time
from swarmtask.errors import Cause

ANNOTATIONS_LIMIT = 256 * 1024
GENERATED_LENGTH = 5
GENERATED_BASE_LIMIT = 63 - GENERATED_LENGTH
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
"""No vowels and no look-alikes: generated names spell nothing."""
PLAIN_FINALIZERS = frozenset({"orphan", "foregroundDeletion", "kubernetes"})

_TYPES: dict[str, tuple[type, str]] = {
    "name": (str, "string"), "generateName": (str, "string"), "namespace": (str, "string"), "uid": (str, "string"),
    "resourceVersion": (str, "string"), "selfLink": (str, "string"), "creationTimestamp": (str, "string"),
    "deletionTimestamp": (str, "string"), "generation": (int, "int64"), "deletionGracePeriodSeconds": (int, "int64"),
    "labels": (dict, "map[string]string"), "annotations": (dict, "map[string]string"), "finalizers": (list, "[]string"),
    "ownerReferences": (list, "[]OwnerReference"), "managedFields": (list, "[]ManagedFieldsEntry"),
}  # fmt: skip
FIELDS = frozenset(_TYPES)
_UUID_FREE = 0xFFFFFFFF_FFFF_0FFF_3FFF_FFFFFFFFFFFF
_UUID_SET = 0x00000000_0000_4000_8000_000000000000
"""Version and variant."""
_OWNER_FIELDS = {
    "apiVersion": str, "kind": str, "name": str, "uid": str, "controller": bool, "blockOwnerDeletion": bool,
}  # fmt: skip


def check_types(rt: ResourceType, obj: dict[str, Any]) -> dict[str, Any]:
    """Refuse metadata of the wrong shape (400); nulls are dropped. Returns the metadata.

    Fields that ObjectMeta does not have are left for the caller to report; see `unknown_fields`.
    """
    metadata = obj.get("metadata")
    if metadata is None:
        metadata = obj["metadata"] = {}
    if not isinstance(metadata, dict):
        raise unreadable(rt, "json: cannot unmarshal metadata into an object of type ObjectMeta")
    for name, value in list(metadata.items()):
        if value is None:
            del metadata[name]
            continue
        expected = _TYPES.get(name)
        if expected is not None and (not isinstance(value, expected[0]) or isinstance(value, bool)):
            raise _mismatch(rt, name, value, expected[1])
    for name in ("labels", "annotations"):
        for key, value in metadata.get(name, {}).items():
            if not isinstance(value, str):
                raise _mismatch(rt, f"{name}.{key}", value, "string")
    for finalizer in metadata.get("finalizers", ()):
        if not isinstance(finalizer, str):
            raise _mismatch(rt, "finalizers", finalizer, "string")
    for position, reference in enumerate(metadata.get("ownerReferences", ())):
        _check_owner_types(rt, position, reference)
    for entry in metadata.get("managedFields", ()):
        if not isinstance(entry, dict):
            raise _mismatch(rt, "managedFields", entry, "ManagedFieldsEntry")
    return metadata


def _check_owner_types(rt: ResourceType, position: int, reference: Any) -> None:
    if not isinstance(reference, dict):
        raise _mismatch(rt, f"ownerReferences[{position}]", reference, "OwnerReference")
    for field, expected in _OWNER_FIELDS.items():
        value = reference.get(field)
        if value is not None and not isinstance(value, expected):
            raise _mismatch(rt, f"ownerReferences[{position}].{field}", value, expected.__name__)


def _mismatch(rt: ResourceType, field: str, value: Any, expected: str) -> Exception:
    names = {str: "string", int: "number", float: "number", bool: "bool", list: "array", dict: "object"}
    actual = names.get(type(value), "null")
    return unreadable(rt, f"json: cannot unmarshal {actual} into Go struct field ObjectMeta.metadata.{field} of type {expected}")


def drop_unknown(metadata: dict[str, Any]) -> list[str]:
    """Remove what ObjectMeta does not have; returns the paths."""
    if metadata.keys() <= FIELDS:
        return []
    unknown = [name for name in metadata if name not in FIELDS]
    for name in unknown:
        del metadata[name]
    return [f"metadata.{name}" for name in unknown]


def begin(rt: ResourceType, metadata: dict[str, Any], *, namespace: str, now: datetime) -> None:
    """Metadata of a new object: what clients may not choose is set or dropped."""
    for name in ("selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion", "generation"):
        metadata.pop(name, None)
    if rt.namespaced:
        metadata["namespace"] = namespace
    else:
        metadata.pop("namespace", None)
    metadata["uid"] = _fresh_uid()
    metadata["creationTimestamp"] = format_time(now)
    if rt.has_generation:
        metadata["generation"] = 1
    _drop_empty(metadata)


def _fresh_uid() -> str:
    """A random UUID (RFC 9562, version 4); the class of the standard library takes three times as long."""
    bits = (int.from_bytes(os.urandom(16)) & _UUID_FREE) | _UUID_SET
    text = f"{bits:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def generated_name(base: str) -> str:
    """`base` cut to leave room, and five random characters."""
    return base[:GENERATED_BASE_LIMIT] + "".join(secrets.choice(_ALPHABET) for _ in range(GENERATED_LENGTH))


def check_uid(rt: ResourceType, name: str, stored: str, new: Mapping[str, Any]) -> None:
    """A patch that names a UID is meant for that object. Raises Invalid, as Kubernetes: it is another one."""
    if (uid := new.get("uid")) and uid != stored:
        raise invalid(rt, name, [bad_value("metadata.uid", uid, "field is immutable")])


def carry_over(rt: ResourceType, old: Mapping[str, Any], new: dict[str, Any]) -> None:
    """Metadata of an update: what never changes is taken from the stored object.

    Raises:
        Invalid: a UID that is not the stored one.
    """
    check_uid(rt, old["name"], old.get("uid", ""), new)
    for name in (
        "name", "namespace", "uid", "generateName", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds",
        "generation",
    ):  # fmt: skip
        if name in old:
            new[name] = old[name]
        else:
            new.pop(name, None)
    new.pop("selfLink", None)
    _drop_empty(new)


def _drop_empty(metadata: dict[str, Any]) -> None:
    for name in ("labels", "annotations", "finalizers", "ownerReferences", "managedFields", "generateName"):
        if name in metadata and not metadata[name]:
            del metadata[name]


def validate(rt: ResourceType, metadata: Mapping[str, Any], old: Mapping[str, Any] | None) -> list[Cause]:
    """Everything that can be wrong with well-shaped metadata."""
    causes = [] if old is not None else _name_causes(rt, metadata)
    causes += _label_causes(metadata.get("labels", {}))
    causes += _annotation_causes(metadata.get("annotations", {}))
    causes += _finalizer_causes(metadata, old)
    causes += _owner_causes(metadata.get("ownerReferences", ()))
    return causes


def _name_causes(rt: ResourceType, metadata: Mapping[str, Any]) -> list[Cause]:
    name = metadata.get("name", "")
    if not name:
        return [required("metadata.name", "name or generateName is required")]
    problem = path_segment_problem(name)
    if not problem and rt.group != "rbac.authorization.k8s.io":  # names of roles are path segments: system:discovery
        problem = dns_label_problem(name) if (rt.group, rt.plural) == ("", "namespaces") else subdomain_problem(name)
    return [bad_value("metadata.name", name, problem)] if problem else []


def _label_causes(labels: Mapping[str, str]) -> list[Cause]:
    causes = []
    for key, value in labels.items():
        problem = qualified_name_problem(key)
        if problem:
            causes.append(bad_value("metadata.labels", key, problem))
        problem = label_value_problem(value)
        if problem:
            causes.append(bad_value("metadata.labels", value, problem))
    return causes


def _annotation_causes(annotations: Mapping[str, str]) -> list[Cause]:
    causes, size = [], 0
    for key, value in annotations.items():
        problem = qualified_name_problem(key.lower())
        if problem:
            causes.append(bad_value("metadata.annotations", key, problem))
        size += len(key.encode()) + len(value.encode())
    if size > ANNOTATIONS_LIMIT:
        causes.append(
            Cause("metadata.annotations", "FieldValueTooLong", f"Too long: may not be more than {ANNOTATIONS_LIMIT} bytes")
        )
    return causes


def _finalizer_causes(metadata: Mapping[str, Any], old: Mapping[str, Any] | None) -> list[Cause]:
    causes = []
    finalizers = metadata.get("finalizers", ())
    for finalizer in finalizers:
        problem = qualified_name_problem(finalizer)
        if problem:
            causes.append(bad_value("metadata.finalizers", finalizer, problem))
        elif "/" not in finalizer and "." not in finalizer and finalizer not in PLAIN_FINALIZERS:
            causes.append(
                bad_value("metadata.finalizers", finalizer, "name is neither a standard finalizer name nor is it fully qualified")
            )
    if {"orphan", "foregroundDeletion"} <= set(finalizers):
        causes.append(bad_value("metadata.finalizers", str(list(finalizers)), "orphan and foregroundDeletion exclude each other"))
    if old is not None and "deletionTimestamp" in old:
        before = frozenset(old.get("finalizers", ()))
        added = [finalizer for finalizer in finalizers if finalizer not in before]
        if added:
            shown = ", ".join(f'"{finalizer}"' for finalizer in added)
            causes.append(
                not_allowed(
                    "metadata.finalizers",
                    f"no new finalizers can be added if the object is being deleted, found new finalizers []string{{{shown}}}",
                )
            )
    return causes


def _owner_causes(references: Any) -> list[Cause]:
    causes: list[Cause] = []
    controllers = 0
    for position, reference in enumerate(references):
        path = f"metadata.ownerReferences[{position}]"
        causes += [
            required(f"{path}.{field}", "must not be empty")
            for field in ("apiVersion", "kind", "name", "uid")
            if not reference.get(field)
        ]
        controllers += reference.get("controller") is True
    if controllers > 1:
        causes.append(
            bad_value("metadata.ownerReferences", "", "Only one reference can have Controller set to true. Found more than one")
        )
    return causes
