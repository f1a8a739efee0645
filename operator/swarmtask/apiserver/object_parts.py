"""The parts of an object as writes see them: whose side a field is on, what has changed, and whether it may go. Pure.

Called by the object service; the names of namespaces and policies also by whoever deletes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

import orjson

from swarmtask.apiserver.types import ResourceType

NAMESPACES = ("", "namespaces")
Propagation = Literal["Background", "Foreground", "Orphan"]
_POLICY_FINALIZERS: Mapping[str, str] = {"Foreground": "foregroundDeletion", "Orphan": "orphan"}


def set_policy_finalizers(metadata: dict[str, Any], propagation: Propagation | None) -> None:
    """Who waits for what at a deletion, in place; None leaves it as it is."""
    if propagation is None:
        return
    wanted = _POLICY_FINALIZERS.get(propagation)
    finalizers = [name for name in metadata.get("finalizers", ()) if name not in _POLICY_FINALIZERS.values() or name == wanted]
    if wanted is not None and wanted not in finalizers:
        finalizers.append(wanted)
    if finalizers:
        metadata["finalizers"] = finalizers
    else:
        metadata.pop("finalizers", None)


def keep_other_side(rt: ResourceType, old: Mapping[str, Any], new: dict[str, Any], subresource: str | None) -> dict[str, Any]:
    """The split between an object and its subresources: each write changes only its own side."""
    if subresource is None:
        if "status" in rt.subresources:
            _copy_part(old, new, "status")
        if (rt.group, rt.plural) == NAMESPACES:
            _copy_part(old, new, "spec")
        return new
    result = {**old, "metadata": dict(old["metadata"])}
    managed = new["metadata"].get("managedFields")
    if managed is not None:
        result["metadata"]["managedFields"] = managed
    _copy_part(new, result, "spec" if subresource == "finalize" else subresource)
    return result


def _copy_part(source: Mapping[str, Any], target: dict[str, Any], part: str) -> None:
    if part in source:
        target[part] = source[part]
    else:
        target.pop(part, None)


def without_fields(obj: dict[str, Any], fields: Collection[str]) -> dict[str, Any]:
    """The object with the same metadata, and without these fields of its spec."""
    return {**obj, "spec": {name: value for name, value in obj["spec"].items() if name not in fields}} if fields else obj


def changed_parts(old: Mapping[str, Any], new: Mapping[str, Any]) -> set[str]:
    """Top-level fields that differ; `metadata` without what the server itself keeps there is left to `_same`."""
    return {name for name in old.keys() | new.keys() if not _equal(old.get(name), new.get(name))} - {"apiVersion", "kind"}


def _equal(left: Any, right: Any) -> bool:
    """JSON equality: 1, 1.0 and true are three values."""
    if left != right:
        return False
    return orjson.dumps(left, option=orjson.OPT_SORT_KEYS) == orjson.dumps(right, option=orjson.OPT_SORT_KEYS)


def is_same(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Nothing changed but, at most, the times in managedFields."""
    if _equal(old, new):
        return True
    return _equal(_without_times(old), _without_times(new))


def _without_times(obj: Mapping[str, Any]) -> dict[str, Any]:
    metadata = dict(obj["metadata"])
    metadata["managedFields"] = [
        {name: value for name, value in entry.items() if name != "time"} for entry in metadata.get("managedFields", ())
    ]
    return {**obj, "metadata": metadata}


def holds_content(rt: ResourceType, obj: Mapping[str, Any]) -> bool:
    """A namespace that is not empty yet."""
    return (rt.group, rt.plural) == NAMESPACES and bool((obj.get("spec") or {}).get("finalizers"))


def is_finished(rt: ResourceType, obj: Mapping[str, Any]) -> bool:
    """Marked for deletion, and nothing holds it any more."""
    metadata = obj["metadata"]
    return "deletionTimestamp" in metadata and not metadata.get("finalizers") and not holds_content(rt, obj)
