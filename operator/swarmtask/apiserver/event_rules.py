"""What an Event must look like: the rules of core/v1, which keep old programs going, and the stricter ones of events.k8s.io/v1.

Called by admission. Pure. An Event with an eventTime is one of the new form, whichever version brings it: it says who reports it
and what was done. Source: Kubernetes API reference, Event; KEP-383 "New Event API".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from swarmtask.apiserver.faults import bad_value, required
from swarmtask.apiserver.names import qualified_name_problem
from swarmtask.clock import parse_time
from swarmtask.errors import Cause

Object = Mapping[str, Any]
CausesOf = Callable[[Object, Object | None], list[Cause]]

NAME_LIMIT = 128
"""Characters of reportingInstance, action and reason of an Event of the new form."""
NOTE_LIMIT = 1024
"""Bytes of its message."""
_ZERO = "0001-01-01T00:00:00"
_CLUSTER_NAMESPACES = ("default", "kube-system")
"""Where Events about objects without a namespace may be."""
_MUTABLE = frozenset({"apiVersion", "kind", "metadata", "series"})
_TIMES = frozenset({"eventTime", "deprecatedFirstTimestamp", "deprecatedLastTimestamp"})
_MISPLACED = "does not match event.namespace"


@dataclass(frozen=True, slots=True)
class _Names:
    """How a version calls its fields. `unset`: what an Event of the new form leaves to the old one."""

    about: str
    note: str
    reporter: str
    unset: tuple[str, ...] = ()


_CORE = _Names("involvedObject", "message", "reportingComponent")
_NEW = _Names(
    "regarding", "note", "reportingController",
    ("deprecatedFirstTimestamp", "deprecatedLastTimestamp", "deprecatedCount", "deprecatedSource"),
)  # fmt: skip


def core_causes(obj: Object, old: Object | None) -> list[Cause]:
    """What is wrong with an Event that came as core/v1."""
    return list(_common(obj, _CORE))


def new_causes(obj: Object, old: Object | None) -> list[Cause]:
    """What is wrong with an Event that came as events.k8s.io/v1: after its creation nothing but the series changes."""
    causes = list(_common(obj, _NEW))
    if old is None:
        return causes + list(_series(obj)) + list(_begun(obj))
    if obj.get("series") != old.get("series"):
        causes += _series(obj)
    fields = sorted((obj.keys() | old.keys()) - _MUTABLE)
    return causes + [bad_value(name, obj.get(name), "field is immutable") for name in fields if not _same(name, obj, old)]


def _common(obj: Object, names: _Names) -> Iterator[Cause]:
    namespace = obj["metadata"].get("namespace", "")
    about = (obj.get(names.about) or {}).get("namespace") or ""
    field = f"{names.about}.namespace"
    if not _time(obj, "eventTime"):
        if namespace != (about or "default"):
            yield bad_value(field, about, _MISPLACED)
        return
    if not about and namespace not in _CLUSTER_NAMESPACES:
        yield bad_value(field, about, _MISPLACED)
    reporter = obj.get(names.reporter) or ""
    if not reporter:
        yield required(names.reporter)
    elif problem := qualified_name_problem(reporter):
        yield bad_value(names.reporter, reporter, problem)
    for name in ("reportingInstance", "action", "reason"):
        value = obj.get(name) or ""
        if not value:
            yield required(name)
        elif len(value) > NAME_LIMIT:
            yield bad_value(name, "", f"can have at most {NAME_LIMIT} characters")
    if len((obj.get(names.note) or "").encode("utf-8", "surrogatepass")) > NOTE_LIMIT:
        yield bad_value(names.note, "", f"can have at most {NOTE_LIMIT} characters")


def _begun(obj: Object) -> Iterator[Cause]:
    """What is asked of a new Event of the new form."""
    if not _time(obj, "eventTime"):
        yield required("eventTime")
    kind = obj.get("type") or ""
    if kind not in ("Normal", "Warning"):
        yield bad_value("type", "", f"has invalid value: {kind}")
    for name in _NEW.unset:
        value = obj.get(name)
        if any(value.values()) if isinstance(value, Mapping) else value:
            yield bad_value(name, "", "needs to be unset")


def _series(obj: Object) -> Iterator[Cause]:
    series = obj.get("series")
    if not series:
        return
    if (series.get("count") or 0) < 2:
        yield bad_value("series.count", "", "should be at least 2")
    if not _time(series, "lastObservedTime"):
        yield required("series.lastObservedTime")


def _same(name: str, obj: Object, old: Object) -> bool:
    """Equal, or empty in both; a time may be written in another way."""
    new, before = obj.get(name), old.get(name)
    if new == before or not (new or before):
        return True
    if name not in _TIMES or not (isinstance(new, str) and isinstance(before, str)):
        return False
    try:
        return parse_time(new) == parse_time(before)
    except ValueError:
        return False


def _time(obj: Object, name: str) -> str:
    """A time that was given; Go's zero time is none."""
    value = str(obj.get(name) or "")
    return "" if value.startswith(_ZERO) else value
