"""What a node agent may do: read nodes, and write what is its own. Pure.

Called by the authorizer for users of the group `system:nodes` (`system:node:NAME`), and by the guard for what such a user writes.
A laptop is easily stolen: what its token can do must not reach beyond the laptop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

import orjson

from swarmtask.apiserver.access.rules import READ, Attributes, Rule
from swarmtask.clock import parse_time
from swarmtask.resources import units
from swarmtask.resources.enrolment import LABEL_ENGINE_NODE, LONGEST_LIFE_S, MOST_TOKENS, engine_node
from swarmtask.resources.fields import MOST_BOOT_ID
from swarmtask.resources.meta import GROUP, possible
from swarmtask.resources.node import NodeStatus

NODES = (GROUP, "swarmnodes")
"""The collection in which SwarmNodes are stored."""
LEASES = "coordination.k8s.io"
LEASE_NAMESPACE = "kube-node-lease"
OPERATORS_FIELDS = frozenset({
    "phase", "message", "engines", "capacity", "allocatable", "requested", "tasks", "address", "arch", "os", "lastHeartbeatTime",
})  # fmt: skip
"""Of a SwarmNode's status: what the operator writes from what engines and bindings say."""
OPERATORS_CONDITIONS = ("Ready", "Drained", "QuietHours")

MOST_BYTES = 2**63 - 1
"""Of memory: as much as 64 bits can address."""

MOST_TOLD_BYTES = 2**19
"""Of all that an agent tells, as JSON, and of who owns which field of the status: half of what a status may have, so that the
operator's part always fits beside it."""

UNSAID: Mapping[str, Any] = NodeStatus().to_dict()
"""A status in which nobody has said anything yet."""

HasAttempt = Callable[[str, str, str], bool]
"""(namespace, task, node): the task has an attempt on that node."""


def node_rules(node: str) -> tuple[Rule, ...]:
    """The node role as rules, for `can-i --list`. Tasks are left out: which ones depends on where their attempts are."""
    return (
        Rule(READ, (GROUP,), ("swarmnodes",)),
        Rule(("get", "update", "patch"), (GROUP,), ("swarmnodes/status",), (node,)),
        Rule(("create",), (GROUP,), ("swarmnodes/log",), (node,)),
        Rule(("get", "update", "patch"), (LEASES,), ("leases",), (node,)),
        Rule(("create",), (LEASES,), ("leases",)),
    )


def node_may(node: str, wanted: Attributes, has_attempt: HasAttempt) -> bool:
    """Whether the agent of a node may send this request. What it writes is looked at by `lease_problem` and the others below.

    How attempts ended it tells in the status of its own SwarmNode; the records in a task are the operator's.
    """
    where = (wanted.group, wanted.full_resource)
    if where == NODES:
        return wanted.verb in READ
    if where == (GROUP, "swarmnodes/status"):
        return wanted.verb in ("get", "update", "patch") and wanted.name == node
    if where == (GROUP, "swarmnodes/log"):
        return wanted.verb == "create" and wanted.name == node  # of which attempts: see `is_attempt_on`
    if where == (LEASES, "leases"):
        if wanted.namespace != LEASE_NAMESPACE:
            return False
        return wanted.verb == "create" or (wanted.verb in ("get", "watch", "update", "patch") and wanted.name == node)
    if where == (GROUP, "swarmtasks") and wanted.verb == "get" and wanted.name:
        return has_attempt(wanted.namespace, wanted.name, node)
    if where == (GROUP, "swarmtasks/log") and wanted.verb == "create" and wanted.name:
        return has_attempt(wanted.namespace, wanted.name, node)  # of which attempt: see `is_attempt_on`
    return False


def lease_problem(node: str, new: Mapping[str, Any], old: Mapping[str, Any] | None) -> str:
    """What is wrong with a Lease that the agent of `node` wants to write; empty: nothing."""
    metadata = new["metadata"]
    if metadata.get("name") != node:
        return f"can only write the lease of its own node: {node}"
    before = (old or {}).get("metadata") or {}
    if metadata.get("ownerReferences", []) != before.get("ownerReferences", []) or metadata.get("finalizers") != before.get(
        "finalizers"
    ):
        return "a node may not set owners or finalizers of its lease"
    holder = (new.get("spec") or {}).get("holderIdentity")
    if isinstance(holder, str) and len(holder) > MOST_BOOT_ID:
        return f"spec.holderIdentity is the boot ID of the node, and no longer than {MOST_BOOT_ID} characters"
    return ""


def node_status_problem(new: Mapping[str, Any], old: Mapping[str, Any]) -> str:
    """What is wrong with a status of a SwarmNode that its agent wants to write."""
    # With the first status come the defaults of the operator's fields: they are nobody's word.
    before, after = ({**UNSAID, **(node.get("status") or {})} for node in (old, new))
    changed = sorted(name for name in OPERATORS_FIELDS if before.get(name) != after.get(name))
    if changed:
        return f"a node may not change what the operator says of it: status.{', status.'.join(changed)}"
    decided = next((type_ for type_ in OPERATORS_CONDITIONS if _of_type(before, type_) != _of_type(after, type_)), None)
    if decided is not None:
        return f"a node may not change its condition {decided}: the operator decides that"
    told = _told_bytes(new)
    if told > MOST_TOLD_BYTES and told > _told_bytes(old):
        return f"a node may tell {MOST_TOLD_BYTES} bytes as JSON of itself, managedFields of its status included, and not {told}"
    return _told_problem(after)


def _told_bytes(node: Mapping[str, Any]) -> int:
    """How much of a SwarmNode is there because its agent wrote it."""
    status = {name: value for name, value in (node.get("status") or {}).items() if name not in OPERATORS_FIELDS}
    owned = [item for item in node["metadata"].get("managedFields") or () if item.get("subresource") == "status"]
    return len(orjson.dumps((status, owned)))


def _told_problem(status: Mapping[str, Any]) -> str:
    """What an agent says that cannot be: others reckon with it."""
    for number, record in enumerate(status.get("attempts") or ()):
        for name in ("startedAt", "finishedAt"):
            if not _can_be(record.get(name)):
                return f"status.attempts[{number}].{name}: no clock shows {record[name]}"
        peak = record.get("peakMemory")
        if peak is not None and units.memory_bytes(peak) > MOST_BYTES:
            return f"status.attempts[{number}].peakMemory: no machine has {peak} bytes"
    wish = status.get("eviction") or {}
    return "" if _can_be(wish.get("requestedAt")) else f"status.eviction.requestedAt: no clock shows {wish['requestedAt']}"


def _can_be(text: str | None) -> bool:
    """A time that a clock can show, or none."""
    try:
        return not text or possible(datetime.fromisoformat(text)) is not None
    except ValueError:
        return False


def token_problem(token: Mapping[str, Any], node: Mapping[str, Any] | None, now: datetime, living: int) -> str:
    """What is wrong with an AccessToken of a node that was asked for with the credential that all nodes share; empty: nothing.

    Args:
        node: its SwarmNode; None: there is none.
        living: tokens that the node has already.
    """
    status = (node or {}).get("status") or {}
    if node is None or status.get("phase") == "Gone":
        return "there is no such node: it has to join the swarm first, and one that has left gets no token"
    label = (token["metadata"].get("labels") or {}).get(LABEL_ENGINE_NODE)
    known = [engine_node(str(item.get("name")), str(item.get("id"))) for item in status.get("engines") or ()]
    if label not in known:
        return (
            f"the label {LABEL_ENGINE_NODE} must say which node of its engine it is ({' or '.join(known) or 'no engine lists it'})"
        )
    expires = token["spec"].get("expirationTimestamp")
    if not expires or not now < parse_time(expires) <= now + timedelta(seconds=LONGEST_LIFE_S):
        return f"spec.expirationTimestamp must lie within {LONGEST_LIFE_S // 86_400} days"
    if living >= MOST_TOKENS:
        return f"the node has {living} tokens already: one that is not needed has to end first"
    return ""


def _of_type(status: Mapping[str, Any], type_: str) -> list[Any]:
    return [item for item in status.get("conditions") or () if isinstance(item, Mapping) and item.get("type") == type_]


def _is_record(attempt: Any, node: str) -> bool:
    return isinstance(attempt, Mapping) and attempt.get("node") == node


def has_attempt_on(task: Mapping[str, Any], node: str) -> bool:
    """One of a task's attempts, ended or not, was bound to the node."""
    attempts = (task.get("status") or {}).get("attempts")
    return isinstance(attempts, list) and any(_is_record(attempt, node) for attempt in attempts)


def is_attempt_on(task: Mapping[str, Any], node: str, number: int) -> bool:
    """This attempt of a task was bound to the node."""
    attempts = (task.get("status") or {}).get("attempts")
    return isinstance(attempts, list) and any(_is_record(item, node) and item.get("number") == number for item in attempts)
