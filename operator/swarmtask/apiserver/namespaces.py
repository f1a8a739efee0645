"""What the status of a namespace says while it is being deleted: which objects, and whose finalizers, it waits for.

Called by the collector. Pure: it changes the object that it is given, and nothing else.
Source: Kubernetes documentation, "Namespaces"; the conditions that `kubectl describe namespace` shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from swarmtask.apiserver.records import Record
from swarmtask.clock import format_time

SHOWN = 10
"""Kinds and finalizers that a message names; the rest is counted."""


def namespace_waits(namespace: dict[str, Any], left: Sequence[Record], now: datetime) -> None:
    """Set the conditions of a namespace with content, in place; `left` is what is still there, and not empty."""
    kinds = Counter(".".join(filter(None, reversed(record.key.collection))) for record in left)
    finalizers = Counter(name for record in left for name in record.decode()["metadata"].get("finalizers", ()))
    content = f"Some resources are remaining: {_listed(kinds, 'has {} resource instances')}"
    _set(namespace, "NamespaceContentRemaining", "SomeResourcesRemain", content, now)
    if finalizers:
        held = f"Some content in the namespace has finalizers remaining: {_listed(finalizers, 'in {} resource instances')}"
        _set(namespace, "NamespaceFinalizersRemaining", "SomeFinalizersRemain", held, now)


def _listed(counts: Counter[str], words: str) -> str:
    named = [f"{name} {words.format(count)}" for name, count in sorted(counts.items())[:SHOWN]]
    more = len(counts) - len(named)
    return ", ".join([*named, *([f"and {more} more"] if more else [])])


def _set(namespace: dict[str, Any], type_: str, reason: str, message: str, now: datetime) -> None:
    conditions = [dict(one) for one in namespace.setdefault("status", {}).get("conditions", ())]
    condition = next((one for one in conditions if one.get("type") == type_), None)
    if condition is None:
        condition = {"type": type_, "status": "True", "lastTransitionTime": format_time(now)}
        conditions.append(condition)
    condition.update(reason=reason, message=message)
    namespace["status"]["conditions"] = conditions
