"""Server-side apply and the ownership of fields (`metadata.managedFields`).

Called on every write: `server_side_apply` for PATCH with apply-patch, `record_update` for everything else. Pure: `now` is an
argument, nothing is stored. Only ownership is decided here; pruning, defaults and validation come before and after.
Sources: Kubernetes documentation, "Server-Side Apply"; messages as kubectl prints them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import orjson

from swarmtask.apiserver.fieldset import (
    Difference,
    FieldPath,
    Node,
    contains_any,
    difference,
    fields_of,
    from_fields_v1,
    merged,
    named,
    node_of,
    path_text,
    remove,
    same,
    to_fields_v1,
    tree_of,
)
from swarmtask.apiserver.patch import check_depth
from swarmtask.apiserver.schema_checks import MAX_CAUSES
from swarmtask.apiserver.types import ResourceType
from swarmtask.apiserver.whole_fields import whole_fields
from swarmtask.clock import format_time
from swarmtask.errors import BadRequest, Cause, Conflict

BEFORE_FIRST_APPLY: Final = "before-first-apply"
"""Owner of the fields of an object that was stored without an owner, from the first apply on."""
ANCIENT_CHANGES: Final = "ancient-changes"
MAX_UPDATE_ENTRIES: Final = 10
MOST_TRACKED_BYTES: Final = 2**20
"""Of managedFields as JSON, beyond which the oldest entries are joined, those of apply too. Kubernetes has no such bound: an object
that managers with ever new names own a hundred times is refused by etcd there, to everybody."""
LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
_MAX_ANNOTATION_BYTES: Final = 262_144
_KUBECTL: Final = "kubectl"

_SERVER_OWNED: Final = frozenset({
    "name", "namespace", "creationTimestamp", "selfLink", "uid", "clusterName", "generation", "managedFields", "resourceVersion",
    "deletionTimestamp", "deletionGracePeriodSeconds",
})  # fmt: skip
"""Fields of metadata that nobody owns."""
_METADATA: Final[FieldPath] = ("f:metadata",)


@dataclass(slots=True)
class _Entry:
    """One entry of managedFields. `fields` is the FieldsV1 tree; `paths` is read from it when needed."""

    manager: str
    operation: str
    api_version: str
    time: str | None
    subresource: str
    fields: dict[str, Any]
    _paths: set[FieldPath] | None = None

    @property
    def key(self) -> tuple[str, str, str, str]:
        """An applier keeps one entry whatever version it speaks."""
        return (self.manager, self.operation, "" if self.operation == "Apply" else self.api_version, self.subresource)

    @property
    def paths(self) -> set[FieldPath]:
        if self._paths is None:
            self._paths = from_fields_v1(self.fields)
        return self._paths

    def replace(self, paths: set[FieldPath]) -> None:
        self._paths = paths
        self.fields = to_fields_v1(paths)

    def to_dict(self) -> dict[str, Any]:
        result: dict[str, Any] = {"manager": self.manager, "operation": self.operation, "apiVersion": self.api_version}
        if self.time is not None:
            result["time"] = self.time
        result["fieldsType"], result["fieldsV1"] = "FieldsV1", self.fields
        if self.subresource:
            result["subresource"] = self.subresource
        return result


def server_side_apply(
    rt: ResourceType,
    live: dict[str, Any] | None,
    applied: dict[str, Any],
    *,
    manager: str,
    force: bool,
    now: datetime,
    subresource: str,
) -> dict[str, Any]:
    """The object after `manager` applied its configuration, with managedFields.

    Args:
        live: the stored object; None creates one.
        applied: the whole wish of the manager; what it applied earlier and leaves out now goes, unless somebody else owns it.
        subresource: `status`, ... or empty.

    Returns:
        `live` itself when nothing changes (nothing is to be written then); otherwise a new object that shares nothing with `live`.

    Raises:
        BadRequest: `applied` carries managedFields, or a keyed list of it is ambiguous.
        Conflict: other managers own fields that would change; one cause per field. Not with `force`.
    """
    if (applied.get("metadata") or {}).get("managedFields") is not None:
        raise BadRequest("metadata.managedFields must be nil")
    check_depth(applied)
    root = node_of(rt.schema)
    before, wish = _owned_part(rt, live or {}, subresource), _owned_part(rt, applied, subresource)
    wished = fields_of(wish, root) - {_METADATA}
    entries = _entries(live)
    if live is not None and not entries:
        everything = difference({}, _owned_part(rt, live, ""), root).added - {_METADATA}
        entries = [_Entry(BEFORE_FIRST_APPLY, "Update", rt.api_version, format_time(now), "", {})]
        entries[0].replace(everything)
    own_key = (manager, "Apply", "", subresource)
    own = next((entry for entry in entries if entry.key == own_key), None)
    others = [entry for entry in entries if entry is not own]

    after = merged(before, wish, root)
    if own is not None:
        kept = named(wished.union(*(entry.paths for entry in others)), root)
        remove(after, named(own.paths, root) - kept - {_METADATA}, root)
    change = difference(before, after, root)
    conflicts = [(entry, change.written & entry.paths) for entry in others]
    conflicts = [(entry, paths) for entry, paths in conflicts if paths]
    if conflicts and not force:
        left = _beyond_last_applied(rt, live, conflicts, root) if manager == _KUBECTL else conflicts
        if left:
            raise _conflict(left)
    rest, changed_others = _without(others, change)
    changed_own = own is None or own.paths != wished or own.api_version != rt.api_version
    if own is None and not wished:
        changed_own = False
    if live is not None and not change and not changed_own and not changed_others:
        return live
    if wished:
        time = format_time(now) if own is None or own.time is None or changed_own or change else own.time
        entry = _Entry(manager, "Apply", rt.api_version, time, subresource, {})
        entry.replace(wished)
        rest.append(entry)
    result = _whole(rt, live, applied, after, subresource)
    if manager == _KUBECTL and not subresource:
        _renew_last_applied(result, applied)
    _write(result, rest)
    return result


def record_update(
    rt: ResourceType,
    old: dict[str, Any] | None,
    new: dict[str, Any],
    *,
    manager: str,
    now: datetime,
    subresource: str,
    valid: bool = False,
) -> None:
    """Note in `new.metadata.managedFields` that `manager` wrote the fields in which `new` differs from `old`.

    Fields that went are owned by nobody afterwards. A request may carry managedFields of its own (kubectl migrates ownership that
    way); through a subresource it may not. `managedFields: [{}]` ends the tracking of an object; an empty list is what a client
    that does not know the field sends, and changes nothing. `valid`: the schema accepts `new`, which makes a create cheaper.
    """
    metadata = new.setdefault("metadata", {})
    submitted = metadata.get("managedFields")
    if submitted == [{}] and not subresource:
        del metadata["managedFields"]
        return
    root = node_of(rt.schema)
    if old is None and not submitted and not root.map_atomic:
        fields = whole_fields(_owned_part(rt, new, subresource), root, valid=valid)
        if fields:
            entry = _Entry(manager, "Update", rt.api_version, format_time(now), subresource, fields)
            metadata["managedFields"] = [entry.to_dict()]
        else:
            metadata.pop("managedFields", None)
        return
    entries = []
    if submitted and not subresource and submitted != ((old or {}).get("metadata") or {}).get("managedFields"):
        entries = _submitted_entries(new)
    if not entries:
        entries = _entries(old)
    if old is not None and not entries:
        metadata.pop("managedFields", None)
        return
    change = difference(_owned_part(rt, old or {}, subresource), _owned_part(rt, new, subresource), root)
    for paths in (change.added, change.removed, change.modified):
        paths.discard(_METADATA)
    if not change:
        _write(new, entries)
        return
    own_key = (manager, "Update", rt.api_version, subresource)
    own = next((entry for entry in entries if entry.key == own_key), None)
    rest, _ = _without([entry for entry in entries if entry is not own], change)
    written = change.written
    if own is None:
        if written:
            own = _Entry(manager, "Update", rt.api_version, format_time(now), subresource, {})
            own.replace(written)
            rest.append(own)
    else:
        paths = (own.paths - change.removed) | written
        if written or paths != own.paths:
            own.time = format_time(now)
        own.replace(paths)
        if paths:
            rest.append(own)
    _write(new, _capped(rest))


# --- entries -------------------------------------------------------------------------------------------------------------


def _submitted_entries(obj: Mapping[str, Any]) -> list[_Entry]:
    """What a client says of ownership, in the spelling used here; none when some of it cannot be read."""
    entries = _entries(obj)
    try:
        for entry in entries:
            entry.replace(entry.paths)
    except ValueError:
        return []
    return entries


def _entries(obj: Mapping[str, Any] | None) -> list[_Entry]:
    """The entries of a stored object; none when one of them cannot be read."""
    listed = ((obj or {}).get("metadata") or {}).get("managedFields")
    if not isinstance(listed, list):
        return []
    result = []
    for item in listed:
        if not isinstance(item, dict):
            return []
        fields, operation = item.get("fieldsV1"), item.get("operation")
        texts = [item.get("manager") or "", item.get("apiVersion") or "", item.get("subresource") or ""]
        if not isinstance(fields, dict) or operation not in ("Apply", "Update") or not all(isinstance(text, str) for text in texts):
            return []
        time = item.get("time")
        result.append(_Entry(texts[0], operation, texts[1], time if isinstance(time, str) else None, texts[2], fields))
    return result


def _without(entries: list[_Entry], change: Difference) -> tuple[list[_Entry], bool]:
    """The entries of others after a write: what was written or removed is no longer theirs."""
    lost = change.written | change.removed
    tree = tree_of(lost)
    rest, changed = [], False
    for entry in entries:
        if not contains_any(entry.fields, tree):
            rest.append(entry)
            continue
        changed = True
        paths = entry.paths - lost
        if paths:
            entry.replace(paths)
            rest.append(entry)
    return rest, changed


def _capped(entries: list[_Entry]) -> list[_Entry]:
    """At most ten updaters are told apart; the oldest ones of a version are joined."""
    updates = sorted((entry for entry in entries if entry.operation == "Update"), key=lambda entry: entry.time or "")
    surplus = len(updates) - MAX_UPDATE_ENTRIES
    return entries if surplus <= 0 else _joined(entries, updates[: surplus + 1])


def _fitting(entries: list[_Entry]) -> list[_Entry]:
    """Entries of no more than `MOST_TRACKED_BYTES`, as far as joining helps: fields that several own are told once then. The newest
    stay apart, up to half of it, or none where that is still too much."""
    sizes = {id(entry): len(orjson.dumps(entry.to_dict())) for entry in entries}
    places = {(entry.api_version, entry.subresource) for entry in entries}
    if sum(sizes.values()) <= MOST_TRACKED_BYTES or len(entries) == len(places):
        return entries
    ordered = sorted(entries, key=lambda entry: (entry.manager != ANCIENT_CHANGES, entry.time or ""))
    room, first = MOST_TRACKED_BYTES // 2, len(ordered)
    while first > 0 and ordered[first - 1].manager != ANCIENT_CHANGES and sizes[id(ordered[first - 1])] <= room:
        first -= 1
        room -= sizes[id(ordered[first])]
    result = _joined(entries, ordered[:first])
    if sum(len(orjson.dumps(entry.to_dict())) for entry in result) <= MOST_TRACKED_BYTES:
        return result
    return _joined(entries, ordered)


def _joined(entries: list[_Entry], oldest: list[_Entry]) -> list[_Entry]:
    """The entries with the oldest of them, the oldest first, as one for each version and subresource."""
    joined: dict[tuple[str, str], tuple[_Entry, set[FieldPath]]] = {}
    for entry in oldest:
        place = (entry.api_version, entry.subresource)
        if place not in joined:
            joined[place] = (_Entry(ANCIENT_CHANGES, "Update", entry.api_version, None, entry.subresource, {}), set())
        target, paths = joined[place]
        paths |= entry.paths
        target.time = entry.time
    for target, paths in joined.values():
        target.replace(paths)
    gone = {id(entry) for entry in oldest}
    return [*(target for target, _ in joined.values()), *(entry for entry in entries if id(entry) not in gone)]


def _write(obj: dict[str, Any], entries: list[_Entry]) -> None:
    ordered = sorted(
        _fitting(entries),
        key=lambda entry: (entry.operation, entry.time or "", entry.manager, entry.api_version, entry.subresource),
    )
    if ordered:
        obj["metadata"]["managedFields"] = [entry.to_dict() for entry in ordered]
    else:
        obj["metadata"].pop("managedFields", None)


# --- the part of an object that managers own -----------------------------------------------------------------------------


def _owned_part(rt: ResourceType, obj: Mapping[str, Any], subresource: str) -> dict[str, Any]:
    """A shallow copy without what the server owns and without what a write through `subresource` does not reach."""
    if subresource == "status":
        return {"status": obj["status"]} if "status" in obj else {}
    split = "status" in rt.subresources
    part = {
        key: value
        for key, value in obj.items()
        if key not in ("apiVersion", "kind", "metadata") and not (split and key == "status")
    }
    metadata = obj.get("metadata")
    if isinstance(metadata, dict):
        owned = {key: value for key, value in metadata.items() if key not in _SERVER_OWNED}
        if owned:
            part["metadata"] = owned
    return part


def _whole(
    rt: ResourceType, live: dict[str, Any] | None, applied: dict[str, Any], after: dict[str, Any], subresource: str
) -> dict[str, Any]:
    """`after` with everything that no manager owns, from the stored object or, when there is none, from the applied one."""
    source: dict[str, Any] = orjson.loads(orjson.dumps(live if live is not None else applied))
    reached = _owned_part(rt, source, subresource)
    result = {"apiVersion": applied.get("apiVersion", rt.api_version), "kind": applied.get("kind", rt.kind)}
    metadata = source.get("metadata") or {}
    if subresource != "status":
        metadata = {key: value for key, value in metadata.items() if key in _SERVER_OWNED}
        metadata |= after.get("metadata", {})
    result["metadata"] = metadata
    for key, value in after.items():
        if key != "metadata":
            result[key] = value
    for key, value in source.items():
        if key not in result and key not in reached and (live is not None or key not in ("status", "spec")):
            result[key] = value
    return result


# --- conflicts -----------------------------------------------------------------------------------------------------------


def _conflict(conflicts: list[tuple[_Entry, set[FieldPath]]]) -> Conflict:
    """All are counted; told are as many as an answer has causes."""
    causes: list[Cause] = []
    count = sum(len(paths) for _, paths in conflicts)
    by_manager: dict[str, list[str]] = {}
    for entry, paths in conflicts:
        name = f'"{entry.manager}"'
        if entry.subresource:
            name += f' with subresource "{entry.subresource}"'
        if entry.operation == "Update":
            name += f" using {entry.api_version}"
        for path in sorted(path_text(path) for path in sorted(paths)[: MAX_CAUSES - len(causes)]):
            causes.append(Cause(path, "FieldManagerConflict", f"conflict with {name}"))
            by_manager.setdefault(name, []).append(path)
    if count == 1:
        message = f"Apply failed with 1 conflict: {causes[0].message}: {causes[0].field}"
    else:
        lines = []
        for name in sorted(by_manager):
            lines += [f"conflicts with {name}:", *(f"- {path}" for path in by_manager[name])]
        if count > len(causes):
            lines.append(f"and {count - len(causes)} more")
        message = f"Apply failed with {count} conflicts: " + "\n".join(lines)
    return Conflict(message, causes=causes)


def _beyond_last_applied(
    rt: ResourceType, live: dict[str, Any] | None, conflicts: list[tuple[_Entry, set[FieldPath]]], root: Node
) -> list[tuple[_Entry, set[FieldPath]]]:
    """Conflicts that remain when kubectl goes over from client-side to server-side apply: what it applied itself, and nobody
    changed since, is its own."""
    text = (((live or {}).get("metadata") or {}).get("annotations") or {}).get(LAST_APPLIED)
    if live is None or not isinstance(text, str) or not text:
        return conflicts
    try:
        last = orjson.loads(text)
        if not isinstance(last, dict):
            return conflicts
        check_depth(last)
        part = _owned_part(rt, last, "")
        theirs = fields_of(part, root)
    except (orjson.JSONDecodeError, BadRequest):
        return conflicts
    moved = difference(part, _owned_part(rt, live, ""), root)
    theirs -= moved.removed | moved.modified
    left = [(entry, paths - theirs) for entry, paths in conflicts]
    return [(entry, paths) for entry, paths in left if paths]


def _renew_last_applied(obj: dict[str, Any], applied: Mapping[str, Any]) -> None:
    """Keep kubectl's annotation in step, so that a user may go back to client-side apply."""
    annotations = obj["metadata"].get("annotations")
    if not isinstance(annotations, dict) or not annotations.get(LAST_APPLIED):
        return
    metadata = dict(applied.get("metadata") or {})
    own = {key: value for key, value in (metadata.get("annotations") or {}).items() if key != LAST_APPLIED}
    metadata["annotations"] = own
    text = orjson.dumps({**applied, "metadata": metadata}, option=orjson.OPT_SORT_KEYS).decode() + "\n"
    total = sum(len(key) + len(str(value)) for key, value in annotations.items() if key != LAST_APPLIED)
    annotations[LAST_APPLIED] = text if total + len(text) <= _MAX_ANNOTATION_BYTES else ""


__all__ = ["record_update", "same", "server_side_apply"]
