"""From when on a changed limit is in force for the checker.

Used by `world`. The API knows no transaction over a node and a task: an operator that has not heard yet that a limit was lowered,
or has sent a placement just before, breaks nothing by going on. So a raised bound is told to the checker at once, also when
another one of the same object is lowered with it; a lowered one when the operator knows it and every write that was sent before has
had its effect or never will. What an operator had sent when it died is refused once its successor has begun. Never hides a limit
longer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from swarmtask.controllers.cache import Cache
from swarmtask.controllers.reading import version_of
from swarmtask.kube import Object
from swarmtask.resources import units
from swarmtask.resources.kinds import SWARM_NODE, SWARM_QUEUE, Kind
from swarmtask.scheduler.model import TaskKey

Slot = tuple[str, TaskKey]
Amounts = dict[str, float]
"""Name of a bound -> how much is allowed; what is not named is not bounded."""
UNBOUNDED = float("inf")
LIMIT = "limit "
"""Before the names of limits."""


@dataclass
class _Lowered:
    obj: Object
    version: int
    earlier: set[int] | None = None
    """Writes of placements that were sent before the operator knew; None while it does not know."""


class Sent(NamedTuple):
    """A write of a task that may still have its effect. `places`: it is the placement itself, and not a step before it."""

    task: TaskKey
    places: bool


class Limits:
    """See the module. `tell`: hands an object to the checker, with the bounds that are in force."""

    def __init__(self, tell: Callable[[Kind, Object], None]) -> None:
        self._tell = tell
        self._told: dict[Slot, Amounts] = {}
        self._lowered: dict[Slot, tuple[Kind, _Lowered]] = {}

    def changed(self, kind: Kind, obj: Object) -> None:
        """A node or a queue was stored."""
        amounts = _limits(kind, obj)
        if amounts is None:
            return
        slot = (kind.plural, (obj["metadata"].get("namespace") or "", obj["metadata"]["name"]))
        told, waiting = self._told.get(slot), self._lowered.get(slot)
        if told is None and kind is SWARM_QUEUE:
            # A new one: its tasks cannot have started, but its limits are also those of others'.
            told = {name: amount for name, amount in amounts.items() if not name.startswith(LIMIT)}
            self._say(kind, slot, obj, told)
        if told is None or _covers(amounts, told):
            self._lowered.pop(slot, None)
            return self._say(kind, slot, obj, amounts)
        loosest = {name: max(amount, amounts[name]) for name, amount in told.items() if name in amounts}
        if loosest != told:
            self._say(kind, slot, obj, loosest)
        if waiting is None or _limits(kind, waiting[1].obj) != amounts:
            self._lowered[slot] = (kind, _Lowered(obj, version_of(obj)))
        else:
            waiting[1].obj = obj

    def restarted(self) -> None:
        """Another operator with an empty cache."""
        for _, lowered in self._lowered.values():
            lowered.earlier = None

    def look(self, cache: Cache, sent: Mapping[int, Sent]) -> None:
        """Ask the operator's cache what it knows by now. `sent`: its writes of tasks that may still have their effect."""
        for slot, (kind, lowered) in list(self._lowered.items()):
            if max(cache._versions.get(slot, -1), cache._tombstones.get(slot, -1)) < lowered.version:
                continue
            if lowered.earlier is None:
                # A placement that was given up is not assumed any more, and may arrive all the same.
                lowered.earlier = {number for number, write in sent.items() if write.places or write.task in cache._assumed}
            lowered.earlier &= sent.keys()
            if not lowered.earlier:
                del self._lowered[slot]
                amounts = _limits(kind, lowered.obj)
                assert amounts is not None
                self._say(kind, slot, lowered.obj, amounts)

    def _say(self, kind: Kind, slot: Slot, obj: Object, amounts: Amounts) -> None:
        self._told[slot] = amounts
        self._tell(kind, obj if amounts == _limits(kind, obj) else _bounded(kind, obj, amounts))


def _covers(new: Amounts, old: Amounts) -> bool:
    """Nothing is bounded more tightly than before."""
    return all(amount >= old.get(name, UNBOUNDED) for name, amount in new.items())


def _limits(kind: Kind, obj: Object) -> Amounts | None:
    """What is bounded, and by how much; None where nothing is said yet."""
    spec = obj.get("spec") or {}
    if kind is not SWARM_NODE:
        bounds = {name: spec.get(name) for name in ("maxRunning", "maxRunningPerNode")}
        bounds |= {f"{LIMIT}{name}": slots for name, slots in (spec.get("limits") or {}).items()}
    else:
        offered = (obj.get("status") or {}).get("allocatable")
        if not offered:
            return None
        bounds = {
            "cpu": units.cpu_milli(offered["cpu"]), "memory": units.memory_bytes(offered["memory"]), "gpu": offered.get("gpu", 0),
            "maxTasks": spec.get("maxTasks"),
        }  # fmt: skip
    return {name: amount for name, amount in bounds.items() if amount is not None}


def _bounded(kind: Kind, obj: Object, amounts: Amounts) -> Object:
    """The object with these bounds instead of its own."""
    spec: Object = dict(obj.get("spec") or {})
    if kind is SWARM_NODE:
        offered = obj["status"]["allocatable"] | {
            "cpu": f"{amounts['cpu']:.0f}m", "memory": f"{amounts['memory']:.0f}", "gpu": int(amounts["gpu"]),
        }  # fmt: skip
        return obj | {"spec": spec | {"maxTasks": amounts.get("maxTasks")}, "status": obj["status"] | {"allocatable": offered}}
    slots = {name.removeprefix(LIMIT): amount for name, amount in amounts.items() if name.startswith(LIMIT)}
    bounds = {name: amounts.get(name) for name in ("maxRunning", "maxRunningPerNode")}
    return obj | {"spec": {name: value for name, value in (spec | bounds | {"limits": slots}).items() if value is not None}}
