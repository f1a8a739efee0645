"""Which SwarmNodes there are, and why something of one cannot be read.

Kept by the cache; read by `snapshots`, for the scheduler, and by `nodes`, which tells it. A node of which something cannot be read
takes nothing new, because nobody knows what its owner allows: all else goes on, so its agent is heard, and what engines list is
known to be this node. Never talks to anybody.
"""

from __future__ import annotations

import logging

from swarmtask.controllers.node_facts import offers_otherwise
from swarmtask.controllers.reading import read_node
from swarmtask.kube import Object
from swarmtask.resources.node import SwarmNode

logger = logging.getLogger(__name__)


class KnownNodes:
    """See the module.

    Attributes:
        objects: every node that there is, with what can be read of it.
        unreadable: why something of the newest version of a node cannot be read.
        mute: nodes of whose status something cannot be read: nothing is to be written there.
    """

    def __init__(self) -> None:
        self.objects: dict[str, SwarmNode] = {}
        self.unreadable: dict[str, str] = {}
        self.mute: set[str] = set()

    def put(self, name: str, obj: Object) -> bool:
        """A version of it was read. True when a scheduling cycle would see a difference."""
        old, said = self.objects.get(name), self.unreadable.get(name)
        read = read_node(obj)
        self.objects[name] = read.node
        (self.mute.add if read.mute else self.mute.discard)(name)
        if read.invalid is None:
            self.unreadable.pop(name, None)
        else:
            self.unreadable[name] = read.invalid
            if said != read.invalid:
                logger.error("SwarmNode %s takes no tasks until it is corrected: %s", name, read.invalid)
        return old is None or said != read.invalid or offers_otherwise(old, read.node)

    def drop(self, name: str) -> None:
        """It was deleted."""
        self.objects.pop(name, None)
        self.unreadable.pop(name, None)
        self.mute.discard(name)
