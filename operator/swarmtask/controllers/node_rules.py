"""What a node's owner has said about when it takes work: quiet hours, and how much charge it must have.

Called by the snapshot, by the node controller, which shows it, and by `explaining`. Decides nothing; reads no clock. Answers about
quiet hours are remembered until they change, because every cycle asks about every node.
"""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo

from swarmtask.clock import machine_zone
from swarmtask.resources.node import SwarmNode
from swarmtask.resources.quiet_hours import Stand, parse, zone_named
from swarmtask.settings import OperatorSettings

OPEN = Stand(quiet=False)
AGAIN_S = 3600.0
"""An answer that names no change, because none was near, is asked for again after this."""
REMEMBERED = 1000


class NodeRules:
    """See the module.

    Args:
        zone: of quiet hours that name none.
        min_battery_percent: of nodes that do not say themselves.
    """

    def __init__(self, zone: tzinfo = UTC, min_battery_percent: int = 0) -> None:
        self._zone, self._min_battery_percent = zone, min_battery_percent
        self._stands: dict[str, tuple[float, float, Stand]] = {}
        """Text -> from when until when the answer is right, in seconds since the epoch, and the answer."""

    @classmethod
    def of(cls, settings: OperatorSettings) -> NodeRules:
        """As the settings say."""
        zone = zone_named(settings.time_zone) if settings.time_zone else machine_zone()
        return cls(zone, settings.min_battery_percent)

    def quiet(self, node: SwarmNode, now: float) -> Stand:
        """Whether the node is in its quiet hours, and until when that is so. `now`: seconds since the epoch."""
        text = node.spec.quiet_hours
        if not text:
            return OPEN
        known = self._stands.get(text)
        if known is not None and known[0] <= now < known[1]:
            return known[2]
        stand = parse(text).at(datetime.fromtimestamp(now, UTC), self._zone)
        if len(self._stands) >= REMEMBERED:
            self._stands.clear()
        self._stands[text] = (now, now + AGAIN_S if stand.until is None else stand.until.timestamp(), stand)
        return stand

    def min_charge_percent(self, node: SwarmNode) -> int:
        """With less charge it takes nothing while it runs on battery."""
        own = node.spec.min_battery_percent
        return self._min_battery_percent if own is None else own
