"""Stored objects as models, and models as patches.

Called by the cache and by whoever writes a status. An object that its model refuses is not an error here but a value: the operator
must go on with the others, and say what is wrong with this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from swarmtask.controllers.sharing import lighten, shared_body
from swarmtask.kube import Object
from swarmtask.resources.meta import Model, ObjectMeta
from swarmtask.resources.node import NodeSpec, NodeStatus, SwarmNode
from swarmtask.resources.queue import QueueSpec, QueueStatus, SwarmQueue
from swarmtask.resources.task import Container, SwarmTask, TaskSpec, TaskStatus

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
"""Where kubectl keeps a copy of the whole object; not kept here."""
ReadModel = TypeVar("ReadModel", bound=Model)
UNREADABLE_SPEC = TaskSpec(container=Container(image="unreadable"))
"""Stands in for a spec that cannot be read. Nothing of it is ever run."""


@dataclass(frozen=True, slots=True)
class ReadTask:
    """A stored SwarmTask.

    Attributes:
        invalid: why its spec cannot be read; then `task.spec` is a stand-in. None: all is well.
    """

    task: SwarmTask
    invalid: str | None = None


@dataclass(frozen=True, slots=True)
class ReadQueue:
    """A stored SwarmQueue.

    Attributes:
        spec, status: None where it cannot be read.
        invalid: why something of it cannot be read. None: all is well.
    """

    metadata: ObjectMeta
    spec: QueueSpec | None
    status: QueueStatus | None
    invalid: str | None = None


@dataclass(frozen=True, slots=True)
class ReadNode:
    """A stored SwarmNode.

    Attributes:
        node: with what can be read of it; other fields are as if nobody had said them.
        invalid: why something of it cannot be read. None: all is well.
        mute: something of its status cannot be read: what was read of it must not be written back.
    """

    node: SwarmNode
    invalid: str | None = None
    mute: bool = False


def read_task(obj: Object) -> ReadTask:
    """Read a stored SwarmTask.

    Raises:
        ValueError: not even its status can be read, so nothing can be decided about it; the message says why.
    """
    body = {name: value for name, value in obj.items() if value is not None}
    annotations = (body.get("metadata") or {}).get("annotations")
    if isinstance(annotations, dict) and LAST_APPLIED in annotations:
        kept = {name: value for name, value in annotations.items() if name != LAST_APPLIED}
        body["metadata"] = {**body["metadata"], "annotations": kept}
    try:
        task = SwarmTask.model_validate(shared_body(body))
        lighten(task)
        return ReadTask(task)
    except ValidationError:
        pass  # read once more as a whole, for the words
    try:
        return ReadTask(SwarmTask.model_validate(body))
    except ValidationError as error:
        why = explain(error)
    try:
        metadata = ObjectMeta.model_validate(body.get("metadata") or {})
        status = TaskStatus.model_validate(body.get("status") or {})
    except ValidationError as error:
        raise ValueError(explain(error)) from error
    return ReadTask(SwarmTask(metadata=metadata, spec=UNREADABLE_SPEC, status=status), invalid=why)


def read_node(obj: Object) -> ReadNode:
    """Read a stored SwarmNode, or what can be read of it: a field of its spec that is refused takes neither the others nor the
    words of its agent along."""
    try:
        return ReadNode(_read(SwarmNode, obj))
    except ValueError as error:
        why = str(error)
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    node = SwarmNode(metadata=_metadata(obj), spec=_salvaged(NodeSpec, spec), status=_salvaged(NodeStatus, status))
    return ReadNode(node, invalid=why, mute=_part(NodeStatus, status) is None)


def read_queue(obj: Object) -> ReadQueue:
    """Read a stored SwarmQueue, or what can be read of it."""
    try:
        queue = _read(SwarmQueue, obj)
        return ReadQueue(queue.metadata, queue.spec, queue.status)
    except ValueError as error:
        why = str(error)
    return ReadQueue(_metadata(obj), _part(QueueSpec, obj.get("spec")), _part(QueueStatus, obj.get("status")), invalid=why)


def _metadata(obj: Object) -> ObjectMeta:
    """All of it, or no more than what names the object and its version."""
    known = {name: obj["metadata"][name] for name in ("name", "namespace", "uid", "resourceVersion") if obj["metadata"].get(name)}
    return _part(ObjectMeta, obj["metadata"]) or ObjectMeta.model_validate(known)


def _part(model: type[ReadModel], part: Any) -> ReadModel | None:
    try:
        return model.model_validate(part or {})
    except ValidationError:
        return None


def _salvaged(model: type[ReadModel], part: Any) -> ReadModel:
    """A part without what its model refuses: of a list that is at fault the items, else whole fields."""
    kept = dict(part) if isinstance(part, Mapping) else {}
    items: dict[str, set[int]] = {}
    try:
        return model.model_validate(kept)
    except ValidationError as error:
        for fault in error.errors(include_url=False, include_context=False, include_input=False):
            match fault["loc"]:
                case (str(name), int(index), *_) if isinstance(kept.get(name), list):
                    items.setdefault(name, set()).add(index)
                case (str(name), *_):
                    kept.pop(name, None)
    kept |= {
        name: [item for number, item in enumerate(kept[name]) if number not in spoilt]
        for name, spoilt in items.items()
        if name in kept
    }
    return _part(model, kept) or model()


def _read(model: type[ReadModel], obj: Object) -> ReadModel:
    try:
        return model.model_validate({name: value for name, value in obj.items() if value is not None})
    except ValidationError as error:
        raise ValueError(explain(error)) from error


def explain(error: ValidationError) -> str:
    """The first few faults, each with its field."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    words = [f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in faults[:5]]
    if len(faults) > 5:
        words.append(f"and {len(faults) - 5} more")
    return "the stored object cannot be read: " + "; ".join(words)


def version_of(obj: Object) -> int:
    """The resourceVersion as a number. Kubernetes defines its order since 1.35, and every server so far has used integers."""
    return int(obj["metadata"]["resourceVersion"])


def difference(old: Model, new: Model) -> dict[str, Any]:
    """A merge patch that turns one status into the other: changed fields whole, null for those that went away."""
    before, after = old.to_dict(), new.to_dict()
    patch: dict[str, Any] = {name: value for name, value in after.items() if before.get(name) != value or name not in before}
    patch |= {name: None for name in before if name not in after}
    return {name: _explicit(before.get(name), value) for name, value in patch.items()}


def _explicit(before: Any, after: Any) -> Any:
    """Within a mapping a merge patch keeps what it does not name, so name what went away."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        return {name: None for name in before if name not in after} | {
            name: _explicit(before.get(name), value) for name, value in after.items()
        }
    return after
