"""Events of SwarmNodes and SwarmTasks as Events of Nodes and Pods, for whoever asks for those.

Called by the handlers when a list or watch of Events is restricted to `involvedObject.kind` Node or Pod (`kubectl describe`,
`kubectl events --for`); a list that is not shows each Event once, about the object that it was posted for. Pure. An Event of a
task that speaks of attempt N belongs to the pod of that attempt; one that speaks of none belongs to whichever pod is asked for by
name.

Events of Nodes carry the name of the node as the UID of what they are about, as those of Kubernetes' kubelets do: that is what
every `kubectl describe node` asks for.
"""

from __future__ import annotations

import re
from typing import Any

from swarmtask.apiserver.projections.pods import attempt_of, pod_name, pod_uid
from swarmtask.apiserver.projections.views import View, projected
from swarmtask.apiserver.records import Collection, Key, Record
from swarmtask.apiserver.selectors import FieldSelector, Selection
from swarmtask.resources.kinds import SWARM_NODE, SWARM_TASK

EVENTS: Collection = ("", "events")
_UID_OF_POD = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
_ATTEMPT = re.compile(r"\battempt ([1-9][0-9]{0,8})\b")


def event_view(fields: FieldSelector) -> View | None:
    """The view that a field selector of Events asks for; None: stored Events as they are.

    Where it names no kind (kubectl's `describe pod` does not), the UID tells: of a pod it is one that follows from a name
    (version 5), of a node it is the name itself.
    """
    for part in ("involvedObject", "regarding"):
        kind, name, uid = (fields.value(f"{part}.{field}") for field in ("kind", "name", "uid"))
        if kind == "Node" or (kind is None and name and uid == name):
            return _NodeEvents()
        if kind == "Pod" or (kind is None and name and _UID_OF_POD.fullmatch(uid or "")):
            return _PodEvents(name)
    return None


class _NodeEvents:
    """Events of SwarmNodes, about Nodes."""

    source = EVENTS

    def project(self, record: Record) -> list[Record]:
        event = _about(record, SWARM_NODE.kind)
        if event is None:
            return []
        name = event["involvedObject"].get("name", "")
        event["involvedObject"] |= {"kind": "Node", "apiVersion": "v1", "uid": name}
        return [projected(record.key, record.rv, event)]

    def origin(self, key: Key) -> Key | None:
        return key

    def may_show(self, record: Record, selection: Selection) -> bool:
        return b'"SwarmNode"' in record.body


class _PodEvents:
    """Events of SwarmTasks, about Pods. `pod`: the one whose Events are wanted; None: all, of Events that name an attempt."""

    source = EVENTS

    def __init__(self, pod: str | None) -> None:
        self._wanted = attempt_of(pod) if pod is not None else None
        self._any = pod is None

    def project(self, record: Record) -> list[Record]:
        event = _about(record, SWARM_TASK.kind)
        if event is None:
            return []
        about = event["involvedObject"]
        named = _ATTEMPT.search(event.get("message") or "")
        number = int(named.group(1)) if named is not None else None
        if not self._any:
            if self._wanted is None or about.get("name") != self._wanted[0] or number not in (None, self._wanted[1]):
                return []
            number = self._wanted[1]
        if number is None:
            return []
        uid = pod_uid(about.get("uid", ""), number)
        event["involvedObject"] = about | {"kind": "Pod", "apiVersion": "v1", "name": pod_name(about["name"], number), "uid": uid}
        return [projected(record.key, record.rv, event)]

    def origin(self, key: Key) -> Key | None:
        return key

    def may_show(self, record: Record, selection: Selection) -> bool:
        return b'"SwarmTask"' in record.body


def _about(record: Record, kind: str) -> dict[str, Any] | None:
    """The Event, if it is about one of our kinds."""
    event = record.decode()
    about = event.get("involvedObject") or {}
    if about.get("kind") != kind or not str(about.get("apiVersion", "")).startswith("swarmtask.io/") or not about.get("name"):
        return None
    return event
