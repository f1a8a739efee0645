"""What an object must look like before it is stored: defaults, unknown fields, validation, rules of single kinds.

Called by the object service, on the event loop, between reading the head and writing. Pure: no store, no clock, no I/O. The rules
of our own kinds are those of their pydantic models (`model_rules`); nothing about a SwarmTask is written here.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

from swarmtask.apiserver import event_rules
from swarmtask.apiserver import metadata as meta
from swarmtask.apiserver.access.role_rules import binding_causes, cluster_role_causes, default_binding, role_causes
from swarmtask.apiserver.access.tokens import token_causes
from swarmtask.apiserver.faults import bad_value, invalid, not_allowed, unreadable
from swarmtask.apiserver.model_rules import model_causes
from swarmtask.apiserver.schema import structural_of
from swarmtask.apiserver.secret_rules import typed_causes
from swarmtask.apiserver.types import ResourceType
from swarmtask.errors import BadRequest, Cause

DATA_LIMIT = 1024 * 1024
"""Bytes of all values of one ConfigMap or Secret. Source: Kubernetes documentation, "Secrets", "ConfigMaps"."""
_DATA_KEY = re.compile(r"[-._a-zA-Z0-9]+")
NAMESPACE_NAME_LABEL = "kubernetes.io/metadata.name"


def check_header(rt: ResourceType, body: Any) -> dict[str, Any]:
    """The body as an object of this type; built-in kinds may leave out what the URL says.

    Raises:
        BadRequest: not an object, or of another type.
    """
    if not isinstance(body, dict):
        raise unreadable(rt, "json: cannot unmarshal the body into an object")
    for field, expected in (("apiVersion", rt.api_version), ("kind", rt.kind)):
        actual = body.get(field)
        if actual in (None, "") and not rt.custom:
            body[field] = expected
        elif actual in (None, ""):
            raise BadRequest(f"Object '{field[0].upper()}{field[1:]}' is missing in the body: set {field}: {expected}")
        elif field == "apiVersion" and actual != expected:
            raise BadRequest(f"the API version in the data ({actual}) does not match the expected API version ({expected})")
        elif actual != expected:
            raise BadRequest(f"the kind in the data ({actual}) does not match the expected kind ({expected})")
    return body


def tidy(rt: ResourceType, obj: dict[str, Any]) -> list[str]:
    """Check the shape of metadata and drop unknown fields, in place; returns the paths that were dropped."""
    meta.check_types(rt, obj)
    return drop_unknown(rt, obj)


def accepts(rt: ResourceType, obj: dict[str, Any]) -> bool:
    """Whether an object of a custom kind, as it came, is certainly valid by its schema as soon as the defaults are filled in, and
    has no unknown fields. False says nothing."""
    structural = structural_of(rt) if rt.custom else None
    return structural is not None and structural.accepts(obj)


def drop_unknown(rt: ResourceType, obj: dict[str, Any]) -> list[str]:
    """Drop unknown fields, in place, of an object whose metadata has been checked; returns the paths that were dropped."""
    unknown = meta.drop_unknown(obj["metadata"])
    structural = structural_of(rt)
    if structural is not None:
        unknown += structural.prune(obj)
    return list(dict.fromkeys(unknown)) if unknown else unknown


def report(rt: ResourceType, unknown: list[str], duplicates: list[str], mode: str) -> list[str]:
    """Warnings about fields that were dropped or given twice.

    Raises:
        BadRequest: there are some and `mode` is Strict; lists every one.
    """
    if mode == "Ignore":
        return []
    found = [f'unknown field "{path}"' for path in unknown] + [f'duplicate field "{path}"' for path in duplicates]
    if found and mode == "Strict":
        raise unreadable(rt, f"strict decoding error: {', '.join(found)}")
    return found


def default(rt: ResourceType, obj: dict[str, Any]) -> None:
    """Fill in what the schema and the kind say, in place."""
    if not rt.custom:
        _null_is_empty(rt, obj)
    structural = structural_of(rt)
    if structural is not None:
        structural.default(obj)
    _KIND_DEFAULTS.get((rt.group, rt.plural), _nothing)(obj)


def validate(
    rt: ResourceType, obj: dict[str, Any], old: dict[str, Any] | None, *, spec_changed: bool, accepted: bool = False
) -> None:
    """Raise everything that is wrong at once.

    Args:
        old: the stored object, None at create.
        spec_changed: something outside metadata and status differs (always so at create): cross-field rules apply then, so that an
            object stored before a rule existed can still have its status and metadata written.
        accepted: the schema accepts it (`accepts`).

    Raises:
        Invalid: with one cause per field. BadRequest: a field of a built-in kind has the wrong type.
    """
    metadata = obj["metadata"]
    causes = meta.validate(rt, metadata, old["metadata"] if old is not None else None)
    structural = structural_of(rt)
    if structural is not None:
        found = [] if accepted else structural.validate(obj, old if rt.custom else None)
        wrong = next((cause for cause in found if cause.reason == "FieldValueTypeInvalid"), None)
        if wrong is not None and not rt.custom and rt.group != "apiextensions.k8s.io":
            raise unreadable(rt, f"{wrong.field}: {wrong.message}")
        told = {(cause.field, cause.reason) for cause in causes}  # the schema of metadata says some of it again
        causes += [cause for cause in found or structural.evaluate(obj, old) if (cause.field, cause.reason) not in told]
    rule = _KIND_RULES.get((rt.group, rt.plural))
    if rule is not None:
        own = rule(obj, old)
        better = {(cause.field, cause.reason) for cause in own}  # it says why; the schema only that
        causes = [*(cause for cause in causes if (cause.field, cause.reason) not in better), *own]
    if not causes and spec_changed:
        causes += model_causes(rt, obj)
    if causes:
        raise invalid(rt, metadata.get("name", ""), causes)


# --- rules of single kinds -----------------------------------------------------------------------------------------------


def _nothing(obj: dict[str, Any]) -> None:
    """Most kinds have no defaults of their own."""


def _null_is_empty(rt: ResourceType, obj: dict[str, Any]) -> None:
    """A null in a map of values is an empty value, as Go's decoder in kube-apiserver has it; in place."""
    for field in _VALUE_MAPS.get((rt.group, rt.plural), ()):
        values = obj.get(field)
        if isinstance(values, dict) and None in values.values():
            obj[field] = {key: "" if value is None else value for key, value in values.items()}


def _join_lines(values: Any) -> None:
    """base64 over several lines, as `base64` and block scalars of YAML write it, is kept on one, as in Kubernetes; in place."""
    for key, value in values.items() if isinstance(values, dict) else ():
        if isinstance(value, str) and ("\n" in value or "\r" in value):
            values[key] = value.replace("\r", "").replace("\n", "")


def _default_config_map(obj: dict[str, Any]) -> None:
    _join_lines(obj.get("binaryData"))


def _default_secret(obj: dict[str, Any]) -> None:
    obj.setdefault("type", "Opaque")
    _join_lines(obj.get("data"))
    text, data = obj.get("stringData"), obj.get("data")
    if not (text is None or isinstance(text, dict)) or not (data is None or isinstance(data, dict)):
        return  # validation says so
    if text and not all(isinstance(value, str) for value in text.values()):
        return  # the same
    obj.pop("stringData", None)
    if not text:
        return
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in text.items()}
    obj["data"] = {**(data or {}), **encoded}


def _default_namespace(obj: dict[str, Any]) -> None:
    name = obj["metadata"].get("name")
    if name:
        obj["metadata"].setdefault("labels", {})[NAMESPACE_NAME_LABEL] = name


def _default_crd(obj: dict[str, Any]) -> None:
    spec = obj.get("spec")
    if not isinstance(spec, dict):
        return
    names = spec.get("names")
    if isinstance(names, dict) and isinstance(names.get("kind"), str):
        names.setdefault("singular", names["kind"].lower())
        names.setdefault("listKind", names["kind"] + "List")
    spec.setdefault("conversion", {"strategy": "None"})


def _secret_causes(obj: Mapping[str, Any], old: Mapping[str, Any] | None) -> list[Cause]:
    causes, size = [], 0
    for key, value in (obj.get("data") or {}).items():
        causes += _key_causes("data", key)
        size += _decoded_size(value)
    causes += _size_causes(size) + typed_causes(obj)
    causes += _immutable_causes(obj, old, ("data",))
    if old is not None and old.get("type") != obj.get("type"):
        causes.append(bad_value("type", obj.get("type"), "field is immutable"))
    return causes


def _config_map_causes(obj: Mapping[str, Any], old: Mapping[str, Any] | None) -> list[Cause]:
    causes, size = [], 0
    data, binary = obj.get("data") or {}, obj.get("binaryData") or {}
    for key, value in data.items():
        causes += _key_causes("data", key)
        size += len(value.encode())
        if key in binary:
            causes.append(bad_value(f"data[{key}]", key, "duplicate of key present in binaryData"))
    for key, value in binary.items():
        causes += _key_causes("binaryData", key)
        size += _decoded_size(value)
    return causes + _size_causes(size) + _immutable_causes(obj, old, ("data", "binaryData"))


def _decoded_size(value: str | None) -> int:
    """In bytes; of what is no base64 nothing, since the schema has said so already."""
    try:
        return len(base64.b64decode(value or ""))
    except (binascii.Error, ValueError):
        return 0


def _key_causes(field: str, key: str) -> list[Cause]:
    path = f"{field}[{key}]"
    if len(key) > 253:
        return [bad_value(path, key, "must be no more than 253 characters")]
    if key in (".", "..") or key.startswith("..") or not _DATA_KEY.fullmatch(key):
        return [
            bad_value(
                path, key,
                "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or "
                "'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
            )
        ]  # fmt: skip
    return []


def _size_causes(size: int) -> list[Cause]:
    if size > DATA_LIMIT:
        return [Cause("data", "FieldValueTooLong", f"Too long: may not be more than {DATA_LIMIT} bytes")]
    return []


def _immutable_causes(obj: Mapping[str, Any], old: Mapping[str, Any] | None, fields: tuple[str, ...]) -> list[Cause]:
    if old is None or old.get("immutable") is not True:
        return []
    causes = [
        not_allowed(field, "field is immutable when `immutable` is set")
        for field in fields
        if (obj.get(field) or {}) != (old.get(field) or {})
    ]
    if obj.get("immutable") is not True:
        causes.append(not_allowed("immutable", "field is immutable when `immutable` is set"))
    return causes


def _lease_causes(obj: Mapping[str, Any], old: Mapping[str, Any] | None) -> list[Cause]:
    spec = obj.get("spec") or {}
    duration, transitions = spec.get("leaseDurationSeconds"), spec.get("leaseTransitions")
    causes = []
    if duration is not None and duration <= 0:
        causes.append(bad_value("spec.leaseDurationSeconds", duration, "must be greater than 0"))
    if transitions is not None and transitions < 0:
        causes.append(bad_value("spec.leaseTransitions", transitions, "must be greater than or equal to 0"))
    return causes


_VALUE_MAPS = {("", "configmaps"): ("data", "binaryData"), ("", "secrets"): ("data", "stringData")}
_KIND_DEFAULTS = {
    ("", "configmaps"): _default_config_map,
    ("", "secrets"): _default_secret,
    ("", "namespaces"): _default_namespace,
    ("apiextensions.k8s.io", "customresourcedefinitions"): _default_crd,
    ("rbac.authorization.k8s.io", "rolebindings"): default_binding,
    ("rbac.authorization.k8s.io", "clusterrolebindings"): default_binding,
}
_KIND_RULES = {
    ("", "secrets"): _secret_causes,
    ("", "configmaps"): _config_map_causes,
    ("", "events"): event_rules.core_causes,
    ("events.k8s.io", "events"): event_rules.new_causes,
    ("coordination.k8s.io", "leases"): _lease_causes,
    ("rbac.authorization.k8s.io", "roles"): role_causes,
    ("rbac.authorization.k8s.io", "clusterroles"): cluster_role_causes,
    ("rbac.authorization.k8s.io", "rolebindings"): binding_causes(("Role", "ClusterRole")),
    ("rbac.authorization.k8s.io", "clusterrolebindings"): binding_causes(("ClusterRole",)),
    ("access.swarmtask.io", "accesstokens"): token_causes,
}
