"""Rules for CustomResourceDefinitions: what must hold before a CRD is served.

Called by admission when a CRD is written. Whatever this server does not implement is refused with the path that asks for it: a rule
that is silently ignored would let through what its author meant to refuse.
Source: Kubernetes documentation, "Extend the Kubernetes API with CustomResourceDefinitions".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from swarmtask.apiserver.crd_shape import CRD_SCHEMA
from swarmtask.apiserver.schema import Structural
from swarmtask.apiserver.schema_checks import shown
from swarmtask.apiserver.schema_rules import schema_causes
from swarmtask.apiserver.tables import compile_path
from swarmtask.errors import Cause

_SHAPE: Final = Structural(CRD_SCHEMA)
_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_DNS_1035: Final = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_KIND: Final = re.compile(r"[A-Za-z]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?")
_COLUMN_TYPES: Final = ("integer", "number", "string", "boolean", "date")
_COLUMN_FORMATS: Final = ("", "int32", "int64", "float", "double", "byte", "date", "date-time", "password")
_FIELD_PATH: Final = re.compile(r"(\.[A-Za-z_][A-Za-z0-9_-]*)+")
MAX_SELECTABLE_FIELDS: Final = 8
MAX_WARNING_BYTES: Final = 256
_PROTECTED: Final = (".k8s.io", ".kubernetes.io")


def required(path: str, why: str = "") -> Cause:
    return Cause(path, "FieldValueRequired", f"Required value: {why}" if why else "Required value")


def refused(path: str, value: Any, why: str) -> Cause:
    return Cause(path, "FieldValueInvalid", f"Invalid value: {shown(value)}: {why}")


def not_supported(path: str, value: Any, allowed: tuple[str, ...]) -> Cause:
    listed = ", ".join(f'"{item}"' for item in allowed)
    return Cause(path, "FieldValueNotSupported", f"Unsupported value: {shown(value)}: supported values: {listed}")


def validate_crd(crd: Mapping[str, Any]) -> list[Cause]:
    """What is wrong with a CRD; empty when it can be served.

    The shape (types, required fields) comes first; the rules beyond it are looked at when the shape is right.
    """
    wrong_shape = _SHAPE.validate(crd)
    if wrong_shape:
        return wrong_shape
    spec = crd["spec"]
    causes = [*_naming(crd, spec), *_versions(spec)]
    if spec.get("preserveUnknownFields"):
        causes.append(
            refused("spec.preserveUnknownFields", True, "must be false: use x-kubernetes-preserve-unknown-fields instead")
        )
    conversion = spec.get("conversion")
    if isinstance(conversion, Mapping):
        if conversion.get("strategy") != "None":
            causes.append(not_supported("spec.conversion.strategy", conversion.get("strategy"), ("None",)))
        if conversion.get("webhook") is not None:
            causes.append(
                Cause("spec.conversion.webhook", "FieldValueForbidden", "Forbidden: this server calls no conversion webhooks")
            )
    return causes


def _naming(crd: Mapping[str, Any], spec: Mapping[str, Any]) -> list[Cause]:
    causes = []
    group = spec.get("group")
    if not group or not isinstance(group, str):
        causes.append(required("spec.group"))
        group = ""
    elif len(group) > 253 or not all(_LABEL.fullmatch(part) for part in group.split(".")):
        causes.append(refused("spec.group", group, "must be a DNS name in lower case, for example example.com"))
    elif "." not in group:
        causes.append(refused("spec.group", group, "should be a domain with at least one dot"))
    elif f".{group}".endswith(_PROTECTED):
        annotations = (crd.get("metadata") or {}).get("annotations") or {}
        if not str(annotations.get("api-approved.kubernetes.io") or ""):
            why = "protected groups must have an approval annotation api-approved.kubernetes.io"
            causes.append(required("metadata.annotations[api-approved.kubernetes.io]", why))
    if spec.get("scope") not in ("Namespaced", "Cluster"):
        causes.append(not_supported("spec.scope", spec.get("scope"), ("Cluster", "Namespaced")))
    names = spec.get("names")
    if not isinstance(names, Mapping):
        return [*causes, required("spec.names")]
    for key, pattern, needed in (
        ("plural", _DNS_1035, True), ("singular", _DNS_1035, False), ("kind", _KIND, True), ("listKind", _KIND, False),
    ):  # fmt: skip
        value = names.get(key)
        if not value:
            if needed:
                causes.append(required(f"spec.names.{key}"))
        elif not isinstance(value, str) or not pattern.fullmatch(value):
            causes.append(refused(f"spec.names.{key}", value, "must consist of letters, digits and '-', and start with a letter"))
    for key in ("shortNames", "categories"):
        listed = names.get(key) or ()
        for index, value in enumerate(listed if isinstance(listed, list) else (listed,) if listed else ()):
            if not isinstance(value, str) or not _DNS_1035.fullmatch(value):
                causes.append(refused(f"spec.names.{key}[{index}]", value, "must consist of lower case letters, digits and '-'"))
    if names.get("kind") and names.get("kind") == (names.get("listKind") or f"{names.get('kind')}List"):
        causes.append(refused("spec.names.listKind", names.get("listKind"), "kind and listKind may not be the same"))
    expected, name = f"{names.get('plural')}.{group}", (crd.get("metadata") or {}).get("name")
    if name != expected:
        causes.append(refused("metadata.name", name, f'must be spec.names.plural+"."+spec.group, here {expected}'))
    return causes


def _versions(spec: Mapping[str, Any]) -> list[Cause]:
    versions = spec.get("versions")
    if not isinstance(versions, list) or not versions:
        return [required("spec.versions", "at least one version")]
    causes: list[Cause] = []
    seen = set()
    for index, version in enumerate(versions):
        path = f"spec.versions[{index}]"
        if not isinstance(version, Mapping):
            causes.append(refused(path, version, "must be an object"))
            continue
        name = version.get("name")
        if not isinstance(name, str) or not _DNS_1035.fullmatch(name):
            causes.append(
                refused(f"{path}.name", name, "must consist of lower case letters, digits and '-', and start with a letter")
            )
        elif name in seen:
            causes.append(Cause(f"{path}.name", "FieldValueDuplicate", f"Duplicate value: {shown(name)}"))
        else:
            seen.add(name)
        for key in ("served", "storage"):
            if not isinstance(version.get(key), bool):
                causes.append(required(f"{path}.{key}"))
        causes += _deprecation(version, path)
        causes += _schema(version, path)
        causes += _columns(version, path)
        causes += _selectable_fields(version, path)
        causes += _subresources(version, path)
    stored = [version for version in versions if isinstance(version, Mapping) and version.get("storage") is True]
    if len(stored) != 1:
        why = "must have exactly one version marked as storage version"
        causes.append(refused("spec.versions", [item.get("name") for item in stored], why))
    return causes


def _deprecation(version: Mapping[str, Any], path: str) -> list[Cause]:
    warning = version.get("deprecationWarning")
    where = f"{path}.deprecationWarning"
    if warning is None:
        return []
    if not version.get("deprecated"):
        return [refused(where, warning, "can only be set for deprecated versions")]
    if not warning or len(warning.encode()) > MAX_WARNING_BYTES or not warning.isprintable():
        return [refused(where, warning, f"must be 1 to {MAX_WARNING_BYTES} printable characters")]
    return []


def _schema(version: Mapping[str, Any], path: str) -> list[Cause]:
    holder = version.get("schema")
    schema = holder.get("openAPIV3Schema") if isinstance(holder, Mapping) else None
    if schema is None:
        return [required(f"{path}.schema.openAPIV3Schema", "schemas are required")]
    return schema_causes(schema, f"{path}.schema.openAPIV3Schema")


def _columns(version: Mapping[str, Any], path: str) -> list[Cause]:
    causes = []
    columns = version.get("additionalPrinterColumns") or ()
    for index, column in enumerate(columns if isinstance(columns, list) else ()):
        where = f"{path}.additionalPrinterColumns[{index}]"
        if not isinstance(column, Mapping):
            causes.append(refused(where, column, "must be an object"))
            continue
        if not column.get("name"):
            causes.append(required(f"{where}.name"))
        if column.get("type") not in _COLUMN_TYPES:
            causes.append(not_supported(f"{where}.type", column.get("type"), _COLUMN_TYPES))
        if (column.get("format") or "") not in _COLUMN_FORMATS:
            causes.append(not_supported(f"{where}.format", column.get("format"), _COLUMN_FORMATS[1:]))
        try:
            compile_path(str(column.get("jsonPath") or ""))
        except ValueError as error:
            causes.append(refused(f"{where}.jsonPath", column.get("jsonPath"), str(error)))
    return causes


def _selectable_fields(version: Mapping[str, Any], path: str) -> list[Cause]:
    causes = []
    fields = version.get("selectableFields") or ()
    if len(fields) > MAX_SELECTABLE_FIELDS:
        text = f"Too many: {len(fields)}: must have at most {MAX_SELECTABLE_FIELDS} items"
        causes.append(Cause(f"{path}.selectableFields", "FieldValueTooMany", text))
    schema = (version.get("schema") or {}).get("openAPIV3Schema") or {}
    for index, item in enumerate(fields):
        where = f"{path}.selectableFields[{index}].jsonPath"
        json_path = item.get("jsonPath") if isinstance(item, Mapping) else None
        if not isinstance(json_path, str) or not _FIELD_PATH.fullmatch(json_path):
            causes.append(refused(where, json_path, "must be a simple path such as .spec.color"))
            continue
        if json_path.startswith(".metadata."):
            causes.append(refused(where, json_path, "must not point to fields in metadata"))
            continue
        node: Any = schema
        for part in json_path[1:].split("."):
            properties = node.get("properties") if isinstance(node, Mapping) else None
            node = properties.get(part) if isinstance(properties, Mapping) else None
        if not isinstance(node, Mapping) or node.get("type") not in ("string", "boolean", "integer"):
            causes.append(
                refused(where, json_path, "must point to a field of type string, boolean or integer that the schema names")
            )
    return causes


def _subresources(version: Mapping[str, Any], path: str) -> list[Cause]:
    subresources = version.get("subresources")
    if not isinstance(subresources, Mapping):
        return []
    causes = []
    scale = subresources.get("scale")
    if isinstance(scale, Mapping):
        for key, root in (("specReplicasPath", ".spec."), ("statusReplicasPath", ".status.")):
            value = scale.get(key)
            if not isinstance(value, str) or not _FIELD_PATH.fullmatch(value) or not value.startswith(root):
                causes.append(refused(f"{path}.subresources.scale.{key}", value, f"must be a simple path under {root[:-1]}"))
        value = scale.get("labelSelectorPath")
        if value and (
            not isinstance(value, str) or not _FIELD_PATH.fullmatch(value) or not value.startswith((".spec.", ".status."))
        ):
            causes.append(
                refused(f"{path}.subresources.scale.labelSelectorPath", value, "must be a simple path under .spec or .status")
            )
    return causes
