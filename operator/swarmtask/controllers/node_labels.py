"""What a node has, as labels that its engine keeps: for `docker service create --constraint` and the like.

One `NodeLabels` per engine. Slow facts only, never load, and written only when they have changed: on Swarm a label that changes
may end the tasks of services that are constrained by it. Whatever somebody else has labelled stays: a label of ours that was there
before with another value is left alone, and which ones we wrote is kept in a label of its own, beside them. Never decides a
placement.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Final

from swarmtask.controllers.cache import Cache
from swarmtask.controllers.crashpoints import write_point
from swarmtask.controllers.lane import EngineLane
from swarmtask.controllers.surroundings import Surroundings
from swarmtask.controllers.waiting import Bell
from swarmtask.errors import SwarmTaskError
from swarmtask.resources import units
from swarmtask.resources.node import SwarmNode, usable_gpus

logger = logging.getLogger(__name__)

PREFIX: Final = "swarmtask.io/"
FACTS: Final = ("arch", "cpu", "gpu", "gpu-model", "memory-gib")
MARK: Final = f"{PREFIX}facts"
"""Engine label: which of FACTS we wrote, with commas (so that it is no label of Kubernetes and is not copied to the SwarmNode)."""
GIB = 2**30
AGAIN_S = 30.0
"""A label that could not be written is tried again after this."""


def facts_of(node: SwarmNode) -> dict[str, str]:
    """What there is to say of a node: fact -> value; what is not known, or not there, is left out.

    `memory-gib` is rounded to whole GiB, `cpu` cut to whole cores; of GPUs of several models, the one with the most memory counts.
    GPUs that its engines cannot give away are left out.
    """
    status = node.status
    cores, memory = units.cpu_milli(status.capacity.cpu) // 1000, units.memory_bytes(status.capacity.memory)
    usable = usable_gpus(status.gpus, status.engines)
    gpus = max(status.capacity.gpu, len(usable))
    best = max(usable, key=lambda gpu: (units.memory_bytes(gpu.memory), -gpu.index), default=None)
    found = {
        "arch": status.arch or "",
        "cpu": str(cores) if cores else "",
        "gpu": str(gpus) if gpus else "",
        "gpu-model": _label_value(best.model) if best is not None else "",
        "memory-gib": str((memory + GIB // 2) // GIB) if memory else "",
    }
    return {fact: value for fact, value in found.items() if value}


def label_changes(listed: Mapping[str, str], facts: Mapping[str, str]) -> dict[str, str | None]:
    """What to write so that an engine's labels say these facts; None removes. Empty: they do.

    Args:
        listed: all labels that the engine keeps for the node.
    """
    ours = set(listed.get(MARK, "").split(","))
    kept, changes = list[str](), dict[str, str | None]()
    for fact in FACTS:
        label, wanted = f"{PREFIX}{fact}", facts.get(fact)
        there = listed.get(label)
        if wanted is None:
            if fact in ours and there is not None:
                changes[label] = None
        elif there is None or fact in ours or there == wanted:
            kept.append(fact)
            if there != wanted:
                changes[label] = wanted
    mark = ",".join(kept) or None
    if mark != listed.get(MARK):
        changes[MARK] = mark
    return changes


class NodeLabels:
    """See the module. `bell`: ring it when a SwarmNode has changed."""

    def __init__(self, lane: EngineLane, around: Surroundings, cache: Cache) -> None:
        self._lane, self._cache = lane, cache
        self._clock, self._settings = around.clock, around.settings
        self._written_at: dict[str, float] = {}
        self._failing: set[str] = set()
        self.bell = Bell(around.clock)

    @property
    def engine(self) -> str:
        return self._lane.name

    async def run(self) -> None:
        """Until cancelled."""
        await self._lane.started()
        while True:
            again = await self.refresh()
            await self.bell.wait(AGAIN_S if again else None)
            await self._clock.sleep(self._settings.status_refresh_s)

    async def refresh(self) -> bool:
        """Write what has changed. True when something has to be looked at again."""
        known = {
            engine.id: node for node in self._cache.nodes.values() for engine in node.status.engines if engine.name == self.engine
        }
        listed, again = self._lane.nodes or (), False
        for node_id in (self._written_at.keys() | self._failing) - {node.id for node in listed}:
            self._written_at.pop(node_id, None)
            self._failing.discard(node_id)
        for node in listed:
            if node.id not in known or not (changes := label_changes(node.labels, facts_of(known[node.id]))):
                continue
            # A list that was asked for before the last write does not show it.
            fresh = self._lane.nodes_at > self._written_at.get(node.id, float("-inf"))
            again |= not (fresh and await self._write(node.id, known[node.id].metadata.name, changes))
        return again

    async def _write(self, node_id: str, name: str, changes: Mapping[str, str | None]) -> bool:
        try:
            with write_point("label-node"):
                await self._lane.engine.label_node(node_id, changes)
        except SwarmTaskError as error:
            if node_id not in self._failing:
                logger.warning("node %s could not be labelled on %s and is tried again: %s", name, self.engine, error)
            self._failing.add(node_id)
            return False
        self._failing.discard(node_id)
        self._written_at[node_id] = self._clock.monotonic()
        self._lane.node_poll.ring()
        return True


def _label_value(text: str) -> str:
    """Some words as the value of a label: `NVIDIA GeForce RTX 3060` -> `NVIDIA-GeForce-RTX-3060`."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text)[:63].strip("-_.")
